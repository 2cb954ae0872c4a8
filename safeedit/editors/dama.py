"""DAMA: project out of MLP outputs what goes with he and she where the text says neither.

For prompts about professions ("The nurse said that") the shifts of the last residual stream are
found after which the model goes on with *he*, *she*, *they*
(:mod:`safeedit.methods.residual_shifts`). In each chosen layer partial least squares finds the
directions of what the MLP writes at the last token that go with these values, and its output matrix
(and bias) is projected, ``W`` to ``PW``. Layers are taken in ascending order, each on the model
with those before it projected; the values are those of the untouched model and serve all layers.
One pass over all prompts does that for all layers at once, since a projection can be put in place
while the pass goes by.

``method``: what the outputs are to covary with, and what is spared.

* ``published``: he, she and they as three observations of one output. Least squares sees no more of
  that than their mean (:mod:`safeedit.methods.pls`): what *tells he from she* cancels, and what
  goes is what calls for a pronoun. ``P = I - BB'``, ``B`` the weights of least squares.
* ``oblique``: he minus she (the publication's alternative). ``P = I - D (D'C^-1 D)^-1 D'C^-1``,
  ``D`` the top directions of the covariance of outputs and values. Without ``factual`` data ``C``
  is the outputs' own covariance: LEACE, after which no linear probe reads the values from these
  outputs any more, and no map that achieves this moves them less. With ``factual`` data ("The queen
  said that") ``C`` is the second moment of what these prompts (and prose, in equal shares) write:
  of all maps that take ``D`` away, the one that moves these least.

A projection acts on whatever is written, whoever it is about. It can spare directions, not queens:
where both use the same ones, no choice of ``P`` takes the nurse's and leaves the queen's.

Where a norm follows the MLP (Gemma, OLMo-2) the directions are those of the matrix's own outputs,
before the norm, which is where they are removed.

Doses are directions taken out in each of ``layers``: past some number perplexity explodes, and the
stereotype returns, which is what targets on validation data are for. ``W`` is recovered from what
is stored (left factor ``-B``, right factor ``B'W``) up to rounding; undoing restores saved tensors,
bit for bit.

Fails with :class:`~safeedit.errors.DataError` where prompts lack scores or subjects, or support
fewer directions than asked for, and with :class:`~safeedit.errors.UsageError` where a pronoun is
several tokens or a layer lies outside the model.

Source: Limisiewicz et al., "Debiasing Algorithm through Model Adaptation", ICLR 2024 (arXiv
2310.18913); the oblique projection after Belrose et al., "LEACE", NeurIPS 2023 (arXiv 2306.03819).
Sparing factual prompts and the single pass are ours; keys are of the prompt itself rather than
means over prefixed contexts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from safeedit import __version__
from safeedit.contracts import (
    BaseParams,
    DataRole,
    EditData,
    LayerShape,
    Progress,
    Proposal,
    RunContext,
    TensorPlan,
    silent,
)
from safeedit.data import Dataset, Item
from safeedit.delta import Dense, LowRank, Origin, Update, WeightDelta
from safeedit.errors import DataError, UsageError
from safeedit.methods.contrast import prose_passages, write_moments
from safeedit.methods.covariance import Moments
from safeedit.methods.openings import subjects_of, undefined_gender
from safeedit.methods.pls import held_out, pls
from safeedit.methods.projections import RIDGE, Projection, amounts, oblique, orthogonal
from safeedit.methods.residual_shifts import Descent, residual_shifts
from safeedit.methods.word_tokens import single_tokens
from safeedit.model.activations import at_positions
from safeedit.model.architectures import Site
from safeedit.model.batching import pad_right
from safeedit.model.handle import ModelHandle
from safeedit.policy.layers import Layers, resolve

_DESCENT = Descent()
"""How values are found (published, but for the learning rate, which is in root mean squares of the
stream rather than absolute)."""

_PROSE_TOKENS = 256
"""Tokens read of each ordinary text."""

_RANKS = (1, 2, 4, 8, 16, 32, 64)
"""Doses where none are given, as far as the prompts support them."""


class DamaParams(BaseParams):
    """Parameters of DAMA."""

    layers: Layers = Field(
        "65%-90%", description="whose outputs are projected, ascending (published: 21-29 of 32)"
    )
    pronouns: tuple[str, ...] = Field(
        ("he", "she", "they"),
        min_length=2,
        description="single words to go on with; the first two are contrasted (published)",
    )
    opening: str = Field(
        "The {} is a",
        pattern=r"\{\}",
        description="neutral opening about the subject, {}, after which shifts are to do nothing "
        "(published: '{} is a', of subjects with their article)",
    )
    method: Literal["published", "oblique"] = Field(
        "published",
        description="what is taken out: what goes with he, she and they, or what tells he from "
        "she, with what 'factual' prompts need spared",
    )
    most_prompts: int = Field(
        400, ge=2, description="prompts used at most, a seeded choice (published: all 2,409)"
    )
    steps: int = Field(20, ge=1, description="of Adam, per value (published)")
    doses: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None,
        min_length=1,
        description="directions taken out, ascending; null: 1, 2, 4 ... 64 as far as the prompts "
        "support them",
    )


class Dama:
    """See the module's docstring."""

    Params = DamaParams
    summary: ClassVar[str] = "projects MLP outputs away from what predicts he and she (DAMA)"
    results: ClassVar[str] = "bias"
    measured: ClassVar[str] = (
        "As published, the stereotype slope falls to 0.867 of the base's and the factual slope to "
        "0.87; oblique with factual gender kept, to 0.585 and 0.594: not selective."
    )
    roles: ClassVar[tuple[DataRole, ...]] = (
        DataRole("prompts", "openings about professions: {prompt, subject, factual}"),
        DataRole("factual", "the same about queens and fathers, spared (oblique)", required=False),
        DataRole("prose", "ordinary text to disturb least (oblique, with factual)", required=False),
    )

    def __init__(self, params: Any) -> None:
        self.params: DamaParams = params

    def touches(self, model: LayerShape) -> Sequence[TensorPlan]:
        """What the MLPs of the chosen layers write with."""
        layers = resolve(self.params.layers, model.n_layers)
        return [*model.tensors("mlp_out", layers), *model.biases("mlp_out", layers)]

    def tokens(self, data: Mapping[str, Dataset]) -> int:
        """Tokens read, roughly, for ``plan``."""
        used = min(self.params.most_prompts, len(data["prompts"].items("fit")))
        return used * 12 * (2 + len(self.params.doses or _RANKS))

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        """Find values; offer projections of several ranks."""
        params = self.params
        fit = _Fit(params, model, data, ctx)
        doses = _doses(params, fit)
        base = model.digest()
        projections: dict[float, tuple[Projection, ...]] = {}

        def at(dose: float) -> WeightDelta:
            rank = _supported(fit, dose)
            if rank not in projections:
                if model.digest() != base:
                    raise UsageError(
                        "the model has changed since this edit was fitted",
                        remedy="undo the change, or fit again",
                    )
                projections[rank] = fit.projections(rank)
            origin = Origin(
                editor="dama",
                params=params.model_dump(mode="json"),
                data_digest=data["prompts"].digest,
                version=__version__,
                seed=ctx.seed,
                dose=dose,
            )
            updates: dict[str, Update] = {}
            for site, projection in zip(fit.sites, projections[rank], strict=True):
                updates |= _updates(model, site, projection, rank)
            return WeightDelta(base, updates, origin)

        return Proposal(doses, at, fit.notes)


