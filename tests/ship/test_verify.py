"""Checking a bundle: every way in which it can be wrong has its own message, and none gets past."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vggt_deploy.errors import ArtifactError, BundleError, DeployError
from vggt_deploy.manifest import SCHEMA as MANIFEST_SCHEMA
from vggt_deploy.ship import verify as module
from vggt_deploy.ship.bundle import bundle
from vggt_deploy.ship.index import MAX_MEMBERS
from vggt_deploy.ship.verify import unpack, verify

Make = Callable[..., Path]
Forge = Callable[..., Path]
Members = list[tuple[tarfile.TarInfo, bytes]]


def flip(path: Path, position: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def position_of(path: Path, member: str) -> int:
    with tarfile.open(path) as archive:
        return archive.getmember(member).offset_data


def test_a_sound_bundle(packed: Path) -> None:
    found = verify(packed, device=False)
    assert found.signature == "unsigned"
    assert [e.name for e in found.index.engines] == ["h200", "rtx4090"]
    assert found.device is None
    assert found.fits == ()
    assert json.loads(json.dumps(found.to_json()))["index"]["onnx"] is True


def test_a_tampered_plan_is_named_and_its_header_never_read(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poison(*_: object, **__: object) -> object:
        raise AssertionError("a plan was looked at before its hash was checked")

    monkeypatch.setattr(module, "read_plan_header", poison)
    monkeypatch.setattr(module, "installed_version", poison)
    with pytest.raises(AssertionError, match="looked at"):
        verify(packed)  # the poison works: a sound bundle gets as far as that
    flip(packed, position_of(packed, "engines/rtx4090/model.engine") + 3000)
    with pytest.raises(BundleError, match=r"engines/rtx4090/model\.engine was changed"):
        verify(packed)
    with pytest.raises(BundleError, match="was changed"):
        unpack(packed, tmp_path / "out", engine="rtx4090")
    with pytest.raises(BundleError, match="was changed"):
        unpack(packed, tmp_path / "out", engine="h200")  # the other engine is sound
    assert not (tmp_path / "out").exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".out")]


def test_a_changed_index(packed: Path) -> None:
    flip(packed, position_of(packed, "index.json") + 40)
    with pytest.raises(BundleError, match=r"index\.json was changed, its SHA-256"):
        verify(packed)


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9, -1])
def test_a_truncated_file(packed: Path, keep: float) -> None:
    data = packed.read_bytes()
    packed.write_bytes(data[: int(len(data) * keep)] if keep > 0 else data[:-1])
    with pytest.raises(BundleError, match=r"is cut short: at least [0-9]+ bytes are missing"):
        verify(packed)


def test_bytes_after_the_end(packed: Path) -> None:
    packed.write_bytes(packed.read_bytes() + b"\0" * 512)
    with pytest.raises(BundleError, match="512 bytes more than its index accounts for"):
        verify(packed)


def test_bytes_between_the_files(packed: Path, h200: Path) -> None:
    size = (h200 / "model.engine").stat().st_size
    assert size % 512
    flip(packed, position_of(packed, "engines/h200/model.engine") + size + 1)
    with pytest.raises(BundleError, match="bytes between or after its files"):
        verify(packed)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04" + b"\0" * 600, b"index.json\0" + b"x" * 600]
)
def test_other_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"is not a bundle|header of index\.json is damaged"):
        verify(path)
    with pytest.raises(BundleError, match="does not exist"):
        verify(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="is not a file"):
        verify(tmp_path)


@pytest.mark.parametrize(
    "schema, message", [(0, "older than 1"), (2, "newer than 1"), ("1", "no schema number")]
)
def test_another_schema(packed: Path, forge: Forge, schema: object, message: str) -> None:
    forge(packed, index=lambda index: index.update(schema=schema))
    with pytest.raises(BundleError, match=message):
        verify(packed)


@pytest.mark.parametrize(
    "name, message",
    [
        ("../../.bashrc", "reaches outside"),
        ("/etc/passwd", "reaches outside"),
        ("engines/h200/../../x", "reaches outside"),
        ("engines\\h200\\model.engine", "reaches outside"),
        ("C:/windows", "reaches outside"),
        ("engines/h200", "no place for a file"),
        ("engines/h200/.hidden", "no place for a file"),
        ("engines/h200/deep/er", "no place for a file"),
        ("elsewhere/file", "no place for a file"),
        ("engines/h200/" + "a" * 100, "no place for a file"),
        ("engines/H200/Model.engine", "twice"),
    ],
)
def test_names_that_are_not_for_a_bundle(
    packed: Path, forge: Forge, tmp_path: Path, name: str, message: str
) -> None:
    def rename(index: dict[str, Any]) -> None:
        files = index["files"]
        (target,) = (f for f in files if f["path"] == "engines/rtx4090/model.engine")
        target["path"] = name

    def follow(members: Members) -> None:
        for info, _ in members:
            if info.name == "engines/rtx4090/model.engine":
                info.name = name

    forge(packed, index=rename, members=follow)
    for check in (lambda: verify(packed), lambda: unpack(packed, tmp_path / "out", engine="h200")):
        with pytest.raises(BundleError, match=message):
            check()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "kind, message",
    [
        (tarfile.SYMTYPE, "is a link"),
        (tarfile.LNKTYPE, "is a link"),
        (tarfile.CHRTYPE, "is no plain file"),
        (tarfile.DIRTYPE, "is no plain file"),
    ],
)
def test_links_and_devices(packed: Path, forge: Forge, kind: bytes, message: str) -> None:
    def replace(members: Members) -> None:
        for info, _ in members:
            if info.name == "engines/h200/model.engine":
                info.type, info.linkname = kind, "/etc/passwd"

    forge(packed, members=replace)
    with pytest.raises(BundleError, match=message):
        verify(packed)


def test_a_member_under_another_name_or_with_another_size(packed: Path, forge: Forge) -> None:
    def rename(members: Members) -> None:
        members[-1][0].name = "onnx/other.bin"

    original = packed.read_bytes()
    forge(packed, members=rename)
    with pytest.raises(BundleError, match=r"'onnx/other\.bin' stands where the index has"):
        verify(packed)
    packed.write_bytes(original)

    def mode(members: Members) -> None:
        members[-1][0].mode = 0o4755

    forge(packed, members=mode)
    with pytest.raises(BundleError, match=r"header of onnx/weights\.bin was changed"):
        verify(packed)


def test_an_index_that_would_fill_the_memory(packed: Path) -> None:
    data = bytearray(packed.read_bytes())
    info = tarfile.TarInfo("index.json")
    info.size, info.mode = 2**40, 0o644
    data[:512] = info.tobuf(tarfile.GNU_FORMAT)
    packed.write_bytes(data)
    with pytest.raises(BundleError, match=r"index\.json has 1099511627776 bytes"):
        verify(packed)


def test_an_index_with_more_files_than_any(packed: Path, forge: Forge) -> None:
    def many(index: dict[str, Any]) -> None:
        index["files"] = [
            {"path": f"onnx/f{i}", "bytes": 0, "sha256": "0" * 64} for i in range(MAX_MEMBERS + 1)
        ]

    forge(packed, index=many)
    with pytest.raises(BundleError, match=f"at most {MAX_MEMBERS}"):
        verify(packed)


def test_sizes_of_the_index_that_no_file_has(packed: Path, forge: Forge) -> None:
    def huge(index: dict[str, Any]) -> None:
        index["files"][-1]["bytes"] = 2**50

    forge(packed, index=huge)
    with pytest.raises(BundleError, match="is cut short"):
        verify(packed)


@pytest.mark.parametrize(
    "edit",
    [
        lambda index: index.pop("contract"),
        lambda index: index.update(extra=1),
        lambda index: index.update(height="42"),
        lambda index: index["files"][0].update(bytes=-1),
        lambda index: index["files"][0].update(sha256="zz"),
        lambda index: index.update(onnx=False),
        lambda index: index["engines"].pop(),
        lambda index: index["engines"][1].update(name="h200"),
        lambda index: index["files"].pop(0),
    ],
)
def test_a_malformed_index(packed: Path, forge: Forge, edit: Callable[[Any], Any]) -> None:
    forge(packed, index=edit)
    with pytest.raises(BundleError, match="is not a bundle of this version"):
        verify(packed)


@pytest.mark.parametrize(
    "field, value", [("compute_capabilities", ["8.9"]), ("runtime_version", "10.3.0.30")]
)
def test_an_index_that_says_other_things_than_the_manifest(
    packed: Path, forge: Forge, tmp_path: Path, field: str, value: object
) -> None:
    forge(packed, index=lambda index: index["engines"][0].update({field: value}))
    with pytest.raises(BundleError, match="say different things of the engine h200"):
        verify(packed)
    with pytest.raises(BundleError, match="say different things of the engine h200"):
        unpack(packed, tmp_path / "out", engine="h200")
    assert not (tmp_path / "out").exists()


def swap_manifest(packed: Path, forge: Forge, edit: Callable[[dict[str, Any]], None]) -> None:
    """Replace the manifest of the H200 engine, with hashes that fit."""
    import hashlib

    with tarfile.open(packed) as archive:
        data = json.load(archive.extractfile("engines/h200/manifest.json"))  # type: ignore[arg-type]
    edit(data)
    text = json.dumps(data).encode()

    def in_index(index: dict[str, Any]) -> None:
        index["files"][0].update(bytes=len(text), sha256=hashlib.sha256(text).hexdigest())

    def in_members(members: Members) -> None:
        info = members[0][0]
        assert info.name == "engines/h200/manifest.json"
        info.size = len(text)
        members[0] = (info, text)

    forge(packed, index=in_index, members=in_members)


def test_an_older_manifest_inside(packed: Path, forge: Forge) -> None:
    swap_manifest(packed, forge, lambda data: data.update(schema=MANIFEST_SCHEMA - 1))
    with pytest.raises(ArtifactError, match=f"has schema {MANIFEST_SCHEMA - 1}"):
        verify(packed)


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda d: d["files"]["model.engine"].update(bytes=7), "list different files"),
        (lambda d: d.update(height=56), "is of another model"),
        (lambda d: d["model"].update(spec="other/model"), "is of another model"),
    ],
)
def test_a_manifest_that_does_not_belong(
    packed: Path, forge: Forge, edit: Callable[[Any], Any], message: str
) -> None:
    swap_manifest(packed, forge, edit)
    with pytest.raises(BundleError, match=message):
        verify(packed)


def test_memory_of_other_profiles_than_the_engine_has(
    make_engine: Make, packed: Path, forge: Forge, make_device: Callable[..., Any], monkeypatch: Any
) -> None:
    """Index and manifest agree, and make no sense: refused, and no traceback of what reads them."""
    from vggt_deploy.ship import verify as module

    monkeypatch.setattr(module, "cuda_device", lambda: make_device())
    swap_manifest(packed, forge, lambda d: d["engine"].update(activation_bytes=[10**6]))
    forge(packed, index=lambda index: index["engines"][0].update(activation_bytes=[10**6]))
    with pytest.raises(ArtifactError, match="memory for 1 of 2 profiles"):
        verify(packed)
    with pytest.raises(ArtifactError, match="memory for 1 of 2 profiles"):
        make_engine("wrong", activation_bytes=(10**6,))


def test_a_plan_by_another_builder_than_the_manifest_says(
    make_engine: Make, h200: Path, tmp_path: Path
) -> None:
    data = bytearray((h200 / "model.engine").read_bytes())
    data[26] = 99
    wrong = make_engine("wrong", data=bytes(data))
    path = bundle([wrong], tmp_path / "wrong.bundle").path
    with pytest.raises(BundleError, match=r"was built by tensorrt 10\.16\.99\.11, the index says"):
        verify(path)
    with pytest.raises(BundleError, match="was built by"):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def check_flip(path: Path, original: bytes, position: int, bit: int) -> None:
    data = bytearray(original)
    data[position] ^= 1 << bit
    path.write_bytes(data)
    with pytest.raises(DeployError):
        verify(path, device=False)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_no_flipped_bit_gets_past(packed: Path, data: st.DataObject) -> None:
    """No byte is free: headers, padding, end and every file are all accounted for."""
    kept = packed.with_name("kept")
    if not kept.exists():
        kept.write_bytes(packed.read_bytes())
    original = kept.read_bytes()
    position = data.draw(st.integers(0, len(original) - 1))
    check_flip(packed, original, position, data.draw(st.integers(0, 7)))


def test_no_flipped_byte_of_any_header_gets_past(packed: Path) -> None:
    original = packed.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(original)) as archive:
        starts = [info.offset for info in archive]
    assert len(starts) == 10
    for start in starts:
        for position in range(start, start + 512, 13):
            check_flip(packed, original, position, 0)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=3000))
def test_arbitrary_bytes_are_refused_with_words(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("bytes") / "b"
    for content in (data, b"index.json\0" + data):
        path.write_bytes(content)
        with pytest.raises(BundleError):
            verify(path)


@pytest.mark.parametrize(
    "installed, capability, onnx_inside, advice",
    [
        ((10, 16, 1, 11), "9.0", True, "unpack"),
        ((10, 16, 1, 11), None, True, "verify it on a device with a GPU"),
        ("there is none", "9.0", True, r"install tensorrt 10\.16\.1\.11 for h200"),
        ("there is none", None, True, r"install tensorrt 10\.16\.1\.11 for h200"),
        ("there is none", "8.7", True, "rebuild"),
        ((10, 3, 0, 30), "8.7", True, "rebuild"),
        ((10, 3, 0, 30), "8.7", False, "no ONNX is inside"),
    ],
)
def test_the_advice_is_what_helps(
    h200: Path,
    onnx: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_device: Callable[..., Any],
    installed: Any,
    capability: str | None,
    onnx_inside: bool,
    advice: str,
) -> None:
    path = bundle([h200], tmp_path / "b", with_onnx=onnx if onnx_inside else None).path
    device = "none" if capability is None else make_device(compute_capability=capability)
    monkeypatch.setattr(module, "cuda_device", lambda: device)
    monkeypatch.setattr(module, "installed_version", lambda runtime: installed)
    found = verify(path)
    assert re.search(advice, found.advice), found.advice
    assert (found.runnable == ("h200",)) == (advice == "unpack")
    assert found.device == device
    assert list(found.installed) == ["tensorrt"]


def test_without_a_gpu_it_is_an_answer_and_no_error(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "cuda_device", lambda: "no CUDA device here")
    found = verify(packed)
    assert found.device == "no CUDA device here"
    assert found.runnable == ()
    assert {f.state for f in found.fits} <= {"not known", "does not fit"}
