"""Frames on their side are found by their poses, whatever world the poses are in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vggt_deploy.data.portrait import rolls_deg, sideways, up_direction
from vggt_deploy.errors import UsageError
from vggt_deploy.geometry import quaternion_to_rotation

Doubles = NDArray[np.float64]
# As published with the conversion of ETH3D for MapAnything: frame numbers, first and last.
PUBLISHED = {
    "delivery_area": (711, 714),
    "playground": (587, 592),
    "relief": (427, 439),
    "relief_2": (458, 468),
}


def turned(yaw: float, pitch: float, roll: float) -> Doubles:
    """[3, 4] in degrees: a camera in a world whose z is up, level and upright at zero."""
    y, p, r = np.radians([yaw, pitch, roll])
    level = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # looks along the world's y
    about_z = np.array([[np.cos(y), -np.sin(y), 0], [np.sin(y), np.cos(y), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]])
    about_axis = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    return np.column_stack([about_axis @ about_x @ level @ about_z, [0.1, 0.2, 0.3]])


def names_of(poses: Doubles) -> list[str]:
    return [f"{index}.JPG" for index in range(len(poses))]


def test_the_published_frames_of_eth3d(shared_data: Path) -> None:
    path = shared_data / "data" / "eth3d_poses_only" / "poses.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    scenes = json.loads(path.read_text())["scenes"]
    assert len(scenes) == 13
    for scene, frames in scenes.items():
        names = sorted(frames)
        found = sideways(np.array([frames[name]["w2c"] for name in names]), names)
        first, last = PUBLISHED.get(scene, (0, -1))
        wanted = [name for name in names if first <= int(name[4:8]) <= last]
        assert list(found) == wanted
        assert bool(wanted) == (scene in PUBLISHED)


def test_camera_to_world_rotations_find_other_frames(shared_data: Path) -> None:
    """The twin: the list above does not come out of any matrices."""
    path = shared_data / "data" / "eth3d_poses_only" / "poses.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    frames = json.loads(path.read_text())["scenes"]["relief"]
    poses = np.array([frames[name]["w2c"] for name in sorted(frames)])
    poses[:, :, :3] = poses[:, :, :3].transpose(0, 2, 1)
    numbers = [int(name[4:8]) for name in sideways(poses, sorted(frames))]
    assert numbers != list(range(427, 440))


@pytest.mark.parametrize(
    "roll, found", [(0, False), (44, False), (46, True), (90, True), (134, True), (136, False),
                    (180, False), (-44, False), (-46, True), (-90, True)]
)  # fmt: skip
def test_between_45_and_135_degrees(roll: float, found: bool) -> None:
    upright = [turned(yaw, 0, 0) for yaw in (0, 40, 90, 200)]
    poses = np.array([*upright, turned(120, 15, roll)])
    assert sideways(poses, names_of(poses)) == (("4.JPG",) if found else ())


ANGLE = st.floats(-180, 180)


TILTS = st.tuples(st.floats(-40, 40), st.floats(-8, 8))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(TILTS, min_size=8, max_size=8),
    ANGLE,
    st.lists(st.tuples(ANGLE, TILTS, st.sampled_from([-90, 90])), max_size=4),
    st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: np.linalg.norm(q) > 0.1),
)
def test_any_world_and_a_minority_on_its_side(
    tilts: list[tuple[float, float]],
    start: float,
    on_side: list[tuple[float, tuple[float, float], int]],
    world: tuple[float, ...],
) -> None:
    """Eight upright views all around, not quite level; the world's own axes say nothing."""
    upright = [turned(start + 45 * k, *tilt) for k, tilt in enumerate(tilts)]
    lying = [turned(yaw, pitch, roll + quarter) for yaw, (pitch, roll), quarter in on_side]
    poses = np.array([*upright, *lying])
    rolls = rolls_deg(poses, np.array([0.0, 0, 1]))
    np.testing.assert_allclose(rolls[:8], [roll for _, roll in tilts], atol=1e-6)
    turn = quaternion_to_rotation(np.array(world))
    moved = poses.copy()
    moved[:, :, :3] = poses[:, :, :3] @ turn.T
    assert np.linalg.norm(up_direction(moved)) == pytest.approx(1)
    names = names_of(poses)
    assert sideways(moved, names) == tuple(names[8:])


def test_a_camera_that_looks_straight_up_is_on_no_side() -> None:
    poses = np.array([turned(0, 0, 0), turned(90, 0, 0), turned(0, 85, 90), turned(0, 70, 90)])
    assert sideways(poses, names_of(poses)) == ("3.JPG",)
    assert np.isnan(rolls_deg(poses, np.array([0.0, 0, 1]))[2])


def test_the_same_view_many_times_has_an_up_direction() -> None:
    """All right axes are one: what is up comes from the frames' own tops."""
    poses = np.array([turned(30, 10, 0)] * 3 + [turned(30, 10, 90)])
    assert sideways(poses, names_of(poses)) == ("3.JPG",)
    alone = poses[:1]
    assert sideways(alone, ["a"]) == ()


def test_cameras_around_a_table_look_down_and_are_upright() -> None:
    """No camera's own top is near the world's up; their horizontal axes give it all the same."""
    ring = [turned(yaw, -55, 0) for yaw in range(0, 360, 30)]
    poses = np.array([*ring, turned(10, -55, 90), turned(130, -55, -90)])
    assert sideways(poses, names_of(poses)) == ("12.JPG", "13.JPG")
    np.testing.assert_allclose(up_direction(poses), [0, 0, 1], atol=1e-6)


@pytest.mark.parametrize("second", [70, -70])
def test_up_is_on_the_side_of_the_cameras_tops(second: float) -> None:
    """Whichever of two axes comes first."""
    poses = np.array([turned(0, -55, 0), turned(second, -55, 0)])
    np.testing.assert_allclose(up_direction(poses), [0, 0, 1], atol=1e-6)


def test_a_few_degrees_of_roll_in_one_direction_of_view_decide_nothing() -> None:
    """The right axes here span a plane that has nothing to do with the horizon."""
    poses = np.array([turned(0, 0, 0), turned(0, 0, 0), turned(0, 2, 4), turned(0, 1, 94)])
    assert sideways(poses, names_of(poses)) == ("3.JPG",)


def test_no_poses_and_too_few() -> None:
    assert sideways(np.empty((0, 3, 4)), []) == ()
    with pytest.raises(UsageError, match="1 poses for 2 names"):
        sideways(np.array([turned(0, 0, 0)]), ["a", "b"])
