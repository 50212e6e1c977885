"""Pictures as data URIs: small ones, since every picture of a page is part of its one file.

Maps and photos are WebP: a noisy depth map of 350 x 518 pixels takes 57 kB at QUALITY, as PNG 407.
Read by their legend, half of the values are within one hundredth of the range, and 19 of 20 within
three (a test holds it). Legends are PNG, without loss.
"""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

QUALITY = 80
PHOTO_QUALITY = 82
_EFFORT = 4


def webp_uri(rgb: Pixels, *, quality: int = QUALITY) -> str:
    """RGB [H, W, 3] as a data URI."""
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "WEBP", quality=quality, method=_EFFORT)
    return data_uri(out.getvalue(), "image/webp")


def png_uri(rgb: Pixels) -> str:
    """RGB [H, W, 3] as a data URI, without loss."""
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "PNG", optimize=True)
    return data_uri(out.getvalue(), "image/png")


def data_uri(content: bytes, kind: str) -> str:
    """Bytes of a MIME type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def shrunk(rgb: Pixels, width: int, *, smooth: bool) -> Pixels:
    """At most `width` pixels wide; photos are smoothed, maps keep the colours of their legend."""
    height, present = rgb.shape[:2]
    if present <= width:
        return rgb
    size = (width, max(1, round(height * width / present)))
    method = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(rgb).resize(size, method))


@dataclass
class PictureStore:
    """The pictures of one page, each once: variants that computed the same share theirs.

    `add` returns the key under which the page finds it; `uris` is what the page carries.
    """

    uris: dict[str, str] = field(default_factory=dict)

    def add(self, rgb: Pixels, *, quality: int = QUALITY) -> str:
        """Keep a picture [H, W, 3], encoded if it is new; equal pixels get the same key."""
        content = hashlib.sha256(np.ascontiguousarray(rgb).tobytes())
        content.update(f"{rgb.shape} {quality}".encode())
        key = content.hexdigest()[:16]
        if key not in self.uris:
            self.uris[key] = webp_uri(rgb, quality=quality)
        return key

    @property
    def bytes_total(self) -> int:
        """Of all URIs, as they stand in the page."""
        return sum(len(uri) for uri in self.uris.values())
