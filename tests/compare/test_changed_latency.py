"""Latency before and now: what is told from chance and from a slower machine, and what is not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from made_reports import made_calls, made_report, made_row

from vggt_deploy.compare import significance
from vggt_deploy.compare.baseline import Change, Changes, changes
from vggt_deploy.compare.changed import Found, Hold
from vggt_deploy.compare.report import ComparisonReport
from vggt_deploy.compare.significance import (
    compare_samples,
    dependence,
    independent_calls,
    median_of,
    ratio,
)
from vggt_deploy.report.languages import speaker

LABEL = "onnxruntime/int8_pc_sym"
VARIANTS = ("torch/fp32", "torch/fp16", "torch/int8_pc_sym", LABEL)


def latency(found: Changes, label: str = LABEL) -> Change:
    (variant,) = [variant for variant in found.variants if variant.label == label]
    (one,) = [one for one in variant.changes if one.quantity == "latency_ms"]
    return one


def report(
    samples: Sequence[float], reference: Sequence[float] | None = None, **question: Any
) -> ComparisonReport:
    """PyTorch FP32 and one variant, of these calls."""
    first = made_calls(100, 20, seed=1000) if reference is None else reference
    return made_report(
        made_row("torch/fp32", samples=first), made_row(LABEL, samples=samples), **question
    )


def reports(
    rng: np.random.Generator, count: int, rho: float, slower: float = 1.0
) -> tuple[ComparisonReport, ComparisonReport]:
    """Two runs of the same variants, whose calls depend on each other, the second on a machine on
    which everything takes `slower` times as long.
    """
    old, new = (
        made_report(
            *(
                made_row(label, samples=made_calls(median, count, rho=rho, seed=rng))
                for label in VARIANTS
            )
        )
        for median in (100.0, 100.0 * slower)
    )
    return old, new


def alarms(count: int, rho: float, slower: float, runs: int) -> tuple[int, int]:
    """In how many of so many pairs of runs any variant is called better or worse; and how many
    would be, if calls were taken for independent ones and for the program's own.
    """
    rng = np.random.default_rng(11)
    found, naive = 0, 0
    for _ in range(runs):
        old, new = reports(rng, count, rho, slower)
        together = changes(old, new)
        found += any(
            one.verdict in ("better", "worse") for v in together.variants for one in v.changes
        )
        pairs = [
            (before.measured.latency.samples_ms, after.measured.latency.samples_ms)
            for before, after in zip(old.rows[1:], new.rows[1:], strict=True)
            if before.measured and after.measured
        ]
        p_values = [compare_samples(*pair).p for pair in pairs]
        naive += any(
            p <= 0.05 and abs(np.log(np.median(pair[1]) / np.median(pair[0]))) > 0.02
            for p, pair in zip(significance.holm(p_values), pairs, strict=True)
        )
    return found, naive


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(significance, "RESAMPLES", 200)


# -- what is not told -----------------------------------------------------------------------------


@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize("rho, slower", [(0.3, 1.0), (0.6, 1.0), (0.6, 1.1), (0.0, 1.1)])
def test_false_alarms_of_calls_that_depend_on_each_other(rho: float, slower: float) -> None:
    """Any alarm in 5 % of the pairs of runs at most; by independent draws, in far more."""
    runs = 60
    found, naive = alarms(20, rho, slower, runs)
    assert found <= 0.05 * runs + 2 * math.sqrt(0.05 * 0.95 * runs)
    assert naive > 0.1 * runs


def test_a_slower_machine_makes_no_variant_worse() -> None:
    old = report(made_calls(50, 20, seed=1), made_calls(100, 20, seed=2))
    new = report(made_calls(75, 20, seed=3), made_calls(150, 20, seed=4))
    found = changes(old, new)
    one = latency(found)
    assert one.verdict == "unchanged"
    assert one.change == pytest.approx(1.5, rel=0.05)
    assert one.beside == pytest.approx(1.0, rel=0.05)
    assert one.beside_low is not None
    assert one.beside_high is not None
    assert one.beside_low < 1.0 < one.beside_high
    reference = latency(found, "torch/fp32")
    assert reference.verdict == "not comparable"
    assert "the measure of the machine" in reference.reason
    assert reference.p is None
    (note,) = found.notes
    assert note.startswith("torch/fp32 itself takes 1.")
    assert found.tests == 1


def test_what_only_the_reference_suffers_from_makes_no_other_better() -> None:
    old = report(made_calls(50, 20, seed=1), made_calls(100, 20, seed=2))
    new = report(made_calls(50, 20, seed=3), made_calls(150, 20, seed=4))
    one = latency(changes(old, new))
    assert one.verdict == "unchanged"
    assert one.beside == pytest.approx(1 / 1.5, rel=0.05)


def test_less_slower_than_the_machine_is_not_worse() -> None:
    old = report(made_calls(50, 20, seed=1), made_calls(100, 20, seed=2))
    new = report(made_calls(60, 20, seed=3), made_calls(150, 20, seed=4))
    one = latency(changes(old, new))
    assert (one.verdict, one.reason) == ("unchanged", "no more than torch/fp32 itself changed")


def test_more_than_the_machine_changed_is_found() -> None:
    old = report(made_calls(50, 20, seed=1), made_calls(100, 20, seed=2))
    new = report(made_calls(72, 20, seed=3), made_calls(110, 20, seed=4))
    one = latency(changes(old, new))
    assert one.verdict == "worse"
    assert one.beside == pytest.approx(1.44 / 1.1, rel=0.05)


def test_a_reference_that_did_not_move_is_unchanged() -> None:
    same = report(made_calls(50, 20))
    found = changes(same, same)
    assert latency(found, "torch/fp32").verdict == "unchanged"
    assert found.notes == ()


# -- what is told ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(4))
def test_a_fifth_slower_is_found(seed: int, rho: float) -> None:
    old = report(made_calls(100, 20, seed=seed, rho=rho))
    new = report(made_calls(120, 20, seed=seed + 100, rho=rho))
    found = latency(changes(old, new))
    assert found.verdict == "worse"
    assert found.change == pytest.approx(1.2, rel=0.06)
    assert found.low is not None
    assert found.high is not None
    assert 1.0 < found.low < found.change < found.high
    assert found.p is not None
    assert found.p_adjusted is not None
    assert found.p <= found.p_adjusted <= 0.05
    back = latency(changes(new, old))
    assert back.verdict == "better"
    assert back.change == pytest.approx(1 / found.change)
    assert back.p == pytest.approx(found.p)


@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize("rho, least", [(0.0, 0.95), (0.3, 0.8), (0.6, 0.4)])
def test_of_four_variants_the_slower_one_is_found(rho: float, least: float) -> None:
    """Of 20 calls, a fifth slower: as often as this; the others almost never."""
    rng = np.random.default_rng(5)
    runs, hits, others = 20, 0, 0
    for _ in range(runs):
        old, new = reports(rng, 20, rho)
        rows = (*new.rows[:3], made_row(LABEL, samples=made_calls(120, 20, rho=rho, seed=rng)))
        found = changes(old, replace(new, rows=rows))
        hits += latency(found).verdict == "worse"
        others += any(latency(found, x).verdict in ("better", "worse") for x in VARIANTS[1:3])
    assert hits >= least * runs
    assert others <= 3


def test_what_is_real_but_small_is_unchanged() -> None:
    steady = made_calls(100, 60, seed=7, spread=0.001)
    old = report(made_calls(100, 60, spread=0.001), steady)
    new = report(made_calls(101, 60, seed=1, spread=0.001), steady)
    found = latency(changes(old, new))
    assert found.p is not None
    assert found.p < 1e-6
    assert found.verdict == "unchanged"
    assert found.reason == "told from none, but below 2 %"


def test_ranks_and_median_that_disagree_are_not_judged() -> None:
    """The middle call is a little longer, but a call is likelier to be shorter than longer."""
    old = [10 + 0.001 * i for i in range(21)] + [30 + 0.01 * i for i in range(19)]
    new = [9 + 0.01 * i for i in range(19)] + [10.5 + 0.001 * i for i in range(21)]
    order = np.random.default_rng(0).permutation(40)
    steady = made_calls(100, 60, seed=7, spread=0.001)
    before, after = ([values[i] for i in order] for values in (old, new))
    ranks = compare_samples(before, after)
    assert ranks.sign == -1
    assert ranks.p < 0.01
    found = latency(changes(report(before, steady), report(after, steady)))
    assert found.change == pytest.approx(10.5 / 10.02, rel=0.01)
    assert found.verdict not in ("better", "worse")
    # And what holds a verdict back does so however small p is.
    change = replace(found, verdict="unchanged", p=None, p_adjusted=None, reason="")
    hold = Hold("not comparable", "its calls went another way")
    assert Found(change, ranks, hold).judged(1e-6, 1).verdict == "not comparable"
    assert Found(change, ranks).judged(1e-6, 1).verdict == "worse"


# -- what can't be compared -----------------------------------------------------------------------


def test_three_calls_can_not_tell() -> None:
    found = changes(report((100, 101, 102)), report((200, 201, 202)))
    one = latency(found)
    assert (one.verdict, one.p) == ("not comparable", None)
    assert one.reason.startswith("too few to tell: 3 calls")
    assert one.change == pytest.approx(201 / 101)
    assert found.tests == 0


def test_calls_that_are_worth_too_few_say_so() -> None:
    """Eight calls that rise and rise are hardly more than one."""
    rising = [100.0 + i for i in range(8)]
    found = changes(report(rising), report([2 * x for x in rising]))
    reason = latency(found).reason
    assert reason.startswith("too few to tell: 8 calls, worth 1.")
    assert reason.endswith(" independent ones, no outcome gives p of 0.05 or less")
    said = speaker("zh").recorded(reason)
    assert "折合 1." in said
    assert "calls" not in said
    mixed = [rising[i] for i in (3, 0, 7, 1, 6, 2, 5, 4)]
    steady = [10.0 * x for x in mixed]
    found = changes(report(mixed, steady), report([2 * x for x in mixed], steady))
    assert latency(found).verdict == "worse"


def test_many_variants_of_few_calls_can_hardly_tell_and_say_so() -> None:
    """Complete separation of five calls against five: enough for one test, not for many."""
    labels = ("torch/fp16", "torch/bf16", "torch/mixed", "torch/int8_pc_sym", "torch/int8_pt_sym",
              "torch/int8_pc_asym", "torch/int4_g128", "torch/int4_g32", LABEL)  # fmt: skip
    order = (3, 0, 4, 1, 2)  # as calls come, in no order

    def of(count: int) -> Changes:
        old, new = (
            made_report(
                made_row("torch/fp32", samples=[100.0 + i for i in order]),
                *(made_row(x, samples=[start + i for i in order]) for x in labels[:count]),
            )
            for start in (100.0, 200.0)
        )
        return changes(old, new)

    assert latency(of(1), labels[0]).verdict == "worse"
    many = latency(of(len(labels)), labels[0])
    assert many.verdict == "unchanged"
    assert many.reason == "5 calls among 9 tests can hardly tell any change"


@pytest.mark.parametrize(
    "changed, reason",
    [
        ({"threads": 1}, "other threads: 2 before, 1 now"),
        (
            {"images": {"mode": "crop", "frames": 5, "height": 84, "width": 112}},
            "another number of pictures: 4 before, 5 now",
        ),
        (
            {"images": {"mode": "crop", "frames": 4, "height": 84, "width": 126}},
            "another size: 84 x 112 before, 84 x 126 now",
        ),
        ({"outputs": ["depth"]}, "other outputs: pose, depth, points before, depth now"),
        ({"device": {"name": "rtx4090", "gpu": "A Card"}}, "another GPU: None before, A Card now"),
    ],
)
def test_it_is_not_compared_between_unlike_runs(changed: dict[str, Any], reason: str) -> None:
    found = changes(report(made_calls(100, 20)), report(made_calls(200, 20), **changed))
    one = latency(found)
    assert (one.verdict, one.reason, one.change) == ("not comparable", reason, None)


def test_it_is_not_compared_between_machines() -> None:
    old, new = report(made_calls(100, 20)), report(made_calls(200, 20))
    rows = tuple(replace(row, machine="Another CPU, 8 CPUs") for row in new.rows)
    found = latency(changes(old, replace(new, rows=rows)))
    assert found.verdict == "not comparable"
    assert found.reason == "another machine: A CPU, 2 CPUs before, Another CPU, 8 CPUs now"
    flags = replace(new, environment=replace(new.environment, cpu_flags=("avx2", "avx512f")))
    assert "avx512f" in latency(changes(old, flags)).reason


def test_a_variant_timed_where_the_reference_was_not_has_no_measure() -> None:
    pair = [
        replace(one, rows=(one.rows[0], replace(one.rows[1], machine="Another CPU, 8 CPUs")))
        for one in (report(made_calls(100, 20)), report(made_calls(200, 20)))
    ]
    found = latency(changes(*pair))
    assert found.verdict == "not comparable"
    assert (
        found.reason
        == "torch/fp32 was timed on another machine: what this one changed is not known"
    )
    assert found.change == pytest.approx(2.0, rel=0.05)


def test_a_reference_of_one_call_is_no_measure() -> None:
    found = changes(report(made_calls(100, 20), (50.0,)), report(made_calls(200, 20), (50.0,)))
    assert latency(found).reason == (
        "what the machine changed is not known, by torch/fp32: a single call"
    )


def disturbed(one: ComparisonReport, index: int, busy: float | None) -> ComparisonReport:
    """Other processes kept so many CPUs busy beside that row; None: nobody knows."""
    rows = list(one.rows)
    measured = rows[index].measured
    assert measured is not None
    rows[index] = replace(rows[index], measured=replace(measured, others_cpus=busy))
    return replace(one, rows=tuple(rows))


@pytest.mark.parametrize("side, when", [(0, "before"), (1, "now")])
def test_noisy_times_are_shown_but_not_judged(side: int, when: str) -> None:
    quiet = [report(made_calls(100, 20)), report(made_calls(200, 20, seed=1))]
    noisy = f"noisy times {when}: other processes kept CPUs busy"
    unknown = f"not known {when}: whether other processes kept CPUs busy"
    by_reference = "what the machine changed is not known, by torch/fp32: "
    for index, busy, verdict, reason in (
        (1, 0.19, "worse", ""),
        (1, 1.3, "not comparable", noisy),
        (1, None, "not comparable", unknown),
        (0, 1.3, "not comparable", by_reference + noisy),
        (0, None, "not comparable", by_reference + unknown),
    ):
        pair = list(quiet)
        pair[side] = disturbed(pair[side], index, busy)
        found = latency(changes(*pair))
        assert (found.verdict, found.reason) == (verdict, reason)
        assert found.change == pytest.approx(2.0, rel=0.05)


# -- the tests themselves -------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6])
def test_how_much_calls_depend_on_each_other_is_found(rho: float) -> None:
    rng = np.random.default_rng(2)
    for count, series, within in ((2000, 1, 0.06), (20, 400, 0.08), (8, 400, 0.22)):
        found = dependence(made_calls(9, count, rho=rho, seed=rng) for _ in range(series))
        assert found == pytest.approx(rho, abs=within)


def test_what_has_no_order_depends_on_nothing() -> None:
    assert dependence([]) == 0.0
    assert dependence([[1.0], [2.0, 2.0, 2.0]]) == 0.0
    assert dependence([[1.0, 2.0] * 10]) == 0.0  # each call unlike the one before


def test_how_many_independent_calls_by_hand() -> None:
    assert independent_calls(20, 0.0) == 20.0
    assert independent_calls(1, 0.9) == 1.0
    # The mean of two: variance (2 + 2 rho) / 4 instead of 1 / n.
    assert independent_calls(2, 0.5) == pytest.approx(1 / 0.75)
    # The mean of three: (3 + 4 rho + 2 rho^2) / 9.
    assert independent_calls(3, 0.5) == pytest.approx(9 / 5.5)


def test_dependent_calls_tell_less() -> None:
    old, new = made_calls(100, 20), made_calls(104, 20, seed=1)
    p_values = [compare_samples(old, new, rho).p for rho in (0.0, 0.3, 0.6)]
    assert p_values == sorted(p_values)
    assert p_values[2] > 2 * p_values[0]
    medians = [median_of(old, rho) for rho in (0.0, 0.3, 0.6)]
    variances = [one.variance for one in medians if one]
    assert variances == sorted(variances)
    assert len(set(variances)) == 3


def test_the_ratio_covers_the_true_one_about_as_often_as_it_says(few_draws: None) -> None:
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(200):
        old, new = (median_of(rng.normal(mean, 5, 25).tolist()) for mean in (100, 120))
        assert old is not None
        assert new is not None
        found = ratio([new], [old])
        inside += found.low <= 1.2 <= found.high
    assert 0.9 * 200 <= inside <= 200
    assert median_of([1.0]) is None


def test_ratios_of_calls_that_are_all_alike() -> None:
    one, two = median_of([1.0] * 4), median_of([2.0] * 4)
    assert one is not None
    assert two is not None
    apart, same = ratio([two], [one]), ratio([two, one], [one, two])
    assert (apart.value, apart.low, apart.p) == (pytest.approx(2.0), pytest.approx(2.0), 0.0)
    assert (apart.sign, ratio([one], [two]).sign) == (1, -1)
    assert (same.value, same.p, same.sign) == (1.0, 1.0, 0)
