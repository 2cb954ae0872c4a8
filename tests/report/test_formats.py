"""What holds of every format: it is whole, honest in its words, and safe from its input."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import pytest
from rich.console import Console

from safeedit.records import Comparison, RunRecord
from safeedit.report import card, content, html, json, junit, markdown, render_all, terminal
from safeedit.report.svg import breakable
from tests.report.records import GATES, run_record

FAILING = (
    {"metric": "leakage.extraction_rate_few_shot", "max": 0.02},
    {"metric": "leakage.extraction_rate_prefix", "max": 0.05, "confidence": 0.95},
    *GATES,
)


def on_screen(record: RunRecord, width: int = 80, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, newline="")
    terminal.render(record, Console(file=file, width=width, highlight=False))
    file.flush()
    return raw.getvalue().decode(encoding)


FORMATS: dict[str, Callable[[RunRecord], str]] = {
    "html": html.render,
    "markdown": markdown.render,
    "junit": junit.render,
    "json": json.render,
    "terminal": on_screen,
    "card": card.render,
}
PROSE = ("html", "markdown", "terminal", "card")


def variants() -> dict[str, RunRecord]:
    """Records of every kind of run."""
    passed = run_record()
    fixed = passed.edits[0].model_copy(
        update={"dose_mode": "fixed", "dose_curve": (), "targets_met": None, "controls": ()}
    )
    failed = run_record(gates=FAILING)
    held = tuple(v.model_copy(update={"status": "pass"}) for v in failed.verdicts)
    undone = fixed.model_copy(update={"id": "first", "gates_so_far": held})
    unmeasured = passed.comparisons[0].after.model_copy(update={"value": None, "interval": None})
    return {
        "passed": passed,
        "failed": failed,
        "no gates": run_record(gates=()),
        "audit only": run_record(edited=False),
        "skipped": run_record(gates=({"metric": "probe.accuracy", "max": 0.5},)),
        "fixed dose": passed.model_copy(update={"edits": (fixed,)}),
        "two edits": passed.model_copy(update={"edits": (fixed, passed.edits[0])}),
        "undone": failed.model_copy(update={"edits": (undone, passed.edits[0])}),
        "nothing changed": passed.model_copy(
            update={"edits": (fixed.model_copy(update={"changes": ()}),)}
        ),
        "nothing measured": passed.model_copy(
            update={
                "after": (), "comparisons": (), "verdicts": (), "datasets": {}, "policy": {},
                "resources": passed.resources.model_copy(update={"stages": {}}),
            }
        ),
        "no value": passed.model_copy(
            update={
                "comparisons": (
                    Comparison(name=unmeasured.name, before=None, after=unmeasured,
                               difference=None, difference_interval=None),
                )
            }
        ),
        "no before": passed.model_copy(
            update={
                "comparisons": tuple(
                    Comparison(name=c.name, before=None, after=c.after, difference=None,
                               difference_interval=None)
                    for c in passed.comparisons
                )
            }
        ),
    }  # fmt: skip


VARIANTS = variants()


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("form", FORMATS)
def test_every_kind_of_run_can_be_rendered_in_every_format(form: str, name: str) -> None:
    text = FORMATS[form](VARIANTS[name])
    assert "forget-customer-records" in text
    assert "None" not in text.replace('"None"', "")


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("form", FORMATS)
def test_no_report_claims_more_than_suppression(form: str, name: str) -> None:
    text = FORMATS[form](VARIANTS[name]).lower()
    assert not re.search(r"\b(deleted|compliant|compliance|certified|erased|guarantee)", text)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("form", PROSE)
def test_the_limits_are_always_there(form: str, name: str) -> None:
    text = re.sub(r"\s+", " ", FORMATS[form](VARIANTS[name]))
    assert "What this does not show" in text
    assert f"One run with seed {VARIANTS[name].seed}" in text


@pytest.mark.parametrize("form", sorted(set(FORMATS) - {"json"}))
def test_no_table_of_items_is_printed(form: str) -> None:
    record = VARIANTS["passed"]
    text = FORMATS[form](record)
    items = [key for c in record.comparisons for key in c.after.items]
    assert len(items) > 100
    assert not [key for key in items if key in text]


@pytest.mark.parametrize("form", FORMATS)
def test_a_report_is_a_function_of_its_record(form: str) -> None:
    record = VARIANTS["passed"]
    again = RunRecord.model_validate_json(record.model_dump_json())
    assert FORMATS[form](record) == FORMATS[form](again)


@pytest.mark.parametrize("form", PROSE)
def test_what_failed_and_why_is_said(form: str) -> None:
    text = re.sub(r"\s+", " ", FORMATS[form](VARIANTS["failed"])).replace("\\", "")
    assert "is 0.125, above the bound 0.02" in text
    assert "lies on both sides of the bound 0.05" in text


HOSTILE = '</title><script>alert("x")</script> | a](javascript:x) `b` \x1b[31m\x07\u202etxt\n# c'


def hostile_record() -> RunRecord:
    record = VARIANTS["failed"]
    edit = record.edits[0]
    change = edit.changes[0].model_copy(update={"name": HOSTILE, "role": HOSTILE})
    comparisons = tuple(
        c.model_copy(
            update={
                "name": f"leakage.{HOSTILE}",
                "after": c.after.model_copy(update={"note": HOSTILE, "unit": HOSTILE}),
            }
        )
        for c in record.comparisons[:2]
    )
    verdict = record.verdicts[0].model_copy(
        update={"metric": f"leakage.{HOSTILE}", "condition": HOSTILE, "reason": HOSTILE}
    )
    return record.model_copy(
        update={
            "policy_name": f"p {HOSTILE}", "owner": HOSTILE, "ticket": HOSTILE,
            "warnings": (HOSTILE, "[bold red]no markup[/]"),
            "policy": {**record.policy, "description": HOSTILE, HOSTILE: HOSTILE},
            "model": record.model.model_copy(update={"source": HOSTILE, "architecture": HOSTILE}),
            "datasets": {HOSTILE: {"digest": HOSTILE, "source": HOSTILE, "items": {HOSTILE: 1}}},
            "edits": (
                edit.model_copy(
                    update={
                        "id": HOSTILE, "use": HOSTILE, "params": {HOSTILE: HOSTILE},
                        "notes": {HOSTILE: [HOSTILE]}, "changes": (change, *edit.changes),
                    }
                ),
            ),
            "comparisons": comparisons, "verdicts": (verdict,),
            "resources": record.resources.model_copy(update={"stages": {HOSTILE: 1.0}}),
        }
    )  # fmt: skip


@pytest.mark.parametrize("form", sorted(set(FORMATS) - {"json"}))
def test_hostile_names_stay_text(form: str) -> None:
    text = FORMATS[form](hostile_record())
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\u202e" not in text
    assert "alert" in text
    if form == "card":
        text = text.split("---\n", 2)[2]  # the front matter is YAML, where < is a letter
    if form in ("html", "junit", "markdown", "card"):
        assert "<script" not in text.replace("\\<script", "")
    if form == "terminal":
        assert "[bold red]no markup[/]" in text


def test_the_screen_needs_no_more_than_80_columns_and_no_colour() -> None:
    for record in (VARIANTS["failed"], VARIANTS["passed"], VARIANTS["audit only"]):
        text = on_screen(record)
        assert max(map(len, text.splitlines())) <= 80
        assert "\x1b" not in text
    assert "FAILED  forget-customer-records" in on_screen(VARIANTS["failed"])


def test_names_of_metrics_are_not_cut_on_80_columns() -> None:
    text = on_screen(VARIANTS["failed"])
    for gate in FAILING:
        assert gate["metric"] in text


@pytest.mark.parametrize("width", [60, 70, 80, 120])
def test_names_break_between_words_and_never_within_one(width: int) -> None:
    record = VARIANTS["failed"]
    lines = on_screen(record, width).splitlines()
    words = {word for c in record.comparisons for word in re.split(r"[._]", c.name)}
    at = next(i for i, line in enumerate(lines) if line.strip() == "leakage")
    for line in lines[at + 2 : at + 8]:
        first = line.strip().split("  ")[0]
        assert set(filter(None, re.split(r"[._]", first))) <= words, line


def test_names_in_markdown_can_be_copied_and_hostile_ones_stay_escaped() -> None:
    text = markdown.render(VARIANTS["failed"])
    assert "| `leakage.extraction_rate_few_shot` |" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert not any("extraction\\_rate" in line for line in tables)
    assert markdown.code("a`b") == "a\\`b"
    assert markdown.code("a|b") == "a\\|b"


def test_the_screen_may_speak_ascii_only() -> None:
    text = on_screen(VARIANTS["failed"], encoding="ascii")
    assert "FAILED" in text
    assert "leakage.extraction_rate_few_shot" in text


def test_the_screen_tells_cost_and_where_the_export_is() -> None:
    text = on_screen(VARIANTS["passed"])
    assert "5 min 12 s, peak memory 2.31 GB" in text
    assert "export: out/forget-customer-records" in text
    assert "export:" not in on_screen(VARIANTS["failed"])


def test_all_files_are_rendered_under_their_names() -> None:
    assert set(render_all(VARIANTS["passed"])) == {
        "report.json", "report.html", "report.md", "junit.xml", "report.sarif",
    }  # fmt: skip


def test_attacks_that_an_audit_covers_are_no_longer_listed_as_untested() -> None:
    record = VARIANTS["passed"]
    assert any("relearning" in limit for limit in content.limits(record))
    relearning = record.after[0].model_copy(update={"id": "again", "covers": ("relearning",)})
    more = record.model_copy(update={"after": (*record.after, relearning)})
    untested = [limit for limit in content.limits(more) if limit.startswith("Not tested")]
    assert len(untested) == 1
    assert "relearning" not in untested[0]
    assert "quantisation" in untested[0]


def test_the_name_of_an_audit_says_nothing_of_what_it_covers() -> None:
    """``bias.probe`` probes for gender, and says nothing of what a privacy policy suppressed."""
    record = VARIANTS["passed"]
    probe = record.after[0].model_copy(update={"id": "probe", "use": "bias.probe"})
    more = record.model_copy(update={"after": (*record.after, probe)})
    untested = [limit for limit in content.limits(more) if limit.startswith("Not tested")]
    assert "white-box probing" in untested[0]


def test_limits_say_what_was_skipped_and_what_small_samples_leave_open() -> None:
    record = VARIANTS["passed"]
    fewer = record.model_copy(update={"after": record.after[:2]})
    assert any(
        limit.startswith("Skipped") and "perplexity" in limit for limit in content.limits(fewer)
    )
    zero = [limit for limit in content.limits(record) if "compatible with" in limit]
    assert zero == [
        "leakage.extraction_rate is 0 on 24 independent items; that is compatible with a true "
        "rate of up to 0.138."
    ]


def test_an_edit_without_a_control_is_said_to_have_none() -> None:
    missing = "No random change of equal size"
    assert not any(limit.startswith(missing) for limit in content.limits(VARIANTS["passed"]))
    assert any(limit.startswith(missing) for limit in content.limits(VARIANTS["fixed dose"]))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("passed", "All 5 gates passed. The checkpoint that was measured is the one"),
        ("failed", "Of 7 gates, 1 failed and 1 inconclusive. Nothing was exported."),
        ("no gates", "The policy sets no gates, so nothing was decided."),
        ("audit only", "This run only measured; it edited and exported nothing."),
        ("skipped", "Of 1 gate, 1 inconclusive. Nothing was exported."),
    ],
)
def test_the_headline_says_what_happened(name: str, expected: str) -> None:
    assert expected in content.headline(VARIANTS[name])


def test_the_headline_of_a_failed_export_does_not_sound_like_success() -> None:
    record = VARIANTS["passed"].model_copy(update={"export": None, "exit_code": 3})
    assert content.headline(record).endswith("The export itself failed: nothing was exported.")
    skipped = VARIANTS["passed"].model_copy(
        update={"export": None, "status": "inconclusive", "exit_code": 4}
    )
    assert "A required audit was skipped" in content.headline(skipped)


def test_a_change_is_called_better_or_worse_only_where_its_interval_is_sure() -> None:
    rows = {
        row.comparison.name: row
        for audit in content.audits(VARIANTS["passed"])
        for row in audit.rows
    }
    assert rows["leakage.extraction_rate"].trend == "better"
    assert rows["leakage.refusal_rate"].trend == "better"
    assert rows["locality.near_unchanged"].trend == "worse"
    assert rows["locality.near_accuracy_kept"].trend == ""


def test_bounds_on_a_change_are_drawn_from_the_value_before() -> None:
    row = content.audits(VARIANTS["passed"])[2].rows[0]
    before = row.comparison.before
    assert before is not None
    assert before.value is not None
    assert row.bounds == ((pytest.approx(before.value * 1.02), "below"),)


def test_a_name_may_break_and_a_number_with_an_exponent_may_not() -> None:
    assert breakable("rate_of.a under x, 10 steps at 5e-05") == (
        'rate_<wbr>of.<wbr>a under x, 10 steps at <span class="whole">5e-05</span>'
    )
    assert breakable("<b>1e-3</b>") == '&lt;b&gt;<span class="whole">1e-3</span>&lt;/<wbr>b&gt;'
