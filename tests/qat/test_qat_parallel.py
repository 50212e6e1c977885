"""Two processes under torchrun: the losses and weights of one, up to rounding."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vggt_deploy.errors import UsageError
from vggt_deploy.qat.launch import Place, joined
from vggt_deploy.qat.pipeline import QatRequest, qat
from vggt_deploy.qat.recipe import QatRecipe, changed_recipe
from vggt_deploy.qat.state import CHECKPOINT_FILE, LOG_FILE
from vggt_deploy.quantize.prepared import read_prepared
from vggt_deploy.quantize.schemes import parse_label
from vggt_deploy.train.recipe import recipe_toml

MODEL = "random:vggt-tiny"


def torchrun(processes: int, run: Path, scenes: Path, recipe: QatRecipe) -> str:
    settings = run.with_suffix(".toml")
    settings.write_text(recipe_toml(recipe))
    words = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
        str(processes), "-m", "vggt_deploy", "qat", "--scheme", "int4_g32", "--model", MODEL,
        "--scenes", str(scenes), "-o", str(run), "--settings", str(settings), "--height", "42",
        "--width", "56", "--device", "cpu", "--threads", "1",
    ]  # fmt: skip
    done = subprocess.run(
        words,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def losses(run: Path) -> list[float]:
    with (run / LOG_FILE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [float(row[name]) for row in rows for name in ("total", "pose", "gradient_norm")]


def test_two_processes_train_as_one(
    scene_folder: Path, qat_recipe: QatRecipe, tmp_path: Path
) -> None:
    # No float step: the gradients of equal networks are nothing but rounding.
    recipe = changed_recipe(qat_recipe, epochs=2.0, learning_rate=1e-4)
    request = QatRequest(
        MODEL, parse_label("int4_g32"), scenes=(scene_folder,), height=42, width=56
    )
    qat(request, recipe, tmp_path / "one", threads=1, device="cpu")
    said = torchrun(2, tmp_path / "two", scene_folder, recipe)
    assert said.count("3 steps on cpu") == 1  # the first process alone speaks
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert two == pytest.approx(one, rel=2e-3)
    mine = torch.load(tmp_path / "one" / CHECKPOINT_FILE, weights_only=True)["model"]
    other = torch.load(tmp_path / "two" / CHECKPOINT_FILE, weights_only=True)["model"]
    began = read_prepared(tmp_path / "two").record
    assert began.choices["qat"]["steps"] == 3
    for name, value in mine.items():
        assert torch.allclose(other[name], value, rtol=1e-3, atol=3e-5), name
    # A twin that sees half of the pictures would be off by as much as a step moves a weight.
    moved = max(float((other[n] - v).abs().max()) for n, v in mine.items() if v.is_floating_point())
    assert moved < 1e-4


def test_shards_are_dealt_out_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    with joined("cpu", 3) as place:
        assert place == Place(0, 1, torch.device("cpu"))
        assert place.first
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="3 shards can't be dealt out to 2"), joined("cpu", 3):
        pass
