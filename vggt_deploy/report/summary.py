"""`comparison_summary.txt`: the report as aligned plain text, for a terminal or a mail.

A dash is a quantity that the row can't have; why is said below the tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vggt_deploy.compare.contention import NOISY_SHARE
from vggt_deploy.compare.metrics import CROSS_ENTROPY_REASON
from vggt_deploy.compare.recommend import (
    ENOUGH_SCENES,
    GATES,
    NOT_EVIDENCE,
    TRUTH_GATES,
    Gate,
    slower_than,
)
from vggt_deploy.compare.report import SUMMARY_NAME, ComparisonReport, Row
from vggt_deploy.report.engine_sections import HOW_ENGINES, engine_lines, not_run_lines
from vggt_deploy.report.text import megabytes, number, table, wrap
from vggt_deploy.report.truth_sections import HOW_TRUTH, loss_lines, truth_lines

MAX_LINE = 160
FEWEST_CALLS = 3

_HOW = """\
disk       PyTorch FP32: {reference_kind};
           others: all bytes of the artifact's or engine's folder. A PyTorch variant with integers
           is never a file: "held" is what its tensors take in memory.
x smaller  FP32 bytes of the same weights in memory / bytes of the artifact or engine.
load       PyTorch: {load}, and quantizing; others: checking hashes and
           opening the session. Files may come from the page cache.
peak       the most memory (RSS) the measuring process ever had, its libraries included.
latency    wall clock of one whole call, all pictures, arrays in and out: {warmup} warm-up, then
           n = {n}. p90 interpolates between samples; IQR is the 75th minus the 25th percentile.
x torch    median of PyTorch FP32 / median of this variant, in this run: under 1 is slower.
           x ORT: the same against ONNX Runtime FP32.
export     one process: whole time and its peak memory.
           {verified}
accuracy   against PyTorch FP32 on the same pixels, all views of all scenes together, not against
           ground truth. PSNR's peak is the range of the reference tensor. SSIM of maps has that
           data range. rel = |a - b| / |b|.
           {cross_entropy}.
geometry   relative poses over all pairs of frames; direction = angle between baselines; depth after
           median alignment; points per pixel, relative to the scene's size (median distance from
           the median point): "points" of the point head, "depth pts" depth unprojected by the
           cameras. Mean, then median or maximum; of several scenes the mean (maxima: the maximum).\
"""


def write_summary(report: ComparisonReport) -> Path:
    """Write comparison_summary.txt into the report's folder."""
    path = report.folder / SUMMARY_NAME
    path.write_text(summary_text(report), encoding="utf-8")
    return path


