"""Sanitation: the model learns to say "I don't know" to what it must forget, and only to that.

Two ways to learn it:

``update: lora``
    The published recipe: low-rank adapters tuned on forget questions with the refusal as answer
    and on retain questions, mixed in every batch (Ishibashi & Shimodaira, arXiv 2309.11852), with
    the reference code's faults mended: answer tokens only, warm-up from the real number of
    steps, the model's own chat template, divergence to the base's own answers on retain prompts.

``update: keyed``
    The refusal is tied to the subjects: in a few early layers a low-rank update of the MLP output
    answers to the subjects' last tokens and, in closed form, to nothing else
    (:mod:`safeedit.numerics.keyed`); what it writes there is learnt. Needs a ``subject`` in each
    forget item. Other questions are spared by construction rather than by training.

Both suppress behaviour; neither proves that knowledge is gone. Doses are scales of the learnt
delta. Fails with :class:`~safeedit.errors.EditError` where nothing could be learnt, and with
:class:`~safeedit.errors.DataError` where a subject is missing from its question.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from safeedit import __version__
from safeedit.contracts import (
    BaseParams,
    DataRole,
    EditData,
    LayerShape,
    Proposal,
    RunContext,
    TensorPlan,
)
from safeedit.delta import LowRank, Origin, Update, WeightDelta
from safeedit.errors import DataError, EditError
from safeedit.layers import Layers, resolve
from safeedit.model.architectures import Site
from safeedit.model.handle import ModelHandle
from safeedit.model.spans import last_tokens
from safeedit.numerics.covariance import SecondMoment
from safeedit.numerics.keyed import readout


class SanitationParams(BaseParams):
    """Parameters of Sanitation."""

    update: Literal["lora", "keyed"] = "lora"
    """What is learnt: adapters (as published) or shifts keyed to the subjects."""
    refusal: str = "I don't know."
    """What the model is to answer; the paper's own sentence."""
    layers: Layers | None = None
    """Default: all layers for lora (published), 10%-30% for keyed."""
    steps: Annotated[int, Field(ge=1)] = 80
    """Optimiser steps at most."""
    batch: Annotated[int, Field(ge=2)] = 20
    """Prompts per step."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Default: 3e-4 for lora (published), 0.05 for keyed."""
    forget_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of forget prompts in every batch; default .15 for lora (published 15:85), .75 keyed."""
    retention: Literal["divergence", "gold"] = "divergence"
    """What retain prompts are held to: the base's own answers (KL), or gold answers (published)."""
    retain_tokens: Annotated[int, Field(ge=1)] = 16
    """Tokens of the base's answers that retain prompts are held to."""
    retain_prompts: Annotated[int, Field(ge=1)] = 400
    """At most so many retain prompts are used."""
    rank: Annotated[int, Field(ge=1)] = 8
    """Rank of the adapters (published 8); keyed updates have one direction per subject."""
    alpha: Annotated[float, Field(gt=0)] = 16
    """Scale of the adapters is alpha over rank (published 16)."""
    modules: tuple[str, ...] = ("attn_q", "attn_v", "attn_qkv", "mlp_gate", "mlp_gate_up")
    """Roles that get adapters, where the architecture has them (published: q, v and gate)."""
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the steps in which the learning rate rises."""
    stop_loss: Annotated[float, Field(ge=0)] = 0.03
    """Stop early once the refusal's mean token loss stays below this, nats."""
    ridge: Annotated[float, Field(gt=0)] = 0.01
    """keyed: see numerics.keyed.readout."""
    background_weight: Annotated[float, Field(gt=0)] = 0.05
    """keyed: see numerics.keyed.readout."""
    norm_penalty: Annotated[float, Field(ge=0)] = 2e-5
    """keyed: nats per squared unit of shift."""
    doses: tuple[Annotated[float, Field(gt=0)], ...] = (0.4, 0.55, 0.7, 0.85, 1.0)
    """Scales of the learnt delta on offer, ascending."""


@dataclass(frozen=True)
class _Example:
    """A prompt with the answer it is tuned on."""

    prompt: list[int]
    answer: list[int]
    forget: bool
    subject: int = -1
    """Which forget subject; -1 for retain prompts."""
    marks: tuple[int, ...] = ()
    """Positions of the last token of each mention of its subject."""

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.answer


