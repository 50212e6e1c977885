"""The folder of statistics: read back as written, and refused when it is not."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vggt_deploy.errors import CalibrationError
from vggt_deploy.quantize.histogram import FINITE_BINS, NOTHING, Histogram, TokenHistograms
from vggt_deploy.quantize.selection import Outlier, Selection, ViewSet
from vggt_deploy.quantize.statistics import (
    ARRAYS_NAME,
    RECORD_NAME,
    Statistics,
    holds_statistics,
    load_statistics,
    require_same,
    to_files,
    write_statistics,
)
from vggt_deploy.records import ModelRecord

MODEL = ModelRecord("random:vggt-tiny:0", "vggt-tiny")


SELECTION = Selection(
    1,
    (ViewSet(("a b.png",), True, 0.0), ViewSet(("c.png", "d.png"), False, 0.125)),
    (Outlier("e.png", 0.5, 7.25),),
)


def statistics(**changes: Any) -> Statistics:
    layers = {
        "aggregator.frame_blocks.0.mlp.fc1": TokenHistograms(
            Histogram(9.5, np.array([16500], np.uint16), np.array([2], np.int64)),
            Histogram(3.5, np.array([0, 16000, 16480], np.uint16), np.array([7, 900, 1], np.int64)),
        ),
        "camera_head.embed_pose": TokenHistograms(
            Histogram(0.0, np.zeros(1, np.uint16), np.array([36], np.int64)), NOTHING
        ),
    }
    plain = Statistics(MODEL, 56, 84, "crop", 5, {"a b.png": "0" * 64}, ("x.jpg: cut",), layers)
    return dataclasses.replace(plain, **changes)


def same(one: Statistics, other: Statistics) -> bool:
    return to_files(one) == to_files(other)


def write(folder: Path, value: Statistics) -> Path:
    folder.mkdir(exist_ok=True)
    write_statistics(folder, value)
    return folder


filled = st.dictionaries(
    st.integers(0, FINITE_BINS - 1), st.integers(1, 2**62), min_size=1, max_size=5
).map(
    lambda counts: Histogram(
        float(max(counts)),
        np.array(sorted(counts), np.uint16),
        np.array([counts[b] for b in sorted(counts)], np.int64),
    )
)
histograms = st.one_of(
    st.builds(TokenHistograms, filled, filled),
    st.builds(TokenHistograms, filled, st.just(NOTHING)),
    st.builds(TokenHistograms, st.just(NOTHING), filled),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text("abc.é_0", min_size=1), histograms, max_size=4))
def test_read_back_as_written(tmp_path: Path, layers: dict[str, Histogram]) -> None:
    value = statistics(layers=layers)
    again = load_statistics(write(tmp_path / "s", value))
    assert same(again, value)
    assert list(again.layers) == list(layers)
    assert again.model == MODEL
    for name, seen in layers.items():
        for mine, theirs in (("special", "patches"), ("patches", "special")):
            kept = getattr(again.layers[name], mine)
            np.testing.assert_array_equal(kept.counts, getattr(seen, mine).counts)
            assert kept.absmax == getattr(seen, mine).absmax
            assert getattr(again.layers[name], theirs).total == getattr(seen, theirs).total
    assert again.sha256 == value.sha256 == json.loads(to_files(value)[RECORD_NAME])["sha256"]


def test_what_was_chosen_is_kept(tmp_path: Path) -> None:
    value = statistics(selection=SELECTION, rewritten="smooth=0.5+rotate")
    again = load_statistics(write(tmp_path / "s", value))
    assert again.selection == SELECTION
    assert again.rewritten == "smooth=0.5+rotate"
    assert load_statistics(write(tmp_path / "t", statistics())).selection is None


def test_the_same_statistics_are_the_same_bytes() -> None:
    assert to_files(statistics()) == to_files(statistics())
    for change in (
        {"height": 70},
        {"images": {"a b.png": "1" * 64}},
        {"layers": {}},
        {"rewritten": "rotate"},
        {"selection": SELECTION},
    ):
        assert statistics(**change).sha256 != statistics().sha256


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_changed_byte_passes(tmp_path: Path, data: st.DataObject) -> None:
    """White space of the JSON apart, which says nothing."""
    folder = write(tmp_path / "s", statistics())
    name = data.draw(st.sampled_from([RECORD_NAME, ARRAYS_NAME]))
    content = bytearray((folder / name).read_bytes())
    places = [i for i, byte in enumerate(content) if name == ARRAYS_NAME or byte not in b" \n"]
    content[data.draw(st.sampled_from(places))] ^= 1 << data.draw(st.integers(0, 7))
    (folder / name).write_bytes(content)
    with pytest.raises(CalibrationError):
        load_statistics(folder)


@pytest.mark.parametrize("name", [RECORD_NAME, ARRAYS_NAME])
def test_cut_short_or_missing(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "s", statistics())
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-9])
    with pytest.raises(CalibrationError, match=r"cut short|not valid JSON"):
        load_statistics(folder)
    (folder / name).unlink()
    with pytest.raises(CalibrationError) as caught:
        load_statistics(folder)
    assert name in caught.value.message
    assert "vggt-deploy calibrate" in caught.value.fix


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    assert not holds_statistics(tmp_path)
    with pytest.raises(CalibrationError, match=r"holds no calibration\.json"):
        load_statistics(tmp_path)
    with pytest.raises(CalibrationError, match="is not a folder"):
        load_statistics(tmp_path / "nothing")


def spoil_record(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    record = json.loads((folder / RECORD_NAME).read_text())
    edit(record)
    (folder / RECORD_NAME).write_text(json.dumps(record))


@pytest.mark.parametrize(
    "edit, words",
    [
        (lambda r: r.update(schema=1), "schema 1, this version of vggt-deploy reads 2"),
        (lambda r: r.update(schema=True), "schema True"),
        (lambda r: r.pop("schema"), "schema None"),
        (lambda r: r.pop("mode"), "not what calibration writes: .*lacks the field 'mode'"),
        (lambda r: r.update(extra=1), "not what calibration writes: .*unknown field 'extra'"),
        (lambda r: r.update(height="56"), "not what calibration writes: record.height is str"),
        (lambda r: r.update(images={"a": 1}), r"not what calibration writes: record.images\[a\]"),
        (lambda r: r.update(skipped=[1]), r"not what calibration writes: record.skipped\[0\]"),
        (lambda r: r.update(rewritten=None), "not what calibration writes: record.rewritten"),
        (lambda r: r.update(selection={}), "not what calibration writes: record.selection lacks"),
        (lambda r: r["model"].update(config=None), "not what calibration writes: record.model"),
        (lambda r: r["model"].pop("spec"), "not what calibration writes: record.model lacks"),
        (lambda r: r.update(height=70), "was changed after it was written"),
        (lambda r: r["images"].update({"a b.png": "1" * 64}), "was changed after it was written"),
        (lambda r: r["selection"].update(wanted=2), "was changed after it was written"),
    ],
)
def test_a_record_that_is_not_ours(tmp_path: Path, edit: Any, words: str) -> None:
    folder = write(tmp_path / "s", statistics(selection=SELECTION))
    load_statistics(folder)
    spoil_record(folder, edit)
    with pytest.raises(CalibrationError, match=words) as caught:
        load_statistics(folder)
    assert "calibrate again" in caught.value.fix


@pytest.mark.parametrize(
    "change",
    [
        {"bins": np.array([16500, 0, 16000, FINITE_BINS, 0], np.uint16)},
        {"bins": np.array([16500, 0, 16000, 16480, 0], np.int64)},
        {"bins": np.zeros((5, 1), np.uint16)},
        {"counts": np.array([2, 7, 900, -1, 36], np.int64)},
        {"counts": np.array([2, 7, 900, 1], np.int64)},
        {"offsets": np.array([0, 1, 6, 5, 5], np.int64)},
        {"offsets": np.array([0, 1, 5, 5, 5], np.int64)},  # a layer that saw nothing
        {"offsets": np.array([0, 1, 4, 5], np.int64)},
        {"offsets": np.array([1, 1, 4, 5, 5], np.int64)},
        {"absmax": np.array([np.inf, 0.0, 0.0, 0.0])},
        {"absmax": np.array([-1.0, 0.0, 0.0, 0.0])},
        {"absmax": np.array([1.0, 1.0])},
        {"layers": np.array(["a", "a"])},
        {"layers": np.array(["a", None], dtype=object)},
        {"layers": None},
    ],
)
def test_arrays_that_make_no_sense(
    tmp_path: Path, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where every hash is right: whoever wrote them."""
    folder = write(tmp_path / "s", statistics())
    with np.load(folder / ARRAYS_NAME) as file:
        arrays = {name: file[name] for name in file} | change
    buffer = io.BytesIO()
    np.savez(buffer, **{name: array for name, array in arrays.items() if array is not None})
    monkeypatch.setattr(
        "vggt_deploy.quantize.statistics.np.savez", lambda out, **_: out.write(buffer.getvalue())
    )
    write_statistics(folder, statistics())
    with pytest.raises(CalibrationError, match=r"not what calibration writes|can't be read"):
        load_statistics(folder)


