"""Labels: every treatment is written as words and read back, and nothing else is a label."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggt_deploy.errors import UsageError
from vggt_deploy.quantize.methods import Method
from vggt_deploy.quantize.schemes import (
    SCHEMES,
    Quantization,
    as_quantization,
    parse_format,
    parse_label,
)
from vggt_deploy.quantize.treatment import PLAIN, Treatment, parse_treatment

methods = st.one_of(
    st.sampled_from([Method("absmax"), Method("mse")]),
    st.integers(5_000_000, 10_000_000).map(lambda p: Method("percentile", p / 100_000)),
)
treatments = st.builds(
    Treatment,
    weight_range=methods,
    input_range=methods,
    apart=st.booleans(),
    smooth=st.one_of(
        st.none(), st.just("auto"), st.integers(0, 1_000_000).map(lambda a: a / 1_000_000)
    ),
    rotate=st.booleans(),
    rounding=st.sampled_from(["nearest", "gptq"]),
)


@given(treatments)
def test_a_treatment_is_read_back_from_its_words(treatment: Treatment) -> None:
    assert parse_treatment(treatment.words) == treatment
    assert parse_treatment(tuple(reversed(treatment.words))) == treatment
    assert (treatment.label == "") == (treatment == PLAIN)


@given(treatments)
def test_a_label_is_read_back(treatment: Treatment) -> None:
    asked = Quantization(SCHEMES["int8_pc_sym"], "static", treatment)
    assert parse_label(asked.label) == asked
    assert asked.needs_pictures


@pytest.mark.parametrize(
    "label, problem",
    [
        ("int8_pc_sym+smoth", "unknown word 'smoth'"),
        ("int8_pc_sym+smooth=1.5", "not in 0..1"),
        ("int8_pc_sym+smooth=half", "unknown word"),
        ("int8_pc_sym+w=absmax", "unknown word"),
        ("int8_pc_sym+w=p200", "unknown calibration method"),
        ("int8_pc_sym+gptq+gptq", "twice"),
        ("int8_pc_sym+gptq+static", "unknown word 'static'"),
        ("int8_pc_sym+", "unknown word ''"),
        ("int8_pc_sym+a=absmax", "static activations"),
        ("int8_pc_sym+dynamic+apart", "apart weighs tokens"),
        ("fp32+smooth", "no integer weights"),
        ("int4_g128+static+gptq", "4-bit weights"),
    ],
)
def test_what_is_no_label(label: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        parse_label(label)


def test_what_each_word_asks_for() -> None:
    def of(label: str) -> tuple[bool, bool, bool]:
        asked = parse_label(label)
        return asked.needs_pictures, asked.treatment.prepares, asked.treatment.moves

    assert of("int4_g32") == (False, False, False)
    assert of("int4_g32+w=mse") == (False, True, False)
    assert of("int4_g32+rotate") == (False, True, True)
    assert of("int4_g32+smooth=0.5") == (True, True, True)
    assert of("int4_g32+gptq") == (True, True, False)
    assert of("int8_pc_sym+static") == (True, False, False)
    assert of("int8_pc_sym+static+a=absmax+apart") == (True, False, False)


def test_options_beside_a_label() -> None:
    assert as_quantization("int8_pc_sym", "static", "absmax").label == "int8_pc_sym+static+a=absmax"
    assert as_quantization("int8_pc_sym+static+a=absmax", None, "absmax").label.endswith("a=absmax")
    for label, mode, method in (
        ("int8_pc_sym+static", "dynamic", None),
        ("int8_pc_sym+static", "float", None),
        ("int8_pc_sym", None, "absmax"),
        ("int8_pc_sym+static+a=absmax", None, "percentile:99"),
    ):
        with pytest.raises(UsageError):
            as_quantization(label, mode, method)  # type: ignore[arg-type]


def test_formats_are_read_back() -> None:
    for scheme in SCHEMES.values():
        for form in scheme.formats:
            assert parse_format(form.label) == form
    assert parse_format("int4_g48_asym").symmetric is False
    for bad in ("int8", "int4_g0", "int8_pc", "int4_g32_sym", "int3_pc_sym", "float", ""):
        with pytest.raises(UsageError, match="unknown weight format"):
            parse_format(bad)
