"""From a policy to everything a run needs, without loading a weight.

:func:`make_plan` resolves names, parameters, data, tensors and gates, and refuses what can't work
before anything expensive starts.

Fails with :class:`~safeedit.errors.PolicyError` (at a position in the policy file),
:class:`~safeedit.errors.DataError` or :class:`~safeedit.errors.ModelError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from safeedit.data import Dataset
from safeedit.errors import ExportError, naming
from safeedit.export.disk import writing
from safeedit.export.places import check_room, usable
from safeedit.export.staging import check_target, clear_dead, recover
from safeedit.model.architectures import ModelShape
from safeedit.model.sources import Inspected, inspect_model
from safeedit.planning.attacks import plan_attack
from safeedit.planning.checks import (
    check_enough,
    check_gates,
    check_place,
    check_private,
    check_prompts,
    check_splits,
    warn_of_inflection,
)
from safeedit.planning.coverage import check_edits, check_erasure, warn_of_locality
from safeedit.planning.erasures import plan_ledger
from safeedit.planning.lengths import check_lengths
from safeedit.planning.located import Located
from safeedit.planning.memory import check_memory
from safeedit.planning.options import adapter_folder, model_source
from safeedit.planning.plan import Plan
from safeedit.planning.power import power
from safeedit.planning.questions import check_questions
from safeedit.planning.stages import plan_audit, plan_edit
from safeedit.planning.withholding import Withholding
from safeedit.policy import LoadedPolicy


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
    if loaded.policy.export is not None:
        with Located(loaded, ("export", "dir")):
            usable(loaded.policy.export.dir)
    model = _model(loaded)
    own = _resolved(loaded, model, key)
    others = []
    for seed in loaded.policy.other_seeds:
        with naming(f"with seed {seed}"):
            others.append(_resolved(loaded.with_other_seed(seed), model, key))
    # What one seed's data holds may be quoted with no other's either.
    hidden = Withholding(data for plan in (own, *others) for data in _erased(plan))
    own = _checked(replace(own, hidden=hidden), model.found, exporting=exporting)
    checked = []
    for plan in others:
        with naming(f"with seed {plan.seed}"):
            checked.append(_checked(replace(plan, hidden=hidden), model.found, exporting=exporting))
    warnings = list(own.warnings)
    check_memory(own, warnings)
    return replace(own, other_seeds=tuple(checked), warnings=tuple(warnings))


@dataclass(frozen=True)
class _Model:
    """The policy's model, as far as headers tell."""

    source: str
    adapter: str | None
    found: Inspected
    shape: ModelShape


def _resolved(loaded: LoadedPolicy, model: _Model, key: bytes | None) -> Plan:
    """The policy with its own seed, unchecked; nothing is withheld yet."""
    policy = loaded.policy
    source, found, shape = model.source, model.found, model.shape
    warnings = [f"model: {note}" for note in found.notes]
    edits = tuple(plan_edit(loaded, index, shape, key) for index in range(len(policy.edits)))
    audits = tuple(
        plan_audit(loaded, spec, ("audits", index), key) for index, spec in enumerate(policy.audits)
    )
    ledger, again = plan_ledger(loaded, source, edits, warnings, key)
    attacks = tuple(
        plan_attack(loaded, index, audits, key, warnings) for index in range(len(policy.attacks))
    )
    return Plan(
        loaded=loaded,
        model_source=source,
        adapter=model.adapter,
        model_digest=found.identity,
        dtype=found.dtype,
        shape=shape,
        edits=edits,
        audits=(*audits, *again),
        warnings=tuple(warnings),
        hidden=Withholding(()),
        attacks=attacks,
        ledger=ledger,
        key=key,
    )


def _erased(plan: Plan) -> Iterator[Dataset]:
    """All data of a plan that is to be erased."""
    for audit in plan.audits:
        yield from (data for data in audit.data.values() if data.erased)
    for edit in plan.edits:
        yield from edit.erased


def _checked(plan: Plan, found: Inspected, *, exporting: bool) -> Plan:
    """The plan with what is to be warned of, unless it can't work."""
    warnings = list(plan.warnings)
    _check(plan, found, editing=exporting, warnings=warnings)
    if plan.export_dir is not None:
        _check_export(plan, exporting=exporting, warnings=warnings)
    return _with_powers(plan, warnings)


def _with_powers(plan: Plan, warnings: list[str]) -> Plan:
    powers = {gate: found for gate in plan.gates if (found := power(gate, plan.audits))}
    warnings += [found.warning for found in powers.values() if found.warning]
    told = {gate: str(found) for gate, found in powers.items()}
    return replace(plan, warnings=tuple(warnings), powers=told)


def _model(loaded: LoadedPolicy) -> _Model:
    """Where model and adapter lie, what their headers say, and the shape."""
    spec = loaded.policy.model
    with Located(loaded, ("model", "source")):
        source, adapter = model_source(loaded, spec.source), adapter_folder(loaded)
        found = inspect_model(source, revision=spec.revision, dtype=spec.dtype, adapter=adapter)
        return _Model(source, adapter, found, ModelShape.from_config(found.config))


def _check(plan: Plan, found: Inspected, *, editing: bool, warnings: list[str]) -> None:
    """Refuse what can't work, or could pass without showing anything."""
    loaded, edits, audits = plan.loaded, plan.edits, plan.audits
    warn_of_inflection(audits, warnings)
    check_gates(loaded, audits, warnings)
    check_enough(loaded, edits, audits)
    check_splits(loaded, edits, audits)
    check_prompts(loaded, found.tokenizer, found.config, edits, audits, warnings)
    check_edits(loaded, editing=editing, warnings=warnings)
    with Located(loaded, ("model", "source")):
        check_questions(found.tokenizer, (data for _, data in plan.datasets()))
    plan.hidden.refuse_names(loaded)
    check_erasure(loaded, edits, audits, plan.gates_as_is, plan.hidden, warnings)
    warn_of_locality(edits, audits, warnings)
    warnings += check_lengths(loaded, found.tokenizer, audits)


def _check_export(plan: Plan, *, exporting: bool, warnings: list[str]) -> None:
    """The export has gates to pass, and a place where it can be written."""
    loaded, target, export = plan.loaded, plan.export_dir, plan.loaded.policy.export
    assert target is not None
    assert export is not None
    if not loaded.policy.gates:
        raise loaded.error(
            ("export",),
            "a policy that exports must have at least one gate",
            "add gates, or remove 'export' to only measure",
        )
    try:
        with Located(loaded, ("export", "dir")):
            if exporting:
                with writing(target):
                    recover(target)
            check_target(target, overwrite=export.overwrite)
            check_place(plan, target)
            check_room(target, plan.export_bytes)
        check_private(plan, target)
        if exporting and plan.private_dir is not None:
            with writing(plan.private_dir):
                clear_dead(plan.private_dir)
    except ExportError as error:
        if exporting:
            raise
        warnings.append(f"apply would refuse this: {error.message}")
