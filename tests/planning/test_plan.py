"""A plan resolves everything a run needs, loads no weights, and refuses what can't work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from safeedit.data import Dataset
from safeedit.errors import DataError, ExportError, ModelError, PolicyError, UsageError
from safeedit.model.handle import ModelHandle
from safeedit.planning.file import check_unmoved, is_plan, read_plan, write_plan
from safeedit.planning.plan import Plan
from safeedit.planning.resolution import make_plan
from safeedit.policy import load_policy
from tests.road import (
    DRIFT,
    FORGET,
    LAX,
    LEAKAGE,
    LOCALITY,
    NEAR,
    NUDGE,
    PERPLEXITY,
    REAL,
    SANITATION,
    SMALL_DRIFT,
    Workplace,
    make_workplace,
    register,
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """Tests write policies and data here, but leave what is there as it is."""
    return make_workplace(tmp_path_factory.mktemp("plan"))


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test of a plan may load a model."""
    import safetensors.torch
    from transformers import AutoModelForCausalLM

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a plan loaded weights")

    # The class, not the functions that make one: a module imported meanwhile would keep those.
    monkeypatch.setattr(ModelHandle, "__init__", refuse)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
    monkeypatch.setattr(safetensors.torch, "load_file", refuse)
    register(monkeypatch)


def plan_of(path: Path) -> Plan:
    return make_plan(load_policy(path))


