"""A sweep on a disk that fills: `small_disk.py DISK SCENES PLAN BALLAST_BYTES`, in a namespace.

DISK is a small file system of its own. The sweep runs beside a ballast that leaves it
too little; then the ballast goes and the sweep is resumed. Prints one JSON line: how the first one
ended, which rows it kept and with what failures, and the rows of the resumed one.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from fake_comparison import FAKE_WORKER
from rich.console import Console

from vggt_deploy.compare import compare, pipeline
from vggt_deploy.errors import CompareError


def sweep(disk: Path, scenes: str, plan: str, *, resume: bool) -> Any:
    return compare(
        "fake-model",
        scenes=[scenes],
        output_dir=disk / "out",
        schemes="fp32,int8_pc_sym,int4_g128,mixed",
        width=56,
        threads=1,
        timeout_s=30.0,
        resume=resume,
        console=Console(quiet=True),
        worker_command=(sys.executable, str(FAKE_WORKER), plan),
    )


def kept(disk: Path) -> dict[str, str]:
    """Row file -> how it failed, or "done"; each must be whole."""
    rows = {}
    for path in sorted((disk / "out" / "rows").glob("*.json")):
        row = json.loads(path.read_text())
        rows[path.stem] = row["status"] if row["failure"] is None else str(row["failure"])
    return rows


def main() -> None:
    disk, scenes, plan, free = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
    pipeline.draw = lambda *_: None  # seconds, and megabytes
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(disk).free - free))
    ended = "done"
    try:
        sweep(disk, scenes, plan, resume=False)
    except CompareError as error:
        ended = str(error)
    rows = kept(disk)
    ballast.unlink()
    report = sweep(disk, scenes, plan, resume=(disk / "out" / "question.json").exists())
    found = {row.label: row.status for row in report.rows}
    print(json.dumps({"ended": ended, "kept": rows, "resumed": found}))


if __name__ == "__main__":
    main()
