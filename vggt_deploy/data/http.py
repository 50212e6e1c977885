"""HTTP as downloads need it: addresses, settings, redirects, what lengths and statuses mean.

httpx is imported when it is first needed; without it the error names the extra.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vggt_deploy.errors import DeployError

if TYPE_CHECKING:
    import httpx

_REDIRECTS = 8
# Python refuses to read numbers of thousands of digits; no file is longer than 18 of them say.
_LENGTH = re.compile(r"\d{1,18}", re.ASCII)
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII)
_PAGES = ("text/html", "application/xhtml+xml")
_PROXY_VARIABLES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY")
_CERTIFICATE_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_REFUSED = {
    401: "asks for a password",
    403: "is not allowed",
    404: "is not there",
    410: "is gone",
}


class DownloadError(DeployError):
    """A file can't be fetched, or is not what it was said to be."""


class AgainError(Exception):
    """This attempt failed; another may not. after_s: the server's wish, if it said one."""

    def __init__(self, why: str, after_s: float | None = None) -> None:
        super().__init__(why)
        self.after_s = after_s


def checked_url(url: str) -> str:
    """`url`, if it is one of a file over http or https and holds no password."""
    httpx = load_httpx()
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise _bad_url(url, str(error)) from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise _bad_url(url, "it does not begin with http:// or https:// and a host")
    if parsed.userinfo:
        # It would stand in records and messages.
        raise _bad_url(f"{parsed.scheme}://...@{parsed.host}", "it holds a password")
    return url


def checked_base(url: str) -> str:
    """`url` as what a `/` and a file's name can be added to."""
    if "?" in url or "#" in url:
        raise _bad_url(url, "names of files are added to it, so it can't hold ? or #")
    return checked_url(url.rstrip("/"))


def _bad_url(url: str, why: str) -> DownloadError:
    return DownloadError(
        f"{url} is not an address that can be fetched: {why}",
        "give one such as https://host/folder, or fetch what needs a password by other means",
    )


def new_client(timeout: httpx.Timeout, headers: dict[str, str]) -> httpx.Client:
    """A client that takes proxies and certificates from the environment, as httpx does."""
    library = load_httpx()
    try:
        client: httpx.Client = library.Client(
            timeout=timeout, headers=headers, follow_redirects=False
        )
    except OSError as error:  # ssl.SSLError is one
        names = _set_variables(_CERTIFICATE_VARIABLES)
        raise DownloadError(
            f"certificates can't be read ({error.strerror or error}), set by {names}",
            "let it name a file of certificates (PEM) that can be read, or unset it",
        ) from error
    except ImportError as error:
        raise DownloadError(
            f"the proxy that is set by {_set_variables(_PROXY_VARIABLES)} speaks SOCKS, which "
            "needs a package that is not installed",
            "pip install 'httpx[socks]', or unset it",
        ) from error
    except (ValueError, library.InvalidURL) as error:
        # The error is not repeated: an address of a proxy may hold a password.
        raise DownloadError(
            f"the address of a proxy can't be used, set by {_set_variables(_PROXY_VARIABLES)}",
            "give it as http://host:port, https:// or socks5://, or unset it",
        ) from error
    return client


def _set_variables(names: tuple[str, ...]) -> str:
    """Those of the environment variables that are set; the system's settings where none is."""
    found = [name for name in (*names, *map(str.lower, names)) if os.environ.get(name)]
    return ", ".join(found) or "the system's settings"


@contextmanager
def answer(client: httpx.Client, url: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
    """The response behind all redirects, its body not read yet."""
    here = url
    for _ in range(_REDIRECTS):
        with client.stream("GET", here, headers=headers) as response:
            if response.next_request is None:
                _check_coding(response, url)
                yield response
                return
            target = str(response.next_request.url)
        if here.startswith("https:") and not target.startswith("https:"):
            raise DownloadError(
                f"{url} is redirected from https to {target}, which anyone on the way can change",
                "give an address that stays on https, or an http one if that is meant",
            )
        here = checked_url(target)
    raise DownloadError(
        f"{url} is redirected more than {_REDIRECTS} times", "open it in a browser, give what works"
    )


def _check_coding(response: httpx.Response, url: str) -> None:
    coding = response.headers.get("content-encoding", "identity").lower()
    if coding != "identity":
        raise DownloadError(
            f"{url} is sent with Content-Encoding {coding}, though identity was asked for",
            "use a server or mirror that sends the file as it is",
        )


def refuse_page(response: httpx.Response, url: str, again: str) -> None:
    """What a network that wants one to sign in, or a mirror, sends instead of a file."""
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in _PAGES:
        raise DownloadError(
            f"{url} sends a web page ({kind}), not a file",
            f"open it in a browser, the network may want you to sign in; {again}",
        )


def content_length(response: httpx.Response) -> int | None:
    """Of the body; None where the server does not say."""
    text = response.headers.get("content-length", "")
    return int(text) if _LENGTH.fullmatch(text) else None


def content_range(response: httpx.Response) -> tuple[int | None, int | None]:
    """First byte and total length that a 206 names; (None, None) where it says neither."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    return (None, None) if match is None else (int(match[1]), int(match[3]))


def refusal(response: httpx.Response, url: str) -> Exception:
    """What a status means that brings no bytes: an AgainError or a DownloadError."""
    status = response.status_code
    if status in _BUSY or status in (206, 416):
        wish = response.headers.get("retry-after", "")
        after_s = float(wish) if wish.isascii() and wish.isdigit() else None
        return AgainError(f"the server answers with status {status}", after_s)
    meaning = _REFUSED.get(status, response.reason_phrase or "is not sent")
    return DownloadError(
        f"{url} {meaning} (HTTP status {status})",
        "check the address in a browser; the file may have moved, or another base URL has it",
    )


def load_httpx() -> Any:
    """The module, or a DownloadError that names the extra."""
    try:
        import httpx
    except ModuleNotFoundError as error:
        raise DownloadError(
            "downloading needs the package httpx, which is not installed",
            "pip install 'vggt-deploy[eth3d]'",
        ) from error
    return httpx
