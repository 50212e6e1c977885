"""report.html in a real browser: quiet, sortable, slidable, drawn, and fit for keyboard and narrow
windows.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import (
    OpenPage,
    drawn_share,
    open_watched,
    screenshot_pixels,
    scrolls_sideways,
    serious_violations,
)
from made_pages import page_report, write_arrays

from vggt_deploy.compare.report import CSV_NAME, REPORT_NAME
from vggt_deploy.records import ModelRecord
from vggt_deploy.report.page import write_page
from vggt_deploy.sensitivity.table import Entry, SensitivityTable

HOSTILE = "</script><img src=x onerror=\"console.error('owned')\">'.png"
VIEW = "#cloud [data-part=view]"


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with truth, two failed rows, layers, and one picture of a hostile name."""
    report = page_report(
        tmp_path_factory.mktemp("page"),
        schemes=("int8_pc_sym", "int8_pc_sym+dynamic", "int4_g128"),
        names=(HOSTILE, "b.png", "c.png"),
    )
    entries = tuple(Entry(f"block.{i}", (f"l{i}",), "int8_pc_sym", 0.1 * i) for i in range(1, 4))
    layers = SensitivityTable(
        1, ModelRecord("m", "m"), ("s",), "outputs", "block", 42, 56, "float", {}, entries
    )
    return write_page(report, write_arrays(report), sensitivity=layers)


def column(page: Any, number: int) -> list[str]:
    cells = page.locator(f"#variants tbody tr > :nth-child({number})")
    return [cell.split("\n")[0] for cell in cells.all_inner_texts()]


def sort(page: Any, press: Callable[[], None]) -> None:
    """Press, and wait until the table is sorted: the library does it a moment later."""
    page.evaluate(
        "() => { const mark = document.body.dataset; delete mark.sorted; "
        "addEventListener('sort-end', () => { mark.sorted = 'yes'; }, { once: true }); }"
    )
    press()
    page.wait_for_selector("body[data-sorted]")


def show_scene(page: Any) -> Any:
    page.locator("#cloud").scroll_into_view_if_needed()
    page.wait_for_selector("#cloud [data-drawn]")
    page.wait_for_timeout(400)  # the first frames of a software renderer
    return page.locator(VIEW)


@pytest.mark.parametrize("width", [1280, 390])
def test_it_opens_quietly_and_fits_its_window(
    page_path: Path, open_page: OpenPage, width: int
) -> None:
    page = open_page(page_path, width=width)
    for section in page.locator("main section").all():
        section.scroll_into_view_if_needed()
        page.wait_for_timeout(60)
    assert not scrolls_sideways(page)
    assert page.locator("main section").count() >= 8
    assert page.locator("#main img[src='x']").count() == 0
    assert HOSTILE in page.locator("#map-name").inner_text()
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert not scrolls_sideways(page)


def test_the_table_sorts_by_click(page_path: Path, open_page: OpenPage) -> None:
    page = open_page(page_path)
    before = column(page, 4)
    assert before != sorted(before, key=lambda text: float("inf") if text == "-" else float(text))
    title = page.locator("#variants").get_by_role("button", name="Latency")
    sort(page, title.click)
    assert page.locator("#variants th[aria-sort=descending]").count() == 1
    down = column(page, 4)
    assert down[-1] == "-"  # what was not measured is last either way
    numbers = [float(text) for text in down[:-1]]
    assert numbers == sorted(numbers, reverse=True)
    sort(page, title.click)
    assert page.locator("#variants th[aria-sort=ascending]").count() == 1
    up = column(page, 4)
    assert up[-1] == "-"
    assert [float(text) for text in up[:-1]] == sorted(numbers)
    assert sorted(up) == sorted(before)


def test_the_table_sorts_by_keyboard(page_path: Path, open_page: OpenPage) -> None:
    page = open_page(page_path)
    for key in ("Enter", "Space"):
        sort(page, partial(page.get_by_role("button", name="On disk").press, key))
    sizes = [float(text) for text in column(page, 2) if text != "-"]
    assert sizes == sorted(sizes)
    name = page.locator("#variants").get_by_role("button", name="Variant")
    sort(page, partial(name.press, "Enter"))
    labels = column(page, 1)
    assert labels == sorted(labels, reverse=True)


def divider(slider: Any) -> float:
    return float(slider.evaluate("(element) => Number(element.value)"))


