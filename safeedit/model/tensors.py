"""A model's tensors as they lie in memory: found, digested, checked, overwritten, put back.

Also those that accelerate has taken off the device. Tied tensors have one name, the first.

Fails with :class:`~safeedit.errors.ModelError` where a tensor lies on disk or is not finite, with
:class:`~safeedit.errors.UsageError` where there is none of a name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from safeedit.delta import all_finite
from safeedit.errors import ModelError, UsageError
from safeedit.model.architectures import ModelShape
from safeedit.model.digest import DigestCache
from safeedit.records import TensorChange

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MEMORY_SHARE_FOR_UNDO = 0.25
"""Share of a GPU's free memory that saved originals may take before they go to the CPU."""


class ModelTensors:
    """The parameters and saved buffers of a model.

    Args:
        model: A transformers model.
        shape: Its own.
    """

    def __init__(self, model: PreTrainedModel, shape: ModelShape) -> None:
        self.model, self.shape = model, shape
        self._digests = DigestCache()

    def all(self) -> dict[str, Tensor]:
        """All of them, tied ones once; maybe placeholders of what is off the device."""
        return {n: t for n, t in self.model.state_dict().items() if n not in self.shape.tied}

    def parameter(self, name: str) -> nn.Parameter:
        """The parameter itself; maybe a placeholder.

        Raises:
            UsageError: There is none of that name.
        """
        try:
            return self.model.get_parameter(name)
        except AttributeError:
            raise UsageError(f"the model has no tensor '{name}'") from None

    def stored(self, name: str) -> Tensor:
        """A parameter as it lies in memory, detached.

        Raises:
            ModelError: It lies on disk.
            UsageError: There is none of that name.
        """
        return self._in_memory(name, self.parameter(name).detach())

    def _in_memory(self, name: str, tensor: Tensor) -> Tensor:
        if tensor.device.type != "meta":
            return tensor
        path, _, leaf = name.rpartition(".")
        weights: Any = getattr(accelerate_hook(self.model.get_submodule(path)), "weights_map", {})
        prefix = ""
        while hasattr(weights, "prefix"):
            prefix, weights = weights.prefix + prefix, weights.dataset
        found: Tensor | None = getattr(weights, "state_dict", weights).get(prefix + leaf)
        if found is None:
            raise ModelError(
                f"'{name}' is not in memory: the model was opened without its weights, or they "
                "were offloaded to disk",
                remedy="give the model more memory or fewer bits per weight (dtype: bfloat16)",
            )
        return found

    def check_finite(self) -> None:
        """Make sure every weight is a number.

        Raises:
            ModelError: A tensor holds NaN or infinity; the message names it.
        """
        for name, tensor in self.all().items():
            floating = tensor.dtype.is_floating_point
            if floating and not all_finite(self._in_memory(name, tensor)):
                raise ModelError(
                    f"the weights of '{name}' hold NaN or infinity",
                    remedy="the checkpoint is damaged or its training diverged; use another",
                )

    def digests(self, *, fresh: bool = False) -> dict[str, str]:
        """Tensor name -> SHA-256 over dtype, shape and bytes.

        Args:
            fresh: Read every byte again. Otherwise only tensors written to since the last
                call are read; writes through ``.data`` go unseen, so proofs ask for fresh.
        """
        tensors = {name: self._in_memory(name, tensor) for name, tensor in self.all().items()}
        return self._digests.digests(tensors, fresh=fresh)

    def known_digest(self, name: str) -> str | None:
        """The digest of a parameter, if it need not be read for it."""
        return self._digests.known(name, self.stored(name))

    @torch.no_grad()
    def write(self, name: str, values: Tensor, digest: str | None = None) -> None:
        """Overwrite a parameter as stored; ``digest`` if that of ``values`` is known."""
        stored = self.stored(name)
        stored.copy_(values)
        for alias in (alias for alias, owner in self.shape.tied.items() if owner == name):
            # The same memory already, unless accelerate keeps a copy per name off the device.
            if (copy := self.stored(alias)).data_ptr() != stored.data_ptr():
                copy.copy_(values)
        if digest is not None:
            self._digests.remember(name, stored, digest)


class Undo:
    """What :meth:`~safeedit.model.handle.ModelHandle.apply` changed, and the way back.

    Attributes:
        tensors: Tensor name -> the original, as stored (a copy, maybe on another device).
        changes: What each update did to its tensor, in the order applied.
    """

    def __init__(self, model: ModelTensors) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.changes: tuple[TensorChange, ...] = ()
        self._model = model
        self._digests: dict[str, str | None] = {}

    def restore(self) -> None:
        """Put every tensor back to the bytes it had when ``apply`` was called.

        Undo several in the reverse of the order they were applied in.
        """
        for name, original in self.tensors.items():
            self._model.write(name, original, self._digests[name])

    def keep(self, name: str) -> None:
        """Copy a parameter that is about to change, unless that has been done."""
        if name not in self.tensors:
            self._digests[name] = self._model.known_digest(name)
            self.tensors[name] = _copy(self._model.stored(name))


def accelerate_hook(module: nn.Module) -> Any:
    """The hook by which accelerate brings a module's weights to its device; None without one."""
    hook = getattr(module, "_hf_hook", None)
    hooks = getattr(hook, "hooks", (hook,))
    return next((h for h in hooks if getattr(h, "weights_map", None) is not None), None)


def _copy(tensor: Tensor) -> Tensor:
    if tensor.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(tensor.device)
        if tensor.numel() * tensor.element_size() > free * _MEMORY_SHARE_FOR_UNDO:
            return tensor.cpu()
    return tensor.clone()
