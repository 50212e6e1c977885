from __future__ import annotations

import inspect
import io
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from vggt_deploy import __version__, api, options
from vggt_deploy.cli import app
from vggt_deploy.errors import ArtifactError, UsageError
from vggt_deploy.tables import print_schemes

COMMANDS = (
    "schemes",
    "calibrate",
    "export",
    "compare",
    "report",
    "visualize",
    "data",
    "build",
    "inspect",
    "run",
    "bundle",
    "verify",
    "unpack",
    "rebuild",
    "doctor",
    "scene",
    "train",
)
HEAVY = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "tensorrt", "matplotlib", "numpy")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def stop_at(monkeypatch: pytest.MonkeyPatch, verb: str, error: BaseException) -> Any:
    """Replace a verb by one of the same signature that records its call and raises `error`."""
    fake = create_autospec(getattr(api, verb), side_effect=error)
    monkeypatch.setattr(api, verb, fake, raising=False)
    return fake


# --- parsing


@pytest.mark.parametrize(
    "text, expected", [("1:5:16", (1, 5, 16)), ("4", (4, 4, 4)), ("2:2:2", (2, 2, 2))]
)
def test_frames(text: str, expected: tuple[int, int, int]) -> None:
    assert options.parse_frames(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "1:2",
        "5:1:16",
        "1:17:16",
        "0:1:2",
        "-1:2:3",
        "a:b:c",
        "1:2:3:4",
        "1.5",
        "1: 2:3",
        "٣",
    ],
)
def test_wrong_frames(text: str) -> None:
    with pytest.raises(UsageError, match="--frames"):
        options.parse_frames(text)


def test_outputs_come_in_a_fixed_order_and_once() -> None:
    assert options.parse_outputs("points, pose,points") == ("pose", "points")
    assert options.parse_outputs("all") == ("pose", "depth", "points")
    with pytest.raises(UsageError, match="unknown output 'deepth'"):
        options.parse_outputs("pose,deepth")
    with pytest.raises(UsageError, match="is empty"):
        options.parse_outputs(" , ")


@pytest.mark.parametrize(
    "pixels, fix",
    [(300, "294 or --height 308|294 or 308"), (10, "--height 14"), (0, "14"), (-14, "14")],
)
def test_a_size_that_is_no_multiple_of_the_patch_names_the_nearest(pixels: int, fix: str) -> None:
    with pytest.raises(UsageError) as raised:
        options.check_size("--height", pixels)
    assert re.search(fix, raised.value.fix)
    assert " 0" not in raised.value.fix


def test_a_good_size_passes() -> None:
    assert options.check_size("--width", 518) == 518
    assert options.check_size("--width", None) is None


def test_the_scheme_and_its_activations() -> None:
    def label(*arguments: Any, **more: Any) -> str:
        return options.parse_scheme(*arguments, **more).label

    assert label("int8_pc_sym") == "int8_pc_sym"
    assert label("int8_pc_sym", activations="dynamic") == "int8_pc_sym+dynamic"
    assert label("int8_pc_sym+dynamic") == "int8_pc_sym+dynamic"
    assert label("int8_pc_sym+dynamic", activations="dynamic") == "int8_pc_sym+dynamic"
    assert label("int4_g32", words=("gptq", "w=mse")) == "int4_g32+w=mse+gptq"
    for scheme, mode in (
        ("int9", None),
        ("fp32", "dynamic"),
        ("int8_pc_sym", "magic"),
        ("int8_pc_sym+static", "dynamic"),
    ):
        with pytest.raises(UsageError):
            label(scheme, activations=mode)
    for scheme, words in (("fp32", ("gptq",)), ("int4_g32+gptq", ("gptq",)), ("int4_g32", ("x",))):
        with pytest.raises(UsageError):
            label(scheme, words=words)
    with pytest.raises(UsageError, match="nothing was given"):
        label(None)
    with pytest.raises(UsageError, match="both --scheme and --recipe"):
        label("int8_pc_sym", Path("recipe.toml"))


def test_what_was_prepared_says_its_own_scheme() -> None:
    assert options.only_prepared(Path("/runs/qat"), None, None, None, ()) == "qat"
    for given in (("int4_g32", None, ()), (None, "static", ()), (None, None, ("gptq",))):
        with pytest.raises(UsageError, match=r"beside it"):
            options.only_prepared(Path("/runs/qat"), given[0], None, given[1], given[2])


