"""The browser of the tests: what it must notice, and that it stays quiet where nothing is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import browser
import pytest
from browser import OpenPage, drawn_share, open_watched, scrolls_sideways, serious_violations

if TYPE_CHECKING:
    from playwright.sync_api import Browser

QUIET = """<!doctype html><html lang="en"><head><title>Quiet</title></head><body>
<main><h1>Quiet</h1><img alt="A dot" src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">
<canvas id="gl" width="64" height="64"></canvas><canvas id="blank" width="64" height="64"></canvas>
</main><script>
const gl = document.getElementById("gl").getContext("webgl");
gl.enable(gl.SCISSOR_TEST);
gl.scissor(0, 0, 64, 32); gl.clearColor(1, 0, 0, 1); gl.clear(gl.COLOR_BUFFER_BIT);
gl.scissor(0, 32, 64, 32); gl.clearColor(0, 0, 1, 1); gl.clear(gl.COLOR_BUFFER_BIT);
fetch(URL.createObjectURL(new Blob(["x"]))).catch(() => {});
console.warn("a warning is no error");
</script></body></html>"""

WORKER = "fetch('https://example.invalid/w').catch(() => {})"
NOTHING_ALLOWED = """<meta http-equiv="Content-Security-Policy" content="default-src 'none'">"""


def _write(folder: Path, body: str) -> Path:
    path = folder / "page.html"
    path.write_text(body, encoding="utf-8")
    return path


def test_a_quiet_page_is_quiet_and_webgl_draws(open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page(_write(tmp_path, QUIET), width=390)
    assert page.evaluate("window.innerWidth") == 390
    assert drawn_share(page.locator("#gl")) == pytest.approx(0.5, abs=0.05)
    assert drawn_share(page.locator("#blank")) == 0
    assert serious_violations(page) == []
    assert not scrolls_sideways(page)


@pytest.mark.parametrize(
    "body, said",
    [
        ("<script>console.error('broken thing')</script>", "broken thing"),
        ("<script>console.assert(false, 'asserted')</script>", "asserted"),
        ("<script>throw new Error('thrown')</script>", "thrown"),
        ("<script>Promise.reject(new Error('unhandled'))</script>", "unhandled"),
        ("<img alt='' src='http://example.invalid/a.png'>", "request: http://example.invalid"),
        ("<img alt='' src='//example.invalid/a.png'>", "request: file://example.invalid"),
        ("<img alt='' src='beside.png'>", "beside.png"),
        ("<script>fetch('https://example.invalid/x').catch(() => {})</script>", "request: https"),
        ("<script>new WebSocket('ws://example.invalid/')</script>", "request: ws://"),
        ("<iframe title='x' src='https://example.invalid/'></iframe>", "request: https"),
        ("<script>window.open('https://example.invalid/other')</script>", "request: https"),
        (
            f"<script>new Worker(URL.createObjectURL(new Blob([{WORKER!r}])))</script>",
            "request: https://example.invalid/w",
        ),
        (
            f"{NOTHING_ALLOWED}<img alt='' src='https://example.invalid/blocked.png'>",
            "Content Security Policy",
        ),
    ],
)
def test_what_a_page_must_not_do_is_recorded(
    chromium: Browser, tmp_path: Path, body: str, said: str
) -> None:
    page, watch = open_watched(chromium, _write(tmp_path, f"<!doctype html>{body}"))
    page.wait_for_timeout(150)
    page.context.close()
    assert said in "\n".join(watch.problems())


def test_going_elsewhere_is_recorded(chromium: Browser, tmp_path: Path) -> None:
    other = tmp_path / "other.html"
    other.write_text("<!doctype html>other")
    path = _write(tmp_path, "<!doctype html><a href='other.html'>away</a><a href='#here'>here</a>")
    page, watch = open_watched(chromium, path)
    page.get_by_text("here").click()
    assert watch.problems() == []
    page.get_by_text("away").click()
    page.wait_for_url("**/other.html")
    page.context.close()
    assert watch.problems() == [f"request: {other.as_uri()}"]


def test_axe_sees_low_contrast_and_nameless_controls(chromium: Browser, tmp_path: Path) -> None:
    body = "<p style='color: #bbb; background: #fff'>pale</p><button></button>"
    html = f"<!doctype html><html lang='en'><title>t</title><main><h1>h</h1>{body}</main></html>"
    page, _ = open_watched(chromium, _write(tmp_path, html))
    rules = {line.split(" ")[0] for line in serious_violations(page)}
    page.context.close()
    assert rules == {"color-contrast", "button-name"}


def test_a_page_that_is_too_wide_is_noticed(chromium: Browser, tmp_path: Path) -> None:
    html = "<!doctype html><div style='width: 800px'>wide</div>"
    page, _ = open_watched(chromium, _write(tmp_path, html), width=390)
    wide = scrolls_sideways(page)
    page.context.close()
    assert wide


def test_a_test_with_a_noisy_page_fails(
    chromium: Browser, repository: Path, tmp_path: Path
) -> None:
    del chromium  # without a browser this is skipped: the test inside would be as well
    page = _write(tmp_path, "<!doctype html><script>console.error('late')</script>")
    (tmp_path / "test_noisy.py").write_text(
        f"from pathlib import Path\ndef test_it(open_page):\n    open_page(Path({str(page)!r}))\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "browser", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "--rootdir", str(tmp_path), str(tmp_path / "test_noisy.py")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(repository / "tests" / "support")},
        cwd=tmp_path,
        timeout=120,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "console: late" in done.stdout


def test_without_a_browser_tests_are_skipped_or_fail_where_one_is_required(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(browser.EXECUTABLE_VARIABLE, raising=False)
    monkeypatch.delenv(browser.REQUIRE_VARIABLE, raising=False)
    assert browser.find_chromium() is None
    with pytest.raises(pytest.skip.Exception, match="gone"):
        browser._unavailable("gone")
    monkeypatch.setenv(browser.REQUIRE_VARIABLE, "1")
    with pytest.raises(pytest.fail.Exception, match="gone"):
        browser._unavailable("gone")


def test_a_named_executable_must_be_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(browser.EXECUTABLE_VARIABLE, str(tmp_path / "missing"))
    with pytest.raises(pytest.fail.Exception, match="is no executable file"):
        browser.find_chromium()
    monkeypatch.setenv(browser.EXECUTABLE_VARIABLE, sys.executable)
    assert browser.find_chromium() == sys.executable


@pytest.mark.parametrize("user, given_up", [(0, True), (1000, False)])
def test_the_sandbox_stays_where_it_can(
    monkeypatch: pytest.MonkeyPatch, user: int, given_up: bool
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert ("--no-sandbox" in browser.launch_arguments()) is given_up
