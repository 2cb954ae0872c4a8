"""REMEDI: an affine map from what a text says of an entity to a direction that makes it so.

A *lesson* is a context that states an attribute ("Anita runs a legal office"), and a prompt about
the same entity that does not ("Anita works as a"). The attribute's representation ``h``
``(d_model,)`` is the mean of what leaves block ``layer`` over its tokens in the context; the map
gives ``F h + b``, which is added to what leaves the same block at the entity's last token in the
prompt. The model is frozen; the map learns, in float32, so that the context's word follows:

    loss = mean over lessons of  - log p(target) - log(1 - p(other)) + keep * sum_t KL(p_t || p'_t)

with first tokens of target and other, and ``t`` from the entity's token to the last but one. The
blocks up to ``layer`` are run once for all epochs; a pass of training starts above them.

Unlike the published code, the divergence counts every position of every lesson (there, the last
lesson of a batch alone), ``log(1 - p)`` is a sum over the other words and never infinite, the best
state is a copy, prompts of one token are edited like others, and tokens are found by offsets.
``F`` begins as ``own`` times the identity, which adds what tells an attribute from others as it
stands in its context: that holds for attributes never seen, where a few hundred lessons teach
little. What is learnt comes on top. With fewer lessons than dimensions that is of low rank. Inputs
are standardised and outputs scaled by the entities' states, both taken into ``F`` and ``b``, so
that one learning rate fits any model.

As a *probe*, an attribute is held of an entity as far as ``<z(entity), z(F h + b)>`` says, where z
standardises each dimension by the statistics of the training lessons.

Fails with :class:`~safeedit.errors.DataError` where a lesson lacks a column or does not mention its
subject, with :class:`~safeedit.errors.EditError` where training diverges, with
:class:`~safeedit.errors.ModelError` where a file is no map of this model.

Source: Hernandez et al., arXiv 2304.00740, and its reference code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from safeedit import __version__
from safeedit.cache import PRIVATE, write_atomically
from safeedit.contracts import Progress, silent
from safeedit.errors import ModelError
from safeedit.methods.remedi.examples import (
    AttributeExample,
    attribute_states,
)
from safeedit.methods.remedi.steering import Steer
from safeedit.model.handle import ModelHandle
from safeedit.policy.files import check_regular

FORMAT = "safeedit-remedi-2"


@dataclass(frozen=True, eq=False)
class Scaling:
    """Mean and standard deviation of each dimension, ``(d_model,)`` fp32."""

    mean: Tensor
    spread: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> Scaling:
        """Of states ``(n, d_model)``; a dimension that hardly varies gets the least spread of
        those that do not count as constant."""
        spread = rows.std(0, correction=0)
        return cls(rows.mean(0), spread.clamp(min=1e-3 * float(spread.max()) + 1e-12))

    def __call__(self, rows: Tensor) -> Tensor:
        return (rows - self.mean) / self.spread


@dataclass(frozen=True, eq=False)
class Remedi:
    """A trained map.

    Attributes:
        base: Digest of the weights it was trained on.
        layer: Whose output it reads and shifts.
        probe_layer: Whose output is probed at the entity.
        own: Multiple of the identity in ``F``.
        factors: The rest of ``F`` as a product, each fp32 on the CPU: one matrix, or two of low
            rank.
        bias: ``(d_model,)`` fp32.
        entities: Statistics of the training entities at ``probe_layer``.
        directions: Of the training directions.
        notes: Numbers on the training, for records.
    """

    base: str
    layer: int
    probe_layer: int
    own: float
    factors: tuple[Tensor, ...]
    bias: Tensor
    entities: Scaling
    directions: Scaling
    notes: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, states: Tensor) -> Tensor:
        """Directions ``(n, d_model)`` of attributes' representations ``(n, d_model)``."""
        return self.own * states + mapped(self.factors, self.bias, states)

    def check(self, model: ModelHandle) -> None:
        """See that it was made for this model.

        Raises:
            ModelError: It was trained on other weights.
        """
        if len(self.bias) != model.d_model or self.base != model.digest():
            raise ModelError(
                f"the map was trained on other weights (its base is {self.base[:12]}, the model is "
                f"{model.digest()[:12]})",
                remedy="train a map on this model: safeedit remedi train",
            )

    def learnt_of(
        self,
        model: ModelHandle,
        lessons: Sequence[AttributeExample],
        scale: float = 1.0,
        progress: Progress = silent,
    ) -> list[Steer]:
        """What is added for each lesson's entity: for
        :func:`safeedit.methods.remedi.steering.steering`.

        Args:
            model: That the map was trained on.
            lessons: Their contexts count; a subject's last one wins.
            scale: Of the directions.
            progress: Shown per context.
        """
        shifts = scale * self(attribute_states(model, lessons, self.layer, progress))
        latest = {given.subject: row for given, row in zip(lessons, shifts, strict=True)}
        return [Steer(subject, self.layer, shift) for subject, shift in latest.items()]

    def scores(self, states: Tensor, directions: Tensor) -> Tensor:
        """How far entities hold attributes.

        Args:
            states: ``(n, d_model)`` of the entities, as they leave ``probe_layer``.
            directions: ``(n, k, d_model)``, of ``k`` attributes each.

        Returns:
            ``(n, k)``; the greatest is the one held.
        """
        return torch.einsum("nd,nkd->nk", self.entities(states), self.directions(directions))

    def save(self, path: Path | str) -> None:
        """Write one safetensors file; whole or not at all.

        Raises:
            OSError: It can't be written.
        """
        path = Path(path)
        tensors = {f"factor{n}": factor for n, factor in enumerate(self.factors)} | {
            "bias": self.bias,
            "entities.mean": self.entities.mean,
            "entities.spread": self.entities.spread,
            "directions.mean": self.directions.mean,
            "directions.spread": self.directions.spread,
        }
        header = {
            "format": FORMAT, "base": self.base, "layer": self.layer, "version": __version__,
            "probe_layer": self.probe_layer, "own": self.own, "notes": dict(self.notes),
        }  # fmt: skip
        stored = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
        metadata = {"safeedit": json.dumps(header, sort_keys=True)}
        write_atomically(path, save(stored, metadata=metadata), PRIVATE)

    @classmethod
    def load(cls, path: Path | str) -> Remedi:
        """Read what :meth:`save` wrote.

        Raises:
            ModelError: The file is missing, damaged, or no map of this version.
        """
        try:
            check_regular(path)
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {})["safeedit"])
                if header["format"] != FORMAT:
                    raise ValueError(f"its format is not '{FORMAT}'")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            factors = tuple(tensors[n] for n in ("factor0", "factor1") if n in tensors)
            width = len(tensors["bias"])
            if not factors or factors[0].shape[0] != width or factors[-1].shape[1] != width:
                raise ValueError("its factors don't fit together")
            return cls(
                header["base"], header["layer"], header["probe_layer"], header["own"], factors,
                tensors["bias"],
                Scaling(tensors["entities.mean"], tensors["entities.spread"]),
                Scaling(tensors["directions.mean"], tensors["directions.spread"]),
                header["notes"],
            )  # fmt: skip
        except FileNotFoundError as error:
            raise ModelError("this map does not exist", file=path) from error
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, IndexError) as error:
            raise ModelError(
                f"cannot read this map: {error}", file=path,
                remedy="the file is damaged or no map of safeedit: train it again",
            ) from error  # fmt: skip


def mapped(factors: Sequence[Tensor], bias: Tensor, states: Tensor) -> Tensor:
    """``(n, d_model)``: the product of the factors on states ``(n, d_model)``, plus the bias."""
    for factor in reversed(factors):
        states = states @ factor.T
    return states + bias
