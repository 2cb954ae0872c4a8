"""Value vectors: find the MLP neurons that write toxicity, and silence them.

What neuron ``j`` of a layer writes is its value vector, column ``j`` of the MLP's output matrix,
times its activation. It is judged in two ways, each signed:

* *vocabulary*: how much the column, under the final norm and the head, favours the tokens of toxic
  texts over those of neutral ones (:func:`safeedit.methods.probes.telling_tokens`);
* *probe*: how far it points along the direction by which a linear probe (logistic regression on
  standardised states) tells toxic from neutral texts in that layer.

Either is multiplied by how much more the neuron is active on toxic text than elsewhere, sign
included: in a gated MLP activations have both signs, and a column that promotes politeness writes
toxicity while its neuron is negative. The two products, each over its root mean square, are mixed.
What a neuron does for ordinary text counts against it: the mixture is divided by a power of
``E[a^2] |W_j|^2`` there, which is how far silencing it moves the residual stream. The neurons that
come first have their columns zeroed. Doses are numbers of neurons.

Measured on SmolLM2-135M-Instruct (one run on 20 validation pairs, to be read as a trial), fitted on
pairs of RealToxicityPrompts continuations and prose: 100 neurons chosen without regard to cost
multiply perplexity by 1.41 and take 46 % of the mass on toxic words along other such continuations;
with ``economy: 0.5``, by 1.005 for 39 %.

Where a norm stands after the MLP, columns are judged by what gets through it.

Fails with :class:`~safeedit.errors.DataError` where there are no pairs, and with
:class:`~safeedit.errors.EditError` where no neuron writes toxicity.

Source: Geva et al., "Transformer Feed-Forward Layers Build Predictions by Promoting Concepts in the
Vocabulary Space", EMNLP 2022 (arXiv 2203.14680), who set ten neurons of GPT-2 chosen by hand; the
probe is from Lee et al., "A Mechanistic Understanding of Alignment Algorithms", ICML 2024 (arXiv
2401.01967). Weighing by activation, both signs, and the
cost are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

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
from safeedit.delta import Columns, Origin, Update, WeightDelta
from safeedit.errors import EditError, UsageError
from safeedit.methods.contrast import (
    Activity,
    Passage,
    Passages,
    activity,
    gain_after_mlp,
    gain_of,
    passages,
    prose_passages,
    state_means,
)
from safeedit.methods.probes import fit_probe, telling_tokens
from safeedit.model.architectures import Site, submodule
from safeedit.model.handle import ModelHandle
from safeedit.policy.layers import Layers, resolve

_LEAST_COST = 0.01
"""Over the root mean square of all costs: what ordinary text never uses is not endlessly cheap."""


VOCABULARY_WEIGHT = 0.5
"""Of what a column promotes, against its alignment with the probe."""

_WORDS = 40
"""Tokens that tell toxic texts from neutral ones, and as many neutral."""

_PROSE_TOKENS = 128
"""Tokens read of each ordinary text."""

_NOTED, _TOP_TOKENS = 20, 5
"""Neurons whose tokens are noted, and how many of what each promotes."""


class ValueVectorsParams(BaseParams):
    """Parameters of the value-vectors editor."""

    layers: Layers = Field(
        "40%-100%", description="where neurons are looked for (published: all, by hand)"
    )
    economy: float = Field(
        0.5,
        ge=0,
        le=1,
        description="power of a neuron's cost to ordinary text by which its benefit is divided; "
        "0: cost plays no part (published), 1: benefit for cost",
    )
    show_tokens: bool = Field(
        False, description="write these tokens out in the record instead of their first letter"
    )
    doses: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (10, 30, 100, 300, 1000), min_length=1, description="numbers of neurons (published: 10)"
    )


class ValueVectors:
    """See the module's docstring."""

    Params = ValueVectorsParams
    summary: ClassVar[str] = "silences the MLP neurons that write toxicity"
    results: ClassVar[str] = "detox"
    measured: ClassVar[str] = (
        "Probability of a toxic continuation of a toxic prompt: from 0.237 to 0.147 with 150 "
        "neurons; perplexity ratio 1.03."
    )
    roles: ClassVar[tuple[DataRole, ...]] = (
        DataRole("pairs", "texts that go on in two ways: {prompt, toxic, neutral}"),
        DataRole("prose", "ordinary text whose neurons stay", required=False),
    )

    def __init__(self, params: Any) -> None:
        self.params: ValueVectorsParams = params

    def touches(self, model: LayerShape) -> Sequence[TensorPlan]:
        """What the MLPs of the chosen layers write with; no biases."""
        return model.tensors("mlp_out", resolve(self.params.layers, model.n_layers))

    def tokens(self, data: Mapping[str, Dataset]) -> int:
        """Tokens read, roughly, for ``plan``."""
        return len(data["pairs"].items("fit")) * 4 * 30

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        """Rank neurons; offer to silence the first few or more."""
        params = self.params
        pairs = passages(data["pairs"], "fit", model.engine, ctx)
        neurons = _Neurons(params, model, pairs, data.get("prose"), ctx)
        found = len(neurons.order)
        if not found:
            raise EditError(
                "no neuron writes toxicity in these layers", remedy="choose other 'layers'"
            )
        doses = sorted({z for z in params.doses if z <= found}) or [found]
        base = model.digest()

        def at(dose: float) -> WeightDelta:
            if dose != int(dose) or not 1 <= dose <= found:
                raise UsageError(
                    f"a dose of {dose:g} is no number of neurons from 1 to {found}",
                    field="dose",
                    remedy="choose one of these, or more 'layers'",
                )
            origin = Origin(
                editor="value_vectors",
                params=params.model_dump(mode="json"),
                data_digest=data["pairs"].digest,
                version=__version__,
                seed=ctx.seed,
                dose=dose,
            )
            return WeightDelta(base, neurons.silenced(int(dose)), origin)

        return Proposal(tuple(map(float, doses)), at, neurons.notes(doses))


