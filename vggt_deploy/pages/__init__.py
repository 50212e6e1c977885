"""Pages that are one file each: they open from a disk, without a network, years later.

    vendor    libraries of other people, as published, with versions, hashes and licences
    colours   values to colours: the map, its range, its legend
    encode    pictures as data URIs
    cloud     points and cameras, packed small for the 3D view
    blocks    what a page is made of: facts, tables, sliders, 3D views
    page      template + libraries + data -> one HTML text

A page holds no reference to anything outside itself and forbids itself to fetch (its
Content-Security-Policy), so what was written into it stays all that it can show. Whatever comes
from a file name, a label or a log is escaped: by the templates in text and attributes, by
`page.json_for_html` in data.

Needs jinja2, and matplotlib for colours (extras cpu and gpu); both are imported when used.
"""
