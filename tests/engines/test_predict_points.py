"""From outputs to cameras and points, and which points are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vggt_deploy.data.images import load_images
from vggt_deploy.engines import open_session, predict
from vggt_deploy.engines.points import PointLimits, select_points
from vggt_deploy.engines.predict import PointMap, derive
from vggt_deploy.errors import UsageError

MakeArtifact = Callable[..., Path]
S, H, W = 2, 3, 4
POSE = np.zeros((1, S, 9), dtype=np.float32)
POSE[..., 6] = 1
POSE[..., 7:] = 2 * np.arctan(0.5)  # focal length = side of the image
POSE[0, 1, :3] = (1, 2, 3)


def outputs(*names: str) -> dict[str, NDArray[np.float32]]:
    everything = {
        "pose_enc": POSE,
        "depth": np.full((1, S, H, W, 1), 2, np.float32),
        "depth_conf": np.full((1, S, H, W), 5, np.float32),
        "world_points": np.full((1, S, H, W, 3), 7, np.float32),
        "world_points_conf": np.full((1, S, H, W), 9, np.float32),
    }
    return {name: everything[name] for name in names}


def test_depth_and_pose_give_cameras_and_points() -> None:
    made = derive(outputs("pose_enc", "depth", "depth_conf"), H, W, 1.0)
    assert made.extrinsic is not None
    assert made.intrinsic is not None
    assert made.points is not None
    np.testing.assert_allclose(
        made.intrinsic[0], [[W, 0, W / 2], [0, H, H / 2], [0, 0, 1]], rtol=1e-6
    )
    np.testing.assert_allclose(made.extrinsic[1], [[1, 0, 0, 1], [0, 1, 0, 2], [0, 0, 1, 3]])
    # Pixel (u, v) = (3, 1) of frame 1, depth 2: camera ((3-2)*2/4, (1-1.5)*2/3, 2), minus t.
    expected = np.array([0.5 - 1, -1 / 3 - 2, 2 - 3])
    np.testing.assert_allclose(made.points.xyz[1, 1, 3], expected, rtol=1e-5)
    assert made.points.source == "depth"
    assert (made.points.confidence == 5).all()


def test_the_point_head_serves_where_depth_or_pose_is_missing() -> None:
    heads = ("world_points", "world_points_conf")
    for others in ((), ("pose_enc",), ("depth", "depth_conf")):
        points = derive(outputs(*heads, *others), H, W, 1.0).points
        assert points is not None
        assert points.source == "point head"
        assert (points.xyz == 7).all()
        assert (points.confidence == 9).all()
    both = derive(outputs(*heads, "pose_enc", "depth", "depth_conf"), H, W, 1.0).points
    assert both is not None
    assert both.source == "depth"


def test_nothing_is_made_up() -> None:
    only_depth = derive(outputs("depth", "depth_conf"), H, W, 1.0)
    assert (only_depth.extrinsic, only_depth.intrinsic, only_depth.points) == (None, None, None)
    only_pose = derive(outputs("pose_enc"), H, W, 1.0)
    assert only_pose.extrinsic is not None
    assert only_pose.points is None


def test_predict_runs_the_batch(
    make_artifact: MakeArtifact, tmp_path: Path, write_pictures: Callable[..., tuple[Path, ...]]
) -> None:
    paths = write_pictures(tmp_path / "images", 2, size=(64, 48))
    batch = load_images(paths, width=56, height=42)
    made = predict(open_session(make_artifact()), batch)
    np.testing.assert_allclose(
        made.outputs["depth"][0, ..., 0], 2 - batch.pixels.mean(1), rtol=1e-6
    )
    assert made.forward_ms > 0
    assert made.points is not None
    assert made.points.xyz.shape == (2, 42, 56, 3)


def point_map(confidence: NDArray[np.float32]) -> PointMap:
    count = confidence.size
    xyz = np.arange(count * 3, dtype=np.float32).reshape(*confidence.shape, 3)
    return PointMap(xyz, confidence, "depth")


def pixels(confidence: NDArray[np.float32]) -> NDArray[np.float32]:
    s, h, w = confidence.shape
    return np.random.default_rng(0).random((s, 3, h, w), dtype=np.float32)


def test_the_least_sure_points_are_dropped_and_colours_follow() -> None:
    confidence = np.arange(1, 25, dtype=np.float32).reshape(S, H, W)
    rgb = pixels(confidence)
    everywhere = np.ones((S, H, W), dtype=bool)
    cloud = select_points(point_map(confidence), rgb, everywhere, PointLimits(50))
    assert cloud.threshold == 12  # the 11.5th of 23 steps, lower
    assert len(cloud.xyz) == cloud.confident == 13
    np.testing.assert_array_equal(cloud.xyz[0], [33, 34, 35])  # point 11, confidence 12
    np.testing.assert_array_equal(cloud.rgb[0], rgb[0, :, 2, 3])
    np.testing.assert_array_equal(cloud.rgb[-1], rgb[1, :, 2, 3])
    all_of_them = select_points(point_map(confidence), rgb, everywhere, PointLimits(0))
    assert len(all_of_them.xyz) == 24


def test_equal_confidences_keep_everything() -> None:
    """A network that is equally sure everywhere must not lose points to `>`."""
    confidence = np.full((S, H, W), 2, dtype=np.float32)
    everywhere = np.ones((S, H, W), dtype=bool)
    cloud = select_points(point_map(confidence), pixels(confidence), everywhere, PointLimits(90))
    assert len(cloud.xyz) == 24


def test_padding_and_broken_points_are_no_points() -> None:
    confidence = np.arange(1, 25, dtype=np.float32).reshape(S, H, W)
    points = point_map(confidence)
    points.xyz[0, 0, 0] = np.nan
    points.xyz[0, 0, 1, 2] = np.inf
    points.confidence[0, 0, 2] = np.nan
    picture = np.ones((S, H, W), dtype=bool)
    picture[:, 2] = False
    cloud = select_points(points, pixels(confidence), picture, PointLimits(0))
    assert cloud.usable == len(cloud.xyz) == 16 - 3
    assert np.isfinite(cloud.xyz).all()
    nothing = select_points(points, pixels(confidence), ~np.ones_like(picture), PointLimits())
    assert len(nothing.xyz) == 0


@given(st.integers(1, 200), st.integers(1, 300), st.floats(0, 99.9), st.integers(0, 5))
def test_the_cap_takes_a_repeatable_subset(
    count: int, cap: int, percentile: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    confidence = rng.integers(1, 20, (1, 1, count)).astype(np.float32)
    picture = np.ones(confidence.shape, dtype=bool)
    arguments = (point_map(confidence), pixels(confidence), picture, PointLimits(percentile, cap))
    one, two = select_points(*arguments), select_points(*arguments)
    np.testing.assert_array_equal(one.xyz, two.xyz)
    assert len(one.xyz) == min(cap, one.confident)
    assert one.confident >= np.ceil(count * (1 - percentile / 100) - 1e-9)
    assert (np.diff(one.xyz[:, 0]) > 0).all()  # distinct, in order
    kept = one.xyz[:, 0].astype(int) // 3
    assert (confidence.ravel()[kept] >= one.threshold).all()


def test_the_subset_covers_the_picture() -> None:
    """A stride or a prefix would leave holes; the twin shows that this check sees one."""
    confidence = np.ones((1, 100, 100), dtype=np.float32)
    picture = np.ones((1, 100, 100), dtype=bool)
    cloud = select_points(point_map(confidence), pixels(confidence), picture, PointLimits(0, 1000))

    def fullest_share(index: NDArray[np.intp]) -> float:
        tenths = [np.bincount(i // 10, minlength=10).max() for i in (index // 100, index % 100)]
        return float(max(tenths) / len(index))

    assert fullest_share((cloud.xyz[:, 0] / 3).astype(np.intp)) < 0.15
    assert fullest_share(np.arange(1000)) > 0.9


@pytest.mark.parametrize("percentile, cap", [(100, 10), (-1, 10), (float("nan"), 10), (5, 0)])
def test_limits_without_a_meaning(percentile: float, cap: int) -> None:
    with pytest.raises(UsageError):
        PointLimits(percentile, cap)
