"""From a policy to everything a run needs, without loading a weight.

:func:`make_plan` resolves names, parameters, data, tensors and gates, and refuses what
can't work before anything expensive starts. The result can be shown to a person
(:meth:`Plan.summary`), written to a file, and checked again at ``apply`` time: if policy, data or
model has moved in between, the run is refused.

Fails with :class:`~safeedit.errors.PolicyError` (at a position in the policy file),
:class:`~safeedit.errors.DataError` or :class:`~safeedit.errors.ModelError`.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safeedit import catalog
from safeedit.cache import cache_dir, write_atomically
from safeedit.contracts import (
    Auditor,
    BaseParams,
    DataRole,
    EditData,
    Editor,
    ModelRef,
    ScorerRef,
    TensorPlan,
)
from safeedit.data import Dataset, check_disjoint, load_dataset
from safeedit.data.columns import answer_hint
from safeedit.data.loading import with_defaults
from safeedit.errors import DataError, ExportError, PolicyError, SafeeditError, UsageError
from safeedit.export.disk import writing
from safeedit.export.ledger.file import find_ledger
from safeedit.export.ledger.keys import LedgerKey, read_key
from safeedit.export.ledger.requests import Coverage, coverage, dataset_of, read_requests
from safeedit.export.ledger.update import Erased, LedgerUpdate
from safeedit.export.places import check_apart, check_output, check_room, usable, within
from safeedit.export.staging import check_target, recover
from safeedit.model.architectures import ModelShape
from safeedit.model.sources import inspect_model, open_config, open_tokenizer
from safeedit.planning.coverage import check_edits, check_erasure, futile
from safeedit.planning.lengths import check_lengths
from safeedit.planning.prompts import PromptCheck
from safeedit.planning.questions import check_questions
from safeedit.planning.withholding import Withholding, keyed_digest
from safeedit.policy import AuditSpec, DataSpec, EditSpec, GateSpec, LedgerSpec, LoadedPolicy
from safeedit.policy.files import read_json
from safeedit.policy.suggest import did_you_mean
from safeedit.records import MetricSpec, Split
from safeedit.scorers.cards import read_card
from safeedit.scorers.score_cache import check_auc
from safeedit.text.inflection import advice

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FieldPath = tuple[str | int, ...]
_FORMAT = "safeedit-plan"


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
        return {f"{self.id}.{metric.name}": metric for metric in self.auditor.metrics}


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
    ledger: LedgerUpdate | None = None
    key: bytes | None = field(default=None, repr=False)
    """Of the digests of data."""

    @property
    def gates(self) -> tuple[GateSpec, ...]:
        """The policy's, then that of the ledger."""
        own = self.ledger.gate if self.ledger is not None else None
        return (*self.loaded.policy.gates, *([own] if own is not None else []))

    @property
    def export_dir(self) -> Path | None:
        """Where a passing checkpoint goes, resolved against the policy file."""
        export = self.loaded.policy.export
        if export is None:
            return None
        return Path(os.path.normpath(self.loaded.base / Path(export.dir).expanduser()))

    @property
    def source_path(self) -> Path | None:
        """The model's folder or file on this machine; None for one of the hub or built in."""
        path = Path(self.model_source).expanduser()
        return path if self.model_source and path.exists() else None

    @property
    def export_bytes(self) -> int:
        """What the export takes on the disk, estimated: the weights, and the originals of all
        tensors that edits may change."""
        bytes_per_weight = 4 if self.dtype == "float32" else 2
        touched = {t.name: _size(t.shape) for edit in self.edits for t in edit.tensors}
        return (self.shape.n_parameters + sum(touched.values())) * bytes_per_weight

    @property
    def report_dir(self) -> Path:
        """Where reports go, whatever the verdict: ``<export dir>.report``, beside the export."""
        target = self.export_dir or Path("out") / self.loaded.policy.name
        return target.with_name(target.name + ".report")

    def datasets(self) -> Iterator[tuple[str, Dataset]]:
        """``<stage>.<role>`` and its data, for every edit and audit."""
        for edit in self.edits:
            for role, data in edit.data.roles.items():
                yield f"edit:{edit.id}.{role}", data
        for audit in self.audits:
            for role, data in audit.data.items():
                yield f"audit:{audit.id}.{role}", data

    def fingerprint(self) -> dict[str, Any]:
        """What must not move between ``plan`` and ``apply``: policy, model and data digests."""
        return {
            "policy": self.policy_digest,
            "model": self.model_digest,
            "data": {name: data.digest for name, data in self.datasets()},
            "key": "" if self.key is None else _key_check(self.key),
        }

    @cached_property
    def recorded_policy(self) -> dict[str, Any]:
        """The policy as records repeat it: what quotes data to be erased is withheld."""
        roles = {
            stage.id: roles_by_key(kind.roles)
            for stages in (
                [(edit.spec, edit.editor) for edit in self.edits],
                [(audit.spec, audit.auditor) for audit in self.audits],
            )
            for stage, kind in stages
        }
        return self.hidden.policy(self.loaded, roles)

    @property
    def policy_digest(self) -> str:
        """The policy's digest; keyed where a value is withheld, which it would give away."""
        if self.recorded_policy == self.loaded.policy.model_dump(mode="json"):
            return self.loaded.digest
        return keyed_digest(self.loaded.digest, self.key)

    def shown_source(self, data: Dataset) -> str:
        """Where data comes from, as far as that may be repeated."""
        return " + ".join(str(self.hidden.value(part)) for part in data.source.split(" + "))

    def summary(self) -> dict[str, Any]:
        """The whole plan as plain values: for ``plan --json``, ``plan -o`` and the screen."""
        policy = self.loaded.policy
        gated = {gate.metric for gate in self.gates}
        return {
            "format": _FORMAT,
            "version": 1,
            "policy_file": str(self.loaded.path),
            "name": policy.name,
            "fingerprint": self.fingerprint(),
            "model": {
                "source": policy.model.source,
                "architecture": self.shape.architecture.family,
                "layers": self.shape.n_layers,
                "width": self.shape.d_model,
                "parameters": self.shape.n_parameters,
                "dtype": self.dtype,
            },
            "edits": [
                {
                    "id": edit.id,
                    "use": edit.spec.use,
                    "dose": edit.spec.dose,
                    "params": self.hidden.value(edit.params.model_dump(mode="json")),
                    "layers": sorted({t.layer for t in edit.tensors if t.layer is not None}),
                    "tensors": [t.name for t in edit.tensors],
                    "parameters_touched": sum(_size(t.shape) for t in edit.tensors),
                    "targets": _gates(edit.targets) if edit.spec.dose == "auto" else [],
                }
                for edit in self.edits
            ],
            "audits": [
                {
                    "id": audit.id,
                    "use": audit.spec.use,
                    "params": self.hidden.value(audit.params.model_dump(mode="json")),
                    "gated_metrics": sorted(gated & audit.metrics.keys()),
                }
                for audit in self.audits
            ],
            "data": {
                name: {
                    "digest": data.digest,
                    "source": self.shown_source(data),
                    "items": data.counts(),
                    "notes": list(data.notes),
                }
                for name, data in self.datasets()
            },
            "gates": _gates(self.gates),
            "ledger": None if self.ledger is None else self.ledger.summary(),
            "export": None if self.export_dir is None else str(self.export_dir),
            "report": str(self.report_dir),
            "estimates": self.estimates(),
            "warnings": list(self.warnings),
        }

    def estimates(self) -> dict[str, float]:
        """Rough memory (bytes) and time (seconds) of a run, from shapes and item counts.

        Time is arithmetic, not measurement: 2 FLOPs per parameter and token forward, 6 in
        training, over the matrix throughput of this machine as timed on one small product. Expect
        a factor of two either way.
        """
        from safeedit.planning.throughput import measured_flops

        flops = measured_flops(self.dtype)
        forward = sum(_cost(audit.auditor, dict(audit.data)) for audit in self.audits)
        rounds = 2 + sum(2 if edit.spec.dose == "auto" else 1 for edit in self.edits)
        training = sum(_cost(edit.editor, edit.data.roles) for edit in self.edits)
        n = self.shape.n_parameters
        bytes_per_weight = 4 if self.dtype == "float32" else 2
        touched = sum(_size(t.shape) for edit in self.edits for t in edit.tensors)
        return {
            "weights_bytes": n * bytes_per_weight,
            "peak_memory_bytes": n * bytes_per_weight * 2 + touched * 12 + 1.0e9,
            "forward_tokens": forward * rounds,
            "training_tokens": training,
            "seconds": (2 * n * forward * rounds + 6 * n * training) / flops,
        }


