"""What the gates found, in SARIF 2.1.0: for code scanning, which shows it at the policy's lines.

A failed gate is a result of level *error*, an inconclusive one of level *warning*; a gate that
passed is none, as the format means by results what is to be looked at. Every gate is a rule.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from sarif_pydantic import (
    ArtifactLocation,
    Invocation,
    Level,
    Location,
    Message,
    PhysicalLocation,
    Region,
    ReportingDescriptor,
    Result,
    Run,
    Sarif,
    Tool,
    ToolDriver,
)

from safeedit.policy import GateSpec
from safeedit.records import RunRecord, Verdict
from safeedit.text.display import clean

_SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
_LEVELS = {"fail": Level.ERROR, "inconclusive": Level.WARNING}


def render(record: RunRecord) -> str:
    """The log, as JSON."""
    rules = {_rule(verdict): verdict for verdict in record.verdicts}
    driver = ToolDriver(
        name="safeedit",
        version=record.environment.safeedit,
        rules=[
            ReportingDescriptor(
                id=rule,
                short_description=Message(text=clean(f"{verdict.metric} {verdict.condition}")),
            )
            for rule, verdict in rules.items()
        ],
    )
    run = Run(
        tool=Tool(driver=driver),
        # Whether it came to an end, not whether its gates passed.
        invocations=[Invocation(execution_successful=record.exit_code != 3)],
        results=list(_results(record, list(rules))),
        properties={
            "policy": clean(record.policy_name),
            "runId": record.run_id,
            "status": record.status,
            "weights": record.export.weights_digest if record.export else "",
        },
    )
    log = Sarif(schema_uri=_SCHEMA, runs=[run])
    return log.model_dump_json(by_alias=True, exclude_none=True, indent=2) + "\n"


def gate_lines(record: RunRecord) -> dict[tuple[str, str], int]:
    """Metric and condition of each gate -> the line of the policy that it stands in."""
    gates = [GateSpec.model_validate(gate) for gate in record.policy.get("gates") or ()]
    found: dict[tuple[str, str], int] = {}
    for gate, line in zip(gates, record.gate_lines, strict=False):
        names = [gate.condition_under(attack) for attack in gate.under] or [gate.condition]
        for name in names:
            found.setdefault((gate.metric, name), line)
    return found


def _results(record: RunRecord, rules: list[str]) -> Iterator[Result]:
    lines = gate_lines(record)
    for verdict in record.verdicts:
        if verdict.status == "pass":
            continue
        rule = _rule(verdict)
        yield Result(
            rule_id=rule,
            rule_index=rules.index(rule),
            level=_LEVELS[verdict.status],
            message=Message(text=clean(verdict.reason)),
            locations=_locations(record, lines.get((verdict.metric, verdict.condition))),
            partial_fingerprints={"gate/v1": hashlib.sha256(rule.encode()).hexdigest()},
        )


def _locations(record: RunRecord, line: int | None) -> list[Location] | None:
    if not record.policy_file:
        return None
    region = Region(start_line=line) if line else None
    place = ArtifactLocation(uri=clean(record.policy_file))
    return [Location(physical_location=PhysicalLocation(artifact_location=place, region=region))]


def _rule(verdict: Verdict) -> str:
    return clean(f"{verdict.metric} {verdict.condition}")
