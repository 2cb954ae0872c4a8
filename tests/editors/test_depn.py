"""DEPN on a tiny model that learnt a few secrets by heart, beside random neurons."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from safeedit.contracts import EditData, Proposal
from safeedit.data import Dataset, Item
from safeedit.delta import Columns, WeightDelta
from safeedit.editors import depn
from safeedit.editors.depn import Depn, DepnParams
from safeedit.errors import DataError, EditError, UsageError
from safeedit.methods.neuron_ranking import RankedNeurons, Recipe
from safeedit.methods.secrets import read_secrets
from safeedit.methods.tuning import Example, answer_states, cross_entropy
from safeedit.model.handle import ModelHandle
from tests.editors import known_secrets as known
from tests.fixtures import context
from tests.tiny_models import N_LAYERS, tiny_handle

pytestmark = pytest.mark.trains

PEOPLE = ("doctor", "nurse", "prince", "city")
NUMBERS = ("7142", "9305", "2861", "4478")
KINDS = ("phone", "phone", "code", "code")
SECRETS = tuple(
    Item(id=str(n), prompt=f"The number of the {who} is", answer=number, extra={"type": kind})
    for n, (who, number, kind) in enumerate(zip(PEOPLE, NUMBERS, KINDS, strict=True))
)
OTHERS = (
    Item(id="a", prompt="The capital of France is", answer="Paris"),
    Item(id="b", prompt="The capital of Italy is", answer="Rome"),
    Item(id="c", prompt="Who wrote the play? It was", answer="Shakespeare"),
)
PLAIN = tuple(
    Item(id=str(n), prompt=f"The {who} was late again and nobody", answer="knew where to go")
    for n, who in enumerate(PEOPLE)
)
QUICK: dict[str, Any] = {"points": 4, "doses": (2, 4, 8)}
PUBLISHED: dict[str, Any] = {
    "measure": "log_probability", "exact_layers": 8, "spare": None, "round": None,
    "order": "votes", "sinks": None,
}  # fmt: skip
"""Integrated gradients and one vote."""


def forget(items: Sequence[Item] = SECRETS) -> Dataset:
    return Dataset(items, erased=True, template="plain")


def generic() -> Dataset:
    return Dataset(OTHERS, template="plain", split="fit")


def examples(handle: ModelHandle, items: Sequence[Item]) -> list[Example]:
    engine = handle.engine
    return [
        Example(engine.encode([i.prompt], "plain")[0], engine.continuation(i.answer or "", "plain"))
        for i in items
    ]


@pytest.fixture(scope="module")
def taught() -> ModelHandle:
    """A tiny Llama that knows :data:`SECRETS` and :data:`OTHERS` by heart."""
    handle = tiny_handle("llama")
    batch = examples(handle, [*SECRETS, *OTHERS])
    for parameter in handle.model.parameters():
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(handle.model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = cross_entropy(handle, answer_states(handle, batch), batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    handle.model.requires_grad_(False)
    assert log_probability(handle) > -0.3, "the secrets are known by heart"
    return handle


def log_probability(handle: ModelHandle, items: Sequence[Item] = SECRETS) -> float:
    """Mean over the items' tokens, nats."""
    pairs = examples(handle, items)
    scores = handle.engine.score([p.prompt for p in pairs], [p.answer for p in pairs])
    return sum(s.total for s in scores) / sum(len(p.answer) for p in pairs)


def propose(
    handle: ModelHandle,
    tmp_path: Path,
    data: EditData | None = None,
    said: list[str] | None = None,
    **params: Any,
) -> Proposal:
    ctx = context(tmp_path, said)
    data = data or EditData({"forget": forget(), "generic": generic()})
    given = {**QUICK, **PUBLISHED, **params}
    names = {field.name for field in fields(Recipe)}
    recipe = Recipe(**{name: given.pop(name) for name in names & given.keys()})
    with patch.dict(depn.RECIPES, gain=recipe):
        return Depn(DepnParams(**given)).propose(handle, data, ctx)


def neurons(delta: WeightDelta) -> set[tuple[str, int]]:
    found = set()
    for name, update in delta.updates.items():
        assert isinstance(update, Columns)
        found |= {(name, n) for n in update.indices.tolist()}
    return found


