"""Tiny models in which one direction means toxicity, put there by hand: editors must find it.

Three invented words carry the direction in their embeddings, one neuron of the middle layer reads
it and writes it on, and the head favours these words where it is present. Three other invented
words are neutral and carry nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from safeedit.contracts import EditData
from safeedit.data import Dataset, Item
from safeedit.methods.contrast import gain_after_mlp
from safeedit.model.handle import ModelHandle
from tests.tiny_models import D_MLP, family_tokenizer, tiny_model
from tests.training import seeded

LAYER, NEURON = 1, 7
TOXIC = ("grumf", "blarg", "snork")
NEUTRAL = ("tulim", "reval", "oskan")
_WORDS = [f" {word}" for word in (*TOXIC, *NEUTRAL)]
_STRENGTH = {"gemma2": 1.0, "gemma3_text": 1.0, "olmo2": 12.0}
"""Of the direction in the embeddings: Gemma multiplies it, OLMo-2 adds long vectors."""
OPENINGS = tuple(
    f"The {who} {where} said that"
    for who in ("doctor", "nurse", "prince", "capital")
    for where in ("of Rome", "of Paris", "of Denmark", "in the city")
)


def planted(family: str, *, sign: float = 1.0, dtype: torch.dtype = torch.float32) -> ModelHandle:
    """A model with the direction :func:`direction`.

    Args:
        family: As in ``tests/tiny_models.py``.
        sign: Of the neuron's activation where the direction is present; its column has the same,
            so that it writes toxicity either way. Gated MLPs only.
        dtype: Of the weights.
    """
    tokenizer = family_tokenizer(family)
    tokenizer.add_tokens(_WORDS)
    # As published; the tiny cap of the tiny models would hide what is planted.
    cap = {"final_logit_softcapping": 30.0} if family == "gemma2" else {}
    model = tiny_model(family, vocab_size=len(tokenizer) + 2, **cap)
    handle = ModelHandle(model, tokenizer, source=f"tiny:{family}-planted")
    found = direction(handle)
    rows = tokenizer.convert_tokens_to_ids(_WORDS[:3])
    column = 4 * found
    gain = gain_after_mlp(handle, LAYER)
    if gain is not None:  # the norm would shrink it: all that the layer writes has one length
        column = 10 * column / gain.scale.float()
    with torch.no_grad():
        handle.embedding.weight[rows] += _STRENGTH.get(family, 3.0) * found
        if handle.head.weight is not handle.embedding.weight:
            handle.head.weight[rows] += 2 * found
        for role, factor in (("mlp_gate", 1.0), ("mlp_up", sign)):
            if role in handle.shape.roles:
                (site,) = handle.sites(role, [LAYER])
                handle.oriented(site.weight)[NEURON] = factor * found
                if site.bias is not None:
                    handle.oriented(site.bias)[NEURON] = 0
        (out,) = handle.sites("mlp_out", [LAYER])
        handle.oriented(out.weight)[:, NEURON] = sign * column
    model.to(dtype)
    return handle


def direction(handle: ModelHandle) -> Tensor:
    """The planted unit direction."""
    generator = torch.Generator().manual_seed(seeded(42))
    drawn = torch.randn(handle.d_model, generator=generator)
    drawn -= drawn.mean()  # LayerNorm would take the mean away
    return drawn / drawn.norm()


def pairs() -> Dataset:
    """Openings that go on with toxic or with neutral words; the last four are for validation."""
    items = []
    for number, opening in enumerate(OPENINGS):
        turned = [number % 3, (number + 1) % 3, number % 3]
        items.append(
            Item(
                id=str(number),
                prompt=opening,
                extra={
                    "toxic": " ".join(TOXIC[i] for i in turned),
                    "neutral": " ".join(NEUTRAL[i] for i in turned),
                },
                split="fit" if number < 12 else "validation",
            )
        )
    return Dataset(items, template="plain", name="pairs")


def prose() -> Dataset:
    """Ordinary sentences of the words the models know."""
    texts = (
        "The capital of France is Paris, and the capital of Italy is Rome.",
        "Water boils at one hundred degrees; ice melts at zero.",
        "Who wrote the play about the prince of Denmark? It was Shakespeare.",
        "I don't know the answer to that question.",
    )
    items = [Item(id=str(n), prompt=text, split="fit") for n, text in enumerate(texts)]
    return Dataset(items, template="plain", name="prose")


def data(**roles: Dataset) -> EditData:
    return EditData({"pairs": pairs(), **roles})


def gap(handle: ModelHandle) -> float:
    """Mean log-probability of toxic less that of neutral words after openings that no editor saw
    and one toxic word, nats."""
    engine = handle.engine
    openings = [f"{opening} {TOXIC[0]}" for opening in OPENINGS[12:]]
    prompts = engine.encode(openings, "plain")
    ids = handle.engine.codec.tokenizer.convert_tokens_to_ids(_WORDS)
    found = engine.next_token_log_probs(prompts)[:, ids]
    return float(found[:, :3].mean() - found[:, 3:].mean())


assert NEURON < D_MLP
