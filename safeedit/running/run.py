"""The one road: before-audit, edit, stage, reload, after-audit, judge, promote.

This is the only place where a delta meets a model. :func:`execute` runs a policy and
:func:`measure` only audits; both return a :class:`~safeedit.records.RunRecord`, whatever the
verdict. Nothing is exported unless every gate passed on the very bytes that are promoted.

Fails with :class:`~safeedit.errors.EditError` where an editor breaks its contract (changes the
model, or a tensor outside its plan) and with the errors of the stages it runs.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import platform
import resource
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from safeedit import __version__, catalog
from safeedit.code import code_digest
from safeedit.contracts import (
    AuditOutcome,
    Control,
    Proposal,
    RunContext,
    ScorerRef,
    Stages,
    unannounced,
)
from safeedit.delta import WeightDelta
from safeedit.errors import AuditError, EditError, ExportError, ModelError
from safeedit.export.checkpoint import write_checkpoint
from safeedit.export.disk import as_export_error, writing
from safeedit.export.evidence import claimed, write_evidence
from safeedit.export.interrupts import until_done
from safeedit.export.manifest import hash_files
from safeedit.export.staging import Staging
from safeedit.model.carried import left_behind
from safeedit.model.digest import digest_of
from safeedit.model.handle import ModelHandle
from safeedit.model.sources import open_model
from safeedit.planning.plan import Plan, PlannedAudit, PlannedEdit
from safeedit.policy import GateSpec
from safeedit.records import (
    AuditRecord,
    Comparison,
    ControlRecord,
    DosePoint,
    EditRecord,
    EnvironmentRecord,
    ExportRecord,
    Metric,
    ModelRecord,
    ResourceRecord,
    RunRecord,
    Split,
    Verdict,
)
from safeedit.report import render_evidence
from safeedit.running.store import Audited, Store
from safeedit.scorers.score_cache import scorers
from safeedit.statistics.known import unless_unknown
from safeedit.statistics.metrics import compare
from safeedit.statistics.verdicts import judge, overall

Metrics = dict[str, Metric]


@dataclass
class Clock:
    """Announces the stages of a run and keeps their seconds, in order."""

    planned: tuple[str, ...]
    """All stages of this run."""
    announce: Stages = unannounced
    stages: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        number = self.planned.index(name) + 1
        try:
            with self.announce(name, number, len(self.planned)):
                yield
        finally:
            elapsed = time.perf_counter() - start
            self.stages[name] = self.stages.get(name, 0.0) + elapsed

    def record(self) -> ResourceRecord:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return ResourceRecord(
            wall_seconds=time.perf_counter() - self.started,
            peak_memory_bytes=peak if sys.platform == "darwin" else peak * 1024,
            peak_device_bytes=(
                torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
            ),
            stages=dict(self.stages),
        )


@dataclass
class _Session:
    """A run in progress: the plan, the context, and what has been measured of the base."""

    plan: Plan
    ctx: RunContext
    clock: Clock
    warnings: list[str]
    store: Store
    baselines: dict[tuple[str, Split], Audited] = field(default_factory=dict)
    aims: dict[str, frozenset[str]] = field(default_factory=dict)
    """Audit -> bare names of the metrics that choosing doses looks at on validation data."""
    skipped: set[str] = field(default_factory=set)
    """Audits that could not be made on test data."""
    idle: bool = False
    """An edit changed no stored weight, or the edits together left the base as it was: whatever
    the gates say, it is not about an edit."""
    nonce: str = field(default_factory=lambda: secrets.token_hex(2))
    """Tells this run from others of the same policy in the same second."""

    def skip(self, audit: PlannedAudit, split: Split, error: AuditError) -> None:
        if split == "test":
            self.skipped.add(audit.id)
        remedy = f" ({error.remedy})" if error.remedy else ""
        self.ctx.warn(f"audit {audit.id} was skipped on {split} data: {error.message}{remedy}")

    def baseline_metrics(self, split: Split) -> Metrics:
        """All metrics of the untouched model on one split, by full name."""
        found: Metrics = {}
        for (_, measured), audited in self.baselines.items():
            if measured == split:
                found |= audited.metrics
        return found

    def baseline(self, audit: PlannedAudit, split: Split) -> Audited | None:
        return self.baselines.get((audit.id, split))


@until_done()
def execute(
    plan: Plan, ctx: RunContext, *, write_reports: Callable[[RunRecord], None] = lambda record: None
) -> RunRecord:
    """Run a policy from its plan to its verdict, exporting what passed.

    Args:
        plan: From :func:`safeedit.planning.resolution.make_plan`.
        ctx: Seed, cache, digest key, progress. Its ``warn`` also reaches the record.
        write_reports: Called with the final record, also where the export itself fails.

    Raises:
        EditError: an editor changed the model, or a delta a tensor outside its plan.
        ModelError: the model can't be opened, or its weights are not finite.
        ExportError: the checkpoint could not be written; nothing new stands under its name.
    """
    started = datetime.now(UTC)
    session, model = _open(plan, ctx, _stages(plan))
    untouched, model_record = model.digest(), _model_record(plan, model)
    targets = [gate for e in plan.edits if e.spec.dose == "auto" for gate in e.targets]
    for gate in targets:
        session.aims[gate.audit] = session.aims.get(gate.audit, frozenset()) | {gate.name}
    wanted: list[tuple[PlannedAudit, Split]] = [(audit, "test") for audit in plan.audits]
    wanted += [(audit, "validation") for audit in plan.audits if audit.id in session.aims]
    with session.clock.stage("audit before"):
        for audit, split in wanted:
            _audit_base(session, model, audit, split)

    edits: list[EditRecord] = []
    deltas: dict[str, WeightDelta] = {}
    for number, edit in enumerate(plan.edits, 1):
        edited, delta = _edit(session, model, edit)
        if number < len(plan.edits):
            with session.clock.stage(f"edit {edit.id}: gates so far"):
                edited = edited.model_copy(update={"gates_so_far": _gates_so_far(session, model)})
        edits.append(edited)
        deltas[edit.id] = delta
    if edits and not session.idle and model.digest() == untouched:
        session.idle = True
        session.ctx.warn("the edits undo each other: the weights are those of the base")

    def finish(after: Sequence[AuditRecord], export: ExportRecord | None) -> RunRecord:
        return _record(session, "apply", started, model_record, tuple(edits), tuple(after), export)

    target, policy = plan.export_dir, plan.loaded.policy
    record: RunRecord | None = None
    if target is None or policy.export is None:
        with session.clock.stage("audit after"):
            after = _audit_edited(session, model)
        record = finish(after, None)
        write_reports(record)
        return record

    try:
        with Staging(target, overwrite=policy.export.overwrite) as staging:
            with session.clock.stage("stage"):
                touched = {name for delta in deltas.values() for name in delta.updates}
                written = write_checkpoint(model, staging.path, touched)
                edited_digest, run_dtype = model.digest(), model_record.dtype
                del model
                gc.collect()
            with session.clock.stage("reload"):
                staged = _read_back(staging.path, run_dtype, policy.model.device)
                if staged.digest() != edited_digest:
                    raise ExportError(
                        "the staged checkpoint does not hold the bytes that were edited",
                        remedy="report this with the model's architecture and dtype",
                    )
            with session.clock.stage("audit after"):
                after = _audit_edited(session, staged)
            with writing(staging.path):
                files = hash_files(staging.path)
            export = ExportRecord(
                directory=str(target),
                weights_digest=written.digest,
                untouched=len(written.digests) - len(written.changed),
                files=files,
            )
            record = finish(after, export)
            if record.status == "pass":
                ledger = plan.ledger.text(record) if plan.ledger is not None else None
                export = claimed(export, written.originals, ledger)
                record = record.model_copy(update={"export": export})
                write_evidence(
                    staging.path,
                    record,
                    deltas=deltas,
                    undo_tensors=written.originals,
                    reports=render_evidence(record),
                    ledger=ledger,
                )
                staging.promote()
            else:
                record = record.model_copy(update={"export": None})
    except OSError as raised:
        error = raised if isinstance(raised, ExportError) else as_export_error(target, raised.errno)
        measured = record or finish((), None)
        failed = measured.model_copy(
            update={
                "export": None,
                "exit_code": error.exit_code,
                "warnings": (*measured.warnings, f"nothing was exported: {error.message}"),
            }
        )
        try:
            write_reports(failed)
        except ExportError as second:  # the same full disk, most likely: the first one counts
            ctx.warn(second.message)
        if error is raised:
            raise
        raise error from raised
    try:
        write_reports(record)
    except ExportError as error:
        if record.export is not None:
            error.message += "; the export itself is complete and holds the report"
        raise
    return record


def _read_back(folder: Path, dtype: str, device: str) -> ModelHandle:
    try:
        return open_model(str(folder), dtype=dtype, device=device)
    except ModelError as error:
        raise ExportError(
            f"the staged checkpoint can't be read back: {error.message}",
            file=folder,
            remedy="see whether the disk is full or failing, and run again",
        ) from error


def measure(
    plan: Plan,
    ctx: RunContext,
    *,
    base: str | None = None,
    write_reports: Callable[[RunRecord], None] = lambda record: None,
) -> RunRecord:
    """Audit the policy's model as it is, editing nothing.

    Args:
        plan: The plan; its edits and export are ignored.
        ctx: As for :func:`execute`.
        base: Source of the untouched model to compare with; without it the model is its own
            base, and metrics that need one (locality) read as unchanged.
        write_reports: Called with the final record.
    """
    started = datetime.now(UTC)
    stages = ["open model", "audit before", *(["audit after"] if base is not None else [])]
    session, model = _open(plan, ctx, stages)
    model_record = _model_record(plan, model)
    spec = plan.loaded.policy.model
    if base is None:
        with session.clock.stage("audit before"):
            for audit in plan.audits:
                _audit_base(session, model, audit, "test")
        after = [found.record for found in session.baselines.values()]
    else:
        untouched = open_model(base, dtype=spec.dtype, device=spec.device)
        with session.clock.stage("audit before"):
            for audit in plan.audits:
                _audit_base(session, untouched, audit, "test")
        del untouched
        gc.collect()
        with session.clock.stage("audit after"):
            after = _audit_edited(session, model)
    record = _record(session, "audit", started, model_record, (), tuple(after), None)
    write_reports(record)
    return record


def _stages(plan: Plan) -> list[str]:
    """The stages of a run to its verdict, in order."""
    found = ["open model", "audit before"]
    for number, edit in enumerate(plan.edits, 1):
        found += [f"edit {edit.id}: fit", f"edit {edit.id}: dose"]
        if edit.spec.control:
            found.append(f"edit {edit.id}: control")
        if number < len(plan.edits):
            found.append(f"edit {edit.id}: gates so far")
    exporting = plan.export_dir is not None and plan.loaded.policy.export is not None
    return [*found, *(["stage", "reload"] if exporting else []), "audit after"]


def _open(plan: Plan, ctx: RunContext, stages: Sequence[str]) -> tuple[_Session, ModelHandle]:
    warnings = list(plan.warnings)

    def warn(message: str) -> None:
        warnings.append(message)
        ctx.warn(message)

    told = replace(ctx, warn=warn)
    session = _Session(
        plan,
        replace(told, scorer=scorers(told, catalog.make_scorer)),
        Clock(tuple(stages), ctx.stages),
        warnings,
        Store.of(told),
    )
    for audit in plan.audits:
        _scorers(session, audit)  # what they can't see is said even where all is in the cache
    torch.manual_seed(ctx.seed)
    spec = plan.loaded.policy.model
    with session.clock.stage("open model"):
        model = open_model(
            plan.model_source, revision=spec.revision, dtype=spec.dtype, device=spec.device
        )
    left = left_behind(model.folder) if plan.export_dir and model.folder else ()
    if left:
        warn(f"files of the model that an export does not get: {', '.join(left)}")
    return session, model


def _edit(
    session: _Session, model: ModelHandle, edit: PlannedEdit
) -> tuple[EditRecord, WeightDelta]:
    """Fit, choose the dose, measure the control, apply, and prove what was not touched."""
    start = time.perf_counter()
    ctx, clock = session.ctx, session.clock
    before = model.tensor_digests(fresh=True)
    with clock.stage(f"edit {edit.id}: fit"):
        proposal = edit.editor.propose(model, edit.data, ctx)
    if model.tensor_digests(fresh=True) != before:
        raise EditError(f"edit {edit.id}: the editor changed the model while proposing")
    if not proposal.doses:
        raise EditError(f"edit {edit.id}: the editor proposed no dose")
    with clock.stage(f"edit {edit.id}: dose"):
        dose, curve, met = _choose_dose(session, model, edit, proposal)
    delta = proposal.at(dose)
    planned = {tensor.name for tensor in edit.tensors}
    if stray := sorted(delta.updates.keys() - planned):
        raise EditError(f"edit {edit.id}: the delta names tensors outside its plan: {stray}")

    controls: tuple[ControlRecord, ...] = ()
    if edit.spec.control:
        with clock.stage(f"edit {edit.id}: control"):
            controls = _controls(session, model, edit, delta, proposal.controls(dose))

    undo = model.apply(delta)
    changed = {
        name for name, digest in model.tensor_digests(fresh=True).items() if digest != before[name]
    }
    if stray := sorted(changed - delta.updates.keys()):
        raise EditError(f"edit {edit.id}: tensors outside the plan have moved: {stray}")
    if not changed:
        session.idle = True
        ctx.warn(f"edit {edit.id} changed no stored weight: its effect vanishes in {model.dtype}")
    record = EditRecord(
        id=edit.id,
        use=edit.spec.use,
        params=session.plan.hidden.value(edit.params.model_dump(mode="json")),
        data_digests={role: data.digest for role, data in edit.data.roles.items()},
        dose=dose,
        dose_mode="auto" if edit.spec.dose == "auto" else "fixed",
        dose_curve=curve,
        targets_met=met,
        changes=undo.changes,
        delta_digest=delta.digest(),
        untouched_verified=len(before.keys() - planned),
        notes=proposal.notes,
        controls=controls,
        seconds=time.perf_counter() - start,
    )
    return record, delta


def _choose_dose(
    session: _Session, model: ModelHandle, edit: PlannedEdit, proposal: Proposal
) -> tuple[float, tuple[DosePoint, ...], bool | None]:
    """The least dose that meets the targets on validation data.

    If none does, the one that misses fewest, and of those the one that misses by least.
    """
    if edit.spec.dose != "auto":
        return float(edit.spec.dose), (), None
    targets = [gate.model_copy(update={"min_n": 1, "confidence": None}) for gate in edit.targets]
    ids = {gate.audit for gate in targets}
    audits = [audit for audit in session.plan.audits if audit.id in ids]
    curve: list[DosePoint] = []
    shortfalls: list[float] = []
    doses = session.ctx.progress(
        proposal.doses, f"edit {edit.id}: trying doses", len(proposal.doses)
    )
    for dose in doses:
        start = time.perf_counter()
        found: Metrics = {}
        with model.applied(proposal.at(dose)):
            for audit in audits:
                audited = _audit_against_base(session, model, audit, "validation")
                found |= audited.metrics if audited is not None else {}
        misses = _misses(session, targets, found, "validation")
        curve.append(
            DosePoint(
                dose=dose,
                metrics={name: metric.value for name, metric in found.items()},
                meets_targets=not misses,
                misses=tuple(verdict.reason for verdict in misses),
                seconds=time.perf_counter() - start,
            )
        )
        shortfalls.append(sum(map(_shortfall, misses)))
        if not misses:
            return dose, tuple(curve), True
    # The nearest; of equally near ones the least, since doses ascend.
    best = min(
        zip(curve, shortfalls, strict=True), key=lambda pair: (len(pair[0].misses), pair[1])
    )[0]
    session.ctx.warn(
        f"edit {edit.id}: no dose met all targets on validation data; "
        f"took {best.dose:g}, which missed {len(best.misses)}"
    )
    return best.dose, tuple(curve), False


def _misses(
    session: _Session, gates: Sequence[GateSpec], found: Metrics, split: Split
) -> list[Verdict]:
    comparisons = _comparisons(session, found, split)
    verdicts = [judge(gate, comparisons.get(gate.metric)) for gate in gates]
    return [verdict for verdict in verdicts if verdict.status != "pass"]


def _shortfall(miss: Verdict) -> float:
    """How far a missed target is, as a share of the greater of value and bound; 1 without a
    value."""
    if miss.value is None or miss.bound is None:
        return 1.0
    return abs(miss.value - miss.bound) / max(abs(miss.value), abs(miss.bound), 1e-12)


def _controls(
    session: _Session,
    model: ModelHandle,
    edit: PlannedEdit,
    delta: WeightDelta,
    own: Sequence[Control],
) -> tuple[ControlRecord, ...]:
    """Random changes like this one, then the editor's own controls, on the same test data."""
    name = "random neurons zeroed" if delta.only_zeroes else "random delta of equal norm"
    measured = []
    for draw in range(1, int(edit.spec.control) + 1):
        seed = session.ctx.seed + draw
        found = _control_metrics(session, model, delta.random_like(seed, model))
        measured.append(ControlRecord(name=name, random=True, seed=seed, metrics=found))
    for control in own:
        found = _control_metrics(session, model, control.delta)
        measured.append(
            ControlRecord(name=control.name, random=False, seed=session.ctx.seed, metrics=found)
        )
    return tuple(measured)


