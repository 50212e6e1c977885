"""Metrics against the truth: known errors give known numbers, wrong conventions give bad ones."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vggt_deploy.compare import truth_poses
from vggt_deploy.compare.truth import (
    CloudScore,
    CloudTruth,
    DepthTruth,
    PointTruth,
    PoseTruth,
    ThresholdScore,
    TruthMean,
    TruthMetrics,
    auc,
    mean_metrics,
    pair_errors_deg,
    true_points,
    truth_metrics,
    umeyama,
)
from vggt_deploy.errors import CompareError
from vggt_deploy.geometry import camera_to_pose_encoding

Array = NDArray[np.float64]
HEIGHT, WIDTH = 14, 28


def rotation(axis: str, degrees: float) -> Array:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = c
    matrix[i, j], matrix[j, i] = -s, s
    return matrix


def camera(r: Array, centre: tuple[float, float, float]) -> Array:
    """World-to-camera [3, 4] of a camera at `centre`."""
    return np.concatenate([r, -r @ np.array(centre)[:, None]], axis=1)


@dataclass(frozen=True)
class Known:
    """A truth made by hand."""

    extrinsic: Array
    intrinsic: Array
    depth: NDArray[np.float32] | None
    rays: Array | None = None


EXTRINSIC = np.stack(
    [
        camera(rotation("z", 10.0), (0.0, 0.0, 0.0)),
        camera(rotation("y", 20.0), (1.0, 0.0, 0.0)),
        camera(rotation("x", -15.0) @ rotation("y", 8.0), (0.5, 0.7, -0.2)),
    ]
)
INTRINSIC = np.tile(np.array([[25.0, 0.0, 14.2], [0.0, 24.0, 6.9], [0.0, 0.0, 1.0]]), (3, 1, 1))


@pytest.fixture
def truth() -> Known:
    depth = np.random.default_rng(1).uniform(2.0, 5.0, (3, HEIGHT, WIDTH)).astype(np.float32)
    depth[:, 0, :3] = np.inf
    return Known(EXTRINSIC, INTRINSIC, depth)


def perfect(truth: Known, *, scale: float = 0.3) -> dict[str, NDArray[np.floating]]:
    """What a perfect network answers: in the first camera's frame, in another unit."""
    first = truth.extrinsic[0]
    r, t = truth.extrinsic[:, :, :3] @ first[:, :3].T, truth.extrinsic[:, :, 3]
    moved = np.concatenate([r, scale * (t - np.einsum("sij,j->si", r, first[:, 3]))[..., None]], -1)
    assert truth.depth is not None
    points = true_points(truth) @ first[:, :3].T + first[:, 3]
    depth = np.where(np.isfinite(truth.depth), truth.depth, 1.0)
    return {
        "pose_enc": camera_to_pose_encoding(moved, truth.intrinsic, HEIGHT, WIDTH)[None],
        "depth": scale * depth[None, ..., None],
        "world_points": scale * np.nan_to_num(points, nan=9.0)[None],
    }


def posed(truth: Known, extrinsic: Array) -> PoseTruth:
    """The pose metrics of a network that answers these cameras."""
    pose = camera_to_pose_encoding(extrinsic, truth.intrinsic, HEIGHT, WIDTH)[None]
    found = truth_metrics({"pose_enc": pose}, truth).pose
    assert found is not None
    return found


# --- AUC


def test_auc_by_hand() -> None:
    """Errors 0, 1, 6 up to 5: (1 + 0.8 + 0) / 3; the curve itself gives the same area."""
    errors = np.array([6.0, 0.0, 1.0])
    assert auc(errors, 5.0) == pytest.approx(60.0)
    angles = (np.arange(50_000) + 0.5) / 10_000.0
    recall = [np.mean(errors <= angle) for angle in angles]
    assert auc(errors, 5.0) == pytest.approx(100.0 * np.mean(recall), abs=1e-2)


