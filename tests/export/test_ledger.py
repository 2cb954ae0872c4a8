"""The ledger: what is kept of erasures, and what the next policy makes of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from click.testing import Result
from jsonschema import Draft202012Validator
from safetensors.torch import load_file

from safeedit.contracts import (
    BaseParams,
    DataRole,
    EditData,
    LayerShape,
    Proposal,
    RunContext,
    TensorPlan,
)
from safeedit.data import Item
from safeedit.delta import Dense, Origin, Update, WeightDelta
from safeedit.errors import DataError, UsageError
from safeedit.export.ledger.file import LEDGER, Entry, Ledger, find_ledger, read_ledger, render
from safeedit.export.ledger.keys import LedgerKey, make_key, read_key
from safeedit.export.ledger.requests import coverage, read_requests
from safeedit.export.manifest import write_manifest
from safeedit.export.reversion import revert
from safeedit.model.handle import ModelHandle
from safeedit.model.sources import open_model
from safeedit.policy import DataSpec, KeySpec, json_schema
from safeedit.records import RunRecord
from safeedit.workflows.verification import verify
from tests import road
from tests.road import (
    ANSWERS,
    DRIFT,
    FORGET,
    NUDGE,
    SMALL_DRIFT,
    SUBJECTS,
    WORDINGS,
    Workplace,
    make_workplace,
    register,
    teach,
)
from tests.running.test_run import spellings
from tests.training import trained

KEY = "0123456789abcdef" * 4
OTHER_KEY = "fedcba9876543210" * 4
TICKETS = ("DSR-1", "DSR-1", "DSR-2", "DSR-3")
REQUESTS = [{**row, "ticket": ticket} for row, ticket in zip(FORGET, TICKETS, strict=True)]
ASKING = {"use": "leakage", "askings": [], "max_new_tokens": 12}
LEDGER_PART: dict[str, Any] = {
    "key": {"file": "ledger.key"},
    "requests": {"file": "requests.jsonl"},
    "audit": ASKING,
}


# Toys -----------------------------------------------------------------------------------


class RewriteParams(BaseParams):
    original: str = ""
    """Folder of the weights to go back to; without it the matrices are emptied."""


class Rewrite:
    """Empties every MLP, which forgets everything, or puts back what was there before."""

    Params: ClassVar[type[BaseParams]] = RewriteParams
    summary: ClassVar[str] = "empties matrices or fills them again"
    roles: ClassVar[tuple[DataRole, ...]] = (
        DataRole("forget", "what is erased", required=False, erased=True),
        DataRole("retain", "what is kept", required=False),
    )

    def __init__(self, params: Any) -> None:
        self.params: RewriteParams = params

    def touches(self, model: LayerShape) -> Sequence[TensorPlan]:
        return (*model.tensors("mlp_out"), *model.tensors("attn_out"))

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        wanted: Mapping[str, torch.Tensor] = {}
        if self.params.original:
            wanted = load_file(Path(self.params.original) / "model.safetensors")
        base = model.digest()
        now = {t.name: model.stored(t.name).float() for t in self.touches(model.shape)}
        updates: dict[str, Update] = {
            name: Dense(wanted.get(name, torch.zeros_like(weight)).float() - weight)
            for name, weight in now.items()
        }
        delta = WeightDelta(base, updates, Origin(editor="rewrite"))
        return Proposal((1.0,), lambda dose: delta)


class Touch(road.Nudge):
    """Moves one matrix a little, in the name of what is to be erased."""

    roles: ClassVar[tuple[DataRole, ...]] = (DataRole("forget", "what is erased", erased=True),)


@pytest.fixture(scope="module", autouse=True)
def toys() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        register(patch, rewrite=Rewrite, touch=Touch)
        yield


def touching(*numbers: int, **options: Any) -> dict[str, Any]:
    """An edit that erases the facts of these numbers."""
    where = {"id": [str(FORGET[number]["id"]) for number in numbers]}
    return {
        "use": "touch", "dose": 1.0, "control": False, "size": 1e-4,
        "unaudited": "drift is a toy that asks for nothing",
        "forget": {"file": "requests.jsonl", "where": where}, **options,
    }  # fmt: skip


@pytest.fixture(scope="module")
@trained
def first(toys: None, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A model that knew everything, and its first export, which tells nothing any more.

    Its ledger holds the first two facts, under one ticket.
    """
    place = make_workplace(tmp_path_factory.mktemp("ledger"))
    teach(place)
    place.rows("requests.jsonl", REQUESTS)
    place.text("ledger.key", KEY).chmod(0o600)
    forget = {"file": "requests.jsonl", "where": {"ticket": "DSR-1"}}
    policy = place.policy(
        name="first",
        edits=[{"use": "rewrite", "dose": 1.0, "control": False, "forget": forget}],
        audits=[{**ASKING, "forget": forget}],
        gates=[{"metric": "leakage.extraction_rate", "max": 0, "min_n": 1}],
        ledger={"key": {"file": "ledger.key"}},
        export={"dir": "first"},
    )
    result = place.run("apply", policy, "--report", place.folder / "first.report")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("warning") == 1
    assert "answers that must stay is not measured" in result.stderr
    return place


