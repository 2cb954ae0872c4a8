"""Gates as a policy sets them, and the one place that knows what each kind of gate means.

A kind says what is held against its bound (the metric after the edits, or its change), on which
side of the bound it passes, and which sign the bound has on that scale. Everything else that
speaks of gates (judging, the plan, every report) asks :data:`MEANINGS`, or reads what
:class:`~safeedit.records.Verdict` carries of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)

from safeedit.policy.parts import NAME, STAGE_NAME, PolicyPart, exactly_one
from safeedit.records import PassingSide

_PERCENT = re.compile(
    r"^\s*([+-]?(?:[0-9]{1,30}(?:\.[0-9]{0,30})?|\.[0-9]{1,30})(?:[eE][+-]?[0-9]{1,3})?)\s*%\s*$"
)


@dataclass(frozen=True)
class GateMeaning:
    """What one kind of gate means."""

    of_change: bool
    """Held against the metric's change, after minus before, rather than its value after."""
    passes: PassingSide
    """The side of the bound on which the gate passes; exactly on the bound passes too."""
    sign: Literal[1, -1] = 1
    """Sign of the bound: a policy writes a decrease as a positive number."""

    @property
    def asks_for_change(self) -> bool:
        """Held against a change that must be made, rather than one that must not be too great."""
        return self.of_change and (self.passes == "above") == (self.sign > 0)

    def inside(self, value: float, bound: float) -> bool:
        """Whether ``value`` lies on the passing side of ``bound``; both on the gate's scale."""
        return value < bound if self.passes == "below" else value > bound


MEANINGS: MappingProxyType[str, GateMeaning] = MappingProxyType(
    {
        "min": GateMeaning(of_change=False, passes="above"),
        "max": GateMeaning(of_change=False, passes="below"),
        "max_increase": GateMeaning(of_change=True, passes="below"),
        "max_decrease": GateMeaning(of_change=True, passes="above", sign=-1),
        "min_increase": GateMeaning(of_change=True, passes="above"),
        "min_decrease": GateMeaning(of_change=True, passes="below", sign=-1),
    }
)
"""Kind of gate -> what it means. Each is a field of :class:`GateSpec`, of which a gate sets exactly
one."""


class Bound(PolicyPart):
    """How far a metric may move from its value before the edits."""

    value: float
    """Difference in the metric's unit, or a share of the value before if relative."""
    relative: bool = False
    """True for a percentage: 3% is value 0.03."""

    def __str__(self) -> str:
        return f"{self.value * 100:g}%" if self.relative else f"{self.value:g}"

    @model_validator(mode="after")
    def _check(self) -> Bound:
        if self.value < 0:
            raise ValueError("must not be negative")
        return self


def _bound(value: Any) -> Any:
    if isinstance(value, str):
        match = _PERCENT.match(value)
        if match is None:
            raise ValueError("should be a number or a percentage such as 3%")
        # round() undoes the binary noise of e.g. 0.7 / 100, so that 0.7% equals 0.007.
        return {"value": round(float(match.group(1)) / 100, 12), "relative": True}
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return {"value": value, "relative": False}
    if isinstance(value, (Bound, dict)):
        return value
    raise ValueError("should be a number or a percentage such as 3%")


def _absolute(value: Any) -> Any:
    if isinstance(value, str) and (match := _PERCENT.match(value)):
        listed = " and ".join(kind for kind in MEANINGS if MEANINGS[kind].of_change)
        raise ValueError(
            f"is absolute and takes a number: write {float(match.group(1)) / 100:g} "
            f"(percentages are for {listed})"
        )
    return value


_BOUND_SCHEMA = {
    "anyOf": [
        {"type": "number", "minimum": 0},
        {
            "type": "string",
            "pattern": r"^\s*([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?\s*%\s*$",
        },
    ]
}


def _written(bound: Bound) -> float | str:
    return f"{bound.value * 100:.12g}%" if bound.relative else bound.value


Change = Annotated[
    Bound,
    BeforeValidator(_bound),
    PlainSerializer(_written),
    WithJsonSchema(_BOUND_SCHEMA, mode="validation"),
]
Limit = Annotated[float, BeforeValidator(_absolute)]