def test_options_become_words_of_the_label() -> None:
    words = options.treatment_words(
        smooth="auto", rotate=True, rounding="gptq", weight_range="percentile:99.9", apart=True
    )
    assert words == ("w=p99.9", "apart", "smooth", "rotate", "gptq")
    assert options.treatment_words(
        smooth="0.5", rotate=False, rounding="nearest", weight_range=None, apart=False
    ) == ("smooth=0.5",)


def test_words_from_a_short_list() -> None:
    assert options.parse_precision(None) is None
    assert options.parse_precision("bf16") == "bf16"
    assert options.parse_mode("pad") == "pad"
    with pytest.raises(UsageError, match="fp64"):
        options.parse_precision("fp64")
    with pytest.raises(UsageError, match="stretch"):
        options.parse_mode("stretch")


@pytest.mark.parametrize(
    "model, activations, expected",
    [
        ("facebook/VGGT-1B", "float", "vggt-1b-int8_pc_sym"),
        ("facebook/VGGT-1B", "dynamic", "vggt-1b-int8_pc_sym-dynamic"),
        ("random:vggt-1b", "float", "random-vggt-1b-int8_pc_sym"),
        ("random:vggt-tiny:7", "float", "random-vggt-tiny-7-int8_pc_sym"),
        ("runs/Best Model.safetensors", "float", "best-model-int8_pc_sym"),
        ("vggt-nano", "static", "vggt-nano-int8_pc_sym-static"),
        ("../..", "float", "model-int8_pc_sym"),
        ("models/vggt/", "float", "vggt-int8_pc_sym"),
    ],
)
def test_the_default_folder(model: str, activations: str, expected: str) -> None:
    mode = "" if activations == "float" else f"+{activations}"
    assert options.default_output(model, f"int8_pc_sym{mode}") == Path(expected)


def test_picture_sizes() -> None:
    assert options.parse_picture_size("640x480") == (640, 480)
    assert options.parse_picture_size("16x4096") == (16, 4096)
    for text in ("640", "640X480", "0x480", "640x-1", "axb", "15x480", "640x4097", "99999x99999"):
        with pytest.raises(UsageError, match="--size"):
            options.parse_picture_size(text)


# --- what the commands ask of the library


