"""Tuned detoxification on tiny models with planted words of abuse, beside random changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from safeedit.contracts import EditData, Proposal
from safeedit.editors.tuned_detox import TunedDetox, TunedDetoxParams
from safeedit.methods.word_filter import WordFilter, filtered
from safeedit.model.handle import ModelHandle
from tests.editors.planted import OPENINGS, TOXIC, data, planted, prose
from tests.fixtures import context


def propose(
    handle: ModelHandle, tmp_path: Path, given: EditData | None = None, **params: Any
) -> Proposal:
    chosen = {
        "layers": "0-2",
        "steps": 40,
        "learning_rate": 3e-3,
        "batch": 8,
        "words": TOXIC,
        **params,
    }
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
    logits, tokens = torch.randn(5, 40, dtype=torch.float64), [3, 17]
    before = logits.log_softmax(-1)
    rows = torch.tensor([0, 0, 1, 1])
    after = filtered(logits.clone(), rows, torch.tensor([3, 17, 3, 17]), 3.0).log_softmax(-1)
    kept = [token for token in range(40) if token not in tokens]
    moved = (after - before)[:2, tokens]
    shared = (after - before)[:2, kept]
    assert torch.allclose(shared, shared[:, :1].expand_as(shared)), "as likely among themselves"
    assert torch.allclose(moved, shared[:, :1] - 3.0)
    assert torch.equal(after[2:], before[2:]), "other rows are as they were"


def test_a_word_of_several_tokens_is_filtered_where_it_would_end() -> None:
    engine = planted("llama").engine
    (whole,) = engine.continuations(["unspeakable"], "plain")
    assert len(whole) > 2
    found = WordFilter(engine, ["unspeakable"])
    said = [5, *whole]
    assert (len(whole) - 1, whole[-1]) in found.places(said, 1), "where it would end"
    assert (0, whole[0]) not in found.places(said, 1), "and not where it begins"
    assert (len(whole) - 2, whole[-2]) not in found.places(said, 1)


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
def test_no_word_is_named_in_the_notes(tmp_path: Path) -> None:
    handle = planted("llama")
    proposal = propose(handle, tmp_path, words=TOXIC[:1], steps=2)
    assert not any(word in json.dumps(proposal.notes) for word in TOXIC)
