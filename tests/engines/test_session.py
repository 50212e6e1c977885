"""Sessions: what runs is what was asked for, and every way not to open has its own words."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from vggt_deploy.engines import onnxruntime as engine
from vggt_deploy.engines import open_session
from vggt_deploy.errors import ArtifactError, DeployError, RuntimeUnavailableError, UsageError
from vggt_deploy.manifest import read_manifest

HEIGHT, WIDTH = 42, 56
MakeArtifact = Callable[..., Path]


def images(frames: int, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.float32]:
    return np.random.default_rng(0).random((1, frames, 3, height, width), dtype=np.float32)


@pytest.mark.parametrize("frames", [1, 2, 6])
def test_runs_and_returns_every_output(make_artifact: MakeArtifact, frames: int) -> None:
    x = images(frames)
    with closing(open_session(make_artifact(), threads=1)) as session:
        outputs = session.run(x)
    assert {name: value.shape for name, value in outputs.items()} == {
        "pose_enc": (1, frames, 9),
        "depth": (1, frames, HEIGHT, WIDTH, 1),
        "depth_conf": (1, frames, HEIGHT, WIDTH),
        "world_points": (1, frames, HEIGHT, WIDTH, 3),
        "world_points_conf": (1, frames, HEIGHT, WIDTH),
    }
    assert all(value.dtype == np.float32 for value in outputs.values())
    np.testing.assert_allclose(outputs["depth"][..., 0], 2 - x.mean(axis=2), rtol=1e-6)
    # The matrix lies in the external file: its values arrived.
    np.testing.assert_allclose(
        outputs["pose_enc"][0, :, 1], x.mean(axis=(3, 4))[0, :, 1] / 2, rtol=1e-5
    )


def test_info_says_what_runs(make_artifact: MakeArtifact) -> None:
    folder = make_artifact(outputs=("depth", "depth_conf"))
    session = open_session(folder, threads=2)
    info = session.info
    assert (info.runtime, info.provider, info.threads) == ("onnxruntime", "cpu", 2)
    assert info.runtime_version == onnxruntime.__version__
    assert (info.variant, info.outputs) == ("fp32", ("depth", "depth_conf"))
    assert (info.height, info.width) == (HEIGHT, WIDTH)
    assert (info.frames.min, info.frames.max) == (1, 6)
    assert info.artifact == folder
    assert info.load_ms > 0
    assert set(session.run(images(1))) == {"depth", "depth_conf"}


def test_external_weights_are_found_from_anywhere(
    make_artifact: MakeArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_artifact()
    monkeypatch.chdir(tmp_path)
    assert open_session(folder.relative_to(tmp_path)).run(images(1))
    monkeypatch.chdir("/")
    assert open_session(str(folder)).run(images(1))


def test_settings_of_the_manifest_reach_the_session(
    make_artifact: MakeArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, object] = {}
    real = onnxruntime.InferenceSession

    def recording(path: str, **arguments: object) -> object:
        given.update(arguments)
        return real(path, **arguments)

    monkeypatch.setattr(onnxruntime, "InferenceSession", recording)
    open_session(
        make_artifact(
            session_options={"session.qdq_matmulnbits_accuracy_level": "4"},
            disabled_optimizers=("MatMulAddFusion",),
        ),
        threads=1,
    )
    options = given["sess_options"]
    assert isinstance(options, onnxruntime.SessionOptions)
    assert options.get_session_config_entry("session.qdq_matmulnbits_accuracy_level") == "4"
    assert options.intra_op_num_threads == 1
    assert given["disabled_optimizers"] == ["MatMulAddFusion"]
    assert given["providers"] == ["CPUExecutionProvider"]
    assert given["enable_fallback"] is False


def test_disabled_optimizer_changes_the_optimised_graph(
    make_artifact: MakeArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only passed on: the rewrite that is switched off does not happen."""
    import onnx

    def operators(folder: Path) -> set[str]:
        target = tmp_path / f"{folder.name}.onnx"
        real = engine._options

        def with_dump(*arguments: object) -> object:
            options = real(*arguments)  # type: ignore[arg-type]
            options.optimized_model_filepath = str(target)
            return options

        with monkeypatch.context() as patch:
            patch.setattr(engine, "_options", with_dump)
            open_session(folder)
        return {node.op_type for node in onnx.load(target, load_external_data=False).graph.node}

    assert "Identity" not in operators(make_artifact())
    assert "Identity" in operators(make_artifact(disabled_optimizers=("EliminateIdentity",)))


def test_closed_session_refuses(make_artifact: MakeArtifact) -> None:
    session = open_session(make_artifact())
    session.close()
    session.close()
    with pytest.raises(UsageError, match="closed"):
        session.run(images(1))


