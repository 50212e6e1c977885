"""The scenes of a comparison: which pictures, the pixels that every variant gets, and the truth.

    --images DIR   one scene, as `find_images` finds it
    --scenes DIR   (repeatable) an ETH3D scene, or a folder of ETH3D scenes up to two folders
                   deeper; where there is none, one scene as `find_images` finds it
    --frames LIST  of each scene exactly the pictures of a frame list, in its order
    --drop-sideways  without a list: of each scene the pictures that are not on their side, by the
                   poses of its calibration; then the first --max-images of them

All scenes have as many views and the same size: an engine may be built for one shape alone, and
latency is measured on the first scene for all of them.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.compare.on_side import on_side, upright
from vggt_deploy.data.folders import ETH3D_FOLDERS, ImageFolder, find_images, scene_roots
from vggt_deploy.data.frame_lists import FrameList
from vggt_deploy.data.ground_truth import (
    GroundTruth,
    ground_truth,
    no_truth_because,
    write_truth,
)
from vggt_deploy.data.images import ImageBatch, load_images
from vggt_deploy.errors import ImageError, SceneError, UsageError
from vggt_deploy.records import FramesRange

FRAMES_AT_LEAST = 16  # what the kept artifacts accept, so that they are of use afterwards
_LISTED = 6


@dataclass(frozen=True)
class FoundScene:
    """Pictures of one scene, not read yet.

    listed: the frame list that chose them, if one did
    dropped: names of those left out because they are on their side; None: nobody asked for that
    """

    name: str
    images: ImageFolder
    listed: FrameList | None = None
    dropped: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Scene:
    """The pixels of one scene, [S, 3, H, W], where they are from, and the truth if it is known.

    no_truth: why it is not, in words; None where it is.
    on_side: names of the pictures that stand on their side, where the poses say so.
    dropped: names of those left out for that; None: nobody asked for it.
    """

    name: str
    pixels: NDArray[np.float32]
    paths: tuple[Path, ...]
    sha256: tuple[str, ...]
    skipped: tuple[str, ...]
    note: str
    truth: GroundTruth | None
    no_truth: str | None
    on_side: tuple[str, ...] = ()
    dropped: tuple[str, ...] | None = None

    def save(self, path: Path) -> None:
        """Write the pixels for the workers; the same question gives the same bytes."""
        temporary = path.with_name(f".{path.name}.tmp")
        content = io.BytesIO()  # straight into a file, NumPy's error of a full disk has no errno
        np.save(content, self.pixels)
        try:
            temporary.write_bytes(content.getbuffer())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def save_truth(self, path: Path) -> None:
        """Write what is known, for pages that are drawn after the comparison."""
        path.unlink(missing_ok=True)
        if self.truth is not None:
            write_truth(path, self.truth)

    def to_json(self) -> dict[str, Any]:
        """The part of the question that this scene is."""
        files = [
            {"name": path.name, "sha256": sha256}
            for path, sha256 in zip(self.paths, self.sha256, strict=True)
        ]
        return {
            "name": self.name,
            "folder": str(self.paths[0].parent),
            "files": files,
            "skipped": list(self.skipped),
            # Guards against a change in decoding or resizing that leaves the files alone.
            "pixels_sha256": _sha256(self.pixels),
            "truth": self.truth and _truth_json(self.truth),
        }


@dataclass(frozen=True)
class Scenes:
    """All scenes of a comparison, of one number of views and one size; never empty.

    listed: the frame list that chose the pictures; None: the first of each folder.
    """

    items: tuple[Scene, ...]
    mode: str
    skip_bad: bool
    listed: FrameList | None = None

    @property
    def first(self) -> Scene:
        """The one that variants are timed on."""
        return self.items[0]

    @property
    def frames(self) -> int:
        """Views of each scene."""
        return int(self.first.pixels.shape[0])

    @property
    def height(self) -> int:
        return int(self.first.pixels.shape[2])

    @property
    def width(self) -> int:
        return int(self.first.pixels.shape[3])

    @property
    def drop_sideways(self) -> bool:
        """Whether frames on their side were to be left out."""
        return any(scene.dropped is not None for scene in self.items)

    @property
    def dropped(self) -> int:
        """How many were, in all scenes."""
        return sum(len(scene.dropped or ()) for scene in self.items)

    @property
    def accepted(self) -> FramesRange:
        """The frame counts of the artifacts."""
        return FramesRange(1, self.frames, max(self.frames, FRAMES_AT_LEAST))

    @property
    def note(self) -> str:
        """For the report: what was read, and whether the truth is known."""
        known = [scene.truth for scene in self.items if scene.truth is not None]
        size = f"{self.frames} x {self.height} x {self.width} pixels"
        if len(self.items) == 1:
            truth = known[0].note if known else f"none, {self.first.no_truth}"
            return f"{self.first.note}; {size}; truth: {truth}"
        depths = sum(truth.depth is not None for truth in known)
        names = ", ".join(scene.name for scene in self.items[:_LISTED])
        more = len(self.items) - _LISTED
        names += f" and {more} more" if more > 0 else ""
        skipped = sum(len(scene.skipped) for scene in self.items)
        unknown = [scene for scene in self.items if scene.truth is None]
        return (
            f"{len(self.items)} scenes of {size}: {names}; true cameras of {len(known)}, "
            f"true depth of {depths}"
            + "".join(f"; {scene.name}: {scene.no_truth}" for scene in unknown)
            + (f"; {skipped} pictures left out" if skipped else "")
            + (f"; {self.dropped} frames on their side left out" if self.dropped else "")
        )

    def to_json(self) -> dict[str, Any]:
        """The parts of the question that the scenes are."""
        return {
            "images": {
                "mode": self.mode,
                "frames": self.frames,
                "height": self.height,
                "width": self.width,
            },
            "drop_sideways": self.drop_sideways,
            "frame_list": self.listed and {"name": self.listed.name, "sha256": self.listed.sha256},
            "scenes": [scene.to_json() for scene in self.items],
        }


def check_asked(images_dir: Path | str | None, scenes: Sequence[Path | str]) -> None:
    """Refuse pictures and scenes both, and neither."""
    if (images_dir is None) == (not scenes):
        raise UsageError(
            "no pictures are given"
            if images_dir is None
            else "both one scene (--images) and several (--scenes) are given",
            "give --images DIR, or --scenes DIR as often as needed",
        )


def find_scenes(
    images_dir: Path | str | None,
    scenes: Sequence[Path | str],
    *,
    max_images: int | None,
    frames: FrameList | None = None,
    drop_sideways: bool = False,
) -> tuple[FoundScene, ...]:
    """Find the pictures, without reading them; asked for as `check_asked` allows.

    frames: of each scene take exactly the pictures of this list, in its order.
    drop_sideways: leave out the frames on their side, before the first `max_images` are taken.

    Raises:
        UsageError: a scene that is given twice, or that `frames` does not list; `frames` and
            `max_images` both, or `frames` and `drop_sideways`; a scene without poses and
            `drop_sideways`.
        ImageError: no pictures in a folder, or one that `frames` lists is missing; none left.
        SceneError: calibration that can't be read, with `drop_sideways`.
    """
    if frames is not None and drop_sideways:
        raise UsageError(
            f"the frame list {frames.name} is given, and frames on their side are to be left out",
            "leave out --drop-sideways: a list says itself which pictures it leaves out",
        )
    if frames is not None and max_images is not None:
        raise UsageError(
            f"the frame list {frames.name} and a number of pictures are both given",
            "leave out --max-images: the list says which pictures are taken",
        )
    if max_images is not None and max_images < 1:
        raise UsageError(f"max_images is {max_images}", "ask for 1 image or more, or leave it out")
    if images_dir is not None:
        roots = [Path(images_dir)]
    else:
        roots = [root for folder in scenes for root in scene_roots(Path(folder))]
    at_once = None if drop_sideways else max_images
    found = [find_images(root, max_images=at_once) for root in roots]
    folders = [images.root.resolve() for images in found]
    twice = next((folder for folder in folders if folders.count(folder) > 1), None)
    if twice is not None:
        raise UsageError(f"the scene {twice} is given twice", "give each scene once")
    names = [_scene_name(folder) for folder in folders]
    if frames is not None:
        found = [_listed(frames, name, all_) for name, all_ in zip(names, found, strict=True)]
    # Two scenes of one name, such as unseen/scene_7 and held-out/scene_7: the whole path tells.
    names = [
        name if names.count(name) == 1 else str(folder)
        for name, folder in zip(names, folders, strict=True)
    ]
    if drop_sideways:
        return tuple(
            FoundScene(name, kept, dropped=dropped)
            for name, images in zip(names, found, strict=True)
            for kept, dropped in [upright(images, name, max_images)]
        )
    return tuple(
        FoundScene(name, images, frames) for name, images in zip(names, found, strict=True)
    )


def read_scenes(
    found: Sequence[FoundScene],
    *,
    mode: Literal["crop", "pad"],
    width: int,
    height: int | None,
    skip_bad: bool,
    need_truth: bool,
) -> Scenes:
    """Load the pictures and what is known of their scenes.

    need_truth: whether calibration that does not fit the pictures (one has no pose) ends the
    comparison, or costs the truth alone, which the note then says.

    Raises:
        ImageError: a picture that can't be used.
        SceneError: calibration or depth that is damaged or does not fit, with `need_truth`.
        UsageError: scenes that differ in the number of views or in size; `skip_bad` beside a frame
            list, which would not be followed then.
    """
    listed = next((scene.listed for scene in found), None)
    if listed is not None and skip_bad:
        raise UsageError(
            f"pictures of the frame list {listed.name} can't be left out",
            "leave out --skip-bad, or the frame list",
        )
    items = tuple(
        _read(
            scene,
            load_images(
                scene.images.paths, mode=mode, width=width, height=height, skip_bad=skip_bad
            ),
            need_truth,
        )
        for scene in found
    )
    _same_shape(items)
    return Scenes(items, mode, skip_bad, listed)


def _listed(frames: FrameList, scene: str, images: ImageFolder) -> ImageFolder:
    """Of all pictures of a scene those of the list, in its order."""
    names = frames.scenes.get(scene)
    if names is None:
        listed = ", ".join(frames.scenes)
        raise UsageError(
            f"the frame list {frames.name} does not list the scene {scene} ({images.root})",
            f"leave that scene out; listed are {listed}",
        )
    paths = {path.name: path for path in images.paths}
    if missing := [name for name in names if name not in paths]:
        more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        raise ImageError(
            f"{images.root} lacks {', '.join(missing[:_LISTED])}{more} of the frame list "
            f"{frames.name}",
            "get all pictures of the scene, or give a list of those that are there",
        )
    note = f"{images.note}; {len(names)} by the frame list {frames.name}"
    return replace(images, paths=tuple(paths[name] for name in names), note=note)


def _read(scene: FoundScene, batch: ImageBatch, need_truth: bool) -> Scene:
    skipped = tuple(f"{item.path.name}: {item.reason}" for item in batch.skipped)
    left_out = f"; left out: {'; '.join(skipped)}" if skipped else ""
    truth, no_truth = None, no_truth_because(batch.paths)
    try:
        truth = ground_truth(batch.paths, batch.placements, batch.height, batch.width)
    except SceneError as error:
        if need_truth:
            raise
        no_truth = error.message
    lying = on_side(batch.paths) if truth is not None and scene.dropped is None else None
    return Scene(
        name=scene.name,
        pixels=np.ascontiguousarray(batch.pixels, dtype=np.float32),
        paths=batch.paths,
        sha256=batch.sha256,
        skipped=skipped,
        note=f"{scene.images.note}{left_out}",
        truth=truth,
        no_truth=no_truth,
        on_side=lying or (),
        dropped=scene.dropped,
    )


def _same_shape(items: Sequence[Scene]) -> None:
    """All scenes must look alike to a network that may be built for one shape."""
    first = items[0]
    for other in items[1:]:
        if other.pixels.shape == first.pixels.shape:
            continue
        if len(other.pixels) != len(first.pixels):
            fewest = min(len(scene.pixels) for scene in items)
            fix = f"take as many views of each with --max-images {fewest}, or leave a scene out"
        else:
            height, width = first.pixels.shape[2:]
            fix = f"bring all to one size with --height {height} --width {width}"
        described = [
            f"{scene.name} {len(scene.pixels)} x {scene.pixels.shape[2]} x {scene.pixels.shape[3]}"
            for scene in (first, other)
        ]
        raise UsageError(
            f"the scenes differ in views x rows x columns: {', '.join(described)}", fix
        )


def _scene_name(pictures: Path) -> str:
    """`<scene>/images/dslr_images_undistorted` -> `<scene>`."""
    while pictures.name in (*ETH3D_FOLDERS, "images") and pictures.parent.name:
        pictures = pictures.parent
    return pictures.name


def _truth_json(truth: GroundTruth) -> dict[str, Any]:
    """What tells one truth from another."""
    digest = hashlib.sha256()
    for array in (truth.extrinsic, truth.intrinsic, truth.depth, truth.rays):
        if array is not None:
            digest.update(np.ascontiguousarray(array).data)
    return {"note": truth.note, "depth": truth.depth is not None, "sha256": digest.hexdigest()}


def _sha256(array: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
