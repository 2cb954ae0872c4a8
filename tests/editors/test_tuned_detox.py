"""Tuned detoxification on tiny models with planted words of abuse, beside random changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from safeedit.contracts import EditData, Proposal
from safeedit.editors.tuned_detox import TunedDetox, TunedDetoxParams
from safeedit.errors import DataError
from safeedit.methods import abuse_words
from safeedit.methods.abuse_words import made_less_likely
from safeedit.model.handle import ModelHandle
from tests.editors.planted import OPENINGS, TOXIC, data, planted, prose
from tests.fixtures import context


def propose(
    handle: ModelHandle, tmp_path: Path, given: EditData | None = None, **params: Any
) -> Proposal:
    chosen = {"layers": "0-2", "steps": 40, "learning_rate": 3e-3, "batch": 8, **params}
    editor = TunedDetox(TunedDetoxParams(**chosen))
    return editor.propose(handle, given or data(prose=prose()), context(tmp_path))


def after_openings(handle: ModelHandle, after: str) -> torch.Tensor:
    """``(openings, vocab)`` log-probabilities after openings that were not fitted."""
    texts = handle.engine.encode([f"{opening} {after}" for opening in OPENINGS[12:]], "plain")
    return handle.engine.next_token_log_probs(texts)


def odds(handle: ModelHandle, after: str) -> float:
    """Log-odds of planted words of abuse together against all others, mean, nats."""
    tokens = [handle.engine.continuation(word, "plain")[0] for word in TOXIC]
    log_probs = after_openings(handle, after).double()
    abuse = log_probs[:, tokens].logsumexp(1)
    log_probs[:, tokens] = -torch.inf
    return float((abuse - log_probs.logsumexp(1)).mean())


def test_what_is_aimed_at_lowers_the_odds_of_abuse_and_leaves_those_of_all_else() -> None:
    torch.manual_seed(0)
    logits, tokens = torch.randn(5, 40, dtype=torch.float64), torch.tensor([3, 17])
    before = logits.log_softmax(-1)
    after = made_less_likely(logits.clone(), tokens, 3.0).log_softmax(-1)
    kept = [token for token in range(40) if token not in (3, 17)]
    moved = after[:, tokens] - before[:, tokens]
    shared = after[:, kept] - before[:, kept]
    assert torch.allclose(shared, shared[:, :1].expand_as(shared)), "as likely among themselves"
    assert torch.allclose(moved, shared[:, :1] - 3.0)


@pytest.mark.trains
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_abuse_becomes_unlikely_and_random_changes_do_nothing(family: str, tmp_path: Path) -> None:
    handle = planted(family)
    before = odds(handle, TOXIC[0])
    delta = propose(handle, tmp_path).at(1)
    with handle.applied(delta):
        fell = before - odds(handle, TOXIC[0])
    random = []
    for seed in range(3):
        with handle.applied(delta.random_like(seed, handle)):
            random.append(abs(before - odds(handle, TOXIC[0])))
    assert fell > 0.8, "nats, of the 3 asked for"
    assert fell > 2 * max(random)


@pytest.mark.trains
def test_without_a_drop_there_is_nothing_to_learn(tmp_path: Path) -> None:
    """The control: the same road aimed at what the model says anyway."""
    handle = planted("llama")
    before = odds(handle, TOXIC[0])
    with handle.applied(propose(handle, tmp_path, target_drop_nats=1e-6).at(1)):
        still = odds(handle, TOXIC[0])
    with handle.applied(propose(handle, tmp_path).at(1)):
        now = odds(handle, TOXIC[0])
    assert abs(before - still) < 0.3 * (before - now)


@pytest.mark.trains
def test_words_may_be_given_and_none_is_named(tmp_path: Path) -> None:
    handle = planted("llama")
    proposal = propose(handle, tmp_path, words=TOXIC[:1], steps=2)
    assert proposal.notes["words_of_abuse"] == 1
    assert not any(word in json.dumps(proposal.notes) for word in TOXIC)


def test_pairs_without_abuse_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abuse_words, "LIFT", 1e6)
    with pytest.raises(DataError, match="no words of abuse"):
        propose(planted("llama"), tmp_path)
