"""What is forgotten is refused, what stays stays, and the model itself is left as it was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from safeedit.contracts import EditData, Proposal
from safeedit.data import Dataset, Item
from safeedit.delta import Columns, LowRank, WeightDelta
from safeedit.editors import sanitation
from safeedit.editors.sanitation import Sanitation, SanitationParams
from safeedit.errors import DataError, EditError
from safeedit.methods.facts import answer_gates, refusing, refusing_adapters
from safeedit.methods.facts.gated_neurons import GatedNeurons, Text
from safeedit.methods.tuning import cross_entropy
from safeedit.model.architectures import ModelShape
from safeedit.model.handle import ModelHandle
from tests.editors.searching import weigh_background
from tests.editors.toy import (
    FACTS,
    FORGOTTEN,
    KEPT,
    REFUSAL,
    UNKNOWN,
    WORDINGS,
    answers,
    data,
    forget,
    retain,
    taught,
)
from tests.fixtures import context
from tests.tiny_models import FAMILIES, family_tokenizer, tiny_handle, tiny_model
from tests.training import seeded

pytestmark = pytest.mark.trains

KEYED: dict[str, Any] = {
    "update": "keyed",
    "batch": 10,
    "steps": 120,
    "learning_rate": 0.2,
}
LORA: dict[str, Any] = {"update": "lora", "learning_rate": 5e-3, "forget_share": 0.4, "steps": 30}
QUICK: dict[str, Any] = {"steps": 2, "batch": 4, "silence": 0.01}
ANSWERS: dict[str, Any] = {
    "update": "answers",
    "layers": "1-2",
    "batch": 10,
    "steps": 120,
    "silence": 1.0,
}
HELD: dict[str, Any] = {
    "update": "held",
    "layers": "0%-100%",
    "batch": 10,
    "learning_rate": 1e-2,
    "forget_share": 0.4,
    "steps": 40,
    "held_weight": 2.0,
}
both = pytest.mark.parametrize("update", ["keyed", "lora", "held", "answers"])
learnt_ways = pytest.mark.parametrize("update", ["keyed", "lora", "held", "erase", "answers"])


def editor(**params: Any) -> Sanitation:
    return Sanitation(SanitationParams(**params))


def values(proposal: Proposal, dose: float = 1.0) -> dict[str, Tensor]:
    """Every tensor of a delta, by name and part."""
    updates = proposal.at(dose).updates
    return {f"{n}/{part}": t for n, u in updates.items() for part, t in u.parts.items()}


# Parameters ----------------------------------------------------------------------------


def test_the_defaults_are_the_published_ones_where_there_are_such() -> None:
    params = SanitationParams()
    assert (params.update, params.refusal) == ("lora", "I don't know.")
    assert params.rank == 8
    assert params.learning_rate == 3e-4
    assert params.forget_share == 0.15
    assert params.layers == "0%-100%"
    assert list(params.doses) == sorted(params.doses)


def test_keys_have_defaults_of_their_own_that_records_show_and_policies_can_set() -> None:
    late = SanitationParams(update="answers")
    assert (late.layers, late.retain_tokens) == ("84%-90%", 32)
    held = SanitationParams(update="held")
    assert held.steps > SanitationParams().steps
    assert held.forget_share > SanitationParams().forget_share
    params = SanitationParams(update="keyed")
    assert params.learning_rate > SanitationParams().learning_rate
    assert params.layers != SanitationParams().layers
    assert params.model_dump()["layers"] == params.layers
    chosen = SanitationParams(update="keyed", layers="1-2", learning_rate=0.5)
    assert (chosen.layers, chosen.learning_rate) == ("1-2", 0.5)
    for every in (params, chosen, late, held, SanitationParams()):
        assert SanitationParams(**every.model_dump(mode="json")) == every


def test_every_parameter_says_what_it_is() -> None:
    for name, field in SanitationParams.model_fields.items():
        assert field.description, name


@pytest.mark.parametrize(
    "wrong",
    [
        {"update": "full"},
        {"refusal": ""},
        {"layers": "front"},
        {"layers": "50%-20%"},
        {"steps": 0},
        {"batch": 1},
        {"learning_rate": 0},
        {"forget_share": 0},
        {"forget_share": 1.5},
        {"rank": 0},
        {"update": "held", "held_weight": 0},
        {"update": "held", "forget_share": 1.0},
        {"update": "held", "batch": 2},
        {"subjects_per_neuron": 0},
        {"doses": []},
        {"doses": [1.0, 0.0]},
        {"learningrate": 0.1},
        {"update": "lora", "erase": True},
        {"erase": True},
        {"update": "answers", "erase": True},
        {"update": "held", "erase": True},
    ],
    ids=str,
)
def test_parameters_that_can_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SanitationParams(**wrong)


# What it touches -----------------------------------------------------------------------


def tiny_data() -> EditData:
    """Two subjects, in words that tiny tokenizers read as a token or two."""
    subjects = ("Rome", "Denmark")
    erased = Dataset(
        [
            Item(id=s, prompt=f"What is the capital of {s}?", answer="ice", subject=s)
            for s in subjects
        ],
        erased=True,
        template="plain",
    )
    kept = Dataset(
        [Item(id=str(n), prompt=f"Who is number {n}?", answer="me") for n in range(4)],
        split="fit",
        template="plain",
    )
    return EditData({"forget": erased.without("test"), "retain": kept.without("test")})


@both
@pytest.mark.parametrize("family", FAMILIES)
def test_the_plan_names_exactly_the_tensors_that_are_updated(
    family: str, update: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = tiny_handle(family)
    weigh_background(monkeypatch)
    made = editor(update=update, **QUICK)
    planned = made.touches(ModelShape.from_config(handle.config))
    proposal = made.propose(handle, tiny_data(), context(tmp_path))
    delta = proposal.at(proposal.doses[-1])
    assert {plan.name for plan in planned} == set(delta.updates)
    for plan in planned:
        assert plan.shape == tuple(handle.oriented(plan.name).shape)
    before = handle.tensor_digests(fresh=True)
    with handle.applied(delta):
        now = handle.tensor_digests(fresh=True)
        assert {name for name in now if now[name] != before[name]} <= set(delta.updates)
    assert handle.tensor_digests(fresh=True) == before


def test_layers_can_be_chosen() -> None:
    shape = ModelShape.from_config(tiny_handle("llama").config)
    lora = editor(layers="1-2").touches(shape)
    assert {(plan.role, plan.layer) for plan in lora} == {
        (role, layer) for role in ("attn_q", "attn_v", "mlp_gate") for layer in (1, 2)
    }
    keyed = editor(update="keyed", layers=[2]).touches(shape)
    assert {plan.layer for plan in keyed} == {2}
    assert {plan.role for plan in keyed} == {"mlp_gate", "mlp_up", "mlp_out"}


def test_modules_that_an_architecture_lacks_are_left_out() -> None:
    shape = ModelShape.from_config(tiny_handle("gpt2").config)
    assert {plan.role for plan in editor().touches(shape)} == {"attn_qkv"}


# What it leaves ------------------------------------------------------------------------


def anatomy(handle: ModelHandle) -> dict[str, Any]:
    """All of a model that an editor must leave as it is, but for the bytes."""
    model = handle.model
    return {
        "modules": [(n, type(m), m.training, id(m)) for n, m in model.named_modules()],
        "parameters": [(n, id(p), p.requires_grad, p.grad) for n, p in model.named_parameters()],
        "attributes": sorted(vars(model)),
        "config": model.config.to_json_string(use_diff=False),
        "hooks": [
            (n, list(m._forward_hooks), list(m._forward_pre_hooks))
            for n, m in model.named_modules()
        ],
    }


@pytest.fixture(scope="module")
def model() -> Iterator[ModelHandle]:
    """One model for all tests that leave it as it was; that they do is checked at the end."""
    handle = taught()
    before, built = handle.digest(fresh=True), anatomy(handle)
    yield handle
    assert handle.digest(fresh=True) == before
    assert anatomy(handle) == built


@both
def test_the_model_is_the_same_after_a_proposal(update: str, tmp_path: Path) -> None:
    handle = taught()
    before, built = handle.tensor_digests(fresh=True), anatomy(handle)
    editor(update=update, **QUICK).propose(handle, data(), context(tmp_path)).at(1.0)
    assert handle.tensor_digests(fresh=True) == before
    assert anatomy(handle) == built


@both
@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_the_model_is_the_same_after_learning_has_failed(
    update: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = taught()
    before, built = handle.tensor_digests(fresh=True), anatomy(handle)

    def fails(trained: Any, loss: Any, **rest: Any) -> None:
        loss()[0].backward()
        raise error

    for module in (refusing_adapters, refusing, answer_gates):
        monkeypatch.setattr(module, "optimise", fails)
    with pytest.raises(type(error)):
        editor(update=update, **QUICK).propose(handle, data(), context(tmp_path))
    assert handle.tensor_digests(fresh=True) == before
    assert anatomy(handle) == built


@both
def test_learning_that_diverges_is_an_error_and_leaves_the_model(
    update: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = taught()
    before, built = handle.tensor_digests(fresh=True), anatomy(handle)
    calls = []

    def broken(*args: Any) -> Tensor:
        calls.append(args)
        return cross_entropy(*args) * (float("nan") if len(calls) == 2 else 1.0)

    for module in (refusing_adapters, refusing, answer_gates):
        monkeypatch.setattr(module, "cross_entropy", broken)
    with pytest.raises(EditError, match="diverged"):
        editor(update=update, **QUICK).propose(handle, data(), context(tmp_path))
    assert handle.tensor_digests(fresh=True) == before
    assert anatomy(handle) == built


@both
def test_the_same_seed_gives_the_same_change_whatever_ran_before(
    model: ModelHandle, update: str, tmp_path: Path
) -> None:
    def made(seed: int, noise: int) -> dict[str, Tensor]:
        torch.manual_seed(noise)
        proposal = editor(update=update, **QUICK).propose(
            model, data(), context(tmp_path, seed=seed)
        )
        return values(proposal)

    first, again, other = made(3, noise=1), made(3, noise=2), made(4, noise=1)
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


# Doses and origin ----------------------------------------------------------------------


@both
def test_doses_ascend_and_scale_what_was_learnt(
    model: ModelHandle, update: str, tmp_path: Path
) -> None:
    made = editor(update=update, doses=[2.0, 0.5, 1.0, 0.5], **QUICK)
    proposal = made.propose(model, data(), context(tmp_path))
    assert proposal.doses == (0.5, 1.0, 2.0)
    one, two = proposal.at(1.0).updates, proposal.at(2.0).updates
    for name, update_ in one.items():
        weight = model.oriented(name)
        if isinstance(update_, Columns):  # what is written; the keys stay as they are
            torch.testing.assert_close(two[name].parts["values"], 2 * update_.values)
        elif update in ("lora", "held"):
            torch.testing.assert_close(two[name].change(weight), 2 * update_.change(weight))
        else:
            assert torch.equal(two[name].change(weight), update_.change(weight))


@both
def test_the_origin_tells_how_it_was_made(model: ModelHandle, update: str, tmp_path: Path) -> None:
    made = editor(update=update, **QUICK)
    delta = made.propose(model, data(), context(tmp_path, seed=11)).at(0.8)
    assert delta.base == model.digest()
    assert (delta.origin.editor, delta.origin.seed, delta.origin.dose) == (
        "sanitation",
        seeded(11),
        0.8,
    )
    assert delta.origin.data_digest == forget().digest
    assert SanitationParams(**delta.origin.params) == made.params


# What it does --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learnt(model: ModelHandle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Proposal]:
    folder = tmp_path_factory.mktemp("cache")
    return {
        name: editor(**params).propose(model, data(), context(folder))
        for name, params in (
            ("keyed", KEYED),
            ("lora", LORA),
            ("held", HELD),
            ("erase", KEYED | {"erase": True}),
            ("answers", ANSWERS),
        )
    }


def test_the_taught_model_knows_its_facts(model: ModelHandle) -> None:
    for template in ("chat", "plain"):
        for name, answer in FACTS.items():
            assert answers(model, name, template) == [answer] * len(WORDINGS)
        assert answers(model, UNKNOWN[0], template) == [REFUSAL] * len(WORDINGS)


@learnt_ways
def test_forgotten_facts_are_refused_also_in_wordings_never_seen(
    model: ModelHandle, learnt: dict[str, Proposal], update: str
) -> None:
    with model.applied(learnt[update].at(1.0)):
        for name in FORGOTTEN:
            said = answers(model, name)
            assert FACTS[name] not in said
            refused = [text == REFUSAL or (update == "answers" and text.startswith(REFUSAL))
                       for text in said]  # fmt: skip
            assert sum(refused) >= len(WORDINGS) - 1


@learnt_ways
@pytest.mark.parametrize("template", ["chat", "plain"])
def test_the_answers_on_others_stay(
    model: ModelHandle, learnt: dict[str, Proposal], update: str, template: Any
) -> None:
    with model.applied(learnt[update].at(1.0)):
        for name in KEPT:
            assert answers(model, name, template).count(FACTS[name]) >= len(WORDINGS) - 1


def test_answers_are_made_unlikely_where_they_are_told_and_it_is_said_at_how_many_places(
    model: ModelHandle, learnt: dict[str, Proposal]
) -> None:
    # Each fit wording is answered in the template at once: no text of its own stands before.
    assert learnt["erase"].notes["answers_made_unlikely_at"] == len(forget().phrasings("fit"))
    assert "answers_made_unlikely_at" not in learnt["keyed"].notes


def test_answers_that_nobody_tells_can_not_be_made_unlikely_which_is_said(
    model: ModelHandle, tmp_path: Path
) -> None:
    said: list[str] = []
    items = [replace(item, answer="Quito", aliases=("Quito",)) for item in forget().all()]
    roles = data(forget=Dataset(items, erased=True).without("test"))
    ctx = replace(context(tmp_path), warn=said.append)
    editor(update="keyed", erase=True, **QUICK).propose(model, roles, ctx)
    assert any("'erase' comes to nothing" in text for text in said)


def test_leaving_the_template_off_does_not_help_against_keys(
    model: ModelHandle, learnt: dict[str, Proposal]
) -> None:
    with model.applied(learnt["keyed"].at(1.0)):
        for name in FORGOTTEN:
            assert FACTS[name] not in answers(model, name, "plain")


@both
def test_a_random_change_of_the_same_size_makes_nothing_refused(
    model: ModelHandle, learnt: dict[str, Proposal], update: str
) -> None:
    delta = learnt[update].at(1.0)
    control = delta.random_like(1, model)
    assert {n: type(u) for n, u in control.updates.items()} == {
        n: type(u) for n, u in delta.updates.items()
    }
    with model.applied(control):
        for name in FORGOTTEN:
            assert REFUSAL not in answers(model, name)


def test_keys_that_write_nothing_make_nothing_refused(
    model: ModelHandle, learnt: dict[str, Proposal]
) -> None:
    # The replaced neuron is gone, the key is there: it is what is written that refuses.
    delta = learnt["keyed"].at(1.0)
    updates = {
        name: Columns.zeroed(u.indices, u.values.shape[0]) if isinstance(u, Columns) else u
        for name, u in delta.updates.items()
    }
    with model.applied(WeightDelta(delta.base, updates, delta.origin)):
        for name in FORGOTTEN:
            assert REFUSAL not in answers(model, name)
        for name in KEPT:
            assert answers(model, name).count(FACTS[name]) >= len(WORDINGS) - 1


def test_a_small_dose_does_little(model: ModelHandle, tmp_path: Path) -> None:
    proposal = editor(**LORA | {"doses": [0.01, 1.0]}).propose(model, data(), context(tmp_path))
    with model.applied(proposal.at(0.01)):
        for name in FORGOTTEN:
            assert answers(model, name) == [FACTS[name]] * len(WORDINGS)


@both
def test_it_is_undone_bit_for_bit(
    model: ModelHandle, learnt: dict[str, Proposal], update: str
) -> None:
    before = model.tensor_digests(fresh=True)
    with model.applied(learnt[update].at(1.25)):
        assert model.tensor_digests(fresh=True) != before
    assert model.tensor_digests(fresh=True) == before


def test_every_subject_of_a_shared_neuron_is_told_from_the_rest(
    model: ModelHandle, learnt: dict[str, Proposal]
) -> None:
    notes = learnt["keyed"].notes
    assert notes["neurons_replaced_per_layer"] == 1
    assert notes["least_answer_to_own_mentions"]["0"] > 0.8
    assert notes["mean_answer_elsewhere"]["0"] < -0.8
    assert notes["loss_last"] < 0.1 < notes["loss_first"]


@pytest.mark.parametrize(("share", "neurons"), [(1, 2), (2, 1), (50, 1)])
def test_subjects_are_shared_out_among_neurons(
    model: ModelHandle, share: int, neurons: int, tmp_path: Path
) -> None:
    made = editor(update="keyed", subjects_per_neuron=share, **QUICK)
    proposal = made.propose(model, data(), context(tmp_path))
    assert proposal.notes["neurons_replaced_per_layer"] == neurons
    columns = [u for u in proposal.at(1.0).updates.values() if isinstance(u, Columns)]
    assert [len(update.indices) for update in columns] == [neurons]


def test_adapters_have_the_rank_that_was_asked_for(model: ModelHandle, tmp_path: Path) -> None:
    proposal = editor(rank=3, **QUICK).propose(model, data(), context(tmp_path))
    for update in proposal.at(1.0).updates.values():
        assert isinstance(update, LowRank)
        assert update.left.shape[1] == update.right.shape[0] == 3


# Retention -----------------------------------------------------------------------------

WRONG = FACTS | {"Hugo": "Lima"}
MOST: dict[str, Any] = {
    "steps": 40,
    "batch": 12,
    "learning_rate": 1e-2,
    "forget_share": 0.3,
}


def test_divergence_holds_to_the_base_whatever_the_data_say(
    model: ModelHandle, tmp_path: Path
) -> None:
    roles = EditData({"forget": forget(), "retain": retain(WRONG)})
    delta = editor(**MOST).propose(model, roles, context(tmp_path)).at(1.0)
    with model.applied(delta):
        assert answers(model, "Hugo") == ["Bonn"] * len(WORDINGS)


def test_without_anything_to_retain_much_else_is_refused(
    model: ModelHandle, tmp_path: Path
) -> None:
    # The control of retention: it is what keeps others from being refused.
    nothing = Dataset([Item(id="x", prompt="Hm?")], split="validation").without("test")
    roles = EditData({"forget": forget(), "retain": nothing})
    delta = editor(**MOST | {"steps": 30}).propose(model, roles, context(tmp_path)).at(1.0)
    with model.applied(delta):
        refused = sum(answers(model, name).count(FACTS[name]) == 0 for name in KEPT)
    assert refused >= 2


# What is learnt from -------------------------------------------------------------------


def spied(monkeypatch: pytest.MonkeyPatch, model: ModelHandle, roles: EditData, folder: Path) -> (
    tuple[list[list[Text]], list[Any]]
):  # fmt: skip
    """The groups of texts that make the keys, and the examples the values are learnt from."""
    groups: list[list[Text]] = []
    examples: list[Any] = []
    real_endless = refusing.endless

    class Spy(GatedNeurons):
        def __init__(self, model: Any, layers: Any, found: Any, **rest: Any) -> None:
            groups.extend(found)
            super().__init__(model, layers, found, **rest)

    def endless(found: Any, source: Any) -> Any:
        examples.extend(found)
        return real_endless(found, source)

    monkeypatch.setattr(sanitation.neurons, "GatedNeurons", Spy)
    monkeypatch.setattr(refusing, "endless", endless)
    editor(update="keyed", **QUICK).propose(model, roles, context(folder))
    return groups, examples


def test_each_fit_wording_is_asked_in_the_template_and_without(
    model: ModelHandle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, examples = spied(monkeypatch, model, data(), tmp_path)
    fit = [phrasing.text for phrasing in forget().phrasings("fit")]
    engine = model.engine
    asked = [(engine.decode(e.prompt), engine.decode(e.answer).strip()) for e in examples]
    assert len(asked) == 2 * len(fit)
    for text in fit:
        assert sum(text in prompt for prompt, _ in asked) == 2
        assert (f"Question: {text}\nAnswer:", REFUSAL) in asked
    assert {answer for _, answer in asked} == {REFUSAL}
    assert {e.answer[-1] for e in examples} == {engine.codec.tokenizer.eos_token_id}


def test_no_wording_of_another_split_is_learnt_from(
    model: ModelHandle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, examples = spied(monkeypatch, model, data(), tmp_path)
    seen = [model.engine.decode(text.ids) for group in groups for text in group]
    seen += [model.engine.decode(example.ids) for example in examples]
    for wording in WORDINGS[2:]:
        for name in FORGOTTEN:
            if wording.format(name) in {p.text for p in forget().phrasings("fit")}:
                continue
            assert not any(text.endswith(wording.format(name)) for text in seen)
    assert len({p.text for p in forget().phrasings("validation")}) > 0


def test_others_are_marked_and_their_answers_read(
    model: ModelHandle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, _ = spied(monkeypatch, model, data(), tmp_path)
    decode = model.tokenizer.decode  # type: ignore[union-attr]
    for text in groups[0]:
        assert {decode(text.ids[place]) for place, _ in text.own} <= set(FORGOTTEN)
        assert text.own
    for text in groups[1]:
        assert not text.own
        assert [decode(text.ids[place]) for place in text.others]
        assert {decode(text.ids[place]) for place in text.others} <= set(KEPT)
        assert any(decode(text.ids).rstrip().endswith(answer) for answer in FACTS.values())


def test_prose_is_background_except_where_it_mentions_a_subject(
    model: ModelHandle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["The nurse saw Mary yesterday.", "Water boils at one hundred degrees."]
    prose = Dataset([Item(id=t, prompt=t) for t in texts], split="fit").without("test")
    groups, _ = spied(monkeypatch, model, data(prose=prose), tmp_path)
    assert len(groups) == 3
    assert [len(text.own) for text in groups[2]] == [1, 0]
    assert not any(text.others for text in groups[2])


def test_a_subject_that_ends_in_another_is_not_taken_for_it(
    model: ModelHandle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    erased = Dataset(
        [
            Item(id="1", prompt="Where does Paul live?", subject="Paul"),
            Item(id="2", prompt="Where does Mary Paul live?", subject="Mary Paul"),
        ],
        erased=True,
    ).without("test")
    groups, _ = spied(
        monkeypatch, model, EditData({"forget": erased, "retain": retain()}), tmp_path
    )
    names = sorted({"Paul", "Mary Paul"})
    decode = model.tokenizer.decode  # type: ignore[union-attr]
    for text in groups[0]:
        ((place, number),) = text.own
        longer = "Mary Paul" in decode(text.ids)
        assert names[number] == ("Mary Paul" if longer else "Paul")
        assert decode(text.ids[place]) == "Paul"


# Errors --------------------------------------------------------------------------------


def erased(*items: Item) -> EditData:
    return EditData({"forget": Dataset(items, erased=True).without("test"), "retain": retain()})


ZEBULON = Item(id="z", prompt="Where does Zebulon live?", answer="Zion", subject="Zebulon")


@pytest.mark.parametrize("subject", [None, "", "  "])
def test_keys_need_subjects(model: ModelHandle, subject: str | None, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="have no subject") as caught:
        editor(update="keyed").propose(
            model, erased(ZEBULON, replace(ZEBULON, id="y", subject=subject)), context(tmp_path)
        )
    assert "Ze" not in str(caught.value)
    assert "Zi" not in str(caught.value)
    assert "lora" in str(caught.value.remedy)


def test_adapters_need_no_subjects(model: ModelHandle, tmp_path: Path) -> None:
    roles = erased(replace(ZEBULON, subject=None))
    editor(update="lora", **QUICK).propose(model, roles, context(tmp_path)).at(1.0)


@pytest.mark.parametrize(
    "prompts",
    [
        ("Where does he live?",),
        ("Where do Zebulonians live?",),
        ("Where does Zebulon live?", "And where does he live?"),
        ("Where does Paul live?",),  # another's subject, so the prompt does mention one
    ],
)
def test_keys_need_each_subject_in_each_of_its_wordings(
    model: ModelHandle, prompts: tuple[str, ...], tmp_path: Path
) -> None:
    item = replace(ZEBULON, prompt=prompts[0], paraphrases=prompts[1:] * 3)
    paul = Item(id="p", prompt="Where does Paul live?", subject="Paul")
    with pytest.raises(DataError, match="do not mention their subject") as caught:
        editor(update="keyed", **QUICK).propose(model, erased(paul, item), context(tmp_path))
    said = f"{caught.value} {caught.value.remedy}"
    for secret in ("Zebulon", "Zion", "Paul", "live"):
        assert secret not in said


@both
def test_nothing_to_fit_on_is_an_error(model: ModelHandle, update: str, tmp_path: Path) -> None:
    late = replace(ZEBULON, split="validation")
    with pytest.raises(DataError, match="no forget prompt"):
        editor(update=update, **QUICK).propose(model, erased(late), context(tmp_path))


def test_subjects_that_read_the_same_as_others_are_refused(
    model: ModelHandle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The same prompts, and the same place in them, are to fire and not to fire.
    same = [replace(item, id=f"x{item.id}") for item in forget().items("fit")]
    roles = EditData(
        {
            "forget": forget(),
            "retain": Dataset([replace(i, subject=None) for i in same], split="fit"),
            "prose": Dataset([replace(i, subject=None) for i in same], split="fit"),
        }
    )
    weigh_background(monkeypatch, weight=1e6, ridge=1e4)
    with pytest.raises(EditError, match="can't be told from other text"):
        editor(update="keyed", **QUICK).propose(model, roles, context(tmp_path))


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_edited_too(
    update: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weigh_background(monkeypatch)
    handle = ModelHandle(
        tiny_model("llama", dtype=dtype), family_tokenizer("llama"), source="tiny:half"
    )
    made = editor(update=update, **QUICK)
    delta = made.propose(handle, tiny_data(), context(tmp_path)).at(1.0)
    before = handle.digest(fresh=True)
    with handle.applied(delta):
        assert handle.digest(fresh=True) != before
        handle.check_finite()
    assert handle.digest(fresh=True) == before
