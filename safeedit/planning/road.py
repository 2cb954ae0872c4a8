"""The stages that a run goes through, in order, and what work is in each.

Known from the plan alone. Work is counted in floating-point operations, two for each parameter and
token read, six where it is trained on, or in bytes; how long a unit of each kind takes is
:mod:`safeedit.planning.paces`' to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from safeedit.contracts import Attack, Auditor, Editor
from safeedit.data import Dataset
from safeedit.planning.plan import Plan, PlannedAttack, PlannedAudit, PlannedEdit

READING, TRAINING = 2, 6
"""Floating-point operations for each parameter and token."""


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a run, and the work in it."""

    name: str
    own: str
    """Kind of the work that is no audit's, e.g. ``fit sanitation``."""
    amount: float
    """Of that work: floating-point operations, or bytes."""
    audits: Mapping[str, float] = field(default_factory=dict)
    """What an audit's ``use`` names -> floating-point operations of all its audits here."""
    when: str = ""
    """Tells audits of this stage from those of others: some measure less, or from drafts."""

    def kinds(self) -> dict[str, float]:
        """Every kind of work in it, with its amount."""
        audits = {audit_kind(use, self.when): amount for use, amount in self.audits.items()}
        return {self.own: self.amount, **audits}


Road = tuple[PlannedStage, ...]
"""All stages of a run, in order."""


def audit_kind(use: str, when: str) -> str:
    """What the work of an audit is called, e.g. ``audit leakage, before``."""
    return f"audit {use}, {when}"


def base_stage(attack: PlannedAttack) -> str:
    """Name of the stage in which the untouched model is attacked."""
    return f"attack {attack.id}: untouched model"


def edited_stage(attack: PlannedAttack) -> str:
    """Name of the stage in which the edited model is attacked."""
    return f"attack {attack.id}: edited model"


def apply_road(plan: Plan) -> Road:
    """From the untouched model to the verdict on the edited one."""
    found = [_open(plan), _audited(plan, "audit before", "before")]
    found += [_attacked(plan, attack, base_stage(attack), "on the base") for attack in plan.attacks]
    for number, edit in enumerate(plan.edits, 1):
        found += _edited(plan, edit, last=number == len(plan.edits))
    if plan.export_dir is not None:
        size = float(plan.export_bytes)
        found += [PlannedStage("stage", "stage", size), PlannedStage("reload", "reload", size)]
    return (*found, *_measured(plan))


def audit_road(plan: Plan, *, compared: bool) -> Road:
    """Of a run that only measures, ``compared`` with another model or not."""
    found = [_open(plan), _audited(plan, "audit before", "before")]
    if compared:
        found.append(_audited(plan, "audit after", "after"))
    return (*found, _judged(plan))


def attack_road(plan: Plan) -> Road:
    """Of a run that attacks the model as it is, beside the one it was made from."""
    found = [_audited(plan, "audit before", "before")]
    found += [_attacked(plan, attack, base_stage(attack), "on the base") for attack in plan.attacks]
    return (*found, _open(plan), *_measured(plan))


def cost(stage: Editor | Auditor | Attack, data: Mapping[str, Dataset]) -> int:
    """Tokens through the model that a stage says it needs; editors and auditors may offer it."""
    tokens = getattr(stage, "tokens", None)
    return int(tokens(data)) if callable(tokens) else sum(60 * len(d) for d in data.values())


def attack_points(attack: PlannedAttack) -> int:
    """How many times the audits are repeated under an attack: at each strength, with each seed."""
    return len(attack.attack.strengths()) * attack.spec.seeds


def taught_tokens(attack: PlannedAttack) -> int:
    """Tokens that an attack trains on, one model's."""
    return attack.spec.seeds * cost(attack.attack, attack.data.roles) if attack.data.roles else 0


def _open(plan: Plan) -> PlannedStage:
    return PlannedStage("open model", "open", float(plan.weights_bytes))


def _audited(
    plan: Plan,
    name: str,
    when: str,
    *,
    times: int = 1,
    among: Callable[[PlannedAudit], bool] = lambda audit: True,
) -> PlannedStage:
    audits = filter(among, plan.audits)
    return PlannedStage(name, when, float(plan.weights_bytes), _reading(plan, audits, times), when)


def _edited(plan: Plan, edit: PlannedEdit, *, last: bool) -> list[PlannedStage]:
    targets = {gate.audit for gate in edit.targets}
    trained = float(TRAINING * plan.shape.n_parameters * cost(edit.editor, edit.data.roles))
    found = []
    if edit.places:
        stage = _audited(plan, f"edit {edit.id}: layers", "choosing layers",
                         among=lambda audit: audit.id in targets)  # fmt: skip
        own, amount = f"layers {edit.spec.use}", trained * len(edit.places)
        found.append(PlannedStage(stage.name, own, amount, stage.audits, stage.when))
    found.append(PlannedStage(f"edit {edit.id}: fit", f"fit {edit.spec.use}", trained))
    aimed = edit.spec.dose == "auto"
    found.append(_audited(plan, f"edit {edit.id}: dose", "choosing a dose",
                          among=lambda audit: aimed and audit.id in targets))  # fmt: skip
    if edit.spec.control:
        found.append(
            _audited(plan, f"edit {edit.id}: control", "of controls", times=int(edit.spec.control),
                     among=lambda audit: audit.spec.control)
        )  # fmt: skip
    if not last:
        gated = {gate.audit for gate in plan.gates_as_is}
        found.append(
            _audited(plan, f"edit {edit.id}: gates so far", "between edits",
                     among=lambda audit: audit.spec.control and audit.id in gated)
        )  # fmt: skip
    return found


def _measured(plan: Plan) -> list[PlannedStage]:
    """The edited model, under every attack too, and the verdict."""
    after = _audited(plan, "audit after", "after")
    attacked = [_attacked(plan, attack, edited_stage(attack), "on the edited model")
                for attack in plan.attacks]  # fmt: skip
    return [after, *attacked, _judged(plan)]


def _attacked(plan: Plan, attack: PlannedAttack, name: str, which: str) -> PlannedStage:
    use, points, taught = attack.spec.use, attack_points(attack), taught_tokens(attack)
    if taught:
        own, amount = f"attack {use}, {which}", TRAINING * plan.shape.n_parameters * taught
    else:
        own, amount = f"rewriting {use}, {which}", points * plan.weights_bytes
    audits = _reading(plan, attack.audits, points)
    return PlannedStage(name, own, float(amount), audits, f"{use} {which}")


def _judged(plan: Plan) -> PlannedStage:
    return PlannedStage("judge", "judge", float(plan.export_bytes if plan.export_dir else 0))


def _reading(plan: Plan, audits: Iterable[PlannedAudit], times: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for audit in audits:
        operations = READING * plan.shape.n_parameters * cost(audit.auditor, dict(audit.data))
        found[audit.spec.use] = found.get(audit.spec.use, 0.0) + float(operations * times)
    return found
