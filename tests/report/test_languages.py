"""The texts in Chinese: nothing stays in English, the numbers are the same, columns are aligned."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_reports import failed_row, made_report, made_row, made_truth
from rich.cells import cell_len

from vggt_deploy.build.profiles import load_profile, shipped_profiles
from vggt_deploy.compare.baseline import changes
from vggt_deploy.compare.devices import ask_device
from vggt_deploy.compare.measures import BuildMeasure, GpuMeasure
from vggt_deploy.compare.protocol import MetricProtocol
from vggt_deploy.compare.recommend import recommend
from vggt_deploy.compare.report import ComparisonReport, Row
from vggt_deploy.compare.state import Folder
from vggt_deploy.compare.variants import Variant
from vggt_deploy.engines.tensorrt.cuda import load_cuda
from vggt_deploy.engines.tensorrt.library import load_library
from vggt_deploy.errors import DeployError, RuntimeUnavailableError
from vggt_deploy.report.experiment import experiment_text
from vggt_deploy.report.languages import LANGUAGES, speaker
from vggt_deploy.report.languages.speaker import ORIGINAL
from vggt_deploy.report.summary import summary_text
from vggt_deploy.report.text import table, wrap


def rows_of_all_kinds() -> tuple[Row, ...]:
    """Finished, failed, refused and not run; better, worse and as good by the truth."""
    reference = [made_truth(60.0 + i, 0.1, 0.05) for i in range(3)]
    worse = [made_truth(50.0 + i, 0.2, 0.06) for i in range(3)]
    mixed = [made_truth(60.0 + d, 0.1, 0.05) for d in (1.0, -1.0, 3.0)]
    noted = [replace(one, notes={"pose": "no true depth"}) for one in worse]
    fast = (50.0, 51.0, 52.0)
    sigsegv = failed_row("torch/mixed", message="crashed: killed by signal 11 (SIGSEGV)")
    assert sigsegv.failure is not None
    return (
        made_row("torch/fp32", truth=reference, error=0.0),
        made_row(
            "onnxruntime/int8_pc_sym", samples=fast, truth=worse, reference=reference, error=0.3
        ),
        made_row("onnxruntime/int4_g128", truth=noted, reference=reference, disk_bytes=1_000_000),
        made_row(
            "onnxruntime/int4_g128+gptq", samples=fast, truth=mixed, reference=reference,
            disk_bytes=1_001_000, error=0.001,
        ),
        replace(sigsegv, failure=replace(sigsegv.failure, fix=None)),
        failed_row("onnxruntime/bf16", "refused", "onnxruntime does not run it: untried"),
        built(failed_row("tensorrt/fp16", "not run", "no true depth")),
        on_gpu(built(made_row("tensorrt-rtx/fp16", truth=worse, reference=reference))),
    )  # fmt: skip


def built(row: Row) -> Row:
    """As an engine."""
    return replace(
        row,
        build=BuildMeasure(
            seconds=12.3, builder_seconds=10.0, peak_rss_bytes=10**9, runtime_version="10",
            plan_bytes=2_345_678, bytes_total=2_400_000, weights_bytes=None, packed_bytes=1_234_567,
            shares={"INT8": 1.0}, attentions=72, attentions_fused=70, attentions_half=72,
            half_unfused=2, notes=("1:4:8 frames cut to 1:4:4: the artifact takes 1:4:4",),
        ),
    )  # fmt: skip


def on_gpu(row: Row) -> Row:
    """With what only a GPU tells."""
    assert row.measured is not None
    gpu = GpuMeasure("a GPU", 5, 1.25, 1.2, 0.1, 0.2, 10**8, 10**7)
    notes = ("its node was lost and it was begun again once",)
    return replace(row, measured=replace(row.measured, gpu=gpu, notes=notes))


def known(row: Row) -> Row:
    """The row without the words that its failure borrows from the maker of the test."""
    failure = row.failure
    if failure is None:
        return row
    made = failed_row("torch/fp32").failure
    assert made is not None
    fix = None if failure.fix == made.fix else failure.fix
    return replace(row, failure=replace(failure, fix=fix, tail=()))


def device_note(name: str = "rtx4090") -> str:
    """What a report says of `--device`."""
    engine = Variant("tensorrt-rtx", "fp16")
    found = ask_device(name, [engine])
    assert found is not None
    return found.note


def not_run_here(why: str = "no CUDA-capable device is detected") -> Row:
    """An engine on a machine whose driver says so."""
    with pytest.MonkeyPatch.context() as patch:
        error = SimpleNamespace(name="cudaErrorNoDevice")
        runtime = SimpleNamespace(
            cudaError_t=SimpleNamespace(cudaSuccess=0),
            cudaGetDeviceCount=lambda: (error,),
            cudaGetErrorString=lambda _: (0, why.encode()),
        )
        patch.setattr(importlib, "import_module", lambda _: runtime)
        with pytest.raises(RuntimeUnavailableError) as caught:
            load_cuda()
    row = built(failed_row("tensorrt-rtx/fp16", "not run", caught.value.message))
    assert row.failure is not None
    return replace(row, failure=replace(row.failure, fix=caught.value.fix))


def not_finite(row: Row) -> Row:
    """Its outputs hold NaN."""
    accuracy = {k: replace(v, nonfinite_variant=3) for k, v in row.accuracy.items()}
    return replace(row, accuracy=accuracy)


def unwatched(row: Row) -> Row:
    """As on a system that does not tell what other processes did."""
    assert row.measured is not None
    return replace(row, measured=replace(row.measured, others_cpus=None))


PROTOCOL = MetricProtocol(
    "the first 4 pictures of each folder, cropped to 84 x 112, not ETH3D's official benchmark",
    "no masks",
    "all pairs of frames, the larger of rotation and direction error, AUC as exact area; RRA and "
    "RTA each by itself",
    "one alignment per scene: the median scale, and (affine) least-squares scale and shift of "
    "depth",
    "no true depth",
)


def report_of(
    rows: tuple[Row, ...], *, random: bool = False, notes: tuple[str, ...] = (), **question: Any
) -> ComparisonReport:
    model = {
        "spec": "vggt-nano", "config": "vggt-nano", "kind": "random" if random else "package",
        "revision": None, "sha256": "a" * 64,
    }  # fmt: skip
    report = made_report(
        *(known(row) for row in rows),
        recommendations=recommend(rows, random_weights=random),
        notes=("static activations: mse, 12 images in /data", *notes),
        model=model,
        **question,
    )
    return replace(report, protocol=PROTOCOL)


def reports() -> dict[str, ComparisonReport]:
    rows = rows_of_all_kinds()
    one = [made_truth(60.0)]
    single = (
        made_row("torch/fp32", truth=one, error=0.0),
        made_row("onnxruntime/int8_pc_sym", truth=[made_truth(50.0)], reference=one),
    )
    blind = (made_row("torch/fp32", error=0.0), made_row("torch/int8_pc_sym", disk_bytes=None))
    weak = [made_truth(5.0), made_truth(6.0)]
    away = replace(made_row("onnxruntime/int4_g128"), machine="another CPU, 4 CPUs")
    layers = {"include": ["a.*"], "exclude": ["b.*"], "sensitive": ["c.*"]}
    calibration = {"method": "mse", "images": {"a.png": f"{0:032x}{0:032x}"}}
    old = report_of(rows)
    samples = (150.0, 151.0, 152.0, 153.0, 154.0)
    slower = (rows[0], made_row("onnxruntime/int8_pc_sym", samples=samples, error=0.2), *rows[4:])
    return {
        "all kinds": old,
        "a device": report_of(
            (*rows[:-1], not_run_here()),
            device={"name": "rtx4090", "gpu": None},
            notes=(device_note(),),
        ),
        "NaN": report_of((rows[0], *(not_finite(row) for row in rows[1:4]))),
        "only NaN": report_of(tuple(not_finite(row) for row in rows[:4])),
        "FP32 with NaN": report_of((not_finite(rows[0]), *rows[1:4])),
        "nobody looked at other work": report_of(tuple(unwatched(row) for row in rows[:2])),
        "large": report_of((rows[0], made_row("onnxruntime/fp16", disk_bytes=9_000_000))),
        "random weights": report_of(rows, random=True, verify=True),
        "one scene": report_of(single, outputs=["pose"], precision="fp16", layers=layers),
        "no truth": report_of(blind, calibration=calibration, repeats=1),
        "weak reference": report_of((made_row("torch/fp32", truth=weak, error=0.0),)),
        "another machine": report_of((rows[0], away)),
        "a baseline": replace(report_of(slower), baseline=changes(old, report_of(slower))),
    }


REPORTS = reports()
CHINESE = speaker("zh")
# What stays as it is: names of files, schemes, metrics, units, versions; and of quantities, as they
# stand in the JSON, where a baseline is held against them.
NAMES = re.compile(
    r"`[^`]*`|(?:rotation|direction|points)(?=（相对 FP32）)|"
    r"[\w.+-]*[/_@][\w.+/@*-]*|!\[[^\]]*\]\([^)]*\)|"
    r"(?<![A-Za-z0-9])(?:onnxruntime|a{16}|vggt-[a-z0-9]+|VGGT-1B|PyTorch|ONNX|Runtime|TensorRT|"
    r"ORT|CUDA|GPU|CPU|FP32|FP16|BF16|INT8|AUC|RRA|RTA|AbsRel|PSNR|SSIM|MAE|MSE|RMSE|IQR|RSS|NaN|inf|"
    r"MB|GB|GiB|dB|ms|torch|mixed|F-score|rtx\d+|gptq|Umeyama|sha256|Python|Linux|Mann-Whitney|Holm|ETH3D|NVIDIA|GeForce|RTX|Ada|cuda[A-Za-z]+|cuda-bindings|"
    r"SIGSEGV|SIGKILL|MatMulNBits|MatMul|MatMulIntegerToFloat|DynamicQuantizeMatMul|token|plan|"
    r"crop|pad|mse|avx2|fp16|fp32|depth|compare|torch.save|accuracy_level|A CPU(?:, 2 CPUs)?|"
    r"another CPU, 4 CPUs|somewhere|T|n|p|x|m|s|a|b)(?![A-Za-z0-9])"
)


def english(text: str) -> list[str]:
    """Words of two or more letters that are no names."""
    return re.findall(r"[A-Za-z]{2,}", NAMES.sub(" ", text))


def test_what_counts_as_english() -> None:
    assert english("中位延迟 16.3 ms，torch/int8_pc_sym+static 的 AUC@30 损失 0.3") == []
    assert english("中位延迟 is 16.3 ms") == ["is"]
    assert english("the loss is not told from none") != []


@cache
def texts(name: str, language: Any) -> tuple[str, str]:
    """Summary and experiment report."""
    report = REPORTS[name]
    return summary_text(report, language), experiment_text(report, Folder(report.folder), language)


@pytest.mark.parametrize("name", REPORTS)
def test_no_english_is_left(name: str) -> None:
    for text in texts(name, "zh"):
        assert ORIGINAL not in text
        left = [
            (words, line)
            for line in text.splitlines()
            if (words := english(line)) and not line.startswith(("系统", "| 系统"))
        ]
        assert left == []


@pytest.mark.parametrize("name", REPORTS)
def test_both_languages_say_the_same_numbers(name: str) -> None:
    """Numbers with a decimal point, each as often: those are what was measured."""
    for one, other in zip(texts(name, "en"), texts(name, "zh"), strict=True):
        number = re.compile(r"[-+]?\d+\.\d+(?:e[-+]\d+)?")
        assert sorted(number.findall(one)) == sorted(number.findall(other))


DEVICES = re.compile(
    r"NVIDIA|GeForce|RTX|Ada|Jetson|Thor|JetPack|AGX|Orin|Hopper|Blackwell|Ampere|TensorRT"
)
COMMANDS = re.compile(r"`[^`]*`|pip install '[^']*'|--[a-z-]+|docker/|'[^']*'")


@pytest.mark.parametrize("name", shipped_profiles())
def test_the_note_of_a_device_is_translated(name: str) -> None:
    runtime: Any = load_profile(name).runtimes[0]
    found = ask_device(name, [Variant(runtime, "fp16")])
    assert found is not None
    assert found.note.startswith("engines: built for ")
    text = CHINESE.recorded(found.note)
    assert ORIGINAL not in text
    assert english(DEVICES.sub("", text.replace(f"设备配置 {name}", ""))) == []


def unavailable(call: Callable[[], object], imported: Any) -> DeployError:
    """What it says where `import_module` does so."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeUnavailableError) as caught:
        patch.setattr(importlib, "import_module", imported)
        call()
    return caught.value


