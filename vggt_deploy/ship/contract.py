"""How to feed an engine and how to read it: what an application without this package must know.

The rules for pictures are those of `vggt_deploy.data.images`, in words; the outputs those of the
network. Shapes use S for the number of pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vggt_deploy.errors import ArtifactError
from vggt_deploy.records import Manifest

INPUT_NAME = "images"
_UNIT = "the network's own unit: one unknown factor per run, not metres"
_POSE = (
    "camera of each picture, camera from world (OpenCV axes, first camera's frame): translation 3, "
    "rotation quaternion 4 (x, y, z, w), vertical and horizontal field of view 2 in radians"
)
_CONFIDENCE = "1 or more, higher is better, no unit"


@dataclass(frozen=True)
class TensorContract:
    """One tensor: its name, type, shape (numbers and "S"), unit and meaning."""

    name: str
    dtype: str
    shape: tuple[Any, ...]
    unit: str
    meaning: str


@dataclass(frozen=True)
class Contract:
    """Pixels in, tensors out.

    resize: mode -> rule; `mode` is what `vggt-deploy run` uses if nothing else is asked for
    """

    input: TensorContract
    colour: str
    range: str
    orientation: str
    resize: dict[str, str]
    mode: str
    outputs: tuple[TensorContract, ...]


def contract(manifest: Manifest) -> Contract:
    """The contract of an artifact or engine."""
    height, width = manifest.height, manifest.width
    return Contract(
        input=TensorContract(
            INPUT_NAME,
            "float32",
            (1, "S", 3, height, width),
            "",
            "S pictures of one scene; each engine says which S it takes",
        ),
        colour="RGB",
        range="0 to 1: 8-bit value / 255; mean and standard deviation belong to the model",
        orientation="EXIF orientation is applied; transparency is laid on white",
        resize={
            "crop": f"bicubic to width {width}, height in proportion rounded to a multiple of 14; "
            f"then centre-cropped, or padded with white, to height {height}",
            "pad": f"bicubic so that the picture fits {width} x {height}, sides rounded to "
            "multiples of 14; then padded with white, centred",
        },
        mode="crop",
        outputs=tuple(output_contract(name, height, width) for name in manifest.outputs),
    )


def output_contract(name: str, height: int, width: int) -> TensorContract:
    """Shape, unit and meaning of the output `name`."""
    point = "point of the world that a pixel sees, x, y, z in the first camera's frame"
    known: dict[str, tuple[tuple[Any, ...], str, str]] = {
        "pose_enc": ((9,), f"translation in {_UNIT}", _POSE),
        "depth": ((height, width, 1), _UNIT, "distance along the optical axis"),
        "depth_conf": ((height, width), "", f"confidence of depth: {_CONFIDENCE}"),
        "world_points": ((height, width, 3), _UNIT, point),
        "world_points_conf": ((height, width), "", f"confidence of the points: {_CONFIDENCE}"),
    }
    if name not in known:
        raise ArtifactError(
            f"the artifact has an output {name!r}, which this version does not know",
            "use the vggt-deploy that made it",
        )
    shape, unit, meaning = known[name]
    return TensorContract(name, "float32", (1, "S", *shape), unit, meaning)
