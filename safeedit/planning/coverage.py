"""Is what a policy erases also measured, and held by a gate?

A run that passes must have shown something. So every role of an edit whose items are to be
erased is read, item for item, by an audit of such items, and a gate holds a metric of that audit
which tells whether they still come out; or the edit says ``unaudited: "why"``, and the report
repeats it. A policy that exports edits something. Gates that no result could miss are warned of,
and so are policies that erase and measure nothing of what that does to other answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from safeedit.data import Dataset, Item
from safeedit.data.splitting import normalise_prompt
from safeedit.errors import PolicyError
from safeedit.policy import EditSpec, GateSpec, LoadedPolicy
from safeedit.records import MetricSpec

if TYPE_CHECKING:
    from safeedit.planning.plan import PlannedAudit, PlannedEdit
    from safeedit.planning.withholding import Withholding

Place = tuple[str | int, ...]


def check_erasure(
    loaded: LoadedPolicy,
    edits: Sequence[PlannedEdit],
    audits: Sequence[PlannedAudit],
    gates: Sequence[GateSpec],
    hidden: Withholding,
    warnings: list[str],
) -> None:
    """See that what is erased is audited and gated.

    Args:
        loaded: The policy.
        edits: Its edits.
        audits: Its audits, and that of the ledger.
        gates: What must hold for the export.
        hidden: What may not be repeated.
        warnings: Is told of what the policy leaves unaudited.

    Raises:
        PolicyError: An erased role is read by no audit with a gate, or not all of it is.
    """
    if loaded.policy.export is None and not gates:
        return  # nothing is judged, so nothing passes for an erasure
    readers = [(audit, _gated(audit, gates)) for audit in audits]
    for index, edit in enumerate(edits):
        at: Place = ("edits", index)
        erased = _erased(edit)
        if edit.spec.unaudited is not None:
            warnings.append(_told(edit.spec, hidden))
            continue
        for role, data in erased.items():
            place = (*at, role if role in edit.spec.options else "data")
            _check_role(loaded, place, edit.id, data, readers)


def warn_of_locality(
    edits: Sequence[PlannedEdit], audits: Sequence[PlannedAudit], warnings: list[str]
) -> None:
    """Tell where a policy erases and measures nothing of what it does to other answers."""
    erasing = [edit.id for edit in edits if _erased(edit)]
    if erasing and not any(audit.spec.use == "locality" for audit in audits):
        warnings.append(
            f"edit {', '.join(erasing)}: what it does to answers that must stay is not measured; "
            "add an audit such as {use: locality, near: ..., far: ...} and gates on it"
        )


def check_edits(loaded: LoadedPolicy, *, editing: bool, warnings: list[str]) -> None:
    """See that a policy that exports changes something.

    Raises:
        PolicyError: It has no edits.
    """
    if loaded.policy.export is None or loaded.policy.edits:
        return
    told = "a policy without edits has nothing to export: the model would be copied as it is"
    if editing:
        raise loaded.error(("export",), told, "add edits, or remove 'export' to only measure")
    warnings.append(f"apply would refuse this: {told}")


def futile(gate: GateSpec, spec: MetricSpec) -> str:
    """Why a gate says nothing: no value of its metric could miss it, or none could meet it.

    Returns:
        The reason, in words; empty where the gate can go either way.
    """
    low, high = _reach(gate, spec)
    bound = gate.bound.value * gate.meaning.sign
    if gate.meaning.passes == "below":
        never_missed, never_met = (
            high is not None and high <= bound,
            low is not None and low > bound,
        )
    else:
        never_missed, never_met = (
            low is not None and low >= bound,
            high is not None and high < bound,
        )
    if not never_missed and not never_met:
        return ""
    what = "can't fail" if never_missed else "can't be met"
    return f"the gate {gate.metric} {gate.condition} {what}: a {spec.unit} lies {_range(spec)}"


def _reach(gate: GateSpec, spec: MetricSpec) -> tuple[float | None, float | None]:
    """Between which what the gate holds against its bound can lie: a value, or its change."""
    low, high = spec.bounds
    if not gate.meaning.of_change:
        return low, high
    if gate.bound.relative:  # a share of the value before
        return (-1.0, None) if low is not None and low >= 0 else (None, None)
    if low is None or high is None:
        return None, None
    return low - high, high - low


def _range(spec: MetricSpec) -> str:
    low, high = spec.bounds
    if low is not None and high is not None:
        return f"between {low:g} and {high:g}"
    return f"at {low:g} or above" if low is not None else f"at {high:g} or below"


def _erased(edit: PlannedEdit) -> dict[str, Dataset]:
    """An edit's data to be erased, by role."""
    return {
        role.name: edit.data[role.name]
        for role in edit.editor.roles
        if role.erased and not role.comparison_only and edit.data.get(role.name) is not None
    }


