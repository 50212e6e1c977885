"""Plain text: aligned tables, numbers, paragraphs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Aligned columns: the first left, the others right."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

    def join(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "  ".join([first, *rest]).rstrip()

    return [join(lines[0]), "  ".join("-" * w for w in widths), *(join(x) for x in lines[1:])]


def number(value: float | None, digits: int = 4) -> str:
    """A value with so many significant digits; a dash for None."""
    if value is None:
        return "-"
    return f"{value:.{digits}g}"


def megabytes(value: int | None) -> str:
    """Bytes as MB (10^6)."""
    return "-" if value is None else f"{value / 1e6:.2f}"


def wrap(text: str, width: int) -> list[str]:
    """Break a paragraph at spaces."""
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return [*lines, line] if line else lines
