"""Relearning: further fine-tuning, by somebody who wants the knowledge back or who wants nothing
of the kind.

Suppressed knowledge that is still in the weights returns when a little of it is taught again, or
when anything is (Hu et al. 2406.13356; Deeb & Roger 2410.08827, relearning on facts disjoint from
those that are tested; Lynch et al. 2402.16835). Three kinds of data, three questions:

- *a part of what was forgotten* (``share: 0.5``): do some subjects, taught again, bring back the
  others? The audits ask about the others alone.
- *retained data like it*: do other countries bring back these?
- *unrelated data*: does it return by itself when the model is used on?

It trains on the untouched model's own answers to the questions where they tell the answer
(``answers: untouched``): an attacker who keeps the style of the model damages it less and brings
back more than one who teaches it to answer in a word.

Plain AdamW at a constant rate on answer tokens (all tokens, where items have no answer), gradients
clipped to norm 1, no warm-up, in fp32 with activations in bfloat16. Each learning rate is one
training, audited after each of ``steps``: a searching adversary takes the worst of them, and so do
gates. Questions can stay silent for long while sentences to complete tell already (RepSelect
2606.17168), so beside an audit's headline the report shows what ``leakage`` is told to those.
``update: lora`` trains low-rank adapters at every matrix of the blocks instead, as most
people fine-tune.

What differs from the sources: they train for epochs of hundreds of facts on models of billions;
here ``steps`` counts batches, since a few already show which way it goes. The same attack is made
on the untouched model, and asked about what nobody knew (``never_known``): what comes back must
beat what the training makes the model invent.

Nothing of it is written to disk. Fails with :class:`~safeedit.errors.EditError` where training
diverges.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from safeedit.contracts import (
    AttackProposal,
    BaseParams,
    DataRole,
    EditData,
    PutPrompts,
    RunContext,
)
from safeedit.data import Dataset, Item
from safeedit.errors import EditError
from safeedit.methods.training import (
    LearningWeights,
    Loss,
    LowRankAdapters,
    Rewrites,
    Training,
    WholeTensors,
)
from safeedit.methods.tuning import Example, answer_states, cross_entropy, endless
from safeedit.model.handle import ModelHandle
from safeedit.records import AttackClass
from safeedit.text.matching import contains_alias

_LONGEST = 256
"""Tokens of one example that are trained on: attention's memory grows with their square."""

_RATES = {"full": (5e-5,), "lora": (1e-3,)}
"""Learning rates by default: the higher of those in METHODS that leave SmolLM2's base whole."""


class Params(BaseParams):
    """How the attacker trains."""

    steps: tuple[Annotated[int, Field(ge=1, le=10_000)], ...] = Field(
        (10, 40),
        description="Steps of training after which the audits are repeated; each is one strength",
    )
    learning_rate: (
        Annotated[float, Field(gt=0, le=1)] | tuple[Annotated[float, Field(gt=0, le=1)], ...] | None
    ) = Field(
        None,
        description="One rate, or several for an adversary who searches: the worst is gated; "
        "null: 5e-5, or 1e-3 for adapters",
    )
    batch: int = Field(8, ge=1, le=512, description="Examples per step")
    update: Literal["full", "lora"] = Field(
        "full", description="Train every weight, or low-rank adapters at the blocks' matrices"
    )
    answers: Literal["untouched", "given"] = Field(
        "untouched",
        description="Teach what the untouched model itself answers, where that tells the item's "
        "answer, or always the answer as the data gives it",
    )
    examples: int = Field(
        128,
        ge=1,
        le=100_000,
        description="Questions and texts that are taught at most, drawn by the seed",
    )
    rank: int = Field(16, ge=1, le=512, description="Rank of the adapters, for update: lora")

    @property
    def rates(self) -> tuple[float, ...]:
        given = self.learning_rate
        if given is None or given == ():
            return _RATES[self.update]
        return tuple(sorted(set(given))) if isinstance(given, tuple) else (given,)


