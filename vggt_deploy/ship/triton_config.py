"""`config.pbtxt` of one model: Triton's ModelConfig message as protobuf text.

What the ONNX Runtime back end can be told is less than what our session tells ONNX Runtime: of the
session's configuration entries it passes on one, and it can't switch a single optimizer off. Where
an artifact needs that, all graph optimizations are switched off (`level: 2`), so that what runs is
the graph as it was written: the numbers are as meant, and it is slower. What needs an optimizer to
compute what it should is refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from vggt_deploy.errors import UsageError
from vggt_deploy.records import GraphRecord, Manifest
from vggt_deploy.ship.contract import TensorContract, contract
from vggt_deploy.ship.fit import frames_text

# Keys of SessionOptions' configuration that the back end hands to ONNX Runtime.
PASSED_ON = frozenset({"session.use_device_allocator_for_initializers"})
# How MatMulNBits rounds activations. Without optimizations there is no MatMulNBits.
_ACCURACY_LEVEL = "session.qdq_matmulnbits_accuracy_level"
_OFF = 2  # ORT_DISABLE_ALL, in the back end's own numbers


@dataclass(frozen=True)
class ModelConfig:
    """What goes into config.pbtxt, and which files go into the version folder.

    files: name in the artifact -> name in the version folder
    graph_level: None leaves the back end's default, which is all optimizations
    """

    name: str
    platform: str
    filename: str
    input: TensorContract
    outputs: tuple[TensorContract, ...]
    instances: int
    kind: str
    files: dict[str, str]
    profiles: tuple[str, ...] = ()
    parameters: dict[str, str] = field(default_factory=dict)
    graph_level: int | None = None
    notes: tuple[str, ...] = ()


def model_config(name: str, manifest: Manifest, *, instances: int, device: str) -> ModelConfig:
    """The configuration of an artifact, or a UsageError that says why Triton can't serve it."""
    if device not in ("gpu", "cpu"):
        raise UsageError(f"unknown device {device!r}", "use gpu or cpu")
    if manifest.engine is not None:
        return _engine_config(name, manifest, instances, device)
    return _onnx_config(name, manifest, instances, device)


def _engine_config(name: str, manifest: Manifest, instances: int, device: str) -> ModelConfig:
    engine = manifest.engine
    assert engine is not None
    if engine.runtime != "tensorrt":
        raise UsageError(
            f"{name} is an engine of TensorRT-RTX, for which Triton has no back end",
            "build it with --runtime tensorrt on the server's GPU, or serve the ONNX artifact",
        )
    if engine.stripped:
        raise UsageError(
            f"{name} is an engine without weights, and Triton does not refit",
            "build it without --strip",
        )
    if device == "cpu":
        raise UsageError(f"{name} is a TensorRT engine, which needs a GPU", "leave device out")
    profiles = tuple(str(index) for index in range(len(engine.profiles)))
    frames = ", ".join(map(frames_text, engine.profiles))
    targets = ", ".join(engine.compute_capabilities)
    notes = [
        f"needs TensorRT {engine.runtime_version} and compute capability {targets} in the server",
        f"takes {frames} pictures",
    ]
    if "VERSION_COMPATIBLE" in engine.flags:
        notes.append(
            "version compatible: other versions of TensorRT load it with "
            "--backend-config=tensorrt,version-compatible=true; it then runs code from the engine"
        )
    made = contract(manifest)
    # One execution context per profile; each is to hold what its own profile needs, not the most.
    parameters = (
        {"execution_context_allocation_strategy": "ON_PROFILE_CHANGE"} if len(profiles) > 1 else {}
    )
    return ModelConfig(
        name=name,
        platform="tensorrt_plan",
        filename="model.plan",
        input=made.input,
        outputs=made.outputs,
        instances=instances,
        kind="KIND_GPU",
        files={engine.file: "model.plan"},
        profiles=profiles if len(profiles) > 1 else (),
        parameters=parameters,
        notes=tuple(notes),
    )


