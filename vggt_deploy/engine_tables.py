"""Statistics, engines and bundles as text for a terminal; see `tables` for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from vggt_deploy.engines.inspect import Inspection
    from vggt_deploy.quantize.selection import Selection
    from vggt_deploy.quantize.statistics import Statistics
    from vggt_deploy.records import EngineRecord, FramesRange, Manifest, ProofRecord
    from vggt_deploy.ship.bundle import BundleInfo
    from vggt_deploy.ship.verify import Verification

_FIT_STYLE = {"fits": "green", "does not fit": "red", "not known": "yellow"}
_MOST_LAYERS = 8


def print_statistics(statistics: Statistics, folder: str, out: Console) -> None:
    """What a calibration saw."""
    pictures = "1 image" if len(statistics.images) == 1 else f"{len(statistics.images)} images"
    out.print(
        f"{folder}: {len(statistics.layers)} Linears of {statistics.model.spec}, "
        f"{pictures} of {statistics.height} x {statistics.width}",
        markup=False,
    )
    for reason in statistics.skipped:
        out.print(f"  left out: {reason}", markup=False)
    if statistics.selection is not None:
        _print_selection(statistics.selection, out)
    out.print(
        f"use it: vggt-deploy export --activations static --calibrate {folder} --scheme ...",
        markup=False,
    )


def _print_selection(selection: Selection, out: Console) -> None:
    for outlier in selection.outliers:
        out.print(
            f"  outlier, left out: {outlier.image} (distance {outlier.distance:.4f} to the nearest "
            f"images, score {outlier.score:.1f})",
            markup=False,
        )
    out.print(
        f"  {len(selection.chosen)} of {len(selection.sets)} view sets chosen, the most different:",
        markup=False,
    )
    for found in selection.sets:
        if found.chosen:
            out.print(f"    {found.images[0]} .. {found.images[-1]}", markup=False)


def print_engine(manifest: Manifest, folder: str, out: Console) -> None:
    """What a build wrote, and what the engine computes in."""
    engine = manifest.engine
    assert engine is not None
    size = manifest.files[engine.file].bytes
    out.print(f"{folder}: {manifest.variant}, {manifest.precision}", markup=False)
    out.print(f"  {_built_by(engine)}", markup=False)
    out.print(
        f"  frames {_ranges(engine.profiles)} of {manifest.height} x {manifest.width}, "
        f"built in {engine.build_seconds:.1f} s, peak {engine.peak_rss_bytes / 2**30:.2f} GiB",
        markup=False,
    )
    out.print(f"  plan {size / 1e6:.1f} MB{_weights(engine)}", markup=False)
    _print_proof(engine.proof, out)
    for note in manifest.notes:
        out.print(f"  note: {note}", markup=False)


def print_inspection(inspection: Inspection, out: Console) -> None:
    """Formats and bytes; of an engine also what its matrix products compute in, and memory."""
    manifest, engine = inspection.manifest, inspection.manifest.engine
    out.print(
        f"{inspection.folder}: {manifest.variant}, {manifest.precision}, "
        f"{inspection.bytes_total / 1e6:.1f} MB",
        markup=False,
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("format")
    table.add_column("layers", justify="right")
    table.add_column("packed MB", justify="right")
    for name, one in inspection.formats.items():
        table.add_row(name, str(one.layers or "-"), f"{one.bytes / 1e6:.2f}")
    out.print(table)
    if engine is None:
        return
    out.print(_built_by(engine), markup=False)
    if inspection.header is not None:
        header = inspection.header
        out.print(f"plan header: {header.runtime} {header.version_text}", markup=False)
    out.print(f"built for {engine.device}{_weights(engine)}", markup=False)
    if inspection.proof is not None:
        _print_proof(inspection.proof, out)
    for memory in inspection.memory:
        known = memory.activation_bytes
        text = "not known (only a GPU tells)" if known is None else f"{known / 2**20:.1f} MiB"
        what = "1 frame" if memory.frames.max == 1 else f"{_range(memory.frames)} frames"
        out.print(f"  activations, {what}: {text}", markup=False)
    live = inspection.live
    if live is None:
        out.print(f"  live engine: not asked: {inspection.live_reason}", markup=False)
        return
    out.print(f"  live engine: {_share_text(live.shares['flops'])} by operations", markup=False)
    for name, (said, found) in list(live.differs.items())[:_MOST_LAYERS]:
        out.print(f"  differs: {name}: manifest {said}, live engine {found}", markup=False)


def print_bundle(info: BundleInfo, out: Console, *, signed: bool) -> None:
    """What a bundle holds, and whether who gets it can tell who made it."""
    index = info.index
    out.print(f"{info.path}: {info.bytes / 1e6:.1f} MB, {index.variant}", markup=False)
    for entry in index.engines:
        out.print(
            f"  {entry.name}: {entry.runtime} {entry.runtime_version} for {entry.device}",
            markup=False,
        )
    out.print(f"  ONNX inside: {'yes' if index.onnx else 'no'}", markup=False)
    out.print(f"  signed: {'yes' if signed else 'no (--sign PEM)'}", markup=False)
    out.print(f"  index SHA-256 {info.sha256}", markup=False)


def print_verification(verification: Verification, out: Console) -> None:
    """Whether a bundle is sound, and what this device can do with it."""
    index = verification.index
    signer = "" if verification.signer is None else f" ({verification.signer})"
    out.print(
        f"{verification.bundle}: whole and unchanged, {verification.bytes / 1e6:.1f} MB, "
        f"{index.variant}; signature: {verification.signature}{signer}",
        markup=False,
    )
    for entry in index.engines:
        out.print(
            f"  {entry.name}: {entry.runtime} {entry.runtime_version} for {entry.device}",
            markup=False,
        )
    if verification.fits:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("engine", "looked at", "here", "why"):
            table.add_column(column, overflow="fold")
        for fit in verification.fits:
            for one in fit.findings:
                state = Text(one.state, _FIT_STYLE[one.state])
                table.add_row(Text(fit.engine), Text(one.what), state, Text(one.reason))
        out.print(table)
    out.print(verification.advice, markup=False)


def _print_proof(proof: ProofRecord, out: Console) -> None:
    from vggt_deploy.engines.inspect import shares_of

    if proof.linears:
        out.print(f"  {len(proof.linears)} quantized Linears, by the {proof.source}:", markup=False)
        for measure, shares in shares_of(proof).items():
            out.print(f"    by {measure:<7} {_share_text(shares)}", markup=False)
    else:
        out.print("  no quantized Linears", markup=False)
    halves = proof.attentions_half
    fused = halves - len(proof.half_unfused)
    out.print(
        f"  attention fused: {proof.attentions_fused} of {proof.attentions}"
        + (f" ({fused} of {halves} in 16 bit)" if halves else " (all in FP32)"),
        markup=False,
    )


def _share_text(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{verdict} {share:.1%}" for verdict, share in shares.items()) or "none"


def _built_by(engine: EngineRecord) -> str:
    targets = ", ".join(engine.compute_capabilities)
    stripped = ", without weights" if engine.stripped else ""
    return (
        f"{engine.runtime} {engine.runtime_version} for {engine.device} (compute capability "
        f"{targets}), TF32 {'on' if engine.tf32 else 'off'}{stripped}"
    )


def _weights(engine: EngineRecord) -> str:
    if engine.weights_bytes is None:
        return ""
    text = f", weights in it {engine.weights_bytes / 1e6:.1f} MB"
    if engine.packed_bytes:
        ratio = engine.weights_bytes / engine.packed_bytes
        text += f" ({ratio:.3f} x the graph's {engine.packed_bytes / 1e6:.1f} MB)"
    return text


def _ranges(profiles: tuple[FramesRange, ...]) -> str:
    return ", ".join(_range(profile) for profile in profiles)


def _range(frames: FramesRange) -> str:
    return f"{frames.min}" if frames.min == frames.max else f"{frames.min}-{frames.max}"