def make_plan(loaded: LoadedPolicy, *, exporting: bool = True, key: bytes | None = None) -> Plan:
    """Resolve a policy.

    Args:
        loaded: The policy.
        exporting: Refuse if the export could not be written where it is to go; otherwise only
            warn.
        key: Of the digests of data: give that of the run's context, so that they hold for other
            runs too. Without one they hold for this process alone.

    Raises:
        PolicyError: an unknown name, a bad parameter, a gate on a metric nobody measures, a
            layer outside the model; always with the position in the policy file.
        DataError: a data source is missing, malformed or overlaps another.
        ModelError: the model can't be found or is refused.
    """
    policy = loaded.policy
    warnings: list[str] = []
    if policy.export is not None:
        with _Located(loaded, ("export", "dir")):
            usable(policy.export.dir)
    with _Located(loaded, ("model", "source")):
        source = _model_source(loaded, policy.model.source)
        found = inspect_model(source, revision=policy.model.revision, dtype=policy.model.dtype)
        shape = ModelShape.from_config(found.config)
        warnings += [f"model: {note}" for note in found.notes]
    digest, dtype = found.identity, found.dtype
    edits = tuple(_plan_edit(loaded, index, shape, key) for index in range(len(policy.edits)))
    audits = tuple(
        _plan_audit(loaded, spec, ("audits", index), key)
        for index, spec in enumerate(policy.audits)
    )
    upkeep, again = _plan_ledger(loaded, source, edits, warnings, key)
    audits += again
    _warn_of_inflection(audits, warnings)
    _check_gates(loaded, audits, warnings)
    _check_enough(loaded, edits, audits)
    _check_splits(loaded, edits, audits)
    _check_prompts(loaded, source, found.config, edits, audits, warnings)
    check_edits(loaded, editing=exporting, warnings=warnings)
    held = [*policy.gates, *([upkeep.gate] if upkeep is not None and upkeep.gate else [])]
    given = [*(edit.data.roles for edit in edits), *(audit.data for audit in audits)]
    with _Located(loaded, ("model", "source")):
        asked = [data for roles in given for data in roles.values()]
        check_questions(source, policy.model.revision, asked)
    hidden = Withholding(data for data in asked if data.erased)
    hidden.refuse_names(loaded)
    check_erasure(loaded, edits, audits, held, hidden, warnings)
    warnings += check_lengths(loaded, source, audits)
    plan = Plan(
        loaded, source, digest, dtype, shape, edits, audits, tuple(warnings), hidden, upkeep, key
    )
    if plan.export_dir is not None and policy.export is not None:
        if not policy.gates:
            raise loaded.error(
                ("export",),
                "a policy that exports must have at least one gate",
                "add gates, or remove 'export' to only measure",
            )
        try:
            with _Located(loaded, ("export", "dir")):
                if exporting:
                    with writing(plan.export_dir):
                        recover(plan.export_dir)
                check_target(plan.export_dir, overwrite=policy.export.overwrite)
                _check_place(plan, plan.export_dir)
                check_room(plan.export_dir, plan.export_bytes)
        except ExportError as error:
            if exporting:
                raise
            told = f"apply would refuse this: {error.message}"
            return replace(plan, warnings=(*plan.warnings, told))
    return plan


