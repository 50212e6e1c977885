"""Rendered scenes on disk: the same from the same seed, whole or not at all; and the command."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from vggt_deploy.cli import app
from vggt_deploy.data import scenes
from vggt_deploy.data.eth3d import read_scene
from vggt_deploy.data.scenes import write_scenes
from vggt_deploy.data.synthetic import FAMILIES, HELD_OUT
from vggt_deploy.errors import ArtifactError, UsageError

SMALL = {"views": 2, "width": 64, "height": 48}


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_seed_gives_the_same_files_and_another_others(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_scenes(tmp_path / name, seed=seed, **SMALL)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    a, c = hashes(tmp_path / "a"), hashes(tmp_path / "c")
    assert a.keys() == c.keys()
    assert not set(a.values()) & set(c.values())


def test_several_seeds_lie_beside_each_other_and_are_the_single_ones(tmp_path: Path) -> None:
    written = write_scenes(tmp_path / "many", seed=5, count=3, **SMALL)
    assert [scene.folder for scene in written] == ["scene_5", "scene_6", "scene_7"]
    (one,) = write_scenes(tmp_path / "one", seed=6, **SMALL)
    assert one.folder == "."
    assert (one.family, one.traits) == (written[1].family, written[1].traits)
    alone = hashes(tmp_path / "one")
    del alone["scenes.json"]
    assert hashes(tmp_path / "many" / "scene_6") == alone
    for scene in written:
        read = read_scene(tmp_path / "many" / scene.folder)
        assert len(read.frames) == 2
        assert all(frame.depth is not None for frame in read.frames)


def test_the_list_says_what_was_drawn(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    write_scenes(
        tmp_path / "out",
        seed=2,
        count=2,
        family="hall",
        progress=lambda stage, done, total: seen.append((stage, done, total)),
        **SMALL,
    )
    first, second = json.loads((tmp_path / "out" / "scenes.json").read_text())["scenes"]
    assert (first["family"], first["seed"], first["folder"]) == ("hall", 2, "scene_2")
    assert (second["views"], second["width"], second["height"]) == (2, 64, 48)
    assert seen == [("scenes", 0, 2), ("scenes", 1, 2), ("scenes", 2, 2)]


def test_only_its_own_folder_is_replaced(tmp_path: Path) -> None:
    """A real ETH3D scene looks the same but for the list: a slip in -o must not delete it."""
    target = tmp_path / "scene"
    write_scenes(target, seed=1, **SMALL)
    with pytest.raises(ArtifactError, match="is not empty"):
        write_scenes(target, seed=2, **SMALL)
    before = hashes(target)
    write_scenes(target, seed=2, overwrite=True, **SMALL)
    assert hashes(target) != before
    (target / "scenes.json").unlink()
    before = hashes(target)
    with pytest.raises(ArtifactError, match="holds no scenes"):
        write_scenes(target, seed=3, overwrite=True, **SMALL)
    assert hashes(target) == before


@pytest.mark.parametrize("count", [1, 2])
def test_what_was_put_beside_the_scenes_is_not_replaced(tmp_path: Path, count: int) -> None:
    target = tmp_path / "scenes"
    write_scenes(target, seed=1, count=count, **SMALL)
    (target / "report").mkdir()
    (target / "report" / "numbers.txt").write_text("an hour's work")
    before = hashes(target)
    with pytest.raises(ArtifactError, match="report in it is none of the scenes"):
        write_scenes(target, seed=1, count=count, overwrite=True, **SMALL)
    assert hashes(target) == before
    shutil.rmtree(target / "report")
    write_scenes(target, seed=8, overwrite=True, **SMALL)  # one for several, and the other way
    assert hashes(target) != before


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "not JSON",
        '{"scenes": ["0000_00"]}',
        '{"scenes": [{"folder": "photos"}]}',
        "\xff",
    ],
)
def test_a_data_set_with_a_list_of_its_own_is_not_replaced(tmp_path: Path, text: str) -> None:
    target = tmp_path / "data"
    (target / "photos").mkdir(parents=True)
    (target / "photos" / "a.txt").write_text("precious")
    (target / "scenes.json").write_bytes(text.encode("latin-1"))
    before = hashes(target)
    with pytest.raises(ArtifactError, match=r"its scenes\.json is not one that vggt-deploy wrote"):
        write_scenes(target, seed=1, overwrite=True, **SMALL)
    assert hashes(target) == before


def test_interrupted_in_the_second_scene_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = scenes.write_scene, []

    def interrupted(folder: Path, views: object) -> None:
        calls.append(folder)
        real(folder, views)  # type: ignore[arg-type]
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(scenes, "write_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "out", count=3, **SMALL)
    assert len(calls) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong", [{"count": 0}, {"views": 0}, {"seed": -1}, {"family": "forest"}, {"width": 0}]
)
def test_wrong_requests_write_nothing(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        write_scenes(tmp_path / "out", **{**SMALL, **wrong})  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["scene", *arguments])


def test_the_command(tmp_path: Path) -> None:
    target = str(tmp_path / "out")
    arguments = ("-o", target, "--seed", "8", "--views", "2", "--size", "64x48", "--count", "2")
    done = call(*arguments, "--family", "yard")
    assert done.exit_code == 0
    assert f"{target}/scene_8: yard, seed 8" in done.stdout
    frame = read_scene(Path(target) / "scene_9").frames[1]
    assert (frame.camera.width, frame.camera.height) == (64, 48)
    assert call(*arguments).exit_code == 1
    assert call(*arguments, "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    "wrong",
    [("--size", "big"), ("--views", "0"), ("--count", "0"), ("--seed", "-1"), ("--family", "x")],
)
def test_wrong_words_end_with_2(tmp_path: Path, wrong: tuple[str, str]) -> None:
    assert call("-o", str(tmp_path / "out"), "--size", "64x48", *wrong).exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_the_help_names_every_family() -> None:
    shown = CliRunner().invoke(app, ["scene", "--help"], env={"COLUMNS": "200"}).output
    assert ", ".join(FAMILIES) + f" or {HELD_OUT} (in no training)" in " ".join(shown.split())
