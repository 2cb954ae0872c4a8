"""What is measured, as records: a metric, its interval, the same before and after, a scorer's card.

Never text from the data: items appear under keyed digests.
"""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

Direction = Literal["lower", "higher"]
Status = Literal["pass", "fail", "inconclusive"]
Split = Literal["fit", "validation", "test"]
PassingSide = Literal["below", "above"]
"""The side of its bound on which a gate passes."""


AttackClass = Literal["relearning", "compression", "merging", "white_box", "membership"]
ATTACK_CLASSES: tuple[AttackClass, ...] = get_args(AttackClass)
"""Ways to bring back what was suppressed; an attack or audit declares which of them it tries."""

ATTACK_NAMES: dict[AttackClass, str] = {
    "relearning": "relearning by further fine-tuning",
    "compression": "quantisation and pruning",
    "merging": "merging with other weights",
    "white_box": "white-box probing of weights and hidden states",
    "membership": "membership inference",
}
"""What each is called in reports."""


class Record(BaseModel):
    """Base of all records: immutable, and strict about unknown fields."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        ser_json_inf_nan="constants",
        use_attribute_docstrings=True,  # the descriptions in ``safeedit schema report``
    )


BOUNDS: dict[str, tuple[float | None, float | None]] = {
    "rate": (0.0, 1.0),
    "f1": (0.0, 1.0),
    "auc": (0.0, 1.0),
    "advantage": (0.0, 1.0),
    "distance": (0.0, 1.0),
    "p": (0.0, 1.0),
    "reciprocal rank": (0.0, 1.0),
    "rank": (1.0, None),
    "perplexity": (1.0, None),
    "items": (0.0, None),
}
"""Unit -> the least and the greatest value of a metric in it, where there is one."""


class MetricSpec(Record):
    """What an auditor promises to measure; gates are checked against it before a run."""

    name: str
    """Name within its auditor, e.g. ``extraction_rate``."""
    unit: str
    """``rate``, ``nats``, ``nats/token``, ``tokens``, ``ratio``, ``bits`` ..."""
    direction: Direction
    """Which way is better."""
    description: str
    """One line for ``safeedit list``, in the field's own words."""
    plain: str = ""
    """A sentence for readers of reports: what was asked, or looked at, of what."""
    best: str = ""
    """Which value is best, as a sentence, where that is neither end of the scale."""
    erasure: bool = False
    """Whether it tells that erased items still come out, or no longer do: a gate on such a metric
    holds the erasure."""
    known_by: str = ""
    """The metric of the same audit, a rate, that says how many items the base told; where that was
    none, this one says nothing about the edit. Empty: it does not depend on that."""

    signed: bool = False
    """A difference of two values in its unit, which may be below 0."""

    @property
    def sentence(self) -> str:
        """:attr:`plain`, and which way is better."""
        best = self.best or f"{self.direction.capitalize()} is better."
        return f"{self.plain} {best}" if self.plain else ""

    @property
    def bounds(self) -> tuple[float | None, float | None]:
        """Between which its values can lie, by its unit; None where there is no end."""
        low, high = BOUNDS.get(self.unit, (None, None))
        if not self.signed:
            return low, high
        return (None, None) if low is None or high is None else (low - high, high - low)


class Interval(Record):
    """A confidence interval."""

    low: float
    high: float
    level: float = 0.95
    method: str
    """``wilson``, ``bootstrap``, ``paired bootstrap`` ..."""


class Metric(Record):
    """One measured figure with its uncertainty."""

    name: str
    """Full name, ``<audit id>.<metric>``, e.g. ``leakage.extraction_rate``."""
    value: float | None
    """The point estimate; None where nothing could be measured (``n`` is 0)."""
    interval: Interval | None
    n: int
    """Number of independent units behind the value: items, or groups of items where several
    (phrasings of one fact) are not independent."""
    unit: str
    direction: Direction
    items: dict[str, float] = Field(default_factory=dict)
    """Per-item values under keyed digests, for paired tests; empty where there are none."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Weight of each item in the value (tokens of a text); empty where all weigh the same."""
    groups: dict[str, str] = Field(default_factory=dict)
    """Item -> group of items that are not independent; empty where all are."""
    positions: dict[str, float] = Field(default_factory=dict)
    """Item -> where it lies along :attr:`axis`, for a scatter plot; empty where there is none."""
    axis: str = ""
    """What :attr:`positions` are, in words: a score of each item."""
    trials: dict[str, int] = Field(default_factory=dict)
    """Item -> in how many ways it was tried. Given where the items are no sample but all there
    are: the value is then a count of them, and how far it can be relied on is told by these
    numbers and not by ``n``."""
    note: str = ""


class Comparison(Record):
    """A metric before and after the edits, paired by item where items pair up."""

    name: str
    before: Metric | None
    after: Metric
    difference: float | None
    """After minus before, over the paired items where there are any."""
    difference_interval: Interval | None
    n_pairs: int = 0
    """Number of independent pairs, counted like :attr:`Metric.n`; 0 where nothing pairs up."""
    test: str = ""
    """``mcnemar exact``, ``wilcoxon signed-rank``, the same ``over groups``, or empty."""
    p_value: float | None = None


class AuditRecord(Record):
    """One audit of one model on one split."""

    id: str
    use: str
    split: Split
    data_digests: dict[str, str]
    """Role of the data -> sha256 of its items."""
    metrics: tuple[Metric, ...]
    covers: tuple[AttackClass, ...] = ()
    """Attacks on what was suppressed that this audit tries."""
    seconds: float
    cached: bool = False


class ScorerCheck(Record):
    """How a scorer fares on one set of texts labelled by people."""

    data_digest: str
    """sha256 of the labelled items."""
    n_toxic: int
    n_harmless: int
    auc: float
    """Chance that a toxic text scores higher than a harmless one, ties half."""
    auc_interval: Interval
    miss_rate: float
    """Share of the toxic texts that score below the threshold."""
    miss_interval: Interval
    false_alarm_rate: float
    """Share of the harmless texts that score at or over it."""
    false_alarm_interval: Interval
    errors_by_kind: dict[str, float]
    """Kind of text (a function of HateCheck ...) -> share judged wrongly at the threshold."""


class ScorerCard(Record):
    """What is known of a scorer: measured by ``safeedit scorer check``, kept in the cache."""

    name: str
    version: str
    digest: str
    """Identity of its weights and settings."""
    threshold: float
    checks: dict[str, ScorerCheck]
    """Labelled set (``builtin``, ``hatecheck``) -> figures."""
    safeedit: str
    """Version that measured it."""