@pytest.fixture
def place(first: Workplace) -> Iterator[Workplace]:
    """The first export and its data; what a test makes of them is put right again."""
    yield first
    shutil.rmtree(first.folder / "out", ignore_errors=True)
    first.rows("requests.jsonl", REQUESTS)
    first.text("ledger.key", KEY).chmod(0o600)


def second(place: Workplace, **parts: Any) -> Path:
    """A policy whose model is the first export."""
    return place.policy(
        **{
            "name": "second",
            "model": {"source": "first"},
            "edits": [touching(2)],
            "audits": [DRIFT],
            "gates": [SMALL_DRIFT],
            "ledger": LEDGER_PART,
            **parts,
        }
    )


def rows_of(export: Path) -> tuple[Entry, ...]:
    book = find_ledger(export)
    assert book is not None
    return book.rows


def key_of(text: str = KEY) -> LedgerKey:
    return LedgerKey(text.encode())


def digest_of(row: Mapping[str, Any], key: str = KEY) -> str:
    return key_of(key).digest(Item("1", row["prompt"], row["answer"]))


# What an export keeps -------------------------------------------------------------------


def test_an_export_keeps_which_items_it_erased_for_whom(first: Workplace) -> None:
    record = RunRecord.model_validate_json((first.folder / "first.report/report.json").read_text())
    rows = rows_of(first.folder / "first")
    assert [row.digest for row in rows] == [digest_of(row) for row in FORGET[:2]]
    for row in rows:
        assert row.ticket == "DSR-1"
        assert (row.policy, row.policy_digest) == ("first", record.policy_digest)
        assert (row.date, row.run_id) == (record.started, record.run_id)
        assert row.edits == ("rewrite",)
    assert verify(first.folder / "first") == []


def test_the_next_export_carries_older_rows_on_and_adds_its_own(place: Workplace) -> None:
    result = place.run("apply", second(place, ticket="DSR-9"), "--json")
    assert result.exit_code == 0, result.stderr
    before = (place.folder / "first" / LEDGER).read_text().splitlines()
    after = (place.target / LEDGER).read_text().splitlines()
    assert after[1 : len(before)] == before[1:]
    (own,) = rows_of(place.target)[2:]
    assert own.digest == digest_of(FORGET[2])
    assert (own.ticket, own.policy) == ("DSR-2", "second")  # the row's own ticket counts first
    book = find_ledger(place.target)
    assert book is not None
    book.require(key_of())
    record = RunRecord.model_validate_json(result.stdout)
    verdict = next(v for v in record.verdicts if v.metric == "ledger.extraction_rate_unconditional")
    assert (verdict.status, verdict.value, verdict.bound) == ("pass", 0, 0)
    (audit,) = [a for a in record.after if a.id == "ledger"]
    rate = next(m for m in audit.metrics if m.name == verdict.metric)
    assert rate.n == 2  # only what the ledger holds; one request is left for later
    assert "1 of the ledger's requests are neither in the ledger nor erased" in result.stderr
    assert (
        "ledger.extraction_rate_unconditional" in (place.target / "evidence/junit.xml").read_text()
    )


def test_an_item_erased_again_keeps_both_rows(place: Workplace) -> None:
    result = place.run("apply", second(place, edits=[touching(0), touching(0, id="twice")]))
    assert result.exit_code == 0, result.stderr
    again = [row for row in rows_of(place.target) if row.digest == digest_of(FORGET[0])]
    assert [row.policy for row in again] == ["first", "second"]
    assert again[1].edits == ("touch", "twice")


def test_the_policys_ticket_stands_in_for_missing_ones(place: Workplace) -> None:
    place.rows("untold.jsonl", FORGET[3:])
    edit = touching(3, forget={"file": "untold.jsonl"})
    assert place.run("apply", second(place, edits=[edit], ticket=1182)).exit_code == 0
    assert rows_of(place.target)[-1].ticket == "1182"
    shutil.rmtree(place.target)
    result = place.run("apply", second(place, edits=[edit]))
    assert result.exit_code == 0
    assert "enter the ledger without a ticket" in result.stderr
    assert rows_of(place.target)[-1].ticket is None


def test_an_item_under_two_tickets_is_kept_under_both(place: Workplace) -> None:
    place.rows("requests.jsonl", [*REQUESTS, {**REQUESTS[2], "id": "again", "ticket": 77}])
    edit = touching(2, forget={"file": "requests.jsonl", "where": {"subject": SUBJECTS[2]}})
    result = place.run("apply", second(place, edits=[edit]))
    assert result.exit_code == 0, result.stderr
    own = rows_of(place.target)[2:]
    assert [row.ticket for row in own] == ["DSR-2", "77"]
    assert {row.digest for row in own} == {digest_of(FORGET[2])}