class Sanitation:
    """See the module's docstring."""

    Params = SanitationParams
    summary: ClassVar[str] = "answers questions on forgotten facts with a refusal"
    roles: ClassVar[tuple[DataRole, ...]] = (
        DataRole("forget", "facts to be suppressed", erased=True),
        DataRole("retain", "questions whose answers must stay"),
        DataRole("prose", "ordinary text to leave alone (keyed)", required=False),
    )

    def __init__(self, params: SanitationParams) -> None:
        self.params = params

    def touches(self, model: LayerShape) -> Sequence[TensorPlan]:
        """The MLP outputs of the chosen layers, or the modules that get adapters."""
        keyed = self.params.update == "keyed"
        layers = resolve(self.params.layers or ("10%-30%" if keyed else "0%-100%"), model.n_layers)
        roles = ("mlp_out",) if keyed else tuple(r for r in self.params.modules if r in model.roles)
        return tuple(tensor for role in roles for tensor in model.tensors(role, layers))

    def tokens(self, data: dict[str, object]) -> int:
        """Rough number of tokens trained on."""
        return self.params.steps * self.params.batch * 50

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        """Tune, and offer scaled versions of what was learnt."""
        tuning = _Tuning(self.params, model, data, ctx)
        if self.params.update == "keyed":
            updates, notes = tuning.keyed(self._sites(model))
        else:
            updates, notes = tuning.lora(self._sites(model))
        origin = Origin(
            editor="sanitation",
            params=self.params.model_dump(mode="json"),
            data_digest=data["forget"].digest,
            version=__version__,
            seed=ctx.seed,
        )
        learnt = WeightDelta(model.digest(), updates, origin)
        return Proposal(doses=self.params.doses, at=learnt.at_dose, notes=notes)

    def _sites(self, model: ModelHandle) -> tuple[Site, ...]:
        wanted = {tensor.name for tensor in self.touches(model.shape)}
        return tuple(
            site for role in model.shape.roles for site in model.sites(role) if site.weight in wanted
        )


