"""Every kind of bad input, through the command line: exit code, place, remedy, nothing written."""

from __future__ import annotations

import errno
import pickle
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import Result

from tests.road import (
    DRIFT,
    NEAR,
    NUDGE,
    PROSE,
    RETAIN,
    SMALL_DRIFT,
    Workplace,
    make_workplace,
)
from tests.tiny_models import save_tiny

pytestmark = pytest.mark.usefixtures("toys")


def apply(place: Workplace, policy: Path) -> Result:
    """Run a policy that must come to nothing, and check that it did."""
    before = {path for path in place.folder.rglob("*") if place.cache not in path.parents}
    result = place.run("apply", policy)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert "unexpected" not in result.stderr
    assert result.stderr.count("error: ") == 1
    assert "remedy: " in result.stderr
    after = {path for path in place.folder.rglob("*") if place.cache not in path.parents}
    assert after - before <= {place.cache}, "something was written"
    return result


def place_of(path: Path, text: str) -> str:
    """``file:line`` of the first line that has ``text``."""
    lines = path.read_text().splitlines()
    return f"{path}:{next(n for n, line in enumerate(lines, 1) if text in line)}"


def test_malformed_yaml(place: Workplace) -> None:
    policy = place.text("policy.yaml", "version: 1\nname: trial\nedits: [{use: nudge\n")
    result = apply(place, policy)
    assert result.exit_code == 2
    assert re.search(rf"{re.escape(str(policy))}:[34]:\d+: .*YAML", result.stderr)


def test_a_policy_that_is_not_there(place: Workplace) -> None:
    result = apply(place, place.folder / "polcy.yaml")
    assert result.exit_code == 2
    assert "polcy.yaml: " in result.stderr


def test_a_binary_file_as_policy(place: Workplace) -> None:
    result = apply(place, place.folder / "model" / "model.safetensors")
    assert result.exit_code == 2
    assert "model.safetensors" in result.stderr


def test_an_unknown_key(place: Workplace) -> None:
    policy = place.policy(gaets=[])
    result = apply(place, policy)
    assert result.exit_code == 2
    assert f"{place_of(policy, 'gaets')}:1: gaets: unknown key 'gaets'" in result.stderr
    assert "did you mean 'gates'" in result.stderr


def test_an_unknown_parameter(place: Workplace) -> None:
    policy = place.policy(edits=[{**NUDGE, "lair": 1}])
    result = apply(place, policy)
    assert result.exit_code == 2
    assert f"{place_of(policy, 'lair')}:3: edits[0].lair: unknown key 'lair'" in result.stderr
    assert "did you mean 'layer'?" in result.stderr


def test_an_unknown_editor(place: Workplace) -> None:
    policy = place.policy(edits=[{**NUDGE, "use": "sanitaton"}])
    result = apply(place, policy)
    assert result.exit_code == 2
    assert f"{place_of(policy, 'sanitaton')}:8: edits[0].use: there is no" in result.stderr
    assert "did you mean 'sanitation'?" in result.stderr


def test_an_unknown_auditor(place: Workplace) -> None:
    policy = place.policy(audits=[{**DRIFT, "use": "localty", "id": "drift"}])
    result = apply(place, policy)
    assert result.exit_code == 2
    assert f"{place_of(policy, 'localty')}:8: audits[0].use: there is no" in result.stderr
    assert "did you mean 'locality'?" in result.stderr


def test_a_data_file_that_is_missing(place: Workplace) -> None:
    policy = place.policy(audits=[{**DRIFT, "data": {"file": "neer.jsonl"}}])
    result = apply(place, policy)
    assert result.exit_code == 2
    assert f"{place.folder}/neer.jsonl: " in result.stderr
    assert f"asked for at {place_of(policy, 'data:')}" not in result.stderr.splitlines()[1]
    assert f"there is no such file (asked for at {policy}:" in result.stderr
    assert "did you mean 'near.jsonl'" in result.stderr


