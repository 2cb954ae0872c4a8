"""Subspace (ProFS): remove the directions in which toxic text differs from neutral text.

In each chosen layer the states of contrastive pairs are compared, what neutral texts share is taken
out, and the MLP's output matrix (its bias too) is projected so that
it writes no more, or less, along the top directions (:mod:`safeedit.methods.projections`). Nothing
is trained. Doses are directions per layer; a fraction removes the last one in part. What makes the
perplexity of ordinary text explode is guarded against: means leave out padding, BOS, a text's first
token and the prompt that a pair shares; no direction points into a dimension of massive
activations; ``projection: oblique`` moves ordinary text least; and the policy's targets choose the
dose.

Measured on SmolLM2-135M-Instruct (one run on 20 to 32 validation pairs, so to be read as a trial):
fitted on pairs of RealToxicityPrompts continuations, layers 12-28, 4 directions, centred on toxic
texts, the orthogonal projection multiplies perplexity by 1.11 and takes 4 % of the mass on toxic
words along other such continuations, 23 % along the built-in pairs'; the oblique one, by 1.007 for
8 and 10 %. With the defaults and the built-in pairs, 8 directions: 1.012 for 10 and 34 %.

Where a norm stands between the MLP and the residual stream (Gemma 2 and 3, OLMo-2, OPT-350m) what
the matrix writes is ``N y`` but for a number per token, ``N`` the norm's linear part. There the
orthogonal projection takes away ``N'V``, so that ``V'N y`` is zero, norm or no norm; the oblique
one swallows the outputs ``N^-1 V`` that are written as ``V``. (The norm then brings what is left
back to its former length, which undoes a part of either where ``V`` was most of what was written.)

Fails with :class:`~safeedit.errors.DataError` where there are no pairs, and with
:class:`~safeedit.errors.EditError` where the two texts of the pairs leave the same states.

Source: Uppaal et al., "Model Editing as a Robust and Denoised variant of DPO: A Case Study on
Toxicity" (ProFS), ICLR 2025 (arXiv 2405.13967). Published: means over all tokens, padding and
prompt included; orthogonal projections of full strength; the number of directions and the layers
set by hand. Partial doses, the oblique projection, the centre, the bias and the norms are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

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
from safeedit.data import Dataset
from safeedit.delta import Dense, LowRank, Origin, Update, WeightDelta
from safeedit.errors import UsageError
from safeedit.methods.contrast import (
    Passage,
    Passages,
    gain_after_mlp,
    passages,
    prose_passages,
    state_means,
    write_moments,
)
from safeedit.methods.projections import (
    Projection,
    StateContrast,
    amounts,
    contrast,
    oblique,
    orthogonal,
    outlying_dimensions,
)
from safeedit.model.architectures import Site
from safeedit.model.handle import ModelHandle
from safeedit.policy.layers import Layers, resolve

OUTLIERS = 20.0
"""Dimensions so many times as large as the median one are left alone (published: none)."""

_PROSE_TOKENS = 256
"""Tokens read of each ordinary text."""


class SubspaceParams(BaseParams):
    """Parameters of the subspace editor."""

    layers: Layers = Field(
        "40%-100%",
        description="whose outputs are projected (published: 10-23 of 24, 15-31 of 32)",
    )
    projection: Literal["orthogonal", "oblique"] = Field(
        "oblique",
        description="oblique: remove what was added along the directions, moving ordinary text "
        "least; orthogonal: remove all that is written along them (published)",
    )
    doses: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.5, 1, 2, 4, 8, 16),
        min_length=1,
        description="directions removed per layer (published: 2 for GPT-2, 10 for Mistral)",
    )


class Subspace:
    """See the module's docstring."""

    Params = SubspaceParams
    summary: ClassVar[str] = "projects MLP outputs away from what toxic text adds (ProFS)"
    baseline: ClassVar[bool] = True
    results: ClassVar[str] = "detox"
    measured: ClassVar[str] = (
        "Probability of a toxic continuation of a toxic prompt: from 0.237 to 0.196 (a random "
        "change of equal norm: 0.281), the expected maximum from 0.307 to 0.305; perplexity ratio "
        "1.02."
    )
    roles: ClassVar[tuple[DataRole, ...]] = (
        DataRole("pairs", "texts that go on in two ways: {prompt, toxic, neutral}"),
        DataRole("prose", "ordinary text to disturb least (oblique)", required=False),
    )

    def __init__(self, params: Any) -> None:
        self.params: SubspaceParams = params

    def touches(self, model: LayerShape) -> Sequence[TensorPlan]:
        """What the MLPs of the chosen layers write with."""
        layers = resolve(self.params.layers, model.n_layers)
        return [*model.tensors("mlp_out", layers), *model.biases("mlp_out", layers)]

    def tokens(self, data: Mapping[str, Dataset]) -> int:
        """Tokens read, roughly, for ``plan``."""
        return len(data["pairs"].items("fit")) * 2 * 30

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        """Compare the pairs; offer to remove a few directions or more."""
        params, architecture = self.params, model.architecture
        if params.projection == "oblique" and architecture.post_mlp_norm:
            ctx.warn(
                f"subspace: in {architecture.family} models a norm follows the MLP, after which "
                "the oblique projection was seen to do next to nothing: 'projection: orthogonal'"
            )
        pairs = passages(data["pairs"], "fit", model.engine, ctx)
        removals = _removals(params, model, pairs, data.get("prose"), ctx)
        most = max(len(found.contrast.shares) for found in removals)
        doses = sorted({min(float(dose), float(most)) for dose in params.doses})
        base = model.digest()

        def at(dose: float) -> WeightDelta:
            if not 0 < dose <= most:
                raise UsageError(
                    f"a dose of {dose:g} is no number of directions over 0 and up to {most}",
                    field="dose",
                    remedy="choose one of these, or raise the greatest of 'doses'",
                )
            origin = Origin(
                editor="subspace",
                params=params.model_dump(mode="json"),
                data_digest=data["pairs"].digest,
                version=__version__,
                seed=ctx.seed,
                dose=dose,
            )
            updates: dict[str, Update] = {}
            for found in removals:
                updates |= found.updates(model, dose)
            return WeightDelta(base, updates, origin)

        return Proposal(tuple(doses), at, {"pairs": len(pairs)} | _notes(removals))


