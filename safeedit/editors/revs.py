"""REVS: neurons that write a secret's rarest tokens are turned away from them, in vocabulary space.

For the rarest tokens of each secret, and layer by layer upwards: where the residual stream, read as
the head would read it, has the token among the likelier part of the vocabulary, the neurons are
taken that are most active there and among those the ones that write the token most (as what a
neuron writes is read by the head, with the sign of its activation). What such a neuron writes is
changed, one neuron after another, until the token has sunk as far as wanted in it, by the least
change that lowers only that token's logit in the sense of the head's pseudo-inverse; it ends when
the token has sunk in the residual stream too. No gradient is taken.

Doses are neurons changed per token and layer, at most. A rare token sinks for every text that would
use it where those neurons are active, so judge it on secrets that are not named and on prose.

What departs from the publication: ranks are shares of the vocabulary (published: some 90,000 of
128,000 for a neuron, 10,000 to 20,000 for the stream); the size of a neuron's change is solved for
instead of being grown and shrunk by factors; activations after a gate have a sign, and with a
negative one it is the negated neuron that writes. Where a norm follows the MLP, what a change does
to the stream is not predicted, and as many neurons are changed as the dose says. It is written from
the paper alone.

Fails with :class:`~safeedit.errors.DataError` where there is no secret, and with
:class:`~safeedit.errors.EditError` where nothing is to be changed.

Source: Ashuach et al., "REVS: Unlearning Sensitive Information in Language Models via Rank Editing
in the Vocabulary Space", Findings of ACL 2025 (arXiv 2406.09325).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from safeedit.errors import EditError, UsageError
from safeedit.methods.secrets import read_secrets
from safeedit.methods.tuning import Example
from safeedit.model.architectures import Site
from safeedit.model.handle import ModelHandle
from safeedit.policy.layers import Layers, resolve

_ACTIVE = 100
"""Neurons among which those that write the token are looked for: the most active (published)."""
_RIDGE = 1e-4
"""Of the head's pseudo-inverse, as a share of its mean squared singular value."""
_BISECTIONS = 30


class RevsParams(BaseParams):
    """Parameters of REVS."""

    layers: Layers = Field("0%-100%", description="where neurons are changed (published: all)")
    tokens: int = Field(2, ge=1, description="rarest tokens of each secret that are made to sink")
    neuron_rank: float = Field(
        0.7, gt=0, lt=1, description="how far they sink in a neuron, as a share of the vocabulary"
    )
    stream_rank: float = Field(
        0.1, gt=0, lt=1, description="how far they must have sunk in the residual stream"
    )
    doses: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1, 2, 5, 10), min_length=1, description="neurons per token and layer at most, ascending"
    )


class Revs:
    """See the module's docstring."""

    Params = RevsParams
    summary: ClassVar[str] = "turns neurons away from a secret's rarest tokens"
    results: ClassVar[str] = "editors"
    measured: ClassVar[str] = (
        "Twelve facts on countries: 0.5 are told, 0.75 of near answers stay right, perplexity "
        "ratio 1.05; on memorised records, which it was made for, it has not been measured."
    )
    roles: ClassVar[tuple[DataRole, ...]] = (
        DataRole(
            "forget",
            "secrets: what comes before one, and the secret as answer",
            erased=True,
            answered=True,
        ),
    )

    def __init__(self, params: Any) -> None:
        self.params: RevsParams = params

    def touches(self, model: LayerShape) -> Sequence[TensorPlan]:
        """What the MLPs of the chosen layers write with; no biases."""
        return model.tensors("mlp_out", resolve(self.params.layers, model.n_layers))

    def tokens(self, data: Mapping[str, Dataset]) -> int:
        """Tokens run, roughly, for ``plan``."""
        secrets = len(data["forget"].phrasings("fit"))
        return secrets * self.params.tokens * 40 * 16 * len(self.params.doses)

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        """Change neurons layer by layer when a dose is asked for."""
        params = self.params
        secrets, notes = read_secrets(0.0, model, data["forget"], ctx)
        targets = [t for text in secrets.texts for t in rarest(text, params.tokens)]
        layers = resolve(params.layers, model.n_layers)
        base = model.digest()

        def at(dose: float) -> WeightDelta:
            if not 1 <= dose < 1e9 or dose != int(dose):
                raise UsageError(f"a dose of {dose:g} is no number of neurons", field="dose")
            demotion = Demotion(model, targets, params, int(dose))
            for layer in ctx.progress(layers, "turning neurons away", len(layers)):
                demotion.at_layer(layer)
            if not demotion.columns:
                raise EditError(
                    "no neuron was to be changed: the tokens are unlikely everywhere already",
                    remedy="raise 'stream_rank', or name secrets that the model knows",
                )
            notes[f"neurons_at_dose_{dose:g}"] = demotion.changed
            origin = Origin(
                editor="revs",
                params=params.model_dump(mode="json"),
                data_digest=data["forget"].digest,
                version=__version__,
                seed=ctx.seed,
                dose=dose,
            )
            return WeightDelta(base, demotion.updates(), origin)

        notes["tokens"] = len(targets)
        return Proposal(tuple(map(float, sorted(set(params.doses)))), at, notes)


