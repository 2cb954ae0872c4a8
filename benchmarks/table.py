"""What the tables here share: policies run once, their figures in Markdown."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
SAFEEDIT = (sys.executable, "-m", "safeedit.cli.main")


def run(policy: Mapping[str, Any], folder: Path, name: str) -> dict[str, Any]:
    """The record of a policy's run; one that ran before to its end is not run again."""
    folder.mkdir(parents=True, exist_ok=True)
    path, report = folder / f"{name}.yaml", folder / f"{name}.report"
    text = yaml.safe_dump(dict(policy))
    done = path.exists() and path.read_text() == text and (report / "report.json").exists()
    if not done:
        path.write_text(text)
        command = [*SAFEEDIT, "-q", "apply", str(path), "--report", str(report)]
        code = subprocess.run(command, check=False).returncode
        if code not in (0, 1, 4):
            raise SystemExit(f"{path} failed with exit code {code}")
    record: dict[str, Any] = json.loads((report / "report.json").read_text())
    return record


def figures(audits: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Metric name -> metric, of a record's ``before`` or ``after``."""
    return {metric["name"]: metric for audit in audits for metric in audit["metrics"]}


def cell(metrics: Mapping[str, Any], name: str) -> str:
    """Value and interval."""
    metric = metrics.get(name)
    if metric is None or metric["value"] is None:
        return "–"
    interval = metric["interval"]
    text = f"{metric['value']:.3g}"
    return f"{text} [{interval['low']:.2g}, {interval['high']:.2g}]" if interval else text


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


def command(script: str) -> str:
    """How a table was made: the script and its options, less where the data lies."""
    options = list(sys.argv[1:])
    if "--data" in options:
        place = options.index("--data")
        del options[place : place + 2]
    return shlex.join(["python", f"benchmarks/{script}.py", *options])


def write(name: str, lines: Sequence[str], heads: Sequence[str], rows: Sequence[Sequence[str]],
          more: Sequence[str] = ()) -> None:  # fmt: skip
    """Write a table, whatever it shows, to ``docs/results/NAME.md``."""
    table = [
        *lines, "", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}",
        *(f"| {' | '.join(row)} |" for row in rows), *(["", *more] if more else []),
    ]  # fmt: skip
    (ROOT / "docs" / "results" / f"{name}.md").write_text("\n".join(table) + "\n")