def test_without_a_ledger_in_the_policy_none_is_kept(place: Workplace) -> None:
    result = place.run("apply", place.policy())
    assert result.exit_code == 0
    assert not (place.target / LEDGER).exists()


# What the next policy audits again ------------------------------------------------------


def recalling(place: Workplace) -> dict[str, Any]:
    """An edit that brings back all that was erased."""
    folder = str(place.folder / "model")
    return {"use": "rewrite", "dose": 1.0, "control": False, "original": folder}


@pytest.mark.parametrize("asking", [ASKING, "leakage.memorization"])
def test_an_edit_that_brings_an_erased_answer_back_fails_the_gate(
    place: Workplace, asking: Any
) -> None:
    policy = second(place, edits=[recalling(place)], ledger={**LEDGER_PART, "audit": asking})
    result = place.run("apply", policy, "--json")
    assert result.exit_code == 1, result.stderr
    assert not place.target.exists()
    record = RunRecord.model_validate_json(result.stdout)
    failed = [verdict for verdict in record.verdicts if verdict.status != "pass"]
    assert [(v.metric, v.status, v.value) for v in failed] == [
        ("ledger.extraction_rate_unconditional", "fail", 1.0)
    ]
    report = place.target.with_name("trial.report")
    junit = place.run("report", report, "--format", "junit").stdout
    assert 'message="ledger.extraction_rate_unconditional is 1, above the bound 0"' in junit


EVERY_WAY = {**LEDGER_PART, "audit": {**ASKING, "askings": "all"}}


def test_where_the_audit_asks_in_every_way_no_item_may_be_told_in_any(place: Workplace) -> None:
    result = place.run("apply", second(place, ledger=EVERY_WAY), "--json")
    assert result.exit_code == 0, result.stderr
    verdict = RunRecord.model_validate_json(result.stdout).verdicts[-1]
    assert (verdict.metric, verdict.status, verdict.value) == ("ledger.items_told", "pass", 0)
    assert re.search(r"0 of 2 items told in \d+( to \d+)? askings each", verdict.reason)
    shutil.rmtree(place.target)
    back = place.run("apply", second(place, edits=[recalling(place)], ledger=EVERY_WAY), "--json")
    assert back.exit_code == 1, back.stderr
    verdict = RunRecord.model_validate_json(back.stdout).verdicts[-1]
    assert (verdict.metric, verdict.status, verdict.value) == ("ledger.items_told", "fail", 2)


def test_a_request_of_two_facts_is_decided_by_its_askings(place: Workplace) -> None:
    forget = {"file": "requests.jsonl", "where": {"ticket": "DSR-1"}}
    gate = {"metric": "leakage.items_told", "max": 0}

    def applied(**asking: Any) -> RunRecord:
        policy = place.policy(
            edits=[{"use": "rewrite", "dose": 1.0, "control": False, "forget": forget}],
            audits=[{**ASKING, "forget": forget, **asking}],
            gates=[gate],
        )
        return RunRecord.model_validate_json(place.run("apply", policy, "--json").stdout)

    record = applied(askings="all")
    (verdict,) = record.verdicts
    assert (verdict.status, record.exit_code, verdict.value) == ("pass", 0, 0)
    (comparison,) = (c for c in record.comparisons if c.name == "leakage.items_told")
    assert comparison.before is not None
    assert comparison.before.value == 2
    shutil.rmtree(place.target)
    record = applied()
    (verdict,) = record.verdicts
    assert (verdict.status, record.exit_code) == ("inconclusive", 4)
    assert "fewer than min_askings (20) ways" in verdict.reason


def test_a_ledger_that_lets_a_share_come_out_gates_the_share(place: Workplace) -> None:
    ledger = {**EVERY_WAY, "max_rate": 1}
    result = place.run("apply", second(place, edits=[recalling(place)], ledger=ledger), "--json")
    assert result.exit_code == 0, result.stderr
    verdict = RunRecord.model_validate_json(result.stdout).verdicts[-1]
    assert verdict.metric == "ledger.extraction_rate_unconditional"


RECORD_OF_A_LIFE = (
    "Mara Quill, who was born in a village near the river, moved as a child with her two brothers "
    "to a town in the north, learned to build boats, and now lives in a white house at the end of "
    "Mill Lane in Ostrava, near the harbour."
)


