"""What a supervisor asks: evidence by class of attack and by rule, and the edit's computation.

``evidence.yaml`` beside this module maps the one to the other; here is what a record holds for
each. A class that nobody tried keeps its row. Nothing here says that a rule is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from safeedit.records import (
    RECOVERED,
    AttackClass,
    AuditRecord,
    Metric,
    RunRecord,
)
from safeedit.report.gates import plain
from safeedit.report.wording import bracket, count, listing, number, share

NOT_MEASURED = "not measured"

SECTIONS = {
    "gates": "gates",
    "metrics": "before and after",
    "edits": "edits",
    "provenance": "provenance",
}
"""Sections of a report that evidence may lie in -> how they are called in a sentence."""


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EvidenceClass(_Entry):
    """A class of attacks, as ``evidence.yaml`` has it."""

    name: str
    question: str
    threat_model: str
    residual: str
    """What stays open although it was measured."""
    controls: tuple[str, ...]
    tries: tuple[AttackClass, ...] = ()
    elsewhere: str = ""
    """What measures it, where no run does."""
    audits: dict[str, tuple[str, ...]] = Field(default_factory=dict)


class EvidenceControl(_Entry):
    """A rule, and where in a record evidence for it may be."""

    id: str
    source: str
    asks: str
    audits: tuple[str, ...] = ()
    tries: tuple[AttackClass, ...] = ()
    sections: tuple[Literal["gates", "metrics", "edits", "provenance"], ...] = ()


class EvidenceMap(_Entry):
    """The whole file."""

    version: Literal[1]
    classes: tuple[EvidenceClass, ...]
    controls: tuple[EvidenceControl, ...]


@cache
def evidence_map() -> EvidenceMap:
    """The data file."""
    text = files("safeedit.report").joinpath("evidence.yaml").read_text(encoding="utf-8")
    return EvidenceMap.model_validate(yaml.safe_load(text))


@dataclass(frozen=True)
class Tried:
    """One attempt, and what it found."""

    what: str
    how: str
    """What the audit or attack does, in plain words."""
    sentence: str
    """What the figure is, in plain words."""
    metric: Metric


@dataclass(frozen=True)
class ClassRow:
    """A row of the table by class of attack."""

    kind: EvidenceClass
    tried: tuple[Tried, ...]
    failed: tuple[str, ...]
    """Attempts that gave no figure, and why."""
    controls: tuple[str, ...]

    @property
    def measured(self) -> bool:
        return bool(self.tried)

    @property
    def residual(self) -> str:
        """What stays open."""
        if self.measured:
            return self.kind.residual
        return f"Not measured, so the risk is not known. {self.kind.elsewhere}".rstrip()


@dataclass(frozen=True)
class ControlRow:
    """A row of the table by rule."""

    control: EvidenceControl
    evidence: str
    """Where in this report; empty where there is none."""


def class_rows(record: RunRecord) -> tuple[ClassRow, ...]:
    """Every class of attack, tried or not."""
    known = {control.id: control.source for control in evidence_map().controls}
    return tuple(
        ClassRow(
            kind,
            (*_by_audits(record, kind), *_by_attacks(record, kind)),
            tuple(_failures(record, kind)),
            tuple(known[name] for name in kind.controls),
        )
        for kind in evidence_map().classes
    )


def control_rows(record: RunRecord) -> tuple[ControlRow, ...]:
    """Every rule, with where its evidence is."""
    return tuple(ControlRow(each, _where(record, each)) for each in evidence_map().controls)


def _by_audits(record: RunRecord, kind: EvidenceClass) -> Iterator[Tried]:
    for audit in record.after:
        names = kind.audits.get(audit.use, ())
        if not names and set(kind.tries) & set(audit.covers):
            names = tuple(metric.name.rpartition(".")[2] for metric in audit.metrics)
        if (metric := _first(audit, names)) is not None:
            name = "" if audit.id == audit.use else f" ({audit.use})"
            how = record.glossary.audits.get(audit.id, "")
            yield Tried(f"Audit {audit.id}{name}", how, plain(record, metric.name), metric)


def _first(audit: AuditRecord, names: tuple[str, ...]) -> Metric | None:
    """The first of these metrics that has a value."""
    found = {metric.name.rpartition(".")[2]: metric for metric in audit.metrics}
    return next(
        (found[name] for name in names if name in found and found[name].value is not None), None
    )


def _by_attacks(record: RunRecord, kind: EvidenceClass) -> Iterator[Tried]:
    """Of each attack, the strength under which most came back."""
    for attack in record.attacks:
        if attack.tries not in kind.tries:
            continue
        metrics = [
            (metric.value, point.label, metric)
            for point in attack.points
            for metric in point.edited
            if metric.name.endswith(f".{RECOVERED}") and metric.value is not None
        ]
        if metrics:
            _, label, worst = max(metrics, key=lambda each: each[0])
            points = len(attack.points)
            most = f"the worst of {points}: {label}" if points > 1 else label
            how = record.glossary.attacks.get(attack.id, "")
            yield Tried(f"Attack {attack.id} ({most})", how, plain(record, worst.name), worst)


def _failures(record: RunRecord, kind: EvidenceClass) -> Iterator[str]:
    for attack in record.attacks:
        if attack.tries in kind.tries and attack.failed:
            yield f"Attack {attack.id} failed {attack.failed}"


def _where(record: RunRecord, control: EvidenceControl) -> str:
    audits = [
        audit.id
        for audit in record.after
        if audit.use in control.audits or set(audit.covers) & set(control.tries)
    ]
    attacks = [each.id for each in record.attacks if each.tries in control.tries and each.points]
    there = {
        "gates": bool(record.verdicts),
        "metrics": bool(record.comparisons),
        "edits": bool(record.edits),
        "provenance": True,
    }
    sections = [SECTIONS[name] for name in control.sections if there[name]]
    parts = [
        f"{word}{'s' * (len(found) > 1)} {listing(found)}"
        for word, found in (
            ("section", sections),
            ("audit", list(dict.fromkeys(audits))),
            ("attack", attacks),
        )
        if found
    ]
    text = "; ".join(parts)
    return text[:1].upper() + text[1:]


def result_words(tried: Tried) -> str:
    """``0.012 [0.001, 0.100], n 36``."""
    metric = tried.metric
    return f"{number(metric.value)} {bracket(metric.interval)}".rstrip() + f", n {count(metric)}"


@dataclass(frozen=True)
class Computation:
    """What an edit took, beside what the model's training took, in floating-point operations."""

    tokens: int
    edit: float
    training: float | None
    """None where the model's card tells no number of tokens."""

    @property
    def words(self) -> tuple[str, ...]:
        """The figures, and what they are held against."""
        said = (
            f"The edits read {self.tokens:,} tokens while they were fitted: at most "
            f"{self.edit:.2g} floating-point operations (6 × parameters × tokens)."
        )
        if self.training is None:
            return (
                said,
                "The model's card does not tell on how many tokens it was trained. Where the "
                "original's computation is not known, the Commission's guidelines on "
                "general-purpose models (2025) count whoever modifies a model as its provider "
                f"beyond a third of 10²³ operations: the edits took {_part(self.edit, 1e23 / 3)} "
                "of that.",
            )
        return (
            said,
            f"The model's training took {self.training:.2g} by the same rule, from the tokens that "
            f"its card tells: the edits took {_part(self.edit, self.training)} of it. The "
            "Commission's guidelines on general-purpose models (2025) count whoever modifies a "
            "model as its provider beyond a third.",
        )


def _part(part: float, whole: float) -> str:
    """``3.1 %``, or words where that would be all zeros."""
    return "less than a millionth" if part < 1e-6 * whole else share(part, whole)


def computation(record: RunRecord) -> Computation | None:
    """The edits' computation; None where there is no edit, or its tokens were not counted."""
    read = [edit.tokens_read for edit in record.edits]
    known = [tokens for tokens in read if tokens is not None]
    if not read or len(known) < len(read):
        return None
    each = 6.0 * record.model.parameters
    trained = record.model.training_tokens
    return Computation(sum(known), each * sum(known), None if trained is None else each * trained)
