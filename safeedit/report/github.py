"""Gates as annotations of GitHub Actions: workflow commands, a line each.

``::error file=policy.yaml,line=12,title=...::...`` on stdout or stderr of a step is shown at that
line of the pull request (docs.github.com, *Workflow commands*). Data in them is escaped as the
runner reads it.
"""

from __future__ import annotations

from safeedit.records import RunRecord
from safeedit.report.content import headline
from safeedit.report.sarif import gate_lines
from safeedit.report.wording import STATUS_WORDS
from safeedit.text.display import clean

_KINDS = {"fail": "error", "inconclusive": "warning"}


def render(record: RunRecord) -> str:
    """A line for each failed or inconclusive gate; where there is none, one for the run."""
    lines = gate_lines(record)
    found = [
        _command(
            _KINDS[verdict.status],
            _place(record, lines.get((verdict.metric, verdict.condition))),
            f"{record.policy_name}: {verdict.metric} {STATUS_WORDS[verdict.status]}",
            verdict.reason,
        )
        for verdict in record.verdicts
        if verdict.status != "pass"
    ]
    if not found:
        kind = _KINDS.get(record.status, "notice")
        found.append(_command(kind, _place(record, None), record.policy_name, headline(record)))
    return "".join(f"{line}\n" for line in found)


def _place(record: RunRecord, line: int | None) -> dict[str, str]:
    if not record.policy_file:
        return {}
    return {"file": record.policy_file, **({"line": str(line)} if line else {})}


def _command(kind: str, place: dict[str, str], title: str, message: str) -> str:
    properties = {**place, "title": title}
    told = ",".join(f"{name}={_property(clean(value))}" for name, value in properties.items())
    return f"::{kind} {told}::{_data(clean(message))}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
