"""report.html in a real browser: quiet, sortable, slidable, drawn, and fit for keyboard and narrow
windows.

Nothing is asserted after a fixed pause: what a page does in its own time is waited for.
"""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import (
    OpenPage,
    drawn_share,
    find_chromium,
    launch_arguments,
    open_watched,
    screenshot_pixels,
    scrolls_sideways,
    serious_violations,
)
from made_pages import page_report, write_arrays
from PIL import Image

from vggt_deploy.compare.report import CSV_NAME, REPORT_NAME
from vggt_deploy.pages.cloud import NOTHING
from vggt_deploy.records import ModelRecord
from vggt_deploy.report.page import write_page
from vggt_deploy.sensitivity.table import Entry, SensitivityTable

HOSTILE = "</script><img src=x onerror=\"console.error('owned')\">'.png"
LINK = '<a href="https://evil.example/">x</a><b>bold</b>.png'
VIEW = "#cloud [data-part=view]"
PATIENCE_S = 15.0
PAPER = 703  # CSS pixels between the margins of an A4 page


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with truth, two failed rows, layers, and two pictures of hostile names."""
    report = page_report(
        tmp_path_factory.mktemp("page"),
        schemes=("int8_pc_sym", "int8_pc_sym+dynamic", "int4_g128"),
        names=(HOSTILE, "b.png", LINK),
    )
    entries = tuple(Entry(f"block.{i}", (f"l{i}",), "int8_pc_sym", 0.1 * i) for i in range(1, 4))
    layers = SensitivityTable(
        1, ModelRecord("m", "m"), ("s",), "outputs", "block", 42, 56, "float", {}, entries
    )
    return write_page(report, write_arrays(report, noise=0.1), sensitivity=layers)


@pytest.fixture(scope="module")
def shared(page_path: Path, chromium: Any) -> Iterator[Any]:
    """The page opened once, for tests that each use another part of it."""
    page, watch = open_watched(chromium, page_path)
    yield page
    page.context.close()
    assert watch.problems() == []


@pytest.fixture(scope="module")
def small(page_path: Path, chromium: Any) -> Iterator[Any]:
    """In a small window, which a software renderer fills faster."""
    page, watch = open_watched(chromium, page_path, width=700, height=500)
    yield page
    page.context.close()
    assert watch.problems() == []


@pytest.fixture
def view(small: Any) -> Any:
    """The 3D view as it is at first."""
    small.locator("#cloud").scroll_into_view_if_needed()
    small.wait_for_selector("#cloud [data-drawn]")
    small.mouse.move(1, 1)
    small.locator("#cloud [data-part=cloud]").select_option("0")
    small.locator("#cloud [data-part=colour]").select_option("photo")
    small.locator("#cloud [data-part=cameras]").check()
    small.get_by_role("button", name="Reset").click()
    small.wait_for_function(
        f"() => {{ const e = document.querySelector('{VIEW}');"
        " return e.data.length === 3 && e.data[0].marker.cmax === undefined; }"
    )
    view = small.locator(VIEW)
    settled(view)
    return view


def data_of(page: Any, name: str) -> Any:
    """What the page was written with under that name."""
    return json.loads(page.locator(f"#data-{name}").text_content())


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


def until(holds: Callable[[], bool]) -> None:
    """Wait for what is only to be seen on screenshots."""
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end, "it did not happen in time"


def settled(view: Any) -> np.ndarray:
    """The view once it is drawn and stays as it is."""
    last = screenshot_pixels(view)

    def same() -> bool:
        nonlocal last
        before, last = last, screenshot_pixels(view)
        return bool((before == last).all() and (last != last[0, 0]).any())

    until(same)
    return last


def changed(view: Any, before: np.ndarray, share: float = 0.0) -> np.ndarray:
    """The view once more than this share of its pixels is another."""
    until(lambda: bool((screenshot_pixels(view) != before).any(axis=2).mean() > share))
    return settled(view)


def show_all(page: Any) -> None:
    """As one who reads it all: what draws itself when it is near is drawn."""
    for section in page.locator("main section").all():
        section.scroll_into_view_if_needed()
    page.wait_for_selector("#plot-accuracy .point, #plot-accuracy[hidden]", state="attached")
    page.wait_for_selector("#plot-latency .point", state="attached")
    page.wait_for_selector("#cloud [data-drawn]")


@pytest.mark.parametrize("width, dark", [(1280, False), (390, False), (1000, True)])
def test_it_is_quiet_fits_its_window_and_nothing_is_in_the_way_of_anyone(
    page_path: Path, open_page: OpenPage, width: int, dark: bool
) -> None:
    page = open_page(page_path, width=width, dark=dark)
    show_all(page)
    assert not scrolls_sideways(page)
    assert page.locator("main section").count() >= 8
    assert page.locator("#main img[src='x']").count() == 0
    assert HOSTILE in page.locator("#map-name").inner_text()
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert not scrolls_sideways(page)
    assert serious_violations(page) == []


def test_the_table_sorts_by_click_and_by_keyboard(shared: Any) -> None:
    page = shared
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

    for key in ("Enter", "Space"):
        sort(page, partial(page.get_by_role("button", name="On disk").press, key))
    sizes = [float(text) for text in column(page, 2) if text != "-"]
    assert sizes == sorted(sizes)
    name = page.locator("#variants").get_by_role("button", name="Variant")
    sort(page, partial(name.press, "Enter"))
    labels = column(page, 1)
    assert labels == sorted(labels, reverse=True)


# --- pictures


def divider(slider: Any) -> float:
    return float(slider.evaluate("(element) => Number(element.value)"))


def decoded(uri: str, like: np.ndarray) -> np.ndarray:
    """The picture of a data: address in the size of another one."""
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
        size = (like.shape[1], like.shape[0])
        return np.asarray(picture.convert("RGB").resize(size, Image.Resampling.BILINEAR), float)


@pytest.mark.parametrize("tile", ["depth", "error"])
def test_fp32_is_left_of_the_divider_and_the_variant_right_of_it(small: Any, tile: str) -> None:
    page = small
    maps, store = data_of(page, "maps"), data_of(page, "pictures")
    chosen = page.locator("#map-variant").input_value()
    assert chosen == "onnxruntime/int8_pc_sym"  # recommended for production
    slider = page.locator(f"[data-tile={tile}] img-comparison-slider")
    slider.scroll_into_view_if_needed()
    page.evaluate("window.scrollBy(0, 200)")
    shown = settled(slider).astype(float)
    height, width, _ = shown.shape
    rows = slice(height // 3, 3 * height // 4)  # without the labels
    fp32, variant = (
        decoded(store[maps["variants"][label][0][tile]], shown)
        for label in (maps["reference"], chosen)
    )
    for label, columns, right, wrong in (
        (".tag.left", slice(width // 20, 2 * width // 5), fp32, variant),
        (".tag.right", slice(3 * width // 5, 19 * width // 20), variant, fp32),
    ):
        part = (rows, columns)
        near = np.abs(shown[part] - right[part]).mean()
        assert near < 0.5 * np.abs(shown[part] - wrong[part]).mean(), label
    tags = [page.locator(f"[data-tile={tile}] .tag.{side}") for side in ("left", "right")]
    assert [tag.inner_text() for tag in tags] == ["FP32", chosen]
    assert tags[0].bounding_box()["x"] < tags[1].bounding_box()["x"]


def test_the_divider_moves_by_mouse_and_keyboard(shared: Any) -> None:
    page = shared
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
    find = "const s = document.querySelector('[data-tile=depth] img-comparison-slider'); "
    said = "Number(s.getAttribute('aria-valuenow')) === Math.round(s.value)"
    page.wait_for_function(f"() => {{ {find} return Math.abs(s.value - 90) <= 2 && {said}; }}")
    changed(slider, middle)
    slider.focus()
    page.keyboard.down("ArrowLeft")
    page.wait_for_function(f"() => {{ {find} return s.value < 88; }}")
    page.keyboard.up("ArrowLeft")
    page.wait_for_function(f"() => {{ {find} return s.value < 88 && {said}; }}")
    for key, end in (("Home", 0), ("End", 100)):
        page.keyboard.press(key)
        page.wait_for_function(f"() => {{ {find} return s.value === {end} && {said}; }}")


def test_another_variant_and_another_picture_are_shown(shared: Any) -> None:
    page = shared
    right = page.locator("[data-tile=depth] [data-map=right]")
    photo = page.locator("[data-tile=photo] img")
    maps, store = data_of(page, "maps"), data_of(page, "pictures")
    first, seen = right.get_attribute("src"), photo.get_attribute("src")
    page.locator("#map-variant").select_option("onnxruntime/int4_g128")
    own = maps["variants"]["onnxruntime/int4_g128"]
    assert right.get_attribute("src") == store[own[0]["depth"]] != first
    assert photo.get_attribute("src") == seen == store[maps["pictures"][0]["photo"]]
    assert page.locator("[data-tile=depth] .tag.right").inner_text() == "onnxruntime/int4_g128"
    page.get_by_role("button", name="Picture 2").press("Enter")
    assert page.locator("#map-name").inner_text() == "b.png"
    assert page.get_by_role("button", name="Picture 2").get_attribute("aria-pressed") == "true"
    for tile in ("depth", "difference", "error"):
        places = []
        for end in ("low", "unit", "high"):
            element = page.locator(f"[data-legend={tile}] [data-end={end}]")
            assert element.inner_text() == maps["pictures"][1][tile][end], tile
            places.append(element.bounding_box()["x"])
        assert places == sorted(places)
        assert float(maps["pictures"][1][tile]["low"]) < float(maps["pictures"][1][tile]["high"])
    page.wait_for_function(
        "() => [...document.querySelectorAll('#maps img[data-map]')]"
        ".every((image) => image.complete && image.naturalWidth === 56)"
    )
    page.locator("#map-variant").select_option("torch/fp32")
    assert page.get_by_text("This is FP32 itself.").is_visible()
    assert not page.locator("[data-map=difference]").is_visible()


def test_what_is_broken_and_what_is_missing_is_said_beside_the_pictures(
    open_page: OpenPage, tmp_path: Path
) -> None:
    from dataclasses import replace

    report = page_report(tmp_path, schemes=("int8_pc_sym", "int4_g128"), names=("a.png",))
    rows = [*report.rows]
    scenes = tuple(replace(s, truth=replace(s.truth, depth=None)) for s in rows[2].scenes)
    rows[2] = replace(rows[2], scenes=scenes)
    report = replace(report, rows=tuple(rows))
    folder = write_arrays(report)
    path = folder.arrays(report.rows[1].variant)
    arrays = dict(np.load(path))
    arrays["depth"][0, 0, 4:30] = np.nan
    np.savez(path, **arrays)
    page = open_page(write_page(report, folder))
    said = page.locator("[data-tile=error] [data-map=said]")
    assert "variant 100 % (1,456 of 2,128 pixels not finite: 100 %)." in said.inner_text()
    page.locator("#map-variant").select_option("onnxruntime/int4_g128")
    assert page.locator("[data-tile=error] [data-map=missing]").is_visible()
    assert not page.locator("[data-tile=depth] [data-map=missing]").is_visible()
    assert not page.locator("[data-tile=error] .slider").is_visible()
    assert page.locator("[data-tile=depth] .slider").is_visible()
    page.locator("#map-variant").select_option("torch/fp32")
    assert page.locator("[data-tile=error] .slider").is_visible()


# --- points and cameras


def steps_of(scene: Any, cloud: int) -> np.ndarray:
    """The packed points of a cloud [N, 3], NaN where there is none."""
    raw = np.frombuffer(base64.b64decode(scene["clouds"][cloud]["points"]), "<u2").reshape(-1, 3)
    points = np.asarray(scene["low"]) + raw * np.asarray(scene["step"])
    return np.where(raw == NOTHING, np.nan, points)


def test_points_and_cameras_are_where_the_data_says(small: Any, view: Any) -> None:
    page = small
    scene = data_of(page, "scene-points")
    values = (
        "(e) => e.data.map((t) => ({ x: [...t.x], y: [...t.y], z: [...t.z], hover: t.hovertext }))"
    )
    points, lines, centres = view.evaluate(values)
    packed = steps_of(scene, 0)
    packed = packed[np.isfinite(packed).all(axis=1)]
    # Right, into the picture, up: OpenCV's y points down.
    right_in_up = np.stack([packed[:, 0], packed[:, 2], -packed[:, 1]])
    shown = np.array([points["x"], points["y"], points["z"]])
    np.testing.assert_allclose(shown, right_in_up, atol=1e-6)
    cameras = scene["clouds"][0]["cameras"]
    for k, camera in enumerate(cameras):
        x, y, z = camera["centre"]
        at = [centres[axis][k] for axis in "xyz"]
        assert at == pytest.approx([x, z, -y], abs=1e-9)
    drawn = {tuple(np.round(p, 9)) for p in zip(lines["x"], lines["y"], lines["z"], strict=True)
             if None not in p}  # fmt: skip
    for camera in cameras:
        for x, y, z in camera["corners"]:
            assert tuple(np.round((x, z, -y), 9)) in drawn

    # Colour by distance: of each point from the first cloud's of the same pixel.
    page.locator("#cloud [data-part=cloud]").select_option("1")
    page.locator("#cloud [data-part=colour]").select_option("distance")
    page.wait_for_function(f"() => document.querySelector('{VIEW}').data[0].marker.cmax > 0")
    first, second = steps_of(scene, 0), steps_of(scene, 1)
    there = np.isfinite(second).all(axis=1)
    expected = np.linalg.norm(second - first, axis=1)[there]
    colours = view.evaluate("(e) => [...e.data[0].marker.color].map((v) => (isNaN(v) ? null : v))")
    colours = np.array([np.nan if value is None else value for value in colours])
    np.testing.assert_allclose(colours, expected, atol=1e-5)
    assert np.nanmax(colours) > 0.01
    top = view.evaluate("(e) => e.data[0].marker.cmax")
    assert np.nanpercentile(expected, 95) < top <= np.nanmax(expected)


def pixel_of(view: Any, index: int) -> tuple[float, float]:
    """Where a camera's centre is seen, in pixels of the window."""
    x, y = view.evaluate(
        """(e, i) => {
          const scene = e._fullLayout.scene._scene;
          const trace = e.data[2];
          const { model, view, projection } = scene.glplot.cameraParams;
          const by = (m, v) => [0, 1, 2, 3].map((r) => [0, 1, 2, 3]
            .reduce((sum, c) => sum + m[4 * c + r] * v[c], 0));
          const at = ["x", "y", "z"].map((axis, k) => trace[axis][i] * scene.dataScale[k]);
          const clip = by(projection, by(view, by(model, [...at, 1])));
          const box = e.getBoundingClientRect();
          return [
            box.x + (0.5 + 0.5 * clip[0] / clip[3]) * box.width,
            box.y + (0.5 - 0.5 * clip[1] / clip[3]) * box.height,
          ];
        }""",
        index,
    )
    return x, y


