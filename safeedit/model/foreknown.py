"""What models have answered to prompts, in memory: drafts for what other models will answer.

An edited model mostly says what the base said, an attacked one what the edited one did. Answers are
those of erased items too, so that nothing here is ever written anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from safeedit.errors import UsageError

Ids = tuple[int, ...]

_KEPT = 3
"""Answers to one prompt: the first, which is the base's, and the latest."""


@dataclass(frozen=True)
class ForeknownAnswers:
    """Answers by prompt."""

    _answers: dict[Ids, list[Ids]] = field(default_factory=dict, repr=False)

    def learn(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> None:
        """Remember what was answered."""
        for prompt, answer in zip(prompts, answers, strict=True):
            known, new = self._answers.setdefault(tuple(prompt), []), tuple(answer)
            if new in known[1:]:
                known.remove(new)
            if new not in known:
                known.append(new)
            if len(known) > _KEPT:
                del known[1]

    def drafts(
        self,
        prompts: Sequence[Sequence[int]],
        given: Sequence[Sequence[Sequence[int]]] | None = None,
    ) -> list[list[Sequence[int]]]:
        """Of each prompt, the different answers that are known, the latest first, and those given.

        Raises:
            UsageError: There are more prompts than are given any, or fewer.
        """
        if given is None:
            given = [()] * len(prompts)
        if len(given) != len(prompts):
            raise UsageError("prompts and drafts must be equally many")
        return [
            [*reversed(self._answers.get(tuple(prompt), [])), *more]
            for prompt, more in zip(prompts, given, strict=True)
        ]
