"""What `module.export_module` leaves: graphs, one weights file, and `module.json` that names them.

The record is read strictly and the files are checked against their hashes, as those of a VGGT
artifact are (`manifest`). Of a network whose inputs and outputs can be anything there is less to
say, so its record is one of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from vggt_deploy import typed_json
from vggt_deploy.errors import ArtifactError
from vggt_deploy.export.qdq import GraphTarget
from vggt_deploy.manifest import hash_file, is_plain_name
from vggt_deploy.records import FileRecord, GraphRecord

if TYPE_CHECKING:
    import onnxruntime

RECORD_NAME = "module.json"
SCHEMA = 1
MAX_RECORD_BYTES = 32 << 20
_FIX = "export the network again"


@dataclass(frozen=True)
class ModuleRecord:
    """The artifact, described.

    network: name of the class; inputs, outputs: names of tensors, in order
    formats: quantized layer -> format; input_scales: layer -> scale, for static activations alone
    graphs: by target, with what ONNX Runtime has to be told to compute what was asked for
    relative_l2_error: target -> output -> error against PyTorch, the largest of all trials; None if
        it was not verified
    """

    schema: int
    tool_version: str
    created: str
    network: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    activations: str
    formats: dict[str, str]
    input_scales: dict[str, float]
    graphs: dict[str, GraphRecord]
    files: dict[str, FileRecord]
    versions: dict[str, str]
    relative_l2_error: dict[str, dict[str, float]] | None = None


@dataclass(frozen=True)
class ModuleArtifact:
    """A folder that `export_module` wrote."""

    folder: Path
    record: ModuleRecord

    @property
    def bytes_total(self) -> int:
        """Of all files but the record."""
        return sum(file.bytes for file in self.record.files.values())


def open_module(artifact: Path) -> ModuleArtifact:
    """The artifact in this folder, its files checked against their hashes.

    Raises:
        ArtifactError: it is none, of another version, changed or cut short.
    """
    path = Path(artifact) / RECORD_NAME
    if not path.is_file():
        raise ArtifactError(f"{artifact} holds no {RECORD_NAME}", "give what export_module wrote")
    if path.stat().st_size > MAX_RECORD_BYTES:
        raise _refuse(f"{path} is larger than any such record is")
    try:
        value = typed_json.parse(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise _refuse(f"{path} can't be read: {error}") from error
    if isinstance(value, dict) and value.get("schema") != SCHEMA:
        raise _refuse(f"{path} has schema {value.get('schema')!r}, this version reads {SCHEMA}")
    record = cast(ModuleRecord, typed_json.decode(ModuleRecord, value, "module", _refuse))
    if any(graph.file not in record.files for graph in record.graphs.values()):
        raise _refuse(f"{path} names a graph that is not among its files")
    for name, file in record.files.items():
        if not is_plain_name(name):
            raise _refuse(f"{path} names {name!r}, which is not a plain file name")
        if not (Path(artifact) / name).is_file() or hash_file(path.parent / name) != file.sha256:
            raise _refuse(f"{path.parent / name} is missing, or was changed or cut short")
    return ModuleArtifact(Path(artifact), record)


def open_session(
    artifact: ModuleArtifact, target: GraphTarget = "onnxruntime"
) -> onnxruntime.InferenceSession:
    """ONNX Runtime on the CPU, told what the record says. TensorRT's graph is plain ONNX too."""
    graph = artifact.record.graphs.get(target)
    if graph is None:
        known = ", ".join(artifact.record.graphs)
        raise ArtifactError(f"{artifact.folder} has no graph for {target}", f"it has: {known}")
    return session_of(artifact.folder, artifact.record, graph.file)


def session_of(folder: Path, record: ModuleRecord, file: str) -> onnxruntime.InferenceSession:
    """The same for one file of a folder that is still being written and not yet checked."""
    import onnxruntime

    settings = record.graphs["onnxruntime"]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    for key, value in settings.session_options.items():
        options.add_session_config_entry(key, value)
    return onnxruntime.InferenceSession(
        str(folder / file),
        sess_options=options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=list(settings.disabled_optimizers) or None,
    )


def _refuse(problem: str) -> ArtifactError:
    return ArtifactError(problem, _FIX)
