"""What is installed and what is declared: the wheel, the extras, the constraints, the Makefile."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import vggt_deploy
from vggt_deploy.compare.variants import parse_variants
from vggt_deploy.data.synthetic import HELD_OUT

ROOT = Path(__file__).resolve().parents[1]
# Distribution -> the name it is imported by, where they differ.
IMPORT_NAMES = {
    "cuda-bindings": "cuda",
    "onnx-ir": "onnx_ir",
    "onnxruntime-gpu": "onnxruntime",
    "pillow": "PIL",
    "scikit-image": "skimage",
    "tensorrt-rtx-cu13": "tensorrt_rtx",
}
# Declared without an import of ours: torch.onnx.export imports onnxscript and onnx itself.
USED_BELOW_US = {"onnx", "onnxscript"}
# Imported and not declared: onnx raises protobuf's errors, jinja2 hands out markupsafe's text, and
# they bring them.
BROUGHT_BY_OTHERS = {"google", "markupsafe"}
# Of the extra test: what makes the schema that the repository publishes.
USED_TO_PUBLISH = {"pydantic"}
# Imported by name: which TensorRT, and whether there is CUDA, is found out at run time.
USED_BY_NAME = {"cuda", "tensorrt", "tensorrt_rtx"}


@pytest.fixture(scope="session")
def project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        data: dict[str, Any] = tomllib.load(file)["project"]
    return data


@pytest.fixture(scope="session")
def constraints() -> dict[str, Version]:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if text := line.partition("#")[0].strip():
            name, exact, version = text.partition("==")
            assert exact, f"{line!r} is not an exact version"
            pins[canonicalize_name(name)] = Version(version)
    return pins


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel as hatchling builds it from a copy of the sources; nothing is downloaded."""
    pytest.importorskip("hatchling", reason="hatchling builds the wheel (extra: test)")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "vggt_deploy", source / "vggt_deploy", ignore=skip)
    shutil.copytree(ROOT / "tests", source / "tests", ignore=skip)
    for name in ("engines", "compare"):
        shutil.copytree(ROOT / name, source / name, ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, source / name)
    (source / "demo").mkdir()
    (source / "demo" / "weights.bin").write_bytes(b"x")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=source,
        check=True,
        capture_output=True,
    )
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "vggt_deploy").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    profiles = {path.name for path in (ROOT / "engines").glob("*.toml")}
    assert len(profiles) >= 8
    expected |= {f"vggt_deploy/build/devices/{name}" for name in profiles}
    lists = {path.name for path in (ROOT / "compare" / "frames").glob("*.toml")}
    assert len(lists) >= 2
    expected |= {f"vggt_deploy/compare/frames/{name}" for name in lists}
    assert names == expected | {"vggt_deploy/compare/gates.toml"}
    assert "vggt_deploy/py.typed" in names


def test_the_wheels_metadata(wheel: zipfile.ZipFile) -> None:
    info = f"vggt_deploy-{vggt_deploy.__version__}.dist-info"
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert f"Version: {vggt_deploy.__version__}\n" in metadata
    assert "License-Expression: Apache-2.0\n" in metadata
    assert "vggt-deploy = vggt_deploy.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()
    assert "Apache License" in wheel.read(f"{info}/licenses/LICENSE").decode()


def test_one_version(project: dict[str, Any]) -> None:
    assert project["version"] == vggt_deploy.__version__


def requirements(project: dict[str, Any], *extras: str) -> dict[str, Requirement]:
    lines = [*project["dependencies"]]
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


def test_edge_has_no_torch_and_no_onnx(project: dict[str, Any]) -> None:
    edge = set(requirements(project, "edge"))
    assert "onnxruntime" in edge
    assert not edge & {"torch", "onnx", "onnx-ir", "onnxscript", "safetensors", "huggingface-hub"}


def test_cpu_and_gpu_differ_by_the_runtime_alone(project: dict[str, Any]) -> None:
    cpu, gpu = (set(map(str, requirements(project, extra).values())) for extra in ("cpu", "gpu"))
    assert {Requirement(line).name for line in cpu ^ gpu} == {"onnxruntime", "onnxruntime-gpu"}
    assert "onnxruntime" not in requirements(project, "gpu")


