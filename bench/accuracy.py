"""What each switch of quantization buys on a trained network, NVIDIA ModelOpt beside it.

    python -m bench.accuracy                                     vggt-nano: `make bench-accuracy`
    python -m bench.accuracy --labels int4_g128,int4_g128+gptq --modelopt int4_gptq --scenes 10
    python -m bench.accuracy --prepared Q --resume               a row of trained integers as well
    python -m bench.accuracy --resume                            goes on where a run was stopped

Every row is prepared in PyTorch from the same weights and calibration pictures, in a process of its
own, and run on the same rendered scenes with truth. A row that fails is a row with its error. See
README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import modelopt_rows
from bench.accuracy_plot import draw
from bench.accuracy_report import Finding, Report, document, to_csv, to_json
from bench.accuracy_rows import FP32, LABELS, Row, choose, counterparts
from bench.accuracy_scenes import CALIBRATION_SEED, SceneQuestion, ensure_scenes
from bench.messages import say, say_step
from bench.process import Settings, StepResult, run_step
from vggt_deploy.artifact import locked
from vggt_deploy.compare.environment import describe_environment, usable_cpus
from vggt_deploy.compare.jobs import write_json
from vggt_deploy.errors import ArtifactError, DeployError, UsageError
from vggt_deploy.train.evaluate import SCORED_SCENES, SETS
from vggt_deploy.train.pool import source_hash
from vggt_deploy.train.scoring import SCORED_VIEWS

SCHEMA = 1
INTERRUPTED = 130
STEPS_MODULE = "bench.accuracy_steps"
NAME = "accuracy"
# Folders of the package whose code decides a row's numbers.
CODE = ("compare", "data", "model", "quantize", "sensitivity")


@dataclass(frozen=True)
class Question:
    """What is measured, as asked on the command line."""

    model: str
    rows: tuple[Row, ...]
    scenes: SceneQuestion
    threads: int
    timeout_s: float

    def key(self) -> dict[str, Any]:
        """What every row's numbers depend on; a row is taken from an earlier run of the same."""
        import vggt_deploy
        from vggt_deploy.model.weights import open_weights

        _, source = open_weights(self.model)
        package = Path(vggt_deploy.__path__[0])
        return {
            "schema": SCHEMA,
            "model": self.model,
            "sha256": source.origin.sha256,
            "scenes": asdict(self.scenes),
            "threads": self.threads,
            "code": {folder: source_hash(package / folder) for folder in CODE},
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes as the command line of vggt-deploy has them."""
    options = _parser().parse_args(arguments)
    try:
        question = _question(options)
        out = options.out.resolve()
        out.mkdir(parents=True, exist_ok=True)
        with locked(out / NAME):
            return _run(question, out, resume=options.resume)
    except DeployError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(question: Question, out: Path, *, resume: bool) -> int:
    header = _header(question)
    kept = _kept_rows(out, header["key"], resume=resume)
    if ensure_scenes(out / "scenes", question.scenes, threads=question.threads):
        say(f"scenes rendered into {out / 'scenes'}")
        kept.clear()
    if not all((out / f"reference_{one.name}.npz").is_file() for one in SETS):
        kept.clear()  # FP32's outputs, which every row is compared with, are gone
    logs = out / "logs"
    logs.mkdir(exist_ok=True)
    settings = Settings(logs, question.threads, question.timeout_s, STEPS_MODULE)
    findings: list[Finding] = []
    sha256 = header["key"]["sha256"]
    finished = True
    try:
        for row in question.rows:
            findings.append(_finding(row, question, sha256, out, settings, kept))
            if row.label == FP32 and findings[0].error is not None:
                raise UsageError(
                    f"FP32 could not be run: {findings[0].error}", f"see {logs / 'fp32.log'}"
                )
    except KeyboardInterrupt:
        say("interrupted: this is what was done; --resume goes on")
        finished = False
    if findings:
        print(_save(header, findings, question, out, finished=finished))
        say(f"saved as {out / NAME}.md, .csv, .json and .png")
    if not finished:
        return INTERRUPTED
    return 1 if any(finding.failed for finding in findings) else 0


def _finding(
    row: Row,
    question: Question,
    sha256: str | None,
    out: Path,
    settings: Settings,
    kept: Mapping[str, StepResult],
) -> Finding:
    # What lies in a folder may have changed; its label does not tell.
    if row.label in kept and row.prepared is None:
        say(f"{row.label}: kept from before")
        return Finding(row, kept[row.label])
    if row.step == "modelopt" and not modelopt_rows.installed():
        return Finding(row, None, modelopt_rows.NOT_INSTALLED)
    scenes = question.scenes
    arguments: dict[str, Any] = {
        "run": {
            "model": question.model,
            "sha256": sha256,
            "folder": str(out),
            "height": scenes.height,
            "width": scenes.width,
            "views": scenes.calibration_views,
            "threads": question.threads,
        }
    }
    if row.prepared is not None:
        arguments["folder"] = str(row.prepared)
    elif row.step != "fp32":
        arguments["label"] = row.label
    result = run_step(row.step, _file_name(row.label), arguments, settings)
    say_step(row.label, result)
    if result.ok:
        write_json(out / "rows" / f"{_file_name(row.label)}.json", asdict(result))
    return Finding(row, result)


def _kept_rows(out: Path, key: Mapping[str, Any], *, resume: bool) -> dict[str, StepResult]:
    """Rows that an earlier run of the same question has measured; without `resume` none."""
    rows, question = out / "rows", out / "rows" / "question.json"
    if not resume:
        for path in rows.glob("*.json"):
            path.unlink()
        rows.mkdir(exist_ok=True)
        write_json(question, dict(key))
        return {}
    if not question.is_file():
        raise ArtifactError(f"{out} holds no run to go on with", "leave --resume out")
    if json.loads(question.read_text()) != key:
        raise ArtifactError(
            f"{out} holds rows of another question: model, scenes, threads or code have changed",
            "leave --resume out to measure all of it anew, or give another folder with --out",
        )
    kept = {}
    for path in sorted(rows.glob("*.json")):
        if path != question:
            said = json.loads(path.read_text())
            kept[_label(path.stem)] = StepResult(**{**said, "tail": tuple(said["tail"])})
    return kept


def _header(question: Question) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "key": question.key(),
        "environment": describe_environment().to_json(),
    }


def _save(
    header: Mapping[str, Any],
    findings: Sequence[Finding],
    question: Question,
    out: Path,
    *,
    finished: bool,
) -> str:
    pairs = counterparts(question.rows)
    done = {finding.row.label for finding in findings}
    pairs = tuple(pair for pair in pairs if set(pair) <= done)
    lines = _header_lines(header, findings, question)
    if not finished:
        lines.append("NOT FINISHED: not every row was run")
    report = Report(tuple(findings))
    text = document(report, lines, pairs)
    rows = to_json(report)
    write_json(out / f"{NAME}.json", {**header, "finished": finished, "rows": rows})
    (out / f"{NAME}.csv").write_text(to_csv(report), encoding="utf-8")
    (out / f"{NAME}.md").write_text(text, encoding="utf-8")
    draw(report, lines[0], out / f"{NAME}.png")
    return text


def _header_lines(
    header: Mapping[str, Any], findings: Sequence[Finding], question: Question
) -> list[str]:
    machine, scenes = header["environment"], question.scenes
    versions = dict(machine["versions"])
    found = [one.result.answer for one in findings if one.result is not None and one.error is None]
    theirs = {answer["version"] for answer in found if "version" in answer}
    names = ", ".join(f"{one.name} from seed {one.first_seed}" for one in SETS)
    sha = header["key"]["sha256"]
    weights = "random weights" if sha is None else f"SHA-256 {sha[:12]}"
    size = f"{scenes.views} views of {scenes.height} x {scenes.width}"
    seen = f"{scenes.calibration_scenes} scenes of {scenes.calibration_views} views"
    modelopt = ", ".join(sorted(theirs)) or "not run"
    return [
        f"{question.model} ({weights}), {size}, {scenes.scenes} scenes of each set: {names}",
        f"calibrated on {seen} from seed {CALIBRATION_SEED}, the same for every row",
        f"torch {versions['torch']}, ModelOpt {modelopt}, Python {machine['python']}",
        f"{machine['cpu']}, {question.threads} threads",
        f"started {header['started']}",
    ]


def _file_name(label: str) -> str:
    """A label as part of a file's name; the inverse is `_label`."""
    return label.replace(":", "@")


def _label(name: str) -> str:
    return name.replace("@", ":")


def _question(options: argparse.Namespace) -> Question:
    from vggt_deploy.model.weights import open_weights

    if options.threads < 1:
        raise UsageError(f"--threads {options.threads}", "give 1 or more")
    rows = choose(options.labels, options.modelopt, options.prepared)
    height, width = open_weights(options.model)[0].size
    return Question(
        model=options.model,
        rows=rows,
        scenes=SceneQuestion(
            options.scenes,
            options.views,
            height,
            width,
            options.calibration_scenes,
            options.calibration_views,
        ),
        threads=options.threads,
        timeout_s=options.timeout,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default="vggt-nano", help="checkpoint, Hugging Face id or random:<config>")
    add("--labels", metavar="LABEL,...", help=f"labels of ours (default: {len(LABELS)} of them)")
    add("--modelopt", default="all", help="all, none, or some of its rows: see bench/README.md")
    add(
        "--prepared",
        metavar="DIR",
        type=Path,
        action="append",
        default=[],
        help="also a row of what `vggt-deploy qat` wrote (repeatable)",
    )
    add("--scenes", type=int, default=SCORED_SCENES, help="of each set (default 100)")
    add("--views", type=int, default=SCORED_VIEWS, help="of each scene (default 4)")
    add("--calibration-scenes", type=int, default=8, help="default 8")
    add("--calibration-views", type=int, default=8, help="of each of them, in one pass (default 8)")
    add("--threads", type=int, default=usable_cpus(), help="default: all usable CPUs")
    add("--timeout", type=float, default=3600.0, help="seconds for one row (default 3600)")
    add("--out", type=Path, default=Path("bench/out/accuracy"), help="bench/out/accuracy")
    add("--resume", action="store_true", help="keep the rows that this folder has of the same run")
    return parser


if __name__ == "__main__":
    sys.exit(main())
