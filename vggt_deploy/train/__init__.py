"""Training a VGGT from nothing on rendered scenes, and scoring it against their truth.

The verbs are `vggt_deploy.api.train` and `vggt_deploy.api.evaluate`; the modules, in the order in
which the work passes them:

    recipe    every number of a training, as TOML     initial   weights before the first step
    pool      the scenes, rendered once, on disk      forward   the network as training runs it
    colour    what a camera may do to the colours     losses    what is minimised
    batches   the scenes of one step, and their truth loop      the steps
    state     checkpoints and the log                 pipeline  all of it
    scoring   a model against the truth               baseline  the best constant answer
    evaluate  both, on scenes that were never trained on
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vggt_deploy.train.evaluate import Scores as Scores
    from vggt_deploy.train.evaluate import evaluate as evaluate
    from vggt_deploy.train.pipeline import TrainResult as TrainResult
    from vggt_deploy.train.pipeline import train as train

_HOMES = {
    "Scores": "evaluate",
    "TrainResult": "pipeline",
    "evaluate": "evaluate",
    "train": "pipeline",
}

__all__ = ["Scores", "TrainResult", "evaluate", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
