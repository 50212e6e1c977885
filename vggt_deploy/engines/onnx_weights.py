"""Names and sizes of the weights of an ONNX file, read without the onnx package or the weights.

An edge device has no onnx, and its runtimes don't tell. So this walks the protobuf, of which it
needs four messages and a dozen field numbers (onnx.proto):

    ModelProto.graph 7    GraphProto.node 1, .initializer 5    NodeProto.attribute 5
    AttributeProto.g 6, .graphs 11    TensorProto.dims 1, .data_type 2, .name 8
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

from vggt_deploy.errors import ArtifactError

_BITS = {
    **dict.fromkeys((21, 22, 23), 4),  # UINT4, INT4, FLOAT4E2M1
    **dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), 8),  # UINT8, INT8, BOOL, FLOAT8...
    **dict.fromkeys((4, 5, 10, 16), 16),  # UINT16, INT16, FLOAT16, BFLOAT16
    **dict.fromkeys((1, 6, 12), 32),  # FLOAT, INT32, UINT32
    **dict.fromkeys((7, 11, 13, 14), 64),  # INT64, DOUBLE, UINT64, COMPLEX64
}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MOST_VARINT_BITS = 64


@dataclass(frozen=True)
class StoredWeight:
    """An initializer: its name, and its bytes with 4-bit types packed."""

    name: str
    bytes: int


def stored_weights(path: Path) -> tuple[StoredWeight, ...]:
    """Every initializer of the graph and its subgraphs, once per name.

    Raises:
        ArtifactError: the file can't be read, or is no ONNX graph.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{path} can't be read ({error.strerror})", "check the path and its permissions"
        ) from error
    found: dict[str, int] = {}
    try:
        for number, graph in _fields(memoryview(data)):
            if number == 7:
                for name, size in _initializers(_message(graph)):
                    found[name] = size
    except (_NotProtobufError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"{path} is no ONNX graph: {error}", "copy the artifact again"
        ) from error
    return tuple(StoredWeight(name, size) for name, size in found.items())


def packed_bytes(path: Path) -> int:
    """Bytes of all weights of the graph, each once.

    Raises:
        ArtifactError: see `stored_weights`.
    """
    return sum(weight.bytes for weight in stored_weights(path))


class _NotProtobufError(Exception):
    """The bytes do not follow the wire format, or not that of these messages."""


def _initializers(graph: memoryview) -> Iterator[tuple[str, int]]:
    for number, value in _fields(graph):
        if number == 5:
            yield _tensor(_message(value))
        elif number == 1:
            for inner in _subgraphs(_message(value)):
                yield from _initializers(inner)


def _subgraphs(node: memoryview) -> Iterator[memoryview]:
    for number, attribute in _fields(node):
        if number == 5:
            for field, graph in _fields(_message(attribute)):
                if field in (6, 11):
                    yield _message(graph)


def _tensor(tensor: memoryview) -> tuple[str, int]:
    name, kind, dims = "", 0, []
    for number, value in _fields(tensor):
        if number == 1 and isinstance(value, int):
            dims.append(value)
        elif number == 1:
            dims.extend(_packed(_message(value)))
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 8:
            name = bytes(_message(value)).decode()
    if kind not in _BITS:
        raise _NotProtobufError(f"{name or 'a tensor'} has the unknown type {kind}")
    return name, (prod(dims) * _BITS[kind] + 7) // 8


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise _NotProtobufError("a number where a message is expected")
    return value


def _packed(data: memoryview) -> Iterator[int]:
    position = 0
    while position < len(data):
        number, position = _varint(data, position)
        yield number


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of one message: number and value, nested messages as bytes."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        wire = tag & 7
        value: int | memoryview
        if wire == _VARINT:
            value, position = _varint(data, position)
        elif wire == _BYTES:
            length, position = _varint(data, position)
            value, position = _take(data, position, length)
        elif wire in (_FIXED64, _FIXED32):
            value, position = _take(data, position, 8 if wire == _FIXED64 else 4)
        else:
            raise _NotProtobufError(f"wire type {wire} at byte {position}")
        yield tag >> 3, value


def _take(data: memoryview, position: int, length: int) -> tuple[memoryview, int]:
    end = position + length
    if end > len(data):
        raise _NotProtobufError("it is cut short")
    return data[position:end], end


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, _MOST_VARINT_BITS, 7):
        if position >= len(data):
            raise _NotProtobufError("it is cut short")
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
    raise _NotProtobufError("a number without end")
