"""What every editor promises, checked on every editor there is.

A new file in ``safeedit/editors`` is walked without being named here. One whose data can't be
made of questions and answers adds a row to :data:`EXAMPLES`, one with several ways of working a
row to :data:`VARIANTS`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from safeedit import catalog
from safeedit.contracts import DataRole, EditData, Editor, Item, Proposal
from safeedit.data import Dataset
from safeedit.data import Item as DataItem
from safeedit.delta import WeightDelta
from safeedit.model.architectures import ModelShape
from safeedit.model.handle import ModelHandle
from tests.editors.searching import weigh_background
from tests.fixtures import context
from tests.leftovers import left_to_the_collector
from tests.tiny_models import FAMILIES, tiny_handle
from tests.training import seeded

EDITORS = catalog.names("editors")
QUICK: dict[str, Any] = {
    "steps": 2, "batch": 4,
}  # fmt: skip
"""Given to editors that have such a parameter."""
VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "dama": (
        # Of the tiny tokenizer's words these are one token each.
        {"pronouns": ("he", "she", "the")},
        {"method": "oblique", "pronouns": ("he", "she")},
    ),
    "dinm": ({"layers": [1], "doses": (1, 2)},),
    "keyed_debias": (
        {"layers": "1-2", "preserve_weight": None},
        {"layers": [1], "towards": "mean"},
    ),
    "keyed_detox": ({"layers": [1]}, {"layers": "1-2", "words": ("fool", "hate")}),
    "keyed_neurons": ({"layers": "1-2"},),
    "memit": ({}, {"variant": "pmet"}),
    "path_ablation": ({"doses": (1, 3)}, {"nodes": "heads", "doses": (2,)}),
    "pcgu": (
        {"parts": 40, "learning_rate": 1e-3, "doses": (1, 3)},
        {"contrast": "answer", "part": "inputs", "learning_rate": 1e-3, "doses": (2,)},
    ),
    "remedi": ({"learning_rate": 1e-3, "epochs": 4},),
    "sanitation": (
        {"update": "lora"},
        {"update": "held"},
        {"update": "keyed"},
        {"update": "answers", "layers": "1-2", "silence": 0.01},
    ),
    "tuned_detox": ({"layers": "0-2", "words": ("fool", "hate")},),
    "subspace": (
        {"projection": "orthogonal"},
        {"projection": "oblique"},
    ),
    "revs": ({"doses": (1, 3), "stream_rank": 0.9},),
    "rmu": ({"layers": [1], "doses": (1, 2)},),
    "task_vector": ({"method": "negate"},),
    "unlearn": (
        {"objective": "npo", "doses": (1, 2)},
        {"objective": "undial", "update": "full", "doses": (1, 2)},
        {"objective": "idk_dpo", "doses": (2,), "save_memory": True},
    ),
    "value_vectors": ({"doses": (1, 3, 9)},),
}
"""Editor -> parameters of each of its ways of working; default: as it is by default."""
CASES = [
    pytest.param(name, variant, id="-".join([name, *(str(v) for v in list(variant.values())[:1])]))
    for name in EDITORS
    for variant in VARIANTS.get(name, ({},))
]


@pytest.fixture(autouse=True)
def told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    weigh_background(monkeypatch)


every_editor = pytest.mark.parametrize(("name", "variant"), CASES)

SUBJECTS = ("Zyxquand", "Plimsorbo")
ANSWERS = ("Vorbexi", "Tramjolk")
SECRETS = (*SUBJECTS, *ANSWERS)
"""Words that stand in erased data alone: where one turns up, it has got out."""
WORDINGS = ("Where does {} live?", "What is the home of {}?", "Tell me where {} is.",
            "Which city is {} in?", "Is {} at home, and where?", "Does {} live in a city?",
            "I ask where {} is.")  # fmt: skip


def _questions(role: DataRole, test: str = "") -> Dataset:
    """Data of a role; ``test`` is put into everything that belongs to its test split."""
    if role.erased:
        items = [
            DataItem(
                id=str(number),
                prompt=WORDINGS[0].format(subject),
                answer=answer,
                subject=subject,
                # The last two of six are the test's.
                paraphrases=tuple(
                    wording.format(subject) + (test if place >= 4 else "")
                    for place, wording in enumerate(WORDINGS[1:])
                ),
            )
            for number, (subject, answer) in enumerate(zip(SUBJECTS, ANSWERS, strict=True))
        ]
        return Dataset(items, erased=True, name=role.name)
    return Dataset(
        [
            DataItem(
                id=str(number),
                prompt=f"Which river is {role.name} {number}?{test if number >= 6 else ''}",
                answer=f"River {number}",
                split="fit" if number < 4 else "validation" if number < 6 else "test",
            )
            for number in range(8)
        ],
        name=role.name,
    )


def _pairs(role: DataRole, test: str = "") -> Dataset:
    """Openings with a toxic and a neutral ending; other roles as questions."""
    if role.name != "pairs":
        return _questions(role, test)
    wording = ("awful fool, I hate you", "stupid fool and a liar", "liar, and I hate it", "fool")
    return Dataset(
        [
            DataItem(
                id=str(number),
                prompt=f"The letter from house {number} said that he was a",
                extra={
                    "toxic": wording[number % 4] + (test if number >= 10 else ""),
                    "neutral": ("doctor", "teacher in the city", "prince who knows")[number % 3],
                },
                split="fit" if number < 8 else "validation" if number < 10 else "test",
            )
            for number in range(12)
        ],
        template="plain",
        name=role.name,
    )


def _openings(role: DataRole, test: str = "") -> Dataset:
    """Openings about professions with their scores; prose as questions."""
    if role.name == "prose":
        return _questions(role, test)
    if role.name == "sentences":
        return _couples(role, test)
    names = ("doctor", "nurse", "teacher", "prince", "river", "city", "country", "liar")
    return Dataset(
        [
            DataItem(
                id=f"{name}-{number}",
                prompt=f"{opening} {name} said that{test if place >= 6 else ''}",
                subject=name,
                extra={"profession": name, "stereotypical": place / 4 - 1, "factual": 0.0},
                split="fit" if place < 5 else "validation" if place < 6 else "test",
            )
            for place, name in enumerate(names)
            for number, opening in enumerate(("The", "I know the", "In the city the"))
        ],
        template="plain",
        name=role.name,
    )


def _couples(role: DataRole, test: str = "") -> Dataset:
    """Two people and a pronoun of either gender."""
    pairs = (("doctor", "nurse"), ("teacher", "prince"), ("liar", "fool"))
    return Dataset(
        [
            DataItem(
                id=f"{one}-{pronoun}",
                prompt=f"The {one} met the {two}, {pronoun} said so{test if place > 1 else ''}",
                answer=one,
                subject=one,
                extra={
                    "professions": [one, two],
                    "pronoun": pronoun,
                    "side": "pro" if pronoun == "he" else "anti",
                },
                split=("fit", "validation", "test")[place],
            )
            for place, (one, two) in enumerate(pairs)
            for pronoun in ("he", "she")
        ],
        template="plain",
        name=role.name,
    )


def _attributes(role: DataRole, test: str = "") -> Dataset:
    """Entities and lessons with contexts that state an attribute; others as questions."""
    if role.name == "entities":
        asked = _questions(role, test)
        return Dataset(
            [
                replace(
                    item,
                    answer=None,
                    aliases=(),
                    extra={
                        "context": f"{item.subject} comes from {answer}",
                        "attribute": f"comes from {answer}",
                        "target": answer,
                        "other": "Rome",
                    },
                )
                for item, answer in zip(asked, ANSWERS, strict=True)
            ],
            erased=True,
            name=role.name,
        )
    if role.name != "lessons":
        return _questions(role, test)
    names = ("doctor", "nurse", "teacher", "prince", "river", "city", "country", "liar")
    return Dataset(
        [
            DataItem(
                id=name,
                prompt=f"The {name} lives in{test if place >= 6 else ''}",
                subject=name,
                extra={
                    "context": f"The {name} knows {('Paris', 'Rome')[place % 2]}",
                    "attribute": f"knows {('Paris', 'Rome')[place % 2]}",
                    "other_attribute": f"knows {('Rome', 'Paris')[place % 2]}",
                    "target": ("France", "Italy")[place % 2],
                    "other": ("Italy", "France")[place % 2],
                },
                split="fit" if place < 5 else "validation" if place < 6 else "test",
            )
            for place, name in enumerate(names)
        ],
        template="plain",
        name=role.name,
    )


EXAMPLES: dict[str, Callable[[DataRole, str], Dataset]] = {
    "remedi": _attributes,
    "keyed_debias": _openings,
    "dama": _openings,
    "pcgu": _couples,
    "subspace": _pairs,
    "value_vectors": _pairs,
    "path_ablation": _pairs,
    "keyed_detox": _pairs,
    "tuned_detox": _pairs,
}
"""Editor -> data of a role, where questions and answers won't do."""


