"""The one road: before-audit, edit, stage, reload, after-audit, judge, promote.

This is the only place where a delta meets a model. :func:`execute` runs a policy and
:func:`measure` only audits; both return a :class:`~safeedit.records.RunRecord`, whatever the
verdict. Nothing is exported unless every gate passed on the very bytes that are promoted.

Fails with :class:`~safeedit.errors.EditError` where an editor breaks its contract (changes the
model, or a tensor outside its plan) and with the errors of the stages it runs.
"""

from __future__ import annotations

import gc
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch

from safeedit import catalog
from safeedit.contracts import RunContext
from safeedit.delta import WeightDelta
from safeedit.errors import ExportError, ModelError, naming
from safeedit.export.checkpoint import write_checkpoint
from safeedit.export.disk import as_export_error
from safeedit.export.interrupts import until_done
from safeedit.export.signing.parties import Signer
from safeedit.export.staging import Staging
from safeedit.export.weights import Written
from safeedit.model.carried import left_behind
from safeedit.model.foreknown import ForeknownAnswers
from safeedit.model.handle import ModelHandle
from safeedit.model.prefaces import Preface, prefaced
from safeedit.model.sources import open_model
from safeedit.planning.paces import Paces
from safeedit.planning.plan import Plan
from safeedit.planning.road import Road, apply_road, attack_road, audit_road
from safeedit.records import (
    AttackRecord,
    AuditRecord,
    EditRecord,
    ExportRecord,
    ModelRecord,
    RunRecord,
    Split,
    Status,
    Verdict,
)
from safeedit.running.attacks import Attacks
from safeedit.running.audits import Audits
from safeedit.running.clock import Clock
from safeedit.running.controls import gates_so_far
from safeedit.running.edits import apply_edit
from safeedit.running.engines.ahead import helped
from safeedit.running.keys import scorer_notes
from safeedit.running.layers import Places
from safeedit.running.promotion import promote, staged_export, with_export
from safeedit.running.record import (
    environment_record,
    model_record,
    of_plan,
    policy_record,
    verdicts_of,
)
from safeedit.running.seeds import OtherSeed, of_seed, warnings_of, with_other_seeds
from safeedit.running.store import Store
from safeedit.running.telling import headlines, of_model, of_staging, of_verdict, of_verdicts
from safeedit.scorers.score_cache import scorers
from safeedit.statistics.verdicts import EXIT_CODES, overall

WriteReports = Callable[[RunRecord], None]


@until_done()
def execute(
    plan: Plan,
    ctx: RunContext,
    *,
    write_reports: WriteReports = lambda record: None,
    sign: Signer | None = None,
) -> RunRecord:
    """Run a policy from its plan to its verdict, exporting what passed.

    Args:
        plan: From :func:`safeedit.planning.resolution.make_plan`.
        ctx: Seed, cache, digest key, progress. Its ``warn`` also reaches the record.
        write_reports: Called with the final record, also where the export itself fails.
        sign: What to sign the export with; None leaves it unsigned.

    Raises:
        EditError: an editor changed the model, or a delta a tensor outside its plan.
        ModelError: the model can't be opened, or its weights are not finite.
        ExportError: the checkpoint could not be written; nothing new stands under its name.
    """

    def go(run: Run, write: WriteReports) -> RunRecord:
        with helped(run.audits):
            return run.apply(write, sign)

    return _with_other_seeds(plan, ctx, "apply", apply_road, go, write_reports)


def measure(
    plan: Plan,
    ctx: RunContext,
    *,
    base: str | None = None,
    preface: Preface | None = None,
    write_reports: WriteReports = lambda record: None,
) -> RunRecord:
    """Audit the policy's model as it is, editing nothing.

    Args:
        plan: The plan; its edits and export are ignored.
        ctx: As for :func:`execute`.
        base: Source of the untouched model to compare with; without it the model is its own
            base, and metrics that need one (locality) read as unchanged.
        preface: What is put before every question, beside the same model without it.
        write_reports: Called with the final record.
    """
    road = partial(audit_road, compared=base is not None or preface is not None)
    return _with_other_seeds(
        plan, ctx, "audit", road, lambda run, write: run.audit(base, preface, write), write_reports
    )


