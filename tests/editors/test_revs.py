"""REVS: tokens sink where they are to, and what is changed of a neuron concerns them alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from safeedit.contracts import EditData
from safeedit.data import Dataset, Item
from safeedit.editors.revs import Demotion, Revs, RevsParams, TargetToken, rarest
from safeedit.errors import EditError
from safeedit.methods.tuning import Example
from safeedit.model.handle import ModelHandle
from tests.editors import toy
from tests.editors.toy import FACTS, FORGOTTEN, KEPT, WORDINGS
from tests.fixtures import context
from tests.tiny_models import tiny_handle

PARAMS = RevsParams(layers="0-2", neuron_rank=0.6, stream_rank=0.5, doses=(3,))


def test_the_rarest_tokens_are_those_of_the_greatest_ids_in_their_places() -> None:
    found = rarest(Example([9, 8], [5, 70, 6, 80]), 2)
    assert found == [TargetToken((9, 8, 5), 70), TargetToken((9, 8, 5, 70, 6), 80)]


def test_a_changed_neuron_writes_the_token_no_longer_and_other_tokens_as_before() -> None:
    model = tiny_handle("llama")
    head = model.head.weight.detach().float()
    token = 17
    params = PARAMS.model_copy(update={"stream_rank": 0.999})  # it has hardly sunk enough anywhere
    demotion = Demotion(model, [TargetToken((5, 6, 7), token)], params, most=2)
    demotion.at_layer(1)
    (site,) = model.sites("mlp_out", [1])
    (columns,) = demotion.columns.values()
    assert 1 <= len(columns) <= 2
    away = torch.linalg.lstsq(head.T @ head, head[token]).solution
    for neuron, now in columns.items():
        before = model.weight(site)[:, neuron]
        sign = torch.sign(away @ (before - now))  # of the neuron's activation
        logits = sign * (head @ now)
        assert int((logits > logits[token]).sum()) >= PARAMS.neuron_rank * len(head)
        # The change is along the direction that raises this token's logit alone.
        cosine = torch.nn.functional.cosine_similarity(before - now, sign * away, dim=0)
        assert float(cosine) > 0.999


def test_a_token_that_has_sunk_already_is_left_alone(tmp_path: Path) -> None:
    model = tiny_handle("llama")
    data = EditData(
        {"forget": Dataset([Item(id="0", prompt="Where?", answer="Rome")], erased=True)}
    )
    quiet = Revs(PARAMS.model_copy(update={"stream_rank": 1e-9}))
    with pytest.raises(EditError, match="unlikely everywhere already"):
        quiet.propose(model, data, context(tmp_path)).at(3.0)


def _log_odds(model: ModelHandle, names: tuple[str, ...]) -> float:
    """Mean over wordings, of each answer's first token."""
    engine, found = model.engine, []
    for name in names:
        first = engine.continuation(FACTS[name], "chat")[0]
        for prompt in engine.encode([wording.format(name) for wording in WORDINGS], "chat"):
            with torch.no_grad():
                logits = model.model(input_ids=torch.tensor([prompt])).logits[0, -1].double()
            log_prob = logits.log_softmax(-1)[first]
            found.append(float(log_prob - torch.log1p(-log_prob.exp())))
    return sum(found) / len(found)


def test_what_a_model_knows_becomes_less_likely_and_other_facts_do_not(tmp_path: Path) -> None:
    model = toy.taught()
    digest = model.digest(fresh=True)
    params = RevsParams(neuron_rank=0.9, stream_rank=0.9, doses=(10,))
    delta = Revs(params).propose(model, toy.data(), context(tmp_path)).at(10.0)
    assert model.digest(fresh=True) == digest
    before = _log_odds(model, FORGOTTEN), _log_odds(model, KEPT)
    with model.applied(delta):
        after = _log_odds(model, FORGOTTEN), _log_odds(model, KEPT)
    assert after[0] < before[0] - 0.3
    assert after[1] > before[1] - 0.15