def without_module(name: str) -> Any:
    raise ModuleNotFoundError(f"No module named {name!r}")


@pytest.mark.parametrize(
    "call",
    [load_cuda, lambda: load_library("tensorrt"), lambda: load_library("tensorrt-rtx")],
    ids=["cuda", "tensorrt", "tensorrt-rtx"],
)
def test_what_is_missing_for_an_engine_is_translated(call: Callable[[], object]) -> None:
    error = unavailable(call, without_module)
    for said in (error.message, error.fix):
        text = CHINESE.recorded(said)
        assert ORIGINAL not in text
        assert english(DEVICES.sub("", COMMANDS.sub("", text))) in ([], ["tensorrt"])


@pytest.mark.parametrize(
    "why, known_words",
    [
        ("no CUDA-capable device is detected", True),
        ("CUDA driver version is insufficient for CUDA runtime version", True),
        ("a driver says what it likes", False),
    ],
)
def test_what_a_driver_says_is_translated_or_marked(why: str, known_words: bool) -> None:
    failure = not_run_here(why).failure
    assert failure is not None
    text = CHINESE.recorded(failure.message)
    assert text.startswith("没有 CUDA 设备：cudaGetDeviceCount：")
    assert (why in text, ORIGINAL in text) == (not known_words, not known_words)


