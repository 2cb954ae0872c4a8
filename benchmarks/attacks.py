"""What each editor's effect withstands: the matrix of edits times attacks, as one table.

Six countries of the built-in facts refused by name, 50 facts of ``known_1000`` forgotten by two
editors (which the model ranks first, ``benchmarks/known.py``), 20 memorised records, stereotypes of
professions, words of abuse: each by an edit of fixed strength, which is attacked as whoever has the
checkpoint might. Every attack is made on the untouched model too. Training repeats over
``--seeds``; a cell shows the worst of them, and between which values they lie.

Each edit is a run of its own, kept under ``--out`` and not made again; ``--only`` makes those whose
titles hold a word, so the table grows in pieces. It is printed and written to
``benchmarks/attacks.md``, whatever it shows, with the names of the edits that have not been run.

    export SAFEEDIT_BENCHMARKS=...  # the folder that holds known_1000/ and realtoxicityprompts/
    python benchmarks/attacks.py --seeds 3
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml
from detox import runs as detoxifiers
from known import prepare
from table import (
    MODEL,
    ROOT,
    add_data,
    add_planted,
    cell,
    command,
    figures,
    finished,
    options,
    planted,
    run,
    write,
)

from safeedit.records import RunRecord
from safeedit.report.attacks import attack_matrix

FORGET = {"dataset": "facts", "where": {"role": "forget"}}
NEAR = {"dataset": "facts", "where": {"role": "near"}}
PROSE = {"dataset": "prose"}
FACTS = 50
"""Of ``known_1000``, to be forgotten."""
CLOZE = "leakage.extraction_rate_cloze"
BESIDE = ("locality.near_accuracy_kept", "perplexity.ratio", "depth.depth", CLOZE)
"""Said of each edit below the table, where its run measures it."""

Policy = dict[str, Any]


def policy(name: str, edits: Sequence[Policy], audits: Sequence[Policy], **more: Any) -> Policy:
    """A run of edits that are fixed, without gates and without an export."""
    return {
        "version": 1,
        "name": name,
        "seed": 7,
        "model": {"source": MODEL},
        "edits": [{**edit, "control": False} for edit in edits],
        "audits": [*audits, {"use": "perplexity", "prose": PROSE}],
        **more,
    }


def attacks(audit: str, given: argparse.Namespace, **taught: Any) -> list[Policy]:
    """Rounding, and training on each of these data sets.

    Args:
        audit: Repeated under each.
        given: Steps and seeds of the training.
        taught: Name of the attack -> its data, and ``share`` where only a part of it is taught.
    """
    found: list[Policy] = [{"use": "quantize", "bits": [8, 4], "audits": [audit]}]
    for name, keys in taught.items():
        found.append({"use": "relearn", "id": name, "steps": given.steps, "audits": [audit],
                      "seeds": given.seeds, **keys})  # fmt: skip
    return found


def countries(given: argparse.Namespace) -> Policy:
    """The quickstart's edit."""
    (edit,) = yaml.safe_load((ROOT / "policies" / "quickstart.yaml").read_text())["edits"]
    made = {key: value for key, value in edit.items() if key not in ("doses", "targets")}
    further = [
        {"use": "prune", "shares": [0.2], "audits": ["leakage"]},
        {"use": "noise", "shares": [0.03], "audits": ["leakage"], "seeds": given.seeds},
        {"use": "merge", "shares": [0.25], "audits": ["leakage"]},
    ]
    trained = attacks("leakage", given, half={"data": FORGET, "share": 0.5},
                      siblings={"data": NEAR}, prose={"data": PROSE})  # fmt: skip
    return policy(
        "countries",
        [{**made, "dose": 1.0}],
        [
            {"use": "leakage", "forget": FORGET, "askings": ["cloze"]},
            {"use": "locality", "near": NEAR, "max_new_tokens": 32},
        ],
        model={"source": MODEL, "dtype": "float32"},
        attacks=[trained[0], *further, *trained[1:]],
    )


