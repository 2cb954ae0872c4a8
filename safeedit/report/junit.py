"""Gates as JUnit test cases, for pipelines that show those.

A failed gate is a failure; an inconclusive one is an error, so that no pipeline takes it for
passed. A run without gates has one skipped case, for an empty suite reads like success.
"""

from __future__ import annotations

from xml.etree.ElementTree import Element, SubElement, indent, tostring

from safeedit.records import RunRecord
from safeedit.report.content import headline
from safeedit.text.display import clean


def render(record: RunRecord) -> str:
    """The XML document."""
    statuses = [verdict.status for verdict in record.verdicts]
    counts = {
        "tests": str(len(statuses) or 1),
        "failures": str(statuses.count("fail")),
        "errors": str(statuses.count("inconclusive")),
        "skipped": "0" if statuses else "1",
        "time": f"{record.resources.wall_seconds:.3f}",
    }
    name = clean(record.policy_name)
    root = Element("testsuites", counts)
    suite = SubElement(
        root, "testsuite", counts | {"name": name, "timestamp": clean(record.started)}
    )
    properties = SubElement(suite, "properties")
    for key, value in (
        ("run_id", record.run_id),
        ("status", record.status),
        ("exit_code", record.exit_code),
        ("policy_digest", record.policy_digest),
        ("model", record.model.source),
        ("model_digest", record.model.digest),
    ):
        SubElement(properties, "property", {"name": key, "value": clean(value)})
    for verdict in record.verdicts:
        case = SubElement(
            suite,
            "testcase",
            {"classname": name, "name": clean(f"{verdict.metric} {verdict.condition}")},
        )
        if verdict.status != "pass":
            kind = "failure" if verdict.status == "fail" else "error"
            found = SubElement(case, kind, {"type": verdict.status})
            found.set("message", clean(verdict.reason))
    if not statuses:
        case = SubElement(suite, "testcase", {"classname": name, "name": "gates"})
        SubElement(case, "skipped", {"message": clean(headline(record))})
    indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(root, encoding="unicode") + "\n"
