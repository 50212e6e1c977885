"""The result of a comparison, as data, and its JSON.

`comparison_report.json` is the dataclasses below, field by field, under a schema number; a field is
added only together with a higher number. None means: not measured, and a note or the row's error
says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from string import Formatter
from typing import Any, Literal, cast, get_type_hints

from vggt_deploy.compare.asked import check_question
from vggt_deploy.compare.baseline import Changes
from vggt_deploy.compare.environment import Environment
from vggt_deploy.compare.geometry import GeometryMetrics
from vggt_deploy.compare.jobs import write_json
from vggt_deploy.compare.measures import BuildMeasure, ExportMeasure, Failure, Measured
from vggt_deploy.compare.metrics import TensorMetrics
from vggt_deploy.compare.paired import TruthLoss
from vggt_deploy.compare.protocol import MetricProtocol
from vggt_deploy.compare.truth import TruthMean, TruthMetrics
from vggt_deploy.compare.variants import REFERENCE, Runtime, Variant
from vggt_deploy.errors import CompareError
from vggt_deploy.quantize.schemes import Activations
from vggt_deploy.typed_json import Refuse, decode, parse

SCHEMA = 5
REPORT_NAME = "comparison_report.json"
SUMMARY_NAME = "comparison_summary.txt"
PLOTS_NAME = "comparison_plots.png"
PAGE_NAME = "report.html"
CSV_NAME = "comparison_report.csv"
MARKDOWN_NAME = "comparison_report.md"
EXPERIMENT_NAME = "experiment_report.md"
SCENES_CSV_NAME = "comparison_scenes.csv"
# As `sensitivity.table` names them: a table that was given to be shown.
SENSITIVITY_NAME = "sensitivity.json"
SENSITIVITY_CSV_NAME = "sensitivity.csv"
# All that a comparison writes beside its folders, and may write anew.
FILES = (
    REPORT_NAME,
    SUMMARY_NAME,
    PLOTS_NAME,
    PAGE_NAME,
    CSV_NAME,
    MARKDOWN_NAME,
    EXPERIMENT_NAME,
    SCENES_CSV_NAME,
    SENSITIVITY_NAME,
    SENSITIVITY_CSV_NAME,
)

# "not run": the runtime or the device that the variant needs is not here.
Status = Literal["done", "failed", "refused", "not run"]
Purpose = Literal["production", "edge", "best accuracy", "fastest here"]


@dataclass(frozen=True)
class SceneResult:
    """One scene: against PyTorch FP32, and against the truth, where it is known."""

    name: str
    geometry: GeometryMetrics
    truth: TruthMetrics | None


@dataclass(frozen=True)
class Row:
    """One variant. `failure` is set unless `status` is "done"; `build` is that of an engine.

    treatment   what was done to lose less, as in its label: "smooth", "w=mse+gptq"; "" for nothing
    support     what the runtime makes of the scheme, by the scheme table: "real", "storage: ..."
    accuracy    of each output tensor against PyTorch FP32, over all views of all scenes together
    scenes      each scene by itself, in the order of the question
    geometry    against PyTorch FP32: the mean over the scenes
    truth       against the truth: the mean over the scenes that have it; None: none has
    truth_loss  what it lost there against PyTorch FP32, scene by scene; zeros for FP32 itself
    machine     the kind of machine that it was timed on; None where it was not
    """

    runtime: Runtime
    scheme: str
    activations: Activations
    status: Status
    support: str
    failure: Failure | None = None
    export: ExportMeasure | None = None
    measured: Measured | None = None
    accuracy: dict[str, TensorMetrics] = field(default_factory=dict)
    geometry: GeometryMetrics | None = None
    command: tuple[str, ...] = ()
    build: BuildMeasure | None = None
    scenes: tuple[SceneResult, ...] = ()
    truth: TruthMean | None = None
    truth_loss: TruthLoss | None = None
    treatment: str = ""
    machine: str | None = None

    @property
    def disk_bytes(self) -> int | None:
        """What it takes on disk; of an engine known before it has run."""
        if self.measured is not None:
            return self.measured.disk_bytes
        return self.build.bytes_total if self.build is not None else None

    @property
    def variant(self) -> Variant:
        """What it is the row of."""
        return Variant(self.runtime, self.scheme, self.activations, self.treatment)

    @property
    def label(self) -> str:
        """As `Variant.label`."""
        return self.variant.label

    @property
    def finite(self) -> bool:
        """No output holds NaN or an infinite value."""
        return all(metrics.finite for metrics in self.accuracy.values())

    @classmethod
    def from_json(cls, data: object) -> Row:
        """The inverse of `dataclasses.asdict`; CompareError where it is something else."""
        return cast("Row", decode(cls, data, "row", _refuse))


@dataclass(frozen=True)
class Ratios:
    """A row against the references of the same run; None where one side was not measured.

    compression   bytes of the same weights in FP32 / bytes of the artifact. The FP32 side is what
                  PyTorch FP32 holds in memory for the heads compared, so that a checkpoint with a
                  head nobody asked for flatters no scheme
    speedup_*     median latency of the FP32 variant / median latency of this one: above 1 is
                  faster. Only where both were timed on machines of one kind
    """

    compression: float | None
    speedup_torch_fp32: float | None
    speedup_onnxruntime_fp32: float | None


@dataclass(frozen=True)
class Said:
    """A sentence as its English template and what goes into it, so that `report.languages` can say
    it in another language. A value that is sentences itself is joined with commas.
    """

    template: str
    values: dict[str, str | tuple[Said, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, template: str, /, **values: str | Said | tuple[Said, ...]) -> Said:
        """`Said.of("{n} scenes", n="3")`."""
        return cls(template, {k: (v,) if isinstance(v, Said) else v for k, v in values.items()})

    def text(self, translate: Callable[[str], str] = str, comma: str = ", ") -> str:
        """The sentence, with its templates translated."""
        values = {
            name: value
            if isinstance(value, str)
            else comma.join(one.text(translate, comma) for one in value)
            for name, value in self.values.items()
        }
        return translate(self.template).format(**values)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Said:
        """The inverse of `dataclasses.asdict`; TypeError where the values do not fit."""
        template, given = data["template"], data["values"]
        if not isinstance(template, str) or not isinstance(given, dict):
            raise TypeError("a sentence is no template with values")
        values = {
            name: value if isinstance(value, str) else tuple(cls.from_json(one) for one in value)
            for name, value in given.items()
        }
        if _plain_names(template) != set(values):
            raise TypeError(f"the values {sorted(values)} are not those of {template!r}")
        return cls(template, values)


def _plain_names(template: str) -> set[str] | None:
    """The names in braces; None where more stands there than a name."""
    names = set()
    try:
        for _, name, spec, how in Formatter().parse(template):
            if name is None:
                continue
            if spec or how or not name.isidentifier():
                return None
            names.add(name)
    except ValueError:
        return None
    return names


@dataclass(frozen=True)
class Recommendation:
    """One piece of advice: `label` is None where nothing can honestly be recommended.

    reason: in English; said: the same, sentence by sentence, for any language.
    """

    purpose: Purpose
    label: str | None
    reason: str
    said: tuple[Said, ...] = ()

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Recommendation:
        """The inverse of `dataclasses.asdict`; a report of the time before `said` lacks it."""
        said = tuple(Said.from_json(one) for one in data.get("said", ()))
        return cls(**{**data, "said": said})


@dataclass(frozen=True)
class ComparisonReport:
    """Everything one comparison found out. `question` is what was asked, as in question.json.

    protocol    how the numbers against the truth were taken
    baseline    what changed since an earlier report, if one was given
    """

    schema: int
    created: str
    folder: Path
    question: dict[str, Any]
    environment: Environment
    command: tuple[str, ...]
    rows: tuple[Row, ...]
    recommendations: tuple[Recommendation, ...]
    notes: tuple[str, ...]
    protocol: MetricProtocol
    baseline: Changes | None = None

    @property
    def reference(self) -> Row:
        """PyTorch FP32; always measured, or there is no report."""
        return self.rows[0]

    @property
    def random_weights(self) -> bool:
        """Whether the weights are random numbers, so that accuracy means nothing."""
        return bool(self.question["model"]["kind"] == "random")

    @property
    def pictures(self) -> list[str]:
        """Names of the pictures of the first scene, in order."""
        return [image["name"] for image in self.question["scenes"][0]["files"]]

    @property
    def scenes(self) -> list[str]:
        """Names of the scenes, in order; the first is the one that variants are timed on."""
        return [scene["name"] for scene in self.question["scenes"]]

    def row(self, label: str) -> Row | None:
        """The row of that label, if it was asked for."""
        return next((row for row in self.rows if row.label == label), None)

    def ratios(self, row: Row) -> Ratios:
        """Size and speed of a row against FP32 in the same run."""
        return ratios(row, self.rows)

    def to_json(self) -> dict[str, Any]:
        """The content of comparison_report.json; the ratios are written out for each row."""
        data = asdict(self)
        data["folder"] = str(self.folder)
        for row, entry in zip(self.rows, data["rows"], strict=True):
            entry["label"] = row.label
            entry["ratios"] = asdict(self.ratios(row))
        return data


def ratios(row: Row, rows: tuple[Row, ...]) -> Ratios:
    """Size and speed of a row against the FP32 rows among `rows`; the first is PyTorch FP32."""
    reference = rows[0]
    onnx = next((r for r in rows if r.label == "onnxruntime/fp32"), None)
    compression = None
    if (
        row.runtime != "torch"
        and row.disk_bytes
        and reference.measured
        and reference.measured.held_bytes
    ):
        compression = reference.measured.held_bytes / row.disk_bytes
    return Ratios(compression, _times_faster(row, reference), _times_faster(row, onnx))


def _times_faster(row: Row, other: Row | None) -> float | None:
    """Median latency of `other` / that of `row`; None where they can't be compared."""
    if other is None or row.measured is None or other.measured is None:
        return None
    if row.machine != other.machine:
        return None
    return other.measured.latency.median_ms / row.measured.latency.median_ms


