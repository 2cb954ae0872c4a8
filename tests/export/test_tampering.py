"""Whatever is changed in an export, with a manifest that agrees: ``verify`` says so.

The export is made once, by a real run with two edits, two gates and a ledger; each test damages a
copy and, as a forger would, writes the manifest again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from safeedit import __version__
from safeedit.delta import WeightDelta
from safeedit.errors import ExportError
from safeedit.export.ledger.keys import make_key
from safeedit.export.manifest import DELTA, LEDGER, MANIFEST, RECORD, RENDERED, UNDO, write_manifest
from safeedit.export.reversion import revert
from safeedit.export.verification import check_export
from safeedit.model.digest import digest_of, tensor_digest
from safeedit.model.sources import open_model
from safeedit.policy.loading import policy_digest
from safeedit.policy.model import Policy
from safeedit.records import RunRecord
from safeedit.report import render_evidence
from safeedit.workflows.verification import check, verify
from tests.road import (
    DRIFT,
    LEAKAGE,
    NUDGE,
    SANITATION,
    SMALL_DRIFT,
    Workplace,
    make_workplace,
    register,
)
from tests.training import trained

EDITS = [NUDGE, {**SANITATION, "dose": 1.0, "control": False}]
GATES = [SMALL_DRIFT, {"metric": "leakage.known_before", "min": 0, "min_n": 1}]


@pytest.fixture(scope="module")
@trained
def made(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    place = make_workplace(tmp_path_factory.mktemp("made"))
    make_key(place.folder / "ledger.key")
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        policy = place.policy(
            edits=EDITS,
            audits=[DRIFT, LEAKAGE],
            gates=GATES,
            ticket="T-1",
            ledger={"key": {"file": "ledger.key"}},
        )
        result = place.run("apply", policy)
    assert result.exit_code == 0, result.stderr
    return place


@pytest.fixture
def export(made: Workplace, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.target, tmp_path / "copy"))


def record_of(export: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((export / RECORD).read_text())
    return found


def write_record(export: Path, content: dict[str, Any], *, draw: bool = True) -> None:
    """A record, everything that is drawn from it, and the manifest: a forger's whole work."""
    record = RunRecord.model_validate_json(json.dumps(content))
    (export / RECORD).write_text(record.model_dump_json(indent=2) + "\n")
    if draw:
        texts = render_evidence(record)
        for name in RENDERED:
            (export / name).write_text(texts[Path(name).name])
    write_manifest(export)


def test_the_export_as_made_verifies_and_reverts(export: Path, tmp_path: Path) -> None:
    assert verify(export) == []
    write_record(export, record_of(export))  # the control: a forger's tools alone change nothing
    assert verify(export) == []
    revert(export, tmp_path / "back")


# Every file -----------------------------------------------------------------------------


def test_every_file_is_one_whose_change_shows_though_the_manifest_agrees(
    made: Workplace, tmp_path: Path
) -> None:
    names = sorted(
        path.relative_to(made.target).as_posix()
        for path in made.target.rglob("*")
        if path.is_file() and path.name != Path(MANIFEST).name
    )
    assert {RECORD, UNDO, LEDGER, *RENDERED, "model.safetensors", "config.json"} < set(names)
    for name in names:
        copy = Path(shutil.copytree(made.target, tmp_path / "copy"))
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
        write_manifest(copy)
        assert verify(copy), name
        shutil.rmtree(copy)


def test_every_file_is_one_that_is_missed_though_its_line_is_gone_too(
    made: Workplace, tmp_path: Path
) -> None:
    for path in sorted(made.target.rglob("*")):
        name = path.relative_to(made.target).as_posix()
        if path.is_dir() or name == MANIFEST:
            continue
        copy = Path(shutil.copytree(made.target, tmp_path / "copy"))
        (copy / name).unlink()
        write_manifest(copy)
        assert verify(copy), name
        shutil.rmtree(copy)


def test_originals_and_deltas_may_be_withheld_as_long_as_the_manifest_names_them(
    export: Path,
) -> None:
    for path in [*export.glob("evidence/delta-*"), export / UNDO]:
        path.unlink()
    assert verify(export) == []


def test_a_file_that_was_added_with_its_line_is_no_part_of_the_export(export: Path) -> None:
    (export / "modeling.py").write_text("print('hello')")
    write_manifest(export)
    assert verify(export) == [
        "modeling.py: in the manifest, but no part of the export by its run record"
    ]


