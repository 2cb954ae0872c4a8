"""A few lines of Markdown for a pull request or a ticket: the verdict, the gates, what it cost.

Shorter than :mod:`~safeedit.report.markdown`, which is the whole report. The first line is a
comment that nobody sees, by which a pipeline finds what it wrote before and replaces it.
"""

from __future__ import annotations

from safeedit.records import RunRecord
from safeedit.report import content
from safeedit.report.markdown import bullets, escape, table
from safeedit.report.wording import STATUS_WORDS, estimate, how_near, plural, took

_SIGNS = {"pass": "✅", "fail": "❌", "inconclusive": "❔"}
_MOST = 40
"""Gates that are listed; of a longer policy the others are counted."""


def render(record: RunRecord) -> str:
    """The comment."""
    status = record.status
    lines = [
        f"<!-- safeedit: {escape(record.policy_name)} -->",
        f"### {_SIGNS[status]} {escape(record.policy_name)}: {STATUS_WORDS[status]}",
        "",
        escape(content.headline(record)),
        "",
    ]
    rows = [
        (
            f"{_SIGNS[verdict.status]} {STATUS_WORDS[verdict.status]}",
            escape(verdict.metric),
            escape(verdict.condition),
            _measured(record, verdict.metric, bool(verdict.under)),
            escape(how_near(verdict)),
        )
        for verdict in sorted(record.verdicts, key=lambda each: each.status == "pass")
    ]
    if rows:
        head = ("gate", "metric", "condition", "measured", "")
        lines += table(head, rows[:_MOST])
    if len(rows) > _MOST:
        lines += [f"... and {plural(len(rows) - _MOST, 'gate')} more.", ""]
    worse = [verdict.reason for verdict in record.verdicts if verdict.status != "pass"]
    lines += [f"- {escape(reason)}" for reason in worse[:_MOST]]
    lines += bullets(
        [
            ("model", content.model_line(record)),
            ("time", took(record.resources.wall_seconds, record.resources.spared_seconds)),
            ("weights", record.export.weights_digest[:16] if record.export else None),
            ("run", record.run_id),
        ]
    )
    lines += ["", f"{plural(len(content.limits(record)), 'limit')} of this run: see the report."]
    return "\n".join(lines) + "\n"


def _measured(record: RunRecord, name: str, under_attack: bool) -> str:
    """A metric after the edits; that under an attack is in the report."""
    if under_attack:
        return ""
    metrics = (comparison.after for comparison in record.comparisons if comparison.name == name)
    found = next(metrics, None)
    return escape(estimate(found.value, found.interval)) if found is not None else ""