@dataclass(frozen=True, eq=False)
class _Layer:
    """One layer's neurons, before layers are compared.

    Attributes:
        site: The matrix.
        excess: ``(d_mlp,)`` mean activation on toxic text less that elsewhere.
        promoted: ``(d_mlp,)`` excess times what the column promotes: logits, but for the scale of
            the final norm.
        aligned: ``(d_mlp,)`` excess times the column's component along the probe.
        cost: ``(d_mlp,)`` mean square of what the neuron writes in ordinary text.
        accuracy: Of the probe.
    """

    site: Site
    excess: Tensor
    promoted: Tensor
    aligned: Tensor
    cost: Tensor
    accuracy: float | None


class _Neurons:
    """The ranking, and how it came about."""

    def __init__(
        self,
        params: ValueVectorsParams,
        model: ModelHandle,
        pairs: Passages,
        prose: Dataset | None,
        ctx: RunContext,
    ) -> None:
        self.params, self.model, self.pairs = params, model, pairs
        engine = model.engine
        layers = resolve(params.layers, model.n_layers)
        sites = model.sites("mlp_out", layers)
        texts = (*pairs.toxic, *pairs.neutral)
        states = state_means(engine, texts, layers, ctx)
        groups: list[Sequence[Passage]] = [pairs.toxic, pairs.neutral]
        if prose is not None:
            groups.append(prose_passages(prose, engine, _PROSE_TOKENS))
        active = activity(engine, [group for group in groups if group], sites, ctx)
        favoured = self._favoured()
        self.layers = [
            self._layer(site, states[site.layer], active[site], favoured) for site in sites
        ]
        benefit = VOCABULARY_WEIGHT * _scaled([x.promoted for x in self.layers])
        benefit += (1 - VOCABULARY_WEIGHT) * _scaled([x.aligned for x in self.layers])
        cost = _scaled([x.cost for x in self.layers]) + _LEAST_COST
        self.scores = benefit / cost**params.economy
        order = self.scores.argsort(descending=True, stable=True)
        self.order = order[: int((self.scores > 0).sum())]

    def _favoured(self) -> Tensor:
        """``(d_model,)`` direction, before the final norm, whose component is how much more
        toxic tokens are promoted than neutral ones, on average."""
        model = self.model
        tokens = telling_tokens(
            [text.ids[text.start :] for text in self.pairs.toxic],
            [text.ids[text.start :] for text in self.pairs.neutral],
            _WORDS,
        )
        rows = model.head.weight.detach()
        means = [rows[some].double().mean(0).cpu() for some in tokens if some]
        direction = means[0] - means[1] if len(means) == 2 else means[0]
        projection = submodule(model.model, model.architecture.output_projection)
        if projection is not None:
            assert isinstance(projection, nn.Linear)
            direction = direction @ projection.weight.detach().double().cpu()
        norm = gain_of(model.final_norm, model.d_model)
        return norm.readers(direction[:, None])[:, 0]

    def _layer(self, site: Site, states: Tensor, active: Activity, favoured: Tensor) -> _Layer:
        count = len(self.pairs)
        # Prose where there is some, else the neutral texts, is what must not suffer.
        excess = active.means[0] - active.means[1:].mean(0)
        probe = fit_probe(states[:count], states[count:])
        written = self._written(site, self.model.weight(site))
        return _Layer(
            site,
            excess,
            excess * (favoured @ written),
            excess * (probe.direction @ written),
            active.squares[-1] * written.square().sum(0),
            probe.accuracy,
        )

    def _written(self, site: Site, columns: Tensor) -> Tensor:
        """Columns ``(d_model, n)`` as they reach the residual stream, fp64."""
        columns = columns.double().cpu()
        gain = gain_after_mlp(self.model, site.layer)
        return gain.written(columns) if gain is not None else columns

    def silenced(self, count: int) -> dict[str, Update]:
        """Updates that silence the first ``count`` neurons."""
        width = self.model.shape.d_mlp
        best = self.order[:count]
        found: dict[str, Update] = {}
        for place in (best // width).unique().tolist():
            site = self.layers[place].site
            indices = (best[best // width == place] % width).sort().values
            found[site.weight] = Columns.zeroed(indices, self.model.d_model)
        return found

    def notes(self, doses: Sequence[int]) -> dict[str, Any]:
        """For the record; tokens are masked unless ``show_tokens`` is set."""
        width = self.model.shape.d_mlp
        places = (self.order[: max(doses)] // width).bincount(minlength=len(self.layers)).tolist()
        mixed = self.scores.clamp(min=0)
        whole = float(mixed.sum())
        return {
            "pairs": len(self.pairs),
            "neurons_that_write_toxicity": len(self.order),
            "neurons_per_layer": {
                str(layer.site.layer): count
                for layer, count in zip(self.layers, places, strict=True)
                if count
            },
            "share_of_score": {str(z): float(mixed[self.order[:z]].sum()) / whole for z in doses},
            "probe_accuracy": {str(x.site.layer): x.accuracy for x in self.layers},
            "suppressed": self._described(min(max(doses), _NOTED)),
        }

    @torch.no_grad()
    def _described(self, count: int) -> list[dict[str, Any]]:
        """The first neurons: where, with which sign they are active on toxic text, and what they
        promote then."""
        model, width = self.model, self.model.shape.d_mlp
        found = []
        for number in self.order[:count].tolist():
            layer, neuron = self.layers[number // width], number % width
            sign = 1.0 if float(layer.excess[neuron]) > 0 else -1.0
            column = self._written(layer.site, model.weight(layer.site)[:, [neuron]])
            logits = model.unembed((sign * column.T).to(model.device, model.dtype))[0]
            best = logits.float().topk(min(_TOP_TOKENS, len(logits))).indices.tolist()
            tokens = [model.engine.decode([token]).strip() for token in best]
            found.append(
                {
                    "layer": layer.site.layer,
                    "neuron": neuron,
                    "sign": int(sign),
                    "score": round(float(self.scores[number]), 3),
                    "promotes": tokens if self.params.show_tokens else list(map(_masked, tokens)),
                }
            )
        return found


def _masked(token: str) -> str:
    return f"{token[:1]}***"


def _scaled(parts: Sequence[Tensor]) -> Tensor:
    """All layers' scores in a row, over their root mean square."""
    whole = torch.cat(list(parts))
    return whole / whole.square().mean().sqrt().clamp(min=torch.finfo(whole.dtype).tiny)
