"""What follows from what within a run record, computed again.

A record holds measurements and what was concluded from them. The conclusions add no knowledge:
comparisons follow from the metrics before and after, verdicts from the comparisons and the
policy's gates, the status from the verdicts, the exit code from the status. A record in which
they don't was changed by hand. Pure; no files, no model.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from safeedit.policy import GateSpec, LedgerSpec
from safeedit.policy.model import further_seeds
from safeedit.records import RECOVERED, Metric, RunRecord, Verdict
from safeedit.statistics.metrics import compare, rate_interval_of
from safeedit.statistics.recovery import recovery
from safeedit.statistics.seeds import over_seeds
from safeedit.statistics.verdicts import overall, verdicts_on


def contradictions(record: RunRecord, *, earlier_erasures: bool = False) -> list[str]:
    """What in the record of an exporting run does not follow from the rest of it, a line each.

    Args:
        record: The record.
        earlier_erasures: The export's ledger holds rows of earlier runs, whose re-audit is a
            gate.
    """
    found = [
        *_of_one_seed(record),
        *_of_the_seeds(record),
        *_of_the_verdicts(record, earlier_erasures),
    ]
    for other in record.other_seeds:
        own = [*_of_one_seed(other), *_of_the_verdicts(other, earlier_erasures)]
        found += [f"seed {other.seed}: {line}" for line in own]
    return found


def _of_one_seed(record: RunRecord) -> list[str]:
    return [
        *_of_the_policy(record),
        *_of_the_metrics(record),
        *_of_the_comparisons(record),
        *_of_the_attacks(record),
    ]


def _of_the_seeds(record: RunRecord) -> Iterator[str]:
    """Those that the policy asks for were run, each with the same policy on the same model."""
    policy = record.policy
    found = tuple(run.seed for run in record.all_seeds)
    asked = (record.seed, *further_seeds(record.seed, len(found)))
    if policy.get("seeds", 1) != len(found) or asked != found:
        yield "other_seeds: not those of the policy"
    for other in record.other_seeds:
        theirs = {**policy, "seed": other.seed, "seeds": 1, "export": None}
        if other.policy != theirs:
            yield f"other_seeds: seed {other.seed} was run with another policy"
        if other.model.digest != record.model.digest:
            yield f"other_seeds: seed {other.seed} was run on another model"
        if other.other_seeds or other.export is not None or other.command != record.command:
            yield f"other_seeds: seed {other.seed} is no run of one seed without export"


def changed_tensors(record: RunRecord) -> set[str]:
    """Names of the tensors that the run's edits changed."""
    return {change.name for edit in record.edits for change in edit.changes}


def _of_the_policy(record: RunRecord) -> Iterator[str]:
    policy = record.policy
    text = json.dumps(policy, sort_keys=True, ensure_ascii=False)
    if hashlib.sha256(text.encode()).hexdigest() != record.policy_digest:
        yield "policy_digest: not that of the policy in the record"
    for field, theirs in (
        ("policy_name", policy.get("name")),
        ("owner", policy.get("owner")),
        ("ticket", policy.get("ticket")),
        ("seed", policy.get("seed")),
    ):
        if getattr(record, field) != theirs:
            yield f"{field}: not the policy's"
    asked = [(edit["id"], edit["use"]) for edit in policy.get("edits") or ()]
    if asked != [(edit.id, edit.use) for edit in record.edits]:
        yield "edits: not those of the policy"
    measured = {audit.id for audit in record.after}
    for audit in policy.get("audits") or ():
        if audit.get("required", True) and audit["id"] not in measured:
            yield f"after: the required audit {audit['id']} is missing"


def _of_the_metrics(record: RunRecord) -> Iterator[str]:
    """Rates are the share of their items; other metrics may be any statistic of theirs."""
    found = [
        (part, metric)
        for part, audits in (("before", record.before), ("after", record.after))
        for audit in audits
        for metric in audit.metrics
    ]
    found += [
        (f"attack {attack.id}", metric)
        for attack in record.attacks
        for point in attack.points
        for metric in (*point.edited, *point.base, *point.never_known)
    ]
    for part, metric in found:
        interval = metric.interval
        if not metric.items or interval is None or not interval.method.startswith("wilson"):
            continue
        again = rate_interval_of(metric, interval.level)
        mean = _mean(metric)
        if not _alike(metric.value, mean) or not _alike(_plain(interval), _plain(again)):
            yield f"{part}: {metric.name} is not the share of its items"


