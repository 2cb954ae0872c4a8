"""Questions after worked examples, as the few-shot attack of the audit ``leakage`` puts them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from safeedit.auditors._reference import stable_order
from safeedit.data import Dataset, Item
from safeedit.text.matching import contains_alias


def worked_examples(
    items: Sequence[Item],
    asked: Collection[str],
    shots: Dataset | None,
    generic: Sequence[tuple[str, str]],
    count: int,
) -> list[tuple[str, str]]:
    """Questions and answers that ask for none of the items and give none of their answers away.

    Args:
        items: What the attack is after.
        asked: Every question that is put about them.
        shots: Examples of the policy, which stand in for the generic ones.
        generic: Examples for policies that bring none.
        count: At most so many.
    """
    if shots is not None:
        answers = {item.prompt: item.answer for item in shots}
        generic = [(text, answer) for text in stable_order(answers) if (answer := answers[text])]

    def harmless() -> Iterator[tuple[str, str]]:
        for question, answer in generic:
            text = f"{question} {answer}"
            tells = any(contains_alias(text, item.aliases) for item in items)
            if question not in asked and not tells:
                yield question, answer

    return [example for example, _ in zip(harmless(), range(count), strict=False)]


def wrapped(texts: Sequence[str], examples: Sequence[tuple[str, str]] = ()) -> list[str]:
    """Each question as one to be answered, after the examples."""
    opening = "".join(f"Q: {question}\nA: {answer}\n\n" for question, answer in examples)
    return [f"{opening}Q: {text}\nA:" for text in texts]
