"""Items, the ways of asking them, and data sets divided into fit, validation and test.

How items are divided is told in :mod:`safeedit.data.splitting`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from safeedit.data.splitting import SPLITS, automatic_split, divide, normalise_prompt, shown
from safeedit.errors import UsageError
from safeedit.policy import Template
from safeedit.records import Split

_OWN_KEY = secrets.token_bytes(32)
"""Of the digests of private data for which no key was given: they hold for this process alone."""


@dataclass(frozen=True)
class Translation:
    """An item's question in another language."""

    language: str
    """A code such as ``de`` or ``pt-BR``."""
    prompt: str
    aliases: tuple[str, ...] = ()
    """Spellings of the answer in that language; the item's own count as well."""


@dataclass(frozen=True)
class Item:
    """One thing to ask, to forget, to keep, or (prose) to read."""

    id: str
    """From the row, else the row's line number."""
    prompt: str
    """The question or opening; for prose, the text itself."""
    answer: str | None = None
    """None where there is none, nor an alias to take for it."""
    aliases: tuple[str, ...] = ()
    """Every spelling of the answer that counts; begins with ``answer`` if there is one."""
    paraphrases: tuple[str, ...] = ()
    """Other ways of asking the same, none equal to the prompt."""
    subject: str | None = None
    """What the question is about, as its wordings write it."""
    subject_aliases: tuple[str, ...] = ()
    """Other names of the subject, none equal to it. Of these and the next three columns, the
    second half (the greater one) of an item to be erased is for the test alone: no editor sees it,
    and no dose is chosen by it."""
    descriptions: tuple[str, ...] = ()
    """Phrases that can stand in the subject's place in a question, as in ``the country whose
    capital is Oslo``; they hold neither the subject nor the row's own answer."""
    reverse_questions: tuple[str, ...] = ()
    """Questions the other way round: the right answer to them is the subject."""
    translations: tuple[Translation, ...] = ()
    """The question in other languages: a map such as ``{"de": "..."}``, or ``{"de": {"prompt":
    "...", "aliases": ["..."]}}`` where the answer is spelt otherwise there."""
    split: Split | None = None
    """As the row says; None leaves the choice to the data set."""
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """The row's other columns: role, relation, label ..."""

    def __post_init__(self) -> None:
        # Spellings of an answer without an answer: the first of them is it.
        answer = self.answer if self.answer is not None else next(iter(self.aliases), None)
        if answer is not None:
            object.__setattr__(self, "answer", answer)
            object.__setattr__(self, "aliases", tuple(dict.fromkeys((answer, *self.aliases))))

    @property
    def names(self) -> tuple[str, ...]:
        """All names of the subject, as its wordings write it first; empty where it has none."""
        own = () if self.subject is None else (self.subject,)
        return tuple(dict.fromkeys((*own, *self.subject_aliases)))

    def without_test_names(self) -> Item:
        """The item with those of its names, descriptions, reverse questions and translations that
        are not for the test alone."""
        return replace(
            self,
            subject_aliases=shown(self.subject_aliases),
            descriptions=shown(self.descriptions),
            reverse_questions=shown(self.reverse_questions),
            translations=shown(self.translations),
        )


@dataclass(frozen=True)
class Phrasing:
    """One way of asking one item."""

    item: Item
    text: str
    seen: bool
    """True where it belongs to the fit split: an editor may have learnt from it."""


