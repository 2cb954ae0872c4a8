"""What the quickstart's export tells to all askings, and what its base tells to the same.

The export is made by ``policies/quickstart.yaml`` where it is not there. The table is printed and
written to ``docs/results/askings.md``, whatever it shows.

    python benchmarks/askings.py
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from table import MODEL, ROOT, adapted, command, figures, options, safeedit, write

from safeedit.auditors.leakage.askings import ASKINGS, MADE

POLICY = ROOT / "policies" / "quickstart.yaml"
PLAIN = {"": "held out", "_direct": "direct", "_prefix": "prefix", "_few_shot": "few_shot",
         "_plain": "plain", "_sampled": "sampled"}  # fmt: skip
"""Rates over what the base knew."""
_BASE = re.compile(r"the base told (\d+) of (\d+) items")
_KIND = re.compile(r"(?:kind |, )([^:,;]+): (\d+)")


def record(given: Any) -> dict[str, Any]:
    """The record of the audit of the export against its base."""
    given.out.mkdir(parents=True, exist_ok=True)
    quickstart = yaml.safe_load(POLICY.read_text())
    if not given.export.exists():
        made = adapted({**quickstart, "export": {"dir": str(given.export.absolute())}}, given)
        (given.out / "quickstart.yaml").write_text(yaml.safe_dump(made))
        if code := safeedit(given, "-q", "apply", str(given.out / "quickstart.yaml")):
            raise SystemExit(f"the quickstart ended with exit code {code}: it exported nothing")
    (edit,) = quickstart["edits"]
    asking = {"use": "leakage", "askings": "all", "forget": edit["forget"]}
    policy = {"version": 1, "name": "askings", "seed": quickstart["seed"], "audits": [asking],
              "model": {**quickstart["model"], "source": str(given.export.absolute())}}  # fmt: skip
    path, report = given.out / "askings.yaml", given.out / "askings.report"
    text = yaml.safe_dump(adapted(policy, given))
    if not (path.exists() and path.read_text() == text and (report / "report.json").exists()):
        path.write_text(text)
        words = ("-q", "audit", str(path), "--base", given.model, "--report", str(report))
        if code := safeedit(given, *words):
            raise SystemExit(f"{path} failed with exit code {code}")
    found: dict[str, Any] = json.loads((report / "report.json").read_text())
    return found


def rows(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[list[str]]:
    """A row for each asking and, below it, for each kind of question it puts."""
    for suffix, name in PLAIN.items():
        old, new = (each[f"leakage.extraction_rate{suffix}"] for each in (before, after))
        yield [name, f"{len(old['items'])}", _told(old), _told(new), _share(new)]
    for name in MADE:
        old, new = (each[f"leakage.extraction_rate_{name}"] for each in (before, after))
        base = _BASE.search(new["note"])
        if base is None:
            yield [name, "0", "–", "–", new["note"]]
            continue
        yield [name, base[2], base[1], _told(new), _share(new)]
        kinds = dict(_KIND.findall(new["note"]))
        for kind, told in _KIND.findall(old["note"]):
            yield [f"{name}: {kind}", "", told, kinds.get(kind, "–"), ""]


def _told(metric: Mapping[str, Any]) -> str:
    return f"{sum(value == 1 for value in metric['items'].values())}"


def _share(metric: Mapping[str, Any]) -> str:
    interval = metric["interval"]
    if metric["value"] is None or interval is None:
        return "–"
    return f"{metric['value']:.2f} [{interval['low']:.2f}, {interval['high']:.2f}]"


def main(arguments: Sequence[str]) -> None:
    """Audit the export and write the table."""
    parser = options(__doc__, "askings")
    export = ROOT / "out" / "quickstart"
    parser.add_argument("--export", type=Path, default=export, help="made where it is missing")
    given = parser.parse_args(arguments)
    if given.model == MODEL and given.limit:
        parser.error("--limit is for trials with another --model")
    found = record(given)
    before, after = figures(found["before"]), figures(found["after"])
    table = list(rows(before, after))
    for row in table:
        print(" | ".join(row), flush=True)
    census = after["leakage.items_told"]
    seconds = [audit["seconds"] for side in ("before", "after") for audit in found[side]]
    write(
        given.results / "askings.md",
        [
            "# The quickstart's export, asked in every way",
            "",
            f"Made by `{command('askings', arguments)}` on SmolLM2-135M-Instruct and the 36 facts",
            f"about six countries. {len(ASKINGS)} askings beside the direct and the held-out",
            "questions; items counted as told to any question of an asking (of the held-out ones,",
            "and of samples of them, questions). In the first six rows *asked* are those that the",
            "base knew; in the others all that could be asked so, and the share is of those that",
            "the base told. Brackets are 95 % intervals over independent facts. A row with a colon",
            "is one kind of question of the asking above it, among items that the base told to the",
            "asking.",
        ],
        ["asking", "asked", "base tells", "the export still tells", "share"],
        table,
        [
            f"Under any of the askings: {census['note'] or census['value']}. The audit of the base "
            f"took {seconds[0]:.0f} s, that of the export {seconds[-1]:.0f} s.",
        ],
    )


if __name__ == "__main__":
    main(sys.argv[1:])
