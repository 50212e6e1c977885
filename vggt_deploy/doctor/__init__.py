"""What this machine can do, and what to install for the rest.

A row is "ok" only for what was tried: a provider of ONNX Runtime counts when a session with it was
created and ran a one-node model, a TensorRT when it built a one-node engine, a package when it was
imported or found, a GPU when the driver answered. What could not be tried is "unknown" and says
why. The last rows say what can be done, with the command.
"""

from __future__ import annotations

from pathlib import Path

from vggt_deploy import __version__
from vggt_deploy.doctor.abilities import abilities
from vggt_deploy.doctor.checks import Check, Diagnosis, State
from vggt_deploy.doctor.machine import check_disk, check_hardware, check_jetson, check_python
from vggt_deploy.doctor.nvidia import check_cuda_bindings, check_cuda_driver, check_nvml
from vggt_deploy.doctor.onnxruntime import check_onnxruntime
from vggt_deploy.doctor.packages import PACKAGES, check_packages, check_torch
from vggt_deploy.doctor.tensorrt import check_tensorrt

__all__ = ["Check", "Diagnosis", "State", "check_cuda_driver", "diagnose"]


def diagnose() -> Diagnosis:
    """Look at this machine. Takes seconds: it imports torch, and tries each runtime."""
    device = check_cuda_driver()
    checks = [
        check_python(),
        *check_hardware(),
        check_disk(Path.cwd()),
        *(check_packages(verb) for verb in PACKAGES),
        *check_torch(),
        *check_onnxruntime(),
        check_nvml(),
        device,
        check_cuda_bindings(device),
        check_tensorrt("tensorrt"),
        check_tensorrt("tensorrt-rtx"),
        check_jetson(),
    ]
    return Diagnosis(__version__, (*checks, *abilities(checks)))
