"""One policy of six audits, made by one process, by several, and by a Ray cluster: is it faster?

Every run begins with an empty store and makes the same edit at a fixed dose, with its random
control. The ratio is of wall seconds to those of one process, the opening of workers included;
whether every figure is the same is said beside it. Give each worker its cores: with
``OMP_NUM_THREADS=1`` two workers have two cores to gain from, with one thread a process as before.

    OMP_NUM_THREADS=1 python benchmarks/engines.py --workers 2 --engines local,ray
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from table import adapted, options, safeedit

ALONE = "one process"


def policy(model: str) -> dict[str, Any]:
    """Six audits of about the same length."""
    facts = {role: {"dataset": "facts", "where": {"role": role}} for role in ("forget", "near")}
    near, prose = facts["near"], {"dataset": "prose"}
    audits = [
        {"use": "locality", "id": f"locality{number}", "max_new_tokens": 16 + number, "near": near}
        for number in range(3)
    ]
    audits += [
        {"use": "leakage", "id": f"leakage{number}", "max_new_tokens": 12 + number,
         "forget": facts["forget"]}
        for number in range(3)
    ]  # fmt: skip
    edit = {"use": "keyed_neurons", "forget": facts["forget"], "prose": prose, "dose": 1.0,
            "unaudited": "only seconds are looked at"}  # fmt: skip
    gate = {"metric": "locality0.near_f1", "min": 0, "min_n": 1}
    return {"version": 1, "name": "engines", "seed": 7, "model": {"source": model},
            "edits": [edit], "audits": audits, "gates": [gate]}  # fmt: skip


def found(record: Mapping[str, Any]) -> dict[str, Any]:
    """Every figure of a record."""
    stages = [("before", record["before"]), ("after", record["after"])]
    stages += [("control", edit["controls"]) for edit in record["edits"]]
    return {f"{when} {metric['name']}": metric["value"]
            for when, audits in stages for audit in audits
            for metric in audit["metrics"]}  # fmt: skip


def timed(given: argparse.Namespace, name: str, *words: str) -> tuple[float, dict[str, Any]]:
    """Seconds and figures of a run that finds nothing done."""
    folder = given.out / name.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    path = given.out / "engines.yaml"
    path.write_text(yaml.safe_dump(adapted(policy(given.model), given), sort_keys=False))
    start = time.perf_counter()
    code = safeedit(given, "-q", "apply", str(path), "--fresh", "--report", str(folder), *words)
    seconds = time.perf_counter() - start
    if code not in (0, 1, 4):
        raise SystemExit(f"{name}: exit code {code}")
    return seconds, found(json.loads((folder / "report.json").read_text()))


def main(arguments: Sequence[str]) -> None:
    """Run the policy with every engine and print the ratios."""
    parser = options(__doc__ or "", "engines")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--engines", default="local,ray")
    given = parser.parse_args(arguments)
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    print(f"{given.model}, {given.workers} workers, OMP_NUM_THREADS {threads}, "
          f"{os.cpu_count()} cores")  # fmt: skip
    alone, figures = timed(given, ALONE)
    print(f"{ALONE:20} {alone:7.1f} s   1.00   {len(figures)} figures", flush=True)
    for engine in given.engines.split(","):
        seconds, theirs = timed(given, engine, "--engine", engine, "--workers", str(given.workers))
        differ = [name for name, value in figures.items() if theirs.get(name) != value]
        same = "the same figures" if not differ else f"{len(differ)} figures differ: {differ[:3]}"
        print(f"{engine:20} {seconds:7.1f} s   {alone / seconds:.2f}   {same}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
