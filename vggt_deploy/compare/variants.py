"""What is compared: a scheme, how its activations run, what is done to lose less, a runtime.

`torch/fp32` is the reference and always part of a comparison, first in the list.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

from vggt_deploy.errors import UsageError
from vggt_deploy.quantize.schemes import (
    SCHEMES,
    Activations,
    Quantization,
    parse_label,
    takes_activations,
)
from vggt_deploy.quantize.targets import Support, Target, support

Runtime = Literal["torch", "onnxruntime", "tensorrt", "tensorrt-rtx"]
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)

# The row of the scheme table that says what a runtime really computes. Engines of TensorRT run on
# the GPU, everything else on the CPU.
TARGETS: dict[Runtime, Target] = {
    "torch": "torch",
    "onnxruntime": "onnxruntime-cpu",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt-rtx",
}
ENGINE_RUNTIMES: tuple[Runtime, ...] = ("tensorrt", "tensorrt-rtx")


@dataclass(frozen=True)
class Variant:
    """One row of the comparison."""

    runtime: Runtime
    scheme: str
    activations: Activations = "float"
    treatment: str = ""

    @property
    def scheme_label(self) -> str:
        """`int8_pc_sym`, `int8_pc_sym+static+smooth`: the name of its artifact."""
        mode = () if self.activations == "float" else (self.activations,)
        words = (self.treatment,) if self.treatment else ()
        return "+".join((self.scheme, *mode, *words))

    @property
    def quantization(self) -> Quantization:
        """Scheme, activations and treatment, as values."""
        return parse_label(self.scheme_label)

    @property
    def label(self) -> str:
        """`onnxruntime/int8_pc_sym+dynamic`: unique within a comparison."""
        return f"{self.runtime}/{self.scheme_label}"

    @property
    def slug(self) -> str:
        """The label as a file name."""
        return self.label.replace("/", "-")

    @property
    def engine(self) -> bool:
        """Whether it is an engine, built for a device from the scheme's artifact."""
        return self.runtime in ENGINE_RUNTIMES

    @property
    def support(self) -> Support:
        """What the runtime makes of the scheme, from the scheme table."""
        return support(SCHEMES[self.scheme], self.activations, TARGETS[self.runtime])


REFERENCE = Variant("torch", "fp32")


def parse_runtimes(text: str | Sequence[str]) -> tuple[Runtime, ...]:
    """`"torch,onnxruntime"` or a sequence of names."""
    names = _split(text, "--runtimes")
    unknown = [name for name in names if name not in RUNTIMES]
    if unknown:
        raise UsageError(
            f"unknown runtime {unknown[0]!r}", f"use one or more of: {', '.join(RUNTIMES)}"
        )
    return tuple(cast(Runtime, name) for name in names)


def parse_variants(
    schemes: str | Sequence[str], runtimes: str | Sequence[str], *, calibrated: bool = False
) -> tuple[Variant, ...]:
    """The rows to run, the reference first, each once.

    `schemes` is "all" or scheme labels ("int8_pc_sym", "int4_g128+dynamic"), comma-separated or a
    sequence. "all" is every scheme with float activations, and those with dynamic activations (and,
    if there is something to calibrate on, static ones) on the runtimes that have them. A label that
    was asked for by name stays even where a runtime can't run it: its row says why.
    """
    names = _split(schemes, "--schemes")
    variants = [REFERENCE]
    for runtime in parse_runtimes(runtimes):
        if names == ["all"]:
            variants += [Variant(runtime, scheme) for scheme in SCHEMES]
            modes: tuple[Activations, ...] = ("dynamic", "static") if calibrated else ("dynamic",)
            variants += [
                variant
                for mode in modes
                for name, scheme in SCHEMES.items()
                if takes_activations(scheme, mode)
                and (variant := Variant(runtime, name, mode)).support.runs
            ]
            continue
        for name in names:
            asked = parse_label(name)
            treatment = asked.treatment.label
            variants.append(Variant(runtime, asked.scheme.name, asked.activations, treatment))
    return tuple(dict.fromkeys(variants))


def _split(text: str | Sequence[str], option: str) -> list[str]:
    parts = re.split(r"[,\s]+", text.strip()) if isinstance(text, str) else list(text)
    names = [part.strip() for part in parts if part.strip()]
    if not names:
        raise UsageError(f"{option} is empty", "name at least one")
    return names
