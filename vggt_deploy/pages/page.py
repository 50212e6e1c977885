"""One HTML text from a template, libraries and data; nothing in it points outside.

The page forbids itself whatever it does not need, by a Content-Security-Policy in its head:

    default-src 'none'           no connection, no frame, no font, no worker
    script-src 'sha256-...'      the scripts that were written into it, by hash, and no other:
                                 a script that got into a label could not run even unescaped
    style-src 'unsafe-inline'    the plotting library sets styles on its elements
    img-src data: blob:          pictures in the page; blob: is what a plot is saved through
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggt_deploy.errors import ArtifactError, DeployError, RuntimeUnavailableError
from vggt_deploy.pages.vendor import library, licence, vendored

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

STATIC = Path(__file__).with_name("static")
TEMPLATES = Path(__file__).with_name("templates")

LIBRARIES = ("plotly", "slider", "sortable")
SCRIPTS = ("base.js", "slider.js", "scene3d.js")
STYLES = ("pages.css",)


def render(
    template: str,
    context: Mapping[str, Any],
    *,
    title: str,
    data: Mapping[str, object] | None = None,
    libraries: Sequence[str] = LIBRARIES,
    scripts: Sequence[str] = SCRIPTS,
    styles: Sequence[str] = STYLES,
) -> str:
    """The whole page.

    template: of templates/, one that extends base.html.j2
    context: what the template shows; strings are escaped there
    data: name -> plain values, for the scripts (`Pages.data(name)`)
    libraries: names of vendor.toml; their style sheets come with them
    scripts, styles: files of static/, in this order

    Raises:
        RuntimeUnavailableError: jinja2 is not installed.
        ArtifactError: data holds what JSON does not (NaN), or a library was changed.
    """
    known = vendored()
    wanted = [
        name for name in known if name in libraries or name.removesuffix("-style") in libraries
    ]
    code = [library(name) for name in wanted if not known[name].style]
    code += [(STATIC / name).read_text(encoding="utf-8") for name in scripts]
    style = [library(name) for name in wanted if known[name].style]
    style += [(STATIC / name).read_text(encoding="utf-8") for name in styles]
    code = [_checked_script(text) for text in code]
    page: str = (
        _environment()
        .get_template(template)
        .render(
            **context,
            page_title=title,
            page_policy=policy(code),
            page_scripts=code,
            page_style="\n".join(style),
            page_data={name: json_for_html(value) for name, value in (data or {}).items()},
            page_credits=[
                (known[name], licence(known[name])) for name in wanted if not known[name].style
            ],
        )
    )
    return page


def json_for_html(value: object) -> str:
    """JSON that may stand in a script element: no character that ends it or begins markup.

    The escapes are JSON's own, so that a reader gets the same values.
    """
    try:
        text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    except ValueError as error:
        raise ArtifactError(
            f"data of a page: {error}", "compare again: a number is not finite"
        ) from error
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def policy(scripts: Sequence[str]) -> str:
    """The Content-Security-Policy that lets these scripts run and nothing else."""
    hashes = " ".join(f"'sha256-{_digest(text)}'" for text in scripts)
    parts = (
        "default-src 'none'",
        f"script-src {hashes}" if scripts else "script-src 'none'",
        "style-src 'unsafe-inline'",
        "img-src data: blob:",
        "base-uri 'none'",
        "form-action 'none'",
    )
    return "; ".join(parts)


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _checked_script(text: str) -> str:
    """What stands between <script> and </script> must reach the browser as it was hashed."""
    lower = text.lower()
    if "</script" in lower or "<!--" in lower or "\r" in text or "\0" in text:
        raise ArtifactError("a script can't stand in a page as it is", "install vggt-deploy again")
    return text


def _environment() -> Environment:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise missing_jinja(error) from error
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    environment.filters["capital"] = capital
    return environment


def capital(text: str) -> str:
    """With a capital letter, unless the first word is a sign of its own, as in "x smaller"."""
    return text if text[1:2] == " " else text[:1].upper() + text[1:]


def _breakable(text: str) -> Markup:
    """A label, escaped, that may be broken after "/" and before "+" and nowhere else."""
    from markupsafe import Markup, escape

    broken = str(escape(text)).replace("/", "/<wbr>").replace("+", "<wbr>+")
    return Markup(broken)


def missing_jinja(error: ImportError) -> DeployError:
    """What to say where the pages' library is not there."""
    return RuntimeUnavailableError(f"pages need jinja2 ({error})", "pip install 'vggt-deploy[cpu]'")
