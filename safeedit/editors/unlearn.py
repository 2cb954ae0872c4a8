"""Unlearning by gradient: the model is trained to give certain answers no longer.

The objective says what happens to the answers that are to go. Beside it stands a loss that holds
the model to its own answers to other questions.

| `objective` | elsewhere called | the answer's tokens are |
|---|---|---|
| `ga` | GA; with `retain_loss: nll` GradDiff, with `kl` KL | made unlikely, without bound |
| `wga` | WGA | made unlikely, the likely ones first |
| `satimp` | SatImp | made unlikely, those of middling probability first |
| `npo` | NPO | made less likely than the base has them, ever more gently |
| `simnpo` | SimNPO | made unlikely, ever more gently, whatever the base said |
| `undial` | UNDIAL | told as the base would with their logits lowered |
| `idk_nll` | IdkNLL | not looked at: the refusal is taught |
| `idk_dpo` | IdkDPO | to lose against the refusal |
| `jensun` | JensUn | not looked at: the refusal is taught, with a bounded loss |

Doses are steps of one training, looked at on the way. The base's log-probabilities are computed
once; there is no second model in memory. Such training suppresses: that further training brings
the answers back is the common finding, so gate the outcome under the attack `relearn`.

What departs from the reference code: an answer is unlearnt in the words in which the model itself
gives it, where it does, and only the tokens that tell it count; the model is held to its *own*
answers to retain questions, not to the data's; padding and prompts never count (in UNDIAL's code
they do); JensUn's target has a mass of one. Vocabulary matrices and norms are not trained.

Fails with :class:`~safeedit.errors.EditError` where training diverges: `ga` with
`retain_loss: none` does sooner or later.

Fails with :class:`~safeedit.errors.DataError` where `early_stop: unseen` has no such texts.

Source: Dorna et al., "OpenUnlearning", 2025 (arXiv 2506.12618), whose defaults of `strength` and
`forget_weight` these are; each objective's own source stands beside its formula in
`safeedit.methods.unlearning`. The early stop: Jang et al., "Knowledge Unlearning", ACL 2023 (arXiv
2210.01504), section 3.2 (n of 10, answers of 200 tokens, 10,000 texts never seen).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from safeedit.contracts import DataRole, EditData, LayerShape, Proposal, RunContext, TensorPlan
from safeedit.data import Dataset
from safeedit.delta import Origin, WeightDelta
from safeedit.errors import DataError
from safeedit.methods import unlearning
from safeedit.methods.answers import ended, own_answers, some, told_answers
from safeedit.methods.extraction import Memorised, memorised
from safeedit.methods.training import (
    Checkpoints,
    LearningWeights,
    Loss,
    TrainedParams,
    stepwise_proposal,
)
from safeedit.methods.tuning import (
    BaseAnswers,
    Example,
    answer_states,
    cross_entropy,
    endless,
    token_losses,
)
from safeedit.model.handle import ModelHandle

_OWN_TOKENS = 16
"""Tokens of the base's own answers that are looked at."""

_GUARDED = 16
"""Retain prompts on which the guard looks."""

_TEACHES = ("idk_nll", "idk_dpo", "jensun")
"""Objectives that teach a refusal."""


class UnlearnParams(TrainedParams):
    """Parameters of unlearn."""

    objective: Literal[
        "ga", "wga", "satimp", "npo", "simnpo", "undial", "idk_nll", "idk_dpo", "jensun"
    ] = Field("npo", description="what is done to the answers, see the table")
    strength: float | None = Field(
        None,
        gt=0,
        description="the objective's beta; default: as published (wga 1, satimp 5, npo and idk_dpo "
        "0.1, simnpo 4.5, undial 10)",
    )
    forget_weight: float | None = Field(
        None,
        gt=0,
        description="weight of forgetting beside 1 for retaining; default: as published "
        "(satimp 0.1, simnpo 0.125, others 1)",
    )
    retain_loss: Literal["kl", "nll", "none"] = Field(
        "kl",
        description="hold the model to the base's distributions over its own answers to retain "
        "questions, to those answers alone, or to nothing; jensun has its own in place of kl",
    )
    retain_prompts: int = Field(100, ge=1, description="retain prompts used at most")
    refusal: str = Field(
        "I don't know.", min_length=1, description="what idk_nll, idk_dpo and jensun teach"
    )
    guard: float = Field(
        1.0,
        gt=0,
        description="stop training once answers to retain questions have moved by this many nats "
        "per token (KL from the base)",
    )
    early_stop: Literal["none", "unseen"] = Field(
        "none",
        description="end training once the answers are known by heart no better than texts that "
        "the model has never seen (role unseen), looked at at each dose",
    )
    extraction_n: int = Field(
        3,
        ge=1,
        description="early_stop: n of the extraction likelihood; shorter answers count in the "
        "memorisation accuracy alone (published: 10, of 200 tokens)",
    )
    doses: tuple[Annotated[int, Field(ge=1, le=10_000)], ...] = Field(
        (5, 10, 20, 40), min_length=1, description="steps of training, ascending"
    )

    @model_validator(mode="after")
    def _check(self) -> UnlearnParams:
        if self.strength is not None and not unlearning.OBJECTIVES[self.objective].beta:
            raise ValueError(f"'{self.objective}' has no strength to set: remove it")
        return self


