"""From named columns to items, and what rows may not do to each other.

A blank alias would be found in every answer; a repeated prompt with two answers can't be
judged; a prompt in two splits makes a test of what was fitted. All are refused, by line
number. Published files have such faults and can't be mended at their source: there the first
row counts, and the data set's notes say how many were left out.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from safeedit.data.cells import check_list, check_text
from safeedit.data.columns import OUR_COLUMNS, TEXT_COLUMNS, row_error
from safeedit.data.formats import HELD_OUT
from safeedit.data.items import Dataset, Item, Phrasing
from safeedit.data.names import read_names
from safeedit.data.reading import RawRow
from safeedit.data.splitting import SPLITS, normalise_prompt
from safeedit.data.tables import LIST_COLUMNS
from safeedit.errors import DataError
from safeedit.records import Split

REPEATED = "rows that repeat an earlier one, counted once"
CONTRADICTING = "rows left out: an earlier one has the same prompt and another answer"
OVERLAPPING = "rows left out: the same prompt is in an earlier split"
SHARED = "paraphrases left out: another item has the same in another split"


@dataclass(frozen=True)
class CheckedRow:
    """An item and the row it was read from."""

    row: RawRow
    item: Item
    named: bool
    """True where the row brought its own id."""


def read_item(row: RawRow, columns: Mapping[str, Any], id_prefix: str = "") -> CheckedRow:
    """One item, its columns checked.

    Args:
        row: Where the columns come from.
        columns: Under our names, with a prompt.
        id_prefix: Goes before ids made of line numbers, to part several files.

    Raises:
        DataError: A column has the wrong type, is blank, or names no split.
    """
    named = "id" in columns
    identity = columns.get("id", f"{id_prefix}{row.line or row.number}")
    if isinstance(identity, int) and not isinstance(identity, bool):
        identity = str(identity)
    columns = {**columns, "id": identity}
    for name in TEXT_COLUMNS:
        if name in columns:
            check_text(row, name, columns[name])
    for name in LIST_COLUMNS:
        check_list(row, name, columns.get(name, []))
    prompt: str = columns["prompt"]
    answer: str | None = columns.get("answer")
    aliases: list[str] = list(columns.get("aliases", []))
    item = Item(
        id=columns["id"],
        prompt=prompt,
        answer=answer,
        aliases=tuple(dict.fromkeys(aliases if answer is None else [answer, *aliases])),
        paraphrases=_distinct(prompt, columns.get("paraphrases", [])),
        subject=columns.get("subject"),
        split=_split(row, prompt, columns.get("split")),
        extra={name: value for name, value in columns.items() if name not in OUR_COLUMNS},
    )
    return CheckedRow(row, read_names(row, item, columns), named)


def _split(row: RawRow, prompt: str, value: Any) -> Split | None:
    if value is None:
        return None
    if value == HELD_OUT:
        even = hashlib.sha256(normalise_prompt(prompt).encode()).digest()[0] % 2 == 0
        return "validation" if even else "test"
    for split in SPLITS:
        if value == split:
            return split
    raise row_error(
        row,
        "has a split that does not exist",
        field="split",
        remedy=f"one of {', '.join(SPLITS)}; 'columns' maps another column's name",
    )


def _distinct(prompt: str, paraphrases: Iterable[str]) -> tuple[str, ...]:
    """Paraphrases that are not the prompt, nor each other, in another spelling."""
    seen = {normalise_prompt(prompt)}
    kept = []
    for text in paraphrases:
        key = normalise_prompt(text)
        if key not in seen:
            seen.add(key)
            kept.append(text)
    return tuple(kept)


def check_rows(
    records: Sequence[CheckedRow], *, published: bool, erased: bool, forced: Split | None
) -> tuple[list[CheckedRow], Counter[str]]:
    """Records without repeats, contradictions and overlaps, and how many were left out.

    Args:
        records: In order; the first of several counts.
        published: Leave faulty rows out, counted, instead of refusing them.
        erased: The items are to be forgotten: a row's split fit pins nothing.
        forced: The split that all rows get, whatever they say.

    Raises:
        DataError: With the line numbers of both rows.
    """
    if not erased and forced is None:
        _check_all_or_none(records)
    taken = _Taken(published=published, erased=erased, forced=forced)
    for record in records:
        taken.add(record)
    return list(taken.by_prompt.values()), taken.notes


class _Taken:
    """Rows taken so far, none of which repeats, contradicts or overlaps another; arguments as
    :func:`check_rows`."""

    def __init__(self, *, published: bool, erased: bool, forced: Split | None) -> None:
        self.notes: Counter[str] = Counter()
        self.by_prompt: dict[str, CheckedRow] = {}
        self._by_spelling: dict[str, CheckedRow] = {}
        self._by_id: dict[str, CheckedRow] = {}
        self._published, self._erased, self._forced = published, erased, forced

    def add(self, record: CheckedRow) -> None:
        """Take a row, or leave it out where an earlier one forbids it."""
        item, prompt = record.item, _prompt_key(record.item.prompt)
        twin = self.by_prompt.get(prompt)
        if twin is not None and not _agree(twin.item, item):
            self._leave_out(
                CONTRADICTING, twin, record, "the same prompt has another answer",
                "keep one of the two rows, or list both answers under 'aliases'",
            )  # fmt: skip
            return
        other = self._by_spelling.setdefault(normalise_prompt(item.prompt), record)
        if self._split_of(other.item) != self._split_of(item):
            self._leave_out(
                OVERLAPPING, other, record, "the same prompt is in two splits",
                "what is tested must not be fitted: keep one of the two rows",
            )  # fmt: skip
            return
        if twin is not None:
            self.notes[REPEATED] += 1
            self.by_prompt[prompt] = replace(twin, item=_merged(twin.item, item))
            return
        self.by_prompt[prompt] = self._with_own_id(record)

    def _split_of(self, item: Item) -> Split | None:
        return None if self._forced or (self._erased and item.split == "fit") else item.split

    def _leave_out(
        self, note: str, first: CheckedRow, second: CheckedRow, message: str, remedy: str
    ) -> None:
        """Count a faulty row of published data; any other is refused."""
        if not self._published:
            raise _pair_error(first, second, message, remedy)
        self.notes[note] += 1

    def _with_own_id(self, record: CheckedRow) -> CheckedRow:
        """The row under an id that no other has."""
        wanted = record.item.id
        namesake = self._by_id.get(wanted)
        if namesake is not None:
            if record.named and namesake.named and not self._published:
                raise _pair_error(namesake, record, "the same id is used", "give each its own id")
            record = replace(record, item=replace(record.item, id=_free_id(wanted, self._by_id)))
        self._by_id[record.item.id] = record
        return record


def shared_paraphrases(
    dataset: Dataset, records: Sequence[CheckedRow], *, published: bool
) -> dict[str, set[str]]:
    """Paraphrases that another item brings into another split.

    Returns:
        Item id -> its paraphrases that must go, in published data; empty where all is well.

    Raises:
        DataError: In other data, with the line numbers of both rows.
    """
    place = {record.item.id: record for record in records}
    owner: dict[str, tuple[Split, Phrasing]] = {}
    shared: dict[str, set[str]] = {}
    for split in SPLITS:
        for phrasing in dataset.phrasings(split):
            key = normalise_prompt(phrasing.text)
            first_split, first = owner.setdefault(key, (split, phrasing))
            if first_split == split:
                continue
            if not published:
                raise _pair_error(
                    place[first.item.id], place[phrasing.item.id],
                    f"the same phrasing is in {first_split} and in {split}",
                    "reword a paraphrase, or change the order of the paraphrases",
                )  # fmt: skip
            # Two prompts are never alike (check_rows), so one of the two is a paraphrase.
            loser = phrasing if phrasing.text != phrasing.item.prompt else first
            shared.setdefault(loser.item.id, set()).add(loser.text)
    return shared


def _prompt_key(prompt: str) -> str:
    """Spelling aside, but marks kept: ``2-3`` and ``2+3`` are different questions."""
    return " ".join(prompt.casefold().split())


def _agree(first: Item, second: Item) -> bool:
    if first.answer is None or second.answer is None:
        return first.answer is second.answer
    one = {_prompt_key(alias) for alias in first.aliases}
    two = {_prompt_key(alias) for alias in second.aliases}
    return _prompt_key(first.answer) in two or _prompt_key(second.answer) in one


def _merged(first: Item, second: Item) -> Item:
    """The first item with the second's further aliases, paraphrases, names and questions."""
    return replace(
        first,
        aliases=tuple(dict.fromkeys([*first.aliases, *second.aliases])),
        paraphrases=_distinct(first.prompt, [*first.paraphrases, *second.paraphrases]),
        subject_aliases=tuple(dict.fromkeys([*first.subject_aliases, *second.subject_aliases])),
        descriptions=tuple(dict.fromkeys([*first.descriptions, *second.descriptions])),
        reverse_questions=tuple(
            dict.fromkeys([*first.reverse_questions, *second.reverse_questions])
        ),
        translations=tuple(dict.fromkeys([*first.translations, *second.translations])),
    )


def _free_id(wanted: str, taken: Mapping[str, CheckedRow]) -> str:
    number = 2
    while f"{wanted}-{number}" in taken:
        number += 1
    return f"{wanted}-{number}"


def _check_all_or_none(records: Sequence[CheckedRow]) -> None:
    with_split = next((r for r in records if r.item.split is not None), None)
    without = next((r for r in records if r.item.split is None), None)
    if with_split is not None and without is not None:
        raise row_error(
            without.row,
            f"has no split, but {with_split.row.place} has one",
            field="split",
            remedy="give every row a split, or none, or force one with 'split' in the policy",
        )


def _pair_error(first: CheckedRow, second: CheckedRow, message: str, remedy: str) -> DataError:
    return DataError(
        f"{message}: {first.row.place} and {second.row.place}",
        file=second.row.file,
        line=second.row.line,
        remedy=remedy,
    )
