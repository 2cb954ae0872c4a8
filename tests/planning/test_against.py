"""Gates against a random change: refused where nobody makes or measures one."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest

from safeedit.errors import PolicyError
from safeedit.planning.resolution import make_plan
from safeedit.policy import load_policy
from safeedit.workflows.verification import verify
from tests.road import DRIFT, NUDGE, SMALL_DRIFT, Workplace

pytestmark = pytest.mark.usefixtures("toys")

AGAINST: dict[str, Any] = {
    "metric": "drift.distance", "max_increase": 1.0e9, "min_n": 1, "against": "random",
}  # fmt: skip
TWO = [NUDGE, {**NUDGE, "id": "second"}]


@pytest.mark.parametrize(
    ("parts", "field", "message"),
    [
        ({"edits": [{**NUDGE, "control": False}]}, "gates[0].against", "the policy has none"),
        ({"edits": TWO}, "gates[0].against", "'random in place of second', say"),
        ({"audits": [{**DRIFT, "control": False}]}, "gates[0].against", "says 'control: false'"),
        (
            {"edits": TWO, "gates": [{**AGAINST, "against": "random in place of third"}]},
            "gates[0].against",
            "those with a control: nudge, second",
        ),
        (
            {"gates": [{**AGAINST, "against": "chance"}]},
            "gates[0].against",
            "random in place of ID",
        ),
        ({"gates": [{**SMALL_DRIFT, "against": "random"}]}, "gates[0]", "use one of max_increase"),
        (
            {"edits": [{**NUDGE, "targets": [AGAINST]}], "gates": [SMALL_DRIFT]},
            "edits[0].targets[0].against",
            "controls are made once the dose is chosen",
        ),
        (
            {
                "gates": [{**AGAINST, "under": "quantize"}],
                "attacks": [{"use": "quantize", "audits": ["drift"]}],
            },
            "gates[0]",
            "no random change is made under attacks",
        ),
    ],
)
def test_a_gate_against_a_control_that_says_nothing_is_refused(
    place: Workplace, parts: dict[str, Any], field: str, message: str
) -> None:
    with pytest.raises(PolicyError) as caught:
        make_plan(load_policy(place.policy(**{"gates": [AGAINST], **parts})))
    assert message in caught.value.message
    assert caught.value.field == field
    assert caught.value.line


def test_it_is_judged_and_stands_in_the_record_and_is_verified_from_it(place: Workplace) -> None:
    gates = [SMALL_DRIFT, {**AGAINST, "against": "random in place of second"}]
    policy = place.policy(edits=TWO, gates=gates)
    result = place.run("apply", policy)
    assert result.exit_code == 0, result.stderr
    as_is, against = place.report.verdicts
    assert (as_is.against, against.against) == ("", "random in place of second")
    drawn = place.report.edits[1].controls[0].metrics[0].value
    after = place.report.after[0].metrics[0].value
    assert drawn is not None
    assert after is not None
    assert against.value == pytest.approx(after - drawn)
    assert verify(place.target) == []
    told = json.loads(place.run("plan", policy, "--json").stdout)
    assert told["gates"][1]["condition"] == ("max_increase 1e+09 against random in place of second")
    # What it was held against can't be told otherwise afterwards.
    record = place.target / "evidence" / "run.json"
    if record.exists():
        content = json.loads(record.read_text())
        content["edits"][1]["controls"][0]["metrics"][0]["value"] = 0.0
        record.write_text(json.dumps(content))
        assert verify(place.target) != []


def test_where_nothing_is_edited_no_such_gate_is_asked(place: Workplace) -> None:
    policy = place.policy(gates=[SMALL_DRIFT, AGAINST])
    assert place.run("apply", policy).exit_code == 0
    shutil.rmtree(place.target)
    result = place.run("audit", policy, "--json")
    assert result.exit_code == 0, result.stderr
    assert [v["metric"] for v in json.loads(result.stdout)["verdicts"]] == ["drift.distance"]
