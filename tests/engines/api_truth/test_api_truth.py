"""Every part of TensorRT's API that our sources use exists in the versions that we promise.

The versions are the bindings of TensorRT 10.3 (JetPack 6), the last 10 and the newest 11, imported
over empty libraries, and the installed TensorRT-RTX. What is used is read from the sources.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))  # tests are no packages

from api_bindings import Bindings, CannotHave, read_surface, surface_of
from api_program import Program
from api_surface import overloads, short, split
from api_types import ENTERPRISE, RTX, Use, problem

WHEELS = (
    Bindings("tensorrt-cu12-bindings", "10.3.0"),
    Bindings("tensorrt-cu12-bindings", "10.16.1.11"),
    Bindings("tensorrt-cu13-bindings", "11.4.0.106"),
)
Surfaces = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def rtx() -> dict[str, Any]:
    """The installed TensorRT-RTX, imported for real."""
    return read_surface("tensorrt_rtx", {})


@pytest.fixture(scope="module")
def enterprise(request: pytest.FixtureRequest) -> Surfaces:
    """The versions of TensorRT, downloaded once (4 MB)."""
    assert request.config.cache is not None
    cache = request.config.cache.mkdir("tensorrt-bindings")
    try:
        return {wheel.version: surface_of(wheel, cache) for wheel in WHEELS}
    except CannotHave as reason:
        pytest.skip(str(reason))


def our_sources(repository: Path) -> dict[str, str]:
    """All modules that could have to do with TensorRT: types travel from one to the other."""
    package = repository / "vggt_deploy"
    return {
        path.relative_to(package).as_posix(): path.read_text()
        for path in sorted(package.rglob("*.py"))
        if "trt" in path.read_text() or "engines.tensorrt" in path.read_text()
    }


def problems(sources: dict[str, str], enterprise: Surfaces, rtx: dict[str, Any]) -> list[str]:
    """What a version lacks that runs in it, and what no version has."""
    program = Program(sources, [*enterprise.values(), rtx])
    found = []
    for use in program.uses():
        versions = {} if use.only == RTX else dict(enterprise)
        if use.only != ENTERPRISE:
            versions["RTX"] = rtx
        missing = {
            version: said
            for version, surface in versions.items()
            if (said := problem(use, surface)) is not None
        }
        if missing and not (use.asked and len(missing) < len(versions)):
            found += [f"{version}: {said}" for version, said in missing.items()]
    return [*found, *sorted(program.unknown)]


def test_what_we_use_exists(repository: Path, enterprise: Surfaces, rtx: dict[str, Any]) -> None:
    assert problems(our_sources(repository), enterprise, rtx) == []


def test_with_tensorrt_rtx_alone(repository: Path, rtx: dict[str, Any]) -> None:
    """What runs there: the part of the test above that needs no download."""
    uses = Program(our_sources(repository), [rtx]).uses()
    wrong = [problem(use, rtx) for use in uses if use.only != ENTERPRISE and not use.asked]
    assert [said for said in wrong if said] == []


def test_nothing_is_overlooked(repository: Path, rtx: dict[str, Any]) -> None:
    """Held against a blunter reading: every attribute of ours that is called like one of
    TensorRT's was found as a use of it, or belongs to a class of ours.
    """
    sources = our_sources(repository)
    uses = Program(sources, [rtx]).uses()
    assert len(uses) > 100
    members = {
        name
        for cls in rtx["classes"].values()
        for name in [*cls["methods"], *cls["properties"]]
        if "_" in name and not name.startswith("_")
    }
    assert {"create_network", "set_input_shape", "progress_monitor"} <= members
    ours = {
        node.name if isinstance(node, ast.FunctionDef) else ast.unparse(node.target)
        for text in sources.values()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AnnAssign)
    }
    named = {
        node.attr
        for text in sources.values()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute)
    }
    assert (named & members) - {use.name for use in uses} - ours == set()


def test_the_versions_differ_as_they_should(enterprise: Surfaces, rtx: dict[str, Any]) -> None:
    """The surfaces are those of different versions, and not one and the same four times."""
    flags = {v: set(s["classes"]["BuilderFlag"]["enum"]) for v, s in enterprise.items()}
    assert "FP16" in flags["10.3.0"]
    assert "FP16" not in flags["11.4.0.106"]
    assert "EDITABLE_TIMING_CACHE" in flags["10.16.1.11"] - flags["10.3.0"]
    assert [s["version"] for s in enterprise.values()] == [wheel.version for wheel in WHEELS]
    assert "ComputeCapability" in rtx["classes"]
    assert not any("ComputeCapability" in s["classes"] for s in enterprise.values())


# The twins: mistakes in a sample are found


SAMPLE = """
from typing import Any, TypeAlias
IBuilderConfig: TypeAlias = Any

def build(library, path):
    trt = library.trt
    log = make_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(path):
        for index in range(parser.num_errors):
            print(parser.get_error(index).desc())
    config = builder.create_builder_config()
    configure(trt, config)
    held = Held(network)
    for index in range(held.network.num_inputs):
        print(held.network.get_input(index).shape)
    if library.is_rtx:
        config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    return builder.build_serialized_network(network, config)

def configure(trt, config: IBuilderConfig):
    config.builder_optimization_level = 3
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 30)
    if has_member(trt.BuilderFlag, "STRICT_NANS"):
        config.set_flag(member(trt.BuilderFlag, "STRICT_NANS"))

class Held:
    network: Any

def make_log(trt):
    class Log(trt.ILogger):
        def log(self, severity, message):
            print(trt.ILogger.Severity.ERROR)
    return Log()

