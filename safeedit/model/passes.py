"""Forward passes over one batch: rows of tokens in, logits or states at chosen positions out.

Rows are padded on the right, where causal attention never looks, so no mask is passed. Logits are
computed at the positions asked for and nowhere else: a hook before the head picks them, so that
what a model does after its head (Gemma 2's soft cap) happens as ever.

Fails with :class:`~safeedit.errors.AuditError` where a prompt is empty or longer than the model's
context, or where logits are not numbers. Prompts are named by index, never quoted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from safeedit.errors import AuditError
from safeedit.model.activations import StopForward
from safeedit.model.batching import pad_right

if TYPE_CHECKING:
    from transformers import Cache

    from safeedit.model.handle import ModelHandle


Places = tuple[Tensor, Tensor]
"""Which slots of the cache and of the rows attention sees, ``(rows, slots)``, and positions of the
rows' tokens, ``(rows, longest)``."""


def context_length(handle: ModelHandle) -> int:
    """Tokens the model was made to read at most, prompt and answer together."""
    config = handle.config.get_text_config()
    return int(getattr(config, "max_position_embeddings", None) or 1 << 30)


def check_prompts(handle: ModelHandle, prompts: Sequence[Sequence[int]]) -> None:
    """Make sure that the model can read every prompt.

    Raises:
        AuditError: One is empty, or longer than the model's context.
    """
    limit = context_length(handle)
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise AuditError(
                f"prompt {index} is empty: there is nothing for an answer to follow",
                remedy="remove it",
            )
        if len(prompt) > limit:
            raise AuditError(
                f"prompt {index} has {len(prompt)} tokens and the model's context {limit}",
                remedy="shorten it, or use a model with a longer context",
            )


def filler_token(handle: ModelHandle) -> int:
    """What rows are padded with: any token but the one that transformers takes for padding, which
    it would warn about."""
    return 1 if handle.config.get_text_config().pad_token_id == 0 else 0


def not_finite() -> AuditError:
    """The error for logits that hold NaN or infinity."""
    return AuditError(
        "the model's logits are not finite numbers",
        remedy="the edit was too strong for the model's dtype: use a lower dose, or dtype: float32",
    )


def finite(logits: Tensor) -> Tensor:
    """``logits``, seen to be numbers.

    Raises:
        AuditError: They hold NaN or positive infinity.
    """
    if not bool(torch.isfinite(logits.max())):  # NaN is the greatest of all
        raise not_finite()
    return logits


def logits_at(
    handle: ModelHandle, rows: list[list[int]], cache: Cache | None, at: list[list[int]]
) -> Tensor:
    """Logits at chosen positions of a batch.

    Args:
        handle: The model.
        rows: Token ids, of any length.
        cache: Keys and values of what precedes the rows; it gets those of the rows.
        at: Per row, positions in it.

    Returns:
        ``(positions, vocab)``, row by row.

    Raises:
        AuditError: They are not numbers.
    """
    if not any(at):
        return torch.empty(0, handle.head.weight.shape[0])
    with _head_sees(handle.head, at):
        logits: Tensor = _run(handle, rows, cache).logits[0]
    return finite(logits)


def head_inputs_at(
    handle: ModelHandle,
    rows: list[list[int]],
    cache: Cache | None,
    at: list[list[int]],
    places: Places | None = None,
) -> Tensor:
    """What the head would get of those positions, ``(positions, d_model)``; it is not run.

    Arguments as for :func:`logits_at`, and ``places``, where the rows stand if not right behind all
    that the cache holds.
    """
    seen: list[Tensor] = []

    def keep(hidden: Tensor) -> None:
        seen.append(hidden[0])
        raise StopForward

    with _head_sees(handle.head, at, keep), suppress(StopForward):
        _run(handle, rows, cache, places)
    return seen[0]


def _run(
    handle: ModelHandle,
    rows: list[list[int]],
    cache: Cache | None,
    places: Places | None = None,
) -> Any:
    inputs = {"input_ids": pad_right(rows, filler_token(handle)).to(handle.device)}
    if places is not None:
        inputs["attention_mask"], inputs["position_ids"] = places
    return handle.model(**inputs, past_key_values=cache, use_cache=cache is not None)


@contextmanager
def _head_sees(
    head: nn.Module, at: list[list[int]], see: Callable[[Tensor], None] = lambda hidden: None
) -> Iterator[None]:
    """Within the context, the head gets ``(1, n, d)``, and ``see`` before it: hidden states at
    positions ``at`` of each row."""
    rows = torch.tensor([row for row, positions in enumerate(at) for _ in positions])
    columns = torch.tensor([position for positions in at for position in positions])

    def gather(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        chosen = hidden[rows.to(hidden.device), columns.to(hidden.device)].unsqueeze(0)
        see(chosen)
        return (chosen, *args[1:])

    hook = head.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        hook.remove()


def padded_inputs(rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask``, each ``(rows, longest)``, padded on the right."""
    ones = [[1] * len(row) for row in rows]
    return {"input_ids": pad_right(rows), "attention_mask": pad_right(ones)}


def block_outputs(
    handle: ModelHandle,
    inputs: Mapping[str, Tensor],
    layers: Sequence[int],
    *,
    gradients: bool = False,
) -> dict[int, Tensor]:
    """The residual stream as it leaves blocks; what follows the last of them is not run.

    Args:
        handle: The model.
        inputs: As :func:`padded_inputs` gives them.
        layers: Blocks, from 0.
        gradients: Whether they are to be followed.

    Returns:
        Layer -> ``(rows, longest, d_model)``, in the model's dtype, where it was computed.
    """
    states: dict[int, Tensor] = {}
    last = max(layers, default=-1)

    def keep(layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            states[layer] = output[0] if isinstance(output, tuple) else output
            if layer == last:
                raise StopForward

        return hook

    blocks = handle.blocks()
    hooks = [blocks[layer].register_forward_hook(keep(layer)) for layer in set(layers)]
    try:
        with torch.set_grad_enabled(gradients):
            handle.forward(inputs)
    except StopForward:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return states