def attack(
    plan: Plan,
    ctx: RunContext,
    *,
    base: str,
    base_adapter: str | None = None,
    write_reports: WriteReports = lambda record: None,
) -> RunRecord:
    """Attack the plan's model, whoever edited it, and hold it against the one it was made from.

    Args:
        plan: Its model is the edited one; it has no edits and no export.
        ctx: As for :func:`execute`.
        base: Source of the untouched model.
        base_adapter: Folder of an adapter to merge into it.
        write_reports: Called with the final record.
    """

    def go(run: Run, write: WriteReports) -> RunRecord:
        return run.attack(base, base_adapter, write)

    return _with_other_seeds(plan, ctx, "attack", attack_road, go, write_reports)


def _with_other_seeds(
    plan: Plan,
    ctx: RunContext,
    command: str,
    road: Callable[[Plan], Road],
    go: Callable[[Run, WriteReports], RunRecord],
    write_reports: WriteReports,
) -> RunRecord:
    """The run with each other seed, none of which exports, then that of the policy's own."""
    answers, others = ForeknownAnswers(), list[OtherSeed]()
    for other in plan.other_seeds:
        with naming(f"with seed {other.seed}"):
            run = Run(other, of_seed(ctx, other.seed), command, road(other), answers)
            record = go(run, lambda record: None)
        others.append(OtherSeed(record, run.whole))
        del run  # and what it knows of its own data
        gc.collect()
    return go(Run(plan, ctx, command, road(plan), answers, others), write_reports)


