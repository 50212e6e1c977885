"""Real camera poses, perturbed by known amounts, give the known errors; wrong conventions fail.

Poses: those of robustmvd's sample, which are part of the repository (poses/robustmvd_sample.txt
says where they are from); where the reference data is there, the surveyed ones of Strecha et al.
(fountain-P11, entry-P10), and the laser-aligned ones of ETH3D's training scenes, of each the ten
frames of the list eth3d-10.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vggt_deploy.compare.truth import PoseTruth, auc, pair_errors_deg, truth_metrics
from vggt_deploy.data.frame_lists import load_frame_list
from vggt_deploy.geometry import camera_to_pose_encoding

Array = NDArray[np.float64]
HEIGHT, WIDTH = 350, 518
STRECHA = ("fountain-P11", "entry-P10")
COMMITTED = "robustmvd_sample"
NAMES = [COMMITTED, *STRECHA, *load_frame_list("eth3d-10").scenes]
THRESHOLDS = (3.0, 5.0, 30.0)
SURELY_WRONG = 40.0  # AUC@3 in percent, where the right convention has 100

Wrong = Callable[[Array], Array]


@dataclass(frozen=True)
class Cameras:
    """What is known, as `truth_metrics` asks for it: true cameras and no depth."""

    extrinsic: Array
    intrinsic: Array
    depth: None = None
    rays: None = None


def strecha(folder: Path) -> Array:
    """World-to-camera [S, 3, 4] of `*.camera`: K, a row of zeros, R camera-to-world, the centre."""
    poses = []
    for path in sorted((folder / "gt_dense_cameras").glob("*.camera")):
        rows = [[float(word) for word in line.split()] for line in path.read_text().splitlines()]
        to_world, centre = np.array(rows[4:7]), np.array(rows[7])
        poses.append(np.column_stack([to_world.T, -to_world.T @ centre]))
    return np.stack(poses)


def colmap(path: Path) -> Array:
    """World-to-camera [S, 3, 4] of COLMAP's images.txt, by the names of the pictures; QW first."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    rows = sorted((line.split() for line in lines if line), key=lambda row: row[9])
    poses = []
    for row in rows:
        w, x, y, z, *t = map(float, row[1:8])
        axis = np.array([x, y, z])
        degrees = math.degrees(2 * math.atan2(float(np.linalg.norm(axis)), w))
        turned = about(axis, degrees) if axis.any() else np.eye(3)
        poses.append(np.column_stack([turned, t]))
    return np.stack(poses)


def proper(poses: Array) -> Array:
    """The nearest true rotations: files round to six digits, which is 1e-4 degrees."""
    left, _, right = np.linalg.svd(poses[:, :, :3])
    return np.concatenate([left @ right, poses[:, :, 3:]], axis=-1)


class Scenes(dict[str, Array]):
    """Scene -> world-to-camera [S, 3, 4] in metres; short where a failing test prints it."""

    def __repr__(self) -> str:
        return f"{len(self)} scenes"


@pytest.fixture(scope="module")
def every(request: pytest.FixtureRequest) -> Scenes:
    """Those of the repository, and of the reference data where it is there."""
    poses = {COMMITTED: colmap(Path(__file__).parent / "poses" / f"{COMMITTED}.txt")}
    try:
        data = request.getfixturevalue("shared_data") / "data"
    except pytest.skip.Exception:
        return Scenes({name: proper(each) for name, each in poses.items()})
    poses |= {name: strecha(data / "strecha" / name) for name in STRECHA}
    eth3d = json.loads((data / "eth3d_poses_only" / "poses.json").read_text())["scenes"]
    for scene, names in load_frame_list("eth3d-10").scenes.items():
        poses[scene] = np.array([eth3d[scene][name]["w2c"] for name in names])
    return Scenes({name: proper(each) for name, each in poses.items()})


@pytest.fixture(params=NAMES)
def poses(request: pytest.FixtureRequest, every: Scenes) -> Array:
    if request.param not in every:
        pytest.skip("no reference data (set VGGT_DEPLOY_SHARED)")
    return every[request.param]


def measured(predicted: Array, true: Array) -> PoseTruth:
    """Through the network's own encoding of poses."""
    intrinsic = np.tile(np.array([[400.0, 0, 259], [0, 400.0, 175], [0, 0, 1]]), (len(true), 1, 1))
    pose = camera_to_pose_encoding(predicted, intrinsic, HEIGHT, WIDTH)[None]
    found = truth_metrics({"pose_enc": pose}, Cameras(true, intrinsic)).pose
    assert found is not None
    return found


def about(axis: Array, degrees: float) -> Array:
    """Rodrigues: the rotation by an angle about an axis of any length."""
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = math.radians(degrees)
    return np.asarray(np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross)


