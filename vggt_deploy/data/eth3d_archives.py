"""ETH3D's archives: what there is, how large it is, under which licence, and where its files go.

    <base>/<scene>_dslr_undistorted.7z   ->   <output>/<scene>/images/dslr_images_undistorted/...

Archives of one scene share a root, so that unpacking several of them makes one scene. Archives that
carry a folder of their own name around it (`<scene>_dslr_depth/<scene>/...`) are unpacked to the
same place, and so are those without the scene's folder. Lengths and SHA-256 are those that
data sets made from ETH3D state in public; most archives have none stated.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from vggt_deploy.data.archive_names import refuse_clashes
from vggt_deploy.data.archives import ArchiveError, Contents
from vggt_deploy.data.eth3d_layout import (
    CALIBRATION,
    DEPTH,
    DISTORTED,
    DISTORTED_CALIBRATION,
    IMAGES,
    MASKS,
    PICTURES,
)
from vggt_deploy.errors import UsageError

BASE_URL = "https://www.eth3d.net/data"
ALL = "all"
LICENCE_NAME = "ETH3D_LICENSE.txt"
LICENCE = """\
ETH3D, high-resolution multi-view training scenes: https://www.eth3d.net

Licence: CC BY-NC-SA 4.0 (attribution, non-commercial, share alike)
https://creativecommons.org/licenses/by-nc-sa/4.0/

