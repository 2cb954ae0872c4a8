"""What an editor proposes, from the store where the same editor has been asked the same before.

Kept are the strengths on offer, with the change at each that a run may come to ask for, and the
editor's own controls where they were asked for. An editor is asked again only for what nobody has
asked it for yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from safeedit.contracts import Control, Proposal
from safeedit.delta import WeightDelta
from safeedit.errors import EditError, ModelError
from safeedit.model.handle import ModelHandle
from safeedit.model.token_count import TokenCount
from safeedit.planning.plan import PlannedEdit
from safeedit.running.audits import Audits
from safeedit.running.keys import edit_key, joined
from safeedit.running.store import Finding

_Changes = list[tuple[str, WeightDelta]]


def propose(
    audits: Audits, model: ModelHandle, edit: PlannedEdit, read: TokenCount | None = None
) -> Proposal:
    """An editor's proposal for a model.

    Args:
        audits: Of the run: its context and its store.
        model: To be edited.
        edit: From the plan.
        read: Is told how many tokens the model reads for it, in earlier runs too.

    Raises:
        EditError: The editor fails, changes the model while proposing, or proposes no dose.
    """
    kept = _Kept(audits, model, edit, edit_key(audits.ctx, model, edit), read or TokenCount())
    doses = kept.doses()
    return Proposal(doses, kept.at, kept.notes, kept.controls)


@dataclass
class _Kept:
    """A proposal, as far as it is in the store; what is not is asked of the editor."""

    audits: Audits
    model: ModelHandle
    edit: PlannedEdit
    key: str
    read: TokenCount
    notes: dict[str, Any] = field(default_factory=dict)
    """The editor's, which it may add to whenever it makes a change."""
    _made: Proposal | None = None
    _heard: list[str] = field(default_factory=list)
    """What the editor warned of since the last entry."""
    _told: bool = False
    """Whether the editor's warnings while fitting have been said already, from the store."""

    def doses(self) -> tuple[float, ...]:
        """Those on offer; in the store with the changes that this run may ask for."""
        entry = self.audits.store.read("edit", self.key, self._what)
        if entry is not None:
            self._told = True
            self._repeat(entry)
            return tuple(entry.said["doses"])
        start, own = time.perf_counter(), TokenCount()
        with own.of(self.model):
            doses = self._proposal().doses
        self.read.add(own.tokens)
        seconds = time.perf_counter() - start
        said = {
            "doses": doses, "notes": dict(self.notes), "warnings": list(self._heard),
            "tokens": own.tokens,
        }  # fmt: skip
        self._heard.clear()
        chosen = self.edit.spec.dose
        for dose in doses if chosen == "auto" else [float(chosen)]:
            self.at(dose)
            if self.edit.spec.control:
                self.controls(dose)
        self.audits.store.write("edit", self.key, Finding(said, {}, seconds), self._what)
        return doses

    def at(self, dose: float) -> WeightDelta:
        """The change at one dose."""
        ((_, delta),) = self._changes("change", dose, lambda made: [("", made.at(dose))])
        return delta

    def controls(self, dose: float) -> tuple[Control, ...]:
        """The editor's own controls at one dose."""
        found = self._changes(
            "controls", dose, lambda made: [(each.name, each.delta) for each in made.controls(dose)]
        )
        return tuple(Control(name, delta) for name, delta in found)

    @property
    def _what(self) -> str:
        return f"edit {self.edit.id}"

    def _changes(self, which: str, dose: float, ask: Callable[[Proposal], _Changes]) -> _Changes:
        key = joined(self.key, which, dose)
        entry = self.audits.store.read("dose", key, self._what)
        if entry is not None:
            try:
                found = _unpacked(entry)
            except ModelError as error:  # of an earlier format
                self.audits.ctx.warn(f"{self._what}: {error.message}; it is made anew")
            else:
                self._repeat(entry)
                return found
        start, own = time.perf_counter(), TokenCount()
        with own.of(self.model):
            made = self._proposal()
            found = ask(made)
        self.read.add(own.tokens)
        self.notes.update(made.notes)
        packed, tensors = _packed(found)
        said = {
            "changes": packed, "notes": dict(self.notes), "warnings": list(self._heard),
            "tokens": own.tokens,
        }  # fmt: skip
        self._heard.clear()
        entry = Finding(said, tensors, time.perf_counter() - start)
        self.audits.store.write("dose", key, entry, self._what)
        return found

    def _proposal(self) -> Proposal:
        """The editor's own."""
        if self._made is not None:
            return self._made
        before = self.model.tensor_digests(fresh=True)
        ctx = replace(self.audits.ctx, warn=self._hear)
        made = self.edit.editor.propose(self.model, self.edit.data, ctx)
        if self.model.tensor_digests(fresh=True) != before:
            raise EditError(f"{self._what}: the editor changed the model while proposing")
        if not made.doses:
            raise EditError(f"{self._what}: the editor proposed no dose")
        self._made = made
        self.notes.update(made.notes)
        self._told = False
        return made

    def _hear(self, message: str) -> None:
        if not self._told:
            self._heard.append(message)
            self.audits.ctx.warn(message)

    def _repeat(self, entry: Finding) -> None:
        """Note what the editor noted then, and say once what it said."""
        self.notes.update(entry.said["notes"])
        if not entry.again:
            self.read.add(entry.said.get("tokens"))
        for message in () if entry.again else entry.said["warnings"]:
            self.audits.ctx.warn(message)


def _packed(changes: _Changes) -> tuple[list[tuple[str, str]], dict[str, Tensor]]:
    """Name and header of each change, and the tensors of all."""
    said, tensors = list[tuple[str, str]](), dict[str, Tensor]()
    for number, (name, delta) in enumerate(changes):
        header, own = delta.packed()
        said.append((name, header))
        tensors.update({f"{number}/{key}": tensor for key, tensor in own.items()})
    return said, tensors


def _unpacked(entry: Finding) -> _Changes:
    """What :func:`_packed` was given.

    Raises:
        ModelError: It is not of this version.
    """
    found = []
    for number, (name, header) in enumerate(entry.said["changes"]):
        mark = f"{number}/"
        own = {
            key.removeprefix(mark): tensor
            for key, tensor in entry.tensors.items()
            if key.startswith(mark)
        }
        found.append((name, WeightDelta.unpacked(header, own)))
    return found