def centres(poses: Array) -> Array:
    return np.asarray(-np.einsum("sji,sj->si", poses[:, :, :3], poses[:, :, 3]))


def placed(rotations: Array, at: Array) -> Array:
    """World-to-camera of cameras with these rotations at these centres."""
    return np.concatenate([rotations, -np.einsum("sij,sj->si", rotations, at)[..., None]], axis=-1)


# --- known errors


def test_the_truth_itself_has_no_error(poses: Array) -> None:
    found = measured(poses, poses)
    assert found.pairs == len(poses) * (len(poses) - 1) // 2
    assert found.pairs_without_baseline == 0
    assert min(found.auc_3, found.rra_5) > 99.99
    assert found.rta_5 == 100.0
    assert found.rotation_median_deg < 1e-4
    assert found.direction_median_deg is not None
    assert found.direction_median_deg < 1e-4


@pytest.mark.parametrize("degrees", [1.0, 4.9, 5.1, 20.0])
def test_one_camera_turned_about_its_centre(poses: Array, degrees: float) -> None:
    """Its pairs are off by exactly that angle, whatever the axis; the others by nothing.

    The baseline as camera j sees it turns with camera j, by the angle at most; as the larger of
    both counts, the error of a pair is the angle.
    """
    views = len(poses)
    turned = poses.copy()
    which = views // 2
    turned[which] = about(np.array([0.3, -1.0, 0.5]), degrees) @ poses[which]
    pairs, wrong = views * (views - 1) // 2, views - 1
    found = measured(turned, poses)
    for threshold, value in zip(THRESHOLDS, (found.auc_3, found.auc_5, found.auc_30), strict=True):
        expected = pairs - wrong + wrong * max(0.0, 1.0 - degrees / threshold)
        assert value == pytest.approx(100.0 * expected / pairs, abs=1e-3)
    right = 100.0 * (pairs - wrong) / pairs
    assert found.rra_5 == pytest.approx(100.0 if degrees < 5.0 else right)
    assert found.rra_15 == pytest.approx(100.0 if degrees < 15.0 else right)
    assert found.rra_30 == 100.0


def test_what_turning_does_to_the_directions(poses: Array) -> None:
    """A vector at angle phi to the axis turns by 2 asin(sin(d / 2) sin(phi))."""
    axis, degrees, which = np.array([0.3, -1.0, 0.5]), 20.0, len(poses) // 2
    turned = poses.copy()
    turned[which] = about(axis, degrees) @ poses[which]
    expected = []
    at = centres(poses)
    for i, j in combinations(range(len(poses)), 2):
        seen = poses[j, :, :3] @ (at[i] - at[j])
        cosine = seen @ axis / np.linalg.norm(seen) / np.linalg.norm(axis)
        sine = math.sin(math.radians(degrees / 2)) * math.sqrt(max(0.0, 1 - cosine**2))
        expected.append(2 * math.degrees(math.asin(sine)) if j == which else 0.0)
    found = measured(turned, poses)
    below = [100.0 * float(np.mean(np.array(expected) < limit)) for limit in (5.0, 15.0, 30.0)]
    assert [found.rta_5, found.rta_15, found.rta_30] == pytest.approx(below)
    assert found.direction_median_deg == pytest.approx(float(np.median(expected)), abs=1e-4)


@pytest.mark.parametrize("degrees", [2.0, 14.0, 90.0, 180.0])
def test_a_baseline_turned_by_a_known_angle(poses: Array, degrees: float) -> None:
    """Of two cameras the second walks round the first: no rotation error, a known direction's."""
    at = centres(poses)
    for i, j in [(0, 1), (1, len(poses) - 1)]:
        across = np.cross(at[j] - at[i], [0.2, 0.9, -0.4])
        moved = at[i] + about(across, degrees) @ (at[j] - at[i])
        true = poses[[i, j]]
        walked = placed(true[:, :, :3], np.stack([at[i], moved]))
        assert pair_errors_deg(walked, true) == pytest.approx([degrees], abs=1e-5)
        found = measured(walked, true)
        assert (found.rra_5, found.rra_15, found.rra_30) == (100.0, 100.0, 100.0)
        assert found.rta_5 == (100.0 if degrees < 5 else 0.0)
        assert found.rta_15 == (100.0 if degrees < 15 else 0.0)
        assert found.rta_30 == (100.0 if degrees < 30 else 0.0)
        assert found.auc_30 == pytest.approx(100.0 * max(0.0, 1.0 - degrees / 30.0), abs=1e-3)


