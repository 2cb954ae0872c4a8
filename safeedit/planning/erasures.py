"""What a run does with the ledger: what it adds, and which earlier erasures are audited again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safeedit import catalog
from safeedit.errors import PolicyError
from safeedit.export.ledger.file import find_ledger
from safeedit.export.ledger.keys import LedgerKey, read_key
from safeedit.export.ledger.requests import Coverage, coverage, dataset_of, read_requests
from safeedit.export.ledger.update import Erased, LedgerUpdate
from safeedit.planning.located import Located
from safeedit.planning.plan import PlannedAudit, PlannedEdit
from safeedit.planning.stages import plan_audit
from safeedit.policy import DataSpec, LedgerSpec, LoadedPolicy
from safeedit.policy.reading import FieldPath


def plan_ledger(
    loaded: LoadedPolicy,
    source: str,
    edits: Sequence[PlannedEdit],
    warnings: list[str],
    digest_key: bytes | None,
) -> tuple[LedgerUpdate | None, tuple[PlannedAudit, ...]]:
    """What this run does with the ledger, and the audit of what earlier exports erased."""
    spec = loaded.policy.ledger
    with Located(loaded, ("model", "source")):
        ledger_file = find_ledger(Path(source).expanduser())
    earlier = ledger_file.rows if ledger_file is not None else ()
    if earlier and (spec is None or spec.requests is None):
        at, missing = (("model", "source"), "ledger") if spec is None else (("ledger",), "requests")
        told = f"the model's ledger lists {len(earlier)} earlier erasures, and the policy has no "
        told += f"'{missing}' to audit them again"
        if loaded.policy.export is not None:
            raise loaded.error(
                at,
                told,
                "add 'ledger: {key: ..., requests: ...}' with the key of the last policy and "
                "everything requested so far",
            )
        warnings.append(told)
    if spec is None:
        return None, ()
    with Located(loaded, ("ledger", "key")):
        key, about_key = read_key(spec.key, loaded.base)
        if ledger_file is not None:
            ledger_file.require(key)
    warnings += about_key
    erased = _erased(loaded, edits, key)
    if any(item.ticket is None for item in erased):
        warnings.append(
            "erased items enter the ledger without a ticket: give the policy or the rows one"
        )
    _warn_of_retaining(edits, key, {row.digest for row in earlier}, warnings)
    if spec.requests is None:
        return LedgerUpdate(key, earlier, (), erased, None), ()
    with Located(loaded, ("ledger", "requests")):
        found = coverage(read_requests(spec.requests, loaded.base, key), earlier)
    now = {item.digest for item in erased}
    if left := sum(now.isdisjoint(request.digests) for request in found.uncovered):
        warnings.append(
            f"{left} of the ledger's requests are neither in the ledger nor erased by this policy"
        )
    upkeep = LedgerUpdate(key, earlier, found.missing, erased, spec.gate if earlier else None)
    if found.missing:
        warnings.append(upkeep.left_out())
    return upkeep, _plan_again(loaded, spec, found, digest_key) if found.covered else ()


def _plan_again(
    loaded: LoadedPolicy, spec: LedgerSpec, found: Coverage, key: bytes | None
) -> tuple[PlannedAudit, ...]:
    """The audit of earlier erasures."""
    assert spec.requests is not None
    at: FieldPath = ("ledger", "audit")
    with Located(loaded, at):
        kind = catalog.auditor(spec.stage.use)
        role = next((role for role in kind.roles if role.erased and role.answered), None)
        if role is None or spec.gate.name not in {metric.name for metric in kind.metrics}:
            fit = [
                name
                for name in catalog.names("auditors")
                if spec.gate.name in {metric.name for metric in catalog.auditor(name).metrics}
            ]
            raise PolicyError(
                f"{spec.stage.use} can't audit erasures again: it has no {spec.gate.name}",
                remedy=f"one of {', '.join(fit)}",
            )
    notes = [f"requests that the ledger does not cover: {len(found.uncovered)}"]
    with Located(loaded, ("ledger", "requests")):
        data = dataset_of(
            (request for request, _ in found.covered),
            spec.requests,
            role,
            seed=loaded.policy.seed,
            notes=notes * bool(found.uncovered),
            key=key,
        )
    return (plan_audit(loaded, spec.stage, at, key, {role.name: data}),)


def _erased(
    loaded: LoadedPolicy, edits: Sequence[PlannedEdit], key: LedgerKey
) -> tuple[Erased, ...]:
    """Every item that an edit erases, under each of its tickets, in order."""
    found: dict[tuple[str | None, str], list[str]] = {}
    for index, edit in enumerate(edits):
        for role in edit.editor.roles:
            data = edit.data.get(role.name)
            if not role.erased or role.comparison_only or data is None:
                continue
            field = role.name if role.name in edit.spec.options else "data"
            at: FieldPath = ("edits", index, field)
            spec = loaded.parse(DataSpec, edit.spec.options[field], at)
            # Read again: a data set holds an item once, though two tickets may ask for it.
            with Located(loaded, at):
                rows = read_requests(spec, loaded.base, key)
            used = {digest for item in data for digest in key.digests(item)}
            for row in rows:
                if row.digest in used:
                    ticket = row.ticket or loaded.policy.ticket
                    found.setdefault((ticket, row.digest), []).append(edit.id)
    return tuple(
        Erased(ticket, digest, tuple(dict.fromkeys(ids))) for (ticket, digest), ids in found.items()
    )


def _warn_of_retaining(
    edits: Sequence[PlannedEdit], key: LedgerKey, earlier: set[str], warnings: list[str]
) -> None:
    for edit in edits:
        for role, data in edit.data.roles.items():
            if data.erased:
                continue
            again = sum(not earlier.isdisjoint(key.digests(item)) for item in data if item.answer)
            if again:
                warnings.append(
                    f"edit {edit.id}: {again} items of its {role} data were erased by an earlier "
                    "policy; fitting them may bring them back"
                )
