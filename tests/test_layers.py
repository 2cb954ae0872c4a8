"""Who may import whom: parsed from the sources, so that no path through the code escapes.

Imports under ``if TYPE_CHECKING`` don't count: they are for readers and type checkers.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import safeedit
from safeedit import auditors

PACKAGE = Path(safeedit.__file__).parent

LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "code", "observing"),
    ("records",),
    ("policy",),
    ("private",),
    ("cache",),
    ("statistics",),
    ("text",),
    ("contracts",),
    ("data", "delta", "model"),
    ("methods",),
    ("editors", "attacks", "auditors", "scorers"),
    ("catalog",),
    ("export", "report"),
    ("planning",),
    ("running",),
    ("workflows",),
    ("cli",),
)
"""Lowest first. A part imports its own layer and those before it, with the exceptions below."""

RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}

STRANGERS = [
    {"data", "model"},
    {"data", "delta"},
    {"editors", "auditors"},
    {"editors", "attacks"},
    {"attacks", "auditors"},
    {"export", "report"},
]
"""Parts of one layer that do not know each other."""

NO_TORCH = (
    *(
        "errors",
        "private",
        "code",
        "observing",
        "records",
        "policy",
        "cache",
        "statistics",
        "contracts",
        "data",
    ),
    *("catalog", "report", "cli"),
)
"""Parts whose import brings no torch: validating a policy, ``--help``, a report."""

HEAVY = ("torch", "transformers", "peft", "accelerate")


@dataclass(frozen=True)
class Import:
    """One import statement: ``importer`` and ``imported`` are full module names."""

    importer: str
    imported: str
    line: int
    deferred: bool
    """Inside a function."""

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports_of(module: str, source: str) -> Iterator[Import]:
    def visit(node: ast.AST, deferred: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for statement in node.orelse:
                yield from visit(statement, deferred)
            return
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, node.lineno, deferred)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                target = name if name in MODULES else str(node.module)
                yield Import(module, target, node.lineno, deferred)
        inside = deferred or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    yield from visit(ast.parse(source), False)


IMPORTS = [
    found for module, path in MODULES.items() for found in imports_of(module, path.read_text())
]


def part(module: str) -> str | None:
    """``safeedit.model.handle`` -> ``model``; None for safeedit itself and other packages."""
    names = module.split(".")
    return names[1] if names[0] == "safeedit" and len(names) > 1 else None


def breaks_layers(found: Import) -> bool:
    importer, imported = part(found.importer), part(found.imported)
    if importer is None or imported is None:
        return False
    return RANK[imported] > RANK[importer] or {importer, imported} in STRANGERS


def test_every_part_of_the_package_has_a_layer() -> None:
    parts = {part(module) for module in MODULES} - {None, "__main__"}
    assert parts <= RANK.keys(), f"no layer for {sorted(map(str, parts - RANK.keys()))}"


def test_imports_go_downwards_only() -> None:
    assert [str(found) for found in IMPORTS if breaks_layers(found)] == []


def test_the_root_of_the_package_imports_none_of_its_parts() -> None:
    assert [str(f) for f in IMPORTS if f.importer == "safeedit" and part(f.imported)] == []


def test_editors_never_import_editors_nor_auditors_auditors() -> None:
    """Mathematics that two of them need belongs to methods; parts of one auditor, to its own
    sub-package; what all auditors share, to ``auditors.SHARED``."""

    def method(module: str) -> str | None:
        names = module.split(".")
        return (
            names[2]
            if part(module) in ("editors", "attacks", "auditors") and len(names) > 2
            else None
        )

    shared = {f"safeedit.auditors.{name}" for name in auditors.SHARED}
    assert shared <= MODULES.keys()
    crossing = [
        str(found)
        for found in IMPORTS
        if (imported := method(found.imported)) is not None
        and found.imported not in shared
        and method(found.importer) not in (None, imported)
        and part(found.importer) == part(found.imported)
    ]
    assert crossing == []


def test_nothing_above_the_catalog_names_an_editor_or_auditor() -> None:
    naming = [
        str(found)
        for found in IMPORTS
        if part(found.imported) in ("editors", "attacks", "auditors")
        and part(found.importer) not in ("editors", "attacks", "auditors")
    ]
    assert naming == []


def reached(module: str) -> dict[str, str]:
    """Everything that importing ``module`` imports, each with the module that asks for it."""
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        current = waiting.pop()
        for item in IMPORTS:
            if item.importer == current and not item.deferred and item.imported not in found:
                found[item.imported] = current
                if item.imported in MODULES:
                    waiting.append(item.imported)
    return found


@pytest.mark.parametrize("name", NO_TORCH)
def test_light_parts_reach_no_torch_in_their_sources(name: str) -> None:
    heavy = {
        f"{importer} imports {imported}"
        for module in MODULES
        if part(module) == name
        for imported, importer in reached(module).items()
        if imported.partition(".")[0] in HEAVY
    }
    assert heavy == set()


def test_light_parts_load_no_torch_when_imported() -> None:
    light = sorted(module for module in MODULES if part(module) in NO_TORCH)
    script = (
        "import importlib, sys\n"
        f"for name in {light!r}:\n"
        "    importlib.import_module(name)\n"
        f"    heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "    assert not heavy, f'{name} loads {heavy}'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_pickle_and_no_code_from_data() -> None:
    """safetensors only; a policy, data set or checkpoint is never executed.

    Detoxify publishes pickles: its scorer opens them as plain tensors, or refuses
    (``tests/scorers/test_detoxify.py``).
    """
    banned = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    assert [str(f) for f in IMPORTS if f.imported.partition(".")[0] in banned] == []
    calls = [
        f"{module}:{node.lineno}"
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and module != "safeedit.scorers.detoxify"
        and ast.unparse(node.func) in {"eval", "exec", "torch.load", "torch.save", "yaml.load"}
    ]
    assert calls == []


def test_trust_remote_code_is_never_switched_on() -> None:
    switched = [
        f"{module}:{node.value.lineno}"
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.keyword)
        and node.arg == "trust_remote_code"
        and not (isinstance(node.value, ast.Constant) and node.value.value is False)
    ]
    assert switched == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("safeedit.policy.model", "from safeedit.planning.resolution import make_plan"),
        ("safeedit.model.handle", "def f():\n    import safeedit.running.run"),
        ("safeedit.data.items", "from safeedit.model import handle"),
        (
            "safeedit.statistics.verdicts",
            "try:\n    from safeedit import delta\nexcept ImportError: pass",
        ),
    ],
)
def test_the_rules_find_what_breaks_them(module: str, source: str) -> None:
    assert [found for found in imports_of(module, source) if breaks_layers(found)]


def test_imports_for_type_checkers_do_not_count() -> None:
    source = "if TYPE_CHECKING:\n    from safeedit.running.run import execute"
    assert list(imports_of("safeedit.contracts", source)) == []
