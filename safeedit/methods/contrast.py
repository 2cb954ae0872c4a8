"""What a model makes of contrastive pairs: shared by the editors that fit on them.

Means are over the tokens in which the two texts of a pair differ: what they go on from is left
out, and BOS and a text's first token, which are attention sinks, where they go on from nothing.
Padding never enters (:meth:`~safeedit.model.engine.Engine.activations` cuts it off).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from safeedit.contracts import RunContext
from safeedit.data import Dataset
from safeedit.data.pairs import read_pairs
from safeedit.errors import DataError
from safeedit.methods.covariance import Moments
from safeedit.model.architectures import Site, submodule
from safeedit.model.engine import Engine
from safeedit.model.handle import ModelHandle
from safeedit.records import Split

_CHUNK_VALUES = 1 << 26
"""Numbers of hidden states held at a time: 128 MiB in bfloat16."""


@dataclass(frozen=True)
class Passage:
    """A text, and from which token on it counts."""

    ids: list[int]
    start: int

    def __len__(self) -> int:
        return max(0, len(self.ids) - self.start)


@dataclass(frozen=True)
class Passages:
    """The toxic and the neutral text of each pair, in the same order."""

    toxic: tuple[Passage, ...]
    neutral: tuple[Passage, ...]

    def __len__(self) -> int:
        return len(self.toxic)


def passages(data: Dataset, split: Split, engine: Engine, ctx: RunContext) -> Passages:
    """The pairs of a split as tokens, cut where the model's context ends.

    Raises:
        DataError: There are no pairs, or none with tokens of its own.
    """
    pairs = read_pairs(data.items(split), f"the {split} split of {data.name}")
    toxic = _tokens([(p.toxic_opening, p.toxic) for p in pairs], data, engine)
    neutral = _tokens([(p.neutral_opening, p.neutral) for p in pairs], data, engine)
    kept = [(t, n) for t, n in zip(toxic, neutral, strict=True) if len(t) and len(n)]
    if not kept:
        raise DataError(
            "no pair has tokens of its own within the model's context",
            remedy="shorten the prompts",
        )
    if missing := len(pairs) - len(kept):
        ctx.warn(f"{missing} of {len(pairs)} pairs have no tokens within the model's context")
    return Passages(tuple(t for t, _ in kept), tuple(n for _, n in kept))


def _tokens(texts: Sequence[tuple[str, str]], data: Dataset, engine: Engine) -> list[Passage]:
    template = engine.codec.resolve(data.template)
    openings = iter(engine.encode([o for o, _ in texts if o], template))
    follow = iter(engine.continuations([t for o, t in texts if o], template))
    bare = iter(engine.encode([t for o, t in texts if not o], "plain"))
    skipped = len(engine.codec.bos) + 1
    found = []
    for opening, _ in texts:
        if opening:
            ids = next(openings)
            found.append(Passage([*ids, *next(follow)][: engine.context], len(ids)))
        else:
            found.append(Passage(next(bare)[: engine.context], skipped))
    return found


def prose_passages(data: Dataset, engine: Engine, tokens: int) -> list[Passage]:
    """Beginnings of ordinary texts, without BOS and first token."""
    skipped = len(engine.codec.bos) + 1
    texts = engine.encode([item.prompt for item in data.items("fit")], "plain")
    found = [Passage(ids[: min(engine.context, tokens + skipped)], skipped) for ids in texts]
    return [passage for passage in found if len(passage)]


def state_means(
    engine: Engine, texts: Sequence[Passage], layers: Sequence[int], ctx: RunContext
) -> dict[int, Tensor]:
    """Layer -> ``(texts, d_model)`` means of the residual stream as it leaves the block, fp64."""
    width = engine.handle.d_model
    found = {layer: torch.zeros(len(texts), width).double() for layer in layers}
    order = sorted(range(len(texts)), key=lambda i: len(texts[i].ids))
    limit = max(1, _CHUNK_VALUES // (width * len(layers)))
    chunks: list[list[int]] = []
    filled = limit
    for index in order:
        size = len(texts[index].ids)
        if filled + size > limit:
            chunks.append([])
            filled = 0
        chunks[-1].append(index)
        filled += size
    for chunk in ctx.progress(chunks, "reading hidden states", len(chunks)):
        states = engine.hidden([texts[i].ids for i in chunk], layers, "all")
        for layer, rows in states.items():
            for i, row in zip(chunk, rows, strict=True):
                found[layer][i] = row[texts[i].start :].double().mean(0)
    return found


def write_means(
    engine: Engine, texts: Sequence[Passage], sites: Sequence[Site], ctx: RunContext
) -> dict[Site, Tensor]:
    """Site -> ``(texts, d_model)`` means of what it writes, fp64."""
    found = {site: torch.zeros(len(texts), engine.handle.d_model).double() for site in sites}
    for index, captured in engine.activations(
        [t.ids for t in texts], sites, ctx.progress, "reading what is written", what="output"
    ):
        for site, activation in captured.items():
            found[site][index] = activation[texts[index].start :].float().mean(0).double().cpu()
    return found


@dataclass(frozen=True, eq=False)
class Activity:
    """How active the inputs of a matrix are in groups of texts; a text counts as one.

    Attributes:
        means: ``(groups, width)``, fp64.
        squares: The same of the squared activation.
    """

    means: Tensor
    squares: Tensor


def activity(
    engine: Engine, groups: Sequence[Sequence[Passage]], sites: Sequence[Site], ctx: RunContext
) -> dict[Site, Activity]:
    """Site -> how active what goes into it is, in each group of texts."""
    texts = [(text, group) for group, some in enumerate(groups) for text in some]
    found: dict[Site, Activity] = {}
    for index, captured in engine.activations([text.ids for text, _ in texts], sites, ctx.progress):
        text, group = texts[index]
        for site, activation in captured.items():
            rows = activation[text.start :].float()
            if site not in found:
                found[site] = Activity(*torch.zeros(2, len(groups), rows.shape[1]).double())
            found[site].means[group] += rows.mean(0).double().cpu() / len(groups[group])
            found[site].squares[group] += rows.square().mean(0).double().cpu() / len(groups[group])
    return found


def write_moments(
    engine: Engine, texts: Sequence[Passage], sites: Sequence[Site], ctx: RunContext
) -> dict[Site, Moments]:
    """Site -> moments of what it writes, over the texts' tokens."""
    found = {site: Moments(engine.handle.d_model) for site in sites}
    for index, captured in engine.activations(
        [t.ids for t in texts], sites, ctx.progress, "reading what is written", what="output"
    ):
        for site, activation in captured.items():
            found[site].update(activation[texts[index].start :])
    return found


