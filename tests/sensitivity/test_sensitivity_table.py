"""The table as JSON and CSV, and what its reader refuses."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vggt_deploy.errors import ArtifactError
from vggt_deploy.records import ModelRecord
from vggt_deploy.sensitivity.table import (
    CSV_NAME,
    MEASURES,
    SCHEMA,
    TABLE_NAME,
    Entry,
    SensitivityTable,
    entry_line,
    parse_entry,
    read_table,
    write_table,
)

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
LOSSES = st.dictionaries(st.sampled_from(MEASURES["truth"]), NUMBERS)
INTERVALS = st.dictionaries(
    st.sampled_from(MEASURES["truth"]),
    st.tuples(NUMBERS, NUMBERS).map(lambda ends: (min(ends), max(ends))),
)
ENTRIES = st.builds(
    Entry,
    unit=st.text(min_size=1),
    layers=st.lists(st.text()).map(tuple),
    format=st.just("int8_pc_sym"),
    local_error=st.none() | NUMBERS,
    loss=st.none() | LOSSES,
    interval=INTERVALS,
)
ENTRY = Entry("a", ("a.x",), "int8_pc_sym", 0.5, {"auc3": 1.0}, {"auc3": (-1.0, 2.0)})
TABLE = SensitivityTable(
    schema=SCHEMA,
    model=ModelRecord("vggt-nano", "vggt-nano"),
    scenes=("one", "two"),
    reference="truth",
    by="block",
    height=28,
    width=42,
    activations="float",
    baseline={"auc3": 40.0},
    entries=(ENTRY, Entry("b", ("b.x", "b.y"), "int4_g128", 0.25)),
)


@settings(deadline=None, max_examples=50)
@given(st.lists(ENTRIES, unique_by=lambda entry: entry.unit))
def test_json_gives_the_table_back(entries: list[Entry]) -> None:
    table = replace(TABLE, entries=tuple(entries))
    assert SensitivityTable.from_json(table.to_json()) == table


@settings(deadline=None, max_examples=50)
@given(ENTRIES)
def test_one_line_gives_the_entry_back(entry: Entry) -> None:
    line = entry_line(entry)
    assert line.count("\n") == 1
    assert parse_entry(line) == entry


def test_formats_and_what_was_measured() -> None:
    assert TABLE.formats == ("int8_pc_sym", "int4_g128")
    assert TABLE.measured == (ENTRY,)


def test_csv_has_a_line_per_entry_and_empty_cells(tmp_path: Path) -> None:
    write_table(tmp_path, TABLE)
    with (tmp_path / CSV_NAME).open(newline="", encoding="utf-8") as file:
        first, second = list(csv.DictReader(file))
    assert (first["unit"], first["layers"], float(first["auc3"])) == ("a", "1", 1.0)
    assert (float(first["auc3_low"]), float(first["auc3_high"])) == (-1.0, 2.0)
    assert (second["unit"], second["layers"], second["auc3"]) == ("b", "2", "")
    assert read_table(tmp_path) == read_table(tmp_path / TABLE_NAME) == TABLE
    assert sorted(path.name for path in tmp_path.iterdir()) == [CSV_NAME, TABLE_NAME]


def test_a_number_that_is_not_finite_is_not_written() -> None:
    bad = replace(TABLE, entries=(replace(ENTRY, loss={"auc3": float("nan")}),))
    with pytest.raises(ValueError, match="not JSON compliant"):
        bad.to_json()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"schema": 2}, "schema 2"),
        ({"by": "stack"}, "by"),
        ({"entries": [asdict(ENTRY), asdict(ENTRY)]}, "twice"),
        ({"entries": [asdict(ENTRY) | {"loss": {"speed": 1.0}}]}, "unknown measure 'speed'"),
        ({"entries": [asdict(ENTRY) | {"interval": {"auc3": [2.0, 1.0]}}]}, "interval of auc3"),
        ({"entries": [asdict(ENTRY) | {"interval": {"auc3": [2.0]}}]}, "interval of auc3"),
        ({"entries": [asdict(ENTRY) | {"colour": "red"}]}, "unknown field 'colour'"),
    ],
)
def test_what_is_no_table_is_refused(change: dict[str, object], words: str) -> None:
    text = json.dumps(asdict(TABLE) | change)
    with pytest.raises(ArtifactError, match=words) as caught:
        SensitivityTable.from_json(text)
    assert "run `vggt-deploy sensitivity` again" in caught.value.fix


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema": NaN}', "[" * 100_000])
def test_damaged_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / TABLE_NAME).write_text(text)
    with pytest.raises(ArtifactError):
        read_table(tmp_path)


def test_numbers_beyond_floats_are_refused() -> None:
    text = TABLE.to_json().replace("0.5", "1e999")
    with pytest.raises(ArtifactError, match="not finite"):
        SensitivityTable.from_json(text)


def test_an_unfinished_folder_says_how_to_finish_it(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as caught:
        read_table(tmp_path)
    assert "--resume" in caught.value.fix
