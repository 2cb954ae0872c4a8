"""Knowledge neurons: the few MLP neurons that all wordings of a fact rest on, zeroed.

For each fact, neurons are attributed to its answer in each wording (integrated gradients of the
answer's probability). A neuron is the fact's if its attribution reaches ``threshold`` of the
greatest in at least ``agreement`` of the wordings: what only one wording uses is syntax. The
strongest of them are silenced: their columns of the MLP output become zero.

Doses are neurons per fact. As a locator it is the ancestor of `depn`; as an eraser it is a
baseline, for a fact does not live in a handful of neurons: expect answers to become less likely
rather than to go, and other facts of the same relation to suffer.

What departs from the publication: answers of several tokens count (probabilities are summed over
tokens); layers in which gradient times activation sees least are not integrated (``exact_layers``);
doses bound the number of neurons in place of its adapted thresholds.

Fails with :class:`~safeedit.errors.EditError` where no neuron supports any fact.

Source: Dai et al., "Knowledge Neurons in Pretrained Transformers", ACL 2022 (arXiv 2104.08696),
section 3: 20 points, threshold 0.2, agreement 0.7, 2 to 5 neurons a fact.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
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
from safeedit.data import Dataset
from safeedit.delta import Columns, Origin, Update, WeightDelta
from safeedit.errors import DataError, EditError, UsageError
from safeedit.methods.attribution import Attributor
from safeedit.methods.tuning import Example
from safeedit.methods.votes import rank
from safeedit.model.handle import ModelHandle
from safeedit.policy.layers import Layers, resolve

_POINTS = 20
"""Of the integral (published)."""


class KnowledgeNeuronsParams(BaseParams):
    """Parameters of knowledge neurons."""

    layers: Layers = Field("0%-100%", description="where neurons are looked for (published: all)")
    exact_layers: int = Field(
        6, ge=1, description="layers that are integrated: those of the greatest first-order effect"
    )
    threshold: float = Field(
        0.2, gt=0, le=1, description="share of the greatest attribution that counts (published)"
    )
    agreement: float = Field(
        0.7, gt=0, le=1, description="share of a fact's wordings that must agree (published)"
    )
    doses: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1, 2, 5, 10, 20), min_length=1, description="neurons per fact, ascending (published: 2-5)"
    )


class KnowledgeNeurons:
    """See the module's docstring."""

    Params = KnowledgeNeuronsParams
    summary: ClassVar[str] = "zeroes the few neurons that all wordings of a fact rest on"
    baseline: ClassVar[bool] = True
    results: ClassVar[str] = "editors"
    measured: ClassVar[str] = (
        "Twelve facts on countries, two neurons each: 0.167 are told, 0.458 of near answers "
        "stay right, perplexity ratio 1.23."
    )
    roles: ClassVar[tuple[DataRole, ...]] = (
        DataRole("forget", "facts to be erased, in several wordings", erased=True, answered=True),
    )

    def __init__(self, params: Any) -> None:
        self.params: KnowledgeNeuronsParams = params

    def touches(self, model: LayerShape) -> Sequence[TensorPlan]:
        """What the MLPs of the chosen layers write with; no biases."""
        return model.tensors("mlp_out", resolve(self.params.layers, model.n_layers))

    def tokens(self, data: Mapping[str, Dataset]) -> int:
        """Tokens run forward and back through half a model, roughly, for ``plan``."""
        prompts = len(data["forget"].phrasings("fit"))
        return prompts * 10 * _POINTS * self.params.exact_layers

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        """Find each fact's neurons; offer to silence the first of them or more."""
        params = self.params
        facts, examples = _wordings(model, data["forget"])
        layers = resolve(params.layers, model.n_layers)
        if len(layers) > params.exact_layers:
            layers = self._promising(model, examples, layers, ctx)
        attributor = Attributor(model, examples, measure="probability")
        scores = attributor.integrated(layers, _POINTS, ctx.progress).scores.flatten(1)
        lists = [self._own(scores[torch.tensor(rows)]) for rows in facts]
        if not any(lists):
            raise EditError(
                "no neuron supports any of the facts in enough wordings",
                remedy="lower 'agreement' or 'threshold', or choose other 'layers'",
            )
        most = max(map(len, lists))
        doses = sorted({z for z in params.doses if z <= most}) or [most]
        base, width = model.digest(), model.shape.d_mlp
        sites = {site.layer: site.weight for site in model.sites("mlp_out", layers)}

        def at(dose: float) -> WeightDelta:
            if not 1 <= dose < 1e9 or dose != int(dose):
                raise UsageError(f"a dose of {dose:g} is no number of neurons", field="dose")
            found = defaultdict[str, list[int]](list)
            for neuron in sorted({n for own in lists for n in own[: int(dose)]}):
                found[sites[layers[neuron // width]]].append(neuron % width)
            updates: dict[str, Update] = {
                name: Columns.zeroed(torch.tensor(columns), model.d_model)
                for name, columns in found.items()
            }
            origin = Origin(
                editor="knowledge_neurons",
                params=params.model_dump(mode="json"),
                data_digest=data["forget"].digest,
                version=__version__,
                seed=ctx.seed,
                dose=dose,
            )
            return WeightDelta(base, updates, origin)

        notes = {
            "facts": len(facts),
            "facts_without_neurons": sum(not own for own in lists),
            "layers": list(layers),
            "neurons": len({n for own in lists for n in own}),
        }
        return Proposal(tuple(map(float, doses)), at, notes)

    def _promising(
        self,
        model: ModelHandle,
        examples: Sequence[Example],
        layers: Sequence[int],
        ctx: RunContext,
    ) -> tuple[int, ...]:
        """The layers whose neurons support the answers most, to first order."""
        attributor = Attributor(model, examples)
        found = attributor.first_order(layers, ctx.progress)
        worth = found.scores.clamp(min=0).sum((0, 2))
        best = worth.topk(self.params.exact_layers).indices.tolist()
        return tuple(sorted(found.layers[place] for place in best))

    def _own(self, scores: Tensor) -> list[int]:
        """A fact's neurons, strongest first, of ``(wordings, neurons)`` attributions."""
        ranking = rank(scores, threshold=self.params.threshold)
        enough = self.params.agreement * (len(scores) - ranking.abstained)
        votes = ranking.votes.tolist()
        return [n for n in ranking.order.tolist() if votes[n] >= enough]


def _wordings(model: ModelHandle, forget: Dataset) -> tuple[list[list[int]], list[Example]]:
    """Rows of each fact, and all fit wordings with their answers."""
    phrasings, engine = forget.phrasings("fit"), model.engine
    if not phrasings:
        raise DataError("no forget prompt is left to fit on", remedy="give rows of 'split: fit'")
    template = engine.codec.resolve(forget.template)
    prompts = engine.encode([phrasing.text for phrasing in phrasings], template)
    answers = engine.continuations([phrasing.item.answer or "" for phrasing in phrasings], template)
    rows = defaultdict[str, list[int]](list)
    for row, phrasing in enumerate(phrasings):
        rows[phrasing.item.id].append(row)
    return list(rows.values()), [Example(p, a) for p, a in zip(prompts, answers, strict=True)]
