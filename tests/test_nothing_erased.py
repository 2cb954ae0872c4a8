"""Policies that would pass without erasing anything: each is refused, inconclusive, or fails.

Each was tried by somebody who wanted exit 0 and an export from a model that still tells everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from safeedit.contracts import (
    BaseParams,
    DataRole,
    EditData,
    LayerShape,
    Proposal,
    RunContext,
    TensorPlan,
)
from safeedit.delta import Dense, LowRank, Origin, WeightDelta
from safeedit.model.handle import ModelHandle
from tests.road import (
    DRIFT,
    FORGET,
    NEAR,
    PERPLEXITY,
    SMALL_DRIFT,
    Workplace,
    make_workplace,
    register,
    teach,
)

pytestmark = pytest.mark.trains

TOLD = {"metric": "leakage.extraction_rate", "max": 0, "min_n": 1}
TOLD_AT_ALL = {"metric": "leakage.extraction_rate_unconditional", "max": 0, "min_n": 1}
PROSE_KEPT = {"metric": "perplexity.ratio", "max": 2, "min_n": 1}
ASKED: dict[str, Any] = {"use": "leakage", "askings": [], "forget": {"file": "forget.jsonl"}}


class TouchParams(BaseParams):
    size: float = 1e-4


class Touch:
    """Says that it erases, and moves one matrix by as much as it is told to."""

    Params: ClassVar[type[BaseParams]] = TouchParams
    summary: ClassVar[str] = "moves a matrix and says that it erases"
    roles: ClassVar[tuple[DataRole, ...]] = (DataRole("forget", "anything", erased=True),)

    def __init__(self, params: Any) -> None:
        self.params: TouchParams = params

    def touches(self, model: LayerShape) -> Sequence[TensorPlan]:
        return model.tensors("mlp_out", [0])

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        (plan,) = self.touches(model.shape)
        base = model.digest()
        left = torch.ones(plan.shape[0], 1) * self.params.size

        def at(dose: float) -> WeightDelta:
            update = LowRank(left * dose, torch.ones(1, plan.shape[1]))
            return WeightDelta(base, {plan.name: update}, Origin(editor="touch", dose=dose))

        return Proposal((1.0,), at)


class Flip(Touch):
    """Turns the sign of a matrix; twice is not at all, to the last bit."""

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        (plan,) = self.touches(model.shape)
        base, change = model.digest(), -2 * model.stored(plan.name).detach().clone()
        delta = WeightDelta(base, {plan.name: Dense(change)}, Origin(editor="flip"))
        return Proposal((1.0,), lambda dose: delta)


@pytest.fixture(scope="module")
def knowing(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A model that tells every fact to be forgotten."""
    place = make_workplace(tmp_path_factory.mktemp("knowing"))
    teach(place)
    return place


