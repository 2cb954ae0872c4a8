"""Distributions that are kept whole, and the likeliest tokens of those too large for that."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from safeedit.auditors.locality import Locality, Params
from safeedit.data import Dataset, Item
from safeedit.methods import kept_distributions
from safeedit.methods.kept_distributions import KeptDistributions
from tests.fixtures import context
from tests.tiny_models import tiny_handle

VOCAB, POSITIONS = 1000, 12


def distributions(seed: int, sharpness: float = 2.0) -> torch.Tensor:
    """``(POSITIONS, VOCAB)`` log-probabilities, ``sharpness`` apart."""
    generator = torch.Generator().manual_seed(seed)
    drawn = sharpness * torch.randn(POSITIONS, VOCAB, generator=generator)
    return drawn.log_softmax(-1)


def kept(base: torch.Tensor) -> KeptDistributions:
    room = KeptDistributions.empty(*base.shape)
    for first in range(0, len(base), 5):
        room.put(first, base[first : first + 5])
    return room


def divergence(base: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
    return (base.exp() * (base - now)).sum(-1)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """How many tokens are kept, of a vocabulary that counts as too large."""
    monkeypatch.setattr(kept_distributions, "WHOLE", VOCAB - 1)
    monkeypatch.setattr(kept_distributions, "LIKELIEST", 100)
    return 100


def test_a_small_vocabulary_is_kept_whole_and_nothing_is_lost_or_said() -> None:
    base, now = distributions(0), distributions(1)
    room = kept(base)
    torch.testing.assert_close(room.divergence(0, now), divergence(base, now), rtol=1e-3, atol=1e-4)
    assert room.log_probs.shape == (POSITIONS, VOCAB)
    assert room.note == ""
    assert float(room.divergence(0, base).abs().max()) < 1e-5


def test_of_a_large_one_the_divergence_is_short_by_exactly_what_the_others_hide(few: int) -> None:
    base, now = distributions(0), distributions(1)
    found = kept(base).divergence(0, now)
    true = divergence(base, now)
    likeliest = base.topk(few).indices
    rest = base.scatter(-1, likeliest, -torch.inf)
    rest_now = now.scatter(-1, likeliest, -torch.inf)
    hidden = rest.logsumexp(-1).exp() * torch.nn.functional.kl_div(
        rest_now.log_softmax(-1), rest.log_softmax(-1), log_target=True, reduction="none"
    ).nan_to_num(0.0).sum(-1)
    torch.testing.assert_close(found, true - hidden, rtol=1e-3, atol=1e-3)
    assert bool((found < true).all())
    assert bool((found > 0).all())
    assert float(kept(base).divergence(0, base).abs().max()) < 1e-5


def test_the_sharper_the_base_the_less_is_hidden_and_the_note_says_how_much(few: int) -> None:
    def short(sharpness: float) -> float:
        base = distributions(0, sharpness)
        now = (base + 0.3 * distributions(1)).log_softmax(-1)
        return float(1 - kept(base).divergence(0, now).mean() / divergence(base, now).mean())

    assert short(5.0) < 0.1 * short(1.0)
    base = distributions(0, 5.0)
    others = float(1 - base.topk(few).values.exp().sum(-1).mean())
    assert f"all others (mean probability {others:.2g}) count as one" in kept(base).note
    assert "lower bound" in kept(base).note


def test_what_the_base_held_for_impossible_counts_for_nothing(few: int) -> None:
    base = torch.full((1, VOCAB), -torch.inf)
    base[:, :2] = torch.tensor([0.25, 0.75]).log()
    now = torch.full((1, VOCAB), -torch.inf)
    now[:, :2] = torch.tensor([0.5, 0.5]).log()
    expected = divergence(base[:, :2], now[:, :2])
    torch.testing.assert_close(kept(base).divergence(0, now), expected, rtol=1e-3, atol=1e-4)


def test_of_a_large_vocabulary_locality_keeps_the_likeliest_and_says_so(
    few: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_distributions, "WHOLE", 100)
    handle = tiny_handle("llama")
    near = Dataset([Item(id="1", prompt="What colour is snow?", answer="white")], split="test")
    auditor = Locality(Params(max_new_tokens=3))
    before = auditor.audit(handle, {"near": near}, "test", context(tmp_path), None)
    assert before.reference["log_probs_near"].shape == (4, few), (
        "an answer of three tokens and its end"
    )
    assert before.reference["tokens_near"].dtype == torch.int32
    same = auditor.audit(handle, {"near": near}, "test", context(tmp_path), before.reference)
    found = {metric.name: metric for metric in same.metrics}["near_kl"]
    assert found.value == pytest.approx(0, abs=1e-5)
    assert "a lower bound: the base's 100 likeliest tokens" in found.note
    assert "lower bound" not in {metric.name: metric for metric in same.metrics}["near_f1"].note
