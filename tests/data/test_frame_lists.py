"""Frame lists: the committed ones follow their stated rule; a file that is wrong is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vggt_deploy.data.frame_lists import default_folder, list_names, load_frame_list
from vggt_deploy.errors import UsageError

Array = NDArray[np.float64]
COUNTS = {"eth3d-5": 5, "eth3d-10": 10}
TRAINING_SCENES = [
    *("courtyard", "delivery_area", "electro", "facade", "kicker", "meadow", "office", "pipes"),
    *("playground", "relief", "relief_2", "terrace", "terrains"),
]
# Frames that MapAnything's conversion of ETH3D turns upright: shot upright, stored lying.
PUBLISHED_SIDEWAYS = {
    "delivery_area": range(711, 715),
    "playground": range(587, 593),
    "relief": range(427, 440),
    "relief_2": range(458, 469),
}
WHOLE = """
schema = 1
name = "mine"
source = "somewhere"
rule = "these two"
[scenes]
room = ["b.png", "a.png"]
[left_out]
room = ["c.png"]
"""


# --- the rule that the committed lists state, computed again from the poses


@pytest.fixture(scope="module")
def poses(shared_data: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Scene -> picture -> w2c, fx, fy."""
    path = shared_data / "data" / "eth3d_poses_only" / "poses.json"
    scenes: dict[str, dict[str, dict[str, Any]]] = json.loads(path.read_text())["scenes"]
    return scenes


def upright(pose: Array) -> NDArray[np.bool_]:
    """[S, 3, 4] -> [S]: the world's z axis is within 45 degrees of the picture's top, and the
    camera is not within 10 degrees of looking straight up or down.
    """
    z = pose[:, :3, 2]  # the world's z axis as each camera sees it
    sideways = np.abs(np.degrees(np.arctan2(z[:, 0], -z[:, 1])))
    return np.asarray((sideways <= 45.0) & (np.abs(z[:, 2]) < np.cos(np.radians(10.0))))


def overlap(pose: Array, focal: Array) -> Array:
    """[S, S]: part of a grid of 12 x 8 points, 2, 4 and 8 m before each camera, that the other
    sees; the lesser of both ways, and 0 where they look more than 75 degrees apart.
    """
    width, height = 6200.0, 4133.0
    u, v = np.meshgrid(
        (np.arange(12) + 0.5) * width / 12 - width / 2,
        (np.arange(8) + 0.5) * height / 8 - height / 2,
    )
    seen = np.zeros((len(pose), len(pose)))
    for i in range(len(pose)):
        rays = np.stack([u / focal[i, 0], v / focal[i, 1], np.ones_like(u)], -1).reshape(-1, 3)
        points = np.concatenate([depth * rays for depth in (2.0, 4.0, 8.0)])
        world = (points - pose[i, :, 3]) @ pose[i, :, :3]
        for j in range(len(pose)):
            there = world @ pose[j, :, :3].T + pose[j, :, 3]
            x, y, z = there.T
            inside = (np.abs(x) * focal[j, 0] < z * width / 2) & (
                np.abs(y) * focal[j, 1] < z * height / 2
            )
            seen[i, j] = inside.mean()  # z > 0 where both hold
    axes = pose[:, 2, :3]
    alike = axes @ axes.T >= np.cos(np.radians(75.0))
    return np.where(alike, np.minimum(seen, seen.T), 0.0)