def _control_metrics(
    session: _Session, model: ModelHandle, delta: WeightDelta
) -> tuple[Metric, ...]:
    with model.applied(delta):
        return tuple(
            metric
            for audit in session.plan.audits
            for metric in _in_passing(session, model, audit, "a control")
        )


def _gates_so_far(session: _Session, model: ModelHandle) -> tuple[Verdict, ...]:
    """What gates say of a model that awaits further edits, as far as their audits are made between
    edits: those that controls are measured with."""
    gates, found = session.plan.gates, dict[str, Metric]()
    for audit in session.plan.audits:
        if names := frozenset(gate.name for gate in gates if gate.audit == audit.id):
            found |= {
                metric.name: metric
                for metric in _in_passing(session, model, audit, "the edits so far", names)
            }
    comparisons = _comparisons(session, found, "test")
    return tuple(
        judge(gate, comparisons[gate.metric]) for gate in gates if gate.metric in comparisons
    )


def _in_passing(
    session: _Session,
    model: ModelHandle,
    audit: PlannedAudit,
    what: str,
    wanted: frozenset[str] | None = None,
) -> tuple[Metric, ...]:
    """An audit's metrics of a model that is not to stay; none where its policy says ``control:
    false``, or, said loudly, where it can't be measured."""
    base = session.baseline(audit, "test")
    if base is None or not audit.spec.control:
        return ()
    try:
        return _audit(session, model, audit, "test", base.reference, wanted).record.metrics
    except AuditError as error:
        session.ctx.warn(f"{what} could not be measured by {audit.id}: {error.message}")
        return ()


