"""DEPN: find the MLP neurons that make secrets likely, and zero them.

Neurons are attributed to every secret and ranked over all of them
(:mod:`safeedit.methods.neuron_ranking`); the columns of the first become zero: a vanilla
checkpoint, whose old columns are all that undoing needs. Doses are numbers of neurons.

What departs from the publication (``preset: gain``), and why:

* The log-odds of a token are attributed: its probability, or the logarithm of that, has next to no
  gradient where a secret is known by heart.
* Attributions are divided by what a neuron is worth to ordinary text, to first and second order.
* Neurons that write an attention sink stay: attributions, taken where tokens are predicted, do not
  see what all attention rests on.
* Neurons are taken by the sum of their attributions, not by votes.
* Neurons are taken in rounds: after ``round`` of them the rest is attributed anew, on the model
  without them, to the secrets it still knows and to ordinary text. What one neuron lets go others
  hold, and what ordinary text lost it leans on the more elsewhere.
* Gradient times activation at the model as it is, all layers in one pass, decides.

``preset: published`` takes votes on integrated gradients of probabilities, layer by layer; the
record says how far the first-order pass agrees. In either, the neuron's signed activation after the
gate counts, at the positions that predict the secret, at points 1..m rather than 0..m-1, and
columns are zeroed whatever the kind of secret.

Zeroing a neuron is felt by every text that uses it: audit untouched secrets beside the named ones,
for protecting some may expose others. Judge it against the runner's controls, which zero as many
random neurons in the same layers, and against zeroing the top neurons of ``others``, secrets that
are not named.

Fails with :class:`~safeedit.errors.DataError` where there is no secret to find or one is longer
than the context, and with :class:`~safeedit.errors.EditError` where no neuron supports any.

Source: Wu et al., "DEPN: Detecting and Editing Privacy Neurons in Pretrained Language Models",
EMNLP 2023 (arXiv 2310.20138), for BERT.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from safeedit import __version__
from safeedit.contracts import (
    BaseParams,
    Control,
    DataRole,
    EditData,
    LayerShape,
    Proposal,
    RunContext,
    TensorPlan,
)
from safeedit.data import Dataset
from safeedit.delta import Origin, WeightDelta
from safeedit.errors import EditError, UsageError
from safeedit.methods.neuron_ranking import GAIN, PUBLISHED, RankedNeurons, Recipe
from safeedit.methods.secrets import Secrets, read_secrets
from safeedit.methods.tuning import Example
from safeedit.model.handle import ModelHandle
from safeedit.policy.layers import Layers, resolve

RECIPES: dict[str, Recipe] = {"gain": GAIN, "published": PUBLISHED}
"""Preset -> how neurons are ranked."""

_GENERIC_TEXTS, _GENERIC_TOKENS = 24, 512
"""Generic texts used, and tokens of each attributed, at most: more told nothing else."""

_OTHERS = 24
"""Secrets that are not named of which so many are attributed for the control, at most."""

_PROSE_START = 8
"""Tokens of a generic text that are read before neurons are attributed to the rest."""


class DepnParams(BaseParams):
    """Parameters of DEPN."""

    layers: Layers = Field("0%-100%", description="where neurons are looked for (published: all)")
    preset: Literal["gain", "published"] = Field(
        "gain",
        description="gain: the sum of each neuron's attributions over what it costs ordinary text; "
        "published: votes of the secrets on integrated gradients, which takes far longer",
    )
    round: int | None = Field(
        50,
        ge=1,
        description="neurons taken before the rest is attributed anew, on the model without them "
        "and to the secrets it still knows; null: all by one attribution (default for published)",
    )
    doses: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (25, 50, 100, 200, 400, 800),
        min_length=1,
        description="numbers of neurons (published: 10 to 500)",
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, given: Any) -> Any:
        """The default that differs for published, so that plans and records show what is used."""
        if isinstance(given, dict) and given.get("preset") == "published":
            return {"round": None, **given}
        return given


class Depn:
    """See the module's docstring."""

    Params = DepnParams
    summary: ClassVar[str] = "zeroes the MLP neurons that make secrets likely"
    results: ClassVar[str] = "privacy"
    measured: ClassVar[str] = (
        "Twenty memorised records: extraction falls from 1 to 0, exposure above records never "
        "taught from 3.86 to 0.635 bits, perplexity ratio 1.02; records that nobody named go as "
        "well."
    )
    roles: ClassVar[tuple[DataRole, ...]] = (
        DataRole("forget", "secrets: what comes before one, and the secret as answer", erased=True),
        DataRole("generic", "ordinary text or questions whose neurons stay", required=False),
        DataRole(
            "others",
            "secrets that are not named: zeroing their neurons instead is a control",
            required=False,
            erased=True,
            comparison_only=True,
        ),
    )

    def __init__(self, params: Any) -> None:
        self.params: DepnParams = params

    def touches(self, model: LayerShape) -> Sequence[TensorPlan]:
        """What the MLPs of the chosen layers write with; no biases."""
        return model.tensors("mlp_out", resolve(self.params.layers, model.n_layers))

    def tokens(self, data: Mapping[str, Dataset]) -> int:
        """Tokens run forward and back through half a model, roughly, for ``plan``."""
        secrets = len(data["forget"].phrasings("fit"))
        recipe = RECIPES[self.params.preset]
        return secrets * 10 * recipe.points * (recipe.exact_layers or 16)

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        """Rank neurons; offer to zero the first few or more."""
        params, recipe = self.params, RECIPES[self.params.preset]
        secrets, notes = read_secrets(recipe.known_above, model, data["forget"], ctx)
        generic = _generic(model, data.get("generic"))
        ranked = partial(
            RankedNeurons,
            recipe,
            model,
            generic=generic,
            layers=resolve(params.layers, model.n_layers),
            most=max(params.doses),
            progress=ctx.progress,
        )
        neurons = ranked(secrets, at_a_time=params.round)
        known = len(neurons.order)
        if not known:
            raise EditError(
                "no neuron makes any of the secrets likelier", remedy="choose other 'layers'"
            )
        doses = sorted({z for z in params.doses if z <= known}) or [known]
        base = model.digest()

        def at(dose: float) -> WeightDelta:
            if dose != int(dose) or not 1 <= dose <= known:
                raise UsageError(
                    f"a dose of {dose:g} is no number of neurons from 1 to {known}, "
                    "which is how many the secrets vote for",
                    field="dose",
                    remedy="choose one of these",
                )
            origin = Origin(
                editor="depn",
                params=params.model_dump(mode="json"),
                data_digest=data["forget"].digest,
                version=__version__,
                seed=ctx.seed,
                dose=dose,
            )
            return WeightDelta(base, neurons.zeroed(int(dose)), origin)

        @cache
        def unrelated() -> RankedNeurons | None:
            if data.get("others") is None:
                ctx.warn("depn: without 'others' there is no control with another set's neurons")
                return None
            others = _others(recipe, model, data["others"], ctx)
            return ranked(others, read=neurons.rounds[0].generic)

        def controls(dose: float) -> tuple[Control, ...]:
            found = unrelated()
            return () if found is None else _control(neurons, found, int(dose), base, ctx)

        notes |= {"generic_texts": len(generic)} | neurons.notes(doses)
        return Proposal(tuple(map(float, doses)), at, notes, controls)


