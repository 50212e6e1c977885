"""JSON files that are frozen dataclasses, field by field, read strictly.

    value = parse(text)                                  # no duplicate keys, no NaN
    record = decode(Record, value, "record", refuse)     # no unknown or missing field, exact types

`refuse` turns what is wrong, in words, into the exception that the kind of file calls for.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, Union

Refuse = Callable[[str], Exception]


def parse(text: str) -> object:
    """Plain JSON values.

    Raises:
        ValueError: not JSON, a key given twice, NaN or infinity.
        RecursionError: nested too deeply.
    """
    value: object = json.loads(
        text, parse_constant=_refuse_constant, object_pairs_hook=_refuse_duplicates
    )
    return value


def decode(kind: Any, value: object, where: str, refuse: Refuse) -> object:
    """Value of type `kind` from plain JSON.

    Supports what the records of this package are made of: dataclasses, Literal, X | None, X | Y,
    tuple[X, ...], dict[str, X], Any, str, int, float and bool.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _decode_dataclass(kind, value, where, refuse)
    if origin in (Union, types.UnionType):
        return _decode_union(arguments, value, where, refuse)
    if origin is Literal:
        if value in arguments:
            return value
        raise refuse(f"{where} is {value!r}, expected one of {', '.join(arguments)}")
    if origin is tuple and isinstance(value, list):
        return tuple(
            decode(arguments[0], item, f"{where}[{index}]", refuse)
            for index, item in enumerate(value)
        )
    if origin is dict and isinstance(value, dict):
        return {k: decode(arguments[1], v, f"{where}[{k}]", refuse) for k, v in value.items()}
    # JSON has one kind of number: 1.0 may come back as 1.
    if kind is float and type(value) is int:
        return float(value)
    # bool is an int to isinstance, so the types are compared.
    if origin is None and type(value) is kind:
        return value
    expected = getattr(origin or kind, "__name__", str(kind))
    raise refuse(f"{where} is {type(value).__name__}, expected {expected}")


def _decode_union(arguments: tuple[Any, ...], value: object, where: str, refuse: Refuse) -> object:
    """The first alternative that fits; with one alone, what is wrong with that one is said."""
    if value is None and type(None) in arguments:
        return None
    inner = [argument for argument in arguments if argument is not type(None)]
    if len(inner) == 1:
        return decode(inner[0], value, where, refuse)
    for one in inner:
        try:
            return decode(one, value, where, _Unfit)
        except _Unfit:
            continue
    raise refuse(f"{where} is {type(value).__name__}, which none of its types allows")


class _Unfit(Exception):
    """One alternative of several does not fit."""


def _decode_dataclass(kind: type, value: object, where: str, refuse: Refuse) -> object:
    if not isinstance(value, dict):
        raise refuse(f"{where} is {type(value).__name__}, expected an object")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := sorted(set(value) - set(fields)):
        raise refuse(f"{where} has an unknown field {unknown[0]!r}")
    required = {
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - set(value)):
        raise refuse(f"{where} lacks the field {missing[0]!r}")
    hints = typing.get_type_hints(kind)
    return kind(**{k: decode(hints[k], v, f"{where}.{k}", refuse) for k, v in value.items()})


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is given twice")
    return result
