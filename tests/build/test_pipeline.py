"""`build` from artifact to engine folder, with TensorRT-RTX."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vggt_deploy.build import build, pipeline
from vggt_deploy.build.pipeline import BuildResult, broken_promises
from vggt_deploy.build.profiles import load_profile
from vggt_deploy.engines.device import CudaDevice
from vggt_deploy.engines.kernels import layer_shares
from vggt_deploy.engines.tensorrt.refit import refit_graph
from vggt_deploy.errors import (
    ArtifactError,
    BuildError,
    ProofError,
    RuntimeUnavailableError,
    UsageError,
)
from vggt_deploy.manifest import hash_file, read_manifest
from vggt_deploy.records import FramesRange, GraphRecord, LinearRecord, ProofRecord


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., BuildResult]:
    """Artifact -> engine, for an RTX 4090."""

    def start(artifact: Path, **options: Any) -> BuildResult:
        arguments = {
            "runtime": "tensorrt-rtx",
            "device": "rtx4090",
            "output_dir": tmp_path / "engine",
            **options,
        }
        return build(artifact, **arguments)

    return start


@pytest.fixture
def artifact(two_linears: Any, save_artifact: Any, tmp_path: Path) -> Path:
    """Two Linears with static activations."""
    return save_artifact(tmp_path / "artifact", two_linears())  # type: ignore[no-any-return]


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_engine_folder_says_all_about_itself(run: Any, artifact: Path, tmp_path: Path) -> None:
    result = run(artifact)
    source, manifest = read_manifest(artifact), read_manifest(result.folder)
    assert manifest == result.manifest
    assert listing(tmp_path) == ["artifact", "engine"]
    assert listing(result.folder) == ["manifest.json", "model.engine"]
    assert set(result.seconds) == {"hashes", "check", "build", "proof"}
    assert (manifest.kind, manifest.graphs, manifest.frames) == ("engine", {}, source.frames)
    same = ("model", "variant", "precision", "height", "width", "outputs", "layers")
    assert [getattr(manifest, n) for n in same] == [getattr(source, n) for n in same]
    assert manifest.notes == ("1:4:16 frames cut to 1:4:5: the artifact takes 1 to 5 frames",)

    engine = manifest.engine
    assert engine is not None
    assert (engine.runtime, engine.device) == ("tensorrt-rtx", "rtx4090")
    assert engine.device_profile == load_profile("rtx4090").text
    assert engine.runtime_version.startswith("1.7.")
    assert engine.onnx_sha256 == hash_file(artifact / "model.tensorrt.onnx")
    assert engine.weights_sha256 == hash_file(artifact / "weights.bin")
    assert engine.compute_capabilities == ("8.9",)
    assert engine.profiles == (FramesRange(1, 4, 5),)
    assert engine.flags == ("TF32",)
    # 14 x 64 and 64 x 32 integers, their scales and zero points, and what quantizes the inputs
    assert engine.packed_bytes == 14 * 64 + 64 * 32 + 96 * 5 + 2 * 5
    assert engine.built_on["gpu"]
    assert not engine.stripped


def test_integer_products_are_proven(run: Any, artifact: Path) -> None:
    proof = run(artifact).manifest.engine.proof
    assert layer_shares(proof) == {"int8": 1.0}
    assert set(proof.linears) == {"block.fc1", "block.fc2"}
    # 2 frames, 3 colours, 14 rows of the picture
    assert proof.linears["block.fc1"].rows == 2 * 3 * 14


@pytest.mark.parametrize("static", [(True, False), (False, False)])
def test_a_float_product_where_integers_are_promised(
    static: tuple[bool, bool],
    run: Any,
    two_linears: Any,
    save_artifact: Any,
    tmp_path: Path,
) -> None:
    spoiled = save_artifact(tmp_path / "spoiled", two_linears(static=static))
    with pytest.raises(ProofError, match=r"of 2 Linears .*block\.fc2 \(") as caught:
        run(spoiled)
    assert ("block.fc1 (" in caught.value.message) is (not static[0])
    assert listing(tmp_path) == ["spoiled"]

    notes = run(spoiled, accept_float=True).manifest.notes
    assert f"accepted: {2 - sum(static)} of 2 Linears" in notes[-1]


def test_weight_only_schemes_promise_no_integer_products(
    run: Any, two_linears: Any, save_artifact: Any, tmp_path: Path
) -> None:
    model = two_linears(static=(False, False))
    plain = save_artifact(tmp_path / "plain", model, activations="float")
    shares = layer_shares(run(plain).manifest.engine.proof)
    assert "int8" not in shares


def test_frames_of_the_users_choice(run: Any, artifact: Path) -> None:
    manifest = run(artifact, frames=[(1, 1, 1), (2, 3, 4)]).manifest
    assert manifest.engine.profiles == (FramesRange(1, 1, 1), FramesRange(2, 3, 4))
    assert manifest.frames == FramesRange(1, 2, 4)
    assert manifest.notes == ()
    with pytest.raises(UsageError, match="does not fit the artifact"):
        run(artifact, frames=[(1, 2, 6)], overwrite=True)


def test_a_fixed_number_of_frames(
    run: Any, two_linears: Any, save_artifact: Any, tmp_path: Path
) -> None:
    three = FramesRange(3, 3, 3)
    fixed = save_artifact(tmp_path / "fixed", two_linears(frames=3), frames=three)
    assert run(fixed).manifest.engine.profiles == (three,)


def test_the_check_speaks_before_the_builder(
    run: Any,
    two_linears: Any,
    save_artifact: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = two_linears()
    next(w for w in model.graph.initializer if w.name == "block.fc2.xs").raw_data = b"\0" * 4
    broken = save_artifact(tmp_path / "broken", model)
    monkeypatch.setattr(pipeline, "build_plan", lambda *_, **__: pytest.fail("it was built"))
    with pytest.raises(BuildError, match=r"block\.fc2"):
        run(broken)
    assert listing(tmp_path) == ["broken"]


def test_what_can_be_refused_is_refused_before_anything_is_written(
    run: Any, artifact: Path, tmp_path: Path
) -> None:
    refused: list[tuple[type[Exception], dict[str, Any]]] = [
        (UsageError, {"device": "h200"}),
        (UsageError, {"device": "h300"}),
        (UsageError, {"runtime": "openvino"}),
        (UsageError, {"timing_cache_dir": tmp_path / "timing"}),
        (BuildError, {"strip": True}),
    ]
    for error, options in refused:
        with pytest.raises(error):
            run(artifact, **options)
        assert listing(tmp_path) == ["artifact"]


def test_a_profile_for_the_other_runtime_is_told_before_what_to_install(
    run: Any, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(runtime: str) -> Any:
        raise RuntimeUnavailableError(f"no module {runtime}", "install it")

    monkeypatch.setattr(pipeline, "load_library", absent)
    with pytest.raises(UsageError, match="portable-rtx is for tensorrt-rtx, not for tensorrt"):
        run(artifact, runtime="tensorrt", device="portable-rtx")
    with pytest.raises(RuntimeUnavailableError):
        run(artifact, runtime="tensorrt", device="h200")


def test_an_engine_is_no_artifact(run: Any, artifact: Path) -> None:
    engine = run(artifact).folder
    with pytest.raises(UsageError, match="is an engine already"):
        run(engine, overwrite=True)


def test_an_artifact_without_a_graph_for_tensorrt(
    run: Any, two_linears: Any, save_artifact: Any, tmp_path: Path
) -> None:
    graphs = {"onnxruntime": GraphRecord("model.tensorrt.onnx", 20)}
    dynamic = save_artifact(
        tmp_path / "dynamic", two_linears(), activations="dynamic", graphs=graphs
    )
    with pytest.raises(UsageError, match="no kernels for dynamic activations") as caught:
        run(dynamic)
    assert "--calibrate" in caught.value.fix


def test_a_changed_artifact_is_not_built(run: Any, artifact: Path) -> None:
    path = artifact / "weights.bin"
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="was changed"):
        run(artifact)


def test_an_engine_is_replaced_only_when_asked(run: Any, artifact: Path) -> None:
    run(artifact)
    with pytest.raises(ArtifactError, match="not empty"):
        run(artifact)
    assert read_manifest(run(artifact, overwrite=True).folder)


def test_stages_are_shown_in_order(run: Any, artifact: Path) -> None:
    stages: list[str] = []
    run(artifact, progress=lambda stage, done, total: stages.append(stage))
    assert list(dict.fromkeys(stages)) == ["hashes", "check", "build", "proof"]


def proof(computes: str, unfused: tuple[str, ...] = ()) -> ProofRecord:
    linears = {f"l{n}": LinearRecord(computes, 8, 8, 1, 4, 64) for n in range(7)}
    return ProofRecord("builder layer record", linears, 3, 2, 2, unfused)


def test_what_counts_as_a_broken_promise(artifact: Path) -> None:
    static = read_manifest(artifact)
    plain = dataclasses.replace(static, activations="float")
    assert broken_promises(static, proof("int8")) == ()
    (line,) = broken_promises(static, proof("int8-weight"))
    assert line.startswith("7 of 7 Linears have no Int8 x Int8 product: l0 (int8-weight), ")
    assert line.endswith("l4 (int8-weight), and 2 more")
    for kept in ("int8-weight", "int4-weight", "int8-stored", "int4-stored", "unseen"):
        assert broken_promises(plain, proof(kept)) == ()
    (line,) = broken_promises(plain, proof("float"))
    assert line.startswith("7 of 7 Linears have no integers in the engine: l0, l1")
    (line,) = broken_promises(static, proof("unseen"))
    assert line.startswith("7 of 7 Linears have no Int8 x Int8 product: l0 (unseen)")
    half = dataclasses.replace(plain, precision="fp16")
    assert broken_promises(half, proof("int8-weight", ("block.attn",))) == (
        "1 of 2 attentions in fp16 are not fused: block.attn",
    )


class TestStripped:
    """The folder of a weight-stripped engine; only the build itself needs a GPU."""

    @pytest.fixture
    def engine(self, run: Any, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        gpu = CudaDevice(0, "RTX 4090", "8.9", 2**34, 2**34, (13, 0), (13, 0), None)
        real = pipeline.build_plan

        def whole_plan(library: Any, graph: Path, settings: Any, plan: Path, **options: Any) -> Any:
            assert settings.strip
            whole = dataclasses.replace(settings, strip=False)
            return real(library, graph, whole, plan, **options)

        monkeypatch.setattr(pipeline, "cuda_device", lambda: gpu)
        monkeypatch.setattr(pipeline, "build_plan", whole_plan)
        return run(artifact, strip=True).folder  # type: ignore[no-any-return]

    def test_it_carries_what_refit_needs(self, engine: Path, artifact: Path) -> None:
        manifest = read_manifest(engine)
        assert manifest.engine is not None
        assert manifest.engine.stripped
        assert manifest.engine.built_on["gpu"] == "RTX 4090"
        assert refit_graph(engine, manifest) == engine / "model.tensorrt.onnx"
        for name in ("model.tensorrt.onnx", "weights.bin"):
            assert (engine / name).read_bytes() == (artifact / name).read_bytes()

    def test_without_the_weights_it_is_refused(self, engine: Path) -> None:
        manifest = read_manifest(engine)
        files = {n: r for n, r in manifest.files.items() if n != "weights.bin"}
        with pytest.raises(ArtifactError, match="without the weights"):
            refit_graph(engine, dataclasses.replace(manifest, files=files))

    def test_a_whole_engine_needs_no_refit(self, run: Any, artifact: Path) -> None:
        folder = run(artifact).folder
        with pytest.raises(ArtifactError, match="no weight-stripped engine"):
            refit_graph(folder, read_manifest(folder))
