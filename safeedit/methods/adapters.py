"""Low-rank adapters beside matrices, trained and taken off again.

The published recipe of fine-tuning with little memory (LoRA, 2106.09685), by peft. The model is
left as it was; what was learnt comes back as factors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from safeedit.model.architectures import Site
from safeedit.model.handle import ModelHandle


@dataclass(frozen=True)
class Adapters:
    """Adapters at their sites, while they are there."""

    trained: tuple[nn.Parameter, ...]
    remove: Callable[[], None]
    """Takes them off again: the model is as it was, and frozen."""
    _modules: Mapping[str, Any]
    """Name of a matrix -> peft's module around it."""

    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Name of a matrix -> left ``(out, rank)``, scaled, and right ``(rank, in)``, copies in
        fp32: what their product adds to the matrix, (out, in)."""
        return {
            name: (
                module.lora_B["default"].weight.detach().float() * module.scaling["default"],
                module.lora_A["default"].weight.detach().float().clone(),
            )
            for name, module in self._modules.items()
        }


def put_adapters(
    model: ModelHandle, sites: Sequence[Site], *, rank: int, alpha: float, seed: int
) -> Adapters:
    """Give matrices adapters, fresh and without effect, that learn.

    Args:
        model: Whose; its own weights stay frozen.
        sites: Matrices that get one each, all of one orientation.
        rank: Of every adapter.
        alpha: The product is scaled by this over ``rank``.
        seed: Of what they start from.
    """
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=[site.module for site in sites],
        fan_in_fan_out=sites[0].transposed,
        lora_dropout=0.0,  # noise on a few hundred examples
    )
    adapted: Any = get_peft_model(model.model, config)

    def remove() -> None:
        adapted.unload()
        model.model.requires_grad_(False)

    return Adapters(
        tuple(parameter for parameter in adapted.parameters() if parameter.requires_grad),
        remove,
        {site.weight: model.model.get_submodule(site.module) for site in sites},
    )


@contextmanager
def adapters(
    model: ModelHandle, sites: Sequence[Site], *, rank: int, alpha: float, seed: int
) -> Iterator[Adapters]:
    """The model with adapters within the context, and without them after it; see
    :func:`put_adapters`."""
    made = put_adapters(model, sites, rank=rank, alpha=alpha, seed=seed)
    try:
        yield made
    finally:
        made.remove()
