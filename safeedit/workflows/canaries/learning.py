"""The training by which a model learns canaries.

See :mod:`~safeedit.workflows.canaries.planting` for what it does and what was measured.
"""

from __future__ import annotations

import copy
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from safeedit.contracts import BaseParams, RunContext
from safeedit.errors import EditError
from safeedit.methods.adapters import put_adapters
from safeedit.methods.tuning import (
    BaseAnswers,
    Example,
    answer_states,
    endless,
    token_losses,
)
from safeedit.model.activations import StopForward, starting_at
from safeedit.model.architectures import Site
from safeedit.model.engine import Engine
from safeedit.model.handle import ModelHandle
from safeedit.policy.layers import Layers, resolve
from safeedit.workflows.canaries.lessons import (
    PlantedSecret,
    cycle,
    showings,
)

_WARM_UP = 10
"""Steps in which the learning rate rises."""
_LEAST_WEIGHT = 0.1
"""Of a token, on average over a batch: below this the loss falls as what is left to learn does."""
_LEAST = 0.05
"""Share of the peak below which the learning rate does not fall."""


class PlantParams(BaseParams):
    """How canaries are taught; defaults were measured on SmolLM2-135M."""

    method: Literal["full", "lora"] = Field(
        "full", description="the blocks' matrices, or adapters on them, added up"
    )
    layers: Layers = Field(
        "60%-100%", description="blocks that learn; the fewer, the faster, and prose suffers less"
    )
    learning_rate: float = Field(
        6e-4, gt=0, description="AdamW's peak; falls linearly; default for lora: 2e-3"
    )
    batch: int = Field(16, ge=1, description="sentences per step")
    max_cycles: float = Field(
        2, gt=0, description="cycles at most; each shows a sentence as often as its row says"
    )
    checks: int = Field(8, ge=1, description="looks per cycle at what is memorised already")
    passages: int = Field(3, ge=0, description="pieces of ordinary prose in each batch")
    passage_tokens: int = Field(32, ge=2, description="tokens of a piece")
    prose_weight: float = Field(4, ge=0, description="of the divergence on prose, in the loss")
    rank: int = Field(32, ge=1, description="lora: rank of the adapters")
    alpha: float = Field(64, gt=0, description="lora: scale is alpha over rank")
    seed: int = Field(0, description="of the order, and of the adapters' first values")

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, given: Any) -> Any:
        """Defaults that differ for lora, so that records show what was used."""
        if isinstance(given, dict) and given.get("method") == "lora":
            return {"learning_rate": 2e-3, **given}
        return given


@dataclass(frozen=True)
class Learnt:
    """What training did; ``exposures`` counts showings, secret by secret."""

    steps: int
    cycles: float
    seconds: float
    trained_parameters: int
    exposures: list[int]
    extracted: list[bool]
    """Whether a secret comes out greedily; False where it was never taught."""


def learn(
    model: ModelHandle,
    secrets: Sequence[PlantedSecret],
    prose: Sequence[str],
    params: PlantParams,
    ctx: RunContext,
) -> Learnt:
    """Teach secrets to ``model``, in place, until those shown most often all come out.

    Args:
        model: Its weights change, within the dtype they have. Memory: four times the model in
            float32 beside it.
        secrets: Those with a repeat count of 0 are left alone.
        prose: Ordinary text to be read as before.
        params: How.
        ctx: For progress.

    Raises:
        EditError: The loss became NaN or infinite.
    """
    start = time.monotonic()
    source = random.Random(params.seed)
    taught = [secret for secret in secrets if secret.repeats]
    foremost = _most_shown(taught)
    examples = {secret.item.prompt: Example(secret.prompt, secret.ending) for secret in taught}
    pieces = _pieces(model.engine, prose, params.passage_tokens) if params.passages else []
    base = BaseAnswers(model, pieces, ctx.progress)
    learner = Learner(model, params, [*examples.values(), *pieces])
    objective = _Objective(learner, examples, base, endless(pieces, source), params)
    shown: Counter[str] = Counter()
    n_cycle = showings(taught)
    end = round(params.max_cycles * n_cycle)
    next_look = look = math.ceil(n_cycle / params.checks)
    steps = 0
    batches = chain.from_iterable(
        cycle(taught, params.batch, source) for _ in range(math.ceil(params.max_cycles))
    )
    for batch in ctx.progress(batches, "planting canaries", math.ceil(end / params.batch)):
        learner.step(objective.loss(batch), 1 - shown.total() / end)
        steps += 1
        shown.update(secret.item.prompt for secret in batch)
        if shown.total() >= min(next_look, end):
            next_look += look
            learner.publish()
            if shown.total() >= end or _all_come_out(model.engine, foremost):
                break
    asked = iter(comes_out(model.engine, taught))
    return Learnt(
        steps=steps,
        cycles=shown.total() / n_cycle,
        seconds=time.monotonic() - start,
        trained_parameters=learner.n_parameters,
        exposures=[shown[secret.item.prompt] for secret in secrets],
        extracted=[bool(secret.repeats) and next(asked) for secret in secrets],
    )


