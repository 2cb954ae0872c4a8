"""Low-rank adapters beside matrices, trained and taken off again.

The published recipe of fine-tuning with little memory (LoRA, 2106.09685), by peft. The model is
left as it was; what was learnt comes back as factors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from safeedit.model.architectures import Site
from safeedit.model.handle import ModelHandle


@dataclass(frozen=True)
class Adapters:
    """Adapters at their sites, while they are there."""

    trained: tuple[nn.Parameter, ...]
    _modules: dict[str, nn.Module]

    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Name of a matrix -> left ``(out, rank)``, scaled, and right ``(rank, in)``, copies in
        fp32: what their product adds to the matrix, (out, in)."""
        found = {}
        for name, module in self._modules.items():
            left, right = module.lora_B["default"].weight, module.lora_A["default"].weight  # type: ignore[index,union-attr]
            scale: float = module.scaling["default"]  # type: ignore[index,assignment]
            found[name] = (left.detach().float() * scale, right.detach().float().clone())
        return found


@contextmanager
def adapters(
    model: ModelHandle, sites: Sequence[Site], *, rank: int, alpha: float, seed: int
) -> Iterator[Adapters]:
    """The model with adapters, fresh and without effect, that learn; without them afterwards.

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
    adapted = get_peft_model(model.model, config)
    try:
        modules = {site.weight: model.model.get_submodule(site.module) for site in sites}
        yield Adapters(tuple(p for p in adapted.parameters() if p.requires_grad), modules)
    finally:
        adapted.unload()
        model.model.requires_grad_(False)
