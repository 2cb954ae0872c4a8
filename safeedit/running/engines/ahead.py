"""What a run asks of its workers before it comes to it, and where what they find goes.

A request is one that the run will make in a moment by itself: it is left out where the store holds
it already, and what comes back goes into the store, where the run finds it. Nothing else changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch

from safeedit.model.handle import ModelHandle
from safeedit.policy.engine import EngineSpec
from safeedit.running.audits import Asked, Audits
from safeedit.running.engines.cluster import Cluster, check_cluster
from safeedit.running.engines.local import gpus_for, local_hands
from safeedit.running.engines.pool import Pool
from safeedit.running.engines.worker import Evaluation, PackedChange, Parcel, WorkOrder


def check_engine(spec: EngineSpec) -> None:
    """Refuse an engine that can't be had.

    Raises:
        EngineError: Ray is not installed, or nobody answers at its address.
    """
    if spec.use == "ray":
        check_cluster(spec.address)


@contextmanager
def helped(audits: Audits) -> Iterator[None]:
    """Have audits made by the engine of the policy, while this lasts.

    Raises:
        EngineError: It can't be had.
    """
    policy = audits.plan.loaded.policy
    spec, gpus = policy.engine, gpus_for(policy.model.device)
    if spec.use == "local" and not spec.workers and gpus < 2:
        yield  # the run makes everything itself
        return
    check_engine(spec)
    ahead = Ahead(audits, spec, spec.workers or max(gpus, 2))
    audits.elsewhere = ahead
    try:
        yield
    finally:
        audits.elsewhere = None
        ahead.close()


class Ahead:
    """Has audits made ahead of the run.

    Args:
        audits: Of the run.
        spec: The engine.
        workers: How many there will be, as far as that is known.
    """

    def __init__(self, audits: Audits, spec: EngineSpec, workers: int) -> None:
        self.audits, self.spec, self.workers = audits, spec, workers
        self._pool: Pool | None = None
        self._cluster: Cluster | None = None
        self._strange = False

    def make(self, model: ModelHandle, asked: Sequence[Asked]) -> None:
        """Have made what the store lacks.

        Raises:
            EngineError: Workers can't be had, or can't open the model.
        """
        wanted: dict[str, Evaluation] = {}
        for delta in dict.fromkeys(each.delta for each in asked):
            with nullcontext() if delta is None else model.applied(delta):
                changes = tuple(
                    map(PackedChange.of, [*self.audits.changes, *([delta] if delta else [])])
                )
                for each in asked:
                    if each.delta is delta and (key := self._missing(model, each)):
                        wanted[key] = self._evaluation(each, changes)
        if wanted:
            self._run(model, wanted)

    def close(self) -> None:
        """Let the workers go."""
        if self._pool is not None:
            self._pool.close()
        if self._cluster is not None:
            self._cluster.close()
        self._pool = self._cluster = None

    def _missing(self, model: ModelHandle, asked: Asked) -> str:
        """Its key, if the store does not hold it."""
        base = self.audits.baselines.get((asked.audit.id, asked.split)) if asked.held else None
        if asked.held and (base is None or not base.key):
            return ""
        key = self.audits.key(model, asked.audit, asked.split, base, asked.wanted)
        return "" if self.audits.store.holds("audit", key) else key

    def _evaluation(self, asked: Asked, changes: tuple[PackedChange, ...]) -> Evaluation:
        base = self.audits.baselines[asked.audit.id, asked.split].key if asked.held else ""
        return Evaluation(asked.audit.id, asked.split, changes, base, asked.wanted, asked.learn)

    def _run(self, model: ModelHandle, wanted: dict[str, Evaluation]) -> None:
        """Everything but the last detail: whoever is free makes it, the store keeps it."""
        pool = self._hired(model)
        made = pool.run(wanted, self._base)
        told = f"audits by {min(pool.count, len(wanted))} workers"
        for key, outcome in self.audits.ctx.progress(made, told, len(wanted)):
            what = f"audit {wanted[key].audit}"
            if outcome.failed:
                self.audits.ctx.warn(f"a worker failed at {what} ({outcome.failed}); made here")
            if outcome.made is None:
                continue
            self.audits.store.write("audit", outcome.made.key, outcome.made.finding(), what)
            if outcome.made.key != key and not self._strange:
                self._strange = True
                self.audits.ctx.warn(
                    "figures of workers are not used: they would be made with other kernels, "
                    "threads, devices or versions than the run's own, and are made here"
                )

    def _base(self, key: str) -> Parcel:
        entry = self.audits.store.read("audit", key, "audit of the untouched model")
        if entry is None:  # it was not kept, as the disk is full: what the run holds is the same
            (held,) = (each for each in self.audits.baselines.values() if each.key == key)
            return Parcel.of(key, held.finding())
        return Parcel.of(key, entry)

    def _hired(self, model: ModelHandle) -> Pool:
        if self._pool is not None:
            return self._pool
        plan, ctx = self.audits.plan, self.audits.ctx
        spec, device = self.spec, plan.loaded.policy.model.device

        def order(on: str) -> WorkOrder:
            return WorkOrder(plan, ctx.seed, ctx.secret, torch.get_num_threads(), on)

        # What the workers open is the base, whatever has been made of it here.
        changes = self.audits.changes
        digest = changes[0].base if changes else model.digest()
        if spec.use == "ray":
            self._cluster = Cluster(spec.address, spec.workers, gpu=device not in ("cpu", "mps"))
            hire, count = self._cluster.hands(order(device)), self._cluster.count
        else:
            hire, count = local_hands(order, device), self.workers
        self.workers = count
        self._pool = Pool(hire, count, digest, ctx.warn)
        return self._pool
