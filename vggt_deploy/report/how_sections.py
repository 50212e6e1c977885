"""How each number was measured: (name, text), for the texts and the page."""

from __future__ import annotations

from vggt_deploy.compare.report import ComparisonReport
from vggt_deploy.compare.truth_clouds import LOSS_TOLERANCE_M
from vggt_deploy.report.languages import ENGLISH, Speaker

How = tuple[str, str]


def how_entries(report: ComparisonReport, say: Speaker = ENGLISH) -> list[How]:
    """What each quantity of the tables is, for those that this report has."""
    return [
        *_costs(report, say),
        *_against_fp32(say),
        *(_truth(say) if report.reference.truth is not None else ()),
        *(_engines(say) if any(row.build for row in report.rows) else ()),
    ]


def measured_notes(report: ComparisonReport, say: Speaker = ENGLISH) -> list[str]:
    """What single measurements noted."""
    return [
        say.titled(row.label, say.recorded(note))
        for row in report.rows
        if row.measured is not None
        for note in row.measured.notes
    ]


def _reference_size(report: ComparisonReport, say: Speaker) -> str:
    measured = report.reference.measured
    kind = measured.disk_kind if measured is not None else None
    if kind == "checkpoint file":
        return say("the checkpoint file, whatever heads it holds")
    if kind == "state dict saved":
        return say("the weights of these heads, saved with torch.save and weighed")
    return say("not weighed")


def _costs(report: ComparisonReport, say: Speaker) -> list[How]:
    load = (
        say("making the random numbers") if report.random_weights else say("reading the checkpoint")
    )
    verified = (
        say("The graph was checked against PyTorch.")
        if report.question["verify"]
        else say("The exporter's own check against PyTorch was off: the tables here are the check.")
    )
    return [
        (
            say("disk"),
            say(
                "PyTorch FP32: {kind}; others: all bytes of the artifact's or engine's folder. A "
                'PyTorch variant with integers is never a file: "held" is what its tensors take in '
                "memory.",
                kind=_reference_size(report, say),
            ),
        ),
        (
            say("x smaller"),
            say("FP32 bytes of the same weights in memory / bytes of the artifact or engine."),
        ),
        (
            say("load"),
            say(
                "PyTorch: {load}, and quantizing; others: checking hashes and opening the session. "
                "Files may come from the page cache.",
                load=load,
            ),
        ),
        (
            say("peak"),
            say("the most memory (RSS) the measuring process ever had, its libraries included."),
        ),
        (
            say("latency"),
            say(
                "wall clock of one whole call, all pictures, arrays in and out: {warmup} warm-up, "
                "then n = {n}. p90 interpolates between samples; IQR is the 75th minus the 25th "
                "percentile.",
                warmup=report.question["warmup"],
                n=report.question["repeats"],
            ),
        ),
        (
            say("x torch"),
            say(
                "median of PyTorch FP32 / median of this variant, in this run: under 1 is slower. "
                "x ORT: the same against ONNX Runtime FP32."
            ),
        ),
        (
            say("export"),
            say("one process: whole time and its peak memory. {verified}", verified=verified),
        ),
    ]


def _against_fp32(say: Speaker) -> list[How]:
    return [
        (
            say("accuracy"),
            say(
                "against PyTorch FP32 on the same pixels, all views of all scenes together, not "
                "against ground truth. PSNR's peak is the range of the reference tensor. SSIM of "
                "maps has that data range. rel = |a - b| / |b|. Cross entropy is not applicable: "
                "cross entropy compares probability distributions, this output is a regression."
            ),
        ),
        (
            say("geometry"),
            say(
                "relative poses over all pairs of frames; direction = angle between baselines; "
                "depth after median alignment; points per pixel, relative to the scene's size "
                '(median distance from the median point): "points" of the point head, "depth pts" '
                "depth unprojected by the cameras. Mean, then median or maximum; of several scenes "
                "the mean (maxima: the maximum)."
            ),
        ),
    ]


def _truth(say: Speaker) -> list[How]:
    return [
        (
            say("poses"),
            say(
                "known cameras, relative poses of all pairs. AUC@T: of the larger of rotation and "
                "direction error, exact area under the recall curve up to T degrees, percent. "
                "RRA@T, RTA@T: percent of the pairs whose rotation, or direction, is off by less "
                "than T degrees. Rotation and direction: medians. Means over scenes."
            ),
        ),
        (
            say("depth"),
            say(
                "known depth. AbsRel = mean |a - b| / b, delta 1.25 = part of the pixels within a "
                "factor of 1.25: once after one median scale for each scene, once after least "
                "squares of scale and shift."
            ),
        ),
        (
            say("points"),
            say(
                "of the point head, after a similarity (Umeyama). / size: distance to the true "
                "point of the same pixel over the scene's size. As clouds, by nearest neighbours: "
                "accuracy from the prediction to the truth, completeness from the truth to the "
                "prediction, overall their mean, F-score @ T of the parts nearer than T, percent."
            ),
        ),
        (
            say("lost"),
            say(
                "the same numbers scene by scene against PyTorch FP32: above 0 is worse. AUC and "
                "F-score (at {metres} m) in points of percent, the others absolute. Behind each "
                "the 95 % interval of the mean, by bootstrap over the scenes: where it holds 0, "
                "the loss is not told from none. Of what one scene alone has the truth for, it is "
                "over that scene's frames, for AUC and AbsRel alone (the alignment stays that of "
                "the whole scene): it says what other frames of this scene might give, not what "
                "other scenes would.",
                metres=f"{LOSS_TOLERANCE_M:g}",
            ),
        ),
    ]


def _engines(say: Speaker) -> list[How]:
    return [
        (
            say("engines"),
            say(
                "built for the device profile, one process each: seconds of the whole build, peak "
                'of its memory. "weights" in the plan, "packed": the graph\'s, each once. Proof: '
                "what the products of the quantized Linears compute in, by operations, as TensorRT "
                "itself records. Their latency is wall clock too, arrays in host memory to arrays "
                'in host memory, but of the GPU, beside rows of this CPU; "network" is the GPU\'s '
                "time for the network alone, between CUDA events, the median of as many further "
                'calls. "GPU MB" is device memory of the engine and its buffers. All runtimes have '
                "the same artifact of a scheme, which is exported once."
            ),
        )
    ]
