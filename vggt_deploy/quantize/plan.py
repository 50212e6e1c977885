"""Which layer gets which format.

    all layers of the model -> the defaults -> + include -> - exclude -> sensitive ones apart

Defaults: every Linear of the aggregator and the camera head except `embed_pose` (K = 9: no 4-bit
group fits) and `pose_branch.fc2` (N = 9: the pose itself; 0.002 % of the weights together), and
every convolution of the depth and point heads. The patch embedding, norms, tokens and the track
head stay float. Patterns are shell patterns over the module name (`*` spans dots), as in fnmatch.

A recipe (`Scheme.layers`) names layers one by one and goes before the scheme's own formats: a whole
name is for that layer, whatever it is; a pattern is for those of its layers that are quantized by
default or by include, so that "aggregator.*" does not reach the patch embedding.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

from vggt_deploy.errors import UsageError
from vggt_deploy.quantize.schemes import PerGroup, Precision, Scheme, WeightFormat

if TYPE_CHECKING:
    from torch import nn

    from vggt_deploy.model.config import VGGTConfig

LayerKind = Literal["linear", "conv", "conv_transpose"]

DEFAULT_LINEAR = ("aggregator.*", "camera_head.*")
DEFAULT_CONV = ("depth_head.*", "point_head.*")
DEFAULT_FLOAT = ("camera_head.embed_pose", "camera_head.pose_branch.fc2")
OPTIONAL_HEADS = ("camera_head", "depth_head", "point_head", "track_head")

HALF_REGION = re.compile(
    r"aggregator\.(patch_embed\.blocks|frame_blocks|global_blocks)\.\d+\.(attn|mlp)(\.|$)"
)


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """A layer whose weight could be quantized; `shape` is its weight's, as torch holds it."""

    name: str
    kind: LayerKind
    shape: tuple[int, ...]

    @property
    def axis(self) -> int:
        """The output-channel axis of the weight."""
        return 1 if self.kind == "conv_transpose" else 0

    @property
    def outputs(self) -> int:
        """N, the number of output channels."""
        return self.shape[self.axis]

    @property
    def weights(self) -> int:
        """Number of elements of the weight."""
        count = 1
        for side in self.shape:
            count *= side
        return count


def layers_in(module: nn.Module) -> tuple[LayerInfo, ...]:
    """Every Linear, Conv2d and ConvTranspose2d of a module, in its order (meta tensors will do).

    The packed projections of nn.MultiheadAttention are left out: its forward reads the weights
    itself and never calls the Linear that holds them.
    """
    from torch import nn

    kinds: tuple[tuple[type[nn.Module], LayerKind], ...] = (
        (nn.Linear, "linear"),
        (nn.Conv2d, "conv"),
        (nn.ConvTranspose2d, "conv_transpose"),
    )
    packed = tuple(
        f"{name}." for name, m in module.named_modules() if isinstance(m, nn.MultiheadAttention)
    )
    found = []
    for name, child in module.named_modules():
        if packed and name.startswith(packed):
            continue
        for kind_type, kind in kinds:
            if isinstance(child, kind_type):
                found.append(LayerInfo(name, kind, tuple(child.get_parameter("weight").shape)))
    return tuple(found)


def layers_of(config: VGGTConfig, heads: frozenset[str] | None = None) -> tuple[LayerInfo, ...]:
    """The layers of a VGGT of this config, found by building it on the meta device."""
    import torch

    from vggt_deploy.model.vggt import VGGT

    with torch.device("meta"):
        return layers_in(VGGT(config, heads=heads, folded=True))


def plan(
    scheme: Scheme,
    layers: Sequence[LayerInfo],
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    sensitive: Sequence[str] = (),
) -> dict[str, WeightFormat]:
    """Layer name -> format, in the order of `layers`; layers left out stay float.

    include adds to the defaults, exclude takes away and wins over include, sensitive replaces the
    scheme's own sensitive patterns. A pattern that matches no layer is a UsageError.
    """
    for option, patterns in (("include", include), ("exclude", exclude), ("sensitive", sensitive)):
        _check_patterns(f"--{option}", patterns, layers)
    _check_patterns(f"recipe {scheme.name}:", _of_heads_here(scheme, layers), layers)
    if not scheme.integer and (include or exclude or sensitive):
        raise UsageError(
            f"scheme {scheme.name} keeps every layer float, so there is nothing to include, "
            f"exclude or treat as sensitive",
            "drop the patterns, or use an integer scheme",
        )
    if sensitive and scheme.sensitive is None:
        raise UsageError(
            f"scheme {scheme.name} has one format only, so it has no sensitive layers",
            "use scheme mixed, or --exclude to keep layers float",
        )
    careful = _resolve(sensitive or scheme.sensitive_patterns, layers)
    formats = {}
    for layer in layers:
        wanted = _is_default(layer) or _matches(layer.name, include)
        named = _named(scheme, layer, wanted)
        if not (wanted or named) or _matches(layer.name, exclude):
            continue
        chosen = scheme.linear if layer.kind == "linear" else scheme.conv
        if layer.kind == "linear" and scheme.sensitive and _matches(layer.name, careful):
            chosen = scheme.sensitive
        if named:
            chosen = named[1]
        if chosen is not None:
            formats[layer.name] = chosen
    return formats


