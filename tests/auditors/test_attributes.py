"""Which attribute is expected, by a model whose probabilities are known."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from safeedit.auditors.attributes import Attributes, Params
from safeedit.contracts import AuditOutcome
from safeedit.data import Dataset, Item
from safeedit.errors import AuditError, DataError
from safeedit.records import Metric
from tests.auditors.scripted import ScriptedEngine
from tests.fixtures import context

NAMES = ("Anita", "Boris", "Clara", "Doris")


def items(erased: bool = True) -> Dataset:
    found = [
        Item(name, f"{name} works as a", subject=name, extra={"target": "cook", "other": "spy"},
             paraphrases=tuple(f"{n}: {name} is a" for n in range(6)) if erased else ())
        for name in NAMES
    ]  # fmt: skip
    return Dataset(found, erased=erased, split=None if erased else "test")


def engine(*cooks: str) -> ScriptedEngine:
    """Expects a cook of those named and a spy of the others; ranks r have log p -log r - 1/2."""

    def rank(text: str, answer: str) -> list[float]:
        likely = any(name in text for name in cooks) == (answer == "cook")
        return [1.0 if likely else 4.0] * len(answer)

    return ScriptedEngine(say=lambda asked, sample: "", rank=rank)


def audit(
    made: ScriptedEngine, tmp_path: Path, before: AuditOutcome | None = None, near: bool = True
) -> tuple[dict[str, Metric], AuditOutcome]:
    data = {"entities": items()} | ({"neighbours": items(False)} if near else {})
    reference = before.reference if before else None
    outcome = Attributes(Params()).audit(made.model, data, "test", context(tmp_path), reference)
    return {metric.name: metric for metric in outcome.metrics}, outcome


def test_figures_are_those_of_the_probabilities(tmp_path: Path) -> None:
    base, outcome = audit(engine("Anita"), tmp_path)
    assert base["accuracy"].value == 0.25
    assert base["accuracy"].n == 4, "entities, not prompts"
    assert len(base["accuracy"].items) == 8
    assert base["target_probability"].value == pytest.approx(
        (math.exp(-2) + 3 * math.exp(-2) / 4**4) / 4
    )
    assert base["margin"].value == pytest.approx(-math.log(4) / 2)
    assert base["unchanged"].value == 1
    now, _ = audit(engine("Anita", "Boris", "Clara"), tmp_path, outcome)
    assert now["accuracy_change"].value == pytest.approx(0.5)
    assert now["margin_change"].value == pytest.approx(math.log(4))
    assert now["unchanged"].value == 0.5
    assert now["neighbour_shift"].value == pytest.approx(math.log(4))


def test_only_phrasings_of_the_split_are_asked(tmp_path: Path) -> None:
    made = engine()
    audit(made, tmp_path, near=False)
    assert {asked.text for asked in made.asked} == {f"{n}: {m} is a" for n in (4, 5) for m in NAMES}


def test_items_without_continuations_are_refused(tmp_path: Path) -> None:
    lacking = Dataset([replace(item, extra={"target": "cook"}) for item in items()], erased=True)
    with pytest.raises(DataError, match="no 'other'"):
        Attributes(Params()).audit(
            engine().model, {"entities": lacking}, "test", context(tmp_path), None
        )
    with pytest.raises(AuditError, match="other data"):
        audit(engine(), tmp_path, audit(engine(), tmp_path, near=False)[1])
