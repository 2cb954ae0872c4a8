"""Where in the depth an edit works, chosen by measurement: ``layers: auto``.

The edit is fitted on a few of its facts at each of the places that the plan lists (the editor's own
share of the depth first, then others), its dose chosen as for any edit, and its targets measured on
validation wordings of these facts and on a part of the other validation items. That place is taken
whose best dose misses fewest targets, of these the one that misses by least, and of places that
meet all the one that is furthest within them; of equal ones the first. Test data is not looked at.

What a few facts say need not hold for many: the report lists what each place gave. What was found
is kept in the cache under everything that decides it, with a seal of the digests' key; it holds
figures, no data.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from safeedit.cache import PRIVATE, write_atomically
from safeedit.code import code_digest
from safeedit.contracts import EditData
from safeedit.data import Dataset, Item
from safeedit.data.independence import marks
from safeedit.errors import EditError
from safeedit.export.disk import read_plain
from safeedit.model.handle import ModelHandle
from safeedit.planning.plan import PlannedEdit
from safeedit.private import private_folder
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
        key = self._key(model)
        tried = self._kept(key)
        if tried is None:
            tried = self._try(model)
            self._keep(key, tried)
        taken = next(each.layers for each in tried if each.taken)
        return next(place for place in self.edit.places if _layers(place) == taken), tried

    def _try(self, model: ModelHandle) -> tuple[LayersTried, ...]:
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
        parts = {
            # With the weights as they are now, data, code, versions, seed.
            "audits": [
                audits.cache_key(model, audit, "validation", None) for audit in audits.plan.audits
            ],
            "base": audits.plan.model_digest,
            "use": edit.spec.use,
            "places": [place.params.model_dump(mode="json") for place in edit.places],
            "dose": edit.spec.dose,
            "targets": [gate.model_dump(mode="json") for gate in edit.targets],
            "data": {role: data.digest for role, data in self.data.roles.items()},
            "code": code_digest(type(edit.editor).__module__, __name__),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _seal(self, key: str, tried: str) -> str:
        told = f"safeedit layers {key} {tried}".encode()
        return hmac.new(self.audits.ctx.secret, told, hashlib.sha256).hexdigest()

    def _kept(self, key: str) -> tuple[LayersTried, ...] | None:
        """What was found before; None where nothing was, or not as it was written."""
        try:
            entry = json.loads(read_plain(self._file(key)))
            if not hmac.compare_digest(self._seal(key, entry["tried"]), entry["seal"]):
                return None
            tried = json.loads(entry["tried"])
            return tuple(LayersTried.model_validate(each) for each in tried)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def _keep(self, key: str, tried: tuple[LayersTried, ...]) -> None:
        """That it can't be kept is no reason to stop."""
        text = json.dumps([each.model_dump(mode="json") for each in tried])
        entry = json.dumps({"tried": text, "seal": self._seal(key, text)})
        with suppress(OSError):
            private_folder(self._file(key).parent)
            write_atomically(self._file(key), entry.encode(), PRIVATE)

    def _file(self, key: str) -> Path:
        return self.audits.ctx.cache / "layers" / f"{key}.json"


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