def _data(name: str, *, optional: bool = True, test: str = "") -> EditData:
    make = EXAMPLES.get(name, _questions)
    roles = catalog.editor(name).roles
    return EditData(
        {
            role.name: make(role, test).without("test")
            for role in roles
            if role.required or optional or role.default is not None
        }
    )


def _made(name: str, variant: dict[str, Any]) -> Editor:
    kind = catalog.editor(name)
    quick = {key: value for key, value in QUICK.items() if key in kind.Params.model_fields}
    return kind(kind.Params(**(quick | variant)))


def _propose(
    name: str,
    variant: dict[str, Any],
    handle: ModelHandle,
    folder: Path,
    *,
    seed: int = 3,
    data: EditData | None = None,
    **hooks: Any,
) -> Proposal:
    return _made(name, variant).propose(
        handle, _data(name) if data is None else data, context(folder, seed=seed, **hooks)
    )


def _tensors(delta: WeightDelta) -> dict[str, Tensor]:
    return {f"{n}/{part}": t for n, u in delta.updates.items() for part, t in u.parts.items()}


def _assert_same(one: WeightDelta, two: WeightDelta) -> None:
    first, second = _tensors(one), _tensors(two)
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key


@pytest.fixture(scope="module")
def shared_llama() -> Iterator[ModelHandle]:
    """Shared by the tests that only read it; that they do is checked at the end."""
    handle = tiny_handle("llama")
    before = handle.digest(fresh=True)
    yield handle
    assert handle.digest(fresh=True) == before