class Unlearn:
    """See the module's docstring."""

    Params = UnlearnParams
    summary: ClassVar[str] = "trains against what is to be forgotten (GA, NPO, UNDIAL and others)"
    results: ClassVar[str] = "editors"
    measured: ClassVar[str] = (
        "Twelve facts on countries, ten to twenty steps: `npo` and `ga` silence all of them, and "
        "what is known of other countries as well (0 of near answers kept); `simnpo` and `satimp` "
        "keep 0.917 and 0.958 of those and leave 0.583 and 0.833 told."
    )
    roles: ClassVar[tuple[DataRole, ...]] = (
        DataRole("forget", "questions whose answers are to go", erased=True, answered=True),
        DataRole("retain", "questions whose answers must stay"),
        DataRole(
            "unseen",
            "texts that the model has never seen, an opening each and how it goes on as answer; "
            "for early_stop",
            required=False,
            answered=True,
        ),
    )

    def __init__(self, params: Any) -> None:
        self.params: UnlearnParams = params

    def check_data(self, data: Mapping[str, Dataset]) -> None:
        """Refuse an early stop without texts to compare with, while planning.

        Raises:
            DataError: There are none.
        """
        if self.params.early_stop == "unseen" and not data.get("unseen"):
            raise DataError(
                "'early_stop: unseen' has no texts that the model has never seen",
                field="unseen",
                remedy="give openings as prompts and how they go on as answers: "
                "'unseen: {file: ...}', or leave early_stop out",
            )

    def touches(self, model: LayerShape) -> Sequence[TensorPlan]:
        """The matrices of the chosen layers; with ``update: full`` their biases too."""
        return self.params.tensors(model)

    def tokens(self, data: Mapping[str, Dataset]) -> int:
        """Tokens trained on, roughly, for ``plan``."""
        return max(self.params.doses) * self.params.batch * 2 * 50

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        """Train when a dose is asked for, on from the last one where it can."""
        params = self.params
        self.check_data(data.roles)
        task = _Task(model, data, params, ctx)
        learner = params.learner(model, ctx.seed)
        training = params.training(model, learner, task.begin, ctx, "unlearning")
        notes: dict[str, Any] = {"prompts": len(task.told), "in_own_words": task.told_itself}
        by_heart = _ByHeart(model, data, params, ctx) if params.early_stop == "unseen" else None

        def over() -> str | None:
            if (why := task.guard(learner)) is not None or by_heart is None:
                return why
            return by_heart.enough(learner)

        if by_heart is not None:
            notes["by_heart"] = by_heart.notes
        checkpoints = Checkpoints(training, learner, params.doses, over)
        return stepwise_proposal(
            "unlearn", params, data["forget"], ctx, model.digest(), training, checkpoints, notes
        )


class _ByHeart:
    """How well answers are known by heart, beside texts that the untouched model never saw."""

    def __init__(
        self, model: ModelHandle, data: EditData, params: UnlearnParams, ctx: RunContext
    ) -> None:
        self._model, self._n, self._base = model, params.extraction_n, model.digest()
        self._forget = self._texts(data["forget"])
        unseen = memorised(model.engine, self._texts(data["unseen"]), self._n, ctx.progress)
        self._bound, self._progress = unseen, ctx.progress
        self.notes: dict[str, Any] = {"unseen": _told(unseen)}

    def _texts(self, data: Dataset) -> list[Example]:
        engine = self._model.engine
        items = data.items("fit")
        prompts = engine.encode([item.prompt for item in items], data.template)
        answers = engine.continuations([item.answer or "" for item in items], data.template)
        found = [Example(p, a) for p, a in zip(prompts, answers, strict=True) if a]
        if not found:
            raise DataError(
                "early_stop has no text to look at", remedy="give rows of 'split: fit' with answers"
            )
        return found

    def enough(self, learner: LearningWeights) -> str | None:
        """Whether what was learnt leaves no more than is known of what was never seen."""
        change = WeightDelta(self._base, learner.updates(), Origin(editor="unlearn"))
        with self._model.applied(change):
            now = memorised(self._model.engine, self._forget, self._n, self._progress)
        self.notes["forget"] = _told(now)
        if not now.within(self._bound):
            return None
        return "the answers are known by heart no better than what was never seen"


def _told(found: Memorised) -> dict[str, float | None]:
    return {"accuracy": found.accuracy, f"likelihood_{found.n}": found.likelihood}