def _onnx_config(name: str, manifest: Manifest, instances: int, device: str) -> ModelConfig:
    graph = manifest.graphs.get("onnxruntime")
    if graph is None:
        raise UsageError(f"{name} has no graph for ONNX Runtime", "export it again")
    level, notes = _graph_level(name, manifest, graph)
    parameters = {k: v for k, v in graph.session_options.items() if k in PASSED_ON}
    if instances > 1:
        # One session runs several requests at once; a session each would load the weights again.
        parameters["share_session_between_instances"] = "true"
    others = {record.file for record in manifest.graphs.values()} - {graph.file}
    made = contract(manifest)
    return ModelConfig(
        name=name,
        platform="onnxruntime_onnx",
        filename=graph.file,
        input=made.input,
        outputs=made.outputs,
        instances=instances,
        kind="KIND_GPU" if device == "gpu" else "KIND_CPU",
        # The graph names its weights file, so every file keeps its name.
        files={file: file for file in manifest.files if file not in others},
        parameters=parameters,
        graph_level=level,
        notes=(f"takes {frames_text(manifest.frames)} pictures", *notes),
    )


def _graph_level(
    name: str, manifest: Manifest, graph: GraphRecord
) -> tuple[int | None, tuple[str, ...]]:
    """The back end's optimization level under which the graph computes what it was made for."""
    options = {k: v for k, v in graph.session_options.items() if k not in PASSED_ON}
    four_bit = any(label.startswith("int4") for label in manifest.layers.quantized.values())
    accuracy = options.pop(_ACCURACY_LEVEL, None)
    if accuracy == "4" and four_bit:
        raise UsageError(
            f"{name} has 4-bit weights and dynamic activations, which only an optimizer setting "
            "that Triton can't pass on makes 8 bit",
            "export it with --activations float, or another scheme",
        )
    if options:
        raise UsageError(
            f"{name} needs ONNX Runtime settings that Triton can't pass on: {', '.join(options)}",
            "serve another scheme, or a TensorRT engine",
        )
    reasons = []
    if graph.disabled_optimizers:
        reasons.append(f"{', '.join(graph.disabled_optimizers)} must be off")
    if accuracy is not None:
        # Weights of 8 bit become MatMulNBits as well as those of 4.
        reasons.append(f"{_ACCURACY_LEVEL} must be {accuracy}")
    if not reasons:
        return None, ()
    note = (
        f"graph optimizations are off (level {_OFF}): {' and '.join(reasons)}, which Triton's ONNX "
        "Runtime back end can't be told. Results are those of `vggt-deploy run` up to rounding, "
        "and take longer; a TensorRT engine has no such limit"
    )
    return _OFF, (note,)


def render(config: ModelConfig) -> str:
    """Protobuf text of Triton's ModelConfig. No dynamic_batching block: it is off."""
    lines = [
        f"name: {_text(config.name)}",
        f"platform: {_text(config.platform)}",
        "max_batch_size: 0",
        f"default_model_filename: {_text(config.filename)}",
        "version_policy { latest { num_versions: 1 } }",
        *_tensor("input", config.input),
        *(line for tensor in config.outputs for line in _tensor("output", tensor)),
        "instance_group {",
        f"  count: {config.instances}",
        f"  kind: {config.kind}",
        *(f"  profile: {_text(profile)}" for profile in config.profiles),
        "}",
    ]
    if config.graph_level is not None:
        lines.append(f"optimization {{ graph {{ level: {config.graph_level} }} }}")
    for key, value in config.parameters.items():
        lines.append(f"parameters {{ key: {_text(key)} value {{ string_value: {_text(value)} }} }}")
    return "\n".join(lines) + "\n"


def _tensor(block: str, tensor: TensorContract) -> list[str]:
    dims = ", ".join(str(_dim(size)) for size in tensor.shape)
    return [
        f"{block} {{",
        f"  name: {_text(tensor.name)}",
        "  data_type: TYPE_FP32",
        f"  dims: [ {dims} ]",
        "}",
    ]


def _dim(size: Any) -> int:
    return -1 if size == "S" else int(size)


def _text(value: str) -> str:
    """A protobuf text string; JSON's escapes are among its own for what names can hold."""
    return json.dumps(value)
