"""What a person types and what a machine reads: commands, exit codes, streams."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from rich.console import Console

from safeedit import __version__
from safeedit.cli.digest_key import digest_key
from safeedit.cli.live import Picture
from safeedit.cli.main import main
from safeedit.cli.progress import Course
from safeedit.errors import DataError, ModelError, PolicyError
from safeedit.policy.builtin import builtin_datasets, builtin_policies
from safeedit.records import RunRecord
from tests.road import DRIFT, NEAR, NUDGE, REAL, SMALL_DRIFT, Workplace, make_workplace, register

pytestmark = pytest.mark.usefixtures("toys")

FIXED_KEY = {"SAFEEDIT_DIGEST_KEY": "a key of one's own, of 32 characters"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A workplace whose policy has been applied. Read only."""
    place = make_workplace(tmp_path_factory.mktemp("exported"))
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        result = place.run("apply", place.policy())
    assert result.exit_code == 0, result.stderr
    return place


def python(*arguments: str, cwd: Path | None = None, **environment: str) -> Any:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


# Starting -------------------------------------------------------------------------------


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(argument: str) -> None:
    code = (
        "import sys\nfrom safeedit.cli.main import main\n"
        f"try:\n    main([{argument!r}])\nexcept SystemExit as request:\n"
        "    heavy = {'torch', 'transformers', 'datasets', 'pydantic', 'rich', 'numpy'}\n"
        "    print(request.code, sorted(heavy & sys.modules.keys()))"
    )
    done = python("-c", code)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


def test_the_version_is_that_of_the_package() -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert result.exit_code == 0
    assert result.stdout == f"safeedit, version {__version__}\n"


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_has_help_and_the_exit_codes_are_told_once(command: str) -> None:
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage: ")
    assert main.commands[command].help
    assert "1 a gate failed" in CliRunner().invoke(main, ["-h"]).stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["aply", "policy.yaml"],
        ["apply"],
        ["apply", "policy.yaml", "--jsn"],
        ["report", "x", "--format", "pdf"],
        ["diff", "no/such", "folder"],
        ["verify", "no/such"],
        ["revert", "no/such", "out"],
        ["list", "everything"],
        ["validate", "policy.yaml", "extra"],
    ],
)
def test_a_wrong_call_exits_2_and_says_what_is_wrong_on_stderr(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Error: " in result.stderr


def test_called_without_a_command_it_shows_its_help() -> None:
    result = CliRunner().invoke(main, [])
    assert result.exit_code == 2
    assert "Commands:" in result.output


# Exit codes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gate", "code", "word"),
    [
        (SMALL_DRIFT, 0, "PASSED"),
        ({**SMALL_DRIFT, "max": 0}, 1, "FAILED"),
        ({**SMALL_DRIFT, "metric": "drift.distence"}, 2, "did you mean 'drift.distance'"),
        ({**SMALL_DRIFT, "min_n": 1000}, 4, "INCONCLUSIVE"),
    ],
)
def test_apply_exits_by_its_verdict(
    place: Workplace, gate: dict[str, Any], code: int, word: str
) -> None:
    result = place.run("apply", place.policy(gates=[gate]))
    assert result.exit_code == code
    assert word in result.stderr
    assert result.stdout == ""
    assert place.target.exists() == (code == 0)


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (KeyboardInterrupt(), 3, "interrupted; no half-written export is left"),
        (PolicyError("no", file="p.yaml", line=3, column=5, remedy="yes"), 2,
         "error: p.yaml:3:5: no\n  remedy: yes\n"),
        (DataError("no", file="d.jsonl", line=7), 2, "error: d.jsonl:7: no\n"),
        (ModelError("no"), 3, "error: no\n"),
        (MemoryError("secret"), 3, "error: unexpected MemoryError at "),
        (KeyError("secret"), 3, "error: unexpected KeyError at "),
        (RecursionError("secret"), 3, "error: unexpected RecursionError at "),
        (FileNotFoundError(2, "secret", "secret"), 3, "error: unexpected FileNotFoundError at "),
        (BrokenPipeError(32, "Broken pipe"), 3, ""),
    ],
)  # fmt: skip
def test_every_exception_has_one_exit_code_and_shows_no_data(
    place: Workplace,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    shown: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("safeedit.policy.load_policy", fail)
    result = place.run("validate", "policy.yaml")
    assert result.exit_code == code
    assert shown in result.stderr
    assert result.stdout == ""
    assert "secret" not in result.output
    assert "Traceback" not in result.output


def test_the_traceback_of_an_unexpected_error_is_an_explicit_choice(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("a word of the data")

    monkeypatch.setattr("safeedit.policy.load_policy", fail)
    result = CliRunner().invoke(main, ["validate", "p.yaml"], env={"SAFEEDIT_DEBUG": "1"})
    assert result.exit_code == 3
    assert "Traceback" in result.stderr
    assert "a word of the data" in result.stderr


def test_ctrl_c_in_a_process_of_its_own_exits_3() -> None:
    code = (
        "import os, signal\nfrom safeedit import policy\n"
        "from safeedit.cli import main as commands\n"
        "policy.load_policy = lambda *_, **__: os.kill(os.getpid(), signal.SIGINT) or input()\n"
        "commands.main(['validate', 'p.yaml'])"
    )
    done = python("-c", code)
    assert done.returncode == 3
    assert "interrupted" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["schema", "report"])
def test_a_reader_that_goes_away_is_no_failed_gate(exported: Workplace, command: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    arguments = [str(exported.target)] * (command == "report")
    code = "import sys; from safeedit.cli.main import main; main(sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", code, command, *arguments], stdout=writing)
    os.close(writing)
    assert done.returncode == 3


