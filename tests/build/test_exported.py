"""From a network to an engine: what `export` writes is what `build` takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

from vggt_deploy.build import build
from vggt_deploy.engines.kernels import layer_shares
from vggt_deploy.export import export
from vggt_deploy.manifest import read_manifest


def test_w8a8_in_fp16_is_integers_all_over_and_attention_is_fused(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 60, 90, 3), np.uint8)
    for index, picture in enumerate(pixels):
        Image.fromarray(picture).save(pictures / f"{index}.png")
    artifact = export(
        "random:vggt-tiny",
        "int8_pc_sym",
        activations="static",
        calibrate=pictures,
        precision="fp16",
        height=56,
        width=84,
        frames=(1, 2, 4),
        output_dir=tmp_path / "artifact",
        verify=False,
    ).folder
    manifest = build(
        artifact, runtime="tensorrt-rtx", device="portable-rtx", output_dir=tmp_path / "engine"
    ).manifest
    assert manifest == read_manifest(tmp_path / "engine")
    assert manifest.calibration == read_manifest(artifact).calibration
    engine = manifest.engine
    assert engine is not None
    assert layer_shares(engine.proof) == {"int8": 1.0}
    # All blocks of the aggregator; the camera head's are FP32 and do not fuse.
    assert engine.proof.half_unfused == ()
    assert 0 < engine.proof.attentions_half == engine.proof.attentions_fused
    # Integers are in it as integers: nothing was unfolded to floats.
    assert engine.weights_bytes is not None
    assert engine.packed_bytes is not None
    assert 0.95 < engine.weights_bytes / engine.packed_bytes < 1.05