@pytest.mark.parametrize("name", ["model.safetensors", RECORD, UNDO, MANIFEST, "README.md"])
@pytest.mark.parametrize("kind", ["link", "pipe", "socket", "folder"])
def test_what_is_no_plain_file_is_refused_at_once_and_never_opened(
    export: Path, tmp_path: Path, name: str, kind: str
) -> None:
    path = export / name
    path.rename(tmp_path / "kept")
    match kind:
        case "link":
            path.symlink_to(tmp_path / "kept")
        case "pipe":
            os.mkfifo(path)
        case "socket":
            os.mknod(path, 0o140644)
        case "folder":
            path.mkdir()
    start = time.monotonic()
    problems = verify(export)
    assert any(line.startswith(f"{name}:") for line in problems), problems
    assert time.monotonic() - start < 20
    if (name, kind) == ("README.md", "folder"):
        return  # as if the card were gone, which hinders no revert
    with pytest.raises(ExportError):
        revert(export, tmp_path / "back")


def test_evidence_in_a_linked_folder_is_refused(export: Path, tmp_path: Path) -> None:
    (export / "evidence").rename(tmp_path / "elsewhere")
    (export / "evidence").symlink_to(tmp_path / "elsewhere")
    assert verify(export) == ["evidence: not a plain file"]


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("name", [UNDO, DELTA.format(id="nudge"), RECORD, LEDGER])
def test_json_nested_without_end_is_a_problem_and_no_crash(export: Path, name: str) -> None:
    path = export / name
    if path.suffix == ".safetensors":
        save_file({"a": torch.zeros(1)}, path, metadata={"safeedit": DEEP})
    else:
        path.write_text(DEEP)
    write_manifest(export)
    assert verify(export)


# Weights, originals, deltas -------------------------------------------------------------


