"""Trained weights that lie in this package: a name -> its checkpoint file. No torch here.

pretrained/<name>/model.safetensors    the weights, float16
pretrained/<name>/training.toml        the recipe they were trained by
pretrained/<name>/training_log.csv     the losses on the way
pretrained/<name>/scores.json          what they score on scenes that were not in the training
"""

from __future__ import annotations

from pathlib import Path

from vggt_deploy.errors import ModelError

# Each is the name of a config, too.
PACKAGED = ("vggt-nano",)
PRETRAINED = Path(__file__).with_name("pretrained")
CHECKPOINT_NAME = "model.safetensors"
LICENCE = "Apache-2.0"


def packaged_checkpoint(name: str) -> Path:
    """The checkpoint of one of `PACKAGED`.

    Raises:
        ModelError: this installation lacks the file.
    """
    path = PRETRAINED / name / CHECKPOINT_NAME
    if not path.is_file():
        raise ModelError(
            f"the weights of {name} are missing from this installation: there is no {path}",
            "install vggt-deploy again from a complete wheel or checkout, or give a file: "
            f"`vggt-deploy train --config {name} --cache DIR -o RUN` makes one",
        )
    return path
