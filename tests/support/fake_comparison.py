"""A comparison whose workers are fake: pictures, a plan of how each variant behaves, a call log.

A plugin of tests/conftest.py, since the tests of `compare` and of `report` both use it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from vggt_deploy.compare import ComparisonReport, compare, pipeline

FAKE_WORKER = Path(__file__).with_name("fake_worker.py")


@pytest.fixture
def images_dir(tmp_path: Path) -> Path:
    """Three small pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        pixels = rng.integers(0, 255, (42, 56, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"img{i}.png")
    return folder


@dataclass(frozen=True)
class Fake:
    """`run(...)` compares with fake workers; `plan` says which variant does what."""

    folder: Path
    images: Path
    plan_path: Path
    monkeypatch: pytest.MonkeyPatch

    def plan(self, behaviours: dict[str, str]) -> None:
        self.plan_path.write_text(json.dumps(behaviours))

    def calls(self) -> list[str]:
        """Jobs started since the last call of this."""
        log = self.plan_path.with_suffix(".calls")
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    def run(self, *, draw: bool = False, **changes: Any) -> ComparisonReport:
        """Compare; without `draw`, plots, pictures and page (seconds each time) are left out."""
        request: dict[str, Any] = {
            "output_dir": self.folder,
            "schemes": "fp32,int8_pc_sym,int4_g128",
            "runtimes": "torch,onnxruntime",
            "width": 56,
            "threads": 1,
            "timeout_s": 30.0,
            "console": Console(quiet=True),
            "worker_command": (sys.executable, str(FAKE_WORKER), str(self.plan_path)),
        }
        with self.monkeypatch.context() as patch:
            if not draw:
                patch.setattr(pipeline, "draw", lambda *_: None)
            return compare("fake-model", self.images, **(request | changes))


@pytest.fixture
def fake(tmp_path: Path, images_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """A comparison in `tmp_path/out` whose workers all work well."""
    made = Fake(tmp_path / "out", images_dir, tmp_path / "plan.json", monkeypatch)
    made.plan({})
    return made
