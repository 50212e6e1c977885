"""What Ray reports, in one line."""

from __future__ import annotations

import re
from collections.abc import Sequence

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_ADDRESS = re.compile(r"\bip=(?P<ip>[0-9A-Fa-f.:]+)\)")


def brief(error: BaseException) -> str:
    """The kind of an error and what it says.

    The text of an error that a task raised is a traceback: of that the cause, or, where Ray has
    none, the last line. The others begin with what happened and go on with advice.
    """
    cause = getattr(error, "cause", None)
    if not isinstance(cause, BaseException):
        lines = _lines(error)
        traced = lines and hasattr(error, "traceback_str")
        return _named(error, lines[-1] if traced else lines[0] if lines else "")
    lines = _lines(cause)
    return _named(cause, lines[-1] if lines else "")


def address_of(error: BaseException) -> str | None:
    """The address of the node whose task raised this; None where Ray does not say."""
    found = _ADDRESS.search(str(error))
    return None if found is None else found["ip"]


def times(lost: Sequence[str]) -> str:
    """How often a job was begun again, to follow a sentence; nothing where it was not."""
    if not lost:
        return ""
    return f" and it was begun again {'once' if len(lost) == 1 else f'{len(lost)} times'}"


def _lines(error: BaseException) -> list[str]:
    plain = _COLOUR.sub("", str(error))
    return [line.strip() for line in plain.splitlines() if line.strip()]


def _named(error: BaseException, line: str) -> str:
    name = type(error).__name__
    return f"{name}: {line}" if line and not line.startswith(f"{name}:") else line or name
