"""From a data source named in a policy to a checked :class:`Dataset`.

Rows are read (:mod:`~safeedit.data.reading`), renamed and chosen
(:mod:`~safeedit.data.columns`), checked (:mod:`~safeedit.data.checks`) and divided
(:mod:`~safeedit.data.items`).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from safeedit.data.checks import SHARED, CheckedRow, check_rows, read_item, shared_paraphrases
from safeedit.data.columns import Renaming, Selection, row_error
from safeedit.data.formats import Format, find_format
from safeedit.data.hub import read_hub
from safeedit.data.items import Dataset, Item, group_of
from safeedit.data.reading import RawRow, read_file
from safeedit.data.splitting import normalise_prompt
from safeedit.errors import DataError
from safeedit.policy import DataSpec
from safeedit.policy.builtin import dataset_path

if TYPE_CHECKING:
    from safeedit.contracts import DataRole
    from safeedit.records import Split

UNREADABLE = "rows left out: they can't be read"
NOT_APART = "rows left out: 'exclude' has them too"


def load_dataset(
    spec: DataSpec,
    base: Path = Path(),
    role: DataRole | None = None,
    seed: int = 0,
    *,
    key: bytes | None = None,
) -> Dataset:
    """Read, check and divide one source of data.

    Args:
        spec: The source, as the policy names it.
        base: The folder that a relative ``spec.file`` starts from.
        role: What the data is for; where it is to be erased, splits are taken over
            phrasings.
        seed: Of the automatic split and of the choice that ``limit`` makes.
        key: Of the data set's digest, where the data is to be erased or comes from a file.

    Raises:
        DataError: The source is missing, empty, malformed or contradicts itself.
    """
    counted: Counter[str] = Counter()
    records = read_records(spec, base, counted)
    notes = [f"{text}: {count}" for text, count in counted.items()]
    return build_dataset(records, spec, role, seed=seed, notes=notes, key=key)


def with_defaults(
    roles: Iterable[DataRole], given: Mapping[str, Dataset], seed: int = 0
) -> dict[str, Dataset]:
    """Data by role, with the built-in data set of every role that has one and was given none.

    Raises:
        DataError: A built-in data set is missing or damaged.
    """
    found = dict(given)
    for role in roles:
        if role.default is not None and role.name not in found:
            found[role.name] = load_dataset(role.default, role=role, seed=seed)
    return found


def read_records(
    spec: DataSpec, base: Path = Path(), counted: Counter[str] | None = None
) -> list[CheckedRow]:
    """The rows of one source, and of those it names in ``additional_sources``, each checked on its
    own.

    Args:
        spec: The source.
        base: The folder that a relative ``spec.file`` starts from.
        counted: Is told how many rows ``exclude`` and ``on_error: drop`` left out; without it
            none may be unreadable.

    Raises:
        DataError: The source is missing or empty, a row is malformed, or ``exclude`` has all.
    """
    records = _apart(spec, base, counted)
    for number, other in enumerate(spec.additional_sources, start=2):
        for record in _apart(other, base, counted):
            item = replace(record.item, id=f"{number}-{record.item.id}")
            if other.split is not None:
                item = replace(item, split=other.split)
            records.append(replace(record, item=item))
    return records


def _apart(spec: DataSpec, base: Path, counted: Counter[str] | None) -> list[CheckedRow]:
    """The rows of one source that ``where`` chooses and ``exclude`` leaves."""
    format_ = _format(spec)
    path, files = _locate(spec, base, format_)
    records = _read(spec, path, files, format_, counted)
    if spec.exclude is None:
        return records
    others = set(_likenesses(read_records(spec.exclude, base, Counter()), spec.group))
    kept = [
        record
        for record, own in zip(records, _likenesses(records, spec.group), strict=True)
        if own not in others
    ]
    if not kept:
        raise DataError(
            "no row is left: the source named in 'exclude' has them all",
            field="exclude", remedy="name another source, or leave 'exclude' out",
        )  # fmt: skip
    if counted is not None and len(kept) < len(records):
        counted[NOT_APART] += len(records) - len(kept)
    return kept


def _likenesses(records: Sequence[CheckedRow], group: str | None) -> list[str]:
    """What makes a row the same as one of another source: its group, or its prompt."""
    return [
        normalise_prompt((group_of(record.item, group) if group else None) or record.item.prompt)
        for record in records
    ]


def build_dataset(
    records: Sequence[CheckedRow],
    spec: DataSpec,
    role: DataRole | None = None,
    *,
    seed: int = 0,
    notes: Iterable[str] = (),
    key: bytes | None = None,
) -> Dataset:
    """Check rows of one source against each other and divide them; as :func:`load_dataset`.

    Args:
        records: From :func:`read_records`.
        spec: Their source.
        role: What the data is for.
        seed: Of the automatic split and of the choice that ``limit`` makes.
        notes: Further notes for a reader of the figures.
        key: Of the data set's digest, where the data is to be erased or comes from a file.

    Raises:
        DataError: Rows contradict each other.
    """
    erased = role is not None and role.erased
    published = any(_format(each) is not None for each in (spec, *spec.additional_sources))
    notes = tuple(notes)
    records, counted = check_rows(records, published=published, erased=erased, forced=spec.split)
    items = [record.item for record in records]
    if spec.group is not None:
        _check_groups(records, spec.group, erased=erased, forced=spec.split)
    if spec.limit is not None and len(items) > spec.limit:
        items = items[: spec.limit] if spec.stream else _limited(items, spec.limit, seed)

    def divided() -> Dataset:
        said = [*notes, *(f"{text}: {count}" for text, count in counted.items())]
        return _divided(items, spec, erased=erased, seed=seed, notes=said, key=key)

    dataset = divided()
    while shared := shared_paraphrases(dataset, records, published=published):
        fewer = [_without(item, shared.get(item.id, set())) for item in items]
        if fewer == items:  # only templates are shared: nothing of the data can go
            break
        items = fewer
        counted[SHARED] += sum(map(len, shared.values()))
        dataset = divided()
    return dataset


def _divided(
    items: Sequence[Item],
    spec: DataSpec,
    *,
    erased: bool,
    seed: int,
    notes: Sequence[str],
    key: bytes | None,
) -> Dataset:
    """Items of a source in their splits."""
    return Dataset(
        items,
        name=spec.dataset or (Path(spec.file).stem if spec.file else spec.hub or ""),
        source=spec.label,
        template=spec.template,
        erased=erased,
        seed=seed,
        split=spec.split,
        group=spec.group,
        notes=notes,
        # What a file holds nobody knows but its owner; it may repeat what is to be erased.
        private=any(each.file is not None for each in (spec, *spec.additional_sources)),
        key=key,
    )


def _check_groups(
    records: Sequence[CheckedRow], group: str, *, erased: bool, forced: Split | None
) -> None:
    """See that every row has a group, and that rows' own splits keep each group whole."""
    if erased:
        raise DataError(
            "data to be erased is divided by phrasing: every item takes part everywhere",
            field="group", remedy="leave 'group' out",
        )  # fmt: skip
    first: dict[str, CheckedRow] = {}
    for record in records:
        name = group_of(record.item, group)
        if name is None:
            raise row_error(
                record.row, f"has no {group!r} to be grouped by", field="group",
                remedy="name a column that every row has, with text in it",
            )  # fmt: skip
        other = first.setdefault(name, record)
        if forced is None and other.item.split != record.item.split:
            raise row_error(
                record.row,
                f"is in another split than {other.row.place}, and both are of one group",
                field="split",
                remedy="what is tested must not be fitted: keep a group in one split",
            )


