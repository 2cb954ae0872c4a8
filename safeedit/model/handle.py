"""A model as editors and auditors see it: by role, in (out, in), and restorable.

:class:`ModelHandle` wraps a transformers causal language model of a known architecture.
It reads weights and activations by :class:`~safeedit.model.architectures.Site`, applies
:class:`~safeedit.delta.WeightDelta` s in place and takes them back bit for bit: undoing puts
saved tensors back, because subtracting a delta in bf16 leaves about a tenth of the entries
changed. It fails on models that are not one of the architectures, whose weights are
quantised, not finite, or not in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from safeedit.delta import Update, WeightDelta, all_finite, apply_update, measure_change
from safeedit.errors import EditError, UnsupportedModelError, UsageError
from safeedit.model.activations import (
    Function,
    StopForward,
    What,
    at_positions,
    intercept,
    position_ids,
)
from safeedit.model.architectures import Architecture, ModelShape, Site, submodule
from safeedit.model.digest import digest_of
from safeedit.model.tensors import ModelTensors, Undo, accelerate_hook

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from safeedit.model.engine import Engine
    from safeedit.model.stored import StoredWeights


class ModelHandle:
    """A model and its tokenizer, ready to be read, edited and restored.

    The model is put into evaluation mode and its parameters are frozen; code that needs
    gradients asks for them on the tensors it means.

    Args:
        model: A transformers causal language model.
        tokenizer: Its tokenizer; None where only weights are handled.
        source: Where it came from, for records.
        revision: Of the source.
        folder: Where the checkpoint lies on this machine; None where there is none.
        on_disk: Its tensors there; None where there are none.
        dtypes: Tensor name -> the dtype that an edit of it will be exported in, where that is
            another than the model runs in. An edit is rounded to it, so that what is measured
            is what is exported.

    Raises:
        UnsupportedModelError: Its architecture or storage is one that can't be edited.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        source: str = "",
        revision: str | None = None,
        folder: Path | None = None,
        on_disk: StoredWeights | None = None,
        dtypes: Mapping[str, torch.dtype] = MappingProxyType({}),
    ) -> None:
        self.shape = ModelShape.from_model(model)
        packed = [n for n, p in model.named_parameters() if not p.dtype.is_floating_point]
        if packed:
            raise UnsupportedModelError(
                f"'{packed[0]}' holds no floating-point numbers: the weights are quantised",
                remedy="edit the unquantised checkpoint and quantise the result",
            )
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.source = source
        self.revision = revision
        self.folder = folder
        self.on_disk = on_disk
        self.dtypes = dtypes
        self._tensors = ModelTensors(self.model, self.shape)

    # What it is -----------------------------------------------------------------------

    @property
    def config(self) -> PreTrainedConfig:
        return self.model.config

    @property
    def architecture(self) -> Architecture:
        return self.shape.architecture

    @property
    def n_layers(self) -> int:
        return self.shape.n_layers

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.shape.d_model

    @property
    def device(self) -> torch.device:
        """Where inputs go: the device of the embedding."""
        device = self.embedding.weight.device
        if device.type == "meta":  # offloaded by accelerate, which fetches it to run
            hook = accelerate_hook(self.embedding)
            return torch.device(hook.execution_device) if hook is not None else device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the first block's matrices."""
        dtype: torch.dtype = self.tensor(self.sites("mlp_out", [0])[0].weight).dtype
        return dtype

    @cached_property
    def engine(self) -> Engine:
        """Batched generation and scoring on this model."""
        from safeedit.model.engine import Engine

        return Engine(self)

    # Modules --------------------------------------------------------------------------

    def blocks(self) -> nn.ModuleList:
        """The blocks, first to last."""
        blocks = self.model.get_submodule(self.architecture.layers)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    @property
    def embedding(self) -> nn.Embedding:
        """Token embedding, ``(vocab, d_model)`` (narrower in OPT-350m)."""
        embedding = self.model.get_input_embeddings()
        assert isinstance(embedding, nn.Embedding)
        return embedding

    @property
    def final_norm(self) -> nn.Module:
        """The norm before the head; the identity where a model has none (OPT-350m)."""
        return submodule(self.model, self.architecture.final_norm) or nn.Identity()

    @property
    def head(self) -> nn.Linear:
        """The map to logits; shares its weight with the embedding where tied."""
        head = self.model.get_output_embeddings()
        assert isinstance(head, nn.Linear)
        return head

    def unembed(self, hidden: Tensor) -> Tensor:
        """Logits ``(..., vocab)`` of a residual ``(..., d_model)``, as if it left the last block.

        Final norm, head, and what an architecture puts around them (OPT-350m's projection,
        Gemma 2's soft cap).
        """
        hidden = self.final_norm(hidden)
        projection = submodule(self.model, self.architecture.output_projection)
        if projection is not None:
            hidden = projection(hidden)
        return self.logits(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``(..., vocab)`` of final hidden states as :meth:`forward` returns them."""
        logits: Tensor = self.head(hidden.to(self.head.weight.dtype))
        cap = getattr(self.config.get_text_config(), "final_logit_softcapping", None)
        return torch.tanh(logits / cap) * cap if cap else logits

    # Tensors --------------------------------------------------------------------------

    def sites(self, role: str, layers: Sequence[int] | None = None) -> tuple[Site, ...]:
        """The matrices that play ``role`` in ``layers`` (default: all).

        Raises:
            UsageError: The architecture has no such role, or the model no such layer.
        """
        return self.shape.sites(role, layers)

    def matrices(self, layers: Sequence[int] | None = None) -> tuple[Site, ...]:
        """The matrices of all roles in ``layers`` (default: all): what the blocks are made of.

        Raises:
            UsageError: The model has no such layer.
        """
        return tuple(site for role in self.shape.roles for site in self.sites(role, layers))

    def tensor_names(self) -> tuple[str, ...]:
        """Names of all parameters and saved buffers; a tied tensor has one name."""
        return tuple(self._tensors.all())

    def tensor(self, name: str) -> nn.Parameter:
        """The parameter itself, as stored.

        Raises:
            UsageError: There is none of that name.
        """
        return self._tensors.parameter(name)

    def weight(self, site: Site) -> Tensor:
        """The matrix at ``site``, ``(out, in)``, native dtype: a view, write to a clone.

        Raises:
            ModelError: The weights are on disk rather than in memory.
        """
        return self.oriented(site.weight)

    def bias(self, site: Site) -> Tensor | None:
        """The bias at ``site``, ``(out,)``, or None; a view, as :meth:`weight`."""
        return None if site.bias is None else self.oriented(site.bias)

    def oriented(self, name: str) -> Tensor:
        """The tensor called ``name``: a view, (out, in) where it is a matrix of a block."""
        stored = self.stored(name)
        return stored.T if name in self.shape.transposed else stored

    def stored(self, name: str) -> Tensor:
        """The tensor called ``name`` as it lies in memory, found also where accelerate has
        taken it off the GPU.

        Raises:
            ModelError: It lies on disk.
            UsageError: There is none of that name.
        """
        return self._tensors.stored(name)

    def merge(self) -> None:
        """Put what an adapter adds to tensors on disk into those in memory."""
        if self.on_disk is None:
            return
        for name in sorted(self.on_disk.merged):
            self._tensors.write(self.on_disk.names[name], self.on_disk.read(name))

    def check_finite(self) -> None:
        """Make sure every weight is a number.

        Raises:
            ModelError: A tensor holds NaN or infinity; the message names it.
        """
        self._tensors.check_finite()

    # Digests --------------------------------------------------------------------------

    def digest(self, *, fresh: bool = False) -> str:
        """SHA-256 over names, dtypes, shapes and bytes of all tensors, tied ones once.

        Args:
            fresh: Read every byte again. Otherwise only tensors written to since the last
                call are read; writes through ``.data`` go unseen, so proofs ask for fresh.
        """
        return digest_of(self.tensor_digests(fresh=fresh))

    def tensor_digests(self, *, fresh: bool = False) -> dict[str, str]:
        """Tensor name -> SHA-256 over dtype, shape and bytes; ``fresh`` as in :meth:`digest`."""
        return self._tensors.digests(fresh=fresh)

    # Activations ----------------------------------------------------------------------

    @torch.no_grad()
    def capture(
        self,
        inputs: Mapping[str, Tensor],
        sites: Sequence[Site],
        what: What = "input",
        positions: Tensor | None = None,
    ) -> dict[Site, Tensor]:
        """What goes into (or comes out of) the matrices at ``sites``.

        Runs the blocks up to the last site and no further; computes no logits.

        Args:
            inputs: ``input_ids`` and ``attention_mask``, each ``(batch, seq)``, padded on
                either side; moved to the model's device.
            sites: Where to look.
            what: ``"input"`` (for ``mlp_out``: the neurons' activations) or ``"output"``
                (bias included).
            positions: Which tokens, see :func:`~safeedit.model.activations.at_positions`;
                None keeps padding too.

        Returns:
            Site -> ``(batch, seq, width)``, or the selection, in the model's dtype, on the
            device where it was computed.

        Raises:
            UsageError: ``sites`` is empty or ``positions`` don't fit.
        """
        if not sites:
            raise UsageError("nothing to capture: no sites were named")
        captured: dict[Site, Tensor] = {}
        wanted = tuple(dict.fromkeys(sites))

        def keep(site: Site, activation: Tensor) -> None:
            captured[site] = at_positions(activation, positions)
            if len(captured) == len(wanted):
                raise StopForward

        try:
            with self.intercepted(wanted, keep, what):
                self.forward(inputs)
        except StopForward:
            pass
        return {site: captured[site] for site in wanted}

    @contextmanager
    def intercepted(
        self, sites: Sequence[Site], function: Function, what: What = "input"
    ) -> Iterator[ModelHandle]:
        """Within the context, ``function(site, activation)`` sees each activation
        ``(batch, seq, width)`` at ``sites`` as it passes, with its gradient history, and may
        return what replaces it (None: nothing)."""
        with intercept(self.model, self.blocks(), sites, function, what):
            yield self

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Last hidden states ``(batch, seq, d_model)``, after the final norm; no logits.

        Args:
            inputs: As in :meth:`capture`.
        """
        inputs = {name: tensor.to(self.device) for name, tensor in inputs.items()}
        if "attention_mask" in inputs and "position_ids" not in inputs:
            inputs["position_ids"] = position_ids(inputs["attention_mask"])
        output: Any = self.model.base_model(**inputs, use_cache=False)
        hidden: Tensor = output.last_hidden_state
        return hidden

    # Edits ----------------------------------------------------------------------------

    def apply(self, *deltas: WeightDelta, check_base: bool = True, measure: bool = True) -> Undo:
        """Apply deltas in place, one after the other, each computed in fp32 and cast once.

        Either all of them are applied or, if one fails, none.

        Args:
            deltas: In order.
            check_base: Refuse a delta computed on other weights than those it meets, which
                are the weights now or those after the deltas before it.
            measure: Fill in ``Undo.changes`` (a few passes over each tensor).

        Returns:
            What changed, and the way back.

        Raises:
            EditError: A delta was made for other weights, names a tensor the model doesn't
                have or doesn't fit it, or the result overflows the model's dtype.
        """
        undo = Undo(self._tensors)
        try:
            start = self.digest() if check_base and deltas else ""
            for delta in deltas:
                if check_base and delta.base != start and delta.base != self.digest():
                    raise EditError(
                        "the delta was computed on other weights than these (its base is "
                        f"{delta.base[:12]}, the model is {self.digest()[:12]})",
                        remedy="apply it to the model it was made for, or compute it again",
                    )
                for name, update in delta.updates.items():
                    self._update(name, update, undo, measure)
        except BaseException:
            undo.restore()
            raise
        return undo

    @contextmanager
    def applied(self, *deltas: WeightDelta, check_base: bool = True) -> Iterator[ModelHandle]:
        """The model with ``deltas`` applied; bit for bit as before when the context ends,
        also by an exception. Arguments and errors as in :meth:`apply`."""
        undo = self.apply(*deltas, check_base=check_base, measure=False)
        try:
            yield self
        finally:
            undo.restore()

    @contextmanager
    def rewritten(
        self, rewrites: Mapping[str, Callable[[Tensor], Tensor]]
    ) -> Iterator[ModelHandle]:
        """The model with tensors put in the place of its own; bit for bit as before when the
        context ends, also by an exception.

        Args:
            rewrites: Tensor name -> what makes the new tensor of the old one, ``(out, in)`` where
                it is a matrix of a block; cast once to the tensor's own dtype.

        Raises:
            EditError: A tensor is not the model's, or a new one has another shape or is not
                finite.
        """
        undo = Undo(self._tensors)
        try:
            for name, rewrite in rewrites.items():
                self._check_editable(name)
                weight = self.oriented(name)
                changed = rewrite(weight).to(weight.dtype)
                if changed.shape != weight.shape or not all_finite(changed):
                    raise EditError(f"what should replace '{name}' is not finite or does not fit")
                undo.keep(name)
                transposed = name in self.shape.transposed
                self._tensors.write(name, changed.T if transposed else changed)
            yield self
        finally:
            undo.restore()

    def _update(self, name: str, update: Update, undo: Undo, measure: bool) -> None:
        self._check_editable(name)
        weight = self.oriented(name)
        if not update.fits(tuple(weight.shape)):
            raise EditError(
                f"the {update.kind} update of '{name}' does not fit its shape {tuple(weight.shape)}"
            )
        changed = apply_update(weight, update)
        if (narrower := self.dtypes.get(name)) is not None:
            changed = changed.to(narrower).to(weight.dtype)
        if not all_finite(changed):
            dtype = str(changed.dtype).removeprefix("torch.")
            raise EditError(
                f"the edit of '{name}' overflows {dtype}",
                remedy="take a lower dose or a dtype of wider range (bfloat16, float32)",
            )
        undo.keep(name)
        if measure:
            role, layer = self._role(name)
            change = measure_change(name, role, layer, weight, changed, update)
            undo.changes += (change,)
        stored = changed.T if name in self.shape.transposed else changed
        self._tensors.write(name, stored)

    def _check_editable(self, name: str) -> None:
        if name in self.shape.stored:
            return
        owner = self.shape.tied.get(name)
        if owner is None:
            raise EditError(f"the edit names a tensor the model does not have: '{name}'")
        raise EditError(
            f"'{name}' is tied to '{owner}': editing one edits the other",
            remedy=f"name '{owner}' if both are meant",
        )

    def _role(self, name: str) -> tuple[str, int | None]:
        return self._roles.get(name, ("other", None))

    @cached_property
    def _roles(self) -> dict[str, tuple[str, int | None]]:
        roles: dict[str, tuple[str, int | None]] = {}
        for role in self.shape.roles:
            for site in self.sites(role):
                roles[site.weight] = (role, site.layer)
                if site.bias is not None:
                    roles[site.bias] = (f"{role}_bias", site.layer)
        return roles
