"""The sensitivity table that a report shows: kept in its folder, so that it can be drawn again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vggt_deploy.compare.state import Folder
from vggt_deploy.errors import CompareError
from vggt_deploy.sensitivity.table import TABLE_NAME, SensitivityTable, read_table, write_table


def read_sensitivity(path: Path) -> SensitivityTable:
    """The table of a folder that `vggt-deploy sensitivity` finished, or of its sensitivity.json.

    Raises:
        ArtifactError: there is none, or it is not a finished table of this version.
    """
    return read_table(path)


def keep_sensitivity(folder: Folder, table: SensitivityTable, model: dict[str, Any]) -> None:
    """Put the table beside the report of `model`, as the question names it.

    Weights are told by their hash; random ones, which have none, by their spec.

    Raises:
        CompareError: it was measured on other weights.
    """
    key = "spec" if model["sha256"] is None else "sha256"
    if getattr(table.model, key) != model[key]:
        raise CompareError(
            f"the sensitivity table is of {table.model.spec} (sha256 {table.model.sha256}), the "
            f"comparison of {model['spec']} (sha256 {model['sha256']})",
            "give the table of these weights, or leave --sensitivity out",
        )
    write_table(folder.root, table)


def kept_sensitivity(folder: Folder) -> SensitivityTable | None:
    """The table in the folder of a comparison, if it was given one."""
    path = folder.root / TABLE_NAME
    return read_table(path) if path.is_file() else None