def test_the_divider_moves_by_mouse_and_keyboard(page_path: Path, open_page: OpenPage) -> None:
    page = open_page(page_path)
    slider = page.locator("[data-tile=depth] img-comparison-slider")
    slider.scroll_into_view_if_needed()
    page.evaluate("window.scrollBy(0, -120)")
    assert divider(slider) == 50
    middle = screenshot_pixels(slider)
    box = slider.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.5 * box["height"], steps=4)
    page.mouse.up()
    page.wait_for_timeout(250)
    assert divider(slider) == pytest.approx(90, abs=2)
    assert slider.get_attribute("aria-valuenow") == str(round(divider(slider)))
    assert (screenshot_pixels(slider) != middle).any()
    slider.focus()
    page.keyboard.down("ArrowLeft")
    page.wait_for_timeout(300)
    page.keyboard.up("ArrowLeft")
    page.wait_for_timeout(60)
    moved = divider(slider)
    assert moved < 88
    assert slider.get_attribute("aria-valuenow") == str(round(moved))
    page.keyboard.press("Home")
    assert divider(slider) == 0
    page.keyboard.press("End")
    assert divider(slider) == 100
    assert slider.get_attribute("aria-valuenow") == "100"


def test_another_variant_and_another_picture_are_shown(
    page_path: Path, open_page: OpenPage
) -> None:
    page = open_page(page_path)
    right = page.locator("[data-tile=depth] [data-map=right]")
    photo = page.locator("[data-tile=photo] img")
    assert page.locator("#map-variant").input_value() == "onnxruntime/int8_pc_sym"  # production
    first, seen = right.get_attribute("src"), photo.get_attribute("src")
    page.locator("#map-variant").select_option("onnxruntime/int4_g128")
    assert right.get_attribute("src") != first
    assert photo.get_attribute("src") == seen
    assert page.locator("[data-tile=depth] .tag.right").inner_text() == "onnxruntime/int4_g128"
    page.get_by_role("button", name="Picture 2").press("Enter")
    assert page.locator("#map-name").inner_text() == "b.png"
    assert page.get_by_role("button", name="Picture 2").get_attribute("aria-pressed") == "true"
    for tile in ("depth", "difference", "error"):
        ends = page.locator(f"[data-legend={tile}] [data-end]").all_inner_texts()
        assert all(ends), tile
    loaded = "(image) => image.complete && image.naturalWidth === 56"
    assert all(image.evaluate(loaded) for image in page.locator("#maps img[data-map]").all())
    page.locator("#map-variant").select_option("torch/fp32")
    assert page.get_by_text("This is FP32 itself.").is_visible()
    assert not page.locator("[data-map=difference]").is_visible()


def test_the_scene_draws_turns_and_switches_in_the_same_view(
    page_path: Path, open_page: OpenPage
) -> None:
    page = open_page(page_path)
    view = show_scene(page)
    assert drawn_share(view) > 0.05
    reference = screenshot_pixels(view)
    page.get_by_role("button", name="Turn left").click()
    page.get_by_role("button", name="Zoom in").press("Enter")
    page.wait_for_timeout(300)
    turned = screenshot_pixels(view)
    assert (turned != reference).mean() > 0.02
    eye = "(e) => JSON.stringify(e.layout.scene.camera.eye)"
    before = view.evaluate(eye)
    page.locator("#cloud [data-part=cloud]").select_option(label="onnxruntime/int4_g128")
    page.wait_for_selector('#cloud [data-drawn="onnxruntime/int4_g128"]')
    page.wait_for_timeout(300)
    assert json.loads(view.evaluate(eye)) == pytest.approx(json.loads(before))
    other = screenshot_pixels(view)
    assert (other != turned).any()
    page.locator("#cloud [data-part=colour]").select_option("distance")
    page.wait_for_timeout(400)
    assert (screenshot_pixels(view) != other).mean() > 0.02
    view.focus()
    page.keyboard.press("0")
    page.locator("#cloud [data-part=colour]").select_option("photo")
    page.locator("#cloud [data-part=cloud]").select_option(label="torch/fp32")
    page.wait_for_timeout(500)
    back = screenshot_pixels(view)
    assert np.abs(back.astype(int) - reference).mean() < 2.0


