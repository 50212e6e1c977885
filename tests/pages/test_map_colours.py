"""Values to colours and back: a picture in a page shows the value that its legend says."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from vggt_deploy.pages.blocks import legend
from vggt_deploy.pages.colours import BAD, MAPS, ColourRange, Kind, coloured, ramp, range_of
from vggt_deploy.pages.encode import QUALITY, PictureStore, png_uri, shrunk, webp_uri

DEPTH = ColourRange("depth", 1.0, 3.0, "m")


def decoded(uri: str) -> np.ndarray:
    kind, _, text = uri.partition(";base64,")
    assert kind in ("data:image/webp", "data:image/png")
    with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
        return np.asarray(picture.convert("RGB"))


def values_of(pixels: np.ndarray, limits: ColourRange) -> np.ndarray:
    """The value whose colour is nearest, as an eye reads a legend."""
    steps = np.linspace(limits.low, limits.high, 512)
    colours = coloured(steps[None], limits)[0].astype(int)
    flat = pixels.reshape(-1, 3).astype(int)
    nearest = np.array([np.argmin(((colours - one) ** 2).sum(axis=1)) for one in flat])
    return steps[nearest].reshape(pixels.shape[:2])


def room() -> np.ndarray:
    y, x = np.mgrid[0:70, 0:100] / 100
    return 1.0 + 1.5 * x + 0.4 * np.sin(9 * y) * x + np.where((x > 0.6) & (y > 0.3), 0.3, 0.0)


@pytest.mark.parametrize("quality, good", [(QUALITY, True), (2, False)])
def test_a_map_in_a_page_reads_as_its_values(quality: int, good: bool) -> None:
    depth = room()
    seen = values_of(decoded(webp_uri(coloured(depth, DEPTH), quality=quality)), DEPTH)
    error = np.abs(seen - np.clip(depth, 1.0, 3.0)) / (DEPTH.high - DEPTH.low)
    assert (np.median(error) < 0.01 and np.percentile(error, 95) < 0.03) == good


def test_a_legend_is_without_loss() -> None:
    for kind in MAPS:
        assert (decoded(png_uri(ramp(kind))) == ramp(kind)).all()


@pytest.mark.parametrize("kind", list(MAPS))
def test_the_ramp_goes_from_the_low_end_to_the_high_one(kind: Kind) -> None:
    ends = coloured(np.array([[2.0, 5.0]]), ColourRange(kind, 2.0, 5.0, ""))
    assert (ramp(kind)[0, 0] == ends[0, 0]).all()
    assert (ramp(kind)[0, -1] == ends[0, 1]).all()
    assert not (ends[0, 0] == ends[0, 1]).all()


def test_values_that_are_not_finite_have_their_own_colour() -> None:
    for kind in MAPS:
        colours = coloured(np.array([[np.nan, np.inf, 0.5]]), ColourRange(kind, 0.0, 1.0, ""))
        assert tuple(colours[0, 0]) == tuple(colours[0, 1]) == BAD
        assert tuple(colours[0, 2]) != BAD


def test_a_difference_is_symmetric_and_an_error_begins_at_zero() -> None:
    values = np.array([[-1.0, 0.5, 3.0, np.nan]])
    difference = range_of(values, "difference", "m", high=100.0)
    assert (difference.low, difference.high, difference.clipped) == (-3.0, 3.0, 0.0)
    assert range_of(values + 2, "error", "m").low == 0.0


def test_the_part_beyond_the_ends_is_counted() -> None:
    found = range_of(np.arange(100.0)[None], "depth", "m", low=10.0, high=90.0)
    assert found.clipped == pytest.approx(0.2)


@pytest.mark.parametrize("kind", list(MAPS))
@pytest.mark.parametrize(
    "values", [np.full((2, 2), 3.0), np.full((2, 2), np.nan), np.zeros((2, 2))]
)
def test_a_map_range_is_never_empty(kind: Kind, values: np.ndarray) -> None:
    limits = range_of(values, kind, "m")
    assert limits.high > limits.low
    assert coloured(values, limits).shape == (2, 2, 3)


def test_the_legend_says_range_and_unit() -> None:
    made = legend(ColourRange("depth", 0.123456, 12.3456, "m"))
    assert (made.low, made.high, made.unit) == ("0.123", "12.3", "m")


def test_a_store_keeps_equal_pictures_once() -> None:
    store = PictureStore()
    picture = coloured(room(), DEPTH)
    first, again = store.add(picture), store.add(picture.copy())
    others = {store.add(picture[::-1]), store.add(picture, quality=20), store.add(picture[:35])}
    assert first == again
    assert len({first, *others}) == 4 == len(store.uris)
    assert store.bytes_total == sum(map(len, store.uris.values()))
    assert store.uris[first] == webp_uri(picture)


def test_pictures_are_made_smaller_and_never_larger() -> None:
    picture = np.zeros((20, 40, 3), dtype=np.uint8)
    assert shrunk(picture, 10, smooth=True).shape == (5, 10, 3)
    assert shrunk(picture, 80, smooth=False) is picture
