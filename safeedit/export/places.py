"""Where outputs may go, known while planning: names the system can hold, and never into a
checkpoint.

A checkpoint's folder (a source model, an export with its evidence) is what was measured: a file
written into it later makes its digests, its manifest or the next run's identity untrue. So no
command writes into one, however the path is spelt: through links, in another case, at any depth.

Fails with :class:`~safeedit.errors.UsageError`.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from safeedit.errors import ExportError, UsageError
from safeedit.export.disk import EVIDENCE
from safeedit.export.manifest import MANIFEST

_BESIDE = len(".") + len(".replaced-01234567")
"""Bytes that hidden folders beside an output add to its name; ``.report`` and others are fewer."""
_NAME_MAX, _PATH_MAX = 255, 4096
"""Where the system doesn't say."""
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


def usable(path: Path | str, field: str = "") -> Path:
    """A path as the system can hold it, made absolute, ``~`` resolved; no link is followed.

    Args:
        path: As the user wrote it.
        field: The option or field that names it.

    Raises:
        UsageError: It names the home of nobody, or holds a NUL, a name too long or characters
            that are no text.
    """
    text = os.fspath(path)
    if "\0" in text:
        raise UsageError("the path holds a NUL", field=field, remedy="write it without")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(
            "the path holds bytes that are no text", field=field, remedy="choose another name"
        ) from None
    try:
        expanded = Path(text).expanduser()
    except RuntimeError:
        raise UsageError(
            f"there is no home folder for {_quoted(text.partition('/')[0])}",
            field=field,
            remedy="write the folder out, or ./~name for a folder of that name",
        ) from None
    found = Path(os.path.normpath(Path.cwd() / expanded))
    name_max, path_max = _limits(found)
    for name in found.parts[1:]:
        room = name_max - (_BESIDE if name == found.name else 0)
        if len(os.fsencode(name)) > room:
            raise UsageError(
                f"the name {_quoted(name[:20])}... has {len(os.fsencode(name))} bytes, and "
                f"{room} fit here",
                field=field,
                remedy="choose a shorter name",
            )
    if len(os.fsencode(found)) > path_max - name_max:
        raise UsageError(
            f"the path has {len(os.fsencode(found))} bytes; {path_max - name_max} leave room for "
            "what lies in it",
            field=field,
            remedy="choose a shorter one",
        )
    return found


def check_output(path: Path | str, field: str = "", what: str = "an output") -> Path:
    """Make sure that something may be written at ``path``; creates nothing.

    Args:
        path: A file or folder to be written.
        field: The option or field that names it.
        what: What is to be written, for the message.

    Returns:
        The path, as :func:`usable` gives it.

    Raises:
        UsageError: As :func:`usable`, or it lies in a checkpoint.
    """
    found = usable(path, field)
    real = Path(os.path.realpath(found))
    for folder in (found, *found.parents, real, *real.parents):
        if kind := _checkpoint(folder):
            raise UsageError(
                f"{what} would be written into {kind}: {folder}",
                field=field,
                remedy="choose a place outside it",
            )
    return found


def check_folder(path: Path | str, field: str = "", what: str = "an output") -> Path:
    """As :func:`check_output`, of a folder to be made or filled: that it can be, too.

    Raises:
        UsageError: As :func:`check_output`; a part of the path is a file, or may not be written.
    """
    found = check_output(path, field, what)
    there = next(place for place in (found, *found.parents) if os.path.lexists(place))
    if not there.is_dir():
        why, remedy = "is a file", "choose another folder"
    elif not os.access(there, os.W_OK | os.X_OK):
        why, remedy = "may not be written to", "choose a folder you may write to"
    else:
        return found
    raise UsageError(f"{what} can't be written: {there} {why}", field=field, remedy=remedy)


def check_apart(
    path: Path | str, other: Path, field: str = "", what: str = "an output", name: str = "the model"
) -> None:
    """Make sure that ``path`` is not, and does not lie in, ``other``, which need not exist yet.

    Args:
        path: A file or folder to be written.
        other: A folder or file that is to stay as it is.
        field: The option or field that names ``path``.
        what: What is to be written, for the message.
        name: What ``other`` is.

    Raises:
        UsageError: It does.
    """
    if within(usable(path, field), other):
        raise UsageError(
            f"{what} would be written into {name}: {other}",
            field=field,
            remedy="choose a place outside it",
        )


def within(path: Path, folder: Path) -> bool:
    """Whether ``path`` is ``folder`` or lies in it, links resolved; where names differ in case
    or in how accents are written, they count as one unless the disk tells two."""
    inner, outer = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    depth = len(outer.parts)
    if len(inner.parts) < depth:
        return _same_by_link(inner, outer)
    same = [_folded(part) for part in inner.parts[:depth]] == [_folded(p) for p in outer.parts]
    there = Path(*inner.parts[:depth])
    if same and _there(there) and _there(outer):
        same = there.samefile(outer)
    return same or _same_by_link(inner, outer)


def _same_by_link(inner: Path, outer: Path) -> bool:
    """Whether a folder above ``inner`` is ``outer`` under another name (a bind mount)."""
    if not _there(outer):
        return False
    return any(_there(place) and place.samefile(outer) for place in (inner, *inner.parents))


def _there(path: Path) -> bool:
    """Whether something is there, as far as this user may see."""
    try:
        return path.exists()
    except OSError:
        return False


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _checkpoint(folder: Path) -> str:
    """What kind of checkpoint a folder is; empty if none."""
    record = folder.name == EVIDENCE and _there(folder / "report.json")
    if record or _there(folder / MANIFEST):
        return "an export, whose evidence would no longer be true of it"
    if _there(folder / "config.json") and any(_there(folder / name) for name in _WEIGHTS):
        return "the folder of a model"
    return ""


def _limits(path: Path) -> tuple[int, int]:
    """Greatest lengths of a name and of a path, in bytes, where ``path`` is to be."""
    for folder in _existing(path):
        try:
            return os.pathconf(folder, "PC_NAME_MAX"), os.pathconf(folder, "PC_PATH_MAX")
        except (OSError, ValueError):
            break
    return _NAME_MAX, _PATH_MAX


def _existing(path: Path) -> Iterator[Path]:
    yield from (folder for folder in path.parents if _there(folder) and folder.is_dir())


def free_bytes(path: Path) -> int:
    """Bytes free to this user on the disk where ``path`` is to be."""
    found = os.statvfs(next(_existing(path)))
    return found.f_bavail * found.f_frsize


def check_room(path: Path, n_bytes: int) -> None:
    """Refuse before any work what would fail after all of it.

    Args:
        path: The export's folder.
        n_bytes: What it is going to take, estimated.

    Raises:
        ExportError: Less is free on that disk.
    """
    free = free_bytes(path)
    if n_bytes > free:
        raise ExportError(
            f"the export needs about {n_bytes / 1e9:.2f} GB and {free / 1e9:.2f} GB are free",
            file=path,
            remedy="free some space on that disk, or export to another one",
        )


def _quoted(text: str) -> str:
    return repr("".join(c if c.isprintable() else "?" for c in text))
