"""How values of facts are sought in tests: a tiny model needs more than a grown one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest

from safeedit.methods.facts import editing, gated_neurons
from safeedit.methods.facts.settings import ValueSearch


@contextmanager
def searching(given: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Within it those of ``given`` that say how to seek hold; the rest, parameters, come back."""
    names = {field.name for field in fields(ValueSearch)}
    how = ValueSearch(**{name: value for name, value in given.items() if name in names})
    with patch.object(editing, "SEARCH", how):
        yield {name: value for name, value in given.items() if name not in names}


def weigh_background(
    monkeypatch: pytest.MonkeyPatch, weight: float = 0.01, ridge: float = 1e-4
) -> None:
    """Weigh other text against mentions: random weights hardly tell names from other words, so by
    default keys try harder than in a grown model."""
    eager = partial(gated_neurons.GatedNeurons, weight=weight, ridge=ridge)
    monkeypatch.setattr(gated_neurons, "GatedNeurons", eager)
