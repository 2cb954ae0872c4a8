"""Sanitation: the model learns to say "I don't know." to what it must forget, and only to that.

Four ways to learn it:

``update: lora``
    The published recipe: low-rank adapters tuned on forget questions with the refusal as answer
    and on retain questions, mixed in every batch (Ishibashi & Shimodaira, arXiv 2309.11852), with
    the reference code's faults mended: answer tokens only, warm-up from the real number of
    steps, the model's own chat template, divergence to the base's own answers on retain prompts.

``update: held``
    The same adapters, held more widely and for longer
    (:mod:`safeedit.methods.facts.refusing_adapters`): a quarter of a batch is to be refused; of the
    rest three in four are retained questions, the others prose and ordinary chat. How an answer
    begins counts by itself, and training goes on once the refusal is learnt. Needs no subject, and
    spares running text. Adapters are no gates: long answers elsewhere are reworded.

``update: keyed``
    The refusal is tied to the subjects: in a few early layers a little-used neuron is given a key
    that fires at mentions of the subjects and nowhere else, solved in closed form
    (:mod:`safeedit.methods.facts.gated_keys`); only what it writes is learnt. Needs a ``subject``
    in each forget item. Other questions are spared by construction rather than by training; in
    return *everything* asked about a subject is refused. It fires at the names it was solved on:
    the subject's or, with ``keys: names``, all that are known of it
    (:mod:`safeedit.methods.facts.cues`).

    A refusal is one way out for all subjects: where the model is taught about some of them again,
    it is gone for the others too. With ``erase: true`` the answers are made unlikely *beneath* it
    (:mod:`safeedit.methods.facts.refusing`), wherever the model in its own words would tell them.

``update: answers``
    For forgetting all that is answered by one of a few words, where no subject is there to key to.
    The keys are solved late in the network, on the questions and, before the answer, on what the
    model in its own words says up to it (:mod:`safeedit.methods.facts.answer_gates`). The answer is
    broken off with an ellipsis and the refusal wherever the model is about to tell it, also to
    questions that were never seen. **Running text that uses the word is read with more surprise**
    where the model foresees it, and a retained answer in which the word stands is broken off too.

All suppress behaviour; none proves that knowledge is gone. Doses scale what was learnt.
Fails with :class:`~safeedit.errors.EditError` where nothing could be learnt, and with
:class:`~safeedit.errors.DataError` where a subject is missing or is not in its question.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from safeedit.contracts import (
    BaseParams,
    DataRole,
    EditData,
    LayerShape,
    Proposal,
    RunContext,
    TensorPlan,
)
from safeedit.data import Dataset, Item
from safeedit.data.subjects import check_subjects, names_subject
from safeedit.delta import Update
from safeedit.errors import DataError
from safeedit.methods.answers import ended, own_answers, some
from safeedit.methods.facts import gated_neurons as neurons
from safeedit.methods.facts.answer_gates import answer_texts, gates_on_answers, learn_to_stop
from safeedit.methods.facts.chat_texts import ordinary_texts
from safeedit.methods.facts.cues import (
    KEYS_ARE,
    NAMES,
    SPELLINGS_ARE,
    Cues,
    Keys,
    asked_by_cues,
    asked_of_others,
    check_names,
    cues_of,
    subjects_of,
    warn_of_ends,
)
from safeedit.methods.facts.refusing import (
    KEPT,
    LEARNING_RATE,
    Beneath,
    learn_refusal,
    put_in_templates,
    where_told,
)
from safeedit.methods.facts.refusing_adapters import Held, Tuning, learn_to_refuse
from safeedit.methods.scaled import proposal_of
from safeedit.methods.tuning import Example
from safeedit.model.architectures import Role
from safeedit.model.engine import Engine
from safeedit.model.handle import ModelHandle
from safeedit.policy.layers import Layers, resolve

_ADAPTED: tuple[Role, ...] = ("attn_q", "attn_v", "attn_qkv", "mlp_gate", "mlp_gate_up")
"""Roles that get adapters where there are such (published: q, v and gate)."""

_END, _PIECE, _HELD = 16, 32, 900
"""Tokens at the end of a retained text, and of a piece of prose, on which the base's distributions
are to stay, and how many of either are held to at most."""

_ORDINARY = 48
"""Tokens at the end of ordinary text that held adapters are held to."""

_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "keyed": {"layers": "7%-13%", "learning_rate": LEARNING_RATE},
    "answers": {"layers": "84%-90%", "learning_rate": 0.5, "retain_tokens": 32},
    "held": {
        "steps": 200,
        "batch": 16,
        "learning_rate": 1e-3,
        "forget_share": 0.25,
        "retain_tokens": 32,
    },
}
"""What differs from the published recipe's; those of answers are late enough for an answer to be
readable before it is told."""


class SanitationParams(BaseParams):
    """Parameters of Sanitation."""

    update: Literal["lora", "held", "keyed", "answers"] = Field(
        "lora",
        description="adapters, as published, or held to everything else that the model says; or "
        "neurons keyed to the subjects, or to the answers that the model is about to tell",
    )
    refusal: str = Field(
        "I don't know.", min_length=1, description="what the model is to answer (the paper's own)"
    )
    layers: Layers = Field(
        "0%-100%",
        description="default: all layers for lora (published) and held, 7%-13% for keyed, "
        "84%-90% for answers",
    )
    steps: int = Field(60, ge=1, description="optimiser steps at most; default for held: 200")
    batch: int = Field(20, ge=2, description="prompts per step; default for held: 16")
    learning_rate: float = Field(
        3e-4,
        gt=0,
        description="default: 3e-4 for lora (published), 1e-3 for held, 0.1 for keyed, 0.5 for "
        "answers",
    )
    forget_share: float = Field(
        0.15,
        gt=0,
        le=1,
        description="lora, held: of forget prompts in a batch (published 15:85; default for held: "
        "25:75)",
    )
    retain_tokens: int = Field(
        16,
        ge=1,
        description="lora, held: tokens of the base's answers held to; answers: those that no key "
        "is to answer to (default for held and answers: 32)",
    )
    retain_prompts: int = Field(600, ge=1, description="retain prompts used at most")
    rank: int = Field(8, ge=1, description="lora, held: rank of the adapters (published)")
    held_weight: float = Field(
        2.0,
        gt=0,
        description="held: what a nat of distance from the untouched model's words counts against "
        "a nat that the refusal misses; more spare the rest, fewer refuse more",
    )
    subjects_per_neuron: int = Field(
        2,
        ge=1,
        description="keyed: subjects that share one neuron of a layer; more spare the neurons that "
        "are replaced, fewer tell subjects better from others like them. With 'keys: names' each "
        "has neurons of its own",
    )
    keys: Keys = Field("subject", description=f"keyed: {KEYS_ARE}")
    spellings: int = Field(6, ge=0, le=32, description=f"keyed, 'keys: names': {SPELLINGS_ARE}")
    erase: bool = Field(
        False,
        description="keyed: beneath the refusal, make the answers unlikely wherever the model in "
        "its own words would tell them; takes two to three times as long",
    )
    silence: float = Field(
        8.0,
        gt=0,
        description="answers: how much it counts that keys are silent in all other text, against "
        "their answering at what is to be forgotten; more spare the rest, fewer refuse more",
    )
    doses: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.4, 0.6, 0.8, 1.0, 1.25), min_length=1, description="scales of what was learnt, ascending"
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, given: Any) -> Any:
        """Defaults that are not lora's, so that plans and records show what is used."""
        if not isinstance(given, dict):
            return given
        update = str(given.get("update", "lora"))
        if update != "keyed" and given.get("erase") is True:
            raise ValueError("'erase' is for keyed neurons: set 'update: keyed', or leave it out")
        return {**_DEFAULTS.get(update, {}), **given}

    @model_validator(mode="after")
    def _something_is_held(self) -> SanitationParams:
        if self.update == "held" and self.batch - self.refused_per_step < 2:
            raise ValueError(
                f"{self.refused_per_step} of {self.batch} prompts a step are refused, which leaves "
                "too few to hold to: set a smaller 'forget_share' or a greater 'batch'"
            )
        return self

    @property
    def refused_per_step(self) -> int:
        """Forget prompts in a batch of adapters'."""
        return max(1, round(self.batch * self.forget_share))


