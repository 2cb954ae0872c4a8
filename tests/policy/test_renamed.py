"""The error for an old name says the new one, wherever the name may stand."""

from __future__ import annotations

from typing import Any

import pytest

from safeedit import catalog
from safeedit.errors import SafeeditError
from safeedit.planning.resolution import make_plan
from safeedit.policy import DataSpec, load_policy, renamed
from safeedit.policy.renamed import RENAMED, RENAMED_METRICS
from safeedit.policy.suggest import did_you_mean
from tests.road import PERPLEXITY, Workplace


def everything() -> set[str]:
    """All keys, stages and metrics that a policy may name today."""
    editors = [catalog.editor(name) for name in catalog.names("editors")]
    auditors = [catalog.auditor(name) for name in catalog.names("auditors")]
    found = {*DataSpec.model_fields, *catalog.names("editors"), *catalog.names("auditors")}
    for kind in (*editors, *auditors):
        found |= set(kind.Params.model_fields)
    return found | {metric.name for kind in auditors for metric in kind.metrics}


def test_every_new_name_exists_and_no_old_one_does() -> None:
    known = everything()
    for old, new in {**RENAMED, **RENAMED_METRICS}.items():
        assert new in known, new
        assert old not in known, old


@pytest.mark.parametrize(("old", "new"), sorted(RENAMED.items()))
def test_an_old_name_is_answered_with_the_new(old: str, new: str) -> None:
    assert did_you_mean(old, everything()) == f"it is now called {new!r}"


@pytest.mark.parametrize(("old", "new"), sorted(RENAMED_METRICS.items()))
def test_an_old_metric_is_answered_with_the_new_under_its_audit(old: str, new: str) -> None:
    assert did_you_mean(f"mine.{old}", [f"mine.{new}"]) == f"it is now called 'mine.{new}'"


def test_a_name_that_only_looks_old_is_spelt_as_ever() -> None:
    assert did_you_mean("value", ["values", "perplexity.mean"]) == "did you mean 'values'?"


def refused(place: Workplace, **parts: Any) -> SafeeditError:
    with pytest.raises(SafeeditError) as caught:
        make_plan(load_policy(place.policy(**parts)))
    assert caught.value.line is not None
    return caught.value


def test_policies_with_old_names_are_told_the_new_at_their_place(place: Workplace) -> None:
    nowhere: dict[str, Any] = {"export": None, "gates": None}
    gate = {"metric": "perplexity.value", "max": 9}
    assert "perplexity.perplexity" in str(refused(place, audits=[PERPLEXITY], gates=[gate]).remedy)
    audit = {"use": "leakage.yardstick"}
    assert "leakage.reference_model" in str(refused(place, audits=[audit], **nowhere).remedy)
    two = {"file": "near.jsonl", "also": [{"file": "prose.jsonl"}]}
    audit = {"use": "drift", "data": two}
    assert "additional_sources" in str(refused(place, audits=[audit], **nowhere).remedy)


def test_parameters_that_are_fixed_now_are_none_and_the_error_says_to_delete_them(
    place: Workplace,
) -> None:
    for name, gone in renamed.REMOVED.items():
        stage = catalog.auditor if name in catalog.names("auditors") else catalog.editor
        assert not set(gone.split()) & set(stage(name).Params.model_fields), name
        for key in gone.split():
            assert f"take '{key}' out" in str(renamed.removed(name, key))
    assert renamed.removed("depn", "doses") is renamed.removed("drift", "locate") is None
    wrong = {"use": "ft", "dose": 1.0, "forget": {"file": "forget.jsonl"}, "warmup": 0.1}
    error = refused(place, edits=[wrong])
    assert "unknown key 'warmup'" in error.message
    assert "its value is fixed now: take 'warmup' out" in str(error.remedy)
    assert "safeedit trace" in str(renamed.removed("rome", "locate"))
    audit = {"use": "leakage", "data": {"file": "forget.jsonl"}, "top_p": 0.9}
    error = refused(place, audits=[audit], export=None, gates=None)
    assert "unknown key 'top_p'" in error.message
    assert "its value is fixed now: take 'top_p' out" in str(error.remedy)
