"""The engine again, on the device that runs it, from the ONNX and the recipe inside a bundle."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from vggt_deploy.artifact import locked
from vggt_deploy.engines.tensorrt.library import load_library
from vggt_deploy.errors import BundleError, RuntimeUnavailableError, UsageError
from vggt_deploy.manifest import is_plain_name
from vggt_deploy.progress import Progress
from vggt_deploy.ship.container import open_bundle
from vggt_deploy.ship.index import EngineEntry, Index
from vggt_deploy.ship.verify import choose_engine, unpack

if TYPE_CHECKING:
    from vggt_deploy.build import BuildResult


@dataclass(frozen=True)
class Recipe:
    """How to build: as an engine of the bundle was, or with a profile that the caller names.

    entry: the engine whose profile text and frame counts are used, or None
    device: name or path of a device profile, where there is no entry
    """

    runtime: str
    entry: EngineEntry | None
    device: str | None


def rebuild(
    bundle: Path,
    output_dir: Path,
    *,
    device: str | None = None,
    runtime: str | None = None,
    public_key: Path | None = None,
    accept_float: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> BuildResult:
    """Check the bundle, take the ONNX out, and build it here.

    Args:
        bundle: the file
        output_dir: the engine folder to write
        device: an engine of the bundle by name (its profile and frame counts are used), or a device
            profile as `build` takes it; by default the engine that is for this device
        runtime: tensorrt or tensorrt-rtx; by default that of the engine
        public_key: as for `verify`
        accept_float: as for `build`
        overwrite: replace an engine folder that is there
        progress: told of unpacking and building

    Raises:
        RuntimeUnavailableError: onnx or TensorRT is not installed.
        BundleError, ArtifactError: as `verify`, or no ONNX is inside.
        UsageError: which device is not clear.
        BuildError, ProofError: as `build`.
    """
    bundle, target = Path(bundle), Path(output_dir).expanduser().resolve()
    with open_bundle(bundle, public_key) as opened:
        index = opened.index
    if not index.onnx:
        raise BundleError(
            f"{bundle} holds no ONNX to build from", "ask for one made with bundle --with-onnx"
        )
    recipe = choose_recipe(index, device, runtime)
    _require_builder(recipe.runtime)
    from vggt_deploy.build import build

    # One fixed name, so that what a killed run leaves is replaced by the next; and so only one
    # rebuild at a time, or the next would take the graph from under the first.
    artifact = target.with_name(f".{target.name}.onnx")
    with locked(target.with_name(f"{target.name}.rebuild")):
        # Outside of what removes it: a folder that was not ours to replace stays.
        unpack(
            bundle, artifact, public_key=public_key, onnx=True, overwrite=True, progress=progress
        )
        try:
            with tempfile.TemporaryDirectory() as folder:
                entry = recipe.entry
                frames = None
                profile = recipe.device or ""
                if entry is not None:
                    profile = str(_write_profile(Path(folder), entry))
                    frames = [(p.min, p.opt, p.max) for p in entry.profiles]
                return build(
                    artifact,
                    runtime=recipe.runtime,
                    device=profile,
                    output_dir=target,
                    strip=entry is not None and entry.stripped,
                    accept_float=accept_float,
                    frames=frames,
                    overwrite=overwrite,
                    progress=progress,
                )
        finally:
            shutil.rmtree(artifact, ignore_errors=True)


def _write_profile(folder: Path, entry: EngineEntry) -> Path:
    """The device profile of an engine, under its name, which the manifest will record."""
    stem = Path(entry.device).stem
    path = folder / f"{stem if is_plain_name(stem) else entry.name}.toml"
    path.write_text(entry.device_profile, encoding="utf-8")
    return path


def choose_recipe(index: Index, device: str | None, runtime: str | None) -> Recipe:
    """What to build, from what was asked and what the bundle holds."""
    names = {entry.name for entry in index.engines}
    if device is None and not index.engines:
        raise UsageError(
            "the bundle holds no engine whose device profile could be used",
            "give --device (a TOML file, or a shipped name such as orin) and --runtime",
        )
    if device is None or device in names:
        fix = "say so with --device NAME: one of these, or a device profile"
        entry = choose_engine(index, device, fix=fix)
        return Recipe(runtime or entry.runtime, entry, None)
    if runtime is None:
        runtimes = {entry.runtime for entry in index.engines}
        if len(runtimes) != 1:
            raise UsageError(
                f"which runtime should {device} be built for?",
                "say --runtime tensorrt or tensorrt-rtx",
            )
        (runtime,) = runtimes
    return Recipe(runtime, None, device)


def _require_builder(runtime: str) -> None:
    """Building reads the graph with onnx; an edge install has none."""
    if find_spec("onnx") is None:
        extra = "rtx" if runtime == "tensorrt-rtx" else "tensorrt"
        raise RuntimeUnavailableError(
            "rebuilding needs the package onnx, which is not installed here",
            f"pip install onnx 'vggt-deploy[{extra}]'",
        )
    load_library(runtime)
