"""Calibration: the histograms hold what went into the layers, and nothing is left behind."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vggt_deploy.errors import (
    ArtifactError,
    CalibrationError,
    DeployError,
    ImageError,
    ModelError,
    UsageError,
)
from vggt_deploy.model.weights import load_model, open_weights
from vggt_deploy.quantize import pictures as pictures_module
from vggt_deploy.quantize.calibration import Pictures, collect_statistics, input_scales, observe
from vggt_deploy.quantize.histogram import threshold
from vggt_deploy.quantize.methods import Method, parse_method
from vggt_deploy.quantize.plan import layer_precision
from vggt_deploy.quantize.qparams import TORCH_DTYPE, input_scale
from vggt_deploy.quantize.statistics import Statistics, load_statistics, to_files

MODEL = "random:vggt-tiny"
HEIGHT, WIDTH = 42, 56
FC1 = "aggregator.frame_blocks.1.mlp.fc1"


def draw_pictures(folder: Path, count: int) -> Path:
    folder.mkdir(exist_ok=True)
    for i in range(count):
        generator = np.random.default_rng(i)
        coarse = generator.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(
            folder / f"img{i}.png"
        )
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_pictures(tmp_path_factory.mktemp("calibration") / "pictures", 5)


def collect(pictures: Path, folder: Path, **changes: Any) -> Statistics:
    request = {"height": HEIGHT, "width": WIDTH, "output_dir": folder} | changes
    return collect_statistics(request.pop("model", MODEL), pictures, **request)


def inputs_of(layer: str, pictures: Path) -> np.ndarray:
    """Everything that goes into the layer of the unfolded model, in one pass over all pictures."""
    from vggt_deploy.data.folders import find_images
    from vggt_deploy.data.images import load_images

    model = load_model(MODEL, heads=frozenset({"camera"}))
    seen: list[np.ndarray] = []
    model.get_submodule(layer).register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].numpy().reshape(-1))
    )
    batch = load_images(find_images(pictures).paths, width=WIDTH, height=HEIGHT)
    with torch.no_grad():
        model(torch.from_numpy(batch.pixels))
    return np.concatenate(seen)


@pytest.mark.parametrize(
    "layer",
    [
        "aggregator.patch_embed.blocks.0.mlp.fc2",
        "aggregator.global_blocks.3.attn.proj",
        "camera_head.trunk.1.mlp.fc1",
        "camera_head.embed_pose",
    ],
)
def test_the_histogram_is_of_what_goes_in(layer: str, pictures: Path, tmp_path: Path) -> None:
    """Four refinements of the camera included; folding changes no input of a Linear."""
    seen = collect(pictures, tmp_path / "s").layers[layer]
    found, values = seen.together, np.abs(inputs_of(layer, pictures))
    assert found.total == values.size
    assert found.absmax == pytest.approx(values.max(), rel=1e-4)
    exact = np.quantile(values, [0.5, 0.99])
    mine = [threshold(found, Method("percentile", p)) for p in (50, 99)]
    np.testing.assert_allclose(mine, exact, rtol=0.03)
    other = np.abs(inputs_of("aggregator.frame_blocks.0.attn.qkv", pictures))
    assert not np.allclose(mine, np.quantile(other, [0.5, 0.99]), rtol=0.03)


def counted(*statistics: Statistics) -> dict[int, int]:
    """Bin -> count of one layer, of all of them together."""
    total: Counter[int] = Counter()
    for one in statistics:
        found = one.layers[FC1].together
        total.update(dict(zip(found.bins.tolist(), found.counts.tolist(), strict=True)))
    return total


def test_a_folder_of_scenes_is_its_scenes_one_after_the_other(tmp_path: Path) -> None:
    scenes = tmp_path / "scenes"
    for name, count in (("a", 3), ("b", 2)):
        folder = scenes / name / "images" / "dslr_images_undistorted"
        folder.parent.mkdir(parents=True)
        draw_pictures(folder, count)
    together = collect(scenes, tmp_path / "s", frames_per_pass=3)
    apart = [collect(scenes / name, tmp_path / name, frames_per_pass=3) for name in ("a", "b")]
    assert list(together.images) == [
        *(f"a/images/dslr_images_undistorted/img{i}.png" for i in range(3)),
        *(f"b/images/dslr_images_undistorted/img{i}.png" for i in range(2)),
    ]
    assert counted(together) == counted(*apart)
    # The same five views in one pass see each other, and that shows.
    flat = draw_pictures(tmp_path / "flat", 3)
    for i in range(2):
        (flat / f"other{i}.png").write_bytes((flat / f"img{i}.png").read_bytes())
    mixed = collect(flat, tmp_path / "m", frames_per_pass=5)
    assert sum(counted(mixed).values()) == sum(counted(together).values())
    assert counted(mixed) != counted(together)
    few = collect(scenes, tmp_path / "t", max_images=1)
    assert len(few.images) == 2  # of each scene


def test_every_linear_is_observed_and_kept(pictures: Path, tmp_path: Path) -> None:
    from vggt_deploy.model.config import get_config
    from vggt_deploy.quantize.plan import layers_of

    made = collect(pictures, tmp_path / "s", max_images=2)
    heads = frozenset({"camera", "depth", "point"})
    linears = {x.name for x in layers_of(get_config("vggt-tiny"), heads) if x.kind == "linear"}
    assert set(made.layers) == linears
    assert all(h.total > 0 and h.absmax > 0 for h in made.layers.values())
    assert to_files(load_statistics(tmp_path / "s")) == to_files(made)
    assert made.model.spec == "random:vggt-tiny:0"
    assert (made.height, made.width, made.mode) == (HEIGHT, WIDTH, "crop")
    assert list(made.images) == ["img0.png", "img1.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s"]


def test_the_same_images_give_the_same_bytes(pictures: Path, tmp_path: Path) -> None:
    first = collect(pictures, tmp_path / "a", max_images=3)
    assert to_files(collect(pictures, tmp_path / "b", max_images=3)) == to_files(first)
    assert to_files(collect(pictures, tmp_path / "c", max_images=4)) != to_files(first)


def test_passes_add_up(pictures: Path, tmp_path: Path) -> None:
    """The encoder sees each frame alone, so its statistics know nothing of the passes."""
    whole = collect(pictures, tmp_path / "a", frames_per_pass=5)
    parts = collect(pictures, tmp_path / "b", frames_per_pass=2)
    encoder = "aggregator.patch_embed.blocks.0.attn.qkv"
    a, b = whole.layers[encoder].together, parts.layers[encoder].together
    assert a.total == b.total
    assert a.absmax == pytest.approx(b.absmax, rel=1e-5)
    # Sums of another order put a few values on the other side of an edge.
    both = np.zeros((2, 1 << 15))
    both[0, a.bins], both[1, b.bins] = a.counts, b.counts
    assert np.abs(both[0] - both[1]).sum() < 1e-3 * a.total
    mixed = "aggregator.global_blocks.3.mlp.fc1"
    assert whole.layers[mixed].absmax != pytest.approx(parts.layers[mixed].absmax, rel=1e-5)


@pytest.mark.parametrize("per_pass, sizes", [(8, [5]), (4, [2, 3]), (2, [2, 1, 2]), (1, [1] * 5)])
def test_memory_holds_one_pass(
    per_pass: int,
    sizes: list[int],
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Images are decoded when their pass comes, and let go before the next one is decoded."""
    passes: list[int] = []
    pixels: list[weakref.ref[np.ndarray]] = []
    real = pictures_module.load_images

    def watched(paths: Any, **options: Any) -> Any:
        assert all(held() is None for held in pixels), "the pixels of a former pass are held"
        batch = real(paths, **options)
        passes.append(len(batch.paths))
        pixels.append(weakref.ref(batch.pixels))
        return batch

    monkeypatch.setattr(pictures_module, "load_images", watched)
    collect(pictures, tmp_path / "s", frames_per_pass=per_pass)
    assert passes == sizes
    assert max(passes) <= per_pass


