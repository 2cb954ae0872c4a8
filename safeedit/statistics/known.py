"""Nothing is shown by not telling what was never known.

A metric such as ``extraction_rate_unconditional`` is 0 for a model that knew none of the items:
because they are new to it, because their answers are misspelt, because the audit reads too few
tokens to find one. A gate on it passes before the edit as after it, so its verdict is inconclusive.
"""

from __future__ import annotations

from safeedit.records import Metric, MetricSpec, Verdict
from safeedit.statistics.verdicts import unsure


def unless_unknown(verdict: Verdict, spec: MetricSpec | None, known: Metric | None) -> Verdict:
    """A verdict, made inconclusive where the base told none of the items.

    Args:
        verdict: What the gate says of the metric.
        spec: The metric's specification; None where nobody measures it.
        known: The base's own value of ``spec.known_by``; None where that was not measured.
    """
    if verdict.status != "pass" or spec is None or not spec.known_by:
        return verdict
    if known is not None and (known.value is None or known.value > 0):
        return verdict
    how = "was not asked which" if known is None else "told none"
    reason = (
        f"{verdict.metric} passes, but the base {how} of the items it is about, so nothing shows "
        "that anything was erased: look at their answers, at how they are asked, and at how many "
        "tokens are read"
    )
    return unsure(verdict, reason)
