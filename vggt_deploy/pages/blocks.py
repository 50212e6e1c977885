"""What a page is made of: plain values that the templates draw.

    Section(id, title, lead, blocks)
    blocks: Facts, Table, Notes, Sliders, Scene

`simple_page` draws sections one below the other; a page with a layout of its own has its own
template and takes the same blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vggt_deploy.pages.colours import ColourRange, Kind, ramp
from vggt_deploy.pages.encode import PictureStore, png_uri
from vggt_deploy.pages.page import render


@dataclass(frozen=True)
class Facts:
    """Names and values, one line each."""

    entries: tuple[tuple[str, str], ...]
    kind: str = "facts"


@dataclass(frozen=True)
class Notes:
    """Paragraphs."""

    lines: tuple[str, ...]
    kind: str = "notes"


@dataclass(frozen=True)
class Column:
    """One column of a table. `about`: shown when the title is pointed at; number: right-aligned."""

    title: str
    unit: str = ""
    about: str = ""
    number: bool = True


@dataclass(frozen=True)
class Cell:
    """One cell. sort: what the table sorts it by; None: an empty cell, always last.

    small: a second line, quiet; strong: emphasised; badge: "" or the kind of a coloured mark;
    dot: "" or the class of a coloured dot before the text
    """

    text: str
    sort: float | str | None = None
    small: str = ""
    strong: bool = False
    badge: str = ""
    dot: str = ""


@dataclass(frozen=True)
class Row:
    """One line of a table; `mark` is a class for the whole line ("reference", "failed")."""

    cells: tuple[Cell, ...]
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """A table that sorts by its titles. `caption` names the protocol of its numbers."""

    id: str
    label: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    caption: tuple[str, ...] = ()
    sortable: bool = True
    kind: str = "table"


@dataclass(frozen=True)
class Legend:
    """The colours of a map and the values at its ends."""

    uri: str
    low: str
    high: str
    unit: str
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """One picture of a page. `uri` stands in the page; `alt` says what it shows."""

    uri: str
    alt: str


@dataclass(frozen=True)
class Slider:
    """Two pictures of the same size with a divider; `first` is left of it."""

    title: str
    first: Picture
    second: Picture
    first_label: str
    second_label: str
    legends: tuple[Legend, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Sliders:
    """Sliders beside each other, as many as fit."""

    items: tuple[Slider, ...]
    kind: str = "sliders"


@dataclass(frozen=True)
class Scene:
    """Points and cameras in 3D; `packed` is `cloud.pack_scene`'s. `label`: for screen readers."""

    id: str
    label: str
    packed: dict[str, Any]
    notes: tuple[str, ...] = ()
    kind: str = "scene"


Block = Facts | Notes | Table | Sliders | Scene


@dataclass(frozen=True)
class Section:
    """A part of a page, with a place in its navigation."""

    id: str
    title: str
    lead: str = ""
    blocks: tuple[Block, ...] = ()
    # In the navigation; "" for the title itself.
    short: str = field(default="")


_RAMPS: dict[Kind, str] = {}


def legend(limits: ColourRange, note: str = "") -> Legend:
    """The legend of a range: its colours and ends, and how much lies beyond."""
    if limits.kind not in _RAMPS:
        _RAMPS[limits.kind] = png_uri(ramp(limits.kind))
    return Legend(
        uri=_RAMPS[limits.kind],
        low=f"{limits.low:.3g}",
        high=f"{limits.high:.3g}",
        unit=limits.unit,
        note=note,
    )


def scene_data(blocks: Sequence[Scene]) -> dict[str, object]:
    """What `render` takes as data for these views."""
    return {f"scene-{block.id}": block.packed for block in blocks}


def simple_page(
    title: str, subtitle: str, sections: Sequence[Section], *, store: PictureStore | None = None
) -> str:
    """A page of sections, one below the other."""
    scenes = [b for section in sections for b in section.blocks if isinstance(b, Scene)]
    data = scene_data(scenes)
    if store is not None:
        data["pictures"] = store.uris
    context = {"subtitle": subtitle, "sections": sections}
    return render("simple.html.j2", context, title=title, data=data)