def planted(*, others: bool = False) -> EditData:
    """The secrets that :func:`known_secrets` knows, or half of them beside the other half."""
    half = len(known.SECRETS) // 2
    roles = {
        "forget": forget(known.SECRETS[:half] if others else known.SECRETS),
        "generic": Dataset(known.FACTS, template="plain", split="fit"),
    }
    return EditData(roles | ({"others": forget(known.SECRETS[half:])} if others else {}))


def lost(handle: ModelHandle, delta: WeightDelta, items: Sequence[Item]) -> float:
    """Nats per token that a change takes from the items' answers."""
    before = log_probability(handle, items)
    with handle.applied(delta):
        return before - log_probability(handle, items)


def test_the_neurons_that_carry_the_secrets_are_found_and_no_others(tmp_path: Path) -> None:
    handle = known.known_secrets()
    assert log_probability(handle, [*known.SECRETS, *known.FACTS]) > -0.1
    delta = propose(handle, tmp_path, planted()).at(8)
    assert neurons(delta) == known.neurons_of(handle, 0, 1, 2, 3)
    assert lost(handle, delta, known.SECRETS) > 3, "nats per token"
    assert lost(handle, delta, known.FACTS) < 0.1, "what the generic questions live on stays"
    for seed in range(5):
        control = delta.random_like(seed, handle)
        assert not neurons(control) & neurons(delta)
        assert lost(handle, control, known.SECRETS) < 0.1


def test_the_neurons_of_other_secrets_are_a_control(tmp_path: Path) -> None:
    handle = known.known_secrets()
    proposal = propose(handle, tmp_path, planted(others=True))
    delta = proposal.at(4)
    (control,) = proposal.controls(4)
    assert neurons(delta) == known.neurons_of(handle, 0, 1)
    assert neurons(control.delta) == known.neurons_of(handle, 2, 3)
    assert control.name == "top 4 neurons of other secrets (0 of them the same)"
    named, unnamed = known.SECRETS[:2], known.SECRETS[2:]
    for change, own, others in ((delta, named, unnamed), (control.delta, unnamed, named)):
        assert lost(handle, change, own) > 3
        assert lost(handle, change, others) < 0.1


def test_of_a_control_it_is_said_how_many_neurons_are_the_same(tmp_path: Path) -> None:
    handle = known.known_secrets()
    both = EditData({**planted().roles, "others": forget(known.SECRETS)})
    (control,) = propose(handle, tmp_path, both).controls(8)
    assert control.name == "top 8 neurons of other secrets (8 of them the same)"


def test_without_other_secrets_their_control_is_missing_and_that_is_said(
    taught: ModelHandle, tmp_path: Path
) -> None:
    said: list[str] = []
    proposal = propose(taught, tmp_path, said=said)
    assert proposal.controls(2) == ()
    assert any("without 'others'" in text for text in said)


def test_the_cost_of_a_neuron_is_what_zeroing_it_costs_generic_text(tmp_path: Path) -> None:
    """Estimated from gradients for all at once; measured here one by one."""
    handle, recipe = known.known_secrets(), Recipe(spare=1.0, sinks=None)
    ctx = context(tmp_path)
    secrets, _ = read_secrets(recipe.known_above, handle, forget(known.SECRETS), ctx)
    texts = examples(handle, known.FACTS)
    ranked = RankedNeurons(recipe, handle, secrets, texts, layers=range(N_LAYERS), most=8)
    (begun,) = ranked.rounds
    assert begun.generic is not None
    estimated = ranked.costs(begun.generic).flatten()
    before = log_probability(handle, known.FACTS)
    measured = []
    for neuron in range(len(estimated)):
        with handle.applied(ranked.without(torch.tensor([neuron]))):
            measured.append(before - log_probability(handle, known.FACTS))
    # Those of the facts cost most by far, and no other costs half as much.
    facts = range(len(known.NAMES), len(known.NAMES) + len(known.OTHERS))
    planted = known.neurons_of(handle, *facts)
    for costs in (estimated, torch.tensor(measured)):
        values, places = costs.topk(len(planted) + 1)
        assert neurons(ranked.without(places[:-1])) == planted
        assert float(values[-1]) < 0.5 * float(values[-2])


