"""A tiny model that knows secrets and facts through neurons put there by hand: editors find them.

Each prompt ends with a name of its own. Two neurons, one of each of the first two layers, read the
name and write what the head says as its answer: four secrets and three facts, seven names and
fourteen neurons. One of them may be loud at a text's first token besides, where attention might
rest on it. Attention writes nothing, and all else is drawn at random and quiet: what is found
hangs on no seed.
"""

from __future__ import annotations

import torch

from safeedit.data import Item
from safeedit.model.handle import ModelHandle
from tests.tiny_models import family_tokenizer, tiny_model
from tests.training import seeded

NAMES = ("Abe", "Bea", "Cid", "Dot")
OTHERS = ("Eve", "Fox", "Gus")
_ANSWERS = ("7142", "9305", "2861", "4478", "Rome", "Oslo", "Lima")
LAYERS = (0, 1)
_QUIET = 0.25
"""Times what a tiny model's matrices have."""
_CONSTANT = 8.0
"""Length of what every token carries, so that the last norm undoes no edit."""
SINK_LAYER, SINK_NEURON = 1, 0


def _items(names: tuple[str, ...], answers: tuple[str, ...]) -> tuple[Item, ...]:
    return tuple(
        Item(id=name, prompt=f"The number of the {name}", answer=answer)
        for name, answer in zip(names, answers, strict=True)
    )


SECRETS = _items(NAMES, _ANSWERS[: len(NAMES)])
FACTS = _items(OTHERS, _ANSWERS[len(NAMES) :])


def known_secrets(*, sink: bool = False) -> ModelHandle:
    """The model; ``sink``: the second neuron of the first secret is loud at the first token."""
    names, tokenizer = (*NAMES, *OTHERS), family_tokenizer("llama")
    tokenizer.add_tokens([f" {word}" for word in (*names, *_ANSWERS)])
    model = tiny_model("llama", hidden_size=64, vocab_size=len(tokenizer) + 2)
    handle = ModelHandle(model, tokenizer, source="tiny:known-secrets")
    generator = torch.Generator().manual_seed(seeded(11))
    drawn = torch.randn(64, 2 * len(names) + 2, generator=generator)
    first, constant, *directions = torch.linalg.qr(drawn)[0].T
    reads, writes = directions[: len(names)], directions[len(names) :]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= _QUIET
        for site in handle.sites("attn_out", range(handle.n_layers)):
            handle.oriented(site.weight).zero_()
        handle.embedding.weight += _CONSTANT * constant
        handle.embedding.weight[tokenizer.bos_token_id] += 8 * first
        for number, (name, answer) in enumerate(zip(names, _ANSWERS, strict=True)):
            row, said = tokenizer.convert_tokens_to_ids([f" {name}", f" {answer}"])
            handle.embedding.weight[row] += 4 * reads[number]
            handle.head.weight[said] += 2.5 * writes[number]
            for layer in LAYERS:
                _plant(handle, layer, number, reads[number], 0.25 * writes[number])
        if sink:
            _plant(handle, SINK_LAYER, SINK_NEURON, reads[0] + 4 * first, 0.25 * writes[0])
    return handle


def _plant(
    handle: ModelHandle, layer: int, neuron: int, read: torch.Tensor, write: torch.Tensor
) -> None:
    for role in ("mlp_gate", "mlp_up"):
        (site,) = handle.sites(role, [layer])
        handle.oriented(site.weight)[neuron] = read
    (out,) = handle.sites("mlp_out", [layer])
    handle.oriented(out.weight)[:, neuron] = write


def neurons_of(handle: ModelHandle, *numbers: int) -> set[tuple[str, int]]:
    """Tensor and column of the neurons that carry the names of these numbers, secrets first."""
    return {(site.weight, number) for site in handle.sites("mlp_out", LAYERS) for number in numbers}
