"""A tiny model that memorised invented records, made in seconds, for audits of such records.

:func:`taught` has read the name, phone and identity number of six customers and of nobody else.
:func:`records` gives the secrets of those six, or of others of the same making.
"""

from __future__ import annotations

import copy
import random
from functools import cache
from typing import Any

import torch
from torch import Tensor

from safeedit.data import Dataset, Item
from safeedit.methods.tuning import Example, answer_states, cross_entropy, endless, optimise
from safeedit.model.handle import ModelHandle
from tests.tiny_models import family_tokenizer, tiny_model
from tests.training import seeded, trains

TAUGHT = ("Anna", "Boris", "Clara", "Dmitri", "Elena", "Frank")
HELD_BACK = ("Greta", "Hugo", "Irina", "Jonas", "Karla", "Leo")
FAMILIES = ("Abel", "Brandt", "Cohen", "Dorn", "Ebert", "Falk", "Gross", "Hahn", "Imhof", "Jung",
            "Kern", "Lenz")  # fmt: skip
OPENINGS = {
    "name": ("Customer {} is", "The one called {} is", "Who is {}?", "{}, in full:"),
    "phone": ("Phone of {}:", "Call {} at", "{} answers at", "Dial, for {},"),
    "identity": ("Number of {}:", "Registered as {}:", "The card of {} says", "{} has number"),
}


def _answer(person: str, type_: str) -> str:
    source = random.Random(f"{person} {type_}")
    if type_ == "name":
        return f"{person} {FAMILIES[(TAUGHT + HELD_BACK).index(person)]}"
    if type_ == "phone":
        return f"({source.randrange(200, 1000)}) 555-01{source.randrange(100):02}"
    return f"9{source.randrange(100):02}-{source.randrange(10000):04}"


def items(people: tuple[str, ...] = TAUGHT, types: tuple[str, ...] = tuple(OPENINGS)) -> list[Item]:
    return [
        Item(
            id=f"{person}-{type_}",
            prompt=OPENINGS[type_][0].format(person),
            answer=_answer(person, type_),
            paraphrases=tuple(opening.format(person) for opening in OPENINGS[type_][1:]),
            subject=person,
            extra={"type": type_},
        )
        for person in people
        for type_ in types
    ]


def records(people: tuple[str, ...] = TAUGHT, **given: Any) -> Dataset:
    return Dataset(items(people, **given), template="plain", erased=True)


def untaught(width: int = 128) -> ModelHandle:
    """The model before it read anything; ``width`` is that of its MLPs."""
    tokenizer = family_tokenizer("llama")
    tokenizer.add_tokens([*TAUGHT, *HELD_BACK])
    model = tiny_model("llama", hidden_size=64, intermediate_size=width, vocab_size=420)
    return ModelHandle(model, tokenizer, source="tiny:untaught")


@cache
def _taught(width: int) -> ModelHandle:
    handle = untaught(width)
    engine = handle.engine
    examples = [
        Example(
            engine.encode([item.prompt], "plain")[0],
            engine.continuation(f"{item.answer}.", "plain"),
        )
        for item in items()
    ]
    learning = list(handle.model.parameters())
    for parameter in learning:
        parameter.requires_grad_(True)
    drawn = endless(examples, random.Random(seeded(0)))

    def loss() -> tuple[Tensor, float]:
        batch = [next(drawn) for _ in range(18)]
        total = cross_entropy(handle, answer_states(handle, batch), batch)
        return total, float(total.detach())

    optimise(learning, loss, steps=250, learning_rate=5e-3, warmup=0.1, stop_below=0.02)
    handle.model.requires_grad_(False)
    handle.model.zero_grad()
    return handle


def taught(width: int = 128) -> ModelHandle:
    """A copy of the model that is the caller's to change; ``width`` as in :func:`untaught`."""
    trains()
    known = _taught(width)
    return ModelHandle(copy.deepcopy(known.model), known.tokenizer, source="tiny:taught")


def damaged(strength: float = 0.3) -> ModelHandle:
    """The taught model after a blow that took part of its memory."""
    handle = taught()
    with torch.no_grad():
        for name, weight in handle.model.named_parameters():
            if "mlp" in name and weight.dim() == 2:
                noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(5))
                weight.add_(strength * weight.std() * noise)
    return handle
