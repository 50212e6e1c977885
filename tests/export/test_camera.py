"""The refinement loop: as a Loop and written out, against numpy and against each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from vggt_deploy.export.camera import attach_loop, attach_unrolled
from vggt_deploy.export.verify import probe_images as images_of

MAIN = """
g (float[f, 1, 4] x) => (float[f, 1, 4] camera_tokens, float[f, 1, 4] camera_normalised,
                         float[f, 1, 9] camera_pose, float[f, 1, 9] camera_total,
                         float[f, 1, 4] depth)
<float[1] val_0 = {2.0}, float[1, 1, 9] start = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9},
 float val_1 = {0.0}, int64[3] val_2 = {-1, 1, 1}, int64[1] val_3 = {2}> {
    camera_tokens = Mul (x, val_0)
    camera_normalised = Add (x, val_0)
    first = ReduceMean (x, val_3)
    nothing = Mul (first, val_1)
    camera_pose = Add (nothing, start)
    camera_total = Mul (camera_pose, val_1)
    depth = Identity (x)
}
"""
# Its constants have the names of the other graph's, and other values.
STEP = """
s (float[f, 1, 9] pose, float[f, 1, 4] tokens, float[f, 1, 4] normalised) => (float[f, 1, 9] delta)
<float[1] val_0 = {-0.5}, float val_1 = {0.25}, int64[1] val_3 = {2}> {
    a = ReduceMean (tokens, val_3)
    b = ReduceMax (normalised, val_3)
    half = Mul (pose, val_0)
    shifted = Add (half, val_1)
    scaled = Mul (shifted, a)
    delta = Sub (scaled, b)
}
"""


def reference(x: np.ndarray, iterations: int) -> np.ndarray:
    tokens, normalised = x * 2, x + 2
    pose = np.linspace(0.1, 0.9, 9, dtype=np.float32) * np.ones((len(x), 1, 1), np.float32)
    total = np.zeros_like(pose)
    for _ in range(iterations):
        a, b = tokens.mean(2, keepdims=True), normalised.max(2, keepdims=True)
        total = total + (pose * -0.5 + 0.25) * a - b
        pose = total
    total[..., 7:] = np.maximum(total[..., 7:], 0)
    return total.reshape(1, -1, 9)


@pytest.mark.parametrize("attach", [attach_loop, attach_unrolled])
@pytest.mark.parametrize("frames", [1, 3])
def test_both_forms_compute_the_refinement(
    attach: Any, frames: int, small_model: Any, runtime: Any
) -> None:
    main, step = small_model(MAIN), small_model(STEP)
    attach(main.graph, step.graph, 3)
    assert [value.name for value in main.graph.outputs] == ["pose_enc", "depth"]
    x = np.random.default_rng(frames).standard_normal((frames, 1, 4)).astype(np.float32)
    for optimize in (True, False):
        pose, depth = runtime.model(main, {"x": x}, optimize=optimize)
        np.testing.assert_allclose(pose, reference(x, 3), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(depth, x)
    for wrong in (reference(x, 2), reference(x, 4), reference(x[..., ::-1] * 1.1, 3)):
        assert not np.allclose(pose, wrong, rtol=1e-2)


def test_fields_of_view_are_positive_and_the_rest_is_not_touched(
    small_model: Any, runtime: Any
) -> None:
    x = np.ones((2, 1, 4), np.float32)  # the step subtracts 3 here
    main, step = small_model(MAIN), small_model(STEP)
    attach_loop(main.graph, step.graph, 1)
    pose, _ = runtime.model(main, {"x": x})
    assert (pose[..., :7] < 0).all()
    assert (pose[..., 7:] == 0).all()


@pytest.mark.parametrize("attach", [attach_loop, attach_unrolled])
def test_a_graph_that_does_not_begin_with_the_cameras_values_is_refused(
    attach: Any, small_model: Any
) -> None:
    main, step = small_model(MAIN), small_model(STEP)
    main.graph.outputs.reverse()
    with pytest.raises(ValueError, match="does not begin its outputs"):
        attach(main.graph, step.graph, 3)


@pytest.mark.parametrize("variant", ["fp32", "int8_pc_asym"])
def test_loop_and_unrolled_agree_on_the_network(
    variant: str, exporter: Any, opened: Any, runtime: Any
) -> None:
    folder = exporter.artifact(variant, outputs=("pose",))
    graphs = opened(folder).graphs
    loops = {target: sum(n.op_type == "Loop" for n in m.graph) for target, m in graphs.items()}
    assert loops == {"onnxruntime": 1, "tensorrt": 0}
    for frames in (1, 2, 5):
        images = images_of(frames, 56, 84)
        loop, unrolled = (
            runtime.artifact(folder, images, t)["pose_enc"] for t in ("onnxruntime", "tensorrt")
        )
        np.testing.assert_allclose(loop, unrolled, rtol=1e-4, atol=1e-5)
        assert np.abs(loop[0, :, :3]).max() > 1e-3


def test_unrolled_iterations_share_their_weights(exporter: Any, opened: Any) -> None:
    graph = opened(exporter.artifact("int8_pc_sym")).graphs["tensorrt"].graph
    shared = [v for n, v in graph.initializers.items() if n.startswith("camera_head.trunk")]
    integers = [value for value in shared if str(value.name).endswith(".q")]
    assert integers
    for value in integers:
        assert len(value.uses()) == 4
        assert isinstance(value.const_value, ir.ExternalTensor)
