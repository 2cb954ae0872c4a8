"""Where in the depth an edit works, chosen by measurement: ``layers: auto``.

The edit is fitted on a few of its facts at each of the places that the plan lists (the editor's own
share of the depth first, then others), its dose chosen as for any edit, and its targets measured on
validation wordings of these facts and on a part of the other validation items. That place is taken
whose best dose misses fewest targets, of these the one that misses by least, and of places that
meet all the one that is furthest within them; of equal ones the first. Test data is not looked at.

What a few facts say need not hold for many: the report lists what each place gave. What was found
is kept in the store.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from safeedit.code import code_digest
from safeedit.contracts import EditData
from safeedit.data import Dataset, Item
from safeedit.data.independence import marks
from safeedit.errors import EditError
from safeedit.model.handle import ModelHandle
from safeedit.planning.plan import PlannedEdit
from safeedit.records import LayersTried
from safeedit.running.audits import Audits
from safeedit.running.doses import TriedDose, best_of, try_doses
from safeedit.running.keys import joined
from safeedit.running.proposals import propose
from safeedit.running.store import Finding

FACTS = 8
"""Facts that each place is tried on, at most."""

OTHERS = 32
"""Validation items of every other role that are looked at beside them, at most."""


@dataclass(frozen=True)
class Places:
    """The places of one edit, the few facts that they are tried on, and audits of these.

    Attributes:
        edit: With places.
        data: What it is fitted on: a few of its facts, and all else.
        audits: Those of its targets, asking about the same facts.
        facts: How many.
    """

    edit: PlannedEdit
    data: EditData
    audits: Audits
    facts: int

    @classmethod
    def of(cls, audits: Audits, edit: PlannedEdit) -> Places:
        """Draw the facts by the run's seed."""
        seed = audits.ctx.seed
        chosen: list[Item] = []
        roles: dict[str, Dataset] = {}
        for role, data in edit.data.roles.items():
            if data.erased:
                few = _few(data.items("fit"), FACTS, seed)
                chosen += few
                roles[role] = data.only(_among(few))
            else:
                roles[role] = data
        ids = {gate.audit for gate in edit.targets}
        asked = {mark for item in chosen for mark in marks(item, erased=True)}

        def about(item: Item) -> bool:
            return not asked.isdisjoint(marks(item, erased=True))

        few_audits = tuple(
            replace(audit, data=_asked(audit.data, about, seed))
            for audit in audits.plan.audits
            if audit.id in ids
        )
        plan = replace(audits.plan, audits=few_audits, edits=(edit,))
        quiet = replace(audits.ctx, warn=lambda message: None)
        return cls(
            edit,
            EditData(roles),
            Audits(plan, quiet, audits.store, answers=audits.answers),
            len(chosen),
        )

    def measure_base(self, model: ModelHandle) -> None:
        """What the untouched model gives on these facts, that the places are held against."""
        for audit in self.audits.plan.audits:
            self.audits.measure_base(model, audit, "validation")

    def choose(self, model: ModelHandle) -> tuple[PlannedEdit, tuple[LayersTried, ...]]:
        """The edit at the place that does best, and what each place gave; from the cache where
        the same was tried before.

        Raises:
            EditError: It can't be made at any of them.
        """
        key, what = self._key(model), f"edit {self.edit.id}"
        kept = self.audits.store.read("layers", key, what)
        if kept is not None:
            tried = tuple(LayersTried.model_validate(each) for each in kept.said["tried"])
        else:
            tried = self._try(model)
            said = {"tried": [each.model_dump(mode="json") for each in tried]}
            seconds = sum(each.seconds for each in tried)
            self.audits.store.write("layers", key, Finding(said, {}, seconds), what)
        taken = next(each.layers for each in tried if each.taken)
        return next(place for place in self.edit.places if _layers(place) == taken), tried

    def _try(self, model: ModelHandle) -> tuple[LayersTried, ...]:
        found: list[tuple[PlannedEdit, TriedDose, float]] = []
        failed: EditError | None = None
        edit, places = self.edit, self.edit.places
        uncontrolled = edit.spec.model_copy(update={"control": False})
        for place in self.audits.ctx.progress(
            places, f"edit {edit.id}: trying layers", len(places)
        ):
            start = self.audits.store.effort.now()
            try:
                few = replace(place, data=self.data, spec=uncontrolled)
                proposal = propose(self.audits, model, few)
            except EditError as error:
                failed = error
                continue
            best = best_of(try_doses(self.audits, model, place, proposal))
            found.append((place, best, self.audits.store.effort.now() - start))
        if not found:
            assert failed is not None
            raise failed
        aimed = [gate.metric for gate in self.edit.targets]
        chosen = min(found, key=lambda each: (each[1].shortfall, -each[1].room))[0]
        return tuple(
            LayersTried(
                layers=_layers(place),
                dose=best.point.dose,
                metrics={name: best.point.metrics.get(name) for name in aimed},
                meets_targets=best.point.meets_targets,
                misses=best.point.misses,
                facts=self.facts,
                taken=place is chosen,
                seconds=seconds,
            )
            for place, best, seconds in found
        )

    def _key(self, model: ModelHandle) -> str:
        """Everything that decides what is found."""
        edit, audits = self.edit, self.audits
        return joined(
            # With the weights as they are now, data, code, versions, seed.
            [audits.key(model, audit, "validation") for audit in audits.plan.audits],
            audits.plan.model_digest,
            edit.spec.use,
            [place.params.model_dump(mode="json") for place in edit.places],
            edit.spec.dose,
            [gate.model_dump(mode="json") for gate in edit.targets],
            {role: data.digest for role, data in self.data.roles.items()},
            code_digest(type(edit.editor).__module__, __name__),
        )


def _layers(place: PlannedEdit) -> tuple[int, ...]:
    return tuple(sorted({t.layer for t in place.tensors if t.layer is not None}))


def _few(items: tuple[Item, ...], most: int, seed: int) -> tuple[Item, ...]:
    return items if len(items) <= most else tuple(random.Random(seed).sample(items, most))


def _among(items: tuple[Item, ...]) -> Callable[[Item], bool]:
    kept = {id(item) for item in items}
    return lambda item: id(item) in kept


def _asked(
    data: Mapping[str, Dataset], about: Callable[[Item], bool], seed: int
) -> dict[str, Dataset]:
    """An audit's data with the chosen facts alone, and few of its other validation items."""
    return {
        role: found.only(about)
        if found.erased
        else found.only(_among(_few(found.items("validation"), OTHERS, seed)))
        for role, found in data.items()
    }