Cite: T. Schöps, J. L. Schönberger, S. Galliani, T. Sattler, K. Schindler, M. Pollefeys, A. Geiger:
A Multi-View Stereo Benchmark with High-Resolution Images and Multi-Camera Videos. CVPR 2017.
"""
DEPTH_BYTES = 6048 * 4032 * 4  # one depth map: float32 for every pixel of a distorted picture
# Training scene -> pictures, as loaders count them.
SCENES = {
    "courtyard": 38,
    "delivery_area": 44,
    "electro": 45,
    "facade": 76,
    "kicker": 31,
    "meadow": 15,
    "office": 26,
    "pipes": 14,
    "playground": 38,
    "relief": 31,
    "relief_2": 31,
    "terrace": 23,
    "terrains": 42,
}

Kind = Literal["undistorted", "jpg", "raw", "depth", "occlusion", "scan_eval", "scan_clean"]
KINDS: tuple[Kind, ...] = get_args(Kind)
DEFAULT_KIND: Kind = "undistorted"
# Depth and masks lie on the pixels of the distorted pictures: without their camera, which comes
# with those pictures, neither can be brought onto the undistorted ones.
DISTORTED_KINDS: tuple[Kind, ...] = ("depth", "occlusion")
_ARCHIVE_KIND: dict[Kind, str] = {
    "undistorted": "dslr_undistorted",
    "jpg": "dslr_jpg",
    "raw": "dslr_raw",
    "depth": "dslr_depth",
    "occlusion": "dslr_occlusion",
    "scan_eval": "dslr_scan_eval",
    "scan_clean": "scan_clean",
}
# What an archive of a kind is fetched for: all of these hold files ("a|b": one of the two does), or
# it is another archive.
_HOLDS: dict[Kind, tuple[str, ...]] = {
    "undistorted": (f"{IMAGES}/{PICTURES}", CALIBRATION),
    "jpg": (f"{IMAGES}/{DISTORTED}", DISTORTED_CALIBRATION),
    "raw": (IMAGES,),
    "depth": (f"{DEPTH}/{DISTORTED}",),
    "occlusion": (f"{MASKS}/{DISTORTED}|occlusion",),
    "scan_eval": ("dslr_scan_eval",),
    "scan_clean": ("scan_clean",),
}
_LISTED = 5


@dataclass(frozen=True)
class Known:
    """What is stated in public about an archive: its length, and its SHA-256 if that is."""

    bytes: int
    sha256: str | None


KNOWN = {
    "facade_dslr_undistorted": Known(
        1252088400, "046e577388db0633eeb2d8d72da6a2de53857434b4a7a98e4c97485795f9ce82"
    ),
    "facade_dslr_scan_eval": Known(
        176517224, "d686462d417fbea010d0021f918bec8b881444929ec06e3bd4e8a5230ebf59a8"
    ),
    "facade_dslr_occlusion": Known(
        144292883, "26a9d2076ba16b7f8e24311579c47b0b7b826b180906ced20fa1cba8f3dd130d"
    ),
    "electro_dslr_undistorted": Known(
        514345623, "0d2bc31fec0032b8fb20703abba8e45ef7a395c13d2d3476adc1f4dd4ffd7d8b"
    ),
    "delivery_area_dslr_undistorted": Known(
        478076254, "9acf5efec4b99a69b89ebb87b403259730756c1a510307c92e5f2ce2d22658f3"
    ),
    "delivery_area_dslr_depth": Known(
        388144128, "e6edc65b5b6de343876382040c839405eef79abed33319aa377883f4ddc5775a"
    ),
    "delivery_area_dslr_occlusion": Known(
        56850384, "f61a1bd74bc8fe07d03973520cc1433ea99566fcd637a654a5b2072d475a1b4c"
    ),
    "delivery_area_dslr_scan_eval": Known(
        122553428, "8e07f7a7956a41c1ecc18ca8a61d3fff274c080050301a1b7dff12a3ca5ed5d2"
    ),
    "delivery_area_dslr_jpg": Known(372958192, None),
}


def check_scenes(names: Sequence[str]) -> tuple[str, ...]:
    """Training scenes by name, each once, in the order given; `all` alone means every one."""
    if tuple(names) == (ALL,):
        return tuple(SCENES)
    return tuple(_checked(names, tuple(SCENES), "--scenes", f", or {ALL} alone"))


def check_kinds(names: Sequence[str]) -> tuple[Kind, ...]:
    """The kinds of archives to fetch, the undistorted pictures always among them and first."""
    chosen = {DEFAULT_KIND, *_checked(names, KINDS, "--with", "")}
    return tuple(kind for kind in KINDS if kind in chosen)


def archive_name(scene: str, kind: Kind) -> str:
    """Without the ending: `courtyard_dslr_depth`."""
    return f"{scene}_{_ARCHIVE_KIND[kind]}"


def least_unpacked_bytes(scene: str, kind: Kind, archive_bytes: int) -> int:
    """At least so much comes out of an archive: depth is raw floats, all else hardly shrinks."""
    return max(archive_bytes, SCENES[scene] * DEPTH_BYTES if kind == "depth" else 0)


def place(contents: Contents, scene: str, kind: Kind) -> dict[str, str]:
    """Name in the archive -> path below the scene's folder, for every file.

    Raises:
        ArchiveError: these are not the files that this archive is fetched for.
    """
    name = archive_name(scene, kind)
    outer = {scene, name, f"multi_view_training_{_ARCHIVE_KIND[kind]}"}
    placed = {m.name: _place_one(m.name, outer, scene, name) for m in contents.files}
    if len(set(placed.values())) < len(placed):
        raise _wrong(name, "it holds the same file inside and outside its outer folder", placed)
    # Names that were apart in the archive may fall together where an outer folder is left out.
    refuse_clashes(placed.values(), (), Path(f"{name}.7z"))
    for parts in _HOLDS[kind]:
        beginnings = tuple(f"{part}/" for part in parts.split("|"))
        if not any(path.startswith(beginnings) for path in placed.values()):
            raise _wrong(name, f"it holds nothing in {' or '.join(beginnings)}", placed)
    return placed


def _place_one(path: str, outer: set[str], scene: str, name: str) -> str:
    parts = path.split("/")
    while len(parts) > 1 and parts[0] in outer:
        parts = parts[1:]
    if parts[0] in SCENES and parts[0] != scene and len(parts) > 1:
        raise _wrong(name, f"it holds the scene {parts[0]}", (path,))
    if parts[0].startswith("."):
        raise _wrong(name, "it holds hidden files, which ETH3D's archives do not", (path,))
    return "/".join(parts)


def _wrong(name: str, why: str, paths: Iterable[str]) -> ArchiveError:
    listed = ", ".join(sorted(paths)[:_LISTED])
    return ArchiveError(
        f"{name}.7z is not the archive of that name: {why} ({listed})",
        f"fetch it from {BASE_URL}; mirrors are known to hold broken ones",
    )


def _checked(names: Sequence[str], known: Sequence[str], option: str, more: str) -> list[str]:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name.lower(), known, n=1)
            meant = f"did you mean {near[0]}? " if near else ""
            raise UsageError(
                f"{option}: {name!r} is not one of ETH3D's",
                f"{meant}there are {', '.join(known)}{more}",
            )
    return list(dict.fromkeys(names))
