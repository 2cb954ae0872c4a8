"""The sheet an auditor fills in: one line for each metric it declares, none forgotten.

A metric that could not be measured stays on the sheet with no value and a note that says
why, so that a gate on it is inconclusive rather than unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from safeedit.data.independence import composed
from safeedit.records import Direction, Metric, MetricSpec
from safeedit.statistics.intervals import Floats
from safeedit.statistics.metrics import (
    exponential_metric,
    mean_metric,
    rate_metric,
    statistic_metric,
)
from safeedit.statistics.totals import totals_metric


def specs(rows: Iterable[tuple[str, str, Direction, str]]) -> tuple[MetricSpec, ...]:
    """Specifications from rows of name, unit, direction and description."""
    return tuple(
        MetricSpec(name=name, unit=unit, direction=direction, description=description)
        for name, unit, direction, description in rows
    )


def erasing(
    found: Iterable[MetricSpec], *, but: Iterable[str] = (), known_by: str = ""
) -> tuple[MetricSpec, ...]:
    """Specifications of metrics that tell whether erased items still come out.

    Args:
        found: All metrics of an auditor.
        but: Names of those that do not.
        known_by: The metric that says how many items the base told, where they depend on it.
    """
    others = frozenset(but)
    told = {"erasure": True, "known_by": known_by}
    return tuple(spec if spec.name in others else spec.model_copy(update=told) for spec in found)


def differences(found: Iterable[MetricSpec], *of: str) -> tuple[MetricSpec, ...]:
    """Specifications, those with one of these words in their names marked as differences."""
    return tuple(
        spec.model_copy(update={"signed": True}) if any(word in spec.name for word in of) else spec
        for spec in found
    )


class Sheet:
    """Metrics by name, made to their specifications.

    Args:
        specs: What the auditor declares.
        one_of: Item -> the item that stands for it and for all that tell the same
            (:func:`safeedit.data.independence.together`): they count as one.
    """

    def __init__(
        self, specs: Sequence[MetricSpec], one_of: Mapping[str, str] | None = None
    ) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._one_of = dict(one_of or {})
        self._found: dict[str, Metric] = {}

    def rate(
        self,
        name: str,
        items: Mapping[str, bool | float],
        groups: Mapping[str, str] | None = None,
        note: str = "",
    ) -> None:
        """Enter a rate; see :func:`safeedit.statistics.metrics.rate_metric`."""
        spec, groups = self._specs[name], composed(items, groups, self._one_of)
        self.put(rate_metric(name, items, spec.unit, spec.direction, groups=groups, note=note))

    def mean(
        self,
        name: str,
        items: Mapping[str, float],
        groups: Mapping[str, str] | None = None,
        weights: Mapping[str, float] | None = None,
        note: str = "",
        positions: Mapping[str, float] | None = None,
        axis: str = "",
    ) -> None:
        """Enter a mean; see :func:`safeedit.statistics.metrics.mean_metric`.

        With ``positions``, reports draw its items along ``axis``.
        """
        spec, groups = self._specs[name], composed(items, groups, self._one_of)
        found = mean_metric(
            name, items, spec.unit, spec.direction, weights=weights, groups=groups, note=note
        )
        self.put(found.model_copy(update={"positions": dict(positions or {}), "axis": axis}))

    def statistic(
        self,
        name: str,
        items: Mapping[str, float],
        statistic: Callable[[Floats], Floats],
        groups: Mapping[str, str] | None = None,
        note: str = "",
    ) -> None:
        """Enter any other statistic of the items, e.g. a median."""
        spec, groups = self._specs[name], composed(items, groups, self._one_of)
        self.put(
            statistic_metric(
                name, items, statistic, spec.unit, spec.direction, groups=groups, note=note
            )
        )

    def exponential(
        self, name: str, items: Mapping[str, float], weights: Mapping[str, float], note: str = ""
    ) -> None:
        """Enter ``exp`` of a weighted mean, e.g. a perplexity."""
        spec, groups = self._specs[name], composed(items, None, self._one_of)
        self.put(
            exponential_metric(
                name, items, spec.unit, spec.direction, weights=weights, groups=groups, note=note
            )
        )

    def totals(
        self,
        name: str,
        keys: Sequence[str],
        totals: Floats,
        statistic: Callable[[Floats], Floats],
        note: str = "",
        undefined: str = "the statistic is not defined on this data",
    ) -> None:
        """Enter a function of sums over units; see :mod:`safeedit.statistics.totals`."""
        spec = self._specs[name]
        self.put(
            totals_metric(
                name, keys, totals, statistic, spec.unit, spec.direction, note=note,
                undefined=undefined,
            )
        )  # fmt: skip

    def put(self, metric: Metric) -> None:
        """Enter a metric made elsewhere."""
        assert metric.name in self._specs, f"{metric.name} is not declared"
        self._found[metric.name] = metric

    def absent(self, note: str, *names: str) -> None:
        """Enter metrics that could not be measured, and why."""
        for name in names:
            spec = self._specs[name]
            self.put(
                Metric(
                    name=name,
                    value=None,
                    interval=None,
                    n=0,
                    unit=spec.unit,
                    direction=spec.direction,
                    note=note,
                )
            )

    def metrics(self) -> tuple[Metric, ...]:
        """All of them, in the order declared."""
        missing = self._specs.keys() - self._found.keys()
        assert not missing, f"not entered: {sorted(missing)}"
        return tuple(self._found[name] for name in self._specs)
