"""What the tables here share: options, policies run once, their figures in Markdown."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from safeedit.cli.main import main

ROOT = Path(__file__).parent.parent
MODEL = "builtin:smollm2-135m-instruct"
"""What the tables are about, and the policies that they are made from."""


def options(about: str, name: str) -> argparse.ArgumentParser:
    """The options that every benchmark of policies has.

    Args:
        about: Its docstring, whose first line is shown.
        name: Of the folder that the runs go to.
    """
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--model", type=_source, default=MODEL, help="in place of the built-in one")
    parser.add_argument("--limit", type=int, help="items of each data set at most, for a trial")
    parser.add_argument("--rows", type=int, help="runs at most, in this order")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / name, help="for the runs")
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results",
                        help="folder that the table is written to")  # fmt: skip
    parser.add_argument("--in-process", action="store_true",
                        help="no process for each run: peaks are then of all so far")  # fmt: skip
    return parser


def _source(text: str) -> str:
    """Given here, a path starts at the working directory; in a policy, at the policy's folder."""
    return str(Path(text).absolute()) if Path(text).exists() else text


def add_data(parser: argparse.ArgumentParser) -> None:
    """The option for the folder of published data, which is none of the project's."""
    default = os.environ.get("SAFEEDIT_BENCHMARKS", str(ROOT.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=Path(default), help="published data sets")


def add_planted(parser: argparse.ArgumentParser) -> None:
    """The option for the model that has learnt records by heart."""
    parser.add_argument("--planted", type=Path, default=ROOT / "out" / "canaries",
                        help="made where it is missing")  # fmt: skip


def planted(given: argparse.Namespace) -> str:
    """The source of that model as policies under ``--out`` name it; planted if it is not there."""
    if not given.planted.exists():
        words = ("canary", "plant", "--model", given.model, "--out", str(given.planted))
        if code := safeedit(given, *words):
            raise SystemExit(f"planting failed with exit code {code}")
    return os.path.relpath(given.planted.resolve(), given.out.resolve())


def safeedit(given: argparse.Namespace, *words: str) -> int:
    """The exit code of a command, which has a process of its own unless ``--in-process``."""
    if not given.in_process:
        command = [sys.executable, "-m", "safeedit.cli.main", *words]
        return subprocess.run(command, check=False).returncode
    try:
        main(list(words))
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def adapted(made: Any, given: argparse.Namespace) -> Any:
    """A policy, or a part of one, with the model and no more items than the options say."""
    if isinstance(made, Mapping):
        # A limit of a data set is one of all its sources together.
        within = ("exclude", "additional_sources")
        found = {key: value if key in within else adapted(value, given)
                 for key, value in made.items()}  # fmt: skip
        if found.get("source") == MODEL:
            found["source"] = given.model
        if given.limit and ("dataset" in found or "file" in found):
            found["limit"] = min(given.limit, found.get("limit", given.limit))
        return found
    if isinstance(made, (list, tuple)):
        return [adapted(each, given) for each in made]
    return made


def finished(policy: Mapping[str, Any], given: argparse.Namespace, name: str) -> Any:
    """The record of a policy's run that ran before to its end; None where it has not."""
    path, report = given.out / f"{name}.yaml", given.out / f"{name}.report" / "report.json"
    text = yaml.safe_dump(adapted(policy, given))
    done = path.exists() and path.read_text() == text and report.exists()
    return json.loads(report.read_text()) if done else None


def run(policy: Mapping[str, Any], given: argparse.Namespace, name: str) -> dict[str, Any]:
    """The record of a policy's run; one that ran before to its end is not run again."""
    given.out.mkdir(parents=True, exist_ok=True)
    path, report = given.out / f"{name}.yaml", given.out / f"{name}.report"
    if finished(policy, given, name) is None:
        path.write_text(yaml.safe_dump(adapted(policy, given)))
        code = safeedit(given, "-q", "apply", str(path), "--report", str(report))
        if code not in (0, 1, 4):
            raise SystemExit(f"{path} failed with exit code {code}")
    record: dict[str, Any] = finished(policy, given, name)
    return record


def figures(audits: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Metric name -> metric, of a record's ``before`` or ``after``."""
    return {metric["name"]: metric for audit in audits for metric in audit["metrics"]}


def cell(metrics: Mapping[str, Any], name: str, digits: tuple[int, int] = (3, 2)) -> str:
    """Value and interval, each with so many digits that count."""
    metric = metrics.get(name)
    if metric is None or metric["value"] is None:
        return "–"
    interval = metric["interval"]
    value, ends = (f".{count}g" for count in digits)
    text = f"{metric['value']:{value}}"
    return f"{text} [{interval['low']:{ends}}, {interval['high']:{ends}}]" if interval else text


def fitting(record: Mapping[str, Any]) -> float:
    """Seconds that its edits took, the choice of their doses included."""
    stages = record["resources"]["stages"]
    return float(
        sum(stages[f"edit {edit['id']}: {part}"] for edit in record["edits"]
            for part in ("fit", "dose"))
    )  # fmt: skip


def changed(record: Mapping[str, Any]) -> int:
    """Values of the weights that are others than before."""
    return sum(each["entries_changed"] for edit in record["edits"] for each in edit["changes"])


def doses(record: Mapping[str, Any]) -> str:
    """The dose of each of its edits."""
    return ", ".join(f"{edit['dose']:g}" for edit in record["edits"])


def command(script: str, arguments: Sequence[str]) -> str:
    """How a table was made: the script and its options, less where the data lies."""
    options = list(arguments)
    if "--data" in options:
        place = options.index("--data")
        del options[place : place + 2]
    return shlex.join(["python", f"benchmarks/{script}.py", *options])


def write(path: Path, lines: Sequence[str], heads: Sequence[str], rows: Sequence[Sequence[str]],
          more: Sequence[str] = ()) -> None:  # fmt: skip
    """Write a table, whatever it shows."""
    table = [
        *lines, "", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}",
        *(f"| {' | '.join(row)} |" for row in rows), *(["", *more] if more else []),
    ]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(table) + "\n")
