"""A page is one file that fetches nothing, and nothing written into it becomes markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggt_deploy.errors import ArtifactError
from vggt_deploy.pages.blocks import (
    Cell,
    Column,
    Facts,
    Legend,
    Notes,
    Picture,
    Row,
    Section,
    Slider,
    Sliders,
    Table,
    simple_page,
)
from vggt_deploy.pages.encode import png_uri
from vggt_deploy.pages.page import capital, json_for_html, policy, render
from vggt_deploy.pages.vendor import licence, vendored

HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "<!-- & --> </style><style>*{display:none}",
    "{{ 7 * 7 }}{% raw %}",
)


class Reader(HTMLParser):
    """Elements and attributes, as a browser's parser finds them."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self._script: dict[str, str | None] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "wbr":  # where a label may be broken
            self.elements.append((tag, dict(attrs)))
        self._script = dict(attrs) if tag == "script" else None

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is not None and self._script.get("type") is None:
            self.scripts.append(data)
        elif self._script is None:
            self.words.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


def page_of(text: str) -> str:
    """Every block with the text at every place that takes some."""
    cells = (Cell(text, text, small=text), Cell(text, 1.0, badge="bad"))
    picture = Picture("data:image/png;base64,", text)
    slider = Slider(text, picture, picture, text, text, (Legend("data:,", text, text, text, text),))
    return simple_page(
        text,
        text,
        [
            Section("a", text, text, (Facts(((text, text),)), Notes((text,)))),
            Section(
                "b",
                text,
                text,
                (
                    Table(
                        "t", text, (Column(text, text, text), Column(text)), (Row(cells),), (text,)
                    ),
                    Sliders((slider,)),
                ),
            ),
        ],
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text: str) -> None:
    harmless, hostile = read(page_of("word")), read(page_of(text))
    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in harmless.elements]
    names = [sorted(attributes) for _, attributes in hostile.elements]
    assert names == [sorted(attributes) for _, attributes in harmless.elements]
    assert hostile.scripts == harmless.scripts
    said = "".join(hostile.words)
    assert said.count(text) >= 10


def test_a_page_points_at_nothing_outside() -> None:
    for tag, attributes in read(page_of("word")).elements:
        for name in ("src", "href", "srcset", "action", "poster", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")


def test_libraries_come_with_their_licences() -> None:
    words = "".join(read(page_of("word")).words)
    for entry in vendored().values():
        assert f"{entry.package} {entry.version} ({entry.licence})" in words
        assert licence(entry).strip() in words


def test_the_policy_names_the_scripts_of_the_page_and_no_others() -> None:
    reader = read(page_of("word"))
    (content,) = [
        attributes["content"]
        for tag, attributes in reader.elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert content is not None
    hashes = {
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for text in reader.scripts
    }
    assert len(hashes) == 6
    rules = dict(rule.split(" ", 1) for rule in content.split("; "))
    assert set(rules["script-src"].split()) == hashes
    assert rules["default-src"] == "'none'"
    assert "connect-src" not in rules
    assert "unsafe" not in rules["script-src"]
    assert not any(name.startswith("on") for _, each in reader.elements for name in each)


def test_without_scripts_none_may_run() -> None:
    assert "script-src 'none'" in policy([])


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=12,
    )
)  # fmt: skip
def test_data_comes_back_and_can_not_end_its_element(value: Any) -> None:
    text = json_for_html(value)
    assert json.loads(text) == value
    assert not re.search("[<>&\u2028\u2029]", text)


def test_plain_json_could_end_its_element() -> None:
    assert "</script>" in json.dumps(HOSTILE[0])
    assert "</script>" not in json_for_html(HOSTILE[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [{"a": -float("inf")}]])
def test_data_that_json_has_no_number_for_is_refused(value: Any) -> None:
    with pytest.raises(ArtifactError, match="not finite"):
        json_for_html(value)


def test_a_script_that_would_end_itself_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / "bad.js").write_text("const a = '</script>';")
    (tmp_path / "pages.css").write_text("")
    monkeypatch.setattr("vggt_deploy.pages.page.STATIC", tmp_path)
    with pytest.raises(ArtifactError, match="script"):
        render("simple.html.j2", {"subtitle": "", "sections": []}, title="t", scripts=("bad.js",))


def test_capitals() -> None:
    assert capital("disk") == "Disk"
    assert capital("x smaller") == "x smaller"
    assert capital("") == ""


def test_pictures_are_pngs() -> None:
    import numpy as np

    assert png_uri(np.zeros((1, 1, 3), np.uint8)).startswith("data:image/png;base64,iVBOR")
