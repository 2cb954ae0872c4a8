"""Runs that are killed, starved of disk or interrupted at the n-th file operation.

As a program it imports everything and makes one whole run, then forks: each child finds that work
done, makes one export in a folder of its own and meets its end at its operation, and another child
is the run that comes next. What is left after each is told in a line of JSON. Operations are seen
by an audit hook, before they take place: opening, renaming, making, removing and listing what lies
in the workplace.

    python -m tests.export.killing FOLDER HOW SCENARIO FIRST STEP
"""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from safeedit.export import disk
from safeedit.export.manifest import RECORD
from safeedit.workflows.verification import verify
from tests.road import Workplace, make_workplace, register

EVENTS = frozenset(
    f"{module}.{event}" if module else event
    for module, events in {
        "": ("open",),
        "os": ("rename", "mkdir", "remove", "rmdir", "chmod", "link", "listdir", "scandir"),
        "shutil": ("rmtree", "copyfile"),
    }.items()
    for event in events
)
WRITING = frozenset({"os.rename", "os.mkdir", "os.link"})


class Hook:
    """Counts operations in ``folder`` and calls ``act`` from the ``at``-th on; 0 is never."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count, self.at, self.first = os.fsencode(folder), 0, 0, 0
        self.act: Callable[[bool], None] = lambda writes: None
        sys.addaudithook(self.see)

    def see(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.at or event not in EVENTS or not args:
            return
        if not isinstance(args[0], str | bytes | os.PathLike):
            return
        if not os.fsencode(args[0]).startswith(self.folder):
            return
        self.count += 1
        if self.count >= self.at:
            flags = args[2] if event == "open" and len(args) > 2 else 0
            writes = event in WRITING or bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            self.act(writes)


def kill(writes: bool) -> None:
    os._exit(99)


def starve(writes: bool) -> None:
    if writes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Interrupt:
    done = False

    def __call__(self, writes: bool) -> None:
        if not self.done:
            self.done = True
            os.kill(os.getpid(), signal.SIGINT)


HOWS: dict[str, Callable[[], Callable[[bool], None]]] = {
    "killed": lambda: kill,
    "starved": lambda: starve,
    "interrupted": Interrupt,
}


def in_child(work: Callable[[], int]) -> int:
    """The exit code of ``work`` in a process of its own."""
    child = os.fork()
    if not child:
        code = 70
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            code = work()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def apply(place: Workplace, seed: int, hook: Hook | None = None) -> int:
    """One run over whatever stands there; ``hook`` sees it and nothing else."""
    policy = place.policy(seed=seed, export={"dir": "out/trial", "overwrite": True})
    if hook is not None:
        hook.count, hook.at = 0, hook.first
    result = place.run("apply", policy)
    if hook is not None:
        hook.at = 0
        (place.folder / "count").write_text(str(hook.count))
    (place.folder / "stderr").write_text(result.stderr)
    return result.exit_code


def warm_up(folder: Path) -> None:
    """What a process does once is done before it forks (digests of code, the list of installed
    packages, a walk over all that was imported): a run takes a third of the time in a child."""
    assert apply(make_workplace(folder), seed=0) == 0
    shutil.rmtree(folder)
    gc.collect()
    gc.freeze()


def apply_on(parent: Path, folder: Path) -> tuple[int, str, bool]:
    """A run, in a process of its own, whose export and reports go to another disk: its exit code,
    what it said, and whether a whole export stands there."""
    told = folder / "told.json"

    def work() -> int:
        with pytest.MonkeyPatch.context() as patch:
            register(patch)
            place = make_workplace(folder)
            result = place.run("apply", place.policy(export={"dir": str(parent / "trial")}))
            whole = (parent / "trial").exists() and verify(parent / "trial") == []
            told.write_text(json.dumps([result.exit_code, result.stderr, whole]))
        return 0

    assert in_child(work) == 0
    code, stderr, whole = json.loads(told.read_text())
    return int(code), str(stderr), bool(whole)


def state(place: Workplace) -> dict[str, Any]:
    """What stands under the export's name, and what lies about."""
    found: dict[str, Any] = {"stands": "nothing", "problems": [], "report": None}
    if place.target.exists():
        found["stands"] = json.loads((place.target / RECORD).read_text())["seed"]
        found["problems"] = verify(place.target)
    report = place.folder / "out" / "trial.report" / "report.json"
    if report.exists():
        told = json.loads(report.read_text())
        found["report"] = told["seed"] if told["export"] else "nothing was exported"
    reports = report.parent.glob("**/.*") if report.parent.exists() else ()
    kept = (place.cache / "store").glob(".*")
    found["left"] = [path.name for path in (*place.unfinished(), *reports, *kept)]
    return found


def main(folder: Path, how: str, scenario: str, first: int, step: int) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    register(patch)
    if scenario == "in two steps":
        disk.renameat2 = lambda: None  # type: ignore[assignment]
    warm_up(folder / "warm")
    fresh, place = make_workplace(folder / "fresh"), Workplace(folder / "work")
    if scenario != "new":
        assert in_child(lambda: apply(fresh, seed=1)) == 0
        shutil.rmtree(fresh.cache)
    hook = Hook(place.folder)

    def doomed() -> int:
        hook.act, hook.first = HOWS[how](), number
        return apply(place, seed=2, hook=hook)

    number = first
    while True:
        shutil.rmtree(place.folder, ignore_errors=True)
        shutil.copytree(fresh.folder, place.folder)
        told: dict[str, Any] = {"at": number, "code": in_child(doomed)}
        told["after"] = state(place)
        stderr = place.folder / "stderr"
        told["stderr"] = stderr.read_text() if stderr.exists() else ""
        told["next"] = in_child(lambda: apply(place, seed=3))
        told["then"] = state(place)
        over = (place.folder / "count").exists() and int(
            (place.folder / "count").read_text()
        ) < number
        sys.stdout.write(json.dumps({**told, "over": over}) + "\n")
        sys.stdout.flush()
        if over:
            return
        number += step


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:4], int(sys.argv[4]), int(sys.argv[5]))
