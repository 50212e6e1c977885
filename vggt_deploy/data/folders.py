"""Where the pictures are: one folder out of what a person points at, and a note that says why.

The first rule that fits wins:

1. the folder itself holds pictures;
2. ETH3D: somewhere below is a folder `dslr_images_undistorted` with pictures (or, if there is none,
   `dslr_images`), so a scene, its parent and its `images` folder all work;
3. it has a subfolder `images` with pictures (COLMAP, NeRF data), whatever lies beside it;
4. exactly one folder below holds pictures.

Several candidates of the rule that fits are an error that lists them: picking one would be a guess.
Depth maps that lie under picture names are never taken for photographs: ETH3D's
`ground_truth_depth/**/*.JPG` are raw floats, RGB-D recordings have `*.depth.png` beside
`*.color.jpg`.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vggt_deploy.data.eth3d_layout import DISTORTED, PICTURES, root_of, roots_of_scene
from vggt_deploy.errors import ImageError, UsageError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
# Pictures for a person, but not for Pillow without plugins: named, so that nobody searches long.
FOREIGN_SUFFIXES = frozenset(
    {".heic", ".heif", ".avif", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".jxl", ".dng", ".cr2",
     ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".ppm", ".pgm", ".exr"}
)  # fmt: skip
ETH3D_FOLDERS = (PICTURES, DISTORTED)
# Folders whose files have picture names and are not photographs.
NOT_PHOTOGRAPHS = frozenset({"ground_truth_depth", "masks_for_images", "__macosx"})
_DEPTH_NAME = re.compile(r"[._-]depth\.png$", re.IGNORECASE)
_DOUBLE_SUFFIX = re.compile(r"^(?P<single>.+\.(?:jpe?g|png))\.(?:jpe?g|png)$", re.IGNORECASE)
_DEEPEST = 2  # folders between a folder of scenes and a scene: <scene>_dslr_undistorted/<scene>
_LISTED = 8


@dataclass(frozen=True)
class ImageFolder:
    """The pictures to use, in natural order, the folder they lie in, and what was found where."""

    paths: tuple[Path, ...]
    root: Path
    note: str


@dataclass(frozen=True)
class _Listing:
    """What one folder holds: its pictures, sorted, and how many other files of which kind."""

    folder: Path
    pictures: tuple[Path, ...]
    depth_maps: int
    duplicates: int
    foreign: Counter[str]

    def remarks(self) -> tuple[str, ...]:
        """What was left out of this folder, in words."""
        out = []
        if self.depth_maps:
            out.append(f"{_count(self.depth_maps, 'depth map')} (*depth.png) left out")
        if self.duplicates:
            copies = _count(self.duplicates, "copy", "copies")
            out.append(f"{copies} with a doubled ending left out")
        if self.foreign:
            kinds = ", ".join(f"{n} {suffix}" for suffix, n in sorted(self.foreign.items()))
            out.append(f"files that are not JPG or PNG left out: {kinds}")
        return tuple(out)


def natural_key(name: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Sort key that puts `img2` before `img10`; case only breaks ties."""
    parts = re.split(r"([0-9]+)", name.lower())
    chunks = tuple((0, int(p), "") if i % 2 else (1, 0, p) for i, p in enumerate(parts) if p)
    return chunks, name


def find_images(root: Path | str, *, max_images: int | None = None) -> ImageFolder:
    """Find the pictures that `root` means; keep the first `max_images` in natural order."""
    root = Path(root)
    if max_images is not None and max_images < 1:
        raise UsageError(f"max_images is {max_images}", "ask for 1 image or more, or leave it out")
    _require_folder(root)
    found, unreadable = _walk(root)
    listings = {listing.folder: listing for listing in found}
    chosen, how = _choose(root, listings)
    elsewhere = [x for x in found if x.pictures and x.folder != chosen.folder]
    note = _note(root, chosen, how, elsewhere, unreadable)
    paths = chosen.pictures[:max_images]
    if len(paths) < len(chosen.pictures):
        note += f"; the first {len(paths)} by name are taken"
    return ImageFolder(paths=paths, root=chosen.folder, note=note)


