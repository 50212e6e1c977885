from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggt_deploy import manifest as manifest_module
from vggt_deploy.errors import ArtifactError
from vggt_deploy.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    SCHEMA,
    from_json,
    hash_file,
    is_plain_name,
    now,
    read_manifest,
    record_files,
    to_json,
    write_manifest,
)
from vggt_deploy.records import (
    FileRecord,
    FramesRange,
    GraphRecord,
    LayerSummary,
    Manifest,
    ModelRecord,
)


def make_manifest(files: dict[str, FileRecord], **changes: Any) -> Manifest:
    manifest = Manifest(
        schema=SCHEMA,
        tool_version="0.1.0",
        kind="onnx",
        created=now(),
        model=ModelRecord("random:vggt-tiny", "vggt-tiny", None, None, None),
        scheme="int8_pc_sym",
        activations="float",
        precision="fp32",
        height=28,
        width=42,
        frames=FramesRange(1, 2, 4),
        outputs=("pose_enc", "depth"),
        graphs={"onnxruntime": GraphRecord("model.onnx", 21, {"a": "1"}, ("SomeFusion",))},
        layers=LayerSummary({"aggregator.x": "int8_pc_sym"}, include=("*",)),
        files=files,
        versions={"torch": "2.13.0"},
        verification={"depth": {"rel": 1e-6, "frames": [1, 2]}},
        notes=("a note",),
    )
    return dataclasses.replace(manifest, **changes)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """A finished artifact of two files."""
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"graph" * 1000)
    (folder / "weights.bin").write_bytes(bytes(range(256)) * 64)
    write_manifest(folder, make_manifest(record_files(folder)))
    return folder


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / MANIFEST_NAME
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_what_was_written_is_read(artifact: Path) -> None:
    manifest = read_manifest(artifact)
    assert manifest == make_manifest(record_files(artifact), created=manifest.created)
    assert manifest.bytes_total == 5000 + 256 * 64
    assert not list(artifact.glob(".*"))


def test_the_variant_label() -> None:
    assert make_manifest({}).variant == "int8_pc_sym"
    assert make_manifest({}, activations="dynamic").variant == "int8_pc_sym+dynamic"


def test_hash_reports_every_byte(artifact: Path) -> None:
    seen: list[int] = []
    digest = hash_file(artifact / "weights.bin", seen.append)
    assert digest == hashlib.sha256((artifact / "weights.bin").read_bytes()).hexdigest()
    assert sum(seen) == 256 * 64


def test_one_edited_byte_is_found(artifact: Path) -> None:
    data = bytearray((artifact / "weights.bin").read_bytes())
    data[777] ^= 1
    (artifact / "weights.bin").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"weights\.bin was changed after it was written"):
        read_manifest(artifact)
    # Only the hash can tell: this is what skipping it costs.
    read_manifest(artifact, check_hashes=False)


@pytest.mark.parametrize("check_hashes", [True, False])
def test_a_truncated_file_is_found_by_its_size(artifact: Path, check_hashes: bool) -> None:
    data = (artifact / "weights.bin").read_bytes()
    (artifact / "weights.bin").write_bytes(data[:-1])
    with pytest.raises(ArtifactError, match="is cut short: 16383 bytes, 16384 were written"):
        read_manifest(artifact, check_hashes=check_hashes)


