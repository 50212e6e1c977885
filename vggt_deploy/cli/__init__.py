"""The command line: parse, call one library function, print.

Exit codes: 0 done, 1 the job failed, 2 wrong usage, 130 interrupted. Errors go to stderr with what
to do about them. Nothing heavy is imported before a command needs it: `--help` answers at once.
"""

# A command registers itself when its module is imported; the order is that of `--help`.
from vggt_deploy.cli import (  # isort: skip
    calibration,
    models,
    comparing,
    engines,
    shipping,
    machine,
    scenes,
    data,
    sensitivity,
    search,
    qat,
    training,
    visualize,
)
from vggt_deploy.cli.app import app, main

__all__ = [
    "app",
    "calibration",
    "comparing",
    "data",
    "engines",
    "machine",
    "main",
    "models",
    "qat",
    "scenes",
    "search",
    "sensitivity",
    "shipping",
    "training",
    "visualize",
]