def test_a_name_is_no_markup_where_a_camera_is_pointed_at(small: Any, view: Any) -> None:
    page = small
    for index, name in ((2, LINK), (0, HOSTILE)):
        x, y = pixel_of(view, index)
        page.mouse.move(x - 60, y - 60)
        page.mouse.move(x, y, steps=3)
        page.wait_for_function(
            "(said) => [...document.querySelectorAll('.hovertext')]"
            ".some((e) => e.textContent.startsWith(said))",
            arg=f"{index + 1}: {name[:10]}",
        )
        hover = page.locator(".hovertext")
        assert hover.locator("a").count() == 0
        assert name[:14] in (hover.text_content() or "")
    assert page.locator("a[href*=evil]").count() == 0
    assert "bold" not in view.locator("[style*=bold]").all_inner_texts()


def test_the_scene_turns_and_switches_in_the_same_view(small: Any, view: Any) -> None:
    page = small
    assert drawn_share(view) > 0.05
    reference = settled(view)
    page.get_by_role("button", name="Turn left").click()
    page.get_by_role("button", name="Zoom in").press("Enter")
    turned = changed(view, reference, 0.02)
    eye = "(e) => JSON.stringify(e.layout.scene.camera.eye)"
    before = view.evaluate(eye)
    page.locator("#cloud [data-part=cloud]").select_option(label="onnxruntime/int4_g128")
    page.wait_for_selector('#cloud [data-drawn="onnxruntime/int4_g128"]')
    other = changed(view, turned)
    assert json.loads(view.evaluate(eye)) == pytest.approx(json.loads(before))
    page.locator("#cloud [data-part=colour]").select_option("distance")
    changed(view, other, 0.02)
    view.focus()
    page.keyboard.press("0")
    page.locator("#cloud [data-part=colour]").select_option("photo")
    page.locator("#cloud [data-part=cloud]").select_option(label="torch/fp32")
    until(lambda: bool(np.abs(screenshot_pixels(view).astype(int) - reference).mean() < 2.0))