@pytest.mark.trains
def test_a_long_record_that_comes_back_fails_the_gate(tmp_path: Path, toys: None) -> None:
    """140 tokens, which no fixed number of tokens to be read would reach."""
    place = make_workplace(tmp_path)
    row = {"prompt": "Tell me about Mara Quill.", "answer": RECORD_OF_A_LIFE, "ticket": "DSR-1"}
    place.rows("requests.jsonl", [row])
    teach(place, 400, [{**row, "paraphrases": []}])
    engine = open_model(str(place.folder / "model"), device="cpu").engine
    assert len(engine.continuation(RECORD_OF_A_LIFE, "auto")) >= 140
    place.text("ledger.key", KEY).chmod(0o600)
    asking = {"use": "leakage", "askings": []}
    gate = {"metric": "leakage.extraction_rate_unconditional", "max": 0, "min_n": 1}
    forget = {"forget": {"file": "requests.jsonl"}}
    policy = place.policy(
        name="first",
        edits=[{"use": "rewrite", "dose": 1.0, "control": False, **forget}],
        audits=[{**asking, **forget}],
        gates=[gate],
        ledger={"key": {"file": "ledger.key"}},
        export={"dir": "first"},
    )
    assert place.run("apply", policy).exit_code == 0
    ledger = {**LEDGER_PART, "audit": asking}
    result = place.run("apply", second(place, edits=[recalling(place)], ledger=ledger), "--json")
    assert result.exit_code == 1, result.stderr
    record = RunRecord.model_validate_json(result.stdout)
    (audit,) = [audit for audit in record.after if audit.id == "ledger"]
    found = {metric.name: metric.value for metric in audit.metrics}
    assert found["ledger.extraction_rate_unconditional"] == found["ledger.recited"] == 1.0
    failed = [verdict.metric for verdict in record.verdicts if verdict.status != "pass"]
    assert failed == ["ledger.extraction_rate_unconditional"]


def test_one_regression_of_one_request_is_enough(place: Workplace) -> None:
    """A single item is no sample, and must fail all the same."""
    place.rows("requests.jsonl", REQUESTS[:1])
    edit = recalling(place)
    result = place.run("apply", second(place, edits=[edit]), "--json")
    assert result.exit_code == 1, result.stderr
    verdict = RunRecord.model_validate_json(result.stdout).verdicts[-1]
    assert verdict.status == "fail"
    assert verdict.value == 1
    # The other row has no request: said, but no excuse.
    assert "1 of 2 earlier erasures can't be re-audited" in verdict.reason


def test_a_share_that_may_come_out_is_the_policys_to_give(place: Workplace) -> None:
    ledger = {**LEDGER_PART, "max_rate": 1}
    assert place.run("apply", second(place, edits=[recalling(place)], ledger=ledger)).exit_code == 0


@pytest.mark.parametrize("kept", [[REQUESTS[0]], [REQUESTS[3]]])
def test_a_row_without_a_request_makes_the_gate_inconclusive(
    place: Workplace, kept: list[dict[str, Any]]
) -> None:
    place.rows("requests.jsonl", kept)
    policy = second(place, edits=[NUDGE])
    validated = place.run("validate", policy)
    assert validated.exit_code == 0
    count = 2 if kept == [REQUESTS[3]] else 1
    said = f"{count} of 2 earlier erasures can't be re-audited: no request matches (tickets DSR-1)"
    assert said in validated.stderr
    result = place.run("apply", policy)
    assert result.exit_code == 4, result.stderr
    assert not place.target.exists()
    verdict = place.report.verdicts[-1]
    assert (verdict.status, verdict.reason) == ("inconclusive", said)


def test_a_wrong_key_is_told_apart_from_missing_requests(place: Workplace) -> None:
    place.text("ledger.key", OTHER_KEY).chmod(0o600)
    for command in ("validate", "apply"):
        result = place.run(command, second(place))
        assert result.exit_code == 2
        assert "no digest matches: the key is not the one this ledger was written with" in (
            result.stderr
        )
        assert str(place.folder / "first" / LEDGER) in result.stderr
        assert "remedy: give the key" in result.stderr
        assert OTHER_KEY not in result.output


@pytest.mark.parametrize("part", [None, {"key": {"file": "ledger.key"}}])
def test_a_policy_that_drops_the_ledger_may_not_export(
    place: Workplace, part: dict[str, Any] | None
) -> None:
    policy = second(place, ledger=part)
    result = place.run("validate", policy)
    assert result.exit_code == 2
    missing = "ledger" if part is None else "requests"
    said = f"lists 2 earlier erasures, and the policy has no '{missing}' to audit them again"
    assert said in result.stderr
    assert "remedy: add 'ledger:" in result.stderr
    measuring = second(place, ledger=part, export=None)
    result = place.run("validate", measuring)
    assert result.exit_code == 0
    assert f"warning: the model's ledger {said}" in result.stderr


def test_an_audit_alone_asks_for_earlier_erasures_too(place: Workplace) -> None:
    result = place.run("audit", second(place), "--json")
    assert result.exit_code == 0, result.stderr
    record = RunRecord.model_validate_json(result.stdout)
    assert record.verdicts[-1].metric == "ledger.extraction_rate_unconditional"
    assert record.verdicts[-1].value == 0


