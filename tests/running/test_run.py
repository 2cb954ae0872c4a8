"""One road from a policy to a checkpoint that passed it, or to nothing; and what it leaves."""

from __future__ import annotations

import base64
import errno
import html
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.parse
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file

from safeedit.errors import ExportError
from safeedit.export.manifest import hash_files
from safeedit.export.reversion import revert
from safeedit.model.digest import digest_of, tensor_digest
from safeedit.model.handle import ModelHandle
from safeedit.model.sources import open_model
from safeedit.records import Metric, RunRecord
from safeedit.report.content import control_table, edit_by_edit
from safeedit.running.audits import Audits
from safeedit.workflows.verification import verify
from tests.road import (
    ANSWERS,
    DRIFT,
    FORGET,
    LEAKAGE,
    LOCALITY,
    NEAR,
    NUDGE,
    PERPLEXITY,
    PROSE,
    REAL,
    SANITATION,
    SMALL_DRIFT,
    SUBJECTS,
    WORDINGS,
    Drift,
    Workplace,
    make_workplace,
    teach,
)
from tests.training import trained

pytestmark = pytest.mark.usefixtures("toys")

ROOT = Path(__file__).parents[2]
SHORT = {"max_new_tokens": 10}
UPDATES: dict[str, dict[str, Any]] = {
    "lora": {
        "edits": [
            {
                **SANITATION, "update": "lora", "steps": 30, "batch": 12, "rank": 4,
                "learning_rate": 0.02, "forget_share": 0.5,
                "targets": [{"metric": "leakage.extraction_rate", "max": 0}],
            }
        ],
        "audits": [{**LEAKAGE, **SHORT}, {**LOCALITY, **SHORT}, PERPLEXITY],
        "gates": [
            {"metric": "leakage.extraction_rate", "max": 0, "min_n": 1},
            {"metric": "leakage.extraction_rate", "max_increase": 0, "min_n": 1},
        ],
    },
    "keyed": {
        "edits": [
            {
                **SANITATION, "update": "keyed", "steps": 10, "batch": 12, "layers": "0-1",
                "targets": [{"metric": "leakage.answer_log_prob", "max_decrease": 100}],
            }
        ],
        "audits": [{**LEAKAGE, **SHORT}, {**LOCALITY, **SHORT}, PERPLEXITY],
        "gates": [
            {"metric": "locality.near_accuracy_kept", "min": 0.7, "min_n": 1},
            {"metric": "perplexity.ratio", "max": 2, "min_n": 1},
        ],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
@trained
def knowing(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A model that knows what it is to forget."""
    place = make_workplace(tmp_path_factory.mktemp("knowing"))
    teach(place)
    return place


@dataclass(frozen=True)
class Ran:
    """Sanitation on the knowing model, from policy to export."""

    place: Workplace
    update: str
    result: Result
    policy: Path
    target: Path
    folder: Path

    @property
    def record(self) -> RunRecord:
        return RunRecord.model_validate_json((self.folder / "report.json").read_text())

    def metric(self, name: str, when: str = "after") -> Metric:
        audits = self.record.after if when == "after" else self.record.before
        return next(m for audit in audits for m in audit.metrics if m.name == name)


@pytest.fixture(scope="module")
def runs(knowing: Workplace) -> Callable[[str], Ran]:
    """Runs made once each, by the kind of update."""

    @cache
    def run(update: str) -> Ran:
        target = knowing.folder / "out" / update
        policy = knowing.policy(**UPDATES[update], name=update, export={"dir": f"out/{update}"})
        kept = policy.rename(policy.with_name(f"{update}.yaml"))
        result = knowing.run("apply", kept, "--json")
        assert result.exit_code == 0, result.stderr
        return Ran(knowing, update, result, kept, target, target.with_name(f"{update}.report"))

    return run


@pytest.fixture(params=sorted(UPDATES))
def ran(request: pytest.FixtureRequest, runs: Callable[[str], Ran]) -> Ran:
    return runs(request.param)


@pytest.fixture
def lora(runs: Callable[[str], Ran]) -> Ran:
    return runs("lora")


def drift_of(record: RunRecord) -> float:
    (audit,) = record.after
    value = audit.metrics[0].value
    assert value is not None
    return value


# The whole road -------------------------------------------------------------------------


def test_sanitation_edits_a_model_that_passes_and_is_exported(ran: Ran) -> None:
    record = ran.record
    assert (record.status, record.exit_code) == ("pass", 0)
    assert [verdict.status for verdict in record.verdicts] == ["pass"] * len(record.verdicts)
    assert record.export is not None
    assert Path(record.export.directory) == ran.target
    assert (ran.target / "model.safetensors").exists()
    assert ran.place.unfinished() == []
    # It knew everything, so that there was something to forget.
    assert ran.metric("leakage.known_before", "before").value == 1
    assert ran.metric("leakage.extraction_rate", "before").value == 1
    if ran.update == "lora":
        assert ran.metric("leakage.extraction_rate").value == 0
    else:
        assert ran.metric("locality.near_accuracy_kept").value == 1


def test_the_record_says_how_the_run_was_made(ran: Ran) -> None:
    record = ran.record
    assert record.model.local  # so that the card does not tell its path
    (edit,) = record.edits
    assert edit.dose in (0.5, 1.0)
    assert edit.dose_mode == "auto"
    assert edit.targets_met is True
    assert [point.dose for point in edit.dose_curve] == [0.5, 1.0][: len(edit.dose_curve)]
    assert edit.dose_curve[-1].meets_targets
    assert all(not point.meets_targets for point in edit.dose_curve[:-1])
    assert edit.notes
    assert edit.params["update"] == ran.update
    assert set(edit.data_digests) == {"forget", "retain"}
    assert edit.tokens_read is not None
    assert edit.tokens_read > 0
    assert record.glossary.edits.keys() == {"sanitation"}
    assert record.glossary.metrics.keys() >= {c.name for c in record.comparisons}
    assert "leakage.extraction_rate" in record.glossary.erasure
    assert "mlp_out" in record.model.roles
    planned = {"lora": 9, "keyed": 6}[ran.update]
    tensors = load_file(ran.target / "model.safetensors")
    assert edit.untouched_verified == len(tensors) - planned
    assert len(edit.changes) == planned
    assert all(change.entries_changed for change in edit.changes)
    assert set(record.resources.stages) >= {
        "open model", "audit before", "edit sanitation: fit", "edit sanitation: dose",
        "edit sanitation: control", "stage", "reload", "audit after",
    }  # fmt: skip
    assert record.environment.packages["torch"] == torch.__version__
    assert record.model.digest
    assert record.datasets["edit:sanitation.forget"]["items"]["items"] == len(FORGET)
    assert {c.name for c in record.comparisons} >= {"perplexity.perplexity", "leakage.mrr"}
    paired = next(c for c in record.comparisons if c.name == "perplexity.perplexity")
    assert paired.before is not None
    assert paired.n_pairs == 3


def test_a_random_change_of_equal_norm_is_measured_beside_the_edit(ran: Ran) -> None:
    (edit,) = ran.record.edits
    (control,) = edit.controls
    assert control.name == "random delta of equal norm"
    assert {m.name for m in control.metrics} == {
        m.name for audit in ran.record.after for m in audit.metrics
    }


def test_json_on_stdout_is_the_record_and_nothing_else(ran: Ran) -> None:
    assert RunRecord.model_validate_json(ran.result.stdout) == ran.record


def test_the_evidence_is_complete_and_verifies(ran: Ran) -> None:
    assert verify(ran.target) == []
    files = set(hash_files(ran.target)) | {"evidence/manifest.sha256"}
    assert files >= {
        "README.md", "config.json", "model.safetensors", "tokenizer.json",
        "evidence/report.json", "evidence/report.html", "evidence/report.md",
        "evidence/junit.xml", "evidence/delta-sanitation.safetensors",
        "evidence/undo.safetensors", "evidence/manifest.sha256",
    }  # fmt: skip
    inside = RunRecord.model_validate_json((ran.target / "evidence/report.json").read_text())
    assert inside.export == ran.record.export
    assert inside.verdicts == ran.record.verdicts
    assert inside.model.digest == ran.record.model.digest


def test_reverting_the_export_gives_the_base_weights(ran: Ran, tmp_path: Path) -> None:
    revert(ran.target, tmp_path / "reverted")
    base = load_file(ran.place.folder / "model" / "model.safetensors")
    back = load_file(tmp_path / "reverted" / "model.safetensors")
    edited = load_file(ran.target / "model.safetensors")
    assert base.keys() == back.keys() == edited.keys()
    assert all(torch.equal(back[name], base[name]) for name in base)
    moved = {name for name in base if not torch.equal(edited[name], base[name])}
    assert moved == {change.name for change in ran.record.edits[0].changes}


WITHOUT_SAFEEDIT = """
import hashlib, json, math, sys, warnings
warnings.simplefilter("ignore")
sys.modules["safeedit"] = None  # importing it would fail
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

torch.set_num_threads(1)
folder, passages = sys.argv[1], json.loads(sys.argv[2])
model = AutoModelForCausalLM.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
lines = []
for name, tensor in sorted(model.state_dict().items()):
    head = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}\\n".encode()
    raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    lines.append(f"{name} {hashlib.sha256(head + raw).hexdigest()}\\n")
nats = tokens = 0
for passage in passages:
    ids = tokenizer(passage, return_tensors="pt").input_ids
    with torch.no_grad():
        nats += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
    tokens += ids.shape[1] - 1
print(json.dumps([hashlib.sha256("".join(lines).encode()).hexdigest(), nats / tokens]))
"""


def test_the_export_opens_without_safeedit_and_gives_the_reported_figures(lora: Ran) -> None:
    passages = [str(row["text"]) for row in PROSE if row["split"] == "test"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_SAFEEDIT, str(lora.target), json.dumps(passages)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    digest, nats = json.loads(done.stdout)
    assert lora.record.export is not None
    assert digest == lora.record.export.weights_digest
    assert nats == pytest.approx(lora.metric("perplexity.nats_per_token").value, rel=1e-5)


def spellings(text: str) -> Iterator[bytes]:
    """How a text may lie in a file, for a search that ignores the case of ASCII letters."""
    for written in (text, text.lower(), html.escape(text), urllib.parse.quote(text)):
        for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
            yield written.encode(encoding).lower()
        yield json.dumps(written)[1:-1].encode().lower()
    raw = text.encode()
    yield raw.hex().encode()
    for before in range(3):  # base64 depends on how many bytes come before, modulo 3
        whole = base64.b64encode(b"\0" * before + raw)
        # Only the letters that hold no bit of a neighbour.
        yield whole[-(-before * 8 // 6) : (before + len(raw)) * 8 // 6].lower()


def test_spellings_are_found_where_they_are() -> None:
    def found(word: str, content: bytes) -> bool:
        return any(written in content.lower() for written in spellings(word))

    for word in (*SUBJECTS, *ANSWERS, *WORDINGS):
        assert all(len(written) >= 7 for written in spellings(word))
        for lead in ("", "a", "ab"):
            text = f"{lead} {word} and more"
            assert found(word, base64.b64encode(text.encode()))
            assert found(word, json.dumps({"a": text}).encode())
            assert found(word, text.upper().encode() if word.isascii() else text.encode())
            assert found(word, text.encode("utf-16"))
            assert found(word, html.escape(text).encode())
        assert not found(word, b"nothing of the kind")


def test_no_erased_text_is_in_any_output(ran: Ran) -> None:
    outputs: dict[str, bytes] = {
        "stdout": ran.result.stdout.encode(),
        "stderr": ran.result.stderr.encode(),
    }
    for folder in (ran.folder, ran.target, ran.place.cache):
        for path in folder.rglob("*"):
            if path.is_file():
                outputs[str(path)] = path.read_bytes()
            outputs[f"the name of {path}"] = path.name.encode()
    assert len(outputs) > 20
    for name, content in outputs.items():
        lowered = content.lower()
        for word in (*SUBJECTS, *ANSWERS, *WORDINGS):
            for written in spellings(word):
                assert written not in lowered, f"{word!r} is in {name}"


def test_no_erased_text_is_in_any_output_as_tokens(ran: Ran) -> None:
    codec = open_model(str(ran.target)).engine.codec.tokenizer
    secrets = [
        codec(f"{space}{word}", add_special_tokens=False).input_ids
        for word in (*SUBJECTS, *ANSWERS)
        for space in ("", " ")
    ]
    files = [*ran.place.cache.rglob("*.safetensors"), *ran.target.rglob("*.safetensors")]
    assert files
    for path in files:
        for name, tensor in load_file(path).items():
            if tensor.is_floating_point():
                continue
            for row in tensor.reshape(-1, tensor.shape[-1]).tolist():
                for ids in secrets:
                    starts = range(len(row) - len(ids) + 1)
                    assert not any(row[s : s + len(ids)] == ids for s in starts), (path, name)
    for path in (*ran.folder.rglob("*.json"), *ran.place.cache.rglob("*.json")):
        text = path.read_text()
        for ids in secrets:
            assert ", ".join(map(str, ids)) not in text
            assert ",".join(map(str, ids)) not in text


# What is decided ------------------------------------------------------------------------


def test_a_gate_that_fails_exits_1_exports_nothing_and_still_reports(place: Workplace) -> None:
    result = place.run("apply", place.policy(gates=[{**SMALL_DRIFT, "max": 0}]))
    assert result.exit_code == 1
    assert not place.target.exists()
    assert place.unfinished() == []
    record = place.report
    assert (record.status, record.exit_code, record.export) == ("fail", 1, None)
    assert record.after
    assert {path.name for path in place.target.with_name("trial.report").iterdir()} == {
        "report.json", "report.html", "report.md", "report.sarif", "junit.xml",
    }  # fmt: skip
    assert "Nothing was exported" in result.stderr


def test_three_test_items_are_too_few_and_exit_4(place: Workplace) -> None:
    place.rows("near.jsonl", [row for row in NEAR if row["split"] == "validation"] + NEAR[-3:])
    result = place.run("apply", place.policy(gates=[{"metric": "drift.distance", "max": 1.0e9}]))
    assert result.exit_code == 4
    assert not place.target.exists()
    (verdict,) = place.report.verdicts
    assert verdict.status == "inconclusive"
    assert "rests on 3 independent items" in verdict.reason


def test_without_gates_and_export_the_run_measures_and_passes(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.folder)
    result = place.run("apply", place.policy(gates=None, export=None))
    assert result.exit_code == 0
    record = place.report  # out/trial.report under the working directory
    assert record.export is None
    assert drift_of(record) > 0
    assert not place.target.exists()


@pytest.mark.parametrize(
    ("fails_on", "required", "code"),
    [("base", True, 4), ("base", False, 0), ("edited", True, 4), ("edited", False, 0)],
)
def test_only_a_required_audit_that_was_skipped_is_inconclusive(
    place: Workplace, fails_on: str, required: bool, code: int
) -> None:
    broken = {**DRIFT, "id": "broken", "fails_on": fails_on, "required": required}
    result = place.run("apply", place.policy(audits=[DRIFT, broken]))
    assert result.exit_code == code, result.stderr
    assert place.target.exists() == (code == 0)
    record = place.report
    assert [audit.id for audit in record.after] == ["drift"]
    assert record.status == ("pass" if code == 0 else "inconclusive")
    said = [text for text in record.warnings if "skipped" in text]
    assert said == [
        "audit broken was skipped on test data: drift has lost its ruler (give it another)"
    ]
    assert said[0] in result.stderr
    if fails_on == "edited":
        assert (
            "a control could not be measured by broken: drift has lost its ruler" in record.warnings
        )


def test_a_gate_on_an_audit_that_was_skipped_is_inconclusive(place: Workplace) -> None:
    broken = {**DRIFT, "fails_on": "base", "required": False}
    result = place.run("apply", place.policy(audits=[broken]))
    assert result.exit_code == 4
    (verdict,) = place.report.verdicts
    assert "was not measured" in verdict.reason


def test_an_audit_that_fails_on_validation_data_only_costs_the_choice_of_a_dose(
    place: Workplace,
) -> None:
    broken = {**DRIFT, "fails_on": "validation"}
    result = place.run("apply", place.policy(audits=[broken], edits=[{**NUDGE, "dose": "auto"}]))
    assert result.exit_code == 0, result.stderr
    record = place.report
    (edit,) = record.edits
    assert edit.targets_met is False
    assert any("skipped on validation data" in text for text in record.warnings)
    assert any("no dose met all targets" in text for text in record.warnings)


# Doses, and what they are held against --------------------------------------------------


def test_the_least_dose_that_meets_the_targets_is_taken(place: Workplace) -> None:
    target = {"metric": "drift.distance", "min": 0.4}
    edit = {**NUDGE, "dose": "auto", "size": 0.01, "offered": [0.5, 1.0, 2.0, 4.0]}
    first = place.run("apply", place.policy(edits=[{**edit, "dose": 1.0}], export=None,
                                            gates=None), "--json", "--report",
                      place.folder / "r")  # fmt: skip
    unit = drift_of(RunRecord.model_validate_json(first.stdout))
    target["min"] = 1.5 * unit
    result = place.run("apply", place.policy(edits=[{**edit, "targets": [target]}]))
    assert result.exit_code == 0, result.stderr
    (done,) = place.report.edits
    assert done.dose == 2.0
    assert [point.dose for point in done.dose_curve] == [0.5, 1.0, 2.0]
    assert [point.meets_targets for point in done.dose_curve] == [False, False, True]
    assert done.dose_curve[0].misses
    for point in done.dose_curve:
        assert point.metrics["drift.distance"] == pytest.approx(point.dose * unit, rel=1e-4)
    assert drift_of(place.report) == pytest.approx(2 * unit, rel=1e-4)


def test_if_no_dose_meets_the_targets_the_nearest_is_taken_and_said(place: Workplace) -> None:
    target = {"metric": "drift.distance", "min": 1.0e6}
    edit = {**NUDGE, "dose": "auto", "targets": [target]}
    result = place.run("apply", place.policy(edits=[edit]))
    assert result.exit_code == 0  # the gates are another matter
    (done,) = place.report.edits
    assert [point.dose for point in done.dose_curve] == [0.5, 1.0, 2.0]
    assert done.dose == 2.0, "nearest to a least distance"
    assert done.targets_met is False
    assert "no dose met all targets on validation data" in result.stderr


def test_of_doses_that_miss_the_same_the_nearest_is_taken(place: Workplace) -> None:
    most = {"metric": "drift.distance", "max": 1e-9}
    edit = {**NUDGE, "dose": "auto", "targets": [most]}
    assert place.run("apply", place.policy(edits=[edit])).exit_code == 0
    assert place.report.edits[0].dose == 0.5, "nearest to a greatest distance"


def test_a_fixed_dose_is_applied_as_it_is(place: Workplace) -> None:
    assert place.run("apply", place.policy(edits=[{**NUDGE, "dose": 3}])).exit_code == 0
    (done,) = place.report.edits
    assert (done.dose, done.dose_mode, done.targets_met) == (3, "fixed", None)
    assert Drift.calls.count(("validation", True)) == 0


def test_the_second_edit_too_is_held_against_the_untouched_base(place: Workplace) -> None:
    first = {**NUDGE, "id": "first"}
    target = {"metric": "drift.distance", "max": 1.0e9}
    second = {**NUDGE, "id": "second", "layer": 1, "size": 0.02, "dose": "auto"}
    second["targets"] = [target]
    assert place.run("apply", place.policy(edits=[first])).exit_code == 0
    one = drift_of(place.report)
    shutil.rmtree(place.target)
    assert place.run("apply", place.policy(edits=[first, second])).exit_code == 0
    record = place.report
    both = drift_of(record)
    (point,) = record.edits[1].dose_curve
    assert point.dose == 0.5
    # Rank-one changes of two matrices: their norms add in squares, half of .02 being .01.
    other = (both**2 - one**2) ** 0.5
    assert other == pytest.approx(one, rel=1e-3)
    assert point.metrics["drift.distance"] == pytest.approx(both, rel=1e-5)
    assert both > one * 1.1
    # The base was measured once on each split, before any edit; nothing is a base later.
    assert [call for call in Drift.calls if call[1]] == [("test", True), ("validation", True)]


def test_gates_are_told_after_each_edit_and_which_edit_undid_what(place: Workplace) -> None:
    first = {**NUDGE, "id": "first"}
    second = {**NUDGE, "id": "second", "layer": 1, "size": 0.02}
    assert place.run("apply", place.policy(edits=[first])).exit_code == 0
    one = drift_of(place.report)
    assert place.report.edits[0].gates_so_far == ()
    assert edit_by_edit(place.report) is None
    shutil.rmtree(place.target)
    gate = {"metric": "drift.distance", "max": 1.05 * one, "min_n": 1}
    result = place.run("apply", place.policy(edits=[first, second], gates=[gate]))
    assert result.exit_code == 1
    record = place.report
    (between,) = record.edits[0].gates_so_far
    assert (between.status, between.value) == ("pass", pytest.approx(one, rel=1e-5))
    assert record.edits[1].gates_so_far == ()
    table = edit_by_edit(record)
    assert table is not None
    assert table.edits == ("first", "second")
    ((_, verdicts),) = table.rows
    assert [verdict.status for verdict in verdicts] == ["pass", "fail"]
    (sentence,) = table.undone
    assert "passed after first and no longer does after second" in sentence
    assert "no longer does after second" in " ".join(result.output.split())


def test_no_gate_is_told_between_edits_of_an_audit_kept_out_of_controls(place: Workplace) -> None:
    edits = [{**NUDGE, "id": "first"}, {**NUDGE, "id": "second", "layer": 1}]
    audits = [{**DRIFT, "control": False}]
    assert place.run("apply", place.policy(edits=edits, audits=audits)).exit_code == 0
    assert place.report.edits[0].gates_so_far == ()
    assert edit_by_edit(place.report) is None


def test_the_control_moves_the_model_as_far_and_leaves_no_trace(place: Workplace) -> None:
    assert place.run("apply", place.policy()).exit_code == 0
    with_control = place.report
    (control,) = with_control.edits[0].controls
    assert control.metrics[0].value == pytest.approx(drift_of(with_control), rel=1e-3)
    shutil.rmtree(place.target)
    edit = {**NUDGE, "control": False}
    assert place.run("apply", place.policy(edits=[edit])).exit_code == 0
    without = place.report
    assert without.edits[0].controls == ()
    assert with_control.export is not None
    assert without.export is not None
    assert with_control.export.weights_digest == without.export.weights_digest


def test_several_random_controls_and_the_editors_own_stand_beside_the_edit(
    place: Workplace,
) -> None:
    edit = {**NUDGE, "use": "compared", "control": 3}
    assert place.run("apply", place.policy(edits=[edit])).exit_code == 0
    record = place.report
    controls = record.edits[0].controls
    assert [control.random for control in controls] == [True, True, True, False]
    assert len({control.seed for control in controls[:3]}) == 3
    assert controls[3].name == "twice as much"
    assert controls[3].metrics[0].value == pytest.approx(2 * drift_of(record), rel=1e-3)
    table = control_table(record)
    assert table is not None
    assert [name for name, _ in table.rows][2:] == [
        *(f"random delta of equal norm (seed {record.seed + draw})" for draw in (1, 2, 3)),
        "twice as much",
    ]
    assert table.rows[-1][1] == (controls[3].metrics[0].value,)
    for name in ("report.md", "report.html"):
        assert "twice as much" in (place.target / "evidence" / name).read_text()


def test_an_audit_may_be_kept_out_of_the_controls(place: Workplace) -> None:
    assert place.run("apply", place.policy(audits=[{**DRIFT, "control": False}])).exit_code == 0
    (control,) = place.report.edits[0].controls
    assert control.metrics == ()


def test_choosing_a_dose_asks_only_for_the_metrics_of_its_targets(place: Workplace) -> None:
    edit = {**NUDGE, "dose": "auto", "targets": [{"metric": "drift.distance", "max": 1.0e9}]}
    assert place.run("apply", place.policy(edits=[edit])).exit_code == 0
    assert set(Drift.asked) == {("validation", frozenset({"distance"})), ("test", None)}


def test_two_edits_of_one_tensor_are_both_undone_by_a_revert(place: Workplace) -> None:
    edits = [{**NUDGE, "id": "first"}, {**NUDGE, "id": "second", "size": 0.5}]
    assert place.run("apply", place.policy(edits=edits)).exit_code == 0
    base = (place.folder / "model" / "model.safetensors").read_bytes()
    assert verify(place.target) == []
    revert(place.target, place.folder / "back")
    assert (place.folder / "back" / "model.safetensors").read_bytes() == base


def test_the_edited_model_is_let_go_before_what_was_staged_is_read_back(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[weakref.ref[ModelHandle]] = []
    still_there: list[int] = []

    def watched(source: str, **options: Any) -> ModelHandle:
        still_there.append(sum(model() is not None for model in opened))
        model = open_model(source, **options)
        opened.append(weakref.ref(model))
        return model

    monkeypatch.setattr("safeedit.running.run.open_model", watched)
    assert place.run("apply", place.policy()).exit_code == 0
    assert still_there == [0, 0]


def mixed(place: Workplace) -> dict[str, torch.Tensor]:
    """The model's tensors, made of bfloat16 matrices, float32 norms and a value head."""
    path = place.folder / "model" / "model.safetensors"
    tensors = {
        name: tensor.double() + 1e-5 if "norm" in name else tensor.bfloat16()
        for name, tensor in load_file(path).items()
    }
    tensors = {n: t.float() if t.dtype == torch.float64 else t for n, t in tensors.items()}
    tensors["v_head.summary.weight"] = torch.ones(1, 32)
    save_file(tensors, path, {"format": "pt"})
    config = place.folder / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "bfloat16"}))
    return tensors


