"""The residual stream of an artifact after every block, from the artifact's own graph.

`export` calls nodes `<module>/<operator>`, so the output of a block is the last `<block>/Add` in
the graph. A copy of the graph, in a folder of its own, gets these values as further outputs and is
run in ONNX Runtime with the artifact's settings. An output more may keep the runtime from fusing
operators across it: what is tapped is what the graph says, up to the rounding of a fusion.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vggt_deploy.artifact import require_free_space
from vggt_deploy.engines.onnxruntime import TARGET, open_onnxruntime
from vggt_deploy.errors import ArtifactError
from vggt_deploy.export.emulate import emulate
from vggt_deploy.records import GraphRecord, Manifest

Arrays = dict[str, NDArray[np.float32]]
_LAST_ADD = re.compile(r"(?P<block>.+)/Add(_\d+)?")


@dataclass(frozen=True)
class Tapped:
    """One run of an artifact on one scene.

    blocks: block -> its output [S, P, C]; outputs: the artifact's own
    """

    blocks: Arrays
    outputs: Arrays


def graph_of(artifact: Path, manifest: Manifest) -> GraphRecord:
    """The graph that ONNX Runtime runs.

    Raises:
        ArtifactError: there is none.
    """
    record = manifest.graphs.get(TARGET)
    if record is None:
        raise ArtifactError(
            f"{artifact} has no graph for ONNX Runtime", "give a folder that `export` wrote"
        )
    return record


def run_tapped(
    artifact: Path,
    manifest: Manifest,
    blocks: Sequence[str],
    images: NDArray[np.float32],
    *,
    threads: int | None = None,
) -> Tapped:
    """Run the artifact on images [1, S, 3, H, W] and keep what every block gives.

    Raises:
        ArtifactError: the graph has no such blocks, or can't be loaded.
        UsageError: images that the artifact does not take.
    """
    record = graph_of(artifact, manifest)
    with _beside_weights(artifact, manifest) as folder:
        names = _tap(artifact, record, folder, blocks, emulated=manifest.precision == "bf16")
        outputs = (*manifest.outputs, *names.values())
        opened = dataclasses.replace(manifest, outputs=outputs, graphs={TARGET: record})
        session = open_onnxruntime(folder, opened, provider="cpu", threads=threads)
        try:
            values = session.run(images)
        finally:
            session.close()
    return Tapped(
        blocks={block: values[name] for block, name in names.items()},
        outputs={name: values[name] for name in manifest.outputs},
    )


def _tap(
    artifact: Path, record: GraphRecord, folder: Path, blocks: Sequence[str], *, emulated: bool
) -> dict[str, str]:
    """Write the copy; block -> name of the value that is its output."""
    model = ir.load(artifact / record.file)
    if emulated:  # ONNX Runtime's CPU provider has no BF16 kernels
        emulate(model.graph)
    last: dict[str, ir.Value] = {}
    for node in model.graph:
        found = _LAST_ADD.fullmatch(str(node.name))
        if found is not None and node.op_type == "Add":
            last[found["block"]] = node.outputs[0]
    missing = [block for block in blocks if block not in last]
    if missing:
        raise ArtifactError(
            f"{record.file} has no node called {missing[0]}/Add, so it does not say what that "
            "block gives",
            "export it again with this version",
        )
    for block in blocks:
        value = last[block]
        if value.type is None:
            value.type = ir.TensorType(ir.DataType.FLOAT)
        model.graph.outputs.append(value)
    # Weights are named, not written: the copy of the graph finds the copy of their file beside it.
    ir.save(model, folder / record.file)
    return {block: str(last[block].name) for block in blocks}


@contextmanager
def _beside_weights(artifact: Path, manifest: Manifest) -> Iterator[Path]:
    """A folder for a while, with a copy of the weights in it.

    A copy: ONNX Runtime refuses weights outside the graph's own folder, and links to them.
    """
    graphs = {graph.file for graph in manifest.graphs.values()}
    others = {name: record for name, record in manifest.files.items() if name not in graphs}
    parent = artifact.resolve().parent
    if not os.access(parent, os.W_OK):  # an artifact that lies in a folder of another's
        parent = Path(tempfile.gettempdir())
    require_free_space(parent, sum(record.bytes for record in others.values()))
    with tempfile.TemporaryDirectory(dir=parent, prefix=".bisect.") as name:
        for other in others:
            shutil.copyfile(artifact / other, Path(name) / other)
        yield Path(name)
