"""No regular expression of the package takes more than time in proportion to its text."""

from __future__ import annotations

import ast
import importlib
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import safeedit

PACKAGE = Path(safeedit.__file__).parent
LENGTH = 12_000
"""At which a quadratic expression takes seconds, and a linear one less than a millisecond."""
ALLOWED_SECONDS = 0.05
UNITS = [
    "9", "a", "A", " ", ".", "-", "=", " =", "= ", "a.", "a-", "a_", "'", "a'", "[", "(", "{", "{}",
    "9%", "9.", "9 ", "9-", "+1 ", "a@", "a@b.", "the ", "555-", "a b ", "A1", "e9", "|", "${A",
    "a/", "US12 ", "\n", "\t",
]  # fmt: skip
BEFORE, AFTER = ("", "a", "= ", "1"), ("", "!", "\n!")


def patterns() -> Iterator[tuple[str, re.Pattern[str], bool]]:
    """Place, expression, and whether it is sought anywhere in a text."""
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text()
        if not re.search(r"^import re$", source, re.MULTILINE):
            continue
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for name, value in vars(importlib.import_module(module)).items():
            for number, found in enumerate(inside(value)):
                used = set(re.findall(rf"{name}\.(\w+)\(", source))
                yield f"{module}.{name}[{number}]", found, not used <= {"match", "fullmatch"}
        for node in ast.walk(ast.parse(source)):
            called = isinstance(node, ast.Call) and ast.unparse(node.func) in CALLED
            if called and isinstance(written := node.args[0], ast.Constant):  # type: ignore[attr-defined]
                yield f"{module}:{node.lineno}", re.compile(written.value), True  # type: ignore[attr-defined]


CALLED = {"re.sub", "re.findall", "re.split", "re.search"}


def inside(value: object) -> Iterator[re.Pattern[str]]:
    """The expressions that a module keeps under one name, alone or in a table."""
    if isinstance(value, re.Pattern) and isinstance(value.pattern, str):
        yield value
    elif isinstance(value, tuple | list):
        for each in value:
            yield from inside(each)


def slowest(pattern: re.Pattern[str], anywhere: bool) -> tuple[float, str]:
    worst = (0.0, "")
    for unit in UNITS:
        for before in BEFORE:
            for after in AFTER:
                text = before + unit * (LENGTH // len(unit)) + after
                started = time.process_time()
                (pattern.search if anywhere else pattern.fullmatch)(text)
                if not anywhere:
                    pattern.match(text)
                worst = max(worst, (time.process_time() - started, repr(before + unit)))
                if worst[0] > ALLOWED_SECONDS:
                    return worst
    return worst


PATTERNS = {place: (pattern, anywhere) for place, pattern, anywhere in patterns()}


@pytest.mark.parametrize("place", sorted(PATTERNS))
def test_no_text_holds_an_expression_up(place: str) -> None:
    seconds, text = slowest(*PATTERNS[place])
    assert seconds < ALLOWED_SECONDS, f"{place}: {seconds:.2f} s for many of {text}"


def test_the_expressions_of_policies_are_among_them() -> None:
    assert "safeedit.policy.gate._PERCENT[0]" in PATTERNS
    assert len(PATTERNS) > 30


def test_an_expression_that_goes_back_and_back_is_found() -> None:
    assert slowest(re.compile(r"[0-9]+%"), True)[0] > ALLOWED_SECONDS