def test_upstreams_bins_give_more() -> None:
    """The twin: the histogram of one-degree bins counts a whole bin from its lower end."""
    errors = np.array([0.5, 2.5])
    histogram, _ = np.histogram(errors, bins=np.arange(4))
    binned = 100.0 * np.mean(np.cumsum(histogram / len(errors)))
    assert auc(errors, 3.0) == pytest.approx(50.0)
    assert binned == pytest.approx(200.0 / 3.0)


def test_auc_of_what_is_not_finite_is_zero() -> None:
    assert auc(np.array([np.nan, np.inf]), 30.0) == 0.0
    assert auc(np.array([np.nan, 0.0]), 30.0) == 50.0


@pytest.mark.parametrize("errors, threshold", [([], 5.0), ([1.0], 0.0), ([1.0], math.nan)])
def test_auc_of_nothing(errors: list[float], threshold: float) -> None:
    with pytest.raises(ValueError, match="no AUC"):
        auc(np.asarray(errors), threshold)


# --- poses


def test_a_perfect_network_has_no_error(truth: Known) -> None:
    found = truth_metrics(perfect(truth), truth)
    assert found.notes == {}
    assert found.pose is not None
    assert found.depth is not None
    assert found.points is not None
    assert (found.pose.pairs, found.pose.pairs_without_baseline) == (3, 0)
    assert found.pose.auc_3 == pytest.approx(100.0, abs=1e-4)
    assert found.depth.pixels == found.points.points == 3 * HEIGHT * WIDTH - 9
    assert found.depth.abs_rel < 1e-6
    assert found.depth.scale == pytest.approx(1 / 0.3)
    assert found.depth.delta_125 == 1.0
    assert found.points.median_relative < 1e-6


def test_one_turned_camera(truth: Known) -> None:
    """Camera 2 turned about its own centre by 6 degrees: its two pairs are off by exactly 6."""
    turned = EXTRINSIC.copy()
    turned[2] = rotation("z", 6.0) @ EXTRINSIC[2]
    # R_ij and, seen from camera 2, the baselines turn by 6; baseline 0-1 stays.
    errors = pair_errors_deg(turned, EXTRINSIC)
    assert errors[0] == pytest.approx(0.0, abs=1e-5)
    assert errors[1:] == pytest.approx([6.0, 6.0], abs=1e-6)
    found = posed(truth, turned)
    assert found.auc_30 == pytest.approx(100.0 * (1.0 + 2 * 0.8) / 3)
    assert found.auc_5 == pytest.approx(100.0 / 3, abs=1e-3)
    assert found.rotation_median_deg == pytest.approx(6.0)


def test_one_moved_camera() -> None:
    """Two cameras, the second moved from (1, 0, 0) to (1, 1, 0): 45 degrees, no rotation error."""
    true = np.stack([camera(np.eye(3), (0, 0, 0)), camera(rotation("y", 9.0), (1, 0, 0))])
    moved = np.stack([camera(np.eye(3), (0, 0, 0)), camera(rotation("y", 9.0), (1, 1, 0))])
    assert pair_errors_deg(moved, true) == pytest.approx([45.0])


def test_a_flipped_baseline_is_180_degrees() -> None:
    true = np.stack([camera(np.eye(3), (0, 0, 0)), camera(np.eye(3), (1, 0, 0))])
    flipped = np.stack([camera(np.eye(3), (0, 0, 0)), camera(np.eye(3), (-1, 0, 0))])
    assert pair_errors_deg(flipped, true) == pytest.approx([180.0])


def test_camera_to_world_by_mistake_shows(truth: Known) -> None:
    inverted = EXTRINSIC.copy()
    inverted[:, :, :3] = np.swapaxes(EXTRINSIC[:, :, :3], 1, 2)
    inverted[:, :, 3] = -np.einsum("sij,sj->si", inverted[:, :, :3], EXTRINSIC[:, :, 3])
    assert posed(truth, EXTRINSIC).auc_3 > 99.9
    assert posed(truth, inverted).auc_3 < 50.0


