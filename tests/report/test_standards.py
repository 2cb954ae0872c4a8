"""Every format that other tools read keeps the public schema of that format."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import jsonschema
import pytest
import xmlschema
from huggingface_hub import ModelCard
from junitparser import JUnitXml

from safeedit.records import ModelRecord, RunRecord
from safeedit.report import bom, card, comment, github, junit, sarif
from tests.report import schemas
from tests.report.records import run_record

LINES = (11, 12, 13, 14, 15)


def written(status: str = "pass", **changes: Any) -> RunRecord:
    """A record whose first gate failed and whose second told nothing, unless it passed."""
    record = run_record().model_copy(
        update={"policy_file": "policies/forget.yaml", "gate_lines": LINES, **changes}
    )
    if status == "pass":
        return record
    first, second, *others = record.verdicts
    verdicts = (
        first.model_copy(
            update={"status": "fail", "reason": "it's told: 3 % of <it>, on\ntwo lines"}
        ),
        second.model_copy(update={"status": "inconclusive"}),
        *others,
    )
    return record.model_copy(
        update={"verdicts": verdicts, "status": "fail", "exit_code": 1, "export": None}
    )


RECORDS = {
    "passed": written(),
    "failed": written("fail"),
    "no gates": written(verdicts=(), gate_lines=()),
    "no file": written("fail", policy_file="", gate_lines=()),
    "odd name": written("fail", policy_name="a<b&\"c'\x07"),
}


@pytest.mark.parametrize("record", RECORDS.values(), ids=list(RECORDS))
def test_junit_keeps_the_schema_of_jenkins(record: RunRecord) -> None:
    text = junit.render(record)
    schemas.junit(text)
    read = JUnitXml.fromstring(text.encode())
    assert read.tests == (len(record.verdicts) or 1)
    assert read.failures == [v.status for v in record.verdicts].count("fail")
    assert read.errors == [v.status for v in record.verdicts].count("inconclusive")


def test_the_schema_of_junit_refuses_what_is_none() -> None:
    tree = ElementTree.fromstring(junit.render(written()))
    for case in tree.iter("testcase"):
        del case.attrib["name"]
    with pytest.raises(xmlschema.XMLSchemaValidationError):
        schemas.junit(ElementTree.tostring(tree, encoding="unicode"))


@pytest.mark.parametrize("record", RECORDS.values(), ids=list(RECORDS))
def test_sarif_keeps_the_schema_of_oasis(record: RunRecord) -> None:
    text = sarif.render(record)
    schemas.sarif(text)
    log = json.loads(text)
    del log["runs"][0]["tool"]["driver"]["name"]
    with pytest.raises(jsonschema.ValidationError):
        schemas.sarif(json.dumps(log))


def test_sarif_has_a_result_for_each_gate_that_did_not_pass_at_its_line() -> None:
    (run,) = json.loads(sarif.render(written("fail")))["runs"]
    assert len(run["tool"]["driver"]["rules"]) == 5
    assert [result["level"] for result in run["results"]] == ["error", "warning"]
    places = [result["locations"][0]["physicalLocation"] for result in run["results"]]
    assert [place["artifactLocation"]["uri"] for place in places] == ["policies/forget.yaml"] * 2
    assert [place["region"]["startLine"] for place in places] == [11, 12]
    assert json.loads(sarif.render(written()))["runs"][0]["results"] == []


def test_a_gate_under_several_attacks_stands_in_one_line_under_each() -> None:
    gate = {"metric": "leakage.recovered", "max": 0.2, "under": ["relearn", "prune"]}
    record = written("fail")
    verdicts = [
        record.verdicts[0].model_copy(
            update={
                "metric": "leakage.recovered",
                "condition": f"max 0.2 under {attack}",
                "under": attack,
            }
        )
        for attack in ("relearn", "prune")
    ]
    policy = {**record.policy, "gates": [gate]}
    changes = {"verdicts": tuple(verdicts), "policy": policy, "gate_lines": (7,)}
    lines = github.render(record.model_copy(update=changes)).splitlines()
    assert [",line=7," in line for line in lines] == [True, True]


def local(record: RunRecord) -> RunRecord:
    there = {"source": "/home/somebody/secret-model", "local": True, "revision": None}
    model = ModelRecord.model_validate({**record.model.model_dump(), **there})
    return record.model_copy(update={"model": model})


@pytest.mark.parametrize("record", [written(), local(written()), RECORDS["no gates"]])
def test_the_bill_keeps_the_schema_of_cyclonedx(record: RunRecord) -> None:
    text = bom.render(record)
    schemas.bom(text)
    with pytest.raises(ValueError, match="qualitativeAnalysis"):
        schemas.bom(text.replace('"quantitativeAnalysis"', '"qualitativeAnalysis"'))
    assert "/home/somebody" not in text


def test_the_bill_holds_metrics_with_intervals_limits_costs_data_and_the_base() -> None:
    record = written()
    model = json.loads(bom.render(record))["metadata"]["component"]
    analysis = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    measured = [m for audit in record.after for m in audit.metrics if m.value is not None]
    assert [one["type"] for one in analysis] == [metric.name for metric in measured]
    assert all(one["confidenceInterval"].keys() == {"lowerBound", "upperBound"} for one in analysis)
    considered = model["modelCard"]["considerations"]
    assert any("do not show" in limit for limit in considered["technicalLimitations"])
    assert any("nats_per_token" in cost for cost in considered["performanceTradeoffs"])
    data = model["modelCard"]["modelParameters"]["datasets"]
    assert [one["name"] for one in data] == sorted(record.datasets)
    (base,) = model["pedigree"]["ancestors"]
    assert base["properties"] == [{"name": bom.WEIGHTS, "value": record.model.digest}]
    assert record.export is not None
    assert bom.weights_named(bom.render(record)) == record.export.weights_digest
    assert bom.render(record) == bom.render(record)


def test_the_card_is_one_that_the_hub_reads() -> None:
    record = written()
    found = ModelCard(card.render(record))
    assert found.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert found.data.base_model_relation == "finetune"
    results = found.data.eval_results
    assert results is not None
    assert {result.metric_name for result in results} == {v.metric for v in record.verdicts}
    rate = next(r for r in results if r.metric_name == "leakage.extraction_rate")
    assert rate.metric_value == 0
    assert rate.metric_args["n"] == 24
    assert ModelCard(card.render(local(record))).data.base_model is None


def test_annotations_are_commands_that_a_runner_reads() -> None:
    lines = github.render(written("fail")).splitlines()
    assert len(lines) == 2
    shape = r"::(error|warning) file=policies/forget\.yaml,line=1[12],title=[^:,]*::.*"
    assert all(re.fullmatch(shape, line) for line in lines)
    assert "3 %25 of <it>" in lines[0]
    (passed,) = github.render(written()).splitlines()
    assert passed.startswith("::notice file=policies/forget.yaml,title=")
    assert github.render(written("fail", policy_file="")).startswith("::error title=")
    undecided = written(status="pass").model_copy(update={"status": "inconclusive"})
    assert github.render(undecided).startswith("::warning file=policies/forget.yaml,title=")


def test_the_comment_names_what_failed_first_and_fits_a_pull_request() -> None:
    text = comment.render(written("fail"))
    assert text.startswith("<!-- safeedit: forget-customer-records -->")
    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    assert ["failed" in rows[0], "inconclusive" in rows[1]] == [True, True]
    assert "3 % of \\<it\\>" in text
    many = written(verdicts=written("fail").verdicts * 100)
    assert len(comment.render(many)) < 65_536
    assert "460 gates more" in comment.render(many)
