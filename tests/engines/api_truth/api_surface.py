"""What a TensorRT module offers, as JSON on stdout: `python api_surface.py tensorrt_bindings`.

Read from pybind11's docstrings, which hold argument names and types. Runs in an interpreter of its
own: two versions can't be imported into one.

{"version", "names": [...], "classes": {"Builder": {"enum": null or [members],
 "methods": {name: [[parameters, returns], ...]}, "properties": {name: [type, writable]}}}}

A parameter is [name, has a default]. A method whose docstring has no signature has no overloads.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from typing import Any

_OPEN, _CLOSE = "([{<", ")]}>"


def split(text: str) -> list[str]:
    """At the commas outside brackets."""
    parts, depth, start = [], 0, 0
    for at, letter in enumerate(text):
        depth += (letter in _OPEN) - (letter in _CLOSE)
        if letter == "," and depth == 0:
            parts.append(text[start:at].strip())
            start = at + 1
    return [part for part in [*parts, text[start:].strip()] if part]


def overloads(doc: str | None, name: str) -> list[Any]:
    """[[parameters, returns], ...] without self."""
    found = []
    for line in (doc or "").splitlines():
        match = re.fullmatch(rf"(?:\d+\. )?{re.escape(name)}\((.*)\) -> (.+)", line.strip())
        if match is None or match[1] == "*args, **kwargs":
            continue
        parameters = [
            [part.partition(":")[0].strip(), "=" in part]
            for part in split(match[1])
            if part.partition(":")[0].strip() not in ("self", "*", "/")
        ]
        found.append([parameters, short(match[2])])
    return found


def short(name: str) -> str:
    """tensorrt_bindings.tensorrt.IBuilder -> IBuilder, also inside list[...]."""
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z])", "", name.strip())


def describe(cls: type) -> dict[str, Any]:
    """One class; inherited members are its own."""
    members = getattr(cls, "__members__", None)
    enum = sorted(members) if isinstance(members, dict) else None
    methods: dict[str, Any] = {"__init__": overloads(cls.__init__.__doc__, "__init__")}
    if "__getitem__" in dir(cls):
        methods["__getitem__"] = overloads(cls.__getitem__.__doc__, "__getitem__")  # type: ignore[attr-defined]
    properties: dict[str, Any] = {}
    for name in dir(cls):
        if name.startswith("_") or (enum and name in enum):
            continue
        value = getattr(cls, name)
        if isinstance(value, property):
            match = re.search(r"\) -> (.+)", (value.fget and value.fget.__doc__) or "")
            properties[name] = [short(match[1]) if match else None, value.fset is not None]
        elif callable(value) and not isinstance(value, type):
            methods[name] = overloads(value.__doc__, name)
        else:
            properties[name] = [None, True]
    return {"enum": enum, "methods": methods, "properties": properties}


def classes(module: Any, prefix: str = "", depth: int = 0) -> dict[str, Any]:
    """Every class of the module, and the classes inside them as Outer.Inner."""
    found: dict[str, Any] = {}
    for name in dir(module):
        value = getattr(module, name)
        if isinstance(value, type) and not name.startswith("_"):
            found[prefix + name] = describe(value)
            if depth < 1:
                found |= classes(value, f"{prefix}{name}.", depth + 1)
    return found


def main() -> None:
    module = importlib.import_module(sys.argv[1])
    surface = {
        "version": module.__version__,
        "names": [name for name in dir(module) if not name.startswith("__")] + ["__version__"],
        "classes": classes(module),
    }
    json.dump(surface, sys.stdout)


if __name__ == "__main__":
    main()