def test_another_model_or_size_is_named() -> None:
    file = ModelRecord("a.safetensors", "vggt-1b", None, "a" * 64)
    require_same(statistics(), MODEL, 56, 84)
    require_same(statistics(model=file), dataclasses.replace(file, spec="b.safetensors"), 56, 84)
    for value, model, size, words in [
        (statistics(), MODEL, (56, 98), "size 56 x 84 .* not 56 x 98"),
        (
            statistics(),
            dataclasses.replace(MODEL, spec="random:vggt-tiny:1"),
            (56, 84),
            "tiny:0, n",
        ),
        (statistics(), dataclasses.replace(MODEL, config="vggt-1b"), (56, 84), "not vggt-1b"),
        (statistics(model=file), dataclasses.replace(file, sha256="b" * 64), (56, 84), "aaa.*bbb"),
        (statistics(model=file), MODEL, (70, 84), "vggt-1b, not vggt-tiny; .*; of size 56 x 84"),
        (
            statistics(model=dataclasses.replace(file, sha256=None, revision="1")),
            dataclasses.replace(file, sha256=None, revision="2"),
            (56, 84),
            "revision",
        ),
    ]:
        with pytest.raises(CalibrationError, match=words) as caught:
            require_same(value, model, *size)
        assert "--calibrate" in caught.value.fix


def test_a_rewritten_network_has_statistics_of_its_own() -> None:
    """Smoothing changes what every Linear is given."""
    smooth = statistics(rewritten="smooth=0.5")
    require_same(smooth, MODEL, 56, 84, rewritten="smooth=0.5")
    for value, rewritten, words in (
        (smooth, "", "rewritten by smooth=0.5, not those as the checkpoint has them"),
        (statistics(), "rotate", "as the checkpoint has them, not those rewritten by rotate"),
        (smooth, "smooth=0.6", "by smooth=0.5, not those rewritten by smooth=0.6"),
    ):
        with pytest.raises(CalibrationError, match=words):
            require_same(value, MODEL, 56, 84, rewritten)