def test_a_grown_file_is_found(artifact: Path) -> None:
    with (artifact / "model.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ArtifactError, match="has grown"):
        read_manifest(artifact)


def test_a_missing_file_is_named(artifact: Path) -> None:
    (artifact / "model.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"model\.onnx is missing"):
        read_manifest(artifact)


def test_a_folder_in_place_of_a_file(artifact: Path) -> None:
    (artifact / "model.onnx").unlink()
    (artifact / "model.onnx").mkdir()
    with pytest.raises(ArtifactError, match="is not a regular file"):
        read_manifest(artifact)


def test_a_file_that_can_not_be_read(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, _: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(manifest_module, "hash_file", fail)
    with pytest.raises(ArtifactError, match=r"model\.onnx can't be read \(Permission denied\)"):
        read_manifest(artifact)


def test_no_folder_no_manifest_not_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        read_manifest(tmp_path / "absent")
    with pytest.raises(ArtifactError, match=r"holds no manifest\.json"):
        read_manifest(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="is not a folder"):
        read_manifest(tmp_path / "file")


def test_a_newer_schema_is_named_before_anything_else_is_looked_at(artifact: Path) -> None:
    def newer(data: dict[str, Any]) -> None:
        data["schema"] = SCHEMA + 1
        data["something_new"] = {}
        del data["model"]

    edit(artifact, newer)
    with pytest.raises(ArtifactError, match=f"has schema {SCHEMA + 1}") as raised:
        read_manifest(artifact)
    assert "upgrade" in raised.value.fix


def test_an_older_schema_is_refused_with_its_own_message(artifact: Path) -> None:
    edit(artifact, lambda data: data.update(schema=SCHEMA - 1))
    with pytest.raises(ArtifactError, match=f"has schema {SCHEMA - 1}") as raised:
        read_manifest(artifact)
    assert "an older vggt-deploy wrote it" in raised.value.fix


@pytest.mark.parametrize("schema", [0, -1, "1", 1.0, True, None])
def test_a_schema_that_is_no_number(artifact: Path, schema: object) -> None:
    edit(artifact, lambda data: data.update(schema=schema))
    with pytest.raises(ArtifactError, match="schema is"):
        read_manifest(artifact)


@pytest.mark.parametrize(
    "name",
    [
        "../weights.bin",
        "/etc/passwd",
        "sub/weights.bin",
        "sub\\weights.bin",
        "..",
        ".",
        "",
        ".hidden",
        "C:weights.bin",
        "weights.bin\x00",
        "weights.bin\n",
        MANIFEST_NAME,
        "w" * 300,
    ],
)
def test_names_that_leave_the_folder_are_refused(artifact: Path, name: str) -> None:
    def escape(data: dict[str, Any]) -> None:
        data["files"][name] = data["files"]["weights.bin"]

    (artifact.parent / "weights.bin").write_bytes((artifact / "weights.bin").read_bytes())
    edit(artifact, escape)
    with pytest.raises(ArtifactError, match="not a plain name inside the folder"):
        read_manifest(artifact)
    with pytest.raises(ArtifactError, match="not a plain name"):
        write_manifest(artifact, make_manifest({name: FileRecord(1, "0" * 64)}))


def test_plain_names_are_accepted() -> None:
    for name in ("model.onnx", "model.tensorrt.onnx", "weights-00001_of+2.bin"):
        assert is_plain_name(name)


def set_in(*keys: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda data: data.pop("scheme"), "lacks the field 'scheme'"),
        (lambda data: data["model"].pop("spec"), "manifest.model lacks the field 'spec'"),
        (set_in("extra", value=1), "unknown field 'extra'"),
        (set_in("frames", "extra", value=1), "manifest.frames has an unknown field"),
        (set_in("height", value="28"), "manifest.height is str, expected int"),
        (set_in("height", value=True), "manifest.height is bool, expected int"),
        (set_in("height", value=28.0), "manifest.height is float, expected int"),
        (set_in("height", value=-14), "is not positive"),
        (set_in("height", value=10**400), None),
        (set_in("kind", value="plan"), "expected one of onnx, engine"),
        (set_in("kind", value="engine"), "kind is engine, and engine is NoneType"),
        (set_in("frames", value={"min": 3, "opt": 2, "max": 4}), "are not in order"),
        (set_in("frames", "min", value=0), "are not in order"),
        (set_in("frames", value=[1, 2, 3]), "expected an object"),
        (set_in("outputs", value="depth"), "manifest.outputs is str, expected tuple"),
        (set_in("outputs", value=[1]), r"manifest.outputs\[0\] is int, expected str"),
        (set_in("files", "model.onnx", "bytes", value=-1), "makes no sense"),
        (set_in("files", "model.onnx", "sha256", value="ABC"), "makes no sense"),
        (set_in("graphs", "onnxruntime", "file", value="other.onnx"), "not among the files"),
        (set_in("graphs", "onnxruntime", "opset", value=0), "has opset 0"),
        (set_in("verification", value=[1]), "manifest.verification is list, expected dict"),
        (set_in("versions", value=None), "manifest.versions is NoneType, expected dict"),
    ],
)
def test_wrong_content_is_named(
    artifact: Path, change: Callable[[dict[str, Any]], None], message: str | None
) -> None:
    edit(artifact, change)
    if message is None:  # absurd, but well formed: the reader need only survive it
        assert read_manifest(artifact).height == 10**400
        return
    with pytest.raises(ArtifactError, match=message):
        read_manifest(artifact)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "{",
        '{"schema": 1',
        '{"schema": NaN}',
        '{"schema": Infinity}',
        '{"schema": 1, "schema": 1}',
        "[" * 200_000,
        '{"schema": ' + "9" * 5000 + "}",
    ],
)
def test_text_that_is_not_json(artifact: Path, text: str) -> None:
    (artifact / MANIFEST_NAME).write_text(text)
    with pytest.raises(ArtifactError, match="is not valid JSON"):
        read_manifest(artifact)