class Dataset:
    """Items divided into splits; immutable.

    Args:
        items: The items, in order.
        name: Short name for records.
        source: Where they come from, for records.
        template: How prompts are put to the model.
        erased: The items are to be forgotten: divide phrasings, not items. Of the splits
            on their rows only validation and test count (the item then takes part in that
            split alone); a row marked fit takes part everywhere.
        seed: Of the automatic split.
        split: Puts everything in one split, whatever the rows say.
        group: Column whose equal values stay together where the split is automatic; every item
            has it.
        notes: What a reader of the figures should know about this data; never content.
        private: The items are nobody else's business: the digest is keyed. Data to be erased
            always is.
        key: Of the digest of private data; without one it holds for this process alone.
    """

    __slots__ = (
        "_hidden", "_items", "_items_of", "_phrasings_of",
        "digest", "erased", "name", "notes", "source", "template",
    )  # fmt: skip

    name: str
    source: str
    template: Template
    erased: bool
    digest: str
    """Over all that decides what is measured: items in any order (without their ids), their
    splits, the template. Equal digests mean equal measurements. Of public data it is a sha256; of
    private data an HMAC-SHA256, since one item with a short answer could be found from a bare hash
    by trying every answer."""
    notes: tuple[str, ...]

    def __init__(
        self,
        items: Iterable[Item],
        *,
        name: str = "items",
        source: str = "memory",
        template: Template = "auto",
        erased: bool = False,
        seed: int = 0,
        split: Split | None = None,
        group: str | None = None,
        notes: Iterable[str] = (),
        private: bool = False,
        key: bytes | None = None,
    ) -> None:
        everything = tuple(items)
        assigned = _assign(everything, erased=erased, seed=seed, forced=split, group=group)
        members: dict[Split, list[Item]] = {name: [] for name in SPLITS}
        asked: dict[Split, list[Phrasing]] = {name: [] for name in SPLITS}
        for item, own in zip(everything, assigned, strict=True):
            for name_ in SPLITS if own is None else (own,):
                members[name_].append(item)
            for name_, texts in divide(item.prompt, item.paraphrases, own, erased=erased).items():
                asked[name_].extend(Phrasing(item, text, name_ == "fit") for text in texts)
        self._set(
            _items=everything,
            _items_of={name: tuple(found) for name, found in members.items()},
            _phrasings_of={name: tuple(found) for name, found in asked.items()},
            _hidden=frozenset(),
            name=name,
            source=source,
            template=template,
            erased=erased,
            notes=tuple(notes),
            digest=_digest(
                everything, assigned, template, erased,
                key=(key or _OWN_KEY) if private or erased else None,
            ),
        )  # fmt: skip

    def _set(self, **values: object) -> None:
        for key, value in values.items():
            object.__setattr__(self, key, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Dataset is immutable: {name} can't be set")

    def __getstate__(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__slots__}

    def __setstate__(self, state: dict[str, object]) -> None:
        self._set(**state)  # on its way to a worker nothing of it changes

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    def __repr__(self) -> str:
        # Never the items: a repr ends up in logs and tracebacks.
        return f"Dataset({self.name!r}, {len(self)} items, {self.digest[:12]})"

    def all(self) -> tuple[Item, ...]:
        """Every item, in order."""
        return self._items

    def items(self, split: Split) -> tuple[Item, ...]:
        """The items that take part in a split.

        Raises:
            UsageError: There is no such split, or it is hidden (:meth:`without`).
        """
        self._check(split)
        return self._items_of[split]

    def phrasings(self, split: Split) -> tuple[Phrasing, ...]:
        """The ways of asking that belong to a split.

        Of an item to be erased with p >= 3 paraphrases, the last third of them is for the
        test, the third before for validation, and the rest and the prompt for fitting;
        with fewer, templates that no other split uses are added. Ordinary items bring all
        their phrasings into their own split.

        Raises:
            UsageError: There is no such split, or it is hidden (:meth:`without`).
        """
        self._check(split)
        return self._phrasings_of[split]

    def counts(self) -> dict[str, int]:
        """How many items there are, in all and in each split, and how many phrasings."""
        counts = {"items": len(self)}
        for split in SPLITS:
            counts[split] = len(self._items_of[split])
        for split in SPLITS:
            counts[f"{split}_phrasings"] = len(self._phrasings_of[split])
        return counts

    def only(self, wanted: Callable[[Item], bool]) -> Dataset:
        """The items of which ``wanted`` is true, in the splits that they have; itself where that
        is so of all. Its digest follows from the whole's and from which items these are."""
        kept = {id(item) for item in self._items if wanted(item)}
        if len(kept) == len(self._items):
            return self
        places = [n for n, item in enumerate(self._items) if id(item) in kept]
        view = object.__new__(Dataset)
        view._set(
            _items=tuple(item for item in self._items if id(item) in kept),
            _items_of={
                name: tuple(item for item in found if id(item) in kept)
                for name, found in self._items_of.items()
            },
            _phrasings_of={
                name: tuple(each for each in found if id(each.item) in kept)
                for name, found in self._phrasings_of.items()
            },
            digest=hashlib.sha256(f"{self.digest} {places}".encode()).hexdigest(),
            **{key: getattr(self, key) for key in
               ("_hidden", "name", "source", "template", "erased", "notes")},
        )  # fmt: skip
        return view

    def without(self, split: Split) -> Dataset:
        """The same data set with one split out of reach, as an editor sees it.

        Items that are only in that split are gone, and the items that remain have lost the
        paraphrases that belong to it, and items to be erased, without the test, also the names and
        questions that are for the test alone. Name and digest stay: it is the same data.
        """
        self._check(split)
        gone = {id(item) for item in self._items_of[split]}
        for other in SPLITS:
            if other != split:
                gone -= {id(item) for item in self._items_of[other]}
        secret: dict[int, set[str]] = {}
        for phrasing in self._phrasings_of[split]:
            secret.setdefault(id(phrasing.item), set()).add(phrasing.text)
        kept = {
            id(item): replace(
                item.without_test_names() if self.erased and split == "test" else item,
                paraphrases=tuple(
                    text for text in item.paraphrases if text not in secret.get(id(item), ())
                ),
            )
            for item in self._items
            if id(item) not in gone
        }
        view = object.__new__(Dataset)
        view._set(
            _items=tuple(kept.values()),
            _items_of={
                name: () if name == split else tuple(kept[id(item)] for item in found)
                for name, found in self._items_of.items()
            },
            _phrasings_of={
                name: ()
                if name == split
                else tuple(replace(phrasing, item=kept[id(phrasing.item)]) for phrasing in found)
                for name, found in self._phrasings_of.items()
            },
            _hidden=self._hidden | {split},
            **{key: getattr(self, key) for key in
               ("name", "source", "template", "erased", "notes", "digest")},
        )  # fmt: skip
        return view

    _items: tuple[Item, ...]
    _items_of: dict[Split, tuple[Item, ...]]
    _phrasings_of: dict[Split, tuple[Phrasing, ...]]
    _hidden: frozenset[Split]

    def _check(self, split: Split) -> None:
        if split not in SPLITS:
            raise UsageError(f"there is no split {split!r}", remedy=f"one of {', '.join(SPLITS)}")
        if split in self._hidden:
            raise UsageError(
                f"the {split} split of {self.name} is out of reach here",
                remedy="editors fit on 'fit' and choose on 'validation'",
            )


def group_of(item: Item, column: str) -> str | None:
    """The group an item belongs to by one of its columns; None where it has no text there."""
    value = {"subject": item.subject, "answer": item.answer}.get(column, item.extra.get(column))
    return value if isinstance(value, str) and value.strip() else None


def _assign(
    items: Sequence[Item],
    *,
    erased: bool,
    seed: int,
    forced: Split | None,
    group: str | None,
) -> tuple[Split | None, ...]:
    """The split of each item; None where it takes part in all of them."""
    if forced is not None:
        return (forced,) * len(items)
    if erased:
        return tuple(None if item.split == "fit" else item.split for item in items)
    if any(item.split is not None for item in items):
        # A row without a split beside rows that have one: load_dataset refuses that; items
        # made in memory are taken as free to fit on.
        return tuple(item.split or "fit" for item in items)
    keys = [item.prompt if group is None else group_of(item, group) or "" for item in items]
    chosen = automatic_split(keys, seed)
    return tuple(chosen[normalise_prompt(key)] for key in keys)


def _digest(
    items: Sequence[Item],
    assigned: Sequence[Split | None],
    template: Template,
    erased: bool,
    *,
    key: bytes | None,
) -> str:
    rows = sorted(
        json.dumps(
            {
                "prompt": item.prompt,
                "answer": item.answer,
                "aliases": sorted(item.aliases),
                "paraphrases": item.paraphrases,
                "subject": item.subject,
                "extra": item.extra,
                "split": split,
                **_further(item),
            },
            sort_keys=True,
            ensure_ascii=False,
            default=str,
        )
        for item, split in zip(items, assigned, strict=True)
    )
    head = json.dumps({"template": template, "erased": erased})
    content = "\n".join([head, *rows]).encode(errors="surrogatepass")
    if key is None:
        return hashlib.sha256(content).hexdigest()
    return hmac.new(key, b"safeedit data set 1\0" + content, hashlib.sha256).hexdigest()


def _further(item: Item) -> dict[str, Any]:
    """The columns that most data lacks, of which it needs no trace in its digest."""
    found = {
        "subject_aliases": item.subject_aliases,
        "descriptions": item.descriptions,
        "reverse_questions": item.reverse_questions,
        "translations": [[t.language, t.prompt, sorted(t.aliases)] for t in item.translations],
    }
    return {name: value for name, value in found.items() if value}