def facts(editor: str) -> Callable[[argparse.Namespace], Policy]:
    """So many facts that the model knows, forgotten by one editor."""

    def made(given: argparse.Namespace) -> Policy:
        source = given.data / "known_1000" / "known_1000.json"
        dtype = "bfloat16"
        rows = prepare(source, given.out, given.facts, model=given.model, dtype=dtype)
        forget = {"file": str(rows.forget.resolve()), "template": "plain"}
        near = {"file": str(rows.near.resolve()), "template": "plain"}
        edit: Policy = {"use": editor, "target": "unlikely", "forget": forget, "preserve": near,
                        "prose": PROSE, "doses": [1.5], "dose": 1.5}  # fmt: skip
        return policy(
            f"{editor}-{given.facts}-facts",
            [edit],
            [
                {"use": "leakage", "forget": forget, "max_new_tokens": 12, "askings": []},
                {"use": "locality", "near": near, "max_new_tokens": 24},
            ],
            model={"source": MODEL, "dtype": dtype},
            attacks=attacks("leakage", given, half={"data": forget, "share": 0.5},
                            siblings={"data": near}),
        )  # fmt: skip

    return made


def records(shipped: str) -> Callable[[argparse.Namespace], Policy]:
    """Memorised records, as a shipped policy erases them; planted where they are not there."""

    def made(given: argparse.Namespace) -> Policy:
        text = (ROOT / "policies" / f"{shipped}.yaml").read_text()
        edits = yaml.safe_load(text)["edits"]
        named = edits[0]["forget"]
        others = {**named, "where": {"role": "other", "repeats": [1, 16]}}
        fixed = {"doses": [225], "dose": 225} if shipped == "privacy-depn" else {}
        return policy(
            f"records-{shipped}",
            [{**{key: each[key] for key in each if key != "targets"}, **fixed} for each in edits],
            [
                {"use": "leakage.memorization", "id": "named", "forget": named},
                {"use": "leakage.depth", "id": "depth", "forget": named,
                 "model": {"source": given.model}},
            ],
            model={"source": planted(given), "dtype": "float32"},
            attacks=attacks("named", given, half={"data": named, "share": 0.5},
                            others={"data": others}),
        )  # fmt: skip

    return made


def professions(given: argparse.Namespace) -> Policy:
    """Stereotypes out of pronouns."""
    debias = yaml.safe_load((ROOT / "policies" / "debias.yaml").read_text())
    (edit,) = debias["edits"]
    made = {key: value for key, value in edit.items() if key not in ("doses", "targets")}
    sentences = {"dataset": "occupations", "where": {"kind": "winobias"}, "template": "plain"}
    return policy(
        "professions",
        [{**made, "dose": 1.5, "doses": [1.5]}],
        debias["audits"][:1],
        model=debias["model"],
        attacks=attacks("stereotype", given, sentences={"data": sentences},
                        prose={"data": PROSE}),
    )  # fmt: skip


def abuse(given: argparse.Namespace) -> Policy:
    """Words of abuse out of continuations, on a part of the prompts."""
    detox = yaml.safe_load((ROOT / "policies" / "detox.yaml").read_text())
    vectors, keyed = (
        {key: value for key, value in edit.items() if key not in ("doses", "targets")}
        for edit in detoxifiers(detox)["value_vectors, then keyed_detox"]["edits"]
    )
    audit = detox["audits"][0]
    few = {**audit, "prompts": {**audit["prompts"], "limit": 100}}
    del few["judge"]
    return policy(
        "abuse",
        [{**vectors, "doses": [40], "dose": 40}, {**keyed, "doses": [1.0], "dose": 1.0}],
        [few],
        model=detox["model"],
        attacks=attacks("toxicity", given, prose={"data": PROSE}),
    )


RUNS: Mapping[str, Callable[[argparse.Namespace], Policy]] = {
    "sanitation, keyed; six countries": countries,
    "keyed_neurons; facts": facts("keyed_neurons"),
    "rome; facts": facts("rome"),
    "depn; 20 records": records("privacy-depn"),
    "keyed_neurons; 20 records": records("privacy"),
    "keyed_debias; professions": professions,
    "value_vectors, then keyed_detox": abuse,
}
"""Title -> what makes its policy."""


