"""The first screen answers five questions, and says nothing that the tables do not."""

from __future__ import annotations

import pytest

from safeedit.records import Glossary
from safeedit.report.summary import PlainAnswer, figure, first_screen
from tests.report.records import run_record
from tests.report.test_formats import FAILING, VARIANTS

QUESTIONS = (
    "What was asked?", "What was done?", "Did it pass?", "What did it cost?",
    "What was not measured?",
)  # fmt: skip


def words(answer: PlainAnswer) -> str:
    points = (f"{p.text} {p.figure} {p.detail}" for p in answer.points)
    return " ".join((answer.text, *points)).replace("\u00a0", " ")


def told(name: str) -> dict[str, str]:
    return {answer.question: words(answer) for answer in first_screen(VARIANTS[name])}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_of_run_answers_all_five(name: str) -> None:
    answers = first_screen(VARIANTS[name])
    assert tuple(answer.question for answer in answers) == QUESTIONS
    assert all(answer.text or answer.points for answer in answers)
    assert all(len(answer.points) <= 6 for answer in answers)


def test_a_pass_says_what_still_comes_out_and_what_it_cost() -> None:
    found = told("passed")
    assert "24 facts" in found["What was asked?"]
    assert "5 conditions had to hold" in found["What was asked?"]
    assert "48 tensors changed" in found["What was done?"]
    assert "224 others proved unchanged" in found["What was done?"]
    assert "85.4 % before, 0 % after" in found["Did it pass?"]
    assert "within the bound that was set" in found["Did it pass?"]
    assert "Of 6 figures about everything else, 3 got worse" in found["What did it cost?"]
    assert "membership inference" in found["What was not measured?"]
    assert "extraction_rate_sampled" in found["What was not measured?"]


def test_a_failure_says_what_was_measured_and_what_it_had_to_be() -> None:
    found = told("failed")["Did it pass?"]
    assert "Failed: Of the answers to be suppressed" in found
    assert "12.5 %, must be at most 0.020" in found
    assert "Inconclusive: " in found


def test_a_run_that_only_measured_says_so() -> None:
    found = told("audit only")
    assert "Nothing was edited" in found["What was done?"]
    assert "Nothing about the model was changed" in found["What did it cost?"]


def test_without_a_glossary_names_stand_in_for_sentences() -> None:
    record = run_record(gates=FAILING, glossary=Glossary())
    found = {answer.question: words(answer) for answer in first_screen(record)}
    assert "Failed: leakage.extraction_rate_few_shot" in found["Did it pass?"]


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [(0.857, "rate", "85.7 %"), (0.0, "rate", "0 %"), (1.0, "rate", "100 %"),
     (1.5, "ratio", "1.500"), (None, "rate", "–")],
)  # fmt: skip
def test_rates_are_told_in_percent(value: float | None, unit: str, expected: str) -> None:
    assert figure(value, unit).replace("\u00a0", " ") == expected