def scene_roots(folder: Path) -> tuple[Path, ...]:
    """The ETH3D scenes in `folder`, in natural order; the folder itself where there is none.

    Hidden folders are not entered. A scene whose archives were unpacked into folders of their names
    is one scene: where it has undistorted pictures, the folder with those that were shot is not
    another.
    """
    folder = folder.expanduser().absolute()
    patterns = [
        f"{'*/' * depth}{images}{name}"
        for depth in range(_DEEPEST + 1)
        for images in ("images/", "")
        for name in ETH3D_FOLDERS
    ]
    roots: dict[Path, set[str]] = {}
    for pattern in patterns:
        for pictures in folder.glob(pattern):
            inside = {part.lower() for part in pictures.relative_to(folder).parts}
            # Hidden: what a killed writer left, half a scene.
            hidden = any(part.startswith(".") for part in inside)
            if pictures.is_dir() and not hidden and not inside & NOT_PHOTOGRAPHS:
                roots.setdefault(root_of(pictures), set()).add(pictures.name)
    best = {root for root, names in roots.items() if PICTURES in names}
    kept = [root for root in roots if root in best or best.isdisjoint(roots_of_scene(root))]
    return tuple(sorted(kept, key=lambda root: natural_key(str(root)))) or (folder,)


def find_all_images(folder: Path, *, max_images: int | None = None) -> tuple[dict[str, Path], ...]:
    """The pictures of one scene or of several, name -> path; the first `max_images` of each scene.

    A picture of one scene is named by its file. In several, which repeat such names, it is named by
    its path below `folder`.
    """
    _require_folder(folder)
    roots = scene_roots(folder)
    scenes = [find_images(root, max_images=max_images).paths for root in roots]
    if len(scenes) == 1:
        return ({path.name: path for path in scenes[0]},)
    top = folder.expanduser().absolute()
    return tuple({path.relative_to(top).as_posix(): path for path in paths} for paths in scenes)


def _require_folder(root: Path) -> None:
    if not root.exists():
        raise ImageError(f"there is no folder {root}", "check the path")
    if not root.is_dir():
        raise ImageError(f"{root} is a file, not a folder", f"give its folder, {root.parent}")
    lineage = (root.absolute(), *root.absolute().parents)
    raw = next((p for p in lineage if p.name.lower() in NOT_PHOTOGRAPHS), None)
    if raw is not None:
        raise ImageError(
            f"{root} lies in {raw.name}, whose files have picture names but are no photographs",
            f"give the scene's folder {raw.parent} or its images folder",
        )


def _walk(root: Path) -> tuple[list[_Listing], list[str]]:
    """List every folder below `root` once, and name those that can't be read.

    Hidden folders are not entered; a folder that symbolic links reach twice is listed once.
    """
    found: list[_Listing] = []
    unreadable: list[str] = []
    seen: set[tuple[int, int]] = set()

    def note_or_raise(error: OSError) -> None:
        if Path(error.filename) == root:
            raise ImageError(
                f"can't read the folder {root}: {error.strerror}", "check its permissions"
            ) from error
        unreadable.append(f"{error.filename} ({error.strerror})")

    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=note_or_raise):
        status = Path(folder).stat()
        identity = (status.st_dev, status.st_ino)
        if identity in seen:
            subfolders.clear()
            continue
        seen.add(identity)
        subfolders[:] = sorted(
            (s for s in subfolders if not s.startswith(".") and s.lower() not in NOT_PHOTOGRAPHS),
            key=natural_key,
        )
        found.append(_list(Path(folder), files))
    return found, unreadable


