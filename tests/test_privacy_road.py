"""The road with memorised records: DEPN, the audits of records, and nothing of them in any file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from click.testing import Result

from safeedit.editors import depn
from safeedit.records import RunRecord
from tests.auditors.memorised import HELD_BACK, TAUGHT, items, taught, untaught
from tests.road import PROSE, Workplace
from tests.running.test_run import spellings

pytestmark = pytest.mark.trains

WIDTH = 512
"""Of an MLP in which as many neurons at random as hold the records do next to nothing."""
NAMED, OTHERS = TAUGHT[:3], TAUGHT[3:]


def _rows(role: str, people: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for item in items(people):
        yield {
            "id": f"{role}-{item.id}",
            "role": role,
            "prompt": item.prompt,
            "answer": item.answer,
            "paraphrases": list(item.paraphrases),
            "subject": item.subject,
            "type": item.extra["type"],
        }


def _spec(role: str) -> dict[str, Any]:
    return {"file": "records.jsonl", "where": {"role": role}, "template": "plain"}


POLICY: dict[str, Any] = {
    "model": {"source": "planted"},
    "ticket": "DSR-1",
    "ledger": {"key": {"file": "ledger.key"}},
    "edits": [
        {
            "use": "depn",
            "forget": _spec("named"),
            "others": _spec("other"),
            "generic": {"file": "prose.jsonl"},
            "doses": [16, 32, 64, 128, 256],
            "round": 8,
            "control": 2,
            "targets": [{"metric": "named.extraction_rate", "max": 0}],
        }
    ],
    "audits": [
        {"use": "leakage.memorization", "id": "named", "forget": _spec("named")},
        {"use": "leakage.memorization", "id": "others", "forget": _spec("other")},
        {
            "use": "leakage.exposure",
            "id": "exposure",
            "forget": _spec("named"),
            "controls": _spec("held_back"),
            "candidates": 31,
            "types": ["phone", "identity"],
        },
        {
            "use": "leakage.membership",
            "id": "membership",
            "members": _spec("named"),
            "nonmembers": _spec("held_back"),
        },
        {"use": "leakage.pii", "id": "pii", "forget": _spec("named"), "samples": 32,
         "openings": ["Phone of Anna:", "Call"]},
        {
            "use": "leakage.reference_model",
            "id": "reference_model",
            "model": {"source": "untaught"},
            "forget": _spec("named"),
            "prose": {"file": "prose.jsonl"},
        },
        {"use": "perplexity", "prose": {"file": "prose.jsonl"}},
    ],
    "gates": [{"metric": "named.extraction_rate", "max": 0, "min_n": 5}],
}  # fmt: skip


@dataclass(frozen=True)
class Ran:
    place: Workplace
    result: Result
    record: RunRecord

    def value(self, metric: str, when: str = "after") -> float:
        (found,) = [m for a in getattr(self.record, when) for m in a.metrics if m.name == metric]
        assert found.value is not None, metric
        return found.value


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder: Path = tmp_path_factory.mktemp("privacy")
    for name, handle in (("planted", taught(WIDTH)), ("untaught", untaught(WIDTH))):
        handle.model.save_pretrained(folder / name)
        assert handle.tokenizer is not None
        handle.tokenizer.save_pretrained(folder / name)
    place = Workplace(folder)
    rows = [*_rows("named", NAMED), *_rows("other", OTHERS), *_rows("held_back", HELD_BACK)]
    place.rows("records.jsonl", rows)
    place.rows("prose.jsonl", PROSE)
    assert place.run("ledger", "key", "--out", folder / "ledger.key").exit_code == 0
    # Prose is nothing to so small a model.
    with patch.dict(depn.RECIPES, gain=replace(depn.RECIPES["gain"], spare=None)):
        result = place.run("apply", place.policy(**POLICY))
    assert result.exit_code == 0, result.stderr
    return Ran(place, result, place.report)


def test_named_records_no_longer_come_out_and_random_neurons_do_not_do_that(ran: Ran) -> None:
    assert ran.value("named.extraction_rate", "before") > 0.9
    assert ran.value("named.extraction_rate") == 0
    (edit,) = ran.record.edits
    drawn = [
        metric.value
        for control in edit.controls
        if control.random
        for metric in control.metrics
        if metric.name == "named.extraction_rate"
    ]
    assert len(drawn) == 2
    assert min(value or 0.0 for value in drawn) > 0.3


def test_the_records_hold_their_three_controls(ran: Ran) -> None:
    names = [control.name for control in ran.record.edits[0].controls]
    assert names[:2] == ["random neurons zeroed"] * 2
    assert names[2].startswith("top ")
    assert "neurons of other secrets" in names[2]
    assert ran.value("others.extraction_rate", "before") > 0.9
    assert 0 <= ran.value("others.extraction_rate") <= 1


def test_the_ledger_lists_the_named_records_and_not_those_of_the_control(ran: Ran) -> None:
    shown = ran.place.run("ledger", "show", ran.place.target, "--json")
    assert shown.exit_code == 0, shown.stderr
    lines = (ran.place.target / "evidence" / "ledger.jsonl").read_text().splitlines()
    assert len(lines) - 1 == len(items(NAMED))  # the first is the header
    assert all(json.loads(line)["ticket"] == "DSR-1" for line in lines[1:])


def test_the_edited_model_is_nearer_to_the_one_that_never_learnt(ran: Ran) -> None:
    assert ran.value("reference_model.secrets_excess") < ran.value(
        "reference_model.secrets_excess", "before"
    )
    assert ran.value("reference_model.secrets_distance", "before") > 0.5
    for metric in ("exposure.exposure", "membership.loss_auc", "pii.named_rate"):
        assert ran.value(metric) <= ran.value(metric, "before"), metric


def test_no_planted_string_is_in_any_file_the_run_wrote(ran: Ran) -> None:
    outputs = {"stdout": ran.result.stdout.encode(), "stderr": ran.result.stderr.encode()}
    folders = (ran.place.target, ran.place.target.with_name("trial.report"), ran.place.cache)
    for folder in folders:
        for path in folder.rglob("*"):
            outputs[f"the name of {path}"] = path.name.encode()
            if path.is_file() and path.name != "tokenizer.json":  # its words are the model's own
                outputs[str(path)] = path.read_bytes()
    assert len(outputs) > 40
    answers = [item.answer or "" for item in items(NAMED + OTHERS)]
    words = [word for answer in answers for word in (answer, *answer.split()) if len(word) >= 8]
    assert len(set(words)) >= 12
    for name, content in outputs.items():
        lowered = content.lower()
        for word in words:
            for written in spellings(word):
                assert written not in lowered, f"a planted string is in {name}"
            digits = "".join(c for c in word if c.isdecimal())
            assert len(digits) < 9 or digits.encode() not in lowered, name


def test_the_report_shows_every_control(ran: Ran) -> None:
    text = (ran.place.target / "evidence" / "report.md").read_text()
    assert "## Controls" in text
    assert "random neurons zeroed (seed 1)" in text
    record = json.loads((ran.place.target / "evidence" / "report.json").read_text())
    assert len(record["edits"][0]["controls"]) == 3
