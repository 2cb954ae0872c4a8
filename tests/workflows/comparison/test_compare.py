"""``safeedit compare`` as a person types it, on tiny models."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from click.testing import Result

from safeedit.records import RunRecord
from safeedit.running.run import execute
from safeedit.workflows.comparison import running
from safeedit.workflows.comparison.standings import Standing, Standings
from tests.road import (
    ANSWERS,
    DRIFT,
    LEAKAGE,
    LOCALITY,
    NUDGE,
    PERPLEXITY,
    SANITATION,
    SUBJECTS,
    WORDINGS,
    Drift,
    Workplace,
    change_code,
    make_workplace,
    teach,
)
from tests.training import trained

METRICS = ("--success", "drift.distance", "--locality", "drift.peace")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the edits that are run, in order."""
    found: list[str] = []

    def counted(plan: Any, ctx: Any) -> RunRecord:
        found.extend(edit.id for edit in plan.edits)
        return execute(plan, ctx)

    monkeypatch.setattr(running, "execute", counted)
    return found


def compare(place: Workplace, editors: str, *more: object, params: Any = None) -> Result:
    if params is not None:
        more = (*more, "--params", place.text("params.yaml", yaml.safe_dump(params)))
    policy = place.folder / "policy.yaml"
    if not policy.exists():
        place.policy()
    return place.run("compare", policy, "--editors", editors, "--json", *METRICS, *more)


def standings(result: Result) -> Standings:
    assert result.stdout, result.stderr
    return Standings.model_validate_json(result.stdout)


def rows(result: Result) -> dict[str, Standing]:
    return {row.name: row for row in standings(result).rows}


def folder(place: Workplace) -> Path:
    return place.folder / "out" / "trial.comparison"


def distance(row: Standing) -> float:
    value = row.metrics["drift.distance"].value
    assert value is not None
    return value


# The road ------------------------------------------------------------------------------


def test_editors_their_variants_and_the_random_control_stand_beside_the_untouched_model(
    place: Workplace,
) -> None:
    params = {"nudge@far": {"use": "nudge", "size": 0.1}, "compared": {"dose": 2.0}}
    result = compare(place, "nudge,nudge@far,compared,random", params=params)
    assert result.exit_code == 0, result.stderr
    found = rows(result)
    assert list(found) == ["none", "nudge", "random", "nudge@far", "compared"]
    assert distance(found["none"]) == 0
    assert distance(found["nudge@far"]) == pytest.approx(10 * distance(found["nudge"]), rel=1e-3)
    assert distance(found["compared"]) == pytest.approx(2 * distance(found["nudge"]), rel=1e-3)
    assert distance(found["random"]) == pytest.approx(distance(found["nudge"]), rel=1e-3)
    assert found["nudge@far"].params["size"] == 0.1
    assert found["compared"].dose == 2
    assert (found["random"].kind, found["random"].use) == ("random", "nudge")
    cost = found["nudge"].cost
    assert cost is not None
    assert cost.wall_seconds >= cost.fit_seconds + cost.dose_seconds
    assert cost.peak_memory_bytes > 0
    assert found["nudge"].entries_changed
    assert not place.target.exists(), "a comparison exports nothing"


def test_several_seeds_give_means_and_how_far_they_spread(place: Workplace) -> None:
    result = compare(place, "nudge,random", "--seeds", 2)
    assert result.exit_code == 0, result.stderr
    assert standings(result).seeds == (0, 1)
    for row in standings(result).rows:
        values = [value for value in row.by_seed["drift.distance"] if value is not None]
        assert len(values) == 2
        assert distance(row) == pytest.approx(sum(values) / 2)
        assert (len(set(values)) == 1) == (row.name == "none")
    table = (folder(place) / "comparison.md").read_text()
    assert "means over seeds 0 and 1" in table
    assert "## Over the seeds" in table
    again = compare(place, "nudge,random", "--seeds", 2)
    assert again.stdout == result.stdout
    assert "nudge: kept from an earlier run" in again.stderr
    assert standings(compare(place, "nudge")).seeds == (0,)