# Streams --------------------------------------------------------------------------------


def test_json_is_all_there_is_on_stdout(place: Workplace) -> None:
    policy = place.policy()
    checked = place.run("validate", policy, "--json")
    assert json.loads(checked.stdout) == {"valid": True, "warnings": []}
    planned = place.run("plan", policy, "--json")
    assert json.loads(planned.stdout)["format"] == "safeedit-plan"
    applied = place.run("apply", policy, "--json")
    record = RunRecord.model_validate_json(applied.stdout)
    assert record.status == "pass"
    audited = place.run("audit", policy, "--json", "--report", place.folder / "r")
    assert RunRecord.model_validate_json(audited.stdout).command == "audit"
    listed = place.run("list", "--json")
    assert "sanitation" in json.loads(listed.stdout)["editors"]
    different = place.run("diff", place.folder / "model", place.target, "--json")
    (row,) = json.loads(different.stdout)
    assert row["name"] == "model.layers.0.mlp.down_proj.weight"


def test_json_of_a_failed_gate_is_still_json(place: Workplace) -> None:
    result = place.run("apply", place.policy(gates=[{**SMALL_DRIFT, "max": 0}]), "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["status"] == "fail"


def test_quiet_leaves_errors_and_warnings(place: Workplace) -> None:
    done = place.run("-q", "apply", place.policy())
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")
    gates = [{"metric": "drift.peace", "max": 1, "min_n": 1}]
    warned = place.run("-q", "validate", place.policy(gates=gates, export=None))
    assert warned.stderr == "warning: drift.peace: higher is better, but the gate is 'max 1'\n"
    nothing = {**NUDGE, "size": 1e-12, "control": False}
    policy = place.policy(edits=[nothing], export={"dir": "out/second"})
    assert "warning: edit nudge changed no stored weight" in place.run("-q", "apply", policy).stderr
    assert "error: " in place.run("-q", "apply", place.folder / "none.yaml").stderr
    assert ": valid" in place.run("validate", place.policy()).stderr
    assert ": valid" not in place.run("validate", "-q", place.policy()).stderr, "behind as well"


def test_what_libraries_warn_of_is_shown_only_to_who_asks(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chatty(*_: object, **__: object) -> Any:
        warnings.warn("a library's remark", FutureWarning, stacklevel=1)
        raise PolicyError("enough")

    monkeypatch.setattr("safeedit.policy.load_policy", chatty)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        place.run("validate", "p.yaml")
        assert seen == []
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        place.run("-v", "validate", "p.yaml")
        assert [str(warning.message) for warning in seen] == ["a library's remark"]


def test_a_warning_with_brackets_is_shown_as_it_is() -> None:
    written = io.StringIO()
    picture = Picture(Console(file=written, force_terminal=True, width=40))
    text = "edits[0]: [/] is no markup " + "and is not wrapped " * 4
    picture.warned(Course(clock=float, begun=0.0), text)
    picture.closes(None)
    assert f"warning: {text}" in written.getvalue()


# validate, plan -------------------------------------------------------------------------


def test_validate_says_valid_and_loads_no_weights(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    policy = place.policy()
    result = place.run("validate", policy)
    assert result.exit_code == 0
    assert result.stderr == f"{policy}: valid\n"


def test_plan_shows_what_a_run_would_touch(place: Workplace) -> None:
    place.rows("near.jsonl", [*NEAR, NEAR[0]])
    gates = [{"metric": "drift.peace", "max": 1}]
    result = place.run("plan", place.policy(gates=gates))
    assert result.exit_code == 0
    for text in (
        "trial: model (Llama, 3 layers, 48,864 parameters, float32)",
        "edit nudge (nudge): layers 0-0, 1 tensors, 1,536 parameters, dose 1.0",
        "    model.layers.0.mlp.down_proj.weight",
        "    size: 0.01",
        "audit drift (drift)",
        "data audit:drift.asked: items 7, fit 0, validation 3, test 4",
        "    rows that repeat an earlier one, counted once: 1",
        "gate drift.peace: max 1",
        "GB peak",
        f"export: {place.target}",
    ):
        assert text in result.stdout
    assert "warning: drift.peace: higher is better" in result.stderr


def test_a_plan_can_be_written_and_applied_as_long_as_nothing_moves(place: Workplace) -> None:
    policy, path = place.policy(), place.folder / "plan.json"
    assert place.run("plan", policy, "-o", path).exit_code == 0
    place.rows("near.jsonl", NEAR[:-1])
    moved = place.run("apply", path)
    assert moved.exit_code == 2
    assert "these have changed: data of audit:drift.asked" in moved.stderr
    assert "make a new plan" in moved.stderr
    assert not place.target.exists()
    place.rows("near.jsonl", NEAR)
    done = place.run("apply", path)
    assert done.exit_code == 0, done.stderr
    assert place.target.exists()


def test_an_export_that_exists_is_a_warning_until_it_is_applied(place: Workplace) -> None:
    place.target.mkdir(parents=True)
    for command in ("validate", "plan"):
        result = place.run(command, place.policy())
        assert result.exit_code == 0
        assert "apply would refuse this" in result.stderr
    assert place.run("apply", place.policy()).exit_code == 3


def test_a_plan_that_can_not_be_written_exits_2(place: Workplace) -> None:
    result = place.run("plan", place.policy(), "-o", place.folder / "no" / "plan.json")
    assert result.exit_code == 2
    assert "the plan can't be written: No such file or directory" in result.stderr


def test_what_is_no_plan_is_refused_by_apply(place: Workplace) -> None:
    result = place.run("apply", place.text("other.json", '{"format": "safeedit-plan"}'))
    assert result.exit_code == 2
    assert "other.json: this JSON is not a plan" in result.stderr
    assert "remedy: make it with plan -o" in result.stderr


# audit ----------------------------------------------------------------------------------


def test_audit_measures_any_model_against_any_base(exported: Workplace, tmp_path: Path) -> None:
    policy = exported.folder / "policy.yaml"
    model = exported.folder / "model"

    def distance(*arguments: object) -> float | None:
        result = exported.run("audit", policy, "--report", tmp_path, "--json", *arguments)
        assert result.exit_code == 0, result.stderr
        return RunRecord.model_validate_json(result.stdout).after[0].metrics[0].value

    apart = distance("--model", exported.target, "--base", model)
    assert apart is not None
    assert apart > 0
    assert distance("--base", exported.target) == pytest.approx(apart)
    assert distance("--base", model) == 0
    assert distance("--model", exported.target) == 0


def test_paths_on_the_command_line_start_at_the_working_directory(
    exported: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(exported.folder / "out")
    policy = exported.folder / "policy.yaml"
    result = exported.run(
        "audit", policy, "--model", "trial", "--base", "../model", "--report", tmp_path
    )
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "report.html").exists()


def test_an_audit_applies_the_gates_and_never_exports(place: Workplace) -> None:
    policy = place.policy(gates=[{**SMALL_DRIFT, "metric": "drift.peace", "max": None, "min": 1}])
    raw = yaml.safe_load(policy.read_text())
    del raw["gates"][0]["max"]
    policy.write_text(yaml.safe_dump(raw))
    result = place.run("audit", policy, "--report", place.folder / "r")
    assert result.exit_code == 1
    assert not (place.folder / "out").exists()
    assert "This run only measured" in result.stderr


def test_an_audit_needs_no_usable_edits_and_export(place: Workplace) -> None:
    place.target.mkdir(parents=True)
    policy = place.policy(edits=[{**NUDGE, "data": {"file": "none.jsonl"}}])
    assert place.run("audit", policy, "--report", place.folder / "r").exit_code == 0


def test_without_a_place_for_it_an_audits_report_is_named_after_the_policy(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.folder)
    result = place.run("audit", place.policy(name="v1.2"))
    assert (place.folder / "out" / "v1.2.audit" / "report.html").exists()
    assert "report: out/v1.2.audit/report.html" in result.stderr


# report, diff, verify, revert -----------------------------------------------------------


@pytest.mark.parametrize("source", ["export", "report folder", "file"])
@pytest.mark.parametrize(
    ("kind", "sign"),
    [
        ("terminal", "PASSED  trial"),
        ("html", "<!doctype html>"),
        ("md", "# "),
        ("junit", "<?xml"),
    ],
)
def test_a_report_renders_again_from_its_record(
    exported: Workplace, source: str, kind: str, sign: str
) -> None:
    folder = exported.target.with_name("trial.report")
    record = {"export": exported.target, "report folder": folder}.get(source)
    result = exported.run("report", record or folder / "report.json", "--format", kind)
    assert result.exit_code == 0, result.stderr
    assert sign.lower() in result.stdout.lower()
    if kind != "terminal":
        name = {"html": "report.html", "md": "report.md", "junit": "junit.xml"}[kind]
        place = exported.target / "evidence" if source == "export" else folder
        assert result.stdout.rstrip() == (place / name).read_text().rstrip()


@pytest.mark.parametrize("content", [None, b"{}", b"no json", b"\xff\xfe"])
def test_what_is_no_record_is_refused_by_report(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "report.json"
    if content is not None:
        path.write_bytes(content)
    for argument in (path, tmp_path):
        result = CliRunner().invoke(main, ["report", str(argument)])
        assert result.exit_code == 2
        assert f"{path}: not a readable run record" in result.stderr
        assert "remedy: give a report.json" in result.stderr


def test_diff_lists_the_tensors_that_moved(exported: Workplace) -> None:
    result = exported.run("diff", exported.folder / "model", exported.target)
    assert result.exit_code == 0
    assert result.stdout.startswith("model.layers.0.mlp.down_proj.weight  changed")
    assert result.stderr == "1 tensors differ\n"
    same = exported.run("diff", exported.target, exported.target)
    assert (same.exit_code, same.stdout) == (0, "")


def test_diff_of_what_is_no_checkpoint_exits_3(exported: Workplace, tmp_path: Path) -> None:
    result = exported.run("diff", exported.target, tmp_path)
    assert result.exit_code == 3
    assert str(tmp_path) in result.stderr


def test_verify_tells_a_whole_export_from_a_damaged_one(place: Workplace) -> None:
    assert place.run("apply", place.policy()).exit_code == 0
    whole = place.run("verify", place.target)
    assert (whole.exit_code, whole.stdout) == (0, "")
    assert whole.stderr.startswith("consistent with its evidence; not signed")
    config = place.target / "config.json"
    config.write_text(config.read_text() + " ")
    damaged = place.run("verify", place.target)
    assert damaged.exit_code == 1
    assert damaged.stdout == "config.json: changed\n"
    refused = place.run("revert", place.target, place.folder / "back")
    assert refused.exit_code == 3
    assert "does not match its evidence" in refused.stderr
    assert not (place.folder / "back").exists()


def test_revert_writes_the_original_weights(exported: Workplace, tmp_path: Path) -> None:
    result = exported.run("revert", exported.target, tmp_path / "back")
    assert result.exit_code == 0, result.stderr
    same = exported.run("diff", exported.folder / "model", tmp_path / "back")
    assert (same.stdout, same.stderr) == ("", "0 tensors differ\n")
    again = exported.run("revert", exported.target, tmp_path / "back")
    assert again.exit_code == 3
    assert "folder exists" in again.stderr


# list, schema, init ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("editors", ["sanitation"]),
        ("auditors", ["leakage", "locality", "perplexity"]),
        ("metrics", ["leakage.extraction_rate", "locality.near_f1", "perplexity.ratio"]),
        ("scorers", ["classifier", "detoxify", "profanity"]),
        ("datasets", ["facts", "prose"]),
        ("policies", ["quickstart"]),
        ("models", ["llama", "gpt2", "gemma3_text"]),
    ],
)
def test_list_names_what_there_is_of_each_kind(kind: str, names: list[str]) -> None:
    found = json.loads(CliRunner().invoke(main, ["list", kind, "--json"]).stdout)
    assert list(found) == [kind]
    assert set(names) <= found[kind].keys()
    shown = CliRunner().invoke(main, ["list", kind])
    assert shown.exit_code == 0
    assert shown.stdout.splitlines()[0] == kind
    for name, summary in found[kind].items():
        assert name in shown.stdout
        assert summary in shown.stdout
        assert summary, f"{kind} {name} says nothing of itself"


def test_list_without_a_kind_names_them_all() -> None:
    found = json.loads(CliRunner().invoke(main, ["list", "--json"]).stdout)
    kinds = [
        "editors", "attacks", "auditors", "scorers", "metrics", "datasets", "policies", "models",
    ]  # fmt: skip
    assert list(found) == kinds
    assert found["datasets"].keys() == builtin_datasets().keys()
    assert found["policies"].keys() == builtin_policies().keys()


def test_the_schema_is_one_that_a_policy_meets(place: Workplace) -> None:
    result = CliRunner().invoke(main, ["schema"])
    schema = json.loads(result.stdout)
    Draft202012Validator.check_schema(schema)
    policy = yaml.safe_load(place.policy(**REAL).read_text())
    accepts = Draft202012Validator(schema).is_valid
    assert accepts(policy)
    assert not accepts({**policy, "gates": 3})
    (edit,) = policy["edits"]
    assert not accepts({**policy, "edits": [{**edit, "use": "sanitization"}]})
    assert not accepts({**policy, "edits": [{**edit, "stepz": 3}]})
    for path in builtin_policies().values():
        assert accepts(yaml.safe_load(path.read_text())), path


def test_the_schema_of_reports_is_one_that_a_report_meets(exported: Workplace) -> None:
    schema = json.loads(CliRunner().invoke(main, ["schema", "report"]).stdout)
    Draft202012Validator.check_schema(schema)
    accepts = Draft202012Validator(schema).is_valid
    record = json.loads((exported.target / "evidence" / "report.json").read_text())
    assert accepts(record)
    assert not accepts({**record, "schema_version": 2})
    with pytest.raises(ValueError, match="schema_version"):
        RunRecord.model_validate({**record, "schema_version": 2})


# The key of the digests -----------------------------------------------------------------


def test_the_key_of_the_digests_is_made_once_and_only_its_owner_may_read_it(
    place: Workplace,
) -> None:
    first = digest_key(place.cache)
    path = place.cache / "digest.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(first) == 64
    assert digest_key(place.cache) == first
    assert [entry.name for entry in place.cache.iterdir()] == ["digest.key"]


def test_a_key_of_the_environment_is_taken_and_never_written(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(*next(iter(FIXED_KEY.items())))
    assert digest_key(place.cache) == b"a key of one's own, of 32 characters"
    assert not place.cache.exists()


def test_a_key_that_can_not_be_kept_is_an_error_with_two_ways_out(place: Workplace) -> None:
    (place.cache / "digest.key").mkdir(parents=True)
    result = place.run("apply", place.policy())
    assert result.exit_code == 3
    assert "the key of the digests can't be kept here" in result.stderr
    assert "SAFEEDIT_CACHE" in result.stderr
    assert "SAFEEDIT_DIGEST_KEY" in result.stderr


def test_an_empty_key_is_refused(place: Workplace) -> None:
    place.cache.mkdir()
    (place.cache / "digest.key").write_text("")
    result = place.run("apply", place.policy())
    assert result.exit_code == 3
    assert "the key of the digests is empty" in result.stderr


def test_another_key_gives_other_digests_of_items(place: Workplace) -> None:
    policy = place.policy(export=None, audits=[{**DRIFT}])
    keys = []
    for secret in ("one key, as long as a key must be", "another key, as long as that one is"):
        result = CliRunner().invoke(
            main,
            ["apply", str(policy), "--json", "--report", str(place.folder / "r")],
            env={"SAFEEDIT_CACHE": str(place.cache), "SAFEEDIT_DIGEST_KEY": secret},
        )
        record = RunRecord.model_validate_json(result.stdout)
        keys.append(set(record.after[0].metrics[0].items))
    assert keys[0]
    assert not keys[0] & keys[1]