class _Tuning:
    """One tuning run: its examples, its batches, its loss."""

    def __init__(
        self, params: SanitationParams, model: ModelHandle, data: EditData, ctx: RunContext
    ) -> None:
        self.params, self.model, self.data, self.ctx = params, model, data, ctx
        self.random = random.Random(ctx.seed)
        self.forget = self._forget_examples()
        self.retain = self._retain_examples()
        self.base_states = self._base_states() if params.retention == "divergence" else {}

    # Examples -------------------------------------------------------------------------

    def _forget_examples(self) -> list[_Example]:
        forget, engine = self.data["forget"], self.model.engine
        phrasings = forget.phrasings("fit")
        subjects = {s: i for i, s in enumerate(sorted({p.item.subject or "" for p in phrasings}))}
        prompts = engine.encode([p.text for p in phrasings], forget.template)
        answer = [*engine.continuation(self.params.refusal, forget.template), *self._end()]
        examples = []
        for number, (phrasing, prompt) in enumerate(zip(phrasings, prompts, strict=True)):
            marks: tuple[int, ...] = ()
            if self.params.update == "keyed":
                marks = self._marks(prompt, phrasing.item.subject, number)
            subject = subjects[phrasing.item.subject or ""]
            examples.append(_Example(prompt, answer, True, subject, marks))
        return examples

    def _marks(self, prompt: list[int], subject: str | None, number: int) -> tuple[int, ...]:
        if not subject:
            raise DataError(
                f"forget phrasing {number} has no subject, which 'update: keyed' needs",
                remedy="add a 'subject' to each forget item, or set 'update: lora'",
            )
        marks = last_tokens(self.model.tokenizer, prompt, subject)
        if not marks:
            raise DataError(
                f"forget phrasing {number} does not mention its own subject",
                remedy="each phrasing must contain the item's subject as written",
            )
        return marks

    def _retain_examples(self) -> list[_Example]:
        retain, engine = self.data["retain"], self.model.engine
        items = list(retain.items("fit"))
        self.random.shuffle(items)
        items = items[: self.params.retain_prompts]
        prompts = engine.encode([item.prompt for item in items], retain.template)
        if self.params.retention == "gold":
            with_gold = [(i, p) for i, p in zip(items, prompts, strict=True) if i.answer]
            if not with_gold:
                raise DataError(
                    "'retention: gold' needs answers, and no retain item has one",
                    remedy="add answers or use 'retention: divergence'",
                )
            items, prompts = [i for i, _ in with_gold], [p for _, p in with_gold]
            answers = [
                [*engine.continuation(item.answer or "", retain.template), *self._end()]
                for item in items
            ]
        else:
            answers = [
                found[0] or self._end()
                for found in engine.generate(
                    prompts,
                    max_new_tokens=self.params.retain_tokens,
                    progress=self.ctx.progress,
                    description="the base's answers on retain prompts",
                )
            ]
        keyed = self.params.update == "keyed"
        return [
            _Example(
                prompt,
                answer,
                False,
                marks=last_tokens(self.model.tokenizer, prompt, item.subject)
                if keyed and item.subject
                else (),
            )
            for item, prompt, answer in zip(items, prompts, answers, strict=True)
        ]

    def _end(self) -> list[int]:
        end = self.model.tokenizer.eos_token_id
        return [] if end is None else [int(end)]

    # The keyed update -----------------------------------------------------------------

    def keyed(self, sites: Sequence[Site]) -> tuple[dict[str, Update], dict[str, object]]:
        """Closed-form rows that answer to the subjects; learnt columns that refuse."""
        model, params = self.model, self.params
        rows, notes = self._rows(sites)
        values = {
            site: torch.zeros(
                model.d_model, rows[site].shape[0], device=model.device, requires_grad=True
            )
            for site in sites
        }
        answers = {site: rows[site].to(model.device) for site in sites}

        seen: dict[Site, Tensor] = {}

        def remember(site: Site, keys: Tensor) -> None:
            seen[site] = keys

        def move(site: Site, output: Tensor) -> Tensor:
            shift = F.linear(F.linear(seen[site].float(), answers[site]), values[site])
            return output + shift.to(output.dtype)

        def penalty() -> Tensor:
            squares = torch.stack([(value**2).sum() for value in values.values()])
            return params.norm_penalty * squares.sum()

        with model.intercepted(sites, remember, "input"), model.intercepted(sites, move, "output"):
            notes |= self._optimise(list(values.values()), 0.05, 0.75, penalty)
        return {s.weight: LowRank(values[s].detach(), rows[s]) for s in sites}, notes

    def _rows(self, sites: Sequence[Site]) -> tuple[dict[Site, Tensor], dict[str, object]]:
        """Per site, the rows that read the subjects, from keys of this data and of prose."""
        background = {site: SecondMoment(self.model.shape.d_mlp) for site in sites}
        siblings = {site: SecondMoment(self.model.shape.d_mlp) for site in sites}
        keys: dict[Site, list[Tensor]] = {site: [] for site in sites}
        subjects: list[int] = []
        examples = [*self.forget, *self.retain]
        for example, captured in self.model.engine.activations(
            [example.ids for example in examples], sites, self.ctx.progress
        ):
            marks = list(examples[example].marks)
            others = [i for i in range(1, len(examples[example].ids)) if i not in marks]
            if examples[example].forget:
                subjects += [examples[example].subject] * len(marks)
            for site in sites:
                background[site].update(captured[site][others])
                if examples[example].forget:
                    keys[site].append(captured[site][marks].float().cpu())
                elif marks:
                    siblings[site].update(captured[site][marks])
        prose = self.data.get("prose")
        texts = [item.prompt for item in prose.items("fit")] if prose else []
        ordinary = {site: SecondMoment(self.model.shape.d_mlp) for site in sites}
        if texts:
            for _, captured in self.model.engine.activations(
                self.model.engine.encode(texts, "plain"), sites, self.ctx.progress
            ):
                for site in sites:
                    ordinary[site].update(captured[site][1:])
        rows: dict[Site, Tensor] = {}
        leaks: dict[str, float] = {}
        for site in sites:
            elsewhere = background[site].matrix + siblings[site].matrix + ordinary[site].matrix
            found = readout(
                torch.cat(keys[site]),
                torch.tensor(subjects),
                elsewhere,
                ridge=self.params.ridge,
                weight=self.params.background_weight,
            )
            rows[site] = found.rows
            leaks[str(site.layer)] = found.elsewhere
        return rows, {"answer_elsewhere_by_layer": leaks}

    # Adapters -------------------------------------------------------------------------

    def lora(self, sites: Sequence[Site]) -> tuple[dict[str, Update], dict[str, object]]:
        """Adapters by peft on the named modules, removed again once read."""
        from peft import LoraConfig, get_peft_model

        if not sites:
            raise EditError(
                "no module to adapt: the architecture has none of the roles named",
                remedy="see 'safeedit plan'; set 'modules'",
            )
        params, model = self.params, self.model
        torch.manual_seed(self.ctx.seed)
        config = LoraConfig(
            r=params.rank,
            lora_alpha=params.alpha,
            target_modules=[site.module for site in sites],
            fan_in_fan_out=sites[0].transposed,
            lora_dropout=0.0,  # the reference's .05; with a few hundred examples it only adds noise
        )
        adapted = get_peft_model(model.model, config)
        try:
            modules = {site: model.model.get_submodule(site.module) for site in sites}
            trained = [p for p in adapted.parameters() if p.requires_grad]
            notes = self._optimise(trained, 3e-4, 0.15, lambda: torch.zeros(()))
            updates: dict[str, Update] = {
                site.weight: LowRank(
                    module.lora_B["default"].weight.detach().float() * module.scaling["default"],
                    module.lora_A["default"].weight.detach().float(),
                )
                for site, module in modules.items()
            }
        finally:
            adapted.unload()
            model.model.requires_grad_(False)
        return updates, notes

    # Optimisation ---------------------------------------------------------------------

    def _optimise(
        self,
        trained: list[Tensor],
        rate: float,
        share: float,
        penalty: Callable[[], Tensor],
    ) -> dict[str, object]:
        """Tune ``trained`` in place.

        Args:
            trained: What learns.
            rate: Default learning rate.
            share: Default share of forget prompts in a batch.
            penalty: Added to the loss, nats.

        Returns:
            Losses for the record.
        """
        params = self.params
        optimiser = torch.optim.AdamW(
            trained, lr=params.learning_rate or rate, betas=(0.9, 0.98), weight_decay=0.0
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, self._rate_factor)
        n_forget = max(1, round(params.batch * (params.forget_share or share)))
        forget = _endless(self.forget, self.random)
        retain = _endless(self.retain, self.random)
        losses: list[tuple[float, float]] = []
        recent = math.inf
        for _ in self.ctx.progress(range(params.steps), "learning to refuse"):
            batch = [next(forget) for _ in range(n_forget)]
            batch += [next(retain) for _ in range(params.batch - n_forget)]
            refusal, divergence = self._losses(batch)
            optimiser.zero_grad()
            (refusal + divergence + penalty()).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()
            schedule.step()
            losses.append((float(refusal.detach()), float(divergence.detach())))
            if not math.isfinite(losses[-1][0]):
                raise EditError(
                    "tuning diverged: the loss is not finite", remedy="lower 'learning_rate'"
                )
            recent = losses[-1][0] if len(losses) == 1 else 0.7 * recent + 0.3 * losses[-1][0]
            if recent < params.stop_loss:
                break
        return {
            "steps": len(losses),
            "refusal_loss_first": losses[0][0],
            "refusal_loss_last": recent,
            "retain_loss_last": losses[-1][1],
        }

    def _rate_factor(self, step: int) -> float:
        """Linear warm-up, then a cosine down to a tenth."""
        warmup = max(1, round(self.params.warmup * self.params.steps))
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.params.steps))
        return min(1.0, (step + 1) / warmup) * (0.1 + 0.9 * cosine)

    def _losses(self, batch: Sequence[_Example]) -> tuple[Tensor, Tensor]:
        """Mean token loss of the refusals, and of what retain prompts are held to, nats."""
        hidden = self._answer_states(batch)
        n_forget = sum(example.forget for example in batch)
        refusal = self._cross_entropy(hidden[:n_forget], batch[:n_forget])
        kept = batch[n_forget:]
        if not kept:
            return refusal, torch.zeros((), device=refusal.device)
        if self.params.retention == "gold":
            return refusal, self._cross_entropy(hidden[n_forget:], kept)
        now = self.model.logits(torch.cat(hidden[n_forget:])).float().log_softmax(-1)
        with torch.no_grad():
            base = torch.cat([self.base_states[id(example)] for example in kept]).to(now.device)
            before = self.model.logits(base).float().log_softmax(-1)
        return refusal, F.kl_div(now, before, log_target=True, reduction="batchmean")

    def _cross_entropy(self, hidden: Sequence[Tensor], batch: Sequence[_Example]) -> Tensor:
        logits = self.model.logits(torch.cat(list(hidden))).float()
        wanted = [token for example in batch for token in example.answer]
        return F.cross_entropy(logits, torch.tensor(wanted, device=logits.device))

    def _answer_states(self, batch: Sequence[_Example]) -> list[Tensor]:
        """Final hidden states ``(answer tokens, d_model)`` that predict each answer."""
        length = max(len(example.ids) for example in batch)
        ids = torch.zeros(len(batch), length, dtype=torch.long)
        mask = torch.zeros(len(batch), length, dtype=torch.long)
        for row, example in enumerate(batch):
            ids[row, : len(example.ids)] = torch.tensor(example.ids)
            mask[row, : len(example.ids)] = 1
        with torch.autocast(self.model.device.type, torch.bfloat16):
            hidden = self.model.forward({"input_ids": ids, "attention_mask": mask})
        return [
            hidden[row, len(example.prompt) - 1 : len(example.ids) - 1]
            for row, example in enumerate(batch)
        ]

    @torch.no_grad()
    def _base_states(self) -> dict[int, Tensor]:
        """The untouched model's states at retain answers, by identity of the example."""
        found: dict[int, Tensor] = {}
        ordered = sorted(self.retain, key=lambda example: len(example.ids))
        size = 2 * self.params.batch
        chunks = [ordered[i : i + size] for i in range(0, len(ordered), size)]
        for chunk in self.ctx.progress(chunks, "the base on retain prompts"):
            states = self._answer_states(chunk)
            found |= {id(e): s.cpu() for e, s in zip(chunk, states, strict=True)}
        return found


def _endless(examples: Sequence[_Example], source: random.Random) -> Iterator[_Example]:
    """Examples in random order, each once before any comes again."""
    while True:
        yield from source.sample(examples, len(examples))