def test_the_scene_moves_by_keyboard_leaves_the_wheel_to_the_page_and_puts_cameras_away(
    small: Any, view: Any
) -> None:
    page = small
    eye: Callable[[], dict[str, float]] = lambda: view.evaluate("(e) => e.layout.scene.camera.eye")  # noqa: E731
    start = eye()
    box = view.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    top = page.evaluate("window.scrollY")
    page.mouse.wheel(0, -200)
    page.wait_for_function("(top) => window.scrollY < top", arg=top)
    assert eye() == pytest.approx(start)
    view.focus()
    for key in ("ArrowLeft", "ArrowUp", "+"):
        last = eye()
        page.keyboard.press(key)
        until(lambda last=last: eye() != pytest.approx(last))
    page.keyboard.press("0")
    until(lambda: eye() == pytest.approx(start))
    with_cameras = settled(view)
    page.locator("#cloud [data-part=cameras]").press("Space")
    without = changed(view, with_cameras)
    # The lines go, and nothing else moves.
    assert 0.0005 < (without != with_cameras).any(axis=2).mean() < 0.05
    assert view.evaluate("(e) => e.data.length") == 1


def test_without_webgl_it_says_so_in_its_own_words(page_path: Path, chromium: Any) -> None:
    without = ["--disable-gpu", "--disable-3d-apis"]
    kept = [option for option in launch_arguments() if "swiftshader" not in option]
    browser = chromium.browser_type.launch(executable_path=find_chromium(), args=[*kept, *without])
    try:
        page, watch = open_watched(browser, page_path)
        show_all(page)
        cloud = page.locator("#cloud")
        assert "this browser has no WebGL" in cloud.inner_text()
        assert "http" not in cloud.inner_text()
        assert " points." not in cloud.locator("[data-part=status]").inner_text()
        for part in (".controls", VIEW.removeprefix("#cloud "), "[data-part=keys]"):
            assert not cloud.locator(part).is_visible(), part
        assert watch.problems() == []
        page.context.close()
    finally:
        browser.close()


