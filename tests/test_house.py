"""Rules of this house that no tool knows, read off the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import safeedit

PACKAGE = Path(safeedit.__file__).parent
TESTS = Path(__file__).parent


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def of_itself(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def defined(tree: ast.Module) -> Iterator[str]:
    """Names that a module gives to something, attributes of its own objects included, not
    those that it sets on a library's."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif (
            isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and of_itself(node)
        ):
            yield node.attr


def reaches_into(tree: ast.Module, inside: frozenset[str]) -> Iterator[str]:
    """What a test imports, reads or patches of the private names ``inside`` the package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("safeedit"):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from (name for name in names if private(name))
        elif isinstance(node, ast.Attribute) and node.attr in inside:
            if not of_itself(node):
                yield node.attr
        elif isinstance(node, ast.Call):
            # monkeypatch.setattr(module, "_name", ...) and setattr("safeedit.module._name", ...)
            words = [each.value for each in node.args if isinstance(each, ast.Constant)]
            called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            if called in ("setattr", "delattr", "getattr"):
                last = [str(word).rpartition(".")[2] for word in words]
                yield from (name for name in last if name in inside)


def test_the_search_for_private_names_finds_them() -> None:
    text = (
        "from safeedit._a import b\nfrom safeedit.c import _d\nimport safeedit.e as e\n"
        "e._f()\npatch.setattr(e, '_g', 1)\npatch.setattr('safeedit.e._h', 1)\nself._f\ne.__i__\n"
    )
    inside = frozenset({"_f", "_g", "_h"})
    assert sorted(reaches_into(ast.parse(text), inside)) == ["_a", "_d", "_f", "_g", "_h"]


@pytest.fixture(scope="module")
def inside() -> frozenset[str]:
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py"))
    return frozenset(name for tree in trees for name in defined(tree) if private(name))


def test_no_test_reaches_into_a_private_name(inside: frozenset[str]) -> None:
    found = {
        str(path.relative_to(TESTS)): names
        for path in sorted(TESTS.rglob("*.py"))
        if (names := set(reaches_into(ast.parse(path.read_text(encoding="utf-8")), inside)))
    }
    assert found == {}, "test through behaviour, or make the name public if it deserves it"


def test_no_module_reaches_into_a_private_name_of_another() -> None:
    paths = sorted(PACKAGE.rglob("*.py"))
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}
    own = {path: {name for name in defined(tree) if private(name)} for path, tree in trees.items()}
    everyones = set[str]().union(*own.values())
    found = {
        path.relative_to(PACKAGE).as_posix(): names
        for path, tree in trees.items()
        if (names := set(reaches_into(tree, frozenset(everyones - own[path]))))
    }
    assert found == {}, "make the name public if it deserves it"


LONGEST_FILE, LONGEST_FUNCTION = 500, 55
"""Lines; of a function with its docstring, which is about a screen."""


def functions(node: ast.AST, inside: str = "") -> Iterator[tuple[str, int]]:
    """Every function with its lines, those in classes and in other functions included."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if not isinstance(child, ast.ClassDef):
                yield inside + child.name, (child.end_lineno or 0) - child.lineno + 1
            yield from functions(child, f"{inside}{child.name}.")
        else:
            yield from functions(child, inside)


def test_functions_are_found_wherever_they_stand() -> None:
    text = "class A:\n def b(self):\n  if c:\n   async def d():\n    pass\n\n@e\ndef f(): ...\n"
    assert dict(functions(ast.parse(text))) == {"A.b": 4, "A.b.d": 2, "f": 1}


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    return {
        path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def test_no_file_is_too_long_to_read_in_one_go(sources: dict[str, str]) -> None:
    found = {name for name, text in sources.items() if text.count("\n") > LONGEST_FILE}
    assert sorted(found) == [], "part it by meaning"


def test_every_function_fits_a_screen(sources: dict[str, str]) -> None:
    found = {
        f"{file} {name}"
        for file, text in sources.items()
        for name, lines in functions(ast.parse(text))
        if lines > LONGEST_FUNCTION
    }
    assert sorted(found) == [], "part it by meaning"


NAMED_BY_CONVENTION = {"Params"}
"""What every auditor and attack calls its parameters."""


def test_no_two_modules_call_different_classes_by_one_public_name(sources: dict[str, str]) -> None:
    owners: dict[str, list[str]] = {}
    for path, source in sources.items():
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef) and not private(node.name):
                owners.setdefault(node.name, []).append(path)
    shared = {name: paths for name, paths in owners.items() if len(paths) > 1}
    assert shared.keys() <= NAMED_BY_CONVENTION, shared
