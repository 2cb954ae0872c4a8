"""``layers: auto``: the place that does best on validation data is taken, and all are told of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from pydantic import Field

from safeedit.contracts import (
    BaseParams,
    DataRole,
    EditData,
    LayerShape,
    Proposal,
    RunContext,
    TensorPlan,
)
from safeedit.delta import LowRank, Origin, WeightDelta
from safeedit.errors import EditError
from safeedit.model.handle import ModelHandle
from safeedit.policy.layers import LayersOrAuto, candidates, resolve
from safeedit.running.layers import FACTS
from tests.editors import toy
from tests.fixtures import context
from tests.road import DRIFT, Drift, Workplace, change_code, register


class AnywhereParams(BaseParams):
    layers: LayersOrAuto = Field("0-0", description="one")
    fails_at: tuple[int, ...] = ()
    offered: tuple[float, ...] = (1.0, 2.0)


class Anywhere:
    """Moves its layer's matrix by one and its number, at dose 1."""

    Params: ClassVar[type[BaseParams]] = AnywhereParams
    summary: ClassVar[str] = "moves a layer the further the deeper"
    roles: ClassVar[tuple[DataRole, ...]] = (DataRole("forget", "facts", erased=True),)
    fitted: ClassVar[list[tuple[int, int]]] = []
    """Layer and number of facts of each fit, in order."""

    def __init__(self, params: Any) -> None:
        self.params: AnywhereParams = params

    def touches(self, model: LayerShape) -> Sequence[TensorPlan]:
        return model.tensors("mlp_out", resolve(self.params.layers, model.n_layers))

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        (layer,) = resolve(self.params.layers, model.n_layers)
        Anywhere.fitted.append((layer, len(data["forget"].items("fit"))))
        if layer in self.params.fails_at:
            raise EditError("nothing can be edited here")
        (plan,) = self.touches(model.shape)
        base = model.digest()
        left = torch.zeros(plan.shape[0], 1)
        left[0] = 1.0
        right = torch.zeros(1, plan.shape[1])
        right[0, 0] = 1.0 + layer

        def at(dose: float) -> WeightDelta:
            return WeightDelta(base, {plan.name: LowRank(left * dose, right)}, Origin(editor="x"))

        return Proposal(self.params.offered, at)


