"""DEPN on a tiny model that learnt a few secrets by heart, beside random neurons."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from scipy.stats import spearmanr

from safeedit.contracts import EditData, Proposal, RunContext
from safeedit.data import Dataset, Item
from safeedit.delta import Columns, WeightDelta
from safeedit.editors import depn
from safeedit.editors.depn import Depn, DepnParams
from safeedit.errors import DataError, EditError, UsageError
from safeedit.methods.neuron_ranking import RankedNeurons, Recipe
from safeedit.methods.secrets import read_secrets
from safeedit.methods.tuning import Example, answer_states, cross_entropy
from safeedit.model.handle import ModelHandle
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
    ctx = RunContext(
        seed=3, cache=tmp_path, secret=b"k", warn=(lambda m: None) if said is None else said.append
    )
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


def test_its_neurons_carry_the_secrets_and_random_ones_of_the_same_layers_do_not(
    taught: ModelHandle, tmp_path: Path
) -> None:
    before, others = log_probability(taught), log_probability(taught, OTHERS)
    delta = propose(taught, tmp_path).at(8)
    with taught.applied(delta):
        drop, harm = before - log_probability(taught), others - log_probability(taught, OTHERS)
    random = []
    for seed in range(5):
        control = delta.random_like(seed, taught)
        assert not neurons(control) & neurons(delta)
        with taught.applied(control):
            random.append(before - log_probability(taught))
    assert drop > 1, "nats per token"
    assert drop > 3 * max(random)
    assert drop > 1.5 * harm, "what the generic questions live on stays"


def test_the_neurons_of_other_secrets_are_a_control(taught: ModelHandle, tmp_path: Path) -> None:
    data = EditData(
        {
            "forget": forget(SECRETS[:2]),
            "others": forget(SECRETS[2:]),
            "generic": generic(),
        }
    )
    proposal = propose(taught, tmp_path, data)
    (control,) = proposal.controls(8)
    own, others = neurons(proposal.at(8)), neurons(control.delta)
    assert len(others) == 8
    assert others != own
    assert control.name == f"top 8 neurons of other secrets ({len(own & others)} of them the same)"

    def lost(delta: WeightDelta, items: Sequence[Item]) -> float:
        before = log_probability(taught, items)
        with taught.applied(delta):
            return before - log_probability(taught, items)

    assert lost(proposal.at(8), SECRETS[:2]) > lost(control.delta, SECRETS[:2])
    assert lost(control.delta, SECRETS[2:]) > lost(proposal.at(8), SECRETS[2:])


def test_without_other_secrets_their_control_is_missing_and_that_is_said(
    taught: ModelHandle, tmp_path: Path
) -> None:
    said: list[str] = []
    proposal = propose(taught, tmp_path, said=said)
    assert proposal.controls(2) == ()
    assert any("without 'others'" in text for text in said)


def test_the_cost_of_a_neuron_is_what_zeroing_it_costs_generic_text(
    taught: ModelHandle, tmp_path: Path
) -> None:
    """Estimated from gradients for all at once; measured here one by one."""
    recipe = Recipe(spare=1.0, sinks=None)
    ctx = RunContext(seed=3, cache=tmp_path, secret=b"k")
    secrets, _ = read_secrets(recipe.known_above, taught, forget(), ctx)
    texts = examples(taught, PLAIN)
    neurons = RankedNeurons(recipe, taught, secrets, texts, layers=range(N_LAYERS), most=8)
    (begun,) = neurons.rounds
    assert begun.generic is not None
    estimated = neurons._costs(begun.generic).flatten()
    before = log_probability(taught, PLAIN)
    measured = []
    for neuron in range(0, len(estimated), 3):
        with taught.applied(neurons._delta(torch.tensor([neuron]))):
            measured.append(before - log_probability(taught, PLAIN))
    agreement = spearmanr(estimated[::3], measured).statistic
    assert agreement > 0.5
    costly = torch.tensor(measured).topk(5).indices
    assert bool((estimated[::3][costly] > estimated.median()).all())


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


def zeroed(proposal: Proposal, dose: float) -> set[tuple[str, int]]:
    """Tensor and column of each neuron that a dose zeroes."""
    return {
        (name, column)
        for name, update in proposal.at(dose).updates.items()
        if isinstance(update, Columns)
        for column in update.indices.tolist()
    }


def test_neurons_that_write_an_attention_sink_stay(taught: ModelHandle, tmp_path: Path) -> None:
    texts = [text.ids for text in examples(taught, SECRETS)]
    loud: dict[tuple[str, int], float] = {}
    for site in taught.sites("mlp_out", range(N_LAYERS)):
        read = [found[site] for _, found in taught.engine.activations(texts, [site])]
        weight = taught.weight(site)
        usual = torch.cat([(each[1:] @ weight.T).norm(dim=1) for each in read]).median()
        written = read[0][0].abs() * weight.norm(dim=0) / usual  # all texts begin alike
        loud |= {(site.weight, neuron): float(each) for neuron, each in enumerate(written)}
    # By their gain, neurons are ranked one by one: votes would change with what is left out.
    given: dict[str, Any] = {"doses": (8,), "order": "gain"}
    free = zeroed(propose(taught, tmp_path, **given), 8)
    bound = sorted(loud[neuron] for neuron in free)[-3]
    louder = {neuron for neuron in free if loud[neuron] >= bound}
    assert len(louder) == 3
    kept = zeroed(propose(taught, tmp_path, **given, sinks=0.999 * bound), 8)
    assert not any(loud[neuron] >= bound for neuron in kept)
    assert free - louder <= kept


def test_later_rounds_are_for_the_secrets_that_are_still_known(
    taught: ModelHandle, tmp_path: Path
) -> None:
    rounds = propose(taught, tmp_path, exact_layers=0, round=4, doses=(16,), until=0.5).notes
    voting = rounds["secrets_voting_by_round"]
    assert voting[0] == 4
    assert 1 < len(voting) <= 4
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
        assert str(item.answer) not in text
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
    ctx = RunContext(seed=3, cache=tmp_path, secret=b"k")
    params = DepnParams(preset="published", doses=(8,))
    assert (params.round, DepnParams().round) == (None, 50)
    assert DepnParams(**params.model_dump(mode="json")) == params
    notes = Depn(params).propose(taught, EditData({"forget": forget()}), ctx).notes
    assert notes["layers_ranked"] == list(range(N_LAYERS))
    assert notes["secrets_voting_by_round"] == [4]
    assert len(notes["votes_of_first_and_last"]) == 2
