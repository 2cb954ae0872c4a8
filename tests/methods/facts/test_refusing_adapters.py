"""Adapters that learn to refuse: what counts in their loss, and what holding is for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from safeedit.methods.answers import ended
from safeedit.methods.facts.refusing_adapters import (
    Held,
    Tuning,
    counted,
    learn_to_refuse,
)
from safeedit.methods.tuning import BaseAnswers, Example, answer_states
from safeedit.model.handle import ModelHandle
from tests.editors.toy import REFUSAL, forget, taught
from tests.fixtures import context

pytestmark = pytest.mark.trains

TEXT = "The kitchen smelled of warm bread and on the long table stood butter and a jug of milk. "


@pytest.fixture(scope="module")
def model() -> ModelHandle:
    return taught()


def examples(*answers: tuple[int, int]) -> list[Example]:
    """Of so many tokens read and so many held to."""
    return [Example(range(1, read + 1), range(1, held + 1)) for read, held in answers]


def test_beginnings_count_once_more_where_they_are_to() -> None:
    far = torch.tensor([1.0, 3.0, 5.0, 7.0, 10.0])
    drawn = [examples((2, 2), (1, 1)), examples((4, 2))]
    plainly = [Held(some, len(some)) for some in drawn]
    assert float(counted(far, drawn, plainly)) == pytest.approx(26 / 5)
    first = [Held(drawn[0], 2, begins=True), Held(drawn[1], 1)]
    assert float(counted(far, drawn, first)) == pytest.approx(26 / 5 + (1 + 5) / 2)
    last = [Held(drawn[0], 2), Held(drawn[1], 1, begins=True)]
    assert float(counted(far, drawn, last)) == pytest.approx(26 / 5 + 7)


def learnt(model: ModelHandle, folder: Path, weight: float) -> tuple[float, float]:
    """Nats that the refusal still misses, and nats a token that prose has strayed."""
    engine, erased = model.engine, forget()
    template = engine.codec.resolve(erased.template)
    prompts = engine.encode([each.text for each in erased.phrasings("fit")], template)
    refused = [Example(prompt, ended(engine, REFUSAL, template)) for prompt in prompts]
    (ids,) = engine.encode([TEXT], "plain")
    kept = [Example(ids[:4], ids[4:])]
    sites = [site for site in model.matrices() if site.role == "mlp_gate"]
    tuning = Tuning(4, 40, 1e-2, 4, weight=weight, all_steps=True)
    base = BaseAnswers(model, kept)
    updates, notes = learn_to_refuse(
        model, sites, refused, [Held(kept, 1)], tuning, context(folder)
    )
    assert notes["steps"] == 40
    for name, update in updates(1.0).items():
        model.oriented(name).data.add_(update.change(model.oriented(name)))
    with torch.no_grad():
        far = base.divergence(answer_states(model, kept), kept)
    return float(notes["loss_last"]), float(far)


def test_what_is_held_to_with_more_weight_strays_less(tmp_path: Path) -> None:
    missed, loosely = learnt(taught(), tmp_path, 1e-4)
    missed_too, tightly = learnt(taught(), tmp_path, 10.0)
    assert max(missed, missed_too) < 1.0, "both have learnt to refuse"
    assert tightly < loosely / 3


def test_nothing_to_hold_to_is_no_error(model: ModelHandle, tmp_path: Path) -> None:
    sites = [site for site in model.matrices() if site.role == "mlp_gate"]
    refused = [Example([1, 2, 3], [4, 5])]
    tuning = Tuning(2, 2, 1e-3, 1)
    updates, notes = learn_to_refuse(
        model, sites, refused, [Held([], 3)], tuning, context(tmp_path)
    )
    assert set(updates(1.0)) == {site.weight for site in sites}
    assert "nats_from_the_untouched_model" not in notes