@pytest.fixture
def place(knowing: Workplace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Workplace:
    register(monkeypatch, touch=Touch, flip=Flip)
    (tmp_path / "model").symlink_to(knowing.folder / "model")
    own = Workplace(tmp_path)
    for name in ("forget.jsonl", "retain.jsonl", "near.jsonl", "prose.jsonl"):
        (tmp_path / name).write_bytes((knowing.folder / name).read_bytes())
    return own


def touch(**options: Any) -> dict[str, Any]:
    forget = {"file": "forget.jsonl"}
    return {"use": "touch", "dose": 1.0, "control": False, "forget": forget, **options}


def apply(place: Workplace, **parts: Any) -> tuple[int, str]:
    result = place.run("apply", place.policy(**parts))
    if result.exit_code:
        assert not place.target.exists()
    return result.exit_code, result.stderr


def test_a_model_that_still_tells_everything_fails_the_gate(place: Workplace) -> None:
    """The control: what the tricks below try to get round."""
    code, said = apply(place, edits=[touch()], audits=[ASKED], gates=[TOLD])
    assert code == 1, said


# Refused while planning ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("audits", "gates", "said"),
    [
        pytest.param([DRIFT], [SMALL_DRIFT], "read by no audit of erased data", id="none asks"),
        pytest.param([PERPLEXITY], [PROSE_KEPT], "read by no audit", id="perplexity alone"),
        pytest.param([ASKED, PERPLEXITY], [PROSE_KEPT], "no gate holds a metric", id="not gated"),
        pytest.param(
            [ASKED], [{"metric": "leakage.known_before", "min": 0.5, "min_n": 1}],
            "no gate holds a metric", id="a gate on what was known",
        ),
        pytest.param(
            [ASKED], [{**TOLD, "max": 1}], "no gate holds a metric", id="a gate that can't fail"
        ),
        pytest.param(
            [ASKED], [{"metric": TOLD["metric"], "min": 0.5, "min_n": 1}],
            "no gate holds a metric", id="a gate the wrong way round",
        ),
        pytest.param(
            [ASKED], [{"metric": TOLD["metric"], "max_increase": 0.5, "min_n": 1}],
            "no gate holds a metric", id="a gate that allows no change",
        ),
        pytest.param(
            [{**ASKED, "forget": {"file": "other.jsonl"}}], [TOLD], "read other items",
            id="other items",
        ),
        pytest.param(
            [{**ASKED, "forget": {"file": "forget.jsonl", "limit": 2}}], [TOLD],
            "2 of the 4 items", id="some of the items",
        ),
    ],
)  # fmt: skip
def test_what_is_erased_must_be_asked_for_and_held_by_a_gate(
    place: Workplace, audits: list[dict[str, Any]], gates: list[dict[str, Any]], said: str
) -> None:
    place.rows("other.jsonl", [{"prompt": "Who is Bo?", "answer": "a cat", "subject": "Bo"}])
    code, told = apply(place, edits=[touch()], audits=audits, gates=gates)
    assert code == 2
    assert said in told
    assert "edits[0].forget" in told
    assert "unaudited" in told
    for row in FORGET:
        assert row["answer"] not in told


def test_a_policy_may_say_why_it_leaves_an_erasure_unaudited_and_the_report_repeats_it(
    place: Workplace,
) -> None:
    edit = touch(unaudited="the auditor of another team asks")
    code, said = apply(place, edits=[edit], audits=[DRIFT], gates=[SMALL_DRIFT])
    assert code == 0, said
    assert any("the auditor of another team asks" in text for text in place.report.warnings)
    assert "the auditor of another team asks" in (place.target / "evidence/report.md").read_text()


def test_an_audit_in_other_words_reads_the_same_facts(place: Workplace) -> None:
    rows = [
        {**row, "prompt": f"Tell me the home of {row['subject']}?", "paraphrases": []}
        for row in FORGET
    ]
    place.rows("other.jsonl", rows)
    audit = {**ASKED, "forget": {"file": "other.jsonl"}}
    policy = place.policy(edits=[touch()], audits=[audit], gates=[TOLD])
    assert place.run("validate", policy).exit_code == 0


def test_a_policy_without_edits_exports_nothing(place: Workplace) -> None:
    code, said = apply(place, edits=None, audits=[ASKED], gates=[{**TOLD, "max": 1}])
    assert code == 2
    assert "nothing to export" in said


def test_a_chat_template_that_drops_the_question_is_refused(
    place: Workplace, knowing: Workplace
) -> None:
    (place.folder / "model").unlink()
    (place.folder / "model").mkdir()
    for file in (knowing.folder / "model").iterdir():
        (place.folder / "model" / file.name).write_bytes(file.read_bytes())
    template = place.folder / "model" / "chat_template.jinja"
    policy = place.policy(edits=[touch()], audits=[ASKED], gates=[TOLD])
    template.write_text("<|im_start|>user\n{{ messages[0]['content'] }}<|im_end|>\n")
    assert place.run("validate", policy).exit_code == 0
    for text, part in (("Hello.", "the question"), ("{{ messages[0]['content'][:9] }}", "a part")):
        template.write_text(text)
        result = place.run("validate", policy)
        assert result.exit_code == 3, result.stderr
        assert f"leaves out {part}" in result.stderr