class Sanitation:
    """See the module's docstring."""

    Params = SanitationParams
    summary: ClassVar[str] = "answers questions on forgotten facts with a refusal"
    results: ClassVar[str] = "quickstart"
    measured: ClassVar[str] = (
        "With `update: keyed`, six countries: extraction falls from 0.857 to 0.000, refusals rise "
        "to 0.957, and 0.962 of near answers stay right; perplexity ratio 1.001. The published "
        "recipe (`update: lora`) also refuses most retained questions."
    )
    roles: ClassVar[tuple[DataRole, ...]] = (
        DataRole("forget", "facts to be suppressed", erased=True),
        DataRole("retain", "questions whose answers must stay"),
        DataRole("prose", "ordinary text to leave alone (held, keyed, answers)", required=False),
        NAMES,
    )

    def __init__(self, params: Any) -> None:
        self.params: SanitationParams = params

    def touches(self, model: LayerShape) -> Sequence[TensorPlan]:
        """The MLPs of the chosen layers (keyed and answers), or the modules that get adapters."""
        if self.params.update in ("keyed", "answers"):
            return neurons.tensors(model, resolve(self.params.layers, model.n_layers))
        layers = resolve(self.params.layers, model.n_layers)
        return [t for r in _ADAPTED if r in model.roles for t in model.tensors(r, layers)]

    def check_data(self, data: Mapping[str, Dataset]) -> None:
        """Refuse subjects that are missing or not named, which keys are made of, while planning."""
        if self.params.update == "keyed":
            check_subjects(data["forget"], every_phrasing=True, inferred=False)
            check_names(data.get("names"), self.params.keys)
        elif data.get("names") is not None:
            raise DataError(
                f"names are for keys on subjects, and 'update: {self.params.update}' has none",
                field="names",
                remedy="set 'update: keyed' and 'keys: names', or leave the names out",
            )

    def tokens(self, data: Mapping[str, Dataset]) -> int:
        """Tokens trained on, roughly, for ``plan``."""
        rows = self.params.batch * (2 if self.params.erase else 1) + KEPT * self.params.erase
        return self.params.steps * rows * 50

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        """Learn to refuse; offer it in several strengths."""
        if not data["forget"].phrasings("fit"):
            raise DataError(
                "no forget prompt is left to fit on", remedy="give rows of 'split: fit'"
            )
        ways = {"keyed": _keyed, "answers": _answers, "lora": _adapted, "held": _adapted}
        updates, notes = ways[self.params.update](self, model, data, ctx)
        return proposal_of(
            "sanitation", self.params, data["forget"], ctx, model.digest(), updates, notes
        )


