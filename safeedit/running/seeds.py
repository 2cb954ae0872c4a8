"""The same policy with several seeds: what a run takes from those before it.

The runs with other seeds come first and export nothing; the policy's own run comes last, knows what
they gave, and exports what passes with all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from safeedit.contracts import RunContext
from safeedit.observing import Ended, Observer, Stage
from safeedit.planning.plan import Plan
from safeedit.records import RunRecord, Verdict
from safeedit.statistics.seeds import all_over_seeds


@dataclass(frozen=True)
class OtherSeed:
    """What the policy gave with another seed."""

    record: RunRecord
    whole: bool
    """Whether everything asked for was made."""


def of_seed(ctx: RunContext, seed: int) -> RunContext:
    """The context of the run with another seed: whatever it says, it says of that."""

    def warn(message: str) -> None:
        ctx.warn(f"seed {seed}: {message}")

    return replace(ctx, seed=seed, observer=_OfSeed(ctx.observer, seed), warn=warn)


@dataclass(frozen=True)
class _OfSeed:
    """Says of which seed each stage is."""

    observer: Observer
    seed: int

    def run_begins(self, run_id: str, stages: Sequence[Stage]) -> None:
        self.observer.run_begins(run_id, list(map(self._named, stages)))

    def stage_begins(self, stage: Stage) -> None:
        self.observer.stage_begins(self._named(stage))

    def stage_ends(self, stage: Stage, ended: Ended) -> None:
        self.observer.stage_ends(self._named(stage), ended)

    def run_ends(self, status: str, exit_code: int) -> None:
        self.observer.run_ends(status, exit_code)

    def _named(self, stage: Stage) -> Stage:
        return replace(stage, name=f"seed {self.seed}: {stage.name}")


def with_other_seeds(
    plan: Plan, own: Sequence[Verdict], others: Sequence[OtherSeed]
) -> tuple[Verdict, ...]:
    """What the gates say of all seeds together.

    Args:
        plan: With the policy's own seed.
        own: What they say of the run with it.
        others: The runs with others.
    """
    found = {plan.seed: own} | {each.record.seed: each.record.verdicts for each in others}
    return all_over_seeds(plan.gates, found)


def warnings_of(others: Sequence[OtherSeed], own: Sequence[str]) -> Iterator[str]:
    """What was said of other seeds alone."""
    for other in others:
        told = (text for text in other.record.warnings if text not in own)
        yield from (f"seed {other.record.seed}: {text}" for text in told)
