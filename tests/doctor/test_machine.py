from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from vggt_deploy.doctor import machine
from vggt_deploy.doctor.machine import (
    check_disk,
    check_jetson,
    check_memory,
    check_python,
    memory_limit_bytes,
)


def test_python_versions() -> None:
    assert [check_python(v).state for v in ((3, 10), (3, 11), (3, 13), (3, 14))] == [
        "missing",
        "ok",
        "ok",
        "missing",
    ]


def test_memory_counts_what_the_container_may_use() -> None:
    assert check_memory(32 * 2**30, None).state == "ok"
    limited = check_memory(32 * 2**30, 4 * 2**30)
    assert limited.state == "missing"
    assert limited.found.startswith("4.0 GiB (limit of this container")
    assert check_memory(32 * 2**30, 2**62).found == "32.0 GiB"
    assert check_memory(None, None).state == "unknown"


def test_the_container_limit_is_read(tmp_path: Path) -> None:
    assert memory_limit_bytes(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_limit_bytes(tmp_path) is None
    (tmp_path / "memory.max").write_text("1073741824\n")
    assert memory_limit_bytes(tmp_path) == 2**30
    (tmp_path / "memory.max").unlink()
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("42")
    assert memory_limit_bytes(tmp_path) == 42


def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: SimpleNamespace(free=3 * 10**9))
    check = check_disk(tmp_path)
    assert (check.state, check.found) == ("missing", f"3.0 GB free in {tmp_path}")
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: SimpleNamespace(free=30 * 10**9))
    assert check_disk(tmp_path).state == "ok"


def test_jetson_by_its_files(tmp_path: Path) -> None:
    assert check_jetson(tmp_path).state == "missing"
    (tmp_path / "proc" / "device-tree").mkdir(parents=True)
    model = tmp_path / "proc" / "device-tree" / "model"
    model.write_bytes(b"Raspberry Pi 5\x00")
    assert check_jetson(tmp_path).state == "missing"
    model.write_bytes(b"NVIDIA Jetson AGX Orin Developer Kit\x00")
    assert check_jetson(tmp_path).state == "unknown"
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "nv_tegra_release").write_text("# R36 (release), REVISION: 4.3\nmore\n")
    check = check_jetson(tmp_path)
    assert check.state == "ok"
    assert check.found == (
        "NVIDIA Jetson AGX Orin Developer Kit, R36 (release), REVISION: 4.3 "
        "(JetPack 6.1 or 6.2: TensorRT 10.3; device profile orin)"
    )


@pytest.mark.parametrize(
    "release, said",
    [
        ("# R35 (release), REVISION: 4.1, GCID: 1", "no JetPack known"),
        ("# R36 (release), REVISION: 3.0, GCID: 1", "upgrade to JetPack 6.1"),
        ("# R36 (release), REVISION: 5.0, GCID: 1", "device profile orin"),
        ("# R38 (release), REVISION: 2.1, GCID: 1", "device profile thor"),
        ("# R39 (release), REVISION: 2.0, GCID: 1", "orin-jp72 or thor"),
        ("# R40 (release), REVISION: 1.0, GCID: 1", "no JetPack known"),
        ("# something else", "no JetPack known"),
        ("", "an empty release file"),
    ],
)
def test_releases_of_jetson_linux(tmp_path: Path, release: str, said: str) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "nv_tegra_release").write_text(release)
    assert said in check_jetson(tmp_path).found
