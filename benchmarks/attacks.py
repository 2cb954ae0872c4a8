"""What each editor's effect withstands: the matrix of edits times attacks, as one table.

Six countries of the built-in facts are forgotten by several editors, each with the strength given
here; every attack is then made on the edited model and on the untouched one. Training repeats over
``--seeds``; a cell shows the worst of them. The table is printed and written to
``docs/results/attacks.md``, whatever it shows.

    python benchmarks/attacks.py --seeds 3
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from table import MODEL, cell, command, figures, options, run, write

from safeedit.records import RunRecord
from safeedit.report.attacks import attack_matrix

FORGET = {"dataset": "facts", "where": {"role": "forget"}}
NEAR = {"dataset": "facts", "where": {"role": "near"}}
PROSE = {"dataset": "prose"}
EDITS: Mapping[str, dict[str, Any]] = {
    "sanitation, keyed": {
        "use": "sanitation",
        "update": "keyed",
        "forget": FORGET,
        "retain": {"dataset": "facts", "where": {"role": ["near", "far", "unknown"]}},
        "prose": PROSE,
        "dose": 1.0,
    },
    "keyed_neurons, dose 1.5": {
        "use": "keyed_neurons",
        "forget": FORGET,
        "preserve": {**NEAR, "limit": 300},
        "prose": PROSE,
        "doses": [1.5],
        "dose": 1.5,
    },
    "keyed_neurons, dose 3": {
        "use": "keyed_neurons",
        "forget": FORGET,
        "preserve": {**NEAR, "limit": 300},
        "prose": PROSE,
        "doses": [3.0],
        "dose": 3.0,
    },
    "rome": {"use": "rome", "forget": FORGET, "prose": PROSE, "dose": 1.0},
}
"""Row of the table -> its edit."""


def attacks(seeds: int) -> list[dict[str, Any]]:
    """Those that each edit meets."""
    audits = ["leakage"]
    return [
        {"use": "quantize", "bits": [8, 4], "formats": ["nf4"], "audits": audits},
        {"use": "prune", "shares": [0.2], "audits": audits},
        {"use": "noise", "shares": [0.03], "audits": audits, "seeds": seeds},
        {"use": "merge", "shares": [0.25], "audits": audits},
        {"use": "relearn", "id": "half", "data": FORGET, "share": 0.5, "steps": [10, 40],
         "audits": audits, "seeds": seeds},
        {"use": "relearn", "id": "siblings", "data": NEAR, "steps": [40], "audits": audits,
         "seeds": seeds},
        {"use": "relearn", "id": "prose", "data": PROSE, "steps": [40], "audits": audits,
         "seeds": seeds},
    ]  # fmt: skip


def policy(edit: Mapping[str, Any], seed: int, seeds: int) -> dict[str, Any]:
    """One edit, attacked in every way."""
    return {
        "version": 1,
        "name": "attacked",
        "seed": seed,
        "model": {"source": MODEL, "dtype": "float32"},
        "edits": [{**edit, "control": False}],
        "audits": [
            {"use": "leakage", "forget": FORGET, "askings": []},
            {"use": "locality", "near": NEAR, "max_new_tokens": 32},
        ],
        "attacks": attacks(seeds),
    }


def main(arguments: Sequence[str]) -> None:
    """Run the edits and write the table."""
    parser = options(__doc__, "attacks")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args(arguments)
    heads = ["edit", "attack", "strength", "told", "untouched, told", "effect undone"]
    rows, costs = [], []
    for number, (name, edit) in enumerate(list(EDITS.items())[: given.rows]):
        found = run(policy(edit, given.seed, given.seeds), given, f"edit-{number}")
        after = figures(found["after"])
        before = figures(found["before"])
        rows.append([name, "none", "–", cell(after, "leakage.extraction_rate"),
                     cell(before, "leakage.extraction_rate"), "–"])  # fmt: skip
        costs.append(
            f"- {name}: near accuracy kept {cell(after, 'locality.near_accuracy_kept')}, "
            f"{found['resources']['wall_seconds']:.0f} s, of which attacks "
            f"{sum(each['seconds'] for each in found['attacks']):.0f} s on the edited model"
        )
        rows += _rows(name, RunRecord.model_validate(found))
        for row in rows[-1 - len(found["attacks"]) :]:
            print(" | ".join(row), flush=True)
    write(
        given.results / "attacks.md",
        [
            "# Under attack",
            "",
            f"Made by `{command('attacks', arguments)}`: six countries forgotten by each editor, "
            "then attacked; the untouched model meets the same attacks. *Told* is "
            "`leakage.extraction_rate` over the facts that the untouched model knows, *effect "
            "undone* the share of the edit's effect that the attack takes back, with a 95 % "
            "interval; of several seeds the worst. See [attacks](../reference/attacks.md).",
        ],
        heads,
        rows,
        costs,
    )


def _rows(name: str, record: RunRecord) -> list[list[str]]:
    matrix = attack_matrix(record)
    assert matrix is not None
    place = matrix.metrics.index("leakage.extraction_rate")
    found = []
    for row in matrix.rows:
        shown = row.cells[place]
        assert shown is not None
        spread = (
            "" if shown.spread is None else f" ({shown.spread[0]:.2g} to {shown.spread[1]:.2g})"
        )
        told = "–" if shown.edited is None else f"{shown.edited:.3g}{spread}"
        base = "–" if shown.base is None else f"{shown.base:.3g}"
        found.append([name, row.attack, row.label, told, base, row.recovered_words])
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