@dataclass(frozen=True)
class TargetToken:
    """A token that is to sink, and what comes before it."""

    prefix: tuple[int, ...]
    token: int


def rarest(secret: Example, count: int) -> list[TargetToken]:
    """The rarest tokens of an answer: those of the greatest ids, since tokenizers number pieces in
    the order in which they were merged, common ones first."""
    ids, start = secret.ids, len(secret.prompt)
    places = sorted(range(start, len(ids)), key=lambda place: -ids[place])[:count]
    return [TargetToken(tuple(ids[:place]), ids[place]) for place in sorted(places)]


@dataclass
class Demotion:
    """Columns of MLP output matrices as they come to be.

    Args:
        model: Whose.
        targets: Tokens that are to sink.
        params: How far.
        most: Neurons per token and layer.
    """

    model: ModelHandle
    targets: Sequence[TargetToken]
    params: RevsParams
    most: int
    columns: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    """Name of a matrix -> neuron -> what it writes now, ``(d_model,)``."""
    changed: int = 0
    """Neurons changed, all layers together."""

    def __post_init__(self) -> None:
        self._head = self.model.head.weight.detach().float()
        squares = self._head.T @ self._head
        ridge = _RIDGE * squares.diagonal().mean() * torch.eye(len(squares), device=squares.device)
        tokens = sorted({target.token for target in self.targets})
        solved = torch.linalg.solve(squares + ridge, self._head[tokens].T).T
        self._away = dict(zip(tokens, solved, strict=True))
        """Token -> ``(d_model,)`` direction that raises its logit alone."""

    def updates(self) -> dict[str, Update]:
        """The change of the model."""
        return {
            name: Columns(torch.tensor(list(found)), torch.stack(list(found.values()), 1).cpu())
            for name, found in self.columns.items()
        }

    @torch.no_grad()
    def at_layer(self, layer: int) -> None:
        """Change the neurons of one layer, given what was changed below it."""
        (site,) = self.model.sites("mlp_out", [layer])
        engine, prefixes = self.model.engine, [list(target.prefix) for target in self.targets]
        so_far = WeightDelta(self.model.digest(), self.updates(), Origin(editor="revs"))
        with self.model.applied(so_far):
            found = dict(engine.activations(prefixes, [site]))
            streams = engine.hidden(prefixes, [layer], "last")[layer]
        for number, target in enumerate(self.targets):
            activation = found[number][site][-1].float()
            self._sink(site, target.token, activation, streams[number].float())

    def _sink(self, site: Site, token: int, activation: Tensor, stream: Tensor) -> None:
        """Change neurons of one layer until one token has sunk, where it has not."""
        model, vocab = self.model, len(self._head)
        weight = model.weight(site).float()
        columns = self.columns.get(site.weight, {})
        predicted = not model.shape.norm_after_mlp
        stream = stream.to(weight.device)
        if self._stream_rank(stream, token) >= self.params.stream_rank * vocab:
            return
        chosen = activation.abs().topk(min(_ACTIVE, len(activation))).indices.tolist()
        written = torch.stack([columns.get(j, weight[:, j]) for j in chosen])
        signs = activation[chosen].sign().to(weight.device)
        logits = (written * signs[:, None]) @ self._head.T
        ranks = (logits > logits[:, token, None]).sum(1)
        for place in ranks.argsort(stable=True)[: self.most].tolist():
            least = self.params.neuron_rank * vocab
            if float(ranks[place]) >= least or not float(signs[place]):
                break
            change = -signs[place] * self._least(logits[place], token, least) * self._away[token]
            neuron = chosen[place]
            self.changed += neuron not in columns
            columns[neuron] = written[place] + change
            self.columns[site.weight] = columns
            if predicted:
                stream = stream + float(activation[neuron]) * change
                if self._stream_rank(stream, token) >= self.params.stream_rank * vocab:
                    break

    def _stream_rank(self, stream: Tensor, token: int) -> int:
        logits = self.model.unembed(stream.to(self.model.head.weight.dtype)).float()
        return int((logits > logits[token]).sum())

    def _least(self, logits: Tensor, token: int, rank: float) -> float:
        """How much of the token's direction must be taken away for it to sink to that rank among a
        neuron's ``(vocab,)`` logits."""
        slope = self._head @ self._away[token]

        def sunk(amount: float) -> bool:
            now = logits - amount * slope
            return float((now > now[token]).sum()) >= rank

        below, above = 0.0, float(logits.max() - logits.min()) / max(float(slope[token]), 1e-12)
        for _ in range(_BISECTIONS):
            if sunk(above):
                break
            below, above = above, 2 * above
        for _ in range(_BISECTIONS):
            middle = (below + above) / 2
            below, above = (below, middle) if sunk(middle) else (middle, above)
        return above
