"""Gates as JUnit test cases, for pipelines that show those.

A failed gate is a failure; an inconclusive one is an error, so that no pipeline takes it for
passed. A run without gates has one skipped case, for an empty suite reads like success.
"""

from __future__ import annotations

from xml.etree import ElementTree

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from safeedit.records import RunRecord, Verdict
from safeedit.report.content import headline
from safeedit.text.display import clean


def render(record: RunRecord) -> str:
    """The XML document."""
    name = clean(record.policy_name)
    suite = TestSuite(name)
    suite.timestamp = clean(record.started)
    for key, value in (
        ("run_id", record.run_id),
        ("status", record.status),
        ("exit_code", record.exit_code),
        ("policy_digest", record.policy_digest),
        ("model", record.model.source),
        ("model_digest", record.model.digest),
    ):
        suite.add_property(key, clean(value))
    for verdict in record.verdicts:
        suite.add_testcase(_case(name, verdict))
    if not record.verdicts:
        case = TestCase("gates", classname=name)
        case.result = [Skipped(clean(headline(record)))]
        suite.add_testcase(case)
    document = JUnitXml()
    document.add_testsuite(suite)
    document.update_statistics()
    # The time is the run's: no gate has one of its own.
    suite.time = document.time = round(record.resources.wall_seconds, 3)
    root = ElementTree.fromstring(document.tostring())
    root.attrib.pop("skipped", None)  # which the schema has for suites alone
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _case(name: str, verdict: Verdict) -> TestCase:
    case = TestCase(clean(f"{verdict.metric} {verdict.condition}"), classname=name)
    if verdict.status != "pass":
        kind = Failure if verdict.status == "fail" else Error
        case.result = [kind(clean(verdict.reason), verdict.status)]
    return case
