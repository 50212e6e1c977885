"""The words of budgets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggt_deploy.errors import UsageError
from vggt_deploy.search.picture import _WORDS
from vggt_deploy.search.request import parse_bytes, parse_drops
from vggt_deploy.sensitivity.table import MEASURES


@pytest.mark.parametrize(
    "text,size",
    [
        ("900MB", 900_000_000),
        ("900M", 900_000_000),
        ("1.5 GB", 1_500_000_000),
        ("4.5MiB", 4_718_592),
        ("0.3kB", 300),
        ("123456", 123_456),
        ("123456b", 123_456),
        # 1.1e9 has no exact binary fraction: as a float it would be cut to 1099999999 or kept.
        ("1.1GB", 1_100_000_000),
    ],
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "MB", "-1MB", "0", "0.1", "1e9", "9TB", "nan", "1.2.3MB", "i"]
)
def test_what_is_no_size(text):
    with pytest.raises(UsageError, match="is no size"):
        parse_bytes(text)


@given(st.integers(1, 10**15 - 1))
def test_bytes_are_read_as_they_are(size):
    assert parse_bytes(str(size)) == size


def test_drops():
    assert parse_drops(["auc30=0.5", "pose_deg=0", "abs_rel=1e-3"]) == {
        "auc30": 0.5,
        "pose_deg": 0.0,
        "abs_rel": 0.001,
    }
    assert parse_drops([]) == {}


@pytest.mark.parametrize(
    "texts,problem",
    [
        (["auc10=1"], "unknown measure"),
        (["auc30"], "has no number"),
        (["auc30="], "has no number"),
        (["auc30=much"], "has no number"),
        (["auc30=-1"], "can't be kept"),
        (["auc30=nan"], "can't be kept"),
        (["auc30=inf"], "can't be kept"),
        (["auc30=1", "auc30=2"], "given twice"),
    ],
)
def test_drops_that_are_refused(texts, problem):
    with pytest.raises(UsageError, match=problem) as caught:
        parse_drops(texts)
    assert caught.value.fix


def test_every_measure_that_can_be_asked_for_has_words():
    assert set(_WORDS) == set(MEASURES["truth"]) | set(MEASURES["outputs"])