def _audit_base(session: _Session, model: ModelHandle, audit: PlannedAudit, split: Split) -> None:
    """Measure the untouched model, from the cache where the same has been measured before."""
    key = _cache_key(session, model, audit, split)
    found = session.store.read(key, audit.id)
    if found is None:
        try:
            found = _audit(session, model, audit, split, None)
        except AuditError as error:
            session.skip(audit, split, error)
            return
        session.store.write(key, found)
    # Another policy may call the same audit by another id: names are given on the way out.
    session.baselines[audit.id, split] = _renamed(found, audit.id)


def _audit_edited(session: _Session, model: ModelHandle) -> list[AuditRecord]:
    found = (_audit_against_base(session, model, audit, "test") for audit in session.plan.audits)
    return [audited.record for audited in found if audited is not None]


def _audit_against_base(
    session: _Session, model: ModelHandle, audit: PlannedAudit, split: Split
) -> Audited | None:
    """Measure edited weights; None, said loudly, where base or edited model can't be measured."""
    base = session.baseline(audit, split)
    if base is None:
        return None
    try:
        return _audit(session, model, audit, split, base.reference)
    except AuditError as error:
        session.skip(audit, split, error)
        return None


def _audit(
    session: _Session,
    model: ModelHandle,
    audit: PlannedAudit,
    split: Split,
    reference: Mapping[str, torch.Tensor] | None,
    wanted: frozenset[str] | None = None,
) -> Audited:
    start = time.perf_counter()
    ctx = replace(session.ctx, wanted=wanted or _wanted(session, audit, split))
    outcome: AuditOutcome = audit.auditor.audit(model, audit.data, split, ctx, reference)
    record = AuditRecord(
        id=audit.id,
        use=audit.spec.use,
        split=split,
        data_digests={role: data.digest for role, data in audit.data.items()},
        metrics=outcome.metrics,
        covers=audit.auditor.covers,
        seconds=time.perf_counter() - start,
    )
    return _renamed(Audited(record, dict(outcome.reference)), audit.id)


