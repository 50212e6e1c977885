"""The smallest ONNX model, to try a runtime with: made without the onnx package."""

from __future__ import annotations


def one_node_model() -> bytes:
    """A serialized ONNX model, y = Relu(x) with x float [1], made without the onnx package.

    Protocol buffers by hand: a field is (number << 3 | wire type), then a varint (type 0) or a
    length and bytes (type 2). Numbers as in onnx.proto.
    """
    tensor_type = _varint(1, 1) + _bytes(2, _bytes(1, _varint(1, 1)))  # float, shape [1]
    value_type = _bytes(2, _bytes(1, tensor_type))
    node = _bytes(1, b"x") + _bytes(2, b"y") + _bytes(4, b"Relu")
    graph = _bytes(1, node) + _bytes(2, b"probe")
    graph += _bytes(11, _bytes(1, b"x") + value_type) + _bytes(12, _bytes(1, b"y") + value_type)
    opset = _bytes(1, b"") + _varint(2, 14)
    return _varint(1, 8) + _bytes(7, graph) + _bytes(8, opset)


def _varint(field: int, value: int) -> bytes:
    return bytes((field << 3, value))


def _bytes(field: int, value: bytes) -> bytes:
    return bytes((field << 3 | 2, len(value))) + value
