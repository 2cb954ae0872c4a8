"""Workers as actors of a Ray cluster: one that runs, by its address, or one started for the run.

Ray is an extra. Its dashboard, its statistics of use and its echo of workers' words are off.

Fails with :class:`~safeedit.errors.EngineError` where Ray is not installed, nobody answers, or the
cluster has no room.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from concurrent.futures import Future
from importlib.util import find_spec
from typing import Any, TypeVar

from safeedit.errors import EngineError
from safeedit.running.engines.pool import Hand, WorkerLostError
from safeedit.running.engines.worker import Evaluation, Opened, Outcome, Parcel, Worker, WorkOrder

Given = TypeVar("Given")

_ANSWERS = 5.0
"""Seconds in which a cluster must take a connection."""


def check_cluster(address: str | None) -> None:
    """Refuse what can be known before a model is opened.

    Raises:
        EngineError: Ray is not installed, or nobody answers at the address.
    """
    if find_spec("ray") is None:
        raise EngineError(
            "the engine ray needs Ray, which is not installed",
            remedy="pip install 'safeedit[ray]', or take --engine local",
        )
    host, _, port = (address or "").rpartition("://")[2].rpartition(":")
    if address in (None, "auto"):
        return
    if not host or not port.isdigit():
        raise EngineError(
            f"'{address}' is no address of a Ray cluster",
            remedy="write HOST:PORT, as 'ray start --head' prints it, or auto",
        )
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWERS).close()
    except (OSError, OverflowError) as error:
        raise EngineError(
            f"nobody answers at the Ray address {address}",
            remedy="see with 'ray status --address HOST:PORT' whether the cluster runs and can be "
            "reached from here",
        ) from error


class Cluster:
    """A connection to a cluster.

    Args:
        address: Of one that runs; ``auto`` looks for one of this machine; None starts one.
        count: Workers wanted; None: one for each GPU of the cluster, else two.
        gpu: Whether each is to have a GPU.
    """

    def __init__(self, address: str | None, count: int | None, gpu: bool) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Workers do the run's own work: they are not to wait for everything else on the machine.
        os.environ.setdefault("RAY_worker_niceness", "0")
        import ray

        self._ray: Any = ray
        own: dict[str, Any] = {"include_dashboard": False} if address is None else {}
        if address is None:
            own["num_cpus"] = count or 2
        try:
            ray.init(
                address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **own
            )
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise EngineError(
                f"Ray can't be reached or started: {type(error).__name__}",
                remedy="see with 'ray status' whether a cluster runs; 'address' says where",
            ) from error
        _hush(ray)
        there = ray.cluster_resources()
        gpus, cpus = int(there.get("GPU", 0)), int(there.get("CPU", 0))
        self.gpu = gpu and gpus > 0
        self.count = count or (gpus if self.gpu else 2)
        room = min(gpus, cpus) if self.gpu else cpus
        if room < self.count:
            self.close()
            what = "GPUs and cores" if self.gpu else "cores"
            raise EngineError(
                f"the Ray cluster has {what} for {room} of {self.count} workers",
                remedy=f"ask for 'workers: {max(room, 1)}' at most, or add machines to the cluster",
            )

    def hands(self, order: WorkOrder) -> Callable[[int], Hand]:
        """Hires actors; the order travels to the cluster once."""
        sent = self._ray.put(order)
        actor = self._ray.remote(Worker).options(num_cpus=1, num_gpus=1 if self.gpu else 0)
        return lambda number: _Actor(self._ray, actor.remote(sent))

    def close(self) -> None:
        """Let go of the cluster; one that was started for the run ends."""
        self._ray.shutdown()


def _hush(ray: Any) -> None:
    """Keep what Ray says of lost workers off stdout, which is for records; the pool says it."""
    inner = getattr(getattr(ray, "_private", None), "worker", None)
    if inner is not None and hasattr(inner, "print_to_stdstream"):
        inner.print_to_stdstream = lambda *words, **more: None


class _Actor:
    def __init__(self, ray: Any, actor: Any) -> None:
        self.ray, self.actor = ray, actor

    def open(self) -> Future[Opened]:
        return self._told(self.actor.open.remote())

    def evaluate(self, asked: Evaluation, base: Parcel | None) -> Future[Outcome]:
        return self._told(self.actor.evaluate.remote(asked, base))

    def stop(self) -> None:
        self.ray.kill(self.actor)

    def _told(self, reference: Any) -> Future[Given]:
        """The future of a call, in the pool's own word where the actor is no more."""
        outer: Future[Given] = Future()

        def done(future: Future[Given]) -> None:
            error = future.exception()
            if error is None:
                outer.set_result(future.result())
            else:  # of the worker itself nothing is raised: see Worker
                outer.set_exception(WorkerLostError())

        reference.future().add_done_callback(done)
        return outer
