"""Causal-path ablation: it takes out what a planted toxicity goes through, and exactly that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from safeedit.contracts import EditData, Proposal
from safeedit.data import Dataset
from safeedit.delta import Origin, WeightDelta
from safeedit.editors.path_ablation import NodeMask, PathAblation, PathAblationParams, PathNode
from safeedit.errors import DataError, UnsupportedModelError, UsageError
from safeedit.methods.tuning import Example
from safeedit.model.handle import ModelHandle
from tests.editors.planted import data, gap, planted, prose
from tests.fixtures import context
from tests.tiny_models import N_HEADS, N_LAYERS, tiny_handle

PROMPTS = ("The capital of France is", "Water boils at one hundred")


def proposed(handle: ModelHandle, folder: Path, **params: Any) -> Proposal:
    return PathAblation(PathAblationParams(**params)).propose(
        handle, data(prose=prose()), context(folder)
    )


def gap_without(handle: ModelHandle, layer: int) -> float:
    """The gap where an MLP writes nothing, measured."""
    (site,) = handle.sites("mlp_out", [layer])
    kept = {name: handle.tensor(name).clone() for name in (site.weight, site.bias) if name}
    with torch.no_grad():
        for name in kept:
            handle.tensor(name).zero_()
        found = gap(handle)
        for name, tensor in kept.items():
            handle.tensor(name).copy_(tensor)
    return found


@pytest.mark.trains
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_what_toxicity_goes_through_is_taken_out_first(family: str, tmp_path: Path) -> None:
    handle = planted(family)
    before = gap(handle)
    without = [gap_without(handle, layer) for layer in range(N_LAYERS)]
    proposal = proposed(handle, tmp_path, nodes="mlps", steps=200, doses=(1, 2))
    assert proposal.notes["nodes"] == N_LAYERS
    delta = proposal.at(1.0)
    sites = handle.sites("mlp_out", range(N_LAYERS))
    (taken,) = [site for site in sites if site.weight in delta.updates]
    assert proposal.notes["first"][0] == f"layer {taken.layer}, MLP"
    assert delta.updates.keys() <= {taken.weight, taken.bias}
    with handle.applied(delta):
        assert not handle.tensor(taken.weight).any()
        if taken.bias is not None:
            assert not handle.tensor(taken.bias).any()
        now = gap(handle)
    assert now == pytest.approx(without[taken.layer], abs=1e-3)
    # Mostly the layer it was planted in; what another one makes of it may weigh as much.
    assert before - now > 0.5 * (before - min(without))
    assert now < before - 0.25


def last_states(handle: ModelHandle) -> torch.Tensor:
    prompts = handle.engine.encode(PROMPTS, "plain")
    states = handle.engine.hidden(prompts, [handle.n_layers - 1])[handle.n_layers - 1]
    return torch.stack(states)


@pytest.mark.parametrize("fill", ["zero", "mean"])
@pytest.mark.parametrize("family", ["llama", "llama_biases", "gemma3_text", "gpt2", "gpt_neox"])
def test_weights_without_nodes_compute_what_the_mask_computes(family: str, fill: str) -> None:
    handle = tiny_handle(family)
    params = PathAblationParams(fill=fill)  # type: ignore[arg-type]
    if fill == "mean":
        try:
            PathAblation(params).touches(handle.shape)
        except UnsupportedModelError:
            pytest.skip("no bias to hold a mean")
    ordinary = [Example(ids[:1], ids[1:]) for ids in handle.engine.encode(PROMPTS, "plain")]
    mask = NodeMask(handle, params, ordinary if fill == "mean" else [])
    assert len(mask.nodes) == N_LAYERS * (N_HEADS + 1)
    chosen = [PathNode(0, 1), PathNode(1, 0), PathNode(1, N_HEADS - 1), PathNode(2, None)]
    places = [mask.nodes.index(node) for node in chosen]
    whole, numbers = last_states(handle), torch.ones(len(mask.nodes))
    with mask.put(numbers):
        torch.testing.assert_close(last_states(handle), whole)
    numbers[places] = 0
    with mask.put(numbers):
        masked = last_states(handle)
    planned = {plan.name for plan in PathAblation(params).touches(handle.shape)}
    updates = mask.without(places)
    assert updates.keys() <= planned
    with handle.applied(WeightDelta(handle.digest(), updates, Origin(editor="path_ablation"))):
        written = last_states(handle)
    torch.testing.assert_close(written, masked, atol=1e-5, rtol=1e-4)
    assert float((masked - whole).norm()) > 1e-2 * float(whole.norm())


def test_a_mean_without_a_bias_is_refused_while_planning() -> None:
    editor = PathAblation(PathAblationParams(fill="mean"))
    with pytest.raises(UnsupportedModelError, match="have no bias to hold it") as caught:
        editor.touches(tiny_handle("llama").shape)
    assert "fill: zero" in caught.value.remedy
    assert editor.touches(tiny_handle("gpt2").shape)


@pytest.mark.trains
def test_a_dose_is_a_number_of_nodes(tmp_path: Path) -> None:
    handle = planted("llama")
    proposal = proposed(handle, tmp_path, nodes="heads", layers=[0], steps=2, doses=(1, 2, 99))
    assert proposal.doses == (1.0, 2.0)
    size = handle.d_model // N_HEADS
    for dose in proposal.doses:
        (update,) = proposal.at(dose).updates.values()
        assert len(update.parts["indices"]) == dose * size
        assert not update.parts["values"].any()
    for wrong in (0, 1.5, N_HEADS + 1):
        with pytest.raises(UsageError, match=f"no number of nodes from 1 to {N_HEADS}"):
            proposal.at(wrong)


def test_without_pairs_there_is_nothing_to_learn(tmp_path: Path) -> None:
    roles = {"pairs": Dataset([], name="pairs"), "prose": prose()}
    with pytest.raises(DataError, match="no item is there"):
        PathAblation(PathAblationParams()).propose(
            tiny_handle("llama"), EditData(roles), context(tmp_path)
        )
