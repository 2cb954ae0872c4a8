"""Perplexity is exp of nats per token, every token counted once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from safeedit.auditors import perplexity
from safeedit.auditors.perplexity import Params, Perplexity
from safeedit.contracts import AuditOutcome
from safeedit.data import Dataset, Item
from safeedit.errors import AuditError
from safeedit.records import Metric
from tests.fixtures import context
from tests.tiny_models import tiny_handle

TEXTS = (
    "The doctor said that she would call.",
    "Water boils at one hundred degrees; ice melts at zero. " * 4,
    "Who wrote the play about the prince?",
)


def _prose(texts: tuple[str, ...] = TEXTS) -> dict[str, Dataset]:
    items = [Item(id=str(i), prompt=text) for i, text in enumerate(texts)]
    return {"prose": Dataset(items, split="test")}


def _audit(
    handle: Any,
    tmp_path: Path,
    reference: dict[str, torch.Tensor] | None = None,
    data: dict[str, Dataset] | None = None,
    **params: Any,
) -> tuple[dict[str, Metric], AuditOutcome]:
    auditor = Perplexity(Params(**params))
    outcome = auditor.audit(handle, data or _prose(), "test", context(tmp_path), reference)
    return {metric.name: metric for metric in outcome.metrics}, outcome


def _disturb(handle: Any) -> None:
    with torch.no_grad():
        weight = next(p for name, p in handle.model.named_parameters() if "mlp" in name)
        weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_equals_the_models_own_loss_over_all_tokens(family: str, tmp_path: Path) -> None:
    handle = tiny_handle(family)
    total, count = 0.0, 0
    for ids in handle.engine.encode(TEXTS, "plain"):
        with torch.no_grad():
            loss = handle.model(torch.tensor([ids]), labels=torch.tensor([ids])).loss
        total += float(loss) * (len(ids) - 1)
        count += len(ids) - 1
    found, _ = _audit(handle, tmp_path)
    assert found["nats_per_token"].value == pytest.approx(total / count, rel=1e-4)
    assert found["perplexity"].value == pytest.approx(math.exp(total / count), rel=1e-4)
    assert found["perplexity"].n == 3


def test_the_base_is_its_own_measure(tmp_path: Path) -> None:
    handle = tiny_handle("llama")
    found, outcome = _audit(handle, tmp_path)
    assert found["ratio"].value == 1.0
    again, _ = _audit(handle, tmp_path, outcome.reference)
    assert again["ratio"].value == pytest.approx(1.0)


def test_the_ratio_is_that_of_the_two_perplexities(tmp_path: Path) -> None:
    handle = tiny_handle("llama")
    before, outcome = _audit(handle, tmp_path)
    _disturb(handle)
    after, _ = _audit(handle, tmp_path, outcome.reference)
    assert after["ratio"].value == pytest.approx(
        after["perplexity"].value / before["perplexity"].value
    )
    assert after["ratio"].value != pytest.approx(1.0, abs=1e-3)
    assert after["ratio"].interval.low <= after["ratio"].value <= after["ratio"].interval.high


def test_pairing_passages_makes_the_interval_of_the_ratio_narrow(tmp_path: Path) -> None:
    handle = tiny_handle("llama")
    before, outcome = _audit(handle, tmp_path)
    _disturb(handle)
    after, _ = _audit(handle, tmp_path, outcome.reference)
    apart = after["perplexity"].interval.high / before["perplexity"].interval.low
    together = after["ratio"].interval.high
    assert together < apart


def test_long_passages_are_read_in_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = tiny_handle("llama")
    whole, _ = _audit(handle, tmp_path)
    monkeypatch.setattr(perplexity, "PROSE_WINDOW", 16)
    windows, _ = _audit(handle, tmp_path)
    assert windows["perplexity"].value != pytest.approx(whole["perplexity"].value, rel=1e-6)
    assert windows["perplexity"].n == 3


def test_a_passage_of_one_token_is_left_out(tmp_path: Path) -> None:
    found, _ = _audit(tiny_handle("gpt2"), tmp_path, data=_prose((*TEXTS, "a")))
    assert found["perplexity"].n == 3


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="nothing to read"):
        _audit(tiny_handle("gpt2"), tmp_path, data=_prose(("a",)))
    empty = {"prose": Dataset([Item(id="1", prompt=TEXTS[0])], split="fit")}
    with pytest.raises(AuditError, match="nothing to read"):
        _audit(tiny_handle("gpt2"), tmp_path, data=empty)


def test_a_reference_of_other_prose_or_windows_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = tiny_handle("gpt2")
    _, outcome = _audit(handle, tmp_path)
    with pytest.raises(AuditError, match="other data"):
        _audit(handle, tmp_path, outcome.reference, data=_prose(TEXTS[:2]))
    monkeypatch.setattr(perplexity, "PROSE_WINDOW", 16)
    with pytest.raises(AuditError, match="other tokens"):
        _audit(handle, tmp_path, outcome.reference)
