"""The quantization schemes, as data.

A `WeightFormat` says how one weight becomes integers: bits, which elements share a scale
(granularity), symmetric or not. A `Scheme` says which format Linear layers and convolutions get,
and in which float type the rest computes. Nothing here touches a tensor and nothing imports torch;
the maths is in `qparams`, the choice of layers in `plan`, what a target makes of it in `targets`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal, get_args

from vggt_deploy.errors import UsageError
from vggt_deploy.quantize.methods import parse_method
from vggt_deploy.quantize.treatment import (
    DEFAULT_INPUT_RANGE,
    PLAIN,
    Treatment,
    parse_treatment,
)

Precision = Literal["fp32", "fp16", "bf16"]
Activations = Literal["float", "dynamic", "static"]
"""What goes into a quantized Linear: floats; 8 bit with a range found at run time; 8 bit with a
range found by calibration.
"""

FLOAT_BYTES: dict[Precision, int] = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True, slots=True)
class PerTensor:
    """One scale: weight [N, K] -> scale []."""

    @property
    def label(self) -> str:
        return "pt"


@dataclass(frozen=True, slots=True)
class PerChannel:
    """One scale per output channel: weight [N, K], axis 0 -> scale [N]."""

    @property
    def label(self) -> str:
        return "pc"


@dataclass(frozen=True, slots=True)
class PerGroup:
    """One scale per `size` consecutive inputs of one output channel: [N, K] -> [N, ceil(K / size)].

    The last group of a row is short where size does not divide K. A row shorter than `size` is one
    group of K.
    """

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"a group holds at least one weight, not {self.size}")

    @property
    def label(self) -> str:
        return f"g{self.size}"

    def fitted(self, k: int) -> int:
        """The group size that a row of k weights really has: min(size, k)."""
        return min(self.size, k)

    def groups(self, k: int) -> int:
        """How many scales a row of k weights has."""
        return ceil(k / self.fitted(k))

    def padded_k(self, k: int) -> int:
        """`k` rounded up to whole groups, for targets that take no short last group."""
        return self.groups(k) * self.fitted(k)


Granularity = PerTensor | PerChannel | PerGroup


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How one weight is held.

    Symmetric: q in -qmax..qmax (127 or 7), zero point 0. Asymmetric: unsigned q and zero point in
    0..2**bits - 1, stored minus 2**(bits - 1) so that both fit the signed type.
    """

    bits: Literal[4, 8]
    granularity: Granularity
    symmetric: bool = True

    @property
    def label(self) -> str:
        """As in the scheme names: int8_pc_sym, int4_g128 (groups are symmetric unless they say)."""
        name = f"int{self.bits}_{self.granularity.label}"
        if not self.symmetric:
            return f"{name}_asym"
        return name if isinstance(self.granularity, PerGroup) else f"{name}_sym"

    @property
    def qmin(self) -> int:
        """Smallest stored integer: -127 (-7) symmetric, -128 (-8) asymmetric."""
        return -self.qmax if self.symmetric else -(1 << (self.bits - 1))

    @property
    def qmax(self) -> int:
        """Largest stored integer: 127 (7)."""
        return (1 << (self.bits - 1)) - 1

    def scales(self, n: int, k: int) -> int:
        """Number of scales of a weight with n output channels of k weights each."""
        match self.granularity:
            case PerTensor():
                return 1
            case PerChannel():
                return n
            case PerGroup() as group:
                return n * group.groups(k)

    def stored_bytes(self, n: int, k: int, scale_bytes: int = 4) -> int:
        """Bytes of integers, scales and zero points of a weight [n, k], as they are stored.

        Zero points are counted wherever the graph carries them, also where they are all zero.
        """
        count = self.scales(n, k)
        zero_points = ceil(count * self.bits / 8) if self.stores_zero_point else 0
        return ceil(n * k * self.bits / 8) + count * scale_bytes + zero_points

    @property
    def stores_zero_point(self) -> bool:
        """Whether a graph names the zero point. INT8: always, as TensorRT and ONNX disagree on the
        type without one. Symmetric INT4: never, zeros would be 2.5 % of a file in groups of 32.
        """
        return self.bits == 8 or not self.symmetric


def parse_format(label: str) -> WeightFormat:
    """The inverse of `WeightFormat.label`.

    Raises:
        UsageError: no such format.
    """
    found = re.fullmatch(r"int([48])_(pt|pc|g([0-9]{1,6}))(_sym|_asym)?", label)
    if found is not None:
        granularity: Granularity = PerTensor() if found[2] == "pt" else PerChannel()
        if found[3] is not None and int(found[3]) > 0:
            granularity = PerGroup(int(found[3]))
        form = WeightFormat(8 if found[1] == "8" else 4, granularity, found[4] != "_asym")
        if form.label == label:
            return form
    raise UsageError(
        f"unknown weight format {label!r}",
        "use int8_pt_sym, int8_pt_asym, int8_pc_sym, int8_pc_asym, or int4_gSIZE such as int4_g128",
    )