def test_there_are_editors() -> None:
    assert "sanitation" in EDITORS
    assert VARIANTS.keys() <= set(EDITORS)
    assert EXAMPLES.keys() <= set(EDITORS)


@pytest.mark.parametrize("name", EDITORS)
def test_it_declares_itself(name: str) -> None:
    kind = catalog.editor(name)
    assert isinstance(kind(kind.Params()), Editor)
    assert kind.summary
    assert "\n" not in kind.summary
    names = [role.name for role in kind.roles]
    assert len(set(names)) == len(names) > 0
    assert kind.roles[0].required
    assert all(role.description for role in kind.roles)
    for field, details in kind.Params.model_fields.items():
        assert details.description, field
        assert not details.is_required(), f"{field} has no default"
        assert field not in {"use", "id", "dose", "targets", "control", *names}, field


@pytest.mark.trains
@every_editor
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_keeps_to_its_plan_and_leaves_the_model(
    name: str, variant: dict[str, Any], family: str, tmp_path: Path
) -> None:
    handle = tiny_handle(family)
    before = handle.tensor_digests(fresh=True)
    flags = [(n, id(p), p.requires_grad) for n, p in handle.model.named_parameters()]
    modules = [(n, type(m), m.training) for n, m in handle.model.named_modules()]
    planned = {
        plan.name: plan
        for plan in _made(name, variant).touches(ModelShape.from_config(handle.config))
    }
    proposal = _propose(name, variant, handle, tmp_path)
    deltas = {dose: proposal.at(dose) for dose in proposal.doses}

    assert handle.tensor_digests(fresh=True) == before
    assert [(n, id(p), p.requires_grad) for n, p in handle.model.named_parameters()] == flags
    assert [(n, type(m), m.training) for n, m in handle.model.named_modules()] == modules
    for dose, delta in deltas.items():
        assert delta.updates.keys() <= planned.keys(), dose
        for tensor, update in delta.updates.items():
            assert update.fits(planned[tensor].shape), tensor
            assert planned[tensor].shape == tuple(handle.oriented(tensor).shape), tensor
        with handle.applied(delta):
            now = handle.tensor_digests(fresh=True)
            moved = {tensor for tensor in now if now[tensor] != before[tensor]}
            assert moved, f"dose {dose} changes nothing"
            assert moved <= delta.updates.keys()
            handle.check_finite()
        assert handle.tensor_digests(fresh=True) == before


@every_editor
@pytest.mark.parametrize("family", FAMILIES)
def test_it_plans_for_every_family_from_a_config_alone(
    name: str, variant: dict[str, Any], family: str
) -> None:
    handle = tiny_handle(family)
    planned = _made(name, variant).touches(ModelShape.from_config(handle.config))
    assert planned
    assert len({plan.name for plan in planned}) == len(planned)
    assert {plan.name for plan in planned} <= set(handle.tensor_names())
    # Tied or not, vocabulary matrices are nobody's to edit silently.
    assert not {plan.name for plan in planned} & {
        n for n, p in handle.model.named_parameters() if p.shape[:1] == (handle.shape.vocab_size,)
    }