def _check_place(plan: Plan, target: Path) -> None:
    """The export is neither its own source, nor lies in it, nor holds it."""
    source = plan.source_path
    if source is None:
        return
    check_apart(target, source, what="the export", name="the model that it is made from")
    if within(source, target):
        raise UsageError(
            f"the export would take the place of a folder that holds its own model: {source}",
            remedy="choose another folder",
        )


def write_plan(plan: Plan, path: Path) -> None:
    """Write :meth:`Plan.summary` as JSON for a later ``apply``.

    The policy is named relative to the plan, so that both can move together.

    Raises:
        UsageError: the file can't be written, or lies in a checkpoint.
    """
    check_output(path, "--output", "the plan")
    if path.is_file():
        try:
            read_plan(path)
        except UsageError as error:
            raise UsageError(
                "there is a file here that is no plan, so it is not overwritten",
                file=path,
                remedy="choose another name",
            ) from error
    policy = os.path.relpath(plan.loaded.path, path.parent)
    content = {**plan.summary(), "policy_file": policy}
    try:
        write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
    except OSError as error:
        raise UsageError(
            f"the plan can't be written: {error.strerror}",
            file=path,
            remedy="choose another folder",
        ) from error


def is_plan(path: Path) -> bool:
    """Whether a file is JSON that :func:`write_plan` made, or looks like it; policies are not."""
    try:
        content = read_json(path)
    except OSError:
        return path.suffix == ".json" and path.is_file()
    except ValueError:
        return path.suffix == ".json"
    return isinstance(content, dict) and content.get("format") == _FORMAT


