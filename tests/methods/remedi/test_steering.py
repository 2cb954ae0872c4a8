"""Steering finds entities wherever they are mentioned, and leaves nothing behind.

The oracle adds the shift by a hook of its own, at positions found in the whole text, one text at a
time and without a cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from safeedit.errors import UsageError
from safeedit.methods.remedi.steering import Steer, steering
from safeedit.model.handle import ModelHandle
from safeedit.model.spans import last_tokens
from tests.tiny_models import FAMILIES, tiny_handle

TEXTS = (
    "Anita works as a",
    "It is said that Anita knows the city, and Anita is a",
    "Zyxo asked Anita",
    "Nobody here",
)
LAYER = 1


def steer(handle: ModelHandle, subject: str = "Anita", seed: int = 1) -> Steer:
    drawn = torch.randn(handle.d_model, generator=torch.Generator().manual_seed(seed))
    return Steer(subject, LAYER, drawn)


def oracle(
    handle: ModelHandle, ids: Sequence[int], given: Sequence[Steer], written: int = 0
) -> Tensor:
    """Logits ``(seq, vocab)`` of one text, whose last ``written`` tokens the model wrote itself."""
    begun = len(ids) - written

    def add(module: object, args: object, output: object) -> object:
        hidden = (output[0] if isinstance(output, tuple) else output).clone()  # type: ignore[attr-defined]
        for one in given:
            for place in mentioned(handle, ids, begun, one.subject):
                hidden[0, place] += one.shift
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    hook = handle.blocks()[LAYER].register_forward_hook(add)
    try:
        with torch.no_grad():
            logits: Tensor = handle.model(input_ids=torch.tensor([list(ids)])).logits[0]
            return logits
    finally:
        hook.remove()


def mentioned(handle: ModelHandle, ids: Sequence[int], begun: int, subject: str) -> set[int]:
    """Where a mention ends as far as is known when its last token is read: the first ``begun``
    tokens are read together, each other one by itself, before the next may go on with the word."""
    tokenizer = handle.engine.codec.tokenizer
    found = set(last_tokens(tokenizer, ids[:begun], subject))
    for end in range(begun + 1, len(ids) + 1):
        found |= {end - 1} & set(last_tokens(tokenizer, ids[:end], subject))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_steered_at_every_mention_and_nowhere_else(family: str) -> None:
    handle = tiny_handle(family)
    given = [steer(handle), steer(handle, "Zyxo", 2)]
    prompts = handle.engine.encode(TEXTS, "plain")
    before = handle.engine.next_token_log_probs(prompts)
    with steering(handle, given):
        found = handle.engine.next_token_log_probs(prompts)
    for row, ids in enumerate(prompts):
        wanted = oracle(handle, ids, given)[-1].log_softmax(-1)
        assert torch.allclose(found[row], wanted, atol=1e-4), row
    assert torch.equal(found[3], before[3])
    assert not torch.allclose(found[0], before[0], atol=1e-2)
    assert torch.equal(handle.engine.next_token_log_probs(prompts), before), "nothing is left"


@pytest.mark.parametrize("shared", ["", "In the city of Rome and in the country, "])
@pytest.mark.parametrize("ends", ["Anita", "Anatol"])
def test_a_mention_may_lie_behind_or_across_a_shared_prefix(shared: str, ends: str) -> None:
    # "Anita" and "Anatol" begin alike, so that the prefix ends within the mention.
    handle = tiny_handle("llama")
    texts = [f"{shared}so we asked for Anita today", f"{shared}so we asked for {ends} then"]
    prompts = handle.engine.encode(texts, "plain")
    given = [steer(handle)]
    with steering(handle, given):
        found = handle.engine.next_token_log_probs(prompts)
    for row, ids in enumerate(prompts):
        wanted = oracle(handle, ids, given)[-1].log_softmax(-1)
        assert torch.allclose(found[row], wanted, atol=1e-4), row


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma3_text"])
def test_answers_are_those_of_a_model_steered_in_full(family: str) -> None:
    handle = tiny_handle(family)
    given = [steer(handle)]
    prompts = handle.engine.encode(TEXTS, "plain")
    with steering(handle, given):
        found = handle.engine.generate(prompts, max_new_tokens=6, stop_ids=[])
    for ids, (answer,) in zip(prompts, found, strict=True):
        said: list[int] = []
        for _ in range(6):
            said.append(int(oracle(handle, [*ids, *said], given, len(said))[-1].argmax()))
        assert answer == said


def test_an_entity_the_model_writes_itself_is_steered_token_by_token() -> None:
    handle = tiny_handle("llama")
    given = [steer(handle)]
    (ids,) = handle.engine.encode(["They asked Anita who is"], "plain")
    (start,) = last_tokens(handle.engine.codec.tokenizer, ids, "asked")
    cache, logits = DynamicCache(), torch.empty(0)
    with steering(handle, given), torch.no_grad():
        for begin, end in [(0, start + 1), *((i, i + 1) for i in range(start + 1, len(ids)))]:
            tokens = torch.tensor([ids[begin:end]] * 2)
            logits = handle.model(input_ids=tokens, past_key_values=cache, use_cache=True).logits
            if begin == 0:  # as where answers are finished, or beams chosen
                cache.batch_select_indices(torch.tensor([1, 0]))
                cache.reorder_cache(torch.tensor([0, 1]))
    wanted = oracle(handle, ids, given)[-1]
    assert torch.allclose(logits[0, -1], wanted, atol=1e-4)
    assert torch.allclose(logits[1, -1], wanted, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_padding_on_the_left_moves_nothing(family: str) -> None:
    handle = tiny_handle(family)
    given = [steer(handle)]
    prompts = handle.engine.encode(TEXTS[:2], "plain")
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    with steering(handle, given), torch.no_grad():
        hidden = handle.forward({"input_ids": ids, "attention_mask": mask})
        ours = handle.model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=4, do_sample=False,
            pad_token_id=0, eos_token_id=None,
        )  # fmt: skip
    for row, prompt in enumerate(prompts):
        wanted = oracle(handle, prompt, given)[-1]
        assert torch.allclose(handle.logits(hidden[row, -1]), wanted, atol=1e-4)
        said: list[int] = []
        for _ in range(4):
            said.append(int(oracle(handle, [*prompt, *said], given, len(said))[-1].argmax()))
        assert ours[row, width:].tolist() == said


def test_a_prompt_of_one_token_is_steered() -> None:
    handle, name = tiny_handle("gpt2"), "the"
    (ids,) = handle.engine.encode([name], "plain")
    ids = ids[-1:]
    name = handle.engine.decode(ids).strip()
    given = [steer(handle, name)]
    with steering(handle, given):
        found = handle.engine.next_token_log_probs([ids])[0]
    assert torch.allclose(found, oracle(handle, ids, given)[-1].log_softmax(-1), atol=1e-4)
    assert not torch.allclose(found, oracle(handle, ids, [])[-1].log_softmax(-1), atol=1e-2)


def test_of_two_entities_that_end_alike_the_longer_counts() -> None:
    handle = tiny_handle("llama")
    short, long = steer(handle, "Smith"), steer(handle, "Anita Smith", 2)
    one, two = handle.engine.encode(["Anita Smith is", "Here Smith is"], "plain")
    with steering(handle, [short, long]):
        found = handle.engine.next_token_log_probs([one, two])
    assert torch.allclose(found[0], oracle(handle, one, [long])[-1].log_softmax(-1), atol=1e-4)
    assert torch.allclose(found[1], oracle(handle, two, [short])[-1].log_softmax(-1), atol=1e-4)


def test_embeddings_are_refused_and_an_error_leaves_no_hook() -> None:
    handle = tiny_handle("llama")
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in handle.model.modules()]
    with pytest.raises(UsageError, match="token ids"), steering(handle, [steer(handle)]):
        handle.model(inputs_embeds=torch.zeros(1, 2, handle.d_model))
    assert hooks == [
        len(m._forward_hooks) + len(m._forward_pre_hooks) for m in handle.model.modules()
    ]
    assert "Anita" not in repr(steer(handle))
