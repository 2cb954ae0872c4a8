"""How much of a text a model has by heart: memorisation accuracy and extraction likelihood.

Both are of an answer that follows a prompt. *Memorisation accuracy* (MA) is the share of its tokens
that the model would have chosen itself, given those before. *Extraction likelihood* EL_n is the
share of n-grams of a greedy continuation that stand in the true rest, mean over every prefix of the
answer that leaves n tokens or more. A continuation from a prefix follows the answer up to the first
token that the model would not have chosen, so only from there on is anything generated.

Two things differ from the publication: prefixes leave n tokens at least, rather than n + 1, since
answers are short; and what is divided by is the number of n-grams said, as in its equation, not its
code.

Source: Jang et al., "Knowledge Unlearning", ACL 2023 (arXiv 2210.01504), equation 1; MA after
Tirumala et al. 2022 (arXiv 2205.10770).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from safeedit.contracts import Progress, silent
from safeedit.methods.tuning import Example
from safeedit.model.engine import Engine


@dataclass(frozen=True)
class Memorised:
    """Means over texts.

    Attributes:
        accuracy: MA, in [0, 1].
        likelihood: EL_n, in [0, 1]; None where no answer has n tokens.
        n: Of EL_n.
    """

    accuracy: float
    likelihood: float | None
    n: int

    def within(self, bound: Memorised) -> bool:
        """Whether no more is known by heart than ``bound`` says, in both measures; one that either
        side lacks is not looked at."""
        if self.accuracy > bound.accuracy:
            return False
        both = self.likelihood, bound.likelihood
        return both[0] is None or both[1] is None or both[0] <= both[1]


def memorised(
    engine: Engine,
    texts: Sequence[Example],
    n: int,
    progress: Progress = silent,
    description: str = "reading what is known by heart",
) -> Memorised:
    """MA and EL_n of a model, means over texts.

    Args:
        engine: Of the model as it is now.
        texts: Prompts, and answers of a token at least.
        n: Of EL_n.
        progress: Shown per text and continuation.
        description: For ``progress``.

    Raises:
        AuditError: A text is longer than the model's context.
    """
    scores = engine.score(
        [text.prompt for text in texts],
        [text.answer for text in texts],
        progress=progress,
        description=description,
    )
    greedy = [score.greedy.tolist() for score in scores]
    found = extraction_likelihoods(
        engine, texts, greedy, n, progress=progress, description=description
    )
    return Memorised(
        sum(sum(each) / len(each) for each in greedy) / len(texts),
        sum(found.values()) / len(found) if found else None,
        n,
    )


def extraction_likelihoods(
    engine: Engine,
    texts: Sequence[Example],
    greedy: Sequence[Sequence[bool]],
    n: int,
    *,
    said: Sequence[Sequence[int]] | None = None,
    progress: Progress = silent,
    description: str = "continuing from prefixes",
) -> dict[int, float]:
    """Place of each text whose answer has n tokens -> its EL_n.

    Args:
        engine: Of the model.
        texts: Prompts with their true answers.
        greedy: Of each answer, whether each token is the one that the model would have chosen.
        n: Of EL_n.
        said: How the model goes on from each prompt, as many tokens as the answer has at least, if
            that is known.
        progress: Shown per continuation.
        description: For ``progress``.

    Raises:
        AuditError: A text is longer than the model's context.
    """
    misses = [_first_misses(each, n) for each in greedy]
    jobs = [
        (index, miss)
        for index, found in enumerate(misses)
        for miss in sorted(set(found))
        if miss < len(texts[index].answer) and (miss or said is None)
    ]
    rests = engine.generate(
        [[*texts[index].prompt, *texts[index].answer[:miss]] for index, miss in jobs],
        max_new_tokens=[len(texts[index].answer) - miss for index, miss in jobs],
        progress=progress,
        description=description,
    )
    continued = {job: out[0] for job, out in zip(jobs, rests, strict=True)}
    if said is not None:
        continued |= {(index, 0): list(each) for index, each in enumerate(said)}
    found = {}
    for index, text in enumerate(texts):
        true, overlaps = list(text.answer), []
        for start, miss in enumerate(misses[index]):
            continuation = [*true[start:miss], *continued.get((index, miss), [])]
            overlaps.append(_overlap(continuation[: len(true) - start], true[start:], n))
        if overlaps:
            found[index] = sum(overlaps) / len(overlaps)
    return found


def _first_misses(greedy: Sequence[bool], n: int) -> list[int]:
    """For each prefix that leaves n tokens or more, the first token after it that the model
    would not have chosen; the answer's length where there is none."""
    misses = [len(greedy)] * (len(greedy) + 1)
    for position in reversed(range(len(greedy))):
        misses[position] = misses[position + 1] if greedy[position] else position
    return misses[: max(0, len(greedy) - n + 1)]


def _overlap(said: Sequence[int], true: Sequence[int], n: int) -> float:
    """Share of the n-grams said that the true rest holds; 0 where nothing that long was said."""
    there = set(_grams(true, n))
    grams = list(_grams(said, n))
    return sum(gram in there for gram in grams) / len(grams) if grams else 0.0


def _grams(ids: Sequence[int], n: int) -> Iterator[tuple[int, ...]]:
    return (tuple(ids[i : i + n]) for i in range(len(ids) - n + 1))
