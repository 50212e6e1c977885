"""What can be done here, each with its command: what follows from the rows above it."""

from __future__ import annotations

from collections.abc import Sequence

from vggt_deploy.doctor.checks import Check

# Row -> (its command, the rows that it needs).
_ABILITIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "export": (
        "vggt-deploy export --scheme SCHEME -o ARTIFACT",
        ("packages for export", "torch"),
    ),
    "build tensorrt": (
        "vggt-deploy build ARTIFACT --runtime tensorrt --device PROFILE -o ENGINE",
        ("packages for build", "tensorrt"),
    ),
    "build tensorrt-rtx": (
        "vggt-deploy build ARTIFACT --runtime tensorrt-rtx --device PROFILE -o ENGINE",
        ("packages for build", "tensorrt-rtx"),
    ),
    "run onnxruntime": (
        "vggt-deploy run ARTIFACT --images DIR -o DIR",
        ("packages for run", "onnxruntime", "onnxruntime CPU"),
    ),
    "run tensorrt": (
        "vggt-deploy run ENGINE --images DIR -o DIR",
        ("packages for run", "tensorrt", "cuda-bindings", "CUDA device"),
    ),
    "run tensorrt-rtx": (
        "vggt-deploy run ENGINE --images DIR -o DIR",
        ("packages for run", "tensorrt-rtx", "cuda-bindings", "CUDA device"),
    ),
}


def abilities(checks: Sequence[Check]) -> list[Check]:
    """One row per ability: "ok" with its command, or "missing" with the rows that it lacks.

    A row that is not among `checks` is as good as missing (ONNX Runtime's providers have none where
    it is not installed).
    """
    rows = {check.name: check for check in checks}
    found = []
    for name, (command, needs) in _ABILITIES.items():
        lacks = [need for need in needs if need not in rows or rows[need].state != "ok"]
        if not lacks:
            found.append(Check(name, "ok", command))
            continue
        # A row in doubt (bindings without a device to try them on) has no advice of its own.
        fixes = dict.fromkeys(rows[need].fix for need in lacks if need in rows and rows[need].fix)
        found.append(Check(name, "missing", f"lacks: {', '.join(lacks)}", "; ".join(fixes)))
    return found
