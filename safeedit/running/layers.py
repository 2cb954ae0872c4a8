"""Where in the depth an edit works, chosen by measurement: ``layers: auto``.

The edit is fitted on a few of its facts at each of the places that the plan lists (the editor's own
share of the depth first, then others), its dose chosen as for any edit, and its targets measured on
validation wordings of these facts and on a part of the other validation items. That place is taken
whose best dose misses fewest targets, of these the one that misses by least, and of places that
meet all the one that is furthest within them; of equal ones the first. Test data is not looked at.

What a few facts say need not hold for many: the report lists what each place gave.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from safeedit.contracts import EditData
from safeedit.data import Dataset, Item
from safeedit.data.independence import marks
from safeedit.errors import EditError
from safeedit.model.handle import ModelHandle
from safeedit.planning.plan import PlannedEdit
from safeedit.records import LayersTried
from safeedit.running.audits import Audits
from safeedit.running.doses import TriedDose, best_of, try_doses

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
        return cls(edit, EditData(roles), Audits(plan, quiet, audits.store), len(chosen))

    def measure_base(self, model: ModelHandle) -> None:
        """What the untouched model gives on these facts, that the places are held against."""
        for audit in self.audits.plan.audits:
            self.audits.measure_base(model, audit, "validation")

    def choose(self, model: ModelHandle) -> tuple[PlannedEdit, tuple[LayersTried, ...]]:
        """The edit at the place that does best, and what each place gave.

        Raises:
            EditError: It can't be made at any of them.
        """
        found: list[tuple[PlannedEdit, TriedDose, float]] = []
        failed: EditError | None = None
        edit, places = self.edit, self.edit.places
        for place in self.audits.ctx.progress(
            places, f"edit {edit.id}: trying layers", len(places)
        ):
            start = time.perf_counter()
            try:
                proposal = place.editor.propose(model, self.data, self.audits.ctx)
            except EditError as error:
                failed = error
                continue
            best = best_of(try_doses(self.audits, model, place, proposal))
            found.append((place, best, time.perf_counter() - start))
        if not found:
            assert failed is not None
            raise failed
        chosen = min(found, key=lambda each: (each[1].shortfall, -each[1].room))[0]
        return chosen, tuple(
            LayersTried(
                layers=tuple(sorted({t.layer for t in place.tensors if t.layer is not None})),
                dose=best.point.dose,
                metrics=best.point.metrics,
                meets_targets=best.point.meets_targets,
                misses=best.point.misses,
                facts=self.facts,
                taken=place is chosen,
                seconds=seconds,
            )
            for place, best, seconds in found
        )


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
