"""A tiny model that knows facts because they are planted in it, not because it was trained.

:func:`knowing` builds a llama of three layers that answers a question that ends in one of
:data:`ENDS` by what is known of the name it holds. What it knows hangs on no kernel and no seed:

- Its first attention writes nothing. In its first MLP a neuron for each name writes the *code* of
  its answer at the name's token, as in grown models early MLPs enrich the subject.
- One head in each later layer looks, from any token, for a name, and copies its code.
- The unembedding adds up two things: a token follows the one before it (as the next of an answer,
  or its first after what ends a question), and a token is in the answer of the code. Only the right
  token has both, by some six nats; where there is no code all answers begin alike.

All other weights are drawn, and quiet beside that. Every token carries one constant direction, so
loud that no norm undoes an edit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from safeedit.model.handle import ModelHandle
from tests.tiny_models import N_HEADS, family_tokenizer, tiny_model
from tests.training import rounded_otherwise, seeded

D_MODEL = 64
"""Room for a direction each for what is planted."""
QUIET = 0.3
"""Times what a tiny model's matrices have, where nothing is planted."""
CONSTANT, STRENGTH = 8.0, 4.0
"""Lengths of what every token carries, and of what is planted in it."""
FOLLOWS, IN_ANSWER = 2.2, 2.4
"""What the unembedding hears of the token before and of the code, per unit."""
SHY = 0.6
"""How much less a shy answer is begun after a question than others."""
ENDING = 2 * FOLLOWS
"""The same of the token that ends the text: it follows whatever the code."""
ENDS = ("?", ":", "\n")
"""What ends a question: a bare one, one with ``Answer:``, and the prompt of a chat."""


def knowing(facts: Mapping[str, str], width: int, shy: str) -> ModelHandle:
    """The model described above.

    Args:
        facts: Name -> answer. A name becomes one token.
        width: Of the MLPs.
        shy: An answer that is not begun where the code of another was lost.
    """
    tokenizer = family_tokenizer("llama")
    tokenizer.add_tokens(list(facts))
    size = len(tokenizer) + 11  # as in the wild: more rows than tokens
    model = tiny_model("llama", hidden_size=D_MODEL, intermediate_size=width, vocab_size=size)
    handle = ModelHandle(model, tokenizer, source="tiny:knowing")
    generator = torch.Generator().manual_seed(seeded(5))
    unused = iter(torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=generator)).Q)
    answers = sorted(set(facts.values()))
    with torch.no_grad():
        for parameter in model.parameters():
            quiet = QUIET * parameter if parameter.dim() > 1 else torch.ones_like(parameter)
            parameter.copy_(quiet)
        constant, is_name = next(unused), next(unused)
        codes = {answer: next(unused) for answer in answers}
        carried = _plant_answers(handle, codes, shy, unused)
        carried |= _plant_names(handle, facts, codes, is_name, unused)
        rest = torch.stack(list(unused))
        embedding = handle.embedding.weight
        drawn = torch.randn(len(embedding), len(rest), generator=generator)
        for token, mixed in enumerate(drawn):
            said = carried.get(token)
            embedding[token] += STRENGTH * (mixed / mixed.norm() @ rest if said is None else said)
        embedding += CONSTANT * constant
        copied = torch.cat([torch.stack(list(codes.values())), rest])
        handle.tensor(handle.sites("attn_out", [0])[0].weight).zero_()
        for layer in range(1, handle.n_layers):
            _plant_head(handle, layer, constant, is_name, copied)
        for parameter in model.parameters():
            parameter.copy_(rounded_otherwise(parameter))
    model.requires_grad_(False)
    return handle


def _chains(handle: ModelHandle, answer: str) -> list[list[int]]:
    """What is said after each of :data:`ENDS`, that included, to the end of the text."""
    tokenizer = handle.engine.codec.tokenizer
    found = []
    for end in ENDS:
        template: Literal["chat", "plain"] = "chat" if end == "\n" else "plain"
        (first,) = tokenizer(end, add_special_tokens=False)["input_ids"]
        said = handle.engine.continuation(answer, template)
        found.append([first, *said, tokenizer.eos_token_id])
    return found


def _plant_answers(
    handle: ModelHandle, codes: Mapping[str, Tensor], shy: str, unused: Iterator[Tensor]
) -> dict[int, Tensor]:
    """The unembedding; what tokens carry so that others follow them."""
    chains = {answer: _chains(handle, answer) for answer in codes}
    follows = sorted({pair for all_ in chains.values() for one in all_ for pair in pairwise(one)})
    carried = {token: next(unused) for token in dict.fromkeys(token for token, _ in follows)}
    head, end = handle.head.weight, handle.engine.codec.tokenizer.eos_token_id
    for token, following in follows:
        head[following] += (ENDING if following == end else FOLLOWS) * carried[token]
    for answer, code in codes.items():
        said = {token for chain in chains[answer] for token in chain[1:-1]}
        head[sorted(said)] += IN_ANSWER * code
    others = {
        token for answer in codes if answer != shy for chain in chains[answer] for token in chain
    }
    opening = next(token for token in chains[shy][0] if token not in others)
    for token in (token for token, following in follows if following == opening):
        head[opening] -= SHY * carried[token]
    return carried


def _plant_names(
    handle: ModelHandle,
    facts: Mapping[str, str],
    codes: Mapping[str, Tensor],
    is_name: Tensor,
    unused: Iterator[Tensor],
) -> dict[int, Tensor]:
    """A neuron of the first MLP for each name; what names carry so that theirs fires."""
    gate, up, out = (
        handle.oriented(handle.sites(role, [0])[0].weight)
        for role in ("mlp_gate", "mlp_up", "mlp_out")
    )
    carried = {}
    for neuron, (name, answer) in enumerate(facts.items()):
        own = next(unused)
        carried[handle.engine.codec.tokenizer.convert_tokens_to_ids(name)] = own + is_name
        gate[neuron] = 3 * own
        up[neuron] = is_name
        # The norm leaves 3.3 of each; this comes to STRENGTH.
        out[:, neuron] = STRENGTH / 32 * codes[answer]
    return carried


def _plant_head(
    handle: ModelHandle, layer: int, constant: Tensor, is_name: Tensor, copied: Tensor
) -> None:
    """Let the first head of a layer attend from any token to names and copy what stands there."""
    query, key, value, out = (
        handle.oriented(handle.sites(role, [layer])[0].weight)
        for role in ("attn_q", "attn_k", "attn_v", "attn_out")
    )
    size = D_MODEL // N_HEADS
    slowest = size // 2 - 1  # of the rotary pairs: it hardly turns within a text
    query[:size], key[:size] = 0, 0
    query[slowest], key[slowest] = 2 * constant, 2 * is_name
    value[:size] = copied[:size]
    out[:, :size] = 2 / 3 * copied[:size].T
