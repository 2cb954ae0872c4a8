"""The JSON Schema that editors use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from safeedit.policy import StageSchema, json_schema, load_policy
from safeedit.policy.builtin import builtin_policies
from tests.policy.test_loading import GOOD, write

SANITATION = StageSchema(
    "sanitation",
    "answers are replaced by a refusal",
    {"properties": {"rate": {"type": "number"}, "rank": {"type": "integer"}}},
    (("forget", "what to forget", True), ("retain", "what to keep", False)),
)
AUDITS = (
    StageSchema("leakage", "does it come out?", {}, (("data", "what must not come out", True),)),
    StageSchema("perplexity", "prose", {}, (("data", "prose", True),)),
)


def accepts(schema: dict[str, Any], text: str) -> bool:
    return bool(jsonschema.Draft202012Validator(schema).is_valid(yaml.safe_load(text)))


@pytest.fixture(params=["plain", "with stages"])
def schema(request: pytest.FixtureRequest) -> dict[str, Any]:
    return json_schema() if request.param == "plain" else json_schema([SANITATION], AUDITS)


def test_the_schema_is_valid_draft_2020_12(schema: dict[str, Any]) -> None:
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(schema)


def test_the_schema_accepts_what_the_loader_accepts(schema: dict[str, Any], tmp_path: Path) -> None:
    load_policy(write(tmp_path, GOOD))
    text = GOOD.replace("1e-4", "0.0001")  # the tests' reader, unlike ours, is YAML 1.1
    jsonschema.Draft202012Validator(schema).validate(yaml.safe_load(text))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("seed: 7", "sede: 7"),
        ("seed: 7", "seed: x"),
        ("dtype: auto", "dtype: half"),
        ("max: 0.02", "max: 0.02, min: 0"),
        (" max: 0.02,", ""),
        ("max_increase: 3%", "max_increase: three"),
        ("dose: auto", "dose: 0"),
        ("name: forget-customer-records", "name: ../x"),
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(
    schema: dict[str, Any], right: str, wrong: str
) -> None:
    text = GOOD.replace("1e-4", "0.0001")
    assert accepts(schema, text)
    assert not accepts(schema, text.replace(right, wrong))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("use: sanitation", "use: sanitization"),
        ("rate: 1e-4", "rat: 1"),
        ("rate: 1e-4", "rate: fast"),
        ("forget: {file: ../data/forget.jsonl}", "forget: {fiel: x}"),
        ("forget: {file: ../data/forget.jsonl}", "forget: {file: a, dataset: b}"),
    ],
)
def test_with_stages_it_knows_parameters_and_data_of_each(right: str, wrong: str) -> None:
    text = GOOD.replace(right, wrong).replace("1e-4", "0.0001")
    assert not accepts(json_schema([SANITATION], AUDITS), text)
    assert accepts(json_schema(), text)


def test_the_first_role_may_be_spelled_data() -> None:
    text = GOOD.replace("1e-4", "0.0001").replace("forget: {file", "data: {file")
    assert accepts(json_schema([SANITATION], AUDITS), text)


def test_every_field_has_a_description(schema: dict[str, Any]) -> None:
    def walk(definition: dict[str, Any], name: str) -> None:
        for key, field in definition.get("properties", {}).items():
            kind = schema["$defs"].get(field.get("$ref", "").removeprefix("#/$defs/"), {})
            assert field.get("description") or kind.get("description"), f"{name}.{key}"

    walk(schema, "policy")
    for name in ("ModelSpec", "EditSpec", "AuditSpec", "GateSpec", "ExportSpec", "DataSpec"):
        walk(schema["$defs"][name], name)


def test_every_policy_that_ships_is_accepted() -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    for path in builtin_policies().values():
        policy = load_policy(path).policy.model_dump(mode="json", exclude_defaults=True)
        validator.validate(policy)
