"""The loader against upstream's rules, written out once more in the plainest Pillow code."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from vggt_deploy.data.images import ImageBatch, Mode, load_images, place
from vggt_deploy.errors import ImageError, UsageError

WHITE = 1.0


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colour with some texture: bicubic has something to do, JPEG too."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (7 + c) + seed) + np.cos(y / (5 + c)) for c in range(3)]
    noise = rng.normal(0, 0.15, (height, width, 3))
    rgb = (np.stack(waves, -1) / 4 + 0.5 + noise).clip(0, 1) * 255
    return Image.fromarray(rgb.astype(np.uint8))


def save(folder: Path, name: str, image: Image.Image, **options: object) -> Path:
    path = folder / name
    image.save(path, **options)
    return path


def reference(image: Image.Image, mode: str) -> NDArray[np.float32]:
    """Upstream's rules for one RGB picture at 518, step by step; [3, H, W]."""
    width, height = image.size
    if mode == "pad" and width < height:
        new_height = 518
        new_width = round(width * (new_height / height) / 14) * 14
    else:
        new_width = 518
        new_height = round(height * (new_width / width) / 14) * 14
    resized = image.resize((new_width, new_height), Image.Resampling.BICUBIC)
    out = np.asarray(resized).astype(np.float32).transpose(2, 0, 1) / np.float32(255)
    if mode == "crop" and new_height > 518:
        start = (new_height - 518) // 2
        out = out[:, start : start + 518]
    if mode == "pad":
        top, left = (518 - new_height) // 2, (518 - new_width) // 2
        square = np.full((3, 518, 518), WHITE, dtype=np.float32)
        square[:, top : top + new_height, left : left + new_width] = out
        out = square
    return out


