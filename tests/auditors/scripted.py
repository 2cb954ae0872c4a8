"""A model that says what a test tells it to, for tests of what auditors make of answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch

from safeedit.model.engine import TokenScores

VOCAB = 50


@dataclass(frozen=True)
class Asked:
    """One prompt as it reached the engine."""

    text: str
    template: str
    prefix: str
    system: str | None = None


@dataclass
class ScriptedEngine:
    """Speaks the engine's language; a token is a character."""

    say: Callable[[Asked, int], str]
    rank: Callable[[str, str], Sequence[float]] = lambda text, answer: [1.0] * len(answer)
    distribution: Callable[[str, int], torch.Tensor] = lambda text, position: torch.full(
        (VOCAB,), 1 / VOCAB
    ).log()
    asked: list[Asked] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    limits: list[list[int]] = field(default_factory=list)
    """Of each call of :meth:`generate`, the tokens wanted of each prompt."""
    context: int = 1 << 30

    def encode(
        self,
        texts: Sequence[str],
        template: str = "auto",
        *,
        system: str | None = None,
        answer_prefix: str = "",
    ) -> list[list[int]]:
        ids = []
        for text in texts:
            prompt = Asked(text, template, answer_prefix, system)
            if prompt not in self.asked:
                self.asked.append(prompt)
            ids.append([self.asked.index(prompt)])
        return ids

    def continuation(self, text: str, template: str = "auto") -> list[int]:
        return [ord(c) for c in text]

    def continuations(self, texts: Sequence[str], template: str = "auto") -> list[list[int]]:
        return [self.continuation(text, template) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int | Sequence[int],
        sampling: Any = None,
        samples: int = 1,
        **rest: Any,
    ) -> list[list[list[int]]]:
        self.calls.append("greedy" if sampling is None else "sampled")
        if isinstance(max_new_tokens, int):
            max_new_tokens = [max_new_tokens] * len(prompts)
        self.limits.append(list(max_new_tokens))
        return [
            [
                [ord(c) for c in self.say(self.asked[ids[0]], sample)][:most]
                for sample in range(samples)
            ]
            for ids, most in zip(prompts, max_new_tokens, strict=True)
        ]

    def score(
        self,
        prompts: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[int]],
        **rest: Any,
    ) -> list[TokenScores]:
        self.calls.append("score")
        found = []
        for ids, continuation in zip(prompts, continuations, strict=True):
            ranks = torch.tensor(
                list(self.rank(self.asked[ids[0]].text, self.decode(continuation)))
            )
            found.append(TokenScores(log_probs=-ranks.log() - 0.5, greedy=ranks == 1, ranks=ranks))
        return found

    def distributions(
        self,
        prompts: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[int]],
        read: Callable[[int, range, torch.Tensor], torch.Tensor],
        *,
        max_positions: int | None = None,
        **rest: Any,
    ) -> Iterator[tuple[int, torch.Tensor]]:
        # Backwards, since the engine may yield in any order, and in parts of one position.
        for index in reversed(range(len(prompts))):
            text = self.asked[prompts[index][0]].text
            positions = len(continuations[index][:max_positions])
            parts = [
                read(index, range(p, p + 1), self.distribution(text, p)[None])
                for p in range(positions)
            ]
            yield index, torch.cat(parts)

    @property
    def model(self) -> Any:
        """What auditors take for a ModelHandle."""
        return SimpleNamespace(engine=self)
