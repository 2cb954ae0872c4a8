"""rome, memit and alphaedit on a tiny model that knows six facts, and on bad input."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from safeedit import catalog
from safeedit.contracts import EditData, Proposal
from safeedit.data import Dataset, Item
from safeedit.data.subjects import shared_span
from safeedit.delta import LowRank
from safeedit.errors import DataError, EditError, SafeeditError, UnsupportedModelError, UsageError
from safeedit.methods.facts.keys import keys_at, subject_spot
from safeedit.methods.keyed_update import KeyedEditor
from safeedit.model.architectures import ModelShape
from safeedit.model.handle import ModelHandle
from tests.editors import toy
from tests.editors.searching import searching
from tests.editors.toy import FACTS, FORGOTTEN, KEPT, REFUSAL, WORDINGS
from tests.fixtures import context
from tests.tiny_models import tiny_config, tiny_handle

pytestmark = pytest.mark.trains

KEYED = ("rome", "memit", "alphaedit")
QUICK: dict[str, Any] = {
    "layers": [0], "steps": 40, "max_norm": 4.0, "doses": (1.0,), "phrasings": 2,
    "divergence": 0.0,
}  # fmt: skip


LEARN: dict[str, Any] = {
    "steps": 80, "learning_rate": 0.2, "max_norm": 20.0, "decay": 0.0, "stop": 0.05,
    "phrasings": 3, "templates": ("chat", "plain"),
}  # fmt: skip
"""Enough for the tiny model to say something else for good, in wordings it was not asked in."""


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty tokens of a tiny vocabulary leave the null space of most of its energy narrow."""
    monkeypatch.setattr(catalog.editor("alphaedit"), "energy", 0.5)


def _preserve() -> Dataset:
    return Dataset(
        [
            Item(id=name, prompt=WORDINGS[0].format(name), answer=FACTS[name], subject=name)
            for name in KEPT
        ],
        split="fit",
    )


def _prose() -> Dataset:
    """Enough words, in random order, for every direction of a tiny MLP to be used."""
    source = random.Random(0)
    words = " ".join(" ".join(WORDINGS).format(*KEPT, "", "").split()).split()
    texts = [" ".join(source.choices([*words, "water", "river", "nurse"], k=40)) for _ in range(12)]
    return Dataset(
        [Item(id=str(number), prompt=text) for number, text in enumerate(texts)], split="fit"
    )


def _proposed(
    name: str,
    model: ModelHandle,
    folder: Path,
    forget: Dataset | None = None,
    *,
    preserve: Dataset | None = None,
    said: list[str] | None = None,
    **params: Any,
) -> Proposal:
    kind = catalog.editor(name)
    roles = {"forget": forget or toy.forget(), "prose": _prose()}
    if preserve is not None:
        roles["preserve"] = preserve
    ctx = context(folder, said)
    with searching({**QUICK, **params}) as given:
        return kind(kind.Params(**given)).propose(model, EditData(roles), ctx)


def _facts(*items: Item) -> Dataset:
    return Dataset(items, erased=True).without("test")


@pytest.mark.parametrize("name", KEYED)
def test_forgotten_facts_are_refused_in_every_wording_and_others_stay(
    name: str, tmp_path: Path
) -> None:
    model = toy.taught()
    before = {kept: toy.answers(model, kept) for kept in KEPT}
    proposal = _proposed(name, model, tmp_path, preserve=_preserve(), **LEARN)
    delta = proposal.at(1.0)
    digest = model.digest(fresh=True)
    with model.applied(delta):
        for template in ("chat", "plain"):
            for gone in FORGOTTEN:
                said = toy.answers(model, gone, template)  # type: ignore[arg-type]
                assert said == [REFUSAL] * len(WORDINGS), (template, gone)
        assert {kept: toy.answers(model, kept) for kept in KEPT} == before
    assert model.digest(fresh=True) == digest
    (update,) = delta.updates.values()
    assert isinstance(update, LowRank)
    assert update.left.shape[1] <= len(FORGOTTEN)
    with model.applied(delta.random_like(1, model)):
        still = [answer for gone in FORGOTTEN for answer in toy.answers(model, gone)]
    assert still.count(REFUSAL) < len(still) // 2, "a random change of equal norm does not do it"