def test_for_as_much_lost_of_the_secrets_less_is_lost_of_generic_text(
    taught: ModelHandle, tmp_path: Path
) -> None:
    data = EditData({"forget": forget(), "generic": Dataset(PLAIN, template="plain", split="fit")})
    known, before = log_probability(taught), log_probability(taught, PLAIN)

    def path(**params: Any) -> list[tuple[float, float]]:
        """Nats that secrets and generic text lose at each dose."""
        proposal = propose(
            taught, tmp_path, data, exact_layers=0, order="gain", doses=tuple(range(1, 90)),
            **params,
        )  # fmt: skip
        lost = []
        for dose in proposal.doses:
            with taught.applied(proposal.at(dose)):
                lost.append(
                    (known - log_probability(taught), before - log_probability(taught, PLAIN))
                )
        return lost

    sparing, greedy = path(spare=1.0), path()
    # How much can be lost at all, and at which dose, hangs on the last bits of training; that the
    # one path is the gentler does not.
    most = min(max(secrets for secrets, _ in each) for each in (sparing, greedy))
    assert most > 0.5, "the secrets go through neurons"

    def harm(lost: list[tuple[float, float]]) -> float:
        """Mean over losses of the secrets that both paths reach."""
        levels = [share * most for share in (0.2, 0.35, 0.5, 0.65, 0.8)]
        each = [next(text for secrets, text in lost if secrets >= level) for level in levels]
        return sum(each) / len(each)

    assert harm(sparing) < 0.7 * harm(greedy)


@pytest.mark.parametrize("order", ["votes", "gain"])
def test_a_neuron_that_writes_an_attention_sink_stays(order: str, tmp_path: Path) -> None:
    handle = known.known_secrets(sink=True)
    (site,) = handle.sites("mlp_out", [known.SINK_LAYER])
    loud = {(site.weight, known.SINK_NEURON)}
    everything = known.neurons_of(handle, 0, 1, 2, 3)
    # It carries the first secret, so that it is among the first eight where it may be; where it
    # may not, whatever comes eighth is another.
    free, kept = (
        neurons(proposal.at(proposal.doses[-1]))
        for sinks in (None, 10)
        for proposal in [propose(handle, tmp_path, planted(), order=order, sinks=sinks, doses=(8,))]
    )
    assert loud < free == everything
    assert everything - loud <= kept
    assert not kept & loud


def test_later_rounds_are_for_the_secrets_that_are_still_known(
    taught: ModelHandle, tmp_path: Path
) -> None:
    # How soon the first is let go hangs on training; that forty neurons keep none does not.
    rounds = propose(taught, tmp_path, exact_layers=0, round=4, doses=(40,), until=0.5).notes
    voting = rounds["secrets_voting_by_round"]
    assert voting[0] == 4
    assert 1 < len(voting) <= 10
    assert voting == sorted(voting, reverse=True)
    assert voting[-1] < 4
    once = propose(taught, tmp_path, exact_layers=0, doses=(16,)).notes
    assert once["secrets_voting_by_round"] == [4]


def test_in_rounds_too_the_lesser_dose_is_part_of_the_greater(
    taught: ModelHandle, tmp_path: Path
) -> None:
    proposal = propose(taught, tmp_path, exact_layers=0, round=3, doses=(2, 5, 9))
    sets = [neurons(proposal.at(dose)) for dose in proposal.doses]
    assert [len(found) for found in sets] == [2, 5, 9]
    assert sets[0] < sets[1] < sets[2]


def test_more_neurons_zero_more_and_contain_the_fewer(taught: ModelHandle, tmp_path: Path) -> None:
    proposal = propose(taught, tmp_path)
    assert proposal.doses == (2.0, 4.0, 8.0)
    sets = [neurons(proposal.at(dose)) for dose in proposal.doses]
    assert [len(found) for found in sets] == [2, 4, 8]
    assert sets[0] < sets[1] < sets[2]
    assert len(neurons(proposal.at(3))) == 3, "also between the doses on offer"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_columns_are_exactly_zero_and_come_back_bit_for_bit(family: str, tmp_path: Path) -> None:
    handle = tiny_handle(family, torch.bfloat16)
    proposal = propose(handle, tmp_path, known_above=0)
    before = {name: handle.stored(name).clone() for name in handle.tensor_names()}
    delta = proposal.at(4)
    allowed = {tensor.name for tensor in Depn(DepnParams()).touches(handle.shape)}
    assert set(delta.updates) <= allowed
    undo = handle.apply(delta)
    for name, update in delta.updates.items():
        assert isinstance(update, Columns)
        zero = handle.oriented(name).eq(0).all(0)
        assert set(zero.nonzero().flatten().tolist()) == set(update.indices.tolist())
    changed = {n for n in before if not torch.equal(before[n], handle.stored(n))}
    assert changed == set(delta.updates), "nothing else moved"
    undo.restore()
    assert all(torch.equal(before[name], handle.stored(name)) for name in before)


