"""Rendered scenes written to disk as ETH3D scenes, with a list of what they are.

The pictures are JPEG, as a camera's would be; depth, poses and intrinsics are exact. `scenes.json`
in the output folder says from which seed each scene came. By it the folder is known as one that may
be replaced: if it is a list as written here, and nothing lies beside what it lists.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from vggt_deploy.artifact import writing
from vggt_deploy.data.eth3d import write_scene
from vggt_deploy.data.eth3d_layout import CALIBRATION, DEPTH, IMAGES
from vggt_deploy.data.synthetic import render_views
from vggt_deploy.errors import ArtifactError, UsageError
from vggt_deploy.progress import Progress, silent
from vggt_deploy.typed_json import decode, parse

INDEX = "scenes.json"


@dataclass(frozen=True)
class RenderedScene:
    """One entry of scenes.json: `folder` is relative to it, `traits` say what makes it hard."""

    folder: str
    family: str
    seed: int
    traits: tuple[str, ...]
    views: int
    width: int
    height: int


@dataclass(frozen=True)
class _Index:
    """scenes.json."""

    scenes: tuple[RenderedScene, ...]


def write_scenes(
    output: Path,
    *,
    seed: int = 0,
    count: int = 1,
    views: int = 6,
    width: int = 448,
    height: int = 336,
    family: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[RenderedScene, ...]:
    """Render and write the scenes of `count` seeds from `seed` on, all of them or none.

    One scene is written into `output` itself, several into `output`/scene_<seed>. `family` None
    draws one of the families by each seed.

    Raises:
        UsageError: a count, size or family that makes no sense.
        ArtifactError: the folder is in use, or holds what is not to be replaced.
    """
    if count < 1:
        raise UsageError(f"can't write {count} scenes", "ask for 1 scene or more")
    if overwrite:
        _refuse_others_files(output.expanduser().resolve())
    report = progress or silent
    scenes = []
    with writing(output, overwrite=overwrite, marker=INDEX) as partial:
        for done in range(count):
            report("scenes", done, count)
            drawn = render_views(
                seed + done, views=views, height=height, width=width, family=family
            )
            folder = "." if count == 1 else f"scene_{drawn.seed}"
            write_scene(partial / folder, drawn)
            scenes.append(
                RenderedScene(folder, drawn.family, drawn.seed, drawn.traits, views, width, height)
            )
        report("scenes", count, count)
        index = asdict(_Index(tuple(scenes)))
        (partial / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return tuple(scenes)


def _refuse_others_files(folder: Path) -> None:
    """Nothing, unless replacing `folder` would delete what no list of ours mentions.

    Data sets of others have a scenes.json, too, and reports are easily written among the scenes. A
    folder without a list is left to `writing`, which refuses it.
    """
    if not (folder / INDEX).is_file():
        return
    try:
        listed = cast("_Index", decode(_Index, parse(_read(folder)), INDEX, ValueError)).scenes
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{folder} is not replaced: its {INDEX} is not one that vggt-deploy wrote ({error})",
            "delete that folder yourself if you mean it, or give another one with -o DIR",
        ) from error
    own = {INDEX}
    for scene in listed:
        own |= {IMAGES, CALIBRATION, DEPTH} if scene.folder == "." else {scene.folder}
    others = sorted(path.name for path in folder.iterdir() if path.name not in own)
    if others:
        raise ArtifactError(
            f"{folder} is not replaced: {others[0]} in it is none of the scenes in its {INDEX}",
            f"move {others[0]} elsewhere, or give another folder with -o DIR",
        )


def _read(folder: Path) -> str:
    return (folder / INDEX).read_text(encoding="utf-8")