def _gated(audit: PlannedAudit, gates: Sequence[GateSpec]) -> bool:
    """Whether a gate holds a metric that tells whether this audit's erased items come out."""
    return any(
        (spec := audit.metrics.get(gate.metric)) is not None
        and spec.erasure
        and _demands(gate, spec)
        and not futile(gate, spec)
        for gate in gates
    )


def _demands(gate: GateSpec, spec: MetricSpec) -> bool:
    """Whether a gate asks for less of what is erased, rather than that it becomes no more."""
    right_side = (gate.meaning.passes == "below") == (spec.direction == "lower")
    asks_for_change = gate.meaning.asks_for_change and gate.bound.value > 0
    return right_side and (asks_for_change or not gate.meaning.of_change)


def _check_role(
    loaded: LoadedPolicy,
    at: Place,
    edit_id: str,
    data: Dataset,
    readers: Sequence[tuple[PlannedAudit, bool]],
) -> None:
    items = _fitted(data)
    asked = {audit.id: _Asked(audit) for audit, _ in readers}
    unread = [item for item in items if not any(item in each for each in asked.values())]
    held = [asked[audit.id] for audit, gated in readers if gated]
    ungated = [item for item in items if not any(item in each for each in held)]
    if not ungated:
        return
    ways = (
        "give an audit such as leakage the same data and a metric of it a gate that can fail, "
        "e.g. {metric: leakage.extraction_rate, max: 0.02}; or say on the edit why that can't be: "
        'unaudited: "..."'
    )
    if not unread:
        reading = sorted(
            audit.id for audit, _ in readers if any(i in asked[audit.id] for i in items)
        )
        raise _refusal(
            loaded, at,
            f"{_count(ungated, items)} edit {edit_id} erases are asked for "
            f"({', '.join(reading)}), but no gate holds a metric that tells whether they still "
            "come out",
            ways,
        )  # fmt: skip
    other = " (the audits read other items)" if any(asked.values()) and unread else ""
    raise _refusal(
        loaded, at,
        f"{_count(unread, items)} edit {edit_id} erases are read by no audit of erased "
        f"data{other}: the run would pass without showing that anything was erased",
        ways,
    )  # fmt: skip


def _refusal(loaded: LoadedPolicy, at: Place, message: str, remedy: str) -> PolicyError:
    return loaded.error(at, message, remedy)


def _count(some: Sequence[Item], all_: Sequence[Item]) -> str:
    return f"{len(some)} of the {len(all_)} items that" if len(all_) > 1 else "the item that"


def _fitted(data: Dataset) -> list[Item]:
    """The items that an edit is fitted on: those that it erases."""
    chosen = {phrasing.item.prompt: phrasing.item for phrasing in data.phrasings("fit")}
    return list(chosen.values())


class _Asked:
    """What an audit asks for on test data, of the roles whose items are erased."""

    def __init__(self, audit: PlannedAudit) -> None:
        roles = [role for role in audit.auditor.roles if role.erased and not role.comparison_only]
        data = [audit.data[role.name] for role in roles if role.name in audit.data]
        self._keys = {
            key
            for each in data
            for item in (*each.items("test"), *(p.item for p in each.phrasings("test")))
            for key in _likenesses(item)
        }

    def __contains__(self, item: Item) -> bool:
        return any(key in self._keys for key in _likenesses(item))

    def __bool__(self) -> bool:
        return bool(self._keys)


def _likenesses(item: Item) -> Iterator[tuple[str, str, str]]:
    """What makes two items one: question or subject, with a spelling of the answer."""
    for answer in item.aliases or ("",):
        told = normalise_prompt(answer)
        yield "prompt", normalise_prompt(item.prompt), told
        for name in item.names:
            yield "subject", normalise_prompt(name), told


def _told(spec: EditSpec, hidden: Withholding) -> str:
    return (
        f"edit {spec.id}: whether what it erases still comes out is held by no gate: "
        f"{hidden.value(spec.unaudited)}"
    )
