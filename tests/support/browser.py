"""Pages in a real browser: Debian's Chromium, headless, driven by Playwright.

    def test_page(open_page: OpenPage) -> None:
        page = open_page(path, width=390)      # a playwright.sync_api.Page, already loaded
        page.get_by_role("button", name="Reset").click()
        assert serious_violations(page) == []

What a page says on the console as an error, throws, or asks of the network is recorded from before
its first byte on, and makes the test fail when it ends. Host names do not resolve in this browser,
so a page that asks the network fails offline and online alike.

Without Playwright or a browser these tests are skipped; with VGGT_DEPLOY_REQUIRE_BROWSER=1 they
fail instead. $VGGT_DEPLOY_CHROMIUM names the executable if it is not on PATH.
tests/browser/install_chromium.sh installs it.

The browser lives for one module of tests. Playwright's synchronous interface leaves its event loop
marked as running in this thread while it is open, which breaks whoever calls asyncio.run() in a
later test of the same process.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Locator, Page, Request

EXECUTABLE_VARIABLE = "VGGT_DEPLOY_CHROMIUM"
REQUIRE_VARIABLE = "VGGT_DEPLOY_REQUIRE_BROWSER"
EXECUTABLES = ("chromium", "chromium-browser", "google-chrome")
# What the page carries in itself, or made itself, is no request.
_INLINE = ("data:", "blob:", "about:")
_LAUNCH_MS = 60_000
_ACTION_MS = 15_000

_ARGUMENTS = (
    # WebGL without a GPU.
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
    "--disable-quic",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    # /dev/shm of a container is often 64 MB.
    "--disable-dev-shm-usage",
    "--force-color-profile=srgb",
)


@dataclass
class Watch:
    """What happened on the pages of one context.

    errors: console errors, exceptions nobody caught, crashes
    requests: addresses asked for, but for the page itself and what it carries (data:, blob:)
    """

    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    opened: set[str] = field(default_factory=set)

    def problems(self) -> list[str]:
        """All of it, one line each; empty for a page as it should be."""
        return [*self.errors, *(f"request: {address}" for address in self.requests)]

    def attach(self, context: BrowserContext) -> None:
        """Record what the pages of this context do, workers and windows they open included."""
        context.on("console", lambda message: self._said(message.type, message.text))
        context.on("weberror", lambda error: self.errors.append(f"exception: {error.error}"))
        context.on("request", self._asked)
        context.on("page", self._watch_page)

    def _watch_page(self, page: Page) -> None:
        page.on("crash", lambda _: self.errors.append("the page crashed"))
        page.on("websocket", lambda socket: self.requests.append(socket.url))

    def _said(self, kind: str, text: str) -> None:
        if kind in ("error", "assert"):
            self.errors.append(f"console: {text}")

    def _asked(self, request: Request) -> None:
        own = request.is_navigation_request() and request.url.split("#")[0] in self.opened
        if not own and not request.url.startswith(_INLINE):
            self.requests.append(request.url)


class OpenPage(Protocol):
    """The fixture `open_page`."""

    def __call__(
        self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False
    ) -> Page:
        """The file, loaded from file:// in a window of that many CSS pixels."""
        ...


def find_chromium() -> str | None:
    """Path of the executable, or None.

    A path in $VGGT_DEPLOY_CHROMIUM that is no executable is an error, not a reason to look further.
    """
    named = os.environ.get(EXECUTABLE_VARIABLE)
    if named:
        found = shutil.which(named)
        if found is None:
            pytest.fail(f"{EXECUTABLE_VARIABLE}={named} is no executable file", pytrace=False)
        return found
    return next((path for name in EXECUTABLES if (path := shutil.which(name))), None)


def launch_arguments() -> list[str]:
    """Chromium's options; its sandbox is given up only where it refuses to start with it."""
    return [*_ARGUMENTS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """The browser of one module of tests."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _unavailable("Playwright is not installed (pip install playwright)")
    executable = find_chromium()
    if executable is None:
        _unavailable(
            f"no {', '.join(EXECUTABLES)} on PATH: run tests/browser/install_chromium.sh, "
            f"or set {EXECUTABLE_VARIABLE}"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, args=launch_arguments(), timeout=_LAUNCH_MS
        )
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Browser) -> Iterator[OpenPage]:
    """Opens files as pages; the test fails at its end if one of them was not quiet."""
    watches: list[Watch] = []
    contexts: list[BrowserContext] = []

    def open_(path: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> Page:
        page, watch = open_watched(chromium, path, width=width, height=height, dark=dark)
        watches.append(watch)
        contexts.append(page.context)
        return page

    yield open_
    for context in contexts:
        context.close()
    problems = [problem for watch in watches for problem in watch.problems()]
    assert not problems, "the page was not quiet:\n" + "\n".join(problems)


def open_watched(
    browser: Browser, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False
) -> tuple[Page, Watch]:
    """The page in a context of its own, and what it does; nobody checks it but the caller."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce",
    )
    context.set_default_timeout(_ACTION_MS)
    watch = Watch()
    watch.attach(context)
    page = context.new_page()
    address = path.resolve().as_uri()
    watch.opened.add(address)
    page.goto(address, wait_until="load", timeout=_LAUNCH_MS)
    return page, watch


def serious_violations(
    page: Page, *, impacts: Sequence[str] = ("serious", "critical")
) -> list[str]:
    """What axe-core finds of these impacts: `rule (impact): selector; selector`, one per rule.

    Covers contrast, names of controls, structure of tables and headings, and whether what scrolls
    can be reached by keyboard.
    """
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{rule['id']} ({rule['impact']}): "
        + "; ".join(" ".join(map(str, node["target"])) for node in rule["nodes"])
        for rule in found
        if rule["impact"] in impacts
    ]


def drawn_share(target: Locator) -> float:
    """Share of an element's pixels on the screen that are not of its most frequent colour: 0..1.

    0 for a blank canvas. Taken from a screenshot, since a WebGL canvas gives its pixels to no one
    once they are shown.
    """
    pixels = screenshot_pixels(target).reshape(-1, 3).astype(np.uint32)
    packed = pixels[:, 0] << 16 | pixels[:, 1] << 8 | pixels[:, 2]
    _, counts = np.unique(packed, return_counts=True)
    return 1.0 - float(counts.max()) / packed.size


def screenshot_pixels(target: Locator | Page) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """RGB [H, W, 3] as shown; two of them compared tell whether a view changed."""
    with Image.open(io.BytesIO(target.screenshot())) as picture:
        return np.asarray(picture.convert("RGB"))


def scrolls_sideways(page: Page) -> bool:
    """Whether the page as a whole is wider than its window."""
    return bool(
        page.evaluate(
            "() => document.documentElement.scrollWidth > document.documentElement.clientWidth"
        )
    )


def _unavailable(reason: str) -> NoReturn:
    if os.environ.get(REQUIRE_VARIABLE) == "1":
        pytest.fail(f"{reason}; {REQUIRE_VARIABLE}=1 asks for it", pytrace=False)
    pytest.skip(reason)
