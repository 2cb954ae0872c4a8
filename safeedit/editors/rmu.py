"""RMU, representation misdirection: at forget texts, what a middle layer holds is led astray.

The MLP output matrices of a few layers are trained until the hidden states of forget texts lie
along one random direction, much longer than they are, while those of retain texts stay where the
base has them. Later layers then find nothing that they can read. What the texts share (the chat
template, first words that all begin with) is left alone.

The loss is ``mean |h - c u|^2 + retain_weight * mean |h - h_base|^2`` over tokens, in units of the
base's mean ``|h|^2``; ``u`` is a random unit vector with no negative entry, as published, and ``c``
is ``strength`` times the base's mean length of ``h``.

What departs from the reference code: it gives ``c`` in absolute units, which fit one model; it
divides by the number of tokens in a way that mixes the texts of a batch; it trains all parameters
unless told otherwise, here only the matrices named. Known weakness: one direction of the residual
stream undoes most of it.

Doses are steps of one training. Fails with :class:`~safeedit.errors.EditError` where it diverges.

Source: Li et al., "The WMDP Benchmark", ICML 2024 (arXiv 2403.03218), section 4: layers 5-7 of 32,
the states of layer 7, learning rate 5e-5, batch 4; lengths relative to the states' own are Huu-Tien
et al., 2024 (arXiv 2408.06223).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from safeedit.contracts import (
    BaseParams,
    DataRole,
    EditData,
    LayerShape,
    Proposal,
    RunContext,
    TensorPlan,
)
from safeedit.data import Dataset
from safeedit.errors import DataError
from safeedit.methods.answers import own_answers, shared_beginning, some, told_answers
from safeedit.methods.training import Checkpoints, Loss, Training, WholeTensors, stepwise_proposal
from safeedit.methods.tuning import endless
from safeedit.model.handle import ModelHandle
from safeedit.model.passes import block_outputs, padded_inputs
from safeedit.policy.layers import Layers, resolve

_OWN_TOKENS = 16
"""Tokens of the base's own answers that follow a retain question."""

Ids = list[int]


class RmuParams(BaseParams):
    """Parameters of RMU."""

    layers: Layers = Field(
        "15%-22%", description="MLP outputs that are trained; states are those after the last"
    )
    strength: float = Field(
        5.0, gt=0, description="length of the random direction, in lengths of the states there"
    )
    retain_weight: float = Field(30.0, gt=0, description="weight of keeping retain texts' states")
    retain_prompts: int = Field(100, ge=1, description="retain prompts used at most")
    learning_rate: float = Field(5e-4, gt=0, description="of AdamW (published: 5e-5)")
    batch: int = Field(4, ge=1, description="forget texts per step, and as many retain texts")
    doses: tuple[Annotated[int, Field(ge=1, le=10_000)], ...] = Field(
        (10, 20, 40, 80), min_length=1, description="steps of training, ascending"
    )


class Rmu:
    """See the module's docstring."""

    Params = RmuParams
    summary: ClassVar[str] = "leads a middle layer's states of forget texts astray"
    results: ClassVar[str] = "editors"
    measured: ClassVar[str] = (
        "Twelve facts on countries, five to twenty steps: 0.875 are told as before, 0.958 of "
        "near answers stay right; no dose forgets and spares."
    )
    roles: ClassVar[tuple[DataRole, ...]] = (
        DataRole("forget", "questions whose answers are to go", erased=True, answered=True),
        DataRole("retain", "questions whose answers must stay"),
    )

    def __init__(self, params: Any) -> None:
        self.params: RmuParams = params

    def touches(self, model: LayerShape) -> Sequence[TensorPlan]:
        """What the MLPs of the chosen layers write with; no bias."""
        return model.tensors("mlp_out", resolve(self.params.layers, model.n_layers))

    def tokens(self, data: Mapping[str, Dataset]) -> int:
        """Tokens trained on, roughly, for ``plan``."""
        return max(self.params.doses) * self.params.batch * 2 * 50

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        """Train when a dose is asked for, on from the last one where it can."""
        params = self.params
        forget = [example.ids for example in told_answers(model, data["forget"], ctx.progress)[0]]
        items = some(data["retain"], params.retain_prompts, ctx.seed)
        kept = own_answers(model, data["retain"], items, _OWN_TOKENS, ctx.progress)
        retain = [example.ids for example in kept]
        task = Misdirection(model, forget, retain, params, ctx)
        learner = WholeTensors(model, [plan.name for plan in self.touches(model.shape)])
        training = Training(
            learner,
            task.begin,
            learning_rate=params.learning_rate,
            progress=ctx.progress,
            description="leading states astray",
        )
        checkpoints = Checkpoints(training, learner, params.doses, lambda: None)
        notes = {"texts": len(forget), "tokens_left_alone": task.shared}
        return stepwise_proposal(
            "rmu", params, data["forget"], ctx, model.digest(), training, checkpoints, notes
        )