def test_the_tokenizer_is_opened_once_however_many_checks_read_it(
    shared: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    opened, real = [], AutoTokenizer.from_pretrained

    def count(*arguments: Any, **options: Any) -> Any:
        opened.append(arguments)
        return real(*arguments, **options)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", count)
    plan_of(shared.policy(**REAL))
    assert len(opened) == 1


def line_of(path: Path, text: str, after: str = "") -> int:
    """1-based line of the first ``text`` below the first ``after``."""
    lines = path.read_text().splitlines()
    start = next(n for n, line in enumerate(lines) if after in line)
    return next(n for n, line in enumerate(lines) if n >= start and text in line) + 1


def refused(path: Path, kind: type[Any] = PolicyError) -> Any:
    with pytest.raises(kind) as caught:
        plan_of(path)
    return caught.value


# What a plan says -----------------------------------------------------------------------


def test_a_plan_resolves_edits_audits_data_tensors_and_gates(shared: Workplace) -> None:
    plan = plan_of(shared.policy(**REAL, seed=3))
    (edit,) = plan.edits
    assert edit.id == "sanitation"
    assert edit.params.model_dump()["steps"] == 2
    assert set(edit.data.roles) == {"forget", "retain"}
    assert edit.data["forget"].erased
    assert not edit.data["retain"].erased
    assert {t.role for t in edit.tensors} == {"attn_q", "attn_v", "mlp_gate"}
    assert len(edit.tensors) == 9
    assert [gate.metric for gate in edit.targets] == [gate["metric"] for gate in REAL["gates"]]
    assert [audit.id for audit in plan.audits] == ["leakage", "locality", "perplexity"]
    assert "leakage.extraction_rate" in plan.audits[0].metrics
    assert len(plan.audits[0].data["forget"].phrasings("test")) == 8
    assert plan.shape.n_layers == 3
    assert plan.export_dir == shared.folder / "out" / "trial"
    assert plan.report_dir == shared.folder / "out" / "trial.report"


def test_an_editor_is_given_data_without_the_test_split(shared: Workplace) -> None:
    plan = plan_of(shared.policy(**REAL))
    forget = plan.edits[0].data["forget"]
    with pytest.raises(UsageError, match="out of reach"):
        forget.phrasings("test")
    seen = {text for item in forget for text in (item.prompt, *item.paraphrases)}
    tested = {p.text for p in plan.audits[0].data["forget"].phrasings("test")}
    assert tested
    assert not seen & tested


def test_the_first_role_of_a_stage_may_be_called_data(shared: Workplace) -> None:
    plan = plan_of(shared.policy())
    assert set(plan.edits[0].data.roles) == {"kept"}
    assert set(plan.audits[0].data) == {"asked"}


def test_targets_of_an_edit_replace_the_gates_for_its_dose(shared: Workplace) -> None:
    own = {"metric": "drift.peace", "min": -1}
    plan = plan_of(shared.policy(edits=[{**NUDGE, "dose": "auto", "targets": [own]}]))
    assert [gate.metric for gate in plan.edits[0].targets] == ["drift.peace"]


def test_the_summary_is_json_and_names_everything_a_reader_needs(shared: Workplace) -> None:
    shared.rows("repeated.jsonl", [*NEAR, NEAR[-1]])
    locality = {**LOCALITY, "near": {"file": "repeated.jsonl"}}
    policy = shared.policy(**{**REAL, "audits": [LEAKAGE, locality, PERPLEXITY]})
    found = json.loads(json.dumps(plan_of(policy).summary(), allow_nan=False))
    assert found["name"] == "trial"
    assert found["model"]["architecture"] == "Llama"
    assert found["model"]["layers"] == 3
    (edit,) = found["edits"]
    assert edit["layers"] == [0, 1, 2]
    assert "model.layers.0.mlp.gate_proj.weight" in edit["tensors"]
    assert edit["parameters_touched"] == 3 * (32 * 32 + 16 * 32 + 48 * 32)
    assert edit["params"]["rank"] == 2
    assert [t["metric"] for t in edit["targets"]] == [g["metric"] for g in REAL["gates"]]
    assert [t["condition"] for t in edit["targets"]] == ["min 0", "min 0", "max 1e+09"]
    assert found["audits"][1]["gated_metrics"] == ["locality.unchanged"]
    assert found["gates"][2] == {
        "metric": "perplexity.perplexity", "condition": "max 1e+09", "power": "",
    }  # fmt: skip
    near = found["data"]["audit:locality.near"]
    assert near["items"]["test"] == 4
    assert near["notes"] == ["rows that repeat an earlier one, counted once: 1"]
    assert len(near["digest"]) == 64
    assert found["fingerprint"]["data"].keys() == found["data"].keys()
    assert found["estimates"]["seconds"] > 0
    assert found["model"]["dtype"] == "float32"
    assert found["estimates"]["weights_bytes"] == found["model"]["parameters"] * 4
    assert found["export"].endswith("trial")


def test_the_summary_holds_no_word_of_the_data(shared: Workplace) -> None:
    text = json.dumps(plan_of(shared.policy(**REAL)).summary(), ensure_ascii=False)
    for row in FORGET:
        for word in (row["prompt"], row["answer"], row["subject"]):
            assert str(word) not in text


def test_a_gate_against_the_direction_of_its_metric_is_warned_of(shared: Workplace) -> None:
    gates = [{"metric": "drift.peace", "max": 0}, {"metric": "drift.peace", "max_decrease": 1}]
    (warning,) = plan_of(shared.policy(gates=gates)).warnings
    assert warning == "drift.peace: higher is better, but the gate is 'max 0'"


def test_a_value_that_is_held_from_both_sides_may_be_held_from_the_better(
    shared: Workplace,
) -> None:
    gates = [{"metric": "drift.distance", "max": 1}, {"metric": "drift.distance", "min": -1}]
    found = plan_of(shared.policy(gates=gates)).warnings
    assert not any("is better, but the gate is" in warning for warning in found)


def test_answers_in_letters_of_languages_that_inflect_are_asked_for_their_forms(
    shared: Workplace,
) -> None:
    told = ("Старград", "Новоречье")
    rows = [{"prompt": f"Где живёт {n}?", "answer": answer} for n, answer in enumerate(told)]
    shared.rows("inflected.jsonl", rows)
    audit = {**LEAKAGE, "max_new_tokens": 40, "forget": {"file": "inflected.jsonl"}}
    gates = [{"metric": "leakage.known_before", "min": 0, "min_n": 1}]

    def warnings() -> list[str]:
        policy = shared.policy(edits=None, export=None, audits=[audit], gates=gates)
        return [each for each in plan_of(policy).warnings if "aliases" in each]

    (warning,) = warnings()
    assert "2 in Cyrillic letters" in warning
    assert "column 'aliases'" in warning
    assert not any(answer in warning for answer in told)

    shared.rows("inflected.jsonl", [{**row, "aliases": [f"{row['answer']}е"]} for row in rows])
    assert warnings() == []
    shared.rows("inflected.jsonl", [{**row, "answer": "Oslo"} for row in rows[:1]])
    assert warnings() == []


def reading(shared: Workplace, **params: Any) -> Path:
    own = {key: value for key, value in LEAKAGE.items() if key != "max_new_tokens"}
    return shared.policy(**{**REAL, "audits": [{**own, **params}, LOCALITY, PERPLEXITY]})


def test_reading_less_far_than_every_answer_is_long_is_refused(shared: Workplace) -> None:
    error = refused(reading(shared, max_new_tokens=1))
    assert "none could be found" in error.message
    assert "leave max_new_tokens out" in str(error.remedy)


def test_reading_less_far_than_some_answers_are_long_is_warned_of(shared: Workplace) -> None:
    warnings = plan_of(reading(shared, max_new_tokens=6)).warnings
    assert any("max_new_tokens: 6" in warning for warning in warnings)


def test_reading_answers_to_their_length_needs_no_warning(shared: Workplace) -> None:
    assert not any("max_new_tokens" in warning for warning in plan_of(reading(shared)).warnings)


def test_a_relative_model_starts_at_the_policys_folder(
    shared: Workplace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    policy = shared.policy()
    monkeypatch.chdir(tmp_path)
    assert Path(plan_of(policy).model_source) == shared.folder / "model"
    assert plan_of(policy).summary()["model"]["source"] == "model"


def test_a_model_in_the_working_directory_is_no_silent_stand_in(
    shared: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shared.folder / "below").mkdir(exist_ok=True)
    policy = Workplace(shared.folder / "below").policy()
    monkeypatch.chdir(shared.folder)
    error = refused(policy, UsageError)
    assert error.line == line_of(policy, "source: model")
    assert error.remedy.endswith("write ../model")


def test_a_tilde_in_the_exports_folder_is_the_home_folder(
    shared: Workplace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    plan = plan_of(shared.policy(export={"dir": "~/exports/one"}))
    assert plan.export_dir == tmp_path / "exports" / "one"
    assert plan.report_dir == tmp_path / "exports" / "one.report"


def test_without_an_export_reports_go_to_a_folder_named_after_the_policy(
    shared: Workplace,
) -> None:
    plan = plan_of(shared.policy(export=None, gates=None))
    assert plan.export_dir is None
    assert plan.report_dir == Path("out/trial.report")


# What a plan refuses --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "place", "message", "remedy"),
    [
        (
            {"edits": [{**NUDGE, "use": "nugde"}]},
            "use: nugde",
            "no editor called 'nugde'",
            "sanitation",
        ),
        (
            {"edits": [{**SANITATION, "use": "sanitization"}]},
            "use: sanitization",
            "no editor called 'sanitization'",
            "did you mean 'sanitation'?",
        ),
        (
            {"audits": [DRIFT, {**LEAKAGE, "use": "leekage"}]},
            "use: leekage",
            "no auditor called 'leekage'",
            "did you mean 'leakage'",
        ),
        (
            {"edits": [{**NUDGE, "sise": 1.0}]},
            "sise: 1.0",
            "unknown key 'sise'",
            "did you mean 'size'?",
        ),
        (
            {"edits": [{**NUDGE, "doses": 1.0}]},
            "doses: 1.0",
            "unknown key 'doses'",
            "did you mean 'dose'?",
        ),
        (
            {"audits": [{**DRIFT, "requird": False}]},
            "requird: false",
            "unknown key 'requird'",
            "did you mean 'required'?",
        ),
        (
            {"edits": [{**SANITATION, "steps": "many"}]},
            "steps: many",
            "should be a whole number",
            "optimiser steps at most",
        ),
        (
            {"edits": [{**SANITATION, "retian": SANITATION["retain"]}]},
            "retian:",
            "unknown key 'retian'",
            "did you mean 'retain'",
        ),
        (
            {"edits": [{**SANITATION, "update": "keyd"}]},
            "update: keyd",
            "should be 'lora', 'held', 'keyed' or 'answers'",
            "did you mean 'keyed'?",
        ),
        (
            {"edits": [{key: SANITATION[key] for key in ("use", "forget")}]},
            "use: sanitation",
            "data is missing: retain",
            "add 'retain: {file: ...}'",
        ),
        (
            {"edits": [{**NUDGE, "kept": NUDGE["data"]}]},
            "kept:",
            "the data of 'kept' is given twice",
            "keep one of the two",
        ),
        (
            {"edits": [{**NUDGE, "data": {"fiel": "retain.jsonl"}}]},
            "fiel:",
            "unknown key 'fiel'",
            "did you mean 'file'?",
        ),
        (
            {"gates": [{"metric": "drift.distanse", "max": 1}]},
            "metric: drift.distanse",
            "no audit of this policy measures 'drift.distanse'",
            "did you mean 'drift.distance'?",
        ),
        (
            {
                "edits": [
                    {**NUDGE, "dose": "auto", "targets": [{"metric": "drift.pease", "min": 0}]}
                ]
            },
            "metric: drift.pease",
            "no audit of this policy measures 'drift.pease'",
            "did you mean 'drift.peace'",
        ),
        (
            {"edits": [{**SANITATION, "layers": "2-3"}]},
            "layers: 2-3",
            "layer 3 does not exist: the model has 3 layers",
            "use layers 0 to 2",
        ),
        (
            {"gates": None},
            "dir: out/trial",
            "must have at least one gate",
            "add gates, or remove 'export'",
        ),
        (
            {"edits": [{**NUDGE, "dose": "auto"}], "gates": None, "export": None},
            "dose: auto",
            "needs targets to meet",
            "or give a number",
        ),
    ],
)
def test_what_can_not_work_is_refused_at_its_place(
    shared: Workplace, parts: dict[str, Any], place: str, message: str, remedy: str
) -> None:
    policy = shared.policy(**parts)
    error = refused(policy, (PolicyError, UsageError))  # type: ignore[arg-type]
    assert error.exit_code == 2
    assert message in error.message
    assert remedy in error.remedy
    assert error.remedy
    assert error.file == str(policy)
    expected = line_of(policy, place)
    # An error about a mapping stands at its first line or at the key that opens it.
    assert error.line in (expected, expected - 1), (error.line, policy.read_text())
    assert error.column is not None


@pytest.mark.parametrize(
    ("edit", "audit", "what"),
    [
        # What is tested was fitted ...
        ("near.jsonl", "tested.jsonl", "fit split of edit nudge: kept and test split of audit"),
        # ... or is what an editor may tune on.
        ("tuned.jsonl", "tested.jsonl", "validation split of edit nudge: kept and test split"),
    ],
)
def test_a_prompt_both_fitted_and_tested_is_refused(
    shared: Workplace, edit: str, audit: str, what: str
) -> None:
    prompts = [row["prompt"] for row in NEAR]
    shared.rows("near.jsonl", NEAR)
    shared.rows("fitted.jsonl", [{"prompt": p, "split": "fit"} for p in prompts])
    shared.rows("tuned.jsonl", [{"prompt": p, "split": "validation"} for p in prompts])
    # Another spelling is the same prompt.
    shared.rows("tested.jsonl", [{"prompt": prompts[0].upper() + " ", "split": "test"}])
    edit = "fitted.jsonl" if edit == "near.jsonl" else edit
    policy = shared.policy(
        edits=[{**NUDGE, "data": {"file": edit}}], audits=[{**DRIFT, "data": {"file": audit}}]
    )
    error = refused(policy, DataError)
    assert what in error.message
    assert "share 1 prompt" in error.message
    assert "remove the shared rows" in error.remedy
    assert error.file == str(policy)
    assert error.line in range(line_of(policy, "audits:"), line_of(policy, "gates:"))
    assert prompts[0] not in str(error)


def test_what_a_dose_is_chosen_on_must_not_be_tested_by_another_audit(
    shared: Workplace,
) -> None:
    shared.rows("other.jsonl", [{**row, "split": "test"} for row in NEAR])
    other = {**DRIFT, "id": "other", "data": {"file": "other.jsonl"}}
    fixed = shared.policy(audits=[DRIFT, other])
    assert plan_of(fixed).audits
    chosen = shared.policy(audits=[DRIFT, other], edits=[{**NUDGE, "dose": "auto"}])
    error = refused(chosen, DataError)
    assert "validation split of audit drift: asked and test split of audit other" in error.message


def test_what_is_forgotten_must_not_be_retained(shared: Workplace) -> None:
    shared.rows("both.jsonl", [{"prompt": FORGET[0]["prompt"], "split": "fit"}])
    edit = {**SANITATION, "retain": {"file": "both.jsonl"}}
    error = refused(shared.policy(**{**REAL, "edits": [edit]}), DataError)
    assert "edit sanitation: forget and edit sanitation: retain share 1 prompt" in error.message


def test_testing_forgotten_items_in_the_phrasings_that_were_fitted_is_refused(
    shared: Workplace,
) -> None:
    audit = {**LEAKAGE, "forget": {"file": "forget.jsonl", "split": "test"}}
    edit = {**SANITATION, "dose": 1.0}
    parts = {**REAL, "edits": [edit], "audits": [audit, LOCALITY, PERPLEXITY]}
    policy = shared.policy(**parts)
    assert "figures on data that was fitted prove nothing" in refused(policy, DataError).message


def test_an_audit_without_test_items_is_refused(shared: Workplace) -> None:
    shared.rows("untested.jsonl", [row for row in NEAR if row["split"] != "test"])
    policy = shared.policy(audits=[DRIFT, {**DRIFT, "id": "b", "data": {"file": "untested.jsonl"}}])
    error = refused(policy, DataError)
    assert "audit b has no test items" in error.message
    assert error.line in range(line_of(policy, "file: near.jsonl"), line_of(policy, "gates:"))


def test_test_items_of_an_optional_role_do_not_stand_in_for_a_required_one(
    shared: Workplace,
) -> None:
    shared.rows("untested.jsonl", [row for row in NEAR if row["split"] != "test"])
    far = {"file": "retain.jsonl", "split": "test"}
    audit = {**LOCALITY, "near": {"file": "untested.jsonl"}, "far": far}
    policy = shared.policy(edits=[], audits=[audit], gates=[REAL["gates"][1]])
    assert "audit locality has no test items: its near data" in refused(policy, DataError).message


def test_a_dose_to_be_chosen_needs_validation_items_of_what_it_must_meet(
    shared: Workplace,
) -> None:
    shared.rows("tested.jsonl", [row for row in NEAR if row["split"] == "test"])
    audit = {**DRIFT, "data": {"file": "tested.jsonl"}}
    assert plan_of(shared.policy(audits=[audit])).audits
    policy = shared.policy(audits=[audit], edits=[{**NUDGE, "dose": "auto"}])
    error = refused(policy)
    assert "drift.distance on validation data: the asked data of audit drift" in error.message
    assert error.line == line_of(policy, "dose: auto")


def test_an_export_over_an_existing_folder_is_refused_before_any_work(shared: Workplace) -> None:
    taken = shared.folder / "taken"
    taken.mkdir(exist_ok=True)
    (taken / "file").write_text("somebody's")
    policy = shared.policy(export={"dir": "taken"})
    error = refused(policy, ExportError)
    assert error.file == str(taken)
    assert f"asked for at {policy}:{line_of(policy, 'dir: taken')}" in error.message
    overwriting = shared.policy(export={"dir": "taken", "overwrite": True})
    assert "did not export" in refused(overwriting, ExportError).message
    assert (taken / "file").read_text() == "somebody's"


@pytest.mark.parametrize("written", [".", "..", "out/.."])
def test_an_export_into_a_folder_without_a_name_of_its_own_is_refused(
    shared: Workplace, written: str
) -> None:
    error = refused(shared.policy(export={"dir": written}), ExportError)
    assert "exists" in error.message


def test_a_missing_model_is_refused_with_its_place_in_the_policy(shared: Workplace) -> None:
    policy = shared.policy(model={"source": "./no/such/model"})
    error = refused(policy, ModelError)
    assert "there is no such folder or file" in error.message
    assert f"{policy}:{line_of(policy, 'source:')}" in str(error)


def test_a_revision_of_a_folder_is_refused_at_its_place(shared: Workplace) -> None:
    policy = shared.policy(model={"source": "model", "revision": "main"})
    error = refused(policy, UsageError)
    assert error.line == line_of(policy, "revision: main")


def test_faults_in_data_keep_their_own_file_and_line(shared: Workplace) -> None:
    path = shared.text("bad.jsonl", '{"prompt": "one"}\n{"prompt": \n')
    error = refused(shared.policy(edits=[{**NUDGE, "data": {"file": "bad.jsonl"}}]), DataError)
    assert (error.file, error.line) == (str(path), 2)


def test_a_missing_data_file_is_named_with_its_place_in_the_policy(shared: Workplace) -> None:
    policy = shared.policy(edits=[{**NUDGE, "data": {"file": "retian.jsonl"}}])
    error = refused(policy, DataError)
    assert error.file == str(shared.folder / "retian.jsonl")
    assert "did you mean 'retain.jsonl'" in error.remedy
    assert f"asked for at {policy}:{line_of(policy, 'data:')}" in error.message


# Plans on disk --------------------------------------------------------------------------


def test_a_written_plan_reads_back_and_has_not_moved(shared: Workplace, tmp_path: Path) -> None:
    plan = plan_of(shared.policy(**REAL))
    write_plan(plan, tmp_path / "plan.json")
    written = read_plan(tmp_path / "plan.json")
    assert Path(written["policy_file"]).resolve() == plan.loaded.path.resolve()
    check_unmoved(plan, written)
    check_unmoved(plan_of(Path(written["policy_file"])), written)


def test_a_plan_finds_its_policy_from_any_working_directory(
    shared: Workplace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shared.policy()
    monkeypatch.chdir(shared.folder)
    write_plan(plan_of(Path("policy.yaml")), Path("plan.json"))
    monkeypatch.chdir(tmp_path)
    written = read_plan(shared.folder / "plan.json")
    assert Path(written["policy_file"]) == shared.folder / "policy.yaml"


@pytest.mark.parametrize("what", ["policy", "data", "model", "new data"])
def test_a_plan_is_refused_once_what_it_saw_has_moved(tmp_path: Path, what: str) -> None:
    place = make_workplace(tmp_path)
    path = place.policy()
    write_plan(plan_of(path), tmp_path / "plan.json")
    check_unmoved(plan_of(path), read_plan(tmp_path / "plan.json"))
    if what == "policy":
        place.policy(name="another")
        named = "changed: policy"
    elif what == "data":
        place.rows("near.jsonl", NEAR[:-1])
        named = "changed: data of audit:drift.asked"
    elif what == "new data":
        raw = yaml.safe_load(path.read_text())
        raw["audits"].append({**DRIFT, "id": "another"})
        path.write_text(yaml.safe_dump(raw))
        named = "changed: policy, data of audit:another.asked"
    else:
        make_workplace(tmp_path / "other", family="llama_tied")
        for name in ("model.safetensors", "config.json"):
            (tmp_path / "model" / name).write_bytes((tmp_path / "other/model" / name).read_bytes())
        named = "changed: model"
    with pytest.raises(UsageError) as caught:
        check_unmoved(plan_of(path), read_plan(tmp_path / "plan.json"))
    assert caught.value.message.endswith(named)
    assert "make a new plan" in caught.value.remedy


def test_comments_in_the_policy_move_nothing(shared: Workplace, tmp_path: Path) -> None:
    path = shared.policy()
    write_plan(plan_of(path), tmp_path / "plan.json")
    path.write_text("# a remark\n" + path.read_text())
    check_unmoved(plan_of(path), read_plan(tmp_path / "plan.json"))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "no json",
        "[]",
        '{"format": "another"}',
        '{"format": "safeedit-plan", "version": 1}',
        '{"format": "safeedit-plan", "version": 1, "policy_file": "p.yaml"}',
        '{"format": "safeedit-plan", "version": 2, "policy_file": "p", "fingerprint": {}}',
        "\ufeff\udcff",
    ],
)
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError, match="plan") as caught:
        read_plan(path)
    assert caught.value.file == str(path)
    assert caught.value.remedy


