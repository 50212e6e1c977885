"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Option(
        "--model",
        help="vggt-nano (in this package), a .safetensors or .pt file, a Hugging Face id, or "
        "random:CONFIG (random:vggt-1b).",
    ),
]
_SIZE = "In pixels, a multiple of 14; default: what the model works at (VGGT-1B: 350 x 518)."
Height = Annotated[int | None, typer.Option("--height", help=_SIZE)]
Width = Annotated[int | None, typer.Option("--width", help=_SIZE)]
Config = Annotated[
    str | None,
    typer.Option("--config", help="Architecture, if it is not to be found from the weights."),
]
Revision = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit of a Hugging Face model.")
]
Precision = Annotated[
    str | None,
    typer.Option("--precision", help="fp32, fp16 or bf16 for what is not integer."),
]
Outputs = Annotated[
    str, typer.Option("--outputs", help="Some of pose,depth,points; other heads are left out.")
]
Mode = Annotated[
    str, typer.Option("--mode", help="How images are brought to size: crop or pad, as upstream.")
]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="Default: the cores that it may use.")
]
Include = Annotated[
    list[str] | None,
    typer.Option(
        "--include",
        metavar="PATTERN",
        help="Also quantize layers that match this pattern (repeatable).",
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="PATTERN",
        help="Keep layers that match this pattern in float (repeatable).",
    ),
]
Sensitive = Annotated[
    list[str] | None,
    typer.Option(
        "--sensitive",
        metavar="PATTERN",
        help="Scheme mixed: layers to keep at 8 bit, by pattern (repeatable).",
    ),
]
Images = Annotated[Path, typer.Option("--images", help="A folder of images, or an ETH3D scene.")]
MaxImages = Annotated[
    int | None,
    typer.Option(
        "--max-images", min=1, help="Use the first N images only; of several scenes, of each."
    ),
]
AcceptFloat = Annotated[
    bool,
    typer.Option(
        "--accept-float", help="Keep the engine even if it computes in less than the scheme says."
    ),
]
Calibrate = Annotated[
    Path | None,
    typer.Option(
        "--calibrate",
        metavar="DIR",
        help="Static activations: a folder of your images, or what `calibrate` wrote.",
    ),
]
CalibrationMethod = Annotated[
    str | None,
    typer.Option("--calibration-method", help="absmax, mse, percentile or percentile:P."),
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad-images", help="Leave unreadable images out instead of stopping.")
]
Output = Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the output folder if vggt-deploy made it.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