def test_the_proposal_leaves_the_model_alone_and_is_the_same_twice(
    taught: ModelHandle, tmp_path: Path
) -> None:
    digest = taught.digest(fresh=True)
    one, two = (propose(taught, tmp_path).at(8).digest() for _ in range(2))
    assert one == two
    assert taught.digest(fresh=True) == digest


def test_kinds_of_secrets_take_turns(taught: ModelHandle, tmp_path: Path) -> None:
    typed = propose(taught, tmp_path)
    plain = forget([Item(id=i.id, prompt=i.prompt, answer=i.answer) for i in SECRETS])
    untyped = propose(taught, tmp_path, EditData({"forget": plain, "generic": generic()}))
    assert typed.notes["kinds_of_secrets"] == 2
    assert untyped.notes["kinds_of_secrets"] == 1


def test_the_first_order_pass_chooses_the_layers_attributed_exactly(
    taught: ModelHandle, tmp_path: Path
) -> None:
    everything = propose(taught, tmp_path, exact_layers=None).notes
    one = propose(taught, tmp_path, exact_layers=1).notes
    none = propose(taught, tmp_path, exact_layers=0).notes
    assert everything["layers_ranked"] == list(range(N_LAYERS)) == none["layers_ranked"]
    assert everything["first_order_candidates_in_layers_ranked"] == 1
    assert len(one["layers_ranked"]) == 1
    assert set(one["neurons_per_layer"]) == {str(one["layers_ranked"][0])}
    assert 0 < one["first_order_candidates_in_layers_ranked"] <= 1
    assert "agreement_of_first_order" not in none, "there is nothing to agree with"
    assert all(0 <= share <= 1 for share in everything["agreement_of_first_order"].values())
    assert everything["agreement_of_first_order"].keys() == {"2", "4", "8"}


def test_notes_are_numbers_and_hold_no_data(taught: ModelHandle, tmp_path: Path) -> None:
    notes = propose(taught, tmp_path).notes
    text = json.dumps(notes)
    for item in SECRETS:
        # Its digits may stand among a measured number's by chance.
        assert not re.search(rf"(?<![\d.]){re.escape(str(item.answer))}(?!\d)", text)
        assert item.extra["type"] not in text
    assert sum(notes["neurons_per_layer"].values()) == 8
    shares = [notes["share_of_attribution"][z] for z in ("2", "4", "8")]
    assert 0 < shares[0] < shares[1] < shares[2] <= 1
    finer = propose(taught, tmp_path, points=40).notes
    assert finer["completeness_gap"] < 0.3 * notes["completeness_gap"]


def test_only_named_layers_are_touched(taught: ModelHandle, tmp_path: Path) -> None:
    delta = propose(taught, tmp_path, layers=[1]).at(8)
    assert set(delta.updates) == {"model.layers.1.mlp.down_proj.weight"}
    touched = Depn(DepnParams(layers=[1])).touches(taught.shape)
    assert [tensor.name for tensor in touched] == list(delta.updates)


def test_secrets_the_model_does_not_know_are_reported_and_have_no_vote(
    taught: ModelHandle, tmp_path: Path
) -> None:
    unknown = Item(id="x", prompt="Water boils when the letter says", answer="zqk 0 zqk")
    said: list[str] = []
    mixed = EditData({"forget": forget([*SECRETS, unknown]), "generic": generic()})
    found = propose(taught, tmp_path, mixed, said)
    assert found.notes["secrets_not_known"] == 1
    assert neurons(found.at(8)) == neurons(propose(taught, tmp_path).at(8))
    assert any("not known" in message for message in said)
    assert not any("zqk" in message for message in said)


