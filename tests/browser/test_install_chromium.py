"""install_chromium.sh: what it finds, and what it says where it can do nothing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).with_name("install_chromium.sh")
STUB = "#!/bin/sh\nexit {code}\n"


def _run(folder: Path, *, user: int = 1000, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run with `folder` alone on PATH; `id` there says that this is `user`."""
    _program(folder, "id", f"#!/bin/sh\necho {user}\n")
    return subprocess.run(
        [shutil.which("sh") or "/bin/sh", str(SCRIPT)],
        capture_output=True,
        text=True,
        env={"PATH": str(folder), **variables},
        timeout=30,
    )


def _program(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_prints_what_is_there_and_runs(tmp_path: Path) -> None:
    _program(tmp_path, "chromium", STUB.format(code=10))
    good = _program(tmp_path, "google-chrome", STUB.format(code=0))
    done = _run(tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, str(good))


def test_a_named_executable_comes_first_and_must_exist(tmp_path: Path) -> None:
    _program(tmp_path, "chromium", STUB.format(code=0))
    named = _program(tmp_path, "mine", STUB.format(code=0))
    assert _run(tmp_path, VGGT_DEPLOY_CHROMIUM=str(named)).stdout.strip() == str(named)
    done = _run(tmp_path, VGGT_DEPLOY_CHROMIUM=str(tmp_path / "missing"))
    assert done.returncode == 1
    assert "is no executable file" in done.stderr


def test_says_what_to_do_where_it_may_not_install(tmp_path: Path) -> None:
    done = _run(tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "apt-get install chromium" in done.stderr
    assert "VGGT_DEPLOY_CHROMIUM" in done.stderr


def test_root_updates_then_installs(tmp_path: Path) -> None:
    log = tmp_path / "log"
    installed = tmp_path / "chromium"
    _program(
        tmp_path,
        "apt-get",
        f'#!/bin/sh\necho "$@" >>{log}\necho noise\n[ "$1" = install ] || exit 0\n'
        f"printf '#!/bin/sh\\n' >{installed}\n{shutil.which('chmod')} 755 {installed}\n",
    )
    done = _run(tmp_path, user=0)
    assert (done.returncode, done.stdout.strip()) == (0, str(installed)), done.stderr
    calls = log.read_text().splitlines()
    assert calls[0] == "update"
    assert calls[1].endswith("chromium")


def test_a_failed_install_is_a_failure(tmp_path: Path) -> None:
    _program(tmp_path, "apt-get", STUB.format(code=100))
    assert _run(tmp_path, user=0).returncode == 100
    _program(tmp_path, "apt-get", STUB.format(code=0))
    done = _run(tmp_path, user=0)
    assert done.returncode == 1
    assert "none on PATH runs" in done.stderr