def test_the_scene_moves_by_keyboard_leaves_the_wheel_to_the_page_and_puts_cameras_away(
    page_path: Path, open_page: OpenPage
) -> None:
    page = open_page(page_path)
    view = show_scene(page)
    eye: Callable[[], dict[str, float]] = lambda: view.evaluate("(e) => e.layout.scene.camera.eye")  # noqa: E731
    start = eye()
    box = view.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    top = page.evaluate("window.scrollY")
    page.mouse.wheel(0, -200)
    page.wait_for_timeout(300)
    assert page.evaluate("window.scrollY") < top
    assert eye() == pytest.approx(start)
    view.focus()
    for key in ("ArrowLeft", "ArrowUp", "+"):
        last = eye()
        page.keyboard.press(key)
        page.wait_for_timeout(100)
        assert eye() != pytest.approx(last), key
    page.keyboard.press("0")
    page.wait_for_timeout(200)
    assert eye() == pytest.approx(start)
    with_cameras = screenshot_pixels(view)
    page.locator("#cloud [data-part=cameras]").press("Space")
    page.wait_for_timeout(300)
    changed = (screenshot_pixels(view) != with_cameras).any(axis=2)
    # The lines go, and nothing else moves.
    assert 0.0005 < changed.mean() < 0.05
    assert view.evaluate("(e) => e.data.length") == 1


def test_plots_draw_and_answer_to_the_pointer(page_path: Path, open_page: OpenPage) -> None:
    page = open_page(page_path)
    plot = page.locator("#plot-accuracy")
    plot.scroll_into_view_if_needed()
    page.wait_for_selector("#plot-accuracy .point")
    assert page.locator("#plot-accuracy .point").count() == 4
    page.evaluate(
        "() => { const texts = document.getElementById('plot-accuracy').data[1].text; "
        "const number = texts.findIndex((text) => text.includes('>onnxruntime/int8_pc_sym<')); "
        "Plotly.Fx.hover('plot-accuracy', [{ curveNumber: 1, pointNumber: number }]); }"
    )
    hover = page.locator("#plot-accuracy .hoverlayer").text_content() or ""
    assert "onnxruntime/int8_pc_sym" in hover
    assert "MB on disk" in hover
    before = plot.locator(".ytitle").text_content()
    page.locator("#plot-measure").select_option("depth")
    page.locator("#plot-over").select_option("latency")
    page.wait_for_timeout(300)
    assert plot.locator(".ytitle").text_content() != before
    assert "ms" in (plot.locator(".xtitle").text_content() or "")
    page.locator("#plot-latency").scroll_into_view_if_needed()
    page.wait_for_selector("#plot-latency .point", state="attached")
    assert drawn_share(page.locator("#plot-latency")) > 0.01


@pytest.mark.parametrize(
    "button, name", [("Save the JSON", REPORT_NAME), ("Save the CSV", CSV_NAME)]
)
def test_the_files_are_saved_from_the_page(
    page_path: Path, open_page: OpenPage, tmp_path: Path, button: str, name: str
) -> None:
    page = open_page(page_path)
    with page.expect_download() as waiting:
        page.get_by_role("button", name=button).click()
    assert waiting.value.suggested_filename == name
    waiting.value.save_as(tmp_path / name)
    saved = (tmp_path / name).read_text()
    if name == REPORT_NAME:
        assert saved == (page_path.parent / REPORT_NAME).read_text()
    else:
        assert saved.count("\n") == 1 + len(
            json.loads((page_path.parent / REPORT_NAME).read_text())["rows"]
        )


@pytest.mark.parametrize("width, dark", [(1280, False), (1280, True), (390, False)])
def test_nothing_serious_is_in_the_way_of_anyone(
    page_path: Path, open_page: OpenPage, width: int, dark: bool
) -> None:
    page = open_page(page_path, width=width, dark=dark)
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    page.wait_for_timeout(300)
    assert serious_violations(page) == []


def test_of_fp32_alone_the_page_is_quiet_too(open_page: OpenPage, tmp_path: Path) -> None:
    report = page_report(tmp_path, schemes=(), names=("one.png",), scenes=1)
    page = open_page(write_page(report, write_arrays(report, truth=False)))
    show_scene(page)
    for section in page.locator("main section").all():
        section.scroll_into_view_if_needed()
        page.wait_for_timeout(60)
    assert page.get_by_text("This is FP32 itself.").is_visible()
    assert page.locator("#plot-over").input_value() == "latency"


def test_a_script_that_was_written_into_the_page_does_not_run(
    page_path: Path, chromium: Any, tmp_path: Path
) -> None:
    """The twin of the quiet page: an unescaped script is stopped by the policy, and seen."""
    text = page_path.read_text(encoding="utf-8")
    attacked = tmp_path / "attacked.html"
    attacked.write_text(
        text.replace(
            '<main id="main"',
            "<script>window.owned = 1</script><img src='https://example.org/x.png' alt=''>"
            '<main id="main"',
        ),
        encoding="utf-8",
    )
    page, watch = open_watched(chromium, attacked)
    page.wait_for_timeout(300)
    assert page.evaluate("window.owned") is None
    assert any("Content Security Policy" in problem for problem in watch.problems())
    page.context.close()
