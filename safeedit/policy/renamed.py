"""Names that policies once used, and what they are called now.

No old spelling is read; the error for one names the new
(:func:`~safeedit.policy.suggest.did_you_mean`).
"""

from __future__ import annotations

from collections.abc import Container
from types import MappingProxyType

RENAMED: MappingProxyType[str, str] = MappingProxyType(
    {
        "also": "additional_sources",
        "apart_from": "exclude",
        "drop": "target_drop_nats",
        "hold": "preserve_weight",
        "make_up": "compensate",
        "leakage.yardstick": "leakage.reference_model",
    }
)
"""Keys of a policy, and names of editors and auditors."""

RENAMED_METRICS: MappingProxyType[str, str] = MappingProxyType(
    {
        "el_n": "extraction_likelihood",
        "extraction_rate_all": "extraction_rate_unconditional",
        "ma": "memorization_accuracy",
        "value": "perplexity",
    }
)
"""Metrics, by their names within an audit."""


def new_name(name: str, known: Container[str]) -> str | None:
    """What an old name is called now, where that is among the ``known`` ones.

    Args:
        name: A key, the name of a stage, or the full name of a metric.
        known: The names that would be understood.
    """
    audit, dot, metric = name.rpartition(".")
    candidates = [RENAMED.get(name)]
    if metric in RENAMED_METRICS:
        candidates.append(f"{audit}{dot}{RENAMED_METRICS[metric]}")
    return next((new for new in candidates if new is not None and new in known), None)
