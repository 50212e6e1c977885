"""Which layer gets which format.

    all layers of the model -> the defaults -> + include -> - exclude -> sensitive ones apart

Defaults: every Linear of the aggregator and the camera head except `embed_pose` (K = 9: no 4-bit
group fits) and `pose_branch.fc2` (N = 9: the pose itself; 0.002 % of the weights together), and
every convolution of the depth and point heads. The patch embedding, norms, tokens and the track
head stay float. Patterns are shell patterns over the module name (`*` spans dots), as in fnmatch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

from vggt_deploy.errors import UsageError
from vggt_deploy.quantize.schemes import Precision, Scheme, WeightFormat

if TYPE_CHECKING:
    from torch import nn

    from vggt_deploy.model.config import VGGTConfig

LayerKind = Literal["linear", "conv", "conv_transpose"]

DEFAULT_LINEAR = ("aggregator.*", "camera_head.*")
DEFAULT_CONV = ("depth_head.*", "point_head.*")
DEFAULT_FLOAT = ("camera_head.embed_pose", "camera_head.pose_branch.fc2")


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
        _check_patterns(option, patterns, layers)
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
        if not wanted or _matches(layer.name, exclude):
            continue
        chosen = scheme.linear if layer.kind == "linear" else scheme.conv
        if layer.kind == "linear" and scheme.sensitive and _matches(layer.name, careful):
            chosen = scheme.sensitive
        if chosen is not None:
            formats[layer.name] = chosen
    return formats


def layer_precision(name: str, precision: Precision) -> Precision:
    """The float type a layer computes in, and so the type of its scales: heads stay FP32."""
    return precision if name.startswith("aggregator.") else "fp32"


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


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_patterns(option: str, patterns: Sequence[str], layers: Sequence[LayerInfo]) -> None:
    for pattern in patterns:
        resolved = _resolve((pattern,), layers)
        if not any(_matches(layer.name, resolved) for layer in layers):
            known = ", ".join(layer.name for layer in layers[:3])
            raise UsageError(
                f"--{option} {pattern!r} matches none of the {len(layers)} layers",
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
