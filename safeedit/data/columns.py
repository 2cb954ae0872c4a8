"""Rows under our column names, and the choice of rows that ``where`` makes.

Messages may name columns and, of a few columns that name kinds of rows (``role`` ...), the
values that exist. They never show other values: those may be what has to be erased.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from safeedit.data.formats import FORMATS, Format, evident_format
from safeedit.data.items import Item
from safeedit.data.reading import RawRow, UnreadableRow
from safeedit.data.subjects import fill_braces
from safeedit.data.tables import LIST_COLUMNS, MAP_COLUMNS
from safeedit.errors import DataError
from safeedit.policy import DataSpec
from safeedit.policy.suggest import did_you_mean

TEXT_COLUMNS = ("id", "prompt", "answer", "subject", "split")
OUR_COLUMNS = (*TEXT_COLUMNS, *LIST_COLUMNS, *MAP_COLUMNS)
"""The columns that mean something to us; all others are kept in ``Item.extra``."""
_SPELT = frozenset(
    {*OUR_COLUMNS, "text", "role", "question", "choices", "instruction", "input", "output",
     "messages", "conversations"}
)  # fmt: skip
"""Columns that are known in any case, as spreadsheets begin a heading with a capital."""

FILLED_BRACES = "rows whose prompt had {} for the subject, which was put there"
SYSTEM_LEFT = "rows with a system message, which is not asked"

PLACEHOLDER = "{subject}"
"""Stands for the row's subject in a file of our own columns."""
FILLED: tuple[str, ...] = ("prompt", "paraphrases")
"""Columns in which it counts."""

KIND_COLUMNS = frozenset(
    {
        "role", "split", "type", "kind", "label", "category", "language", "level",
        "relation", "challenging", "final_label",
    }
)  # fmt: skip
"""Columns whose values name kinds of rows and may be shown in a message."""
_KIND_VALUE = re.compile(r"[\w.\-]{1,30}")
_MAX_KINDS = 12
_MISSING = object()


def row_error(
    row: RawRow, message: str, *, path: Path | None = None, field: str = "", remedy: str = ""
) -> DataError:
    """A DataError at a row: by its line, or by its number where lines say nothing."""
    text = message if row.line is not None else f"row {row.number} {message}"
    return DataError(text, file=row.file or path, line=row.line, field=field, remedy=remedy)


def lookup(columns: Mapping[str, Any], name: str) -> Any:
    """A column, or (``answer.value``) a field inside one; ``_MISSING`` where there is none."""
    if name in columns:
        return columns[name]
    value: Any = columns
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _MISSING
        value = value[part]
    return value


def suggest_column(name: str, columns: Iterable[str], file: Path | None) -> str:
    """The columns that exist, or the nearest of them.

    A CSV file without header makes columns of its first record, so of CSV columns only
    those are shown that resemble what was asked for.
    """
    remedy = did_you_mean(name, columns)
    if _is_table(file) and not remedy.startswith("did you mean"):
        return "check the names in the file's first line"
    return remedy