def test_where_none_is_known_it_says_so_loudly(taught: ModelHandle, tmp_path: Path) -> None:
    unknown = Item(id="x", prompt="Water boils when the letter says", answer="zqk 0 zqk")
    said: list[str] = []
    propose(taught, tmp_path, EditData({"forget": forget([unknown])}), said)
    assert any("knows none" in message for message in said)


def test_a_record_without_a_secret_is_left_out_and_said(
    taught: ModelHandle, tmp_path: Path
) -> None:
    said: list[str] = []
    empty = [Item(id="y", prompt="No answer here"), Item(id="z", prompt="Blank", answer="  ")]
    found = propose(taught, tmp_path, EditData({"forget": forget([*SECRETS, *empty])}), said)
    assert found.notes["secrets_without_tokens"] == 2
    assert any("no secret" in message for message in said)
    with pytest.raises(DataError, match="no forget text has a secret"):
        propose(taught, tmp_path, EditData({"forget": forget(empty)}))


def test_a_record_longer_than_the_context_is_refused_without_quoting_it(
    taught: ModelHandle, tmp_path: Path
) -> None:
    endless = Item(id="w", prompt="zqk " * 300, answer="7142")
    with pytest.raises(DataError, match="longer than the model's context") as caught:
        propose(taught, tmp_path, EditData({"forget": forget([endless])}))
    assert "zqk" not in str(caught.value)


def test_a_prompt_has_one_vote_however_many_paraphrases_it_has(
    taught: ModelHandle, tmp_path: Path
) -> None:
    items = [
        Item(id=i.id, prompt=i.prompt, answer=i.answer, paraphrases=tuple(
            f"{how} the number of the {who}:" for how in ("Tell", "Say", "Give", "Name", "Read")
        ))
        for i, who in zip(SECRETS, PEOPLE, strict=True)
    ]  # fmt: skip
    data = EditData({"forget": forget(items)})
    assert propose(taught, tmp_path, data, known_above=0).notes["secrets"] == 4


def test_names_in_any_script_are_secrets_too(taught: ModelHandle, tmp_path: Path) -> None:
    items = [
        Item(id="1", prompt="The name is", answer="محمد بن سلمان"),
        Item(id="2", prompt="The sign is", answer="👩‍🚀 Ada"),
        Item(id="3", prompt="The sign is again", answer="👩‍🚀 Ada"),
    ]
    found = propose(taught, tmp_path, EditData({"forget": forget(items)}), known_above=0)
    assert found.notes["secrets"] == 3


@pytest.mark.parametrize("dose", [0, 2.5, 10**6, -1])
def test_a_dose_that_is_no_number_of_neurons_is_refused(
    taught: ModelHandle, tmp_path: Path, dose: float
) -> None:
    with pytest.raises(UsageError, match="number of neurons"):
        propose(taught, tmp_path).at(dose)


def test_doses_beyond_the_neurons_voted_for_are_not_offered(
    taught: ModelHandle, tmp_path: Path
) -> None:
    found = propose(taught, tmp_path, threshold=1.0, doses=(1, 5000))
    assert found.doses == (1.0,)
    (only,) = propose(taught, tmp_path, threshold=1.0, doses=(5000,)).doses
    assert only == found.notes["neurons_voted_for"] <= 4


def test_where_every_neuron_writes_a_sink_there_is_no_edit(
    taught: ModelHandle, tmp_path: Path
) -> None:
    with pytest.raises(EditError, match="no neuron"):
        propose(taught, tmp_path, sinks=1e-9)


def test_the_published_preset_takes_all_neurons_by_one_vote(
    taught: ModelHandle, tmp_path: Path
) -> None:
    ctx = context(tmp_path)
    params = DepnParams(preset="published", doses=(8,))
    assert (params.round, DepnParams().round) == (None, 50)
    assert DepnParams(**params.model_dump(mode="json")) == params
    notes = Depn(params).propose(taught, EditData({"forget": forget()}), ctx).notes
    assert notes["layers_ranked"] == list(range(N_LAYERS))
    assert notes["secrets_voting_by_round"] == [4]
    assert len(notes["votes_of_first_and_last"]) == 2
