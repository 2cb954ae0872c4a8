"""Every shipped policy applied, with several seeds, and all its gates in one table.

Each row is a gate: the metric before the edits, after them and after a random change of the same
size in their place, with the policy's own seed, and what the gate was held against with every seed.
A policy is run as it stands, and exports what passes. A run whose report is of the policy as it is
now, with as many seeds, is not made again. The table is printed and written to
``docs/results/policies.md``, whatever it shows.

    python benchmarks/policies.py --seeds 3
    python benchmarks/policies.py --seeds 3 --only facts,privacy

Other kernels are chosen by environment variables of torch's libraries; runs with them need a folder
of their own::

    ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/policies.py --seeds 1 --out out/avx2 --results out
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from table import ROOT, cell, command, figures, safeedit, write

from safeedit.policy.loading import load_policy

HEADS = ("policy", "gate", "before", "after", "random", "each seed", "verdict")
DIGITS = (4, 4)
"""Of figures and of their intervals: bounds on ratios lie near 1."""


def shipped(folder: Path) -> dict[str, Path]:
    """Name -> file of each policy that edits; those that attack somebody else's model do not."""
    files = sorted(folder.glob("*.yaml"))
    return {path.stem: path for path in files if load_policy(path).policy.edits}


def record_of(path: Path, given: argparse.Namespace) -> dict[str, Any] | None:
    """The record of the policy as it is now, run with as many seeds; None where there is none."""
    run, report = _ran(path, given), given.out / f"{path.stem}.report" / "report.json"
    if not run.exists() or run.read_text() != load_policy(path).digest or not report.exists():
        return None
    record: dict[str, Any] = json.loads(report.read_text())
    return record if len(record["other_seeds"]) + 1 == given.seeds else None


def applied(path: Path, given: argparse.Namespace) -> dict[str, Any] | None:
    """The record of the policy's run, made where it is missing; None where the run broke off."""
    if (record := record_of(path, given)) is not None:
        return record
    report = given.out / f"{path.stem}.report"
    words = ("apply", str(path), "--seeds", str(given.seeds), "--report", str(report))
    if safeedit(given, "-q", *words) not in (0, 1, 4):
        return None
    _ran(path, given).write_text(load_policy(path).digest)
    return record_of(path, given)


def _ran(path: Path, given: argparse.Namespace) -> Path:
    """Keeps the digest of the policy whose report lies there: the report's own policy may be
    without what would quote data to be erased."""
    return Path(given.out / f"{path.stem}.digest")


def rows_of(name: str, record: Mapping[str, Any]) -> list[list[str]]:
    """A row a gate. What stands before and after under an attack is the attack's own."""
    rows = []
    for verdict in record["verdicts"]:
        metric, attack = verdict["metric"], verdict["under"]
        before, after = _measured(record, metric, attack)
        seeds = [(each["value"], each["status"]) for each in verdict["by_seed"]]
        told = seeds or [(verdict["value"], verdict["status"])]
        rows.append([
            name,
            f"`{metric}` {verdict['condition']}",
            cell(before, metric, DIGITS),
            cell(after, metric, DIGITS),
            "–" if attack else cell(_random(record), metric, DIGITS),
            ", ".join(_value(value, verdict["of_change"], status) for value, status in told),
            verdict["status"],
        ])  # fmt: skip
    return rows


def _measured(
    record: Mapping[str, Any], metric: str, attack: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures of the untouched and of the edited model; under an attack, where it is worst."""
    if not attack:
        return figures(record["before"]), figures(record["after"])
    (found,) = (each for each in record["attacks"] if each["id"] == attack)
    points = [
        ({each["name"]: each for each in point["base"]},
         {each["name"]: each for each in point["edited"]})
        for point in found["points"]
    ]  # fmt: skip
    known = [(base, edited) for base, edited in points
             if edited.get(metric, {}).get("value") is not None]  # fmt: skip
    if not known:
        return {}, {}
    sign = 1 if known[0][1][metric]["direction"] == "lower" else -1
    return max(known, key=lambda point: sign * float(point[1][metric]["value"]))


def _random(record: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of the random changes: of several edits the last that has one says."""
    controls = [
        control for edit in record["edits"] for control in edit["controls"] if control["random"]
    ]
    return {metric["name"]: metric for control in controls for metric in control["metrics"]}


def _value(value: float | None, signed: bool, status: str) -> str:
    shown = "none" if value is None else f"{value:{'+' if signed else ''}.4g}"
    return shown if status == "pass" else f"**{shown}** ({status})"


def resources(name: str, record: Mapping[str, Any]) -> str:
    """What a policy's run took and which doses it chose, in a line below the table."""
    used = record["resources"]
    minutes = (used["wall_seconds"] + used["spared_seconds"]) / 60
    seeds = [record["seed"], *(each["seed"] for each in record["other_seeds"])]
    doses = ", ".join(f"{edit['id']} {edit['dose']:g}" for edit in record["edits"])
    return (
        f"- {name}: {record['status']}; seeds {', '.join(map(str, seeds))}; doses with the first: "
        f"{doses}; {minutes:.0f} min a seed where nothing had been done before, "
        f"{used['peak_memory_bytes'] / 2**30:.1f} GiB"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Apply the policies and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policies", type=Path, default=ROOT / "policies")
    parser.add_argument("--only", help="names, separated by commas, in place of all")
    parser.add_argument("--seeds", type=int, default=3, help="of each policy, from its own on")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "policies",
                        help="folder of the reports")  # fmt: skip
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results",
                        help="folder that the table is written to")  # fmt: skip
    parser.add_argument("--in-process", action="store_true", help="no process for each run")
    parser.add_argument("--made", action="store_true", help="only what has been run already")
    given = parser.parse_args(arguments)
    found = shipped(given.policies)
    wanted = given.only.split(",") if given.only else list(found)
    if unknown := sorted(set(wanted) - set(found)):
        parser.error(f"no policy that edits is called {', '.join(unknown)}: {', '.join(found)}")
    rows, after, broken = list[list[str]](), list[str](), list[str]()
    for name in found:
        make = record_of if given.made or name not in wanted else applied
        if (record := make(found[name], given)) is not None:
            rows += rows_of(name, record)
            after.append(resources(name, record))
        else:
            broken.append(name)
    if broken:
        after += ["", f"Without a finished run: {', '.join(broken)}."]
    lines = _page(command("policies", sys.argv[1:] if arguments is None else arguments))
    write(given.results / "policies.md", lines, HEADS, rows, after)
    print((given.results / "policies.md").read_text())


def _page(made_by: str) -> list[str]:
    return [
        "# Shipped policies, gate by gate",
        "",
        f"Made by `{made_by}` (which see). *Before*, *after* and *random*, a random change of the",
        "same size in place of the edit, are with the policy's own seed, brackets are 95 %",
        "intervals; *each seed* is what the gate was held against with one seed after another,",
        "that of the checkpoint first. Under an attack *before* is the untouched model under it.",
    ]


if __name__ == "__main__":
    main()
