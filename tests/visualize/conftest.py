"""Runs and comparisons whose network is right: what it says of a rendered room is the truth.

The run is made by `run` itself, with a session in place of ONNX Runtime's; the comparison's folder
is laid out by hand, and a test holds it against one that `compare` wrote.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vggt_deploy.data.synthetic import render_views
from vggt_deploy.engines import run as runs
from vggt_deploy.engines.runtime import SessionInfo
from vggt_deploy.geometry import camera_to_pose_encoding, unproject_depth
from vggt_deploy.records import FramesRange, GraphRecord, LayerSummary, Manifest, ModelRecord

VIEWS, HEIGHT, WIDTH = 3, 56, 84
GROUPS = {
    "pose": ("pose_enc",),
    "depth": ("depth", "depth_conf"),
    "points": ("world_points", "world_points_conf"),
}
Outputs = dict[str, NDArray[np.float32]]
Change = Callable[[Outputs], None]


@dataclass(frozen=True)
class Truth:
    """A rendered room, its world moved into the first camera's frame.

    images [S, H, W, 3], extrinsic [S, 3, 4], intrinsic [S, 3, 3], points [S, H, W, 3]
    """

    images: NDArray[np.uint8]
    depth: NDArray[np.float32]
    extrinsic: NDArray[np.float64]
    intrinsic: NDArray[np.float64]
    points: NDArray[np.float32]

    @property
    def names(self) -> list[str]:
        """Of the pictures."""
        return [f"view_{index:03d}.png" for index in range(len(self.images))]

    def outputs(self) -> Outputs:
        """What a network that is right says, all heads; the confidence grows to the right."""
        pose = camera_to_pose_encoding(self.extrinsic, self.intrinsic, HEIGHT, WIDTH)
        confidence = np.broadcast_to(np.linspace(1, 5, WIDTH), self.depth.shape)
        return {
            "pose_enc": pose[None].astype(np.float32),
            "depth": self.depth[None, ..., None].copy(),
            "depth_conf": confidence[None].astype(np.float32),
            "world_points": self.points[None].copy(),
            "world_points_conf": confidence[None].astype(np.float32),
        }


@pytest.fixture(scope="session")
def truth() -> Truth:
    drawn = render_views(3, views=VIEWS, height=HEIGHT, width=WIDTH, family="room")
    first = np.vstack([drawn.extrinsic[0], [0, 0, 0, 1]])
    extrinsic = drawn.extrinsic @ np.linalg.inv(first)
    points = unproject_depth(drawn.depth, extrinsic, drawn.intrinsic)
    return Truth(drawn.images, drawn.depth, extrinsic, drawn.intrinsic, points.astype(np.float32))


@pytest.fixture
def photographs(truth: Truth, tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name, image in zip(truth.names, truth.images, strict=True):
        Image.fromarray(image).save(folder / name)
    return folder


def _manifest() -> Manifest:
    return Manifest(
        schema=1,
        tool_version="0.test",
        kind="onnx",
        created="2026-01-01T00:00:00Z",
        model=ModelRecord("random:test", "test"),
        scheme="int8_pc_sym",
        activations="float",
        precision="fp32",
        height=HEIGHT,
        width=WIDTH,
        frames=FramesRange(1, VIEWS, 8),
        outputs=(),
        graphs={"onnxruntime": GraphRecord("model.onnx", 18, {}, ())},
        layers=LayerSummary({}),
        files={},
        versions={},
    )


def _session(outputs: Mapping[str, NDArray[np.float32]]) -> Any:
    info = SessionInfo(
        artifact=Path("artifact"),
        variant="int8_pc_sym",
        runtime="onnxruntime",
        runtime_version="1",
        provider="cpu",
        threads=None,
        load_ms=1.0,
        outputs=tuple(outputs),
        height=HEIGHT,
        width=WIDTH,
        frames=FramesRange(1, VIEWS, 8),
    )
    return SimpleNamespace(run=lambda images: dict(outputs), info=info, close=lambda: None)


MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(
    truth: Truth, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> MakeRun:
    """`make_run("pose", "depth", change=...)`: a folder of `run`, with the pictures in it."""

    def make(
        *groups: str,
        change: Change | None = None,
        images: Path = photographs,
        name: str = "result",
        mode: str = "crop",
    ) -> Path:
        every = truth.outputs()
        outputs = {n: every[n] for group in groups or GROUPS for n in GROUPS[group]}
        if change is not None:
            change(outputs)
        monkeypatch.setattr(runs, "read_manifest", lambda artifact, **_: _manifest())
        monkeypatch.setattr(runs, "open_session", lambda artifact, **_: _session(outputs))
        folder = tmp_path / name
        runs.run("artifact", images, folder, mode=mode)  # type: ignore[arg-type]
        return _with_pictures(folder, truth)

    return make


def _with_pictures(folder: Path, truth: Truth) -> Path:
    """The pictures in the folder, as `run.json` names them."""
    record = json.loads((folder / "run.json").read_text())
    (folder / "pictures").mkdir(exist_ok=True)
    record["pictures"] = [f"pictures/{index:03d}_{n}" for index, n in enumerate(truth.names)]
    for name, image in zip(record["pictures"], truth.images, strict=True):
        Image.fromarray(image).save(folder / name)
    (folder / "run.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def comparison(truth: Truth, tmp_path: Path) -> Path:
    """Of two variants; that of int4_g32 sees everything 10 % farther away, a third failed."""
    folder = tmp_path / "comparison"
    (folder / "work").mkdir(parents=True)
    (folder / "outputs").mkdir()
    question = {
        "schema": 4,
        "model": {"spec": "somewhere/vggt-nano", "kind": "packaged", "config": "vggt-nano"},
        "scenes": [{"name": "room", "files": [{"name": name} for name in truth.names]}],
        "variants": ["torch/fp32", "onnxruntime/int4_g32", "onnxruntime/mixed"],
    }
    (folder / "question.json").write_text(json.dumps(question))
    np.save(folder / "work" / "images.npy", truth.images.transpose(0, 3, 1, 2) / np.float32(255))
    for name, scale in (("torch-fp32", 1.0), ("onnxruntime-int4_g32", 1.1)):
        outputs = truth.outputs()
        outputs["depth"] *= np.float32(scale)
        np.savez(folder / "outputs" / f"{name}.npz", **outputs)
    return folder
