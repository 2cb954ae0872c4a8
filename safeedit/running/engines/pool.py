"""Workers, whatever they run on: evaluations are shared out, those of a lost worker repeated.

Fails with :class:`~safeedit.errors.EngineError` where workers can't be had, or open another model.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Protocol

from safeedit.errors import EngineError
from safeedit.running.engines.worker import Evaluation, Opened, Outcome, Parcel

MOST_LOST = 3
"""Workers that may be lost at one evaluation before the run makes it itself."""

_OPENING = 1800.0
"""Seconds in which a worker must have opened the model."""


class WorkerLostError(Exception):
    """A worker is no more; what it was at has not been made."""


class Hand(Protocol):
    """One worker as the pool sees it; futures raise :class:`WorkerLostError` where it is lost."""

    def open(self) -> Future[Opened]: ...

    def evaluate(self, asked: Evaluation, base: Parcel | None) -> Future[Outcome]: ...

    def stop(self) -> None: ...


class Pool:
    """So many workers, hired when first there is something to do.

    Args:
        hire: Makes the worker of a number, from 0.
        count: How many.
        digest: Of the base, which each must have opened.
        warn: Where the loss of one is told.
    """

    def __init__(
        self, hire: Callable[[int], Hand], count: int, digest: str, warn: Callable[[str], None]
    ) -> None:
        self.count = count
        self._hire, self._digest, self._warn = hire, digest, warn
        self._hands: dict[int, Hand] = {}
        self._sent: dict[int, set[str]] = {}

    def run(
        self, asked: Mapping[str, Evaluation], bases: Callable[[str], Parcel]
    ) -> Iterator[tuple[str, Outcome]]:
        """Make evaluations, in whatever order they come.

        Args:
            asked: Name -> evaluation.
            bases: The entry of a key that an evaluation is held against.

        Yields:
            Name and outcome of each; of one at which workers are lost again and again, none.
        """
        self._open(range(min(self.count, len(asked))))
        waiting, lost = deque(asked), Counter[str]()
        busy: dict[Future[Outcome], tuple[int, str]] = {}
        idle = deque(self._hands)
        while waiting or busy:
            while waiting and idle:
                number, name = idle.popleft(), waiting.popleft()
                busy[self._give(number, asked[name], bases)] = (number, name)
            for future in wait(busy, return_when=FIRST_COMPLETED).done:
                number, name = busy.pop(future)
                try:
                    yield name, future.result()
                except WorkerLostError:
                    lost[name] += 1
                    if self._repeated(number, name, asked[name], lost[name]):
                        waiting.appendleft(name)
                    self._open([number])
                idle.append(number)

    def close(self) -> None:
        """Let all workers go."""
        for hand in self._hands.values():
            hand.stop()
        self._hands.clear()

    def _open(self, numbers: Iterator[int] | range | list[int]) -> None:
        """Hire those of these numbers who are not there."""
        new = {number: self._hire(number) for number in numbers if number not in self._hands}
        opening = {number: hand.open() for number, hand in new.items()}
        self._hands |= new
        for number, future in opening.items():
            self._sent[number] = set()
            try:
                opened = future.result(timeout=_OPENING)
            except (WorkerLostError, TimeoutError) as error:
                raise EngineError(
                    f"worker {number} ended, or was silent, while it opened the model",
                    remedy="see whether its machine has the memory for one more copy of the model; "
                    "ask for fewer workers, or for --engine local",
                ) from error
            if opened.error:
                raise EngineError(
                    f"worker {number} can't open the model: {opened.error}",
                    remedy=opened.remedy
                    or "the model's files must be found on every worker's machine, under the same "
                    "path or name",
                )
            if opened.digest != self._digest:
                raise EngineError(
                    f"worker {number} has opened another model than the run",
                    remedy="bring the same files to every machine: digests of weights are compared",
                )

    def _give(
        self, number: int, asked: Evaluation, bases: Callable[[str], Parcel]
    ) -> Future[Outcome]:
        parcel = None
        if asked.base and asked.base not in self._sent[number]:
            parcel = bases(asked.base)
            self._sent[number].add(asked.base)
        return self._hands[number].evaluate(asked, parcel)

    def _repeated(self, number: int, name: str, asked: Evaluation, times: int) -> bool:
        """Whether another worker is to try what one was lost at."""
        self._hands.pop(number).stop()
        again = times < MOST_LOST
        then = "another repeats it" if again else "the run makes it itself"
        self._warn(f"worker {number} was lost at audit {asked.audit}: {then}")
        return again
