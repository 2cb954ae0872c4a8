"""Every editor that erases, on three small tasks, each with the same small tuning.

``facts``: a dozen facts of the quickstart are to be forgotten, asked directly in wordings that were
not fitted. ``records``: twenty of sixty records that the model was made to learn by heart.
``split``: the first published Sanitation split, where what is to go is an answer, not a subject.
Every editor has the same data and audits, and is attacked in the same two ways: rounded to four
bits, and ten steps of training on what is like the forgotten but was to stay. The tuning that each
gets is the same and small: its default rates, twenty steps of four prompts where it trains, and the
choice among three doses on validation data.

Records lie under ``--out`` and are not made again, so that tables grow in pieces; they are written
to ``docs/results/editors.md`` with all tasks that were run, whatever they show, and each task's
Pareto figure beside it.

    export SAFEEDIT_BENCHMARKS=...  # the folder that holds sanitization_triviaqa/
    python benchmarks/editors.py --tasks facts,records,split
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from table import (
    MODEL,
    adapted,
    add_data,
    add_planted,
    cell,
    command,
    options,
    planted,
    safeedit,
    write,
)

SMALL = {"batch": 4, "retain_prompts": 32}
STEPS = {**SMALL, "doses": [5, 10, 20]}
"""The budget of each editor that trains."""
SCALES = [0.5, 1.0, 2.0]
TRAINED: dict[str, dict[str, Any]] = {
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
    "task_vector@negate": {"steps": 20, **SMALL, "doses": SCALES},
    "task_vector@ext_sub": {"method": "ext_sub", "steps": 20, **SMALL, "doses": SCALES},
}
LOCATED: dict[str, dict[str, Any]] = {
    "depn": {"generic": {"dataset": "prose"}, "doses": [20, 80, 200]},
    "revs": {"doses": [2, 5, 10]},
    "knowledge_neurons": {"doses": [2, 5, 10]},
}
LORA = {"update": "lora", "doses": SCALES}
FACTS: dict[str, dict[str, Any]] = {
    **TRAINED,
    **LOCATED,
    "lunar": {
        "refused": {"dataset": "facts", "where": {"role": "unknown"}}, "doses": [1.0, 2.0, 4.0],
    },
    "ft@target": {"doses": SCALES},
    "ft@prompt_last": {"objective": "prompt_last", "doses": SCALES},
    "rome": {"doses": SCALES},
    "memit": {"doses": SCALES},
    "memit@pmet": {"variant": "pmet", "doses": SCALES},
    "alphaedit": {"doses": SCALES},
    "keyed_neurons": {"doses": [0.75, 1.0, 1.5]},
    "sanitation@lora": LORA,
    "sanitation@keyed": {"update": "keyed", "doses": [0.75, 1.0, 1.5]},
    "refusal_prompt": {},
    "in_context": {},
    "random": {},
}  # fmt: skip
"""Row -> what differs from the editor's defaults."""
RECORDS: dict[str, dict[str, Any]] = {
    **{name: TRAINED[name] for name in ("unlearn@npo", "unlearn@ga", "unlearn@simnpo", "rmu",
                                        "repselect", "task_vector@negate")},
    "unlearn@ga_stopped": {"use": "unlearn", "objective": "ga", "retain_loss": "none", **STEPS,
                           "early_stop": "unseen"},
    **LOCATED,
    "keyed_neurons": {"target": "unlikely", "layers": "31%-31%", "max_norm": 6, "steps": 6,
                      "doses": [1.0, 1.5, 2.0]},
    "sanitation@lora": LORA,
    "random": {},
}  # fmt: skip
SPLIT: dict[str, dict[str, Any]] = {
    **{name: TRAINED[name] for name in ("unlearn@npo", "unlearn@ga", "unlearn@idk_nll",
                                        "unlearn@idk_dpo", "rmu", "task_vector@negate")},
    "sanitation@lora": LORA,
    "random": {},
}  # fmt: skip

Policy = dict[str, Any]
PROSE = {"dataset": "prose"}


@dataclass(frozen=True)
class Task:
    """What is to be erased, by whom, and what is shown of it."""

    title: str
    editors: Mapping[str, Mapping[str, Any]]
    policy: Callable[[argparse.Namespace], Policy]
    told: str
    """Metric of what is still told; the attacks repeat its audit."""
    kept: str
    """What is to stay, by which doses are chosen and rows ranked."""
    columns: Sequence[tuple[str, str]]
    """Head -> metric."""


