"""The one trainer: some weights of a model learn step by step, and at any step it can be said what
they have become.

Relearning attacks and unlearning editors are the same thing with different losses. Both train,
stop, let somebody measure, and go on from there; the model itself is as it was whenever nobody
trains. Weights learn in fp32 whatever the model's dtype (steps smaller than bfloat16 can hold still
add up), activations are in bfloat16. AdamW without decay at a constant rate, gradients clipped to
norm 1. Weights that accelerate has spread over several GPUs learn where they lie.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from safeedit import __version__
from safeedit.contracts import (
    BaseParams,
    LayerShape,
    Progress,
    Proposal,
    RunContext,
    TensorPlan,
    silent,
)
from safeedit.data import Dataset
from safeedit.delta import Dense, LowRank, Origin, Update, WeightDelta
from safeedit.errors import EditError, UsageError
from safeedit.methods.adapters import adapters
from safeedit.methods.tuning import descend
from safeedit.model.architectures import Site
from safeedit.model.handle import ModelHandle
from safeedit.policy.layers import Layers, resolve

Loss = Callable[[], tuple[Tensor, float]]
"""The next batch's loss, and the part of it that is noted, nats."""

Rewrites = Mapping[str, Callable[[Tensor], Tensor]]
"""Tensor name -> what makes of the model's tensor, ``(out, in)``, the one that was learnt, fp32."""


_WARMUP = 5
"""Steps in which an editor's learning rate rises: Adam's first steps are as large as any."""


class LearningWeights(Protocol):
    """Weights that learn, kept while they are not in the model."""

    def put(self) -> AbstractContextManager[Sequence[nn.Parameter]]:
        """Within it, the model works with them, and gradients reach them; the model's own are back
        in place afterwards."""
        ...

    def learnt(self) -> Rewrites:
        """What they have become."""
        ...

    def updates(self) -> Mapping[str, Update]:
        """The same as changes of the model, as they come to be in its dtype."""
        ...

    def begin_again(self) -> None:
        """Lose what was learnt."""
        ...


class Stepwise(Protocol):
    """Something that is trained step by step and stops where it is told to."""

    losses: dict[int, float]
    """Steps -> mean noted figure since the last stop."""

    def to(self, steps: int) -> None:
        """Train up to so many steps in all; from the start where it is past them."""
        ...


class WholeTensors:
    """Parameters as they are, all of their values learning.

    Args:
        model: Whose.
        names: Of its parameters.
    """

    def __init__(self, model: ModelHandle, names: Sequence[str]) -> None:
        self.model = model
        self._names = tuple(names)
        self._values: dict[str, Tensor] = {}

    @contextmanager
    def put(self) -> Iterator[Sequence[nn.Parameter]]:
        parameters = {name: self.model.tensor(name) for name in self._names}
        own = {name: parameter.data for name, parameter in parameters.items()}
        try:
            for name, parameter in parameters.items():
                parameter.data = self._values.get(name, own[name].float().clone())
                parameter.requires_grad_(True)
            yield list(parameters.values())
            self._values = {name: parameter.data for name, parameter in parameters.items()}
        finally:
            for name, parameter in parameters.items():
                parameter.grad = None
                parameter.requires_grad_(False)
                parameter.data = own[name]

    def learnt(self) -> Rewrites:
        """Good until training goes on: no second copy of all weights is made."""
        turned = self.model.shape.transposed
        return {
            name: partial(_given, values.T if name in turned else values)
            for name, values in self._values.items()
        }

    def updates(self) -> dict[str, Update]:
        found = dict[str, Update]()
        for name, become in self.learnt().items():
            own = self.model.oriented(name)
            found[name] = Dense(become(own).to(own.dtype).float() - own.float())
        return found

    def begin_again(self) -> None:
        self._values = {}


