"""Causal tracing on a model whose stereotype goes through one MLP."""

from __future__ import annotations

import pytest
import torch

from safeedit.model.keys import subject_spot
from safeedit.model.shifts import single_tokens
from safeedit.model.tracing import Traced, trace_mlps
from tests.editors.gendered import LAYER, PRONOUNS, gendered, prompts


def traced(family: str, **options: float) -> Traced:
    handle = gendered(family)
    items = prompts().items("fit")
    ids = handle.engine.encode([item.prompt for item in items], "plain")
    spots = [subject_spot(handle, row, str(i.subject)) for row, i in zip(ids, items, strict=True)]
    tokens = single_tokens(handle.engine, PRONOUNS[:2], "plain")
    before = handle.digest(fresh=True)
    found = trace_mlps(handle, [spot for spot in spots if spot is not None], tokens, **options)
    assert handle.digest(fresh=True) == before
    assert not handle.embedding._forward_hooks
    return found


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_the_planted_layer_brings_most_back(family: str) -> None:
    found = traced(family)
    assert found.lost > 1
    assert found.at_subject.shape == found.at_end.shape == (3,)
    assert int(found.at_subject.argmax()) == LAYER
    assert float(found.at_subject[LAYER]) > 0.3 * found.lost
    # These prompts end with their subject.
    assert torch.allclose(found.at_subject, found.at_end, atol=1e-4)


def test_without_noise_nothing_is_lost_and_nothing_comes_back() -> None:
    found = traced("llama", noise=0.0)
    assert found.lost == pytest.approx(0, abs=1e-4)
    assert float(found.at_end.abs().max()) < 1e-4
