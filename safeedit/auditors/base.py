"""What all auditors share: the sheet they fill in, and the reference a base run leaves behind.

The sheet has one line for each metric an auditor declares, none forgotten. A metric that could
not be measured stays on it with no value and a note that says why, so that a gate on it is
inconclusive rather than unknown.

A reference is tensors that say which data they belong to. One made on other data, or on another
split, would be compared item by item with the wrong items and give plausible nonsense; so each
carries a fingerprint, and a mismatch raises :class:`~safeedit.errors.AuditError`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from safeedit.data import Dataset
from safeedit.data.independence import composed
from safeedit.errors import AuditError
from safeedit.records import Direction, Metric, MetricSpec, Split
from safeedit.statistics.intervals import Floats
from safeedit.statistics.metrics import (
    census_metric,
    exponential_metric,
    mean_metric,
    rate_metric,
    statistic_metric,
)
from safeedit.statistics.totals import totals_metric

FINGERPRINT = "fingerprint"
"""Name of the tensor in a reference that says what it was made on."""
PROSE_WINDOW = 512
"""Tokens of a window in which prose is read, or the model's context where that is shorter. Base and
edited model are read alike; another window would give other figures, not another answer."""
_PAD = -1


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


def in_words(
    found: Iterable[MetricSpec], words: Mapping[str, str], best: Mapping[str, str] | None = None
) -> tuple[MetricSpec, ...]:
    """Specifications with what each is in a plain sentence, for readers of reports.

    Args:
        found: All metrics of an auditor.
        words: Name -> sentence, see :attr:`MetricSpec.plain`.
        best: Name -> which value is best, for those of which neither end is.
    """
    ideal = best or {}
    return tuple(
        spec.model_copy(
            update={"plain": words.get(spec.name, ""), "best": ideal.get(spec.name, "")}
        )
        for spec in found
    )


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

    def census(
        self, name: str, items: Mapping[str, float], trials: Mapping[str, int], note: str = ""
    ) -> None:
        """Enter a count over all items that there are; see
        :func:`safeedit.statistics.metrics.census_metric`."""
        spec, groups = self._specs[name], composed(items, None, self._one_of)
        self.put(
            census_metric(
                name, items, spec.unit, spec.direction, trials=trials, groups=groups, note=note
            )
        )

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


def fingerprint(data: Mapping[str, Dataset], split: Split, *more: str) -> Tensor:
    """Eight bytes (uint8) that stand for the data sets, the split, and whatever else made it."""
    parts = [f"{role}={data[role].digest}" for role in sorted(data)]
    found = hashlib.sha256("\n".join([split, *parts, *more]).encode()).digest()[:8]
    return torch.tensor(list(found), dtype=torch.uint8)


def check_reference(
    reference: Mapping[str, Tensor] | None, data: Mapping[str, Dataset], split: Split, *more: str
) -> None:
    """See that a reference was made on this data; on the base itself there is none to see to.

    Raises:
        AuditError: It was made on other data, by another auditor, or with something else of what
            ``more`` names (a scorer).
    """
    if reference is None:
        return
    own = reference.get(FINGERPRINT)
    if own is None or not torch.equal(own.cpu(), fingerprint(data, split, *more)):
        other = " or in another way" if more else ""
        raise AuditError(
            f"the reference of the base run was made on other data{other}",
            remedy="audit the base again with the same auditor, data and split",
        )


def pad(sequences: Sequence[Sequence[int]]) -> Tensor:
    """Token sequences as one int32 matrix ``(n, longest)``, filled with -1."""
    width = max((len(sequence) for sequence in sequences), default=0)
    padded = torch.full((len(sequences), width), _PAD, dtype=torch.int32)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = torch.tensor(sequence, dtype=torch.int32)
    return padded


def unpad(padded: Tensor) -> list[list[int]]:
    """The sequences :func:`pad` was given."""
    return [[token for token in row if token != _PAD] for row in padded.tolist()]


def stable_order(texts: Iterable[str]) -> list[str]:
    """Distinct texts in an order that depends on them alone, not on the file they came in.

    By hash rather than by alphabet, so that the first few are a fair sample.
    """
    return sorted(set(texts), key=lambda text: hashlib.sha256(text.encode()).digest())
