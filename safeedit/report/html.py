"""The report as one HTML file: styles and figures inline, nothing loaded, nothing run.

It reads in light and dark, on paper and on a phone. Everything from the record is escaped.
"""

from __future__ import annotations

import json
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from safeedit.records import RunRecord
from safeedit.report import content, figures, wording
from safeedit.report.attacks import ATTACKS_EXPLAINED, attack_curves, attack_matrix
from safeedit.report.seeds import SEEDS_EXPLAINED, seed_table
from safeedit.text.display import clean


def render(record: RunRecord) -> str:
    """The whole page."""
    return page_environment().get_template("report.html.j2").render(
        record=record,
        audits=content.audits(record),
        compares=content.compares(record),
        attacks=attack_matrix(record),
        attacks_explained=ATTACKS_EXPLAINED,
        attack_curves=[(curve, figures.attack_curve(curve)) for curve in attack_curves(record)],
        controls=content.control_table(record),
        edit_by_edit=content.edit_by_edit(record),
        seeds=seed_table(record),
        seeds_explained=SEEDS_EXPLAINED,
        cost=content.cost(record),
        has_controls=any(edit.controls for edit in record.edits),
        edits=[
            {
                "record": edit,
                "facts": content.edit_facts(record, edit),
                "curves": [
                    (target, figures.dose_curve(edit.dose_curve, target, edit.dose))
                    for target in content.targets(record, edit)
                    if any(target.metric in point.metrics for point in edit.dose_curve)
                ],
                "layers": figures.layer_map(edit.changes, record.model.layers),
                "outside": [change for change in edit.changes if change.layer is None],
            }
            for edit in record.edits
        ],
        description=record.policy.get("description"),
        headline=content.headline(record),
        limits=content.limits(record),
        model_line=content.model_line(record),
        policy=json.dumps(record.policy, indent=2, ensure_ascii=False, default=str).splitlines(),
    )  # fmt: skip


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
        wording.bracket, wording.count, wording.duration, wording.estimate, wording.number,
        wording.p_value, wording.plural, wording.size, wording.took, wording.how_near,
        content.without_value,
    ):  # fmt: skip
        environment.filters[function.__name__] = function
    environment.globals["before_after"] = figures.before_after
    environment.globals["scatter"] = figures.scatter
    environment.globals["status_words"] = wording.STATUS_WORDS
    return environment
