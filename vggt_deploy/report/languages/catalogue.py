"""The catalogue of a language: English template -> template, as a TOML file.

    schema = 1
    language = "zh"

    [[message]]                       # a template in the code, `say("...")` or `Said("...")`
    en = "slower than {them}:"
    zh = "慢于 {them}："

    [[recorded]]                      # a text that reports carry, written by whatever measured
    en = "{bad} of {all} poses are not finite: 180 degrees for their pairs"
    zh = "{all} 个位姿中有 {bad} 个不是有限值：其所在的对按 180 度计"

Both have the same placeholders. Those of a recorded text match anything without "; ", which parts
one note from the next; one whose name begins with `its_` matches anything, and is a recorded text
again. The first that matches the whole text is taken.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from string import Formatter

SCHEMA = 1


@dataclass(frozen=True)
class Recorded:
    """One kind of recorded text: what it looks like in English, and how it is said."""

    english: str
    pattern: re.Pattern[str]
    template: str


@dataclass(frozen=True)
class Catalogue:
    """messages: English template -> template; recorded: in the order in which they are tried."""

    messages: dict[str, str]
    recorded: tuple[Recorded, ...]


def placeholders(template: str) -> frozenset[str]:
    """Names in braces."""
    return frozenset(name for _, name, _, _ in Formatter().parse(template) if name is not None)


@cache
def read_catalogue(language: str) -> Catalogue:
    """The catalogue of a language that is not English.

    Raises:
        ValueError: the file is not what this module describes, or a translation has other
            placeholders than its English.
    """
    file = resources.files(__package__) / f"{language}.toml"
    return parse_catalogue(file.read_text(encoding="utf-8"), language)


def parse_catalogue(text: str, language: str) -> Catalogue:
    """As `read_catalogue`, from the file's text."""
    data = tomllib.loads(text)
    if set(data) != {"schema", "language", "message", "recorded"}:
        raise ValueError(f"a catalogue has other tables: {sorted(data)}")
    if (data["schema"], data["language"]) != (SCHEMA, language):
        raise ValueError(f"a catalogue of schema {data['schema']}, language {data['language']}")
    messages: dict[str, str] = {}
    for entry in data["message"]:
        english, template = _pair(entry, language)
        if english in messages:
            raise ValueError(f"two translations of {english!r}")
        messages[english] = template
    recorded = tuple(
        Recorded(english, _pattern(english), template)
        for english, template in (_pair(entry, language) for entry in data["recorded"])
    )
    return Catalogue(messages, recorded)


def _pair(entry: dict[str, str], language: str) -> tuple[str, str]:
    if set(entry) != {"en", language}:
        raise ValueError(f"an entry is not en and {language}: {entry}")
    english, template = entry["en"], entry[language]
    if not template:
        raise ValueError(f"the translation of {english!r} is empty")
    if placeholders(english) != placeholders(template):
        raise ValueError(f"other placeholders in the translation of {english!r}: {template!r}")
    return english, template


def _pattern(template: str) -> re.Pattern[str]:
    """The texts that the template makes; a placeholder that comes twice is the same both times."""
    seen: set[str] = set()
    parts = []
    for literal, name, _, _ in Formatter().parse(template):
        parts.append(re.escape(literal))
        if name is not None:
            one = "." if name.startswith("its_") else "(?:(?!; ).)"
            parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>{one}+?)")
            seen.add(name)
    return re.compile("".join(parts), re.DOTALL)
