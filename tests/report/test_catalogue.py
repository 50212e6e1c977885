"""The catalogue of Chinese: every message of the code is there, and what reports carry is known."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggt_deploy.compare.protocol import MetricProtocol
from vggt_deploy.compare.report import Recommendation, Said
from vggt_deploy.errors import UsageError
from vggt_deploy.quantize.schemes import SCHEMES
from vggt_deploy.quantize.targets import scheme_rows
from vggt_deploy.report.languages import ENGLISH, LANGUAGES, speaker
from vggt_deploy.report.languages.catalogue import (
    parse_catalogue,
    placeholders,
    read_catalogue,
)
from vggt_deploy.report.languages.speaker import ORIGINAL

PACKAGE = Path(__file__).parents[2] / "vggt_deploy"
SOURCES = (
    *sorted((PACKAGE / "report").glob("*.py")),
    PACKAGE / "compare" / "recommend.py",
    PACKAGE / "compare" / "loss.py",
)
ZH = speaker("zh")
NAMES = re.compile("score|sha256|Umeyama")  # stay as they are


# --- the catalogue has every template of the code, and no other


def spoken(source: str) -> Iterator[ast.expr]:
    """Templates in `say("...")`, `say.each("...", ...)`, `Said.of("...")`, `Gate("...")`."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        match node.func:
            case ast.Name(id="say" | "Gate" | "Said"):
                yield from node.args[:1]
            case ast.Attribute(value=ast.Name(id="Said"), attr="of"):
                yield from node.args[:1]
            case ast.Attribute(value=ast.Name(id="say"), attr="each"):
                yield from node.args


def templates(source: str) -> tuple[set[str], list[str]]:
    """The constant ones, and the others as code."""
    constant, others = set(), []
    for found in spoken(source):
        if isinstance(found, ast.Constant) and isinstance(found.value, str):
            constant.add(found.value)
        else:
            others.append(ast.unparse(found))
    return constant, others


def test_every_template_is_translated_and_no_other() -> None:
    in_code: set[str] = set()
    for path in SOURCES:
        constant, others = templates(path.read_text(encoding="utf-8"))
        in_code |= constant
        # The name of a gate: the gates themselves are collected.
        assert set(others) <= {"name", "gate.name"}, f"{path.name}: {others}"
    assert len(in_code) > 200
    assert set(read_catalogue("zh").messages) == in_code


def test_a_template_without_translation_is_found() -> None:
    source = (
        'def f(say):\n    return say("not " "there"), say.each("a", b), Said.of("c {n}", n="1")'
    )
    assert templates(source) == ({"not there", "a", "c {n}"}, ["b"])


def test_a_missing_translation_is_an_error() -> None:
    with pytest.raises(KeyError, match="no such sentence"):
        ZH("no such sentence")
    assert ENGLISH("no such sentence") == "no such sentence"


def test_translations_have_the_same_placeholders() -> None:
    catalogue = read_catalogue("zh")
    for english, chinese in catalogue.messages.items():
        assert placeholders(english) == placeholders(chinese), english
    for kind in catalogue.recorded:
        assert placeholders(kind.english) == placeholders(kind.template), kind.english


GOOD = 'schema = 1\nlanguage = "zh"\n[[message]]\nen = "a {n}"\nzh = "甲 {n}"\n[[recorded]]\n'
GOOD += 'en = "b"\nzh = "乙"\n'


@pytest.mark.parametrize(
    "before, after, said",
    [
        ("甲 {n}", "甲 {m}", "other placeholders"),
        ("甲 {n}", "甲", "other placeholders"),
        ("甲 {n}", "", "is empty"),
        ('zh = "乙"', 'de = "乙"', "not en and zh"),
        ("schema = 1", "schema = 2", "schema 2"),
        ("[[recorded]]", "[[other]]", "other tables"),
        ("[[recorded]]", '[[message]]\nen = "a {n}"\nzh = "丙 {n}"\n[[recorded]]', "two"),
    ],
)
def test_a_catalogue_with_a_mistake_is_refused(before: str, after: str, said: str) -> None:
    assert parse_catalogue(GOOD, "zh").messages == {"a {n}": "甲 {n}"}
    assert before in GOOD
    with pytest.raises(ValueError, match=said):
        parse_catalogue(GOOD.replace(before, after), "zh")


def test_a_language_that_is_not_there() -> None:
    assert LANGUAGES == ("en", "zh")
    with pytest.raises(UsageError, match="not there in 'fr'") as caught:
        speaker("fr")
    assert "en, zh" in caught.value.fix


# --- texts that reports carry


def test_what_the_runtimes_make_of_a_scheme_is_translated() -> None:
    for line in scheme_rows():
        for found in line.targets.values():
            text = f"{found.level}: {found.note}" if found.note else found.level
            assert ORIGINAL not in ZH.recorded(text), text