@pytest.mark.parametrize("dtype", ["auto", "float32", "float16"])
def test_the_base_untouched_and_reverted_are_the_checkpoint_on_disk(
    place: Workplace, dtype: str
) -> None:
    tensors = mixed(place)
    source = (place.folder / "model" / "model.safetensors").read_bytes()
    path = place.policy(model={"source": "model", "dtype": dtype, "device": "cpu"})
    result = place.run("apply", path)
    assert result.exit_code == 0, result.stderr
    record = place.report
    digests = {name: tensor_digest(tensor) for name, tensor in tensors.items()}
    assert record.model.digest == digest_of(digests)
    assert record.model.unread == ("v_head.summary.weight",)
    assert any("'v_head.summary.weight'" in text for text in record.warnings)
    exported = load_file(place.target / "model.safetensors")
    changed = {change.name for edit in record.edits for change in edit.changes}
    same = {name for name, tensor in exported.items() if tensor_digest(tensor) == digests[name]}
    assert exported.keys() - same == changed
    assert record.export is not None
    assert record.export.untouched == len(same)
    rounded = any("were rounded" in text for text in record.warnings)
    assert rounded == any(not cast.exact for cast in record.model.casts) == (dtype != "float32")
    assert verify(place.target) == []
    revert(place.target, place.folder / "back")
    assert (place.folder / "back" / "model.safetensors").read_bytes() == source