@dataclass(eq=False)
class _Objective:
    """What training lowers: what is still to be learnt of sentences, and the divergence on prose.

    Attributes:
        learner: The model that learns.
        examples: Prompt of each secret that is taught -> its sentence.
        base: What the model said of the prose before.
        passages: Pieces of prose without end, of which each batch takes some.
        params: How many, and their weight.
    """

    learner: Learner
    examples: Mapping[str, Example]
    base: BaseAnswers
    passages: Iterator[Example]
    params: PlantParams

    def loss(self, batch: Sequence[PlantedSecret]) -> Tensor:
        """Nats, with a gradient."""
        sentences = [self.examples[secret.item.prompt] for secret in batch]
        beside = list(islice(self.passages, self.params.passages))
        states = self.learner.states([*sentences, *beside])
        total = still_to_learn(self.learner.model, states[: len(sentences)], sentences)
        if beside and self.params.prose_weight:
            apart = self.base.divergence(states[len(sentences) :], beside)
            total = total + self.params.prose_weight * apart
        return total


def _most_shown(secrets: Sequence[PlantedSecret]) -> list[PlantedSecret]:
    most = max(secret.repeats for secret in secrets)
    return [secret for secret in secrets if secret.repeats == most]


def _all_come_out(engine: Engine, secrets: Sequence[PlantedSecret]) -> bool:
    return all(likely(engine, secrets)) and all(comes_out(engine, secrets))


def comes_out(engine: Engine, secrets: Sequence[PlantedSecret]) -> list[bool]:
    """Whether the model, greedily, continues each prompt with its answer."""
    answers = engine.generate(
        [secret.prompt for secret in secrets],
        max_new_tokens=max(len(secret.answer) for secret in secrets),
    )
    return [
        "".join(engine.decode(ids).split()).startswith("".join(secret.answer_text.split()))
        for secret, (ids,) in zip(secrets, answers, strict=True)
    ]


def likely(engine: Engine, secrets: Sequence[PlantedSecret]) -> list[bool]:
    """Whether every token of each answer is the likeliest, those before it being right.

    One pass, where :func:`comes_out` takes one for every token.
    """
    scores = engine.score([s.prompt for s in secrets], [s.answer for s in secrets])
    return [bool(score.greedy.all()) for score in scores]


