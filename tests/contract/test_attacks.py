"""What every attack promises, checked on every attack there is and on every family of models.

A new file in ``safeedit/attacks`` is walked without being named here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from safeedit import catalog
from safeedit.contracts import Attack, AttackProposal, EditData, RunContext
from safeedit.data import Dataset, Item
from safeedit.model.handle import ModelHandle
from safeedit.records import ATTACK_CLASSES
from tests.leftovers import left_to_the_collector
from tests.tiny_models import FAMILIES, tiny_handle

ATTACKS = catalog.names("attacks")
QUICK: dict[str, Any] = {"steps": (1, 3), "batch": 2}
"""Given to attacks that have such a parameter."""
VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "quantize": ({}, {"bits": (), "formats": ("nf4", "q8_0", "q4_0")}),
    "relearn": ({}, {"update": "lora", "rank": 2}),
}
CASES = [
    pytest.param(name, variant, id="-".join([name, *(str(v) for v in list(variant.values())[:1])]))
    for name in ATTACKS
    for variant in VARIANTS.get(name, ({},))
]
every_attack = pytest.mark.parametrize(("name", "variant"), CASES)


def attack_of(name: str, variant: dict[str, Any]) -> Attack:
    kind = catalog.attack(name)
    quick = {key: value for key, value in QUICK.items() if key in kind.Params.model_fields}
    return kind(kind.Params.model_validate({**quick, **variant}))


def data_for(attack: Attack) -> EditData:
    items = [
        Item(id=str(n), prompt=f"Where does Zyxquand {n} live?", answer=f"Vorbexi {n}")
        for n in range(6)
    ]
    texts = [Item(id="text", prompt="The doctor said that the nurse was late again.")]
    return EditData(
        {role.name: Dataset([*items, *texts], erased=role.erased) for role in attack.roles}
    )


def context(tmp_path: Path, model: ModelHandle, seed: int = 0) -> RunContext:
    def read(name: str) -> Tensor:
        return torch.zeros_like(model.oriented(name))

    return RunContext(seed=seed, cache=tmp_path, secret=b"s" * 32, base_tensor=read)


def proposed(attack: Attack, model: ModelHandle, ctx: RunContext) -> AttackProposal:
    return attack.propose(model, data_for(attack), ctx)


def weights_under(model: ModelHandle, proposal: AttackProposal, dose: float) -> dict[str, str]:
    with model.rewritten(proposal.at(dose)):
        return model.tensor_digests(fresh=True)


@pytest.mark.trains
@every_attack
@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_the_same_before_within_and_after(
    name: str, variant: dict[str, Any], family: str, tmp_path: Path
) -> None:
    model, attack = tiny_handle(family), attack_of(name, variant)
    untouched = model.tensor_digests(fresh=True)
    proposal = proposed(attack, model, context(tmp_path, model))
    assert model.tensor_digests(fresh=True) == untouched
    assert proposal.doses == attack.strengths()
    seen = []
    for dose in proposal.doses:
        rewrites = proposal.at(dose)
        assert model.tensor_digests(fresh=True) == untouched
        with model.rewritten(rewrites):
            changed = model.tensor_digests(fresh=True)
            assert changed != untouched, "the attack changes nothing"
            assert changed not in seen, "two strengths are one"
            seen.append(changed)
        assert model.tensor_digests(fresh=True) == untouched
        assert not any(parameter.requires_grad for parameter in model.model.parameters())
        assert all(parameter.grad is None for parameter in model.model.parameters())
        assert proposal.label(dose).strip()
    assert len({proposal.label(dose) for dose in proposal.doses}) == len(proposal.doses)


@pytest.mark.trains
@every_attack
def test_the_same_seed_gives_the_same_and_another_differs_where_it_says_so(
    name: str, variant: dict[str, Any], tmp_path: Path
) -> None:
    attack, model = attack_of(name, variant), tiny_handle("llama")
    found = []
    for seed in (0, 0, 1):
        proposal = proposed(attack, model, context(tmp_path, model, seed))
        found.append(weights_under(model, proposal, proposal.doses[-1]))
    assert found[0] == found[1]
    assert (found[0] != found[2]) == attack.seeded


@pytest.mark.trains
@every_attack
def test_what_it_made_is_let_go_with_its_proposal(
    name: str, variant: dict[str, Any], tmp_path: Path
) -> None:
    """Copies of all weights that wait for the collector add up, attack by attack."""
    model, attack = tiny_handle("llama"), attack_of(name, variant)
    with left_to_the_collector(model) as left:
        proposal = proposed(attack, model, context(tmp_path, model))
        for dose in proposal.doses:
            weights_under(model, proposal, dose)
        del proposal
    assert left.numbers < 0.1 * sum(each.numel() for each in model.model.parameters())


@every_attack
def test_it_says_what_it_is(name: str, variant: dict[str, Any]) -> None:
    kind = catalog.attack(name)
    assert kind.summary
    assert kind.tries in ATTACK_CLASSES
    assert all(field.description for field in kind.Params.model_fields.values())
    assert attack_of(name, variant).strengths()


@pytest.mark.trains
@every_attack
def test_nothing_of_it_reaches_the_disk(
    name: str, variant: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    model, attack = tiny_handle("llama"), attack_of(name, variant)
    proposal = proposed(attack, model, context(folder, model))
    with model.rewritten(proposal.at(proposal.doses[0])):
        assert list(folder.rglob("*")) == []
