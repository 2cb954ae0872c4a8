"""What flows through the modules of a model: looking at it, and changing it.

An activation is shown as ``(batch, seq, width)`` also where a block flattens its batch (OPT),
and where accelerate spreads a model over devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from safeedit.errors import UsageError
from safeedit.model.architectures import Site

What = Literal["input", "output"]
Function = Callable[[Site, Tensor], Tensor | None]
"""Sees a site's activation ``(batch, seq, width)``; returns None, or what replaces it."""


class StopForward(Exception):  # noqa: N818 (not an error)
    """Ends a forward pass whose rest nobody needs. Never leaves this package."""


@contextmanager
def intercept(
    model: nn.Module,
    blocks: nn.ModuleList,
    sites: Sequence[Site],
    function: Function,
    what: What,
) -> Iterator[None]:
    """Within the context, ``function`` sees (and may replace) the activations at ``sites``."""
    leading: dict[int, torch.Size] = {}

    def note_shape(layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            leading[layer] = hidden.shape[:-1]

        return hook

    def see(site: Site, activation: Tensor) -> Tensor | None:
        unflattened = activation.reshape(*leading[site.layer], activation.shape[-1])
        replaced = function(site, unflattened)
        return None if replaced is None else replaced.reshape(activation.shape)

    # The modules at sites are matrices: one tensor in, one tensor out.
    def before(site: Site) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Tensor]) -> Tensor | None:
            return see(site, args[0])

        return hook

    def after(site: Site) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor | None:
            return see(site, output)

        return hook

    with ExitStack() as hooks:
        for layer in {site.layer for site in sites}:
            handle = blocks[layer].register_forward_pre_hook(note_shape(layer), with_kwargs=True)
            hooks.callback(handle.remove)
        for site in sites:
            module = model.get_submodule(site.module)
            if what == "input":
                handle = module.register_forward_pre_hook(before(site))
            else:
                handle = module.register_forward_hook(after(site))
            hooks.callback(handle.remove)
        yield


@contextmanager
def starting_at(
    blocks: nn.ModuleList, layer: int, hidden: Tensor, *, tuples: bool
) -> Iterator[None]:
    """Within it, blocks below ``layer`` do nothing, and ``layer`` reads ``hidden``.

    The model's own forward pass still runs, so that masks and positions are each family's.

    Args:
        blocks: Of the model, first to last.
        layer: The first block that runs.
        hidden: ``(batch, seq, d_model)``, what enters it.
        tuples: Whether the family's blocks return tuples.
    """

    def skip(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (hidden_states,) if tuples else hidden_states

    def enter(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden}

    below = [blocks[number] for number in range(layer)]
    own = [vars(block).get("forward") for block in below]  # accelerate puts one there
    hook = blocks[layer].register_forward_pre_hook(enter, with_kwargs=True)
    try:
        for block in below:
            vars(block)["forward"] = skip
        yield
    finally:
        hook.remove()
        for block, forward in zip(below, own, strict=True):
            vars(block).pop("forward", None)
            if forward is not None:
                vars(block)["forward"] = forward


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions ``(batch, seq)`` counted over real tokens, whichever side is padded.

    Args:
        attention_mask: ``(batch, seq)``, 1 at real tokens.
    """
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def at_positions(activation: Tensor, positions: Tensor | None) -> Tensor:
    """The part of ``activation`` ``(batch, seq, width)`` at ``positions``.

    Args:
        activation: ``(batch, seq, width)``.
        positions: None for all of it; a bool mask ``(batch, seq)`` such as
            ``attention_mask.bool()`` -> ``(n_selected, width)``, row by row; indices
            ``(batch,)`` -> ``(batch, width)``; indices ``(batch, k)`` -> ``(batch, k, width)``.

    Raises:
        UsageError: ``positions`` is none of these.
    """
    if positions is None:
        return activation
    positions = positions.to(activation.device)
    batch, seq, width = activation.shape
    if positions.dtype == torch.bool and positions.shape == (batch, seq):
        return activation[positions]
    if positions.dtype == torch.bool or positions.shape[:1] != (batch,) or positions.dim() > 2:
        raise UsageError(
            f"positions of shape {tuple(positions.shape)} ({positions.dtype}) do not select from "
            f"activations of shape {(batch, seq, width)}",
            remedy="pass a bool mask (batch, seq) or indices (batch,) or (batch, k)",
        )
    index = positions.reshape(batch, -1, 1).long().expand(-1, -1, width)
    selected = activation.gather(1, index)
    return selected[:, 0] if positions.dim() == 1 else selected
