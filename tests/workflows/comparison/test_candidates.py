"""From one edit to one policy per editor: whose data, whose parameters, which audits."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from safeedit.contracts import DataRole
from safeedit.errors import PolicyError, SafeeditError, UnsupportedModelError
from safeedit.policy import EditSpec, load_policy
from safeedit.workflows.comparison.candidates import (
    Candidate,
    CandidateSettings,
    read_candidates,
    read_settings,
    without_edits,
)
from safeedit.workflows.comparison.running import plan_contest
from tests.road import (
    DRIFT,
    LEAKAGE,
    LOCALITY,
    NUDGE,
    PERPLEXITY,
    SANITATION,
    Nudge,
    Workplace,
    make_workplace,
    register,
)

FACTS = {"file": "forget.jsonl"}
NEAR = {"file": "near.jsonl"}


class Wiper(Nudge):
    """Calls the facts by another name, and takes facts that are not named as well."""

    roles: ClassVar[tuple[DataRole, ...]] = (
        DataRole("secrets", "what is to go", erased=True),
        DataRole("others", "secrets that stay", required=False, erased=True, comparison_only=True),
        DataRole("prose", "ordinary text", required=False),
    )


class Choosy(Nudge):
    """Edits no model."""

    def touches(self, model: Any) -> Any:
        raise UnsupportedModelError("choosy does not edit this kind of model")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    register(monkeypatch, wiper=Wiper, choosy=Choosy)
    return Workplace(tmp_path)


def candidates(place: Workplace, *names: str, params: Any = None, **policy: Any) -> list[Candidate]:
    loaded = load_policy(place.policy(**({"gates": None} | policy)))
    settings = CandidateSettings(None, {})
    if params is not None:
        settings = read_settings(place.text("params.yaml", yaml.safe_dump(params)), loaded)
    return list(read_candidates(loaded, names, settings))


def options(candidate: Candidate) -> dict[str, Any]:
    (edit,) = candidate.loaded.policy.edits
    assert (edit.use, edit.id) == (candidate.use, candidate.name.replace("@", "."))
    return edit.options


def test_roles_go_by_name_and_the_facts_to_whatever_takes_facts(place: Workplace) -> None:
    edit = {**SANITATION, "prose": {"file": "prose.jsonl"}, "preserve": NEAR}
    sanitation, ft, rome, wiper = candidates(
        place, "sanitation", "ft", "rome", "wiper", edits=[edit], audits=[DRIFT]
    )
    fields = EditSpec.model_fields
    own = {key: value for key, value in SANITATION.items() if key not in fields}
    assert options(sanitation) == {**own, "prose": {"file": "prose.jsonl"}}
    assert options(ft) == {"forget": FACTS}
    prose = {"file": "prose.jsonl"}
    assert options(rome) == {"forget": FACTS, "preserve": NEAR, "prose": prose}
    assert options(wiper) == {"secrets": FACTS, "prose": prose}, "never as what is spared"


def test_the_facts_may_be_spelt_data_and_come_from_any_name(place: Workplace) -> None:
    edit = {"use": "wiper", "dose": 1.0, "data": FACTS, "others": NEAR}
    wiper, ft = candidates(place, "wiper", "ft", edits=[edit])
    assert options(wiper) == {"secrets": FACTS, "others": NEAR}
    assert options(ft) == {"forget": FACTS}


def test_parameters_are_the_policys_for_its_own_editor_and_the_files_for_all(
    place: Workplace,
) -> None:
    edit = {**NUDGE, "layer": 1, "size": 0.5}
    params = {
        "nudge@small": {"size": 0.1, "kept": NEAR},
        "compared": {"size": 0.2, "dose": "auto"},
        "far": {"use": "nudge", "layer": 2},
        "ft@unasked": {"use": "ft"},
    }
    found = candidates(
        place, "nudge", "nudge@small", "compared", "far", edits=[edit], params=params
    )
    kept = NUDGE["data"]
    assert [options(each) for each in found] == [
        {"kept": kept, "layer": 1, "size": 0.5},
        {"kept": NEAR, "layer": 1, "size": 0.1},
        {"kept": kept, "size": 0.2},
        {"kept": kept, "layer": 2, "size": 0.5},
    ]
    assert [each.loaded.policy.edits[0].dose for each in found] == [1.0, 1.0, "auto", 1.0]


def test_targets_seed_audits_and_gates_are_the_same_for_all_and_nothing_is_exported(
    place: Workplace,
) -> None:
    edit = {**NUDGE, "targets": [{"metric": "drift.distance", "max": 1}], "control": 3}
    found = candidates(place, "nudge", "compared", edits=[edit], seed=11)
    one, two = (each.loaded.policy for each in found)
    assert one.edits[0].targets == two.edits[0].targets != ()
    assert one.edits[0].control == two.edits[0].control == 3
    rest = {"edits": True, "export": True}
    assert one.model_dump(exclude=rest) == two.model_dump(exclude=rest)
    assert (one.seed, one.export) == (11, None)
    assert found[0].loaded.digest != found[1].loaded.digest


def test_the_facts_can_not_be_others_for_one_editor(place: Workplace) -> None:
    with pytest.raises(PolicyError, match="'forget' is what is to be forgotten") as caught:
        candidates(place, "ft", edits=[SANITATION], params={"ft": {"forget": NEAR}})
    assert caught.value.file is not None
    assert caught.value.file.endswith("params.yaml")
    assert caught.value.line == 2
    assert "in the policy's edit alone" in caught.value.remedy


def test_an_edit_whose_editor_is_unknown_is_an_error_at_its_place(place: Workplace) -> None:
    with pytest.raises(PolicyError, match="there is no editor called 'nugde'") as caught:
        candidates(place, "nudge", edits=[{**NUDGE, "use": "nugde"}])
    assert caught.value.field == "edits[0].use"


def test_where_facts_are_asked_for_their_failures_are_counted_too(place: Workplace) -> None:
    asking = {**LEAKAGE, "refusal_patterns": ["no comment"], "askings": []}
    (ft,) = candidates(place, "ft", edits=[SANITATION], audits=[asking, LOCALITY])
    added = ft.loaded.policy.audits[-1]
    assert (added.use, added.id, added.required) == ("leakage.failures",) * 2 + (False,)
    read = LEAKAGE["max_new_tokens"]
    assert added.options == {
        "forget": FACTS, "max_new_tokens": read, "refusal_patterns": ["no comment"],
    }  # fmt: skip
    base = without_edits(load_policy(place.folder / "policy.yaml")).policy
    assert base.audits == ft.loaded.policy.audits
    assert base.edits == ()


def test_a_replacement_is_counted_as_one(place: Workplace) -> None:
    edit = {"use": "rome", "target": "replace", "forget": FACTS}
    (rome,) = candidates(place, "rome", edits=[edit], audits=[LEAKAGE])
    assert rome.loaded.policy.audits[-1].options["wanted"] == "replace"


@pytest.mark.parametrize(
    "audits", [[{**LEAKAGE, "use": "leakage.failures"}, LEAKAGE], [PERPLEXITY, LOCALITY]]
)
def test_nothing_is_added_to_a_policy_that_has_it_or_has_no_facts_to_ask_for(
    place: Workplace, audits: list[dict[str, Any]]
) -> None:
    (ft,) = candidates(place, "ft", edits=[SANITATION], audits=audits)
    assert len(ft.loaded.policy.audits) == len(audits)


def test_random_makes_every_audit_measure_the_first_editors_controls(place: Workplace) -> None:
    policy = {"edits": [{**NUDGE, "control": False}], "audits": [{**DRIFT, "control": False}]}
    found = candidates(place, "random", "nudge", "compared", **policy)
    assert [each.loaded.policy.edits[0].control for each in found] == [True, False]
    assert [each.loaded.policy.audits[0].control for each in found] == [True, False]


def test_an_editor_that_refuses_the_model_is_a_row(place: Workplace) -> None:
    make_workplace(place.folder)
    loaded = load_policy(place.policy())
    contest = plan_contest(
        loaded,
        ["choosy", "nudge"],
        CandidateSettings(None, {}),
        success="drift.distance",
        locality="drift.peace",
    )
    (_, refused), (_, planned) = contest.runs
    assert isinstance(refused, UnsupportedModelError)
    assert not isinstance(planned, SafeeditError)


def test_settings_that_are_no_mapping_are_an_error(place: Workplace) -> None:
    loaded = load_policy(place.policy())
    with pytest.raises(PolicyError, match="should be a mapping"):
        read_settings(place.text("params.yaml", "- rome\n"), loaded)
    assert read_settings(place.text("params.yaml", "rome:\n"), loaded).entries == {"rome": {}}