def test_export_passes_everything_on(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = stop_at(monkeypatch, "export", ArtifactError("stop", "here"))
    call(
        *["export", "--model", "random:vggt-tiny", "--scheme", "int4_g128", "--precision", "fp16"],
        *["--outputs", "depth,pose", "--height", "28", "--width", "42", "--frames", "2:3:4"],
        *["--include", "a*", "--include", "b*", "--exclude", "c*", "--sensitive", "d*"],
        *["--activations", "dynamic", "--no-verify", "--overwrite", "--revision", "main"],
        *["--config", "vggt-tiny", "-o", "out"],
    )
    (positional, named) = fake.call_args
    named.pop("progress")
    model, asked = positional
    assert (model, asked.label) == ("random:vggt-tiny", "int4_g128+dynamic")
    assert named == {
        "calibrate": None,
        "calibration_method": None,
        "prepared": None,
        "precision": "fp16",
        "outputs": ("pose", "depth"),
        "height": 28,
        "width": 42,
        "frames": (2, 3, 4),
        "output_dir": Path("out"),
        "include": ("a*", "b*"),
        "exclude": ("c*",),
        "sensitive": ("d*",),
        "verify": False,
        "overwrite": True,
        "config": "vggt-tiny",
        "revision": "main",
    }


def test_export_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = stop_at(monkeypatch, "export", ArtifactError("stop", "here"))
    call("export", "--scheme", "int8_pc_sym")
    model, asked = fake.call_args.args
    assert (model, asked.label) == ("facebook/VGGT-1B", "int8_pc_sym")
    assert fake.call_args.kwargs["output_dir"] == Path("vggt-1b-int8_pc_sym")
    assert fake.call_args.kwargs["frames"] == (1, 5, 16)
    # The model decides: 350 x 518 for VGGT-1B.
    assert (fake.call_args.kwargs["height"], fake.call_args.kwargs["width"]) == (None, None)
    assert fake.call_args.kwargs["verify"] is True


@pytest.mark.parametrize(
    "verb, arguments",
    [
        ("run", ["run", "artifact", "--images", "pictures", "-o", "out"]),
        ("compare", ["compare", "--images", "pictures", "-o", "out"]),
        ("export", ["export", "--scheme", "fp32", "-o", "out"]),
        ("calibrate", ["calibrate", "--images", "pictures", "-o", "out"]),
        ("build", ["build", "A", "--runtime", "tensorrt", "--device", "h200", "-o", "out"]),
        ("inspect", ["inspect", "engine"]),
        ("bundle", ["bundle", "one", "two", "-o", "out"]),
        ("triton_repository", ["bundle", "one", "--format", "triton", "-o", "out"]),
        ("verify", ["verify", "file"]),
        ("unpack", ["unpack", "file", "-o", "out"]),
        ("rebuild", ["rebuild", "file", "-o", "out"]),
    ],
)
def test_options_left_out_are_the_defaults_of_the_function(
    monkeypatch: pytest.MonkeyPatch, verb: str, arguments: list[str]
) -> None:
    fake = stop_at(monkeypatch, verb, ArtifactError("stop", "here"))
    call(*arguments)
    signature = inspect.signature(getattr(api, verb))
    given = signature.bind(*fake.call_args.args, **fake.call_args.kwargs).arguments
    for name, value in given.items():
        default = signature.parameters[name].default
        if default is not inspect.Parameter.empty and name not in (
            "progress",
            "images_dir",
            "scheme",  # needed, unless something else says what the weights become
        ):
            assert value == default, name


def test_build_passes_everything_on(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = stop_at(monkeypatch, "build", ArtifactError("stop", "here"))
    call(
        *("build", "artifacts/A", "--runtime", "tensorrt-rtx", "--device", "my/card.toml"),
        *("--frames", "1", "--frames", "2:4:8", "--strip", "--accept-float", "--overwrite"),
        *("--timing-cache", "cache"),
    )
    assert fake.call_args.args == (Path("artifacts/A"),)
    given = dict(fake.call_args.kwargs)
    assert callable(given.pop("progress"))
    assert given == {
        "runtime": "tensorrt-rtx",
        "device": "my/card.toml",
        "output_dir": Path("A-card"),
        "frames": ((1, 1, 1), (2, 4, 8)),
        "strip": True,
        "accept_float": True,
        "timing_cache_dir": Path("cache"),
        "overwrite": True,
    }


def test_compare_passes_the_device_on(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = stop_at(monkeypatch, "compare", ArtifactError("stop", "here"))
    runtimes = ("--runtimes", "onnxruntime,tensorrt-rtx")
    call("compare", "--images", "pictures", "-o", "out", *runtimes, "--device", "my/card.toml")
    assert fake.call_args.kwargs["device"] == "my/card.toml"
    assert fake.call_args.kwargs["runtimes"] == "onnxruntime,tensorrt-rtx"


def test_the_two_bundle_formats_refuse_each_others_options() -> None:
    def parse(text: str, **given: object) -> str:
        return options.parse_bundle_format(
            text,
            only_bundle={"--sign": given.get("sign")},
            only_triton={"--model-name": given.get("name")},
        )

    assert parse("bundle", sign="key") == "bundle"
    assert parse("triton", name="vggt") == "triton"
    with pytest.raises(UsageError, match="--format triton has no --sign"):
        parse("triton", sign="key")
    with pytest.raises(UsageError, match="--format bundle has no --model-name"):
        parse("bundle", name="vggt")
    with pytest.raises(UsageError, match="unknown format 'zip'"):
        parse("zip")


# --- errors


@pytest.mark.parametrize(
    "error, code, text",
    [
        (UsageError("wrong word", "use another"), 2, "error: wrong word\n  fix: use another\n"),
        (ArtifactError("broken", "export again"), 1, "error: broken\n  fix: export again\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_errors_go_to_stderr_with_their_exit_code(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, text: str
) -> None:
    stop_at(monkeypatch, "run", error)
    result = call("run", "artifact", "--images", "pictures", "-o", "out")
    assert (result.exit_code, result.stderr, result.stdout) == (code, text, "")


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(monkeypatch, "run", ModuleNotFoundError("No module named 'x'", name="trimesh.io"))
    result = call("run", "artifact", "--images", "pictures", "-o", "out")
    assert result.exit_code == 1
    assert "needs the package trimesh" in result.stderr
    assert "pip install" in result.stderr


@pytest.mark.parametrize(
    "error", [ModuleNotFoundError("x", name="vggt_deploy.typo"), ZeroDivisionError()]
)
def test_a_bug_of_ours_is_not_dressed_up(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    stop_at(monkeypatch, "run", error)
    result = call("run", "artifact", "--images", "pictures", "-o", "out")
    assert result.exception is error


@pytest.mark.parametrize(
    "arguments",
    [
        ["export"],
        ["export", "--scheme", "int9"],
        ["export", "--scheme", "fp32", "--height", "300"],
        ["export", "--scheme", "fp32", "--width", "519"],
        ["export", "--scheme", "fp32", "--frames", "9:1:2"],
        ["export", "--scheme", "fp32", "--outputs", "colour"],
        ["export", "--scheme", "fp32", "--activations", "dynamic"],
        ["export", "--scheme", "fp32", "--nonsense"],
        ["compare", "-o", "out"],
        ["compare", "--images", "x", "-o", "out", "--width", "15"],
        ["run", "artifact", "--images", "x", "-o", "out", "--mode", "stretch"],
        ["run", "artifact", "--images", "x", "-o", "out", "--conf-percentile", "101"],
        ["nonsense"],
    ],
)
def test_wrong_usage_ends_with_2_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_for_real() -> None:
    code = (
        "import time, vggt_deploy.api as api, vggt_deploy.cli as cli, sys\n"
        "def run(*a, **k):\n"
        "    print('inside', flush=True)\n"
        "    time.sleep(60)\n"
        "api.run = run\n"
        "sys.argv = ['vggt-deploy', 'run', 'a', '--images', 'b', '-o', 'c']\n"
        "cli.main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "inside\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "interrupted\n")


# --- commands that need no model


def test_version_and_help() -> None:
    assert call("--version").stdout == f"vggt-deploy {__version__}\n"
    for command in ("", *COMMANDS):
        result = call(*([command] if command else []), "--help")
        assert result.exit_code == 0
        assert "Usage" in result.stdout


def test_a_narrow_terminal_gets_whole_words() -> None:
    """The terminal wraps the line; the table does not cut `untried` in two."""
    out = Console(width=40, file=io.StringIO(), force_terminal=True, highlight=False)
    print_schemes(api.schemes(), out)
    assert isinstance(out.file, io.StringIO)
    lines = out.file.getvalue().splitlines()
    assert "onnxruntime-cuda" in lines[0]
    assert [line for line in lines if "int8_pc_asym" in line and "dynamic" in line]


def test_schemes_as_table_and_json() -> None:
    rows = json.loads(call("schemes", "--json").stdout)
    names = {row["scheme"] for row in rows}
    assert {"fp32", "int8_pc_sym", "int4_g128", "mixed"} <= names
    table = call("schemes").stdout
    for row in rows:
        assert f"{row['bytes_per_weight']:.3f}" in table
    # Every note that the table refers to is printed below it, and only those.
    numbers = {int(n) for n in re.findall(r"\((\d+)\)", table)}
    notes = re.findall(r"^\((\d+)\) ", table, flags=re.MULTILINE)
    assert numbers == {int(n) for n in notes} == set(range(1, len(notes) + 1))


def test_doctor_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    from vggt_deploy.doctor import Check, Diagnosis

    diagnosis = Diagnosis("9.9", (Check("a [bold]", "missing", "nothing", "pip install 'x[cpu]'"),))
    monkeypatch.setattr(api, "diagnose", lambda: diagnosis, raising=False)
    assert json.loads(call("doctor", "--json").stdout)["checks"][0]["state"] == "missing"
    table = call("doctor").stdout
    assert "a [bold]" in table
    assert "pip install 'x[cpu]'" in table


# --- what it costs to ask


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from vggt_deploy.cli import app\n"
        "try:\n"
        "    app(sys.argv[1:])\n"
        "except SystemExit:\n"
        f"    print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)\n"
    )
    for arguments in (["--help"], ["build", "--help"], ["compare", "--help"], ["--version"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
        )
        assert done.stderr.strip() == "[]", arguments