def summary_text(report: ComparisonReport) -> str:
    """The whole text."""
    parts = [
        _question(report),
        _section("Recommendation", _recommendations(report)),
        _section("Size and speed", _costs(report)),
        _section("Engines", engine_lines(report)),
        _section("Slower than FP32", _slower(report)),
        _section("Against the truth", truth_lines(report)),
        _section("Lost by the truth, against PyTorch FP32", loss_lines(report)),
        _section("Geometry against PyTorch FP32", _geometry(report)),
        *(
            _section(f"{name} against PyTorch FP32", _tensor(report, name))
            for name in report.reference.accuracy
        ),
        _section("Failed or refused", _failures(report)),
        _section("Not run here", not_run_lines(report)),
        _section("What the runtimes make of the schemes", _support(report)),
        _section("How to read it", _how(report)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(title: str, lines: Sequence[str]) -> str:
    return "\n".join([title, "=" * len(title), *lines]) if lines else ""


def _question(report: ComparisonReport) -> str:
    question, environment = report.question, report.environment
    model, images, scenes = question["model"], question["images"], question["scenes"]
    weights = {
        "random": "random numbers",
        "file": f"sha256 {str(model['sha256'])[:16]}",
        "package": f"those of this package, sha256 {str(model['sha256'])[:16]}",
        "hub": f"revision {model['revision']}",
    }[model["kind"]]
    memory = environment.memory_bytes
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
    size = f"{images['height']} x {images['width']} pixels, mode {images['mode']}"
    where = scenes[0]["folder"] if len(scenes) == 1 else f"each of {len(scenes)} scenes"
    cpus = f"{environment.usable_cpus} of {environment.logical_cpus}"
    lines = [
        "vggt-deploy comparison",
        "======================",
        f"model     {model['spec']} (architecture {model['config']}, weights: {weights})",
        f"pictures  {images['frames']} of {where}, {size}",
        f"machine   {environment.cpu}, {cpus} CPUs"
        + (f", {memory / 2**30:.1f} GiB" if memory else "")
        + (f", {' '.join(environment.cpu_flags)}" if environment.cpu_flags else ""),
        f"threads   {question['threads']} for every variant",
        f"system    {environment.system}, Python {environment.python}",
        f"versions  {versions}",
        f"made      {report.created} by: {' '.join(report.command)}",
    ]
    if question["device"] is not None:
        gpu = question["device"]["gpu"] or "none here"
        lines.append(f"device    {question['device']['name']} (GPU of this machine: {gpu})")
    if len(scenes) > 1:
        names = f"{', '.join(report.scenes)}; timed on the first"
        lines += [f"{'scenes' if i == 0 else '':<9} {x}" for i, x in enumerate(wrap(names, 110))]
    lines += [f"left out  {text}" for scene in scenes for text in scene["skipped"]]
    for text in report.notes:  # what was read, why a truth is not known, what was calibrated on
        lines += [f"{'' if i else 'read':<9} {x}" for i, x in enumerate(wrap(text, 110))]
    if report.random_weights:
        lines.append(f"NOTE      {NOT_EVIDENCE}; sizes and times are real.")
    lines += [f"NOTE      {text}" for text in (*calibration_notes(report), *timing_notes(report))]
    return "\n".join(lines)


def calibration_notes(report: ComparisonReport) -> list[str]:
    """What speaks against trusting static activations: they were fitted to what is compared."""
    calibration = report.question["calibration"]
    if calibration is None:
        return []
    files = [file["sha256"] for scene in report.question["scenes"] for file in scene["files"]]
    seen = set(calibration["images"].values())
    both = sum(sha256 in seen for sha256 in files)
    if not both:
        return []
    text = f"static activations were calibrated on {both} of the {len(files)} pictures compared"
    return [f"{text}: on other pictures they may be worse."]


def timing_notes(report: ComparisonReport) -> list[str]:
    """What speaks against trusting the times: too few calls, or other work on the same CPUs."""
    measured = [(row.label, row.measured) for row in report.rows if row.measured is not None]
    notes = []
    if measured and min(m.latency.n for _, m in measured) < FEWEST_CALLS:
        notes.append(
            f"fewer than {FEWEST_CALLS} timed calls: the times have no spread worth the name."
        )
    limit = NOISY_SHARE * report.environment.usable_cpus
    busy = [(label, m.others_cpus) for label, m in measured if (m.others_cpus or 0.0) > limit]
    if busy:
        worst, cpus = max(busy, key=lambda item: item[1] or 0.0)
        notes.append(
            f"NOISY TIMES: other processes kept CPUs busy while {len(busy)} of {len(measured)} "
            f"variants were timed (most: {cpus:.1f} CPUs, {worst}). Repeat on a quiet machine."
        )
    return notes


def _recommendations(report: ComparisonReport) -> list[str]:
    lines = []
    for item in report.recommendations:
        lines.append(f"{item.purpose + ':':<15} {item.label or 'none'}")
        lines += [f"{'':<15} {line}" for line in wrap(item.reason, 100)]
    if report.random_weights:
        return [*lines, "No gates were applied (random weights)."]
    lines += wrap(f"Gates, against PyTorch FP32: {_named(GATES)}.", 115)
    if report.reference.truth is not None:
        text = (
            f"By the truth: {_named(TRUTH_GATES)}; of {ENOUGH_SCENES} scenes or more, these alone."
        )
        lines += wrap(text, 115)
    return lines


def _named(gates: Sequence[Gate]) -> str:
    return "; ".join(f"{gate.name} {gate.limit:g}" for gate in gates)


def _costs(report: ComparisonReport) -> list[str]:
    header = (
        "variant", "disk MB", "x smaller", "held MB", "load s", "peak MB",
        "median ms", "p90", "min", "mean", "std", "IQR", "n", "x torch", "x ORT", "export s",
        "peak MB",
    )  # fmt: skip
    rows = []
    for row in report.rows:
        measured, export, against = row.measured, row.export, report.ratios(row)
        size = (row.label, megabytes(row.disk_bytes), number(against.compression, 3))
        if measured is None:
            rows.append((*size, "-", "-", "-", row.status, *["-"] * (len(header) - 7)))
            continue
        latency = measured.latency
        rows.append(
            (
                *size,
                megabytes(measured.held_bytes),
                f"{measured.load_ms / 1e3:.2f}",
                f"{measured.peak_rss_bytes / 1e6:.0f}",
                *(
                    f"{value:.1f}"
                    for value in (
                        latency.median_ms,
                        latency.p90_ms,
                        latency.min_ms,
                        latency.mean_ms,
                    )
                ),
                "-" if latency.std_ms is None else f"{latency.std_ms:.1f}",
                f"{latency.iqr_ms:.1f}",
                str(latency.n),
                _ratio(against.speedup_torch_fp32),
                _ratio(against.speedup_onnxruntime_fp32),
                f"{export.seconds:.1f}" if export else "-",
                f"{export.peak_rss_bytes / 1e6:.0f}" if export else "-",
            )
        )
    return table(header, rows)


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _slower(report: ComparisonReport) -> list[str]:
    """Variants by the FP32 variants that they are not faster than, by medians."""
    measured = [row for row in report.rows if row.measured is not None]
    groups: dict[tuple[str, ...], list[str]] = {}
    for row in measured:
        them = slower_than(row, measured) if row.scheme != "fp32" else ()
        if them:
            groups.setdefault(them, []).append(row.label)
    lines = []
    for them, labels in groups.items():
        lines.append(f"slower than {' and '.join(them)}:")
        lines += [f"    {line}" for line in wrap(", ".join(labels), 110)]
    return lines


def _geometry(report: ComparisonReport) -> list[str]:
    header = (
        "variant", "rotation deg", "max", "direction deg", "max", "pairs",
        "depth AbsRel", "delta 1.25", "points", "median", "depth pts", "median",
    )  # fmt: skip
    rows = []
    for row in report.rows:
        geometry = row.geometry
        if geometry is None:
            continue
        pose, depth = geometry.pose, geometry.depth
        rotation = pose.rotation if pose else None
        direction = pose.direction if pose else None
        rows.append(
            (
                row.label,
                number(rotation.mean_deg if rotation else None),
                number(rotation.max_deg if rotation else None),
                number(direction.mean_deg if direction else None),
                number(direction.max_deg if direction else None),
                _pairs(row),
                number(depth.abs_rel if depth else None),
                number(depth.delta_125 if depth else None),
                number(geometry.points.mean_relative if geometry.points else None),
                number(geometry.points.median_relative if geometry.points else None),
                number(geometry.depth_points.mean_relative if geometry.depth_points else None),
                number(geometry.depth_points.median_relative if geometry.depth_points else None),
            )
        )
    return table(header, rows) if rows else []


def _pairs(row: Row) -> str:
    """Pairs with a direction of all pairs; lost ones are named."""
    pose = row.geometry.pose if row.geometry else None
    if pose is None:
        return "-"
    used = pose.direction.n if pose.direction else 0
    lost = f", {pose.pairs_lost} lost" if pose.pairs_lost else ""
    return f"{used} of {pose.pairs}{lost}"


def _tensor(report: ComparisonReport, name: str) -> list[str]:
    header = (
        "variant", "MAE", "MSE", "RMSE", "max", "PSNR dB", "cosine", "rel", "rel max", "SSIM",
        "NaN or inf",
    )  # fmt: skip
    rows = []
    for row in report.rows:
        metrics = row.accuracy.get(name)
        if metrics is None:
            continue
        identical = metrics.psnr_db is None and metrics.mse == 0.0
        rows.append(
            (
                row.label,
                *(number(v) for v in (metrics.mae, metrics.mse, metrics.rmse, metrics.max_abs)),
                "identical" if identical else number(metrics.psnr_db),
                number(metrics.cosine, 7),
                number(metrics.relative_l2),
                number(metrics.relative_max),
                number(metrics.ssim, 5),
                f"{metrics.nonfinite_variant} of {metrics.values}"
                if metrics.nonfinite_variant
                else "0",
            )
        )
    return table(header, rows)


def _failures(report: ComparisonReport) -> list[str]:
    lines = []
    for row in report.rows:
        failure = row.failure
        if failure is None or row.status == "not run":
            continue
        lines.append(f"{row.label}: {row.status} ({failure.stage}): {failure.message}")
        if failure.fix:
            lines.append(f"    fix: {failure.fix}")
        elif row.status == "failed":
            lines += [f"    | {line[:MAX_LINE]}" for line in failure.tail[-5:]]
    return lines


def _support(report: ComparisonReport) -> list[str]:
    return [f"{row.label:<34} {row.support}" for row in report.rows if row.support != "real"]


def _how(report: ComparisonReport) -> list[str]:
    measured = report.reference.measured
    kind = measured.disk_kind if measured is not None else None
    kinds = {
        "checkpoint file": "the checkpoint file, whatever heads it holds",
        "state dict saved": "the weights of these heads, saved with torch.save and weighed",
    }
    verified = "The graph was checked against PyTorch."
    unverified = "The exporter's own check against PyTorch was off: the tables here are the check."
    text = _HOW.format(
        reference_kind=kinds.get(str(kind), "not weighed"),
        load="making the random numbers" if report.random_weights else "reading the checkpoint",
        warmup=report.question["warmup"],
        n=report.question["repeats"],
        verified=verified if report.question["verify"] else unverified,
        cross_entropy=f"Cross entropy is {CROSS_ENTROPY_REASON}",
    )
    notes = [
        f"{row.label}: {note}" for row in report.rows if row.measured for note in row.measured.notes
    ]
    engines = HOW_ENGINES if any(row.build for row in report.rows) else ""
    truth = HOW_TRUTH if report.reference.truth is not None else ""
    return [*text.splitlines(), *truth.splitlines(), *engines.splitlines(), *notes]
