"""Folders that something went wrong with: reading them is an error that says so, no traceback."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vggt_deploy.errors import DeployError
from vggt_deploy.visualize.sources import read_source, without_padding

MakeRun = Callable[..., Path]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**20) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)
READING = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the values of a JSON document stand, all the way down."""
    yield path
    if isinstance(value, dict):
        keys: Iterable[Any] = value.keys()
    else:
        keys = range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield from places(value[key], (*path, key))


def replaced(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    changed = copy.deepcopy(document)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed


def read_or_refuse(folder: Path, images: Path | None = None) -> None:
    try:
        source = read_source(folder, variant=None, images_dir=images)
    except DeployError:
        return
    assert source.pixels.shape[:3] == source.shown.shape
    assert len(source.pictures) == len(source.pixels)


@READING
@given(data=st.data())
def test_any_other_value_in_a_record(
    make_run: MakeRun, photographs: Path, data: st.DataObject
) -> None:
    folder = photographs.parent / "result"
    if not folder.exists():
        make_run()
        (folder / "run.json.kept").write_text((folder / "run.json").read_text())
    document = json.loads((folder / "run.json.kept").read_text())
    place = data.draw(st.sampled_from(list(places(document))))
    changed = replaced(document, place, data.draw(JSON))
    (folder / "run.json").write_text(json.dumps(changed))
    read_or_refuse(folder)
    read_or_refuse(folder, photographs)


@READING
@given(data=st.data())
def test_any_other_value_in_a_question(comparison: Path, data: st.DataObject) -> None:
    kept = comparison / "question.json.kept"
    if not kept.exists():
        kept.write_text((comparison / "question.json").read_text())
    document = json.loads(kept.read_text())
    place = data.draw(st.sampled_from(list(places(document))))
    changed = replaced(document, place, data.draw(JSON))
    (comparison / "question.json").write_text(json.dumps(changed))
    read_or_refuse(comparison)


@READING
@given(
    name=st.sampled_from(["outputs/torch-fp32.npz", "work/images.npy"]),
    at=st.floats(0, 1, exclude_max=True),
    new=st.binary(min_size=1, max_size=4),
    cut=st.booleans(),
)
def test_any_damage_to_arrays(
    comparison: Path, name: str, at: float, new: bytes, cut: bool
) -> None:
    path, kept = comparison / name, comparison / f"{name}.kept"
    if not kept.exists():
        kept.write_bytes(path.read_bytes())
    content = kept.read_bytes()
    place = int(at**3 * len(content))  # headers are at the beginning
    path.write_bytes(
        content[:place] if cut else content[:place] + new + content[place + len(new) :]
    )
    read_or_refuse(comparison)
    path.write_bytes(content)


@given(
    height=st.integers(2, 9),
    width=st.integers(2, 9),
    cuts=st.tuples(*[st.integers(0, 4)] * 4),
    seed=st.integers(0, 99),
)
def test_padding_is_found_wherever_it_is(
    height: int, width: int, cuts: tuple[int, int, int, int], seed: int
) -> None:
    """A picture of any colours but white, framed by any number of white rows and columns."""
    top, bottom, left, right = cuts
    shape = (height + top + bottom, width + left + right, 3)
    pixels = np.full((1, *shape), 255, dtype=np.uint8)
    inside = np.s_[0, top : top + height, left : left + width]
    pixels[inside] = np.random.default_rng(seed).integers(0, 255, (height, width, 3))
    expected = np.zeros(shape[:2], dtype=bool)
    expected[inside[1:]] = True
    np.testing.assert_array_equal(without_padding(pixels)[0], expected)


def test_what_is_read_is_what_was_written(make_run: MakeRun, photographs: Path) -> None:
    """So that the tests above do not pass because nothing can be read at all."""
    source = read_source(make_run(), variant=None, images_dir=None)
    assert source.pictures == tuple(sorted(path.name for path in photographs.iterdir()))
    assert source.shown.all()
    with pytest.raises(DeployError):
        read_source(photographs, variant=None, images_dir=None)
