"""TensorRT-RTX reads the graphs that are meant for TensorRT. Its builder needs no GPU."""

from __future__ import annotations

from typing import Any

import pytest

trt: Any = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")


class Parsed:
    """Network and builder of a graph; they must live as long as each other."""

    def __init__(self, path: str) -> None:
        self.logger = trt.Logger(trt.Logger.ERROR)
        self.builder = trt.Builder(self.logger)
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self.network = self.builder.create_network(flags)
        self.parser = trt.OnnxParser(self.network, self.logger)
        self.accepted = self.parser.parse_from_file(path)
        self.errors = [str(self.parser.get_error(i)) for i in range(self.parser.num_errors)]


@pytest.mark.parametrize(
    "variant, options",
    [
        ("int8_pc_sym", {}),
        ("int8_pc_asym", {}),
        ("int4_g128", {}),
        ("int8_pc_sym", {"precision": "fp16"}),
    ],
)
def test_it_parses_the_tensorrt_graph(variant: str, options: dict[str, Any], exporter: Any) -> None:
    folder = exporter.artifact(variant, **options)
    parsed = Parsed(str(folder / "model.tensorrt.onnx"))
    assert parsed.accepted, parsed.errors
    network = parsed.network
    outputs = [network.get_output(i).name for i in range(network.num_outputs)]
    assert outputs == ["pose_enc", "depth", "depth_conf", "world_points", "world_points_conf"]
    image = network.get_input(0)
    assert (image.name, tuple(image.shape)) == ("images", (1, -1, 3, 56, 84))


def test_onnx_runtimes_graph_is_another(exporter: Any) -> None:
    """With zero points and a contrib operator: why there are two files."""
    parsed = Parsed(str(exporter.artifact("int8_pc_asym") / "model.onnx"))
    assert not parsed.accepted


@pytest.mark.slow
def test_it_builds_an_engine(exporter: Any) -> None:
    folder = exporter.artifact("int8_pc_sym", outputs=("pose",))
    parsed = Parsed(str(folder / "model.tensorrt.onnx"))
    assert parsed.accepted, parsed.errors
    config = parsed.builder.create_builder_config()
    profile = parsed.builder.create_optimization_profile()
    shapes = [(1, frames, 3, 56, 84) for frames in (1, 2, 5)]
    profile.set_shape("images", *shapes)
    config.add_optimization_profile(profile)
    engine = parsed.builder.build_serialized_network(parsed.network, config)
    assert engine is not None
    assert engine.nbytes > 10_000