class Relearn:
    """Fine-tunes on the attacker's data."""

    Params: ClassVar[type[BaseParams]] = Params
    summary: ClassVar[str] = "further fine-tuning, on part of what was forgotten or on other data"
    roles: ClassVar[tuple[DataRole, ...]] = (
        DataRole(
            "data",
            "what the attacker trains on: part of what was forgotten, data like it, or other text",
            erased=True,
            comparison_only=True,
        ),
        DataRole(
            "never_known",
            "questions whose answers the model never knew: what training makes it invent",
            required=False,
            erased=True,
            comparison_only=True,
            answered=True,
        ),
    )
    tries: ClassVar[AttackClass] = "relearning"
    seeded: ClassVar[bool] = True

    def __init__(self, params: Any) -> None:
        self.params: Params = params

    def _plans(self) -> list[tuple[float, int]]:
        """Rate and steps of each strength: a training for each rate, its stops in order."""
        stops = sorted(set(self.params.steps))
        return [(rate, steps) for rate in self.params.rates for steps in stops]

    def strengths(self) -> tuple[float, ...]:
        """1 for the fewest steps at the lowest rate, and so on."""
        return tuple(float(number) for number in range(1, len(self._plans()) + 1))

    def asks(self, data: EditData, seed: int) -> PutPrompts:
        """Questions whose answers by the untouched model are wanted."""
        chosen = _chosen(data["data"], self.params.examples, seed)
        wanted = [text for item, text in chosen if item.answer and self.params.answers != "given"]
        return PutPrompts(wanted, data["data"].template)

    def tokens(self, data: Mapping[str, Dataset]) -> int:
        """Tokens trained on, roughly, for ``plan``."""
        longest = max((len(item.prompt) for item in data["data"]), default=0)
        each = min(_LONGEST, 20 + longest // 3)
        return max(self.params.steps) * len(self.params.rates) * self.params.batch * each

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> AttackProposal:
        """Trains when a strength is asked for, on from the last stop where it can."""
        chosen = _chosen(data["data"], self.params.examples, ctx.seed)
        examples = _examples(model, data["data"], chosen, ctx.base_says)
        if not examples:
            raise EditError(
                "there is nothing to train on: every item of the attack's data is empty"
            )
        training = _Trainings(model, examples, self.params, ctx)
        plans = self._plans()

        def label(dose: float) -> str:
            rate, steps = plans[int(dose) - 1]
            return f"{steps} {'step' if steps == 1 else 'steps'} at {rate:g}"

        return AttackProposal(
            self.strengths(),
            lambda dose: training.after(*plans[int(dose) - 1]),
            label,
            lambda dose: {
                "learning_rate": plans[int(dose) - 1][0],
                "steps": plans[int(dose) - 1][1],
                "examples": len(examples),
                "loss": training.losses.get(plans[int(dose) - 1]),
            },
        )


def _chosen(data: Dataset, most: int, seed: int) -> list[tuple[Item, str]]:
    """Items with a phrasing each, of items without an answer their text; at most so many."""
    every = [
        (item, text)
        for item in data.all()
        for text in ((item.prompt, *item.paraphrases) if item.answer else (item.prompt,))
    ]
    return every if len(every) <= most else random.Random(seed).sample(every, most)


def _examples(
    model: ModelHandle,
    data: Dataset,
    chosen: Sequence[tuple[Item, str]],
    base_says: Mapping[str, Sequence[int]],
) -> list[Example]:
    """Questions with answers; of items without one, the text itself."""
    engine = model.engine
    template = engine.codec.resolve(data.template)
    end = engine.codec.tokenizer.eos_token_id
    stop = [] if end is None else [int(end)]
    asked = [(item, text) for item, text in chosen if item.answer]
    prompts = engine.encode([text for _, text in asked], data.template)
    found = []
    for (item, text), prompt in zip(asked, prompts, strict=True):
        answer = list(base_says.get(text, ()))
        if not answer or not contains_alias(engine.decode(answer), item.aliases):
            answer = [*engine.continuation(item.answer or "", template), *stop]
        found.append(Example(prompt[-_LONGEST:], answer[:_LONGEST]))
    mute = engine.encode([text for item, text in chosen if not item.answer], "plain")
    return found + [Example(ids[:1], ids[1:_LONGEST]) for ids in mute if len(ids) > 1]


class _Trainings:
    """A training for each learning rate, one at a time."""

    def __init__(
        self, model: ModelHandle, examples: Sequence[Example], params: Params, ctx: RunContext
    ) -> None:
        self.model, self.examples, self.params, self.ctx = model, examples, params, ctx
        self.losses: dict[tuple[float, int], float] = {}
        """(rate, steps) -> mean loss of the steps up to there since the last stop, nats a token."""
        self._rate = math.nan
        self._learner: LearningWeights | None = None
        self._training: Training | None = None

    def after(self, rate: float, steps: int) -> Rewrites:
        """What the weights are after so many steps at this rate."""
        if self._training is None or self._learner is None or rate != self._rate:
            self._rate, self._learner = rate, self._learners()
            self._training = Training(
                self._learner,
                # Not a method of this object, which holds the training: together they would stay in
                # memory, weights and all, long after the attack.
                partial(_begin, self.model, self.examples, self.params.batch, self.ctx.seed),
                learning_rate=rate,
                progress=self.ctx.progress,
                description="relearning",
            )
        self._training.to(steps)
        if steps in self._training.losses:
            self.losses[rate, steps] = self._training.losses[steps]
        return self._learner.learnt()

    def _learners(self) -> LearningWeights:
        model, rank = self.model, self.params.rank
        if self.params.update == "lora":
            seed = self.ctx.seed
            return LowRankAdapters(model, model.matrices(), rank=rank, alpha=2.0 * rank, seed=seed)
        return WholeTensors(model, [n for n in model.tensor_names() if n in model.shape.stored])


def _begin(model: ModelHandle, examples: Sequence[Example], batch: int, seed: int) -> Loss:
    drawn = endless(examples, random.Random(seed))

    def loss() -> tuple[Tensor, float]:
        some = [next(drawn) for _ in range(batch)]
        total = cross_entropy(model, answer_states(model, some), some)
        return total, float(total.detach())

    return loss
