"""Trained erasers beside closed forms on one small task, each with the same small tuning.

A dozen facts of the quickstart are to be forgotten by every editor in ``EDITORS``: same facts, same
near and far questions, asked directly in wordings that were not fitted. The tuning that each gets
is the same and small: its default rates, twenty steps of four prompts where it trains, and the
choice among three doses on validation data. Records lie under ``--out`` and are not made again. The
table is printed and written to ``docs/results/editors.md``, whatever it shows.

    python benchmarks/editors.py
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from table import MODEL, adapted, cell, command, options, safeedit, write

SMALL = {"batch": 4, "retain_prompts": 32}
STEPS = {**SMALL, "doses": [5, 10, 20]}
"""The budget of each editor that trains."""
EDITORS: dict[str, dict[str, Any]] = {
    "unlearn@npo": STEPS,
    "unlearn@ga": {"objective": "ga", "retain_loss": "none", **STEPS},
    "unlearn@graddiff": {"objective": "ga", "retain_loss": "nll", **STEPS},
    "unlearn@kl": {"objective": "ga", **STEPS},
    "unlearn@simnpo": {"objective": "simnpo", **STEPS},
    "unlearn@wga": {"objective": "wga", **STEPS},
    "unlearn@satimp": {"objective": "satimp", **STEPS},
    "unlearn@undial": {"objective": "undial", **STEPS},
    "unlearn@idk_nll": {"objective": "idk_nll", **STEPS},
    "unlearn@idk_dpo": {"objective": "idk_dpo", **STEPS},
    "unlearn@jensun": {"objective": "jensun", **STEPS},
    "rmu": STEPS,
    "repselect": {"doses": [1.0, 2.0, 4.0]},
    "task_vector@negate": {"steps": 20, **SMALL, "doses": [0.5, 1.0, 2.0]},
    "task_vector@ext_sub": {"method": "ext_sub", "steps": 20, **SMALL, "doses": [0.5, 1.0, 2.0]},
    "revs": {"doses": [2, 5, 10]},
    "knowledge_neurons": {"doses": [2, 5, 10]},
    "lunar": {
        "refused": {"dataset": "facts", "where": {"role": "unknown"}}, "doses": [1.0, 2.0, 4.0],
    },
    "ft@target": {"doses": [0.5, 1.0, 1.25]},
    "ft@prompt_last": {"objective": "prompt_last", "doses": [0.5, 1.0, 1.25]},
    "sanitation@keyed": {"update": "keyed", "doses": [0.75, 1.0, 1.5]},
    "random": {},
}  # fmt: skip
"""Row -> what differs from the editor's defaults."""
COLUMNS = (
    ("extracted", "leakage.extraction_rate"),
    ("refused", "leakage.refusal_rate"),
    ("near kept", "locality.near_accuracy_kept"),
    ("near F1", "locality.near_f1"),
    ("near KL, nats", "locality.near_kl"),
    ("far F1", "locality.far_f1"),
    ("over-refusal", "locality.near_over_refusal"),
    ("perplexity ratio", "perplexity.ratio"),
)
KEPT = {"dataset": "facts", "where": {"role": ["near", "far", "unknown"]}}


def policy(facts: int, asked: int) -> dict[str, Any]:
    """The quickstart's task with fewer facts and questions."""
    forget = {"dataset": "facts", "where": {"role": "forget"}, "limit": facts}
    unseen: dict[str, Any] = {
        "dataset": "facts", "where": {"split": ["validation", "test"]}, "limit": asked,
    }  # fmt: skip
    return {
        "version": 1,
        "name": "editors",
        "seed": 7,
        "model": {"source": MODEL, "dtype": "float32"},
        "edits": [
            {
                "use": "unlearn",
                "forget": forget,
                "retain": KEPT,
                "prose": {"dataset": "prose"},
                "control": False,
                "dose": "auto",
                "targets": [
                    {"metric": "leakage.extraction_rate", "max": 0.05},
                    {"metric": "locality.near_accuracy_kept", "min": 0.9},
                ],
            }
        ],
        "audits": [
            {"use": "leakage", "forget": forget, "askings": [], "max_new_tokens": 16},
            {
                "use": "locality",
                "max_new_tokens": 16,
                "near": {**unseen, "where": {**unseen["where"], "role": "near"}},
                "far": {**unseen, "where": {**unseen["where"], "role": "far"}},
            },
            {"use": "perplexity", "prose": {"dataset": "prose"}},
        ],
        "gates": [],
    }


def rows(standings: Mapping[str, Any]) -> list[list[str]]:
    """A row for each editor, with an error where it failed."""
    found = []
    for row in standings["rows"]:
        if row["error"]:
            found.append([row["name"], row["error"], *["–"] * (len(COLUMNS) + 2)])
            continue
        cost, dose = row["cost"], row["dose"]
        missed = " (missed)" if row["targets_met"] is False else ""
        found.append(
            [
                row["name"], "–" if dose is None else f"{dose:g}{missed}",
                *(cell(row["metrics"], name) for _, name in COLUMNS),
                f"{cost['fit_seconds']:.0f}" if cost else "–",
                f"{cost['peak_memory_bytes'] / 2**30:.1f}" if cost else "–",
            ]
        )  # fmt: skip
    return found


def compared(given: argparse.Namespace) -> dict[str, Any]:
    """The standings of the comparison."""
    given.out.mkdir(parents=True, exist_ok=True)
    path, settings = given.out / "editors.yaml", given.out / "params.yaml"
    folder: Path = given.out / "editors"
    path.write_text(
        yaml.safe_dump(adapted(policy(given.facts, given.asked), given), sort_keys=False)
    )
    chosen = {
        name: {"use": name.partition("@")[0], **EDITORS[name]}
        for name in given.editors.split(",")
        if name != "random"
    }
    settings.write_text(yaml.safe_dump(adapted(chosen, given)))
    code = safeedit(
        given, "-q", "compare", str(path), "--editors", given.editors, "--out", str(folder),
        "--params", str(settings), "--success", "leakage.extraction_rate",
        "--locality", "locality.near_accuracy_kept",
    )  # fmt: skip
    if code not in (0, 3):
        raise SystemExit(f"{path} failed with exit code {code}")
    standings: dict[str, Any] = json.loads((folder / "comparison.json").read_text())
    return standings


def main(arguments: Sequence[str]) -> None:
    """Run the comparison and write the table."""
    parser = options(__doc__, "editors-table")
    parser.add_argument("--editors", default=",".join(EDITORS), help="rows of the table")
    parser.add_argument("--facts", type=int, default=12, help="to forget")
    parser.add_argument(
        "--asked",
        type=int,
        default=60,
        help="near and far questions at most, of validation and test together",
    )
    given = parser.parse_args(arguments)
    head = ["editor", "dose", *(name for name, _ in COLUMNS), "s to fit", "peak GiB"]
    write(
        given.results / "editors.md",
        [
            "# Editors on one small task",
            "",
            f"Made by `{command('editors', arguments)}` (which see) on SmolLM2-135M-Instruct,",
            f"float32. {given.facts} facts of the quickstart, in wordings that were not fitted,",
            "beside near and far questions. Every editor has the same small tuning: default rates,",
            "twenty steps of four prompts where it trains, and of three doses the least that",
            "extracts at most 5 % and keeps 90 % of near answers on validation data ('missed':",
            "none did, and the nearest was taken). Brackets are 95 % intervals; one run, one seed.",
            "'random' is a change of the first row's size.",
        ],
        head,
        rows(compared(given)),
    )


if __name__ == "__main__":
    main(sys.argv[1:])
