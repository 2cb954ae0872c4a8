"""Which items tell the same thing, and count as one.

Twelve rewordings of one fact are one fact: a gate that asks for ten items is not met by them, and
an interval over them is as wide as over one. Items are taken together where they have

- the same prompt, marks and case aside;
- the same subject, by any of its names, and a spelling of the answer in common;
- the same answer, no subject, and no other numbers in the prompt: of data to be erased always, of
  other data where the prompts share half of their words;
- no answer (prose, open questions), and texts that are near-copies of each other: seven tenths of
  their pairs of neighbouring words in common (Jaccard; candidates by MinHash, Broder 1997).

Point estimates are over all items; what this decides are ``n``, intervals and tests.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence

import numpy as np

from safeedit.data.items import Item
from safeedit.data.splitting import normalise_prompt

NEAR = 0.7
"""Jaccard similarity of the word pairs of near-copies."""
ALIKE = 0.5
"""Jaccard similarity of the words of prompts with one answer."""

_BANDS, _ROWS = 32, 4
"""Near-copies at 0.7 are candidates with probability 0.9998, texts at 0.3 with 0.23."""
_PRIME = (1 << 61) - 1


def together(keys: Sequence[str], items: Sequence[Item], *, erased: bool) -> dict[str, str]:
    """Key of each item -> key of the first item it is one with; its own where it stands alone.

    Args:
        keys: ``(n,)`` digests that stand for the items.
        items: ``(n,)``.
        erased: The data is to be erased.
    """
    union = _Union(len(items))
    for bucket in _buckets(items, erased=erased).values():
        for other in bucket[1:]:
            union.join(bucket[0], other)
    if not erased:
        _join_alike(union, items)
    open_ = [index for index, item in enumerate(items) if not item.aliases]
    for first, second in near_copies([items[index].prompt for index in open_]):
        union.join(open_[first], open_[second])
    return {key: keys[union.root(index)] for index, key in enumerate(keys)}


def near_copies(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Pairs of texts that are near-copies; enough of them to connect all that are."""
    shingles = [_shingles(text) for text in texts]
    first: dict[tuple[int, bytes], list[int]] = {}
    for index, some in enumerate(shingles):
        tried: set[int] = set()
        for band in _bands(some):
            bucket = first.setdefault(band, [])
            for other in bucket:
                if other not in tried:
                    tried.add(other)
                    if _jaccard(some, shingles[other]) >= NEAR:
                        yield other, index
                        break
            else:
                bucket.append(index)


class _Union:
    """Disjoint sets of numbers; the least of a set stands for it."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def root(self, index: int) -> int:
        while self._parent[index] != index:
            self._parent[index] = self._parent[self._parent[index]]
            index = self._parent[index]
        return index

    def join(self, first: int, second: int) -> None:
        a, b = sorted((self.root(first), self.root(second)))
        self._parent[b] = a


def _buckets(items: Sequence[Item], *, erased: bool) -> dict[Hashable, list[int]]:
    """Items that are one for having something in common, by what they have in common."""
    found: dict[Hashable, list[int]] = {}
    for index, item in enumerate(items):
        for each in marks(item, erased=erased):
            found.setdefault(each, []).append(index)
    return found


def marks(item: Item, *, erased: bool) -> list[Hashable]:
    """What an item tells, as marks: two that have one in common tell the same thing.

    Args:
        item: Of any data.
        erased: It is to be erased.
    """
    found: list[Hashable] = [("prompt", normalise_prompt(item.prompt))]
    if item.subject:
        names = {normalise_prompt(name) for name in item.names}
        answers = {normalise_prompt(each) for each in item.aliases}
        found += [("fact", *pair) for pair in itertools.product(sorted(names), sorted(answers))]
    elif erased and item.answer:
        found.append(("answer", normalise_prompt(item.answer), _numbers(item.prompt)))
    return found


def _join_alike(union: _Union, items: Sequence[Item]) -> None:
    """Join items of one answer and no subject whose prompts share half of their words."""
    of_answer: dict[Hashable, list[int]] = {}
    for index, item in enumerate(items):
        if item.answer and not item.subject:
            known = (normalise_prompt(item.answer), _numbers(item.prompt))
            of_answer.setdefault(known, []).append(index)
    for bucket in of_answer.values():
        kept: list[tuple[int, frozenset[str]]] = []
        for index in bucket:
            words = frozenset(normalise_prompt(items[index].prompt).split())
            for other, theirs in kept:
                if _jaccard(words, theirs) >= ALIKE:
                    union.join(other, index)
                    break
            else:
                kept.append((index, words))


def _numbers(text: str) -> tuple[str, ...]:
    """Entry 12 and entry 13 are two, though all else they say is the same."""
    return tuple(re.findall(r"\d+", text))


def _shingles(text: str) -> frozenset[str]:
    """Pairs of neighbouring words; of unspaced text and single words, pairs of letters."""
    words: Sequence[str] = normalise_prompt(text).split()
    if len(words) < 3:
        words = normalise_prompt(text).replace(" ", "")
    return frozenset(f"{a} {b}" for a, b in itertools.pairwise(words)) or frozenset(words)


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    whole = len(one | other)
    return len(one & other) / whole if whole else 1.0


_RANDOM = np.random.default_rng(0)
_SLOPES = _RANDOM.integers(1, 1 << 31, _BANDS * _ROWS, dtype=np.uint64)
_OFFSETS = _RANDOM.integers(0, 1 << 31, _BANDS * _ROWS, dtype=np.uint64)


def _bands(shingles: frozenset[str]) -> Iterator[tuple[int, bytes]]:
    """MinHash signatures, a few numbers at a time."""
    if not shingles:
        yield 0, b""
        return
    hashed = np.array(
        [int.from_bytes(hashlib.blake2b(s.encode(errors="surrogatepass"), digest_size=4).digest())
         for s in shingles], dtype=np.uint64,
    )  # fmt: skip
    least = ((hashed[:, None] * _SLOPES + _OFFSETS) % np.uint64(_PRIME)).min(axis=0)
    for band in range(_BANDS):
        yield band, least[band * _ROWS : (band + 1) * _ROWS].tobytes()


def composed(
    items: Mapping[str, object], groups: Mapping[str, str] | None, one_of: Mapping[str, str]
) -> dict[str, str] | None:
    """Groups of measured units where some of what they were grouped by is one thing.

    Args:
        items: Key of each unit -> its value.
        groups: Unit -> the item it belongs to; None where units are items.
        one_of: From :func:`together`.

    Returns:
        Unit -> its group; None where every unit stands alone.
    """
    if groups is not None and items.keys() - groups.keys():
        return dict(groups)  # refused by whoever makes the metric
    own = {key: groups[key] if groups is not None else key for key in items}
    found = {key: one_of.get(group, group) for key, group in own.items()}
    alone = groups is None and len(set(found.values())) == len(found)
    return None if alone else found
