"""Compare: every scheme and runtime on the same pictures, held against PyTorch FP32.

    from vggt_deploy.compare import compare
    report = compare("random:vggt-tiny", "pictures", output_dir="out", schemes="int8_pc_sym")

Names are resolved on first use: a worker, which imports this package on its way to
`compare.worker`, must not carry the parent's imports in its measured memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vggt_deploy.compare.pipeline import compare
    from vggt_deploy.compare.report import ComparisonReport, Row, read_report
    from vggt_deploy.compare.variants import Variant, parse_variants

__all__ = ["ComparisonReport", "Row", "Variant", "compare", "parse_variants", "read_report"]

_HOMES = {
    "ComparisonReport": "report",
    "Row": "report",
    "Variant": "variants",
    "compare": "pipeline",
    "parse_variants": "variants",
    "read_report": "report",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
