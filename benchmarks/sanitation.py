"""The published Knowledge Sanitation splits on the built-in model, as one table.

Each split becomes a policy: its own training, validation and test files, the published recipe
(LoRA of rank 8 on q, v and gate at 3e-4; 15 forget to 85 retain) for 40 steps, dose 1, no
gates. The table is printed and written to ``docs/results/sanitation.md``, whatever it shows.

    python benchmarks/sanitation.py --data ../shared/data

The data is yoichi1484/knowledge-sanitization's (Apache-2.0); it is not part of this project.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from table import MODEL, add_data, options, run, write

COLUMNS = (
    ("known", "leakage.known_before", "before"),
    ("extraction before", "leakage.extraction_rate", "before"),
    ("extraction after", "leakage.extraction_rate", "after"),
    ("refusal", "leakage.refusal_rate", "after"),
    ("worst attack", "leakage.extraction_rate_worst", "after"),
    ("retained kept", "locality.near_accuracy_kept", "after"),
    ("over-refusal", "locality.near_over_refusal", "after"),
    ("token F1", "locality.near_f1", "after"),
    ("unchanged", "locality.near_unchanged", "after"),
    ("perplexity ratio", "perplexity.ratio", "after"),
)


def policy(split: int, data: Path, seed: int) -> dict[str, Any]:
    """The policy of one published split."""
    folder = str((data / f"triviaqa_{split}").resolve())
    forget = {"file": folder, "format": "sanitation", "where": {"role": "forget"}}
    retain = {"file": folder, "format": "sanitation", "where": {"role": "retain"}}
    return {
        "version": 1,
        "name": f"sanitation-triviaqa-{split}",
        "description": "A published Knowledge Sanitation split (arXiv 2309.11852), measured.",
        "seed": seed,
        "model": {"source": MODEL},
        "edits": [
            {
                "use": "sanitation",
                "forget": forget,
                "retain": retain,
                "retain_prompts": 200,
                "steps": 40,
                "batch": 20,  # 3 forget to 17 retain: the published 15:85
                "dose": 1.0,
                "control": False,
            }
        ],
        "audits": [
            {"use": "leakage", "forget": forget},
            {"use": "locality", "near": retain},
            {"use": "perplexity", "prose": {"dataset": "prose"}},
        ],
    }


def figure(record: dict[str, Any], metric: str, when: str) -> str:
    """One cell: value, interval and n."""
    audits = record[when]
    found = [m for audit in audits for m in audit["metrics"] if m["name"] == metric]
    if not found or found[0]["value"] is None:
        return "not measured"
    value, interval = found[0]["value"], found[0]["interval"]
    text = f"{value:.3f}"
    if interval:
        text += f" [{interval['low']:.2f}, {interval['high']:.2f}]"
    return f"{text} n={found[0]['n']}"


def main(arguments: Sequence[str]) -> None:
    """Run the splits and write the table."""
    parser = options(__doc__, "sanitation")
    add_data(parser)
    parser.add_argument("--splits", default="1,2,3,4,5")
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args(arguments)
    source = given.data / "sanitization_triviaqa"
    rows = []
    for split in list(map(int, given.splits.split(",")))[: given.rows]:
        record = run(policy(split, source, given.seed), given, f"split-{split}")
        cells = [figure(record, metric, when) for _, metric, when in COLUMNS]
        rows.append([str(split), *cells, f"{record['resources']['wall_seconds']:.0f}"])
        print(" | ".join(rows[-1]), flush=True)
    heads = ["split", *(name for name, _, _ in COLUMNS), "seconds"]
    write(
        given.results / "sanitation.md",
        [
            "# The published Sanitation splits on SmolLM2-135M-Instruct",
            "",
            "Made by `python benchmarks/sanitation.py` (which see for the recipe). Forget figures",
            "are over items the base knew; what it did not know is no success to suppress.",
            "Brackets are 95 % intervals. Seconds are wall time, whatever else the machine did.",
        ],
        heads,
        rows,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
