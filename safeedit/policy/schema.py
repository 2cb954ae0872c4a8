"""The policy's JSON Schema (draft 2020-12), for completion and checks in an editor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from safeedit.policy.gate import MEANINGS
from safeedit.policy.model import DataSpec, Policy

DIALECT = "https://json-schema.org/draft/2020-12/schema"


@dataclass(frozen=True)
class StageSchema:
    """What the schema should know of one editor, auditor or attack."""

    name: str
    summary: str
    params: Mapping[str, Any] = field(default_factory=dict)
    """JSON Schema of its parameters (``Params.model_json_schema()``)."""
    roles: Sequence[tuple[str, str, bool]] = ()
    """Its data roles: name, description, required."""


def json_schema(
    editors: Sequence[StageSchema] = (),
    auditors: Sequence[StageSchema] = (),
    attacks: Sequence[StageSchema] = (),
) -> dict[str, Any]:
    """The schema of a policy file.

    Args:
        editors: Editors to describe key by key; without them any key is accepted in an edit.
        auditors: The same for audits.
        attacks: The same for attacks.
    """
    schema = Policy.model_json_schema(mode="validation")
    definitions: dict[str, Any] = schema["$defs"]
    definitions.update(DataSpec.model_json_schema(mode="validation")["$defs"])
    _exactly_one(definitions["DataSpec"], ("file", "dataset", "hub"))
    _exactly_one(definitions["KeySpec"], ("file", "env"))
    _exactly_one(definitions["GateSpec"], tuple(MEANINGS))
    described = (("EditSpec", editors), ("AuditSpec", auditors), ("AttackSpec", attacks))
    for name, stages in described:
        _describe_stages(definitions, name, stages)
    _drop_titles(schema)
    return {
        "$schema": DIALECT,
        "title": "safeedit policy",
        **{key: value for key, value in schema.items() if key != "title"},
    }


def _exactly_one(definition: dict[str, Any], names: Sequence[str]) -> None:
    definition["oneOf"] = [
        {"required": [name], "properties": {name: {"not": {"type": "null"}}}} for name in names
    ]


def _describe_stages(definitions: dict[str, Any], name: str, stages: Sequence[StageSchema]) -> None:
    definition = definitions[name]
    if not stages:
        definition["additionalProperties"] = True
        return
    definition.pop("additionalProperties", None)
    definition["properties"]["use"] = {
        **{k: v for k, v in definition["properties"]["use"].items() if k != "pattern"},
        "oneOf": [{"const": stage.name, "description": stage.summary} for stage in stages],
    }
    definition["allOf"] = []
    own = dict.fromkeys(definition["properties"], True)
    for stage in stages:
        parameters = dict(stage.params.get("properties", {}))
        for key, inner in stage.params.get("$defs", {}).items():
            definitions.setdefault(key, inner)
        roles = {
            role: {"$ref": "#/$defs/DataSpec", "description": text} for role, text, _ in stage.roles
        }
        if stage.roles and "data" not in roles:
            role, text, _ = stage.roles[0]
            roles["data"] = {"$ref": "#/$defs/DataSpec", "description": f"Same as {role}: {text}"}
        definition["allOf"].append(
            {
                "if": {"properties": {"use": {"const": stage.name}}, "required": ["use"]},
                "then": {
                    "properties": {**own, **roles, **parameters},
                    "additionalProperties": False,
                },
            }
        )


def _drop_titles(node: Any) -> None:
    """Remove pydantic's titles, which repeat the field names and crowd an editor's popup."""
    if isinstance(node, dict):
        if isinstance(node.get("title"), str):
            del node["title"]
        for value in node.values():
            _drop_titles(value)
    elif isinstance(node, list):
        for value in node:
            _drop_titles(value)
