"""Which layers an edit works on, as a policy says it.

``3-8`` and ``[3, 4, 5]`` are layer numbers from 0; ``10%-30%`` is a share of the depth, so that one
policy fits models of different depth. ``auto``, where an editor offers it, has the run try several
places and take the one that does best on validation data (:mod:`safeedit.running.layers`).
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, WithJsonSchema

from safeedit.errors import UsageError

# Digits are few: Python refuses numbers of thousands of them, and no model has 10^9 layers.
_NUMBERS = re.compile(r"^\s*([0-9]{1,9})\s*-\s*([0-9]{1,9})\s*$")
_SHARES = re.compile(
    r"^\s*([0-9]{1,9}(?:\.[0-9]{1,20})?)\s*%\s*-\s*([0-9]{1,9}(?:\.[0-9]{1,20})?)\s*%\s*$"
)


def _check(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        if value and all(type(layer) is int and layer >= 0 for layer in value):
            return tuple(sorted(set(value)))
    elif type(value) is int and value >= 0:
        return (value,)
    elif isinstance(value, str) and (match := _NUMBERS.match(value) or _SHARES.match(value)):
        first, last = (float(part) for part in match.groups())
        if first <= last and (match.re is _NUMBERS or last <= 100):
            return value.strip()
    raise ValueError("should be layers such as 3-8, 10%-30% or [3, 4, 5]")


_FORMS: list[dict[str, Any]] = [
    {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*%?\s*-\s*\d+(\.\d+)?\s*%?\s*$"},
    {"type": "integer", "minimum": 0},
    {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
]

Layers = Annotated[
    str | tuple[int, ...],
    BeforeValidator(_check),
    WithJsonSchema({"anyOf": _FORMS}),
]
"""A pydantic field type for layers; :func:`resolve` turns it into numbers."""

AUTO = "auto"


def _check_or_auto(value: Any) -> Any:
    return AUTO if value == AUTO else _check(value)


LayersOrAuto = Annotated[
    str | tuple[int, ...],
    BeforeValidator(_check_or_auto),
    WithJsonSchema({"anyOf": [{"const": AUTO}, *_FORMS]}),
]
"""The same, of an editor whose layers a run can choose."""


def may_be_chosen(params: type[BaseModel]) -> bool:
    """Whether an editor's layers may be ``auto``."""
    field = params.model_fields.get("layers")
    return field is not None and any(
        isinstance(each, BeforeValidator) and each.func is _check_or_auto for each in field.metadata
    )


_DEPTHS = (Fraction(4, 100), Fraction(28, 100), Fraction(42, 100), Fraction(58, 100))
"""Where in the depth ``auto`` looks beside an editor's own place: what is known of a subject is
brought together in the first half of a model, and little that is changed after it tells."""


def candidates(
    own: str | tuple[int, ...], n_layers: int, most: int | None = None
) -> tuple[tuple[int, ...], ...]:
    """What ``auto`` tries: an editor's own place, then as many layers at other depths; none twice.

    Args:
        own: The editor's layers by default.
        n_layers: Of the model.
        most: Layers at a time.
    """
    first = resolve(own, n_layers)[-(most or n_layers) :]
    width = len(first)
    starts = (min(math.floor(depth * n_layers), n_layers - width) for depth in _DEPTHS)
    others = (tuple(range(start, start + width)) for start in starts)
    return tuple(dict.fromkeys((first, *others)))


def resolve(layers: str | tuple[int, ...], n_layers: int) -> tuple[int, ...]:
    """The layer numbers meant, for a model of ``n_layers``; at least one.

    Raises:
        UsageError: A number is outside the model.
    """
    if layers == AUTO:
        raise UsageError(
            "'auto' is for a run to choose: an editor by itself is given layers",
            field="layers",
            remedy="name layers, or give the edit in a policy and apply that",
        )
    if isinstance(layers, tuple):
        found = layers
    elif match := _NUMBERS.match(layers):
        # One beyond the model is enough to be told of.
        found = tuple(range(int(match[1]), max(int(match[1]), min(int(match[2]), n_layers)) + 1))
    else:
        match = _SHARES.match(layers)
        assert match is not None, "checked by the field type"
        # Exact: 0.07 * 100 is a little more than 7 in binary, and would take an eighth layer.
        start, end = (Fraction(share) / 100 * n_layers for share in match.groups())
        first = min(math.floor(start), n_layers - 1)
        last = max(math.ceil(end) - 1, first)
        found = tuple(range(first, last + 1))
    if outside := [layer for layer in found if layer >= n_layers]:
        raise UsageError(
            f"layer {outside[0]} does not exist: the model has {n_layers} layers",
            field="layers",
            remedy=f"use layers 0 to {n_layers - 1}, or a share such as 10%-30%",
        )
    return found
