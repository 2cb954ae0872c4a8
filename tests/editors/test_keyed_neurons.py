"""keyed_neurons on a tiny model that knows six facts, and where neurons run out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from safeedit import catalog
from safeedit.contracts import EditData, Proposal
from safeedit.data import Dataset, Item
from safeedit.delta import LowRank
from safeedit.errors import DataError, EditError
from safeedit.methods.facts.keys import subject_spot
from safeedit.model.handle import ModelHandle
from safeedit.model.spans import mentions
from tests.editors import toy
from tests.editors.searching import searching, weigh_background
from tests.editors.toy import FACTS, FORGOTTEN, KEPT, REFUSAL, UNKNOWN, WORDINGS
from tests.fixtures import context
from tests.tiny_models import tiny_handle

pytestmark = pytest.mark.trains

WIDTH = 512
"""Of an MLP with neurons to spare."""
LEARN: dict[str, Any] = {
    "layers": [0], "steps": 80, "learning_rate": 0.2, "max_norm": 20.0, "decay": 0.0, "stop": 0.05,
    "phrasings": 3, "templates": ("chat", "plain"), "divergence": 0.0, "doses": (1.0,),
}  # fmt: skip


def _about(names: Sequence[str]) -> list[Item]:
    return [
        Item(id=name, prompt=WORDINGS[0].format(name), answer=FACTS.get(name), subject=name)
        for name in names
    ]


def _proposed(
    model: ModelHandle, folder: Path, forget: Dataset | None = None, **params: Any
) -> Proposal:
    kind = catalog.editor("keyed_neurons")
    asked = [wording.format(name) for wording in WORDINGS for name in KEPT]
    # Prose that never says the refusal would make the neurons that say it look unused.
    said = [f"{wording.format(name)} {REFUSAL}" for wording in WORDINGS for name in UNKNOWN]
    prose = [Item(id=str(number), prompt=text) for number, text in enumerate([*asked, *said])]
    roles = {
        "forget": _renamed(forget or toy.forget()),
        "preserve": toy.retain(),
        "prose": Dataset(prose, split="fit"),
    }
    with searching({**LEARN, **params}) as given:
        editor = kind(kind.Params(**{"target": "replace", **given}))
        return editor.propose(model, EditData(roles), context(folder))


def _renamed(forget: Dataset) -> Dataset:
    """The same facts, each to be answered by what the model says of those it does not know."""
    items = [replace(item, extra={"target_new": REFUSAL}) for item in forget.all()]
    return Dataset(items, split="fit", erased=True, template=forget.template)


def test_forgotten_facts_are_refused_in_every_wording_and_others_stay(tmp_path: Path) -> None:
    model = toy.taught(WIDTH)
    before = {kept: toy.answers(model, kept) for kept in KEPT}
    delta = _proposed(model, tmp_path).at(1.0)
    digest = model.digest(fresh=True)
    with model.applied(delta):
        for template in ("chat", "plain"):
            for gone in FORGOTTEN:
                said = toy.answers(model, gone, template)  # type: ignore[arg-type]
                assert said == [REFUSAL] * len(WORDINGS), (template, gone)
        assert {kept: toy.answers(model, kept) for kept in KEPT} == before
    assert model.digest(fresh=True) == digest
    with model.applied(delta.random_like(1, model)):
        still = [answer for gone in FORGOTTEN for answer in toy.answers(model, gone)]
    assert still.count(REFUSAL) < len(still) // 2, "a random change of equal norm does not do it"


def test_a_subject_has_one_neuron_in_all_templates_and_for_all_its_facts(tmp_path: Path) -> None:
    model = toy.taught(WIDTH)
    twice = [
        *_about(FORGOTTEN),
        Item(id="again", prompt=WORDINGS[2].format("Paul"), answer="Rome", subject="Paul"),
    ]
    found = _proposed(model, tmp_path, Dataset(twice, split="fit", erased=True), steps=2)
    assert found.notes["facts"] == 3
    assert found.notes["subjects"] == 2
    assert found.notes["layers"]["0"]["neurons_replaced_per_layer"] == 2
    (out,) = model.sites("mlp_out", [0])
    assert isinstance(found.at(1.0).updates[out.weight], LowRank), "others make up for the two"


def test_other_subjects_hear_nothing_of_what_is_written(tmp_path: Path) -> None:
    """Doses scale what is written: where nothing fires, a tenfold one changes nothing."""
    model = toy.taught(WIDTH)
    found = _proposed(model, tmp_path, steps=5)

    def moved(names: Sequence[str]) -> torch.Tensor:
        spots = [
            subject_spot(model, ids, name)
            for name in names
            for ids in model.engine.encode([text.format(name) for text in WORDINGS], "chat")
        ]
        prompts = [spot.until for spot in spots if spot is not None]
        states = []
        for dose in (1.0, 10.0):
            with model.applied(found.at(dose)):
                states.append(torch.stack(model.engine.hidden(prompts, [0])[0]))
        return (states[1] - states[0]).norm(dim=1)

    assert float(moved(KEPT).max()) < 0.01 * float(moved(FORGOTTEN).min())


def test_subjects_are_shared_out_among_layers(tmp_path: Path) -> None:
    model = tiny_handle("llama")
    names = ("Anna", "Bert", "Carl", "Dora", "Emil")
    some = Dataset(_about(names), split="fit", erased=True)
    found = _proposed(model, tmp_path, some, layers=[0, 1], steps=1, templates=("plain",))
    neurons = [found.notes["layers"][layer]["neurons_replaced_per_layer"] for layer in "01"]
    assert neurons == [3, 2]
    assert found.notes["subjects"] == 5
    touched = {plan.name for plan in catalog.editor("keyed_neurons")(
        catalog.editor("keyed_neurons").Params(layers=[0, 1])).touches(model.shape)}  # fmt: skip
    assert set(found.at(1.0).updates) <= touched


def test_subjects_may_share_a_neuron(tmp_path: Path) -> None:
    model = toy.taught(WIDTH)
    found = _proposed(model, tmp_path, subjects_per_neuron=2)
    assert found.notes["layers"]["0"]["neurons_replaced_per_layer"] == 1
    with model.applied(found.at(1.0)):
        for gone in FORGOTTEN:
            assert toy.answers(model, gone) == [REFUSAL] * len(WORDINGS), gone


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_a_second_edit_leaves_the_neurons_of_the_first_alone(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_handle(family)
    given = {"layers": [1], "steps": 1, "templates": ("plain",)}
    weigh_background(monkeypatch)
    names = [("Anna", "Bert"), ("Carl", "Dora"), ("Emil", "Fred")]
    replaced: list[int] = []
    (out,) = model.sites("mlp_out", [1])
    with ExitStack() as edits:
        for some in names:
            facts = Dataset(_about(some), split="fit", erased=True)
            delta = _proposed(model, tmp_path, facts, **given).at(1.0)
            written = delta.updates[out.weight]
            assert isinstance(written, LowRank)
            replaced += written.right[: len(some)].argmax(1).tolist()
            edits.enter_context(model.applied(delta))
    assert len(set(replaced)) == len(replaced) == 6


def test_more_subjects_than_neurons_are_refused(tmp_path: Path) -> None:
    model = tiny_handle("llama")
    names = [f"Name{number}" for number in range(model.shape.d_mlp // 4 + 1)]
    with pytest.raises(EditError, match="can be replaced") as caught:
        _proposed(model, tmp_path, Dataset(_about(names), split="fit", erased=True))
    assert "layers" in str(caught.value.remedy)


def test_a_subject_that_is_not_in_its_prompt_is_an_error(tmp_path: Path) -> None:
    item = Item(id="x", prompt="Where does he live?", answer="Rome", subject="Paul")
    with pytest.raises(DataError, match="does not stand in its prompt") as caught:
        _proposed(tiny_handle("llama"), tmp_path, Dataset([item], split="fit", erased=True))
    assert "Paul" not in str(caught.value)


def test_a_subject_that_only_ends_another_is_an_error(tmp_path: Path) -> None:
    both = [
        Item(id="1", prompt="Where does Ann Nora live?", answer="Bern", subject="Nora"),
        Item(id="2", prompt="Where does Ann Nora live now?", answer="Bonn", subject="Ann Nora"),
    ]
    with pytest.raises(DataError, match="1 of 2 subjects"):
        _proposed(tiny_handle("llama"), tmp_path, Dataset(both, split="fit", erased=True))


def test_of_names_that_end_alike_the_longer_is_meant() -> None:
    tokenizer = tiny_handle("llama").tokenizer
    ids = tokenizer("Mr John Smith met Smith.")["input_ids"]
    found = mentions(tokenizer, ids, ["Smith", "John Smith"])
    assert [number for _, number in found] == [1, 0]


def test_a_refusal_is_for_another_editor() -> None:
    params = catalog.editor("keyed_neurons").Params
    for given in ({"target": "refusal"}, {"refusal": "No."}):
        with pytest.raises(ValidationError, match="'sanitation' does, with 'update: keyed'"):
            params.model_validate(given)
