"""The camera head's refinement, put behind the rest of the network.

    pose_0 = empty pose, total_0 = 0
    total_{i+1} = total_i + step(pose_i, tokens, normalised);  pose_{i+1} = total_{i+1}
    pose_enc = total_n with ReLU on the two fields of view

ONNX Runtime gets a Loop. Written out, four MatMuls read each weight, and ONNX Runtime fuses a
DequantizeLinear into MatMulNBits only where the integers have one reader: on VGGT-1B the 4-bit
camera head then dequantized 200 M weights four times in every inference, most of a forward pass. In
a loop body each weight has one reader and is packed once instead of four times.

TensorRT gets it written out: its builder fuses across iterations, and stores a shared weight once.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from vggt_deploy.export.trace import CAMERA_VALUES
from vggt_deploy.model.camera_head import LINEAR_ENTRIES, POSE_SIZE

Graph = ir.Graph


def attach_loop(main: Graph, step: Graph, iterations: int) -> None:
    """Consume CAMERA_VALUES in a Loop of `iterations` trips; its result becomes output pose_enc."""
    tokens, normalised, pose, total = _camera_values(main)
    shape, kind = pose.shape, ir.TensorType(ir.DataType.FLOAT)
    trip = ir.Value(name="trip", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.INT64))
    go_on = ir.Value(name="go_on", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL))
    pose_in = ir.Value(name="pose_in", shape=shape, type=kind)
    total_in = ir.Value(name="total_in", shape=shape, type=kind)
    body = Graph([trip, go_on, pose_in, total_in], [], nodes=[], name="camera_refinement")
    inputs = dict(zip(step.inputs, (pose_in, tokens, normalised), strict=True))
    delta = copy_nodes(step, body, inputs, "refinement/")
    total_out = _append(body, "Add", [total_in, delta], "total_out", shape)
    pose_out = _append(body, "Identity", [total_out], "pose_out", shape)
    go_on_out = _append(body, "Identity", [go_on], "go_on_out", ir.Shape([]), ir.DataType.BOOL)
    body.outputs.extend([go_on_out, pose_out, total_out])
    loop = ir.node(
        "Loop",
        [
            _constant(main, "camera_iterations", np.array(iterations, np.int64)),
            _constant(main, "camera_go_on", np.array(True)),
            pose,
            total,
        ],
        {"body": body},
        outputs=[
            ir.Value(name="camera_last_pose", shape=shape, type=kind),
            ir.Value(name="camera_raw_pose", shape=shape, type=kind),
        ],
        name="camera_head/Loop",
    )
    main.append(loop)
    _finish(main, loop.outputs[1])


def attach_unrolled(main: Graph, step: Graph, iterations: int) -> None:
    """Consume CAMERA_VALUES in `iterations` copies of the step that share their weights."""
    tokens, normalised, pose, _ = _camera_values(main)
    total: ir.Value | None = None
    for i in range(iterations):
        inputs = dict(zip(step.inputs, (pose, tokens, normalised), strict=True))
        delta = copy_nodes(step, main, inputs, f"iteration_{i}/")
        if total is None:
            total = delta
        else:
            total = _append(main, "Add", [total, delta], f"iteration_{i}/total", pose.shape)
        pose = total
    assert total is not None
    _finish(main, total)


def copy_nodes(
    source: Graph, target: Graph, inputs: Mapping[ir.Value, ir.Value], prefix: str
) -> ir.Value:
    """Append a copy of the nodes of `source` to `target`; returns the copy of its only output.

    `inputs` says what stands for the inputs of `source`. Weights are taken over under their own
    names and shared by all copies; small constants, values and nodes get a prefix, since both
    graphs were numbered from zero.
    """
    values: dict[ir.Value, ir.Value] = dict(inputs)
    for original, value in source.initializers.items():
        stored = isinstance(value.const_value, ir.ExternalTensor)
        name = original if stored else f"camera/{original}"
        if name not in target.initializers:
            shared = ir.Value(
                name=name, shape=value.shape, type=value.type, const_value=value.const_value
            )
            target.initializers.add(shared)
        values[value] = target.initializers[name]
    for node in source:
        outputs = []
        for output in node.outputs:
            copy = ir.Value(name=f"{prefix}{output.name}", shape=output.shape, type=output.type)
            values[output] = copy
            outputs.append(copy)
        target.append(
            ir.Node(
                node.domain,
                node.op_type,
                [None if value is None else values[value] for value in node.inputs],
                list(node.attributes.values()),
                outputs=outputs,
                name=f"camera_head/{prefix}{node.name}",
                metadata_props=dict(node.metadata_props),
            )
        )
    (result,) = source.outputs
    return values[result]


def _camera_values(main: Graph) -> list[ir.Value]:
    """Take CAMERA_VALUES off the outputs of the graph."""
    values = list(main.outputs[: len(CAMERA_VALUES)])
    if [value.name for value in values] != list(CAMERA_VALUES):
        raise ValueError(f"the graph does not begin its outputs with {CAMERA_VALUES}")
    del main.outputs[: len(CAMERA_VALUES)]
    return values


def _finish(main: Graph, raw: ir.Value) -> None:
    """pose_enc [1, frames, 9]: ReLU on the fields of view, only here and not in the loop."""
    assert raw.shape is not None
    frames = raw.shape[0]
    sizes = _constant(
        main, "pose_parts", np.array([LINEAR_ENTRIES, POSE_SIZE - LINEAR_ENTRIES], np.int64)
    )
    kind = ir.TensorType(ir.DataType.FLOAT)
    parts = ir.node(
        "Split",
        [raw, sizes],
        {"axis": -1},
        outputs=[ir.Value(name="pose_linear", type=kind), ir.Value(name="pose_fov_raw", type=kind)],
        name="camera_head/Split",
    )
    main.append(parts)
    linear, fov = parts.outputs
    linear.shape = ir.Shape([frames, 1, LINEAR_ENTRIES])
    fov.shape = ir.Shape([frames, 1, POSE_SIZE - LINEAR_ENTRIES])
    positive = _append(main, "Relu", [fov], "pose_fov", fov.shape)
    pose = _append(main, "Concat", [linear, positive], "pose_activated", raw.shape, axis=-1)
    shape = _constant(main, "shape_1_n_9", np.array([1, -1, POSE_SIZE], np.int64))
    output = _append(main, "Reshape", [pose, shape], "pose_enc", ir.Shape([1, frames, POSE_SIZE]))
    main.outputs.insert(0, output)


def _append(
    graph: Graph,
    op_type: str,
    inputs: list[ir.Value],
    name: str,
    shape: ir.Shape | None,
    dtype: ir.DataType = ir.DataType.FLOAT,
    **attributes: int,
) -> ir.Value:
    value = ir.Value(name=name, shape=shape, type=ir.TensorType(dtype))
    graph.append(ir.node(op_type, inputs, attributes, outputs=[value], name=f"camera_head/{name}"))
    return value


def _constant(graph: Graph, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
    if name not in graph.initializers:
        tensor = ir.tensor(array, name=name)
        graph.initializers.add(
            ir.Value(
                name=name,
                shape=ir.Shape(tensor.shape.numpy()),
                type=ir.TensorType(tensor.dtype),
                const_value=tensor,
            )
        )
    return graph.initializers[name]
