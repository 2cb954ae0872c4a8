"""DEPN and Sanitation on the same memorised records, side by side in one table.

The first row is ``policies/privacy-depn.yaml`` itself without its export, the others that policy
with another edit in its place and no gates: the audits are the same. The model is the one that
policy starts from; where it is not there, it is planted first. The table is printed and written to
``docs/results/privacy.md``, whatever it shows.

    python benchmarks/privacy.py
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from table import (
    ROOT,
    add_planted,
    cell,
    changed,
    doses,
    figures,
    fitting,
    options,
    planted,
    run,
    write,
)

POLICY = ROOT / "policies" / "privacy-depn.yaml"
ALL = {"role": ["named", "other"]}
COLUMNS = (
    ("extraction, targets", "named.extraction_rate"),
    ("extraction, other records", "others.extraction_rate"),
    ("exposure excess, bits", "exposure.exposure_excess"),
    ("membership advantage", "membership.worst_advantage"),
    ("KS p, members", "membership.ks_p_value"),
    ("nats/token to the reference model", "reference_model.secrets_distance"),
    ("perplexity ratio", "perplexity.ratio"),
    ("near F1", "locality.near_f1"),
    ("far F1", "locality.far_f1"),
)


def runs(policy: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name of the row -> the policy that makes it."""
    (depn,) = policy["edits"]
    named = depn["forget"]
    everyone = {**named, "where": ALL}
    facts = {"dataset": "facts", "where": {"role": ["near", "far"]}}
    lora = {
        "use": "sanitation",
        "retain": facts,
        "steps": 60,
        "doses": [0.5, 1.0],
        "control": False,
    }
    edits = {
        "DEPN, all 60 at once": (
            {**depn, "round": 100, "doses": [250, 400], "control": False, "others": None},
            everyone,
        ),
        "Sanitation (LoRA), 20 records": (lora, named),
        "Sanitation (LoRA), all 60 at once": (lora, everyone),
    }
    found = {"DEPN, 20 records": {**policy, "export": None}}
    for title, (edit, targets) in edits.items():
        made = copy.deepcopy(dict(policy))
        made |= {"gates": [], "export": None, "name": title.split(",")[0].split()[0].lower()}
        stage = {**edit, "forget": targets, "dose": "auto", "targets": depn["targets"]}
        made["edits"] = [{key: value for key, value in stage.items() if value is not None}]
        for audit in made["audits"]:
            for role in ("forget", "members"):
                if role in audit and audit["id"] != "others":
                    where = {**audit[role].get("where", {}), **targets["where"]}
                    audit[role] = {**audit[role], "where": where}
        made["audits"] = [audit for audit in made["audits"] if audit.get("id") != "pii"]
        if targets is everyone:
            made["audits"] = [audit for audit in made["audits"] if audit.get("id") != "others"]
        found[title] = made
    return found


def attempt(point: Mapping[str, Any]) -> str:
    """What a dose that was tried came to."""
    names = [target for _, target in COLUMNS if target in point["metrics"]]
    found = ", ".join(f"{name} {point['metrics'][name]:.3g}" for name in names
                      if point["metrics"][name] is not None)  # fmt: skip
    return f"dose {point['dose']:g}: {found}"


def main(arguments: Sequence[str]) -> None:
    """Run the policies and write the table."""
    parser = options(__doc__, "privacy")
    policy = yaml.safe_load(POLICY.read_text())
    add_planted(parser)
    given = parser.parse_args(arguments)
    policy["model"]["source"] = planted(given)
    rows: list[list[str]] = []
    tried: list[str] = []
    for number, (title, made) in enumerate(list(runs(policy).items())[: given.rows]):
        record = run(made, given, str(number))
        before, after = figures(record["before"]), figures(record["after"])
        if not rows:
            cells = [cell(before, name) for _, name in COLUMNS]
            rows.append(["nothing (planted)", "–", *cells, "–", "–"])
        cells = [cell(after, name) for _, name in COLUMNS]
        effort = [f"{fitting(record):.0f}", f"{changed(record):,}"]
        rows.append([title, doses(record), *cells, *effort])
        print(" | ".join(rows[-1]), flush=True)
        tried += [f"- {title}: {attempt(point)}" for point in record["edits"][0]["dose_curve"]]
    write(
        given.results / "privacy.md",
        [
            "# Two editors on the same memorised records",
            "",
            "Made by `python benchmarks/privacy.py` (which see) on SmolLM2-135M-Instruct with 60",
            "planted records. Brackets are 95 % intervals. The dose of DEPN is a number of",
            "neurons, that of Sanitation a scale; where no dose met the policy's targets on",
            "validation data, the row shows the one that missed fewest.",
        ],
        ["edit", "dose", *(name for name, _ in COLUMNS), "seconds to fit", "values changed"],
        rows,
        ["Doses tried, on validation data:", "", *tried],
    )


if __name__ == "__main__":
    main(sys.argv[1:])
