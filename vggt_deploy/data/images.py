"""Pictures to network input, by upstream's rules (`load_and_preprocess_images`).

The rules, for a target width W (518 upstream), multiples of 14, `round` half to even:

    crop   resize to (W, round(h * (W / w) / 14) * 14), bicubic; taller than W: centre-crop to W
    pad    longer side becomes W, the other round(. * scale / 14) * 14; pad with white to W x W
    mixed  different shapes in one batch are padded with white, centred, to the largest

    pixel = uint8 / 255, RGB, no mean and std: those belong to the model

With an explicit (height, width), which an exported artifact has, `crop` resizes to the width and
then centre-crops or white-pads to the height; `pad` fits the picture into the box and pads.

What differs from upstream, on purpose: EXIF orientation is applied (`exif=False` gives upstream's
pixels); every kind of transparency is laid on white, where upstream knows RGBA only; 16-bit
greyscale keeps its high byte, where Pillow's own conversion clips it to white.
"""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vggt_deploy.errors import ImageError, UsageError

Mode = Literal["crop", "pad"]
PATCH = 14
WHITE = np.float32(1.0)

# What Pillow's decoders raise on broken files (UnidentifiedImageError is an OSError).
DECODE_ERRORS = (
    OSError,
    SyntaxError,  # broken PNG chunks and EXIF headers
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_ORIENTATION_TAG = 0x0112
# EXIF orientation -> what turns the stored pixels upright; 1 is upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"heim", b"heis")


@dataclass(frozen=True)
class Placement:
    """How one picture was laid into the network's frame, in pixels from the top left corner.

        x_network = scale_x * x_picture + left        (left, top are negative where it was cropped)

    The picture is the one that a viewer shows (EXIF orientation applied).
    """

    scale_x: float
    scale_y: float
    left: int
    top: int
    resized_width: int
    resized_height: int

    def kept_share(self, height: int, width: int) -> float:
        """Share of the picture's area that lies inside the frame of (height, width)."""
        shown_x = min(width, self.left + self.resized_width) - max(0, self.left)
        shown_y = min(height, self.top + self.resized_height) - max(0, self.top)
        return shown_x * shown_y / (self.resized_width * self.resized_height)

    def shifted(self, left: int, top: int) -> Placement:
        """The same picture in a larger frame, `left` and `top` pixels further in."""
        return Placement(
            self.scale_x,
            self.scale_y,
            self.left + left,
            self.top + top,
            self.resized_width,
            self.resized_height,
        )


@dataclass(frozen=True)
class SkippedImage:
    """A file that was left out because it can't be used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class ImageBatch:
    """Pictures of one scene, ready for the network.

    pixels: float32 [S, 3, H, W], RGB in 0..1
    original_sizes: (width, height) of each picture as a viewer shows it
    sha256: of each file's bytes
    """

    pixels: NDArray[np.float32]
    paths: tuple[Path, ...]
    original_sizes: tuple[tuple[int, int], ...]
    placements: tuple[Placement, ...]
    sha256: tuple[str, ...]
    skipped: tuple[SkippedImage, ...]
    mode: Mode

    @property
    def height(self) -> int:
        """Rows of the network's input."""
        return int(self.pixels.shape[2])

    @property
    def width(self) -> int:
        """Columns of the network's input."""
        return int(self.pixels.shape[3])

    def picture_mask(self) -> NDArray[np.bool_]:
        """[S, H, W]: true where there is a picture, false on the white padding."""
        mask = np.zeros((len(self.paths), self.height, self.width), dtype=bool)
        for frame, place in zip(mask, self.placements, strict=True):
            frame[
                max(0, place.top) : place.top + place.resized_height,
                max(0, place.left) : place.left + place.resized_width,
            ] = True
        return mask


@dataclass(frozen=True)
class _Decoded:
    pixels: NDArray[np.float32]  # [3, H, W]
    size: tuple[int, int]
    placement: Placement
    sha256: str


def load_images(
    paths: Sequence[Path | str],
    *,
    mode: Mode = "crop",
    width: int = 518,
    height: int | None = None,
    skip_bad: bool = False,
    exif: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> ImageBatch:
    """Decode, orient, resize and stack; `progress(done, total)` is called after each file.

    A file that can't be used is an ImageError that names it; with `skip_bad` it is left out and
    recorded in `skipped`.
    """
    _check_request(paths, mode, width, height)
    decoded: list[_Decoded] = []
    used: list[Path] = []
    skipped: list[SkippedImage] = []
    for index, path in enumerate(map(Path, paths)):
        try:
            decoded.append(_load(path, mode, width, height, exif))
            used.append(path)
        except ImageError as error:
            if not skip_bad:
                raise
            skipped.append(SkippedImage(path, error.message))
        if progress is not None:
            progress(index + 1, len(paths))
    if not decoded:
        named = "; ".join(s.reason for s in skipped[:3])
        raise ImageError(f"none of the {len(paths)} files can be used: {named}", "give other files")
    pixels, placements = _stack(decoded)
    return ImageBatch(
        pixels=pixels,
        paths=tuple(used),
        original_sizes=tuple(d.size for d in decoded),
        placements=placements,
        sha256=tuple(d.sha256 for d in decoded),
        skipped=tuple(skipped),
        mode=mode,
    )


def place(
    size: tuple[int, int], mode: Mode, width: int, height: int | None
) -> tuple[Placement, tuple[int, int]]:
    """Where a picture of `size` (width, height) goes: its placement, and the frame (height, width).

    Pure integer and float arithmetic in upstream's order, since `round` sits on its last bit.
    """
    w, h = size
    box_height = width if height is None else height
    if mode == "crop" or w * box_height >= h * width:
        new_w = width
        new_h = round(h * (new_w / w) / PATCH) * PATCH
    else:
        new_h = box_height
        new_w = round(w * (new_h / h) / PATCH) * PATCH
    if new_w == 0 or new_h == 0:
        raise ImageError(
            f"a picture of {w} x {h} pixels is too narrow: at {width} pixels width it has no"
            f" {'height' if new_h == 0 else 'width'} left",
            "crop it to a usual shape, or leave it out with --skip-bad-images",
        )
    frame_h = min(new_h, width) if mode == "crop" and height is None else box_height
    # Floor division halves both signs as upstream does: crop starts at (new - box) // 2,
    # padding at (box - new) // 2.
    top = -((new_h - frame_h) // 2) if new_h > frame_h else (frame_h - new_h) // 2
    left = (width - new_w) // 2
    return Placement(new_w / w, new_h / h, left, top, new_w, new_h), (frame_h, width)


def _check_request(paths: Sequence[Path | str], mode: str, width: int, height: int | None) -> None:
    if mode not in get_args(Mode):
        raise UsageError(f"unknown mode {mode!r}", f"use one of {', '.join(get_args(Mode))}")
    for name, side in (("width", width), ("height", height)):
        if side is not None and (side < PATCH or side % PATCH):
            near = max(PATCH, round(side / PATCH) * PATCH)
            raise UsageError(
                f"the {name} is {side}, not a positive multiple of {PATCH}", f"use {near}"
            )
    if not paths:
        raise ImageError("no images given", "give at least one picture")


def _load(path: Path, mode: Mode, width: int, height: int | None, exif: bool) -> _Decoded:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(
            f"can't read {path}: {error.strerror}", "check the path, or use --skip-bad-images"
        ) from error
    picture = _decode(path, data, exif)
    try:
        placement, (frame_h, frame_w) = place(picture.size, mode, width, height)
    except ImageError as error:
        raise ImageError(f"{path}: {error.message}", error.fix) from error
    resized = picture.resize(
        (placement.resized_width, placement.resized_height), Image.Resampling.BICUBIC
    )
    pixels = np.asarray(resized, dtype=np.uint8).transpose(2, 0, 1).astype(np.float32)
    pixels /= np.float32(255)
    crop_top = max(0, -placement.top)
    pixels = pixels[:, crop_top : crop_top + frame_h]
    framed = _pad(pixels, frame_h, frame_w, max(0, placement.top), placement.left)
    return _Decoded(framed, picture.size, placement, hashlib.sha256(data).hexdigest())


def _decode(path: Path, data: bytes, exif: bool) -> Image.Image:
    """The file's picture in RGB; every defect of the file ends in one ImageError."""
    fix = "replace or remove it, or use --skip-bad-images"
    if not data:
        raise ImageError(f"{path} is empty (0 bytes)", fix)
    try:
        with warnings.catch_warnings():
            # Pillow warns of damaged EXIF entries: the picture is whole, the entry is ignored.
            warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin", category=UserWarning)
            with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as opened:
                opened.load()
                return _to_rgb(_orient(opened) if exif else opened)
    except UnidentifiedImageError as error:
        raise ImageError(f"{path} is not a JPEG or PNG picture{_looks_like(data)}", fix) from error
    except DECODE_ERRORS as error:
        cause = str(error) or type(error).__name__
        raise ImageError(f"{path} can't be decoded: {cause}", fix) from error


def _orient(picture: Image.Image) -> Image.Image:
    """The picture as a viewer shows it.

    Not ImageOps.exif_transpose: that also writes the EXIF block anew, and fails where any entry of
    it is damaged.
    """
    turn = _UPRIGHT.get(picture.getexif().get(_ORIENTATION_TAG, 1))
    return picture if turn is None else picture.transpose(turn)


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16-bit greyscale PNG: I;16, or I in older Pillow
        high = (np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return Image.fromarray(high).convert("RGB")
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return picture.convert("RGB")


def _looks_like(data: bytes) -> str:
    """What the first bytes say, for files that carry another format under a picture's name."""
    head = data[:64]
    if head[4:8] == b"ftyp":
        return " (it is HEIC)" if head[8:12] in _HEIF_BRANDS else " (it is AVIF or video)"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return " (it is WebP)"
    if head[:4] in (b"II*\0", b"MM\0*"):
        return " (it is TIFF)"
    if head.lstrip()[:1] in (b"<", b"{") or head.startswith(b"version https://git-lfs"):
        return " (it is text, perhaps a failed download)"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return " (it is GIF)"
    return ""


def _stack(decoded: Sequence[_Decoded]) -> tuple[NDArray[np.float32], tuple[Placement, ...]]:
    """One array [S, 3, H, W]; smaller frames are centred on white."""
    height = max(d.pixels.shape[1] for d in decoded)
    width = max(d.pixels.shape[2] for d in decoded)
    out = np.empty((len(decoded), 3, height, width), dtype=np.float32)
    placements = []
    for target, d in zip(out, decoded, strict=True):
        top, left = (height - d.pixels.shape[1]) // 2, (width - d.pixels.shape[2]) // 2
        target[:] = _pad(d.pixels, height, width, top, left)
        placements.append(d.placement.shifted(left, top))
    return out, tuple(placements)


def _pad(
    pixels: NDArray[np.float32], height: int, width: int, top: int, left: int
) -> NDArray[np.float32]:
    if pixels.shape[1:] == (height, width):
        return pixels
    out = np.full((3, height, width), WHITE, dtype=np.float32)
    out[:, top : top + pixels.shape[1], left : left + pixels.shape[2]] = pixels
    return out