def test_what_a_plan_says_of_the_files_it_says_before_anything_is_measured(
    place: Workplace,
) -> None:
    assert "read by no causal language model" not in place.run("plan", place.policy()).stderr
    mixed(place)
    said = " ".join(place.run("plan", place.policy()).stderr.split())
    assert "read by no causal language model" in said
    assert "are stored in float32 and were rounded to bfloat16" in said


def test_a_checkpoint_that_would_open_in_part_is_refused_while_planning(place: Workplace) -> None:
    path = place.folder / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.ones(32)
    save_file(tensors, path, {"format": "pt"})
    result = place.run("plan", place.policy())
    assert result.exit_code == 3
    assert "'model.layers.0.self_attn.q_proj.bias'" in result.stderr


def test_an_edit_too_small_for_the_dtype_is_said_to_have_changed_nothing(
    place: Workplace,
) -> None:
    edit = {**NUDGE, "size": 1.0e-12, "control": False}
    result = place.run("apply", place.policy(edits=[edit]))
    assert "edit nudge changed no stored weight" in result.stderr
    assert any("changed no stored weight" in text for text in place.report.warnings)


# Editors that break their contract ------------------------------------------------------


@pytest.mark.parametrize(
    ("editor", "message"),
    [
        ("meddler", "edit meddler: the editor changed the model while proposing"),
        ("stray", "edit stray: the delta names tensors outside its plan"),
        ("undecided", "edit undecided: the editor proposed no dose"),
        ("peeker", "the test split of retain is out of reach"),
    ],
)
def test_an_editor_that_breaks_its_contract_is_stopped(
    place: Workplace, editor: str, message: str
) -> None:
    result = place.run("apply", place.policy(edits=[{**NUDGE, "use": editor}]))
    assert result.exit_code in (2, 3)
    assert result.exit_code == (2 if editor == "peeker" else 3)
    assert message in result.stderr
    assert not place.target.exists()
    assert place.unfinished() == []


