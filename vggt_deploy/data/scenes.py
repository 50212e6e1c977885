"""Rendered scenes written to disk as ETH3D scenes, with a list of what they are.

The pictures are JPEG, as a camera's would be; depth, poses and intrinsics are exact. `scenes.json`
in the output folder says from which seed each scene came, and by it the folder is known as one that
may be replaced.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from vggt_deploy.artifact import writing
from vggt_deploy.data.eth3d import write_scene
from vggt_deploy.data.synthetic import render_views
from vggt_deploy.errors import UsageError
from vggt_deploy.progress import Progress, silent

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
    """
    if count < 1:
        raise UsageError(f"can't write {count} scenes", "ask for 1 scene or more")
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
        index = {"scenes": [asdict(scene) for scene in scenes]}
        (partial / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return tuple(scenes)