def read_plan(path: Path) -> dict[str, Any]:
    """A plan file's content, with ``policy_file`` as seen from the working directory.

    Raises:
        UsageError: the file is not a plan.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise UsageError("not a readable plan", file=path, remedy="make it with plan -o") from error
    whole = isinstance(content, dict) and content.get("format") == _FORMAT
    named = content.get("policy_file") if whole else None
    if not isinstance(named, str) or not named or "\0" in named:
        raise UsageError("this JSON is not a plan", file=path, remedy="make it with plan -o")
    seen = content.get("fingerprint")
    # 1 is also what True and 1.0 are equal to.
    if type(content.get("version")) is not int or content["version"] != 1:
        raise UsageError(
            "a plan of another version", file=path, remedy="make it again with plan -o"
        )
    if not isinstance(seen, dict) or not isinstance(seen.get("data"), dict):
        raise UsageError(
            "the plan does not say what it saw of policy, model and data",
            file=path, field="fingerprint", remedy="make it again with plan -o",
        )  # fmt: skip
    return {**content, "policy_file": os.path.normpath(path.parent / content["policy_file"])}


def check_unmoved(plan: Plan, written: Mapping[str, Any]) -> None:
    """Refuse if policy, model or data differ from what a written plan saw.

    Raises:
        UsageError: naming what has moved.
    """
    then, now = written["fingerprint"], plan.fingerprint()
    if then.get("key", "") != now["key"]:
        raise UsageError(
            "the plan was made with another key of the digests, so its data can't be compared",
            remedy="apply it where it was made, or with the same SAFEEDIT_DIGEST_KEY; or make a "
            "new plan",
        )
    moved = [part for part in ("policy", "model") if then.get(part) != now[part]]
    before: Mapping[str, Any] = then["data"]
    moved += [
        f"data of {name}"
        for name in sorted(before.keys() | now["data"].keys())
        if before.get(name) != now["data"].get(name)
    ]
    if moved:
        raise UsageError(
            f"since the plan was made, these have changed: {', '.join(moved)}",
            remedy="review the changes and make a new plan",
        )


def _model_source(loaded: LoadedPolicy, source: str) -> str:
    """A model's source, with a relative path read from the policy's folder like all others."""
    path = Path(source).expanduser()
    if path.is_absolute() or source.startswith("builtin:"):
        return source
    if (loaded.base / path).exists():
        return str(loaded.base / path)
    if path.exists():
        raise UsageError(
            "there is no such model in the policy's folder, only in the working directory",
            field="source",
            remedy="relative paths start at the policy's folder: write "
            f"{os.path.relpath(path, loaded.base)}",
        )
    return source


def _key_check(key: bytes) -> str:
    """Tells this key from others without telling anything about it."""
    return hmac.new(key, b"safeedit plan 1 key check", hashlib.sha256).hexdigest()[:16]


def roles_by_key(roles: Sequence[DataRole]) -> dict[str, DataRole]:
    """Roles of data by the key that a policy gives them under; the first may be called data."""
    by_key = {role.name: role for role in roles}
    if roles and "data" not in by_key:
        by_key["data"] = roles[0]
    return by_key


def _plan_edit(
    loaded: LoadedPolicy, index: int, shape: ModelShape, key: bytes | None
) -> PlannedEdit:
    spec = loaded.policy.edits[index]
    at: FieldPath = ("edits", index)
    with _Located(loaded, (*at, "use")):
        kind = catalog.editor(spec.use)
    data, params = _split_options(loaded, at, spec, kind.roles, kind.Params, key)
    editor = kind(params)
    with _Located(loaded, at):
        tensors = tuple(editor.touches(shape))
    _check_data(loaded, at, spec, editor, data)
    targets = spec.targets or loaded.policy.gates
    if spec.dose == "auto" and not targets:
        raise loaded.error(
            (*at, "dose"),
            "'dose: auto' needs targets to meet, and the policy has no gates",
            "add 'targets' to the edit or 'gates' to the policy, or give a number",
        )
    return PlannedEdit(
        spec.id,
        spec,
        editor,
        params,
        EditData({role: found.without("test") for role, found in data.items()}),
        tensors,
        targets,
    )


def _check_data(
    loaded: LoadedPolicy,
    at: FieldPath,
    spec: EditSpec,
    editor: Editor,
    data: Mapping[str, Dataset],
) -> None:
    """What an editor says its data lacks; editors may offer it."""
    check = getattr(editor, "check_data", None)
    if not callable(check):
        return
    role = editor.roles[0].name
    with _Located(loaded, (*at, role if role in spec.options else "data")):
        check(data)


def _plan_audit(
    loaded: LoadedPolicy,
    spec: AuditSpec,
    at: FieldPath,
    key: bytes | None,
    given: Mapping[str, Dataset] | None = None,
) -> PlannedAudit:
    """Resolve an audit; ``given`` is data that doesn't come from its own keys."""
    with _Located(loaded, (*at, "use")):
        kind = catalog.auditor(spec.use)
    data, params = _split_options(loaded, at, spec, kind.roles, kind.Params, key, given)
    return PlannedAudit(spec.id, spec, kind(params), params, data, at)