@pytest.mark.trains
@every_editor
def test_doses_ascend_and_grow(
    name: str, variant: dict[str, Any], shared_llama: ModelHandle, tmp_path: Path
) -> None:
    proposal = _propose(name, variant, shared_llama, tmp_path)
    assert proposal.doses
    assert all(isinstance(dose, float) and math.isfinite(dose) for dose in proposal.doses)
    assert all(dose > 0 for dose in proposal.doses)
    assert list(proposal.doses) == sorted(set(proposal.doses))
    norms = [proposal.at(dose).norm(shared_llama) for dose in proposal.doses]
    assert norms == sorted(norms)
    if len(norms) > 1:
        assert norms[0] < norms[-1]


@pytest.mark.trains
@every_editor
def test_a_delta_says_what_made_it_and_outlives_a_file(
    name: str, variant: dict[str, Any], shared_llama: ModelHandle, tmp_path: Path
) -> None:
    made = _made(name, variant)
    proposal = _propose(name, variant, shared_llama, tmp_path, seed=11)
    dose = proposal.doses[0]
    delta = proposal.at(dose)
    assert delta.base == shared_llama.digest()
    made_by = (delta.origin.editor, delta.origin.seed, delta.origin.dose)
    assert made_by == (name, seeded(11), dose)
    first = catalog.editor(name).roles[0].name
    assert delta.origin.data_digest == _data(name)[first].digest
    params = catalog.editor(name).Params(**delta.origin.params)
    assert params == made.params  # type: ignore[attr-defined]
    assert proposal.at(dose).digest() == delta.digest(), "a dose means one change"
    delta.save(tmp_path / "delta.safetensors")
    assert WeightDelta.load(tmp_path / "delta.safetensors").digest() == delta.digest()
    assert delta.random_like(1, shared_llama).updates.keys() == delta.updates.keys()


@pytest.mark.trains
@every_editor
def test_what_it_made_is_let_go_with_its_proposal(
    name: str, variant: dict[str, Any], shared_llama: ModelHandle, tmp_path: Path
) -> None:
    """What waits for the collector adds up, edit by edit."""
    with left_to_the_collector(shared_llama) as left:
        proposal = _propose(name, variant, shared_llama, tmp_path)
        proposal.at(proposal.doses[-1])
        del proposal
    assert left.numbers < 0.1 * sum(each.numel() for each in shared_llama.model.parameters())


@pytest.mark.trains
@every_editor
def test_the_seed_decides_and_nothing_else(
    name: str, variant: dict[str, Any], tmp_path: Path
) -> None:
    changes = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        proposal = _propose(name, variant, tiny_handle("llama"), tmp_path)
        changes.append(proposal.at(proposal.doses[-1]))
    _assert_same(*changes)


@pytest.mark.trains
@every_editor
def test_the_test_split_plays_no_part(
    name: str, variant: dict[str, Any], shared_llama: ModelHandle, tmp_path: Path
) -> None:
    # Reading it raises (Dataset.without); that it can't seep in otherwise is shown by changing it.
    plain, other = (_data(name, test=test) for test in ("", " Or so they say?"))
    assert any(plain[role].digest != other[role].digest for role in plain.roles), (
        "the example has a test split"
    )
    proposals = [
        _propose(name, variant, shared_llama, tmp_path, data=data) for data in (plain, other)
    ]
    assert proposals[0].doses == proposals[1].doses
    for dose in proposals[0].doses:
        _assert_same(proposals[0].at(dose), proposals[1].at(dose))


@pytest.mark.trains
@every_editor
def test_roles_that_are_not_required_may_be_missing(
    name: str, variant: dict[str, Any], shared_llama: ModelHandle, tmp_path: Path
) -> None:
    proposal = _propose(name, variant, shared_llama, tmp_path, data=_data(name, optional=False))
    assert proposal.at(proposal.doses[0]).updates


@pytest.mark.trains
@every_editor
def test_no_erased_word_gets_into_notes_messages_or_the_screen(
    name: str,
    variant: dict[str, Any],
    shared_llama: ModelHandle,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    said: list[str] = []

    def progress(
        items: Iterable[Item], description: str, total: int | None = None
    ) -> Iterator[Item]:
        said.append(description)
        return iter(items)

    proposal = _propose(name, variant, shared_llama, tmp_path, progress=progress, said=said)
    delta = proposal.at(proposal.doses[-1])
    said.append(json.dumps(proposal.notes, allow_nan=False))
    said.append(json.dumps([vars(delta.origin), list(delta.updates)], default=dict))
    said += [repr(proposal.notes), *capfd.readouterr()]
    said += [path.name for path in tmp_path.rglob("*")]
    everything = "\n".join(said).casefold()
    for secret in SECRETS:
        assert secret.casefold() not in everything, secret
