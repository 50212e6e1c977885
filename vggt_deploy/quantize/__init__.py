"""Weights to integers, and activations.

Which scheme (`schemes`), which layer gets it (`plan`), the maths (`qparams`), the bytes (`packing`,
`layout`), the PyTorch variant (`apply`), and what each target does with it (`targets`). For static
activations: what the user's images put into each layer (`calibration`, `histogram`, `statistics`).

Only the torch-free names are re-exported here, so `import vggt_deploy.quantize` stays cheap.
"""

from __future__ import annotations

from vggt_deploy.quantize.plan import LayerInfo, layers_of, plan
from vggt_deploy.quantize.schemes import (
    SCHEMES,
    Activations,
    Granularity,
    PerChannel,
    PerGroup,
    PerTensor,
    Precision,
    Quantization,
    Scheme,
    WeightFormat,
    get_scheme,
    parse_label,
)
from vggt_deploy.quantize.targets import SchemeRow, Support, Target, scheme_rows, support
from vggt_deploy.quantize.treatment import PLAIN, Treatment

__all__ = [
    "PLAIN",
    "SCHEMES",
    "Activations",
    "Granularity",
    "LayerInfo",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "Precision",
    "Quantization",
    "Scheme",
    "SchemeRow",
    "Support",
    "Target",
    "Treatment",
    "WeightFormat",
    "get_scheme",
    "layers_of",
    "parse_label",
    "plan",
    "scheme_rows",
    "support",
]