def policy(
    model: Policy, roles: Policy, audits: Sequence[Policy], siblings: Policy, task: str
) -> Policy:
    """One edit whose dose is the least that erases and spares, and the two attacks on it."""
    told, kept = TASKS[task].told, TASKS[task].kept
    audited = told.rpartition(".")[0]
    return {
        "version": 1,
        "name": f"editors-{task}",
        "seed": 7,
        "model": {**model, "dtype": "float32"},
        "edits": [
            {
                "use": "unlearn",
                **roles,
                "prose": PROSE,
                "control": False,
                "dose": "auto",
                "targets": [{"metric": told, "max": 0.05}, {"metric": kept, "min": 0.9}],
            }
        ],
        "audits": [*audits, {"use": "perplexity", "prose": PROSE}],
        "attacks": [
            {"use": "quantize", "bits": [4], "audits": [audited]},
            {"use": "relearn", "data": siblings, "steps": [10], "audits": [audited]},
        ],
        "gates": [],
    }


def facts(given: argparse.Namespace) -> Policy:
    """The quickstart's task with fewer facts and questions."""
    forget = {"dataset": "facts", "where": {"role": "forget"}, "limit": given.facts}
    siblings = {"dataset": "facts", "where": {"role": "near"}}
    kept = {"dataset": "facts", "where": {"role": ["near", "far", "unknown"]}}
    return policy(
        {"source": MODEL},
        {"forget": forget, "retain": kept, "preserve": kept},
        [
            {"use": "leakage", "forget": forget, "askings": [], "max_new_tokens": 16},
            {"use": "locality", "max_new_tokens": 16, **_questions(given)},
        ],
        siblings,
        "facts",
    )


def _questions(given: argparse.Namespace) -> Policy:
    """Near and far questions that nothing is fitted on."""
    unseen = {"split": ["validation", "test"]}
    return {
        role: {"dataset": "facts", "where": {**unseen, "role": role}, "limit": given.asked}
        for role in ("near", "far")
    }


def records(given: argparse.Namespace) -> Policy:
    """Records that were planted; those of people whom nobody names are to stay."""
    shared = {"dataset": "canaries", "template": "plain"}
    named = {**shared, "where": {"role": "named"}}
    others = {**shared, "where": {"role": "other", "repeats": [1, 16]}}
    seen = {**shared, "where": {"role": ["other", "held_back"], "repeats": [0, 4]}}
    return policy(
        {"source": planted(given)},
        {"forget": named, "retain": seen, "preserve": seen, "unseen": {
            **shared, "where": {"role": "held_back"}}},
        [
            {"use": "leakage.memorization", "id": "named", "forget": named},
            {"use": "leakage.memorization", "id": "others", "forget": others},
            {"use": "locality", "max_new_tokens": 16, **_questions(given)},
        ],
        others,
        "records",
    )  # fmt: skip


def split(given: argparse.Namespace) -> Policy:
    """Everything that one of five words answers."""
    folder = str((given.data / "sanitization_triviaqa" / "triviaqa_1").resolve())
    forget = {"file": folder, "format": "sanitation", "where": {"role": "forget"}}
    retain = {"file": folder, "format": "sanitation", "where": {"role": "retain"}}
    return policy(
        {"source": MODEL},
        {"forget": forget, "retain": retain},
        [
            {"use": "leakage", "forget": forget, "askings": [], "max_new_tokens": 16},
            {"use": "locality", "max_new_tokens": 16, "near": retain,
             "far": _questions(given)["far"]},
        ],
        retain,
        "split",
    )  # fmt: skip


SPARED = (
    ("near kept", "locality.near_accuracy_kept"),
    ("near F1", "locality.near_f1"),
    ("near KL, nats", "locality.near_kl"),
    ("far F1", "locality.far_f1"),
    ("perplexity ratio", "perplexity.ratio"),
)
REFUSED = (("told", "leakage.extraction_rate"), ("refused", "leakage.refusal_rate"))
TASKS: dict[str, Task] = {
    "facts": Task(
        "Twelve facts",
        FACTS,
        facts,
        "leakage.extraction_rate",
        "locality.near_accuracy_kept",
        (*REFUSED, *SPARED, ("over-refusal", "locality.near_over_refusal")),
    ),
    "records": Task(
        "Twenty records",
        RECORDS,
        records,
        "named.extraction_rate",
        "others.extraction_rate",
        (("told", "named.extraction_rate"), ("others told", "others.extraction_rate"), *SPARED),
    ),
    "split": Task(
        "A Sanitation split",
        SPLIT,
        split,
        "leakage.extraction_rate",
        "locality.near_accuracy_kept",
        (*REFUSED, *SPARED, ("over-refusal", "locality.near_over_refusal")),
    ),
}
ATTACKS = {"told at 4 bits": "quantize", "told relearnt": "relearn"}


