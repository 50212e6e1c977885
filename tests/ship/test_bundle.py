"""Making a bundle: what is in it, and what is refused."""

from __future__ import annotations

import errno
import hashlib
import json
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from vggt_deploy.errors import ArtifactError, BundleError, UsageError
from vggt_deploy.ship import bundle as bundle_module
from vggt_deploy.ship import container
from vggt_deploy.ship.bundle import bundle

Make = Callable[..., Path]


def index_of(path: Path) -> dict[str, Any]:
    with tarfile.open(path) as archive:
        data: dict[str, Any] = json.load(archive.extractfile("index.json"))  # type: ignore[arg-type]
    return data


def test_any_tar_reads_it_and_the_files_are_the_folders(
    packed: Path, h200: Path, rtx4090: Path, onnx: Path, tmp_path: Path
) -> None:
    out = tmp_path / "by-hand"
    out.mkdir()
    subprocess.run(["tar", "xf", packed, "-C", out], check=True)
    for folder, place in ((h200, "engines/h200"), (rtx4090, "engines/rtx4090"), (onnx, "onnx")):
        assert {p.name for p in folder.iterdir()} == {p.name for p in (out / place).iterdir()}
        for path in folder.iterdir():
            assert (out / place / path.name).read_bytes() == path.read_bytes()
    subprocess.run(["sha256sum", "--check", "--quiet", "index.sha256"], cwd=out, check=True)


