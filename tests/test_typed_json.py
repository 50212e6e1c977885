"""Strict JSON into dataclasses: what comes back is what went in, and anything else is refused."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggt_deploy.typed_json import decode, parse


@dataclass(frozen=True)
class Inner:
    name: str
    size: int


@dataclass(frozen=True)
class Outer:
    kind: Literal["a", "b"]
    inner: Inner
    many: tuple[Inner, ...]
    scales: dict[str, float]
    flag: bool
    maybe: int | None
    anything: Any = None
    optional: tuple[str, ...] = field(default_factory=tuple)


class Refused(Exception):
    pass


def read(value: object) -> object:
    return decode(Outer, value, "outer", Refused)


inners = st.builds(Inner, st.text(), st.integers())
outers = st.builds(
    Outer,
    kind=st.sampled_from(["a", "b"]),
    inner=inners,
    many=st.lists(inners, max_size=3).map(tuple),
    scales=st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False)),
    flag=st.booleans(),
    maybe=st.none() | st.integers(),
    anything=st.none() | st.lists(st.integers()),
    optional=st.lists(st.text(), max_size=3).map(tuple),
)


@given(outers)
def test_there_and_back(value: Outer) -> None:
    assert read(parse(json.dumps(dataclasses.asdict(value)))) == value


SOUND: dict[str, Any] = {
    "kind": "a",
    "inner": {"name": "x", "size": 1},
    "many": [],
    "scales": {"s": 1},
    "flag": True,
    "maybe": None,
}


def test_defaults_and_whole_numbers_as_floats() -> None:
    value = read(SOUND)
    assert isinstance(value, Outer)
    assert (value.anything, value.optional) == (None, ())
    assert type(value.scales["s"]) is float


@pytest.mark.parametrize(
    "change, said",
    [
        ({"kind": "c"}, r"outer\.kind is 'c', expected one of a, b"),
        ({"inner": []}, r"outer\.inner is list, expected an object"),
        ({"inner": {"name": "x"}}, r"outer\.inner lacks the field 'size'"),
        ({"inner": {"name": "x", "size": True}}, r"outer\.inner\.size is bool, expected int"),
        ({"many": [{"name": 1, "size": 1}]}, r"outer\.many\[0\]\.name is int, expected str"),
        ({"many": {}}, r"outer\.many is dict, expected tuple"),
        ({"scales": {"s": "1"}}, r"outer\.scales\[s\] is str, expected float"),
        ({"scales": {"s": True}}, r"outer\.scales\[s\] is bool, expected float"),
        ({"flag": 1}, r"outer\.flag is int, expected bool"),
        ({"maybe": 1.5}, r"outer\.maybe is float, expected int"),
        ({"more": 1}, r"outer has an unknown field 'more'"),
    ],
)
def test_anything_else_is_refused_by_its_place(change: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused, match=said):
        read({**SOUND, **change})


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', "[NaN]", "[Infinity]", "[-Infinity]", "{"])
def test_what_json_readers_often_let_pass(text: str) -> None:
    with pytest.raises(ValueError, match=r"twice|not a JSON number|Expecting"):
        parse(text)