# --- plots


def best(variants: list[Any], cost: Callable[[Any], float | None], measure: Any) -> set[str]:
    """Schemes that no other variant beats in both."""
    sign = -1.0 if measure["better"] == "more" else 1.0
    points = [
        (v["scheme"], cost(v), sign * v["measures"][measure["key"]][0])
        for v in variants
        if cost(v) is not None and v["measures"][measure["key"]] is not None
    ]
    return {
        name
        for name, x, y in points
        if not any((a <= x and b <= y) and (a, b) != (x, y) for _, a, b in points)
    }


def test_plots_draw_the_numbers_and_answer_to_the_pointer(shared: Any) -> None:
    page = shared
    plot = page.locator("#plot-accuracy")
    plot.scroll_into_view_if_needed()
    page.wait_for_selector("#plot-accuracy .point")
    assert page.locator("#plot-accuracy .point").count() == 4
    page.evaluate(
        "() => { const texts = document.getElementById('plot-accuracy').data[1].text; "
        "const number = texts.findIndex((text) => text.includes('>onnxruntime/int4_g128<')); "
        "Plotly.Fx.hover('plot-accuracy', [{ curveNumber: 1, pointNumber: number }]); }"
    )
    page.wait_for_selector("#plot-accuracy .hovertext")
    hover = page.locator("#plot-accuracy .hoverlayer").text_content() or ""
    source = data_of(page, "plots")
    shown = next(v for v in source["variants"] if v["label"] == "onnxruntime/int4_g128")
    mean, low, high = shown["measures"]["auc_30_lost"]
    assert "onnxruntime/int4_g128" in hover
    assert f"{mean:.2f} points of percent (95 %: {low:.2f} to {high:.2f})" in hover
    assert "MB on disk" in hover
    assert f"{shown['faster']:.2f} x the speed of torch/fp32" in hover

    for measure in source["measures"]:
        page.locator("#plot-measure").select_option(measure["key"])
        text = measure["title"]
        page.wait_for_function(
            "(text) => document.getElementById('plot-accuracy').layout.yaxis.title.text"
            ".startsWith(text)",
            arg=text,
        )
        named = plot.evaluate("(e) => e.layout.annotations.map((a) => a.text)")
        right = best(source["variants"], lambda v: v["disk_mb"], measure)
        advised = {v["scheme"] for v in source["variants"] if v["advised"]}
        assert set(named) - advised <= right, measure["key"]
        assert named, measure["key"]
        if measure["key"] == "auc_30":  # where more is better, and there is room for all
            assert set(named) == right | advised
            assert len(named) > 2

    before = plot.locator(".xtitle").text_content()
    page.locator("#plot-over").select_option("latency")
    page.wait_for_function(
        "(text) => document.querySelector('#plot-accuracy .xtitle').textContent !== text",
        arg=before,
    )
    assert "ms" in (plot.locator(".xtitle").text_content() or "")


