"""What is asked: settings, scenes, and the JSON by which two questions are told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from vggt_deploy.compare.calibration import CalibrationQuestion
from vggt_deploy.compare.devices import DeviceQuestion
from vggt_deploy.compare.environment import Environment
from vggt_deploy.compare.jobs import LayerPatterns, ModelQuestion
from vggt_deploy.compare.scenes import Scenes
from vggt_deploy.compare.variants import Variant
from vggt_deploy.errors import UsageError
from vggt_deploy.quantize.schemes import SCHEMES, Precision

QUESTION_SCHEMA = 5


@dataclass(frozen=True)
class Identity:
    """What the model spec turned out to be, and for engines the GPU that is here; the answer of the
    identify job.
    """

    config: str
    kind: Literal["file", "package", "hub", "random"]
    revision: str | None
    sha256: str | None
    licence: str | None
    checkpoint_bytes: int | None
    gpu: str | None = None


@dataclass(frozen=True)
class Settings:
    """Everything that was asked for except the scenes."""

    model: ModelQuestion
    variants: tuple[Variant, ...]
    outputs: tuple[str, ...]
    precision: Precision | None
    layers: LayerPatterns
    calibration: CalibrationQuestion | None
    warmup: int
    repeats: int
    threads: int
    verify: bool
    timeout_s: float
    device: DeviceQuestion | None = None

    def check(self) -> None:
        """Refuse numbers that can't mean anything, before anything is started."""
        for name, value, least in (
            ("warmup", self.warmup, 0),
            ("repeats", self.repeats, 1),
            ("threads", self.threads, 1),
        ):
            if value < least:
                raise UsageError(f"{name} is {value}", f"use {least} or more")
        if not self.timeout_s > 0:
            raise UsageError(f"the time limit is {self.timeout_s} s", "use more than 0 seconds")

    def precision_of(self, variant: Variant) -> Precision:
        """Float type of what is not integer: an integer scheme can be given another one."""
        scheme = SCHEMES[variant.scheme]
        return self.precision if scheme.integer and self.precision else scheme.precision

    def resolved(self, identity: Identity) -> Settings:
        """Architecture and commit pinned, so that every worker gets the same weights."""
        revision = identity.revision if identity.kind == "hub" else self.model.revision
        return replace(self, model=replace(self.model, config=identity.config, revision=revision))


def build_question(
    settings: Settings, scenes: Scenes, identity: Identity, environment: Environment
) -> dict[str, Any]:
    """The question as JSON. Whatever can change a number is in it; a time limit is not.

    environment: of the machine that variants are timed on.
    """
    weights = asdict(identity)
    gpu = weights.pop("gpu")
    return {
        "schema": QUESTION_SCHEMA,
        "model": {"spec": settings.model.spec, **weights},
        **scenes.to_json(),
        "variants": _labels(settings.variants),
        "outputs": list(settings.outputs),
        "precision": settings.precision,
        "layers": {key: list(value) for key, value in asdict(settings.layers).items()},
        "calibration": settings.calibration and settings.calibration.to_json(),
        "device": settings.device and {**settings.device.to_json(), "gpu": gpu},
        "warmup": settings.warmup,
        "repeats": settings.repeats,
        "threads": settings.threads,
        "verify": settings.verify,
        "machine": {"cpu": environment.cpu, "python": environment.python},
        "versions": environment.versions,
    }


def _labels(variants: Sequence[Variant]) -> list[str]:
    return [variant.label for variant in variants]