def _plan_ledger(
    loaded: LoadedPolicy,
    source: str,
    edits: Sequence[PlannedEdit],
    warnings: list[str],
    digest_key: bytes | None,
) -> tuple[LedgerUpdate | None, tuple[PlannedAudit, ...]]:
    """What this run does with the ledger, and the audit of what earlier exports erased."""
    spec = loaded.policy.ledger
    with _Located(loaded, ("model", "source")):
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
    with _Located(loaded, ("ledger", "key")):
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
    with _Located(loaded, ("ledger", "requests")):
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
    with _Located(loaded, at):
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
    with _Located(loaded, ("ledger", "requests")):
        data = dataset_of(
            (request for request, _ in found.covered),
            spec.requests,
            role,
            seed=loaded.policy.seed,
            notes=notes * bool(found.uncovered),
            key=key,
        )
    return (_plan_audit(loaded, spec.stage, at, key, {role.name: data}),)


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
            with _Located(loaded, at):
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


def _warn_of_inflection(audits: Sequence[PlannedAudit], warnings: list[str]) -> None:
    """Ask for the forms of answers whose language inflects them; says counts, never an answer."""
    for audit in audits:
        for role in audit.auditor.roles:
            data = audit.data.get(role.name)
            if role.erased and role.answered and data is not None:
                told = advice([item.aliases for item in data if item.aliases])
                if told:
                    warnings.append(f"audit {audit.id}: of its {role.name} data, {told}")


def _split_options(
    loaded: LoadedPolicy,
    at: FieldPath,
    stage: EditSpec | AuditSpec,
    roles: Sequence[DataRole],
    params_type: type[BaseParams],
    digest_key: bytes | None,
    given: Mapping[str, Dataset] | None = None,
) -> tuple[dict[str, Dataset], BaseParams]:
    """Part an edit's or audit's free keys into data (by role) and parameters."""
    by_key = roles_by_key(roles)
    datasets: dict[str, Dataset] = dict(given or {})
    rest: dict[str, Any] = {}
    for key, value in stage.options.items():
        role = by_key.get(key)
        if role is None:
            rest[key] = value
            continue
        if role.name in datasets:
            raise loaded.error(
                (*at, key), f"the data of {role.name!r} is given twice", "keep one of the two"
            )
        spec = loaded.parse(DataSpec, value, (*at, key))
        with _Located(loaded, (*at, key)):
            found = load_dataset(
                spec, base=loaded.base, role=role, seed=loaded.policy.seed, key=digest_key
            )
            if role.answered and (mute := sum(not item.aliases for item in found)):
                raise DataError(
                    f"{mute} of {len(found)} items have no answer",
                    remedy=answer_hint(found),
                )
            datasets[role.name] = found
    datasets = with_defaults(roles, datasets, loaded.policy.seed)
    for role in roles:
        if role.required and role.name not in datasets:
            raise loaded.error(
                at,
                f"data is missing: {role.name} ({role.description})",
                f"add '{role.name}: {{file: ...}}' or '{role.name}: {{dataset: ...}}'",
            )
    known = (*type(stage).model_fields, *params_type.model_fields, *by_key)
    for key in rest:
        if key not in params_type.model_fields:
            error = loaded.error((*at, key), f"unknown key {key!r}", did_you_mean(key, known))
            error.line, error.column = loaded.positions[(*at, key)].key
            raise error
    return datasets, _with_models(loaded, loaded.parse(params_type, rest, at), at)