class Run:
    """One run in progress, used once.

    Args:
        plan: What is run.
        ctx: Its seed, cache, digest key and progress.
        command: As the record names it.
        road: All stages that will be gone through, in order.
        answers: What models have said in earlier runs of this process.
        others: What the same policy gave with other seeds.
    """

    def __init__(
        self,
        plan: Plan,
        ctx: RunContext,
        command: str,
        road: Road,
        answers: ForeknownAnswers,
        others: Sequence[OtherSeed] = (),
    ) -> None:
        self.plan, self.command, self.others = plan, command, others
        self.started = datetime.now(UTC)
        # The last part tells this run from others of the same policy in the same second.
        when, policy, nonce = self.started, plan.policy_digest[:8], secrets.token_hex(2)
        self.run_id = f"{when:%Y%m%dT%H%M%S}-{policy}-{nonce}"
        self.warnings = list(plan.warnings)

        def warn(message: str) -> None:
            self.warnings.append(message)
            ctx.warn(message)

        told = replace(ctx, warn=warn)
        self.ctx = replace(told, scorer=scorers(told, catalog.make_scorer))
        store = Store.of(told)
        self.clock = Clock(self.run_id, road, Paces.of(plan, ctx.cache), ctx.observer, store.effort)
        self.audits = Audits(plan, self.ctx, store, answers=answers)
        self.attacks = Attacks(self.audits, self.clock)
        self.places: dict[str, Places] = {}
        """Of each edit whose layers are to be chosen."""
        self.edits: list[EditRecord] = []
        self.deltas: dict[str, WeightDelta] = {}
        self.sign: Signer | None = None
        self.idle = False
        """An edit changed no stored weight, or the edits together left the base as it was:
        whatever the gates say, it is not about an edit."""
        self.whole = True
        """Whether everything asked for was made; else no verdict makes it pass."""
        self.model: ModelRecord
        self.compared_with: ModelRecord | None = None
        """The untouched model, where it is another than the policy's."""
        self.measured: RunRecord | None = None
        """What has been found, once the edited model is measured."""

    def apply(self, write_reports: WriteReports, sign: Signer | None = None) -> RunRecord:
        """From the untouched model to a verdict; see :func:`execute`."""
        self.sign = sign
        model = self._open()
        self._measure_base(model, splits=("test", "validation"))
        self.attacks.measure_base(model)
        self._edit(model)
        target, export = self.plan.export_dir, self.plan.loaded.policy.export
        if target is None or export is None:
            return self._measured(model, write_reports)

        try:
            with Staging(target, overwrite=export.overwrite) as staging:
                with self.clock.stage("stage") as figures:
                    touched = {name for delta in self.deltas.values() for name in delta.updates}
                    written = write_checkpoint(model, staging.path, touched)
                    figures |= of_staging(written)
                    digest = model.digest()
                    del model  # not two copies of the weights at once: nothing else holds one
                    gc.collect()
                record = self._judge(staging, target, written, digest)
        except OSError as raised:
            self._tell_failure(raised, target, write_reports)
        self.clock.ends(record.status, record.exit_code)
        try:
            write_reports(record)
        except ExportError as error:
            if record.export is not None:
                error.message += "; the export itself is complete and holds the report"
            raise
        return record

    def audit(self, base: str | None, preface: Preface | None, write: WriteReports) -> RunRecord:
        """Measure the model as it is; see :func:`measure`."""
        model = self._open()
        if base is None and preface is None:
            self._measure_base(model)
            return self._judged(self.audits.base_records("test"), (), write)
        self._measure_base(model if base is None else self._open_base(base))
        gc.collect()
        if preface is None:
            return self._measured(model, write)
        self.ctx.warn(f"{preface.name} stands before every question: no weights are changed")
        with prefaced(model.engine, preface):
            return self._judged(self._audit_after(model), (), write)

    def attack(self, base: str, base_adapter: str | None, write_reports: WriteReports) -> RunRecord:
        """Attack the model as it is; see :func:`attack`."""
        untouched = self._open_base(base, base_adapter)
        self._measure_base(untouched)
        self.attacks.measure_base(untouched)
        del untouched  # not two copies of the weights at once
        gc.collect()
        return self._measured(self._open(), write_reports)

    def _measured(self, model: ModelHandle, write_reports: WriteReports) -> RunRecord:
        """Measure a model that is not exported, under the attacks too, and judge it."""
        after = self._audit_after(model)
        return self._judged(after, self._attacked(model, after), write_reports)

    def _judged(
        self,
        after: tuple[AuditRecord, ...],
        attacks: tuple[AttackRecord, ...],
        write_reports: WriteReports,
    ) -> RunRecord:
        with self.clock.stage("judge") as figures:
            record = self._record(after, attacks=attacks)
            figures |= of_verdict(record)
        self.clock.ends(record.status, record.exit_code)
        write_reports(record)
        return record

    def _audit_after(self, model: ModelHandle) -> tuple[AuditRecord, ...]:
        with self.clock.stage("audit after") as figures:
            after = self.audits.measure_edited(model)
            figures |= headlines(self.plan.audits, after)
        return after

    def _open_base(self, source: str, adapter: str | None = None) -> ModelHandle:
        spec = self.plan.loaded.policy.model
        model = open_model(source, dtype=spec.dtype, device=spec.device, adapter=adapter)
        self.compared_with = model_record(source, None, model, adapter=adapter or "")
        return model

    def _open(self) -> ModelHandle:
        plan, spec = self.plan, self.plan.loaded.policy.model
        for audit in plan.audits:  # what scorers can't see is said even where all is in the store
            scorer_notes(self.ctx, audit)
        torch.manual_seed(self.ctx.seed)
        with self.clock.stage("open model") as figures:
            model = open_model(
                plan.model_source, revision=spec.revision, dtype=spec.dtype, device=spec.device,
                adapter=plan.adapter,
            )  # fmt: skip
            figures |= of_model(model)
        left = left_behind(model.folder) if plan.export_dir and model.folder else ()
        if left:
            self.ctx.warn(f"files of the model that an export does not get: {', '.join(left)}")
        self.model = model_record(
            spec.source, spec.revision, model, plan.model_source, spec.adapter or ""
        )
        return model

    def _measure_base(self, model: ModelHandle, splits: Sequence[Split] = ("test",)) -> None:
        """Everything on test data; on validation data, what doses are chosen by."""
        with self.clock.stage("audit before") as figures:
            self.audits.ahead_of_bases(model, splits)
            for split in splits:
                for audit in self.audits.asked_of_base(split):
                    self.audits.measure_base(model, audit, split)
            for edit in self.plan.edits if "validation" in splits else ():
                if edit.places:
                    self.places[edit.id] = Places.of(self.audits, edit)
                    self.places[edit.id].measure_base(model)
            figures |= headlines(self.plan.audits, self.audits.base_records("test"))

    def _edit(self, model: ModelHandle) -> None:
        """One edit after the other, in place."""
        untouched = model.digest()
        for number, edit in enumerate(self.plan.edits, 1):
            places = self.places.get(edit.id)
            edited = apply_edit(self.audits, self.clock, model, edit, places)
            record = edited.record
            if number < len(self.plan.edits):
                with self.clock.stage(f"edit {edit.id}: gates so far") as figures:
                    said = gates_so_far(self.audits, model)
                    figures |= of_verdicts(said)
                record = record.model_copy(update={"gates_so_far": said})
            self.edits.append(record)
            self.deltas[edit.id] = edited.delta
            self.audits.changes.append(edited.delta)
            self.idle |= not edited.changed
        if self.edits and not self.idle and model.digest() == untouched:
            self.idle = True
            self.ctx.warn("the edits undo each other: the weights are those of the base")

    def _judge(self, staging: Staging, target: Path, written: Written, digest: str) -> RunRecord:
        """Measure what was staged, and promote it if it passes."""
        with self.clock.stage("reload") as figures:
            staged = self._read_back(staging.path)
            if staged.digest() != digest:
                raise ExportError(
                    "the staged checkpoint does not hold the bytes that were edited",
                    remedy="report this with the model's architecture and dtype",
                )
            figures["weights"] = "as they were edited"
        after = self._audit_after(staged)
        attacks = self._attacked(staged, after)
        with self.clock.stage("judge") as figures:
            record = self._promoted(staging, target, written, after, attacks)
            figures |= of_verdict(record)
        return record

    def _promoted(
        self,
        staging: Staging,
        target: Path,
        written: Written,
        after: tuple[AuditRecord, ...],
        attacks: tuple[AttackRecord, ...],
    ) -> RunRecord:
        """The verdict; what passed is given its evidence and its name."""
        export = staged_export(staging.path, target, written)
        self.measured = record = self._record(after, export, attacks)
        if record.status != "pass":
            return record.model_copy(update={"export": None})
        record, ledger = with_export(self.plan, record, export, written.originals)
        self.measured = record
        promote(
            self.plan, staging, record,
            deltas=self.deltas, originals=written.originals, ledger=ledger, sign=self.sign,
        )  # fmt: skip
        return record

    def _attacked(
        self, model: ModelHandle, after: tuple[AuditRecord, ...]
    ) -> tuple[AttackRecord, ...]:
        found = {metric.name: metric for record in after for metric in record.metrics}
        return self.attacks.measure_edited(model, found)

    def _read_back(self, folder: Path) -> ModelHandle:
        device = self.plan.loaded.policy.model.device
        try:
            return open_model(str(folder), dtype=self.model.dtype, device=device)
        except ModelError as error:
            raise ExportError(
                f"the staged checkpoint can't be read back: {error.message}",
                file=folder,
                remedy="see whether the disk is full or failing, and run again",
            ) from error

    def _tell_failure(self, raised: OSError, target: Path, write_reports: WriteReports) -> NoReturn:
        """Report what was measured where the export failed, then raise why."""
        error = raised if isinstance(raised, ExportError) else as_export_error(target, raised.errno)
        measured = self.measured or self._record(())
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
            self.ctx.warn(second.message)
        if error is raised:
            raise error
        raise error from raised

    def _decided(
        self, verdicts: Sequence[Verdict], attacks: Sequence[AttackRecord]
    ) -> tuple[Status, int]:
        """What the verdicts come to, as long as everything asked for was made."""
        required = {audit.id for audit in self.plan.audits if audit.spec.required}
        self.whole = not (
            self.idle
            or self.audits.skipped & required
            or any(attack.failed for attack in attacks)
            or not all(other.whole for other in self.others)
        )
        status, exit_code = overall(verdicts)
        if status != "pass" or self.whole:
            return status, exit_code
        if self.idle:
            self.warnings.append("nothing was edited, so nothing is exported")
        return "inconclusive", EXIT_CODES["inconclusive"]

    def _record(
        self,
        after: tuple[AuditRecord, ...],
        export: ExportRecord | None = None,
        attacks: tuple[AttackRecord, ...] = (),
    ) -> RunRecord:
        plan, policy = self.plan, self.plan.loaded.policy
        found = {metric.name: metric for record in after for metric in record.metrics}
        comparisons = self.audits.comparisons(found, "test")
        own = verdicts_of(self.audits, comparisons, self.edits, attacks)
        verdicts = with_other_seeds(plan, own, self.others)
        status, exit_code = self._decided(verdicts, attacks)
        return RunRecord.model_validate(
            {
                "command": self.command,
                "run_id": self.run_id,
                "started": self.started.isoformat(timespec="seconds"),
                **policy_record(plan),
                "seed": policy.seed,
                "model": self.model,
                "compared_with": self.compared_with,
                **of_plan(plan),
                "before": self.audits.base_records("test"),
                "edits": tuple(self.edits),
                "after": after,
                "comparisons": tuple(comparisons.values()),
                "attacks": attacks,
                "verdicts": verdicts,
                "status": status,
                "exit_code": exit_code,
                "warnings": (*self.warnings, *warnings_of(self.others, self.warnings)),
                "environment": environment_record(self.model.device),
                "resources": self.clock.record(),
                "export": export,
                "other_seeds": tuple(other.record for other in self.others),
            }
        )