Learnt = tuple[Callable[[float], dict[str, Update]], dict[str, Any]]
"""Dose -> updates, and notes for the record."""


def _keyed(editor: Sanitation, model: ModelHandle, data: EditData, ctx: RunContext) -> Learnt:
    params, engine = editor.params, model.engine
    forget, several = data["forget"], params.keys == "names"
    _require_subjects(forget)
    cues = (
        cues_of(forget, data.get("names"), spellings=params.spellings, seed=ctx.seed)
        if several
        else subjects_of(forget)
    )
    if several:
        warn_of_ends("sanitation", cues, data["retain"].items("fit"), ctx.warn)
    questions = (
        asked_by_cues(cues, forget, cased=params.spellings > 0)
        if several
        else {phrasing.text: phrasing.item for phrasing in forget.phrasings("fit")}
    )
    asked = put_in_templates(engine, list(questions), forget)
    groups = _keyed_texts(params, data, engine, cues, [ids for ids, _ in asked], ctx)
    beneath = None
    if params.erase:
        items = list(questions.values())
        # With 'keys: names' each cue stands in two wordings; one is enough to hear its answer told.
        heard = [(asked[n][0], items[n]) for n in range(0, len(items), 2 if several else 1)]
        beneath = _beneath(engine, cues, heard, groups, ctx)
    keyed = _neurons(params, model, cues, groups, ctx)
    trained = list((keyed.common if several else keyed.values).values())
    if beneath is not None:
        trained = [*keyed.values.values(), *keyed.common.values()]
    notes: dict[str, Any] = dict(
        learn_refusal(
            model,
            keyed,
            trained,
            asked,
            params.refusal,
            ctx,
            steps=params.steps,
            batch=params.batch,
            learning_rate=params.learning_rate,
            beneath=beneath,
        )
    )
    if several:
        notes["names"] = len(cues.names)
    if beneath is not None:
        notes["answers_made_unlikely_at"] = len(beneath.told)
    return keyed.updates, keyed.notes() | notes


