"""The sha256 of every file of an export, in the format of ``sha256sum``.

Anybody can check an export without safeedit: ``sha256sum -c evidence/manifest.sha256`` in
its folder. The files that could undo the edit (the original tensors, the deltas) may be
left out of a copy that is passed on; every other missing, changed or added file is a
problem, and so is whatever is no plain file. A manifest shows that nothing was damaged, not who
wrote it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from safeedit.export.disk import EVIDENCE, open_plain, read_plain, writing

MANIFEST = f"{EVIDENCE}/manifest.sha256"
UNDO = f"{EVIDENCE}/undo.safetensors"
DELTA = f"{EVIDENCE}/delta-{{id}}.safetensors"
LEDGER = f"{EVIDENCE}/ledger.jsonl"
RECORD = f"{EVIDENCE}/report.json"
CARD = "README.md"
SIGNATURE = "model.sig"
CLAIMS = "claims.jsonl"
UNLISTED = (MANIFEST, SIGNATURE, CLAIMS)
"""What is written after the manifest: itself, and who says so (:mod:`safeedit.export.signing`)."""
BOM = f"{EVIDENCE}/bom.cdx.json"
_REPORTS = ("report.html", "report.md", "junit.xml", "report.sarif")
RENDERED = (*(f"{EVIDENCE}/{name}" for name in _REPORTS), BOM, CARD)
"""What is drawn from the record alone."""
PLANTED = f"{EVIDENCE}/planted.json"
"""What a checkpoint with planted canaries says of itself, in place of a run record."""

MAY_BE_WITHHELD = (UNDO, DELTA.format(id="*"))
"""What a published copy should leave out: with these the edit can be taken back."""

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def hash_files(folder: Path, leave_out: Collection[str] = UNLISTED) -> dict[str, str]:
    """Relative path -> sha256 in hex of every file below ``folder`` but those left out.

    Raises:
        OSError: A file can't be read.
    """
    names = sorted(name for name in _entries(folder)[0] if name not in leave_out)
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
    try:
        lines = read_plain(folder / MANIFEST).decode().splitlines()
    except (FileNotFoundError, NotADirectoryError):
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


def not_plain(folder: Path) -> list[str]:
    """What below a folder is neither a plain file nor a folder (links, pipes, devices ...) or
    can't be looked into, a line each; nothing of it is opened."""
    _, others = _entries(folder)
    return [f"{_shown(name)}: {why}" for name, why in sorted(others.items())]


def verify_manifest(folder: Path) -> list[str]:
    """What differs between a folder and its manifest, a line each; empty if nothing does."""
    if strange := not_plain(folder):
        return strange
    expected, problems = read_manifest(folder)
    if not expected:
        return problems or [f"{MANIFEST}: empty"]
    try:
        found = hash_files(folder)
    except OSError as error:
        return [*problems, f"{error.filename or folder}: not readable: {error.strerror}"]
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            if not any(fnmatchcase(name, pattern) for pattern in MAY_BE_WITHHELD):
                problems.append(f"{_shown(name)}: missing")
        elif name not in expected:
            problems.append(f"{_shown(name)}: not in the manifest")
        elif found[name] != expected[name]:
            problems.append(f"{_shown(name)}: changed")
    return problems


def check_ours(folder: Path) -> str:
    """Why a folder may not be replaced as an export of safeedit's; empty if it may.

    It has a manifest that can be read, a record that is the manifest's, and no file that the
    manifest doesn't list. Weights are not read: that they are whole doesn't matter here.
    """
    files, others = _entries(folder)
    if others:
        return f"{_shown(min(others))} is no plain file"
    listed, problems = read_manifest(folder)
    if problems or not listed:
        return "it has no manifest that can be read"
    if not any(_is_record(folder, name, listed) for name in (RECORD, PLANTED)):
        return "it has no run record that is its manifest's"
    unlisted = sorted(set(files) - listed.keys() - set(UNLISTED))
    return f"its manifest does not list {_shown(unlisted[0])}" if unlisted else ""


def _is_record(folder: Path, name: str, listed: Mapping[str, str]) -> bool:
    """Whether the file is a record of ours, of whatever version, and the one that was listed."""
    try:
        content = read_plain(folder / name)
        record = json.loads(content)
    except (OSError, ValueError, RecursionError):
        return False
    known = {RECORD: {"schema_version", "run_id", "export"}, PLANTED: {"version", "safeedit"}}
    return (
        isinstance(record, dict)
        and known[name] <= record.keys()
        and hashlib.sha256(content).hexdigest() == listed.get(name)
    )


def _entries(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Relative POSIX paths of the plain files below a folder, and, path -> why not, of what is
    neither such a file nor a folder. No link is followed."""
    files: list[str] = []
    others: dict[str, str] = {}

    def look(path: Path) -> None:
        try:
            with os.scandir(path) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            others[path.relative_to(folder).as_posix()] = f"not readable: {error.strerror}"
            return
        for entry in found:
            place = Path(entry.path)
            name = place.relative_to(folder).as_posix()
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                look(place)
            elif stat.S_ISREG(mode):
                files.append(name)
            else:
                others[name] = "not a plain file"

    look(folder)
    return files, others


def _shown(name: str) -> str:
    """A name of somebody else's, safe on a terminal."""
    return "".join(c if c.isprintable() else "?" for c in name)


def _leaves(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts


def _sha256(path: Path) -> str:
    with open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
