"""Exported artifacts at work: sessions of a runtime, predictions from images, results as files.

Needs no torch and no onnx: an edge device has numpy, Pillow and a runtime, which is imported when a
session opens.
"""

from __future__ import annotations

from vggt_deploy.engines.predict import Predictions, predict
from vggt_deploy.engines.runtime import Session, SessionInfo, open_session

__all__ = ["Predictions", "Session", "SessionInfo", "open_session", "predict"]
