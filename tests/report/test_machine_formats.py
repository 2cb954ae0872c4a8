"""JSON, JUnit, Markdown and the model card, read back by their own parsers."""

from __future__ import annotations

import json as standard_json
from xml.etree import ElementTree

import jsonschema
import pytest
import yaml
from markdown_it import MarkdownIt

from safeedit.model.builtin import BUILTIN
from safeedit.records import RunRecord
from safeedit.report import card, json, junit, markdown
from tests.report.records import run_record
from tests.report.test_formats import VARIANTS, hostile_record


@pytest.mark.parametrize("name", VARIANTS)
def test_report_json_keeps_its_published_schema_and_reads_back(name: str) -> None:
    text = json.render(VARIANTS[name])
    jsonschema.Draft202012Validator.check_schema(json.schema())
    jsonschema.validate(standard_json.loads(text), json.schema())
    assert RunRecord.model_validate_json(text) == VARIANTS[name]


def test_the_schema_refuses_what_is_no_record() -> None:
    found = standard_json.loads(json.render(VARIANTS["passed"]))
    found["status"] = "certainly"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found, json.schema())


@pytest.mark.parametrize("name", VARIANTS)
def test_junit_counts_its_gates(name: str) -> None:
    record = VARIANTS[name]
    root = ElementTree.fromstring(junit.render(record))
    (suite,) = root.findall("testsuite")
    statuses = [verdict.status for verdict in record.verdicts]
    for element in (root, suite):
        assert element.get("tests") == str(max(len(statuses), 1))
        assert element.get("failures") == str(statuses.count("fail"))
        assert element.get("errors") == str(statuses.count("inconclusive"))
    assert len(suite.findall("testcase/failure")) == statuses.count("fail")
    assert len(suite.findall("testcase/error")) == statuses.count("inconclusive")
    assert len(suite.findall("testcase/skipped")) == (0 if statuses else 1)


def test_junit_survives_hostile_names() -> None:
    root = ElementTree.fromstring(junit.render(hostile_record()))
    assert len(root.findall("testsuite/testcase")) == 1


@pytest.mark.parametrize("form", [markdown.render, card.render])
@pytest.mark.parametrize("record", [*VARIANTS.values(), hostile_record()])
def test_tables_are_tables_and_nothing_is_html(form, record: RunRecord) -> None:  # type: ignore[no-untyped-def]
    text = form(record)
    if text.startswith("---"):
        text = text.split("---\n", 2)[2]
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    kinds = [token.type for token in tokens]
    inline = [t.type for token in tokens for t in token.children or ()]
    assert "html_block" not in kinds
    assert not {"html_inline", "link_open", "image"} & set(inline)
    headings = [tokens[i + 1].content for i, t in enumerate(tokens) if t.type == "heading_open"]
    assert sum(t.type == "heading_open" and t.tag == "h1" for t in tokens) == 1
    assert "What this does not show" in headings
    rows = sum(line.startswith("|") and not line.startswith("| ---") for line in text.splitlines())
    assert kinds.count("tr_open") == rows
    widths: set[int] = set()
    for token in tokens:
        if token.type == "table_open":
            widths = set()
        elif token.type == "tr_open":
            cells = 0
        elif token.type in ("td_open", "th_open"):
            cells += 1
        elif token.type == "tr_close":
            widths.add(cells)
            assert len(widths) == 1


def test_a_table_row_with_a_pipe_in_it_has_no_more_cells() -> None:
    line = markdown.table(["a"], [[markdown.escape("x | y")]])[2]
    assert line == "| x \\| y |"


def test_the_card_opens_with_what_the_hub_reads() -> None:
    text = card.render(VARIANTS["passed"])
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert front["library_name"] == "transformers"
    assert "sanitation" in front["tags"]


@pytest.mark.parametrize(
    ("source", "base"),
    [
        ("builtin:smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("/home/ada/models/base", None),
        ("../models/base", None),
        ("models/base.gguf/x", None),
    ],
)
def test_the_card_tells_no_path_of_the_machine(source: str, base: str | None) -> None:
    record = run_record()
    record = record.model_copy(update={"model": record.model.model_copy(update={"source": source})})
    text = card.render(record)
    assert yaml.safe_load(text.split("---\n")[1]).get("base_model") == base
    if base is None:
        assert source not in text
    assert record.export is not None
    assert record.export.directory not in text


def test_the_card_takes_no_folder_for_a_name_on_the_hub() -> None:
    record = run_record()
    model = record.model.model_copy(update={"source": "models/base", "local": True})
    text = card.render(record.model_copy(update={"model": model}))
    assert "base_model" not in yaml.safe_load(text.split("---\n")[1])
    assert "models/base" not in text


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_the_card_names_where_a_built_in_model_is_published(name: str) -> None:
    record = run_record()
    model = record.model.model_copy(update={"source": f"builtin:{name}"})
    text = card.render(record.model_copy(update={"model": model}))
    assert "/" in yaml.safe_load(text.split("---\n")[1])["base_model"]


def test_the_card_tells_neither_owner_nor_ticket_nor_description() -> None:
    record = VARIANTS["passed"]
    text = card.render(record)
    for private in (record.owner, record.ticket, record.policy["description"]):
        assert private
        assert private not in text


def test_the_card_of_a_run_that_failed_does_not_claim_to_have_passed() -> None:
    assert "Its gates were not all met." in card.render(VARIANTS["failed"])
    assert "All 5 gates below passed on these weights" in card.render(VARIANTS["passed"])
