"""Small artifacts and small graphs, and ONNX Runtime to run them.

A trace of vggt-tiny takes seconds and everything else a fraction of one, so the traces are kept for
the session, and for all workers of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx_ir")
ort = pytest.importorskip("onnxruntime")

import onnx_ir as ir  # noqa: E402

from vggt_deploy.export.pipeline import ExportResult, export  # noqa: E402
from vggt_deploy.export.request import ExportRequest, make_request  # noqa: E402
from vggt_deploy.manifest import read_manifest  # noqa: E402
from vggt_deploy.model.weights import open_weights  # noqa: E402
from vggt_deploy.quantize.calibration import Pictures, observe  # noqa: E402
from vggt_deploy.quantize.schemes import parse_label  # noqa: E402
from vggt_deploy.quantize.statistics import Statistics  # noqa: E402
from vggt_deploy.records import Manifest  # noqa: E402

MODEL = "random:vggt-tiny"
HEIGHT, WIDTH = 56, 84
FRAMES = (1, 2, 5)
ALL_OUTPUTS = ("pose", "depth", "points")


@dataclass
class Exporter:
    """Exports of vggt-tiny at 56 x 84 pixels; `artifact` ones are shared: copy before you spoil."""

    traces: Path
    folder: Path
    write_pictures: Callable[..., tuple[Path, ...]]
    made: dict[str, Path] = field(default_factory=dict)

    @cached_property
    def pictures(self) -> Path:
        """A folder of images to calibrate on."""
        folder = self.folder / "pictures"
        self.write_pictures(folder, 4, size=(WIDTH, HEIGHT))
        return folder

    @cached_property
    def statistics(self) -> Statistics:
        """Of vggt-tiny on these images; what variants with static activations get by default."""
        config, source = open_weights(MODEL)
        return observe(config, source, Pictures(self.pictures, HEIGHT, WIDTH))

    def export(self, target: Path, variant: str | None, **options: Any) -> ExportResult:
        if variant is not None and parse_label(variant).activations == "static":
            options = {"calibrate": self.statistics, **options}
        arguments = {
            "output_dir": target,
            "height": HEIGHT,
            "width": WIDTH,
            "frames": FRAMES,
            "trace_cache": self.traces,
            **options,
        }
        return export(arguments.pop("model", MODEL), variant, **arguments)

    def artifact(self, variant: str, **options: Any) -> Path:
        """An artifact that was not verified; made once."""
        key = "_".join([variant, *(f"{k}={v}" for k, v in sorted(options.items()))])
        if key not in self.made:
            target = self.folder / f"artifact_{len(self.made)}"
            self.made[key] = self.export(target, variant, verify=False, **options).folder
        return self.made[key]

    def request(self, variant: str, **options: Any) -> ExportRequest:
        """What `export` makes of the same arguments."""
        asked = parse_label(variant)
        return make_request(
            asked,
            precision=options.get("precision"),
            outputs=options.get("outputs", ALL_OUTPUTS),
            frames=FRAMES,
            patterns=((), (), ()),
            calibrate=self.statistics if asked.activations == "static" else None,
        )(HEIGHT, WIDTH)


@pytest.fixture(scope="session")
def exporter(
    tmp_path_factory: pytest.TempPathFactory, write_pictures: Callable[..., tuple[Path, ...]]
) -> Exporter:
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return Exporter(shared / "traces", tmp_path_factory.mktemp("artifacts"), write_pictures)


class OnnxRuntime:
    """Runs graphs of artifacts, and models in memory, on the CPU."""

    def artifact(
        self, folder: Path, images: np.ndarray, target: str = "onnxruntime"
    ) -> dict[str, np.ndarray]:
        """Any graph of an artifact, with the session settings of its manifest."""
        manifest = read_manifest(folder, check_hashes=False)
        settings = manifest.graphs["onnxruntime"]
        session = ort.InferenceSession(
            str(folder / manifest.graphs[target].file),
            _options(settings.session_options),
            providers=["CPUExecutionProvider"],
            disabled_optimizers=list(settings.disabled_optimizers) or None,
        )
        values = session.run(list(manifest.outputs), {"images": images})
        return dict(zip(manifest.outputs, values, strict=True))

    def model(
        self, model: ir.Model | Path, feeds: Mapping[str, np.ndarray], *, optimize: bool = True
    ) -> list[np.ndarray]:
        """All outputs of a model; a file where it has external data."""
        source: str | bytes = (
            str(model)
            if isinstance(model, Path)
            else ir.serde.serialize_model(model).SerializeToString()
        )
        options = _options({"session.qdq_matmulnbits_accuracy_level": "1"})
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        return list(session.run(None, dict(feeds)))


def _options(entries: Mapping[str, str]) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    return options


@pytest.fixture(scope="session")
def runtime() -> OnnxRuntime:
    return OnnxRuntime()


@dataclass(frozen=True)
class Opened:
    """An artifact with its graphs as onnx_ir sees them."""

    folder: Path
    manifest: Manifest
    graphs: dict[str, ir.Model]

    def tensors(self) -> dict[str, ir.ExternalTensor]:
        """Name -> tensor in the weights file, of all graphs."""
        return {
            str(value.name): value.const_value
            for model in self.graphs.values()
            for graph in (model.graph, *model.graph.subgraphs())
            for value in graph.initializers.values()
            if isinstance(value.const_value, ir.ExternalTensor)
        }


@pytest.fixture(scope="session")
def opened() -> Any:
    """Artifact folder -> Opened."""

    def load(folder: Path) -> Opened:
        manifest = read_manifest(folder, check_hashes=False)
        graphs = {t: ir.load(folder / g.file) for t, g in manifest.graphs.items()}
        return Opened(folder, manifest, graphs)

    return load


class TensorSource:
    """A weight source of tensors in memory."""

    origin = None

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self.tensors = dict(tensors)

    def keys(self) -> tuple[str, ...]:
        return tuple(self.tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self.tensors[key].shape)

    def load(self, key: str) -> Any:
        return self.tensors[key]


@pytest.fixture(scope="session")
def small_model() -> Any:
    """ONNX text and the names of those inputs that are weights -> ir.Model without their data.

    The weight `w` of the text stands for the tensor `vggt.w` of a network.
    """
    from vggt_deploy.export.simplify import WeightRef

    def make(text: str, weights: tuple[str, ...] = ()) -> ir.Model:
        model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": 21]>\n{text}')
        for number, node in enumerate(model.graph):
            node.name = f"node_{number}"
        for value in [v for v in model.graph.inputs if v.name in weights]:
            model.graph.inputs.remove(value)
            value.meta["ref"] = WeightRef(f"vggt.{value.name}")
            model.graph.initializers.add(value)
        return model

    return make


@pytest.fixture
def materialized(tmp_path: Path) -> Any:
    """Streams tensors into a small model's weights, quantized where `formats` says so.

    Returns the folder of the weights file, where the model belongs, and what `materialize` returns.
    """
    from vggt_deploy.export.materialize import materialize
    from vggt_deploy.export.weights_file import WeightsFile
    from vggt_deploy.quantize.plan import LayerInfo

    def write(
        model: ir.Model,
        tensors: Mapping[str, Any],
        formats: Any = None,
        kind: Any = "linear",
        input_scales: Any = None,
    ) -> Any:
        layers = {
            name.rpartition(".")[0]: LayerInfo(name.rpartition(".")[0], kind, tuple(t.shape))
            for name, t in tensors.items()
            if name.endswith(".weight")
        }
        folder = tmp_path / f"model_{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        with WeightsFile(folder / "weights.bin") as file:
            stored = materialize(
                model.graph,
                TensorSource(tensors),  # type: ignore[arg-type]
                {},
                layers,
                formats or {},
                file,
                rank_1=True,
                progress=lambda stage, done, total: None,
                input_scales=input_scales,
            )
        return folder, stored

    return write
