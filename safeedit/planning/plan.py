"""A policy with every name in it resolved: what ``plan`` shows and ``apply`` runs.

Made by :func:`safeedit.planning.resolution.make_plan`, without loading a weight. It can be shown to
a person (:meth:`Plan.summary`), written to a file (:mod:`safeedit.planning.file`), and checked
again when it is applied.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from safeedit.contracts import (
    Attack,
    Auditor,
    BaseParams,
    EditData,
    Editor,
    TensorPlan,
    files_digest,
    metrics_of,
)
from safeedit.data import Dataset
from safeedit.export.ledger.update import LedgerUpdate
from safeedit.model.architectures import ModelShape
from safeedit.planning.options import roles_by_key
from safeedit.planning.withholding import Withholding, keyed_digest
from safeedit.policy import AttackSpec, AuditSpec, EditSpec, GateSpec, LoadedPolicy
from safeedit.policy.engine import EngineName
from safeedit.policy.loading import canonical_digest
from safeedit.policy.reading import FieldPath
from safeedit.records import MetricSpec

PLAN_FORMAT = "safeedit-plan"
"""What a plan's file says it is."""


@dataclass(frozen=True)
class PlannedEdit:
    """One edit, resolved: an editor with its parameters, its data, its tensors."""

    id: str
    spec: EditSpec
    editor: Editor
    params: BaseParams
    data: EditData
    tensors: tuple[TensorPlan, ...]
    targets: tuple[GateSpec, ...]
    """What a dose must reach on validation data."""
    erased: tuple[Dataset, ...]
    """Its data to be erased with the test split, which no editor sees: what may not be repeated."""
    places: tuple[PlannedEdit, ...] = ()
    """Under ``layers: auto``, the same edit at each of the layers that are tried."""


@dataclass(frozen=True)
class PlannedAudit:
    """One audit, resolved."""

    id: str
    spec: AuditSpec
    auditor: Auditor
    params: BaseParams
    data: Mapping[str, Dataset]
    at: FieldPath
    """Where it stands in the policy."""

    @property
    def metrics(self) -> dict[str, MetricSpec]:
        """Full metric name -> its specification."""
        return {f"{self.id}.{metric.name}": metric for metric in metrics_of(self.auditor)}


@dataclass(frozen=True)
class PlannedAttack:
    """One attack, resolved."""

    id: str
    spec: AttackSpec
    attack: Attack
    params: BaseParams
    data: EditData
    audits: tuple[PlannedAudit, ...]
    """Those repeated under it; without the items that the attack itself uses."""
    wanted: Mapping[str, frozenset[str]]
    """Audit -> bare names of the metrics that are looked at under the attack."""
    left_out: int
    """Items that the audits leave out, since the attack uses them."""


