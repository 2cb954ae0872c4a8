"""The audits of one run: of the untouched model, from the store where possible, and of edited ones.

An audit that can't be made is skipped, loudly; what it should have measured has no value then.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version

import torch

from safeedit import __version__
from safeedit.code import code_digest
from safeedit.contracts import AuditOutcome, RunContext, ScorerRef
from safeedit.errors import AuditError
from safeedit.model.foreknown import ForeknownAnswers
from safeedit.model.handle import ModelHandle
from safeedit.planning.plan import Plan, PlannedAudit
from safeedit.records import AuditRecord, Comparison, Metric, Split
from safeedit.running.store import Audited, Store
from safeedit.statistics.metrics import compare

Metrics = dict[str, Metric]


@dataclass
class Audits:
    """Measures models with the audits of a plan, and remembers what the untouched one gave.

    Args:
        plan: Whose audits.
        ctx: Of the run.
        store: Where figures of untouched models are kept from run to run.
    """

    plan: Plan
    ctx: RunContext
    store: Store
    baselines: dict[tuple[str, Split], Audited] = field(default_factory=dict)
    """(audit, split) -> what the untouched model gave."""
    aims: dict[str, frozenset[str]] = field(default_factory=dict)
    """Audit -> bare names of the metrics that choosing doses looks at on validation data."""
    skipped: set[str] = field(default_factory=set)
    """Audits that could not be made on test data."""
    answers: ForeknownAnswers = field(default_factory=ForeknownAnswers)
    """What models of this run have said, in memory only."""

    def __post_init__(self) -> None:
        for edit in self.plan.edits:
            for gate in edit.targets if edit.spec.dose == "auto" or edit.places else ():
                self.aims[gate.audit] = self.aims.get(gate.audit, frozenset()) | {gate.name}

    def baseline_metrics(self, split: Split) -> Metrics:
        """All metrics of the untouched model on one split, by full name."""
        found: Metrics = {}
        for (_, measured), audited in self.baselines.items():
            if measured == split:
                found |= audited.metrics
        return found

    def measure_base(self, model: ModelHandle, audit: PlannedAudit, split: Split) -> None:
        """Measure the untouched model, from the cache where the same has been measured before."""
        try:
            self.baselines[audit.id, split] = self.stored_or_measured(model, audit, split)
        except AuditError as error:
            self._skip(audit, split, error)

    def stored_or_measured(
        self,
        model: ModelHandle,
        audit: PlannedAudit,
        split: Split,
        wanted: frozenset[str] | None = None,
    ) -> Audited:
        """An audit of the untouched model, from the store where it has been made before.

        Raises:
            AuditError: It can't be made.
        """
        wanted = wanted or self._wanted(audit, split)
        key = self.cache_key(model, audit, split, wanted)
        found = self.store.read(key, audit.id)
        if found is None:
            found = self.measure(model, audit, split, None, wanted)
            self.store.write(key, found)
        # Another policy may call the same audit by another id: names are given on the way out.
        return renamed(found, audit.id)

    def measure_edited(self, model: ModelHandle) -> tuple[AuditRecord, ...]:
        """Measure edited weights with every audit, on test data."""
        found = (self.against_base(model, audit, "test") for audit in self.plan.audits)
        return tuple(audited.record for audited in found if audited is not None)

    def against_base(self, model: ModelHandle, audit: PlannedAudit, split: Split) -> Audited | None:
        """Measure edited weights; None, said loudly, where they or the base can't be measured."""
        base = self.baselines.get((audit.id, split))
        if base is None:
            return None
        try:
            return self.measure(model, audit, split, base.reference)
        except AuditError as error:
            self._skip(audit, split, error)
            return None

    def in_passing(
        self,
        model: ModelHandle,
        audit: PlannedAudit,
        what: str,
        wanted: frozenset[str] | None = None,
    ) -> tuple[Metric, ...]:
        """An audit's metrics of a model that is not to stay; none where its policy says ``control:
        false``, or, said loudly, where it can't be measured."""
        base = self.baselines.get((audit.id, "test"))
        if base is None or not audit.spec.control:
            return ()
        try:
            # What it says is no draft of what comes after it: it is not to stay.
            found = self.measure(model, audit, "test", base.reference, wanted, learn=False)
            return found.record.metrics
        except AuditError as error:
            self.ctx.warn(f"{what} could not be measured by {audit.id}: {error.message}")
            return ()

    def _skip(self, audit: PlannedAudit, split: Split, error: AuditError) -> None:
        """Go on without an audit, and say so."""
        if split == "test":
            self.skipped.add(audit.id)
        remedy = f" ({error.remedy})" if error.remedy else ""
        self.ctx.warn(f"audit {audit.id} was skipped on {split} data: {error.message}{remedy}")

    def measure(
        self,
        model: ModelHandle,
        audit: PlannedAudit,
        split: Split,
        reference: Mapping[str, torch.Tensor] | None,
        wanted: frozenset[str] | None = None,
        *,
        learn: bool = True,
    ) -> Audited:
        """Make one audit.

        Args:
            model: Measured.
            audit: From the plan.
            split: Of its data.
            reference: What the audit of the untouched model left; None for that model itself.
            wanted: Bare names of metrics to look at; None: all, or on validation data those that
                doses are chosen by.
            learn: Whether other models may be expected to answer as this one does.

        Raises:
            AuditError: It can't be made.
        """
        start = time.perf_counter()
        ctx = replace(self.ctx, wanted=wanted or self._wanted(audit, split))
        with model.engine.foreknowing(self.answers, learn=learn):
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
        return renamed(Audited(record, dict(outcome.reference)), audit.id)

    def _wanted(self, audit: PlannedAudit, split: Split) -> frozenset[str] | None:
        """Everything is measured on test data; on validation data, what doses are chosen by."""
        return self.aims.get(audit.id) if split == "validation" else None

    def cache_key(
        self,
        model: ModelHandle,
        audit: PlannedAudit,
        split: Split,
        wanted: frozenset[str] | None,
        attack: Mapping[str, object] | None = None,
    ) -> str:
        """Everything that made an audit of the untouched model; nothing else may serve as the key.

        Args:
            model: Measured.
            audit: From the plan.
            split: Of its data.
            wanted: Metrics that were looked at; None: all.
            attack: All that decides what an attack made of the model; its ``module`` is where
                its code is.
        """
        modules = [type(audit.auditor).__module__, "safeedit.model.sources"]
        if attack is not None:
            modules.append(str(attack["module"]))
        parts = {
            "weights": model.digest(),
            "config": model.config.to_json_string(use_diff=False),
            "tokenizer": _tokenizer_digest(model),
            "device": str(model.device),
            "use": audit.spec.use,
            "code": code_digest(*modules),
            "attack": attack,
            "params": audit.params.model_dump(mode="json"),
            "data": {role: data.digest for role, data in audit.data.items()},
            "template": {role: data.template for role, data in audit.data.items()},
            "split": split,
            "wanted": sorted(wanted or ()),
            "scorers": self.scorer_notes(audit),
            "seed": self.ctx.seed,
            "secret": self.ctx.digest("cache key"),
            "safeedit": __version__,
            "torch": torch.__version__,
            "transformers": version("transformers"),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def scorer_notes(self, audit: PlannedAudit) -> list[str]:
        """What is known of the scorers that an audit uses, as its figures tell it."""
        refs = [value for _, value in audit.params if isinstance(value, ScorerRef)]
        return [self.ctx.scorer(ref).note for ref in refs]

    def comparisons(self, found: Mapping[str, Metric], split: Split) -> dict[str, Comparison]:
        """Figures of an edited model beside those of the untouched one, by full name."""
        before = self.baseline_metrics(split)
        return {name: compare(before.get(name), metric) for name, metric in found.items()}


def renamed(found: Audited, audit_id: str) -> Audited:
    """Metric names under an audit's id: ``<id>.<metric>``."""
    metrics = tuple(
        metric.model_copy(update={"name": f"{audit_id}.{metric.name.rpartition('.')[2]}"})
        for metric in found.record.metrics
    )
    record = found.record.model_copy(update={"id": audit_id, "metrics": metrics})
    return Audited(record, found.reference)


def _tokenizer_digest(model: ModelHandle) -> str:
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else repr(model.tokenizer)
    text += str(getattr(model.tokenizer, "chat_template", ""))
    return hashlib.sha256(text.encode()).hexdigest()