@pytest.mark.parametrize(
    "wrong, said",
    [
        (images(7), "7 images, but this artifact takes 1 to 6"),
        (images(0), "0 images"),
        (images(1)[0], r"shape \[1, 3, 42, 56\]"),
        (images(2).transpose(1, 0, 2, 3, 4), r"shape \[2, 1, 3, 42, 56\]"),
        (images(1, 56, 42), "56 rows x 42 columns"),
        (images(1).astype(np.float64), "float64"),
        (images(1) * 255, "expected 0 to 1"),
        (images(1) - 0.5, "expected 0 to 1"),
        (np.full_like(images(1), np.nan), "expected 0 to 1"),
    ],
    ids=["too many", "none", "no batch", "batch", "turned", "double", "bytes", "mean", "nan"],
)
def test_wrong_images_are_refused(
    make_artifact: MakeArtifact, wrong: NDArray[np.float32], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        open_session(make_artifact()).run(wrong)


def test_frames_below_the_range_and_a_fixed_count(make_artifact: MakeArtifact) -> None:
    with pytest.raises(UsageError, match="1 images, but this artifact takes 2 to 4"):
        open_session(make_artifact(frames=(2, 3, 4))).run(images(1))
    with pytest.raises(UsageError, match="takes 3"):
        open_session(make_artifact(frames=(3, 3, 3))).run(images(4))


def test_unknown_words(make_artifact: MakeArtifact) -> None:
    folder = make_artifact()
    with pytest.raises(UsageError, match="unknown runtime 'tflite'"):
        open_session(folder, runtime="tflite")
    with pytest.raises(UsageError, match="unknown provider 'npu'"):
        open_session(folder, provider="npu")
    with pytest.raises(UsageError, match="threads is 0"):
        open_session(folder, threads=0)


def test_provider_that_is_not_there_is_not_replaced(make_artifact: MakeArtifact) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(RuntimeUnavailableError, match="has no CUDAExecutionProvider") as caught:
        open_session(make_artifact(), provider="cuda")
    assert "[gpu]" in caught.value.fix


def test_provider_that_gives_way_in_silence_is_noticed(
    make_artifact: MakeArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime opens a session on the CPU when CUDA does not start; that is an error here."""
    monkeypatch.setattr(
        onnxruntime,
        "get_available_providers",
        lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(RuntimeUnavailableError, match="opened CPUExecutionProvider instead"),
    ):
        open_session(make_artifact(), provider="cuda")


def test_without_onnxruntime(make_artifact: MakeArtifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeUnavailableError, match="can't be imported") as caught:
        open_session(make_artifact())
    assert "vggt-deploy[cpu]" in caught.value.fix


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def noise(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 8)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, noise, empty])
def test_damaged_graph_with_a_matching_hash(
    make_artifact: MakeArtifact, damage: Callable[[Path], None]
) -> None:
    """Whatever ONNX Runtime raises ends as an ArtifactError that names the file and the cause."""
    with pytest.raises(ArtifactError, match="ONNX Runtime can't load") as caught:
        open_session(make_artifact(damage=damage))
    assert "model.onnx" in caught.value.message
    assert len(caught.value.message) < 800


def test_edited_graph_is_stopped_by_its_hash(make_artifact: MakeArtifact) -> None:
    folder = make_artifact()
    content = bytearray((folder / "model.onnx").read_bytes())
    content[-1] ^= 1
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(ArtifactError, match="changed after it was written"):
        open_session(folder)


def test_edited_weights_are_stopped_by_their_hash(make_artifact: MakeArtifact) -> None:
    folder = make_artifact()
    content = bytearray((folder / "weights.bin").read_bytes())
    content[70] ^= 1
    (folder / "weights.bin").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"weights\.bin was changed"):
        open_session(folder)
    open_session(folder, check_hashes=False)  # as said: for callers that have checked


def test_missing_weights(make_artifact: MakeArtifact) -> None:
    folder = make_artifact()
    (folder / "weights.bin").unlink()
    with pytest.raises(ArtifactError, match=r"weights\.bin is missing"):
        open_session(folder)


def test_weights_gone_after_the_check(make_artifact: MakeArtifact) -> None:
    folder = make_artifact()
    manifest = read_manifest(folder)
    (folder / "weights.bin").unlink()
    with pytest.raises(ArtifactError, match="ONNX Runtime can't load"):
        engine.open_onnxruntime(folder, manifest, provider="cpu", threads=None)


def test_operator_without_kernel(make_artifact: MakeArtifact) -> None:
    def exotic(path: Path) -> None:
        import onnx

        model = onnx.load(path, load_external_data=False)
        model.graph.node[0].op_type = "NoSuchOperator"
        path.write_bytes(model.SerializeToString())

    with pytest.raises(ArtifactError, match="NoSuchOperator"):
        open_session(make_artifact(damage=exotic))


def test_manifest_of_another_graph(make_artifact: MakeArtifact) -> None:
    with pytest.raises(ArtifactError, match="has no output track"):
        open_session(make_artifact(outputs=("depth", "track")))
    with pytest.raises(ArtifactError, match=r"no graph for ONNX Runtime \(it has: tensorrt\)"):
        open_session(make_artifact(target="tensorrt"))


def test_failure_while_running_is_an_error_in_words(make_artifact: MakeArtifact) -> None:
    session = open_session(make_artifact(frames=(1, 1, 6)))
    error = onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException

    class Broken:
        def run(self, *_: object) -> None:
            raise error("Failed to allocate memory for requested buffer of size 999")

    session._session = Broken()  # type: ignore[attr-defined]
    with pytest.raises(DeployError, match="failed on 2 images: Failed to allocate") as caught:
        session.run(images(2))
    assert "fewer images" in caught.value.fix


LEAN = """
import sys
import vggt_deploy.engines, vggt_deploy.engines.run, vggt_deploy.data
from vggt_deploy.engines.onnxruntime import open_onnxruntime
heavy = {"torch", "onnx", "onnxruntime", "matplotlib", "trimesh", "scipy", "skimage"}
found = sorted(heavy & set(sys.modules))
assert not found, found
from vggt_deploy.engines import open_session
open_session(sys.argv[1])
assert "onnxruntime" in sys.modules
found = sorted({"torch", "onnx", "matplotlib"} & set(sys.modules))
assert not found, found
"""


def test_imports_stay_lean_and_onnxruntime_comes_with_the_session(
    make_artifact: MakeArtifact, repository: Path
) -> None:
    subprocess.run([sys.executable, "-c", LEAN, make_artifact()], cwd=repository, check=True)
