"""report.html: complete, of a size that can be sent, and inert whatever names it was given."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_pages import METRES, page_report, scene_truth, true_scene, write_arrays
from made_reports import failed_row, made_report, made_row

from vggt_deploy.compare.baseline import changes
from vggt_deploy.compare.measures import BuildMeasure
from vggt_deploy.compare.report import PAGE_NAME, REPORT_NAME, Recommendation
from vggt_deploy.compare.state import Folder
from vggt_deploy.compare.truth_points import Alignment
from vggt_deploy.errors import CompareError
from vggt_deploy.pages.encode import PictureStore
from vggt_deploy.records import ModelRecord
from vggt_deploy.report.csv_table import csv_text
from vggt_deploy.report.page import page_text, write_page
from vggt_deploy.report.page_maps import map_data, relative_error
from vggt_deploy.report.page_parts import engine_part, heat
from vggt_deploy.report.page_plots import plot_data
from vggt_deploy.report.page_points import into_network, scene_view
from vggt_deploy.report.page_tables import grid_table, lost_cell, variant_table
from vggt_deploy.report.text import Grid
from vggt_deploy.sensitivity.table import Entry, SensitivityTable

MOST_BYTES = 15_000_000


def data_of(page: str, name: str) -> Any:
    found = re.search(rf'id="data-{name}">(.*?)</script>', page, re.DOTALL)
    assert found is not None, name
    return json.loads(found[1])


def visible(page: str) -> str:
    """What stands between the tags, without scripts and styles."""
    text = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(
        re.sub(r"<wbr>|<[^>]*>", lambda m: "" if m[0] == "<wbr>" else " ", text).split()
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Folder, str]:
    """A report with truth, its folder, and its page."""
    report = page_report(tmp_path_factory.mktemp("made"))
    folder = write_arrays(report)
    return report, folder, page_text(report, folder)


# --- what stands in it


def test_every_variant_with_its_status_and_reason(made: Any) -> None:
    report, _, page = made
    text = visible(page)
    for row in report.rows:
        assert row.label in text
    assert "measure: ended with SIGSEGV" in text
    assert "To change it: look at the log" in text
    for item in report.recommendations:
        assert item.reason.capitalize() in text


def test_the_files_in_the_page_are_those_beside_it(made: Any) -> None:
    report, folder, page = made
    carried = data_of(page, "report-json")
    assert carried["name"] == REPORT_NAME
    assert base64.b64decode(carried["base64"]) == (folder.root / REPORT_NAME).read_bytes()
    assert base64.b64decode(data_of(page, "report-csv")["base64"]).decode() == csv_text(report)


def test_every_section_is_in_the_navigation_and_every_link_has_its_section(made: Any) -> None:
    _, _, page = made
    linked = re.findall(r'<li><a href="#([^"]+)"', page)
    sections = re.findall(r'<section id="([^"]+)"', page)
    assert linked == sections
    assert len(set(re.findall(r'\bid="([^"]+)"', page))) == len(re.findall(r'\bid="([^"]+)"', page))


def test_protocol_and_method_are_there(made: Any) -> None:
    report, _, page = made
    text = visible(page)
    assert text.count(report.protocol.frames[1:]) >= 4  # below each of three tables as well
    assert report.protocol.line[1:] in text
    assert report.environment.cpu in text


def test_without_truth_nothing_is_said_by_it(tmp_path: Path) -> None:
    rows = [made_row("torch/fp32"), made_row("onnxruntime/int8_pc_sym")]
    report = made_report(*rows, folder=tmp_path)
    folder = write_arrays(report, truth=False)
    page = page_text(report, folder)
    text = visible(page)
    assert '<section id="truth"' not in page
    assert "AUC@30" not in text
    assert "no true depth is known of this scene" in text
    assert 'data-tile="error"' not in page


@pytest.mark.parametrize("missing, said", [("depth", "Not shown: depth was not"), (None, "")])
def test_what_was_not_asked_for_is_said(tmp_path: Path, missing: str | None, said: str) -> None:
    report = page_report(tmp_path, outputs=["pose", "points"] if missing else ["depth"])
    folder = write_arrays(report)
    page = page_text(report, folder)
    assert said in visible(page)
    assert ('id="maps"' in page) == (missing is None)


def test_without_points_depth_is_unprojected_and_without_both_it_says_so(tmp_path: Path) -> None:
    report = page_report(tmp_path / "a", outputs=["pose", "depth"])
    folder = write_arrays(report, noise=0.0)
    assert "depth unprojected by the predicted cameras" in visible(page_text(report, folder))
    none = page_report(tmp_path / "b", outputs=["depth"])
    folder = write_arrays(none)
    assert "neither world_points nor depth with pose_enc" in visible(page_text(none, folder))


def test_changes_since_a_baseline(made: Any) -> None:
    report, folder, page = made
    assert '<section id="changes"' not in page
    slower = replace(
        report,
        rows=tuple(
            made_row(row.label, samples=[9.0 * t for t in row.measured.latency.samples_ms])
            if row.measured and row.scheme == "int4_g32"
            else row
            for row in report.rows
        ),
    )
    page = page_text(replace(slower, baseline=changes(report, slower)), folder)
    assert '<section id="changes"' in page
    assert "Against the report of 2025-01-01" in visible(page)


def table(entries: tuple[Entry, ...]) -> SensitivityTable:
    model = ModelRecord("m", "vggt-nano")
    return SensitivityTable(1, model, ("s",), "outputs", "block", 84, 112, "float", {}, entries)


def test_sensitivity_is_coloured_by_column_and_gaps_stay_gaps() -> None:
    entries = (
        Entry("a", ("a.0",), "int8", 0.1, {"abs_rel": 0.02}),
        Entry("b", ("b.0", "b.1"), "int8", 0.4, {"abs_rel": -0.01}),
        Entry("c", ("c.0",), "int8", 0.2, None),
    )
    made_heat = heat(table(entries))
    assert made_heat.columns == ("local error", "depth AbsRel")
    assert [[cell.percent for cell in row.cells] for row in made_heat.rows] == [
        [25, 100],
        [100, 0],
        [50, 0],
    ]
    assert made_heat.rows[2].cells[1].text == "-"
    assert made_heat.rows[2].cells[1].sort is None


def test_the_section_of_layers_is_there_where_it_was_measured(made: Any) -> None:
    report, folder, page = made
    assert '<section id="sensitivity"' not in page
    measured = page_text(report, folder, sensitivity=table((Entry("u", ("u",), "int8", 0.1),)))
    assert '<section id="sensitivity"' in measured


def test_the_page_is_written_whole_and_again(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    report, folder, page = made
    path = write_page(report, folder)
    assert path == folder.root / PAGE_NAME
    assert path.read_text(encoding="utf-8") == page

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space"):
            write_page(report, folder)
    assert path.read_text(encoding="utf-8") == page
    assert not list(folder.root.glob(".report*"))


def test_what_was_tidied_away_is_named(tmp_path: Path) -> None:
    report = page_report(tmp_path, schemes=("fp16",))
    folder = write_arrays(report)
    assert page_text(report, folder)
    for path in (folder.arrays(report.rows[1].variant), folder.images()):
        path.unlink()
        with pytest.raises(CompareError, match=path.name) as caught:
            page_text(report, folder)
        assert "--resume" in caught.value.fix


# --- numbers


def test_the_table_has_the_numbers_of_the_report(made: Any) -> None:
    report, _, _ = made
    shown = variant_table(report)
    titles = [column.title for column in shown.columns]
    cells = dict(zip(titles, shown.rows[2].cells, strict=True))
    row = report.rows[2]
    assert cells["On disk"].text == f"{row.disk_bytes / 1e6:.2f}"
    assert cells["Latency"].sort == row.measured.latency.median_ms
    assert cells["AUC@30"].text == f"{row.truth.auc_30:.2f}"
    assert cells["AUC@30 lost"].sort == row.truth_loss.auc_30.mean
    assert cells["Status"].text == "done"
    failed = dict(zip(titles, shown.rows[-1].cells, strict=True))
    assert failed["Latency"].text == "-"
    assert failed["Latency"].sort is None
    assert failed["Status"].badge == "bad"


def test_a_column_of_ratios_sorts_by_its_numbers_and_one_of_text_is_text() -> None:
    header = ("variant", "change", "proof")
    rows = (("a", "x 10.000", "int8 5 %"), ("b", "x 2.000", "fp16"), ("c", "-", "-"))
    shown = grid_table("g", "G", Grid(header, (*rows, ("d", "-0.50", "9"))), words=("proof",))
    assert [row.cells[1].sort for row in shown.rows] == [10.0, 2.0, None, -0.5]
    assert [row.cells[2].sort for row in shown.rows] == ["int8 5 %", "fp16", "-", "9"]
    assert [column.number for column in shown.columns] == [False, True, False]


def test_engines_have_units_and_their_proof_is_text(made: Any) -> None:
    report, _, _ = made
    build = BuildMeasure(
        seconds=12.0, builder_seconds=10.0, peak_rss_bytes=9_000_000_000, runtime_version="10",
        plan_bytes=7_000_000, bytes_total=7_100_000, weights_bytes=6_000_000,
        packed_bytes=6_500_000,
        shares={"int8": 1.0}, attentions=72, attentions_fused=72, attentions_half=72,
        half_unfused=0, notes=(),
    )  # fmt: skip
    rows = (*report.rows[:-1], replace(report.rows[-1], build=build))
    part = engine_part(replace(report, rows=rows))
    assert part is not None
    columns = {column.title: column.number for column in part.tables[0].columns}
    assert {"Weights MB", "Packed MB", "Build peak MB of host"} <= set(columns)
    assert columns["Proof"] is False
    assert all(columns[name] for name in columns if name not in ("Variant", "Proof"))


def test_machines_are_named_where_there_are_several(made: Any) -> None:
    report, _, _ = made
    titles = [column.title for column in variant_table(report).columns]
    assert "Machine" not in titles
    rows = (report.rows[0], replace(report.rows[1], machine="Another CPU"), *report.rows[2:])
    shown = variant_table(replace(report, rows=rows))
    titles = [column.title for column in shown.columns]
    cells = [dict(zip(titles, row.cells, strict=True))["Machine"].text for row in shown.rows]
    assert cells[:2] == [report.rows[0].machine, "Another CPU"]
    assert cells[-1] == "-"


def test_a_loss_is_strong_where_its_interval_leaves_out_zero() -> None:
    from vggt_deploy.compare.paired import Difference

    assert lost_cell(Difference(5, 1.0, 0.2, 2.0), "auc_30").strong
    assert not lost_cell(Difference(5, 1.0, -0.2, 2.0), "auc_30").strong
    assert lost_cell(Difference(5, -1.0, -2.0, -0.1), "auc_30").strong
    assert not lost_cell(Difference(5, 1.0, 0.0, 2.0), "auc_30").strong
    assert lost_cell(Difference(1, 1.0, None, None), "auc_30").small == "one scene"
    assert lost_cell(None, "auc_30").sort is None
    rounding = lost_cell(Difference(5, 0.0001, 0.00008, 0.0002), "auc_30")
    assert (rounding.text, rounding.small, rounding.strong) == ("0.00", "0.00 to 0.00", False)
    assert lost_cell(Difference(5, 0.0001, 0.00008, 0.0002), "abs_rel").strong


def test_the_plots_have_the_numbers_of_the_report(made: Any) -> None:
    report, _, page = made
    data = plot_data(report)
    data = json.loads(json.dumps(data))
    assert data == data_of(page, "plots")
    one = data["variants"][1]
    row = report.rows[1]
    assert one["disk_mb"] == row.disk_bytes / 1e6
    assert one["latency"]["samples_ms"] == list(row.measured.latency.samples_ms)
    loss = row.truth_loss.auc_30
    assert one["measures"]["auc_30_lost"] == [loss.mean, loss.low, loss.high]
    assert data["variants"][-1]["latency"] is None
    assert data["first"] == report.recommendations[0].label


@pytest.mark.parametrize(
    "advised, first",
    [
        ("onnxruntime/int4_g128", "onnxruntime/int4_g128"),
        ("onnxruntime/fp32", "onnxruntime/bf16"),  # the smallest
        (None, "onnxruntime/bf16"),
    ],
)
def test_a_quantized_variant_is_shown_first(made: Any, advised: str | None, first: str) -> None:
    report, _, _ = made
    like_fp32 = made_row("onnxruntime/fp32", disk_bytes=1000)
    edge = Recommendation("edge", "onnxruntime/mixed", "small")
    changed = replace(
        report,
        rows=(report.rows[0], like_fp32, *report.rows[1:]),
        recommendations=(edge, Recommendation("production", advised, "it was measured")),
    )
    assert plot_data(changed)["first"] == first
    alone = replace(changed, rows=changed.rows[:2])
    assert plot_data(alone)["first"] is None


def test_error_by_the_truth() -> None:
    true = np.array([[2.0, 4.0, np.inf, 1.0]])
    known = np.isfinite(true)
    depth = np.array([[1.1, 2.0, 5.0, np.nan]])
    error = relative_error(depth, true, known, 2.0)
    np.testing.assert_allclose(error, [[0.1, 0.0, np.nan, np.inf]], atol=1e-12)
    assert relative_error(depth, true, known, 1.0)[0, 0] == pytest.approx(0.45)


def test_a_broken_depth_counts_in_the_median_as_the_metrics_count_it(tmp_path: Path) -> None:
    report = page_report(tmp_path, schemes=("int8_pc_sym",))
    folder = write_arrays(report)
    path = folder.arrays(report.rows[1].variant)
    arrays = dict(np.load(path))
    arrays["depth"][0, 0, 4:30] = np.inf  # 26 of 38 rows with truth
    arrays["depth"][0, 1, 4:10] = np.nan
    np.savez(path, **arrays)
    maps = data_of(page_text(report, folder), "maps")["variants"]
    broken, some, whole = maps["onnxruntime/int8_pc_sym"]
    assert broken["median_error"] == 100.0
    assert (broken["broken"], broken["known"]) == (26 * 56, 38 * 56)
    assert (some["broken"], some["known"]) == (6 * 56, 38 * 56)
    assert 0.0 < some["median_error"] < 5.0
    # The median over all pixels, as it is after the broken ones are set to 100 %.
    true = METRES * true_scene(3, 42, 56)["depth"][0, 1, 4:, :, 0]
    depth = METRES * np.nan_to_num(arrays["depth"][0, 1, 4:, :, 0].astype(np.float64))
    expected = 100.0 * float(np.median(np.abs(depth - true) / true))
    assert some["median_error"] == pytest.approx(expected, rel=1e-5)
    assert whole["broken"] == 0


def test_a_row_without_true_depth_alone_goes_without_its_error(made: Any) -> None:
    report, folder, _ = made
    lacking = report.rows[2]
    scenes = tuple(replace(s, truth=replace(s.truth, depth=None)) for s in lacking.scenes)
    rows = [*report.rows]
    rows[2] = replace(lacking, scenes=scenes)
    page = page_text(replace(report, rows=tuple(rows)), folder)
    maps = data_of(page, "maps")["variants"]
    assert [label for label, of in maps.items() if "error" not in of[0]] == [lacking.label]
    assert f"No error by the truth was measured of: {lacking.label}." in visible(page)
    rows = [replace(report.rows[0], scenes=scenes), *report.rows[1:]]
    page = page_text(replace(report, rows=tuple(rows)), folder)
    assert not any("error" in of[0] for of in data_of(page, "maps")["variants"].values())
    assert "too little true depth to measure torch/fp32 by" in visible(page)


def test_the_ends_of_the_colours_are_those_of_the_maps(made: Any) -> None:
    _, _, page = made
    shown = data_of(page, "maps")["pictures"]
    depth = true_scene(3, 42, 56)["depth"][0, ..., 0]
    for i, picture in enumerate(shown):
        low, high = np.percentile(depth[i].astype(np.float64), [2.0, 98.0])
        assert (picture["depth"]["low"], picture["depth"]["high"]) == (f"{low:.3g}", f"{high:.3g}")
        assert float(picture["difference"]["low"]) == -float(picture["difference"]["high"]) < 0
        assert float(picture["error"]["low"]) == 0.0 < float(picture["error"]["high"])


def test_maps_that_are_equal_are_kept_once(made: Any) -> None:
    report, folder, _ = made
    images = np.load(folder.images())
    store = PictureStore()
    shown = map_data(report, folder, images, None, store)
    assert shown.data is not None
    same = PictureStore()
    twin = replace(report, rows=(*report.rows, replace(report.rows[1], machine="x")))
    again = map_data(twin, folder, images, None, same)
    assert again.data is not None
    assert same.uris == store.uris
    assert len(store.uris) > len(report.pictures)


def test_the_truth_stands_where_a_perfect_network_sees_it(tmp_path: Path) -> None:
    report = page_report(tmp_path, schemes=("fp16",))
    folder = write_arrays(report, noise=0.0)
    from vggt_deploy.data.ground_truth import read_truth

    view = scene_view(report, folder, np.load(folder.images()), read_truth(folder.truth()))
    assert view.packed is not None
    clouds = {cloud["name"]: cloud for cloud in view.packed["clouds"]}
    assert set(clouds) == {"torch/fp32", "onnxruntime/fp16", "truth"}
    raw = {
        name: np.frombuffer(base64.b64decode(cloud["points"]), "<u2").reshape(-1, 3).astype(int)
        for name, cloud in clouds.items()
    }
    both = (raw["truth"][:, 0] != 65535) & (raw["torch/fp32"][:, 0] != 65535)
    assert both.mean() > 0.8
    off = (raw["truth"] - raw["torch/fp32"])[both] * np.asarray(view.packed["step"])
    # The truth is unprojected through pixel centres, the network's points are not: half a pixel.
    assert np.abs(off).max() < 3.3 / 56
    camera, true = clouds["torch/fp32"]["cameras"][2], clouds["truth"]["cameras"][2]
    np.testing.assert_allclose(true["centre"], camera["centre"], atol=1e-6)
    np.testing.assert_allclose(true["corners"], camera["corners"], atol=1e-6)


def test_the_similarity_is_undone_and_its_transpose_is_not_it() -> None:
    rng = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    rotation *= np.sign(np.linalg.det(rotation))
    scale, shift = METRES, np.array([1.0, -2.0, 3.0])
    ours = rng.normal(size=(10, 3))
    metres = scale * ours @ rotation.T + shift
    camera = np.concatenate([np.linalg.qr(rng.normal(size=(3, 3)))[0], rng.normal(size=(3, 1))], 1)
    alignment = Alignment(scale, tuple(rotation.ravel()), tuple(shift), 0.0)
    points, extrinsic = into_network(metres, camera[None], alignment)
    np.testing.assert_allclose(points, ours, atol=1e-12)
    # Both see the same point in the same direction, and a unit is `scale` metres.
    seen = metres @ camera[:, :3].T + camera[:, 3]
    np.testing.assert_allclose(
        scale * (ours @ extrinsic[0, :, :3].T + extrinsic[0, :, 3]), seen, atol=1e-12
    )
    wrong = Alignment(scale, tuple(rotation.T.ravel()), tuple(shift), 0.0)
    assert not np.allclose(into_network(metres, camera[None], wrong)[0], ours)


def test_values_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    report = page_report(tmp_path, schemes=("int4_g128",))
    folder = write_arrays(report)
    path = folder.arrays(report.rows[1].variant)
    arrays = dict(np.load(path))
    arrays["depth"][0, 0, 5, :7] = np.nan
    arrays["world_points"][0, 1] = np.inf
    np.savez(path, **arrays)
    page = page_text(report, folder)
    assert data_of(page, "maps")["variants"]["onnxruntime/int4_g128"][0]["not_finite"] == 7
    cloud = data_of(page, "scene-points")["clouds"][1]
    assert cloud["not_finite"] > 0
    assert (
        cloud["shown"] + cloud["not_finite"] + cloud["outside"]
        == data_of(page, "scene-points")["count"]
    )


# --- size


def test_five_pictures_and_eight_variants_are_small_enough(tmp_path: Path) -> None:
    names = tuple(f"DSC_{i:04d}.JPG" for i in range(5))
    report = page_report(tmp_path, names=names, height=350, width=518)
    folder = write_arrays(report, noise=0.05)
    page = page_text(report, folder)
    assert len(report.rows) == 9
    assert len(page.encode()) < MOST_BYTES
    shown = data_of(page, "maps")
    assert all(len(maps) == 5 for maps in shown["variants"].values())
    assert len(shown["variants"]) == 8
    assert len(data_of(page, "scene-points")["clouds"]) == 9


def test_of_forty_variants_the_maps_and_clouds_are_smaller(tmp_path: Path) -> None:
    names = tuple(f"{i}.png" for i in range(4))
    report = page_report(tmp_path, names=names, height=350, width=518, schemes=("int8_pc_sym",))
    folder = write_arrays(report, noise=0.03)
    row = report.rows[1]
    rows = [*report.rows[:2]]
    for i in range(38):
        rows.append(replace(row, treatment=f"t{i}"))
        folder.arrays(rows[-1].variant).symlink_to(folder.arrays(row.variant))
    page = page_text(replace(report, rows=tuple(rows)), folder)
    assert len(page.encode()) < MOST_BYTES
    assert "The maps are drawn at" in visible(page)
    assert data_of(page, "scene-points")["count"] == 6500


# --- hostile names

HOSTILE = "</script><img src=x onerror=alert(1)>'\"&.png"


def test_hostile_names_stay_names(tmp_path: Path) -> None:
    def page_with(text: str, folder: Path) -> str:
        report = page_report(
            folder,
            names=(text, "b.png"),
            schemes=("int8_pc_sym",),
            failed=(failed_row("torch/int4_g128", message=text),),
        )
        arrays = write_arrays(report)
        row = replace(report.rows[1], support=text)
        row = replace(row, scenes=tuple(replace(s, name=text) for s in row.scenes))
        scenes = [{**scene, "name": text} for scene in report.question["scenes"]]
        question = {**report.question, "scenes": scenes}
        question["model"] = {**question["model"], "spec": text}
        report = replace(
            report,
            rows=(report.rows[0], row, *report.rows[2:]),
            question=question,
            notes=(text,),
            recommendations=(Recommendation("production", text, text),),
            command=("vggt-deploy", text),
        )
        return page_text(report, arrays)

    harmless, hostile = page_with("word", tmp_path / "a"), page_with(HOSTILE, tmp_path / "b")
    for pattern in (
        r"<script\b",
        r"<img\b",
        r"<section\b",
        r"\bonerror=",
        r"</script>",
        r"</style>",
    ):
        assert len(re.findall(pattern, hostile)) == len(re.findall(pattern, harmless)) + (
            # Said as text it is there, but with its brackets escaped.
            hostile.count("&gt;&lt;img src=x onerror=") if pattern == r"\bonerror=" else 0
        ) + (hostile.count("\\u003cimg src=x onerror=") if pattern == r"\bonerror=" else 0)
    assert HOSTILE not in hostile
    assert "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;" in hostile


def test_true_scene_is_what_its_name_says() -> None:
    arrays = true_scene(2, 14, 28)
    assert arrays["depth"].shape == (1, 2, 14, 28, 1)
    assert scene_truth(50.0, 0.1).depth is not None