SIZES = {
    "4:3": ((640, 480), (392, 518)),
    "3:2 ETH3D": ((6048 // 8, 4032 // 8), (350, 518)),
    "16:9": ((1280, 720), (294, 518)),
    "KITTI": ((1242, 375), (154, 518)),
    "portrait 3:4, 686 cropped": ((480, 640), (518, 518)),
    "square": ((300, 300), (518, 518)),
    "tiny": ((1, 1), (518, 518)),
    "tiny and wide": ((7, 2), (154, 518)),
    "odd": ((641, 479), (392, 518)),
    "half, rounds down to even": ((518, 35), (28, 518)),  # 2.5 -> 2
    "half, rounds up to even": ((518, 49), (56, 518)),  # 3.5 -> 4
}


@pytest.mark.parametrize("size, expected", SIZES.values(), ids=SIZES.keys())
def test_crop_sizes_and_pixels(
    tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    image = picture(*size)
    batch = load_images([save(tmp_path, "a.png", image)])
    assert batch.pixels.shape == (1, 3, *expected)
    assert batch.pixels.dtype == np.float32
    np.testing.assert_array_equal(batch.pixels[0], reference(image, "crop"))


@pytest.mark.parametrize("size", [s for s, _ in SIZES.values()], ids=SIZES.keys())
def test_pad_pixels(tmp_path: Path, size: tuple[int, int]) -> None:
    image = picture(*size)
    batch = load_images([save(tmp_path, "a.png", image)], mode="pad")
    assert batch.pixels.shape == (1, 3, 518, 518)
    np.testing.assert_array_equal(batch.pixels[0], reference(image, "pad"))


def test_pixel_check_notices_wrong_resampling_and_a_shifted_crop(tmp_path: Path) -> None:
    """The twin of the checks above: bilinear, or a crop one row off, is not equal."""
    image = picture(480, 640)
    pixels = load_images([save(tmp_path, "a.png", image)]).pixels[0]
    bilinear = np.asarray(image.resize((518, 686), Image.Resampling.BILINEAR))[84:602]
    assert np.abs(pixels - bilinear.transpose(2, 0, 1) / 255).max() > 0.01
    bicubic = np.asarray(image.resize((518, 686), Image.Resampling.BICUBIC))
    assert np.abs(pixels - bicubic[85:603].transpose(2, 0, 1) / 255).max() > 0.01
    np.testing.assert_array_equal(pixels, bicubic[84:602].transpose(2, 0, 1) / np.float32(255))


def test_mixed_shapes_are_centred_on_white(tmp_path: Path) -> None:
    wide, tall = picture(1242, 375, 1), picture(480, 640, 2)
    batch = load_images([save(tmp_path, "w.png", wide), save(tmp_path, "t.png", tall)])
    assert batch.pixels.shape == (2, 3, 518, 518)
    top = (518 - 154) // 2
    np.testing.assert_array_equal(batch.pixels[0, :, top : top + 154], reference(wide, "crop"))
    assert (batch.pixels[0, :, :top] == WHITE).all()
    assert (batch.pixels[0, :, top + 154 :] == WHITE).all()
    np.testing.assert_array_equal(batch.pixels[1], reference(tall, "crop"))
    mask = batch.picture_mask()
    assert mask[0].sum() == 154 * 518
    assert mask[0, top : top + 154].all()
    assert mask[1].all()


@pytest.mark.parametrize("mode", ["crop", "pad"])
@pytest.mark.parametrize("height", [294, 350, 392, 518, 700])
def test_explicit_size_of_an_artifact(tmp_path: Path, mode: Mode, height: int) -> None:
    paths = [save(tmp_path, f"{i}.png", picture(*s)) for i, s in enumerate([(640, 480), (90, 120)])]
    batch = load_images(paths, mode=mode, width=518, height=height)
    assert batch.pixels.shape == (2, 3, height, 518)


def test_explicit_height_crops_and_pads_around_the_centre(tmp_path: Path) -> None:
    image = picture(640, 480)  # 518 x 392
    path = save(tmp_path, "a.png", image)
    natural = reference(image, "crop")
    lower = load_images([path], height=350).pixels[0]
    np.testing.assert_array_equal(lower, natural[:, 21:371])
    taller = load_images([path], height=434).pixels[0]
    np.testing.assert_array_equal(taller[:, 21:413], natural)
    assert (taller[:, :21] == WHITE).all()
    assert (taller[:, 413:] == WHITE).all()
    same = load_images([path], height=392).pixels[0]
    np.testing.assert_array_equal(same, natural)


def test_pad_into_an_artifact_keeps_the_whole_portrait(tmp_path: Path) -> None:
    path = save(tmp_path, "a.png", picture(480, 640))
    crop = load_images([path], height=350)
    pad = load_images([path], height=350, mode="pad")
    assert crop.placements[0].kept_share(350, 518) == pytest.approx(350 / 686)
    assert pad.placements[0].kept_share(350, 518) == 1
    assert pad.placements[0].resized_height == 350
    assert pad.placements[0].resized_width == 266  # 262.5 -> 18.75 patches -> 19
    assert pad.placements[0].left == 126


def test_other_width(tmp_path: Path) -> None:
    batch = load_images([save(tmp_path, "a.png", picture(640, 480))], width=224)
    assert batch.pixels.shape == (1, 3, 168, 224)
    batch = load_images([save(tmp_path, "a.png", picture(480, 640))], width=224)
    assert batch.pixels.shape == (1, 3, 224, 224)  # the crop limit is the width, 518 upstream


def test_transparency_becomes_white(tmp_path: Path) -> None:
    rgba = picture(518, 350).convert("RGBA")
    alpha = np.full((350, 518), 255, dtype=np.uint8)
    alpha[:100], alpha[100:200] = 0, 128
    rgba.putalpha(Image.fromarray(alpha))
    pixels = load_images([save(tmp_path, "a.png", rgba)]).pixels[0]
    assert (pixels[:, :100] == WHITE).all()
    source = np.asarray(rgba)[..., :3].transpose(2, 0, 1) / 255
    np.testing.assert_allclose(
        pixels[:, 120:180], (source * 128 + 127)[:, 120:180] / 255, atol=0.01
    )
    np.testing.assert_allclose(pixels[:, 210:], source[:, 210:], atol=1e-6)
    # Greyscale with alpha, and a palette with a transparent entry, likewise.
    grey = save(tmp_path, "la.png", rgba.convert("LA"))
    assert (load_images([grey]).pixels[0][:, :100] == WHITE).all()
    palette = picture(518, 350).quantize(8)
    entry = int(np.asarray(palette)[0, 0])
    cut = load_images([save(tmp_path, "p.png", palette, transparency=entry)]).pixels[0]
    assert (cut[:, np.asarray(palette) == entry] == WHITE).all()


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr"])
def test_colour_modes_equal_pillows_conversion(tmp_path: Path, mode: str) -> None:
    image = picture(518, 350).convert(mode)
    name = "a.jpg" if mode in ("CMYK", "YCbCr") else "a.png"
    path = save(tmp_path, name, image)
    with Image.open(path) as opened:
        expected = np.asarray(opened.convert("RGB"))
    pixels = load_images([path]).pixels[0]
    np.testing.assert_array_equal(pixels, expected.transpose(2, 0, 1).astype(np.float32) / 255)


def test_sixteen_bit_greyscale_keeps_its_shades(tmp_path: Path) -> None:
    """Pillow's own conversion makes everything above 255 white."""
    ramp = np.linspace(0, 65535, 518).astype(np.uint16)[None].repeat(350, axis=0)
    path = save(tmp_path, "a.png", Image.fromarray(ramp))
    with Image.open(path) as opened:
        assert (np.asarray(opened.convert("RGB"))[:, 10:] == 255).all()
    pixels = load_images([path]).pixels[0]
    np.testing.assert_array_equal(pixels[1], (ramp >> 8).astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    """Stored so that a viewer turns it upright: the loader must give the upright picture."""
    upright = picture(518, 350)
    store = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(store[orientation]) if orientation in store else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path, "a.png", stored, exif=exif)
    batch = load_images([path])
    assert batch.original_sizes == ((518, 350),)
    np.testing.assert_array_equal(batch.pixels[0], reference(upright, "crop"))
    ignored = load_images([path], exif=False)
    np.testing.assert_array_equal(ignored.pixels[0], reference(stored, "crop"))
    assert (orientation == 1) == (ignored.pixels.tobytes() == batch.pixels.tobytes())


def test_damaged_exif_does_not_cost_the_picture(tmp_path: Path) -> None:
    path = save(tmp_path, "a.jpg", picture(60, 40), exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    assert load_images([path]).pixels.shape == (1, 3, 350, 518)


def encoded(kind: str) -> bytes:
    """A small file with EXIF, so that damage can hit that too."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "Maker"
    buffer = io.BytesIO()
    picture(120, 80).save(buffer, kind, exif=exif)
    return buffer.getvalue()


def load_or_named_error(path: Path) -> ImageBatch | None:
    """The batch, or None after an ImageError that names the file and says what to do."""
    good = save(path.parent, "good.png", picture(120, 80))
    batch = load_images([path, good], width=112, height=70, skip_bad=True)
    if batch.skipped:
        assert str(path) in batch.skipped[0].reason
        with pytest.raises(ImageError, match=r"bad\.") as caught:
            load_images([path], width=112, height=70)
        assert "--skip-bad-images" in caught.value.fix
        return None
    return batch


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_file_cut_short_is_never_half_a_picture(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    whole = encoded(kind)
    cut = data.draw(st.integers(0, len(whole) - 1))
    path = tmp_path_factory.mktemp("cut") / "bad.jpg"
    path.write_bytes(whole)
    expected = load_or_named_error(path)
    assert expected is not None
    path.write_bytes(whole[:cut])
    if batch := load_or_named_error(path):
        # Only the end marker is missing: every pixel was there.
        np.testing.assert_array_equal(batch.pixels, expected.pixels)


@given(
    kind=st.sampled_from(["JPEG", "PNG"]),
    changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=8),
)
@example(kind="JPEG", changes=[(217, 8)])  # another size in the header: too narrow
@settings(max_examples=60, deadline=None)
def test_damaged_bytes_give_a_picture_or_an_image_error(
    tmp_path_factory: pytest.TempPathFactory, kind: str, changes: list[tuple[int, int]]
) -> None:
    content = bytearray(encoded(kind))
    for position, value in changes:
        content[position % len(content)] = value
    path = tmp_path_factory.mktemp("damaged") / "bad.png"
    path.write_bytes(content)
    load_or_named_error(path)


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "is empty (0 bytes)"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 64, "(it is HEIC)"),
        (b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + b"\0" * 64, "(it is AVIF or video)"),
        (b"RIFF\x10\0\0\0WEBPVP8 " + b"\0" * 64, "(it is WebP)"),
        (b"II*\0" + b"\0" * 64, "(it is TIFF)"),
        (b"GIF89a" + b"\0" * 64, "(it is GIF)"),
        (b"<!DOCTYPE html><html>404</html>", "perhaps a failed download"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a failed download"),
        (b"\x01\x02\x03\x04" * 50, "is not a JPEG or PNG picture"),
    ],
)
def test_what_is_no_picture_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "IMG_0001.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        load_images([path])
    assert str(path) in caught.value.message
    assert said in caught.value.message


def test_other_formats_are_refused_even_when_pillow_knows_them(tmp_path: Path) -> None:
    path = save(tmp_path, "a.jpg", picture(40, 30), format="TIFF")
    with pytest.raises(ImageError, match="it is TIFF"):
        load_images([path])


def test_skip_bad_records_what_and_why(tmp_path: Path) -> None:
    good = save(tmp_path, "good.png", picture(64, 48))
    bad, absent = tmp_path / "bad.jpg", tmp_path / "absent.jpg"
    bad.write_bytes(encoded("JPEG")[:300])
    batch = load_images([bad, good, absent], skip_bad=True)
    assert batch.paths == (good,)
    assert batch.sha256 == (hashlib.sha256(good.read_bytes()).hexdigest(),)
    assert [s.path for s in batch.skipped] == [bad, absent]
    assert "can't be decoded" in batch.skipped[0].reason
    assert "can't read" in batch.skipped[1].reason
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        load_images([bad, good])
    with pytest.raises(ImageError, match="none of the 2 files") as caught:
        load_images([bad, absent], skip_bad=True)
    assert "bad.jpg" in caught.value.message


def test_decompression_bomb_guard_is_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, "bomb.png", Image.new("L", (3000, 2000)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2_000_000)
    with pytest.raises(ImageError, match="decompression bomb"):
        load_images([path])
    assert load_images([save(tmp_path, "ok.png", Image.new("L", (1000, 800)))]).height == 420


@pytest.mark.parametrize(
    "options, said",
    [
        ({"mode": "stretch"}, "unknown mode 'stretch'"),
        ({"width": 500}, "width is 500"),
        ({"height": 0}, "height is 0"),
        ({"height": -14}, "height is -14"),
        ({"height": 351}, "height is 351"),
    ],
)
def test_wrong_requests(tmp_path: Path, options: dict[str, object], said: str) -> None:
    path = save(tmp_path, "a.png", picture(64, 48))
    with pytest.raises(UsageError, match=said):
        load_images([path], **options)  # type: ignore[arg-type]


def test_no_images() -> None:
    with pytest.raises(ImageError, match="no images given"):
        load_images([])


def test_too_narrow_a_picture_is_named(tmp_path: Path) -> None:
    path = save(tmp_path, "strip.png", picture(2000, 3))
    with pytest.raises(ImageError, match=r"strip\.png.*no height left"):
        load_images([path])
    good = save(tmp_path, "good.png", picture(64, 48))
    assert len(load_images([path, good], skip_bad=True).skipped) == 1
    tall = save(tmp_path, "tall.png", picture(3, 2000))
    with pytest.raises(ImageError, match=r"tall\.png.*no width left"):
        load_images([tall], mode="pad")


def test_progress(tmp_path: Path) -> None:
    paths = [save(tmp_path, f"{i}.png", picture(64, 48)) for i in range(3)]
    told: list[tuple[int, int]] = []
    load_images(paths, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


SIDES = st.integers(1, 7000)
MULTIPLES = st.integers(1, 60).map(lambda n: 14 * n)


@given(SIDES, SIDES)
def test_placement_is_upstreams_arithmetic(width: int, height: int) -> None:
    for mode in ("crop", "pad"):
        if mode == "pad" and width < height:
            expected = (round(width * (518 / height) / 14) * 14, 518)
        else:
            expected = (518, round(height * (518 / width) / 14) * 14)
        if 0 in expected:
            with pytest.raises(ImageError):
                place((width, height), mode, 518, None)
            continue
        placement, frame = place((width, height), mode, 518, None)
        assert (placement.resized_width, placement.resized_height) == expected
        assert frame == ((518, 518) if mode == "pad" else (min(518, expected[1]), 518))
        assert placement.top == (
            -((expected[1] - 518) // 2) if expected[1] > 518 else (frame[0] - expected[1]) // 2
        )


@given(SIDES, SIDES, st.sampled_from(["crop", "pad"]), MULTIPLES, st.none() | MULTIPLES)
def test_placement_in_any_frame(
    width: int, height: int, mode: Mode, frame_width: int, frame_height: int | None
) -> None:
    try:
        placement, frame = place((width, height), mode, frame_width, frame_height)
    except ImageError:
        assume(False)
    assert frame[1] == frame_width
    assert frame[0] % 14 == 0
    assert placement.resized_width % 14 == 0 == placement.resized_height % 14
    assert placement.resized_width <= frame_width
    if mode == "pad":
        assert placement.resized_height <= frame[0]
        assert frame_width == placement.resized_width or frame[0] == placement.resized_height
    else:
        assert placement.resized_width == frame_width
    # Centred to within a pixel, also where it hangs over.
    right = frame_width - placement.left - placement.resized_width
    below = frame[0] - placement.top - placement.resized_height
    assert 0 <= right - placement.left <= 1
    assert abs(below - placement.top) <= 1
    assert 0 < placement.kept_share(*frame) <= 1


def test_placement_maps_corners(tmp_path: Path) -> None:
    """A white square in a black picture is found where the placement says it is."""
    canvas = np.zeros((600, 400, 3), dtype=np.uint8)
    canvas[250:350, 100:300] = 255
    path = save(tmp_path, "a.png", Image.fromarray(canvas))
    batch = load_images([path], width=224, height=168)
    at = batch.placements[0]
    x0, x1 = (at.scale_x * x + at.left for x in (100, 300))
    y0, y1 = (at.scale_y * y + at.top for y in (250, 350))
    rows, columns = np.nonzero(batch.pixels[0, 0] > 0.5)
    assert columns.min() == pytest.approx(x0, abs=1)
    assert columns.max() + 1 == pytest.approx(x1, abs=1)
    assert rows.min() == pytest.approx(y0, abs=1)
    assert rows.max() + 1 == pytest.approx(y1, abs=1)


def test_real_photographs(shared_data: Path) -> None:
    folder = shared_data / "data/eth3d/terrace/images/dslr_images_undistorted"
    paths = sorted(folder.glob("*.JPG"))
    batch = load_images(paths)
    assert isinstance(batch, ImageBatch)
    assert batch.pixels.shape == (2, 3, 350, 518)
    with Image.open(paths[0]) as opened:
        np.testing.assert_array_equal(batch.pixels[0], reference(opened.convert("RGB"), "crop"))