def test_the_index_names_every_file_the_devices_and_how_to_feed_them(
    packed: Path, h200: Path
) -> None:
    index = index_of(packed)
    listed = {f["path"]: f for f in index["files"]}
    data = (h200 / "model.engine").read_bytes()
    assert listed["engines/h200/model.engine"] == {
        "path": "engines/h200/model.engine",
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    engine = index["engines"][0]
    assert (engine["device"], engine["runtime_version"]) == ("h200", "10.16.1.11")
    assert engine["device_profile"] == 'title = "H200"\n'
    assert engine["profiles"][1] == {"min": 2, "opt": 4, "max": 8}
    assert index["contract"]["input"]["shape"] == [1, "S", 3, 42, 56]
    assert [o["name"] for o in index["contract"]["outputs"]][:2] == ["pose_enc", "depth"]
    assert index["accuracy"] is None
    assert index["signed_by"] is None


def test_the_same_inputs_give_the_same_bytes(
    packed: Path, h200: Path, rtx4090: Path, onnx: Path
) -> None:
    again = bundle([h200, rtx4090], packed.with_name("again"), with_onnx=onnx)
    assert again.path.read_bytes() == packed.read_bytes()
    assert again.bytes == packed.stat().st_size
    assert again.sha256 == hashlib.sha256(container_index(packed)).hexdigest()


def container_index(path: Path) -> bytes:
    with tarfile.open(path) as archive:
        return archive.extractfile("index.json").read()  # type: ignore[union-attr]


def test_two_engines_for_one_device_are_told_apart_by_runtime(
    make_engine: Make, h200: Path, tmp_path: Path
) -> None:
    rtx = make_engine("b", runtime="tensorrt-rtx", runtime_version="1.7.1.116")
    info = bundle([h200, rtx], tmp_path / "two")
    assert [e.name for e in info.index.engines] == ["h200-tensorrt", "h200-tensorrt-rtx"]
    with pytest.raises(UsageError, match="two engines are for h200-tensorrt"):
        bundle([h200, make_engine("c")], tmp_path / "same")


def test_a_bundle_of_the_onnx_alone(onnx: Path, tmp_path: Path) -> None:
    info = bundle([], tmp_path / "alone", with_onnx=onnx)
    assert info.index.onnx
    assert info.index.engines == ()
    with pytest.raises(UsageError, match="nothing to bundle"):
        bundle([], tmp_path / "nothing")


def test_kinds_are_not_mixed_up(h200: Path, onnx: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="of kind onnx, not an engine") as raised:
        bundle([onnx], tmp_path / "b")
    assert "--with-onnx" in raised.value.fix
    with pytest.raises(UsageError, match="an engine, not an ONNX artifact"):
        bundle([h200], tmp_path / "b", with_onnx=h200)


def test_the_onnx_must_be_the_one_that_the_engine_was_built_from(
    make_onnx: Make, make_engine: Make, h200: Path, onnx: Path, tmp_path: Path
) -> None:
    stranger = make_engine("stranger", onnx_sha256="0" * 64)
    with pytest.raises(BundleError, match="was not built from"):
        bundle([stranger], tmp_path / "b", with_onnx=onnx)
    assert bundle([h200], tmp_path / "b", with_onnx=onnx).index.onnx


@pytest.mark.parametrize(
    "change", [{"height": 56}, {"scheme": "int8_pt_sym"}, {"outputs": ("depth",)}]
)
def test_one_bundle_holds_one_variant(
    make_engine: Make, h200: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    other = make_engine("other", device="orin", change=change)
    with pytest.raises(BundleError, match=r"differ in (height|variant|outputs)"):
        bundle([h200, other], tmp_path / "b")


def test_a_spoiled_engine_is_not_bundled(h200: Path, tmp_path: Path) -> None:
    data = bytearray((h200 / "model.engine").read_bytes())
    data[100] ^= 1
    (h200 / "model.engine").write_bytes(data)
    with pytest.raises(ArtifactError, match="was changed after it was written"):
        bundle([h200], tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_file_that_changes_while_it_is_copied_is_noticed(
    h200: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = container.header

    def spoil(name: str, size: int) -> bytes:
        if name.endswith("model.engine"):
            data = (h200 / "model.engine").read_bytes()
            (h200 / "model.engine").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        return write(name, size)

    monkeypatch.setattr(container, "header", spoil)
    with pytest.raises(BundleError, match="was changed while it was bundled"):
        bundle([h200], tmp_path / "b")
    assert [p.name for p in tmp_path.iterdir() if "b" in p.name.split(".")] == []


def test_interrupted_work_leaves_nothing_and_the_old_bundle(
    packed: Path, h200: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = packed.read_bytes()

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "writing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bundle([h200], packed, overwrite=True, progress=interrupt)
    assert packed.read_bytes() == before
    assert not [p for p in packed.parent.iterdir() if p.name.startswith(".vggt")]


def test_a_full_disk_is_said_and_nothing_is_kept(
    h200: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: BinaryIO, *_: object) -> None:
        file.write(b"some")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bundle_module, "write_container", full)
    with pytest.raises(BundleError, match="No space left on device"):
        bundle([h200], tmp_path / "b")
    assert not [p for p in tmp_path.iterdir() if p.name.strip(".").startswith("b")]


def test_overwriting_is_asked_for_and_meets_only_bundles(packed: Path, h200: Path) -> None:
    with pytest.raises(BundleError, match="exists") as raised:
        bundle([h200], packed)
    assert "--overwrite" in raised.value.fix
    bundle([h200], packed, overwrite=True)
    letter = packed.with_name("letter.txt")
    letter.write_text("Dear all,")
    with pytest.raises(BundleError, match="not replaced: it is no bundle"):
        bundle([h200], letter, overwrite=True)
    assert letter.read_text() == "Dear all,"


def test_what_a_killed_run_left_is_replaced(h200: Path, tmp_path: Path) -> None:
    (tmp_path / ".b.partial").write_bytes(b"half" * 10_000)
    bundle([h200], tmp_path / "b")
    assert not (tmp_path / ".b.partial").exists()
    assert index_of(tmp_path / "b")["schema"] == 1


def test_a_place_that_can_not_be_written(h200: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ArtifactError, match="can't create"):
        bundle([h200], tmp_path / "file" / "b")
    with pytest.raises(BundleError, match="exists and is not a file"):
        bundle([h200], tmp_path)


def test_progress_counts_every_byte(h200: Path, onnx: Path, tmp_path: Path) -> None:
    seen: dict[str, tuple[int, int]] = {}
    bundle(
        [h200], tmp_path / "b", with_onnx=onnx, progress=lambda s, d, t: seen.update({s: (d, t)})
    )
    assert set(seen) == {"hashing", "writing"}
    assert all(done == total > 0 for done, total in seen.values())