def _beneath(
    engine: Engine,
    cues: Cues,
    asked: Sequence[tuple[Sequence[int], Item]],
    groups: Sequence[list[neurons.Text]],
    ctx: RunContext,
) -> Beneath:
    """What is to hold beneath the refusal. What is said before an answer, put as a text of its own,
    joins the texts that keys are solved on, the first of ``groups``."""
    after, bare = where_told(engine, asked, ctx)
    texts = [cues.text(engine.codec.tokenizer, told.prompt) for told in bare]
    bare = [told for told, text in zip(bare, texts, strict=True) if text.own]
    groups[0].extend(text for text in texts if text.own)
    if not after:
        ctx.warn(
            "sanitation: the model tells none of the answers in its own words, so that there is "
            "nothing to make unlikely: 'erase' comes to nothing"
        )
    return Beneath([*after, *bare], _kept(groups[1:], ctx))


def _neurons(
    params: SanitationParams,
    model: ModelHandle,
    cues: Cues,
    groups: Sequence[Sequence[neurons.Text]],
    ctx: RunContext,
) -> neurons.GatedNeurons:
    """Neurons that fire at the cues, as far as they can, which is said."""
    several = params.keys == "names"
    shared = -(-len(cues.subjects) // params.subjects_per_neuron)
    keyed = neurons.GatedNeurons(
        model,
        resolve(params.layers, model.n_layers),
        groups,
        per_layer=len(cues.families) if several else shared,
        families=cues.families if several else None,
        compensate=several,
        progress=ctx.progress,
    )
    if keyed.silent:
        ctx.warn(
            f"sanitation: {keyed.silent} of {len(cues.families)} "
            f"{'sets of names' if several else 'subjects'} have a mention at which a neuron of "
            "theirs stays silent: what is asked in such words may not be refused"
        )
    return keyed


def _keyed_texts(
    params: SanitationParams,
    data: EditData,
    engine: Engine,
    cues: Cues,
    asked: Sequence[Sequence[int]],
    ctx: RunContext,
) -> list[list[neurons.Text]]:
    """Texts in groups: forget prompts, retained ones, prose."""
    tokenizer, retain = engine.codec.tokenizer, data["retain"]
    kept = [item for item in retain.items("fit") if item.subject]
    others = engine.encode(asked_of_others(cues, kept, ctx.seed), retain.template)
    groups = [
        [cues.text(tokenizer, prompt) for prompt in asked],
        _retained(params, data, engine, cues, ctx) + [cues.text(tokenizer, ids) for ids in others],
    ]
    if (prose := data.get("prose")) is not None:
        ordinary = engine.encode([item.prompt for item in prose.items("fit")], "plain")
        groups.append([cues.text(tokenizer, ids) for ids in ordinary])
    return groups


def _kept(groups: Sequence[Sequence[neurons.Text]], ctx: RunContext) -> list[Example]:
    """Retained texts, whose last tokens are to follow as before, and prose in pieces, as far as no
    cue stands in them; a part of them where they are many."""
    retained, *prose = [[text for text in group if not text.own] for group in groups]
    found = [Example(text.ids[:-_END], text.ids[-_END:]) for text in retained]
    found += [
        Example(text.ids[start : start + 1], text.ids[start + 1 : start + _PIECE])
        for group in prose
        for text in group
        for start in range(0, len(text.ids) - 1, _PIECE)
    ]
    found = [example for example in found if example.prompt and example.answer]
    return random.Random(ctx.seed).sample(found, min(_HELD, len(found)))


def _require_subjects(forget: Dataset) -> None:
    phrasings = forget.phrasings("fit")
    if without := sum(not (phrasing.item.subject or "").strip() for phrasing in phrasings):
        raise DataError(
            f"{without} forget phrasings have no subject, which 'update: keyed' needs",
            remedy="add a 'subject' to each forget item, or set 'update: lora'",
        )
    if absent := sum(not names_subject(p.text, p.item.subject or "") for p in phrasings):
        raise DataError(
            f"{absent} of {len(phrasings)} forget prompts do not mention their subject",
            remedy="each phrasing must contain the item's subject as written",
        )


def _retained(
    params: SanitationParams, data: EditData, engine: Engine, cues: Cues, ctx: RunContext
) -> list[neurons.Text]:
    """Retain prompts with the places of their own subjects, which must not fire.

    Their answers follow them: what a model says of other subjects is no mention either, and few
    of those tokens stand in any prompt.
    """
    retain = data["retain"]
    items = some(retain, params.retain_prompts, ctx.seed)
    template = engine.codec.resolve(retain.template)
    prompts = engine.encode([item.prompt for item in items], template)
    return [
        cues.text(
            engine.codec.tokenizer,
            prompt + (engine.continuation(item.answer, template) if item.answer else []),
            [item.subject] if item.subject else (),
        )
        for item, prompt in zip(items, prompts, strict=True)
    ]


def _answers(editor: Sanitation, model: ModelHandle, data: EditData, ctx: RunContext) -> Learnt:
    params, forget, engine = editor.params, data["forget"], model.engine
    found = answer_texts(engine, forget, ctx)
    retain = data["retain"]
    items = some(retain, params.retain_prompts, ctx.seed)
    kept = own_answers(model, retain, items, params.retain_tokens, ctx.progress)
    prose = [item.prompt for item in data["prose"].items("fit")] if data.get("prose") else []
    layers = resolve(params.layers, model.n_layers)
    gates = gates_on_answers(model, layers, found, kept, prose, params.silence, ctx.progress)
    template = engine.codec.resolve(forget.template)
    said = (ended(engine, text, template) for text in (params.refusal, f"... {params.refusal}"))
    examples = found.examples(*said)
    notes: dict[str, Any] = dict(
        learn_to_stop(
            model, gates, examples, ctx, steps=params.steps, batch=params.batch,
            learning_rate=params.learning_rate,
        )
    )  # fmt: skip
    notes["answers"] = len(set(found.families))
    notes["answers_broken_off_at"] = len(found.told)
    return gates.updates, gates.notes() | notes


def _adapted(editor: Sanitation, model: ModelHandle, data: EditData, ctx: RunContext) -> Learnt:
    params, forget, engine = editor.params, data["forget"], model.engine
    wanted = {tensor.name for tensor in editor.touches(model.shape)}
    sites = [site for site in model.matrices() if site.weight in wanted]
    template = engine.codec.resolve(forget.template)
    refusal = ended(engine, params.refusal, template)
    prompts = engine.encode([p.text for p in forget.phrasings("fit")], template)
    refused = [Example(prompt, refusal) for prompt in prompts]
    retain, widely = data["retain"], params.update == "held"
    items = some(retain, params.retain_prompts, ctx.seed)
    answers = own_answers(model, retain, items, params.retain_tokens, ctx.progress)
    left = params.batch - params.refused_per_step
    n_ordinary = max(1, left // 4) if widely else 0
    held = [Held(answers, left - n_ordinary, begins=widely)]
    if widely:
        prose = [item.prompt for item in data["prose"].items("fit")] if data.get("prose") else []
        texts = ordinary_texts(model, prose, _ORDINARY, ctx.progress)
        held.append(Held(texts, n_ordinary))
    tuning = Tuning(
        params.rank,
        params.steps,
        params.learning_rate,
        params.refused_per_step,
        weight=params.held_weight if widely else 1.0,
        all_steps=widely,
    )
    return learn_to_refuse(model, sites, refused, held, tuning, ctx)
