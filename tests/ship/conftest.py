"""Artifacts and engines that are small files: what ships them never looks inside."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import random
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from vggt_deploy.engines.device import CudaDevice
from vggt_deploy.manifest import SCHEMA, now, record_files, write_manifest
from vggt_deploy.records import (
    EngineRecord,
    FramesRange,
    GraphRecord,
    LayerSummary,
    LinearRecord,
    Manifest,
    ModelRecord,
    ProofRecord,
)
from vggt_deploy.ship.bundle import bundle
from vggt_deploy.ship.container import header

OUTPUTS = ("pose_enc", "depth", "depth_conf", "world_points", "world_points_conf")
LAYER = "aggregator.frame_blocks.0.mlp.fc1"
ACCURACY_LEVEL = {"session.qdq_matmulnbits_accuracy_level": "1"}
Make = Callable[..., Path]


@dataclass(frozen=True)
class Keys:
    private: Path
    public: Path


def plan(version: tuple[int, int, int, int], *, rtx: bool = False, body: int = 5000) -> bytes:
    """A plan as far as its header goes: magic, serialization, 16 bytes, version of the builder."""
    head = (b"vtrt" if rtx else b"ftrt") + struct.pack("<I", 0) + b"\x07" * 16 + bytes(version)
    return head + random.Random(1).randbytes(body)


def manifest(folder: Path, **differences: Any) -> Manifest:
    """The manifest of an ONNX artifact whose files lie in `folder`."""
    base = Manifest(
        schema=SCHEMA,
        tool_version="0.test",
        kind="onnx",
        created=now(),
        model=ModelRecord("random:test", "vggt-test"),
        scheme="int8_pc_sym",
        activations="static",
        precision="fp16",
        height=42,
        width=56,
        frames=FramesRange(1, 4, 32),
        outputs=OUTPUTS,
        graphs={
            "onnxruntime": GraphRecord("model.onnx", 21, ACCURACY_LEVEL, ("MatMulAddFusion",)),
            "tensorrt": GraphRecord("model.tensorrt.onnx", 21),
        },
        layers=LayerSummary({LAYER: "int8"}),
        files=record_files(folder),
        versions={},
    )
    return dataclasses.replace(base, **differences)


def write_onnx(folder: Path, **differences: Any) -> Path:
    """An ONNX artifact whose graphs are a few bytes."""
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"graph for ONNX Runtime")
    (folder / "model.tensorrt.onnx").write_bytes(b"graph for TensorRT")
    (folder / "weights.bin").write_bytes(random.Random(2).randbytes(3000))
    write_manifest(folder, manifest(folder, **differences))
    return folder


def engine_record(onnx: Path, **differences: Any) -> EngineRecord:
    """Of an engine for an H200, built from the artifact in `onnx`."""
    files = record_files(onnx)
    base = EngineRecord(
        file="model.engine",
        runtime="tensorrt",
        runtime_version="10.16.1.11",
        onnx_sha256=files["model.tensorrt.onnx"].sha256,
        weights_sha256=files["weights.bin"].sha256,
        device="h200",
        device_profile='title = "H200"\n',
        compute_capabilities=("9.0",),
        profiles=(FramesRange(1, 1, 1), FramesRange(2, 4, 8)),
        flags=("TF32",),
        tf32=True,
        optimization_level=3,
        hardware_compatibility="NONE",
        workspace_bytes=None,
        stripped=False,
        timing_cache=None,
        build_seconds=1.5,
        peak_rss_bytes=10**9,
        weights_bytes=4000,
        activation_bytes=(10**6, 8 * 10**6),
        built_on={"gpu": "NVIDIA H200", "driver": "580.65.06", "cuda": "13.0"},
        proof=ProofRecord(
            "engine inspector", {LAYER: LinearRecord("int8", 8, 8, 1, 100, 64)}, 2, 2
        ),
    )
    return dataclasses.replace(base, **differences)


def write_engine(
    folder: Path, onnx: Path, data: bytes | None = None, *, change: Any = None, **engine: Any
) -> Path:
    """An engine folder; `engine` differs in the record, `change` in the manifest's other fields."""
    folder.mkdir(parents=True)
    record = engine_record(onnx, **engine)
    version = tuple(int(number) for number in record.runtime_version.split("."))
    rtx = record.runtime == "tensorrt-rtx"
    (folder / record.file).write_bytes(plan(version, rtx=rtx) if data is None else data)  # type: ignore[arg-type]
    fields = {"kind": "engine", "graphs": {}, "engine": record, **(change or {})}
    write_manifest(folder, manifest(folder, **fields))
    return folder


