"""Policies from files: what is read, and how every kind of mistake is reported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from safeedit.errors import PolicyError
from safeedit.policy import DataSpec, LoadedPolicy, Policy, load_policy

GOOD = """\
version: 1
name: forget-customer-records   # a comment
owner: privacy@example.org
ticket: 1182
seed: 7
model: {source: builtin:smollm2-135m-instruct, dtype: auto}
edits:
  - use: sanitation
    forget: {file: ../data/forget.jsonl}
    rate: 1e-4
    dose: auto
audits:
  - {use: leakage, data: {file: ../data/forget.jsonl}}
  - {use: perplexity, id: prose, required: false}
gates:
  - {metric: leakage.extraction_rate, max: 0.02, confidence: 0.95}
  - metric: prose.value
    max_increase: 3%
export: {dir: ../out/x}
"""


def write(folder: Path, text: str, name: str = "policy.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def fault(folder: Path, text: str) -> PolicyError:
    with pytest.raises(PolicyError) as caught:
        load_policy(write(folder, text))
    return caught.value


def test_a_policy_is_read_with_its_parts(tmp_path: Path) -> None:
    policy = load_policy(write(tmp_path, GOOD)).policy
    assert policy.ticket == "1182"
    assert policy.edits[0].id == "sanitation"
    assert policy.edits[0].options == {"forget": {"file": "../data/forget.jsonl"}, "rate": 1e-4}
    assert policy.audits[1].id == "prose"
    assert not policy.audits[1].required
    assert policy.gates[0].condition == "max 0.02 at confidence 0.95"
    assert policy.gates[1].bound.relative
    assert policy.gates[1].bound.value == 0.03
    assert policy.export is not None


def test_a_dumped_policy_is_json_and_reads_back_the_same(tmp_path: Path) -> None:
    policy = load_policy(write(tmp_path, GOOD)).policy
    text = json.dumps(policy.model_dump())
    assert Policy.model_validate(json.loads(text)) == policy
    assert json.loads(text)["gates"][1]["max_increase"] == "3%"


def test_the_digest_ignores_layout_and_sees_values(tmp_path: Path) -> None:
    digest = load_policy(write(tmp_path, GOOD)).digest
    lines = GOOD.replace("   # a comment", "").splitlines()
    reordered = "\n".join([lines[4], *lines[:4], *lines[5:]])
    assert load_policy(write(tmp_path, reordered)).digest == digest
    assert load_policy(write(tmp_path, GOOD.replace("0.02", "0.03"))).digest != digest


def test_an_empty_section_is_an_empty_list(tmp_path: Path) -> None:
    policy = load_policy(write(tmp_path, "name: a\nmodel: {source: b}\ngates:\n")).policy
    assert policy.gates == ()


@pytest.mark.parametrize("source", ["builtin:other", "some/folder"])
def test_a_policy_can_be_pointed_at_another_model_without_edits(
    tmp_path: Path, source: str
) -> None:
    loaded = load_policy(write(tmp_path, GOOD))
    other = loaded.with_model_source(source).without_edits()
    assert other.policy.model.source == source
    assert other.policy.edits == ()
    assert other.policy.export is None
    assert other.policy.gates == loaded.policy.gates
    assert other.digest != loaded.digest
    assert loaded.policy.edits  # the original is as it was


# -- mistakes ---------------------------------------------------------------------------------


def test_a_missing_file_says_so_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="no such policy file") as caught:
        load_policy(tmp_path / "nowhere.yaml")
    assert "safeedit init" in caught.value.remedy
    assert caught.value.exit_code == 2


def test_a_folder_given_as_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="is a folder"):
        load_policy(tmp_path)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n"])
def test_an_empty_policy_is_refused(tmp_path: Path, text: str) -> None:
    error = fault(tmp_path, text)
    assert "empty" in error.message or "should be a mapping" in error.message


def test_malformed_yaml_is_located(tmp_path: Path) -> None:
    error = fault(tmp_path, "name: a\nmodel: {source: b\nseed: 1\n")
    assert "not valid YAML" in error.message
    assert error.line == 3


def test_tabs_as_indentation_are_located(tmp_path: Path) -> None:
    error = fault(tmp_path, "name: a\nmodel:\n\tsource: b\n")
    assert (error.line, error.column) == (3, 1)
    assert "indent with spaces" in error.remedy


def test_an_unknown_key_is_named_with_the_likely_one(tmp_path: Path) -> None:
    error = fault(tmp_path, GOOD.replace("seed: 7", "sede: 7"))
    assert (error.line, error.column, error.field) == (5, 1, "sede")
    assert error.remedy.startswith("did you mean 'seed'")


def test_an_unknown_key_inside_a_part_is_matched_with_that_parts_keys(tmp_path: Path) -> None:
    error = fault(tmp_path, GOOD.replace("dtype: auto", "dtyp: auto"))
    assert error.field == "model.dtyp"
    assert error.line == 6
    assert error.remedy == "did you mean 'dtype'?"


def test_an_unknown_key_in_a_gate_is_found_at_its_own_place(tmp_path: Path) -> None:
    error = fault(tmp_path, GOOD.replace("max_increase: 3%", "max_increase: 3%\n    confidense: 1"))
    assert (error.line, error.column) == (19, 5)
    assert error.field == "gates[1].confidense"
    assert error.remedy == "did you mean 'confidence'?"


def test_a_mistyped_choice_is_named_with_the_likely_one(tmp_path: Path) -> None:
    error = fault(tmp_path, GOOD.replace("dtype: auto", "dtype: bfloat61"))
    assert error.field == "model.dtype"
    assert "'bfloat16'" in error.remedy


@pytest.mark.parametrize(
    ("right", "wrong", "field", "found"),
    [
        ("seed: 7", "seed: seven", "seed", "found text"),
        ("seed: 7", "seed: '7'", "seed", "found text"),
        ("seed: 7", "seed: true", "seed", "found true or false"),
        ("name: forget-customer-records", "name: 12", "name", "found a number"),
        ("edits:\n  - use: sanitation", "edits:\n    use: sanitation", "edits", "found a mapping"),
        ("required: false", "required: 0", "audits[1].required", "found a number"),
        ("{dir: ../out/x}", "../out/x", "export", "found text"),
        ("confidence: 0.95", "confidence: [1]", "gates[0].confidence", "found a list"),
    ],
)
def test_a_wrong_type_is_refused_and_both_types_named(
    tmp_path: Path, right: str, wrong: str, field: str, found: str
) -> None:
    assert right in GOOD
    error = fault(tmp_path, GOOD.replace(right, wrong))
    assert error.field == field
    assert error.message.startswith("should be")
    assert found in error.message
    assert "instance" not in error.message


@pytest.mark.parametrize(
    ("right", "wrong", "field"),
    [
        ("seed: 7", "seed: -1", "seed"),
        ("confidence: 0.95", "confidence: 95", "gates[0].confidence"),
        ("max: 0.02", "max: .nan", "gates[0].max"),
        ("max: 0.02", "max: 2%", "gates[0].max"),
        ("max_increase: 3%", "max_increase: three", "gates[1].max_increase"),
        ("max_increase: 3%", "max_increase: -3%", "gates[1].max_increase"),
        ("max: 0.02", "max: 0.02, min: 0", "gates[0]"),
        (" max: 0.02,", "", "gates[0]"),
        ("dose: auto", "dose: strong", "edits[0].dose"),
        ("dose: auto", "dose: 0", "edits[0].dose"),
        ("dose: auto", "dose: true", "edits[0].dose"),
        ("version: 1", "version: 2", "version"),
        ("dtype: auto", "device: gpu", "model.device"),
        ("name: forget-customer-records", "name: ../escape", "name"),
        ("metric: prose.value", "metric: value", "gates[1].metric"),
        ("id: prose", "id: a..b", "audits[1].id"),
    ],
)
def test_a_value_out_of_range_is_refused_at_its_place(
    tmp_path: Path, right: str, wrong: str, field: str
) -> None:
    assert right in GOOD
    error = fault(tmp_path, GOOD.replace(right, wrong))
    assert error.field == field
    assert error.line is not None


def test_a_percentage_where_a_number_belongs_is_answered_with_the_number(tmp_path: Path) -> None:
    assert "write 0.02" in fault(tmp_path, GOOD.replace("max: 0.02", "max: 2%")).message


def test_a_missing_field_is_located_at_the_part_that_lacks_it(tmp_path: Path) -> None:
    error = fault(tmp_path, GOOD.replace("source: builtin:smollm2-135m-instruct, ", ""))
    assert error.field == "model.source"
    assert error.line == 6
    assert "is required" in error.message


def test_several_mistakes_are_all_reported_in_order(tmp_path: Path) -> None:
    text = GOOD.replace("seed: 7", "sede: 7").replace("dtype: auto", "dtype: bf16")
    error = fault(tmp_path, text.replace("confidence: 0.95", "confidence: 95"))
    lines = error.message.splitlines()
    assert lines[0] == "3 faults"
    assert ["sede" in lines[1], "model.dtype" in lines[2], "confidence" in lines[3]] == [True] * 3
    assert f"{tmp_path / 'policy.yaml'}:5:1: sede" in lines[1]
    assert error.line == 5


def test_a_key_given_twice_is_an_error_that_names_both_lines(tmp_path: Path) -> None:
    error = fault(tmp_path, GOOD + "seed: 8\n")
    assert "twice (first in line 5)" in error.message
    assert error.line == len(GOOD.splitlines()) + 1


def test_a_key_given_twice_inside_a_part_is_an_error(tmp_path: Path) -> None:
    error = fault(tmp_path, GOOD.replace("dtype: auto", "dtype: auto, dtype: float32"))
    assert error.field == "model.dtype"


def test_two_stages_of_one_id_are_an_error_that_names_both(tmp_path: Path) -> None:
    error = fault(
        tmp_path, GOOD.replace("id: prose", "id: sanitation").replace("prose.", "leakage.")
    )
    assert error.field == "audits[1].id"
    assert "edits[0]" in error.message


def test_a_gate_on_an_audit_that_is_not_there_suggests_the_likely_one(tmp_path: Path) -> None:
    error = fault(tmp_path, GOOD.replace("metric: leakage.", "metric: leakge."))
    assert error.field == "gates[0].metric"
    assert error.line == 16
    assert error.remedy == "did you mean 'leakage'?"


def test_parameters_under_options_are_refused_with_the_way_to_write_them(tmp_path: Path) -> None:
    error = fault(tmp_path, GOOD.replace("rate: 1e-4", "options: {rate: 1e-4}"))
    assert "directly" in error.message


def test_a_policy_that_is_a_list_is_refused(tmp_path: Path) -> None:
    assert "should be a mapping, not a list" in fault(tmp_path, "- a\n- b\n").message


# -- for plan ---------------------------------------------------------------------------------


def loaded(folder: Path, text: str = GOOD) -> LoadedPolicy:
    return load_policy(write(folder, text))


def test_an_error_can_be_placed_at_a_field_deep_in_the_options(tmp_path: Path) -> None:
    error = loaded(tmp_path).error(("edits", 0, "forget", "file"), "is odd", "mend it")
    assert (error.line, error.column) == (9, 20)
    assert error.field == "edits[0].forget.file"
    assert str(error).endswith("remedy: mend it")


def test_an_error_at_a_field_that_was_not_written_is_placed_at_its_parent(tmp_path: Path) -> None:
    error = loaded(tmp_path).error(("edits", 0, "retain"), "is missing")
    assert error.line == 8
    assert error.field == "edits[0].retain"


def test_a_data_source_in_the_options_is_parsed_with_positions(tmp_path: Path) -> None:
    policy = loaded(tmp_path, GOOD.replace("{file: ../data/forget.jsonl}", "{fiel: a}", 1))
    with pytest.raises(PolicyError) as caught:
        policy.parse(DataSpec, policy.policy.edits[0].options["forget"], ("edits", 0, "forget"))
    assert caught.value.field == "edits[0].forget.fiel"
    assert caught.value.remedy == "did you mean 'file'?"
    assert (caught.value.line, caught.value.column) == (9, 14)


def test_a_filter_of_the_wrong_type_is_one_error_not_one_per_allowed_type(tmp_path: Path) -> None:
    text = GOOD.replace("{file: ../data/forget.jsonl}", "{file: a, where: {role: {a: b}}}", 1)
    policy = loaded(tmp_path, text)
    with pytest.raises(PolicyError) as caught:
        policy.parse(DataSpec, policy.policy.edits[0].options["forget"], ("edits", 0, "forget"))
    assert caught.value.field == "edits[0].forget.where.role"
    assert "has the wrong type (found a mapping)" in caught.value.message


def test_importing_the_policy_imports_no_heavy_library() -> None:
    code = "import sys, safeedit.policy; print([m for m in ('torch', 'transformers', 'datasets') \
if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
