"""The JSON Schema of comparison_report.json, made from the dataclasses that the report is.

    python -m vggt_deploy.report.schema > compare/comparison_report.schema.json

writes the one that the repository publishes (2020-12); a test holds it against this module. Needs
pydantic, which nothing else in the package does: to read the schema takes any validator.

Every field that a report has is required and no other is allowed: a report with one more has a
higher schema number.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from vggt_deploy.compare.report import SCHEMA, ComparisonReport, Ratios

DRAFT = "https://json-schema.org/draft/2020-12/schema"
TITLE = "A comparison of quantized variants with PyTorch FP32, as vggt-deploy compare writes it"

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 1}
_SHA256: Schema = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_OPTIONAL_TEXT: Schema = {"type": ["string", "null"]}


def _object(properties: dict[str, Schema]) -> Schema:
    """All of these are there; others may be."""
    return {"type": "object", "properties": properties, "required": list(properties)}


# What was asked is plain JSON in the report, too; here is what a reader of one can rely on.
QUESTION: Schema = {
    "description": "What was asked: whatever can change a number. As in question.json.",
    **_object(
        {
            "schema": _COUNT,
            "model": _object(
                {
                    "spec": _TEXT,
                    "config": _TEXT,
                    "kind": {"enum": ["file", "package", "hub", "random"]},
                    "revision": _OPTIONAL_TEXT,
                    "sha256": _OPTIONAL_TEXT,
                }
            ),
            "images": _object(
                {
                    "mode": {"enum": ["crop", "pad"]},
                    "frames": _COUNT,
                    "height": _COUNT,
                    "width": _COUNT,
                }
            ),
            "scenes": {
                "type": "array",
                "minItems": 1,
                "items": _object(
                    {
                        "name": _TEXT,
                        "folder": _TEXT,
                        "files": {
                            "type": "array",
                            "minItems": 1,
                            "items": _object({"name": _TEXT, "sha256": _SHA256}),
                        },
                        "skipped": {"type": "array", "items": _TEXT},
                        "pixels_sha256": _SHA256,
                        "truth": {"type": ["object", "null"]},
                    }
                ),
            },
            "variants": {"type": "array", "items": _TEXT},
            "outputs": {"type": "array", "items": {"enum": ["pose", "depth", "points"]}},
            "warmup": {"type": "integer", "minimum": 0},
            "repeats": _COUNT,
            "threads": _COUNT,
        }
    ),
}


def report_schema() -> Schema:
    """The schema as a dict. ModuleNotFoundError where pydantic is missing."""
    from pydantic import TypeAdapter

    report = TypeAdapter(ComparisonReport).json_schema()
    ratios = TypeAdapter(Ratios).json_schema()
    definitions: dict[str, Schema] = {**report.pop("$defs"), "Ratios": ratios}
    # Written beside the fields of each row, see `ComparisonReport.to_json`.
    definitions["Row"]["properties"] |= {"label": _TEXT, "ratios": {"$ref": "#/$defs/Ratios"}}
    report["properties"] |= {"schema": {"const": SCHEMA}, "folder": _TEXT, "question": QUESTION}
    whole = {"$schema": DRAFT, **_strict(report), "title": TITLE}
    whole["$defs"] = {name: _strict(definitions[name]) for name in sorted(definitions)}
    return whole


def _strict(record: Schema) -> Schema:
    """The schema of one dataclass: all fields, no other, none of pydantic's titles and defaults."""
    properties = {
        name: {key: value for key, value in field.items() if key not in ("title", "default")}
        for name, field in record["properties"].items()
    }
    kept = {key: value for key, value in record.items() if key not in ("title", "required")}
    return {
        **kept,
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def schema_text() -> str:
    """The content of compare/comparison_report.schema.json."""
    return json.dumps(report_schema(), indent=2) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
