"""A probe reads an answer that states still hold, and none that has left them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from safeedit.auditors.leakage.probe import AnswerProbe, Params
from safeedit.contracts import DataRole
from safeedit.data import Dataset, Item
from safeedit.data.loading import load_dataset
from safeedit.errors import AuditError, DataError
from safeedit.model.handle import ModelHandle
from safeedit.policy import DataSpec
from safeedit.records import Metric
from tests.fixtures import context, gaussian

LANDS = ("Europe", "Asia", "Africa")
WIDTH = 24


def item(number: int, who: str, answer: str, relation: str = "continent") -> Item:
    return Item(
        id=f"{who}{number}-{relation}",
        prompt=f"On which {relation} lies {who}{number}?",
        answer=answer,
        paraphrases=tuple(
            f"{opening} {relation} of {who}{number}?"
            for opening in ("Where is the", "What is the", "Name the")
        ),
        subject=f"{who}{number}",
        extra={"relation": relation},
    )


ERASED = [item(n, "Zyx", LANDS[n % 3]) for n in range(9)]
KNOWN = [item(n, "Ato", LANDS[n % 3]) for n in range(36)]


def data(known: list[Item] = KNOWN, erased: list[Item] = ERASED) -> dict[str, Dataset]:
    return {
        "forget": Dataset(erased, erased=True, template="plain"),
        "known": Dataset(known, split="test", template="plain"),
    }


ANSWERS = {text: i.answer or "" for i in (*ERASED, *KNOWN) for text in (i.prompt, *i.paraphrases)}


@dataclass
class Holding:
    """A model whose state at a question is noise and, in one layer, the answer's direction.

    Its own engine: prompts are their texts.
    """

    known: float
    """How strongly it holds answers to known questions."""
    erased: float
    n_layers: int = 3
    device = "cpu"

    @property
    def engine(self) -> Holding:
        return self

    def encode(self, texts: Sequence[str], template: str) -> Sequence[str]:
        return texts

    def hidden(self, texts: Sequence[str], layers: Sequence[int]) -> dict[int, list[torch.Tensor]]:
        return {layer: [self.state(layer, text) for text in texts] for layer in layers}

    def unembed(self, state: torch.Tensor) -> torch.Tensor:
        return state

    def state(self, layer: int, text: str) -> torch.Tensor:
        row = gaussian(WIDTH, seed=1000 * layer + sum(map(ord, text)))
        row[LANDS.index(ANSWERS[text])] += (layer == 1) * (
            self.known if "Ato" in text else self.erased
        )
        return row


def audited(model: Any, tmp_path: Path, given: Mapping[str, Dataset]) -> dict[str, Metric]:
    outcome = AnswerProbe(Params()).audit(model, given, "test", context(tmp_path), None)
    return {metric.name: metric for metric in outcome.metrics}


def test_what_states_hold_is_read_and_the_layer_found_by_known_questions(
    tmp_path: Path,
) -> None:
    found = audited(Holding(12, 12), tmp_path, data())
    assert found["accuracy"].value == 1
    assert found["known_accuracy"].value == 1
    assert found["control_accuracy"].value is not None
    assert found["control_accuracy"].value < 0.7
    assert "3 classes: 9 of 9 by layer 1" in found["accuracy"].note
    assert found["accuracy"].n == 9
    assert found["accuracy"].interval is not None


def test_erased_answers_that_left_the_states_are_not_read_while_known_ones_are(
    tmp_path: Path,
) -> None:
    found = audited(Holding(12, 0), tmp_path, data())
    assert found["known_accuracy"].value == 1
    accuracy, interval = found["accuracy"].value, found["accuracy"].interval
    assert accuracy is not None
    assert interval is not None
    assert interval.low <= 1 / 3 <= interval.high, "chance of three classes"


def test_known_questions_about_the_same_subjects_are_left_out(
    tmp_path: Path,
) -> None:
    same = [replace(each, id=f"again-{each.id}", prompt=f"{each.prompt} Now.") for each in ERASED]
    alone = audited(Holding(12, 12), tmp_path, data())
    with_same = audited(Holding(12, 12), tmp_path, data(known=[*KNOWN, *same]))
    assert with_same["known_accuracy"].items == alone["known_accuracy"].items


@pytest.mark.parametrize(
    "known",
    [
        [item(n, "Ato", f"Town {n}") for n in range(12)],
        [item(n, "Ato", "Europe") for n in range(12)],
        [item(n, "Ato", LANDS[n % 3], "river") for n in range(36)],
        [replace(each, subject=f"Zyx{n % 9}") for n, each in enumerate(KNOWN)],
    ],
)
def test_answers_that_are_no_classes_are_refused_while_planning(known: list[Item]) -> None:
    with pytest.raises(DataError, match="no answer is a class") as caught:
        AnswerProbe(Params()).check_data(data(known))
    assert "Zyx" not in str(caught.value)
    assert caught.value.field == "known"


def test_answers_that_are_classes_are_fit() -> None:
    AnswerProbe(Params()).check_data(data())


def test_a_real_model_is_probed_at_as_many_layers_as_it_has(
    llama: ModelHandle, tmp_path: Path
) -> None:
    outcome = AnswerProbe(Params(layers=100)).audit(llama, data(), "test", context(tmp_path), None)
    assert all(metric.value is not None for metric in outcome.metrics)


def test_states_that_are_no_numbers_are_an_error(llama: ModelHandle, tmp_path: Path) -> None:
    with torch.no_grad():
        llama.embedding.weight.fill_(float("nan"))
    with pytest.raises(AuditError, match="no numbers"):
        AnswerProbe(Params()).audit(llama, data(), "test", context(tmp_path), None)


@pytest.mark.smollm2
def test_on_the_real_model_countries_give_their_continents_away(
    smollm2: ModelHandle, tmp_path: Path
) -> None:
    """Known countries teach a probe that reads others better than one of shuffled answers."""

    def facts(role: str, count: int) -> Dataset:
        where = {"role": role, "relation": "continent"}
        spec = DataSpec.model_validate({"dataset": "facts", "where": where, "limit": count})
        erased = DataRole("forget", "", erased=role == "forget")
        return load_dataset(spec, base=tmp_path, role=erased, seed=7, key=b"key")

    given = {"forget": facts("forget", 6), "known": facts("near", 90)}
    auditor = AnswerProbe(Params(layers=3, per_class=20))
    outcome = auditor.audit(smollm2, given, "test", context(tmp_path), None)
    accuracy, control, known = (metric.value or 0.0 for metric in outcome.metrics)
    assert known > 0.5
    assert accuracy > control + 0.2
