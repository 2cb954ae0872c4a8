"""What a model says where states of another stand in its residual stream.

At some tokens of a text, what leaves one block of the *host* is replaced by what leaves the same
block of another model, the *source*; the blocks above run on, and the log-probability of the tokens
that follow is read. What falls by it is what the source's states do not hold. Source: activation
patching as in Lee, Kim & Jo 2605.24614, who replace the states from which the answer is predicted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from safeedit.contracts import Progress, silent
from safeedit.errors import AuditError
from safeedit.model.activations import starting_at
from safeedit.model.handle import ModelHandle
from safeedit.model.passes import check_prompts, finite, padded_inputs

_CHUNK = 16
"""Texts of which all states are in memory at once."""


@dataclass(frozen=True)
class Recited:
    """A prompt with what follows it, teacher-forced."""

    prompt: Sequence[int]
    answer: Sequence[int]
    """At least one token."""

    @property
    def row(self) -> list[int]:
        """All tokens that are read: the answer's last is predicted, never read."""
        return [*self.prompt, *self.answer[:-1]]

    @property
    def places(self) -> range:
        """From where the answer's tokens are predicted."""
        return range(len(self.prompt) - 1, len(self.prompt) - 1 + len(self.answer))


States = Mapping[int, Sequence[Tensor]]
"""Block -> per text ``(answer tokens, d_model)``, what leaves it at :attr:`Recited.places`."""


@torch.no_grad()
def answering_states(
    model: ModelHandle, texts: Sequence[Recited], progress: Progress = silent, what: str = ""
) -> dict[int, list[Tensor]]:
    """What leaves each block where the answers' tokens are predicted.

    Args:
        model: The source.
        texts: To be read.
        progress: Counts batches of texts.
        what: For ``progress``.

    Raises:
        AuditError: A text is longer than the model's context, or the model gives no numbers.
    """
    states: dict[int, list[Tensor]] = {layer: [] for layer in range(model.n_layers)}
    chunks = [texts[at : at + _CHUNK] for at in range(0, len(texts), _CHUNK)]
    for chunk in progress(chunks, what, len(chunks)):
        found = model.engine.hidden([text.row for text in chunk], tuple(states), "all")
        for layer, rows in found.items():
            states[layer] += [r[list(t.places)] for r, t in zip(rows, chunk, strict=True)]
    for state in states[model.n_layers - 1][:1]:  # whose own norm and head nobody runs otherwise
        finite(model.unembed(state.to(model.device)))
    return states


@torch.no_grad()
def log_probs_with(
    host: ModelHandle,
    texts: Sequence[Recited],
    source: States,
    progress: Progress = silent,
    what: str = "",
) -> Tensor:
    """Mean log-probability of each answer's tokens, with the source's states in each block's place.

    Args:
        host: Whose blocks run above them.
        texts: To be read.
        source: As :func:`answering_states` gives them of another model of this shape.
        progress: Counts batches of texts.
        what: For ``progress``.

    Returns:
        ``(texts, 1 + blocks)`` nats per token, fp64, CPU: with nothing replaced, then with what
        leaves each block.

    Raises:
        AuditError: A text is longer than the host's context, or the host gives no numbers.
    """
    check_prompts(host, [text.row for text in texts])
    rows: list[Tensor] = []
    chunks = [range(at, min(at + _CHUNK, len(texts))) for at in range(0, len(texts), _CHUNK)]
    for chunk in progress(chunks, what, len(chunks)):
        rows.append(torch.stack(list(_patched(host, texts, source, chunk)), 1))
    found = torch.cat(rows) if rows else torch.empty(0, 1 + host.n_layers, dtype=torch.float64)
    if not bool(torch.isfinite(found).all()):
        raise AuditError(
            "with states of another model in its place, the model gives no numbers",
            remedy="the edit was too strong for the model's dtype: use a lower dose, or dtype: "
            "float32",
        )
    return found


def _patched(
    host: ModelHandle, texts: Sequence[Recited], source: States, chunk: range
) -> Iterator[Tensor]:
    """``(texts of the chunk,)``: with nothing replaced, then block by block."""
    some = [texts[index] for index in chunk]
    inputs = padded_inputs([text.row for text in some])
    pairs = [(row, place) for row, text in enumerate(some) for place in text.places]
    where, places = (
        torch.tensor(column, device=host.device) for column in zip(*pairs, strict=True)
    )

    def read(logits: Tensor) -> Tensor:
        tokens = torch.tensor([token for text in some for token in text.answer])
        told = logits.float().log_softmax(-1).cpu().gather(-1, tokens[:, None])[:, 0].double()
        parts = told.split([len(text.answer) for text in some])
        return torch.stack([part.mean() for part in parts])

    clean = _Leaving(host)
    yield read(host.logits(clean.run(inputs)[where, places]))
    last = host.n_layers - 1
    for layer in range(last):
        hidden = clean.states[layer].clone()
        put = torch.cat([source[layer][index] for index in chunk])
        hidden[where, places] = put.to(hidden.device, hidden.dtype)
        with starting_at(host.blocks(), layer + 1, hidden, tuples=clean.tuples):
            yield read(host.logits(host.forward(inputs)[where, places]))
    put = torch.cat([source[last][index] for index in chunk])
    yield read(host.unembed(put.to(host.device, host.dtype)))


class _Leaving:
    """One pass that keeps what leaves every block."""

    def __init__(self, host: ModelHandle) -> None:
        self.host = host
        self.states: list[Tensor] = []
        self.tuples = False
        """Whether the family's blocks return tuples."""

    def run(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Final hidden states ``(rows, longest, d_model)``."""

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            self.tuples = isinstance(output, tuple)
            self.states.append(output[0] if self.tuples else output)

        with ExitStack() as hooks:
            for block in self.host.blocks():
                hooks.callback(block.register_forward_hook(keep).remove)
            return self.host.forward(inputs)
