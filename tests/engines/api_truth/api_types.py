"""What the reader knows of an expression, what it notes, and whether a version offers that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Surface = Mapping[str, Any]
RTX, ENTERPRISE = "tensorrt-rtx", "tensorrt"


@dataclass(frozen=True)
class Type:
    """kind: module, class, object, list, tuple, method (of a class), own (class of ours),
    own class (itself), function (of ours), words (constants: the names that a string may be).
    """

    kind: str
    name: str = ""
    parts: tuple[Type | None, ...] = ()


@dataclass(frozen=True)
class Use:
    """One use of the API. `owner` is a class, or "" for the module.

    arguments: number of positional ones and the keywords of a call; None if it is not called
    writes: an attribute is assigned
    overrides: number of arguments of our method that overrides it
    asked: has_member or hasattr stands in the same function
    only: RTX or ENTERPRISE, if it runs in no other
    """

    where: str
    owner: str
    name: str
    arguments: tuple[int, tuple[str, ...]] | None = None
    writes: bool = False
    overrides: int | None = None
    asked: bool = False
    only: str | None = None


def problem(use: Use, surface: Surface) -> str | None:
    """Why this version does not offer what is used, or None."""
    what = f"{use.where}: {use.owner + '.' if use.owner else ''}{use.name}"
    if not use.owner:
        known = use.name in surface["names"] or use.name in surface["classes"]
        return None if known else f"{what} does not exist"
    cls = surface["classes"].get(use.owner)
    if cls is None:
        return f"{what}: the class does not exist"
    if use.name in (cls["enum"] or ()) or f"{use.owner}.{use.name}" in surface["classes"]:
        return f"{what} is not to be called" if use.arguments is not None else None
    if use.name in cls["properties"]:
        writable = cls["properties"][use.name][1]
        return f"{what} can't be written" if use.writes and not writable else None
    if use.name not in cls["methods"]:
        return f"{what} does not exist"
    if use.writes:
        return f"{what} is a method"
    overloads = cls["methods"][use.name]
    if use.overrides is not None:
        counts = {len(parameters) for parameters, _ in overloads}
        return None if use.overrides in counts else f"{what} takes {counts}, not {use.overrides}"
    if use.arguments is None or not overloads or any(_fits(use, p) for p, _ in overloads):
        return None
    given = f"{use.arguments[0]} arguments and {list(use.arguments[1])}"
    return f"{what} does not take {given}: {[parameters for parameters, _ in overloads]}"


def _fits(use: Use, parameters: Sequence[Sequence[Any]]) -> bool:
    assert use.arguments is not None
    count, keywords = use.arguments
    if count > len(parameters):
        return False
    rest = dict(parameters[count:])
    if not set(keywords) <= set(rest):
        return False
    return all(has_default or name in keywords for name, has_default in rest.items())
