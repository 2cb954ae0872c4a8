"""The sha256 of every file of an export, in the format of ``sha256sum``.

Anybody can check an export without safeedit: ``sha256sum -c evidence/manifest.sha256`` in
its folder. The files that could undo the edit (the original tensors, the deltas) may be
left out of a copy that is passed on; every other missing, changed or added file is a
problem. A manifest shows that nothing was damaged, not who wrote it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from safeedit.export.staging import EVIDENCE, writing

MANIFEST = f"{EVIDENCE}/manifest.sha256"
UNDO = f"{EVIDENCE}/undo.safetensors"
DELTA = f"{EVIDENCE}/delta-{{id}}.safetensors"
LEDGER = f"{EVIDENCE}/ledger.jsonl"

MAY_BE_WITHHELD = (UNDO, DELTA.format(id="*"))
"""What a published copy should leave out: with these the edit can be taken back."""

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def hash_files(folder: Path) -> dict[str, str]:
    """Relative path -> sha256 in hex of every file below ``folder`` but the manifest.

    Raises:
        OSError: A file can't be read.
    """
    names = sorted(name for name in _files(folder) if name != MANIFEST)
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(lambda name: _sha256(folder / name), names), strict=True))


def write_manifest(folder: Path) -> dict[str, str]:
    """Hash every file below ``folder`` and write the manifest.

    Returns:
        As :func:`hash_files`.

    Raises:
        ExportError: The manifest can't be written.
    """
    path = folder / MANIFEST
    with writing(path):
        digests = hash_files(folder)
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()))
    return digests


def read_manifest(folder: Path) -> tuple[dict[str, str], list[str]]:
    """The manifest's digests by path, and what is wrong with the manifest itself."""
    path = folder / MANIFEST
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return {}, [f"{MANIFEST}: missing; this is no export of safeedit, or its evidence is gone"]
    except (OSError, UnicodeDecodeError):
        return {}, [f"{MANIFEST}: not readable"]
    digests: dict[str, str] = {}
    problems = []
    for number, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line)
        if match is None or _leaves(match[2]) or match[2] in digests:
            problems.append(f"{MANIFEST}:{number}: not a line of a manifest")
        else:
            digests[match[2]] = match[1]
    return digests, problems


def verify_manifest(folder: Path) -> list[str]:
    """What differs between a folder and its manifest, a line each; empty if nothing does."""
    expected, problems = read_manifest(folder)
    if not expected:
        return problems or [f"{MANIFEST}: empty"]
    links = {name for name in _files(folder) if not (folder / name).is_file()}
    found = hash_files(folder) if not links else {}
    if links:
        return problems + [f"{name}: not a plain file" for name in sorted(links)]
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            if not any(fnmatchcase(name, pattern) for pattern in MAY_BE_WITHHELD):
                problems.append(f"{name}: missing")
        elif name not in expected:
            problems.append(f"{name}: not in the manifest")
        elif found[name] != expected[name]:
            problems.append(f"{name}: changed")
    return problems


def _files(folder: Path) -> Iterator[str]:
    """Relative POSIX paths of all files; a link to a folder counts as a file, unfollowed."""
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if Path(place, name).is_symlink()]
        for name in (*files, *links):
            yield Path(place, name).relative_to(folder).as_posix()


def _leaves(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
