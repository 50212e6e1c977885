"""Which TensorRT made a serialized engine, read from its first bytes: no TensorRT, nothing loaded.

    bytes 0-3    "ftrt" TensorRT, "vtrt" TensorRT-RTX
    bytes 4-7    version of the serialization, little-endian; 0 is known
    bytes 24-27  major, minor, patch and build number of the builder

Sources: `trtexec --getPlanVersionOnly` for TensorRT; plans of TensorRT-RTX 1.7.1.116.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vggt_deploy.engines.tensorrt.library import TensorRTRuntime
from vggt_deploy.errors import ArtifactError

HEADER_BYTES = 28
_MAGIC: dict[bytes, TensorRTRuntime] = {b"ftrt": "tensorrt", b"vtrt": "tensorrt-rtx"}
_KNOWN_SERIALIZATION = 0


@dataclass(frozen=True)
class PlanHeader:
    """version: four numbers, None where the serialization is another than the known one."""

    runtime: TensorRTRuntime | None
    version: tuple[int, int, int, int] | None
    serialization: int

    @property
    def version_text(self) -> str:
        """In words: 10.3.0.26, or "unknown"."""
        return "unknown" if self.version is None else ".".join(map(str, self.version))


def read_plan_header(plan: Path | bytes) -> PlanHeader:
    """The header of a plan: of a file (only its first bytes are read) or of bytes.

    Raises:
        ArtifactError: no plan, cut short, or unreadable.
    """
    if isinstance(plan, bytes):
        name, data = "the plan", plan[:HEADER_BYTES]
    else:
        name = str(plan)
        try:
            with plan.open("rb") as file:
                data = file.read(HEADER_BYTES)
        except OSError as error:
            raise ArtifactError(
                f"{name} can't be read ({error.strerror})", "check the path and its permissions"
            ) from error
    rebuild = "copy the engine again, or build it: vggt-deploy build ARTIFACT"
    if len(data) < HEADER_BYTES:
        raise ArtifactError(
            f"{name} is cut short: {len(data)} bytes, a plan's header alone has {HEADER_BYTES}",
            rebuild,
        )
    runtime = _MAGIC.get(data[:4])
    if runtime is None:
        raise ArtifactError(f"{name} is no TensorRT plan: it begins with {data[:4]!r}", rebuild)
    serialization = int.from_bytes(data[4:8], "little")
    if serialization != _KNOWN_SERIALIZATION:
        return PlanHeader(runtime, None, serialization)
    major, minor, patch, build = data[24:28]
    return PlanHeader(runtime, (major, minor, patch, build), serialization)
