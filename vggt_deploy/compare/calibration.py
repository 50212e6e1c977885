"""What static activations are calibrated on: asked once, collected once, used by every variant.

--calibrate a folder of images        -> one worker collects the statistics in work/calibration
--calibrate a folder with statistics  -> taken as they are
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vggt_deploy.compare.variants import Variant
from vggt_deploy.data.folders import find_all_images
from vggt_deploy.errors import UsageError
from vggt_deploy.manifest import hash_file
from vggt_deploy.quantize.histogram import DEFAULT_METHOD, parse_method
from vggt_deploy.quantize.statistics import holds_statistics, load_statistics


@dataclass(frozen=True)
class CalibrationQuestion:
    """The folder, the method as it was written, and what identifies the folder's content.

    statistics: whether the folder holds statistics, not images.
    content: file name -> SHA-256 of the images that were used, or would be.
    """

    folder: Path
    method: str
    statistics: bool
    content: dict[str, str]

    @property
    def note(self) -> str:
        """For the report."""
        kind = "statistics of " if self.statistics else ""
        label = parse_method(self.method).label
        return f"static activations: {label}, {kind}{len(self.content)} images in {self.folder}"

    def to_json(self) -> dict[str, Any]:
        """The part of the comparison's question that it is."""
        return {"method": self.method, "statistics": self.statistics, "images": self.content}


def ask_calibration(
    calibrate: Path | str | None, method: str, variants: Sequence[Variant]
) -> CalibrationQuestion | None:
    """Check `--calibrate` against the variants; None where no variant has static activations.

    Raises:
        UsageError: static variants without a folder, or a folder without static variants.
        ImageError: no images in the folder.
        CalibrationError: damaged statistics.
    """
    static = [variant.label for variant in variants if variant.activations == "static"]
    if calibrate is None:
        if static:
            raise UsageError(
                f"{static[0]} has static activations, which need images to calibrate on",
                "give --calibrate DIR (your images, or what `vggt-deploy calibrate` wrote), "
                "or leave the +static schemes out",
            )
        if method != DEFAULT_METHOD:
            raise UsageError(
                f"calibration method {method} was given, and nothing is calibrated",
                "add --calibrate DIR and a +static scheme, or leave it out",
            )
        return None
    if not static:
        raise UsageError(
            f"--calibrate {calibrate} was given, and no variant has static activations",
            "add one to --schemes, such as int8_pc_sym+static, or leave --calibrate out",
        )
    parse_method(method)
    folder = Path(calibrate).expanduser().absolute()
    if holds_statistics(folder):
        return CalibrationQuestion(folder, method, True, load_statistics(folder).images)
    views = {name: path for scene in find_all_images(folder) for name, path in scene.items()}
    content = {name: hash_file(path) for name, path in views.items()}
    return CalibrationQuestion(folder, method, False, content)