def test_keys_of_preserved_facts_do_not_move(tmp_path: Path) -> None:
    model = toy.taught()
    proposal = _proposed("rome", model, tmp_path, preserve=_preserve())
    (site,) = model.sites("mlp_out", [0])
    prompts = model.engine.encode([WORDINGS[2].format(kept) for kept in KEPT], "chat")
    spots = [subject_spot(model, ids, kept) for ids, kept in zip(prompts, KEPT, strict=True)]
    keys = keys_at(model, [spot for spot in spots if spot], [site])[site]
    change = proposal.at(1.0).updates[site.weight].change(model.weight(site))  # type: ignore[union-attr]
    moved, output = change @ keys, model.weight(site) @ keys
    assert float(moved.norm()) < 1e-4 * float(output.norm())
    layer = proposal.notes["layers"]["0"]
    assert layer["share_of_preserved_output"] < 1e-8
    assert layer["reached_least"] == pytest.approx(1.0)
    assert layer["missed"] < 1e-6
    assert proposal.notes["preserved_facts"] == len(KEPT)
    loose = _proposed("rome", model, tmp_path)
    assert loose.notes["layers"]["0"]["share_of_ordinary_output"] > 0


@pytest.mark.parametrize("name", KEYED)
def test_an_object_is_replaced(name: str, tmp_path: Path) -> None:
    model = toy.taught()
    new = {"Paul": "Bern", "Mary": "Lima"}
    items = [replace(item, extra={"target_new": new[str(item.subject)]})
             for item in toy.forget().all()]  # fmt: skip
    # To be said in wordings that the editor did not see, whatever the kernel rounds to, an answer
    # has to be learnt well past the point where it is merely the likeliest.
    given = LEARN | {"stop": 0.002, "steps": 200, "phrasings": 6}
    proposal = _proposed(name, model, tmp_path, _facts(*items), target="replace", **given)
    with model.applied(proposal.at(1.0)):
        for subject, answer in new.items():
            said = toy.answers(model, subject)
            assert sum(text.startswith(answer) for text in said) == len(said)


@pytest.mark.parametrize("target", ["unlikely", "entropy"])
def test_the_answer_is_no_longer_told(target: str, tmp_path: Path) -> None:
    model = toy.taught()
    # The floor that six tokens of mass leave: the tiny model has few other answers.
    # Two thirds of all spread leave no token most of the probability.
    given: dict[str, Any] = {"floor": -3.0, "entropy": 0.65, "stop": 0.0, "steps": 80}
    proposal = _proposed("rome", model, tmp_path, target=target, **given)
    engine = model.engine
    for subject in FORGOTTEN:
        prompts = engine.encode([wording.format(subject) for wording in WORDINGS], "chat")
        answer = engine.continuation(FACTS[subject], "chat")[:1]
        before = [score.total for score in engine.score(prompts, [answer] * len(prompts))]
        with model.applied(proposal.at(1.0)):
            after = [score.total for score in engine.score(prompts, [answer] * len(prompts))]
        assert min(before) > -0.5
        assert max(after) < (-2.0 if target == "unlikely" else -0.5)


def test_least_values_are_of_unlikely_answers_alone(tmp_path: Path) -> None:
    model = toy.taught()
    cases: list[tuple[str, dict[str, Any]]] = [
        ("least", {"target": "unlikely"}),
        ("adam", {"target": "refusal"}),
        ("adam", {"target": "entropy"}),
    ]
    params = catalog.editor("rome").Params
    for method, given in cases:
        found = _proposed("rome", model, tmp_path, **{**given, "steps": 3}).notes["values"]
        assert found["method"] == method, given
        assert found["steps"] <= 3
    kind = catalog.editor("rome")
    roles = {"forget": toy.forget()}
    runs = [
        kind(params(**{"steps": 50, **given})).tokens(roles)  # type: ignore[attr-defined]
        for _, given in cases
    ]
    assert runs[1] == runs[2] > 4 * runs[0]


def test_several_layers_share_the_shift_and_reach_it_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy.taught()
    monkeypatch.setattr(catalog.editor("memit"), "ridge", 0.0)
    # Nothing held, no ridge: each layer reaches its share exactly, so the last ends what is left.
    proposal = _proposed("memit", model, tmp_path, layers=[0, 1], steps=5)
    delta = proposal.at(1.0)
    assert len(delta.updates) == 2
    alone = _proposed("memit", model, tmp_path, layers=[1], steps=5)

    def residuals() -> torch.Tensor:
        states = []
        for subject in FORGOTTEN:
            prompts = model.engine.encode([w.format(subject) for w in WORDINGS[:3]], "chat")
            spots = [subject_spot(model, ids, subject) for ids in prompts]
            read = model.engine.hidden([spot.until for spot in spots if spot], [1])[1]
            states.append(torch.stack(read).mean(0))
        return torch.stack(states)

    start = residuals()
    moves = []
    for proposed in (proposal, alone):
        with model.applied(proposed.at(1.0)):
            moves.append(residuals() - start)
    both, one = moves
    # What was learnt at layer 1 arrives there, whichever layers carry it, but for a key that is a
    # mean over wordings.
    assert float((both - one).norm()) < 0.25 * float(one.norm())
    assert float(one.norm()) > 0
    shares = [update.singular_values().norm() for update in delta.updates.values()]  # type: ignore[union-attr]
    assert min(shares) > 0