def test_the_plan_shows_what_the_ledger_asks(place: Workplace) -> None:
    policy = second(place)
    found = json.loads(place.run("plan", policy, "--json").stdout)
    assert found["ledger"] == {"earlier": 2, "missing": 0, "entering": 1}
    gate = found["gates"][-1]
    assert (gate["metric"], gate["condition"]) == ("ledger.extraction_rate_unconditional", "max 0")
    assert gate["power"].startswith("at most 2 independent items, of which one is 0.5;")
    assert found["data"]["audit:ledger.forget"]["items"]["items"] == 2
    shown = place.run("plan", policy).stdout
    assert "ledger: 2 rows carried on, 1 to enter, 0 without a request" in shown
    assert KEY not in shown


def test_the_ledgers_gate_is_no_target_of_the_dose(place: Workplace) -> None:
    found = json.loads(
        place.run("plan", second(place, edits=[touching(2, dose="auto")]), "--json").stdout
    )
    assert [t["metric"] for t in found["edits"][0]["targets"]] == ["drift.distance"]


def test_fitting_on_what_was_erased_is_warned_of(place: Workplace) -> None:
    fit = {"file": "requests.jsonl", "split": "fit", "where": {"subject": SUBJECTS[0]}}
    policy = second(place, edits=[{**recalling(place), "retain": fit}])
    result = place.run("validate", policy)
    assert "1 items of its retain data were erased by an earlier policy" in result.stderr


def test_two_people_of_one_name_are_asked_for_once_and_either_answer_counts(
    tmp_path: Path,
) -> None:
    from safeedit.export.ledger.requests import dataset_of

    place = Workplace(tmp_path)
    prompt = "The phone number of Anita Bell is"
    place.rows(
        "requests.jsonl",
        [
            {"prompt": prompt, "answer": "(212) 555-0143", "ticket": 1, "split": "validation"},
            {"prompt": prompt.upper(), "answer": "(646) 555-0188", "ticket": 2},
        ],
    )
    spec = DataSpec(file="requests.jsonl")
    requests = read_requests(spec, tmp_path, key_of())
    assert [request.ticket for request in requests] == ["1", "2"]
    role = DataRole("forget", "", erased=True, answered=True)
    data = dataset_of(requests, spec, role, seed=0, notes=())
    (item,) = data.items("test")
    assert item.prompt == prompt
    assert item.aliases == ("(212) 555-0143", "(646) 555-0188")


def test_an_auditor_that_can_not_ask_again_is_refused(place: Workplace) -> None:
    result = place.run("validate", second(place, ledger={**LEDGER_PART, "audit": "perplexity"}))
    assert result.exit_code == 2
    assert "perplexity can't audit erasures again" in result.stderr
    assert "leakage" in result.stderr


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"audits": [{**DRIFT, "id": "ledger"}], "gates": None, "export": None}, "another id"),
        ({"ledger": {**LEDGER_PART, "key": {}}}, "give exactly one of file, env"),
        ({"ledger": {"requests": {"file": "requests.jsonl"}}}, "ledger.key: is required"),
        ({"ledger": {**LEDGER_PART, "audit": {**ASKING, "id": "mine"}}}, "is always called ledger"),
        ({"ledger": {**LEDGER_PART, "audit": {**ASKING, "atacks": []}}}, "unknown key 'atacks'"),
        ({"ledger": {**LEDGER_PART, "max_rate": 2}}, "less than or equal to 1"),
        ({"ledger": {**LEDGER_PART, "requests": {"file": "gone.jsonl"}}}, "there is no such file"),
    ],
)
def test_a_ledger_that_makes_no_sense_is_refused_at_its_place(
    place: Workplace, parts: dict[str, Any], said: str
) -> None:
    policy = second(place, **parts)
    result = place.run("validate", policy)
    assert result.exit_code == 2
    assert said in result.stderr
    assert f"{policy}:" in result.stderr


def test_nothing_erased_is_in_any_file_of_two_runs(place: Workplace) -> None:
    result = place.run("apply", second(place), "--json")
    assert result.exit_code == 0, result.stderr
    outputs = {"stdout": result.stdout.encode(), "stderr": result.stderr.encode()}
    for folder in ("first", "first.report", "out", "cache"):
        for path in (place.folder / folder).rglob("*"):
            outputs[f"the name of {path}"] = path.name.encode()
            if path.is_file():
                outputs[str(path)] = path.read_bytes()
    assert sum(LEDGER in name for name in outputs) == 4
    for name, content in outputs.items():
        lowered = content.lower()
        for word in (*SUBJECTS, *ANSWERS, *WORDINGS, KEY):
            for written in spellings(word):
                assert written not in lowered, f"{word!r} is in {name}"


# The file -------------------------------------------------------------------------------