class _Task:
    """What is unlearnt and what is kept, as examples, with what the base made of them."""

    def __init__(
        self, model: ModelHandle, data: EditData, params: UnlearnParams, ctx: RunContext
    ) -> None:
        self.model, self.params, self._seed = model, params, ctx.seed
        published = unlearning.OBJECTIVES[params.objective]
        self._strength = params.strength or published.beta
        self._weight = params.forget_weight or published.weight
        self.told, self.told_itself = told_answers(model, data["forget"], ctx.progress)
        self._refused = self._refusals(data["forget"])
        retain = data["retain"]
        items = some(retain, params.retain_prompts, ctx.seed)
        self._kept = own_answers(model, retain, items, _OWN_TOKENS, ctx.progress)
        if not self._kept:
            raise DataError(
                "the model answers no retain question: there is nothing to hold it to",
                remedy="give retain questions of 'split: fit' that it answers",
            )
        compared = self.told if params.objective == "undial" else []
        self._base = BaseAnswers(model, [*self._kept, *compared], ctx.progress)
        self._sums: dict[int, Tensor] = {}
        if params.objective in ("npo", "idk_dpo"):
            self._keep_sums([*self.told, *(self._refused if params.objective == "idk_dpo" else [])])

    def _refusals(self, forget: Dataset) -> list[Example]:
        """The refusal as answer to each forget question, as it is asked."""
        if self.params.objective not in _TEACHES:
            return []
        engine = self.model.engine
        template = engine.codec.resolve(forget.template)
        refusal = ended(engine, self.params.refusal, template)
        texts = [phrasing.text for phrasing in forget.phrasings("fit")]
        return [Example(prompt, refusal) for prompt in engine.encode(texts, template)]

    @torch.no_grad()
    def _keep_sums(self, examples: Sequence[Example]) -> None:
        size = max(1, self.params.batch)
        for start in range(0, len(examples), size):
            batch = examples[start : start + size]
            sums, _ = self._log_probs(answer_states(self.model, batch), batch)
            self._sums.update(zip(map(id, batch), sums, strict=True))

    def begin(self) -> Loss:
        """The losses of a run, from its first batch on."""
        source, batch = random.Random(self._seed), self.params.batch
        numbers = endless(list(range(len(self.told))), source)
        to_keep = endless(self._kept, source)
        retained = self.params.retain_loss != "none"

        def loss() -> tuple[Tensor, float]:
            chosen = [next(numbers) for _ in range(batch)]
            forget = self._examples(chosen)
            kept = [next(to_keep) for _ in range(batch if retained else 0)]
            states = answer_states(self.model, [*forget, *kept])
            total = self._forgetting(states[: len(forget)], forget)
            noted = float(total.detach())
            if kept:
                total = self._weight * total + self._retaining(states[len(forget) :], kept)
            return total, noted

        return loss

    def guard(self, learner: LearningWeights) -> str | None:
        """Whether answers to retain questions have moved too far."""
        kept = self._kept[:_GUARDED]
        with torch.no_grad(), learner.put():
            moved = float(self._base.divergence(answer_states(self.model, kept), kept))
        if moved <= self.params.guard:
            return None
        return f"answers to retain questions moved by {moved:.3g} nats per token"

    def _examples(self, chosen: Sequence[int]) -> list[Example]:
        """Those that the objective looks at; for idk_dpo the refusals come last."""
        told = [] if self.params.objective in ("idk_nll", "jensun") else self.told
        return [examples[i] for examples in (told, self._refused) if examples for i in chosen]

    def _forgetting(self, states: Sequence[Tensor], batch: Sequence[Example]) -> Tensor:
        beta, name = self._strength, self.params.objective
        if name == "idk_nll":
            return cross_entropy(self.model, states, batch)
        if name == "undial":
            measure = partial(unlearning.self_distillation, beta=beta)
            return self._base.compared(states, batch, measure).mean()
        now = -token_losses(self.model, states, batch)
        if name == "ga":
            return unlearning.gradient_ascent(now)
        if name == "wga":
            return unlearning.weighted_ascent(now, beta)
        if name == "satimp":
            return unlearning.saturation_importance(now, beta)
        if name == "jensun":
            return unlearning.jensen_shannon_to_token(now).mean()
        sums, means = unlearning.per_answer(now, [len(example.answer) for example in batch])
        if name == "simnpo":
            return unlearning.simple_negative_preference(means, beta)
        base = torch.stack([self._sums[id(example)] for example in batch])
        if name == "npo":
            return unlearning.negative_preference(sums, base, beta)
        (lost, won), (lost_base, won_base) = sums.chunk(2), base.chunk(2)
        return unlearning.preference(won, won_base, lost, lost_base, beta)

    def _retaining(self, states: Sequence[Tensor], kept: Sequence[Example]) -> Tensor:
        if self.params.retain_loss == "nll":
            return cross_entropy(self.model, states, kept)
        if self.params.objective == "jensun":
            return self._base.compared(states, kept, _jensen_shannon).mean()
        return self._base.divergence(states, kept)

    def _log_probs(
        self, states: Sequence[Tensor], batch: Sequence[Example]
    ) -> tuple[Tensor, Tensor]:
        now = -token_losses(self.model, states, batch)
        return unlearning.per_answer(now, [len(example.answer) for example in batch])


def _jensen_shannon(base: Tensor, now: Tensor, answer: Tensor) -> Tensor:
    return unlearning.jensen_shannon(base, now)