@dataclass(frozen=True, eq=False)
class Gain:
    """The linear part of a norm that stands between an MLP and the residual stream.

    What such a block writes is ``g * H y / |H y|`` for a matrix's output ``y``, with ``H`` taking
    away the mean (LayerNorm) or doing nothing (RMSNorm): but for a number per token, ``N y`` with
    ``N = diag(g) H``.

    Attributes:
        scale: ``(d_model,)`` the ``g``, fp64.
        centred: Whether ``H`` takes away the mean.
    """

    scale: Tensor
    centred: bool

    def written(self, outputs: Tensor) -> Tensor:
        """``N y`` of outputs ``(d_model, n)``."""
        return self.scale[:, None] * self._centre(outputs)

    def readers(self, directions: Tensor) -> Tensor:
        """``N' v``: outputs orthogonal to these write nothing along ``v`` ``(d_model, k)``."""
        return self._centre(self.scale[:, None] * directions)

    def sources(self, directions: Tensor) -> Tensor:
        """The outputs that write ``v`` ``(d_model, k)``, for ``v`` that can be written."""
        small = self.scale.abs() < 1e-3 * self.scale.abs().median()
        inverse = torch.where(small, torch.zeros_like(self.scale), 1 / self.scale)
        return self._centre(inverse[:, None] * directions)

    def _centre(self, columns: Tensor) -> Tensor:
        return columns - columns.mean(0) if self.centred else columns


def gain_after_mlp(model: ModelHandle, layer: int) -> Gain | None:
    """The norm between the MLP of ``layer`` and the residual stream; None where there is none."""
    norm = submodule(model.blocks()[layer], model.architecture.post_mlp_norm)
    return None if norm is None else gain_of(norm, model.d_model)


def gain_of(norm: nn.Module, width: int) -> Gain:
    """The linear part of a LayerNorm, an RMSNorm or the identity over ``width``."""
    if isinstance(norm, nn.LayerNorm):
        scale = torch.ones(width) if norm.weight is None else norm.weight
        return Gain(scale.detach().double().cpu(), centred=True)
    # An RMSNorm maps ones to its gain, whether it stores that (Llama) or that less one (Gemma).
    like = next(norm.parameters(), torch.ones(1))
    ones = torch.ones(1, 1, width, device=like.device, dtype=like.dtype)
    with torch.no_grad():
        return Gain(norm(ones).flatten().double().cpu(), centred=False)
