"""`calibrate --select`: the encoder's features decide, and the record says what was done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from vggt_deploy.cli import app
from vggt_deploy.errors import CalibrationError, ImageError, UsageError
from vggt_deploy.model.weights import load_model, open_weights
from vggt_deploy.quantize import pictures as pictures_module
from vggt_deploy.quantize.calibration import collect_statistics
from vggt_deploy.quantize.pictures import Pictures, load_views, plan_passes
from vggt_deploy.quantize.statistics import Statistics, load_statistics, to_files

MODEL = "random:vggt-tiny"
HEIGHT, WIDTH = 42, 56


def draw(path: Path, place: int, view: int) -> None:
    """A picture of one of several places: views of a place differ by a little noise."""
    coarse = np.random.default_rng(place).integers(0, 256, (5, 6, 3)).astype(np.float64)
    coarse += np.random.default_rng([place, view]).normal(0, 4, coarse.shape)
    small = Image.fromarray(coarse.clip(0, 255).astype(np.uint8))
    small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(path)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four views of each of two places, and one of a third in the middle of the second."""
    folder = tmp_path_factory.mktemp("photographs")
    for i in range(8):
        draw(folder / f"img{i}.png", i // 4, i)
    draw(folder / "img5b.png", 7, 0)
    return folder


def collect(images: Path, folder: Path, **changes: Any) -> Statistics:
    request = {"height": HEIGHT, "width": WIDTH, "output_dir": folder, "frames_per_pass": 2}
    return collect_statistics(MODEL, images, **(request | changes))


def test_the_choice_is_made_run_and_recorded(photographs: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    made = collect(photographs, tmp_path / "s", select=2, progress=lambda *x: told.append(x))
    selection = made.selection
    assert selection is not None
    assert [x.image for x in selection.outliers] == ["img5b.png"]
    assert [len(x.images) for x in selection.sets] == [2, 2, 2, 2]
    # One set of each place, and nothing else was run.
    first, second = selection.chosen
    assert {int(name[3]) // 4 for name in first} == {0}
    assert {int(name[3]) // 4 for name in second} == {1}
    assert sorted(made.images) == sorted((*first, *second))
    assert [stage for stage, done, _ in told if done == 0] == ["select", "calibrate"]
    assert told[-1] == ("calibrate", 4, 4)
    again = load_statistics(tmp_path / "s")
    assert again.selection == selection
    assert to_files(again) == to_files(made)
    # The same pictures by hand give the same histograms; all of them give others.
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    for name in made.images:
        (chosen / name).write_bytes((photographs / name).read_bytes())
    by_hand = collect(chosen, tmp_path / "t")
    assert by_hand.selection is None
    name = "statistics.npz"
    assert to_files(by_hand)[name] == to_files(made)[name]
    assert to_files(collect(photographs, tmp_path / "u"))[name] != to_files(made)[name]


def test_features_are_the_mean_patch_tokens(photographs: Path) -> None:
    config, source = open_weights(MODEL)
    pictures = Pictures(photographs, HEIGHT, WIDTH, frames_per_pass=4)
    views = plan_passes(config, source, pictures).views[0]
    (features,), _ = pictures_module._features(
        config, source, [views], pictures, lambda *told: None
    )
    assert list(features) == list(views)
    model = load_model(MODEL, heads=frozenset({"camera"}))
    seen: list[torch.Tensor] = []
    model.aggregator.patch_embed.register_forward_hook(lambda *x: seen.append(x[2]))
    batch, _ = load_views(views, pictures)
    assert batch is not None
    with torch.no_grad():
        model(torch.from_numpy(batch.pixels))
    expected = seen[0].mean(1).numpy()
    np.testing.assert_allclose(np.stack(list(features.values())), expected, atol=1e-4)
    assert not np.allclose(expected[0], expected[-1], atol=1e-4)


def test_more_sets_than_there_are_leave_nothing(photographs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="5 view sets are to be chosen, and the pictures make 4"):
        collect(photographs, tmp_path / "s", select=5)
    with pytest.raises(UsageError, match="0 view sets"):
        collect(photographs, tmp_path / "s", select=0)
    assert list(tmp_path.iterdir()) == []


def test_unreadable_pictures_are_no_part_of_a_choice(photographs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    for name in ("img0.png", "img1.png", "img4.png"):
        (folder / name).write_bytes((photographs / name).read_bytes())
    (folder / "img2.png").write_bytes(b"not a picture")
    with pytest.raises(ImageError, match=r"img2\.png"):
        collect(folder, tmp_path / "s", select=1)
    made = collect(folder, tmp_path / "s", select=2, skip_bad_images=True)
    assert [reason.partition(":")[0] for reason in made.skipped] == ["img2.png"]
    assert made.selection is not None
    assert [n for x in made.selection.sets for n in x.images] == [
        "img0.png",
        "img1.png",
        "img4.png",
    ]
    for path in folder.iterdir():
        path.write_bytes(b"not a picture")
    with pytest.raises(ImageError, match="no image can be used"):
        collect(folder, tmp_path / "t", select=1, skip_bad_images=True)
    assert not (tmp_path / "t").exists()


def test_an_encoder_that_breaks_is_named(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pictures_module._encoder

    def broken(*given: Any) -> Any:
        encoder = real(*given)
        encoder.norm.bias = torch.nn.Parameter(torch.full_like(encoder.norm.bias, float("nan")))
        return encoder

    monkeypatch.setattr(pictures_module, "_encoder", broken)
    with pytest.raises(CalibrationError, match=r"NaN or infinity on img0\.png"):
        collect(photographs, tmp_path / "s", select=1)


def test_interrupted_while_choosing_leaves_nothing(photographs: Path, tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("select", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(photographs, tmp_path / "s", select=1, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_it_chose(photographs: Path, tmp_path: Path) -> None:
    arguments = f"calibrate --model {MODEL} --height {HEIGHT} --width {WIDTH} --frames-per-pass 2"
    done = CliRunner().invoke(
        app,
        [*arguments.split(), "--images", str(photographs), "-o", str(tmp_path / "s"),
         "--select", "2"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    assert "4 images of 42 x 56" in text
    assert "outlier, left out: img5b.png" in text
    assert "2 of 4 view sets chosen" in text
    refused = CliRunner().invoke(
        app, ["calibrate", "--images", str(photographs), "-o", str(tmp_path / "t"), "--select", "0"]
    )
    assert refused.exit_code == 2
