"""How many tokens a model reads: what an edit costs in computation.

Counted where tokens enter the model, whoever calls it: padding included, what a cache of keys and
values spares not. A pass over embeddings that somebody made himself is not seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from safeedit.model.handle import ModelHandle


class TokenCount:
    """Tokens read so far; None once a part of them is not known."""

    def __init__(self) -> None:
        self.tokens: int | None = 0

    def add(self, tokens: int | None) -> None:
        """Count tokens that were read at another time; None where nobody noted how many."""
        self.tokens = None if self.tokens is None or tokens is None else self.tokens + tokens

    @contextmanager
    def of(self, model: ModelHandle) -> Iterator[None]:
        """Count what the model reads within it."""

        def read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            ids = args[0] if args else kwargs.get("input")
            if isinstance(ids, Tensor):
                self.add(ids.numel())

        embeddings = model.model.get_input_embeddings()
        hook = embeddings.register_forward_pre_hook(read, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()
