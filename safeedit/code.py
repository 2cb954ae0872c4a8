"""The code that made a figure, as a digest: the part of a cache's key that no one has to raise.

What is kept from one run to the next (audits of the base, moments of activations, maps) is right
only as long as the code is the one that made it. The digest covers a module's source and that of
every module of this package which it imports, inside functions included, so that a change of
shared code (the matching of answers, the engine) makes what was kept stale as well.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_ROOT = _PACKAGE.name


def code_digest(*modules: str) -> str:
    """Digest of the sources of these modules and of all of safeedit that they import.

    Args:
        modules: Full names, e.g. ``safeedit.auditors.perplexity``; of a module of another
            distribution its own file counts, with that distribution's version.

    Returns:
        sha256 in hex; equal sources in another place have an equal digest.
    """
    digest = hashlib.sha256()
    own = sorted({found for name in modules for found in reached(name)})
    for name in own:
        digest.update(f"{name}\0{hashlib.sha256(source_of(name)).hexdigest()}\n".encode())
    for name in sorted(name for name in modules if not _is_own(name)):
        digest.update(_foreign(name).encode())
    return digest.hexdigest()


def _is_own(name: str) -> bool:
    return name.partition(".")[0] == _ROOT


@cache
def _file(name: str) -> Path | None:
    path = _PACKAGE.joinpath(*name.split(".")[1:])
    return next(
        (file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None
    )


@cache
def source_of(name: str) -> bytes:
    file = _file(name)
    return file.read_bytes() if file is not None else b""


@cache
def _imports(name: str) -> frozenset[str]:
    """Modules of this package that one imports itself; the root, which imports none, is no part."""
    named: set[str] = set()
    for node in ast.walk(ast.parse(source_of(name))):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            named |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(
        each for each in named if _is_own(each) and each != _ROOT and _file(each) is not None
    )


@cache
def reached(name: str) -> frozenset[str]:
    found: set[str] = set()
    waiting = [name] if _is_own(name) and _file(name) is not None else []
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting += _imports(current)
    return frozenset(found)


_distributions = cache(packages_distributions)
"""Asked once: it reads what every installed package says of itself."""


def _foreign(name: str) -> str:
    module = sys.modules.get(name)
    file = inspect.getsourcefile(module) if module is not None else None
    source = Path(file).read_bytes() if file is not None and Path(file).is_file() else b""
    top = name.partition(".")[0]
    versions = sorted(f"{each} {version(each)}" for each in _distributions().get(top, ()))
    return f"{name}\0{hashlib.sha256(source).hexdigest()}\0{versions}\n"
