"""What the runs with several seeds gave beside each other: gates seed by seed, and every figure's
spread."""

from __future__ import annotations

from dataclasses import dataclass

from safeedit.records import RunRecord, Verdict
from safeedit.report.wording import STATUS_WORDS, number
from safeedit.statistics.seeds import Spread, spreads

SEEDS_EXPLAINED = (
    "Every seed is a run of its own: another division of the data, other random choices, doses "
    "chosen anew. The checkpoint is that of the first. Spreads are over the seeds; what other "
    "items would give is said by intervals."
)


@dataclass(frozen=True)
class SeedTable:
    """Several seeds beside each other."""

    seeds: tuple[int, ...]
    """That of the checkpoint first."""
    verdicts: tuple[Verdict, ...]
    figures: dict[str, Spread]
    """Dose or metric -> its values; none that has no value with any seed."""

    @property
    def gated(self) -> dict[str, Spread]:
        """Doses, and the metrics that gates look at as they are."""
        names = {verdict.metric for verdict in self.verdicts if not verdict.under}
        return {
            name: spread
            for name, spread in self.figures.items()
            if name in names or name.startswith("dose of ")
        }

    @property
    def gates(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Each gate in words, and what it says of each seed."""
        return tuple(
            (
                f"{verdict.metric} {verdict.condition}",
                tuple(
                    f"{number(each.value, signed=verdict.of_change)} {STATUS_WORDS[each.status]}"
                    for each in verdict.by_seed
                ),
            )
            for verdict in self.verdicts
        )


def seed_table(record: RunRecord) -> SeedTable | None:
    """The seeds of a run beside each other; None where there is one."""
    if not record.other_seeds:
        return None
    found = spreads(record.all_seeds)
    return SeedTable(
        tuple(run.seed for run in record.all_seeds),
        record.verdicts,
        {name: spread for name, spread in found.items() if spread.known},
    )
