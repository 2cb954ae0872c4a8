"""How much a text says: distinct n-grams, repetition, n-gram entropy, emptiness.

A token is a word or a mark of punctuation, case folded; scripts that write no spaces count whole
runs as words, so compare texts of one language only. All figures depend on length: compare texts
made under the same limit.

Sources: distinct-n, Li et al. 1510.03055 (per prompt over its samples, as DExperts 2105.03023
reports it); repetition, seq-rep-n of Welleck et al. 1908.04319; entropy, the fluency of KnowEdit
(2401.01286), there over nltk's tokens.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

_TOKEN = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")


def tokens(text: str) -> list[str]:
    """Words and marks of punctuation, case folded."""
    return _TOKEN.findall(text.casefold())


def is_empty(text: str) -> bool:
    """Whether a text has no letter and no digit: nothing, blanks, marks."""
    return not any(map(str.isalnum, text))


def distinct(texts: Iterable[str], n: int) -> float:
    """Distinct n-grams as a share of all n-grams in the texts; 0 where there is none."""
    every = [gram for text in texts for gram in _grams(tokens(text), n)]
    return len(set(every)) / len(every) if every else 0.0


def repetition(text: str, n: int = 4) -> float:
    """Share of a text's n-grams that repeat an earlier one; 0 where there are none."""
    grams = _grams(tokens(text), n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def n_gram_entropy(text: str) -> float:
    """``(2/3 * H2 + 4/3 * H3) / 2`` in bits, H_n the entropy of the text's n-grams.

    Rises with length; 0 for a text of less than three tokens.
    """
    words = tokens(text)
    return (_entropy(_grams(words, 2)) * 2 / 3 + _entropy(_grams(words, 3)) * 4 / 3) / 2


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _entropy(grams: Sequence[tuple[str, ...]]) -> float:
    counts = Counter(grams).values()
    return -sum(count / len(grams) * math.log2(count / len(grams)) for count in counts)
