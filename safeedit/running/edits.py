"""One edit on a model in memory: fitted, its dose chosen, controlled, applied, and proved to have
moved nothing else.

Fails with :class:`~safeedit.errors.EditError` where an editor breaks its contract.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safeedit.contracts import Control, Proposal
from safeedit.delta import WeightDelta
from safeedit.errors import EditError
from safeedit.methods.update_reading import read_update
from safeedit.model.handle import ModelHandle
from safeedit.model.token_count import TokenCount
from safeedit.planning.plan import PlannedEdit
from safeedit.records import ControlRecord, EditRecord, LayersTried, VocabularyReading
from safeedit.running.audits import Audits
from safeedit.running.clock import Clock
from safeedit.running.controls import measure_controls
from safeedit.running.doses import ChosenDose, choose_dose
from safeedit.running.layers import Places
from safeedit.running.proposals import propose
from safeedit.running.telling import of_dose, worst_headlines


@dataclass(frozen=True)
class Edited:
    """What an edit has done."""

    record: EditRecord
    delta: WeightDelta
    changed: bool
    """Whether any stored weight is another now."""


def apply_edit(
    audits: Audits,
    clock: Clock,
    model: ModelHandle,
    edit: PlannedEdit,
    places: Places | None = None,
) -> Edited:
    """Choose the layers where that is asked for, fit, choose the dose, measure the controls, apply,
    and prove what was not touched.

    Args:
        audits: Those of the run.
        clock: Its stages ``edit ID: layers``, ``fit``, ``dose`` and ``control`` are gone through.
        model: Changed in place.
        edit: From the plan.
        places: Those that it is tried at, under ``layers: auto``.

    Raises:
        EditError: The editor changed the model while proposing, proposed no dose, or its delta
            moves a tensor outside its plan.
    """
    start, read = audits.store.effort.now(), TokenCount()
    before = model.tensor_digests(fresh=True)
    edit, tried = _placed(clock, model, edit, places)
    proposal, chosen = _fitted(audits, clock, model, edit, read)
    delta = _within_plan(edit, proposal.at(chosen.dose))
    controls = _controls(audits, clock, model, edit, delta, lambda: proposal.controls(chosen.dose))
    vocabulary = _read(model, edit, delta)
    undo = model.apply(delta)
    changed = _changed(model, edit, delta, before)
    if not changed:
        audits.ctx.warn(
            f"edit {edit.id} changed no stored weight: its effect vanishes in {model.dtype}"
        )
    record = EditRecord(
        **_of_plan(audits, edit),
        dose=chosen.dose,
        dose_curve=chosen.curve,
        targets_met=chosen.met,
        layers_tried=tried,
        changes=undo.changes,
        vocabulary=vocabulary,
        delta_digest=delta.digest(),
        tokens_read=read.tokens,
        untouched_verified=len(before.keys() - {tensor.name for tensor in edit.tensors}),
        notes=proposal.notes,
        controls=controls,
        seconds=audits.store.effort.now() - start,
    )
    return Edited(record, delta, changed)


def _controls(
    audits: Audits,
    clock: Clock,
    model: ModelHandle,
    edit: PlannedEdit,
    delta: WeightDelta,
    own: Callable[[], Sequence[Control]],
) -> tuple[ControlRecord, ...]:
    if not edit.spec.control:
        return ()
    with clock.stage(f"edit {edit.id}: control") as figures:
        found = measure_controls(audits, model, edit, delta, own())
        figures |= worst_headlines(audits.plan.audits, [each.metrics for each in found])
    return found


def _read(model: ModelHandle, edit: PlannedEdit, delta: WeightDelta) -> VocabularyReading | None:
    """Whether what the change writes tells what it erases."""
    named = [role.name for role in edit.editor.roles if role.erased and not role.comparison_only]
    erased = [data for name in named if (data := edit.data.get(name)) is not None]
    return read_update(model, delta, erased)


def _of_plan(audits: Audits, edit: PlannedEdit) -> dict[str, Any]:
    """What the record of an edit has from its plan."""
    return {
        "id": edit.id,
        "use": edit.spec.use,
        "params": audits.plan.hidden.value(edit.params.model_dump(mode="json")),
        "data_digests": {role: data.digest for role, data in edit.data.roles.items()},
        "dose_mode": "auto" if edit.spec.dose == "auto" else "fixed",
    }


def _placed(
    clock: Clock, model: ModelHandle, edit: PlannedEdit, places: Places | None
) -> tuple[PlannedEdit, tuple[LayersTried, ...]]:
    """The edit at its layers, and what was tried to choose them."""
    if places is None:
        return edit, ()
    with clock.stage(f"edit {edit.id}: layers") as figures:
        placed, tried = places.choose(model)
        figures["places tried"] = len(tried)
        figures["layers"] = next(", ".join(map(str, each.layers)) for each in tried if each.taken)
        return placed, tried


def _fitted(
    audits: Audits, clock: Clock, model: ModelHandle, edit: PlannedEdit, read: TokenCount
) -> tuple[Proposal, ChosenDose]:
    """What the editor proposes, and the dose that is taken of it; ``read`` counts its tokens."""
    with clock.stage(f"edit {edit.id}: fit") as figures:
        proposal = propose(audits, model, edit, read)
        figures["doses on offer"] = len(proposal.doses)
    with clock.stage(f"edit {edit.id}: dose") as figures:
        chosen = choose_dose(audits, model, edit, proposal)
        figures |= of_dose(chosen, len(proposal.doses))
    return proposal, chosen


def _within_plan(edit: PlannedEdit, delta: WeightDelta) -> WeightDelta:
    planned = {tensor.name for tensor in edit.tensors}
    if stray := sorted(delta.updates.keys() - planned):
        raise EditError(f"edit {edit.id}: the delta names tensors outside its plan: {stray}")
    return delta


def _changed(
    model: ModelHandle, edit: PlannedEdit, delta: WeightDelta, before: Mapping[str, str]
) -> bool:
    """Whether any tensor is another than before; none may be that the delta does not name."""
    after = model.tensor_digests(fresh=True)
    changed = {name for name, digest in after.items() if digest != before[name]}
    if stray := sorted(changed - delta.updates.keys()):
        raise EditError(f"edit {edit.id}: tensors outside the plan have moved: {stray}")
    return bool(changed)
