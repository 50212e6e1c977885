"""The folder of a comparison: the question it answers, and the rows that are finished.

    question.json            what was asked; written before anything is measured
    rows/<variant>.json      one finished row, written whole
    work/                    the pictures and the truth as arrays, jobs, answers
    outputs/<variant>.npz    what each variant computed of the first scene; of the further ones
    outputs/torch-fp32.<scene number>.npz    the reference alone is kept: rows are held against it
    artifacts/<scheme>/      the exported artifacts
    engines/<variant>/       the engines built from them
    logs/<variant>.log       what each process wrote

A row counts only under the very same question: another picture, weight file, thread count or
version of a library is another question, and mixing two would put numbers beside each other that do
not belong together. Rows that failed or were not run are not finished: memory may be free, a
library there, next time; what they exported and built is kept. Refused rows are finished: the
scheme table does not change under one version.
"""

from __future__ import annotations

import errno
import json
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vggt_deploy.compare.jobs import write_json
from vggt_deploy.compare.report import FILES, Row
from vggt_deploy.compare.variants import REFERENCE, Variant
from vggt_deploy.errors import CompareError
from vggt_deploy.outputs import output_groups

QUESTION_NAME = "question.json"
_FOLDERS = ("rows", "work", "outputs", "artifacts", "logs", "depth")
_ENGINES = "engines"  # made by the first engine that is built
# Hidden files and folders on their way to a name: of workers, of `artifact.writing`, of executors.
_UNFINISHED = (".tmp", ".partial", ".arriving")
_SHOWN_DIFFERENCES = 5


@dataclass(frozen=True)
class Paths:
    """Files of one job: what is asked, what came back, what was said (None: straight to stderr)."""

    job: Path
    answer: Path
    log: Path | None


@dataclass(frozen=True)
class Folder:
    """Paths inside an output folder."""

    root: Path

    @property
    def work(self) -> Path:
        return self.root / "work"

    def images(self, scene: int = 0) -> Path:
        """Pixels of the scene of that number."""
        return self.work / f"images{_numbered(scene)}.npy"

    def truth(self, scene: int = 0) -> Path:
        """True cameras and depth of the scene of that number, where they are known (.npz)."""
        return self.work / f"truth{_numbered(scene)}.npz"

    @property
    def calibration(self) -> Path:
        """Statistics for static activations, unless the user gave some."""
        return self.work / "calibration"

    def prepared(self, variant: Variant) -> Path:
        """Prepared weights of the variant's label."""
        return self.work / "prepared" / variant.scheme_label

    @property
    def size_probe(self) -> Path:
        """Where the reference saves its weights to be weighed; deleted at once."""
        return self.work / "weights.pt"

    @property
    def traces(self) -> Path:
        """Traced graphs, which all schemes of the run start from."""
        return self.work / "traces"

    def row(self, variant: Variant) -> Path:
        return self.root / "rows" / f"{variant.slug}.json"

    def arrays(self, variant: Variant, scene: int = 0) -> Path:
        """What a variant computed of the scene of that number."""
        return self.root / "outputs" / f"{variant.slug}{_numbered(scene)}.npz"

    def log(self, name: str) -> Path:
        return self.root / "logs" / f"{name}.log"

    def artifact(self, variant: Variant) -> Path:
        return self.root / "artifacts" / variant.scheme_label

    def engine(self, variant: Variant) -> Path:
        return self.root / _ENGINES / variant.slug

    def job(self, name: str) -> Path:
        return self.work / f"{name}.job.json"

    def answer(self, name: str) -> Path:
        return self.work / f"{name}.answer.json"

    def paths(self, name: str) -> Paths:
        """Of the job of that name."""
        return Paths(self.job(name), self.answer(name), self.log(name))


def _numbered(scene: int) -> str:
    """The first scene has the plain name: of one scene there is nothing to number."""
    return f".{scene:03d}" if scene else ""


