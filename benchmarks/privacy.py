"""DEPN and Sanitation on the same memorised records, side by side in one table.

Every row is a run of ``policies/privacy-depn.yaml`` with another edit in its place, no gates and
no export: the audits are the same. The model is the one that policy starts from; where it is not
there, it is planted first. The table is printed and written to ``benchmarks/privacy.md``,
whatever it shows.

    python benchmarks/privacy.py
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
POLICY = ROOT / "policies" / "privacy-depn.yaml"
SAFEEDIT = (sys.executable, "-m", "safeedit.commands")
ALL = {"role": ["named", "other"]}
COLUMNS = (
    ("extraction, targets", "named.extraction_rate"),
    ("extraction, other records", "others.extraction_rate"),
    ("exposure excess, bits", "exposure.exposure_excess"),
    ("membership advantage", "membership.worst_advantage"),
    ("KS p, members", "membership.ks_p_value"),
    ("nats/token to yardstick", "yardstick.secrets_distance"),
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
        "doses": [0.5, 0.75, 1.0],
        "control": False,
    }
    edits = {
        "DEPN, 20 records": ({**depn, "control": False}, named),
        "DEPN, all 60 at once": ({**depn, "control": False, "others": None}, everyone),
        "Sanitation (LoRA), 20 records": (lora, named),
        "Sanitation (LoRA), all 60 at once": (lora, everyone),
    }
    found = {}
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
        if targets is everyone:
            made["audits"] = [audit for audit in made["audits"] if audit.get("id") != "others"]
        found[title] = made
    return found


def cell(metrics: Mapping[str, Any], name: str) -> str:
    """Value and interval."""
    metric = metrics.get(name)
    if metric is None or metric["value"] is None:
        return "–"
    interval = metric["interval"]
    text = f"{metric['value']:.3g}"
    return f"{text} [{interval['low']:.2g}, {interval['high']:.2g}]" if interval else text


def main() -> None:
    """Run the policies and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "privacy")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    policy = yaml.safe_load(POLICY.read_text())
    source = POLICY.parent / policy["model"]["source"]
    if not source.exists():
        base = ["--model", "builtin:smollm2-135m-instruct", "--out", str(source)]
        subprocess.run([*SAFEEDIT, "canary", "plant", *base], check=True)
    policy["model"]["source"] = os.path.relpath(source.resolve(), arguments.out.resolve())
    rows: list[list[str]] = []
    for number, (title, made) in enumerate(runs(policy).items()):
        path, report = arguments.out / f"{number}.yaml", arguments.out / f"{number}.report"
        text = yaml.safe_dump(made)
        done = path.exists() and path.read_text() == text and (report / "report.json").exists()
        if not done:  # a table that was interrupted goes on where it stopped
            path.write_text(text)
            command = [*SAFEEDIT, "-q", "apply", str(path), "--report", str(report)]
            code = subprocess.run(command, check=False).returncode
            if code not in (0, 1, 4):
                raise SystemExit(f"{title} failed with exit code {code}")
        record = json.loads((report / "report.json").read_text())
        if not rows:
            before = {m["name"]: m for audit in record["before"] for m in audit["metrics"]}
            cells = [cell(before, name) for _, name in COLUMNS]
            rows.append(["nothing (planted)", "–", *cells, "–", "–"])
        after = {m["name"]: m for audit in record["after"] for m in audit["metrics"]}
        (edit,) = record["edits"]
        stages = record["resources"]["stages"]
        fitting = sum(stages[f"edit {edit['id']}: {part}"] for part in ("fit", "dose"))
        changed = sum(change["entries_changed"] for change in edit["changes"])
        cells = [cell(after, name) for _, name in COLUMNS]
        rows.append([title, f"{edit['dose']:g}", *cells, f"{fitting:.0f}", f"{changed:,}"])
        print(" | ".join(rows[-1]), flush=True)
    heads = ["edit", "dose", *(name for name, _ in COLUMNS), "seconds to fit", "values changed"]
    lines = [
        "# Two editors on the same memorised records",
        "",
        "Made by `python benchmarks/privacy.py` (which see) on SmolLM2-135M-Instruct with 60",
        "planted records. Brackets are 95 % intervals. The dose of DEPN is a number of neurons;",
        "where no dose met the targets (extraction 0 on validation data, perplexity ratio at most",
        "1.03), the row shows the one that missed fewest.",
        "",
        f"| {' | '.join(heads)} |",
        f"|{'---|' * len(heads)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    (ROOT / "benchmarks" / "privacy.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
