"""What a signed export claims of itself, as in-toto Statements: drawn from its record alone.

- `test-result v0.1 <https://github.com/in-toto/attestation/blob/main/spec/predicates/test-result.md>`_:
  each gate by name, passed, failed, or *warned* where it was inconclusive; the configuration is the
  policy, the data and the base, by their digests
- `Simple Verification Result v0.2
  <https://github.com/in-toto/attestation/blob/main/spec/predicates/svr.md>`_: the verdict in a few
  properties, for whoever only asks whether it passed

The subject of both is the digest that ``model.sig`` signs. Digests that are safeedit's own (over
tensors by name, keyed over data) carry names of their own, as they are no plain sha256 of a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from safeedit.records import RunRecord, Status

TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
VERIFICATION = "https://in-toto.io/attestation/svr/v0.2"

_SCOPE = "SAFEEDIT"
"""Before each property, so that nobody takes it for another verifier's."""
_RESULTS: dict[Status, str] = {"pass": "PASSED", "inconclusive": "WARNED", "fail": "FAILED"}
_LISTS: dict[str, str] = {"PASSED": "passedTests", "WARNED": "warnedTests", "FAILED": "failedTests"}


def statements(record: RunRecord, root: str) -> tuple[dict[str, Any], ...]:
    """The claims of an export.

    Args:
        record: Its run.
        root: What ``model.sig`` signs: sha256 over the sha256 of all files, in hex.

    Returns:
        in-toto Statements as JSON values, in the order of ``claims.jsonl``.
    """
    return (
        _statement(record, root, TEST_RESULT, _test_result(record)),
        _statement(record, root, VERIFICATION, _verification(record)),
    )


def made_at(statement: Mapping[str, Any]) -> datetime | None:
    """When a statement of ours says that it was made; None where it says nothing of it."""
    predicate = statement.get("predicate")
    told = predicate.get("timeCreated") if isinstance(predicate, Mapping) else None
    try:
        found = datetime.fromisoformat(str(told))
    except ValueError:
        return None
    return found if found.tzinfo is not None else None


def subject_digest(statement: Mapping[str, Any]) -> str:
    """The sha256 of a statement's only subject; empty where there is no such thing."""
    try:
        (subject,) = statement["subject"]
        return str(subject["digest"]["sha256"])
    except (KeyError, TypeError, ValueError):
        return ""


def _statement(
    record: RunRecord, root: str, kind: str, predicate: Mapping[str, Any]
) -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict
    from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
    from in_toto_attestation.v1.statement import Statement

    subject = ResourceDescriptor(name=record.policy_name, digest={"sha256": root}).pb
    made = Statement([subject], kind, dict(predicate))
    made.validate()
    return MessageToDict(made.pb)


def _test_result(record: RunRecord) -> dict[str, Any]:
    lists: dict[str, list[str]] = {name: [] for name in _LISTS.values()}
    for verdict in record.verdicts:
        told = f"{verdict.metric} {verdict.condition}"
        lists[_LISTS[_RESULTS[verdict.status]]].append(told)
    return {
        "result": _RESULTS[record.status],
        "configuration": list(_configuration(record)),
        **lists,
    }


def _configuration(record: RunRecord) -> Iterator[dict[str, Any]]:
    yield {"name": "policy", "digest": {"sha256": record.policy_digest}}
    yield {"name": "base model", "digest": {"safeedit_weights_1": record.model.digest}}
    for name, data in sorted(record.datasets.items()):
        yield {"name": name, "digest": {"safeedit_data_1": str(data["digest"])}}


def _verification(record: RunRecord) -> dict[str, Any]:
    policy = {"name": record.policy_name, "digest": {"sha256": record.policy_digest}}
    return {
        "verifier": {
            "id": f"pkg:pypi/safeedit@{record.environment.safeedit}",
            "policies": [policy],
        },
        "timeCreated": _ended(record),
        "properties": list(_properties(record)),
    }


def _properties(record: RunRecord) -> Iterator[str]:
    if record.status == "pass":
        yield f"{_SCOPE}_ALL_GATES_PASSED"
    if record.export is not None:
        yield f"{_SCOPE}_MEASURED_ON_EXPORTED_BYTES"
    if record.edits and all(edit.controls for edit in record.edits):
        yield f"{_SCOPE}_RANDOM_CONTROL_MEASURED"
    tried = {attack.tries for attack in record.attacks if attack.points}
    yield from (f"{_SCOPE}_ATTACKED_BY_{name.upper()}" for name in sorted(tried))


def _ended(record: RunRecord) -> str:
    """When the run ended, by the clock at its start and what it took: a clock that was set in
    between does not move it."""
    started = datetime.fromisoformat(record.started)
    ended = started + timedelta(seconds=round(record.resources.wall_seconds))
    return ended.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
