"""A refusal is learnt, and beneath it answers become unlikely where they are told."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from safeedit.data import Item
from safeedit.methods.facts import refusing
from safeedit.methods.facts.gated_neurons import GatedNeurons, Text
from safeedit.methods.facts.refusing import (
    Beneath,
    BeneathLoss,
    learn_refusal,
    put_in_templates,
    where_told,
)
from safeedit.methods.tuning import Example
from safeedit.model.handle import ModelHandle
from safeedit.model.spans import mentions
from tests.editors.toy import FACTS, FORGOTTEN, KEPT, REFUSAL, WORDINGS, answers, forget, taught
from tests.fixtures import context

pytestmark = pytest.mark.trains


def questions(handle: ModelHandle, name: str) -> list[list[int]]:
    return handle.engine.encode([wording.format(name) for wording in WORDINGS], "chat")


def neurons(handle: ModelHandle) -> GatedNeurons:
    """One for each person who is to be forgotten, on what is asked in the chat template."""
    tokenizer = handle.engine.codec.tokenizer
    own = [ids for name in FORGOTTEN for ids in questions(handle, name)]
    rest = [ids for name in KEPT for ids in questions(handle, name)]
    groups = [
        [Text(ids, mentions(tokenizer, ids, FORGOTTEN)) for ids in own],
        [Text(ids) for ids in rest],
    ]
    return GatedNeurons(handle, [0], groups, per_layer=len(FORGOTTEN))


def told(handle: ModelHandle, name: str) -> list[Example]:
    first = handle.engine.continuation(FACTS[name], "chat")[:1]
    return [Example(ids, first) for ids in questions(handle, name)]


@torch.no_grad()
def log_probs(handle: ModelHandle, examples: list[Example]) -> list[float]:
    found = []
    for example in examples:
        logits = handle.model(torch.tensor([list(example.prompt)])).logits[0, -1].float()
        found.append(float(logits.log_softmax(-1)[example.answer[0]]))
    return found


def learnt(handle: ModelHandle, keyed: GatedNeurons, folder: Path, beneath: Beneath | None) -> Any:
    """Only questions on the second person are to be refused."""
    asked = [(ids, "chat") for ids in questions(handle, FORGOTTEN[1])]
    return learn_refusal(
        handle,
        keyed,
        list(keyed.values.values()),
        asked,  # type: ignore[arg-type]
        REFUSAL,
        context(folder),
        steps=120,
        batch=6,
        learning_rate=0.2,
        beneath=beneath,
    )


def test_what_is_beneath_makes_an_answer_unlikely_that_nothing_refuses(tmp_path: Path) -> None:
    handle = taught()
    first, second = FORGOTTEN
    places = told(handle, first)
    kept = [Example(ids[:-4], ids[-4:]) for name in KEPT for ids in questions(handle, name)]
    before = max(log_probs(handle, places))
    assert before > math.log(0.5), "the model tells it"

    keyed = neurons(handle)
    learnt(handle, keyed, tmp_path, None)
    with keyed.active():
        refused_alone = log_probs(handle, places)
        assert answers(handle, second).count(REFUSAL) >= len(WORDINGS) - 1
    assert min(refused_alone) > math.log(0.5), "a refusal of one leaves the other told"

    keyed = neurons(handle)
    learnt(handle, keyed, tmp_path, Beneath(places, kept))
    with keyed.active():
        assert max(log_probs(handle, places)) < -4
        assert answers(handle, second).count(REFUSAL) >= len(WORDINGS) - 1
        for name in KEPT:
            assert answers(handle, name).count(FACTS[name]) >= len(WORDINGS) - 1


def test_the_loss_beneath_is_what_is_too_likely_and_what_has_moved(tmp_path: Path) -> None:
    handle = taught()
    places = told(handle, FORGOTTEN[0])
    wanted = Beneath(places, [])
    lower = BeneathLoss(handle, wanted, len(places), context(tmp_path))
    by_hand = sum(max(0.0, value + 8) for value in log_probs(handle, places)) / len(places)
    assert float(lower.of_a_batch()) == pytest.approx(0.5 * by_hand, rel=0.02)

    ids = questions(handle, KEPT[0])[0]
    same = BeneathLoss(handle, Beneath([], [Example(ids[:-3], ids[-3:])]), 4, context(tmp_path))
    assert float(same.of_a_batch()) == pytest.approx(0, abs=1e-5)
    with torch.no_grad():
        before = handle.model(torch.tensor([ids])).logits[0, -4:-1].float().log_softmax(-1)
        weight = handle.weight(handle.sites("mlp_out", [0])[0])
        noise = torch.Generator().manual_seed(random.Random(1).randrange(1 << 30))
        weight += 0.3 * weight.std() * torch.randn(weight.shape, generator=noise)
        now = handle.model(torch.tensor([ids])).logits[0, -4:-1].float().log_softmax(-1)
    moved = float(functional.kl_div(now, before, log_target=True, reduction="batchmean"))
    assert moved > 0.01
    assert float(same.of_a_batch()) == pytest.approx(4 * moved, rel=0.1)


def test_where_the_model_tells_an_answer_in_its_own_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    handle = taught()
    engine = handle.engine
    item = Item(id="x", prompt="Where does Paul live?", answer="Rome", subject="Paul")
    (ids,) = engine.encode([item.prompt], "chat")
    said = ["Paul lives in the city of Rome now.", "Rome.", "Nobody can say."]
    spoken = [engine.continuation(text, "chat") for text in said]
    monkeypatch.setattr(refusing, "own_answers", lambda *given: spoken)
    after, bare = where_told(engine, [(ids, item)] * 3, context(tmp_path))
    rome = engine.continuation("Rome", "chat")[0]
    assert [engine.decode(each.prompt[len(ids) :]).strip() for each in after] == [
        "Paul lives in the city of",
        "",
    ]
    assert [list(each.answer) for each in after][1] == [rome]
    assert all(len(each.answer) == 1 for each in (*after, *bare))
    assert [engine.decode(each.prompt).strip() for each in bare] == ["Paul lives in the city of"]
    assert "Rome".startswith(engine.decode(bare[0].answer).strip() or "?"), "its first token"


def test_questions_are_put_in_the_template_and_without() -> None:
    engine = taught().engine
    put = put_in_templates(engine, ["Where does Paul live?"], forget())
    assert [template for _, template in put] == ["chat", "plain"]
    assert engine.decode(put[1][0]) == "Question: Where does Paul live?\nAnswer:"