def test_english_is_what_it_is_without_a_catalogue() -> None:
    english_text, _ = texts("all kinds", "en")
    assert "Lost by the truth, against PyTorch FP32\n=" in english_text
    assert not re.search(r"[\u4e00-\u9fff]", english_text)


def test_a_text_with_an_english_line_is_found() -> None:
    """The check above would see a note that nobody translated."""
    report = replace(REPORTS["all kinds"], notes=("a note that nobody translated",))
    text = summary_text(report, "zh")
    assert f"{ORIGINAL}a note that nobody translated" in text
    assert "nobody" in english(text)


@pytest.mark.parametrize("language", LANGUAGES)
def test_columns_are_aligned_in_cells(language: Any) -> None:
    """Every line of the table of costs ends at the same cell: its last column is to the right."""
    text, _ = texts("all kinds", language)
    costs = next(block for block in text.split("\n\n") if "p90" in block and "ms" in block)
    table_lines = costs.splitlines()[2:]
    assert len(table_lines) == 2 + 8
    assert len({cell_len(line) for line in table_lines}) == 1


def test_wide_characters_count_twice() -> None:
    lines = table(("变体", "延迟"), [("a", "1"), ("模型", "10.5")])
    assert lines == ["变体  延迟", "----  ----", "a        1", "模型  10.5"]


@given(
    st.lists(
        st.sampled_from(["延迟", "中位", "torch/fp32", "ms", "1.5", "，", "。", "（", "）", " "])
    )
)
def test_wrapping_loses_nothing_and_keeps_within_the_width(parts: list[str]) -> None:
    text = "".join(parts)
    lines = wrap(text, 24)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    for line in lines:
        assert cell_len(line) <= 24 or not re.search(r"[ \u4e00-\u9fff]", line.strip("，。（）"))


def test_a_line_does_not_begin_with_a_closing_mark() -> None:
    text = "中位延迟最低的变体，是体积最小的产物。" * 3
    for width in range(8, 40):
        lines = wrap(text, width)
        assert not [line for line in lines if line[0] in "，。"]
        assert "".join(lines) == text
