"""How long each Linear takes in each format, measured in ONNX Runtime on this machine.

    costs.json    Costs, field by field: kept, so that a second search on the same machine need not
                  measure again

Each shape (rows, inputs, outputs) is timed by itself, once per format, as `graphs` writes it. What
stands beside a Linear (bias, norms, attention, convolutions, moving data between layers) is in none
of the times, so the sums tell assignments apart and are not the time of the network.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vggt_deploy import typed_json
from vggt_deploy.errors import ArtifactError, DeployError, UsageError
from vggt_deploy.progress import Progress, silent
from vggt_deploy.quantize.recipe import FLOAT
from vggt_deploy.quantize.schemes import Activations, WeightFormat, parse_format
from vggt_deploy.search.graphs import LinearShape, example_input, linear_graph

if TYPE_CHECKING:
    from torch import Tensor, nn

SCHEMA = 1
COSTS_NAME = "costs.json"
REPEATS = 15
WARMUP = 3
_LOG_ERRORS_ONLY = 3


Calls = tuple[int, ...]
"""How a Linear is used in one run of the network: the rows of its input, call by call."""


@dataclass(frozen=True)
class LinearCost:
    """One shape in one format ("float": FP32): median and interquartile range of n calls."""

    rows: int
    inputs: int
    outputs: int
    format: str
    n: int
    median_ms: float
    iqr_ms: float


@dataclass(frozen=True)
class Costs:
    """All that was timed, where, and beside what.

    frames, height, width: of the run of the network that the rows are from
    others_cpus: CPUs that other processes kept busy meanwhile; None where the system does not tell
    """

    schema: int
    runtime: str
    cpu: str
    threads: int
    activations: Activations
    frames: int
    height: int
    width: int
    others_cpus: float | None
    linears: tuple[LinearCost, ...]

    def time_ms(self, shape: LinearShape, label: str) -> float:
        """The median of one call.

        Raises:
            UsageError: it was not timed.
        """
        key = (shape.rows, shape.inputs, shape.outputs, label)
        for cost in self.linears:
            if (cost.rows, cost.inputs, cost.outputs, cost.format) == key:
                return cost.median_ms
        raise UsageError(
            f"{shape.rows} x {shape.inputs} x {shape.outputs} in {label} is not among the costs",
            "they are of another model, size, number of views or set of formats: use --costs auto",
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Costs:
        """The inverse; ArtifactError where it is something else."""
        try:
            value = typed_json.parse(text)
        except (ValueError, RecursionError) as error:
            raise _refuse(f"the costs are no JSON: {error}") from error
        costs = cast("Costs", typed_json.decode(cls, value, "costs", _refuse))
        if costs.schema != SCHEMA:
            raise _refuse(f"costs of schema {costs.schema}, this version reads {SCHEMA}")
        if not all(cost.median_ms > 0 and cost.n > 0 for cost in costs.linears):
            raise _refuse("a cost is not above 0")
        return costs


def load_costs(path: Path) -> Costs:
    """The costs of a file, or of the folder that a search wrote."""
    file = path / COSTS_NAME if path.is_dir() else path
    try:
        return Costs.from_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"can't read the costs {file}: {error}", "give costs.json of a search, or --costs auto"
        ) from error


def linear_calls(model: nn.Module, images: Tensor) -> dict[str, Calls]:
    """The Linears that a run on images [1, S, 3, H, W] calls."""
    import torch
    from torch import nn as modules

    seen: dict[str, list[int]] = {}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            seen.setdefault(name, []).append(given[0].numel() // given[0].shape[-1])

        return hook

    handles = [
        module.register_forward_pre_hook(watch(name))
        for name, module in model.named_modules()
        if isinstance(module, modules.Linear)
    ]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return {name: tuple(rows) for name, rows in seen.items()}


def measure_costs(
    wanted: Iterable[tuple[LinearShape, str]],
    activations: Activations,
    *,
    frames: int,
    height: int,
    width: int,
    threads: int | None = None,
    repeats: int = REPEATS,
    progress: Progress | None = None,
) -> Costs:
    """Time each (shape, format label or "float") once; equal ones are timed once."""
    import onnxruntime

    from vggt_deploy.compare.contention import watch_others
    from vggt_deploy.compare.environment import describe_environment, usable_cpus

    report = progress or silent
    asked = list(dict.fromkeys(wanted))
    count = threads or usable_cpus()
    linears = []
    with watch_others() as others:
        for done, (shape, label) in enumerate(asked):
            report("layer costs", done, len(asked))
            form = None if label == FLOAT else parse_format(label)
            linears.append(_time(shape, form, activations, count, repeats))
    report("layer costs", len(asked), len(asked))
    return Costs(
        SCHEMA,
        f"onnxruntime {onnxruntime.__version__}",
        describe_environment().cpu,
        count,
        activations,
        frames,
        height,
        width,
        others.cpus,
        tuple(linears),
    )


def layer_times(
    calls: Mapping[str, Calls],
    shapes: Mapping[str, tuple[int, ...]],
    labels: Iterable[str],
    costs: Costs,
) -> dict[str, dict[str, float]]:
    """Layer -> format label -> ms in one run of the network: its calls, each as long as measured.

    shapes: layer -> weight [N, K], of the Linears alone
    """
    known = list(labels)
    return {
        name: {
            label: sum(costs.time_ms(one, label) for one in shapes_of(shape, calls[name]))
            for label in known
        }
        for name, shape in shapes.items()
        if name in calls
    }


def shapes_of(weight: tuple[int, ...], calls: Calls) -> list[LinearShape]:
    """The products of a Linear with weight [N, K], one per call."""
    return [LinearShape(rows, weight[1], weight[0]) for rows in calls]


def _time(
    shape: LinearShape,
    form: WeightFormat | None,
    activations: Activations,
    threads: int,
    repeats: int,
) -> LinearCost:
    import onnxruntime

    from vggt_deploy.compare.latency import measure

    graph = linear_graph(shape, form, activations)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _LOG_ERRORS_ONLY
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    for key, value in graph.session_options.items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(
        graph.model,
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=list(graph.disabled_optimizers) or None,
    )
    feed = {"x": example_input(graph.shape)}
    latency, _ = measure(lambda: session.run(None, feed), warmup=WARMUP, repeats=repeats)
    return LinearCost(
        shape.rows,
        shape.inputs,
        shape.outputs,
        FLOAT if form is None else form.label,
        latency.n,
        latency.median_ms,
        latency.iqr_ms,
    )


def _refuse(problem: str) -> DeployError:
    return ArtifactError(problem, "it was not written by this version: use --costs auto")