def test_the_bars_of_the_latency_go_from_the_fastest_to_the_90th_percentile(shared: Any) -> None:
    page = shared
    plot = page.locator("#plot-latency")
    plot.scroll_into_view_if_needed()
    page.wait_for_selector("#plot-latency .point", state="attached")
    assert drawn_share(plot) > 0.01
    timed = {v["latency"]["median_ms"]: v["latency"] for v in data_of(page, "plots")["variants"]
             if v["latency"]}  # fmt: skip
    bars = plot.evaluate(
        "(e) => e.data.filter((t) => t.error_x && t.error_x.array)"
        ".map((t) => [t.x, t.error_x.array, t.error_x.arrayminus])"
    )
    drawn = [bar for trace in bars for bar in zip(*trace, strict=True)]
    assert len(drawn) == len(timed)
    for median, up, down in drawn:
        assert median + up == pytest.approx(timed[median]["p90_ms"])
        assert median - down == pytest.approx(timed[median]["min_ms"])
        assert 0 < up < timed[median]["p90_ms"] - timed[median]["min_ms"]
    assert "(5 each at most)" in page.locator("#plot-latency-said").inner_text()


# --- files, paper, and what else is quiet


def test_the_files_are_saved_from_the_page(shared: Any, page_path: Path, tmp_path: Path) -> None:
    page = shared
    for button, name in (("Save the JSON", REPORT_NAME), ("Save the CSV", CSV_NAME)):
        with page.expect_download() as waiting:
            page.get_by_role("button", name=button).click()
        assert waiting.value.suggested_filename == name
        waiting.value.save_as(tmp_path / name)
    written = (page_path.parent / REPORT_NAME).read_text()
    assert (tmp_path / REPORT_NAME).read_text() == written
    lines = (tmp_path / CSV_NAME).read_text().count("\n")
    assert lines == 1 + len(json.loads(written)["rows"])