def run(trt, plan, stream):
    engine = trt.Runtime(make_log(trt)).deserialize_cuda_engine(plan)
    strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    context = engine.create_execution_context(strategy=strategy)
    return context.execute_async_v3(stream)
"""
MISTAKES = {
    "a method": ("create_network(", "create_netwrok("),
    "a method through a loop": (".desc()", ".dsec()"),
    "a method through a field of ours": ("network.get_input(", "network.get_inputs("),
    "a property": ("parser.num_errors", "parser.nb_errors"),
    "a property that is written": ("builder_optimization_level", "optimization_level"),
    "a class": ("trt.OnnxParser(", "trt.ONNXParser("),
    "a function of the module": ("trt.Runtime(", "trt.create_runtime("),
    "a member": ("USER_MANAGED", "USER_MANGED"),
    "a member asked for everywhere": ('"STRICT_NANS"', '"STRICT_NAN"'),
    "a member that 10.3 lacks, not asked for": (
        'if has_member(trt.BuilderFlag, "STRICT_NANS"):',
        "if True:",
    ),
    "a member that 11 lacks": ("MemoryPoolType.WORKSPACE", "TacticSource.CUDNN"),
    "a member in a class in a class": ("Severity.ERROR", "Severity.ERORR"),
    "one argument too many": ("parse_from_file(path)", "parse_from_file(path, 1, 2)"),
    "one argument too few": ("set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 30)",
                             "set_memory_pool_limit(1 << 30)"),
    "a keyword": ("strategy=strategy", "allocation=strategy"),
    "an argument of a constructor": ("trt.Builder(log)", "trt.Builder()"),
    "a method that is overridden": ("def log(self, severity", "def loog(self, severity"),
    "the arguments of one": ("severity, message):", "severity):"),
    "RTX's, outside its branch": ("if library.is_rtx:", "if library:"),
    "RTX's, in the other branch": ("if library.is_rtx:", "if not library.is_rtx:"),
    "a class in an annotation": ("IBuilderConfig", "BuilderConfig"),
}  # fmt: skip


def test_the_sample_is_right(enterprise: Surfaces, rtx: dict[str, Any]) -> None:
    assert problems({"sample.py": SAMPLE}, enterprise, rtx) == []


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(mistake: str, enterprise: Surfaces, rtx: dict[str, Any]) -> None:
    before, after = MISTAKES[mistake]
    assert before in SAMPLE
    wrong = SAMPLE.replace(before, after)
    found = problems({"sample.py": wrong}, enterprise, rtx)
    assert found
    assert all("sample.py" in said for said in found)


def test_types_travel_between_files(rtx: dict[str, Any]) -> None:
    """Through an import of a function, of a module, and back out of a call."""
    sources = {
        "a/one.py": (
            "from vggt_deploy.a import two\n"
            "from vggt_deploy.a.two import finish\n"
            "def start(trt):\n"
            "    network = two.make(trt.Builder(None))\n"
            "    return finish(network)\n"
            "def _same(x):\n    return x.num_layers\n"
        ),
        "a/two.py": (
            "def make(builder):\n    return builder.create_network()\n"
            "def finish(network):\n    return _same(network)\n"
            "def _same(x):\n    return x.num_lairs\n"
        ),
    }
    wrong = [said for use in Program(sources, [rtx]).uses() if (said := problem(use, rtx))]
    assert wrong == ["a/two.py:6: INetworkDefinition.num_lairs does not exist"]


def test_a_function_called_only_for_rtx_is_its_own(rtx: dict[str, Any]) -> None:
    text = (
        "def go(library, runtime):\n"
        "    trt = library.trt\n"
        "    found = ask(trt.Runtime(None)) if library.is_rtx else None\n"
        "    if not library.is_rtx:\n        return trt.one\n"
        "    return library.is_rtx and trt.two\n"
        "def ask(runtime):\n    return runtime.get_engine_validity(b'')\n"
    )
    only = {use.name: use.only for use in Program({"sample.py": text}, [rtx]).uses()}
    assert only["get_engine_validity"] == RTX
    assert only["one"] == ENTERPRISE
    assert only["two"] == RTX


def test_signatures_are_read() -> None:
    doc = (
        "f(*args, **kwargs)\nOverloaded function.\n\n"
        "1. f(self: a_b.c.X, x: int = <E.A: 0>, y: list[a_b.c.Y]) -> a_b.c.Z\n\n   words\n"
        "2. f(self: a_b.c.X, shape: tuple = (1, 2)) -> list[a_b.c.Dims]\n"
    )
    assert overloads(doc, "f") == [
        [[["x", True], ["y", False]], "Z"],
        [[["shape", True]], "list[Dims]"],
    ]
    assert overloads("no signature", "f") == []
    assert split("a, (b, c), <d, e>") == ["a", "(b, c)", "<d, e>"]
    assert short("List[x.y.Dims]") == "List[Dims]"


def test_arguments_are_counted() -> None:
    surface = {
        "names": [],
        "classes": {
            "X": {
                "enum": None,
                "methods": {"f": [[[["a", False], ["b", True]], "None"]]},
                "properties": {"p": ["int", False]},
            }
        },
    }
    calls = {(1, ()): True, (2, ()): True, (0, ("a",)): True, (1, ("b",)): True}
    calls |= {(0, ()): False, (3, ()): False, (1, ("a",)): False, (1, ("c",)): False}
    for arguments, right in calls.items():
        said = problem(Use("here", "X", "f", arguments=arguments), surface)
        assert (said is None) == right, arguments
    assert "can't be written" in str(problem(Use("here", "X", "p", writes=True), surface))
