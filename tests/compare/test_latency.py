"""The timer: every sample kept, statistics by hand, warm-up never counted."""

from __future__ import annotations

import time

import pytest

from vggt_deploy.compare.latency import Latency, measure, summarize
from vggt_deploy.errors import UsageError


def test_statistics_of_known_samples() -> None:
    latency = summarize([10.0, 20.0, 30.0, 40.0, 100.0], [999.0])
    assert latency.n == 5
    assert latency.median_ms == 30.0
    assert latency.min_ms == 10.0
    assert latency.mean_ms == 40.0
    assert latency.p90_ms == pytest.approx(76.0)  # 0.6 of the way from 40 to 100
    assert latency.iqr_ms == 20.0
    assert latency.std_ms == pytest.approx(35.35533905932738)
    assert latency.samples_ms == (10.0, 20.0, 30.0, 40.0, 100.0)
    assert latency.warmup_ms == (999.0,)


def test_one_sample_has_no_standard_deviation() -> None:
    assert summarize([5.0]).std_ms is None


def test_json_round_trip() -> None:
    latency = summarize([1.0, 2.5], [3.0])
    assert Latency.from_json(latency.to_json()) == latency


def test_measure_calls_and_returns_the_last_result() -> None:
    results = iter(range(100))
    latency, last = measure(lambda: next(results), warmup=2, repeats=3)
    assert last == 4
    assert len(latency.samples_ms) == 3
    assert len(latency.warmup_ms) == 2


def test_measure_measures() -> None:
    slow = iter([0.05, 0.0, 0.02, 0.02, 0.02])
    latency, _ = measure(lambda: time.sleep(next(slow)) or 1, warmup=2, repeats=3)
    assert 19.0 < latency.min_ms < 200.0
    assert latency.warmup_ms[0] > 45.0


@pytest.mark.parametrize("warmup, repeats", [(-1, 1), (0, 0)])
def test_nothing_to_time_is_refused(warmup: int, repeats: int) -> None:
    with pytest.raises(UsageError, match="nothing to time"):
        measure(lambda: 1, warmup=warmup, repeats=repeats)