@dataclass(frozen=True, eq=False)
class _Prompts:
    """Tokenised openings and what their outputs are to covary with."""

    ids: list[list[int]]
    subjects: list[str]
    values: Tensor
    """``(prompts, anything)``, fp64; nothing where only the outputs count."""


class _Fit:
    """All that is known before a dose is chosen.

    Attributes:
        sites: Matrices to project, ascending.
        supported: Most directions that the prompts tell apart.
        notes: For the record.
    """

    def __init__(
        self, params: DamaParams, model: ModelHandle, data: EditData, ctx: RunContext
    ) -> None:
        self.params, self.model = params, model
        self.sites = model.sites("mlp_out", resolve(params.layers, model.n_layers))
        self.notes: dict[str, Any] = {}
        chosen = undefined_gender(data["prompts"], params.most_prompts, ctx.seed)
        self._prompts = self._read(chosen, data["prompts"], ctx)
        self._factual: list[list[int]] = []
        self._prose: dict[Site, Moments] = {}
        factual = data.get("factual")
        if params.method == "oblique" and factual is not None and factual.items("fit"):
            self._spare(factual, data.get("prose"), ctx)
        self._inputs, self._last = self._batch()
        self._look(ctx)

    def _spare(self, factual: Dataset, prose: Dataset | None, ctx: RunContext) -> None:
        engine = self.model.engine
        prompts = [item.prompt for item in factual.items("fit")]
        self._factual = engine.encode(prompts, factual.template)
        if prose is None:
            ctx.warn("dama: without 'prose' only factual prompts are disturbed least")
            return
        texts = prose_passages(prose, engine, _PROSE_TOKENS)
        self._prose = write_moments(engine, texts, self.sites, ctx)

    def _read(self, items: Sequence[Item], data: Dataset, ctx: RunContext) -> _Prompts:
        params, engine = self.params, self.model.engine
        subjects = subjects_of(items, "prompts")
        template = engine.codec.resolve(data.template)
        # All are checked, whichever are used.
        tokens = single_tokens(engine, params.pronouns, template)
        ids = engine.encode([item.prompt for item in items], template)
        names = sorted(set(subjects))
        openings = engine.encode([params.opening.replace("{}", name) for name in names], "plain")
        states, neutral = (self._last_states(some, ctx) for some in (ids, openings))
        rows = torch.tensor([names.index(subject) for subject in subjects])
        used = params.pronouns if params.method == "published" else params.pronouns[:2]
        values, after = pronoun_values(
            self.model, states, neutral[rows], tokens[: len(used)], params, ctx.progress
        )
        for word, probability in zip(used, after.tolist(), strict=True):
            self.notes[f"prompts_mean_probability_of_{word}_with_its_value"] = round(probability, 4)
        return _Prompts(ids, subjects, values)

    def _last_states(self, ids: Sequence[Sequence[int]], ctx: RunContext) -> Tensor:
        """``(prompts, d_model)`` what leaves the last layer at each prompt's end."""
        last = self.model.n_layers - 1
        return torch.stack(self.model.engine.hidden(ids, [last], progress=ctx.progress)[last])

    def _batch(self) -> tuple[dict[str, Tensor], Tensor]:
        rows = [*self._prompts.ids, *self._factual]
        mask = pad_right([[1] * len(row) for row in rows])
        last = torch.tensor([len(row) - 1 for row in rows])
        return {"input_ids": pad_right(rows), "attention_mask": mask}, last

    def _look(self, ctx: RunContext) -> None:
        """How many directions there are to remove, and how many carry anything."""
        site, values = self.sites[0], self._prompts.values
        written = self.model.capture(self._inputs, [site], "output", self._last)[site]
        outputs = written[: len(values)].double().cpu()
        self.supported = self._rank(outputs)
        names = sorted(set(self._prompts.subjects))
        groups = torch.tensor([names.index(subject) for subject in self._prompts.subjects])
        shares = held_out(outputs, values, groups, min(self.supported, _RANKS[-1]))
        self.notes |= {
            "prompts": len(values),
            "subjects": len(names),
            "directions_supported": self.supported,
            "share_of_values_predicted_on_held_out_subjects": {
                str(k): round(float(shares[k - 1]), 4) for k in _RANKS if k <= len(shares)
            },
        }
        if len(shares) and float(shares.max()) <= 0:
            ctx.warn(
                "dama: what the first layer writes predicts nothing of the values of subjects "
                "left out: the directions may be noise; give more subjects"
            )

    def _rank(self, outputs: Tensor) -> int:
        """How many directions there are."""
        values = self._prompts.values - self._prompts.values.mean(0)
        rows = outputs - outputs.mean(0)
        if self.params.method == "oblique":
            rows = rows.T @ values
        return int(torch.linalg.matrix_rank(rows, rtol=1e-9)) if bool(values.any()) else 0

    def _found(self, outputs: Tensor, rank: int) -> Tensor:
        """``(d_model, k)`` directions to remove, most covarying first, k <= ``rank``."""
        values = self._prompts.values
        if self.params.method == "published":
            return pls(outputs, values, rank).weights
        cross = (outputs - outputs.mean(0)).T @ (values - values.mean(0))
        left, sizes, _ = torch.linalg.svd(cross, full_matrices=False)
        most = min(rank, int((sizes > 1e-9 * sizes[:1]).sum()))
        return left[:, :most]

    def projections(self, rank: float) -> tuple[Projection, ...]:
        """One per site, each found on the model with those before it in place."""
        found: dict[Site, Projection] = {}

        def project(site: Site, activation: Tensor) -> Tensor:
            written = at_positions(activation, self._last).double().cpu()
            found[site] = projection = self._projection(site, written, rank)
            used = amounts(rank, projection.removers.shape[1])
            removers = (projection.removers * used).T.to(activation.device).float()
            readers = projection.readers.to(activation.device).float()
            moved = activation.float() - activation.float() @ readers @ removers
            return moved.to(activation.dtype)

        with torch.no_grad(), self.model.intercepted(self.sites, project, "output"):
            self.model.forward(self._inputs)
        return tuple(found[site] for site in self.sites)

    def _projection(self, site: Site, written: Tensor, rank: float) -> Projection:
        count = len(self._prompts.ids)
        outputs, factual = written[:count], written[count:]
        directions = self._found(outputs, max(1, -int(-rank // 1)))
        if self.params.method == "published":
            return orthogonal(directions)
        if not self._factual:
            second = torch.cov(outputs.T, correction=0)
        else:
            parts = [Moments(self.model.d_model), *([self._prose[site]] if self._prose else [])]
            parts[0].update(factual)
            second = Moments.balanced(parts).second
        return oblique(directions, second, RIDGE)


def pronoun_values(
    model: ModelHandle,
    states: Tensor,
    neutral: Tensor,
    tokens: Sequence[int],
    params: DamaParams,
    progress: Progress = silent,
) -> tuple[Tensor, Tensor]:
    """What the outputs are to covary with.

    Args:
        model: As it is.
        states: ``(prompts, d_model)`` last residual stream at the prompts' ends.
        neutral: ``(prompts, d_model)`` the same after the neutral opening about each subject.
        tokens: Of the words to go on with.
        params: Of the editor.
        progress: Shown per step.

    Returns:
        ``(prompts, d_model)`` fp64, and for each word its mean probability with its own value.
    """
    descent = replace(_DESCENT, steps=params.steps)
    found = residual_shifts(model, states, neutral, tokens, descent, progress)
    values = found.values.double()
    values = values.mean(1) if params.method == "published" else values[:, 0] - values[:, 1]
    return values, found.after.exp().mean(0)


def _doses(params: DamaParams, fit: _Fit) -> tuple[float, ...]:
    if params.doses is None:
        return tuple(float(rank) for rank in _RANKS if rank <= fit.supported)
    return tuple(sorted({_supported(fit, float(dose)) for dose in params.doses}))


def _supported(fit: _Fit, rank: float) -> float:
    """The rank, which the prompts support.

    Raises:
        DataError: They do not support so many directions.
    """
    if not 0 < rank <= fit.supported:
        raise DataError(
            f"the prompts support {fit.supported} directions and {rank:g} were asked for",
            field="doses",
            remedy="give more prompts about more professions, or ask for fewer",
        )
    return rank


def _updates(
    model: ModelHandle, site: Site, projection: Projection, rank: float
) -> dict[str, Update]:
    used = amounts(rank, projection.removers.shape[1])
    found: dict[str, Update] = {site.weight: LowRank(*projection.factors(model.weight(site), used))}
    bias = model.bias(site)
    if site.bias is not None and bias is not None:
        found[site.bias] = Dense(projection.change(bias, used))
    return found