def test_what_a_scheme_is_is_translated() -> None:
    for scheme in SCHEMES.values():
        assert ORIGINAL not in ZH.recorded(scheme.summary), scheme.summary
    assert ZH.recorded(SCHEMES["int8_pc_sym"].summary) == "8 位，逐通道对称"


@pytest.mark.parametrize("mode", ["crop", "pad"])
def test_what_the_protocol_says_is_translated(mode: str, protocols: Any) -> None:
    for protocol in protocols(mode):
        for text in asdict(protocol).values():
            assert ORIGINAL not in ZH.recorded(text), text
            assert not re.search("[a-z]{4}", NAMES.sub("", ZH.recorded(text))), text


@pytest.fixture
def protocols(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Protocols as `protocol_of` writes them, of scenes without and with masks and a list."""
    from types import SimpleNamespace

    from vggt_deploy.compare.protocol import protocol_of
    from vggt_deploy.data.eth3d import RESAMPLED
    from vggt_deploy.data.masks import MaskUse

    def made(mode: str) -> Iterator[MetricProtocol]:
        for bits in (None, 0, 1, 2, 3):
            masks = None if bits is None else MaskUse(bits, 2, 100)
            note = RESAMPLED if bits else ""
            truth = SimpleNamespace(depth=np.ones((4, 2, 2)), masks=masks, note=note)
            sides = [(False, 0, ()), (True, 3, ()), (False, 0, ("1.JPG", "2.JPG"))]
            lists = (None, SimpleNamespace(name="l", sha256="7" * 64, scenes={"a": ()}))
            for listed, (drop, dropped, kept) in product(lists, sides):
                scenes = SimpleNamespace(
                    mode=mode, height=84, width=112, frames=4, listed=listed,
                    items=(SimpleNamespace(truth=truth, on_side=kept),),
                    drop_sideways=drop, dropped=dropped,
                )  # fmt: skip
                yield protocol_of(scenes)  # type: ignore[arg-type]

    return made


def test_a_recorded_text_that_is_not_known_is_marked() -> None:
    assert (
        ZH.recorded("a sentence of another version") == f"{ORIGINAL}a sentence of another version"
    )
    assert ENGLISH.recorded("a sentence of another version") == "a sentence of another version"
    assert ZH.recorded("no true depth; something else") == f"没有深度真值；{ORIGINAL}something else"
    assert ZH.recorded("") == ""


def test_recorded_values_are_translated_where_they_are_texts() -> None:
    text = (
        "onnxruntime does not run it: the CPU provider has no BF16 kernels for the operators used"
    )
    assert ZH.recorded(text) == "onnxruntime 不运行它：CPU 执行提供程序没有所用算子的 BF16 内核"


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_numbers_of_recorded_texts_stay(bad: int, total: int) -> None:
    said = ZH.recorded(f"{bad} of {total} poses are not finite: 180 degrees for their pairs")
    assert f"{total} 个位姿中有 {bad} 个" in said


def test_a_sentence_of_another_version_is_marked() -> None:
    said = (Said.of("No such sentence about {label}.", label="torch/fp32"),)
    assert ZH.said(said) == f"{ORIGINAL}No such sentence about torch/fp32."
    assert Said.from_json(asdict(said[0])) == said[0]


def test_sentences_inside_of_sentences_come_back_from_json() -> None:
    said = Said.of("{facts}.", facts=(Said.of("{size} MB", size="3"), Said.of("AbsRel")))
    assert Said.from_json(asdict(said)) == said
    item = Recommendation("edge", "a/b", said.text(), (said,))
    assert Recommendation.from_json(asdict(item)) == item
    assert ENGLISH.said((said, said)) == "3 MB, AbsRel. 3 MB, AbsRel."


@pytest.mark.parametrize(
    "said",
    [
        {"template": "{a}", "values": {}},
        {"template": "{a}", "values": {"a": "1", "b": "2"}},
        {"template": "{a.__class__}", "values": {"a": "1"}},
        {"template": "{a!r}", "values": {"a": "1"}},
        {"template": "{a:>99999999}", "values": {"a": "1"}},
        {"template": "{", "values": {}},
        {"template": "{}", "values": {"": "1"}},
        {"template": 1, "values": {}},
        {"template": "a", "values": []},
        {"template": "{a}", "values": {"a": 1}},
        {"template": "{a}", "values": {"a": ["b"]}},
    ],
)
def test_a_sentence_of_a_damaged_report_is_refused(said: Any) -> None:
    assert Said.from_json({"template": "{a}", "values": {"a": "1"}}).text() == "1"
    with pytest.raises(TypeError):
        Said.from_json(said)