def _of_the_comparisons(record: RunRecord) -> Iterator[str]:
    before = {metric.name: metric for audit in record.before for metric in audit.metrics}
    after = {metric.name: metric for audit in record.after for metric in audit.metrics}
    if [comparison.name for comparison in record.comparisons] != list(after):
        yield "comparisons: not one for each metric after the edits"
        return
    for comparison in record.comparisons:
        again = compare(before.get(comparison.name), after[comparison.name])
        if not _alike(comparison.model_dump(), again.model_dump()):
            yield f"comparisons: {comparison.name} does not follow from its metrics"


def _of_the_attacks(record: RunRecord) -> Iterator[str]:
    """They are the policy's, each was made whole, and what came back follows from its metrics."""
    asked = [
        (attack["id"], attack["use"], tuple(attack["audits"]))
        for attack in record.policy.get("attacks") or ()
    ]
    if asked != [(attack.id, attack.use, attack.audits) for attack in record.attacks]:
        yield "attacks: not those of the policy"
    before = {metric.name: metric for audit in record.before for metric in audit.metrics}
    after = {metric.name: metric for audit in record.after for metric in audit.metrics}
    for attack in record.attacks:
        if attack.failed or not attack.points:
            yield f"attacks: {attack.id} was not made whole, and nothing is exported then"
        for point in attack.points if not attack.left_out else ():
            base = {metric.name: metric for metric in point.base}
            edited = {metric.name: metric for metric in point.edited}
            for audit, name in attack.headlines.items():
                metric, under = edited.get(f"{audit}.{RECOVERED}"), edited.get(name)
                if metric is None or under is None:
                    yield f"attacks: {audit} is missing under {attack.id}"
                    continue
                figures = (before.get(name), base.get(name), after.get(name), under)
                if not _alike(metric.model_dump(), recovery(audit, *figures).model_dump()):
                    yield f"attacks: {metric.name} under {attack.id} does not follow"


def _of_the_verdicts(record: RunRecord, earlier_erasures: bool) -> Iterator[str]:
    gates = [GateSpec.model_validate(gate) for gate in record.policy.get("gates") or ()]
    if earlier_erasures:
        gates.append(LedgerSpec.model_validate(record.policy.get("ledger")).gate)
    comparisons = {comparison.name: comparison for comparison in record.comparisons}
    if not gates:
        yield "policy: it has no gate, and nothing is exported without one"
    judged = [
        (gate, again)
        for gate in gates
        for again in verdicts_on(gate, comparisons, record.edits, record.attacks)
    ]
    judged = _with_other_seeds(record, judged)
    if len(judged) != len(record.verdicts):
        yield f"verdicts: {len(record.verdicts)} for {len(judged)} gates"
    for (gate, again), verdict in zip(judged, record.verdicts, strict=False):
        if not _alike(verdict.model_dump(), again.model_dump()):
            yield (
                f"verdicts: {gate.metric} {gate.condition} is {again.status} by the record's "
                f"metrics, and the record says {verdict.status}"
            )
    status, exit_code = overall(record.verdicts)
    if record.status != status:
        yield f"status: {record.status}, where the verdicts make it {status}"
    if record.exit_code != exit_code:
        yield f"exit_code: {record.exit_code}, where the verdicts make it {exit_code}"


def _with_other_seeds(
    record: RunRecord, judged: Sequence[tuple[GateSpec, Verdict]]
) -> list[tuple[GateSpec, Verdict]]:
    """What each gate says of all seeds together, where others were run."""
    found = []
    for place, (gate, own) in enumerate(judged):
        by_seed = {record.seed: own}
        for other in record.other_seeds:
            if len(other.verdicts) == len(judged):  # else said of it alone
                by_seed[other.seed] = other.verdicts[place]
        found.append((gate, over_seeds(gate, by_seed)))
    return found


def _mean(metric: Metric) -> float:
    weights = [metric.weights.get(key, 1.0) for key in metric.items]
    products = (w * x for w, x in zip(weights, metric.items.values(), strict=True))
    return math.fsum(products) / math.fsum(weights)


def _plain(part: Any) -> Any:
    return None if part is None else part.model_dump()


def _alike(one: Any, other: Any) -> bool:
    """Equal but for the last digits of floats, in which machines may differ."""
    if isinstance(one, float) and isinstance(other, float):
        return (
            one == other
            or (math.isnan(one) and math.isnan(other))
            or math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)
        )
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, Sequence) and isinstance(other, Sequence) and not isinstance(one, str):
        return len(one) == len(other) and all(map(_alike, one, other))
    return bool(one == other)