def check_folder(root: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder whose content this run must not touch; called with the lock held."""
    if resume and overwrite:
        raise CompareError("resume and overwrite contradict each other", "use one of them")
    if root.exists() and not root.is_dir():
        raise CompareError(f"{root} is a file", "give another folder with -o DIR")
    if not root.exists() or not any(root.iterdir()):
        return
    ours = (root / QUESTION_NAME).is_file()
    if not ours and (resume or overwrite):
        raise CompareError(
            f"{root} is not empty and holds no {QUESTION_NAME}, so no comparison was begun there",
            "give the folder of a comparison, or an empty one, with -o DIR",
        )
    if not resume and not overwrite:
        raise CompareError(
            f"{root} is not empty",
            "add --resume to go on with the comparison in it, --overwrite to begin again, "
            "or give another folder with -o DIR",
        )


def begin(folder: Folder, question: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Make the folder ready to answer `question`; on resume, insist that it is the same one."""
    path = folder.root / QUESTION_NAME
    if overwrite and path.is_file():
        for name in (*_FOLDERS, _ENGINES):
            if (folder.root / name).exists():
                shutil.rmtree(folder.root / name)
        for name in (*FILES, QUESTION_NAME):
            (folder.root / name).unlink(missing_ok=True)
    if resume and path.is_file():
        changed = list(differences(_read_question(path), question))
        if changed:
            shown = "\n".join(f"  {line}" for line in changed[:_SHOWN_DIFFERENCES])
            more = len(changed) - _SHOWN_DIFFERENCES
            shown += f"\n  and {more} more" if more > 0 else ""
            raise CompareError(
                f"{folder.root} answers another question than this one:\n{shown}",
                "ask the same question to resume, or give another folder with -o DIR",
            )
    for name in _FOLDERS:
        (folder.root / name).mkdir(parents=True, exist_ok=True)
    _clear_unfinished(folder)
    write_json(path, question)


def _clear_unfinished(folder: Folder) -> None:
    """Remove what a killed run was writing; called with the lock held, so nothing is in use.

    A variant that then fails, or is not asked for again, would leave gigabytes that nobody reads.
    """
    folder.size_probe.unlink(missing_ok=True)
    for name in (*_FOLDERS, _ENGINES):
        for ending in _UNFINISHED:
            for path in [*(folder.root / name).rglob(f".*{ending}")]:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)


def differences(old: Any, new: Any, place: str = "") -> Iterator[str]:
    """Where two questions differ, as `place: old -> new`; for lists what was lost and gained."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            inner = f"{place}.{key}" if place else key
            yield from differences(old.get(key), new.get(key), inner)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from differences(a, b, f"{place}[{i}]")
    elif isinstance(old, list) and isinstance(new, list):
        gone = [f"without {_short(item)}" for item in old if item not in new]
        more = [f"with {_short(item)}" for item in new if item not in old]
        named = f": {', '.join([*gone, *more])}" if gone or more else ""
        yield f"{place}: {len(old)} entries -> {len(new)}{named}"
    elif old != new:
        yield f"{place}: {_short(old)} -> {_short(new)}"


def timed_cpu(folder: Folder) -> str | None:
    """The CPU that the comparison in the folder is timed on; None where none was begun, or its
    question is of another kind, which `begin` then says.
    """
    path = folder.root / QUESTION_NAME
    try:
        cpu = _read_question(path)["machine"]["cpu"]
    except (FileNotFoundError, KeyError, TypeError):
        return None
    return cpu if isinstance(cpu, str) else None


@contextmanager
def full_disk_explained(root: Path, fix: str) -> Iterator[None]:
    """A full disk as a CompareError."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CompareError(f"the disk of {root} is full", fix) from error


def save_row(folder: Folder, variant: Variant, row: Row) -> None:
    """Keep a finished row."""
    write_json(folder.row(variant), asdict(row))


def finished_row(folder: Folder, variant: Variant) -> Row | None:
    """The row of `variant` that a former run of the same question finished, if it did."""
    path = folder.row(variant)
    if not path.is_file():
        return None
    try:
        row = Row.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, CompareError) as error:
        said = error.message if isinstance(error, CompareError) else error
        raise CompareError(
            f"{path} can't be read: {said}", "delete that file, and the variant is measured again"
        ) from error
    if row.status in ("failed", "not run"):
        return None
    # The depth pictures need the first scene of every variant, further rows all of the reference.
    needed = len(row.scenes) if variant == REFERENCE else 1
    if row.status == "done":
        asked = asked_shapes(_read_question(folder.root / QUESTION_NAME))
        if not all(_whole(folder.arrays(variant, scene), asked) for scene in range(needed)):
            return None
    return row


def asked_shapes(question: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The outputs of one scene that a question asks for, and their shapes."""
    images = question["images"]
    frames, height, width = images["frames"], images["height"], images["width"]
    shapes = {
        "pose_enc": (1, frames, 9),
        "depth": (1, frames, height, width, 1),
        "depth_conf": (1, frames, height, width),
        "world_points": (1, frames, height, width, 3),
        "world_points_conf": (1, frames, height, width),
    }
    groups = output_groups(question["outputs"])
    return {name: shapes[name] for group in groups for name in group.tensors}


def _whole(path: Path, asked: dict[str, tuple[int, ...]]) -> bool:
    """Whether the outputs are those that were asked for, every byte as it was written.

    A disk may have lost some, or someone put another comparison's there.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return False
        # Opened here: np.load leaves the file open when the archive is broken.
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return all(file[name].shape == shape for name, shape in asked.items())
    except (OSError, ValueError, KeyError, EOFError, SyntaxError, zipfile.BadZipFile):
        return False


def _read_question(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CompareError(
            f"{path} can't be read: {error}", "begin again with --overwrite or in another folder"
        ) from error


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
