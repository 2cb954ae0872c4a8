"""The policy's parts, made in Python."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from safeedit.policy import AuditSpec, Bound, DataSpec, EditSpec, GateSpec, ModelSpec, Policy

MODEL = ModelSpec(source="a")


def gate(**values: object) -> GateSpec:
    return GateSpec.model_validate({"metric": "leakage.rate", **values})


def test_parts_are_immutable() -> None:
    with pytest.raises(ValidationError):
        MODEL.source = "b"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("written", "value", "relative"),
    [(0.1, 0.1, False), (1, 1.0, False), ("3%", 0.03, True), ("0.7 %", 0.007, True)],
)
def test_a_change_is_a_number_or_a_percentage(
    written: object, value: float, relative: bool
) -> None:
    assert gate(max_increase=written).max_increase == Bound(value=value, relative=relative)


@pytest.mark.parametrize(
    ("values", "kind", "condition", "of_change"),
    [
        ({"min": 0.9}, "min", "min 0.9", False),
        ({"max": 0.02, "confidence": 0.95}, "max", "max 0.02 at confidence 0.95", False),
        ({"max_increase": "3%"}, "max_increase", "max_increase 3%", True),
        ({"max_decrease": 0.1}, "max_decrease", "max_decrease 0.1", True),
        ({"min": -2}, "min", "min -2", False),
    ],
)
def test_a_gate_says_its_condition(
    values: dict[str, object], kind: str, condition: str, of_change: bool
) -> None:
    made = gate(**values)
    assert (made.kind, made.condition, made.meaning.of_change) == (kind, condition, of_change)


def test_a_gate_parts_audit_and_metric_at_the_last_dot() -> None:
    made = GateSpec(metric="leakage.exposure.few-shot", max=0)
    assert (made.audit, made.name) == ("leakage.exposure", "few-shot")


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"file": "a", "dataset": "b"},
        {"dataset": "facts", "hub": "a/b"},
        {"file": "a", "revision": "main"},
        {"file": "a", "hub_config": "x"},
        {"file": "a", "stream": True},
        {"hub": "a/b", "sha256": "0" * 64},
        {"hub": "../a"},
        {"hub": "https://example.org/a"},
        {"file": "a", "limit": 0},
        {"file": "a", "sha256": "abc"},
        {"file": "a", "split": "train"},
    ],
)
def test_a_data_source_that_contradicts_itself_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DataSpec.model_validate(values)


def test_options_are_the_keys_beyond_the_fields() -> None:
    edit = EditSpec.model_validate({"use": "a", "dose": 2, "rank": 8, "forget": {"file": "x"}})
    assert edit.options == {"rank": 8, "forget": {"file": "x"}}
    assert edit.id == "a"


def test_a_policy_made_in_python_is_checked_as_one_from_a_file() -> None:
    with pytest.raises(ValidationError, match="names an audit that is not there"):
        Policy(name="a", model=MODEL, gates=(gate(max=1),))
    with pytest.raises(ValidationError, match="is the id of"):
        Policy(name="a", model=MODEL, audits=(AuditSpec(use="x"), AuditSpec(use="x")))


def test_targets_are_checked_against_the_audits_too() -> None:
    edit = EditSpec(use="e", targets=(gate(max=1),))
    with pytest.raises(ValidationError, match=r"edits\.0\.targets\.0\.metric"):
        Policy(name="a", model=MODEL, edits=(edit,))
    Policy(name="a", model=MODEL, edits=(edit,), audits=(AuditSpec(use="leakage"),))
