"""What ``safeedit trace`` writes: figures, and nothing of the facts."""

from __future__ import annotations

from typing import Literal

from safeedit.records import Interval, Record


class Estimate(Record):
    """A mean over facts."""

    value: float
    interval: Interval | None
    """Bootstrap over facts; None for one fact."""
    n: int
    """Facts."""


class Recommendation(Record):
    """Layers for the keyed editors, by the MLPs' effect at the subject's last token."""

    peak: int
    """The layer around which MLPs bring most back."""
    one: str
    """Line of a policy for an editor of one layer."""
    several: str
    """Line for editors of several: the layers around the peak that bring back nearly as much."""


class Checked(Record):
    """One layer edited."""

    layer: int
    effect: float
    """The MLPs' effect around it, as traced."""
    success: Estimate
    """By what share the answers' probability falls, in wordings the editor did not see."""


class Check(Record):
    """Tracing held against editing."""

    editor: str
    dose: float
    layers: tuple[Checked, ...]
    rank_correlation: float | None
    """Spearman's, of effect and success over layers; None where it is not defined."""


class Trace(Record):
    """A causal trace of one edit's facts."""

    format: Literal["safeedit-trace"] = "safeedit-trace"
    version: int = 1
    safeedit: str
    policy: str
    edit: str
    model: str
    weights_digest: str
    data_digest: str
    layers: int
    """Of the model."""
    facts: int
    not_told: int
    """Facts left out: the model, asked, does not tell them, or they don't name their subject."""
    template: str
    noise: float
    draws: int
    window: int
    seed: int
    probability: Estimate
    """Of the token that tells the answer."""
    under_noise: Estimate
    lost: Estimate
    """The one less the other: the total effect of the noise."""
    effects: dict[str, dict[str, tuple[Estimate | None, ...]]]
    """Kind -> place -> layer -> what comes back of the probability; None where no fact has such a
    place."""
    recommendation: Recommendation | None
    check: Check | None = None
    warnings: tuple[str, ...] = ()
