"""What a worker does: it opens the base once, and then audits whatever change of it is sent.

Everything that travels is plain: JSON, bytes of safetensors, and the plan's own records. An error
travels as its type and place alone, since its words may quote data and workers' logs are elsewhere.
"""

from __future__ import annotations

import copyreg
import json
import traceback
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load, save

from safeedit import catalog
from safeedit.cache import cache_dir
from safeedit.contracts import RunContext
from safeedit.delta import WeightDelta
from safeedit.errors import AuditError, SafeeditError
from safeedit.model.sources import open_model
from safeedit.planning.plan import Plan
from safeedit.records import Split
from safeedit.running.audits import Audits
from safeedit.running.store import Finding, MemoryStore
from safeedit.scorers.score_cache import scorers


def read_only(items: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    """A view that can't be written to: plans hold such, and pickle does not know them."""
    return MappingProxyType(items)


copyreg.pickle(MappingProxyType, lambda view: (read_only, (dict(view),)))


@dataclass(frozen=True)
class Parcel:
    """An entry of the store on its way between processes."""

    key: str
    said: str
    """JSON."""
    tensors: bytes
    """safetensors."""
    seconds: float

    @classmethod
    def of(cls, key: str, found: Finding) -> Parcel:
        """An entry, packed."""
        tensors = {name: tensor.contiguous().clone() for name, tensor in found.tensors.items()}
        return cls(key, json.dumps(found.said), save(tensors), found.seconds)

    def finding(self) -> Finding:
        """The entry again."""
        return Finding(json.loads(self.said), load(self.tensors), self.seconds)


@dataclass(frozen=True)
class PackedChange:
    """A change of weights on its way between processes."""

    header: str
    tensors: bytes

    @classmethod
    def of(cls, delta: WeightDelta) -> PackedChange:
        """A delta, packed."""
        header, tensors = delta.packed()
        return cls(header, save({name: each.contiguous().cpu() for name, each in tensors.items()}))

    def delta(self) -> WeightDelta:
        """The delta again."""
        return WeightDelta.unpacked(self.header, load(self.tensors))


@dataclass(frozen=True)
class Evaluation:
    """One audit of one change of the base."""

    audit: str
    """Its id in the plan."""
    split: Split
    changes: tuple[PackedChange, ...] = ()
    """Applied to the base in this order; none: the base itself."""
    base: str = ""
    """Key of the audit of the base that it is held against; empty for one of the base."""
    wanted: frozenset[str] | None = None
    learn: bool = True


@dataclass(frozen=True)
class WorkOrder:
    """What a worker is told once."""

    plan: Plan = field(repr=False)
    seed: int
    secret: bytes = field(repr=False)
    threads: int
    """Of the run's own process: another number would give other last bits."""
    device: str
    """As ``model.device`` of a policy."""


@dataclass(frozen=True)
class Opened:
    """What came of opening the base."""

    digest: str = ""
    error: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of one evaluation."""

    made: Parcel | None
    """None where it could not be made: the run will try itself, and hear why."""
    failed: str = ""
    """Type and place of an error that is none of ours."""


class Worker:
    """One process's base and what it knows of it.

    Args:
        order: Of the run.
    """

    def __init__(self, order: WorkOrder) -> None:
        self.order = order
        self.store = MemoryStore()

    def open(self) -> Opened:
        """Open the base; what goes wrong is told and not raised."""
        order, spec = self.order, self.order.plan.loaded.policy.model
        torch.set_num_threads(order.threads)
        try:
            self.model = open_model(
                order.plan.model_source, revision=spec.revision, dtype=spec.dtype,
                device=order.device, adapter=order.plan.adapter,
            )  # fmt: skip
            ctx = RunContext(seed=order.seed, cache=cache_dir(), secret=order.secret)
            ctx = replace(ctx, scorer=scorers(ctx, catalog.make_scorer))
        except SafeeditError as error:
            return Opened(error=error.message, remedy=error.remedy)
        except Exception as error:
            return Opened(error=where(error))
        self.audits = Audits(order.plan, ctx, self.store)
        self.audits.know_base(self.model)
        return Opened(digest=self.model.digest())

    def evaluate(self, asked: Evaluation, base: Parcel | None) -> Outcome:
        """Make one evaluation.

        Args:
            asked: Which.
            base: The entry that it is held against, where this worker was not sent it before.
        """
        try:
            if base is not None:
                self.store.keep("audit", base.key, base.finding())
            audit = next(each for each in self.order.plan.audits if each.id == asked.audit)
            held = self.audits.known(asked.base, audit) if asked.base else None
            assert held is not None or not asked.base, "what it is held against was not sent"
            with self.model.applied(*(each.delta() for each in asked.changes)):
                found = self.audits.measure(
                    self.model, audit, asked.split, held, asked.wanted, learn=asked.learn
                )
            entry = self.store.read("audit", found.key, "")
            assert entry is not None, "it has just been kept"
            return Outcome(Parcel.of(found.key, entry))
        except AuditError:
            return Outcome(None)
        except Exception as error:
            return Outcome(None, where(error))


def where(error: Exception) -> str:
    """Type and place of an error; its words may quote data."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"