def test_table_figure_and_json_are_written_with_each_record(place: Workplace) -> None:
    result = compare(place, "nudge,random")
    table = (folder(place) / "comparison.md").read_text()
    assert (folder(place) / "comparison.json").read_text().strip() == result.stdout.strip()
    for row in ("none", "nudge", "random"):
        assert f"\n| {row} |" in table
    assert "| metric | none | nudge | random |" in table
    drawn = ElementTree.fromstring((folder(place) / "comparison.svg").read_text())
    words = " ".join(drawn.itertext())
    assert all(name in words for name in ("none", "nudge", "random", "drift.peace"))
    for name in ("none", "nudge"):
        assert RunRecord.model_validate_json((folder(place) / name / "report.json").read_text())
    shown = [line for line in result.stderr.splitlines() if not line.startswith("stage ")]
    assert "\n".join(shown).count("drift.distance") == 1
    assert re.search(r"nudge +\S+ +\S+ +(yes|no|overlaps it)", result.stderr)


def test_a_run_is_that_of_apply_but_for_the_export(place: Workplace) -> None:
    place.policy(
        edits=[{**NUDGE, "dose": "auto", "targets": [{"metric": "drift.distance", "max": 0.01}]}]
    )
    found = rows(compare(place, "nudge"))["nudge"]
    assert place.run("apply", place.folder / "policy.yaml").exit_code == 0
    record = place.report
    assert found.dose == record.edits[0].dose
    assert found.targets_met == record.edits[0].targets_met
    (then,) = record.after
    assert {m.name: m.value for m in then.metrics} == {n: m.value for n, m in found.metrics.items()}


# Resuming ------------------------------------------------------------------------------


def test_what_has_run_is_not_run_again(place: Workplace, runs: list[str]) -> None:
    first = compare(place, "nudge,compared,random")
    assert runs == ["nudge", "compared"]
    written = (folder(place) / "nudge" / "report.json").stat().st_mtime_ns
    audited = len(Drift.calls)
    second = compare(place, "nudge,compared,random")
    assert runs == ["nudge", "compared"]
    assert len(Drift.calls) == audited
    assert (folder(place) / "nudge" / "report.json").stat().st_mtime_ns == written
    assert second.stdout == first.stdout
    assert "nudge: kept from an earlier run" in second.stderr
    other = rows(compare(place, "compared,random,nudge"))
    assert runs == ["nudge", "compared"], "nor in another order"
    assert other["random"].use == "compared"


@pytest.mark.parametrize("name", ["report.json", "made-of.json"])
def test_a_record_that_was_changed_is_not_kept_but_made_again(
    place: Workplace, runs: list[str], name: str
) -> None:
    first = compare(place, "nudge,random")
    (path,) = (folder(place) / "nudge").glob(name)
    content = json.loads(path.read_text())
    if name == "report.json":
        content["after"][0]["metrics"][0]["value"] = 0.0
    else:
        content["seal"] = "0" * 64
    path.write_text(json.dumps(content, indent=2) + "\n")
    second = compare(place, "nudge,random")
    assert runs == ["nudge", "nudge"]
    assert rows(second)["nudge"].metrics == rows(first)["nudge"].metrics


def test_a_policy_without_controls_gets_them_where_random_is_asked_for(
    place: Workplace, runs: list[str]
) -> None:
    place.policy(edits=[{**NUDGE, "control": False}], audits=[{**DRIFT, "control": False}])
    assert list(rows(compare(place, "nudge"))) == ["none", "nudge"]
    found = rows(compare(place, "nudge,compared,random"))
    assert distance(found["random"]) > 0
    assert runs == ["nudge", "nudge", "compared"]


def test_several_random_draws_are_rows_each(place: Workplace) -> None:
    place.policy(edits=[{**NUDGE, "control": 2}])
    assert list(rows(compare(place, "nudge,random"))) == ["none", "nudge", "random", "random 2"]