@pytest.fixture
def make_onnx(tmp_path: Path) -> Make:
    """Writes an ONNX artifact with the given differences into the folder `name`."""

    def make(name: str = "onnx", **differences: Any) -> Path:
        return write_onnx(tmp_path / name, **differences)

    return make


@pytest.fixture
def onnx(make_onnx: Make) -> Path:
    return make_onnx()


@pytest.fixture
def make_engine(tmp_path: Path, onnx: Path) -> Make:
    """Writes an engine built from `onnx`, for an H200 unless told otherwise."""

    def make(name: str = "vggt-h200", **differences: Any) -> Path:
        return write_engine(tmp_path / name, onnx, **differences)

    return make


@pytest.fixture
def h200(make_engine: Make) -> Path:
    return make_engine()


@pytest.fixture
def rtx4090(make_engine: Make) -> Path:
    return make_engine(
        "vggt-4090",
        runtime="tensorrt-rtx",
        runtime_version="1.7.1.116",
        device="rtx4090",
        device_profile='title = "RTX 4090"\nruntimes = ["tensorrt-rtx"]\n',
        compute_capabilities=("8.9",),
        activation_bytes=None,
        built_on={"os": "Linux"},
    )


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return write_keys(tmp_path, "ours")


@pytest.fixture
def other_keys(tmp_path: Path) -> Keys:
    return write_keys(tmp_path, "theirs")


@pytest.fixture
def packed(tmp_path: Path, h200: Path, rtx4090: Path, onnx: Path) -> Path:
    """An unsigned bundle of two engines and the ONNX."""
    return bundle([h200, rtx4090], tmp_path / "vggt.bundle", with_onnx=onnx).path


@pytest.fixture
def forge() -> Callable[..., Path]:
    """Rewrites a bundle as someone would who knows the format: all hashes of the index fit."""
    return rewrite


def rewrite(
    path: Path,
    *,
    index: Callable[[dict[str, Any]], None] | None = None,
    members: Callable[[list[tuple[tarfile.TarInfo, bytes]]], None] | None = None,
) -> Path:
    """`index` edits index.json (its hash is made anew), `members` the list of everything else."""
    with tarfile.open(path) as archive:
        entries = [(info, archive.extractfile(info).read()) for info in archive]  # type: ignore[union-attr]
    (_, text), _, *others = entries
    data = json.loads(text)
    if index is not None:
        index(data)
        text = json.dumps(data).encode()
    if members is not None:
        members(others)
    digest = hashlib.sha256(text).hexdigest()
    head = [("index.json", text), ("index.sha256", f"{digest}  index.json\n".encode())]
    out = io.BytesIO()
    for name, content in head:
        out.write(header(name, len(content)) + content + b"\0" * (-len(content) % 512))
    for info, content in others:
        out.write(info.tobuf(tarfile.GNU_FORMAT) + content + b"\0" * (-len(content) % 512))
    path.write_bytes(out.getvalue() + b"\0" * 1024)
    return path


def write_keys(folder: Path, name: str) -> Keys:
    """A key pair as `openssl genpkey -algorithm ed25519` and `openssl pkey -pubout` write it."""
    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return Keys(private, public)


@pytest.fixture
def make_device() -> Callable[..., CudaDevice]:
    """A CUDA device with the given differences from an H200."""

    def make(**differences: Any) -> CudaDevice:
        base = CudaDevice(
            index=0,
            name="NVIDIA H200",
            compute_capability="9.0",
            total_bytes=141 * 2**30,
            free_bytes=140 * 2**30,
            driver_cuda=(13, 0),
            runtime_cuda=(13, 0),
            driver_release="580.65.06",
        )
        return dataclasses.replace(base, **differences)

    return make
