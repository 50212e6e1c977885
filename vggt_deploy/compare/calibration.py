"""What static activations are calibrated on: asked once, collected once, used by every variant.

--calibrate a folder of images        -> one worker collects the statistics in work/calibration
--calibrate a folder with statistics  -> taken as they are
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vggt_deploy.compare.jobs import Calibration
from vggt_deploy.compare.measures import Failure
from vggt_deploy.compare.variants import Variant
from vggt_deploy.data.folders import find_all_images
from vggt_deploy.errors import UsageError
from vggt_deploy.manifest import hash_file
from vggt_deploy.quantize.methods import DEFAULT_METHOD, parse_method
from vggt_deploy.quantize.statistics import holds_statistics, load_statistics
from vggt_deploy.quantize.treatment import DEFAULT_INPUT_RANGE, WORDS


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


def calibration_of(
    variant: Variant, collected: Calibration | Failure | None
) -> Calibration | Failure | None:
    """What a variant with plain weights takes its static ranges from; its label goes before."""
    if variant.activations != "static" or not isinstance(collected, Calibration):
        return collected if variant.activations == "static" else None
    treatment = variant.quantization.treatment
    method = collected.method
    if treatment.input_range != DEFAULT_INPUT_RANGE:
        method = treatment.input_range.spelled
    return replace(collected, method=method, apart=treatment.apart)


def _or_statistics(looking: Sequence[Variant]) -> str:
    """Statistics do where no label has to run the pictures itself."""
    if any(variant.quantization.treatment.prepares for variant in looking):
        return ""
    return ", or what `vggt-deploy calibrate` wrote"


def _check_method(method: str, looking: Sequence[Variant]) -> None:
    """The option is for static ranges that are made of collected statistics, and for those alone.

    Raises:
        UsageError: there are none, or a label prepares its weights and says nothing itself.
    """
    parse_method(method)
    if method == DEFAULT_METHOD:
        return
    static = [variant for variant in looking if variant.activations == "static"]
    if not static:
        raise UsageError(
            f"calibration method {method} was given, and no variant has static activations",
            "leave it out",
        )
    for variant in static:
        treatment = variant.quantization.treatment
        if treatment.prepares and treatment.input_range == DEFAULT_INPUT_RANGE:
            raise UsageError(
                f"calibration method {method} does not reach {variant.label}, whose ranges are "
                "found while its weights are prepared",
                f"say it in the label: {variant.scheme}+static+a=... ({WORDS})",
            )


def ask_calibration(
    calibrate: Path | str | None, method: str, variants: Sequence[Variant]
) -> CalibrationQuestion | None:
    """Check `--calibrate` against the variants; None where no variant has static activations.

    Raises:
        UsageError: static variants without a folder, or a folder without static variants.
        ImageError: no images in the folder.
        CalibrationError: damaged statistics.
    """
    looking = [variant for variant in variants if variant.quantization.needs_pictures]
    if calibrate is None:
        if looking:
            raise UsageError(
                f"{looking[0].label} looks at pictures, which it needs to calibrate on",
                f"give --calibrate DIR: your images{_or_statistics(looking)}; or leave the schemes "
                "with static, smooth or gptq out",
            )
        if method != DEFAULT_METHOD:
            raise UsageError(
                f"calibration method {method} was given, and nothing is calibrated",
                "add --calibrate DIR and a +static scheme, or leave it out",
            )
        return None
    if not looking:
        raise UsageError(
            f"--calibrate {calibrate} was given, and no variant has static activations or looks at "
            "pictures otherwise",
            "add one to --schemes, such as int8_pc_sym+static, or leave --calibrate out",
        )
    _check_method(method, looking)
    folder = Path(calibrate).expanduser().absolute()
    preparing = [v.label for v in looking if v.quantization.treatment.prepares]
    if holds_statistics(folder) and preparing:
        raise UsageError(
            f"{preparing[0]} has to run the pictures themselves, and {folder} holds statistics",
            "give the folder of images",
        )
    if holds_statistics(folder):
        return CalibrationQuestion(folder, method, True, load_statistics(folder).images)
    views = {name: path for scene in find_all_images(folder) for name, path in scene.items()}
    content = {name: hash_file(path) for name, path in views.items()}
    return CalibrationQuestion(folder, method, False, content)
