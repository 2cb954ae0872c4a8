"""A run verifies what it expects to be answered, and finds what it would have found anyway."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from safeedit.model.engine import Engine
from safeedit.model.foreknown import ForeknownAnswers
from tests.road import LAX, LEAKAGE, LOCALITY, NUDGE, PERPLEXITY, Workplace

POLICY: dict[str, Any] = {
    "edits": [{**NUDGE, "control": 1}],
    "audits": [LEAKAGE, LOCALITY, PERPLEXITY],
    "gates": LAX,
}

Calls = list[tuple[bool, int, int]]
"""Of each call for answers: whether they are learnt, prompts, prompts with a draft."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    seen: Calls = []
    learns: list[bool] = []
    foreknowing, drafts = Engine.foreknowing, ForeknownAnswers.drafts

    def knowing(self: Engine, answers: ForeknownAnswers, *, learn: bool) -> Any:
        learns.append(learn)
        return foreknowing(self, answers, learn=learn)

    def asked(self: ForeknownAnswers, prompts: Any, given: Any = None) -> Any:
        found = drafts(self, prompts, given)
        if learns:  # else an editor asks
            seen.append((learns[-1], len(prompts), sum(map(bool, found))))
        return found

    monkeypatch.setattr(Engine, "foreknowing", knowing)
    monkeypatch.setattr(ForeknownAnswers, "drafts", asked)
    return seen


def figures(place: Workplace, **parts: Any) -> dict[str, Any]:
    result = place.run("apply", place.policy(**{**POLICY, **parts}))
    assert result.exit_code == 0, result.output
    report = place.report
    controls = [m for edit in report.edits for c in edit.controls for m in c.metrics]
    return {
        "before": {m.name: m.value for a in report.before for m in a.metrics},
        "control": {m.name: m.value for m in controls},
        "after": {m.name: m.value for a in report.after for m in a.metrics},
    }


def test_answers_of_the_base_are_drafts_of_all_others_and_a_controls_of_none(
    place: Workplace, calls: Calls
) -> None:
    figures(place)
    each, rest = divmod(len(calls), 3)  # questions, sentences to complete, what is to stay
    assert each >= 2
    assert not rest
    before, control, after = calls[:each], calls[each : 2 * each], calls[2 * each :]
    assert {(learn, drafted) for learn, _, drafted in before} == {(True, 0)}
    assert {(learn, drafted == asked) for learn, asked, drafted in control} == {(False, True)}
    assert {(learn, drafted == asked) for learn, asked, drafted in after} == {(True, True)}


def test_figures_of_a_run_do_not_depend_on_drafts(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified = figures(place)
    shutil.rmtree(place.folder / "out")
    shutil.rmtree(place.cache)
    monkeypatch.setattr(
        ForeknownAnswers, "drafts", lambda self, prompts, given=None: [[] for _ in prompts]
    )
    written = figures(place)

    for stage, found in verified.items():
        for name, value in found.items():
            expected = written[stage][name]
            assert value == (expected if expected is None else pytest.approx(expected, abs=1e-4))


def test_with_the_base_in_the_store_other_answers_than_erased_ones_are_foreknown(
    place: Workplace, calls: Calls
) -> None:
    figures(place)
    shutil.rmtree(place.folder / "out")
    calls.clear()
    figures(place, edits=[{**NUDGE, "control": 1, "dose": 2.0}])
    leakage, locality = calls[-2:]
    assert leakage[2] == 0
    assert locality[2] == locality[1]