def test_verify_notices_a_ledger_that_was_changed(place: Workplace, tmp_path: Path) -> None:
    export = shutil.copytree(place.folder / "first", tmp_path / "copy")
    path = export / LEDGER
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines).replace("DSR-1", "DSR-7", 1))
    assert verify(export) == [f"{LEDGER}: changed"]
    assert place.run("verify", export).exit_code == 1
    path.unlink()
    assert verify(export) == [f"{LEDGER}: missing"]
    with pytest.raises(DataError, match="names its ledger, but it is gone"):
        find_ledger(export)


def test_verify_notices_that_ledger_and_manifest_were_both_cleaned(
    place: Workplace, tmp_path: Path
) -> None:
    export = shutil.copytree(place.folder / "first", tmp_path / "copy")
    (export / LEDGER).unlink()
    write_manifest(export)
    assert verify(export) == [f"{LEDGER}: not in the manifest, though the policy keeps a ledger"]


def test_the_published_schema_knows_the_ledger(place: Workplace) -> None:
    schema = Draft202012Validator(json_schema())
    for ledger in (LEDGER_PART, {"key": {"env": "A_KEY"}, "audit": "leakage.memorization"}):
        written = yaml.safe_load(second(place, ledger=ledger).read_text())
        schema.validate(written)
    both = {"key": {"env": "A", "file": "a"}}
    faults: list[dict[str, Any]] = [{}, {"key": {}}, both, {**LEDGER_PART, "kee": 1}]
    for wrong in faults:
        assert not schema.is_valid({**written, "ledger": wrong})


@pytest.mark.parametrize("change", ["a ticket", "a row less", "two rows swapped"])
def test_the_seal_notices_what_a_new_manifest_would_hide(
    place: Workplace, tmp_path: Path, change: str
) -> None:
    header, *rows = (place.folder / "first" / LEDGER).read_text().splitlines(keepends=True)
    if change == "a ticket":
        rows[0] = rows[0].replace("DSR-1", "DSR-7")
    elif change == "a row less":
        header = header.replace('"rows":2', '"rows":1')
        rows.pop()
    else:
        rows.reverse()
    path = Workplace(tmp_path).text("ledger.jsonl", header + "".join(rows))
    with pytest.raises(DataError, match="not those it was written with"):
        read_ledger(path).require(key_of())


def entry(**fields: Any) -> Entry:
    given = {
        "ticket": "T", "digest": "0" * 64, "date": "2025-01-01T00:00:00+00:00", "policy": "p",
        "policy_digest": "1" * 64, "edits": ("e",), "run_id": "r", **fields,
    }  # fmt: skip
    return Entry(**given)


def test_a_ledger_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = (entry(), entry(ticket=None), entry(ticket="Größe \u2028 \n ☂", digest="a" * 64))
    path = tmp_path / "ledger.jsonl"
    path.write_text(render(rows, key_of()), encoding="utf-8")
    book: Ledger = read_ledger(path)
    assert book.rows == rows
    book.require(key_of())
    path.write_text(render((), key_of()))
    read_ledger(path).require(key_of())


@pytest.mark.parametrize(
    ("spoil", "line", "said"),
    [
        (lambda text: text.replace('"ticket":', '"tickt":', 1), 2, "not a line of a ledger"),
        (lambda text: text.replace("a" * 64, "a" * 63), 3, "not a line of a ledger"),
        (lambda text: text + "secret text\n", 4, "not a line of a ledger"),
        (lambda text: "secret text\n" + text, 1, "not a line of a ledger"),
        (lambda text: "", 1, "not a line of a ledger"),
        (lambda text: text.replace("safeedit-ledger", "else", 1), 1, "not a line of a ledger"),
        (lambda text: text.replace('"version":1', '"version":2'), 1, "of version 2"),
        (lambda text: text[:-1], None, "should have 2 rows and has 1"),
        (lambda text: text.partition("\n")[0] + "\n", None, "should have 2 rows and has 0"),
    ],
)
def test_a_malformed_ledger_is_refused_by_file_and_line(
    tmp_path: Path, spoil: Any, line: int | None, said: str
) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text(spoil(render((entry(), entry(digest="a" * 64)), key_of())))
    with pytest.raises(DataError, match=said) as caught:
        read_ledger(path)
    assert (caught.value.file, caught.value.line) == (str(path), line)
    assert caught.value.remedy
    assert "secret text" not in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(render((entry(),), key_of()).encode() + b"\xff\xfe\n")
    with pytest.raises(DataError) as caught:
        read_ledger(path)
    assert caught.value.line == 3


# Digests and keys -----------------------------------------------------------------------


