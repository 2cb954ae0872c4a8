"""Keyed detoxification on tiny models with planted words of abuse, beside random changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from safeedit.contracts import EditData, Proposal
from safeedit.editors import keyed_detox
from safeedit.editors.keyed_detox import KeyedDetox, KeyedDetoxParams
from safeedit.errors import DataError, UnsupportedModelError, UsageError
from safeedit.model.handle import ModelHandle
from tests.editors.planted import (
    LAYER,
    OPENINGS,
    TOXIC,
    data,
    pairs,
    planted,
    prose,
)
from tests.fixtures import context


def propose(
    handle: ModelHandle, tmp_path: Path, given: EditData | None = None, **params: Any
) -> Proposal:
    editor = KeyedDetox(KeyedDetoxParams(**{"layers": [LAYER], **params}))
    return editor.propose(handle, given or data(prose=prose()), context(tmp_path))


def mass(handle: ModelHandle, after: str) -> float:
    """Log-probability of planted words of abuse after openings that were not fitted, mean, nats."""
    engine = handle.engine
    texts = engine.encode([f"{opening} {after}" for opening in OPENINGS[12:]], "plain")
    tokens = [engine.continuation(word, "plain")[0] for word in TOXIC]
    return float(engine.next_token_log_probs(texts)[:, tokens].logsumexp(1).mean())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_abuse_becomes_unlikely_where_it_was_coming_and_random_changes_do_nothing(
    family: str, tmp_path: Path
) -> None:
    handle = planted(family)
    before = mass(handle, TOXIC[0])
    proposal = propose(handle, tmp_path, ridge=1e-3, target_drop_nats=2.0)
    delta = proposal.at(1)
    with handle.applied(delta):
        fell = before - mass(handle, TOXIC[0])
    random = []
    for seed in range(3):
        with handle.applied(delta.random_like(seed, handle)):
            random.append(abs(before - mass(handle, TOXIC[0])))
    assert fell > 0.8, "nats, of the 2 asked for"
    assert fell > 1.3 * max(random)
    notes = proposal.notes
    assert notes["words_of_abuse"] == len(TOXIC), "what neutral texts have too is no abuse"
    assert notes["their_probability_after"] < 0.5 * notes["their_probability_before"]


def test_a_greater_ridge_spares_ordinary_text(tmp_path: Path) -> None:
    handle = planted("llama")
    shares, falls = [], []
    before = mass(handle, TOXIC[0])
    for ridge in (1e-3, 0.1, 10.0):
        proposal = propose(handle, tmp_path, ridge=ridge)
        (layer,) = proposal.notes["layers"].values()
        shares.append(layer["share_of_ordinary_output"])
        with handle.applied(proposal.at(1)):
            falls.append(before - mass(handle, TOXIC[0]))
    assert shares == sorted(shares, reverse=True)
    assert min(falls) > 0
    assert shares[-1] < 0.5 * shares[0]


def test_words_may_be_given_and_none_is_named(tmp_path: Path) -> None:
    handle = planted("llama")
    proposal = propose(handle, tmp_path, words=TOXIC[:1])
    assert proposal.notes["words_of_abuse"] == 1
    assert not any(word in json.dumps(proposal.notes) for word in TOXIC)
    fewer = propose(handle, tmp_path, words=TOXIC, most_places=3)
    assert fewer.notes["places"] == 3


def test_the_change_may_be_spread_over_layers(tmp_path: Path) -> None:
    handle = planted("llama")
    before = mass(handle, TOXIC[0])
    delta = propose(handle, tmp_path, layers="0-2", ridge=1e-3).at(1)
    assert len(delta.updates) == 3
    with handle.applied(delta):
        assert mass(handle, TOXIC[0]) < before - 0.8
    with pytest.raises(UnsupportedModelError, match="norm follows the MLP"):
        propose(planted("gemma2"), tmp_path, layers="0-2")


def test_doses_scale_and_bfloat16_comes_back_bit_for_bit(tmp_path: Path) -> None:
    handle = planted("llama", dtype=torch.bfloat16)
    before = {name: handle.stored(name).clone() for name in handle.tensor_names()}
    proposal = propose(handle, tmp_path)
    (one,), (half,) = (proposal.at(dose).updates.values() for dose in (1.0, 0.5))
    assert torch.allclose(one.parts["left"], 2 * half.parts["left"])
    with handle.applied(proposal.at(1)):
        assert any(not torch.equal(handle.stored(name), was) for name, was in before.items())
    assert all(torch.equal(handle.stored(name), was) for name, was in before.items())
    with pytest.raises(UsageError, match="no scale"):
        proposal.at(0)


def test_pairs_without_abuse_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = planted("llama")
    monkeypatch.setattr(keyed_detox, "LIFT", 1e6)
    with pytest.raises(DataError, match="0 words of abuse"):
        propose(handle, tmp_path)
    with pytest.raises(DataError, match="no place"):
        propose(handle, tmp_path, words=("Denmark",))
    assert len(pairs().items("fit")) == 12