def _with_models(loaded: LoadedPolicy, params: BaseParams, at: FieldPath) -> BaseParams:
    """Parameters that name other models and scorers, with these found and told by their
    weights."""
    found: dict[str, ModelRef | ScorerRef] = {}
    for name, value in params:
        if isinstance(value, ModelRef):
            with _Located(loaded, (*at, name, "source")):
                source = _model_source(loaded, value.source)
                _, digest = open_config(source, revision=value.revision)
            found[name] = value.model_copy(update={"source": source, "digest": digest})
        if isinstance(value, ScorerRef):
            found[name] = _with_scorer(loaded, value, (*at, name))
    return params.model_copy(update=found)


def _with_scorer(loaded: LoadedPolicy, ref: ScorerRef, at: FieldPath) -> ScorerRef:
    """A scorer that is there, fits its parameters and is as good as demanded."""
    with _Located(loaded, (*at, "use")):
        kind = catalog.scorer(ref.use)
    params = loaded.parse(kind.Params, ref.params, (*at, "params"))
    found: dict[str, Any] = {}
    for name, value in params:
        with _Located(loaded, (*at, "params", name)):
            if isinstance(value, Path):
                found[name] = loaded.base / value.expanduser()
            elif name == "source":
                found[name] = _model_source(loaded, value)
    params = params.model_copy(update=found)
    with _Located(loaded, (*at, "params")):
        identity = kind(params).identity()
    with _Located(loaded, (*at, "min_auc")):
        check_auc(ref, identity, read_card(identity, cache_dir()))
    return ref.model_copy(
        update={"params": params.model_dump(mode="json"), "digest": identity.digest}
    )


class _Located:
    """Says which field of the policy led to an error.

    An error without a place gets the field's position; one that is about a whole file (of data, of
    a model) keeps the file and says where the policy names it.
    """

    def __init__(self, loaded: LoadedPolicy, at: FieldPath) -> None:
        self.loaded, self.at = loaded, at

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, SafeeditError) or error.line is not None:
            return
        inner: FieldPath = tuple(error.field.split("."))
        # Its own field, below the one at hand or beside it (model.revision, model.source).
        nearer = [
            path
            for path in ((*self.at, *inner), (*self.at[:-1], *inner))
            if path in self.loaded.positions
        ]
        at: FieldPath = nearer[0] if nearer else self.at
        place = self.loaded.error(at, error.message, error.remedy)
        if error.file is None:
            error.file, error.line, error.column = place.file, place.line, place.column
            error.field = place.field
        else:
            error.message += f" (asked for at {place.location})"


def _check_gates(loaded: LoadedPolicy, audits: Sequence[PlannedAudit], warnings: list[str]) -> None:
    known = {name: spec for audit in audits for name, spec in audit.metrics.items()}
    listed: list[tuple[FieldPath, GateSpec]] = [
        (("gates", i), gate) for i, gate in enumerate(loaded.policy.gates)
    ]
    for e, edit in enumerate(loaded.policy.edits):
        listed += [(("edits", e, "targets", t), gate) for t, gate in enumerate(edit.targets)]
    for at, gate in listed:
        spec = known.get(gate.metric)
        if spec is None:
            raise loaded.error(
                (*at, "metric"),
                f"no audit of this policy measures {gate.metric!r}",
                did_you_mean(gate.metric, known),
            )
        if (gate.meaning.passes == "below") != (spec.direction == "lower"):
            warnings.append(
                f"{gate.metric}: {spec.direction} is better, but the gate is '{gate.condition}'"
            )
        if told := futile(gate, spec):
            warnings.append(told)


def _check_enough(
    loaded: LoadedPolicy, edits: Sequence[PlannedEdit], audits: Sequence[PlannedAudit]
) -> None:
    """Every audit has something to measure: test items, and validation items for ``dose: auto``."""
    for audit in audits:
        with _Located(loaded, audit.at):
            if role := _without_items(audit, "test"):
                raise DataError(
                    f"audit {audit.id} has no test items: its {role} data has none",
                    remedy="give it data with a test split, or at least three items",
                )
    for index, edit in enumerate(edits):
        if edit.spec.dose != "auto":
            continue
        for audit in audits:
            targets = sorted({gate.metric for gate in edit.targets} & audit.metrics.keys())
            role = _without_items(audit, "validation") if targets else ""
            if role:
                raise loaded.error(
                    ("edits", index, "targets" if edit.spec.targets else "dose"),
                    f"'dose: auto' can't be held against {targets[0]} on validation data: the "
                    f"{role} data of audit {audit.id} has none",
                    "give that data a validation split, or list 'targets' that have one",
                )


