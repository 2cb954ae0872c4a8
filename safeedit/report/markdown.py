"""The report as GitHub-flavoured Markdown, for pull requests and tickets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from safeedit.records import EditRecord, RunRecord, Verdict
from safeedit.report import content
from safeedit.report.attacks import ATTACKS_EXPLAINED, attack_matrix
from safeedit.report.content import MetricRow
from safeedit.report.evidence import (
    NOT_MEASURED,
    class_rows,
    computation,
    control_rows,
    result_words,
)
from safeedit.report.seeds import SEEDS_EXPLAINED, seed_table
from safeedit.report.summary import first_screen
from safeedit.report.wording import (
    NOTHING,
    STATUS_WORDS,
    bracket,
    count,
    day,
    estimate,
    how_near,
    number,
    p_value,
    size,
)
from safeedit.text.display import clean

_NAME = re.compile(r"[\w.]+(?:-[\w.]+)*", re.ASCII)
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~$])")


def render(record: RunRecord) -> str:
    """The document, from the outcome down to the digests."""
    lines = [
        f"# {escape(record.policy_name)}: {STATUS_WORDS[record.status]}",
        "",
        escape(content.headline(record)),
        "",
        *bullets(
            [
                ("model", content.model_line(record)),
                ("run", f"{record.command}, {record.run_id}, {record.started}"),
                ("owner", record.owner),
                ("ticket", record.ticket),
                ("wall time", content.cost(record)),
                ("peak memory", size(record.resources.peak_memory_bytes)),
                ("export", record.export.directory if record.export else None),
            ]
        ),
        "",
        *(f"> warning: {escape(warning)}\n" for warning in record.warnings),
        *in_short(record),
        *gates(record),
        *metrics(record),
        *attacks(record),
        *controls(record),
        *edit_by_edit(record),
        *seeds(record),
        *(line for edit in record.edits for line in _edit(record, edit)),
        *evidence(record),
        *limits(record),
        *_provenance(record),
    ]
    return "\n".join(lines).rstrip() + "\n"


def escape(text: object) -> str:
    """Text in which nothing is read as Markdown or HTML, within a line."""
    return _SPECIAL.sub(r"\\\1", clean(text).replace("&", "&amp;"))


def code(name: str) -> str:
    """A name as it is written in a policy, so that it can be copied and is never broken; escaped
    where it is no plain name."""
    return f"`{name}`" if _NAME.fullmatch(name) else escape(name)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table; the cells are escaped already."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cell or ' ' for cell in line)} |" for line in lines] + [""]


def bullets(facts: Iterable[tuple[str, object]]) -> list[str]:
    """``- label: value`` for every value there is."""
    return [f"- {escape(label)}: {escape(value)}" for label, value in facts if value]


def in_short(record: RunRecord) -> list[str]:
    """The five questions of the first screen."""
    lines = ["## In short", ""]
    for answer in first_screen(record):
        lines += [f"**{answer.question}** {escape(answer.text)}", ""]
        for point in answer.points:
            shown = f"**{escape(point.figure)}**" if point.figure else ""
            parts = (escape(point.text), shown, escape(point.detail))
            lines.append(f"- {' '.join(filter(None, parts))}")
        lines.append("")
    return lines


def evidence(record: RunRecord) -> list[str]:
    """What a supervisor asks: a row for each class of attack, tried or not, and for each rule."""
    when = f"{day(record.started)}, safeedit {record.environment.safeedit}"
    rows = []
    for row in class_rows(record):
        tried = [*(each.what for each in row.tried), *row.failed] or ["nothing"]
        found = [f"{code(each.metric.name)} {escape(result_words(each))}" for each in row.tried]
        rows.append(
            (
                escape(row.kind.name),
                escape(row.kind.threat_model),
                escape("; ".join(tried)),
                "; ".join(found) or NOT_MEASURED,
                escape(when) if row.measured else "never",
                escape(row.residual),
            )
        )
    lines = ["## What a supervisor asks", ""]
    head = ("class of attack", "who attacks", "tried", "found", "when, by which version", "open")
    lines += table(head, rows)
    rules = [
        (escape(row.control.source), escape(row.control.asks), escape(row.evidence) or NOT_MEASURED)
        for row in control_rows(record)
    ]
    lines += table(("rule", "what it asks", "evidence in this report"), rules)
    spent = computation(record)
    return lines + ([escape(" ".join(spent.words)), ""] if spent is not None else [])


def gates(record: RunRecord) -> list[str]:
    """The section on gates."""
    rows = [
        (
            STATUS_WORDS[verdict.status],
            code(verdict.metric),
            escape(verdict.condition),
            escape("; ".join(filter(None, (_why(verdict), how_near(verdict))))),
        )
        for verdict in record.verdicts
    ]
    if not rows:
        return ["## Gates", "", "The policy sets none.", ""]
    return ["## Gates", "", *table(("verdict", "metric", "condition", "why"), rows)]


def _why(verdict: Verdict) -> str:
    return verdict.reason.removeprefix(f"{verdict.metric} ")


def metrics(record: RunRecord) -> list[str]:
    """The section on metrics, a table for each audit."""
    two_models = content.compares(record)
    controlled = any(edit.controls for edit in record.edits)
    lines = ["## Before and after" if two_models else "## Measured", ""]
    lines += ["Values with 95 % intervals; n counts independent items.", ""]
    head = ["metric", "before", "after", "change", "p"] if two_models else ["metric", "value"]
    head += ["random change of equal size"] if controlled else []
    head += ["n", "unit (better)"]
    for audit in content.audits(record):
        lines += [f"### {escape(audit.id)}", ""]
        if audit.rows:
            lines += table(head, [_cells(row, two_models, controlled) for row in audit.rows])
        if audit.unmeasured:
            lines += [f"Without a value: {escape(content.without_value(audit))}.", ""]
    return lines


def attacks(record: RunRecord) -> list[str]:
    """The section on attacks: the matrix, and what is to be said of it."""
    found = attack_matrix(record)
    if found is None:
        return []
    lines = ["## Under attack", "", escape(ATTACKS_EXPLAINED), ""]
    invents = any(row.invented for row in found.rows)
    head = ["attack", "strength", *map(code, found.metrics), "effect undone"]
    head += ["told of what nobody knew"] if invents else []
    rows = [["none", "", *(_without_attack(*pair) for pair in found.unattacked), ""]]
    for row in found.rows:
        cells = [escape(cell.words) if cell is not None else "" for cell in row.cells]
        rows.append(
            [code(row.attack), escape(row.label), *cells, escape(row.recovered_words)]
            + [", ".join(number(metric.value) for metric in row.invented)] * invents
        )
    rows[0] += [""] * (len(head) - len(rows[0]))
    lines += table(head, rows)
    return lines + [f"- {escape(remark)}" for remark in found.remarks] + [""]


def _without_attack(after: float | None, before: float | None) -> str:
    text = number(after)
    return text if before is None else f"{text} (untouched {number(before)})"


def controls(record: RunRecord) -> list[str]:
    """The edit beside its controls, where there are several."""
    found = content.control_table(record)
    if found is None:
        return []
    rows = [
        [escape(name), *(number(value) if value is not None else "" for value in values)]
        for name, values in found.rows
    ]
    return ["## Controls", "", *table(["change", *map(code, found.metrics)], rows)]


def edit_by_edit(record: RunRecord) -> list[str]:
    """What the gates said after each edit, where there are several."""
    found = content.edit_by_edit(record)
    if found is None:
        return []
    rows = [
        [
            escape(gate),
            *(f"{number(verdict.value)} {STATUS_WORDS[verdict.status]}" for verdict in verdicts),
        ]
        for gate, verdicts in found.rows
    ]
    lines = ["## Edit by edit", "", "Gates after each edit, with all edits before it.", ""]
    lines += table(["gate", *(f"after {code(edit)}" for edit in found.edits)], rows)
    return lines + [f"- {escape(sentence)}" for sentence in found.undone] + [""]


def seeds(record: RunRecord) -> list[str]:
    """The section on several seeds: gates seed by seed, then the spread of every figure."""
    found = seed_table(record)
    if found is None:
        return []
    each = [f"seed {seed}" for seed in found.seeds]
    rows = [[escape(gate), *map(escape, cells)] for gate, cells in found.gates]
    lines = [f"## Over {len(each)} seeds", "", escape(SEEDS_EXPLAINED), ""]
    lines += table(["gate", *each], rows) if rows else []
    head = ["figure", *each, "mean", "standard deviation", "least", "greatest"]
    return lines + table(
        head,
        [
            [
                escape(name),
                *map(number, spread.values),
                *map(number, (spread.mean, spread.deviation, spread.least, spread.greatest)),
            ]
            for name, spread in found.figures.items()
        ],
    )


def limits(record: RunRecord) -> list[str]:
    """The section that is always there."""
    lines = [f"- {escape(limit)}" for limit in content.limits(record)]
    return ["## What this does not show", "", *lines, ""]


def _cells(row: MetricRow, two_models: bool, controlled: bool) -> list[str]:
    found, after = row.comparison, row.after
    cells: list[str] = []
    if two_models:
        before = found.before
        change = f"{number(found.difference, signed=True)} {bracket(found.difference_interval)}"
        cells += [
            estimate(before.value, before.interval) if before else NOTHING,
            estimate(after.value, after.interval),
            f"{change.rstrip()} {row.trend}".rstrip(),
            p_value(found.p_value).removeprefix("p ").removeprefix("= "),
        ]
    else:
        cells.append(estimate(after.value, after.interval))
    if controlled:
        cells.append(number(row.control.value) if row.control else "")
    cells += [count(after), f"{after.unit} ({after.direction})"]
    return [code(row.name), *(escape(cell) for cell in cells)]


def _edit(record: RunRecord, edit: EditRecord) -> list[str]:
    name = edit.id if edit.id == edit.use else f"{edit.id} ({edit.use})"
    lines = [f"## Edit {escape(name)}", "", *bullets(content.edit_facts(record, edit)), ""]
    names = [t.metric for t in content.targets(record, edit)]
    shown = [m for m in dict.fromkeys(names) if any(m in p.metrics for p in edit.dose_curve)]
    if edit.dose_curve:
        lines += ["Doses tried, on validation data:", ""]
        rows = [
            [
                f"**{point.dose:g}**" if point.dose == edit.dose else f"{point.dose:g}",
                *(number(point.metrics.get(metric)) for metric in shown),
                "all met" if point.meets_targets else f"{len(point.misses)} missed",
            ]
            for point in edit.dose_curve
        ]
        lines += table(["dose", *map(code, shown), "targets"], rows)
    return lines


def _provenance(record: RunRecord) -> list[str]:
    lines = ["## Provenance", ""]
    lines += bullets(
        [
            *content.weights_facts(record),
            ("policy", record.policy_digest),
            ("seed", str(record.seed)),
            ("other seeds", ", ".join(str(run.seed) for run in record.other_seeds)),
            ("safeedit", record.environment.safeedit),
            ("platform", f"Python {record.environment.python}, {record.environment.platform}"),
        ]
    )
    lines.append("")
    rows = [
        (escape(name), escape(data.get("source", "")), escape(data.get("digest", "")))
        for name, data in record.datasets.items()
    ]
    return lines + (table(("data", "source", "sha256"), rows) if rows else [])
