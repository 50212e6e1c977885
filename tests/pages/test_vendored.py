"""Libraries that are not ours are the files that vendor.toml names, with their licences."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from vggt_deploy.errors import ArtifactError
from vggt_deploy.pages.vendor import TABLE_NAME, VENDOR, library, licence, vendored


def test_every_file_is_as_published_and_named() -> None:
    table = vendored()
    for name in table:
        assert library(name)
    named = {entry.file for entry in table.values()} | {e.licence_file for e in table.values()}
    assert {path.name for path in VENDOR.iterdir()} == named | {TABLE_NAME}


@pytest.mark.parametrize("name", sorted(vendored()))
def test_every_library_has_its_licence_and_version(name: str) -> None:
    entry = vendored()[name]
    known = {"MIT": "Permission is hereby granted", "Unlicense": "released into the public domain"}
    assert known[entry.licence] in licence(entry)


def test_a_changed_library_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "vendor"
    shutil.copytree(VENDOR, folder)
    assert library("sortable", folder)
    file = folder / vendored()["sortable"].file
    file.write_bytes(file.read_bytes() + b"\n")
    with pytest.raises(ArtifactError, match="not sortable-tablesort"):
        library("sortable", folder)


def test_a_table_with_an_odd_field_is_refused(tmp_path: Path) -> None:
    text = (VENDOR / TABLE_NAME).read_text().replace("used_for", "used", 1)
    (tmp_path / TABLE_NAME).write_text(text)
    with pytest.raises(ArtifactError, match="used, used_for"):
        vendored(tmp_path)


def test_a_page_has_no_pointer_to_a_source_map() -> None:
    raw = (VENDOR / vendored()["slider"].file).read_text()
    assert "sourceMappingURL" in raw
    assert "sourceMappingURL" not in library("slider")