class LowRankAdapters:
    """Adapters beside matrices, which alone learn (:mod:`safeedit.methods.adapters`).

    Args:
        model: Whose matrices.
        sites: The matrices.
        rank: Of each adapter.
        alpha: What they add is scaled by this over ``rank``.
        seed: Of what they start from.
    """

    def __init__(
        self, model: ModelHandle, sites: Sequence[Site], *, rank: int, alpha: float, seed: int
    ) -> None:
        self._put: Callable[[], Any] = partial(
            adapters, model, sites, rank=rank, alpha=alpha, seed=seed
        )
        self._values: list[Tensor] = []
        self._factors: dict[str, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def put(self) -> Iterator[Sequence[nn.Parameter]]:
        with self._put() as made:
            for parameter, value in zip(made.trained, self._values, strict=False):
                parameter.data = value
            yield made.trained
            self._values = [parameter.data for parameter in made.trained]
            self._factors = made.factors()

    def learnt(self) -> Rewrites:
        return {name: partial(_plus, *both) for name, both in self._factors.items()}

    def updates(self) -> dict[str, Update]:
        return {name: LowRank(*both) for name, both in self._factors.items()}

    def begin_again(self) -> None:
        self._values, self._factors = [], {}


def _given(values: Tensor, weight: Tensor) -> Tensor:
    return values


def _plus(left: Tensor, right: Tensor, weight: Tensor) -> Tensor:
    return weight.float() + left.to(weight.device) @ right.to(weight.device)


class Training:
    """One run of training, which stops where it is told to and goes on from there.

    Args:
        learner: What learns.
        begin: Gives the loss of a run from its start on, so that a run that is made again meets
            the same batches.
        learning_rate: Constant, after ``warmup`` steps in which it rises.
        warmup: Those steps.
        within: What else is to hold while the model trains, such as :func:`less_memory`.
        progress: Shown per step.
        description: What to call it.
    """

    def __init__(
        self,
        learner: LearningWeights,
        begin: Callable[[], Loss],
        *,
        learning_rate: float,
        warmup: int = 0,
        within: Callable[[], AbstractContextManager[Any]] = nullcontext,
        progress: Progress = silent,
        description: str = "training",
    ) -> None:
        self.losses: dict[int, float] = {}
        """Steps -> mean noted loss of those up to there since the last stop."""
        self._learner, self._begin, self._rate, self._warmup = learner, begin, learning_rate, warmup
        self._within, self._progress, self._description = within, progress, description
        self._done = 0
        self._loss: Loss | None = None
        self._memory: dict[str, Any] = {}

    def to(self, steps: int) -> None:
        """Train up to so many steps in all; from the start where it is past them.

        Raises:
            EditError: The loss became NaN or infinite.
        """
        if self._loss is None or self._done > steps:
            self._learner.begin_again()
            self._done, self._loss, self._memory = 0, self._begin(), {}
        loss, noted = self._loss, list[float]()
        self._loss = None  # until this has gone well
        with self._learner.put() as parameters, self._within():
            fused = all(parameter.device.type != "mps" for parameter in parameters)
            optimiser = torch.optim.AdamW(
                parameters, lr=self._rate, weight_decay=0.0, fused=fused or None
            )
            if self._memory:
                optimiser.load_state_dict(self._memory)
            todo = range(self._done, steps)
            for step in self._progress(todo, self._description, len(todo)):
                for group in optimiser.param_groups:
                    group["lr"] = self._rate * min(1.0, (step + 1) / max(1, self._warmup))
                noted.append(descend(parameters, optimiser, loss, self._diverged(step)))
            self._memory = optimiser.state_dict()
        self._done, self._loss = steps, loss
        if noted:
            self.losses[steps] = math.fsum(noted) / len(noted)

    def _diverged(self, step: int) -> EditError:
        return EditError(
            f"{self._description} diverged after {step} steps at a rate of {self._rate:g}",
            remedy="take a lower learning_rate",
        )


class TrainedParams(BaseParams):
    """What editors share that train blocks; embeddings, head and norms stay as they are."""

    update: Literal["lora", "full"] = Field(
        "lora", description="train low-rank adapters at the layers' matrices, or all their values"
    )
    layers: Layers = Field("0%-100%", description="layers that are trained")
    rank: int = Field(16, ge=1, description="rank of the adapters, for update: lora")
    learning_rate: float | None = Field(
        None, gt=0, description="default: 5e-4 for lora, 2e-5 for full"
    )
    batch: int = Field(8, ge=1, description="forget prompts per step, and as many retain prompts")
    save_memory: bool = Field(
        False, description="compute activations twice instead of keeping them: slower by a third"
    )

    @property
    def rate(self) -> float:
        """The learning rate in use."""
        return self.learning_rate or {"lora": 5e-4, "full": 2e-5}[self.update]

    def tensors(self, model: LayerShape) -> list[TensorPlan]:
        """What they may change."""
        layers = resolve(self.layers, model.n_layers)
        found = [plan for role in model.roles for plan in model.tensors(role, layers)]
        if self.update == "lora":
            return found
        return found + [plan for role in model.roles for plan in model.biases(role, layers)]

    def learner(self, model: ModelHandle, seed: int) -> LearningWeights:
        """Those weights of a model, ready to learn."""
        if self.update == "full":
            return WholeTensors(model, [plan.name for plan in self.tensors(model.shape)])
        sites = model.matrices(resolve(self.layers, model.n_layers))
        return LowRankAdapters(model, sites, rank=self.rank, alpha=2.0 * self.rank, seed=seed)

    def training(
        self,
        model: ModelHandle,
        learner: LearningWeights,
        begin: Callable[[], Loss],
        ctx: RunContext,
        description: str,
    ) -> Training:
        """A run of training with these parameters."""
        return Training(
            learner,
            begin,
            learning_rate=self.rate,
            warmup=_WARMUP,
            within=partial(less_memory, model) if self.save_memory else nullcontext,
            progress=ctx.progress,
            description=description,
        )


class Checkpoints:
    """Changes after so many steps of one training; made when they are asked for.

    Args:
        training: The run.
        learner: What learns in it.
        stops: Steps at which it is looked at.
        guard: Says at a stop why training must not go on, None where it may: later stops are then
            what this one is.
    """

    def __init__(
        self,
        training: Stepwise,
        learner: LearningWeights,
        stops: Sequence[int],
        guard: Callable[[], str | None],
    ) -> None:
        self.ended: str | None = None
        """Why training ended before its last stop."""
        self._training, self._learner, self._guard = training, learner, guard
        self._stops = sorted(set(stops))
        self._reached = 0

    def at(self, steps: int) -> Mapping[str, Update]:
        """The change after so many steps, or where the guard ended training before.

        Raises:
            EditError: Training diverged.
        """
        if steps < self._reached:
            self._reached, self.ended = 0, None
        for stop in [*(stop for stop in self._stops if stop < steps), steps]:
            if stop <= self._reached or self.ended is not None:
                continue
            self._training.to(stop)
            self._reached = stop
            if (why := self._guard()) is not None:
                self.ended = f"after {stop} steps: {why}"
        return self._learner.updates()


def stepwise_proposal(
    editor: str,
    params: Any,
    data: Dataset,
    ctx: RunContext,
    base: str,
    training: Stepwise,
    checkpoints: Checkpoints,
    notes: dict[str, Any],
) -> Proposal:
    """What was learnt after as many steps as ``params.doses`` names.

    Args:
        editor: Its name.
        params: Its parameters.
        data: What is trained on, for the record.
        ctx: Of the run.
        base: Digest of the model it belongs to.
        training: The run.
        checkpoints: Of it.
        notes: For the record; losses are added as training goes on.
    """

    def at(dose: float) -> WeightDelta:
        if not 1 <= dose < math.inf or dose != int(dose):
            raise UsageError(f"a dose of {dose:g} is no number of steps", field="dose")
        updates = checkpoints.at(int(dose))
        notes["losses"] = {str(steps): loss for steps, loss in training.losses.items()}
        if checkpoints.ended is not None:
            notes["ended"] = checkpoints.ended
        origin = Origin(
            editor=editor,
            params=params.model_dump(mode="json"),
            data_digest=data.digest,
            version=__version__,
            seed=ctx.seed,
            dose=dose,
        )
        return WeightDelta(base, updates, origin)

    return Proposal(tuple(map(float, sorted(set(params.doses)))), at, notes)


@contextmanager
def less_memory(model: ModelHandle) -> Iterator[None]:
    """Within it, blocks keep only what enters them and are run again for their gradients (gradient
    checkpointing, arXiv 1604.06174): a third more time.

    Transformers' own needs training mode, and with it dropout.
    """
    blocks: Any = model.blocks()
    try:
        for block in blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)