@pytest.mark.parametrize("what", ["params", "seed", "data", "model", "version", "code", "cut"])
def test_a_record_counts_only_if_all_that_made_it_holds(
    place: Workplace, runs: list[str], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    compare(place, "nudge")
    params = None
    match what:
        case "params":
            params = {"nudge": {"size": 0.02}}
        case "seed":
            place.policy(seed=9)
        case "data":
            place.rows("retain.jsonl", [{"prompt": f"Another {n}?"} for n in range(9)])
        case "model":
            make_workplace(place.folder, "llama_tied")
        case "version":
            monkeypatch.setattr(running, "__version__", "another")
        case "code":
            change_code(monkeypatch)
        case "cut":
            path = folder(place) / "nudge" / "report.json"
            path.write_text(path.read_text()[:-30])
    result = compare(place, "nudge", params=params)
    assert result.exit_code == 0, result.stderr
    assert runs == ["nudge", "nudge"]


def test_ctrl_c_leaves_finished_records_and_the_table_so_far(
    place: Workplace, runs: list[str]
) -> None:
    result = compare(place, "nudge,interrupted,compared")
    assert result.exit_code == 3
    assert "interrupted" in result.stderr
    assert runs == ["nudge", "interrupted"]
    kept = Standings.model_validate_json((folder(place) / "comparison.json").read_text())
    assert [row.name for row in kept.rows] == ["none", "nudge"]
    assert not (folder(place) / "interrupted").exists()
    result = compare(place, "nudge,compared")
    assert result.exit_code == 0
    assert runs == ["nudge", "interrupted", "compared"]


# What goes wrong -----------------------------------------------------------------------


def test_an_editor_that_fails_is_a_row_and_not_the_end(place: Workplace) -> None:
    result = compare(place, "talker,random,undecided,nudge")
    assert result.exit_code == 3
    found = rows(result)
    assert re.fullmatch(r"unexpected ValueError at road\.py:\d+", found["talker"].error)
    assert found["undecided"].error == "edit undecided: the editor proposed no dose"
    assert found["random"].error == "talker, whose random control it is, failed"
    assert found["nudge"].place
    assert not found["talker"].place
    assert "Who wrote book" not in result.output, "what its exception quoted"
    assert "warning: undecided failed" in result.stderr
    table = (folder(place) / "comparison.md").read_text()
    assert "| undecided | – | – | failed |" in table
    assert "- undecided failed: edit undecided: the editor proposed no dose" in table


def test_a_failed_editor_is_tried_again(place: Workplace, runs: list[str]) -> None:
    compare(place, "undecided,nudge")
    compare(place, "undecided,nudge")
    assert runs == ["undecided", "nudge", "undecided"]


@pytest.mark.parametrize(
    ("editors", "params", "told", "remedy"),
    [
        ("nugde", None, "there is no editor called 'nugde'", "known: "),
        ("sanitatoin", None, "there is no editor called 'sanitatoin'", "did you mean 'sanitation'"),
        ("nudge,nudge", None, "'nudge' is named twice", "call a variant nudge@NAME"),
        ("random,none", None, "there is no editor to compare", "name at least one"),
        ("nudge,", None, "", ""),
        ("nudge,../x", None, "'../x' is no name of an editor", "separate names by commas"),
        ("nudge@b", None, "nothing says how 'nudge@b' differs", "'nudge@b: {use: nudge"),
        ("nudge", {"nudge": {"sise": 1}}, "nudge has no 'sise'", "did you mean 'size'?"),
        ("nudge", {"nudge": {"size": "big"}}, "should be a number", ""),
        ("nudge", {"nudge": 3}, "should be a mapping", "write 'rome: {phrasings: 6}'"),
        ("nudge", {"nugde": {}}, "there is no editor called 'nugde'", "did you mean 'nudge'?"),
        ("x", {"x": {"use": "nugde"}}, "there is no editor called 'nugde'", ""),
        ("nudge", {"random": {}}, "takes no parameters", "remove it"),
        ("nudge", {"nudge": {"dose": -1}}, "should be auto or a number above 0", ""),
        ("nudge", {"nudge": {"kept": {"fiel": "x"}}}, "unknown key 'fiel'", "did you mean 'file'"),
        ("nudge,ft", None, "ft needs data that is not there: forget", "or leave ft out"),
        ("dama", None, "dama needs data that is not there: prompts", "or --params"),
    ],
)
def test_bad_names_parameters_and_roles_are_told_before_anything_runs(
    place: Workplace, runs: list[str], editors: str, params: Any, told: str, remedy: str
) -> None:
    result = compare(place, editors, params=params)
    assert result.exit_code == (2 if told else 0), result.stderr
    assert told in result.stderr
    assert remedy in result.stderr
    if told:
        assert runs == []
        assert Drift.calls == []


@pytest.mark.parametrize("edits", [[], [NUDGE, {**NUDGE, "id": "again"}]])
def test_a_policy_that_has_not_one_edit_is_refused(
    place: Workplace, edits: list[dict[str, Any]]
) -> None:
    place.policy(edits=edits)
    result = compare(place, "nudge")
    assert result.exit_code == 2
    assert f"a comparison needs a policy with one edit, and this has {len(edits)}" in result.stderr
    assert "remedy: leave one edit in" in result.stderr
    assert "policy.yaml:" in result.stderr


def test_an_unknown_key_of_the_edit_is_an_error_at_its_place(place: Workplace) -> None:
    place.policy(edits=[{**NUDGE, "siz": 1}])
    result = compare(place, "nudge")
    assert result.exit_code == 2
    assert "edits[0].siz: unknown key 'siz'" in result.stderr
    assert "did you mean 'size'?" in result.stderr


def test_the_metrics_must_be_measured(place: Workplace) -> None:
    place.policy()
    policy = place.folder / "policy.yaml"
    result = place.run("compare", policy, "--editors", "nudge", "--success", "drift.distanse",
                       "--locality", "drift.peace")  # fmt: skip
    assert result.exit_code == 2
    assert "no audit of this policy measures 'drift.distanse'" in result.stderr
    assert "did you mean 'drift.distance'?" in result.stderr
    result = place.run("compare", policy, "--editors", "nudge")
    assert result.exit_code == 2
    assert "nothing that the policy audits is known to tell success" in result.stderr
    assert "--success: drift.distance, drift.peace" in result.stderr


def test_a_params_file_that_is_not_there_is_an_error(place: Workplace) -> None:
    result = compare(place, "nudge", "--params", place.folder / "nowhere.yaml")
    assert result.exit_code == 2
    assert "there is no such file of parameters" in result.stderr


def test_a_record_that_no_longer_counts_does_not_outlive_a_failure(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(place, "nudge")

    def fail(*_: object) -> RunRecord:
        raise MemoryError

    monkeypatch.setattr(running, "execute", fail)
    place.policy(seed=5)
    result = compare(place, "nudge")
    assert result.exit_code == 3
    assert rows(result)["nudge"].error.startswith("unexpected MemoryError at test_compare.py")
    assert list((folder(place) / "nudge").iterdir()) == []


def test_a_folder_that_can_not_be_written_ends_it(place: Workplace) -> None:
    place.text("taken", "a file")
    result = compare(place, "nudge", "--out", place.folder / "taken" / "deeper")
    assert result.exit_code == 2
    assert "error: --out: " in result.stderr
    assert "remedy: choose another folder" in result.stderr


def test_a_fixed_dose_of_another_editor_is_said_loudly(place: Workplace) -> None:
    found = rows(compare(place, "nudge,compared", params={"compared": {"dose": 2.0}}))
    assert not found["compared"].warning
    result = compare(place, "nudge,compared")
    assert rows(result)["compared"].warning == ("takes dose 1, which the policy fixes for nudge")
    assert "compared: takes dose 1" in result.stderr


# Real editors --------------------------------------------------------------------------


@pytest.fixture(scope="module")
@trained
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workplace, Result]:
    """Two editors and a control on a model that knows the facts."""
    place = make_workplace(tmp_path_factory.mktemp("real"))
    teach(place)
    short = {"max_new_tokens": 10}
    place.policy(
        edits=[
            {
                **SANITATION, "update": "lora", "steps": 60, "batch": 12, "rank": 4,
                "learning_rate": 0.01, "forget_share": 0.5, "preserve": {"file": "retain.jsonl"},
                "targets": [{"metric": "leakage.extraction_rate", "max": 0}],
            }
        ],
        audits=[{**LEAKAGE, **short}, {**LOCALITY, **short}, {**PERPLEXITY, "control": False}],
        gates=[{"metric": "leakage.extraction_rate", "max": 0, "min_n": 1}],
    )  # fmt: skip
    params = {"ft": {"steps": 10, "learning_rate": 0.02, "doses": [1.0]}}
    place.text("params.yaml", yaml.safe_dump(params))
    result = place.run(
        "compare", place.folder / "policy.yaml", "--editors", "sanitation,ft,random",
        "--params", place.folder / "params.yaml", "--json",
    )  # fmt: skip
    return place, result


def _point(row: Standing) -> tuple[float, float]:
    """What is told still, and what is kept."""
    told, kept = (
        row.metrics[name].value for name in ("leakage.extraction_rate", "locality.near_f1")
    )
    assert told is not None
    assert kept is not None
    return told, kept


def test_two_editors_and_a_control_end_to_end(real: tuple[Workplace, Result]) -> None:
    _, result = real
    assert result.exit_code == 0, result.stderr
    found = standings(result)
    assert found.success.metric == "leakage.extraction_rate"
    assert found.locality.metric == "locality.near_f1"
    here = {row.name: row for row in found.rows}
    assert list(here) == ["none", "sanitation", "random", "ft"]
    assert here["none"].metrics["leakage.extraction_rate"].value == 1
    assert here["none"].metrics["locality.near_f1"].value == 1
    assert here["none"].place == "front"
    # How much of it a tiny model's adapters erase hangs on its weights; that it is most does not.
    erased = here["sanitation"].metrics["leakage.extraction_rate"].value
    assert erased is not None
    assert erased < 0.5
    points = {name: _point(row) for name, row in here.items()}
    for name, (told, kept) in points.items():  # who is beaten, in the figures that are shown
        beaten = any(
            point != (told, kept) and point[0] <= told and point[1] >= kept
            for point in points.values()
        )
        assert (here[name].place == "front") == (not beaten), name
    scores = {row.metrics["leakage.answer_log_prob"].value for row in found.rows}
    assert len(scores) == 4, "each is another model"
    assert here["random"].metrics.keys() == here["ft"].metrics.keys(), "all audits, control too"
    assert here["ft"].status in ("pass", "fail", "inconclusive")
    assert not any(metric.items for row in found.rows for metric in row.metrics.values())


def test_knowedits_names_and_taxonomy_stand_beside_ours(real: tuple[Workplace, Result]) -> None:
    place, result = real
    found = standings(result)
    assert list(found.knowedit) == [
        "edit success", "portability", "locality", "fluency", "meaningless", "incomplete",
        "unrelated", "partly replaced",
    ]  # fmt: skip
    classes = [
        found.knowedit[name]
        for name in ("edit success", "meaningless", "incomplete", "unrelated", "partly replaced")
    ]
    for row in found.rows:
        shares = [row.metrics[name].value or 0 for name in classes]
        assert sum(shares) == pytest.approx(1), row.name
    none = next(row for row in found.rows if row.name == "none")
    assert none.metrics["leakage.failures.incomplete"].value == 1
    assert none.metrics["leakage.failures.edit_success"].value == 0
    table = (folder(place) / "comparison.md").read_text()
    assert "## In KnowEdit's terms" in table
    head = "|  | locality | edit success | portability | fluency | meaningless |"
    assert head in table.replace("|   |", "|  |")


def test_erased_data_is_in_nothing_that_is_written(real: tuple[Workplace, Result]) -> None:
    place, result = real
    written = [path for path in folder(place).rglob("*") if path.is_file()]
    assert len(written) > 10
    texts = [path.read_text() + path.name for path in written]
    texts += [result.output, result.stderr]
    for text in texts:
        for word in (*SUBJECTS, *ANSWERS, *WORDINGS):
            assert word not in text
            assert json.dumps(word)[1:-1] not in text