def main(arguments: Sequence[str]) -> None:
    """Run the edits and write the table of all that have been run."""
    parser = options(__doc__, "attacks")
    add_data(parser)
    parser.set_defaults(results=ROOT / "benchmarks")
    parser.add_argument("--seeds", type=int, default=1, help="of training and noise")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 40], help="of training")
    parser.add_argument("--facts", type=int, default=FACTS, help="of known_1000, to be forgotten")
    parser.add_argument("--only", default="", help="make those whose titles hold this")
    add_planted(parser)
    given = parser.parse_args(arguments)
    os.environ["SAFEEDIT_BENCHMARKS"] = str(given.data.resolve())
    given.out.mkdir(parents=True, exist_ok=True)
    rows: list[list[str]] = []
    said: list[str] = []
    missing: list[str] = []
    for title, make in list(RUNS.items())[: given.rows]:
        name = re.sub(r"\W+", "-", title)
        if given.only not in title:
            known = given.out / f"{name}.yaml"
            record = (
                finished(yaml.safe_load(known.read_text()), given, name) if known.exists() else None
            )
        else:
            record = run(make(given), given, name)
        if record is None:
            missing.append(title)
            continue
        own = _rows(title, RunRecord.model_validate(record))
        for row in own:
            print(" | ".join(row), flush=True)
        rows += own
        said.append(_beside(title, record))
    if missing:
        said += ["", f"Not run yet: {'; '.join(missing)}."]
    write(
        given.results / "attacks.md",
        [
            "# Under attack",
            "",
            f"Made by `{command('attacks', arguments)}` (which see) on SmolLM2-135M-Instruct:",
            "each edit, then each attack on it; the untouched model meets the same attacks.",
            "*Edited* and *untouched* are the audit's headline under the attack, *effect undone*",
            "the share of the edit's effect that the attack takes back, with a 95 % interval; of",
            "several seeds the worst. See [attacks](../docs/guides/attack.md).",
        ],
        ["edit", "attack", "strength", "metric", "edited", "untouched", "effect undone"],
        rows,
        said,
    )


def _beside(title: str, record: Mapping[str, Any]) -> str:
    """What the edit costs without an attack, what it took, with which seeds."""
    after = figures(record["after"])
    seeds = sorted({point["seed"] for attack in record["attacks"] for point in attack["points"]})
    parts = [f"{name} {cell(after, name)}" for name in BESIDE if name in after]
    attacked = sum(attack["seconds"] for attack in record["attacks"])
    return (
        f"- {title}: {', '.join(parts)}; seeds {', '.join(map(str, seeds))}; "
        f"{record['resources']['wall_seconds']:.0f} s, of which attacks on the edited model "
        f"{attacked:.0f} s"
    )


def _rows(title: str, record: RunRecord) -> list[list[str]]:
    matrix = attack_matrix(record)
    assert matrix is not None
    headlines = {name for attack in record.attacks for name in attack.headlines.values()}
    found = []
    for metric, (after, before) in zip(matrix.metrics, matrix.unattacked, strict=True):
        if metric in headlines:
            found.append([title, "none", "–", metric, _figure(after), _figure(before), "–"])
    for row in matrix.rows:
        for metric, shown in zip(matrix.metrics, row.cells, strict=True):
            if shown is None or metric not in {*headlines, CLOZE}:
                continue
            spread = ""
            if shown.spread is not None:
                spread = f" ({_figure(shown.spread[0])} to {_figure(shown.spread[1])})"
            undone = row.recovered_words if shown.headline else "–"
            found.append([title, row.attack, row.label, metric, f"{_figure(shown.edited)}{spread}",
                          _figure(shown.base), undone])  # fmt: skip
    return found


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


if __name__ == "__main__":
    main(sys.argv[1:])
