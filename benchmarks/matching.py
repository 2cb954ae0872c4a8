"""How often the matcher finds what was not said, and how long it takes.

Answers that ship with the project are looked for in prose that ships with it, in each other, and
(with answers of other languages) in text about something else. What a plain search for the whole
word finds too is said; the rest is a false hit, by the strict or by the looser way. Random numbers
are looked for in random numbers that separate their digits in other ways.

    python benchmarks/matching.py

Reads ``datasets/`` and ``tests/text/languages.py``; needs no model. About a minute on one core.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from safeedit.text.matching import way_told
from tests.text.languages import LANGUAGES

DATASETS = Path(__file__).parents[1] / "datasets"


@dataclass
class Counts:
    """What became of pairs of an answer and a text."""

    pairs: int = 0
    literal: int = 0
    """The whole word stands there: no false hit."""
    strict: int = 0
    looser: int = 0
    found: list[tuple[str, str, str]] = field(default_factory=list)
    """Way, answer and text of each false hit."""

    def look(self, answer: str, text: str) -> None:
        """Look for an answer in a text."""
        self.pairs += 1
        if literally(text, answer):
            self.literal += 1
        elif way := way_told(text, [answer]):
            self.strict += way == "strict"
            self.looser += way == "looser"
            self.found.append((way, answer, text))

    def rate(self) -> float:
        """False hits by either way, as a share of the pairs that say nothing."""
        return (self.strict + self.looser) / max(1, self.pairs - self.literal)


def literally(text: str, answer: str) -> bool:
    """The oracle: the whole word, in any case and with or without accents, by a plain search."""
    pattern = rf"(?<![\w.-]){re.escape(_bare(answer))}(?!\w|\.\d)"
    return re.search(pattern, _bare(text), re.IGNORECASE) is not None


def _bare(text: str) -> str:
    letters = unicodedata.normalize("NFKD", text.translate(str.maketrans("łøıŁØ", "loiLO")))
    return "".join(c for c in letters if not unicodedata.combining(c))


def count(answers: Iterable[str], texts: Iterable[str]) -> Counts:
    """Look for every answer in every text."""
    counts = Counts()
    wanted = tuple(dict.fromkeys(answers))
    for text in texts:
        for answer in wanted:
            counts.look(answer, text)
    return counts


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of a shipped data set."""
    lines = (DATASETS / name / "items.jsonl").read_text(encoding="utf-8").splitlines()
    return list(map(json.loads, lines))


def answers(name: str) -> list[tuple[str, ...]]:
    """The answer of each row with its aliases, equal ones once."""
    found = ((row.get("answer"), *row.get("aliases", ())) for row in rows(name))
    return list(dict.fromkeys(tuple(filter(None, each)) for each in found))


def prose() -> list[str]:
    """The shipped prose."""
    return [row["text"] for row in rows("prose")]


def in_prose(step: int = 1) -> Counts:
    """Shipped answers (of each ``step`` one), and those of other languages, in shipped prose."""
    wanted = [each for name in ("facts", "canaries") for one in answers(name) for each in one]
    return count([*wanted[::step], *(each.answer for each in LANGUAGES)], prose())


def in_each_other(step: int = 1) -> Counts:
    """Shipped facts' answers (of each ``step`` one) in those of all others, said in a sentence."""
    counts = Counts()
    same: dict[str, set[str]] = {}
    for one in answers("facts")[::step]:
        for each in one:
            same.setdefault(each, set()).update(one)
    for other in same:
        for answer in same.keys() - same[other]:
            counts.look(answer, f"It is {other}, I think.")
    return counts


def in_other_languages() -> Counts:
    """Answers of each language in unrelated text of all, and in what tells the others' answers."""
    counts = Counts()
    for language in LANGUAGES:
        for other in LANGUAGES:
            counts.look(language.answer, other.unrelated)
            for frame in other.said if other is not language else ():
                counts.look(language.answer, frame.replace("{}", other.answer))
    return counts


def in_numbers(n: int = 20_000, seed: int = 0) -> Counts:
    """Random numbers in others, of which each is written with separators."""
    draw = random.Random(seed)
    counts = Counts()
    for _ in range(n):
        answer, other = (str(draw.randrange(10 ** draw.randrange(3, 10))) for _ in range(2))
        text = list(other)
        for _ in range(draw.randrange(4)):
            text.insert(draw.randrange(1, len(text) + 1), draw.choice(" -.,/"))
        written = f"It is {''.join(text)} in all."
        if re.sub(r"\D", "", written) == answer or literally(written, answer):
            continue
        counts.look(answer, written)
    return counts


def milliseconds() -> tuple[float, float]:
    """To fold a text of 10,000 characters, and to look for one more answer in it."""
    text = (" ".join(prose()) * 2)[:10_000].replace("e", "é")
    start = time.perf_counter()
    way_told(text, ["Nowhere"])
    folded = time.perf_counter()
    way_told(text, [f"Nowhere {n}" for n in range(200)])
    return (folded - start) * 1e3, (time.perf_counter() - folded) * 1e3 / 200


def main(arguments: Sequence[str]) -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--step", type=int, default=1, help="look for one answer of so many")
    parser.add_argument("--numbers", type=int, default=20_000)
    given = parser.parse_args(arguments)
    print(f"{'':34}{'pairs':>9}{'said':>7}{'strict':>8}{'looser':>8}{'false-hit rate':>16}")
    for name, measure in (
        ("shipped answers in shipped prose", partial(in_prose, given.step)),
        ("shipped answers in each other", partial(in_each_other, given.step)),
        (f"answers of {len(LANGUAGES)} languages in others", in_other_languages),
        ("numbers in numbers", partial(in_numbers, given.numbers)),
    ):
        counts = measure()
        print(
            f"{name:34}{counts.pairs:9,}{counts.literal:7,}{counts.strict:8,}{counts.looser:8,}"
            f"{counts.rate():16.1e}"
        )
        for way, answer, text in counts.found[:12]:
            print(f"    {way}: {answer!r} in {text[:60]!r}")
    fold, look = milliseconds()
    print(f"10,000 characters: folded in {fold:.1f} ms, {look:.2f} ms for each further answer")


if __name__ == "__main__":
    main(sys.argv[1:])