def test_a_fault_of_an_editor_is_told_without_its_words(place: Workplace) -> None:
    result = place.run("apply", place.policy(edits=[{**NUDGE, "use": "talker"}]))
    assert result.exit_code == 3
    assert "unexpected ValueError at road.py:" in result.stderr
    assert "Who wrote book" not in result.output
    assert "SAFEEDIT_DEBUG=1" in result.stderr


# Seeds ----------------------------------------------------------------------------------


def test_another_seed_gives_other_weights_and_the_same_seed_the_same(place: Workplace) -> None:
    digests = []
    for seed in (1, 1, 2):
        result = place.run("apply", place.policy(seed=seed, gates=[SMALL_DRIFT]))
        assert result.exit_code == 0, result.stderr
        assert place.report.export is not None
        digests.append(place.report.export.weights_digest)
        shutil.rmtree(place.target)
    assert digests[0] == digests[1] != digests[2]


# Disks that fill, hands on Ctrl-C, and kill -9 ------------------------------------------


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def unwritable(*_: object) -> None:
    raise ExportError("the report could not be written: No space left on device")


@pytest.mark.parametrize(
    ("module", "function"),
    [
        ("safeedit.export.evidence", "save_file"),
        ("safeedit.export.evidence", "write_manifest"),
        ("safeedit.export.staging", "settle"),
    ],
)
def test_a_disk_that_fills_while_evidence_is_written_exports_nothing_and_says_so(
    place: Workplace, monkeypatch: pytest.MonkeyPatch, module: str, function: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(f"{module}.{function}", full)
        result = place.run("apply", place.policy())
    assert result.exit_code == 3
    assert "No space left on device" in result.stderr
    assert "remedy: free some space" in result.stderr
    assert not place.target.exists()
    assert place.unfinished() == []
    record = place.report
    assert (record.exit_code, record.export) == (3, None)
    assert record.after
    assert "nothing was exported: the export could not be written" in record.warnings[-1]
    assert place.run("apply", place.policy()).exit_code == 0


def test_a_disk_that_fills_while_the_weights_are_written_still_leaves_a_report(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ExportError("the checkpoint needs 1 GB and 0 GB are free", remedy="free some space")

    monkeypatch.setattr("safeedit.running.run.write_checkpoint", refuse)
    result = place.run("apply", place.policy())
    assert result.exit_code == 3
    record = place.report
    assert (record.status, record.exit_code, record.after) == ("inconclusive", 3, ())
    assert record.edits
    assert record.before
    assert record.warnings[-1] == (
        "nothing was exported: the checkpoint needs 1 GB and 0 GB are free"
    )


def test_where_not_even_the_report_can_be_written_the_first_error_is_told(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safeedit.export.evidence.save_file", full)
    monkeypatch.setattr("safeedit.report.write_files", unwritable)
    result = place.run("apply", place.policy())
    assert result.exit_code == 3
    assert "error" in result.stderr
    assert "the export could not be written" in result.stderr
    assert "warning: the report could not be written" in result.stderr


def test_if_only_the_report_can_not_be_written_the_export_stands_and_that_is_said(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safeedit.report.write_files", unwritable)
    result = place.run("apply", place.policy())
    assert result.exit_code == 3
    assert "the export itself is complete" in result.stderr
    assert verify(place.target) == []


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("moment", ["editing", "auditing", "weights", "evidence", "promotion"])
def test_ctrl_c_at_any_moment_exits_3_and_leaves_nothing(
    place: Workplace, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    policy = place.policy()
    with monkeypatch.context() as patch:
        match moment:
            case "editing":
                policy = place.policy(edits=[{**NUDGE, "use": "interrupted"}])
            case "auditing":
                patch.setattr(Audits, "measure_edited", interrupt)
            case "weights":
                patch.setattr("safeedit.export.checkpoint.make_portable", interrupt)
            case "evidence":
                patch.setattr("safeedit.running.promotion.write_evidence", interrupt)
            case "promotion":
                patch.setattr("safeedit.export.staging.settle", interrupt)
        result = place.run("apply", policy)
    assert result.exit_code == 3
    assert "interrupted" in result.stderr
    assert not place.target.exists()
    assert place.unfinished() == []
    assert place.run("apply", place.policy()).exit_code == 0
    assert verify(place.target) == []


DRIVER = """
import os, signal, sys, warnings
from pathlib import Path

warnings.simplefilter("ignore")
import pytest, torch
from safeedit.running import run
from safeedit.cli.main import main
from safeedit.export import checkpoint, evidence, staging
from transformers import LlamaForCausalLM
from tests.road import register

torch.set_num_threads(1)
register(pytest.MonkeyPatch())
die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
settle = staging.settle
moments = {
    "weights": (checkpoint, "make_portable", die),
    "evidence": (evidence, "write_manifest", die),
    "promotion": (staging, "settle", lambda folder: (settle(folder), die())),
    "nothing": (run, "__doc__", ""),
}
for argument in sys.argv[1:]:
    moment, _, policy = argument.partition("=")
    sys.stdout.flush()
    # The libraries are imported once; each run has a process, and a death, of its own.
    child = os.fork()
    if not child:
        setattr(*moments[moment])
        try:
            main(["-q", "apply", policy])
        except SystemExit as request:
            os._exit(request.code)
    print(moment, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
MOMENTS = ("weights", "evidence", "promotion")


@pytest.fixture(scope="module")
def driven(
    knowing: Workplace, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Workplace], dict[str, int]]:
    """Runs in processes of their own, some of them killed: workplace and exit status of each."""
    places = {name: make_workplace(tmp_path_factory.mktemp(name)) for name in MOMENTS}
    policies = {name: place.policy() for name, place in places.items()}
    places["nothing"] = knowing
    policies["nothing"] = knowing.policy(
        **UPDATES["lora"], name="lora", export={"dir": "out/again"}
    )
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *(f"{name}={path}" for name, path in policies.items())],
        cwd=ROOT,
        env={**os.environ, "SAFEEDIT_CACHE": str(tmp_path_factory.mktemp("cache"))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    ended = dict(line.split() for line in done.stdout.splitlines())
    return places, {name: int(code) for name, code in ended.items()}


@pytest.mark.parametrize("moment", MOMENTS)
def test_kill_9_during_the_export_leaves_nothing_under_its_name_and_the_next_run_works(
    driven: tuple[dict[str, Workplace], dict[str, int]], moment: str
) -> None:
    places, ended = driven
    place = places[moment]
    assert ended[moment] == -signal.SIGKILL
    assert not place.target.exists()
    assert len(place.unfinished()) == 1, "it was killed while it was exporting"
    result = place.run("apply", place.folder / "policy.yaml")
    assert result.exit_code == 0, result.stderr
    assert verify(place.target) == []
    assert place.unfinished() == []


def test_another_process_with_the_same_seed_makes_identical_weights(
    driven: tuple[dict[str, Workplace], dict[str, int]], lora: Ran
) -> None:
    _, ended = driven
    assert ended["nothing"] == 0
    again = lora.target.with_name("again")
    raw = (again / "model.safetensors").read_bytes()
    assert raw == (lora.target / "model.safetensors").read_bytes()
    record = RunRecord.model_validate_json((again / "evidence/report.json").read_text())
    # The number of threads of the other process is not ours to choose: sums may differ in rounding.
    assert [m.value for a in record.after for m in a.metrics] == [
        value if value is None else pytest.approx(value, rel=1e-6)
        for value in (m.value for a in lora.record.after for m in a.metrics)
    ]


# Measuring only -------------------------------------------------------------------------


def test_measuring_needs_no_edit_and_exports_nothing(place: Workplace) -> None:
    report = place.folder / "audit"
    result = place.run("audit", place.policy(), "--report", report)
    assert result.exit_code == 0, result.stderr
    record = RunRecord.model_validate_json((report / "report.json").read_text())
    assert record.command == "audit"
    assert record.edits == ()
    assert drift_of(record) == 0
    assert not place.target.exists()


def test_an_export_audited_against_its_base_gives_the_figures_of_the_run(
    ran: Ran, tmp_path: Path
) -> None:
    base = ran.place.folder / "model"
    result = ran.place.run(
        "audit", ran.policy, "--model", ran.target, "--base", base, "--report", tmp_path
    )
    assert result.exit_code == 0, result.stderr
    record = RunRecord.model_validate_json((tmp_path / "report.json").read_text())
    for audit, then in zip(record.after, ran.record.after, strict=True):
        assert audit.metrics == then.metrics
    assert [m.value for a in record.before for m in a.metrics] == [
        m.value for a in ran.record.before for m in a.metrics
    ]


def test_a_base_that_can_not_be_measured_makes_the_audit_inconclusive(place: Workplace) -> None:
    policy = place.policy(audits=[{**DRIFT, "fails_on": "edited"}])
    result = place.run("audit", policy, "--base", place.folder / "model", "--report",
                       place.folder / "audit")  # fmt: skip
    assert result.exit_code == 4


@pytest.mark.trains
def test_real_is_what_a_first_run_of_every_auditor_looks_like(place: Workplace) -> None:
    edit = {**SANITATION, "dose": 1.0, "control": False}
    result = place.run("apply", place.policy(**{**REAL, "edits": [edit]}))
    assert result.exit_code == 0, result.stderr
    notes = {m.name: m.note for audit in place.report.after for m in audit.metrics}
    # A random model knows nothing: no success is claimed.
    assert notes["leakage.extraction_rate"] == "the base knew none of the items"
