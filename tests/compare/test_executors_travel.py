"""A job travels: its files go along, nothing on a node points back here, what it wrote returns."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_comparison import FAKE_WORKER
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vggt_deploy.compare.environment import describe_environment
from vggt_deploy.compare.executors import node, travel
from vggt_deploy.compare.executors.node import Parcel, run_parcel
from vggt_deploy.compare.executors.nodes import versions_of
from vggt_deploy.compare.executors.travel import (
    ROUTES,
    Itinerary,
    Post,
    arrive,
    collect,
    is_local,
    plan_journey,
    unpack,
)
from vggt_deploy.compare.jobs import (
    CalibrateJob,
    Calibration,
    ExportJob,
    Job,
    JobKind,
    LayerPatterns,
    MeasureJob,
    ModelQuestion,
    PrepareJob,
)
from vggt_deploy.data.folders import find_all_images


def put(chunk: travel.Bytes) -> travel.Bytes:
    """A store that is this process."""
    return chunk


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """All that jobs read: a checkpoint, pictures, arrays, statistics, an artifact."""
    root = tmp_path / "here"
    for name in ("model.safetensors", "artifact/graph.onnx", "artifact/deep/weights.bin"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    (root / "statistics").mkdir()
    (root / "statistics" / "calibration.json").write_text("{}")
    (root / "prepared").mkdir()
    (root / "prepared" / "prepared.json").write_text("{}")
    np.save(root / "images.npy", np.zeros((2, 3, 14, 14), dtype=np.float32))
    pictures = root / "pictures"
    pictures.mkdir()
    for number in range(2):
        Image.new("RGB", (14, 14), (number, 0, 0)).save(pictures / f"img{number}.png")
    (pictures / "huge.mp4").write_bytes(b"a film")
    return root


def jobs(root: Path) -> dict[JobKind, Job]:
    """One job of each kind that travels, with every path set."""
    model = ModelQuestion(str(root / "model.safetensors"))
    shared: dict[str, Any] = {"parent": 1, "model": model, "threads": 1}
    pictures = str(root / "pictures")
    size: dict[str, Any] = {"height": 14, "width": 14}
    look: dict[str, Any] = {**size, "mode": "crop", "frames_per_pass": 2, "skip_bad": False}
    calibration = Calibration(str(root / "statistics"), "absmax")
    variant: dict[str, Any] = {
        "precision": "fp32",
        "outputs": ("pose",),
        "layers": LayerPatterns(),
        "calibration": calibration,
        "prepared": str(root / "prepared"),
        "scheme": "int8_pc_sym",
    }
    measure = MeasureJob(
        **shared,
        **variant,
        answer=str(root / "work" / "a.answer.json"),
        runtime="onnxruntime",
        activations="static",
        artifact=str(root / "artifact"),
        images=str(root / "images.npy"),
        arrays=str(root / "outputs" / "a.npz"),
        warmup=0,
        repeats=1,
        size_probe=str(root / "work" / "weights.pt"),
    )
    calibrate = CalibrateJob(
        **shared,
        **look,
        answer=str(root / "work" / "c.answer.json"),
        images=pictures,
        folder=str(root / "work" / "calibration"),
    )
    prepare = PrepareJob(
        **shared,
        **look,
        answer=str(root / "work" / "p.answer.json"),
        label="int8_pc_sym+smooth",
        precision="fp32",
        outputs=("pose",),
        images=pictures,
        folder=str(root / "work" / "prepared" / "int8_pc_sym+smooth"),
        layers=LayerPatterns(),
    )
    export = ExportJob(
        **shared,
        **variant,
        **size,
        answer=str(root / "work" / "e.answer.json"),
        label="int8_pc_sym",
        frames=(1, 2, 16),
        folder=str(root / "artifacts" / "int8_pc_sym"),
        trace_cache=str(root / "work" / "traces"),
        verify=False,
    )
    return {
        "calibrate": calibrate,
        "prepare": prepare,
        "export": export,
        "measure": measure,
        "compute": measure,
    }


def texts(value: object) -> list[str]:
    """All strings in plain JSON."""
    if isinstance(value, dict):
        return [text for inner in value.values() for text in texts(inner)]
    if isinstance(value, list | tuple):
        return [text for inner in value for text in texts(inner)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize("kind", ROUTES)
def test_no_path_of_this_machine_goes_along(here: Path, tmp_path: Path, kind: JobKind) -> None:
    job = jobs(here)[kind]
    assert any(str(here) in text for text in texts(asdict(job)))
    journey = plan_journey(kind, job)
    assert [text for text in texts(journey.job) if str(here) in text] == []
    for path in journey.inputs.values():
        assert path.is_file()
    scratch = tmp_path / "there"
    there = arrive(journey.job, journey.moved, scratch)
    paths = [text for text in texts(there) if text.startswith(str(scratch))]
    assert len(paths) == len(set(paths)) == len(journey.moved)
    assert all(Path(path).parent.is_dir() for path in paths)


def test_a_path_that_no_route_names_would_be_noticed(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    route = travel.Route(
        **{f.name: getattr(ROUTES["measure"], f.name) for f in fields(travel.Route)}
    )
    less = travel.Route(tuple(x for x in route.inputs if x != "prepared"), (), route.outputs)
    monkeypatch.setitem(ROUTES, "measure", less)
    with pytest.raises(AssertionError):
        test_no_path_of_this_machine_goes_along(here, tmp_path, "measure")


def test_of_a_folder_to_look_at_the_pictures_alone_travel(here: Path, tmp_path: Path) -> None:
    scene = here / "scenes" / "one" / "images" / "dslr_images_undistorted"
    scene.mkdir(parents=True)
    Image.new("RGB", (14, 14)).save(scene / "DSC_1.JPG")
    depth = here / "scenes" / "one" / "ground_truth_depth" / "dslr_images"
    depth.mkdir(parents=True)
    (depth / "DSC_1.JPG").write_bytes(b"floats")
    for folder, count in ((here / "pictures", 2), (here / "scenes", 1)):
        job = asdict(jobs(here)["calibrate"]) | {"images": str(folder)}
        job["model"] = ModelQuestion("random:vggt-tiny")
        journey = plan_journey("calibrate", CalibrateJob(**job))
        assert len(journey.inputs) == count
        there = tmp_path / "there" / folder.name
        for name, path in journey.inputs.items():
            (there / name).parent.mkdir(parents=True, exist_ok=True)
            (there / name).write_bytes(path.read_bytes())
        found = find_all_images(there / journey.job["images"])
        assert [list(x) for x in found] == [list(x) for x in find_all_images(folder)]


@pytest.mark.parametrize(
    "spec", ["random:vggt-tiny:3", "vggt-nano", "out/model", "facebook/VGGT-1B"]
)
def test_a_model_that_is_no_file_here_stays_as_it_is(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    monkeypatch.chdir(here)
    assert not is_local(spec)
    job = jobs(here)["calibrate"]
    journey = plan_journey("calibrate", _with_model(job, spec))
    assert arrive(journey.job, journey.moved, tmp_path / "there")["model"]["spec"] == spec


def test_a_folder_with_a_checkpoint_travels_whole(here: Path) -> None:
    (here / "checkpoint").mkdir()
    (here / "checkpoint" / "model.safetensors").write_bytes(b"weights")
    journey = plan_journey("calibrate", _with_model(jobs(here)["calibrate"], here / "checkpoint"))
    name = "in/model.spec/checkpoint"
    assert journey.job["model"]["spec"] == name
    assert journey.inputs[f"{name}/model.safetensors"].read_bytes() == b"weights"


def _with_model(job: Job, spec: str | Path) -> CalibrateJob:
    return CalibrateJob(**asdict(job) | {"model": ModelQuestion(str(spec))})


@given(content=st.binary(max_size=50), chunk=st.integers(1, 20))
def test_chunks_are_the_file(content: bytes, chunk: int, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("chunks") / "file"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(travel, "CHUNK_BYTES", chunk)
        chunks = Post(put, 2**20).send(path)
    assert b"".join(bytes(part) for part in chunks) == content
    assert all(len(part) <= chunk for part in chunks)


def test_one_content_is_put_once_and_a_changed_file_again(tmp_path: Path) -> None:
    count = []

    def counted(chunk: travel.Bytes) -> str:
        count.append(len(chunk))
        return hashlib.sha256(chunk).hexdigest()

    post = Post(counted, 2**20)
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"weights")
    second.write_bytes(b"weights")
    assert post.send(first) == post.send(second) == post.send(first)
    assert count == [7]
    first.write_bytes(b"changed")
    os.utime(first, ns=(1, 1))
    assert post.send(first) != post.send(second)
    assert count == [7, 7]


def test_what_came_back_replaces_what_was_there_whole(tmp_path: Path) -> None:
    target, file = tmp_path / "artifact", tmp_path / "arrays.npz"
    (target / "old").mkdir(parents=True)
    scratch = tmp_path / "scratch"
    for name, content in (("out/folder/artifact/deep/new", b"new"), ("out/arrays/a.npz", b"zip")):
        (scratch / name).parent.mkdir(parents=True)
        (scratch / name).write_bytes(content)
    outputs = {"out/folder/artifact": target, "out/arrays/a.npz": file}
    unpack(collect(scratch, tuple(outputs)), outputs)
    assert [p.relative_to(target).as_posix() for p in target.rglob("*")] == ["deep", "deep/new"]
    assert file.read_bytes() == b"zip"
    unpack({}, outputs)  # a job that failed wrote nothing: what was there stays
    assert (target / "deep" / "new").read_bytes() == b"new"


def test_a_disk_that_fills_while_it_comes_back_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "artifact"
    target.mkdir()
    (target / "old").write_text("old")
    write = travel._write

    def fill(path: Path, content: travel.Bytes) -> None:
        if path.name == "b":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    monkeypatch.setattr(travel, "_write", fill)
    files = {f"out/artifact/{name}": np.zeros(3, dtype=np.uint8) for name in "ab"}
    with pytest.raises(OSError, match="No space"):
        unpack(files, {"out/artifact": target})
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
    assert (target / "old").read_text() == "old"


@pytest.fixture
def parcel(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`parcel(behaviour)`: a measurement that a fake worker does, and where scratch folders are."""
    monkeypatch.setattr(node.tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    plan = tmp_path / "plan.json"

    def make(behaviour: str = "", timeout_s: float = 30.0) -> tuple[Parcel, Itinerary]:
        plan.write_text(json.dumps({"onnxruntime/int8_pc_sym+static": behaviour}))
        journey = plan_journey("measure", jobs(here)["measure"])
        post = Post(put, 2**20)
        files = {name: post.send(path) for name, path in journey.inputs.items()}
        command = (None, str(FAKE_WORKER), str(plan))
        outputs = tuple(journey.outputs)
        made = Parcel(
            command,
            "measure",
            journey.job,
            journey.moved,
            files,
            sum(path.stat().st_size for path in journey.inputs.values()),
            outputs,
            timeout_s,
            1,
            versions_of(describe_environment()),
            "token",
        )
        return made, journey

    return make


def test_a_node_runs_the_job_and_keeps_nothing(parcel: Any, tmp_path: Path) -> None:
    made, journey = parcel()
    returned = run_parcel(made, lambda chunk: chunk)
    assert returned.outcome.ok
    assert json.loads(returned.answer or b"")["ok"]["latency"]["n"] == 1
    unpack(returned.files, journey.outputs)
    (target,) = journey.outputs.values()
    with np.load(target) as arrays:
        assert arrays["depth"].shape == (1, 2, 14, 14, 1)
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize(
    "behaviour, words", [("crash", "SIGSEGV"), ("hang", "time limit"), ("exit 3", "code 3")]
)
def test_a_process_that_fails_on_a_node_is_an_answer(
    parcel: Any, tmp_path: Path, behaviour: str, words: str
) -> None:
    # Long for one that ends by itself, however busy this machine is.
    limit = 1.0 if behaviour == "hang" else 60.0
    returned = run_parcel(parcel(behaviour, limit)[0], lambda chunk: chunk)
    assert words in returned.outcome.describe()
    assert returned.answer is None
    assert returned.files == {}
    assert f"about to: {behaviour}".encode() in returned.log or behaviour == "hang"
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_node_with_too_little_space_says_so_before_it_begins(
    parcel: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, journey = parcel()
    needed = sum(path.stat().st_size for path in journey.inputs.values())
    assert made.bytes == needed > 0
    for free, fits in ((needed - 1, False), (needed + 2**20, True)):
        monkeypatch.setattr(node.shutil, "disk_usage", lambda _, free=free: Space(free))
        if fits:
            assert run_parcel(made, lambda chunk: chunk).outcome.ok
        else:
            with pytest.raises(node.UnfitError, match="and what the job reads takes") as caught:
                run_parcel(made, lambda chunk: chunk)
            assert "TMPDIR" in caught.value.fix
            assert not (tmp_path / "plan.calls").exists()
    assert list((tmp_path / "scratch").iterdir()) == []


@dataclass
class Space:
    free: int


@pytest.mark.parametrize("free, behaviour", [(2**30, "no space"), (0, "exit 3")])
def test_a_job_that_failed_on_a_full_disk_is_the_nodes_fault(
    parcel: Any, monkeypatch: pytest.MonkeyPatch, free: int, behaviour: str
) -> None:
    """By its words, or because nothing is free; with space, and other words, it is the job's."""
    made, _ = parcel(behaviour)
    monkeypatch.setattr(node, "_check_space", lambda *_: None)
    monkeypatch.setattr(node.shutil, "disk_usage", lambda _: Space(free))
    with pytest.raises(node.UnfitError, match="its disk was full"):
        run_parcel(made, lambda chunk: chunk)
    monkeypatch.setattr(node.shutil, "disk_usage", lambda _: Space(2**30))
    assert run_parcel(parcel("exit 3")[0], lambda chunk: chunk).outcome.returncode == 3


def test_a_node_with_other_versions_refuses(parcel: Any, tmp_path: Path) -> None:
    made, _ = parcel()
    other = replace(made, versions=made.versions | {"numpy": "0.1"})
    with pytest.raises(node.UnfitError, match=r"it has numpy [0-9.]+, this machine 0\.1"):
        run_parcel(other, lambda chunk: chunk)
    assert not (tmp_path / "plan.calls").exists()


def test_of_what_nobody_has_any_more_the_last_stays(tmp_path: Path) -> None:
    count: list[bytes] = []

    def counted(chunk: travel.Bytes) -> str:
        count.append(bytes(chunk))
        return f"object {len(count)}"

    post = Post(counted, 10)
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode() * 5)
    first = post.send(tmp_path / "a")
    post.send(tmp_path / "b")
    assert post.send(tmp_path / "a") == first  # 10 bytes are kept
    post.send(tmp_path / "c")  # b was sent longest ago
    assert post.send(tmp_path / "a") == first
    post.send(tmp_path / "b")
    assert [chunk[:1] for chunk in count] == [b"a", b"b", b"c", b"b"]
    (tmp_path / "large").write_bytes(b"d" * 11)
    assert post.send(tmp_path / "large") == ("object 5",)  # whoever asked has it
    assert post._kept == {}


def test_what_a_killed_node_left_is_removed_by_the_next_job(parcel: Any, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    long_ago = time.time() - 3600.0
    for name in ("vggt-deploy-job-dead", "vggt-deploy-job-young", "vggt-deploy-job-busy", "mine"):
        (scratch / name).mkdir()
        (scratch / name / "lock").touch()
        os.utime(scratch / name, (long_ago, long_ago))
    os.utime(scratch / "vggt-deploy-job-young")
    with (scratch / "vggt-deploy-job-busy" / "lock").open("wb") as lock:
        node.fcntl.flock(lock, node.fcntl.LOCK_EX)
        run_parcel(parcel()[0], lambda chunk: chunk)
    left = {path.name for path in scratch.iterdir()}
    assert left == {"vggt-deploy-job-young", "vggt-deploy-job-busy", "mine"}


def test_the_interpreter_of_the_node_is_taken(parcel: Any) -> None:
    made, _ = parcel()
    assert made.command[0] is None
    assert sys.executable not in [word for word in made.command if word is not None]