def test_progress_is_told_by_images(pictures: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    collect(pictures, tmp_path / "s", frames_per_pass=2, progress=lambda *x: told.append(x))
    assert told == [("calibrate", done, 5) for done in (0, 2, 3, 5)]


# -- what can be wrong ---------------------------------------------------------------------------


def test_unreadable_images(tmp_path: Path) -> None:
    folder = draw_pictures(tmp_path / "p", 4)
    (folder / "img1.png").write_bytes(b"not a picture")
    with pytest.raises(ImageError, match=r"img1\.png"):
        collect(folder, tmp_path / "s")
    assert not (tmp_path / "s").exists()
    made = collect(folder, tmp_path / "s", skip_bad_images=True, frames_per_pass=1)
    assert list(made.images) == ["img0.png", "img2.png", "img3.png"]
    assert [reason.partition(":")[0] for reason in made.skipped] == ["img1.png"]
    for path in folder.iterdir():
        path.write_bytes(b"not a picture")
    with pytest.raises(ImageError, match="no image can be used"):
        collect(folder, tmp_path / "t", skip_bad_images=True, frames_per_pass=2)
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    "changes, error, words",
    [
        ({"height": 50}, UsageError, "multiple of 14"),
        ({"frames_per_pass": 0}, UsageError, "frames_per_pass is 0"),
        ({"max_images": 0}, UsageError, "max_images is 0"),
        ({"mode": "stretch"}, UsageError, "stretch"),
        ({"model": "random:vggt-huge"}, UsageError, "unknown model config"),
        ({"model": "nothing.safetensors"}, ModelError, "no file or folder"),
    ],
)
def test_requests_that_make_no_sense(
    changes: dict[str, Any], error: type[DeployError], words: str, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        collect(pictures, tmp_path / "s", **changes)
    assert list(tmp_path.iterdir()) == []


def test_no_images_is_an_error_and_never_random_data(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "absent"):
        with pytest.raises(ImageError):
            collect(tmp_path / folder, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_folder_with_content_is_refused(pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    collect(pictures, folder, max_images=1)
    with pytest.raises(ArtifactError, match="not empty"):
        collect(pictures, folder, max_images=1)
    assert len(collect(pictures, folder, max_images=2, overwrite=True).images) == 2
    (folder / "manifest.json").write_text("{}")  # an artifact, which carries statistics too
    with pytest.raises(ArtifactError, match="is an exported artifact"):
        collect(pictures, folder, max_images=1, overwrite=True)
    assert len(load_statistics(folder).images) == 2
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="did not make it"):
        collect(pictures, mine, max_images=1, overwrite=True)
    assert (mine / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("at", [0, 2, 5])
def test_interrupted_leaves_nothing(at: int, pictures: Path, tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if done == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(pictures, tmp_path / "s", frames_per_pass=2, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


class Edited:
    """The random weights with some tensors changed."""

    def __init__(self, edits: dict[str, Callable[[torch.Tensor], torch.Tensor]]) -> None:
        self.config, self.inner = open_weights(MODEL)
        self.origin = self.inner.origin
        self.edits = edits

    def keys(self) -> tuple[str, ...]:
        return self.inner.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        return self.inner.shape(key)

    def load(self, key: str) -> torch.Tensor:
        tensor = self.inner.load(key)
        return self.edits[key](tensor) if key in self.edits else tensor


def observe_edited(pictures: Path, edits: dict[str, Any]) -> Statistics:
    source = Edited(edits)
    return observe(source.config, source, Pictures(pictures, HEIGHT, WIDTH, max_images=2))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_named(value: float, pictures: Path) -> None:
    key = "aggregator.frame_blocks.1.norm2.bias"
    with pytest.raises(CalibrationError, match=f"{FC1} holds NaN or infinity"):
        observe_edited(pictures, {key: lambda t: torch.full_like(t, value)})


def test_a_linear_that_only_sees_zeros_gets_scale_1(pictures: Path) -> None:
    norm = "aggregator.frame_blocks.1.norm2"
    found = observe_edited(
        pictures, {f"{norm}.weight": torch.zeros_like, f"{norm}.bias": torch.zeros_like}
    )
    assert found.layers[FC1].absmax == 0
    for name in ("absmax", "mse", "percentile"):
        for precision in ("fp32", "fp16", "bf16"):
            scales = input_scales(found, [FC1], parse_method(name), precision)  # type: ignore[arg-type]
            assert scales == {FC1: 1.0}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("factor", [1e-30, 1e-7, 1.0, 1e3])
def test_scales_are_normal_numbers_of_the_layers_type(
    precision: Any, factor: float, pictures: Path
) -> None:
    norm = "aggregator.frame_blocks.1.norm2"
    edits = {f"{norm}.{part}": lambda t: t * factor for part in ("weight", "bias")}
    found = observe_edited(pictures, edits)
    scales = input_scales(found, found.layers, Method("absmax"), precision)
    for name, scale in scales.items():
        dtype = TORCH_DTYPE[layer_precision(name, precision)]
        assert float(torch.tensor(scale, dtype=torch.float64).to(dtype)) == scale
        assert scale >= torch.finfo(dtype).tiny
    exact = found.layers[FC1].absmax / 127
    smallest = torch.finfo(TORCH_DTYPE[precision]).tiny
    assert scales[FC1] == pytest.approx(max(exact, smallest), rel=2**-8)
    assert scales["camera_head.embed_pose"] == pytest.approx(
        found.layers["camera_head.embed_pose"].absmax / 127, rel=1e-7
    )


def test_a_scale_that_fp16_cannot_hold_is_named(pictures: Path) -> None:
    key = "aggregator.frame_blocks.1.norm2.weight"
    found = observe_edited(pictures, {key: lambda t: t * 1e8})
    with pytest.raises(CalibrationError, match=f"input of {FC1}: a scale of .* does not fit"):
        input_scales(found, [FC1], Method("absmax"), "fp16")
    input_scales(found, [FC1], Method("absmax"), "bf16")


def test_a_layer_that_was_not_observed_is_named(pictures: Path) -> None:
    found = observe_edited(pictures, {})
    with pytest.raises(CalibrationError, match=r"know nothing of track_head\.x"):
        input_scales(found, ["track_head.x"], Method("mse"), "fp32")


def test_input_scale_by_hand() -> None:
    assert input_scale(254.0) == 2.0
    assert input_scale(0.0, "fp16") == 1.0
    assert input_scale(1e-6, "fp16") == 2.0**-14
    assert input_scale(1e-6) == pytest.approx(1e-6 / 127, rel=1e-7)