def test_all_of_it_is_printed_without_being_scrolled_to(
    page_path: Path, open_page: OpenPage, tmp_path: Path
) -> None:
    page = open_page(page_path, height=300)
    assert page.locator("#plot-latency .point").count() == 0
    assert page.locator("#cloud [data-drawn]").count() == 0
    page.evaluate(
        "() => window.addEventListener('beforeprint', () => { window.printed = {"
        " points: ['accuracy', 'latency'].map("
        "   (name) => document.querySelectorAll(`#plot-${name} .point`).length),"
        " widths: ['accuracy', 'latency'].map("
        "   (name) => document.querySelector(`#plot-${name} .main-svg`).width.baseVal.value),"
        " still: document.querySelector('#cloud .still').src }; })"
    )
    page.pdf(path=tmp_path / "page.pdf", format="A4")
    page.wait_for_function("() => window.printed")
    printed = page.evaluate("() => window.printed")
    assert printed["points"][0] == 4
    assert printed["points"][1] > 4
    assert max(printed["widths"]) <= PAPER
    picture = decoded(printed["still"], np.zeros((100, 160, 3)))
    assert (np.ptp(picture, axis=2) > 60).mean() > 0.02  # the colours of the photo
    page.wait_for_function("() => !document.querySelector('.still')")
    until(lambda: page.locator("#plot-accuracy .main-svg").first.bounding_box()["width"] > PAPER)

    page.set_viewport_size({"width": PAPER, "height": 900})
    page.emulate_media(media="print")
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    clipped = page.evaluate(
        "() => [...document.querySelectorAll('table')]"
        ".filter((t) => t.getBoundingClientRect().right > innerWidth + 1).map((t) => t.id)"
    )
    assert clipped == []