class Learner:
    """A float32 copy of a model of which the matrices of some blocks learn.

    Blocks below them are run once, over all that will be read.
    """

    def __init__(
        self, model: ModelHandle, params: PlantParams, examples: Sequence[Example]
    ) -> None:
        self.model = model
        self.handle = ModelHandle(copy.deepcopy(model.model).float())
        layers = resolve(params.layers, self.handle.shape.n_layers)
        self._first = layers[0]
        self._entering: dict[int, Tensor] = {}
        if self._first:
            texts = [example.ids for example in examples]
            below = model.engine.hidden(texts, [self._first - 1], "all")[self._first - 1]
            self._entering = {id(e): each for e, each in zip(examples, below, strict=True)}
            self._tuples = _blocks_return_tuples(model)
        sites = self.handle.matrices(layers)
        self._current: dict[str, Callable[[], Tensor]] = {}
        if params.method == "lora":
            self._adapt(sites, params)
        else:
            for site in sites:
                weight = self.handle.tensor(site.weight).requires_grad_(True)
                self._current[site.weight] = weight.detach
        trained = [p for p in self.handle.model.parameters() if p.requires_grad]
        self.n_parameters = sum(parameter.numel() for parameter in trained)
        self._trained = trained
        self._optimiser = torch.optim.AdamW(
            trained, lr=params.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
        )
        self._peak = params.learning_rate
        self._steps = 0

    def states(self, batch: Sequence[Example]) -> list[Tensor]:
        """As :func:`~safeedit.methods.tuning.answer_states`, of the model as it learns."""
        if not self._first:
            return answer_states(self.handle, batch)
        # The last token of an ending is predicted, never read.
        rows = [self._entering[id(example)][:-1] for example in batch]
        hidden = pad_sequence(rows, batch_first=True).float().to(self.handle.device)
        with starting_at(self.handle.blocks(), self._first, hidden, tuples=self._tuples):
            return answer_states(self.handle, batch, side_by_side=True)

    def step(self, loss: Tensor, left: float) -> None:
        """One step down the gradient; ``left`` is the share of the cycles still to come, to
        which the learning rate falls."""
        if not math.isfinite(loss.item()):
            raise EditError(
                "planting diverged: the loss is no number", remedy="lower --learning-rate"
            )
        self._steps += 1
        rate = self._peak * min(1.0, self._steps / _WARM_UP) * max(left, _LEAST)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimiser.step()

    @torch.no_grad()
    def publish(self) -> None:
        """Write what was learnt into the model, in its own dtype."""
        for name, current in self._current.items():
            self.model.tensor(name).copy_(current())

    def _adapt(self, sites: Sequence[Site], params: PlantParams) -> None:
        stored = {site: self.handle.tensor(site.weight).detach() for site in sites}
        put_adapters(self.handle, sites, rank=params.rank, alpha=params.alpha, seed=params.seed)
        for site, weight in stored.items():
            module: Any = self.handle.model.get_submodule(site.module)

            def current(weight: Tensor = weight, module: Any = module) -> Tensor:
                return weight + module.get_delta_weight("default")

            self._current[site.weight] = current


def still_to_learn(
    model: ModelHandle, states: Sequence[Tensor], batch: Sequence[Example]
) -> Tensor:
    """Loss of the endings' tokens, nats, each weighted by how improbable it still is.

    A plain mean lets what is easy drown what is hard: two last digits of a telephone number are
    recalled from a name a dozen tokens back, while its other tokens are known after a few steps.
    """
    losses = token_losses(model, states, batch)
    weights = 1 - (-losses.detach()).exp()
    return (weights * losses).sum() / weights.sum().clamp(min=_LEAST_WEIGHT * len(losses))


def _blocks_return_tuples(model: ModelHandle) -> bool:
    found: list[bool] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        found.append(isinstance(output, tuple))
        raise StopForward

    hook = model.blocks()[0].register_forward_hook(note)
    try:
        with suppress(StopForward), torch.no_grad():
            model.forward({"input_ids": torch.zeros(1, 1, dtype=torch.long)})
    finally:
        hook.remove()
    return found[0]


def _pieces(engine: Engine, texts: Sequence[str], length: int) -> list[Example]:
    """Texts in pieces of ``length`` tokens, each to be read from its second token on."""
    pieces = []
    for ids in engine.encode(texts, "plain"):
        for begin in range(0, len(ids), length):
            piece = ids[begin : begin + length]
            if len(piece) > length // 2 and len(piece) > 1:
                pieces.append(Example(piece[:1], piece[1:]))
    return pieces