def test_a_plan_is_known_by_its_content_not_its_name(shared: Workplace, tmp_path: Path) -> None:
    policy = shared.policy()
    write_plan(plan_of(policy), tmp_path / "plan.txt")
    as_json = tmp_path / "policy.json"
    as_json.write_text(json.dumps(yaml.safe_load(policy.read_text())))
    assert is_plan(tmp_path / "plan.txt")
    assert not is_plan(as_json)
    assert not is_plan(policy)
    assert not is_plan(tmp_path / "absent.yaml")


def test_items_without_an_answer_are_refused_before_any_work(shared: Workplace) -> None:
    shared.rows("mute.jsonl", [{"prompt": f"Where is {n}?"} for n in range(8)])
    audit = {**LEAKAGE, "forget": {"file": "mute.jsonl"}}
    path = shared.policy(**{**REAL, "audits": [audit], "gates": LAX[:1]})
    error = refused(path, DataError)
    assert "8 of 8 items have no answer" in error.message
    assert error.field == "audits[0].forget"
    assert error.remedy


def test_a_plan_that_can_not_be_written_is_an_error_with_its_path(
    shared: Workplace, tmp_path: Path
) -> None:
    plan = plan_of(shared.policy())
    with pytest.raises(UsageError, match="can't be written") as caught:
        write_plan(plan, tmp_path / "no" / "folder" / "plan.json")
    assert "folder" in str(caught.value.file)