class Renaming:
    """From a source's columns to ours: a published format, then the spec's ``columns``."""

    def __init__(self, spec: DataSpec, format_: Format | None) -> None:
        self.spec = spec
        self.format = format_
        self._unseen = set(spec.columns)
        self._last: RawRow | None = None
        self.noted: Counter[str] = Counter()
        """What was done to rows that a reader of the figures should know -> to how many."""

    def __call__(self, row: RawRow) -> dict[str, Any]:
        """The row's columns under our names; columns without value are left out.

        Raises:
            DataError: The row is not of the format.
        """
        self._last = row
        columns = self._formatted(row)
        found = {ours: lookup(row.columns, theirs) for ours, theirs in self.spec.columns.items()}
        for theirs in self.spec.columns.values():
            columns.pop(theirs, None)
        for ours, value in found.items():
            if value is not _MISSING:
                self._unseen.discard(ours)
                if value is not None:
                    columns[ours] = value
        return _with_listed_answers(columns)

    def require_prompt(self, columns: Mapping[str, Any], row: RawRow) -> None:
        """Raises DataError where a chosen row has no prompt."""
        if "prompt" not in columns:
            raise self._no_prompt(row)

    def filled(self, columns: dict[str, Any], row: RawRow) -> dict[str, Any]:
        """A chosen row with its subject in place of :data:`PLACEHOLDER`, or of the ``{}`` of
        ROME's and EasyEdit's requests.

        Rows of published formats and prose stay as they are, whatever braces they hold.

        Raises:
            DataError: There is a placeholder and no subject.
        """
        if self.format is not None or self._evident(row) or self._is_prose(self._spelt(row)):
            return columns
        found = {name: columns[name] for name in FILLED if name in columns}
        subject = columns.get("subject")
        named = isinstance(subject, str) and bool(subject.strip())
        if not any(PLACEHOLDER in text for text in _texts(found)):
            if not named or not any("{}" in text for text in _texts(found)):
                return columns
            filled = {name: _each(fill_braces, value, subject) for name, value in found.items()}
            self.noted[FILLED_BRACES] += filled != found
            return columns | filled
        if not named:
            raise row_error(
                row,
                f"has the placeholder {PLACEHOLDER} and no subject to put there",
                field="subject",
                remedy="give the row a 'subject', or write the name in its prompt",
            )
        return columns | {name: _each(_placed, value, subject) for name, value in found.items()}

    def check(self) -> None:
        """Raises DataError where a column that ``columns`` names was in no row."""
        for ours in sorted(self._unseen):
            row = self._last
            if row is not None:
                theirs = self.spec.columns[ours]
                raise DataError(
                    f"no row has a column {theirs!r}",
                    file=row.file,
                    field=f"columns.{ours}",
                    remedy=suggest_column(theirs, row.columns, row.file),
                )

    def _formatted(self, row: RawRow) -> dict[str, Any]:
        format_ = self.format or self._evident(row)
        if format_ is None:
            columns = self._spelt(row)
            if self._is_prose(columns):
                columns["prompt"] = columns.pop("text")  # prose: {id, text}
            return columns
        try:
            made = format_.convert(row.columns if self.format else self._spelt(row))
        except UnreadableRow as error:
            raise row_error(row, error.message, field=error.field, remedy=error.remedy) from None
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            missing = f": no column {error.args[0]!r}" if type(error) is KeyError else ""
            raise row_error(
                row,
                f"is not of the format {format_.name}{missing}",
                field="format",
                remedy=f"{format_.name} is {format_.summary}",
            ) from None
        self.noted[SYSTEM_LEFT] += format_.name == "chat" and "system" in made
        return {name: value for name, value in made.items() if value is not None}

    def _evident(self, row: RawRow) -> Format | None:
        """The format that a row shows by itself, where neither it nor the prompt was named."""
        if self.format is not None or "prompt" in self.spec.columns:
            return None
        return evident_format(self._spelt(row))

    def _spelt(self, row: RawRow) -> dict[str, Any]:
        """A row's filled columns, ours in lower case unless ``columns`` names them as they are."""
        named = self.spec.columns.values()
        found: dict[str, Any] = {}
        for name, value in row.columns.items():
            ours = name.strip().casefold()
            known = ours in _SPELT and ours not in row.columns and name not in named
            if value is not None:
                found[ours if known else name] = value
        return found

    def _is_prose(self, columns: Mapping[str, Any]) -> bool:
        """Whether a row of our own columns is {id, text}."""
        named = "prompt" in self.spec.columns or columns.get("prompt") is not None
        return not named and columns.get("text") is not None

    def _no_prompt(self, row: RawRow) -> DataError:
        theirs = self.spec.columns.get("prompt")
        if theirs is not None:
            return row_error(
                row,
                f"has no column {theirs!r}",
                field="columns.prompt",
                remedy=suggest_column(theirs, row.columns, row.file),
            )
        return row_error(row, "has no prompt", field="prompt", remedy=_advice(row))


def _texts(columns: Mapping[str, Any]) -> Iterable[str]:
    for value in columns.values():
        yield from (text for text in (value if isinstance(value, list) else [value])
                    if isinstance(text, str))  # fmt: skip


def _each(change: Callable[[str, str], str], value: Any, subject: Any) -> Any:
    """A column's text, or each of its texts, changed by a subject."""
    if isinstance(value, list):
        return [_each(change, each, subject) for each in value]
    return change(value, subject) if isinstance(value, str) else value


def _placed(text: str, subject: str) -> str:
    return text.replace(PLACEHOLDER, subject)


def _with_listed_answers(columns: dict[str, Any]) -> dict[str, Any]:
    """Several answers are spellings of one: the first is the answer, all count."""
    given = columns.get("answer", columns.get("answers"))
    aliases = columns.get("aliases", [])
    if not isinstance(given, list) or not given or not isinstance(aliases, list):
        return columns
    if not all(isinstance(each, str) for each in given):
        return columns
    rest = {name: value for name, value in columns.items() if name != "answers"}
    return rest | {"answer": given[0], "aliases": [*given[1:], *aliases]}