def _listed(value: Any) -> Any:
    return (
        (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value
    )


_UNDER_SCHEMA = {
    "anyOf": [
        {"type": "string", "pattern": STAGE_NAME},
        {"type": "array", "items": {"type": "string", "pattern": STAGE_NAME}},
    ]
}


_IN_PLACE = "random in place of "
_AGAINST = rf"^random( in place of {STAGE_NAME.strip('^$')})?$"


def _against(value: str) -> str:
    if re.fullmatch(_AGAINST, value) is None:
        raise ValueError("should be random, or random in place of ID, with an edit's id")
    return value


class GateSpec(PolicyPart):
    """A condition that the edited checkpoint must meet to be exported."""

    metric: Annotated[str, Field(pattern=rf"^{NAME}(\.{NAME})+$")]
    """<audit id>.<metric>, e.g. leakage.extraction_rate; an id may hold dots, a metric none."""
    under: Annotated[
        tuple[Annotated[str, Field(pattern=STAGE_NAME)], ...],
        BeforeValidator(_listed),
        WithJsonSchema(_UNDER_SCHEMA),
    ] = Field((), strict=False)
    """Ids of attacks: the metric must hold under each of them, at every strength and seed, instead
    of on the model as it is; one id, or a list."""
    against: (
        Annotated[
            str, AfterValidator(_against), WithJsonSchema({"type": "string", "pattern": _AGAINST})
        ]
        | None
    ) = None
    """``random``: a change is held against the edit's random control rather than against the model
    before the edits, whichever of them does better; of several edits, ``random in place of ID``
    says which one's control, made without the edits after it."""
    min: Limit | None = None
    """The metric must be at least this."""
    max: Limit | None = None
    """The metric must be at most this."""
    max_increase: Change | None = None
    """The metric may rise by at most this over its value before the edits; 0.1 or 3%."""
    max_decrease: Change | None = None
    """The metric may fall by at most this from its value before the edits; 0.1 or 3%."""
    min_increase: Change | None = None
    """The metric must rise by at least this over its value before the edits; 0.1 or 30%."""
    min_decrease: Change | None = None
    """The metric must fall by at least this from its value before the edits; 0.1 or 30%."""
    confidence: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Hold the bound of the interval at this confidence to the gate, not the value: 0.95."""
    min_n: Annotated[int, Field(ge=1)] = 10
    """With fewer items than this the gate is inconclusive."""
    over_seeds: Literal["worst", "mean"] = "worst"
    """Of a run with several seeds: ``worst``, it must hold with each of them; ``mean``, the mean
    over the seeds must meet it, and so must the checkpoint that is exported."""

    @model_validator(mode="after")
    def _check(self) -> GateSpec:
        exactly_one(self, tuple(MEANINGS))
        if self.against and not self.meaning.of_change:
            listed = ", ".join(kind for kind in MEANINGS if MEANINGS[kind].of_change)
            raise ValueError(
                f"'against' asks how far a metric is from a random change's, and {self.kind} asks "
                f"for its value: use one of {listed}"
            )
        if self.against and self.under:
            raise ValueError("takes 'against' or 'under': no random change is made under attacks")
        return self

    @property
    def audit(self) -> str:
        """Id of the audit the metric comes from."""
        return self.metric.rpartition(".")[0]

    @property
    def name(self) -> str:
        """Name of the metric within its audit."""
        return self.metric.rpartition(".")[2]

    @property
    def as_is(self) -> bool:
        """Whether it asks of the edited model alone, under no attack and beside no control."""
        return not (self.under or self.against)

    @property
    def in_place_of(self) -> str:
        """Id of the edit whose random control it is held against; empty where a policy has one
        edit, or where the gate is held against no control."""
        named = (self.against or "").startswith(_IN_PLACE)
        return (self.against or "").removeprefix(_IN_PLACE) if named else ""

    @property
    def kind(self) -> str:
        """Which of the conditions this gate sets."""
        return next(kind for kind in MEANINGS if getattr(self, kind) is not None)

    @property
    def meaning(self) -> GateMeaning:
        """What :attr:`kind` is held against, and on which side it passes."""
        return MEANINGS[self.kind]

    @property
    def bound(self) -> Bound:
        """The bound of :attr:`kind`; ``relative`` only for changes given in percent."""
        value = getattr(self, self.kind)
        return value if isinstance(value, Bound) else Bound.model_construct(value=float(value))

    @property
    def condition(self) -> str:
        """The gate in words, e.g. ``max 0.02 at confidence 0.95 under quantize``."""
        return self.condition_under(*self.under)

    def condition_under(self, *attacks: str) -> str:
        """The gate in words, of some of its attacks."""
        text = f"{self.kind} {self.bound}"
        if self.against:
            text += f" against {self.against}"
        if self.confidence:
            text += f" at confidence {self.confidence:g}"
        if self.over_seeds == "mean":
            text += " in the mean over seeds"
        return f"{text} under {' and '.join(attacks)}" if attacks else text
