"""Editors of gender bias side by side, on the published benchmarks and on our own set.

Every row is a run of ``policies/debias-dama.yaml`` with another edit in its place, no gates and no
export, and of WinoBias a seeded choice of 400 sentences. Slopes are those on DAMA's test prompts,
none of whose professions was fitted. Random changes of the same size stand below DAMA's edit as
published and below ours. REMEDI's is that of ``policies/remedi.yaml`` at dose 1: it gives persons
their occupations, and is here to show that it leaves professions alone. The table is printed and
written to ``docs/results/bias.md``, whatever it shows.

    python benchmarks/bias.py --data ../shared/data
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from table import (
    ROOT,
    add_data,
    cell,
    changed,
    command,
    doses,
    figures,
    fitting,
    options,
    run,
    write,
)

POLICY = ROOT / "policies" / "debias-dama.yaml"
REMEDI = POLICY.with_name("remedi.yaml")
SENTENCES = 400
"""Of WinoBias, per row."""
CONTROLLED = ("keyed", "DAMA, as published")
"""Rows below which a random change stands."""
COLUMNS = (
    ("stereotype slope", "stereotype.stereotype_slope"),
    ("... over the base's", "stereotype.stereotype_slope_ratio"),
    ("factual slope", "stereotype.factual_slope"),
    ("... over the base's", "stereotype.factual_slope_ratio"),
    ("factual gender", "factual_gender.accuracy"),
    ("WinoBias accuracy", "winobias.accuracy"),
    ("pro less anti", "winobias.gap"),
    ("next token, delta S", "winobias.next_token_delta_s"),
    ("StereoSet ICAT, gender", "stereoset.icat_gender"),
    ("perplexity ratio", "perplexity.ratio"),
)


def runs(policy: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name of the row -> the policy that makes it."""
    (keyed,) = policy["edits"]
    audits = []
    for audit in policy["audits"]:
        published = audit["use"] in ("bias.winobias", "bias.stereoset")
        audits.append({**audit, **({"control": False} if published else {})})
        if audit["use"] == "bias.winobias":
            audits[-1]["sentences"] = {**audit["sentences"], "limit": SENTENCES}
    shared = {key: keyed[key] for key in ("prompts", "factual", "prose", "dose", "targets")}
    dama = {"use": "dama", **shared}
    couples = {"dataset": "occupations", "where": {"kind": "winobias"}, "template": "plain"}
    (remedi,) = yaml.safe_load(REMEDI.read_text())["edits"]
    remedi = {key: value for key, value in remedi.items() if key != "targets"} | {"dose": 1.0}
    edits = {
        "DAMA, as published": dama,
        "DAMA, oblique, factual kept": {**dama, "method": "oblique"},
        "DAMA, oblique (LEACE)": {
            **{key: value for key, value in dama.items() if key != "factual"}, "method": "oblique",
        },
        "REMEDI, compiled": remedi,
        "keyed": keyed,
        "keyed, coreference too": {**keyed, "sentences": couples},
    }  # fmt: skip
    return {
        title: {
            **policy, "edits": [{**edit, "control": 1 if title in CONTROLLED else False}],
            "audits": audits, "gates": [], "export": None,
        }
        for title, edit in edits.items()
    }  # fmt: skip


def per_hundred(record: Mapping[str, Any]) -> str:
    """Seconds of fitting, the choice of a dose left out, per hundred prompts that it rests on."""
    (edit,) = record["edits"]
    used = edit["notes"].get("prompts") or edit["notes"]["entities"]
    name = f"edit {edit['id']}: fit"
    return f"{100 * record['resources']['stages'][name] / used:.0f}"


def main(arguments: Sequence[str]) -> None:
    """Run the policies and write the table."""
    parser = options(__doc__, "bias-table")
    add_data(parser)
    given = parser.parse_args(arguments)
    policy = yaml.safe_load(POLICY.read_text())
    os.environ["SAFEEDIT_BENCHMARKS"] = str(given.data.resolve())
    rows: list[list[str]] = []
    for number, (title, made) in enumerate(list(runs(policy).items())[: given.rows]):
        record = run(made, given, str(number))
        before, after = figures(record["before"]), figures(record["after"])
        if not rows:
            rows.append(["nothing", "–", *(cell(before, name) for _, name in COLUMNS), *["–"] * 3])
        cells = [cell(after, name) for _, name in COLUMNS]
        effort = [f"{fitting(record):.0f}", per_hundred(record), f"{changed(record):,}"]
        rows.append([title, doses(record), *cells, *effort])
        print(" | ".join(rows[-1]), flush=True)
        for edit in record["edits"]:
            for control in edit["controls"]:
                found = {metric["name"]: metric for metric in control["metrics"]}
                cells = [cell(found, name) for _, name in COLUMNS]
                rows.append([f"... {control['name']}", "–", *cells, *["–"] * 3])
    write(
        given.results / "bias.md",
        [
            "# Editors of gender bias",
            "",
            f"Made by `{command('bias', arguments)}` (which see) on SmolLM2-135M-Instruct.",
            "Brackets are 95 % intervals. Doses were chosen on other professions; where none met",
            "the policy's targets, the row shows the one that came nearest. Seconds to fit include",
            "the choice of a dose, those per 100 prompts do not; one thread, beside other work.",
        ],
        [
            "edit",
            "dose",
            *(name for name, _ in COLUMNS),
            "seconds to fit",
            "... per 100 prompts",
            "values changed",
        ],
        rows,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