def test_a_built_in_data_set_that_is_not_there(place: Workplace) -> None:
    policy = place.policy(audits=[{**DRIFT, "data": {"dataset": "fact"}}])
    result = apply(place, policy)
    assert result.exit_code == 2
    assert f"{place_of(policy, 'dataset: fact')}:14: audits[0].data.dataset: " in result.stderr
    assert "did you mean 'facts'?" in result.stderr


def test_a_model_that_is_missing(place: Workplace) -> None:
    policy = place.policy(model={"source": "./modell"})
    result = apply(place, policy)
    assert result.exit_code == 3
    assert "there is no such folder or file" in result.stderr
    assert f"asked for at {place_of(policy, 'source:')}" in result.stderr


@pytest.mark.parametrize("command", ["audit", "attack"])
def test_a_checkpoint_on_the_command_line_that_is_missing(place: Workplace, command: str) -> None:
    policy = place.policy(attacks=[{"use": "quantize", "audits": ["drift"]}])
    missing = place.folder / "modell"
    named = ("--model", missing) if command == "audit" else (missing,)
    how = ("--policy", policy) if command == "attack" else (policy,)
    result = place.run(command, *how, *named)
    assert result.exit_code == 3
    assert f"{missing}: " in result.stderr
    assert str(policy) not in result.stderr, "the policy does not name it"


@pytest.mark.parametrize(
    ("parts", "where", "what"),
    [
        ({"seed": "five"}, "seed", "should be a whole number (found text)"),
        ({"edits": {"use": "nudge"}}, "edits", "should be a list (found a mapping)"),
        ({"gates": [{**SMALL_DRIFT, "max": "much"}]}, "max: much", "should be a number"),
        ({"edits": [{**NUDGE, "dose": "strong"}]}, "dose", "should be auto or a number above 0"),
        ({"edits": [{**NUDGE, "layer": "first"}]}, "layer", "should be a whole number"),
        ({"edits": [{**NUDGE, "data": "near.jsonl"}]}, "data: near.jsonl", "should be a mapping"),
        ({"model": "model"}, "model: model", "should be a mapping"),
        ({"version": 2}, "version", "should be 1"),
    ],
)
def test_a_value_of_the_wrong_type(
    place: Workplace, parts: dict[str, Any], where: str, what: str
) -> None:
    policy = place.policy(**parts)
    # A remedy is not always to be had: that of a field without description is its message.
    result = place.run("apply", policy)
    assert result.exit_code == 2
    line = place_of(policy, where)
    near = [line, f"{policy}:{int(line.rpartition(':')[2]) + 1}"]  # a mapping stands below its key
    assert any(f"error: {found}:" in result.stderr for found in near), (near, result.stderr)
    assert what in result.stderr


def test_a_gate_on_a_metric_no_auditor_has(place: Workplace) -> None:
    policy = place.policy(gates=[{**SMALL_DRIFT, "metric": "drift.distence"}])
    result = apply(place, policy)
    assert result.exit_code == 2
    assert f"{place_of(policy, 'metric:')}:11: gates[0].metric: no audit" in result.stderr
    assert "did you mean 'drift.distance'" in result.stderr


def test_a_gate_on_an_audit_that_is_not_made(place: Workplace) -> None:
    policy = place.policy(gates=[{**SMALL_DRIFT, "metric": "drfit.distance"}])
    result = apply(place, policy)
    assert result.exit_code == 2
    assert f"{place_of(policy, 'metric:')}:11: gates[0].metric: " in result.stderr
    assert "did you mean 'drift'?" in result.stderr


