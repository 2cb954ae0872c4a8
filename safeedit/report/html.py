"""The report as one HTML file: styles and figures inline, nothing loaded, nothing run.

It reads in light and dark, on paper, on a phone, with the keyboard and with a screen reader.
Everything from the record is escaped.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from safeedit.records import EditRecord, RunRecord
from safeedit.report import content, evidence, figures, gates, wording
from safeedit.report.attacks import ATTACKS_EXPLAINED, attack_curves, attack_matrix
from safeedit.report.seeds import SEEDS_EXPLAINED, seed_table
from safeedit.report.summary import first_screen
from safeedit.report.svg import breakable
from safeedit.text.display import clean


def render(record: RunRecord) -> str:
    """The whole page."""
    shown: dict[str, Any] = {
        "record": record,
        "audits": content.audits(record),
        "compares": content.compares(record),
        "gates": gates.gate_rows(record),
        "attacks": attack_matrix(record),
        "attacks_explained": ATTACKS_EXPLAINED,
        "attack_curves": [(curve, figures.attack_curve(curve)) for curve in attack_curves(record)],
        "controls": content.control_table(record),
        "edit_by_edit": content.edit_by_edit(record),
        "seeds": seed_table(record),
        "seeds_explained": SEEDS_EXPLAINED,
        "cost": content.cost(record),
        "has_controls": any(edit.controls for edit in record.edits),
        "edits": [_edit(record, edit) for edit in record.edits],
        "classes": evidence.class_rows(record),
        "rules": evidence.control_rows(record),
        "computation": evidence.computation(record),
        "answers": first_screen(record),
        "headline": content.headline(record),
        "limits": content.limits(record),
        "model_line": content.model_line(record),
        "policy": json.dumps(record.policy, indent=2, ensure_ascii=False, default=str).splitlines(),
    }
    shown["sections"] = _sections(shown)
    return page_environment().get_template("report.html.j2").render(shown)


def _edit(record: RunRecord, edit: EditRecord) -> dict[str, Any]:
    """What the section of one edit shows."""
    return {
        "record": edit,
        "facts": content.edit_facts(record, edit),
        "curves": [
            (target, figures.dose_curve(edit.dose_curve, target, edit.dose))
            for target in content.targets(record, edit)
            if any(target.metric in point.metrics for point in edit.dose_curve)
        ],
        "layers": figures.layer_map(edit.changes, record.model.layers, record.model.roles),
        "outside": [change for change in edit.changes if change.layer is None],
    }


def _sections(shown: dict[str, Any]) -> list[tuple[str, str]]:
    """Anchor and title of every section that is there."""
    found = [
        ("gates", "Gates", True),
        ("attacks", "Under attack", shown["attacks"] is not None),
        ("metrics", "Before and after" if shown["compares"] else "Measured", True),
        ("edits", "The edit", bool(shown["edits"])),
        ("controls", "Controls", bool(shown["controls"] or shown["edit_by_edit"])),
        ("seeds", "Over several seeds", shown["seeds"] is not None),
        ("evidence", "What a supervisor asks", True),
        ("limits", "What this does not show", True),
        ("cost", "Time and memory", True),
        ("provenance", "Provenance", True),
    ]
    return [(anchor, title) for anchor, title, there in found if there]


@cache
def page_environment() -> Environment:
    """Of the templates of pages: everything they show is escaped and cleaned."""
    environment = Environment(
        loader=PackageLoader("safeedit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: clean(value) if type(value) is str else value,
    )
    for function in (
        wording.bracket, wording.count, wording.day, wording.duration, wording.estimate,
        wording.number, wording.p_value, wording.plural, wording.size, wording.took, breakable,
        content.without_value, evidence.result_words,
    ):  # fmt: skip
        environment.filters[function.__name__] = function
    environment.filters["plain"] = lambda name, record: gates.plain(record, name)
    environment.globals["before_after"] = figures.before_after
    environment.globals["gate_strip"] = figures.gate_strip
    environment.globals["scatter"] = figures.scatter
    environment.globals["status_words"] = wording.STATUS_WORDS
    return environment