def forge_weights(export: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
    """Other weights, with a record whose list of files agrees."""
    path = export / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({n: change(t) for n, t in load_file(path).items()}, path, metadata=metadata)
    content = record_of(export)
    content["export"]["files"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return content


def test_weights_set_to_one_are_not_those_of_the_record(export: Path) -> None:
    write_record(export, forge_weights(export, torch.ones_like))
    assert verify(export) == [
        f"{RECORD}: its weights_digest is not that of the tensors in the export"
    ]


def test_other_weights_with_their_digest_do_not_go_back_to_the_base(export: Path) -> None:
    content = forge_weights(export, torch.ones_like)
    tensors = load_file(export / "model.safetensors")
    content["export"]["weights_digest"] = digest_of(
        {name: tensor_digest(tensor) for name, tensor in tensors.items()}
    )
    write_record(export, content)
    assert any("not the model that the run started from" in line for line in verify(export))


def forge_originals(
    export: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    with safe_open(export / UNDO, framework="pt") as file:
        metadata = file.metadata()
    tensors = change(load_file(export / UNDO))
    save_file(tensors, export / UNDO, metadata=metadata)
    write_manifest(export)
    return tensors


def poisoned(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.full_like(tensor, 0.5) for name, tensor in tensors.items()}


def one_more(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    any_of_them = next(iter(tensors.values()))
    return {**tensors, "model.layers.2.mlp.down_proj.weight": torch.zeros_like(any_of_them)}


def one_less(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(sorted(tensors.items())[1:])


def none(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {}


def another_dtype(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.double() for name, tensor in tensors.items()}


@pytest.mark.parametrize("change", [poisoned, one_more, one_less, none, another_dtype])
def test_poisoned_originals_are_refused_by_verify_and_revert(
    export: Path, tmp_path: Path, change: Callable[..., dict[str, torch.Tensor]]
) -> None:
    forge_originals(export, change)
    assert all(line.startswith(f"{UNDO}:") for line in verify(export))
    assert verify(export)
    with pytest.raises(ExportError, match="does not match its evidence"):
        revert(export, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_poisoned_originals_whose_digests_are_in_the_record_do_not_make_the_base(
    export: Path, tmp_path: Path
) -> None:
    tensors = forge_originals(export, poisoned)
    content = record_of(export)
    content["export"]["originals"] = {n: tensor_digest(t) for n, t in sorted(tensors.items())}
    write_record(export, content)
    assert any("not the model that the run started from" in line for line in verify(export))
    with pytest.raises(ExportError):
        revert(export, tmp_path / "back")


def test_an_undo_that_undoes_nothing_is_refused(export: Path, tmp_path: Path) -> None:
    edited = load_file(export / "model.safetensors")
    forge_originals(export, lambda tensors: {name: edited[name] for name in tensors})
    with pytest.raises(ExportError, match="does not match its evidence"):
        revert(export, tmp_path / "back")


def test_the_base_is_the_records_word_not_that_of_the_file_of_originals(
    export: Path, made: Workplace, tmp_path: Path
) -> None:
    forge_originals(export, lambda tensors: tensors)
    header = {"format": "safeedit undo 1", "base": "0" * 64}
    tensors = load_file(export / UNDO)
    save_file(tensors, export / UNDO, metadata={"safeedit": json.dumps(header)})
    write_manifest(export)
    revert(export, tmp_path / "back")  # what the header says of a base counts for nothing
    base = open_model(str(made.folder / "model"), device="cpu").digest()
    assert open_model(str(tmp_path / "back"), device="cpu").digest() == base


def test_a_delta_of_other_tensors_than_the_record_names_is_found(export: Path) -> None:
    content = record_of(export)
    first, second = (DELTA.format(id=edit["id"]) for edit in content["edits"])
    shutil.copy(export / second, export / first)
    content["edits"][0]["delta_digest"] = WeightDelta.load(export / first).digest()
    write_record(export, content)
    assert verify(export) == [f"{first}: it changes other tensors than the run record says"]


# The record: every class of field -------------------------------------------------------


def at(content: dict[str, Any], *path: Any) -> tuple[Any, Any]:
    for part in path[:-1]:
        content = content[part]
    return content, path[-1]


def set_to(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        holder, key = at(content, *path)
        assert holder[key] != value
        holder[key] = value

    return change


def all_verdicts_fail(content: dict[str, Any]) -> None:
    for verdict in content["verdicts"]:
        verdict["status"] = "fail"


def all_metrics(content: dict[str, Any]) -> None:
    for audit in (*content["before"], *content["after"]):
        for metric in audit["metrics"]:
            metric["value"] = 0.125


def a_gate_less(content: dict[str, Any]) -> None:
    del content["verdicts"][1]


def no_audit(content: dict[str, Any]) -> None:
    content["after"] = content["after"][:1]


def a_laxer_gate(content: dict[str, Any]) -> None:
    content["policy"]["gates"][0]["max"] = 2.0e9
    content["verdicts"][0] |= {"bound": 2.0e9, "condition": "max 2e+09"}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (all_verdicts_fail, "is pass by the record's metrics, and the record says fail"),
        (set_to("status", value="fail"), "status: fail, where the verdicts make it pass"),
        (set_to("exit_code", value=1), "exit_code: 1, where the verdicts make it 0"),
        (set_to("verdicts", 0, "value", value=0.5), "verdicts: drift.distance"),
        (set_to("verdicts", 0, "reason", value="all is well"), "verdicts: drift.distance"),
        (a_gate_less, "verdicts: 1 for 2 gates"),
        (a_laxer_gate, "policy_digest: not that of the policy"),
        (all_metrics, "does not follow from its metrics"),
        (set_to("before", 0, "metrics", 0, "n", value=99), "does not follow from its metrics"),
        (set_to("comparisons", 0, "difference", value=0.5), "drift.distance does not follow"),
        (set_to("comparisons", 0, "p_value", value=0.5), "drift.distance does not follow"),
        (no_audit, "comparisons: not one for each metric"),
        (set_to("policy", "description", value="another"), "policy_digest: not that"),
        (set_to("policy_name", value="another"), "policy_name: not the policy's"),
        (set_to("owner", value="nobody"), "owner: not the policy's"),
        (set_to("ticket", value="T-2"), "ticket: not the policy's"),
        (set_to("seed", value=7), "seed: not the policy's"),
        (set_to("edits", 0, "use", value="rome"), "edits: not those of the policy"),
        (set_to("edits", 0, "delta_digest", value="0" * 64), "not the delta of the run record"),
        (set_to("edits", 0, "changes", 0, "name", value="lm_head.weight"), "it changes other"),
        (set_to("model", "digest", value="0" * 64), "not the model that the run started from"),
        (set_to("export", "weights_digest", value="0" * 64), "its weights_digest is not"),
        (set_to("export", "files", "config.json", value="0" * 64), "config.json: the manifest"),
        (set_to("export", "originals", value={}), "its originals are not those"),
        (set_to("export", "ledger", value=None), "not the ledger of the run record"),
        (set_to("export", value=None), "of a run that exported nothing"),
        (set_to("run_id", value="another"), "verdicts: 2 for 3 gates"),
        (set_to("started", value="2020-01-01T00:00:00+00:00"), "its rows of this run are not"),
    ],
)
def test_a_record_that_contradicts_itself_is_found_though_all_that_is_drawn_agrees(
    export: Path, change: Callable[[dict[str, Any]], None], problem: str
) -> None:
    content = record_of(export)
    change(content)
    write_record(export, content)
    assert problem in "\n".join(verify(export))


def test_a_rate_that_is_not_the_share_of_its_items_is_found(export: Path) -> None:
    content = record_of(export)
    rates = [
        metric
        for metric in content["after"][1]["metrics"]
        if metric["interval"] and metric["interval"]["method"].startswith("wilson")
        and metric["items"]
    ]  # fmt: skip
    assert rates
    rates[0]["value"] = 0.5
    write_record(export, content)
    assert f"after: {rates[0]['name']} is not the share of its items" in "\n".join(verify(export))


@pytest.mark.parametrize("name", RENDERED)
def test_a_rendering_that_the_record_is_not_drawn_as_is_found_and_hinders_no_revert(
    export: Path, tmp_path: Path, name: str
) -> None:
    text = (export / name).read_text()
    (export / name).write_text(text.replace("pass", "PASS", 1) + " ")
    write_manifest(export)
    assert verify(export) == [f"{name}: not what the run record is drawn as"]
    revert(export, tmp_path / "back")


def test_a_record_in_another_layout_was_not_written_by_safeedit(export: Path) -> None:
    (export / RECORD).write_text(json.dumps(record_of(export)))
    write_manifest(export)
    assert verify(export) == [f"{RECORD}: not written as safeedit writes a record"]


@pytest.mark.parametrize("policy", [{}, {"gates": 5}, {"gates": [[]]}, {"audits": {"a": 1}}])
def test_a_record_whose_policy_is_none_is_a_problem_and_no_crash(
    export: Path, policy: dict[str, Any]
) -> None:
    content = record_of(export)
    content["policy"] = policy
    write_record(export, content, draw=False)
    assert verify(export)


def test_what_another_version_drew_is_unsure_and_weights_are_checked_all_the_same(
    export: Path,
) -> None:
    content = record_of(export)
    content["environment"]["safeedit"] = "0.0.1"
    write_record(export, content)
    (export / "README.md").write_text("drawn by older code")
    write_manifest(export)
    found = check(export)
    assert found.problems == ()
    assert found.unsure == (
        "README.md: not what the run record is drawn as; but the export is by safeedit 0.0.1, "
        f"this is {__version__}",
    )
    content = forge_weights(export, torch.ones_like)
    write_record(export, content)
    assert check(export).problems


def test_the_ledger_is_the_one_of_the_record(export: Path) -> None:
    header, row, *rest = (export / LEDGER).read_text().splitlines(keepends=True)
    entry = json.loads(row) | {"ticket": "T-0"}
    (export / LEDGER).write_text("".join([header, json.dumps(entry) + "\n", *rest]))
    write_manifest(export)
    assert verify(export) == [f"{LEDGER}: not the ledger of the run record"]


def test_verify_exits_by_what_it_found(made: Workplace, export: Path) -> None:
    assert made.run("verify", export).exit_code == 0
    content = record_of(export)
    content["environment"]["safeedit"] = "0.0.1"
    write_record(export, content)
    (export / "README.md").write_text("drawn by older code")
    write_manifest(export)
    assert made.run("verify", export).exit_code == 4
    (export / "config.json").write_text("{}")
    assert made.run("verify", export).exit_code == 1


def test_without_renderings_the_rest_is_checked(export: Path) -> None:
    (export / "README.md").write_text("another")
    write_manifest(export)
    assert check_export(export).problems == ()
    assert check_export(export, render_evidence).problems


def test_the_policys_digest_is_that_of_its_meaning(made: Workplace) -> None:
    """The record's policy is the one its digest was made of, as JSON."""
    record = RunRecord.model_validate_json((made.target / RECORD).read_text())
    assert record.policy_digest == policy_digest(Policy.model_validate(record.policy))
