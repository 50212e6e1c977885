"""Which rows a request means."""

from __future__ import annotations

import pytest

from vggt_deploy.compare.variants import REFERENCE, Variant, parse_runtimes, parse_variants
from vggt_deploy.errors import UsageError
from vggt_deploy.quantize.schemes import SCHEMES


def test_the_reference_is_always_first_and_once() -> None:
    found = parse_variants("int8_pc_sym,fp32", "onnxruntime,torch")
    assert found[0] == REFERENCE
    assert found.count(REFERENCE) == 1
    assert [v.label for v in found] == [
        "torch/fp32",
        "onnxruntime/int8_pc_sym",
        "onnxruntime/fp32",
        "torch/int8_pc_sym",
    ]


def test_dynamic_label() -> None:
    variant = parse_variants(["int8_pc_sym+dynamic"], ["onnxruntime"])[1]
    assert variant == Variant("onnxruntime", "int8_pc_sym", "dynamic")
    assert variant.label == "onnxruntime/int8_pc_sym+dynamic"
    assert variant.slug == "onnxruntime-int8_pc_sym+dynamic"
    assert variant.scheme_label == "int8_pc_sym+dynamic"


def test_all_is_every_scheme_and_the_dynamic_ones() -> None:
    found = parse_variants("all", "onnxruntime")
    labels = {v.label for v in found}
    assert {f"onnxruntime/{name}" for name in SCHEMES} <= labels
    integer = [name for name, scheme in SCHEMES.items() if scheme.integer]
    assert {f"onnxruntime/{name}+dynamic" for name in integer} <= labels
    assert "onnxruntime/fp16+dynamic" not in labels
    assert len(found) == len(set(found)) == 1 + len(SCHEMES) + len(integer)


def test_all_has_static_ones_where_there_is_something_to_calibrate_on() -> None:
    plain = parse_variants("all", "torch,onnxruntime")
    assert not [v for v in plain if v.activations == "static"]
    found = parse_variants("all", "torch,onnxruntime", calibrated=True)
    static = [v for v in found if v.activations == "static"]
    assert [v for v in found if v not in static] == list(plain)
    names = [f"int8_{scales}_{kind}" for scales in ("pt", "pc") for kind in ("sym", "asym")]
    assert [v.label for v in static] == [
        f"{runtime}/{name}+static" for runtime in ("torch", "onnxruntime") for name in names
    ]


def test_a_scheme_that_a_runtime_cannot_run_stays_with_its_reason() -> None:
    refused = [v for v in parse_variants("all", "onnxruntime") if not v.support.runs]
    assert refused
    assert all(v.support.note for v in refused)


@pytest.mark.parametrize(
    "schemes, runtimes, message",
    [
        ("int3", "torch", "unknown scheme"),
        ("fp32+dynamic", "torch", "no integer weights"),
        ("int8_pc_sym+calibrated", "torch", "unknown word"),
        ("int4_g32+static", "torch", "4-bit weights"),
        ("", "torch", "empty"),
        ("fp32", "tensorflow", "unknown runtime"),
        ("fp32", " , ", "empty"),
    ],
)
def test_wrong_requests(schemes: str, runtimes: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_variants(schemes, runtimes)


def test_runtimes_take_spaces() -> None:
    assert parse_runtimes(" torch, onnxruntime ") == ("torch", "onnxruntime")
