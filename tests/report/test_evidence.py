"""What a supervisor asks: a row for each class of attack and each rule, tried or not."""

from __future__ import annotations

import pytest

from safeedit import catalog
from safeedit.records import ATTACK_CLASSES, AttackPoint, AttackRecord, Interval, Metric
from safeedit.report import evidence, html
from tests.report.records import run_record
from tests.report.test_formats import VARIANTS


def recovered(value: float | None, label: str) -> AttackPoint:
    metric = Metric(
        name="leakage.recovered", value=value, n=24, unit="share", direction="lower",
        interval=Interval(low=0.0, high=0.9, method="bootstrap") if value is not None else None,
    )  # fmt: skip
    return AttackPoint(dose=1.0, label=label, seed=7, edited=(metric,))


def attacked(*points: AttackPoint, failed: str = "") -> evidence.ClassRow:
    attack = AttackRecord(
        id="again", use="relearn", params={}, data_digests={}, tries="relearning",
        audits=("leakage",), points=points, failed=failed,
    )  # fmt: skip
    record = run_record(attacks=(attack,))
    return next(r for r in evidence.class_rows(record) if "relearning" in r.kind.tries)


def test_every_class_of_attack_that_there_is_has_a_row() -> None:
    """A new class needs a row in evidence.yaml: what it asks, who attacks, what stays open."""
    mapped = [name for kind in evidence.evidence_map().classes for name in kind.tries]
    assert sorted(mapped) == sorted(ATTACK_CLASSES)


def test_the_map_names_only_what_there_is() -> None:
    found = evidence.evidence_map()
    audits = {name for each in (*found.classes, *found.controls) for name in each.audits}
    optional = {"lm_eval"}
    assert audits - optional <= set(catalog.names("auditors"))
    for kind in found.classes:
        for name, metrics in kind.audits.items():
            declared = {spec.name for spec in catalog.auditor(name).metrics}
            assert set(metrics) <= declared, name
    ids = [control.id for control in found.controls]
    assert len(ids) == len(set(ids))
    assert {name for kind in found.classes for name in kind.controls} <= set(ids)


@pytest.mark.parametrize("name", VARIANTS)
def test_untested_rows_stay_as_not_measured(name: str) -> None:
    rows = evidence.class_rows(VARIANTS[name])
    assert len(rows) == len(evidence.evidence_map().classes)
    for row in rows:
        assert row.measured == bool(row.tried)
        assert row.measured or "not known" in row.residual
    text = html.render(VARIANTS[name])
    assert text.count("not measured</span>") >= sum(not row.measured for row in rows)


def test_what_no_run_measures_names_the_command_that_does() -> None:
    rows = evidence.class_rows(VARIANTS["passed"])
    (row,) = [row for row in rows if row.kind.elsewhere]
    assert row.residual.startswith("Not measured, so the risk is not known. The command safeedit")


def test_a_row_says_what_was_tried_on_how_many_with_which_interval() -> None:
    (row, *_) = evidence.class_rows(VARIANTS["passed"])
    (tried,) = row.tried
    assert tried.what == "Audit leakage"
    assert tried.metric.name == "leakage.extraction_rate"  # not asked in all ways
    assert evidence.result_words(tried) == "0.000 [0.000, 0.138], n 24 (48 in all)"
    assert "Wordings" in row.residual


def test_of_an_attack_the_strength_under_which_most_came_back_counts() -> None:
    row = attacked(recovered(0.1, "10 steps"), recovered(0.4, "40 steps"), recovered(None, "99"))
    (tried,) = row.tried
    assert tried.metric.value == 0.4
    assert "the worst of 3: 40 steps" in tried.what


def test_an_attack_that_failed_is_no_measurement() -> None:
    row = attacked(failed="at 10 steps: the loss is not finite")
    assert not row.measured
    assert row.failed == ("Attack again failed at 10 steps: the loss is not finite",)


def test_rules_say_where_their_evidence_is_or_that_there_is_none() -> None:
    found = {row.control.id: row.evidence for row in evidence.control_rows(VARIANTS["passed"])}
    assert found["gdpr-5.2"] == "Sections gates and provenance"
    assert found["ai-act-15"] == "Audits locality and perplexity"
    assert found["nist-2.11"] == ""


def test_the_computation_of_an_edit_is_held_against_that_of_the_training() -> None:
    record = VARIANTS["passed"]
    found = evidence.computation(record)
    assert found is not None
    assert found.edit == 6 * 134_515_008 * 41_250
    assert found.training == 6 * 134_515_008 * 2e12
    assert "less than a millionth" in found.words[1]
    model = record.model.model_copy(update={"training_tokens": None})
    unknown = evidence.computation(record.model_copy(update={"model": model}))
    assert unknown is not None
    assert unknown.training is None
    assert "does not tell" in unknown.words[1]


def test_computation_that_was_not_counted_is_not_told() -> None:
    record = VARIANTS["passed"]
    edit = record.edits[0].model_copy(update={"tokens_read": None})
    assert evidence.computation(record.model_copy(update={"edits": (edit,)})) is None
    assert evidence.computation(VARIANTS["audit only"]) is None
