"""A recipe: what every layer becomes, as a TOML file that a person can read and change.

    name = "nano-9mb"
    activations = "float"                           # float, static or dynamic
    treatment = "w=mse+gptq"                        # the words of a label, or ""
    precision = "fp32"                              # of what is not integer

    [layers]                                        # the first line that fits a layer counts
    "camera_head.trunk.0.mlp.fc1" = "float"
    "camera_head.*" = "int8_pc_sym"
    "aggregator.*" = "int4_g128"
    "depth_head.*" = "int8_pc_sym"

A layer that no line fits stays float. A whole name is for that layer, whatever it is; a pattern
(`*` stands for any text) is for those of its layers that are quantized by default: see `plan`. Read
strictly: an unknown key, format or word, a key given twice and the name of a standard scheme are
UsageErrors here; a line that fits no layer of the model is one in `plan`.

The order of the lines has a meaning, and tomllib keeps it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from vggt_deploy import typed_json
from vggt_deploy.errors import UsageError
from vggt_deploy.quantize.schemes import (
    SCHEMES,
    Activations,
    Precision,
    Quantization,
    Scheme,
    WeightFormat,
    parse_format,
)
from vggt_deploy.quantize.treatment import parse_treatment

FLOAT = "float"
SUMMARY = "layers as a recipe names them"
MAX_RECIPE_BYTES = 4 << 20  # VGGT-1B has 400 layers; whatever is larger is no recipe
# What a scheme's name may be: it stands in labels before a "+", in file names and in manifests.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_PATTERN = re.compile(r"[A-Za-z0-9_.*?\[\]!-]{1,200}")


@dataclass(frozen=True)
class _File:
    """The file, field by field."""

    name: str
    layers: dict[str, str]
    activations: Activations = "float"
    treatment: str = ""
    precision: Precision = "fp32"
    summary: str = SUMMARY


def load_recipe(path: Path) -> Quantization:
    """Read a recipe file.

    Raises:
        UsageError: it can't be read, or is none.
    """
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise _refuse(str(path), f"{path.stat().st_size} bytes are more than any recipe has")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"can't read the recipe {path}: {error}", "give a TOML file, as `search` writes it"
        ) from error
    return parse_recipe(text, str(path))


def parse_recipe(text: str, where: str = "recipe") -> Quantization:
    """The recipe in a TOML text; `where` names it in errors."""
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise _refuse(where, f"it is not TOML: {error}") from error
    file = cast(
        _File, typed_json.decode(_File, table, "recipe", lambda problem: _refuse(where, problem))
    )
    try:
        words = tuple(file.treatment.split("+")) if file.treatment else ()
        scheme = recipe_scheme(
            file.name,
            {name: _format(label) for name, label in file.layers.items()},
            precision=file.precision,
            summary=file.summary,
        )
        return Quantization(scheme, file.activations, parse_treatment(words))
    except UsageError as error:
        raise UsageError(f"{where}: {error.message}", error.fix) from error


def recipe_scheme(
    name: str,
    layers: Mapping[str, WeightFormat | None],
    *,
    precision: Precision = "fp32",
    summary: str = SUMMARY,
) -> Scheme:
    """A scheme that gives each layer what `layers` says, by name or pattern, None for float.

    Raises:
        UsageError: a name that can't be used, or no layer at all.
    """
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            f"{name!r} can't be the name of a recipe",
            "use up to 64 letters, digits, _ . and -, such as nano-9mb",
        )
    if name in SCHEMES:
        raise UsageError(
            f"a recipe can't be called {name}, which is one of the standard schemes",
            f"call it something else, such as {name}-changed",
        )
    if not layers:
        raise UsageError(
            f"recipe {name} names no layer, so every layer would stay float",
            'name layers under [layers], such as "aggregator.*" = "int8_pc_sym"',
        )
    for pattern in layers:
        if _PATTERN.fullmatch(pattern) is None:
            raise UsageError(
                f"{pattern!r} can't be the name of a layer, or a pattern",
                'write names in quotes, such as "aggregator.frame_blocks.0.attn.qkv"',
            )
    return Scheme(name, summary, precision=precision, layers=tuple(layers.items()))


def recipe_toml(asked: Quantization, comments: Sequence[str] = ()) -> str:
    """The TOML text of a recipe; `parse_recipe` of it gives the same one.

    asked: its scheme holds `layers` alone, as `recipe_scheme` makes it
    comments: lines that stand before it, without their "#"
    """
    scheme = asked.scheme
    if scheme.linear or scheme.conv or scheme.sensitive:
        raise ValueError(f"{scheme.name} has formats of its own; a recipe names layers alone")
    head = [f"# {line}".rstrip() for text in comments for line in text.splitlines() or [""]]
    values = {
        "name": scheme.name,
        "summary": scheme.summary,
        "activations": asked.activations,
        "treatment": asked.treatment.label,
        "precision": scheme.precision,
    }
    body = [f"{key} = {_quoted(value)}" for key, value in values.items()]
    rows = [
        f"{_quoted(name)} = {_quoted(FLOAT if form is None else form.label)}"
        for name, form in scheme.layers
    ]
    return "\n".join([*head, *body, "", "[layers]", *rows]) + "\n"


def _format(label: str) -> WeightFormat | None:
    return None if label == FLOAT else parse_format(label)


def _quoted(text: str) -> str:
    """A TOML basic string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda m: f"\\u{ord(m[0]):04x}", escaped) + '"'


def _refuse(where: str, problem: str) -> UsageError:
    return UsageError(
        f"{where} can't be used as a recipe: {problem}",
        "correct the TOML file: name, activations, treatment, precision, and under [layers] lines "
        'such as "aggregator.*" = "int8_pc_sym"',
    )