def largest_group(linked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[S, S] -> [S]: the members of the largest connected group, of equals the first."""
    reached = linked | np.eye(len(linked), dtype=bool)
    for _ in range(len(linked)):
        reached = (reached.astype(int) @ reached) > 0
    return np.asarray(reached[int(np.argmax(reached.sum(axis=1)))])


def chosen(scene: dict[str, dict[str, Any]], count: int) -> list[str]:
    """The rule: of the largest group that overlaps of half or more hold together, the frame with
    the most overlap in all; then, of the frames that overlap by half or more with one that is
    chosen, the one farthest from all that are.
    """
    names = sorted(scene)
    pose = np.array([scene[name]["w2c"] for name in names])
    kept = upright(pose)
    names, pose = [name for name, keep in zip(names, kept, strict=True) if keep], pose[kept]
    focal = np.array([[scene[name]["fx"], scene[name]["fy"]] for name in names])
    centres = -np.einsum("sji,sj->si", pose[:, :, :3], pose[:, :, 3])
    shared = overlap(pose, focal)
    found = [int(np.argmax(np.where(largest_group(shared >= 0.5), shared.sum(axis=1), -1.0)))]
    while len(found) < count:
        best = shared[:, found].max(axis=1)
        best[found] = -1.0
        away = np.linalg.norm(centres[:, None] - centres[found], axis=-1).min(axis=1)
        near = best >= 0.5
        found.append(int(np.argmax(np.where(near, away, -1.0) if near.any() else best)))
    return [names[index] for index in found]


@pytest.mark.parametrize("name", COUNTS)
def test_the_lists_follow_their_rule(name: str, poses: dict[str, Any]) -> None:
    listed = load_frame_list(name)
    again = {scene: tuple(chosen(poses[scene], COUNTS[name])) for scene in poses}
    assert listed.scenes == again
    assert list(listed.scenes) == TRAINING_SCENES


@pytest.mark.parametrize("name", COUNTS)
def test_what_is_left_out_is_what_is_not_upright(name: str, poses: dict[str, Any]) -> None:
    listed = load_frame_list(name)
    for scene, frames in poses.items():
        names = sorted(frames)
        kept = upright(np.array([frames[each]["w2c"] for each in names]))
        not_upright = tuple(each for each, keep in zip(names, kept, strict=True) if not keep)
        assert listed.left_out.get(scene, ()) == not_upright
        published = [f"DSC_{number:04d}.JPG" for number in PUBLISHED_SIDEWAYS.get(scene, ())]
        assert set(published) <= set(not_upright)
        assert scene == "electro" or set(not_upright) == set(published)


def test_another_rule_gives_other_lists(poses: dict[str, Any]) -> None:
    """The twin: the first frames by name are not what the rule chooses."""
    listed = load_frame_list("eth3d-5")
    same = [scene for scene in poses if set(sorted(poses[scene])[:5]) == set(listed.scenes[scene])]
    assert same == []


def test_every_frame_overlaps_with_another(poses: dict[str, Any]) -> None:
    """By half or more, but for the tenth frame of pipes, which has 14 in all."""
    most: dict[tuple[str, str], float] = {}
    for scene, names in load_frame_list("eth3d-10").scenes.items():
        frames = poses[scene]
        pose = np.array([frames[name]["w2c"] for name in names])
        focal = np.array([[frames[name]["fx"], frames[name]["fy"]] for name in names])
        shared = overlap(pose, focal) - np.eye(len(names))
        most |= {
            (scene, name): value for name, value in zip(names, shared.max(axis=1), strict=True)
        }
    below = {key: value for key, value in most.items() if value < 0.5}
    assert set(below) == {("pipes", "DSC_0641.JPG")}
    assert min(below.values()) > 0.3


def test_the_shorter_list_is_the_beginning_of_the_longer() -> None:
    five, ten = load_frame_list("eth3d-5"), load_frame_list("eth3d-10")
    assert five.scenes == {scene: names[:5] for scene, names in ten.scenes.items()}
    assert five.sha256 != ten.sha256


# --- files


def test_lists_are_found_by_name_and_by_path(tmp_path: Path) -> None:
    assert set(list_names()) >= set(COUNTS)
    packaged = default_folder() / "eth3d-5.toml"
    assert load_frame_list("eth3d-5") == load_frame_list(packaged)
    assert load_frame_list("eth3d-5").sha256 == hashlib.sha256(packaged.read_bytes()).hexdigest()
    path = tmp_path / "mine.toml"
    path.write_text(WHOLE)
    found = load_frame_list(str(path))
    assert found.scenes == {"room": ("b.png", "a.png")}  # in the order of the file
    assert found.left_out == {"room": ("c.png",)}
    path.write_text(WHOLE + "# one comment more is another list\n")
    assert load_frame_list(path).sha256 != found.sha256


@pytest.mark.parametrize(
    "change, message",
    [
        (("schema = 1", "schema = 2"), "schema 2"),
        (('name = "mine"', 'name = "yours"'), "its name is 'yours'"),
        (('rule = "these two"\n', ""), "lacks the field 'rule'"),
        (('["b.png", "a.png"]', "[]"), "lists no picture"),
        (('["b.png", "a.png"]', '["b.png", "b.png"]'), "twice"),
        (('"b.png"', '"c.png"'), "leaves out"),
        (('"b.png"', '"images/b.png"'), "without folders"),
        (('"b.png"', '"../b.png"'), "without folders"),
        (('"b.png"', '".."'), "without folders"),
        (('"b.png"', "3"), "expected str"),
        (("[left_out]\nroom", "[left_out]\nhall"), "not listed"),
        (("[scenes]", "[scenes"), "not TOML"),
        (('room = ["b.png", "a.png"]\n[left_out]\nroom = ["c.png"]', ""), "lists no scene"),
        (("schema = 1", "schema = 1\nmasks = true"), "unknown field"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    path = tmp_path / "mine.toml"
    assert change[0] in WHOLE
    path.write_text(WHOLE.replace(*change))
    with pytest.raises(UsageError, match=message) as raised:
        load_frame_list(path)
    assert str(path) in raised.value.message
    assert raised.value.fix


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no frame list 'eth3d-50'") as raised:
        load_frame_list("eth3d-50")
    assert "eth3d-10, eth3d-5" in raised.value.fix
    with pytest.raises(UsageError, match="can't be read"):
        load_frame_list(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(UsageError, match="can't be read"):
        load_frame_list(tmp_path / "latin.toml")


@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True),
        st.lists(st.from_regex(r"[A-Za-z0-9_]{1,8}\.JPG", fullmatch=True), min_size=1, unique=True),
        min_size=1,
        max_size=5,
    )
)
def test_any_list_keeps_its_order(
    tmp_path_factory: pytest.TempPathFactory, scenes: dict[str, list[str]]
) -> None:
    path = tmp_path_factory.mktemp("lists") / "any.toml"
    lines = [f"{scene} = {json.dumps(names)}" for scene, names in scenes.items()]
    head = 'schema = 1\nname = "any"\nsource = ""\nrule = ""\n[scenes]\n'
    path.write_text(head + "\n".join(lines))
    found = load_frame_list(path)
    assert list(found.scenes.items()) == [(scene, tuple(names)) for scene, names in scenes.items()]


@pytest.mark.parametrize("nested", ["deep = " + "[" * 50_000, "deep = " + "{a = " * 50_000])
def test_a_file_that_is_nested_deeply_is_refused(tmp_path: Path, nested: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f"{nested}\n{WHOLE}", encoding="utf-8")
    with pytest.raises(UsageError, match="nested too deeply"):
        load_frame_list(path)


def test_a_byte_order_mark_is_no_part_of_the_list(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(WHOLE, encoding="utf-8")
    plain = load_frame_list(path)
    path.write_text(WHOLE, encoding="utf-8-sig")
    marked = load_frame_list(path)
    assert marked.scenes == plain.scenes
    assert marked.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() != plain.sha256
    path.write_text(WHOLE, encoding="utf-16")
    with pytest.raises(UsageError, match="can't be read"):
        load_frame_list(path)
