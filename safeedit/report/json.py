"""The record itself, for machines, and the schema it keeps."""

from __future__ import annotations

from typing import Any

from safeedit.records import SCHEMA_VERSION, RunRecord


def render(record: RunRecord) -> str:
    """``report.json``: the whole record; ``RunRecord.model_validate_json`` reads it back."""
    return record.model_dump_json(indent=2) + "\n"


def schema() -> dict[str, Any]:
    """The JSON Schema of ``report.json``, of this version."""
    found = RunRecord.model_json_schema(mode="serialization")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"safeedit run record, version {SCHEMA_VERSION}",
        **{key: value for key, value in found.items() if key != "title"},
    }
