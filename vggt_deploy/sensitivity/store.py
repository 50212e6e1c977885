"""The folder of a measurement: its question, and what is finished of the answer.

    question.json      what was asked; written before anything is measured
    local.json         the first pass, whole
    finished.jsonl     one line for each entry of the second pass that is done
    sensitivity.json, sensitivity.csv, sensitivity.png    the answer, when all is done

A killed run leaves at most one line cut short, which is dropped: that entry is measured again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vggt_deploy import typed_json
from vggt_deploy.compare.jobs import write_json
from vggt_deploy.compare.state import differences
from vggt_deploy.errors import CompareError
from vggt_deploy.sensitivity.table import Entry, entry_line, parse_entry

QUESTION_NAME = "question.json"
LOCAL_NAME = "local.json"
FINISHED_NAME = "finished.jsonl"
_LINE = 160
_SHOWN = 5

LocalErrors = dict[tuple[str, str], float]


@dataclass(frozen=True)
class Store:
    """Paths inside an output folder, and reading and writing them. The caller holds its lock."""

    root: Path

    def check(self, *, resume: bool) -> None:
        """Refuse a folder whose content this run must not touch, before anything is computed."""
        if self.root.exists() and not self.root.is_dir():
            raise CompareError(f"{self.root} is a file", "give another folder with -o DIR")
        if not self.root.exists() or not any(self.root.iterdir()):
            return
        if not (self.root / QUESTION_NAME).is_file():
            raise CompareError(
                f"{self.root} is not empty and holds no {QUESTION_NAME}, so no measurement was "
                "begun there",
                "give a new folder with -o DIR",
            )
        if not resume:
            raise CompareError(
                f"{self.root} is not empty",
                "add --resume to go on with the measurement in it, or give another folder with "
                "-o DIR",
            )

    def begin(self, question: Mapping[str, Any]) -> None:
        """Insist that the question is the folder's own, or make it so.

        Raises:
            CompareError: the folder answers another question; what differs is named.
        """
        asked = json.loads(json.dumps(question))
        path = self.root / QUESTION_NAME
        if path.is_file():
            changed = list(differences(self._read(path), asked))
            if changed:
                shown = "\n".join(f"  {_cut(line)}" for line in changed[:_SHOWN])
                more = f"\n  and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
                raise CompareError(
                    f"{self.root} answers another question than this one:\n{shown}{more}",
                    "ask the same question to resume, or give another folder with -o DIR",
                )
        self.root.mkdir(parents=True, exist_ok=True)
        write_json(path, asked)

    def local(self) -> LocalErrors | None:
        """The first pass, if it is done."""
        path = self.root / LOCAL_NAME
        if not path.is_file():
            return None
        value = self._read(path)
        try:
            return {(unit, form): float(e) for unit, form, e in value["errors"]}
        except (TypeError, KeyError, ValueError) as error:
            raise self._damaged(path, error) from error

    def save_local(self, errors: LocalErrors) -> None:
        """Keep the first pass."""
        rows = [[unit, form, error] for (unit, form), error in errors.items()]
        write_json(self.root / LOCAL_NAME, {"errors": rows})

    def finished(self) -> dict[tuple[str, str], Entry]:
        """(unit, format) -> entry of the second pass; a last line cut short is removed."""
        path = self.root / FINISHED_NAME
        if not path.is_file():
            return {}
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            with path.open("r+b") as file:
                file.truncate(len(whole))
        entries = [parse_entry(line) for line in whole.decode("utf-8").splitlines()]
        return {(entry.unit, entry.format): entry for entry in entries}

    def save(self, entry: Entry) -> None:
        """Keep one finished entry; on the disk when this returns."""
        with (self.root / FINISHED_NAME).open("a", encoding="utf-8") as file:
            file.write(entry_line(entry))
            file.flush()
            os.fsync(file.fileno())

    def _read(self, path: Path) -> Any:
        try:
            return typed_json.parse(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise self._damaged(path, error) from error

    def _damaged(self, path: Path, error: Exception) -> CompareError:
        return CompareError(
            f"{path} can't be read: {error}", "measure again in another folder, with -o DIR"
        )


def _cut(line: str) -> str:
    """A list of a hundred units is no line."""
    return line if len(line) <= _LINE else f"{line[: _LINE - 3]}..."
