"""What a reader of a question may rely on: `question` of a report is plain JSON.

The question holds more than this, whatever can change a number; what stands here is what texts,
pages and comparisons of reports read.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from vggt_deploy.typed_json import Refuse, decode


@dataclass(frozen=True)
class _Model:
    spec: str
    config: str
    kind: Literal["file", "package", "hub", "random"]
    revision: str | None
    sha256: str | None


@dataclass(frozen=True)
class _Images:
    mode: str
    frames: int
    height: int
    width: int


@dataclass(frozen=True)
class _File:
    name: str
    sha256: str


@dataclass(frozen=True)
class _Scene:
    name: str
    folder: str
    files: tuple[_File, ...]
    skipped: tuple[str, ...]
    pixels_sha256: str
    truth: dict[str, Any] | None


@dataclass(frozen=True)
class _Layers:
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    sensitive: tuple[str, ...]


@dataclass(frozen=True)
class _Calibration:
    images: dict[str, str]


@dataclass(frozen=True)
class _Device:
    name: str
    gpu: str | None


@dataclass(frozen=True)
class _Question:
    variants: tuple[str, ...]
    outputs: tuple[str, ...]
    precision: str | None
    warmup: int
    repeats: int
    threads: int
    verify: bool


_PARTS: dict[str, type] = {"model": _Model, "images": _Images, "layers": _Layers}
_OPTIONAL: dict[str, type] = {"calibration": _Calibration, "device": _Device}


def check_question(question: dict[str, Any], refuse: Refuse) -> None:
    """Nothing, or `refuse` of what is missing or of another type; what else is there may be."""
    _part(_Question, question, "question", refuse)
    for name, kind in (*_PARTS.items(), *_OPTIONAL.items()):
        if name not in question:
            raise refuse(f"question lacks the field {name!r}")
        if question[name] is not None or name not in _OPTIONAL:
            _part(kind, question[name], f"question.{name}", refuse)
    scenes = question.get("scenes")
    if not isinstance(scenes, list) or not scenes:
        raise refuse("question.scenes has no scene")
    for index, scene in enumerate(scenes):
        _part(_Scene, scene, f"question.scenes[{index}]", refuse)


def _part(kind: type, value: object, where: str, refuse: Refuse) -> None:
    """The fields of `kind` in an object that may have more."""
    if not isinstance(value, dict):
        raise refuse(f"{where} is {type(value).__name__}, expected an object")
    names = {item.name for item in fields(kind)}
    decode(kind, {k: v for k, v in value.items() if k in names}, where, refuse)
