"""The quantization schemes, as data.

A `WeightFormat` says how one weight becomes integers: bits, which elements share a scale
(granularity), symmetric or not. A `Scheme` says which format Linear layers and convolutions get,
and in which float type the rest computes. Nothing here touches a tensor and nothing imports torch;
the maths is in `qparams`, the choice of layers in `plan`, what a target makes of it in `targets`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal, get_args

from vggt_deploy.errors import UsageError

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

Chosen by argument, not by measurement on the released checkpoint: the camera head feeds its own
output back four times, so its error accumulates, and ends in nine numbers that place every point;
the first block of each stack sees the special tokens and raw features before any normalisation by
later blocks; what the last block of each stack gets wrong, no later block of that stack can repair
(the heads read frame and global block 23 directly).
"""


@dataclass(frozen=True, slots=True)
class Scheme:
    """What happens to the weights of a model.

    `linear` and `conv` are None where they stay float. `precision` is the default float type of
    what is not integer. `sensitive` is the format of the layers that match `sensitive_patterns`
    (None: the scheme has one format only).
    """

    name: str
    summary: str
    linear: WeightFormat | None = None
    conv: WeightFormat | None = None
    precision: Precision = "fp32"
    sensitive: WeightFormat | None = None
    sensitive_patterns: tuple[str, ...] = ()

    @property
    def integer(self) -> bool:
        """Whether any weight becomes integers."""
        return self.linear is not None or self.conv is not None


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


def parse_variant(label: str) -> tuple[Scheme, Activations]:
    """`int8_pc_sym` -> (scheme, "float"); `int8_pc_sym+static` -> (scheme, "static")."""
    name, plus, mode = label.partition("+")
    scheme = get_scheme(name)
    if not plus:
        return scheme, "float"
    for known in get_args(Activations):
        if mode == known:
            check_activations(scheme, known)
            return scheme, known
    raise UsageError(
        f"unknown activations {mode!r} in {label!r}",
        f"use {name} alone (float activations), {name}+dynamic or {name}+static",
    )


def check_activations(scheme: Scheme, activations: Activations) -> None:
    """8-bit activations mean something only beside integer weights, static ones beside 8 bit."""
    if activations == "float":
        return
    if scheme.linear is None:
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
    if activations == "float" or scheme.linear is None:
        return activations == "float"
    formats = (scheme.linear, scheme.sensitive)
    return activations == "dynamic" or all(form is None or form.bits == 8 for form in formats)


def variant_label(scheme: Scheme, activations: Activations) -> str:
    """The inverse of `parse_variant`."""
    return scheme.name if activations == "float" else f"{scheme.name}+{activations}"
