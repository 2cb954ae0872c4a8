"""Workers as processes of this machine: one for each GPU, or as many as are asked for."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import torch

from safeedit.running.engines.pool import Hand, WorkerLostError
from safeedit.running.engines.worker import Evaluation, Opened, Outcome, Parcel, Worker, WorkOrder

Given = TypeVar("Given")


def gpus_for(device: str) -> int:
    """How many GPUs a policy's ``model.device`` may take."""
    return torch.cuda.device_count() if device in ("auto", "cuda") else 0


def local_hands(order: Callable[[str], WorkOrder], device: str) -> Callable[[int], Hand]:
    """Hires processes.

    Args:
        order: What a worker on a device is told.
        device: The policy's; of several GPUs each worker gets one.
    """
    gpus = gpus_for(device)

    def hire(number: int) -> Hand:
        return _Process(order(f"cuda:{number % gpus}" if gpus > 1 else device))

    return hire


class _Process:
    def __init__(self, order: WorkOrder) -> None:
        # Not forked: a process with threads of its own can't be.
        spawn = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(1, spawn, initializer=_begin, initargs=(order,))

    def open(self) -> Future[Opened]:
        return _told(self.pool.submit(_open))

    def evaluate(self, asked: Evaluation, base: Parcel | None) -> Future[Outcome]:
        return _told(self.pool.submit(_evaluate, asked, base))

    def stop(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)


def _told(inner: Future[Given]) -> Future[Given]:
    """The same future, in the pool's own word where the process is no more."""
    outer: Future[Given] = Future()

    def done(future: Future[Given]) -> None:
        if future.cancelled():  # the run ends before it was begun
            outer.cancel()
            return
        error = future.exception()
        if isinstance(error, BrokenProcessPool):
            outer.set_exception(WorkerLostError())
        elif error is not None:
            outer.set_exception(error)
        else:
            outer.set_result(future.result())

    inner.add_done_callback(done)
    return outer


class _Own:
    """The worker of this process."""

    worker: Worker


def _begin(order: WorkOrder) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the run's to answer
    _Own.worker = Worker(order)


def _open() -> Opened:
    return _Own.worker.open()


def _evaluate(asked: Evaluation, base: Parcel | None) -> Outcome:
    return _Own.worker.evaluate(asked, base)
