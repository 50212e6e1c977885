"""Plain text and Markdown: aligned tables, numbers, paragraphs.

Widths are counted in cells of a terminal, where an East Asian wide character takes two.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len

# Chinese characters and full-width punctuation: a line may be broken beside any of them ...
_WIDE = "\u2e80-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\u201c\u201d"
# ... but never before a closing mark, nor after an opening one.
_CLOSING = "，。、；：？！）》」』】”"
_OPENING = "（《「『【“"
_UNITS = re.compile(rf"(\s*)([{_OPENING}]*(?:[{_WIDE}]|[^\s{_WIDE}]+)[{_CLOSING}]*|\S)")


def pad(text: str, width: int) -> str:
    """The text and as many spaces as make it so many cells wide."""
    return text + " " * max(0, width - cell_len(text))


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> list[str]:
    """Aligned columns: the first `left` to the left, the others to the right."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(cell_len(line[i]) for line in lines) for i in range(len(header))]

    def join(cells: Sequence[str]) -> str:
        padded = []
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True)):
            blank = " " * (width - cell_len(cell))
            padded.append(cell + blank if i < left else blank + cell)
        return "  ".join(padded).rstrip()

    return [join(lines[0]), "  ".join("-" * w for w in widths), *(join(x) for x in lines[1:])]


def markdown_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1
) -> list[str]:
    """The same as a table of GitHub's Markdown; cells have their pipes escaped."""

    def join(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    rule = (":--" if i < left else "--:" for i in range(len(header)))
    return [join(header), join(rule), *(join(row) for row in rows)]


@dataclass(frozen=True)
class Grid:
    """A table that is not yet text: all rows as long as the header, `left` columns of words."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1

    def plain(self) -> list[str]:
        """Aligned; nothing where there is no row."""
        return table(self.header, self.rows, left=self.left) if self.rows else []

    def markdown(self) -> list[str]:
        """As GitHub shows it; nothing where there is no row."""
        return markdown_table(self.header, self.rows, left=self.left) if self.rows else []


def number(value: float | None, digits: int = 4) -> str:
    """A value with so many significant digits; a dash for None."""
    if value is None:
        return "-"
    return f"{value:.{digits}g}"


def fixed(value: float | None, digits: int = 2) -> str:
    """A value with so many decimals; a dash for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def megabytes(value: int | None) -> str:
    """Bytes as MB (10^6)."""
    return "-" if value is None else f"{value / 1e6:.2f}"


def wrap(text: str, width: int) -> list[str]:
    """Break a paragraph at spaces, and beside wide characters, into lines of so many cells."""
    lines, line = [], ""
    for space, unit in _UNITS.findall(text.strip()):
        glue = " " if space and line else ""
        if line and cell_len(line) + len(glue) + cell_len(unit) > width:
            lines.append(line)
            line = unit
        else:
            line = f"{line}{glue}{unit}"
    return [*lines, line] if line else lines


def entry(name: str, text: str, *, name_width: int, width: int) -> list[str]:
    """A paragraph beside its name: the name once, the paragraph in a column behind it."""
    blank = " " * name_width
    return [
        f"{pad(name, name_width) if i == 0 else blank} {line}"
        for i, line in enumerate(wrap(text, width))
    ]
