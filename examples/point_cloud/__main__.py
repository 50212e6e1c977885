"""Train, quantize both ways, export, run in ONNX Runtime: one table.

python -m examples.point_cloud -o FOLDER
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from examples.point_cloud.network import PointClassifier
from examples.point_cloud.quantizing import (
    Ready,
    after_training,
    in_onnxruntime,
    with_training,
)
from examples.point_cloud.shapes import NAMES, Clouds, make_clouds
from examples.point_cloud.train import FROM_NOTHING, accuracy, in_torch, train
from vggt_deploy.quantize.schemes import parse_format

LABELS = ("int8_pc_sym+static", "int4_g32", "int4_g32+dynamic", "int4_g256+dynamic")
COLUMNS = "{:<20} {:<5} {:>8} {:>13} {:>10} {:>12}"


def main() -> None:
    """The whole way, on two seeds of clouds: one to train and calibrate on, one to test on."""
    parser = argparse.ArgumentParser(prog="python -m examples.point_cloud", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the graphs")
    parser.add_argument("--clouds", type=int, default=3000, help="to train on (default: 3000)")
    parser.add_argument("--test-clouds", type=int, default=2000, help="to test on (default: 2000)")
    chosen = parser.parse_args()
    if chosen.output.exists() and any(chosen.output.iterdir()):
        parser.error(f"{chosen.output} is not empty: give a new folder")
    training, test = make_clouds(chosen.clouds, seed=0), make_clouds(chosen.test_clouds, seed=1)
    torch.manual_seed(0)
    model = PointClassifier(len(NAMES))
    started = time.perf_counter()
    train(model, training, FROM_NOTHING)
    print(f"trained on {chosen.clouds} clouds in {time.perf_counter() - started:.0f} s\n")
    print(COLUMNS.format("scheme", "how", "PyTorch", "ONNX Runtime", "bytes", "their error"))
    print(COLUMNS.format("fp32", "-", f"{accuracy(in_torch(model), test):.1%}", "", "", ""))
    for label in LABELS:
        ready = after_training(model, label, training)
        _row(label, "PTQ", ready, test, chosen.output / f"{label}-ptq")
        _row(label, "QAT", with_training(ready, training), test, chosen.output / f"{label}-qat")
    # No scheme has one scale for a whole 4-bit weight: it loses too much without training.
    form = parse_format("int4_pt_sym")
    ready = after_training(model, "int4_g256", training, form)
    _row(form.label, "PTQ", ready, test, chosen.output / f"{form.label}-ptq")
    ready = with_training(ready, training)
    _row(form.label, "QAT", ready, test, chosen.output / f"{form.label}-qat")


def _row(label: str, how: str, ready: Ready, test: Clouds, folder: Path) -> None:
    artifact = ready.export(test, folder)
    errors = artifact.record.relative_l2_error
    assert errors is not None  # export verifies unless told not to
    print(
        COLUMNS.format(
            label,
            how,
            f"{accuracy(in_torch(ready.in_torch()), test):.1%}",
            f"{accuracy(in_onnxruntime(artifact), test):.1%}",
            artifact.record.files["weights.bin"].bytes,
            f"{errors['onnxruntime']['logits']:.1e}",
        )
    )


if __name__ == "__main__":
    main()