@pytest.fixture
def place(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    register(monkeypatch, anywhere=Anywhere)
    Anywhere.fitted.clear()
    rows = [
        {"prompt": f"Where does Zyx{n} live now?", "answer": f"Vor{n}", "subject": f"Zyx{n}"}
        for n in range(11)
    ]
    place.rows("many.jsonl", rows)
    return place


def edit(*targets: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "use": "anywhere", "forget": {"file": "many.jsonl"}, "layers": "auto", "dose": "auto",
        "unaudited": "the tiny model knows none of it", "targets": list(targets), **more,
    }  # fmt: skip


def distance(**bound: float) -> dict[str, Any]:
    return {"metric": "drift.distance", "min_n": 1, **bound}


def test_other_depths_are_tried_beside_the_editors_own() -> None:
    assert candidates("16%-16%", 30) == ((4,), (1,), (8,), (12,), (17,))
    assert candidates("16%-16%", 18) == ((2,), (0,), (5,), (7,), (10,))
    assert candidates("13%-27%", 30)[0] == (3, 4, 5, 6, 7, 8)
    assert {len(layers) for layers in candidates("13%-27%", 30)} == {6}
    assert candidates("16%-16%", 1) == ((0,),)


def test_the_place_that_meets_the_targets_is_taken_and_what_each_gave_is_told(
    place: Workplace,
) -> None:
    # Layer 0 moves by 1 or 2, layer 1 by 2 or 4; layer 2 is no candidate of three.
    wanted = edit(distance(min=3.5), distance(max=4.5))
    done = place.run("apply", place.policy(edits=[wanted]))
    assert done.exit_code == 0, done.stderr
    (record,) = place.report.edits
    assert [tried.layers for tried in record.layers_tried] == [(0,), (1,)]
    assert [tried.meets_targets for tried in record.layers_tried] == [False, True]
    assert [tried.taken for tried in record.layers_tried] == [False, True]
    assert [tried.metrics["drift.distance"] for tried in record.layers_tried] == [2.0, 4.0]
    assert record.params["layers"] == [1]
    assert record.dose == 2.0
    assert {change.layer for change in record.changes} == {1}
    # A tensor of the place that was not taken counts as untouched again.
    untouched = record.untouched_verified
    again = {"dir": "out/trial", "overwrite": True}
    fixed = place.run("apply", place.policy(edits=[{**wanted, "layers": [1]}], export=again))
    assert fixed.exit_code == 0, fixed.stderr
    assert place.report.edits[0].untouched_verified == untouched
    assert place.report.edits[0].layers_tried == ()


def test_it_is_tried_on_a_few_facts_and_made_on_all(place: Workplace) -> None:
    done = place.run("apply", place.policy(edits=[edit(distance(min=0.5))]))
    assert done.exit_code == 0, done.stderr
    assert Anywhere.fitted == [(0, FACTS), (1, FACTS), (1, 11)]
    (record,) = place.report.edits
    assert {tried.facts for tried in record.layers_tried} == {FACTS}
    # The test split is looked at once before and once after, as without it.
    assert Drift.calls.count(("test", False)) == 2, "the edited model and its control"


def test_of_places_that_meet_all_the_one_furthest_within_is_taken(place: Workplace) -> None:
    done = place.run("apply", place.policy(edits=[edit(distance(min=0.9), offered=[1.0])]))
    assert done.exit_code == 0, done.stderr
    (record,) = place.report.edits
    assert all(tried.meets_targets for tried in record.layers_tried)
    assert record.params["layers"] == [1]


def test_a_second_run_takes_the_same(place: Workplace) -> None:
    policy = place.policy(edits=[edit(distance(min=3.5))], export=None)
    first, second = (
        json.loads(place.run("apply", policy, "--json", "--report", place.folder / name).stdout)
        for name in "ab"
    )
    for record in (first, second):
        for tried in record["edits"][0]["layers_tried"]:
            del tried["seconds"]
    assert first["edits"][0]["layers_tried"] == second["edits"][0]["layers_tried"]
    assert first["edits"][0]["delta_digest"] == second["edits"][0]["delta_digest"]


def test_what_was_found_is_found_again_unless_anything_has_changed(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chosen(**more: Any) -> tuple[int, int]:
        """How often the editor fits, and how many choices are kept afterwards."""
        Anywhere.fitted.clear()
        policy = place.policy(edits=[edit(distance(min=3.5), **more)], export=None)
        done = place.run("apply", policy, "--report", place.folder / "r")
        assert done.exit_code == 0, done.stderr
        return len(Anywhere.fitted), len(entries())

    def entries() -> list[Path]:
        return sorted((place.cache / "store").glob("layers-*/said.json"))

    assert (chosen(), chosen()) == ((3, 1), (0, 1))
    assert chosen(offered=[1.0, 2.5]) == (3, 2), "other parameters"
    # What was fitted and measured at each place is known; only the choice is another.
    assert chosen(targets=[distance(min=3.4)]) == (0, 3), "other targets"
    for file in entries():
        assert file.stat().st_mode & 0o077 == 0
        text = file.read_text()
        assert "Zyx" not in text
        assert "Vor" not in text
        file.write_text(text.replace("taken", "token"))
    assert chosen() == (0, 3)
    told = json.loads((place.folder / "r" / "report.json").read_text())["warnings"]
    assert any("it is made anew" in warning for warning in told), "changed by somebody"
    change_code(monkeypatch, "safeedit.running.layers")
    assert chosen() == (0, 4), "other code"


def test_a_place_where_it_can_not_be_made_is_passed_over(place: Workplace) -> None:
    done = place.run("apply", place.policy(edits=[edit(distance(min=0.5), fails_at=[0])]))
    assert done.exit_code == 0, done.stderr
    (record,) = place.report.edits
    assert [tried.layers for tried in record.layers_tried] == [(1,)]
    nowhere = place.policy(edits=[edit(distance(min=0.5), fails_at=[0, 1])], export=None)
    assert place.run("apply", nowhere).exit_code == 3


def test_the_plan_says_what_is_tried_and_names_the_tensors_of_all(place: Workplace) -> None:
    policy = place.policy(edits=[edit(distance(min=0.5))])
    told = place.run("plan", policy)
    assert told.exit_code == 0, told.stderr
    assert "layers: auto tries 0; 1 on a few facts" in told.stdout
    summary = json.loads(place.run("plan", policy, "--json").stdout)
    assert summary["edits"][0]["layers_tried"] == [[0], [1]]
    assert summary["edits"][0]["layers"] == [0, 1]


def test_the_report_lists_the_places(place: Workplace) -> None:
    done = place.run("apply", place.policy(edits=[edit(distance(min=3.5))]))
    assert done.exit_code == 0, done.stderr
    report = (place.target / "evidence" / "report.md").read_text()
    assert "layer 1, taken" in report
    assert "layer 0, tried" in report


def test_without_targets_or_validation_data_there_is_nothing_to_choose_by(
    place: Workplace,
) -> None:
    bare = place.run("plan", place.policy(edits=[edit(dose=1.0)], gates=None, export=None))
    assert bare.exit_code == 2
    assert "needs targets to choose by" in bare.stderr
    place.rows("only-test.jsonl", [{"prompt": "Q?", "answer": "A", "split": "test"}])
    audits = [{**DRIFT, "data": {"file": "only-test.jsonl"}}]
    empty = place.run(
        "plan", place.policy(edits=[edit(distance(min=1), dose=1.0, targets=[])], audits=audits,
                             gates=[distance(min=1)])
    )  # fmt: skip
    assert empty.exit_code == 2
    assert "'layers: auto' can't be held against" in empty.stderr


def test_an_editor_that_is_not_run_by_a_policy_has_no_auto(tmp_path: Any) -> None:
    from safeedit import catalog
    from safeedit.errors import UsageError

    for name in ("keyed_neurons", "rome", "memit", "alphaedit"):
        kind = catalog.editor(name)
        model = toy.taught()
        editor = kind(kind.Params.model_validate({"layers": "auto"}))
        with pytest.raises(UsageError, match="for a run to choose"):
            editor.touches(model.shape)
        with pytest.raises(UsageError, match="for a run to choose"):
            editor.propose(model, toy.data(), context(tmp_path))


def test_a_real_editor_forgets_where_the_facts_are(place: Workplace) -> None:
    model = toy.taught()
    model.model.save_pretrained(place.folder / "taught")
    assert model.tokenizer is not None
    model.tokenizer.save_pretrained(place.folder / "taught")
    place.rows("facts.jsonl", [
        {"prompt": toy.WORDINGS[0].format(name), "answer": toy.FACTS[name], "subject": name,
         "paraphrases": [wording.format(name) for wording in toy.WORDINGS[1:]]}
        for name in toy.FORGOTTEN
    ])  # fmt: skip
    facts = {"file": "facts.jsonl", "template": "plain"}
    made = {
        "use": "keyed_neurons", "forget": facts, "layers": "auto", "dose": "auto",
        "control": False,
        "targets": [{"metric": "leakage.extraction_rate", "max": 0.1, "min_n": 1}],
    }  # fmt: skip
    done = place.run("apply", place.policy(
        model={"source": "taught"}, edits=[made], export=None,
        audits=[{"use": "leakage", "forget": facts, "max_new_tokens": 4, "askings": []}],
        gates=[{"metric": "leakage.extraction_rate", "max": 0.1, "min_n": 1}],
    ), "--json", "--report", place.folder / "r")  # fmt: skip
    assert done.exit_code in (0, 1), done.stderr
    (record,) = json.loads(done.stdout)["edits"]
    assert [tried["layers"] for tried in record["layers_tried"]] == [[0], [1]]
    # What is known of a name is in the first MLP of this model.
    assert record["params"]["layers"] == [0]
