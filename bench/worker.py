"""The child's side of `process.run_step`: do one step, tell its result and its peak memory."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vggt_deploy.compare.jobs import write_json
from vggt_deploy.compare.processes import die_with_parent
from vggt_deploy.errors import DeployError
from vggt_deploy.memory import peak_rss_bytes

Answer = dict[str, Any]
Step = Callable[..., Answer]


def serve(steps: Mapping[str, Step], arguments: Sequence[str]) -> int:
    """Do the job in the file that `arguments` name; the peak is told also when the step fails.

    An error that is not ours goes on to Python: its traceback is in the log.
    """
    job = json.loads(Path(arguments[0]).read_text())
    die_with_parent(job["parent"])
    _be_first_to_go()
    answer: Answer = {}
    try:
        answer["ok"] = steps[job["step"]](**job["arguments"])
    except DeployError as error:
        answer["error"] = error.message
    finally:
        answer["peak_rss_bytes"] = peak_rss_bytes()[0]
        write_json(Path(job["answer"]), answer)
    return 0 if "ok" in answer else DeployError.exit_code


def _be_first_to_go() -> None:
    """If memory runs out, let the kernel end this step and not something else on the machine."""
    # A courtesy: where /proc does not exist or is read-only, the measurement is as good.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