@dataclass(frozen=True)
class Plan:
    """A policy with every name in it resolved."""

    loaded: LoadedPolicy
    model_source: str
    """The policy's ``model.source``; a relative folder or file as seen from here."""
    model_digest: str
    dtype: str
    """Of the weights while editing: the policy's, or the one the model's config names."""
    shape: ModelShape
    edits: tuple[PlannedEdit, ...]
    audits: tuple[PlannedAudit, ...]
    """The policy's, then that of the ledger where earlier erasures are audited again."""
    warnings: tuple[str, ...]
    hidden: Withholding
    """What of the policy may not be repeated, since it quotes data to be erased."""
    adapter: str | None = None
    """Folder of the adapter that is merged into the model, as seen from here."""
    attacks: tuple[PlannedAttack, ...] = ()
    ledger: LedgerUpdate | None = None
    powers: Mapping[GateSpec, str] = field(default_factory=dict)
    """What a gate can tell at the number of items at hand, in words, as far as that is known."""
    key: bytes | None = field(default=None, repr=False)
    """Of the digests of data."""
    other_seeds: tuple[Plan, ...] = ()
    """The same policy with each of its other seeds, without the export."""

    def with_engine(self, use: EngineName | None, workers: int | None) -> Plan:
        """The same plan, its evaluations made by another engine; None: as the policy says."""
        if use is None and workers is None:
            return self
        return replace(
            self,
            loaded=self.loaded.with_engine(use, workers),
            other_seeds=tuple(each.with_engine(use, workers) for each in self.other_seeds),
        )

    @property
    def seed(self) -> int:
        """The policy's."""
        return self.loaded.policy.seed

    @property
    def gates(self) -> tuple[GateSpec, ...]:
        """The policy's, then that of the ledger."""
        own = self.ledger.gate if self.ledger is not None else None
        return (*self.loaded.policy.gates, *([own] if own is not None else []))

    @property
    def gates_as_is(self) -> tuple[GateSpec, ...]:
        """Those on the model as it is, under no attack and beside no control."""
        return tuple(gate for gate in self.gates if gate.as_is)

    @property
    def export_dir(self) -> Path | None:
        """Where a passing checkpoint goes, resolved against the policy file."""
        export = self.loaded.policy.export
        if export is None:
            return None
        return Path(os.path.normpath(self.loaded.base / Path(export.dir).expanduser()))

    @property
    def private_dir(self) -> Path | None:
        """Where what can undo the edits goes, if not into the export; resolved likewise."""
        export = self.loaded.policy.export
        if export is None or export.private is None:
            return None
        return Path(os.path.normpath(self.loaded.base / Path(export.private).expanduser()))

    @property
    def source_path(self) -> Path | None:
        """The model's folder or file on this machine; None for one of the hub or built in."""
        path = Path(self.model_source).expanduser()
        return path if self.model_source and path.exists() else None

    @property
    def bytes_per_weight(self) -> int:
        """Of the weights while editing."""
        return 4 if self.dtype == "float32" else 2

    @property
    def weights_bytes(self) -> int:
        """Of all weights in memory."""
        return self.shape.n_parameters * self.bytes_per_weight

    @property
    def export_bytes(self) -> int:
        """What the export takes on the disk, estimated: the weights, and the originals of all
        tensors that edits may change."""
        touched = {t.name: _size(t.shape) for edit in self.edits for t in edit.tensors}
        return self.weights_bytes + sum(touched.values()) * self.bytes_per_weight

    @property
    def report_dir(self) -> Path:
        """Where reports go, whatever the verdict: ``<export dir>.report``, beside the export."""
        target = self.export_dir or Path("out") / self.loaded.policy.name
        return target.with_name(target.name + ".report")

    def datasets(self) -> Iterator[tuple[str, Dataset]]:
        """``<stage>.<role>`` and its data, for every edit, audit and attack."""
        for edit in self.edits:
            for role, data in edit.data.roles.items():
                yield f"edit:{edit.id}.{role}", data
        for audit in self.audits:
            for role, data in audit.data.items():
                yield f"audit:{audit.id}.{role}", data
        for attack in self.attacks:
            for role, data in attack.data.roles.items():
                yield f"attack:{attack.id}.{role}", data

    def fingerprint(self) -> dict[str, Any]:
        """What must not move between ``plan`` and ``apply``: policy, model and data digests."""
        return {
            "policy": self._whole_policy_digest,
            "model": self.model_digest,
            "data": {name: data.digest for name, data in self.datasets()}
            | {
                f"audit:{audit.id} files": digest
                for audit in self.audits
                if (digest := files_digest(audit.auditor))
            }
            | {
                f"seed {plan.seed}: {name}": data.digest
                for plan in self.other_seeds
                for name, data in plan.datasets()
            },
            "key": "" if self.key is None else key_check(self.key),
        }

    @cached_property
    def recorded_policy(self) -> dict[str, Any]:
        """The policy as records repeat it: what quotes data to be erased is withheld."""
        roles = {
            stage.id: roles_by_key(kind.roles)
            for stages in (
                [(edit.spec, edit.editor) for edit in self.edits],
                [(audit.spec, audit.auditor) for audit in self.audits],
                [(attack.spec, attack.attack) for attack in self.attacks],
            )
            for stage, kind in stages
        }
        return self.hidden.policy(self.loaded, roles)

    @cached_property
    def policy_digest(self) -> str:
        """Digest of the policy as records repeat it: anybody can compute it from a record, and it
        says nothing of what is withheld."""
        return canonical_digest(self.recorded_policy)

    @property
    def _whole_policy_digest(self) -> str:
        """Of the policy as written, to see that it has not moved; keyed where a value is withheld,
        which could be found from a bare one."""
        if self.policy_digest == self.loaded.digest:
            return self.loaded.digest
        return keyed_digest(self.loaded.digest, self.key)

    def shown_source(self, data: Dataset) -> str:
        """Where data comes from, as far as that may be repeated."""
        return " + ".join(str(self.hidden.value(part)) for part in data.source.split(" + "))

    def summary(self) -> dict[str, Any]:
        """The whole plan as plain values: for ``plan --json``, ``plan -o`` and the screen."""
        policy = self.loaded.policy
        return {
            "format": PLAN_FORMAT,
            "version": 1,
            "policy_file": str(self.loaded.path),
            "name": policy.name,
            "seeds": [policy.seed, *policy.other_seeds],
            "fingerprint": self.fingerprint(),
            "model": {
                "source": policy.model.source,
                "adapter": policy.model.adapter,
                "architecture": self.shape.architecture.family,
                "layers": self.shape.n_layers,
                "width": self.shape.d_model,
                "parameters": self.shape.n_parameters,
                "dtype": self.dtype,
            },
            "edits": list(map(self._edit_summary, self.edits)),
            "audits": list(map(self._audit_summary, self.audits)),
            "attacks": list(map(self._attack_summary, self.attacks)),
            "data": {
                name: {
                    "digest": data.digest,
                    "source": self.shown_source(data),
                    "items": data.counts(),
                    "notes": list(data.notes),
                }
                for name, data in self.datasets()
            },
            "gates": [
                {**listed, "power": self.powers.get(gate, "")}
                for gate, listed in zip(self.gates, listed_gates(self.gates), strict=True)
            ],
            "ledger": None if self.ledger is None else self.ledger.summary(),
            "export": None if self.export_dir is None else str(self.export_dir),
            "report": str(self.report_dir),
            "estimates": self.estimates(),
            "warnings": list(self.warnings),
        }

    def _edit_summary(self, edit: PlannedEdit) -> dict[str, Any]:
        return {
            "id": edit.id,
            "use": edit.spec.use,
            "dose": edit.spec.dose,
            "params": self.hidden.value(edit.params.model_dump(mode="json")),
            "layers": _layers(edit),
            "tensors": [t.name for t in edit.tensors],
            "parameters_touched": sum(_size(t.shape) for t in edit.tensors),
            "targets": listed_gates(edit.targets) if edit.spec.dose == "auto" else [],
            "layers_tried": [_layers(place) for place in edit.places],
        }

    def _audit_summary(self, audit: PlannedAudit) -> dict[str, Any]:
        gated = {gate.metric for gate in self.gates}
        return {
            "id": audit.id,
            "use": audit.spec.use,
            "params": self.hidden.value(audit.params.model_dump(mode="json")),
            "gated_metrics": sorted(gated & audit.metrics.keys()),
        }

    def _attack_summary(self, attack: PlannedAttack) -> dict[str, Any]:
        return {
            "id": attack.id,
            "use": attack.spec.use,
            "params": self.hidden.value(attack.params.model_dump(mode="json")),
            "audits": [audit.id for audit in attack.audits],
            "strengths": len(attack.attack.strengths()),
            "seeds": attack.spec.seeds,
            "items_left_out": attack.left_out,
        }

    def estimates(self) -> dict[str, Any]:
        """Memory (bytes) and time (seconds, by stage) of a run that finds nothing done before; see
        :mod:`safeedit.planning.estimates`."""
        from safeedit.planning.estimates import estimates

        return estimates(self)


def _layers(edit: PlannedEdit) -> list[int]:
    return sorted({t.layer for t in edit.tensors if t.layer is not None})


def key_check(key: bytes) -> str:
    """Tells this key from others without telling anything about it."""
    return hmac.new(key, b"safeedit plan 1 key check", hashlib.sha256).hexdigest()[:16]


def listed_gates(gates: Sequence[GateSpec]) -> list[dict[str, str]]:
    return [{"metric": gate.metric, "condition": gate.condition} for gate in gates]


def _size(shape: Sequence[int]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size