def _without_items(audit: PlannedAudit, split: Split) -> str:
    """A role of data the audit can't do without that is empty in a split; or nothing."""
    needed = {role.name for role in audit.auditor.roles if role.required} or audit.data.keys()
    empty = [role for role in needed if not audit.data[role].items(split)]
    return min(empty, default="")


def _check_splits(
    loaded: LoadedPolicy, edits: Sequence[PlannedEdit], audits: Sequence[PlannedAudit]
) -> None:
    """What was fitted or tuned on must not be what is tested on."""
    tested = [
        ((*audit.at, role), f"test split of audit {audit.id}: {role}", _asked(data, "test"))
        for audit in audits
        for role, data in audit.data.items()
    ]
    used: list[tuple[str, list[str]]] = []
    for index, edit in enumerate(edits):
        fitted = {role: _asked(data, "fit") for role, data in edit.data.roles.items()}
        for first, second in itertools.combinations(sorted(fitted), 2):
            if edit.data[first].erased != edit.data[second].erased:
                with _Located(loaded, ("edits", index, second)):
                    check_disjoint(
                        fitted[first],
                        fitted[second],
                        f"edit {edit.id}: {first}",
                        f"edit {edit.id}: {second}",
                    )
        for role, data in edit.data.roles.items():
            used.append((f"fit split of edit {edit.id}: {role}", fitted[role]))
            used.append((f"validation split of edit {edit.id}: {role}", _asked(data, "validation")))
    wanted = {gate.metric for edit in edits if edit.spec.dose == "auto" for gate in edit.targets}
    for audit in audits:
        if wanted & audit.metrics.keys():
            for role, data in audit.data.items():
                used.append(
                    (f"validation split of audit {audit.id}: {role}", _asked(data, "validation"))
                )
    for at, held_out, texts in tested:
        with _Located(loaded, at):
            for name, seen in used:
                check_disjoint(seen, texts, name, held_out)


def _check_prompts(
    loaded: LoadedPolicy,
    source: str,
    config: PreTrainedConfig,
    edits: Sequence[PlannedEdit],
    audits: Sequence[PlannedAudit],
    warnings: list[str],
) -> None:
    """See that the model's tokenizer and context take what is asked of it."""
    with _Located(loaded, ("model", "source")):
        tokenizer = open_tokenizer(source, revision=loaded.policy.model.revision)
    check = PromptCheck(tokenizer, config)
    for index, edit in enumerate(edits):
        for role, data in edit.data.roles.items():
            field = role if role in edit.spec.options else "data"
            with _Located(loaded, ("edits", index, field)):
                check(f"edit {edit.id}", role, data, edit.params)
    for audit in audits:
        for role, data in audit.data.items():
            field = role if role in audit.spec.options else "data"
            with _Located(loaded, (*audit.at, field)):
                check(f"audit {audit.id}", role, data, audit.params)
    warnings += check.warnings


def _asked(data: Dataset, split: Split) -> list[str]:
    """What is put to the model from one split: of data to be erased, its phrasings."""
    if data.erased:
        return [phrasing.text for phrasing in data.phrasings(split)]
    return [item.prompt for item in data.items(split)]


def _gates(gates: Sequence[GateSpec]) -> list[dict[str, str]]:
    return [{"metric": gate.metric, "condition": gate.condition} for gate in gates]


def _size(shape: Sequence[int]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


def _cost(stage: Editor | Auditor, data: Mapping[str, Dataset]) -> int:
    """Tokens through the model that a stage says it needs; editors and auditors may offer it."""
    tokens = getattr(stage, "tokens", None)
    return int(tokens(data)) if callable(tokens) else sum(60 * len(d) for d in data.values())


__all__ = [
    "Plan",
    "PlannedAudit",
    "PlannedEdit",
    "PolicyError",
    "check_unmoved",
    "is_plan",
    "make_plan",
    "read_plan",
    "write_plan",
]