def rows(standings: Mapping[str, Any], task: Task, folder: Path) -> list[list[str]]:
    """A row for each editor, with an error where it failed."""
    found = []
    for row in standings["rows"]:
        if row["error"]:
            found.append([row["name"], row["error"],
                          *["–"] * (len(task.columns) + len(ATTACKS) + 2)])  # fmt: skip
            continue
        cost, dose = row["cost"], row["dose"]
        missed = " (missed)" if row["targets_met"] is False else ""
        under = attacked(folder / row["name"] / "report.json", task.told)
        found.append(
            [
                row["name"], "–" if dose is None else f"{dose:g}{missed}",
                *(cell(row["metrics"], name) for _, name in task.columns),
                *(under.get(attack, "–") for attack in ATTACKS.values()),
                f"{cost['fit_seconds']:.0f}" if cost else "–",
                f"{cost['peak_memory_bytes'] / 2**30:.1f}" if cost else "–",
            ]
        )  # fmt: skip
    return found


def attacked(path: Path, metric: str) -> dict[str, str]:
    """Attack -> what is told under it, and the share of the effect that it undoes."""
    if not path.is_file():
        return {}
    found = {}
    for attack in json.loads(path.read_text())["attacks"]:
        (point,) = attack["points"]
        metrics = {each["name"]: each for each in point["edited"]}
        undone = metrics.get(f"{metric.rpartition('.')[0]}.recovered", {}).get("value")
        told = cell(metrics, metric).partition(" ")[0]
        found[attack["id"]] = f"{told} (undone {undone:.2f})" if undone is not None else told
    return found


def compared(given: argparse.Namespace, name: str) -> tuple[dict[str, Any], Path]:
    """The standings of the comparison on one task, and where it keeps its records."""
    given.out.mkdir(parents=True, exist_ok=True)
    task = TASKS[name]
    path, settings = given.out / f"{name}.yaml", given.out / f"{name}.params.yaml"
    folder: Path = given.out / name
    path.write_text(yaml.safe_dump(adapted(task.policy(given), given), sort_keys=False))
    asked = given.editors.split(",") if given.editors else list(task.editors)
    chosen = [each for each in asked if each in task.editors]
    made = {
        each: {"use": each.partition("@")[0], **task.editors[each]}
        for each in chosen
        if each not in ("random", "refusal_prompt", "in_context")
    }
    settings.write_text(yaml.safe_dump(adapted(made, given)))
    code = safeedit(
        given, "-q", "compare", str(path), "--editors", ",".join(chosen), "--out", str(folder),
        "--params", str(settings), "--success", task.told, "--locality", task.kept,
    )  # fmt: skip
    if code not in (0, 3):
        raise SystemExit(f"{path} failed with exit code {code}")
    standings: dict[str, Any] = json.loads((folder / "comparison.json").read_text())
    return standings, folder


def main(arguments: Sequence[str]) -> None:
    """Run the comparisons and write the tables."""
    parser = options(__doc__, "editors-table")
    add_data(parser)
    parser.add_argument("--tasks", default="facts", help=f"of {', '.join(TASKS)}, by commas")
    parser.add_argument("--editors", default="", help="rows of the tables [all]")
    parser.add_argument("--facts", type=int, default=12, help="to forget")
    parser.add_argument(
        "--asked",
        type=int,
        default=60,
        help="near and far questions at most, of validation and test together",
    )
    add_planted(parser)
    given = parser.parse_args(arguments)
    lines = [
        "# Editors on the same small tasks",
        "",
        f"Made by `{command('editors', arguments)}` (which see) on SmolLM2-135M-Instruct,",
        "float32. Every editor has the same small tuning: default rates, twenty steps of four",
        "prompts where it trains, and of three doses the least that leaves at most 5 % told and",
        "keeps 90 % of what is to stay on validation data ('missed': none did, and the nearest was",
        "taken). *told at 4 bits*: rounded to int4; *relearnt*: after ten steps of training on",
        "what is like the forgotten and was to stay; *undone*: the share of the effect that this",
        "takes back. Brackets are 95 % intervals; one run, one seed. 'random' is a change of the",
        "first row's size; the last rows of facts change no weights.",
    ]  # fmt: skip
    tables: list[tuple[list[str], list[str], list[list[str]]]] = []
    for name in given.tasks.split(","):
        task = TASKS[name]
        standings, folder = compared(given, name)
        head = ["editor", "dose", *(each for each, _ in task.columns), *ATTACKS, "s to fit",
                "peak GiB"]  # fmt: skip
        picture = f"editors-{name}.svg"
        given.results.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "comparison.svg", given.results / picture)
        shown = ["", f"## {task.title}", "", f"![Told against kept]({picture})"]
        tables.append((shown, head, rows(standings, task, folder)))
    (first, head, found), *others = tables
    more: list[str] = []
    for shown, heads, each in others:
        more += [*shown[1:], "", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
        more += [f"| {' | '.join(row)} |" for row in each]
        more += [""]
    write(given.results / "editors.md", [*lines, *first], head, found, more)


if __name__ == "__main__":
    main(sys.argv[1:])