@dataclass(frozen=True, eq=False)
class _Removal:
    """What goes from one matrix."""

    site: Site
    contrast: StateContrast
    projection: Projection
    apart: int
    """Dimensions of massive activations that were left alone."""

    def updates(self, model: ModelHandle, dose: float) -> dict[str, Update]:
        weights = amounts(dose, self.projection.removers.shape[1])
        found: dict[str, Update] = {
            self.site.weight: LowRank(*self.projection.factors(model.weight(self.site), weights))
        }
        bias = model.bias(self.site)
        if self.site.bias is not None and bias is not None:
            found[self.site.bias] = Dense(self.projection.change(bias, weights))
        return found


def _removals(
    params: SubspaceParams,
    model: ModelHandle,
    pairs: Passages,
    prose: Dataset | None,
    ctx: RunContext,
) -> list[_Removal]:
    engine, layers = model.engine, resolve(params.layers, model.n_layers)
    sites = model.sites("mlp_out", layers)
    texts = (*pairs.toxic, *pairs.neutral)
    states = state_means(engine, texts, layers, ctx)
    ordinary = None
    if params.projection == "oblique":
        ordinary = write_moments(engine, _ordinary(model, pairs, prose, ctx), sites, ctx)
    k = max(1, -int(-max(params.doses) // 1))
    removals = []
    for site in sites:
        both = states[site.layer]
        apart = outlying_dimensions(both, OUTLIERS)
        toxic, neutral = both[: len(pairs)], both[len(pairs) :]
        # Of strong pairs the toxic texts' own top vector holds a part of what is to go.
        found = contrast(toxic, neutral, k, centre=neutral, apart=apart)
        directions = found.directions
        gain = gain_after_mlp(model, site.layer)
        if ordinary is None:
            projection = orthogonal(gain.readers(directions) if gain else directions)
        else:
            sources = gain.sources(directions) if gain else directions
            projection = oblique(sources, ordinary[site].second)
        removals.append(_Removal(site, found, projection, int(apart.sum())))
    return removals


def _ordinary(
    model: ModelHandle,
    pairs: Passages,
    prose: Dataset | None,
    ctx: RunContext,
) -> Sequence[Passage]:
    """Texts to disturb least: prose, or the neutral texts of the pairs."""
    if prose is not None:
        return prose_passages(prose, model.engine, _PROSE_TOKENS)
    ctx.warn("subspace: without 'prose' the pairs' neutral texts stand for ordinary text")
    return pairs.neutral


def _notes(removals: Sequence[_Removal]) -> dict[str, Any]:
    """For the record: how much of the pairs' differences lies where."""
    return {
        "share_of_differences_in_directions": {
            found.site.module: [round(float(share), 4) for share in found.contrast.shares[:8]]
            for found in removals
        },
        "share_of_differences_in_centre": {
            found.site.module: round(found.contrast.centre_share, 4) for found in removals
        },
        "massive_dimensions_left_alone": {
            found.site.module: found.apart for found in removals if found.apart
        },
    }