class Misdirection:
    """The loss, with what the base's states were.

    Args:
        model: Untouched at this time.
        forget: Token ids of each text.
        retain: Likewise.
        params: How.
        ctx: Seed and progress.

    Raises:
        DataError: There is no retain text, or nothing in which forget texts differ from others.
    """

    def __init__(
        self,
        model: ModelHandle,
        forget: Sequence[Ids],
        retain: Sequence[Ids],
        params: RmuParams,
        ctx: RunContext,
    ) -> None:
        self.model, self.params, self._seed = model, params, ctx.seed
        self.layer = resolve(params.layers, model.n_layers)[-1]
        self._forget, self._retain = list(forget), list(retain)
        if not retain:
            raise DataError(
                "the model answers no retain question: there is nothing to keep",
                remedy="give retain questions of 'split: fit' that it answers",
            )
        self.shared = max(1, shared_beginning([*forget, *retain]))
        """Tokens that all texts begin with, the first at least, which draws attention to itself."""
        self._base: dict[int, Tensor] = {}
        squares, lengths = list[Tensor](), list[Tensor]()
        for ids in ctx.progress(self._retain, "reading hidden states", len(retain)):
            (states,) = self.states([ids], gradients=False)
            self._base[id(ids)] = states.cpu()
        for states in [*self._base.values(), *self.states(self._forget[:64], gradients=False)]:
            squares.append((states**2).sum(-1).cpu())
            lengths.append(states.norm(dim=-1).cpu())
        self._unit = float(torch.cat(squares).mean())
        generator = torch.Generator().manual_seed(ctx.seed)
        direction = torch.rand(model.d_model, generator=generator)
        length = params.strength * float(torch.cat(lengths).mean())
        self.target = length * direction / direction.norm()
        """``(d_model,)`` where the states of forget texts are led."""

    def states(self, texts: Sequence[Ids], *, gradients: bool) -> list[Tensor]:
        """``(tokens, d_model)`` of each text after the layer, fp32, without what all share."""
        # A text that is all shared keeps its last token, so that none is empty.
        starts = [min(self.shared, len(ids) - 1) for ids in texts]
        with torch.autocast(self.model.device.type, torch.bfloat16):
            inputs = padded_inputs(texts)
            found = block_outputs(self.model, inputs, [self.layer], gradients=gradients)
        hidden = found[self.layer]
        return [
            hidden[row, start : len(ids)].float()
            for row, (ids, start) in enumerate(zip(texts, starts, strict=True))
        ]

    def begin(self) -> Loss:
        """The losses of a run, from its first batch on."""
        source, batch = random.Random(self._seed), self.params.batch
        to_lead, to_keep = endless(self._forget, source), endless(self._retain, source)

        def loss() -> tuple[Tensor, float]:
            led = torch.cat(self.states([next(to_lead) for _ in range(batch)], gradients=True))
            kept = [next(to_keep) for _ in range(batch)]
            states = torch.cat(self.states(kept, gradients=True))
            base = torch.cat([self._base[id(ids)] for ids in kept]).to(states.device)
            astray = ((led - self.target.to(led.device)) ** 2).sum(-1).mean() / self._unit
            held = ((states - base) ** 2).sum(-1).mean() / self._unit
            return astray + self.params.retain_weight * held, float(astray.detach())

        return loss