def _control(
    neurons: RankedNeurons, unrelated: RankedNeurons, count: int, base: str, ctx: RunContext
) -> tuple[Control, ...]:
    """Zeroing as many neurons of other secrets instead; nothing where there are none."""
    if not len(unrelated.order):
        ctx.warn("depn: no neuron makes the other secrets likelier: no control with them")
        return ()
    shared = len(unrelated.top(count) & neurons.top(count))
    delta = WeightDelta(base, unrelated.zeroed(count), Origin(editor="depn", seed=ctx.seed))
    return (Control(f"top {count} neurons of other secrets ({shared} of them the same)", delta),)


def _others(recipe: Recipe, model: ModelHandle, data: Dataset, ctx: RunContext) -> Secrets:
    """A seeded choice of the secrets that are not named, each once."""
    found, _ = read_secrets(recipe.known_above, model, data, ctx)
    places = list(range(len(found.texts)))
    random.Random(ctx.seed).shuffle(places)
    chosen = sorted(places[:_OTHERS])
    return Secrets(tuple(found.texts[i] for i in chosen), tuple(found.kinds[i] for i in chosen))


def _generic(model: ModelHandle, data: Dataset | None) -> tuple[Example, ...]:
    """Ordinary texts: questions with their answers, or the beginnings of prose."""
    if data is None:
        return ()
    engine, found = model.engine, []
    for item in data.items("fit"):
        if item.answer:
            template = engine.codec.resolve(data.template)
            (prompt,) = engine.encode([item.prompt], template)
            answer = engine.continuation(item.answer, template)[:_GENERIC_TOKENS]
        else:
            (ids,) = engine.encode([item.prompt], "plain")
            cut = min(_PROSE_START, max(2, len(ids) // 2))
            prompt, answer = ids[:cut], ids[cut : cut + _GENERIC_TOKENS]
        if prompt and answer and len(prompt) + len(answer) <= engine.context:
            found.append(Example(prompt, answer))
        if len(found) == _GENERIC_TEXTS:
            break
    return tuple(found)
