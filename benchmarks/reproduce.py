"""A published table made again: does each figure lie within the interval that was printed?

The page ``docs/results/TABLE.md`` says by which command its table was made. That command is run
again, with its runs under ``--out``, and every figure is held against the published interval. Cells
without an interval (doses, seconds, gibibytes) are shown where they differ, and decide nothing.
Further options are the benchmark's own and come after the page's::

    python benchmarks/reproduce.py erasure
    python benchmarks/reproduce.py erasure --counts 10 --few keyed_neurons --steps= --no-split

Exit codes: 0 every figure that was made again lies within; 1 one does not, or there is no table.
"""

from __future__ import annotations

import argparse
import importlib
import math
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from table import ROOT

_NUMBER = r"-?(?:\d[\d,]*)?(?:\.\d+)?(?:e[+-]?\d+)?"
_ESTIMATE = re.compile(rf"({_NUMBER}) \[({_NUMBER}), ({_NUMBER})\]")
_MADE_BY = re.compile(r"Made by `python benchmarks/(\w+)\.py ?([^`]*)`")

Row = dict[str, str]
"""Head -> cell."""


@dataclass(frozen=True)
class Cell:
    """One figure, published and made again."""

    row: str
    column: str
    published: str
    now: str
    says: str
    """``within``, ``OUTSIDE``, or, where no interval was published, ``same`` or ``differs``."""


def rows_of(page: str) -> dict[str, Row]:
    """Row name -> its cells, of the first table of a page.

    A row's name is as many of its first cells as it takes to tell the rows apart.

    Raises:
        SystemExit: There is no table, or two of its rows are alike in every cell.
    """
    lines = [line for line in page.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    heads = next((row for row in cells if any(row)), [])
    rows = [row for row in cells[2:] if len(row) == len(heads)]
    for width in range(1, len(heads) + 1):
        names = [", ".join(row[:width]) for row in rows]
        if rows and len(set(names)) == len(rows):
            return {name: dict(zip(heads, row, strict=True))
                    for name, row in zip(names, rows, strict=True)}  # fmt: skip
    raise SystemExit("the page has no table whose rows can be told apart")


def held_against(published: Mapping[str, Row], now: Mapping[str, Row]) -> Iterator[Cell]:
    """Every cell of the rows that were made again."""
    for name, row in published.items():
        for column, text in row.items():
            if name not in now or column not in now[name]:
                continue
            again = now[name][column]
            yield Cell(name, column, text, again, _says(text, again))


def _says(published: str, now: str) -> str:
    interval, value = _ESTIMATE.search(published), re.match(_NUMBER, now)
    if interval is None:
        return "same" if published == now else "differs"
    if value is None or not value[0]:
        return "OUTSIDE"
    low, high = interval[2], interval[3]
    found = _float(value[0])
    # An end is printed with few digits: it may be anything that is rounded so.
    within = _float(low) - _half_a_digit(low) <= found <= _float(high) + _half_a_digit(high)
    return "within" if within else "OUTSIDE"


def _float(text: str) -> float:
    return float(text.replace(",", ""))


def _half_a_digit(text: str) -> float:
    """Half a unit of a number's last printed digit; of two digits at least, as tables print."""
    digits, _, exponent = text.replace(",", "").lstrip("-").partition("e")
    places = len(digits.partition(".")[2])
    size = 10.0 ** (int(exponent or 0) - places)
    value = abs(_float(text))
    if places == 0 and value:  # 1 stands for 1.0
        size = min(size, 10.0 ** (math.floor(math.log10(value)) - 1))
    return size / 2


def main(arguments: Sequence[str]) -> None:
    """Run the table's command again and say what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("table", help="a page of docs/results that a benchmark has made")
    parser.add_argument("--published", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--out", type=Path, help="for the runs [out/reproduced/TABLE]")
    given, more = parser.parse_known_args(arguments)
    page = given.published / f"{given.table}.md"
    made = _MADE_BY.search(page.read_text()) if page.is_file() else None
    if made is None:
        ours = sorted(each.stem for each in given.published.glob("*.md")
                      if _MADE_BY.search(each.read_text()))  # fmt: skip
        raise SystemExit(f"no benchmark has made {page}; it has made {', '.join(ours)}")
    out = given.out or ROOT / "out" / "reproduced" / given.table
    options = [*shlex.split(made[2]), "--out", str(out), "--results", str(out), *more]
    print(f"python benchmarks/{made[1]}.py {shlex.join(options)}", flush=True)
    importlib.import_module(made[1]).main(options)
    published, now = rows_of(page.read_text()), rows_of((out / f"{made[1]}.md").read_text())
    if not _told(published, now):
        raise SystemExit(1)


def _told(published: Mapping[str, Row], now: Mapping[str, Row]) -> bool:
    """Print every cell; whether none is outside."""
    cells = list(held_against(published, now))
    for cell in cells:
        if cell.says != "same":
            print(f"{cell.says:8} {cell.row}: {cell.column}: {cell.published} -> {cell.now}")
    counts = {word: sum(cell.says == word for cell in cells)
              for word in ("within", "OUTSIDE", "same", "differs")}  # fmt: skip
    left = [name for name in published if name not in now]
    if left:
        print(f"not made again: {'; '.join(left)}")
    print(
        f"{counts['within']} of {counts['within'] + counts['OUTSIDE']} figures lie within the "
        f"published intervals, {counts['OUTSIDE']} outside; of cells without an interval "
        f"{counts['same']} are the same and {counts['differs']} differ"
    )
    if not counts["within"] + counts["OUTSIDE"]:
        print("nothing was made again that has a published interval")
        return False
    return not counts["OUTSIDE"]


if __name__ == "__main__":
    main(sys.argv[1:])