INT8_PT_SYM = WeightFormat(8, PerTensor())
INT8_PT_ASYM = WeightFormat(8, PerTensor(), symmetric=False)
INT8_PC_SYM = WeightFormat(8, PerChannel())
INT8_PC_ASYM = WeightFormat(8, PerChannel(), symmetric=False)
INT4_G32 = WeightFormat(4, PerGroup(32))
INT4_G64 = WeightFormat(4, PerGroup(64))
INT4_G128 = WeightFormat(4, PerGroup(128))
INT4_G256 = WeightFormat(4, PerGroup(256))

SENSITIVE_DEFAULT: tuple[str, ...] = (
    "camera_head.*",
    "aggregator.patch_embed.blocks.{first}.*",
    "aggregator.patch_embed.blocks.{last}.*",
    "aggregator.frame_blocks.{first}.*",
    "aggregator.frame_blocks.{last}.*",
    "aggregator.global_blocks.{first}.*",
    "aggregator.global_blocks.{last}.*",
)
"""Layers that `mixed` keeps at 8 bit. `{first}` and `{last}` stand for the block numbers of the
stack at hand.

Chosen by argument, the camera head also by measurement on the trained vggt-nano (the released
checkpoint was not measured): of its blocks alone at int4_g128, `camera_head.pose_branch` costs 22
points of AUC@30, no other more than 1. The head feeds its own output back four times, so its error
accumulates, and ends in nine numbers that place every point; the first block of each stack sees the
special tokens and raw features before any normalisation by later blocks; what the last block of
each stack gets wrong, no later block of that stack can repair (the heads read frame and global
block 23 directly).
"""


@dataclass(frozen=True, slots=True)
class Scheme:
    """What happens to the weights of a model.

    `linear` and `conv` are None where they stay float. `precision` is the default float type of
    what is not integer. `sensitive` is the format of the layers that match `sensitive_patterns`
    (None: the scheme has one format only). `layers` names layers one by one, as a recipe does: by
    name or pattern, format or None for float, the first that fits goes before all the others.
    """

    name: str
    summary: str
    linear: WeightFormat | None = None
    conv: WeightFormat | None = None
    precision: Precision = "fp32"
    sensitive: WeightFormat | None = None
    sensitive_patterns: tuple[str, ...] = ()
    layers: tuple[tuple[str, WeightFormat | None], ...] = ()

    @property
    def formats(self) -> tuple[WeightFormat, ...]:
        """Every format that a layer may get, each once."""
        named = (form for _, form in self.layers)
        found = (self.linear, self.conv, self.sensitive, *named)
        return tuple(dict.fromkeys(form for form in found if form is not None))

    @property
    def integer(self) -> bool:
        """Whether any weight becomes integers."""
        return bool(self.formats)


def _integer(name: str, linear: WeightFormat, summary: str) -> Scheme:
    # DPT convolutions are 5 % of the weights and would be a third of an INT4 file if left float.
    return Scheme(name, summary, linear=linear, conv=INT8_PC_SYM)


def _table() -> dict[str, Scheme]:
    schemes = [
        Scheme("fp32", "the reference: all weights and arithmetic FP32"),
        Scheme("fp16", "weights and arithmetic FP16, heads FP32", precision="fp16"),
        Scheme("bf16", "weights and arithmetic BF16, heads FP32", precision="bf16"),
        _integer("int8_pt_sym", INT8_PT_SYM, "8 bit, one scale per weight, symmetric"),
        _integer("int8_pt_asym", INT8_PT_ASYM, "8 bit, one scale and zero point per weight"),
        _integer("int8_pc_sym", INT8_PC_SYM, "8 bit, a scale per output channel, symmetric"),
        _integer("int8_pc_asym", INT8_PC_ASYM, "8 bit, a scale and zero point per output channel"),
        _integer("int4_g32", INT4_G32, "4 bit, a scale per 32 inputs"),
        _integer("int4_g64", INT4_G64, "4 bit, a scale per 64 inputs"),
        _integer("int4_g128", INT4_G128, "4 bit, a scale per 128 inputs"),
        _integer("int4_g256", INT4_G256, "4 bit, a scale per 256 inputs"),
        Scheme(
            "mixed",
            "8 bit per channel for the camera head and the first and last block of each stack, "
            "4 bit groups of 128 for the rest",
            linear=INT4_G128,
            conv=INT8_PC_SYM,
            sensitive=INT8_PC_SYM,
            sensitive_patterns=SENSITIVE_DEFAULT,
        ),
    ]
    return {scheme.name: scheme for scheme in schemes}


SCHEMES: dict[str, Scheme] = _table()


def get_scheme(name: str) -> Scheme:
    """The scheme of that name, or a UsageError that lists the known ones."""
    try:
        return SCHEMES[name]
    except KeyError:
        raise UsageError(f"unknown scheme {name!r}", f"use one of: {', '.join(SCHEMES)}") from None


