"""The Hub, played by a small local server: revisions, cache, licence, and what goes wrong."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from safetensors.torch import save_file

from vggt_deploy.model.weights import open_weights

COMMIT = "a" * 40
REPOSITORIES = ("facebook/VGGT-1B", "someone/tiny", "someone/empty")


class FakeHub:
    """A server with the three things a download asks: HEAD and GET of a file, and error codes."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.gets = 0
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                hub.gets += 1
                self.answer(body=True)

            def answer(self, *, body: bool) -> None:
                status, error = hub.status(self.path)
                content = hub.content if status == 200 else b""
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                if error:
                    self.send_header("X-Error-Code", error)
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.end_headers()
                if body:
                    self.wfile.write(content)

            def log_message(self, *args: object) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def status(self, path: str) -> tuple[int, str | None]:
        owner, name, _, revision, file = path.lstrip("/").split("/", 4)
        repository = f"{owner}/{name}"
        if repository == "someone/gated":
            return 403, "GatedRepo"
        if repository not in REPOSITORIES:
            return 404, "RepoNotFound"
        if revision not in ("main", COMMIT):
            return 404, "RevisionNotFound"
        if repository == "someone/empty" or file != "model.safetensors":
            return 404, "EntryNotFound"
        return 200, None


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    _, source = open_weights("random:vggt-tiny")
    path = tmp_path_factory.mktemp("hub") / "model.safetensors"
    save_file({key: source.load(key) for key in source.keys()}, path)  # noqa: SIM118
    fake = FakeHub(path.read_bytes())
    yield fake
    fake.server.shutdown()
    fake.server.server_close()


ASK = """
import dataclasses, json, sys, torch
from vggt_deploy.errors import DeployError
from vggt_deploy.model.weights import open_weights
torch.set_num_threads(1)
answers = []
for spec, revision in json.loads(sys.argv[1]):
    try:
        config, source = open_weights(spec, revision=revision)
        answers.append([config.name, dataclasses.asdict(source.origin)])
    except DeployError as error:
        answers.append([type(error).__name__, error.message])
print(json.dumps(answers))
"""


class Client:
    """Asks in a process of its own: huggingface_hub reads its settings when it is imported."""

    def __init__(self, hub: FakeHub, cache: Path) -> None:
        self.endpoint = f"http://127.0.0.1:{hub.server.server_port}"
        self.cache = cache
        self.stderr = ""

    def ask(self, *questions: tuple[str, str | None], **settings: str) -> list[list[object]]:
        environment = os.environ | {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(self.cache),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        done = subprocess.run(
            [sys.executable, "-c", ASK, json.dumps(questions)],
            env=environment | settings,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        self.stderr = done.stderr
        answers: list[list[object]] = json.loads(done.stdout)
        return answers


def test_download_pins_the_revision_and_is_cached(hub: FakeHub, tmp_path: Path):
    client = Client(hub, tmp_path)
    [[config, origin]] = client.ask(("facebook/VGGT-1B", None))
    assert config == "vggt-tiny"
    assert origin == {
        "spec": "facebook/VGGT-1B",
        "kind": "hub",
        "revision": COMMIT,
        "sha256": hashlib.sha256(hub.content).hexdigest(),
        "licence": "CC BY-NC 4.0: non-commercial use only, also of anything derived from it",
    }
    assert client.stderr.count("non-commercial") == 1
    downloads = hub.gets
    again = client.ask(("facebook/VGGT-1B", COMMIT), ("facebook/VGGT-1B", "main"))
    assert [answer[1] for answer in again] == [origin, origin]
    assert hub.gets == downloads
    assert "non-commercial" not in client.stderr  # said at the download, and not again
    # A pinned commit in the cache needs no network; neither does a branch when told so.
    gone = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    assert client.ask(("facebook/VGGT-1B", COMMIT), **gone) == [[config, origin]]
    offline = client.ask(("facebook/VGGT-1B", None), ("someone/tiny", None), HF_HUB_OFFLINE="1")
    assert offline[0] == [config, origin]
    assert offline[1][0] == "ModelError"
    assert "can't be reached" in str(offline[1][1])


def test_what_goes_wrong_is_a_model_error(hub: FakeHub, tmp_path: Path):
    answers = Client(hub, tmp_path).ask(
        ("someone/gated", None),
        ("someone/nothing", None),
        ("someone/tiny", "v9"),
        ("someone/empty", None),
        ("bad..name/x--y", None),
    )
    kinds, messages = zip(*answers, strict=True)
    assert set(kinds) == {"ModelError"}
    expected = (
        "is gated",
        "no such repository",
        "no revision 'v9'",
        "holds none of model.safetensors, model.pt",
        "download failed",
    )
    for message, part in zip(messages, expected, strict=True):
        assert part in message
