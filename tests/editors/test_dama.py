"""DAMA on tiny models with a planted stereotype, beside random projections."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from safeedit.contracts import EditData, Proposal
from safeedit.data import Dataset
from safeedit.delta import Dense, LowRank
from safeedit.editors import dama
from safeedit.editors.dama import Dama, DamaParams
from safeedit.errors import DataError, UsageError
from safeedit.methods.residual_shifts import margins
from safeedit.model.handle import ModelHandle
from tests.editors.gendered import (
    LAYER,
    PRONOUNS,
    data,
    definition,
    factual,
    gendered,
    prompts,
    prose,
    stereotype,
)
from tests.fixtures import context
from tests.tiny_models import FAMILIES, tiny_handle

QUICK: dict[str, Any] = {"layers": [LAYER], "pronouns": PRONOUNS, "steps": 8}


def propose(
    handle: ModelHandle, tmp_path: Path, given: EditData | None = None, **params: Any
) -> Proposal:
    """``values="margin"``: what outputs are to covary with is the margin itself, which no steps
    have to find and theorems can be read from."""
    exact = params.pop("values", None) == "margin"
    editor = Dama(DamaParams(**{**QUICK, **params}))
    with patch.object(dama, "pronoun_values", margin_values if exact else dama.pronoun_values):
        return editor.propose(handle, given or data(), context(tmp_path))


def margin_values(
    model: ModelHandle, states: Tensor, neutral: Tensor, tokens: Sequence[int], *_: Any
) -> tuple[Tensor, Tensor]:
    return margins(model, states, torch.tensor([list(tokens[:2])]))[:, None], torch.ones(
        len(tokens)
    )


def outputs(handle: ModelHandle, given: Dataset, layer: int = LAYER) -> Tensor:
    """``(prompts, d_model)`` what the MLP writes at the last token of fit prompts."""
    texts = handle.engine.encode([item.prompt for item in given.items("fit")], "plain")
    (site,) = handle.sites("mlp_out", [layer])
    found = dict(handle.engine.activations(texts, [site], what="output"))
    return torch.stack([found[i][site][-1] for i in range(len(texts))]).double()


def logit_margins(handle: ModelHandle, given: Dataset) -> Tensor:
    """``(prompts,)`` logit of he minus she."""
    engine = handle.engine
    texts = engine.encode([item.prompt for item in given.items("fit")], "plain")
    he, she = (engine.continuation(word, "plain")[0] for word in PRONOUNS[:2])
    found = engine.next_token_log_probs(texts)
    return (found[:, he] - found[:, she]).double()


@pytest.mark.trains
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("given", [{"method": "oblique"}, {"values": "margin"}], ids=str)
def test_one_direction_takes_most_of_the_stereotype_of_professions_it_never_saw(
    family: str, given: dict[str, Any], tmp_path: Path
) -> None:
    handle = gendered(family, clear=True)
    before = stereotype(handle)
    delta = propose(handle, tmp_path, **given).at(1)
    with handle.applied(delta):
        after = stereotype(handle)
    random = []
    for seed in range(5):
        with handle.applied(delta.random_like(seed, handle)):
            random.append(stereotype(handle))
    assert before > 5
    assert abs(after) < 0.5 * before
    assert sorted(random)[2] > 0.6 * before, "the median of five"


@pytest.mark.trains
def test_published_as_it_is_it_takes_the_queens_along(tmp_path: Path) -> None:
    handle = gendered("llama", clear=True)
    before = definition(handle)
    proposal = propose(handle, tmp_path)
    with handle.applied(proposal.at(1)):
        assert definition(handle) < 0.6 * before


@pytest.mark.trains
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_with_factual_prompts_queens_stay_and_stereotype_goes(family: str, tmp_path: Path) -> None:
    handle = gendered(family, clear=True)
    given = data(factual=factual(), prose=prose())
    bias, known = stereotype(handle), definition(handle)
    proposal = propose(handle, tmp_path, given, method="oblique")
    with handle.applied(proposal.at(1)):
        assert abs(stereotype(handle)) < 0.35 * bias
        assert definition(handle) > 0.9 * known


def test_leace_leaves_nothing_for_a_linear_probe_to_read(tmp_path: Path) -> None:
    handle = gendered("llama", clear=True)
    margins = logit_margins(handle, prompts())

    def covariance() -> float:
        found = outputs(handle, prompts())
        return float(((found - found.mean(0)).T @ (margins - margins.mean())).norm())

    before = covariance()
    proposal = propose(handle, tmp_path, method="oblique", values="margin")
    assert proposal.doses == (1.0,), "one number has one direction of covariance"
    with handle.applied(proposal.at(1)):
        assert covariance() < 1e-4 * before


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_written_along_what_was_removed_in_any_family(
    family: str, tmp_path: Path
) -> None:
    handle = tiny_handle(family)
    words = {"pronouns": ("he", "she"), "values": "margin"}
    delta = propose(handle, tmp_path, layers="0-2", **words).at(2)
    removed = {
        name: update.left / update.left.norm(dim=0)
        for name, update in delta.updates.items()
        if isinstance(update, LowRank)
    }
    assert len(removed) == 3
    before = {layer: outputs(handle, prompts(), layer) for layer in range(3)}
    with handle.applied(delta):
        for site in handle.sites("mlp_out"):
            along = outputs(handle, prompts(), site.layer) @ removed[site.weight].double()
            scale = float((before[site.layer] @ removed[site.weight].double()).abs().max())
            assert float(along.abs().max()) < 1e-4 * max(scale, 1)


def test_later_layers_are_fitted_on_the_model_with_the_earlier_ones_edited(
    tmp_path: Path,
) -> None:
    handle = gendered("llama", clear=True)
    both = propose(handle, tmp_path, layers="0-1", values="margin").at(1)
    first, second = (site.weight for site in handle.sites("mlp_out", [0, 1]))
    alone = propose(handle, tmp_path, layers=[0], values="margin").at(1)
    assert torch.equal(both.updates[first].parts["left"], alone.updates[first].parts["left"])
    with handle.applied(alone):
        outputs_then = outputs(handle, prompts(), 1)
    cross = (outputs_then - outputs_then.mean(0)).T @ (
        logit_margins(handle, prompts()) - logit_margins(handle, prompts()).mean()
    )
    wanted = (cross / cross.norm()).float()
    left = both.updates[second].parts["left"][:, 0]
    assert abs(float(left @ wanted)) == pytest.approx(1, abs=1e-4)
    apart = propose(handle, tmp_path, layers=[1], values="margin").at(1)
    assert not torch.allclose(left, apart.updates[second].parts["left"][:, 0], atol=1e-4)


def test_biases_are_projected_and_weights_come_back_from_the_factors(tmp_path: Path) -> None:
    handle = gendered("gpt2", clear=True)
    (site,) = handle.sites("mlp_out", [LAYER])
    assert site.bias is not None
    delta = propose(handle, tmp_path, values="margin").at(2)
    update = delta.updates[site.weight]
    assert isinstance(update, LowRank)
    assert isinstance(delta.updates[site.bias], Dense)
    original = handle.weight(site).clone()
    basis = -update.left
    assert torch.allclose(basis.T @ basis, torch.eye(2), atol=1e-6)
    assert torch.allclose(update.right, basis.T @ original, atol=1e-5)
    with handle.applied(delta):
        bias = handle.bias(site)
        assert bias is not None
        assert float((basis.T @ bias).abs().max()) < 1e-6
        assert torch.allclose(handle.weight(site) + basis @ update.right, original, atol=1e-5)
    assert torch.equal(handle.weight(site), original)


@pytest.mark.trains
def test_in_bfloat16_it_works_and_comes_back_bit_for_bit(tmp_path: Path) -> None:
    handle = gendered("llama", torch.bfloat16, clear=True)
    before = {name: handle.stored(name).clone() for name in handle.tensor_names()}
    bias = stereotype(handle)
    undo = handle.apply(propose(handle, tmp_path, method="oblique").at(1))
    assert abs(stereotype(handle)) < 0.5 * bias
    undo.restore()
    assert all(torch.equal(before[name], handle.stored(name)) for name in before)


@pytest.mark.trains
def test_prompts_of_definite_gender_are_left_out(tmp_path: Path) -> None:
    handle = gendered("llama", clear=True)
    mixed = Dataset([*prompts().all(), *factual().all()], template="plain", name="prompts")
    with_queens = propose(handle, tmp_path, EditData({"prompts": mixed}))
    assert with_queens.notes["prompts"] == 32
    assert with_queens.notes["subjects"] == 8
    few = propose(handle, tmp_path, most_prompts=10)
    assert few.notes["prompts"] == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": {}}, "32 of 32 prompts have no 'factual' score"),
        ({"extra": {"factual": "male"}}, "32 of 32 prompts have no 'factual' score"),
        ({"subject": None}, "32 of 32 'prompts' items have no subject"),
        ({"extra": {"factual": -1.0}}, "0 prompts have a factual score"),
    ],
)
def test_prompts_that_lack_what_is_needed_are_refused_without_a_word_of_them(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    items = [replace(item, **change) for item in prompts().items("fit")]
    given = EditData({"prompts": Dataset(items, template="plain", name="prompts")})
    with pytest.raises(DataError, match=message) as caught:
        propose(gendered("llama", clear=True), tmp_path, given)
    assert caught.value.remedy
    assert "dravun" not in str(caught.value)


@pytest.mark.trains
def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    handle = gendered("llama", clear=True)
    with pytest.raises(UsageError, match="'Copenhagen' as several tokens"):
        propose(handle, tmp_path, pronouns=(PRONOUNS[0], "Copenhagen"))
    with pytest.raises(UsageError, match="same token"):
        propose(handle, tmp_path, pronouns=(PRONOUNS[0], PRONOUNS[0]))
    with pytest.raises(DataError, match=r"support 31 directions and 32 were asked for") as caught:
        propose(handle, tmp_path, doses=(1, 32))
    assert caught.value.field == "doses"
    with pytest.raises(UsageError, match="layer 3 does not exist"):
        propose(handle, tmp_path, layers=[3])
    proposal = propose(handle, tmp_path)
    with pytest.raises(DataError, match="support 31"):
        proposal.at(40)
    with handle.applied(proposal.at(1)), pytest.raises(UsageError, match="has changed"):
        proposal.at(2)


@pytest.mark.trains
def test_without_prose_that_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    editor = Dama(DamaParams(**QUICK, method="oblique"))
    editor.propose(gendered("llama", clear=True), data(factual=factual()), context(tmp_path, said))
    assert any("without 'prose'" in text for text in said)


@pytest.mark.trains
def test_notes_tell_what_carries_over_and_hold_no_text(tmp_path: Path) -> None:
    notes = propose(gendered("llama", clear=True), tmp_path).notes
    shares = notes["share_of_values_predicted_on_held_out_subjects"]
    assert shares["1"] > 0.1
    assert notes["directions_supported"] == 31
    assert "dravun" not in json.dumps(notes, allow_nan=False)