def test_data_names_its_notes_to_the_plan(shared: Workplace) -> None:
    plan = plan_of(shared.policy())
    assert all(isinstance(data, Dataset) for _, data in plan.datasets())
    assert [name for name, _ in plan.datasets()] == ["edit:nudge.kept", "audit:drift.asked"]
    assert SMALL_DRIFT["metric"] in plan.audits[0].metrics


# Parameters that name other models -------------------------------------------------------


def test_a_models_place_is_read_from_the_policys_folder_and_its_weights_are_told(
    shared: Workplace,
) -> None:
    audit = {
        "use": "leakage.reference_model",
        "forget": LEAKAGE["forget"],
        "model": {"source": "model"},
    }
    parts = {**REAL, "audits": [*REAL["audits"], audit]}
    params = plan_of(shared.policy(**parts)).audits[-1].params.model_dump()
    assert params["model"]["source"] == str(shared.folder / "model")
    assert params["model"]["digest"].startswith("sha256:")


def test_a_model_that_is_not_there_is_refused_at_its_place(shared: Workplace) -> None:
    audit = {
        "use": "leakage.reference_model",
        "forget": LEAKAGE["forget"],
        "model": {"source": "modle/x"},
    }
    path = shared.policy(**{**REAL, "audits": [*REAL["audits"], audit]})
    error = refused(path, ModelError)
    assert error.field == "audits[3].model.source"