def write_report(report: ComparisonReport) -> Path:
    """Write comparison_report.json into the report's folder."""
    path = report.folder / REPORT_NAME
    write_json(path, report.to_json())
    return path


def read_report(path: Path) -> ComparisonReport:
    """Read a comparison_report.json, or the folder that holds one."""
    path = path / REPORT_NAME if path.is_dir() else path
    try:
        data = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CompareError(f"can't read {path} ({error.strerror})", "give a report") from error
    except (ValueError, RecursionError) as error:
        raise CompareError(f"{path} is not JSON: {error}", "run compare again") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else None
        raise CompareError(
            f"{path} has schema {found!r}, this version reads {SCHEMA}",
            "read it with the version that wrote it, or run compare again",
        )

    def refuse(problem: str) -> CompareError:
        return CompareError(f"{path}: {problem}", "it is no whole report; run compare again")

    return _decode(data, path.parent, refuse)


def _decode(data: dict[str, Any], folder: Path, refuse: Refuse) -> ComparisonReport:
    """What `to_json` gave, with the folder that it lies in now."""
    known = {item.name: item for item in fields(ComparisonReport)}
    for name in known:
        if name not in data:
            raise refuse(f"it lacks the field {name!r}")
    if unknown := sorted(set(data) - set(known)):
        raise refuse(f"it has an unknown field {unknown[0]!r}")
    if not isinstance(data["rows"], list) or not data["rows"]:
        raise refuse("it has no rows")
    rows = [_without_derived(entry) for entry in data["rows"]]
    hints = get_type_hints(ComparisonReport)
    values = {
        name: decode(hints[name], rows if name == "rows" else data[name], name, refuse)
        for name in known
        if name not in ("folder", "recommendations")
    }
    check_question(cast("dict[str, Any]", values["question"]), refuse)
    _check_rows(cast("tuple[Row, ...]", values["rows"]), refuse)
    try:
        advice = tuple(Recommendation.from_json(one) for one in data["recommendations"])
    except (KeyError, TypeError, AttributeError) as error:
        raise refuse(f"a recommendation is damaged: {error}") from error
    whole = cast("dict[str, Any]", values)
    return ComparisonReport(folder=folder, recommendations=advice, **whole)


def _check_rows(rows: Sequence[Row], refuse: Refuse) -> None:
    """What no type says: the reference is the first, and a latency has its calls."""
    if rows[0].variant != REFERENCE:
        raise refuse(f"its first row is {rows[0].label}, not {REFERENCE.label}")
    for row in rows:
        latency = row.measured.latency if row.measured is not None else None
        if latency is None:
            continue
        if not 0 < latency.n == len(latency.samples_ms):
            raise refuse(f"{row.label} has {len(latency.samples_ms)} of {latency.n} timed calls")
        if not min(*latency.samples_ms, latency.min_ms, latency.median_ms) > 0:
            raise refuse(f"{row.label} has a call that took no time")


def _without_derived(entry: object) -> object:
    """A row without what is computed from all of them."""
    if not isinstance(entry, dict):
        return entry
    return {key: value for key, value in entry.items() if key not in ("label", "ratios")}


def _refuse(problem: str) -> CompareError:
    return CompareError(problem, "it was not written by this version; run it again")