def test_overlapping_splits(place: Workplace) -> None:
    place.rows("overlap.jsonl", [*({**row, "split": "fit"} for row in NEAR[-2:])])
    policy = place.policy(edits=[{**NUDGE, "data": {"file": "overlap.jsonl"}}])
    result = apply(place, policy)
    assert result.exit_code == 2
    assert f"{policy}:" in result.stderr
    assert "audits[0].asked" in result.stderr or "audits[0].data" in result.stderr
    assert "fit split of edit nudge: kept and test split of audit drift: asked" in result.stderr
    assert "share 2 prompts" in result.stderr
    assert "remove the shared rows" in result.stderr


def test_one_prompt_in_two_splits_of_one_file(place: Workplace) -> None:
    path = place.rows("near.jsonl", [*NEAR, {**NEAR[0], "split": "test"}])
    result = apply(place, place.policy())
    assert result.exit_code == 2
    assert f"{path}:8: the same prompt is in two splits: line 1 and line 8" in result.stderr


@pytest.mark.parametrize("content", ["", "\n \n", "[]"])
def test_empty_data(place: Workplace, content: str) -> None:
    path = place.text("near.jsonl", content)
    result = apply(place, place.policy())
    assert result.exit_code == 2
    assert f"{path}: holds no rows" in result.stderr
    assert "asked for at" in result.stderr


def test_data_without_a_test_split(place: Workplace) -> None:
    place.rows("near.jsonl", NEAR[:3])
    policy = place.policy()
    result = apply(place, policy)
    assert result.exit_code == 2
    assert "audit drift has no test items" in result.stderr
    assert re.search(rf"{re.escape(str(policy))}:1[0-9]:", result.stderr)


def test_a_line_that_is_not_json(place: Workplace) -> None:
    path = place.text("near.jsonl", '{"prompt": "one?"}\nSome secret words\n')
    result = apply(place, place.policy())
    assert result.exit_code == 2
    assert f"{path}:2: is not JSON" in result.stderr
    assert "write one JSON object per line" in result.stderr
    assert "secret" not in result.stderr


def test_duplicated_prompts_with_different_answers(place: Workplace) -> None:
    rows = [{"prompt": "Who?", "answer": "Alpha"}, *RETAIN[:3], {"prompt": "who? ", "answer": "B"}]
    path = place.rows("retain.jsonl", rows)
    result = apply(place, place.policy())
    assert result.exit_code == 2
    assert f"{path}:5: the same prompt has another answer: line 1 and line 5" in result.stderr
    assert "keep one of the two rows" in result.stderr
    assert "Alpha" not in result.stderr


