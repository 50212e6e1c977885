"""A model repository for NVIDIA Triton Inference Server: many clients, an engine that exists.

    <repository>/vggt-deploy.json            what is in it (Triton reads folders only)
    <repository>/README.md                   how to start it, and what it does differently
    <repository>/<model>/config.pbtxt
    <repository>/<model>/manifest.json       of the artifact it was made from
    <repository>/<model>/1/model.onnx        with weights.bin beside it, or
    <repository>/<model>/1/model.plan        the TensorRT engine

Names of files and keys are those of Triton's ONNX Runtime and TensorRT back ends. TensorRT-RTX has
no back end there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vggt_deploy import __version__
from vggt_deploy.artifact import writing
from vggt_deploy.errors import UsageError
from vggt_deploy.manifest import MANIFEST_NAME, is_plain_name, read_manifest
from vggt_deploy.records import Manifest
from vggt_deploy.ship.triton_config import ModelConfig, model_config, render

MARKER = "vggt-deploy.json"
VERSION = "1"
Instances = Literal["gpu", "cpu"]


@dataclass(frozen=True)
class _Model:
    name: str
    folder: Path
    manifest: Manifest
    config: ModelConfig


def write_triton_repository(
    artifacts: Sequence[Path],
    output_dir: Path,
    *,
    name: str | None = None,
    instances_per_gpu: int = 1,
    device: Instances = "gpu",
    overwrite: bool = False,
) -> tuple[str, ...]:
    """Write a repository with one model per artifact or engine; returns the models' names.

    Args:
        artifacts: folders of `export` (ONNX Runtime back end) or `build` (TensorRT back end)
        output_dir: the repository
        name: of the model, if there is one; by default the folder's name
        instances_per_gpu: copies of the model on each GPU that work at the same time
        device: where the ONNX Runtime back end runs
        overwrite: replace a repository that is there

    Raises:
        UsageError: what Triton can't serve as it is meant; the reason is named.
        ArtifactError: a folder is not what its manifest says.
    """
    if not artifacts:
        raise UsageError("no artifact is given", "give folders of `export` or `build`")
    if name is not None and len(artifacts) > 1:
        raise UsageError("one name for several models", "leave it out: folders name the models")
    if instances_per_gpu < 1:
        raise UsageError(f"{instances_per_gpu} instances per GPU", "use 1 or more")
    models = []
    for folder in map(Path, artifacts):
        manifest = read_manifest(folder)
        config = model_config(
            name or folder.resolve().name, manifest, instances=instances_per_gpu, device=device
        )
        models.append(_Model(config.name, folder, manifest, config))
    _check_names([model.name for model in models])
    needed = sum(model.manifest.bytes_total for model in models)
    with writing(output_dir, overwrite=overwrite, needed_bytes=needed, marker=MARKER) as root:
        for model in models:
            _write_model(root / model.name, model)
        (root / "README.md").write_text(_readme(models), encoding="utf-8")
        record = {
            "schema": 1,
            "tool_version": __version__,
            "models": {m.name: m.manifest.variant for m in models},
        }
        (root / MARKER).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return tuple(model.name for model in models)


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if not is_plain_name(name):
            raise UsageError(
                f"{name!r} can't be a model's name in Triton",
                "use letters, digits, _ . + and -, with --name or as the folder's name",
            )
        if names.count(name) > 1:
            raise UsageError(f"two folders are called {name}", "rename one: it is the model's name")


def _write_model(folder: Path, model: _Model) -> None:
    version = folder / VERSION
    version.mkdir(parents=True)
    (folder / "config.pbtxt").write_text(render(model.config), encoding="utf-8")
    shutil.copyfile(model.folder / MANIFEST_NAME, folder / MANIFEST_NAME)
    for source, target in model.config.files.items():
        shutil.copyfile(model.folder / source, version / target)


def _readme(models: Sequence[_Model]) -> str:
    lines = [
        "# Model repository for NVIDIA Triton Inference Server",
        "",
        f"Written by vggt-deploy {__version__}. Start the server with:",
        "",
        "    tritonserver --model-repository=<this folder> --disable-auto-complete-config",
        "",
        "A request is one scene: its pictures are the second axis of `images` [1, S, 3, H, W], RGB",
        "from 0 to 1. Requests are not batched: pictures of two scenes must not meet in one pass.",
    ]
    for model in models:
        manifest, config = model.manifest, model.config
        size = f"{manifest.height} x {manifest.width} pixels"
        lines += [
            "",
            f"## {model.name}",
            "",
            f"{manifest.model.config}, {manifest.variant}, {manifest.precision}, {size}",
            "",
            *(f"- {note}" for note in config.notes),
        ]
    return "\n".join(lines) + "\n"
