"""Run an artifact on a folder of pictures and write what it sees.

The output folder appears whole or not at all: pictures/ (as the network saw them), depth/,
predictions.npz, cameras.json (with a pose output), points.ply and points.glb (with depth and pose,
or points), and run.json, which records what was run on what, how long it took, and how to read the
files. `vggt-deploy visualize` shows what it holds.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vggt_deploy import __version__
from vggt_deploy.artifact import require_free_space, writing
from vggt_deploy.data.folders import ImageFolder, find_images
from vggt_deploy.data.images import ImageBatch, Mode, SkippedImage, load_images
from vggt_deploy.engines import outputs as files
from vggt_deploy.engines.points import (
    DEFAULT_CONF_PERCENTILE,
    DEFAULT_MAX_POINTS,
    PointCloud,
    PointLimits,
    select_points,
    write_points,
)
from vggt_deploy.engines.predict import PointMap, Predictions, predict
from vggt_deploy.engines.runtime import SessionInfo, accepted_frames, check_frames, open_session
from vggt_deploy.geometry import is_pinhole
from vggt_deploy.manifest import now, read_manifest
from vggt_deploy.records import Manifest

RUN_RECORD = "run.json"
# Below this share of a picture's area inside the network's frame, the run says so.
_MUCH_CROPPED = 0.75


@dataclass(frozen=True)
class RunResult:
    """Where the results are, and how they came about.

    files: names inside `folder`
    found: where the images were found, in words
    forward_ms: the one forward pass, without a warm-up before it
    notes: what a reader should know (what the runtime says, skipped files, cropped pictures,
        cameras without focal length)
    """

    folder: Path
    files: tuple[str, ...]
    images: int
    found: str
    session: SessionInfo
    forward_ms: float
    points: int
    skipped: tuple[SkippedImage, ...]
    notes: tuple[str, ...]


def run(
    artifact: Path | str,
    images_dir: Path | str,
    output_dir: Path | str,
    *,
    max_images: int | None = None,
    mode: Mode = "crop",
    runtime: str | None = None,
    provider: str | None = None,
    threads: int | None = None,
    conf_percentile: float = DEFAULT_CONF_PERCENTILE,
    max_points: int = DEFAULT_MAX_POINTS,
    skip_bad_images: bool = False,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> RunResult:
    """Depth maps, cameras and points of the pictures in `images_dir`, into `output_dir`.

    All images go through the network in one pass, as views of one scene. `progress` is told each
    stage in words.
    """
    say = progress if progress is not None else _silent
    limits = PointLimits(conf_percentile, max_points)
    artifact, target = Path(artifact), Path(output_dir)
    # Cheap checks first; the hashes are checked when the session opens.
    manifest = read_manifest(artifact, check_hashes=False)
    found = find_images(images_dir, max_images=max_images)
    if not skip_bad_images:
        check_frames(len(found.paths), accepted_frames(manifest))
    with writing(target, overwrite=overwrite, marker=RUN_RECORD) as folder:
        say(f"reading {len(found.paths)} images")
        batch = load_images(
            found.paths,
            mode=mode,
            width=manifest.width,
            height=manifest.height,
            skip_bad=skip_bad_images,
        )
        check_frames(len(batch.paths), accepted_frames(manifest))
        say(f"checking and opening {artifact}")
        session = open_session(artifact, runtime=runtime, provider=provider, threads=threads)
        with contextlib.closing(session):
            say(f"running {len(batch.paths)} images of {batch.height} x {batch.width}")
            predictions = predict(session, batch)
            info = session.info
        say("writing results")
        require_free_space(folder, _bytes_of(predictions))
        record = _record(manifest, found, batch, predictions, info)
        notes, points = _write(folder, record, batch, predictions, limits, info.notes)
        names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return RunResult(
        folder=target,
        files=tuple(names),
        images=len(batch.paths),
        found=found.note,
        session=info,
        forward_ms=predictions.forward_ms,
        points=points,
        skipped=batch.skipped,
        notes=tuple(notes),
    )


def _write(
    folder: Path,
    record: dict[str, Any],
    batch: ImageBatch,
    predictions: Predictions,
    limits: PointLimits,
    runtime_notes: tuple[str, ...],
) -> tuple[list[str], int]:
    """Write every file, run.json last; returns the notes and the number of points."""
    notes = [*runtime_notes, *_batch_notes(batch), *_not_finite(predictions)]
    record["pictures"] = list(files.write_pictures(folder, batch))
    files.write_arrays(folder / "predictions.npz", predictions, batch)
    if "depth" in predictions.outputs:
        depth = files.write_depth(folder, predictions.outputs["depth"][0, ..., 0], batch)
        record["depth"] = None if depth is None else dataclasses.asdict(depth)
        if depth is None:
            notes.append("no depth pictures: no predicted depth is finite and positive")
    if predictions.extrinsic is not None and predictions.intrinsic is not None:
        notes += files.write_cameras(
            folder / "cameras.json", predictions.extrinsic, predictions.intrinsic, batch
        )
    cloud = _points(predictions, batch, limits)
    if cloud is None:
        notes.append("no point cloud: it needs the outputs depth and pose, or points")
    elif len(cloud.xyz) == 0:
        notes.append("no point cloud: no pixel has a finite point")
    else:
        write_points(cloud, folder / "points.ply", folder / "points.glb")
        record["points"] = _points_record(cloud, limits)
    files.write_json(folder / RUN_RECORD, {**record, "notes": notes})
    return notes, 0 if cloud is None else len(cloud.xyz)


def _points(predictions: Predictions, batch: ImageBatch, limits: PointLimits) -> PointCloud | None:
    points = predictions.points
    if points is None:
        return None
    if points.source == "depth" and predictions.intrinsic is not None:
        # Its depth would be unprojected onto one line, or behind the camera: finite, and no points.
        xyz = points.xyz.copy()
        xyz[~is_pinhole(predictions.intrinsic)] = np.nan
        points = PointMap(xyz, points.confidence, points.source)
    return select_points(points, batch.pixels, batch.picture_mask(), limits)


def _batch_notes(batch: ImageBatch) -> list[str]:
    notes = [f"left out: {s.reason}" for s in batch.skipped]
    for path, placement in zip(batch.paths, batch.placements, strict=True):
        kept = placement.kept_share(batch.height, batch.width)
        if kept < _MUCH_CROPPED:
            notes.append(
                f"{path.name}: only {kept:.0%} of the picture fits {batch.width} x {batch.height};"
                " mode pad keeps all of it"
            )
    return notes


def _not_finite(predictions: Predictions) -> list[str]:
    notes = []
    for name, values in predictions.outputs.items():
        bad = values.size - int(np.isfinite(values).sum())
        if bad:
            notes.append(f"{name}: {bad} of {values.size} values are not finite")
    return notes


def _record(
    manifest: Manifest,
    found: ImageFolder,
    batch: ImageBatch,
    predictions: Predictions,
    info: SessionInfo,
) -> dict[str, Any]:
    """The part of run.json that is known before the files are written."""
    return {
        "schema": 1,
        "tool_version": __version__,
        "created": now(),
        "artifact": _artifact_record(manifest),
        "session": _session_record(info),
        "forward_ms": predictions.forward_ms,
        "images_found": found.note,
        "images": _image_records(batch),
        "skipped": [{"image": s.path.name, "reason": s.reason} for s in batch.skipped],
        "unit": files.UNITS,
    }


def _artifact_record(manifest: Manifest) -> dict[str, Any]:
    return {
        "model": dataclasses.asdict(manifest.model),
        "variant": manifest.variant,
        "precision": manifest.precision,
        "created": manifest.created,
        "files": {name: record.sha256 for name, record in manifest.files.items()},
    }


def _session_record(info: SessionInfo) -> dict[str, Any]:
    return {
        "runtime": info.runtime,
        "runtime_version": info.runtime_version,
        "provider": info.provider,
        "device": info.device,
        "threads": info.threads,
        "load_ms": info.load_ms,
    }


def _image_records(batch: ImageBatch) -> list[dict[str, Any]]:
    return [
        {
            "image": path.name,
            "sha256": digest,
            "width": size[0],
            "height": size[1],
            "mode": batch.mode,
            "placement": files.placement_record(placement),
        }
        for path, digest, size, placement in zip(
            batch.paths, batch.sha256, batch.original_sizes, batch.placements, strict=True
        )
    ]


def _points_record(cloud: PointCloud, limits: PointLimits) -> Mapping[str, Any]:
    return {
        "source": cloud.source,
        "pixels": cloud.pixels,
        "usable": cloud.usable,
        "conf_percentile": limits.conf_percentile,
        "conf_threshold": cloud.threshold,
        "confident": cloud.confident,
        "written": len(cloud.xyz),
        "points.ply": "axes x right, y down, z forward (OpenCV, first camera); sRGB colours",
        "points.glb": "axes x right, y up, z backward: (x, -y, -z); linear colours, as glTF says",
    }


def _bytes_of(predictions: Predictions) -> int:
    """What the files will need, generously: arrays, three pictures each, two point clouds."""
    return 3 * sum(values.nbytes for values in predictions.outputs.values())


def _silent(message: str) -> None:
    del message
