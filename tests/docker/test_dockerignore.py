"""What is sent to the builder: the repository, and nothing that lies beside it."""

from __future__ import annotations

import fnmatch
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The folders that hold gigabytes while one works, with a file that lies in each.
BULK = (
    ".venv/bin/python",
    ".git/config",
    "demo/report/x.npz",
    "vggt-1b-int8_pc_sym/weights.bin",
    "checkpoint.safetensors",
    "data/picture.jpg",
    "bench/out/a.json",
    "bench/model.engine",
    "vggt_deploy/__pycache__/api.pyc",
    "tests/docker/__pycache__/x.pyc",
)


def rules() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def is_sent(path: str, patterns: list[str]) -> bool:
    """Docker's rule: the last pattern that matches the path or one of its folders decides."""
    parts = path.split("/")
    prefixes = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
    sent = True
    for pattern in patterns:
        bare = pattern.removeprefix("!")
        if any(_matches(prefix, bare) for prefix in prefixes):
            sent = pattern.startswith("!")
    return sent


def _matches(path: str, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatch.fnmatchcase(path.rpartition("/")[2], pattern[3:])
    return path.count("/") == pattern.count("/") and fnmatch.fnmatchcase(path, pattern)


def test_the_matcher_of_the_ignore_file() -> None:
    patterns = ["*", "!src", "src/out", "**/*.bin"]
    sent = {p for p in ("a", "a/b", "src/x.py", "src/out/y", "src/w.bin") if is_sent(p, patterns)}
    assert sent == {"src/x.py"}


def test_gigabytes_are_not_sent_to_the_builder() -> None:
    assert [path for path in BULK if is_sent(path, rules())] == []


def tracked() -> Iterator[str]:
    """Files of the repository, or of the copy that the image holds."""
    git = shutil.which("git")
    if git is not None and (ROOT / ".git").exists():
        listed = subprocess.run([git, "ls-files"], cwd=ROOT, capture_output=True, text=True)
        yield from listed.stdout.splitlines()
        return
    for path in ROOT.rglob("*"):
        if path.is_file() and is_sent(path.relative_to(ROOT).as_posix(), rules()):
            yield path.relative_to(ROOT).as_posix()


def test_every_file_of_the_repository_is_sent() -> None:
    """`make test` runs in the image, and reads them all."""
    files = list(tracked())
    assert len(files) > 100
    assert [path for path in files if not is_sent(path, rules())] == []
