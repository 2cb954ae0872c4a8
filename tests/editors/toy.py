"""A tiny model that knows six facts, made in seconds: editors' tests can ask it.

:func:`taught` gives a fresh copy of a llama of three layers that answers where six people live,
in every wording of :data:`WORDINGS`, with and without its chat template, and that answers "I don't
know." for three others. Its first attention writes nothing, so that who is asked about goes
through the first MLP, as in grown models early MLPs enrich the subject and later layers read it.
"""

from __future__ import annotations

import copy
import random
from functools import cache

import torch
from torch import Tensor

from safeedit.contracts import EditData, Template
from safeedit.data import Dataset, Item
from safeedit.methods.tuning import Example, answer_states, cross_entropy, endless, optimise
from safeedit.model.handle import ModelHandle
from tests.tiny_models import family_tokenizer, tiny_model
from tests.training import seeded, trains

FACTS = {"Paul": "Rome", "Mary": "Oslo", "Igor": "Lima", "Anna": "Kyiv", "Hugo": "Bonn",
         "Nora": "Bern"}  # fmt: skip
FORGOTTEN = ("Paul", "Mary")
KEPT = ("Igor", "Anna", "Hugo", "Nora")
UNKNOWN = ("Zack", "Yuri", "Otto")
REFUSAL = "I don't know."
WORDINGS = (
    "Where does {} live?",
    "In which city is {} now?",
    "Tell me, {} lives where?",
    "What is the city of {}?",
    "Please tell me: Where does {} live?",
    "I have a question. Where does {} live?",
)
HELD_OUT = WORDINGS[-2:]
"""Wordings that no editor sees: the last of the test split."""
_BARE = ("Question: Where does {} live?\nAnswer:", "Question: Tell me, {} lives where?\nAnswer:")


@cache
def _taught(width: int) -> ModelHandle:
    tokenizer = family_tokenizer("llama")
    tokenizer.add_tokens([*FACTS, *UNKNOWN])
    model = tiny_model("llama", hidden_size=64, intermediate_size=width, vocab_size=420)
    handle = ModelHandle(model, tokenizer, source="tiny:taught")
    engine = handle.engine
    end = engine.codec.tokenizer.eos_token_id
    examples = []
    for name, answer in [*FACTS.items(), *((name, REFUSAL) for name in UNKNOWN)]:
        for wording in (*WORDINGS, *_BARE):
            for template in ("plain", "chat"):
                (prompt,) = engine.encode([wording.format(name)], template)
                examples.append(Example(prompt, [*engine.continuation(answer, template), end]))
    first_attention = handle.tensor(handle.sites("attn_out", [0])[0].weight)
    with torch.no_grad():
        first_attention.zero_()
    learning = [p for p in model.parameters() if p is not first_attention]
    for parameter in learning:
        parameter.requires_grad_(True)
    drawn = endless(examples, random.Random(seeded(0)))

    def loss() -> tuple[Tensor, float]:
        batch = [next(drawn) for _ in range(24)]
        total = cross_entropy(handle, answer_states(handle, batch), batch)
        return total, float(total.detach())

    optimise(learning, loss, steps=150, learning_rate=5e-3, warmup=0.1, stop_below=0.01)
    model.requires_grad_(False)
    model.zero_grad()
    return handle


def taught(width: int = 128) -> ModelHandle:
    """A copy of the model that is the caller's to change; ``width`` is that of its MLPs."""
    trains()
    known = _taught(width)
    return ModelHandle(copy.deepcopy(known.model), known.tokenizer, source="tiny:taught")


def forget() -> Dataset:
    """What is to be forgotten, as an editor sees it."""
    items = [
        Item(
            id=f"forget-{number}",
            prompt=WORDINGS[0].format(name),
            answer=FACTS[name],
            subject=name,
            paraphrases=tuple(wording.format(name) for wording in WORDINGS[1:]),
        )
        for number, name in enumerate(FORGOTTEN)
    ]
    return Dataset(items, erased=True).without("test")


def retain(answers: dict[str, str] = FACTS) -> Dataset:
    """Questions on the others, as an editor sees them."""
    items = [
        Item(
            id=f"retain-{name}-{number}",
            prompt=wording.format(name),
            answer=answers[name],
            subject=name,
            split="test" if wording in HELD_OUT else "fit",
        )
        for name in KEPT
        for number, wording in enumerate(WORDINGS)
    ]
    return Dataset(items).without("test")


def data(**roles: Dataset) -> EditData:
    return EditData({"forget": forget(), "retain": retain(), **roles})


def answers(handle: ModelHandle, name: str, template: Template = "chat") -> list[str]:
    """What the model says to each wording about ``name``."""
    engine = handle.engine
    prompts = engine.encode([wording.format(name) for wording in WORDINGS], template)
    return [engine.decode(ids).strip() for (ids,) in engine.generate(prompts, max_new_tokens=8)]