def in_half_region(module: str) -> bool:
    """Whether this module, or parameter, is in half precision where a variant has one.

    The region is the inside of every attention and MLP of the encoder's, frame and global blocks:
    `aggregator.frame_blocks.3.mlp`, `aggregator.frame_blocks.3.mlp.fc1`. FP32 outside: the residual
    stream, the LayerNorms on it, tokens, the positional embedding, LayerScale, all heads. The
    stream grows outliers over the blocks and FP16 ends at 65504; BF16 has 8 bits for a sum of 48
    terms. FP32 too: the patch convolution, little work, and ONNX has none in BF16 before opset 22.
    """
    return HALF_REGION.match(module) is not None


def layer_precision(name: str, precision: Precision) -> Precision:
    """The float type of a layer or parameter, and so of its scales: half inside the region only."""
    return precision if in_half_region(name) else "fp32"


def keeps_layer_scale(precision: Precision) -> bool:
    """Whether a folded model of this precision still multiplies by LayerScale's gamma.

    In FP16 it must. Folding gamma into the rows of `proj` and `fc2` multiplies their scales too,
    and an FP16 scale can't go under 6.1e-5, the smallest normal number. With gamma 0.01, where
    training starts, and weights up to 0.2 the INT8 scale is 0.2 / 127 * 0.01 = 1.6e-5; raised to
    6.1e-5 it uses 33 of the 127 levels, and of a gamma of 0.001 three are left. Scales can't be
    FP32 there: TensorRT wants them in the type of the activations. Float weights lose less, but
    FP16 has fewer than 11 bits for them too under 6.1e-5. FP32 and BF16 reach down to 1.2e-38.

    Kept, gamma is an FP32 vector in the FP32 residual branch. The camera head's, FP32 in any case,
    could be folded and is not: one rule for the whole model.
    """
    return precision == "fp16"


def planned_bytes(
    layers: Iterable[LayerInfo], formats: Mapping[str, WeightFormat], scale_bytes: int = 4
) -> int:
    """Bytes of all planned weights: integers, scales and zero points."""
    return sum(
        formats[layer.name].stored_bytes(layer.outputs, layer.weights // layer.outputs, scale_bytes)
        for layer in layers
        if layer.name in formats
    )


def _is_default(layer: LayerInfo) -> bool:
    if layer.kind == "linear":
        return _matches(layer.name, DEFAULT_LINEAR) and not _matches(layer.name, DEFAULT_FLOAT)
    return _matches(layer.name, DEFAULT_CONV)


def _named(
    scheme: Scheme, layer: LayerInfo, wanted: bool
) -> tuple[str, WeightFormat | None] | None:
    """What a recipe says of this layer, name and format; None where it says nothing."""
    for pattern, form in scheme.layers:
        if layer.name != pattern and not (wanted and fnmatchcase(layer.name, pattern)):
            continue
        if form is not None and layer.kind != "linear" and isinstance(form.granularity, PerGroup):
            raise UsageError(
                f"recipe {scheme.name}: {pattern!r} gives {form.label} to {layer.name}, a "
                "convolution, and groups are runs of inputs of a Linear",
                f"put {layer.name!r} or its head before it, with int8_pc_sym or float",
            )
        return pattern, form
    return None


def _of_heads_here(scheme: Scheme, layers: Sequence[LayerInfo]) -> tuple[str, ...]:
    """The patterns of a recipe but for those of heads that were left out of the model."""
    parts = {layer.name.partition(".")[0] for layer in layers}
    absent = tuple(f"{head}." for head in OPTIONAL_HEADS if head not in parts)
    return tuple(name for name, _ in scheme.layers if not name.startswith(absent))


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_patterns(option: str, patterns: Sequence[str], layers: Sequence[LayerInfo]) -> None:
    for pattern in patterns:
        resolved = _resolve((pattern,), layers)
        if not any(_matches(layer.name, resolved) for layer in layers):
            known = ", ".join(layer.name for layer in layers[:3])
            raise UsageError(
                f"{option} {pattern!r} matches none of the {len(layers)} layers",
                f"a pattern is matched against the whole name, such as {known}; "
                f"* stands for any text",
            )


def _resolve(patterns: Sequence[str], layers: Sequence[LayerInfo]) -> tuple[str, ...]:
    """Put block numbers in place of `{first}` and `{last}`; a stack that is absent drops out."""
    resolved = []
    for pattern in patterns:
        mark = next((m for m in ("{first}", "{last}") if m in pattern), None)
        if mark is None:
            resolved.append(pattern)
            continue
        before, _, after = pattern.partition(mark)
        block = re.compile(re.escape(before) + r"(\d+)\.")
        numbers = [int(m[1]) for layer in layers if (m := block.match(layer.name))]
        if numbers:
            number = min(numbers) if mark == "{first}" else max(numbers)
            resolved.append(f"{before}{number}{after}")
    return tuple(resolved)