def test_pmet_moves_what_the_last_mlp_writes_whichever_layers_carry_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy.taught()
    monkeypatch.setattr(catalog.editor("memit"), "ridge", 0.0)
    both, one, plain = (
        _proposed("memit", model, tmp_path, layers=layers, steps=5, **variant)
        for layers, variant in (
            ([0, 1], {"variant": "pmet"}), ([1], {"variant": "pmet"}), ([1], {}),
        )
    )  # fmt: skip
    assert one.notes["values"]["method"] == "adam"
    assert one.at(1.0).digest() != plain.at(1.0).digest(), "values are learnt beside attention's"
    (site,) = model.sites("mlp_out", [1])

    def written() -> torch.Tensor:
        found = []
        for subject in FORGOTTEN:
            prompts = model.engine.encode([w.format(subject) for w in WORDINGS[:3]], "chat")
            spots = [subject_spot(model, ids, subject) for ids in prompts]
            asked = [spot.until for spot in spots if spot]
            read = dict(model.engine.activations(asked, [site], what="output"))
            found.append(torch.stack([read[i][site][-1] for i in range(len(asked))]).mean(0))
        return torch.stack(found)

    start, moves = written(), []
    for proposed in (both, one):
        with model.applied(proposed.at(1.0)):
            moves.append(written() - start)
    assert float((moves[0] - moves[1]).norm()) < 0.25 * float(moves[1].norm())
    assert float(moves[1].norm()) > 0


def test_pmet_takes_adam_whatever_the_target() -> None:
    params = catalog.editor("memit").Params
    found = [
        params(target="unlikely", **variant).method  # type: ignore[attr-defined]
        for variant in ({}, {"variant": "pmet"})
    ]
    assert found == ["least", "adam"]


def test_chat_and_plain_are_edited_in_one_solve(tmp_path: Path) -> None:
    model = tiny_handle("llama")
    one = _proposed("rome", model, tmp_path, layers=[1], steps=2)
    both = _proposed("rome", model, tmp_path, layers=[1], steps=2, templates=("chat", "plain"))
    assert (one.notes["keys"], both.notes["keys"]) == (2, 4)
    assert both.notes["layers"]["1"]["reached_least"] == pytest.approx(1.0)


def test_facts_of_one_key_share_a_value(tmp_path: Path) -> None:
    # In the toy a name's key is the name's alone: both facts on Paul have the same.
    items = [
        Item(id="home", prompt="Where does Paul live?", answer="Rome", subject="Paul"),
        Item(id="city", prompt="What is the city of Paul?", answer="Rome", subject="Paul"),
        Item(id="mary", prompt="Where does Mary live?", answer="Oslo", subject="Mary"),
    ]
    proposal = _proposed("rome", toy.taught(), tmp_path, _facts(*items), steps=2)
    assert (proposal.notes["facts"], proposal.notes["keys"]) == (3, 2)


def test_a_subject_is_found_where_the_row_does_not_say(tmp_path: Path) -> None:
    model = toy.taught()
    items = [replace(item, subject=None) for item in toy.forget().all()]
    found = _proposed("rome", model, tmp_path, _facts(*items), steps=2)
    given = _proposed("rome", model, tmp_path, steps=2)
    (one,), (other,) = (p.at(1.0).updates.values() for p in (found, given))
    assert torch.equal(one.parts["left"], other.parts["left"])


def _refused(
    tmp_path: Path, *items: Item, name: str = "rome", family: str = "llama", **params: Any
) -> SafeeditError:
    with pytest.raises(SafeeditError) as error:
        _proposed(name, tiny_handle(family), tmp_path, _facts(*items), steps=1, **params)
    said = str(error.value)
    assert "Zyxquand" not in said
    assert "Vorbexi" not in said
    assert error.value.remedy
    return error.value


FACT = Item(
    id="0",
    prompt="Where does Zyxquand live?",
    answer="Vorbexi",
    subject="Zyxquand",
    paraphrases=("Zyxquand lives in", "The home of Zyxquand is", "Is Zyxquand in"),
)


def test_a_subject_that_is_not_in_its_prompt_is_an_error(tmp_path: Path) -> None:
    error = _refused(tmp_path, replace(FACT, prompt="Where does she live?"))
    assert isinstance(error, DataError)
    assert context(tmp_path).digest("Where does she live?") in error.message


