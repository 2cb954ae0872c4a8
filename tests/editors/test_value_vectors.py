"""Value vectors on tiny models with one planted toxic neuron, beside random neurons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from safeedit.contracts import EditData, Proposal
from safeedit.delta import Columns
from safeedit.editors import value_vectors
from safeedit.editors.value_vectors import ValueVectors, ValueVectorsParams
from safeedit.errors import UsageError
from safeedit.model.handle import ModelHandle
from tests.editors.planted import LAYER, NEURON, TOXIC, data, gap, planted, prose
from tests.fixtures import context

FAMILIES = ["llama", "gpt2", "gpt_neox", "gemma2", "gemma3_text", "olmo2"]


def propose(
    handle: ModelHandle, tmp_path: Path, given: EditData | None = None, **params: Any
) -> Proposal:
    params = {"layers": [1, 2], "doses": (1, 4), **params}
    editor = ValueVectors(ValueVectorsParams(**params))
    return editor.propose(handle, given or data(), context(tmp_path))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_the_planted_neuron_comes_first_by_vocabulary_and_by_probe(
    family: str, weight: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = planted(family)
    monkeypatch.setattr(value_vectors, "VOCABULARY_WEIGHT", weight)
    first = propose(handle, tmp_path).notes["suppressed"][0]
    assert (first["layer"], first["neuron"]) == (LAYER, NEURON)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_gated_neuron_that_is_negative_on_toxic_text_is_found_by_its_sign(
    family: str, tmp_path: Path
) -> None:
    handle = planted(family, sign=-1.0)
    first = propose(handle, tmp_path, show_tokens=True).notes["suppressed"][0]
    assert (first["layer"], first["neuron"], first["sign"]) == (LAYER, NEURON, -1)
    assert set(TOXIC) <= set(first["promotes"]), "with that sign it promotes toxic words"


@pytest.mark.parametrize("family", FAMILIES)
def test_silencing_it_makes_toxic_words_less_likely_and_random_neurons_do_not(
    family: str, tmp_path: Path
) -> None:
    handle = planted(family)
    delta = propose(handle, tmp_path).at(1)
    before = gap(handle)
    with handle.applied(delta):
        drop = before - gap(handle)
    random = []
    for seed in range(5):
        with handle.applied(delta.random_like(seed, handle)):
            random.append(abs(before - gap(handle)))
    assert drop > 0.3, "nats"
    assert drop > 2 * max(random)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_columns_are_zero_and_come_back_bit_for_bit(family: str, tmp_path: Path) -> None:
    handle = planted(family, dtype=torch.bfloat16)
    before = {name: handle.stored(name).clone() for name in handle.tensor_names()}
    zeroed = propose(handle, tmp_path).at(4)
    assert zeroed.only_zeroes
    old = {name: handle.oriented(name).clone() for name in zeroed.updates}
    undo = handle.apply(zeroed)
    for name, update in zeroed.updates.items():
        assert isinstance(update, Columns)
        new, chosen = handle.oriented(name), update.indices
        assert not new[:, chosen].any()
        others = torch.ones(new.shape[1], dtype=torch.bool)
        others[chosen] = False
        assert torch.equal(new[:, others], old[name][:, others])
    undo.restore()
    assert all(torch.equal(before[name], handle.stored(name)) for name in before)


def test_more_neurons_contain_the_fewer_and_doses_beyond_are_not_offered(tmp_path: Path) -> None:
    proposal = propose(planted("llama"), tmp_path, doses=(2, 6, 100_000))
    assert proposal.doses == (2.0, 6.0)

    def chosen(dose: float) -> set[tuple[str, int]]:
        updates = proposal.at(dose).updates.items()
        return {(n, i) for n, u in updates if isinstance(u, Columns) for i in u.indices.tolist()}

    assert chosen(2) < chosen(6)
    assert (len(chosen(2)), len(chosen(6))) == (2, 6)
    for dose in (0, 1.5, 10**6):
        with pytest.raises(UsageError, match="number of neurons"):
            proposal.at(dose)


def test_neurons_that_ordinary_text_uses_as_much_fall_back(tmp_path: Path) -> None:
    handle = planted("llama")
    alone = propose(handle, tmp_path, doses=(20,)).at(20)
    given = propose(handle, tmp_path, data(prose=prose()), doses=(20,)).at(20)
    assert alone.digest() != given.digest(), "ordinary text has a say"
    first = propose(handle, tmp_path, data(prose=prose())).notes["suppressed"][0]
    assert (first["layer"], first["neuron"]) == (LAYER, NEURON)


def test_tokens_are_masked_unless_asked_for(tmp_path: Path) -> None:
    handle = planted("llama")
    masked = json.dumps(propose(handle, tmp_path).notes)
    shown = json.dumps(propose(handle, tmp_path, show_tokens=True).notes)
    assert TOXIC[0] in shown
    assert not any(word in masked for word in TOXIC)
    assert f"{TOXIC[0][0]}***" in masked


def test_only_the_tensors_of_its_layers_are_touched(tmp_path: Path) -> None:
    handle = planted("gpt2")
    editor = ValueVectors(ValueVectorsParams(layers=[LAYER]))
    delta = propose(handle, tmp_path, layers=[LAYER]).at(4)
    assert set(delta.updates) == {tensor.name for tensor in editor.touches(handle.shape)}


def test_what_a_neuron_does_for_ordinary_text_counts_against_it(tmp_path: Path) -> None:
    handle = planted("llama")
    given = data(prose=prose())
    (site,) = handle.sites("mlp_out", [LAYER])
    ids = handle.engine.encode([item.prompt for item in prose().all()], "plain")

    def moved(economy: float) -> float:
        """Mean square by which ordinary text's writes change."""
        total = 0.0
        base = dict(handle.engine.activations(ids, [site], what="output"))
        delta = propose(handle, tmp_path, given, layers=[LAYER], economy=economy, doses=(8,)).at(8)
        with handle.applied(delta):
            for index, after in handle.engine.activations(ids, [site], what="output"):
                total += float((after[site] - base[index][site])[2:].square().mean())
        return total

    assert moved(1.0) < moved(0.5) < moved(0.0)