@settings(max_examples=20)
@given(
    st.data(),
    st.floats(-180, 180),
    st.floats(1e-3, 1e3),
    st.tuples(*[st.floats(-100, 100)] * 3),
)
def test_neither_scale_nor_the_world_matters(
    every: Scenes,
    data: st.DataObject,
    turn: float,
    scale: float,
    shift: tuple[float, float, float],
) -> None:
    """X' = s R X + t for all cameras together."""
    true = every[data.draw(st.sampled_from(list(every)))]
    spin = about(np.array([1.0, 2.0, -0.5]), turn)
    at = scale * (centres(true) @ spin.T) + np.array(shift)
    moved = placed(true[:, :, :3] @ spin.T, at)
    # Centres a thousandth of a metre apart, 100 m from the origin, lose five of sixteen digits.
    assert pair_errors_deg(moved, true).max() < 1e-6


def test_auc_agrees_with_the_curve_itself(poses: Array) -> None:
    """The area under the recall curve by the trapezoidal rule, for errors of a noisy prediction."""
    rng = np.random.default_rng(0)
    noisy = np.stack([about(rng.normal(size=3), 8 * rng.random()) @ pose for pose in poses])
    errors = pair_errors_deg(noisy, poses)
    for threshold in THRESHOLDS:
        angles = np.linspace(0.0, threshold, 20_001)
        recall = (errors[:, None] <= angles).mean(axis=0)
        area = float(np.mean((recall[1:] + recall[:-1]) / 2))
        assert auc(errors, threshold) == pytest.approx(100.0 * area, abs=0.01)


# --- wrong conventions


def to_world(poses: Array) -> Array:
    """Camera-to-world [R^T | C]."""
    turned = np.swapaxes(poses[:, :, :3], 1, 2)
    return np.concatenate([turned, centres(poses)[..., None]], axis=-1)


def transposed(poses: Array) -> Array:
    """R transposed, t kept."""
    return np.concatenate([np.swapaxes(poses[:, :, :3], 1, 2), poses[:, :, 3:]], axis=-1)


def centre_for_translation(poses: Array) -> Array:
    """[R | C]."""
    return np.concatenate([poses[:, :, :3], centres(poses)[..., None]], axis=-1)


def opengl(poses: Array) -> Array:
    """Axes x right, y up, z backward in one camera alone, as when readers are mixed."""
    mixed = poses.copy()
    mixed[0] = np.diag([1.0, -1.0, -1.0]) @ mixed[0]
    return mixed


WRONG = (to_world, transposed, centre_for_translation)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_convention_of_the_matrix_fails(poses: Array, wrong: Wrong) -> None:
    for predicted, true in ((wrong(poses), poses), (poses, wrong(poses))):
        assert measured(predicted, true).auc_3 < SURELY_WRONG


@pytest.mark.usefixtures("shared_data")
def test_wrong_conventions_fail_in_the_mean_of_all_scenes(every: Scenes) -> None:
    """Terrains alone is kind to them: its cameras all look the same way, 2 degrees apart."""
    for wrong in WRONG:
        means = [measured(wrong(poses), poses) for poses in every.values()]
        assert np.mean([found.auc_30 for found in means]) < 50.0
        assert np.mean([found.rta_5 for found in means if found.rta_5 is not None]) < 25.0


def test_mixed_axes_fail_the_pairs_of_that_camera(poses: Array) -> None:
    right = 100.0 * (len(poses) - 2) / len(poses)
    assert measured(opengl(poses), poses).auc_30 == pytest.approx(right, abs=1e-3)


@pytest.mark.parametrize("shift", [1, -1], ids=["wxyz", "yzwx"])
def test_another_order_of_the_quaternion_fails(poses: Array, shift: int) -> None:
    intrinsic = np.tile(np.array([[400.0, 0, 259], [0, 400.0, 175], [0, 0, 1]]), (len(poses), 1, 1))
    pose = camera_to_pose_encoding(poses, intrinsic, HEIGHT, WIDTH)[None]
    pose[..., 3:7] = np.roll(pose[..., 3:7], shift, axis=-1)
    found = truth_metrics({"pose_enc": pose}, Cameras(poses, intrinsic)).pose
    assert found is not None
    assert found.auc_3 < SURELY_WRONG


def test_the_two_files_of_strecha_agree(every: Scenes, shared_data: Path) -> None:
    """images.txt (world-to-camera, QW first) and *.camera (camera-to-world): two conventions of one
    truth, each read here by its own.
    """
    for name in STRECHA:
        found = colmap(shared_data / "data/strecha" / name / "colmap/images.txt")
        assert pair_errors_deg(found, every[name]).max() < 1e-3
        assert pair_errors_deg(transposed(found), every[name]).mean() > 10.0