def _wanted(session: _Session, audit: PlannedAudit, split: Split) -> frozenset[str] | None:
    """Everything is measured on test data; on validation data, what doses are chosen by."""
    return session.aims.get(audit.id) if split == "validation" else None


def _renamed(found: Audited, audit_id: str) -> Audited:
    """Metric names under an audit's id: ``<id>.<metric>``."""
    metrics = tuple(
        metric.model_copy(update={"name": f"{audit_id}.{metric.name.rpartition('.')[2]}"})
        for metric in found.record.metrics
    )
    record = found.record.model_copy(update={"id": audit_id, "metrics": metrics})
    return Audited(record, found.reference)


def _cache_key(session: _Session, model: ModelHandle, audit: PlannedAudit, split: Split) -> str:
    """Everything that made a before-audit; nothing else may serve as the key."""
    parts = {
        "weights": model.digest(),
        "config": model.config.to_json_string(use_diff=False),
        "tokenizer": _tokenizer_digest(model),
        "device": str(model.device),
        "use": audit.spec.use,
        "code": code_digest(type(audit.auditor).__module__, "safeedit.model.sources"),
        "params": audit.params.model_dump(mode="json"),
        "data": {role: data.digest for role, data in audit.data.items()},
        "template": {role: data.template for role, data in audit.data.items()},
        "split": split,
        "wanted": sorted(_wanted(session, audit, split) or ()),
        "scorers": _scorers(session, audit),
        "seed": session.ctx.seed,
        "secret": session.ctx.digest("cache key"),
        "safeedit": __version__,
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _scorers(session: _Session, audit: PlannedAudit) -> list[str]:
    """What is known of the scorers that an audit uses, as its figures tell it."""
    refs = [value for _, value in audit.params if isinstance(value, ScorerRef)]
    return [session.ctx.scorer(ref).note for ref in refs]


def _tokenizer_digest(model: ModelHandle) -> str:
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else repr(model.tokenizer)
    text += str(getattr(model.tokenizer, "chat_template", ""))
    return hashlib.sha256(text.encode()).hexdigest()


def _comparisons(
    session: _Session, found: Mapping[str, Metric], split: Split
) -> dict[str, Comparison]:
    before = session.baseline_metrics(split)
    return {name: compare(before.get(name), metric) for name, metric in found.items()}


def _record(
    session: _Session,
    command: str,
    started: datetime,
    model: ModelRecord,
    edits: tuple[EditRecord, ...],
    after: tuple[AuditRecord, ...],
    export: ExportRecord | None,
) -> RunRecord:
    plan, policy = session.plan, session.plan.loaded.policy
    found = {metric.name: metric for record in after for metric in record.metrics}
    comparisons = _comparisons(session, found, "test")
    verdicts = tuple(_judged(session, gate, comparisons) for gate in plan.gates)
    if plan.ledger is not None:
        verdicts = tuple(map(plan.ledger.judged, verdicts))
    status, exit_code = overall(verdicts)
    required = {audit.id for audit in plan.audits if audit.spec.required}
    if status == "pass" and session.skipped & required:
        status, exit_code = "inconclusive", 4
    if status == "pass" and session.idle:
        status, exit_code = "inconclusive", 4
        session.warnings.append("nothing was edited, so nothing is exported")
    return RunRecord.model_validate(
        {
            "command": command,
            "run_id": f"{started:%Y%m%dT%H%M%S}-{plan.policy_digest[:8]}-{session.nonce}",
            "started": started.isoformat(timespec="seconds"),
            "policy_name": policy.name,
            "policy_digest": plan.policy_digest,
            "policy": plan.recorded_policy,
            "owner": plan.recorded_policy["owner"],
            "ticket": policy.ticket,
            "seed": policy.seed,
            "model": model,
            "datasets": {
                name: {
                    "digest": data.digest,
                    "source": plan.shown_source(data),
                    "items": data.counts(),
                }
                for name, data in plan.datasets()
            },
            "before": tuple(
                audited.record
                for (_, split), audited in session.baselines.items()
                if split == "test"
            ),
            "edits": edits,
            "after": after,
            "comparisons": tuple(comparisons.values()),
            "verdicts": verdicts,
            "status": status,
            "exit_code": exit_code,
            "warnings": tuple(session.warnings),
            "environment": _environment(model.device),
            "resources": session.clock.record(),
            "export": export,
        }
    )


def _judged(session: _Session, gate: GateSpec, comparisons: Mapping[str, Comparison]) -> Verdict:
    """What a gate says; nothing, of items of which the base knew none."""
    verdict = judge(gate, comparisons.get(gate.metric))
    plan = session.plan
    if not plan.edits or (plan.ledger is not None and gate == plan.ledger.gate):
        return verdict  # a ledger asks of its base that it knows nothing any more
    specs = {name: spec for audit in plan.audits for name, spec in audit.metrics.items()}
    spec, base = specs.get(gate.metric), session.baseline_metrics("test")
    known = base.get(f"{gate.audit}.{spec.known_by}") if spec is not None else None
    return unless_unknown(verdict, spec, known)


def _model_record(plan: Plan, model: ModelHandle) -> ModelRecord:
    spec, stored = plan.loaded.policy.model, model.on_disk
    assert stored is not None, "a run opens its model from files"
    return ModelRecord(
        source=spec.source,
        local=Path(plan.model_source).expanduser().exists(),
        revision=spec.revision,
        architecture=model.architecture.family,
        parameters=model.shape.n_parameters,
        layers=model.n_layers,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        digest=digest_of(stored.digests()),
        casts=stored.casts(model.dtype),
        names=stored.renamed(model.shape.tied),
        unread=stored.unread,
    )


def _environment(device: str) -> EnvironmentRecord:
    packages: dict[str, Any] = {}
    for name in ("torch", "transformers", "peft", "safetensors", "datasets", "scikit-learn"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return EnvironmentRecord(
        safeedit=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        processor=platform.processor() or platform.machine(),
        cpu_count=os.cpu_count() or 1,
        device=device,
        packages=packages,
    )