@pytest.mark.parametrize("damage", ["cut short", "no header", "lying header"])
def test_a_corrupt_safetensors_file(place: Workplace, damage: str) -> None:
    path = place.folder / "model" / "model.safetensors"
    raw = path.read_bytes()
    match damage:
        case "cut short":
            path.write_bytes(raw[: len(raw) // 2])
        case "no header":
            path.write_bytes(b"\0" * 100)
        case "lying header":
            path.write_bytes(struct.pack("<Q", 2**60) + raw[8:])
    policy = place.policy()
    result = apply(place, policy)
    assert result.exit_code == 3
    assert f"{path}: the file is corrupt or cut short" in result.stderr
    assert f"asked for at {place_of(policy, 'source:')}" in result.stderr
    assert "fetch it again" in result.stderr


class Bomb:
    """Unpickling it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("how", ["in a folder", "as a file"])
def test_a_pickle_checkpoint_is_refused_and_never_opened(place: Workplace, how: str) -> None:
    mark = place.folder / "opened"
    model = place.folder / "model"
    (model / "model.safetensors").unlink()
    path = model / "pytorch_model.bin"
    path.write_bytes(pickle.dumps({"weights": Bomb(mark)}))
    source = "model" if how == "in a folder" else "model/pytorch_model.bin"
    result = apply(place, place.policy(model={"source": source}))
    assert result.exit_code == 3
    assert f"{path}: the weights are a pickle, which can run code" in result.stderr
    assert "save_pretrained" in result.stderr
    assert not mark.exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(place: Workplace, value: float) -> None:
    def spoil(model: Any) -> None:
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight[0, 0] = value

    save_tiny("llama", place.folder / "model", prepare=spoil)
    result = apply(place, place.policy())
    assert result.exit_code == 3
    assert "model.layers.1.mlp.up_proj.weight" in result.stderr
    assert not place.target.exists()


def test_a_model_of_an_unknown_architecture(place: Workplace) -> None:
    config = place.folder / "model" / "config.json"
    config.write_text(config.read_text().replace('"model_type": "llama"', '"model_type": "t5"'))
    result = apply(place, place.policy())
    assert result.exit_code == 3
    assert "encoder" in result.stderr


def test_an_export_folder_that_exists(place: Workplace) -> None:
    place.target.mkdir(parents=True)
    (place.target / "precious").write_text("somebody's")
    policy = place.policy()
    result = apply(place, policy)
    assert result.exit_code == 3
    assert f"{place.target}: the export's folder exists" in result.stderr
    assert f"asked for at {place_of(policy, 'dir: out/trial')}" in result.stderr
    assert "export.overwrite: true" in result.stderr
    overwriting = place.policy(export={"dir": "out/trial", "overwrite": True})
    result = apply(place, overwriting)
    assert "there is something here that safeedit did not export" in result.stderr
    assert (place.target / "precious").read_text() == "somebody's"


def test_an_export_under_a_file(place: Workplace) -> None:
    # Root may write anywhere but below a file.
    (place.folder / "out").write_text("a file")
    result = apply(place, place.policy())
    assert result.exit_code == 3
    assert f"{place.folder}/out: the export can't be made here" in result.stderr
    assert "choose another" in result.stderr


def test_a_disk_that_is_full_when_the_weights_are_written(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safeedit.export.weights.save_file", full)
    result = place.run("apply", place.policy())
    assert result.exit_code == 3
    assert "the export could not be written: No space left on device" in result.stderr
    assert "remedy: free some space" in result.stderr
    assert not place.target.exists()
    assert place.unfinished() == []
    assert place.report.exit_code == 3


def test_an_audit_with_nothing_it_can_read_is_inconclusive_not_a_crash(tmp_path: Path) -> None:
    place = make_workplace(tmp_path, family="qwen2")  # its tokenizer adds nothing to a word
    place.rows("prose.jsonl", [{**row, "text": "a"} for row in PROSE if row["split"] == "test"])
    audits = [DRIFT, {"use": "perplexity", "prose": {"file": "prose.jsonl"}}]
    result = place.run("apply", place.policy(audits=audits))
    assert result.exit_code == 4, result.stderr
    assert "perplexity has nothing to read" in result.stderr


def test_several_faults_are_told_at_once(place: Workplace) -> None:
    policy = place.policy(seed="five", gaets=1)
    result = place.run("validate", policy)
    assert result.exit_code == 2
    assert "2 faults" in result.stderr
    assert place_of(policy, "seed") in result.stderr
    assert place_of(policy, "gaets") in result.stderr


@pytest.mark.parametrize("key", ["owner", "ticket", "description", "where"])
def test_odd_texts_in_a_policy_do_no_harm(place: Workplace, key: str) -> None:
    odd = "</script><b>[red]{{ 1 }}\u202e\x07"
    policy = place.policy(**({} if key == "where" else {key: odd}))
    if key == "where":
        raw = yaml.safe_load(policy.read_text())
        raw["audits"][0]["data"]["where"] = {"kind": odd}
        place.rows("near.jsonl", [{**row, "kind": odd} for row in NEAR])
        policy.write_text(yaml.safe_dump(raw))
    result = place.run("apply", policy)
    assert result.exit_code == 0, result.stderr
    page = (place.target.with_name("trial.report") / "report.html").read_text()
    assert "</script><b>" not in page
    assert "\u202e" not in result.stderr