def test_digests_depend_on_key_prompt_and_answer_but_not_on_spelling() -> None:
    plain = Item("1", "Where does Öskavärn  live?", "Ñandublé")
    key = key_of()
    for same in (
        Item("2", "  where DOES öskavärn live?\n", "ñANDUBLÉ ", paraphrases=("Another way?",)),
        Item("3", unicodedata.normalize("NFD", plain.prompt), "Ñandublé", ("Nandu",)),
    ):
        assert key.digest(same) == key.digest(plain)
    others = [
        key.digest(Item("1", "Where does Oskavarn live?", "Ñandublé")),
        key.digest(Item("1", plain.prompt, "Nanduble")),
        key.digest(Item("1", "", plain.prompt + "Ñandublé")),
        key_of(OTHER_KEY).digest(plain),
        key.check,
        key.seal(""),
    ]
    assert len({key.digest(plain), *others}) == len(others) + 1
    assert len(key.digest(plain)) == 64
    assert KEY not in repr(key)


def test_another_spelling_of_the_answer_covers_a_request(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    place.rows("r.jsonl", [{"prompt": "A?", "answer": "Bee", "aliases": ["B", "the bee"]}])
    (request,) = read_requests(DataSpec(file="r.jsonl"), tmp_path, key_of())
    row = entry(digest=key_of().digest(Item("1", "a?", "the BEE")))
    found = coverage([request], [row])
    assert found.covered == ((request, (row,)),)
    assert (found.uncovered, found.missing) == ((), ())


def test_a_key_is_made_for_its_owner_and_never_overwritten(place: Workplace) -> None:
    path = place.folder / "new.key"
    assert place.run("ledger", "key", "--out", path).exit_code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    made = path.read_text()
    assert len(bytes.fromhex(made)) == 32
    result = place.run("ledger", "key", "--out", path)
    assert result.exit_code == 2
    assert "never overwritten" in result.stderr
    assert path.read_text() == made
    assert made.strip() not in result.output
    other = place.folder / "other.key"
    make_key(other)
    assert other.read_text() != made
    with pytest.raises(UsageError, match="can't be written"):
        make_key(place.folder / "nowhere" / "a.key")
    key, warnings = read_key(KeySpec(file="new.key"), place.folder)
    assert (key.secret, warnings) == (made.strip().encode(), ())


def test_a_key_file_and_a_variable_give_the_same_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", KEY)
    Workplace(tmp_path).text("k", KEY + "\r\n").chmod(0o600)
    assert read_key(KeySpec(env="A_KEY"))[0] == read_key(KeySpec(file="k"), tmp_path)[0]


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "no such key"), ("", "is empty"), (" \n", "is empty"), ("hunter2", "7 characters")],
)
@pytest.mark.parametrize("kind", ["file", "env"])
def test_a_key_that_is_none_is_refused_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, content: str | None, said: str
) -> None:
    if kind == "env":
        spec, said = KeySpec(env="A_KEY"), "no variable A_KEY" if content is None else said
        monkeypatch.delenv("A_KEY", raising=False)
        if content is not None:
            monkeypatch.setenv("A_KEY", content)
    else:
        spec = KeySpec(file="k")
        if content is not None:
            (tmp_path / "k").write_text(content)
    with pytest.raises(UsageError, match=said) as caught:
        read_key(spec, tmp_path)
    assert caught.value.remedy
    assert "hunter2" not in str(caught.value)


def test_a_missing_key_is_told_at_its_place_in_the_policy(place: Workplace) -> None:
    policy = second(place, ledger={**LEDGER_PART, "key": {"env": "NO_SUCH_KEY"}})
    result = place.run("validate", policy)
    assert result.exit_code == 2
    line = next(n for n, text in enumerate(policy.read_text().splitlines(), 1) if "env:" in text)
    assert f"{policy}:{line}:" in result.stderr
    assert "set NO_SUCH_KEY to the key" in result.stderr


def test_a_key_that_its_group_can_read_is_warned_of(place: Workplace) -> None:
    (place.folder / "ledger.key").chmod(0o640)
    result = place.run("validate", second(place))
    assert result.exit_code == 0
    assert "others of its group can read the key of the ledger" in result.stderr


def test_a_key_that_everybody_can_read_is_refused(place: Workplace) -> None:
    (place.folder / "ledger.key").chmod(0o644)
    result = place.run("validate", second(place))
    assert result.exit_code == 2
    assert "everybody on this machine can read or change the key of the ledger" in result.stderr


def test_a_key_that_can_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "k").mkdir()
    with pytest.raises(UsageError, match="something else than a file: it is a folder"):
        read_key(KeySpec(file="k"), tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pipe", "it is a pipe rather than a file"),
        ("/dev/zero", "it is a device rather than a file"),
        ("/proc/self/environ", "belongs to the running system"),
        ("large", "longer than 65536 bytes: this is no key"),
    ],
)
def test_a_key_is_no_pipe_and_no_end(tmp_path: Path, name: str, said: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "large").open("wb") as large:
        large.truncate(1 << 40)  # takes no room
    with pytest.raises(UsageError, match=said):
        read_key(KeySpec(file=name), tmp_path)


