"""view.html in a browser: it draws, moves, sorts, is fit for use, and nothing in a name runs."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from browser import (
    OpenPage,
    drawn_share,
    screenshot_pixels,
    scrolls_sideways,
    serious_violations,
)

from vggt_deploy.visualize import pipeline, visualize

if TYPE_CHECKING:
    from conftest import Truth
    from playwright.sync_api import Page

HOSTILE = """</script><script>throw 1</script>"><img src=x onerror="throw 2">&'{{ 7*7 }}.png"""


@pytest.fixture
def page_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The comparison's page, without the pictures beside it."""
    monkeypatch.setattr(pipeline, "_write_pictures", lambda *_: None)
    return tmp_path / "out"


def test_it_opens_draws_and_answers(comparison: Path, page_of: Path, open_page: OpenPage) -> None:
    page = open_page(visualize(comparison, page_of).page)
    view = page.locator("[data-scene][data-drawn]")
    canvas = view.locator("[data-part=view]")
    assert view.get_attribute("data-drawn") == "torch/fp32 of vggt-nano"
    assert drawn_share(canvas) > 0.05
    assert serious_violations(page) == []

    # The 3D view turns by keyboard, and the reset button brings it back.
    before = screenshot_pixels(canvas)
    page.get_by_role("button", name="Turn left").focus()
    page.keyboard.press("Enter")
    page.wait_for_timeout(300)
    turned = screenshot_pixels(canvas)
    assert np.mean(before != turned) > 0.01
    page.locator("button[data-move=reset]").click()
    page.wait_for_timeout(300)
    assert np.mean(before != screenshot_pixels(canvas)) < 0.01

    # The divider between photograph and map moves by keyboard.
    slider = page.locator("img-comparison-slider").first
    slider.focus()
    start = slider.get_attribute("aria-valuenow")
    page.keyboard.press("End")
    assert (start, slider.get_attribute("aria-valuenow")) == ("50", "100")

    # The table of cameras sorts by its titles: its first camera stands at the origin.
    values = camera_x(page)
    assert values[0] == pytest.approx(0, abs=1e-3)
    orders = [sorted_by_x(page), sorted_by_x(page)]
    assert sorted(values) in orders
    assert sorted(values, reverse=True) in orders


def camera_x(page: Page) -> list[float]:
    """The column x of the table of cameras, as shown."""
    cells = page.locator("#camera-table tbody tr td:nth-child(2)")
    return [float(text) for text in cells.all_inner_texts()]


def sorted_by_x(page: Page) -> list[float]:
    """The same after the title was pressed by keyboard."""
    page.evaluate(
        "() => { const table = document.querySelector('#camera-table');"
        " window.sorted = new Promise((done) =>"
        " table.addEventListener('sort-end', () => done(), { once: true })); }"
    )
    page.locator("#camera-table thead button").nth(1).focus()
    page.keyboard.press("Enter")
    page.evaluate("() => window.sorted")
    return camera_x(page)


def test_a_narrow_and_dark_window(comparison: Path, page_of: Path, open_page: OpenPage) -> None:
    page = open_page(visualize(comparison, page_of).page, width=390, dark=True)
    page.locator("[data-scene][data-drawn]").scroll_into_view_if_needed()
    assert not scrolls_sideways(page)
    assert serious_violations(page) == []


def test_names_are_inert(comparison: Path, page_of: Path, open_page: OpenPage) -> None:
    question = json.loads((comparison / "question.json").read_text())
    question["scenes"][0]["name"] = HOSTILE
    question["scenes"][0]["files"][1]["name"] = HOSTILE
    question["model"]["spec"] = HOSTILE
    (comparison / "question.json").write_text(json.dumps(question))
    page = open_page(visualize(comparison, page_of).page)  # quiet, or the test fails
    page.locator("[data-scene][data-drawn]").wait_for()
    assert page.locator("h1").inner_text() == HOSTILE
    assert page.locator("#camera-table tbody th").nth(1).inner_text() == HOSTILE
    assert page.locator("img[src=x]").count() == 0


def test_without_points_or_cameras_there_is_no_view(
    comparison: Path, truth: Truth, page_of: Path, open_page: OpenPage
) -> None:
    every = truth.outputs()
    only = {name: every[name] for name in ("depth", "depth_conf")}
    np.savez(comparison / "outputs" / "torch-fp32.npz", **only)
    page = open_page(visualize(comparison, page_of).page)
    assert page.locator("[data-scene]").count() == 0
    assert page.locator("img-comparison-slider").count() == 6
    assert page.get_by_text("no cameras: the output pose was not asked for").is_visible()


def test_the_page_stands_alone(comparison: Path, page_of: Path) -> None:
    text = visualize(comparison, page_of).page.read_text(encoding="utf-8")
    assert "default-src 'none'" in html.unescape(text[:2000])
    markup = re.sub(r"<script>.*?</script>|<style>.*?</style>", "", text, flags=re.DOTALL)
    sources = re.findall(r"""(?:src|href)=["']([^"']*)""", markup)
    assert len(sources) > 12
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert len(text) < 4_000_000