@pytest.mark.parametrize("text", ["[]", "1", "null", '"x"'])
def test_json_that_is_not_an_object(artifact: Path, text: str) -> None:
    (artifact / MANIFEST_NAME).write_text(text)
    with pytest.raises(ArtifactError, match="top level is not an object"):
        read_manifest(artifact)


def test_bytes_that_are_not_text(artifact: Path) -> None:
    (artifact / MANIFEST_NAME).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArtifactError, match="not UTF-8"):
        read_manifest(artifact)


def test_a_huge_manifest_is_not_parsed(artifact: Path) -> None:
    with (artifact / MANIFEST_NAME).open("wb") as file:
        file.truncate(MAX_MANIFEST_BYTES + 1)
    with pytest.raises(ArtifactError, match="more than any manifest has"):
        read_manifest(artifact)


def test_numbers_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    manifest = make_manifest({}, graphs={}, verification={"rel": float("nan")})
    with pytest.raises(ArtifactError, match="not finite"):
        write_manifest(tmp_path, manifest)
    assert not list(tmp_path.iterdir())


text = st.text(max_size=20)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | text
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
names = st.from_regex(r"[a-z][a-z0-9.+_-]{0,20}", fullmatch=True)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    files = draw(
        st.dictionaries(names, st.builds(FileRecord, st.integers(0, 2**50), digests), min_size=1)
    )
    graph = st.builds(
        GraphRecord,
        st.sampled_from(sorted(files)),
        st.integers(1, 99),
        st.dictionaries(text, text, max_size=3),
        st.lists(text, max_size=3).map(tuple),
    )
    frames = sorted(draw(st.lists(st.integers(1, 10**6), min_size=3, max_size=3)))
    optional = st.none() | text
    return make_manifest(
        files,
        model=draw(st.builds(ModelRecord, text, text, optional, optional, optional)),
        graphs=draw(st.dictionaries(text, graph, max_size=2)),
        frames=FramesRange(*frames),
        scheme=draw(text),
        notes=tuple(draw(st.lists(text, max_size=3))),
        verification=draw(st.none() | st.dictionaries(text, json_values, max_size=3)),
    )


@given(manifests())
def test_every_manifest_survives_json(manifest: Manifest) -> None:
    assert from_json(to_json(manifest), source=Path("x")) == manifest


@given(json_values)
def test_any_json_is_a_manifest_or_an_artifact_error(value: object) -> None:
    with pytest.raises(ArtifactError):
        from_json(json.dumps(value), source=Path("x"))


@given(manifests(), st.data())
def test_any_field_replaced_never_crashes(manifest: Manifest, data: st.DataObject) -> None:
    content = json.loads(to_json(manifest))
    content[data.draw(st.sampled_from(sorted(content)))] = data.draw(json_values)
    with suppress(ArtifactError):
        from_json(json.dumps(content), source=Path("x"))
