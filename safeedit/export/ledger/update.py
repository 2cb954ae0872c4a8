"""What one run does with the ledger: hold on to earlier erasures, and enter its own.

Made by :mod:`safeedit.planning.erasures`, used by :mod:`safeedit.running.run`; pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from safeedit.export.ledger.file import Entry, render
from safeedit.export.ledger.keys import LedgerKey
from safeedit.policy import GateSpec
from safeedit.records import RunRecord, Verdict
from safeedit.statistics.verdicts import unsure


@dataclass(frozen=True)
class Erased:
    """An item this policy erases, under one ticket."""

    ticket: str | None
    digest: str
    edits: tuple[str, ...]


@dataclass(frozen=True)
class LedgerUpdate:
    """The ledger's part in a plan."""

    key: LedgerKey = field(repr=False)
    earlier: tuple[Entry, ...]
    """The rows of the base model's ledger."""
    missing: tuple[Entry, ...]
    """Those of them that no request matches."""
    erased: tuple[Erased, ...]
    gate: GateSpec | None
    """What the re-audit must meet; None where there is nothing to re-audit."""

    def judged(self, verdict: Verdict) -> Verdict:
        """A verdict as it stands, unless it passes a re-audit that left rows out.

        Items that come out fail the gate whatever else is missing; that the others did not
        come out proves nothing about rows that could not be asked.
        """
        if self.gate is None or verdict.metric != self.gate.metric or not self.missing:
            return verdict
        left_out = self.left_out()
        if verdict.status == "fail":
            return verdict.model_copy(update={"reason": f"{verdict.reason}; {left_out}"})
        return unsure(verdict, left_out)

    def left_out(self) -> str:
        """The rows that can't be re-audited, in words; empty if there are none."""
        count = len({row.digest for row in self.missing})
        if not count:
            return ""
        total = len({row.digest for row in self.earlier})
        tickets = sorted({row.ticket for row in self.missing if row.ticket is not None})
        named = f" (tickets {', '.join(tickets[:5])}{', ...' * (len(tickets) > 5)})"
        return (
            f"{count} of {total} earlier erasures can't be re-audited: no request matches"
            + named * bool(tickets)
        )

    def text(self, record: RunRecord) -> str:
        """The ledger of the export that a run made: earlier rows, then its own."""
        own = [
            Entry(
                ticket=item.ticket,
                digest=item.digest,
                date=record.started,
                policy=record.policy_name,
                policy_digest=record.policy_digest,
                edits=item.edits,
                run_id=record.run_id,
            )
            for item in self.erased
        ]
        return render([*self.earlier, *own], self.key)

    def summary(self) -> dict[str, Any]:
        """Counts for the plan: rows of the ledger, items it can't re-audit, rows to enter."""
        return {
            "earlier": len(self.earlier),
            "missing": len(self.missing),
            "entering": len(self.erased),
        }