@pytest.mark.parametrize(
    ("gate", "warned"),
    [
        ({"max": 1}, "can't fail"),
        ({"max": 1.5}, "can't fail"),
        ({"max": 0.99}, ""),
        ({"max_increase": 1}, "can't fail"),
        ({"min_decrease": 1.2}, "can't be met"),
        ({"min_decrease": "120%"}, "can't be met"),
        ({"min_decrease": "50%"}, ""),
        ({"min": 0}, "can't fail"),
    ],
)
def test_a_gate_that_can_only_go_one_way_is_warned_of(
    place: Workplace, gate: dict[str, Any], warned: str
) -> None:
    gates = [TOLD, {"metric": "leakage.extraction_rate_direct", "min_n": 1, **gate}]
    result = place.run("validate", place.policy(edits=[touch()], audits=[ASKED], gates=gates))
    assert result.exit_code == 0, result.stderr
    assert (warned in result.stderr) if warned else ("can't" not in result.stderr)


# Inconclusive ----------------------------------------------------------------------------


def test_a_dose_that_changes_no_stored_weight_passes_nothing(place: Workplace) -> None:
    edit = touch(unaudited="a toy", dose=1e-30)
    code, said = apply(place, edits=[edit], audits=[DRIFT], gates=[SMALL_DRIFT])
    assert code == 4
    assert "changed no stored weight" in said


def test_edits_that_undo_each_other_pass_nothing(place: Workplace) -> None:
    edits = [{**touch(unaudited="a toy"), "use": "flip", "id": name} for name in ("there", "back")]
    code, said = apply(place, edits=edits, audits=[DRIFT], gates=[SMALL_DRIFT])
    assert code == 4
    assert "undo each other" in said
    code, said = apply(place, edits=edits[:1], audits=[DRIFT], gates=[SMALL_DRIFT])
    assert code == 0, said


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([{**row, "answer": f"{row['answer']}xq", "aliases": []} for row in FORGET],
                     id="misspelt"),
        pytest.param([{**row, "answer": f"a town called n{number}w", "aliases": []}
                      for number, row in enumerate(FORGET)], id="never known"),
    ],
)  # fmt: skip
def test_not_telling_what_was_never_known_is_inconclusive(
    place: Workplace, rows: list[dict[str, Any]]
) -> None:
    place.rows("forget.jsonl", rows)
    code, said = apply(place, edits=[touch()], audits=[ASKED], gates=[TOLD_AT_ALL])
    assert code == 4, said
    (verdict,) = place.report.verdicts
    assert "the base told none of the items" in verdict.reason


def test_rewordings_of_one_fact_do_not_make_ten(place: Workplace) -> None:
    (fact,) = FORGET[:1]
    wordings = [fact["prompt"], *fact["paraphrases"]]
    rows = [
        {"prompt": f"{text} ({number})", "answer": fact["answer"], "subject": fact["subject"]}
        for number, text in enumerate(wordings * 2)
    ]
    place.rows("forget.jsonl", rows)
    gate = {"metric": "leakage.extraction_rate_unconditional", "max": 0.02}
    apply(place, edits=[touch()], audits=[ASKED], gates=[gate])
    metric = next(m for m in place.report.after[0].metrics if m.name.endswith("_unconditional"))
    assert len(metric.items) == len(rows)
    assert metric.n == 1
    assert place.report.exit_code == 4


def test_the_near_questions_count_as_before(place: Workplace) -> None:
    """The control: questions about different things stay apart."""
    locality = {"use": "locality", "near": {"file": "near.jsonl"}, "max_new_tokens": 4}
    apply(place, edits=[touch()], audits=[ASKED, locality], gates=[TOLD])
    after = {m.name: m for audit in place.report.after for m in audit.metrics}
    assert after["locality.near_f1"].n == sum(row["split"] == "test" for row in NEAR)
    assert after["leakage.known_before"].n == len(FORGET)