def test_another_order_of_the_quaternion_shows(truth: Known) -> None:
    """The order w x y z for x y z w, as COLMAP writes it."""
    outputs = perfect(truth)
    outputs["pose_enc"] = outputs["pose_enc"].copy()
    outputs["pose_enc"][..., 3:7] = np.roll(outputs["pose_enc"][..., 3:7], 1, axis=-1)
    found = truth_metrics(outputs, truth).pose
    assert found is not None
    assert found.auc_30 < 50.0


@given(st.floats(-180, 180), st.floats(0.1, 10.0), st.tuples(*[st.floats(-5, 5)] * 3))
def test_the_world_of_the_prediction_does_not_matter(
    turn: float, scale: float, shift: tuple[float, float, float]
) -> None:
    """X' = s R X + t of all cameras together changes nothing."""
    moved = EXTRINSIC.copy()
    moved[:, :, :3] = EXTRINSIC[:, :, :3] @ rotation("y", turn).T
    moved[:, :, 3] = scale * EXTRINSIC[:, :, 3] - np.einsum("sij,j->si", moved[:, :, :3], shift)
    assert pair_errors_deg(moved, EXTRINSIC).max() < 1e-4


def test_a_pair_without_a_true_baseline_counts_its_rotation() -> None:
    true = np.stack([camera(np.eye(3), (0, 0, 0)), camera(np.eye(3), (0, 0, 0)), EXTRINSIC[1]])
    predicted = true.copy()
    predicted[1] = camera(rotation("z", 2.0), (0.4, 0.6, 0.0))
    errors = pair_errors_deg(predicted, true)
    assert errors[0] == pytest.approx(2.0)  # not the direction of a baseline that is none
    known = Known(true, INTRINSIC, None)
    found = posed(known, predicted)
    assert found.pairs_without_baseline == 1
    # RTA is of the two pairs with a baseline, of which the moved camera spoils one; RRA is of all.
    assert (found.rta_5, found.rra_5) == (50.0, 100.0)


@pytest.mark.parametrize("part, without", [(0.9e-3, 1), (1.1e-3, 0)])
def test_what_is_a_baseline_is_a_thousandth_of_the_longest(part: float, without: int) -> None:
    """Two cameras side by side, a third 50 m away; the predicted second one walked round."""
    near = 50.0 * part
    true = np.stack(
        [
            camera(np.eye(3), (0, 0, 0)),
            camera(np.eye(3), (near, 0, 0)),
            camera(np.eye(3), (0, 0, 50.0)),
        ]
    )
    predicted = true.copy()
    predicted[1] = camera(np.eye(3), (0, near, 0))
    errors = pair_errors_deg(predicted, true)
    assert errors[0] == pytest.approx(0.0 if without else 90.0, abs=1e-6)
    found = posed(Known(true, INTRINSIC, None), predicted)
    assert found.pairs_without_baseline == without
    assert found.rta_30 == pytest.approx(100.0 if without else 200.0 / 3)


