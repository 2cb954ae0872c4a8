"""What a message asks for exists: the parameters that it names are those of the editor at hand."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import safeedit
from safeedit import catalog
from safeedit.code import reached
from safeedit.data import Item
from safeedit.policy import DataSpec, EditSpec, ModelSpec

PACKAGE = Path(safeedit.__file__).parent
QUOTED = re.compile(r"'([a-z][a-z_]*)(?:'|: )")
ROWS = {*Item.__dataclass_fields__, "target_new", "professions", "pronoun"}
EVERYWHERE = {*ROWS, *EditSpec.model_fields, *DataSpec.model_fields, *ModelSpec.model_fields}


def named(source: str) -> Iterator[str]:
    """Parameters that the texts of a module name in quotes: remedies, and what is warned of."""
    for node in ast.walk(ast.parse(source)):
        texts: list[ast.expr] = []
        if isinstance(node, ast.keyword) and node.arg == "remedy":
            texts = [node.value]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            texts = node.args if node.func.attr == "warn" else []
        for text in texts:
            for part in ast.walk(text):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield from QUOTED.findall(part.value)


def fields(editor: str) -> set[str]:
    kind = catalog.editor(editor)
    return {*kind.Params.model_fields, *(role.name for role in kind.roles), "data"}


def sources() -> dict[str, set[str]]:
    """Module of an editor or method -> editors that use it."""
    used: dict[str, set[str]] = {}
    for editor in catalog.names("editors"):
        for module in reached(catalog.editor(editor).__module__):
            if module.startswith(("safeedit.editors.", "safeedit.methods.")):
                used.setdefault(module, set()).add(editor)
    return used


USED = sources()


@pytest.mark.parametrize("module", sorted(USED))
def test_a_parameter_that_a_message_names_is_one_of_every_editor_that_can_say_it(
    module: str,
) -> None:
    path = PACKAGE.parent / Path(*module.split(".")).with_suffix(".py")
    if not path.is_file():
        path = path.with_suffix("") / "__init__.py"
    for name in set(named(path.read_text())) - EVERYWHERE:
        lacking = {editor for editor in USED[module] if name not in fields(editor)}
        assert not lacking, f"{name!r} is no parameter of {sorted(lacking)}"


def test_names_are_found_in_remedies_and_warnings_alone() -> None:
    source = "raise E('no', remedy=f\"lower 'rate' by {x}\")\nctx.warn(\"'ridge' is high\")\ny('b')"
    assert sorted(named(source)) == ["rate", "ridge"]
