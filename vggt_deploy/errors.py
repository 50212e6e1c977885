"""What can go wrong, as types. Every message says what happened and how to fix it.

Exit codes of the command line: 0 done, 1 the job failed, 2 wrong usage. A `DeployError` carries its
own code, so the command line has nothing to decide.
"""

from __future__ import annotations


class DeployError(Exception):
    """A failure that we understand: `message` is what happened, `fix` what to do about it."""

    exit_code = 1

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message, fix)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}\n  fix: {self.fix}"


class UsageError(DeployError):
    """The request itself is wrong: an unknown scheme, a height that is no multiple of 14."""

    exit_code = 2


class ModelError(DeployError):
    """A checkpoint can't be found, read, or does not fit the architecture."""


class ImageError(DeployError):
    """No images, or an image that can't be decoded."""


class SceneError(DeployError):
    """A scene's calibration or depth is missing, damaged, or does not fit its pictures."""


class QuantizeError(DeployError):
    """A weight can't be quantized as asked (not finite, a shape the scheme has no meaning for)."""


class CalibrationError(DeployError):
    """Static activations can't be calibrated: no images, or statistics of something else."""


class ExportError(DeployError):
    """The graph could not be traced, rewritten or written."""


class VerifyError(ExportError):
    """The exported graph does not compute what the PyTorch variant computes."""


class ArtifactError(DeployError):
    """An artifact folder is missing, incomplete, edited, from a newer version, or being written."""


class RuntimeUnavailableError(DeployError):
    """A runtime, provider or device that was asked for is not there. Never replaced silently."""


class BuildError(DeployError):
    """An engine can't be built as asked: the graph, the device profile or the builder says no."""


class ProofError(BuildError):
    """The engine was built, but does not compute in the types that the scheme promises."""


class BundleError(DeployError):
    """A bundle can't be made, was changed, is not signed as asked, or does not fit the device."""


class CompareError(DeployError):
    """A comparison can't start or go on (a different question in the folder, no reference)."""


class GateError(DeployError):
    """A comparison is beyond its gates, or was not made in the way that they ask for."""