def test_cpu_holds_all_that_edge_holds(project: dict[str, Any]) -> None:
    assert requirements(project, "edge").keys() <= requirements(project, "cpu").keys()


def test_every_direct_dependency_is_pinned_within_its_range(
    project: dict[str, Any], constraints: dict[str, Version]
) -> None:
    for name, requirement in requirements(project, *project["optional-dependencies"]).items():
        assert name in constraints, f"{name} is not in constraints.txt"
        assert constraints[name] in requirement.specifier, name
    assert constraints["torch"] == Version("2.13.0")


def imported_roots() -> set[str]:
    roots = set()
    for path in (ROOT / "vggt_deploy").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                roots |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                roots.add(node.module.partition(".")[0])
    return roots - set(sys.stdlib_module_names) - {"vggt_deploy", "__future__"}


def test_what_is_imported_is_declared_and_what_is_declared_is_used(project: dict[str, Any]) -> None:
    # Of those two the package imports nothing: for tests, and for a bench.
    apart = ("test", "modelopt")
    extras = [extra for extra in project["optional-dependencies"] if extra not in apart]
    declared = {IMPORT_NAMES.get(n, n.replace("-", "_")) for n in requirements(project, *extras)}
    used = imported_roots() - BROUGHT_BY_OTHERS - USED_TO_PUBLISH | USED_BY_NAME
    assert used - declared == set()
    assert declared - used - USED_BELOW_US == set()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("target", ["setup", "demo", "test", "bench", "lint", "clean"])
def test_the_makefile_knows_its_targets(target: str) -> None:
    done = subprocess.run(
        ["make", "--dry-run", "VENV=/nonexistent/venv", target],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "MAKEFLAGS": ""},
    )
    assert done.returncode == 0, done.stderr
    if target not in ("clean",):
        assert "--constraint constraints.txt" in done.stdout


def demo_commands(*variables: str) -> list[list[str]]:
    """What `make demo` would run of vggt-deploy, word by word without the program."""
    done = subprocess.run(
        ["make", "--dry-run", "VENV=/nonexistent/venv", "demo", *variables],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    text = done.stdout.replace("\\\n", " ")
    found = re.findall(r"/bin/vggt-deploy (.*?)(?:&&|;|$)", text, flags=re.MULTILINE)
    return [shlex.split(command) for command in found]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_demo_renders_families_that_there_are() -> None:
    commands = [command for command in demo_commands() if command[0] == "scene"]
    drawn = [c[c.index("--family") + 1] if "--family" in c else None for c in commands]
    assert drawn == [None, HELD_OUT, None]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    "schemes, calibrated",
    [("all", True), ("int8_pc_sym", False), ("fp16,int8_pc_sym+static", True)],
)
def test_the_demo_calibrates_where_something_is_static(schemes: str, calibrated: bool) -> None:
    (command,) = (c for c in demo_commands(f"SCHEMES={schemes}") if c[0] == "compare")
    assert ("--calibrate" in command) == calibrated
    variants = parse_variants(schemes, "torch,onnxruntime", calibrated=calibrated)
    assert any(variant.activations == "static" for variant in variants) == calibrated


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_demo_takes_your_folders_and_drops_none() -> None:
    """Of both, compare says that it takes one; the demo must not choose silently."""
    for variables in ({"IMAGES": "a b"}, {"SCENES": "c"}, {"IMAGES": "a", "SCENES": "c"}):
        (command,) = (
            c for c in demo_commands(*(f"{k}={v}" for k, v in variables.items())) if c[0] != "scene"
        )
        for name, value in variables.items():
            assert command[command.index(f"--{name.lower()}") + 1] == value
        assert ("--scenes" in command) == ("SCENES" in variables)


def test_ci_runs_make_test_and_decides_nothing_else() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = [x for x in script.read_text().splitlines() if x and not x.startswith("#")]
    assert lines[-1] == "exec make test"
    assert all(re.match(r"set |cd |exec make test", line) for line in lines)