def _format(spec: DataSpec) -> Format | None:
    return None if spec.format == "auto" else find_format(spec.format)


def _without(item: Item, texts: Set[str]) -> Item:
    kept = tuple(text for text in item.paraphrases if text not in texts)
    return replace(item, paraphrases=kept)


_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def _named(file: str) -> Path:
    """The path that a policy names, ``${NAME}`` replaced by the environment's variable."""

    def value(found: re.Match[str]) -> str:
        text = os.environ.get(found[1])
        if not text:
            raise DataError(
                f"the path of this data holds a variable, {found[1]}, that is not set",
                field="file",
                remedy=f"set {found[1]} to the folder that holds the data, or write the path out",
            )
        return text

    return Path(_VARIABLE.sub(value, file)).expanduser()


def _locate(
    spec: DataSpec, base: Path, format_: Format | None
) -> tuple[Path | None, Mapping[Path | None, str | None]]:
    """The source's path (None: the hub), and its files with the split each one is."""
    if spec.hub is not None:
        return None, {None: None}
    path = dataset_path(spec.dataset) if spec.dataset else base / _named(spec.file or "")
    files = format_.files(path) if format_ is not None and format_.files is not None else {}
    return path, files or {path: None}


def _read(
    spec: DataSpec,
    path: Path | None,
    files: Mapping[Path | None, str | None],
    format_: Format | None,
    counted: Counter[str] | None,
) -> list[CheckedRow]:
    """The chosen rows of all files, as items; unreadable ones are counted, if they may be."""
    renamed, selection = Renaming(spec, format_), Selection(spec, path)
    records: list[CheckedRow] = []
    for file, split in files.items():
        rows = _rows(spec, file, format_)
        if format_ is not None and format_.rows is not None:
            rows = format_.rows(rows)
        prefix = f"{file.stem}-" if file is not None and len(files) > 1 else ""
        for row in rows:
            try:
                columns = renamed(row)
                if split is not None:
                    columns.setdefault("split", split)
                if selection.keeps(columns, row):
                    renamed.require_prompt(columns, row)
                    records.append(read_item(row, renamed.filled(columns, row), prefix))
                    if spec.stream and spec.limit is not None and len(records) >= spec.limit:
                        break
            except DataError:
                if counted is None or spec.on_error == "stop":
                    raise
                counted[UNREADABLE] += 1
    selection.check(len(records))
    renamed.check()
    if counted is not None:
        counted.update(+renamed.noted)
    return records


def _rows(spec: DataSpec, file: Path | None, format_: Format | None) -> Iterator[RawRow]:
    if file is None:
        return read_hub(spec)
    if format_ is not None and format_.read is not None:
        return format_.read(file, spec)
    return read_file(file, spec)


def _limited(items: Sequence[Item], limit: int, seed: int) -> list[Item]:
    """A seeded choice that does not depend on the order of the rows; order is kept."""
    ranked = sorted(
        range(len(items)),
        key=lambda i: hashlib.sha256(f"limit\0{seed}\0{items[i].prompt}".encode()).digest(),
    )
    chosen = set(ranked[:limit])
    return [item for index, item in enumerate(items) if index in chosen]