def _list(folder: Path, files: Sequence[str]) -> _Listing:
    visible = [f for f in files if not f.startswith(".")]  # ._IMG.JPG is no picture
    foreign = Counter(s for f in visible if (s := Path(f).suffix.lower()) in FOREIGN_SUFFIXES)
    pictures = [f for f in visible if Path(f).suffix.lower() in SUFFIXES]
    depth_maps = [f for f in pictures if _DEPTH_NAME.search(f)]
    # One ETH3D repack holds DSC_0001.JPG.jpg beside DSC_0001.JPG: the same frame twice.
    names = set(pictures)
    duplicates = [
        f for f in pictures if (m := _DOUBLE_SUFFIX.match(f)) is not None and m["single"] in names
    ]
    kept = sorted(names - set(depth_maps) - set(duplicates), key=natural_key)
    return _Listing(
        folder=folder,
        pictures=tuple(folder / f for f in kept if (folder / f).is_file()),
        depth_maps=len(depth_maps),
        duplicates=len(duplicates),
        foreign=foreign,
    )


def _choose(root: Path, listings: dict[Path, _Listing]) -> tuple[_Listing, str]:
    if listings[root].pictures:
        return listings[root], "pictures lie in the folder itself"
    filled = [x for x in listings.values() if x.pictures]
    for name in ETH3D_FOLDERS:
        scenes = [x for x in filled if x.folder.name == name]
        if len(scenes) > 1:
            raise _ambiguous(root, scenes, "ETH3D scenes")
        if scenes:
            return scenes[0], f"ETH3D scene, {name}"
    for listing in filled:
        if listing.folder.parent == root and listing.folder.name.lower() == "images":
            return listing, "the subfolder images"
    if len(filled) > 1:
        raise _ambiguous(root, filled, "folders with pictures")
    if not filled:
        raise _empty(root, listings)
    return filled[0], "the only folder with pictures"


def _ambiguous(root: Path, candidates: Sequence[_Listing], what: str) -> ImageError:
    lines = [f"  {x.folder} ({_count(len(x.pictures), 'picture')})" for x in candidates[:_LISTED]]
    if len(candidates) > _LISTED:
        lines.append(f"  and {len(candidates) - _LISTED} more")
    return ImageError(
        f"{root} holds {len(candidates)} {what}:\n" + "\n".join(lines),
        "give one of them: pictures of one scene are run together",
    )


def _empty(root: Path, listings: dict[Path, _Listing]) -> ImageError:
    foreign: Counter[str] = Counter()
    for listing in listings.values():
        foreign.update(listing.foreign)
    depth_maps = sum(x.depth_maps for x in listings.values())
    looked = f"no JPG, JPEG or PNG in {root} or below ({_count(len(listings), 'folder')} searched)"
    if foreign:
        kinds = ", ".join(f"{n} {suffix}" for suffix, n in sorted(foreign.items()))
        return ImageError(f"{looked}, but {kinds}", "convert them to JPG or PNG")
    if depth_maps:
        return ImageError(
            f"{looked}, but {_count(depth_maps, 'depth map')} (*depth.png)",
            "give the folder with the colour pictures",
        )
    return ImageError(looked, "give a folder that holds the pictures of one scene")


def _note(
    root: Path,
    chosen: _Listing,
    how: str,
    elsewhere: Sequence[_Listing],
    unreadable: Sequence[str],
) -> str:
    shown = f"{_count(len(chosen.pictures), 'picture')} in {chosen.folder} ({how})"
    parts = [shown, *chosen.remarks()]
    if elsewhere:
        places = [f"{x.folder.relative_to(root)} ({len(x.pictures)})" for x in elsewhere[:_LISTED]]
        more = f" and {len(elsewhere) - _LISTED} more" if len(elsewhere) > _LISTED else ""
        parts.append(f"not used: {', '.join(places)}{more}")
    if unreadable:
        parts.append(f"can't be read: {', '.join(unreadable)}")
    return "; ".join(parts)


def _count(n: int, one: str, many: str | None = None) -> str:
    return f"{n} {one if n == 1 else many or one + 's'}"
