"""The Markdown for a pull request, read by a Markdown parser: what is a table stays one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_reports import failed_row, made_report, made_row, made_truth
from markdown_it import MarkdownIt
from markdown_it.token import Token

from vggt_deploy.compare.baseline import changes
from vggt_deploy.compare.report import ComparisonReport, Recommendation
from vggt_deploy.report.markdown import MOST_CHANGES, code, escape, markdown_text, write_markdown
from vggt_deploy.report.summary import summary_text

LABEL = "onnxruntime/int8_pc_sym"
HOSTILE = (
    "a|b\n|c|d|\n\n<script>alert(1)</script> </details> `x` [link](http://x.test) "
    "![p](http://x.test/p.png) **bold** _em_ ~~gone~~ &lt; # @team \\ <http://y.test>"
)


def parse(text: str) -> list[Token]:
    """As GitHub does: CommonMark with tables and strikethrough."""
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text)


def tables(text: str) -> list[list[list[str]]]:
    """The text of each cell of each row of each table."""
    found: list[list[list[str]]] = []
    for token, inner in _with_inner(parse(text)):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("td_open", "th_open"):
            found[-1][-1].append(inner)
    return found


def _with_inner(tokens: list[Token]) -> list[tuple[Token, str]]:
    following = [*tokens[1:], None]
    return [
        (token, _plain(after) if after is not None else "")
        for token, after in zip(tokens, following, strict=True)
    ]


def _plain(token: Token) -> str:
    return "".join(child.content for child in token.children or ())


def html(text: str) -> list[str]:
    """Every piece that a browser would take for HTML."""
    tokens = parse(text)
    inline = [child for token in tokens for child in token.children or ()]
    return [t.content.strip() for t in (*tokens, *inline) if t.type.startswith("html")]


def example(**changed: Any) -> ComparisonReport:
    truth = [made_truth(60.0), made_truth(80.0)]
    lost = [made_truth(58.0, abs_rel=0.105), made_truth(77.0, abs_rel=0.115)]
    advice = (
        Recommendation("production", LABEL, "the fastest artifact within the gates"),
        Recommendation("edge", None, "no artifact is within the gates"),
    )
    return made_report(
        made_row("torch/fp32", truth=truth, disk_bytes=8_000_000),
        made_row(LABEL, truth=lost, reference=truth, samples=(40.0, 50.0, 60.0)),
        failed_row("torch/int4_g128", message="ended with | SIGSEGV"),
        recommendations=advice,
        **changed,
    )


def test_one_table_of_all_variants() -> None:
    (table,) = tables(markdown_text(example()).replace("\u00a0", " "))
    assert table == [
        ["variant", "MB", "x smaller", "median ms", "x faster", "AUC@30, %", "lost [95 %]",
         "AbsRel", "lost [95 %]"],
        ["torch/fp32", "8.00", "-", "102.0", "1.00", "70.00", "-", "0.1000", "-"],
        [LABEL, "2.00", "4.00", "50.0", "2.04", "67.50", "+2.50 [+2.00, +3.00]",
         "0.1100", "+0.01000 [+0.00500, +0.01500]"],
        ["torch/int4_g128", "-", "-", "failed", "-", "-", "-", "-", "-"],
    ]  # fmt: skip


def test_a_loss_is_written_as_in_the_summary() -> None:
    """One rule for all files: what is below the last place is 0, without an exponent."""
    truth = [made_truth(60.0), made_truth(80.0)]
    lost = [made_truth(60.0 - 1e-6, 0.1 + 2.4e-8), made_truth(80.0 - 1e-6, 0.1 + 3e-6)]
    report = made_report(
        made_row("torch/fp32", truth=truth), made_row(LABEL, truth=lost, reference=truth)
    )
    (table,) = tables(markdown_text(report).replace("\u00a0", " "))
    assert table[2][6] == "0.00 [0.00, 0.00]"
    assert table[2][8] == "0.00000 [0.00000, 0.00000]"
    summary = summary_text(report)
    assert "0.00000 to 0.00000" in " ".join(summary.split())
    assert "e-0" not in "".join(cell for row in table for cell in row)


def test_a_variant_that_broke_is_not_folded_away() -> None:
    old = made_report(made_row("torch/fp32"), made_row(LABEL))
    new = made_report(made_row("torch/fp32"), failed_row(LABEL))
    text = markdown_text(replace(new, baseline=changes(old, new)))
    since = text[text.index("### Changed since the baseline") :]
    shown = since[: since.index("<details>")]
    assert "- Variants: 1 broke, 0 came to work" in shown
    assert "- before done, now failed: onnxruntime/int8_pc_sym" in shown.replace("\\", "")
    assert shown.index("broke") < shown.index("Quantities")
    same = markdown_text(replace(old, baseline=changes(old, old)))
    assert "broke" not in same


def test_without_a_truth_the_errors_against_fp32() -> None:
    text = markdown_text(made_report(made_row("torch/fp32", error=0.0), made_row(LABEL)))
    (table,) = tables(text)
    assert table[0][5:] == ["rotation, deg", "direction, deg", "depth AbsRel", "points"]
    assert table[2][5:] == ["0.1", "0.1", "0.01", "0.01"]
    assert "Protocol" not in text
    assert "Protocol: the first 4 pictures" in markdown_text(example())


def test_each_warning_is_a_paragraph() -> None:
    report = example()
    question = {**report.question, "model": {**report.question["model"], "kind": "random"}}
    text = markdown_text(replace(report, question=question))
    kinds = [token.type for token in parse(text)]
    quote = kinds[kinds.index("blockquote_open") : kinds.index("blockquote_close")]
    assert quote.count("paragraph_open") == 2  # random weights, two scenes
    assert "random" in text


def test_advice_stands_first_and_failures_are_folded() -> None:
    text = markdown_text(example())
    assert (
        f"- **production**: `{LABEL}`. The fastest artifact within the gates.\n"
        "- **edge**: none. No artifact is within the gates.\n" in text
    )
    assert text.index("production") < text.index("| variant") < text.index("<details>")
    assert "- `torch/int4_g128`: failed (measure): ended with | SIGSEGV. Fix: look at the" in text


def test_the_only_html_is_details() -> None:
    kinds = {line for piece in html(markdown_text(example())) for line in piece.split("\n")}
    assert kinds == {
        "<details>", "</details>", "<summary>Environment</summary>",
        "<summary>1 without numbers</summary>",
    }  # fmt: skip


def test_what_is_folded_is_markdown_again() -> None:
    """GitHub shows the list as text if no empty line is before it."""
    lists = [token for token in parse(markdown_text(example())) if token.type == "list_item_open"]
    assert len(lists) > 8
    tight = markdown_text(example()).replace("</summary>\n\n", "</summary>\n")
    assert len([token for token in parse(tight) if token.type == "list_item_open"]) < len(lists)


def hostile() -> ComparisonReport:
    report = example(notes=(HOSTILE,))
    model = {**report.question["model"], "spec": HOSTILE}
    scenes = [{**s, "name": HOSTILE, "skipped": [HOSTILE]} for s in report.question["scenes"]]
    return replace(
        report,
        question={**report.question, "model": model, "scenes": scenes},
        rows=(*report.rows, failed_row("torch/fp16", message=HOSTILE)),
        recommendations=(Recommendation("edge", None, HOSTILE),),
        protocol=replace(report.protocol, frames=HOSTILE),
        environment=replace(report.environment, cpu=HOSTILE),
    )


def test_hostile_names_are_inert() -> None:
    text = markdown_text(hostile())
    assert {piece.split("\n")[0] for piece in html(text)} == {"<details>", "</details>"}
    inline = [child for token in parse(text) for child in token.children or ()]
    kinds = {token.type for token in inline}
    assert kinds <= {"text", "code_inline", "softbreak", "strong_open", "strong_close"}
    # The bold ones are the purposes of the advice.
    assert sum(token.type == "strong_open" for token in inline) == 1
    assert len(tables(text)) == 1
    outside_code = "".join(token.content for token in inline if token.type == "text")
    assert "@team" not in outside_code
    # And nothing of it is lost.
    assert "<script>alert(1)</script>" in outside_code
    bare = f"x {' '.join(HOSTILE.split())}"  # twin: on one line, but not escaped
    twin = [child for token in parse(bare) for child in token.children or ()]
    assert {"link_open", "image", "html_inline", "em_open"} <= {token.type for token in twin}


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_any_text_comes_out_as_it_went_in(text: str) -> None:
    """One line of plain text, or one code span."""
    plain = " ".join(text.split())
    tokens = parse(f"x {escape(text)}")
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    shown = _plain(tokens[1]).replace("\u2060", "").replace("\0", "\ufffd")
    assert " ".join(shown.split()) == f"x {plain}".replace("\0", "\ufffd").strip()
    spans = [child for child in parse(f"x {code(text)}")[1].children or () if child.content != "x "]
    assert [child.type for child in spans] == ["code_inline"]
    assert spans[0].content.strip() == plain.replace("\0", "\ufffd")


def test_the_changes_since_a_baseline() -> None:
    truth = [made_truth(float(level)) for level in range(20, 90, 9)]
    old = made_report(made_row("torch/fp32", truth=truth), made_row(LABEL, truth=truth))
    worse = [made_truth(s.pose.auc_30 - 2.0 - 0.1 * i) for i, s in enumerate(truth) if s.pose]
    new = made_report(
        made_row("torch/fp32", truth=truth),
        made_row(LABEL, truth=worse, reference=truth, disk_bytes=1_500_000),
    )
    text = markdown_text(replace(new, baseline=changes(old, new)))
    _, table = tables(text)
    cells = [row[:5] for row in table[1:]]
    assert cells[0][:3] == [LABEL, "AUC@30", "worse"]
    assert cells[1] == [LABEL, "on disk, MB", "better", "2.00", "1.50"]
    assert "sign-flip" in text
    unchanged = markdown_text(replace(old, baseline=changes(old, old)))
    assert "Quantities: 0 worse, 0 better" in unchanged
    assert len(tables(unchanged)) == 1


def test_many_changes_still_fit_a_comment() -> None:
    labels = [f"{runtime}/{scheme}" for runtime in ("torch", "onnxruntime")
              for scheme in ("int8_pc_sym", "int8_pt_sym", "int8_pc_asym", "int4_g128",
                             "int4_g32", "mixed", "fp16", "bf16")]  # fmt: skip
    old, new = (
        made_report(made_row("torch/fp32", error=0.0), *(made_row(x, error=error) for x in labels))
        for error in (0.01, 0.1)
    )
    text = markdown_text(replace(new, baseline=changes(old, new)))
    _, table = tables(text)
    assert len(table) == MOST_CHANGES + 1
    assert f"{6 * len(labels) - MOST_CHANGES} more changes are in" in text
    assert len(text) < 65536


def test_it_is_written_as_utf_8(tmp_path: Path) -> None:
    report = replace(example(notes=("图片",)), folder=tmp_path)
    assert write_markdown(report).read_text(encoding="utf-8") == markdown_text(report)


@pytest.mark.parametrize("plan", [{}, {"torch/int4_g128": "segfault"}])
def test_a_comparison_with_fake_workers(fake: Any, plan: dict[str, str]) -> None:
    fake.plan(plan)
    report = fake.run()
    text = markdown_text(report)
    (table,) = tables(text)
    assert [row[0] for row in table[1:]] == [row.label for row in report.rows]
    assert ("SIGSEGV" in text) == bool(plan)
