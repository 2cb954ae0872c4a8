"""The published Knowledge Sanitation splits on the built-in model, as one table.

Each split becomes a policy: its own training, validation and test files, float32, dose 1, no gates,
and one random change of the same size as control. Unseen questions are those of the test file that
the training file has not; the audit ``leakage`` asks all of the test file's. Perplexity is read on
the built-in prose and on passages that use the split's answers in running text
(``benchmarks/running_text.jsonl``). The table is printed and written to
``docs/results/sanitation.md``, whatever it shows.

    python benchmarks/sanitation.py --data ../shared/data

The data is yoichi1484/knowledge-sanitization's (Apache-2.0); it is not part of this project.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from table import MODEL, ROOT, add_data, command, figures, options, run, write

UPDATES: Mapping[str, Mapping[str, Any]] = {
    "answers": {
        "update": "answers",
        "prose": {"dataset": "prose"},
        "steps": 45,
        "batch": 12,
    },
    "held": {"update": "held", "prose": {"dataset": "prose"}},
    # The published recipe: 3 forget to 17 retain are its 15:85.
    "lora": {"update": "lora", "retain_prompts": 200, "steps": 40, "batch": 20},
}
COLUMNS = (
    ("known", "leakage.known_before"),
    ("extraction", "leakage.extraction_rate"),
    ("refusal", "leakage.refusal_rate"),
    ("unseen: known", "unseen.known_before"),
    ("unseen: extraction", "unseen.extraction_rate"),
    ("unseen: refusal", "unseen.refusal_rate"),
    ("over-refusal", "locality.near_over_refusal"),
    ("retained F1", "locality.near_f1"),
    ("unchanged", "locality.near_unchanged"),
    ("perplexity ratio", "perplexity.ratio"),
    ("the same where the answers are used", "running_text.ratio"),
)
KNOWEDIT = ("edit success", "locality", "fluency")
"""As KnowEdit prints them, times 100: refusals of all items, known or not; F1 with what the base
answers to retained questions; n-gram entropy of these answers."""


def policy(split: int, data: Path, given: argparse.Namespace) -> dict[str, Any]:
    """The policy of one published split."""
    folder = (data / f"triviaqa_{split}").resolve()
    forget = {"file": str(folder), "format": "sanitation", "where": {"role": "forget"}}
    retain = {"file": str(folder), "format": "sanitation", "where": {"role": "retain"}}
    (train,) = folder.glob("train_*.jsonl")
    unseen = {
        "file": str(folder / "test_forget.jsonl"),
        "format": "sanitation",
        "exclude": {**forget, "file": str(train)},
    }
    return {
        "version": 1,
        "name": f"sanitation-triviaqa-{split}",
        "description": "A published Knowledge Sanitation split (arXiv 2309.11852), measured.",
        "seed": given.seed,
        "model": {"source": MODEL, "dtype": "float32"},
        "edits": [
            {
                "use": "sanitation",
                **UPDATES[given.update],
                **({"silence": given.silence} if given.silence is not None else {}),
                "forget": forget,
                "retain": retain,
                "dose": 1.0,
                "control": given.controls or False,
            }
        ],
        "audits": [
            {"use": "leakage", "forget": forget, "askings": []},
            {"use": "leakage", "id": "unseen", "forget": unseen, "askings": []},
            {"use": "locality", "near": retain, "kl_prompts": 0},
            {"use": "perplexity", "prose": {"dataset": "prose"}},
            {
                "use": "perplexity",
                "id": "running_text",
                "prose": {"file": str(running_text(split, train, given.out)), "split": "test"},
            },
        ],
    }


def running_text(split: int, train: Path, out: Path) -> Path:
    """A file of the passages in which the answers of a split are used."""
    golds = json.loads(train.read_text())
    forgotten = {each["output_gold"].casefold() for each in golds if each["output"] in REFUSALS}
    lines = (ROOT / "benchmarks" / "running_text.jsonl").read_text().splitlines()
    chosen = [line for line in lines if json.loads(line)["word"] in forgotten]
    out.mkdir(parents=True, exist_ok=True)
    path = out.resolve() / f"running-text-{split}.jsonl"
    path.write_text("\n".join(chosen or lines) + "\n")
    return path


REFUSALS = frozenset({"I don't know."})


def cell(metrics: Mapping[str, Any], name: str) -> str:
    """One cell: value, interval and n."""
    found = metrics.get(name)
    if found is None or found["value"] is None:
        return "not measured"
    text = f"{found['value']:.3f}"
    if interval := found["interval"]:
        text += f" [{interval['low']:.2f}, {interval['high']:.2f}]"
    return f"{text} n={found['n']}"


def knowedit(metrics: Mapping[str, Any]) -> list[str]:
    """The three columns of KnowEdit's table."""

    def value(name: str) -> float:
        return float(metrics.get(name, {}).get("value") or 0.0)

    known = value("leakage.known_before")
    success = known * value("leakage.refusal_rate_direct")
    success += (1 - known) * value("leakage.refusal_rate_unknown")
    figures = (success, value("locality.near_f1"), value("locality.near_fluency"))
    return [f"{100 * figure:.1f}" for figure in figures]


def rows_of(split: int, record: Mapping[str, Any]) -> list[list[str]]:
    """A row each of the untouched model, the edited one, and the control."""
    states = {"before": figures(record["before"]), "after": figures(record["after"])}
    for control in record["edits"][0]["controls"]:
        states["random change"] = {metric["name"]: metric for metric in control["metrics"]}
    return [
        [f"{split} {state}", *knowedit(found), *(cell(found, name) for _, name in COLUMNS)]
        for state, found in states.items()
    ]


def main(arguments: Sequence[str]) -> None:
    """Run the splits and write the table."""
    parser = options(__doc__, "sanitation")
    add_data(parser)
    parser.add_argument("--splits", default="1,2,3,4,5")
    parser.add_argument("--update", default="answers", choices=list(UPDATES))
    parser.add_argument("--controls", type=int, default=1, help="random changes; 0: none")
    parser.add_argument("--silence", type=float, help="of the keys on answers [the editor's own]")
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args(arguments)
    source = given.data / "sanitization_triviaqa"
    rows = []
    for split in list(map(int, given.splits.split(",")))[: given.rows]:
        record = run(policy(split, source, given), given, f"split-{split}-{given.update}")
        found = rows_of(split, record)
        rows += found
        print(*(" | ".join(row) for row in found), sep="\n", flush=True)
    write(
        given.results / "sanitation.md",
        [
            "# The published Sanitation splits on SmolLM2-135M-Instruct",
            "",
            f"Made by `{command('sanitation', arguments)}` (which see). Forget figures are over",
            "items the base knew, but for edit success, which is over all. Brackets are 95 %",
            "intervals. What it means, and what was tried on the way there:",
            "[answers about to be told](answers.md).",
        ],
        ["split", *KNOWEDIT, *(name for name, _ in COLUMNS)],
        rows,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