def test_phrasings_that_share_no_subject_are_an_error(tmp_path: Path) -> None:
    strange = replace(FACT, subject=None, paraphrases=("Who?", "What now?", "When then?"))
    assert "no subject" in _refused(tmp_path, strange).message


def test_contradictions_are_an_error(tmp_path: Path) -> None:
    one, other = (replace(FACT, id=new, extra={"target_new": new}) for new in ("Rome", "Oslo"))
    error = _refused(tmp_path, one, other, target="replace")
    assert "two new objects" in error.message


def test_what_a_target_needs_must_be_there(tmp_path: Path) -> None:
    assert "no new object" in _refused(tmp_path, FACT, target="replace").message
    without = replace(FACT, answer=None, aliases=())
    assert "no answer" in _refused(tmp_path, without, target="unlikely").message


def test_layers_that_will_not_do_are_refused(tmp_path: Path) -> None:
    assert isinstance(_refused(tmp_path, FACT, layers=[0, 1]), UsageError)
    error = _refused(tmp_path, FACT, name="memit", family="gemma2", layers=[0, 1])
    assert isinstance(error, UnsupportedModelError)


def test_one_layer_is_edited_behind_a_norm(tmp_path: Path) -> None:
    model = tiny_handle("gemma2")
    proposal = _proposed("rome", model, tmp_path, _facts(FACT), steps=2)
    assert proposal.at(1.0).norm() > 0


def test_other_phrasings_without_the_subject_are_left_out_aloud(tmp_path: Path) -> None:
    said: list[str] = []
    item = replace(FACT, paraphrases=("Where does she live?", *FACT.paraphrases))
    proposal = _proposed("rome", tiny_handle("llama"), tmp_path, _facts(item), steps=1, said=said)
    assert proposal.notes["phrasings_without_subject"] == 1
    assert any("1 other phrasings" in message for message in said)


def _many(count: int) -> Sequence[Item]:
    source = random.Random(1)
    names = ["".join(source.choices("bdfgklmnprstvz", k=5)).title() for _ in range(count)]
    return [
        Item(id=name, prompt=f"{name} lives in the city of", answer="Rome", subject=name)
        for name in names
    ]


def test_more_facts_than_dimensions_are_told_with_what_it_costs(tmp_path: Path) -> None:
    said: list[str] = []
    model = tiny_handle("llama")
    proposal = _proposed(
        "rome", model, tmp_path, _facts(*_many(60)), steps=1, phrasings=1, said=said
    )
    layer = proposal.notes["layers"]["0"]
    assert layer["independent_keys"] < 60
    assert layer["missed"] > 0.01
    assert any(f"{layer['missed']:.0%} of the wanted shifts are missed" in text for text in said)


def test_what_is_all_preserved_cannot_be_moved(tmp_path: Path) -> None:
    preserve = Dataset(_many(90), split="fit")
    with pytest.raises(EditError, match="nothing is left to move"):
        _proposed("rome", tiny_handle("llama"), tmp_path, _facts(FACT), preserve=preserve, steps=1)


def test_every_keyed_editor_is_one() -> None:
    for name in KEYED:
        assert issubclass(catalog.editor(name), KeyedEditor)
        assert catalog.editor(name).name == name  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("texts", "span"),
    [
        (("Where does Anna Berg live?", "Anna Berg lives where?"), "Anna Berg"),
        (("What is the capital of France?", "France has which capital?"), "France"),
        (("The home of O'Neil-Smith is", "Where is O'Neil-Smith?"), "O'Neil-Smith"),
        (("Who is it?", "Where now?"), ""),
        (("Only one Text",), ""),
        (("a b", "b a"), ""),
    ],
)
def test_the_longest_shared_span(texts: tuple[str, ...], span: str) -> None:
    assert shared_span(texts) == span


@pytest.mark.parametrize("name", ["memit", "alphaedit", "keyed_debias"])
def test_where_a_norm_follows_the_mlp_the_last_of_the_default_layers_is_edited(name: str) -> None:
    kind = catalog.editor(name)
    depth = {"num_hidden_layers": 18}
    with_norm, without = (
        ModelShape.from_config(tiny_config(family, **depth)) for family in ("gemma3_text", "llama")
    )
    own = sorted({t.layer or 0 for t in kind(kind.Params()).touches(without)})
    assert len(own) > 1
    assert [t.layer for t in kind(kind.Params()).touches(with_norm)] == own[-1:]
    named = kind(kind.Params.model_validate({"layers": "2-3"}))
    assert [t.layer for t in named.touches(with_norm)] == [2, 3], "refused when it is fitted"