def _advice(row: RawRow) -> str:
    """What may turn a row without prompt into one with: a format, a delimiter, or a column."""
    names = row.columns.keys()
    if found := format_hint(names):
        return found
    if found := _called(("question", "input", "instruction", "query", "src"), names):
        return f"map it: columns: {{prompt: {found}}}"
    if len(names) == 1 and any(mark in next(iter(names)) for mark in ";\t|"):
        return "the first line has another delimiter than commas: put 'sep=;' above it, say"
    table = ", and the first line of a table must name its columns" * _is_table(row.file)
    return f"every row needs a prompt (or, for prose, a text); 'columns' maps other names{table}"


def _is_table(file: Path | None) -> bool:
    return file is not None and bool({".csv", ".tsv"} & {each.lower() for each in file.suffixes})


def _called(wanted: Iterable[str], names: Iterable[str]) -> str:
    """The first of some names that stands among others in any case, as it stands there."""
    there = {name.strip().casefold(): name for name in names}
    return next((there[name] for name in wanted if name in there), "")


def format_hint(names: Iterable[str]) -> str:
    """The published formats that columns of these names may be in, as a remedy; or nothing."""
    present = frozenset(names)
    shown = {
        f.name: max((len(sign) for sign in f.signatures if sign <= present), default=0)
        for f in FORMATS.values()
    }
    # Where several fit, the one that more columns speak for.
    fits = [name for name, size in shown.items() if size and size == max(shown.values())]
    return f"is it in a published format? format: {' or '.join(fits)}" if fits else ""


_ANSWERS = (
    "ground_truth", "target", "target_true", "answers", "output", "completion", "response",
    "label", "labels", "value", "object",
)  # fmt: skip
"""What others call the answer."""


def answer_hint(items: Iterable[Item]) -> str:
    """The remedy where items lack an answer: what their other columns look like."""
    names = {name for item in items if not item.aliases for name in item.extra}
    if found := format_hint({*names, "prompt", "subject"}) or format_hint({*names, "text"}):
        return found
    if found := _called(_ANSWERS, names):
        return f"map it: columns: {{answer: {found}}}"
    return "give every item an answer, or map a column to it with 'columns'"


class Selection:
    """``where``: which rows are kept, and a good complaint if none is."""

    def __init__(self, spec: DataSpec, path: Path | None) -> None:
        self.path = path
        self.wanted = {
            name: value if isinstance(value, list) else [value]
            for name, value in spec.where.items()
        }
        self.seen = 0
        self.columns: set[str] = set()
        self.values: dict[str, set[Any]] = {name: set() for name in self.wanted}

    def keeps(self, columns: Mapping[str, Any], row: RawRow) -> bool:
        """True where every column of ``where`` has a wanted value.

        Args:
            columns: The row under our names; its own names are looked at after them.
            row: The row as it was read.
        """
        self.seen += 1
        if not self.wanted:
            return True
        self.columns |= columns.keys() | row.columns.keys()
        keep = True
        for name, allowed in self.wanted.items():
            value = columns.get(name, _MISSING)
            if value is _MISSING:
                value = lookup(row.columns, name)
            if isinstance(value, (str, int, float, bool)):
                if len(self.values[name]) <= _MAX_KINDS:
                    self.values[name].add(value)
                keep = keep and any(_same(value, option) for option in allowed)
            else:
                keep = False
        return keep

    def check(self, kept: int) -> None:
        """Raises DataError where no row was kept."""
        if self.seen == 0:
            raise DataError(
                "holds no rows", file=self.path, remedy="name a source with at least one item"
            )
        if kept:
            return
        for name in self.wanted:
            if not self.values[name] and name not in self.columns:
                raise DataError(
                    f"no row has a column {name!r}",
                    file=self.path,
                    field=f"where.{name}",
                    remedy=suggest_column(name, self.columns, self.path),
                )
        raise DataError(
            f"none of {self.seen} rows matches the filter",
            file=self.path,
            field="where",
            remedy=self._values_there() or "loosen 'where'",
        )

    def _values_there(self) -> str:
        """The values that exist, of columns that name kinds of rows; never of others."""
        texts = []
        for name, values in self.values.items():
            shown = sorted(map(str, values))
            few = 0 < len(shown) <= _MAX_KINDS
            if name in KIND_COLUMNS and few and all(map(_KIND_VALUE.fullmatch, shown)):
                texts.append(f"{name} is one of: {', '.join(shown)}")
        return "; ".join(texts)


def _same(value: Any, wanted: Any) -> bool:
    if isinstance(value, str) and not isinstance(wanted, str):
        # CSV knows only text; a policy may say 1, 0.5 or true.
        return value.casefold() == str(wanted).casefold()
    return bool(value == wanted) and isinstance(value, bool) == isinstance(wanted, bool)