def test_what_is_off_by_the_threshold_itself_is_not_below_it(
    truth: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rotations of 5, 15, 30 and a little less than each; directions the other way round."""
    at = [5.0, 15.0, 30.0]
    below = [math.nextafter(angle, 0.0) for angle in at]

    def angles(*_: Array) -> tuple[Array, Array]:
        return np.array(at + below), np.array(below[:2] + at)

    monkeypatch.setattr(truth_poses, "_pair_angles", lambda *_: (angles()[0], np.full(6, np.nan)))
    found = posed(truth, EXTRINSIC)
    assert (found.rra_5, found.rra_15, found.rra_30) == pytest.approx((100 / 6, 50.0, 500 / 6))
    monkeypatch.setattr(truth_poses, "_pair_angles", lambda *_: (np.zeros(5), angles()[1]))
    found = posed(truth, EXTRINSIC)
    assert (found.rta_5, found.rta_15, found.rta_30) == pytest.approx((20.0, 60.0, 80.0))


def test_a_baseline_that_vanished_is_180_degrees(truth: Known) -> None:
    collapsed = EXTRINSIC.copy()
    collapsed[:, :, 3] = 0.0
    found = posed(truth, collapsed)
    assert found.direction_median_deg == 180.0
    assert found.rotation_median_deg < 1e-6
    assert found.auc_30 == 0.0
    assert (found.rra_5, found.rta_30) == (100.0, 0.0)


def test_cameras_that_all_stand_still(truth: Known) -> None:
    still = replace(truth, extrinsic=EXTRINSIC.copy(), depth=None)
    still.extrinsic[:, :, 3] = 0.0
    found = posed(still, EXTRINSIC)
    assert found.direction_median_deg is None
    assert (found.rta_5, found.rta_15, found.rta_30) == (None, None, None)
    assert found.pairs_without_baseline == 3
    assert found.auc_3 > 99.9


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_pose_that_is_not_finite_fails_its_pairs(truth: Known, value: float) -> None:
    outputs = perfect(truth)
    outputs["pose_enc"][0, 1, 4] = value
    found = truth_metrics(outputs, truth)
    assert found.pose is not None
    assert found.pose.pairs == 3
    assert found.pose.auc_30 == pytest.approx(100.0 / 3, abs=1e-3)
    assert found.pose.rotation_median_deg == 180.0
    assert found.pose.rra_30 == pytest.approx(100.0 / 3)
    assert found.pose.rta_30 == pytest.approx(100.0 / 3)
    assert found.notes["pose"].startswith("1 of 3 poses")


def test_a_quaternion_of_zeros_is_no_rotation(truth: Known) -> None:
    outputs = perfect(truth)
    outputs["pose_enc"][0, :, 3:7] = 0.0
    found = truth_metrics(outputs, truth)
    assert found.pose is not None
    assert (found.pose.auc_30, found.pose.rotation_median_deg) == (0.0, 180.0)


def test_one_view_has_no_pair(truth: Known) -> None:
    outputs = {"pose_enc": perfect(truth)["pose_enc"][:, :1]}
    found = truth_metrics(outputs, Known(EXTRINSIC[:1], INTRINSIC[:1], None))
    assert found.pose is None
    assert found.notes["pose"] == "one view has no pair"


def test_other_views_than_the_truths_are_refused(truth: Known) -> None:
    outputs = perfect(truth)
    with pytest.raises(CompareError, match="cameras are"):
        truth_metrics({"pose_enc": outputs["pose_enc"][:, :2]}, truth)
    with pytest.raises(CompareError, match=r"depth output is \(3, 13, 28\)"):
        truth_metrics({"depth": outputs["depth"][:, :, 1:]}, truth)
    with pytest.raises(CompareError, match="points output"):
        truth_metrics({"world_points": outputs["world_points"][:, :, :, 1:]}, truth)


# --- depth


def depth_of(predicted: list[float], true: list[float]) -> tuple[DepthTruth, dict[str, str]]:
    known = Known(EXTRINSIC[:1], INTRINSIC[:1], np.array(true, np.float32).reshape(1, 1, -1))
    outputs = {"depth": np.array(predicted).reshape(1, 1, 1, -1, 1)}
    found = truth_metrics(outputs, known)
    assert found.depth is not None
    return found.depth, found.notes


def test_depth_by_hand() -> None:
    """Scale 4 / 2; 2 a = (2, 4, 12) against (2, 4, 8): errors 0, 0, 4 / 8. inf is not looked at."""
    found, _ = depth_of([1.0, 2.0, 6.0, 1e6], [2.0, 4.0, 8.0, math.inf])
    assert (found.pixels, found.scale) == (3, 2.0)
    assert found.abs_rel == pytest.approx(0.5 / 3.0)
    assert found.delta_125 == pytest.approx(2.0 / 3.0)


def test_depth_that_is_not_finite_is_counted_not_dropped() -> None:
    found, notes = depth_of([1.0, 2.0, math.nan, 3.0], [1.0, 2.0, 7.0, 3.0])
    whole, _ = depth_of([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert (found.pixels, whole.abs_rel) == (4, 0.0)
    assert found.abs_rel > 0.25  # 1 for the pixel, and the scale of the median moved
    assert found.delta_125 <= 0.75
    assert notes["depth"].startswith("1 of 4 depths")


@pytest.mark.parametrize(
    "predicted, bad, not_positive",
    [
        ([math.nan] * 3, 3, False),
        ([-1.0, -2.0, 5.0], 0, True),
        ([0.0, 0.0, 0.0], 0, True),
        ([-1.0, math.inf, -2.0], 1, True),
    ],
)
def test_depth_that_can_not_be_aligned_is_all_wrong(
    predicted: list[float], bad: int, not_positive: bool
) -> None:
    found, notes = depth_of(predicted, [1.0, 2.0, 3.0])
    assert (found.abs_rel, found.delta_125, found.scale) == (1.0, 0.0, 0.0)
    assert ("not positive" in notes["depth"]) == not_positive
    assert (f"{bad} of 3 depths are not finite" in notes["depth"]) == (bad > 0)


def test_no_true_depth_is_said(truth: Known) -> None:
    found = truth_metrics(perfect(truth), replace(truth, depth=None))
    assert found.pose is not None
    assert (found.depth, found.points) == (None, None)
    assert found.notes == {"depth": "no true depth", "points": "no true depth"}
    nowhere = replace(truth, depth=np.full((3, HEIGHT, WIDTH), np.inf, np.float32))
    assert truth_metrics(perfect(truth), nowhere).notes["depth"] == "no pixel with true depth"


# --- points


def test_umeyama_finds_a_known_similarity() -> None:
    source = np.random.default_rng(0).normal(size=(50, 3))
    r, t = rotation("x", 70.0) @ rotation("z", -40.0), np.array([3.0, -2.0, 0.5])
    found = umeyama(source, 2.5 * source @ r.T + t)
    assert found.scale == pytest.approx(2.5)
    assert found.rotation == pytest.approx(r)
    assert found.translation == pytest.approx(t)


@pytest.mark.parametrize(
    "wrong",
    [np.diag([1.0, 1.0, -1.0]), np.array([[1.0, 0.6, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])],
    ids=["reflection", "shear"],
)
def test_a_reflection_or_a_shear_is_not_absorbed(wrong: Array) -> None:
    source = np.random.default_rng(0).normal(size=(200, 3))
    target = source @ wrong.T
    found = umeyama(source, target)
    assert np.linalg.det(found.rotation) == pytest.approx(1.0)
    residual = np.linalg.norm(found.apply(source) - target, axis=1)
    assert np.median(residual) > 0.2
    # The twin: an affine fit, which is no alignment of two scenes, swallows both.
    affine, *_ = np.linalg.lstsq(source, target, rcond=None)
    assert np.abs(source @ affine - target).max() < 1e-9


def test_umeyama_is_least_squares_under_noise() -> None:
    """Nearby similarities are worse: scale, rotation and translation each at their best."""
    rng = np.random.default_rng(3)
    source = rng.normal(size=(300, 3))
    target = 0.7 * source @ rotation("y", 25.0).T + 0.1 * rng.normal(size=(300, 3))
    best = umeyama(source, target)

    def squares(found: object) -> float:
        return float(np.sum((found.apply(source) - target) ** 2))  # type: ignore[attr-defined]

    for factor in (0.99, 1.01):
        assert squares(replace(best, scale=best.scale * factor)) > squares(best)
    for axis in "xyz":
        turned = rotation(axis, 0.5) @ best.rotation
        assert squares(replace(best, rotation=turned)) > squares(best)
    assert squares(replace(best, translation=best.translation + 0.01)) > squares(best)


def test_umeyama_of_one_single_point_goes_to_the_mean() -> None:
    target = np.random.default_rng(0).normal(size=(10, 3))
    found = umeyama(np.ones((10, 3)), target)
    assert found.scale == 0.0
    assert found.apply(np.ones((10, 3))) == pytest.approx(np.tile(target.mean(axis=0), (10, 1)))


def test_true_points_are_at_the_centres_of_pixels() -> None:
    """A plane at z = 2 before a camera at the origin: the first pixel's centre is (0.5, 0.5)."""
    known = Known(
        camera(np.eye(3), (0, 0, 0))[None],
        np.array([[[10.0, 0, 2.0], [0, 20.0, 1.0], [0, 0, 1]]]),
        np.full((1, 2, 4), 2.0, np.float32),
    )
    points = true_points(known)[0]
    assert points[0, 0] == pytest.approx([(0.5 - 2.0) * 0.2, (0.5 - 1.0) * 0.1, 2.0])
    assert points[1, 3] == pytest.approx([(3.5 - 2.0) * 0.2, (1.5 - 1.0) * 0.1, 2.0])


def test_true_points_reproject(truth: Known) -> None:
    points = true_points(truth)
    for frame in range(3):
        in_camera = points[frame] @ EXTRINSIC[frame, :, :3].T + EXTRINSIC[frame, :, 3]
        pixels = in_camera @ INTRINSIC[frame].T
        u, v = pixels[..., 0] / pixels[..., 2], pixels[..., 1] / pixels[..., 2]
        known = np.isfinite(u)
        assert np.abs(u - (np.arange(WIDTH) + 0.5))[known].max() < 1e-6
        assert np.abs(v - (np.arange(HEIGHT) + 0.5)[:, None])[known].max() < 1e-6


@pytest.mark.parametrize("unit", [0.3, 7.0])
def test_point_distances_are_in_metres_and_relative(truth: Known, unit: float) -> None:
    """One column in four is off by 5 cm times a Gaussian vector, whatever the network's unit."""
    outputs = perfect(truth, scale=unit)
    push = 0.05 * np.random.default_rng(0).normal(size=outputs["world_points"].shape)
    push[..., 1::4, :] = push[..., 2::4, :] = push[..., 3::4, :] = 0.0
    outputs["world_points"] = outputs["world_points"] + unit * push
    found = truth_metrics(outputs, truth).points
    assert found is not None
    assert found.mean == pytest.approx(0.25 * 0.05 * math.sqrt(8 / math.pi), rel=0.15)
    assert found.median < 0.005
    assert found.mean_relative == pytest.approx(found.mean / found.scene_size)


def test_mirrored_points_are_wrong(truth: Known) -> None:
    outputs = perfect(truth)
    outputs["world_points"] = outputs["world_points"] * [1.0, 1.0, -1.0]
    found = truth_metrics(outputs, truth).points
    assert found is not None
    assert found.median_relative > 0.1


def test_points_that_are_not_finite_are_as_far_as_the_scene_is_large(truth: Known) -> None:
    outputs = perfect(truth)
    outputs["world_points"][0, :, 1::2] = np.nan  # more than half of what is known
    found = truth_metrics(outputs, truth)
    assert found.points is not None
    assert found.points.median_relative == pytest.approx(1.0)
    assert "not finite" in found.notes["points"]
    outputs["world_points"][:] = np.nan
    found = truth_metrics(outputs, truth)
    assert found.points is not None
    assert found.points.mean_relative == pytest.approx(1.0)


# --- together


def test_missing_outputs_are_named(truth: Known) -> None:
    found = truth_metrics({}, truth)
    assert found.notes == dict.fromkeys(("pose", "depth", "points"), "not among the outputs")


def test_what_the_frames_of_a_scene_have_adds_up_to_its_numbers(truth: Known) -> None:
    """Pixels by frame in the order of frames, errors in the order of pairs."""
    assert truth.depth is not None
    truth.depth[1, 2:] = np.inf
    outputs = perfect(truth)
    outputs["depth"][0, 1] *= 1.3  # of few pixels: the median scale stays
    turned = EXTRINSIC.copy()
    turned[2, :, :3] = rotation("z", 12.0) @ turned[2, :, :3]
    found = truth_metrics(outputs, truth)
    assert found.depth is not None
    width = WIDTH - 3
    assert found.depth.frame_pixels == (
        (HEIGHT - 1) * WIDTH + width,
        WIDTH + width,
        (HEIGHT - 1) * WIDTH + width,
    )
    weighed = zip(found.depth.frame_pixels, found.depth.frame_abs_rel, strict=True)
    total = sum(pixels * (value or 0.0) for pixels, value in weighed)
    assert total / found.depth.pixels == pytest.approx(found.depth.abs_rel)
    assert found.depth.frame_abs_rel == pytest.approx((0.0, 0.3, 0.0), abs=0.04)
    pose = posed(truth, turned)
    assert pose.errors_deg == pytest.approx(tuple(pair_errors_deg(turned, EXTRINSIC)), abs=1e-4)
    assert pose.errors_deg[0] < 1e-3  # of frames 0 and 1
    assert min(pose.errors_deg[1:]) > 5.0
    assert auc(np.array(pose.errors_deg), 30.0) == pytest.approx(pose.auc_30)


def test_json_both_ways(truth: Known) -> None:
    every = truth_metrics(perfect(truth), truth, clouds=True)
    for one in (every, truth_metrics(perfect(truth), truth), truth_metrics({}, truth)):
        assert TruthMetrics.from_json(json.loads(json.dumps(one.to_json()))) == one
        assert TruthMetrics.from_json(one.to_json()) == one
        assert TruthMean.from_json(mean_metrics([one]).to_json()) == mean_metrics([one])
    with pytest.raises(CompareError, match="unknown field"):
        TruthMetrics.from_json({"pose": {"auc": 1.0}, "depth": None, "points": None, "notes": {}})


def test_means_are_over_the_scenes_that_have_the_number() -> None:
    pose = PoseTruth(6, 10.0, 20.0, 60.0, 70.0, 80.0, 90.0, None, None, None, 1.0, None, 0)
    depth = DepthTruth(100, 2.0, 0.1, 0.9, 3.0, 0.5, 0.05, 0.95)
    cloud = CloudTruth(0.01, 9, 0, 8, 0.2, 0.1, 0.4, 0.3, 0.3, (CloudScore(0.1, 50.0, 40.0, 44.0),))
    points = PointTruth(100, 0.2, 0.1, 2.0, 0.1, 0.05, None, cloud)
    scenes = [
        TruthMetrics(pose, depth, points),
        TruthMetrics(replace(pose, auc_30=80.0, rta_15=60.0, direction_median_deg=4.0)),
    ]
    found = mean_metrics(scenes)
    assert (found.scenes, found.pose_scenes, found.depth_scenes, found.point_scenes) == (2, 2, 1, 1)
    assert (found.auc_30, found.auc_5, found.direction_median_deg) == (70.0, 20.0, 4.0)
    assert (found.rra_15, found.rta_5, found.rta_15) == (80.0, None, 60.0)
    assert (found.abs_rel, found.point_error, found.point_error_mean) == (0.1, 0.05, 0.1)
    assert (found.abs_rel_affine, found.delta_125_affine) == (0.05, 0.95)
    assert (found.accuracy_m, found.completeness_m, found.overall_m) == (0.2, 0.4, 0.3)
    assert found.f_scores == (ThresholdScore(0.1, 44.0),)
    better = replace(points, cloud=replace(cloud, scores=(CloudScore(0.1, 0.0, 0.0, 46.0),)))
    both = mean_metrics([scenes[0], TruthMetrics(points=better)])
    assert both.f_scores == (ThresholdScore(0.1, 45.0),)
    assert (mean_metrics([]).auc_30, mean_metrics([]).f_scores) == (None, ())
