"""Who may import what: the lines between the parts, held by reading the sources and by trying."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "vggt_deploy"
ONNX = frozenset({"onnx", "onnx_ir", "onnxscript", "onnxruntime"})
RUNTIMES = frozenset({"onnxruntime", "tensorrt", "tensorrt_rtx"})

# Part of the package -> what it must not import, lazily or not.
FORBIDDEN = {
    "model": ONNX | RUNTIMES,
    "quantize": ONNX | RUNTIMES,
    "data": ONNX | RUNTIMES | {"torch"},
    "engines": frozenset({"torch", "onnx", "onnx_ir", "onnxscript"}),
    "build": frozenset({"torch", "onnxruntime", "onnxscript"}),
    "ship": frozenset({"torch", "onnx", "onnx_ir", "onnxscript"}),
    "train": ONNX | RUNTIMES,
    "qat": ONNX | RUNTIMES,
    "report": ONNX | RUNTIMES | {"torch"},
    "pages": ONNX | RUNTIMES | {"torch"},
    "visualize": ONNX | RUNTIMES | {"torch"},
    "geometry.py": ONNX | RUNTIMES | {"torch"},
    "manifest.py": ONNX | RUNTIMES | {"torch", "numpy"},
    "records.py": ONNX | RUNTIMES | {"torch", "numpy"},
    "artifact.py": ONNX | RUNTIMES | {"torch", "numpy"},
}
# The same for parts of our own package.
FORBIDDEN_PARTS = {
    "model": {"export", "engines", "compare", "quantize", "cli"},
    "quantize": {"export", "engines", "compare", "train", "qat", "sensitivity", "search", "cli"},
    "data": {"model", "quantize", "export", "engines", "compare", "cli"},
    "engines": {"model", "quantize", "export", "build", "ship", "compare", "cli"},
    "export": {"build", "ship", "compare", "cli"},
    "build": {"model", "quantize", "export", "ship", "compare", "cli"},
    "ship": {"model", "quantize", "export", "compare", "cli"},
    "train": {"export", "engines", "build", "ship", "qat", "sensitivity", "search", "cli"},
    "qat": {"export", "engines", "build", "ship", "sensitivity", "search", "cli"},
    "sensitivity": {"build", "ship", "qat", "search", "cli"},
    "search": {"build", "ship", "qat", "cli"},
    "compare": {"train", "qat", "sensitivity", "search", "cli"},
    "report": {"model", "export", "engines", "build", "train", "qat", "search", "cli"},
    "pages": {"compare", "report", "visualize", "model", "quantize", "export", "engines", "cli"},
    "visualize": {"model", "quantize", "export", "build", "report", "train", "qat", "cli"},
    "records.py": {"model", "quantize", "export", "engines", "compare", "data", "cli"},
    "manifest.py": {"model", "quantize", "export", "engines", "compare", "data", "cli"},
    "artifact.py": {"model", "quantize", "export", "engines", "compare", "data", "cli"},
}
LIGHT = (
    "vggt_deploy",
    "vggt_deploy.api",
    "vggt_deploy.artifact",
    "vggt_deploy.build",
    "vggt_deploy.cli",
    "vggt_deploy.compare",
    "vggt_deploy.data",
    "vggt_deploy.doctor",
    "vggt_deploy.engines",
    "vggt_deploy.engines.inspect",
    "vggt_deploy.engines.run",
    "vggt_deploy.geometry",
    "vggt_deploy.manifest",
    "vggt_deploy.options",
    "vggt_deploy.pages",
    "vggt_deploy.progress",
    "vggt_deploy.quantize",
    "vggt_deploy.report",
    "vggt_deploy.ship",
    "vggt_deploy.tables",
    "vggt_deploy.visualize",
)
HEAVY = (
    *ONNX,
    *RUNTIMES,
    "torch",
    "matplotlib",
    "scipy",
    "jinja2",
    "httpx",
    "py7zr",
    "pycolmap",
    "ray",
)


def imported_names(source: str) -> Iterator[str]:
    """Dotted names of everything that a module imports, except for type checkers."""
    for node in _nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            module = node.module or ""
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            first = node.args[0] if node.args else None
            if name == "import_module" and isinstance(first, ast.Constant):
                yield str(first.value)


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _nodes(child)


def sources(part: str) -> list[Path]:
    path = PACKAGE / part
    found = [path] if path.is_file() else sorted(path.rglob("*.py"))
    assert found, f"{path} is gone: correct the table"
    return found


@pytest.mark.parametrize("part", FORBIDDEN)
def test_libraries_that_a_part_must_not_know(part: str) -> None:
    for path in sources(part):
        roots = {name.partition(".")[0] for name in imported_names(path.read_text())}
        assert not roots & FORBIDDEN[part], path


@pytest.mark.parametrize("part", FORBIDDEN_PARTS)
def test_parts_that_a_part_must_not_know(part: str) -> None:
    for path in sources(part):
        own = (
            n.split(".") for n in imported_names(path.read_text()) if n.startswith("vggt_deploy.")
        )
        assert not {name[1] for name in own} & FORBIDDEN_PARTS[part], path


def test_the_reader_sees_lazy_imports_and_not_those_for_types() -> None:
    source = (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import torch\n"
        "def f():\n    import onnx.helper\n    from vggt_deploy.export import trace\n"
        "    import_module('onnxruntime')\n"
    )
    names = set(imported_names(source))
    assert names == {
        "typing.TYPE_CHECKING",
        "onnx.helper",
        "vggt_deploy.export.trace",
        "onnxruntime",
    }


def loaded(modules: tuple[str, ...], blocked: tuple[str, ...] = ()) -> str:
    """Import modules in a fresh interpreter, without `blocked`; which heavy ones came along."""
    code = (
        "import sys\n"
        f"for name in {blocked}: sys.modules[name] = None\n"
        f"for name in {modules}: __import__(name)\n"
        f"print([m for m in {HEAVY} if sys.modules.get(m)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("module", LIGHT)
def test_importing_it_imports_nothing_heavy(module: str) -> None:
    assert loaded((module,)) == "[]"


def test_an_edge_device_can_import_what_it_runs() -> None:
    modules = (
        "vggt_deploy.engines.run",
        "vggt_deploy.engines.onnxruntime",
        "vggt_deploy.engines.tensorrt.session",
        "vggt_deploy.engines.inspect",
        "vggt_deploy.ship.verify",
        "vggt_deploy.doctor",
    )
    blocked = ("torch", "onnx", "onnx_ir", "onnxscript", "ml_dtypes", "matplotlib", "safetensors")
    loaded(modules, blocked)


def test_the_verbs_are_functions_and_their_names_complete() -> None:
    from vggt_deploy import api

    for name in api.__all__:
        assert callable(getattr(api, name)), name
        assert name in dir(api)
    with pytest.raises(AttributeError, match="no attribute 'exprot'"):
        _ = api.exprot