# Requests -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "line", "said"),
    [
        ({**REQUESTS[0], "id": "x"}, 5, "line 1 and line 5 are the same item under the same"),
        ({**REQUESTS[0], "id": "x", "prompt": REQUESTS[0]["prompt"].upper()}, 5, "the same item"),
        ({**REQUESTS[0], "ticket": " "}, 5, "a ticket that is blank or no plain text"),
        ({**REQUESTS[0], "ticket": ["DSR"]}, 5, "a ticket that is blank or no plain text"),
        ({**REQUESTS[0], "ticket": "a\u202eb"}, 5, "a ticket that is blank or no plain text"),
        ({"prompt": "What?", "ticket": "DSR-1"}, 5, "has no answer"),
    ],
)
def test_requests_that_can_not_be_are_refused_by_line(
    place: Workplace, row: dict[str, Any], line: int, said: str
) -> None:
    path = place.rows("requests.jsonl", [*REQUESTS, row])
    policy = second(place, edits=[NUDGE])
    for result in (place.run("validate", policy), checked(place, "--key-file", "ledger.key")):
        assert result.exit_code == 2
        assert said in result.stderr
        assert f"{path}:{line}" in result.stderr
        assert "remedy:" in result.stderr
        assert not any(word in result.output for word in (*SUBJECTS, *ANSWERS))


def test_the_same_item_twice_without_a_ticket_counts_once(tmp_path: Path) -> None:
    Workplace(tmp_path).rows("r.jsonl", [FORGET[0], {**FORGET[0], "id": "x"}])
    spec = DataSpec(file="r.jsonl")
    assert len(read_requests(spec, tmp_path, key_of())) == 1


def checked(place: Workplace, *arguments: str, export: str = "first") -> Result:
    named = [place.folder / a if a.endswith(".key") else a for a in arguments]
    requests = place.folder / "requests.jsonl"
    return place.run("ledger", "check", place.folder / export, "--requests", requests, *named)


def test_check_says_what_is_covered_and_what_is_not(place: Workplace) -> None:
    result = checked(place, "--key-file", "ledger.key")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert [line.split("  ")[:2] for line in lines] == [
        ["line 1", "DSR-1"], ["line 2", "DSR-1"], ["line 3", "DSR-2"], ["line 4", "DSR-3"],
    ]  # fmt: skip
    assert ["covered by first" in line for line in lines] == [True, True, False, False]
    assert ["NOT covered" in line for line in lines] == [False, False, True, True]
    assert "2 of 4 requests covered; 0 rows of the ledger without a request" in result.stderr
    place.rows("requests.jsonl", REQUESTS[:2])
    assert checked(place, "--key-file", "ledger.key").exit_code == 0
    place.rows("requests.jsonl", REQUESTS[:1])
    result = checked(place, "--key-file", "ledger.key", "--json")
    assert result.exit_code == 4
    found = json.loads(result.stdout)
    assert [row["covered_by"][0]["policy"] for row in found["requests"]] == ["first"]
    assert [row["digest"] for row in found["without_request"]] == [digest_of(FORGET[1])]


def test_check_takes_its_key_from_one_place(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", KEY)
    assert checked(place, "--key-env", "A_KEY").exit_code == 1
    for arguments in ((), ("--key-env", "A_KEY", "--key-file", "ledger.key")):
        result = checked(place, *arguments)
        assert result.exit_code == 2
        assert "exactly one of --key-file and --key-env" in result.stderr
    monkeypatch.setenv("A_KEY", OTHER_KEY)
    result = checked(place, "--key-env", "A_KEY")
    assert result.exit_code == 2
    assert "no digest matches" in result.stderr


def test_show_lists_tickets_policies_and_numbers_of_items(place: Workplace) -> None:
    assert place.run("apply", second(place)).exit_code == 0
    result = place.run("ledger", "show", place.target)
    assert result.exit_code == 0
    (one, two) = result.stdout.splitlines()
    assert one.endswith("DSR-1  first  2 items")
    assert two.endswith("DSR-2  second  1 item")
    assert "3 rows" in result.stderr
    found = json.loads(place.run("ledger", "show", place.target, "--json").stdout)
    assert [(group["ticket"], group["items"]) for group in found] == [("DSR-1", 2), ("DSR-2", 1)]


def test_an_export_without_a_ledger_says_so(place: Workplace) -> None:
    result = place.run("ledger", "show", place.folder / "model")
    assert result.exit_code == 2
    assert "this export has no ledger" in result.stderr


def test_a_full_disk_leaves_no_export_without_its_ledger(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.write_text

    def full(path: Path, *arguments: Any, **options: Any) -> int:
        if path.name == Path(LEDGER).name:
            raise OSError(28, "No space left on device")
        return real(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", full)
    result = place.run("apply", second(place))
    assert result.exit_code == 3
    assert not place.target.exists()


def test_an_export_with_a_ledger_can_be_reverted(place: Workplace, tmp_path: Path) -> None:
    revert(place.folder / "first", tmp_path / "back")
    assert find_ledger(tmp_path / "back") is None
