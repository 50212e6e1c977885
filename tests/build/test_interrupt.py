"""Ctrl-C in the middle of a build: a real signal, a real TensorRT."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from vggt_deploy.build.interrupt import postponed
from vggt_deploy.manifest import read_manifest


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def start(artifact: Path, target: Path) -> subprocess.Popen[str]:
    script = Path(__file__).with_name("interrupted_build.py")
    process = subprocess.Popen(
        [sys.executable, str(script), str(artifact), str(target)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == "building\n", process.communicate()[1]
    return process


def test_ctrl_c_leaves_nothing(network: Any, save_artifact: Any, tmp_path: Path) -> None:
    artifact = save_artifact(
        tmp_path / "artifact", network.model(network.softmax_chain(200)), activations="float"
    )
    process = start(artifact, tmp_path / "engine")
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert listing(tmp_path) == ["artifact"]


def test_ctrl_c_many_times_leaves_nothing(network: Any, save_artifact: Any, tmp_path: Path) -> None:
    """The process must end by itself: Python must not go before TensorRT's threads."""
    artifact = save_artifact(
        tmp_path / "artifact", network.model(network.softmax_chain(200)), activations="float"
    )
    process = start(artifact, tmp_path / "engine")
    for _ in range(5):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    _, errors = process.communicate(timeout=60)
    # -SIGINT: TensorRT had stopped already, and a later Ctrl-C met Python on its way out.
    assert process.returncode in (130, -signal.SIGINT), errors
    assert "rethrown" not in errors
    assert listing(tmp_path) == ["artifact"]


def test_without_it_the_same_build_succeeds(
    network: Any, save_artifact: Any, tmp_path: Path
) -> None:
    artifact = save_artifact(
        tmp_path / "artifact", network.model(network.softmax_chain(50)), activations="float"
    )
    process = start(artifact, tmp_path / "engine")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert read_manifest(tmp_path / "engine").engine is not None
    assert listing(tmp_path) == ["artifact", "engine"]


def test_it_takes_effect_when_the_block_has_ended() -> None:
    events = []
    with pytest.raises(KeyboardInterrupt), postponed(lambda: events.append("asked")):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        events.append("still here")
    assert events == ["asked", "asked", "still here"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_of_the_block_comes_first() -> None:
    with pytest.raises(ZeroDivisionError), postponed(lambda: None):
        signal.raise_signal(signal.SIGINT)
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_ctrl_c_nothing_happens() -> None:
    with postponed(lambda: pytest.fail("nobody asked")):
        pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with postponed(lambda: pytest.fail("it is ignored")):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_leaves_signals_alone() -> None:
    seen = []

    def work() -> None:
        with postponed(lambda: None):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]
