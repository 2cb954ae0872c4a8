"""Answers written token by token, many at a time; where they are foreknown, verified instead.

Rows that are finished leave, and prompts that wait take their places, so that batches stay full: a
model reads all its weights for each token of a batch, however few rows there are.

An edited model mostly says what it said before the edit. Such a *draft* is run through it like a
prompt, some tokens at first and more as long as each is what the model would have written; from the
first that is not, the answer is written as ever. So answers do not depend on drafts, but for the
rounding of sums. That of 16-bit weights is coarse: it decides one greedy answer in sixteen, and
equal weights would no longer give equal answers. There drafts are passed over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from safeedit.errors import UsageError
from safeedit.model import batching
from safeedit.model.batching import Batcher
from safeedit.model.lanes import Lanes, Row, regrouped
from safeedit.model.likeliest import LikeliestTokens
from safeedit.model.passes import context_length, finite
from safeedit.model.sampling import Sampling, draw, uniforms
from safeedit.model.shared_prefix import SharedPrefix

if TYPE_CHECKING:
    from safeedit.model.handle import ModelHandle

_WORTH_DROPPING = 0.75
"""Share of live rows below which the finished leave: doing so copies the cache."""

_FIRST_LOOK = 4
"""Tokens of a draft that are run with the prompt; twice as many each time that they hold."""


@dataclass(eq=False)
class _Answer:
    """One that is being written.

    Attributes:
        prompt: Which.
        sample: Its number among those to the prompt.
        limit: Tokens at most.
        drafts: What it may turn out to be.
        tokens: So far; the last has not been read by the model.
        done: Whether it has ended.
    """

    prompt: int
    sample: int
    limit: int
    drafts: Sequence[Sequence[int]] = ()
    tokens: list[int] = field(default_factory=list)
    done: bool = False

    def expected(self, most: int) -> list[int]:
        """Tokens to come if a draft goes on to be right; the last within the limit follows from
        those before it."""
        have = len(self.tokens)
        for draft in self.drafts:
            if len(draft) > have and list(draft[:have]) == self.tokens:
                return list(draft[have : min(have + most, self.limit - 1)])
        return []

    def take(self, chosen: Sequence[int], drafted: Sequence[int], stop: frozenset[int]) -> int:
        """Write the model's own tokens as far as the draft was right, and the one after; how many
        of ``drafted`` were."""
        for right, token in enumerate(chosen):
            if token in stop:
                self.done = True
                return right
            self.tokens.append(token)
            self.done = len(self.tokens) >= self.limit
            if self.done or right == len(drafted) or token != drafted[right]:
                return right
        raise AssertionError("one token more is chosen than was drafted")

    def begin_again(self, *, foreknown: bool) -> None:
        """Forget what is written; ``foreknown`` makes it a draft, to be verified."""
        if foreknown:
            self.drafts = (self.tokens, *self.drafts)
        self.tokens, self.done = [], False


@dataclass(frozen=True, eq=False)
class Along:
    """Distributions to be read where drafts are run anyway.

    Attributes:
        continuations: Prompt -> what distributions are read along; the last token is never run.
        read: Given a prompt and log-probabilities ``(len(continuation), vocab)``, nats, float32.
        found: Prompt -> what was made of it, on the CPU; prompts whose drafts are not run are not
            among them.
    """

    continuations: Mapping[int, Sequence[int]]
    read: Callable[[int, Tensor], Tensor]
    found: dict[int, Tensor] = field(default_factory=dict)


_Writing = list[tuple[_Answer, Row]]
"""Answers that are being written, and what the model has read of each."""


class Generation:
    """Prompts to answer.

    Args:
        handle: The model.
        prompts: Token ids, none of them empty.
        max_new_tokens: Of all or of each; fewer where the context ends.
        drafts: Of each, answers that it may have; passed over where answers are sampled, and by
            models of 16 bits.
        along: What else is read of drafts.
        sampling: None takes the likeliest token each time.
        samples: Answers per prompt, where they are sampled; greedy ones are all the same.
        seed: An answer depends on it, its prompt's index and its own number alone.
        stop: Tokens that end an answer.

    Raises:
        UsageError: There are more numbers of tokens than prompts, or fewer.
    """

    def __init__(
        self,
        handle: ModelHandle,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int | Sequence[int],
        *,
        drafts: Sequence[Sequence[Sequence[int]]],
        along: Along | None,
        sampling: Sampling | None,
        samples: int,
        seed: int,
        stop: frozenset[int],
    ) -> None:
        self.handle, self.prompts, self.stop = handle, prompts, stop
        self.sampling, self.seed = sampling, seed
        self.greedy = sampling is None or sampling.temperature == 0
        if isinstance(max_new_tokens, int):
            max_new_tokens = [max_new_tokens] * len(prompts)
        if len(max_new_tokens) != len(prompts):
            raise UsageError("prompts and max_new_tokens must be equally many")
        self.verifies = self.greedy and handle.dtype.itemsize >= torch.float32.itemsize
        self.along = along if along is not None and self.verifies else Along({}, _nothing)
        self.longest = max(max_new_tokens, default=0)
        context = context_length(handle)
        self.answers = [
            _Answer(i, sample, min(most, context - len(prompt)), known if self.verifies else ())
            for i, (prompt, most, known) in enumerate(
                zip(prompts, max_new_tokens, drafts, strict=True)
            )
            for sample in range(1 if self.greedy else samples)
        ]
        self.prefixes = SharedPrefix.of_each(handle, prompts)
        self._likeliest = LikeliestTokens(handle) if LikeliestTokens.suit(handle) else None
        self._uniforms: dict[tuple[int, int], Tensor] = {}

    @torch.no_grad()
    def each(self, batcher: Batcher) -> Iterator[tuple[tuple[int, int], list[int]]]:
        """``((prompt, sample), new tokens)``, in any order."""
        order = self._order()
        waiting = deque(answer for answer in order if answer.limit > 0)
        yield from (((answer.prompt, answer.sample), []) for answer in order if answer.limit <= 0)
        writing: _Writing = []
        while waiting or writing:
            held = [answer for answer, _ in writing]
            joining = self._joining(waiting, held, batcher)
            at_work = [*held, *joining]
            found = batcher.attempt(
                partial(self._go_on, writing, joining),
                at_work[0].prompt,
                count=len(at_work),
                width=max(map(self._most, at_work)),
            )
            if found is None:
                writing = []
                for answer in at_work:
                    answer.begin_again(foreknown=self.verifies)
                waiting.extendleft(reversed(at_work))
                continue
            writing, ended = found
            yield from (((answer.prompt, answer.sample), answer.tokens) for answer in ended)

    def written(self, sample: int) -> int:
        """The sample that is written for this one: greedy ones are all the same."""
        return 0 if self.greedy else sample

    def _most(self, answer: _Answer) -> int:
        """Tokens that its row may come to."""
        return len(self.prompts[answer.prompt]) + answer.limit

    def _joining(
        self, waiting: deque[_Answer], held: Sequence[_Answer], batcher: Batcher
    ) -> list[_Answer]:
        """Answers that are to be begun next to those being written."""
        if not waiting:
            return []
        width = max(map(self._most, [*held, waiting[0]]))
        rows = max(1, min(batcher.max_tokens // width, self._logits()))
        if len(held) > _WORTH_DROPPING * rows:
            return []
        at_once = max(1, self._logits() // (_FIRST_LOOK + 1))
        prefix = self._prefix(waiting[0])
        joining: list[_Answer] = []
        while waiting and len(joining) < min(rows - len(held), at_once):
            if self._prefix(waiting[0]) is not prefix:
                break
            joining.append(waiting.popleft())
        return joining

    def _order(self) -> list[_Answer]:
        """Those that begin alike side by side, the longest first."""
        longest: dict[int, int] = {}
        for answer in self.answers:
            at = id(self._prefix(answer))
            longest[at] = max(longest.get(at, 0), self._most(answer))
        places = {at: (-most, n) for n, (at, most) in enumerate(longest.items())}
        return sorted(self.answers, key=lambda a: (places[id(self._prefix(a))], -self._most(a)))

    def _prefix(self, answer: _Answer) -> SharedPrefix:
        return self.prefixes[answer.prompt]

    def _logits(self) -> int:
        """Positions whose logits are computed at a time."""
        return max(1, batching.MAX_LOGITS // self.handle.shape.vocab_size)

    def _go_on(
        self, writing: _Writing, joining: Sequence[_Answer]
    ) -> tuple[_Writing, list[_Answer]]:
        """Begin answers, or else write on until many have ended; what is still being written, and
        what has ended."""
        if joining:
            at_work = [*writing, *(self._verified if self.greedy else self._sampled)(joining)]
            ended = [answer for answer in joining if answer.done]
        else:
            answers, lanes = [answer for answer, _ in writing], writing[0][1][0]
            self._write(answers, lanes)
            at_work = [
                (answer, (lanes, row, length))
                for row, (answer, length) in enumerate(zip(answers, lanes.lengths, strict=True))
                if not answer.done
            ]
            ended = [answer for answer in answers if answer.done]
        if not at_work:
            return [], ended
        (lanes,) = regrouped([[row for _, row in at_work]])
        going = [
            (answer, (lanes, row, length))
            for row, ((answer, _), length) in enumerate(zip(at_work, lanes.lengths, strict=True))
        ]
        return going, ended

    def _write(self, answers: Sequence[_Answer], lanes: Lanes) -> None:
        """Token by token, until so many have ended that it is worth letting them go."""
        at = [[0] for _ in answers]
        while sum(not answer.done for answer in answers) > _WORTH_DROPPING * len(answers):
            states = lanes.read([[answer.tokens[-1]] for answer in answers], at)
            for answer, token in zip(answers, self._chosen(states, answers), strict=True):
                if not answer.done:
                    answer.take([token], (), self.stop)

    def _sampled(self, joining: Sequence[_Answer]) -> _Writing:
        """Answers begun and not ended yet; a prompt of several samples is run once."""
        owners = list(dict.fromkeys(answer.prompt for answer in joining))
        own = [self._own(owner) for owner in owners]
        lanes = Lanes.begin(self.handle, self._prefix(joining[0]), len(own))
        states = lanes.read(own, [[len(row) - 1] for row in own])
        rows = [owners.index(answer.prompt) for answer in joining]
        for answer, token in zip(joining, self._chosen(states[rows], joining), strict=True):
            answer.take([token], (), self.stop)
        lengths = lanes.lengths
        return [
            (answer, (lanes, row, lengths[row]))
            for answer, row in zip(joining, rows, strict=True)
            if not answer.done
        ]

    def _verified(self, joining: Sequence[_Answer]) -> _Writing:
        """Answers begun, run as far as their drafts are right, and not ended yet."""
        answers, found = list(joining), []
        own = [self._own(answer.prompt) for answer in answers]
        lanes, look = Lanes.begin(self.handle, self._prefix(joining[0]), len(own)), _FIRST_LOOK
        drafted = [self._told(answer) or answer.expected(look) for answer in answers]
        while True:
            rows = self._looked_at(lanes, answers, own, drafted)
            look = max(1, min(2 * look, self._logits() // len(answers) - 1))
            live = [row for row, answer in enumerate(answers) if not answer.done]
            going = [row for row in live if answers[row].expected(look)]
            leaving = [row for row in live if row not in going]
            groups = [[rows[row] for row in some] for some in (going, leaving) if some]
            made = regrouped(groups, room=0) if groups else []
            if leaving:
                left, lengths = made[-1], made[-1].lengths
                found += [
                    (answers[row], (left, place, lengths[place]))
                    for place, row in enumerate(leaving)
                ]
            if not going:
                return found
            lanes, answers = made[0], [answers[row] for row in going]
            own = [[answer.tokens[-1]] for answer in answers]
            drafted = [answer.expected(look) for answer in answers]

    def _told(self, answer: _Answer) -> list[int]:
        """What is run after a prompt whatever the model would say, for distributions along it."""
        told = list(self.along.continuations.get(answer.prompt, ()))[:-1]
        fits = len(self.prompts[answer.prompt]) + len(told) <= context_length(self.handle)
        return told if fits else []

    def _looked_at(
        self,
        lanes: Lanes,
        answers: Sequence[_Answer],
        own: Sequence[list[int]],
        drafted: Sequence[list[int]],
    ) -> list[Row]:
        """Read what is certain and what is drafted of each answer, and take what is right of it;
        its row as far as that goes."""
        before = lanes.lengths
        states = lanes.read(
            [row + more for row, more in zip(own, drafted, strict=True)],
            [
                list(range(len(row) - 1, len(row) + len(more)))
                for row, more in zip(own, drafted, strict=True)
            ],
        )
        chosen = iter(self._chosen(states, answers))
        for answer, some in zip(answers, states.split([len(d) + 1 for d in drafted]), strict=True):
            if not answer.tokens and len(self.along.continuations.get(answer.prompt, ())) == len(
                some
            ):
                log_probs = self.handle.logits(some).float().log_softmax(-1)
                self.along.found[answer.prompt] = self.along.read(answer.prompt, log_probs).cpu()
        rows: list[Row] = []
        for row, (answer, more) in enumerate(zip(answers, drafted, strict=True)):
            right = answer.take([next(chosen) for _ in range(len(more) + 1)], more, self.stop)
            rows.append((lanes, row, before[row] + len(own[row]) + right))
        return rows

    def _own(self, prompt: int) -> list[int]:
        """Tokens of a prompt after those that it shares."""
        return list(self.prompts[prompt][self.prefixes[prompt].length :])

    def _chosen(self, states: Tensor, answers: Sequence[_Answer]) -> list[int]:
        """The next token at each position, of what the head gets of it; where they are drawn, one
        for each of ``answers``."""
        if self.greedy and self._likeliest is not None:
            screened: list[int] = self._likeliest(states).tolist()
            return screened
        logits = finite(self.handle.logits(states))
        if self.greedy or self.sampling is None:
            found: list[int] = logits.argmax(-1).tolist()
            return found
        # An answer that has ended is run along with the others; what it draws is for nobody.
        at = [min(len(answer.tokens), self.longest - 1) for answer in answers]
        numbers = [self._numbers(answer)[n] for answer, n in zip(answers, at, strict=True)]
        drawn = draw(logits, self.sampling, torch.stack(numbers).to(logits.device))
        return list(map(int, drawn.tolist()))

    def _numbers(self, answer: _Answer) -> Tensor:
        """What decides a sampled answer, ``(longest,)``."""
        at = (answer.prompt, answer.sample)
        if at not in self._uniforms:
            self._uniforms[at] = uniforms(self.seed, *at, self.longest)
        return self._uniforms[at]


def _nothing(prompt: int, log_probs: Tensor) -> Tensor:
    return log_probs[:0, 0]