def test_of_fp32_alone_the_page_is_quiet_too(open_page: OpenPage, tmp_path: Path) -> None:
    report = page_report(tmp_path, schemes=(), names=("one.png",), scenes=1)
    page = open_page(write_page(report, write_arrays(report, truth=False)), width=700, height=500)
    show_all(page)
    assert page.get_by_text("This is FP32 itself.").is_visible()
    assert page.locator("#plot-over").input_value() == "latency"


def test_of_many_calls_it_says_how_many_are_drawn(open_page: OpenPage, tmp_path: Path) -> None:
    from dataclasses import replace

    from made_reports import made_row

    report = page_report(tmp_path, schemes=("fp16",), names=("one.png",), scenes=1)
    many = made_row("onnxruntime/fp16", samples=[150.0 + 0.01 * i for i in range(100)])
    report = replace(report, rows=(report.rows[0], many))
    page = open_page(write_page(report, write_arrays(report, truth=False)))
    page.locator("#plot-latency").scroll_into_view_if_needed()
    page.wait_for_selector("#plot-latency .point", state="attached")
    assert "(50 of 100, evenly spread)" in page.locator("#plot-latency-said").inner_text()
    most = "(e) => Math.max(...e.data.map((t) => t.x.length))"
    assert page.locator("#plot-latency").evaluate(most) == 50


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

    def seen() -> bool:
        page.evaluate("1")  # lets what the browser said arrive
        return sum("Content Security Policy" in problem for problem in watch.problems()) >= 2

    until(seen)
    assert page.evaluate("window.owned") is None
    page.context.close()