@dataclass(frozen=True, slots=True)
class Quantization:
    """All that is done to the numbers of a network: scheme, activations, treatment."""

    scheme: Scheme
    activations: Activations = "float"
    treatment: Treatment = PLAIN

    def __post_init__(self) -> None:
        check_activations(self.scheme, self.activations)
        _check_treatment(self)

    @property
    def label(self) -> str:
        """`int8_pc_sym`, `int8_pc_sym+static`, `int4_g128+gptq`: what `parse_label` reads."""
        mode = () if self.activations == "float" else (self.activations,)
        return "+".join((self.scheme.name, *mode, *self.treatment.words))

    @property
    def needs_pictures(self) -> bool:
        """Whether it can't be done without running pictures through the network."""
        return self.activations == "static" or self.treatment.looks


def parse_label(label: str) -> Quantization:
    """`int8_pc_sym+static+smooth` -> its scheme, activations and treatment.

    Raises:
        UsageError: an unknown scheme or word, or words that mean nothing together.
    """
    name, *words = label.split("+")
    return parse_words(get_scheme(name), words)


def parse_words(scheme: Scheme, words: Sequence[str]) -> Quantization:
    """What stands behind the scheme in a label: activations, if they are named, then treatment."""
    modes: tuple[Activations, ...] = get_args(Activations)
    for mode in modes:
        if words and words[0] == mode:
            return Quantization(scheme, mode, parse_treatment(tuple(words[1:])))
    return Quantization(scheme, "float", parse_treatment(tuple(words)))


def as_quantization(
    asked: str | Quantization,
    activations: Activations | None = None,
    input_range: str | None = None,
) -> Quantization:
    """A label with what was said beside it: `--activations` and `--calibration-method`.

    Raises:
        UsageError: the label is wrong, or says otherwise.
    """
    found = parse_label(asked) if isinstance(asked, str) else asked
    if activations not in (None, found.activations):
        if found.activations != "float":
            raise UsageError(
                f"scheme {found.label} and activations {activations} contradict each other",
                "give one of them",
            )
        found = replace(found, activations=activations)
    if input_range is None:
        return found
    if found.activations != "static":
        raise UsageError(
            f"a calibration method has no meaning with {found.activations} activations",
            "use static activations, or leave it out",
        )
    method, said = parse_method(input_range), found.treatment.input_range
    if said not in (method, DEFAULT_INPUT_RANGE):
        raise UsageError(
            f"scheme {found.label} and calibration method {input_range} contradict each other",
            "give one of them",
        )
    return replace(found, treatment=replace(found.treatment, input_range=method))


def parse_activations(text: str) -> Activations:
    """float, static or dynamic."""
    known: tuple[Activations, ...] = get_args(Activations)
    for mode in known:
        if text == mode:
            return mode
    raise UsageError(f"unknown activations {text!r}", f"use one of: {', '.join(known)}")


def with_words(asked: Quantization, words: Sequence[str]) -> Quantization:
    """With these words of a label as well: `smooth`, `gptq`, ...

    Raises:
        UsageError: an unknown one, one that it has already, or one that means nothing here.
    """
    if not words:
        return asked
    return replace(asked, treatment=parse_treatment((*asked.treatment.words, *words)))


def _check_treatment(asked: Quantization) -> None:
    treatment, scheme = asked.treatment, asked.scheme
    if not scheme.integer and treatment != PLAIN:
        raise UsageError(
            f"scheme {scheme.name} has no integer weights, so {treatment.label} has no meaning",
            f"leave it out, or use an integer scheme, such as int8_pc_sym+{treatment.label}",
        )
    if asked.activations != "static" and treatment.input_range != DEFAULT_INPUT_RANGE:
        raise UsageError(
            f"{treatment.label} chooses a range for static activations, and these are "
            f"{asked.activations}",
            f"use {scheme.name}+static, or leave a= out",
        )
    if treatment.apart and asked.activations != "static" and treatment.rounding != "gptq":
        raise UsageError(
            "apart weighs tokens for static activations and for gptq, and here is neither",
            f"use {scheme.name}+static+apart or {scheme.name}+apart+gptq, or leave apart out",
        )


def check_activations(scheme: Scheme, activations: Activations) -> None:
    """8-bit activations mean something only beside integer weights, static ones beside 8 bit."""
    if activations == "float":
        return
    if not scheme.integer:
        raise UsageError(
            f"scheme {scheme.name} has no integer weights, so its activations stay float",
            f"leave --activations (+{activations}) out, or use an integer scheme: "
            f"{', '.join(s.name for s in SCHEMES.values() if takes_activations(s, activations))}",
        )
    if not takes_activations(scheme, activations):
        raise UsageError(
            f"scheme {scheme.name} has 4-bit weights, and no runtime multiplies those with static "
            "8-bit activations: their scales change inside a row, so integer sums would not do",
            f"use {scheme.name} with float or dynamic activations, or static ones with "
            f"{', '.join(s.name for s in SCHEMES.values() if takes_activations(s, activations))}",
        )


def takes_activations(scheme: Scheme, activations: Activations) -> bool:
    """Whether the scheme has a variant with these activations."""
    if activations == "float" or not scheme.integer:
        return activations == "float"
    return activations == "dynamic" or all(form.bits == 8 for form in scheme.formats)
