"""Every error that safeedit raises on purpose, in one tree.

::

    SafeeditError                 exit 3   anything of ours
    ├── PolicyError (ValueError)  exit 2   the policy says something that can't be done
    ├── DataError   (ValueError)  exit 2   a data source is missing, malformed or contradicts itself
    ├── UsageError  (ValueError)  exit 2   a command or function was called wrongly
    ├── ModelError                exit 3   a model can't be fetched, opened or trusted
    │   └── UnsupportedModelError          its architecture or storage is one we refuse to edit
    ├── EditError                 exit 3   an editor failed, or touched what it must not
    ├── AuditError                exit 3   a measurement could not be made
    ├── EngineError               exit 3   workers can't be had, reached or started
    └── ExportError (OSError)     exit 3   the checkpoint could not be written whole

An error says where (``file:line:column``, field), what is wrong, and the remedy. It
never quotes data: records named for erasure appear as line numbers or digests.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar


class SafeeditError(Exception):
    """Base of the tree.

    Args:
        message: What is wrong, in one sentence, without quoting data.
        remedy: What the user can do about it.
        file: The file at fault.
        line: 1-based line in ``file``.
        column: 1-based column in ``file``.
        field: Dotted path of the field at fault, e.g. ``gates[0].metric``.
    """

    exit_code: ClassVar[int] = 3

    def __init__(
        self,
        message: str,
        *,
        remedy: str = "",
        file: str | Path | None = None,
        line: int | None = None,
        column: int | None = None,
        field: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.file = str(file) if file is not None else None
        self.line = line
        self.column = column
        self.field = field

    @property
    def location(self) -> str:
        """``file:line:column``, as far as known."""
        parts = [self.file or ""]
        if self.line is not None:
            parts.append(str(self.line))
            if self.column is not None:
                parts.append(str(self.column))
        return ":".join(parts) if self.file or self.line is not None else ""

    def __str__(self) -> str:
        where = ": ".join(part for part in (self.location, self.field) if part)
        text = f"{where}: {self.message}" if where else self.message
        return f"{text}\n  remedy: {self.remedy}" if self.remedy else text


class PolicyError(SafeeditError, ValueError):
    """The policy is malformed, names what does not exist, or contradicts itself."""

    exit_code = 2


class DataError(SafeeditError, ValueError):
    """A data source is missing, empty, malformed, overlapping or self-contradictory."""

    exit_code = 2


class UsageError(SafeeditError, ValueError):
    """A command or a public function was called with arguments that make no sense."""

    exit_code = 2


class ModelError(SafeeditError):
    """A model could not be fetched, opened, verified or run."""


class UnsupportedModelError(ModelError, ValueError):
    """The model's architecture or storage format is one safeedit refuses to edit."""


class EditError(SafeeditError):
    """An editor failed, or changed something it must not change."""


class AuditError(SafeeditError):
    """A measurement could not be made."""


class EngineError(SafeeditError):
    """Workers of an engine can't be had: none answers, or they can't open the model."""


class ExportError(SafeeditError, OSError):
    """The edited checkpoint could not be written whole; nothing was promoted."""


@contextmanager
def naming(what: str) -> Iterator[None]:
    """What is raised within says first what it was about."""
    try:
        yield
    except SafeeditError as error:
        error.message = f"{what}: {error.message}"
        raise
