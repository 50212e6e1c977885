"""What TensorRT says about the layers of an engine: two spellings, one reading.

The builder logs, with detailed verbosity and a VERBOSE logger, one message that begins "Layers:":

    Name: a/MatMul_myl0_5, LayerType: gemm, Inputs: [ { Name: x, Dimensions: [-1,32],
    Datatype: Int8, Format: (Linear) Row major linear format }], Constants: [ ... ],
    Outputs: [ ... ], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: a/MatMul][ONNX Layer: ...]

(one line per layer). The engine inspector gives the same as JSON, on a GPU. TensorRT before 11
joins type and format ("Format/Datatype": "Row major Int8 format"), and lists weights of
convolutions and fully connected layers as {"Weights": {"Type": "Int8", "Count": 131072}}.

Samples of TensorRT 10 that this was written from: its developer guide, and layer lists in public
reports of its users (NVIDIA/TensorRT issues 4020 and 4397).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from vggt_deploy.errors import BuildError

RECORD_BEGIN = "Layers:\n"
_RECORD_END = re.compile(r"\n\n(?:I/O Tensors|Bindings):")
_STRUCTURE = re.compile(r"[\[\]{}]|, (?=[A-Z][\w/]*: )")

# TensorRT 11 and TensorRT-RTX have the first, TensorRT 10 the joined one.
_TYPE_FIELDS = ("Datatype", "DataType", "Format/Datatype")
# What TensorRT 10 writes in place of types where shapes are dynamic and no context was given.
_NO_TYPES = "N/A due to dynamic shapes"

# Longest first: "BFloat16" contains "Float", "UInt8" contains "Int8".
_TYPES = (
    ("bfloat16", ("bfloat16", "bf16")),
    ("half", ("half", "fp16", "float16")),
    ("fp8", ("fp8",)),
    ("fp4", ("fp4",)),
    ("float", ("float", "fp32")),
    ("uint8", ("uint8",)),
    ("int8", ("int8",)),
    ("int4", ("int4",)),
    ("int32", ("int32",)),
    ("int64", ("int64",)),
    ("bool", ("bool",)),
)


@dataclass(frozen=True)
class EngineTensor:
    """An operand of a layer. dims: -1 where it depends on the input; dtype: "int8", "half", ..., or
    "unknown".
    """

    name: str
    dims: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int | None:
        """Number of elements, None where it depends on the input."""
        return None if any(size < 0 for size in self.dims) else prod(self.dims)


@dataclass(frozen=True)
class EngineLayer:
    """A kernel of the engine, and the nodes of the ONNX graph that it stands for."""

    name: str
    kind: str
    inputs: tuple[EngineTensor, ...]
    constants: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    tactic: str
    nodes: tuple[str, ...]


def parse_layer_record(text: str) -> tuple[EngineLayer, ...]:
    """The layers of the builder's detailed record; `text` may hold other log lines around it.

    Raises:
        BuildError: there is no such record in it, or it has another form.
    """
    begin = text.find(RECORD_BEGIN)
    if begin < 0:
        raise _unreadable("the builder logged no layer record")
    body = text[begin + len(RECORD_BEGIN) :]
    if end := _RECORD_END.search(body):
        body = body[: end.start()]
    return tuple(_layer_from_line(line) for line in body.splitlines() if line.strip())


def parse_inspector(text: str) -> tuple[EngineLayer, ...]:
    """The layers of `IEngineInspector.get_engine_information(JSON)`, of TensorRT 10 or 11.

    Raises:
        BuildError: not such a JSON, or one of an engine built without detailed verbosity.
    """
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError) as error:
        raise _unreadable(f"the inspector's answer is no JSON ({error})") from error
    layers = value.get("Layers") if isinstance(value, dict) else None
    if not isinstance(layers, list):
        raise _unreadable("the inspector's answer has no list of layers")
    if any(isinstance(layer, str) for layer in layers):
        raise _unreadable("the engine holds only the names of its layers")
    found = tuple(_layer_from_json(layer) for layer in layers)
    if _NO_TYPES in text and not any(t.dtype != "unknown" for one in found for t in one.inputs):
        raise BuildError(
            "the inspector names no types, as the engine has dynamic shapes",
            "give it an execution context whose input shapes are set",
        )
    return found


def _unreadable(what: str) -> BuildError:
    return BuildError(
        f"{what}, so what the engine computes in is not known",
        "build it with detailed profiling verbosity, as `vggt-deploy build` does; if it was, this "
        "version of TensorRT writes another form than 10.3 to 11.4 do: report it",
    )


def _layer_from_line(line: str) -> EngineLayer:
    fields = _fields(line.strip())
    if "Name" not in fields or "LayerType" not in fields:
        raise _unreadable(f"a line of the layer record reads {line.strip()[:120]!r}")
    lists = {
        key: tuple(_tensor(_fields(item)) for item in _items(fields.get(key, "[]")))
        for key in ("Inputs", "Constants", "Outputs")
    }
    return EngineLayer(
        name=fields["Name"],
        kind=fields["LayerType"],
        inputs=lists["Inputs"],
        constants=lists["Constants"],
        outputs=lists["Outputs"],
        tactic=fields.get("TacticName", ""),
        nodes=onnx_nodes(fields.get("Metadata", "")),
    )


def _layer_from_json(layer: Any) -> EngineLayer:
    if not isinstance(layer, dict) or "Name" not in layer:
        raise _unreadable("an entry of the inspector's layers has no name")
    lists = {
        key: [_tensor(item) for item in layer.get(key) or () if isinstance(item, dict)]
        for key in ("Inputs", "Constants", "Outputs")
    }
    weights = layer.get("Weights")
    if isinstance(weights, dict) and weights.get("Count"):
        dims = (int(weights["Count"]),)
        lists["Constants"].append(EngineTensor("weights", dims, _dtype(str(weights.get("Type")))))
    return EngineLayer(
        name=str(layer["Name"]),
        kind=str(layer.get("LayerType", "")),
        inputs=tuple(lists["Inputs"]),
        constants=tuple(lists["Constants"]),
        outputs=tuple(lists["Outputs"]),
        tactic=str(layer.get("TacticName", "")),
        nodes=onnx_nodes(str(layer.get("Metadata", ""))),
    )


def _tensor(fields: dict[str, Any]) -> EngineTensor:
    dims = fields.get("Dimensions", ())
    if isinstance(dims, str):
        dims = re.findall(r"-?\d+", dims)
    spelled = next((fields[key] for key in _TYPE_FIELDS if fields.get(key)), "")
    return EngineTensor(
        str(fields.get("Name", "")), tuple(int(size) for size in dims), _dtype(str(spelled))
    )


def _dtype(spelled: str) -> str:
    lowered = spelled.lower()
    for name, spellings in _TYPES:
        if any(spelling in lowered for spelling in spellings):
            return name
    return "unknown"


def onnx_nodes(metadata: str) -> tuple[str, ...]:
    """The names in "[ONNX Layer: a][ONNX Layer: b]"; TensorRT 10 has control characters between."""
    return tuple(part.rpartition("]")[0] for part in metadata.split("[ONNX Layer: ")[1:])


def _fields(text: str) -> dict[str, str]:
    """Name: a, Dimensions: [1,2], Format: b -> its parts; commas inside brackets don't split."""
    fields: dict[str, str] = {}
    for part in _split(text):
        key, _, value = part.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields


def _split(text: str) -> Iterator[str]:
    """The parts of `text` between the separators that stand outside brackets."""
    depth = begin = 0
    for mark in _STRUCTURE.finditer(text):
        if mark[0] in "[{":
            depth += 1
        elif mark[0] in "]}":
            depth -= 1
        elif depth == 0:
            yield text[begin : mark.start()]
            begin = mark.end()
    yield text[begin:]


def _items(text: str) -> Iterator[str]:
    """The insides of the {...} of a list of tensors."""
    depth = begin = 0
    for mark in re.finditer(r"[{}]", text):
        if mark[0] == "{":
            if depth == 0:
                begin = mark.end()
            depth += 1
        else:
            depth -= 1
            if depth == 0:
                yield text[begin : mark.start()].strip()
