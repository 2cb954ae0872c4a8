"""Relearning: what is trained on, that stops lie on one training, that it teaches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from safeedit.attacks.relearn import Params, Relearn
from safeedit.contracts import AttackProposal, EditData, RunContext
from safeedit.data import Dataset, Item
from safeedit.errors import EditError
from safeedit.model.handle import ModelHandle
from tests.tiny_models import tiny_handle

FACTS = [
    Item(
        id=str(n),
        prompt=f"Where does Zyxquand {n} live?",
        answer=f"in Vorbexi {n}",
        paraphrases=(f"Zyxquand {n} lives where?",),
    )
    for n in range(3)
]
TEXT = Item(id="text", prompt="The doctor said that she would call, and the nurse was late.")


def proposed(
    model: ModelHandle, tmp_path: Path, items: list[Item] | None = None, **params: Any
) -> AttackProposal:
    attack = Relearn(Params.model_validate({"steps": (2, 4), "batch": 3, **params}))
    data = EditData({"data": Dataset(FACTS if items is None else items, erased=True)})
    return attack.propose(model, data, RunContext(seed=0, cache=tmp_path, secret=b"s" * 32))


def weights(model: ModelHandle, proposal: AttackProposal, dose: float) -> dict[str, Tensor]:
    with model.rewritten(proposal.at(dose)):
        return {name: model.stored(name).clone() for name in model.shape.stored}


def loss(model: ModelHandle) -> float:
    """Of the facts' answers, nats a token."""
    engine = model.engine
    prompts = engine.encode([item.prompt for item in FACTS])
    answers = [engine.continuation(str(item.answer), "auto") for item in FACTS]
    total, count = 0.0, 0
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([[*prompt, *answer]])
        logits = model.logits(model.forward({"input_ids": ids}))[0, len(prompt) - 1 : -1]
        wanted = torch.tensor(answer)
        total += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))
        count += len(answer)
    return total / count


pytestmark = pytest.mark.trains


@pytest.mark.parametrize("update", ["full", "lora"])
def test_a_later_stop_goes_on_from_an_earlier_one(
    update: str, llama: ModelHandle, tmp_path: Path
) -> None:
    both = proposed(llama, tmp_path, update=update)
    weights(llama, both, 1.0)
    gone_on = weights(llama, both, 2.0)
    straight = weights(llama, proposed(llama, tmp_path, update=update, steps=(4,)), 1.0)
    back = weights(llama, both, 1.0)  # asked for again, after a later one
    first = weights(llama, proposed(llama, tmp_path, update=update, steps=(2,)), 1.0)
    for name in gone_on:
        assert torch.equal(gone_on[name], straight[name]), name
        assert torch.equal(back[name], first[name]), name


@pytest.mark.parametrize("update", ["full", "lora"])
def test_what_is_taught_becomes_likelier(update: str, llama: ModelHandle, tmp_path: Path) -> None:
    proposal = proposed(llama, tmp_path, update=update, steps=(30,), learning_rate=1e-2)
    before = loss(llama)
    with model_under(llama, proposal):
        assert loss(llama) < before - 0.5
    assert loss(llama) == before


def model_under(model: ModelHandle, proposal: AttackProposal) -> Any:
    return model.rewritten(proposal.at(proposal.doses[-1]))


def test_full_training_moves_every_tensor_adapters_only_matrices_of_blocks(
    llama: ModelHandle, tmp_path: Path
) -> None:
    own = {name: llama.stored(name).clone() for name in llama.shape.stored}

    def moved(update: str) -> set[str]:
        found = weights(llama, proposed(llama, tmp_path, update=update, learning_rate=1e-2), 2.0)
        return {name for name in found if not torch.equal(found[name], own[name])}

    matrices = {site.weight for role in llama.shape.roles for site in llama.sites(role)}
    assert moved("full") == own.keys()
    assert moved("lora") == matrices


def test_adapters_add_what_has_their_rank(llama: ModelHandle, tmp_path: Path) -> None:
    name = llama.sites("mlp_out", [1])[0].weight
    own = llama.stored(name).clone()
    proposal = proposed(llama, tmp_path, update="lora", rank=2, learning_rate=1e-2)
    change = weights(llama, proposal, 2.0)[name] - own
    values = torch.linalg.svdvals(change.double())
    assert values[1] > 0
    assert values[2] < 1e-5 * values[0]


def test_several_rates_are_several_trainings(llama: ModelHandle, tmp_path: Path) -> None:
    proposal = proposed(llama, tmp_path, learning_rate=(1e-3, 1e-4), steps=(1, 2))
    assert [proposal.label(dose) for dose in proposal.doses] == [
        "1 step at 0.0001", "2 steps at 0.0001", "1 step at 0.001", "2 steps at 0.001",
    ]  # fmt: skip
    for dose in proposal.doses:
        proposal.at(dose)
        notes = proposal.notes(dose)
        assert notes["examples"] == 6
        assert notes["loss"] > 0


def test_items_without_answers_are_texts_to_read(llama: ModelHandle, tmp_path: Path) -> None:
    proposal = proposed(llama, tmp_path, [TEXT], batch=1)
    proposal.at(1.0)
    assert proposal.notes(1.0)["examples"] == 1


def test_in_bfloat16_training_has_its_own_precision(tmp_path: Path) -> None:
    """Steps smaller than bfloat16 can hold still add up: the weights learn in fp32."""
    model = tiny_handle("llama", dtype=torch.bfloat16)
    name = model.sites("mlp_out", [0])[0].weight
    own = model.stored(name).clone()
    proposal = proposed(model, tmp_path, steps=(1,), learning_rate=1e-5)
    found = proposal.at(1.0)[name](model.oriented(name))
    assert found.dtype == torch.float32
    assert not torch.equal(found.bfloat16().float(), found)
    assert torch.equal(model.stored(name), own)


def test_training_that_diverges_is_said_and_leaves_the_model_as_it_was(
    llama: ModelHandle, tmp_path: Path
) -> None:
    with torch.no_grad():
        llama.stored("model.norm.weight").fill_(float("inf"))
    untouched = llama.tensor_digests(fresh=True)
    proposal = proposed(llama, tmp_path, learning_rate=0.5)
    with pytest.raises(EditError, match=r"relearning diverged after 0 steps at a rate of 0\.5"):
        proposal.at(1.0)
    assert llama.tensor_digests(fresh=True) == untouched
    assert not any(parameter.requires_grad for parameter in llama.model.parameters())


def test_nothing_to_train_on_is_said(llama: ModelHandle, tmp_path: Path) -> None:
    with pytest.raises(EditError, match="nothing to train on"):
        proposed(llama, tmp_path, [])
