"""VGGT from a checkpoint to something that runs on a device, with what was lost on the way
measured.

Importing this package imports nothing heavy (no torch, onnx, onnxruntime, tensorrt, matplotlib).
The verbs of the command line are functions in `vggt_deploy.api`, each resolved on first use:

    from vggt_deploy.api import export, run

They are not attributes of this module on purpose: `vggt_deploy.export` and `vggt_deploy.compare`
are sub-packages, and a name that is a function or a module depending on what was imported before is
a trap.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
