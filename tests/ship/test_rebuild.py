"""What rebuilding does to the folders beside its target; building itself is another's work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vggt_deploy.build
from vggt_deploy.errors import ArtifactError, BuildError, UsageError
from vggt_deploy.manifest import read_manifest
from vggt_deploy.ship import verify as ship_verify
from vggt_deploy.ship.rebuild import rebuild
from vggt_deploy.ship.verify import unpack


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `build` was asked for; it builds nothing."""
    asked: list[dict[str, Any]] = []

    def build(artifact: Path, **wanted: Any) -> None:
        read_manifest(artifact)
        profile = Path(wanted["device"]).read_text(encoding="utf-8")
        asked.append({**wanted, "artifact": artifact, "profile": profile})

    monkeypatch.setattr(vggt_deploy.build, "build", build, raising=False)
    return asked


def test_the_recipe_is_followed(packed: Path, tmp_path: Path, built: list[dict[str, Any]]) -> None:
    rebuild(packed, tmp_path / "out" / "again", device="rtx4090")
    (asked,) = built
    assert asked["frames"] == [(1, 1, 1), (2, 4, 8)]
    assert asked["runtime"] == "tensorrt-rtx"
    assert asked["profile"].startswith('title = "RTX 4090"')
    assert Path(asked["device"]).name == "rtx4090.toml"
    assert list((tmp_path / "out").iterdir()) == []


def test_which_engine_is_said_in_the_words_of_rebuild(
    packed: Path, tmp_path: Path, built: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`rebuild` has no --engine."""
    monkeypatch.setattr(ship_verify, "cuda_device", lambda: "no driver")
    with pytest.raises(UsageError, match=r"no GPU here to choose by \(no driver\)") as caught:
        rebuild(packed, tmp_path / "again")
    assert "--device NAME" in caught.value.fix
    assert "--engine" not in caught.value.fix
    with pytest.raises(UsageError) as caught:
        unpack(packed, tmp_path / "folder")
    assert "--engine NAME" in caught.value.fix
    assert built == []


def test_a_folder_that_is_not_ours_survives(
    packed: Path, tmp_path: Path, built: list[dict[str, Any]]
) -> None:
    theirs = tmp_path / ".again.onnx" / "thesis.tex"
    theirs.parent.mkdir()
    theirs.write_text("years of work")
    with pytest.raises(ArtifactError, match="did not make it"):
        rebuild(packed, tmp_path / "again", device="rtx4090")
    assert theirs.read_text() == "years of work"
    assert built == []


def test_two_at_once(
    packed: Path, tmp_path: Path, built: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is refused, and takes nothing from under the first."""
    seen = []

    def build(artifact: Path, **wanted: Any) -> None:
        with pytest.raises(ArtifactError, match="being written by another process"):
            rebuild(packed, tmp_path / "again", device="rtx4090")
        seen.append(read_manifest(artifact))

    monkeypatch.setattr(vggt_deploy.build, "build", build)
    rebuild(packed, tmp_path / "again", device="rtx4090")
    assert len(seen) == 1
    assert [p.name for p in tmp_path.iterdir() if "again" in p.name] == []


def test_what_a_failed_build_was_given_is_removed(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(artifact: Path, **wanted: Any) -> None:
        assert artifact.is_dir()
        raise BuildError("no", "none")

    monkeypatch.setattr(vggt_deploy.build, "build", build, raising=False)
    with pytest.raises(BuildError):
        rebuild(packed, tmp_path / "again", device="rtx4090")
    assert [p.name for p in tmp_path.iterdir() if "again" in p.name] == []


@pytest.mark.parametrize("device", ["\0", "/", "..", "a" * 300])
def test_a_device_that_is_no_file_name(
    packed: Path,
    tmp_path: Path,
    built: list[dict[str, Any]],
    forge: Callable[..., Path],
    device: str,
) -> None:
    """A forged index can't make the profile be written anywhere else, or stop with a traceback."""

    def change(index: dict[str, Any]) -> None:
        index["engines"][1]["device"] = device

    rebuild(forge(packed, index=change), tmp_path / "out" / "again", device="rtx4090")
    assert Path(built[0]["device"]).name == "rtx4090.toml"
    assert list((tmp_path / "out").iterdir()) == []
