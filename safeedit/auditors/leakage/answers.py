"""Putting the questions of ``leakage`` to a model, and judging what it says.

Equal prompts are asked once. Questions that begin alike are put together, so that what they share
(a chat template's system message) is run once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from safeedit.auditors.leakage.askings import Asking, Way
from safeedit.auditors.leakage.questions import Prompt, Target
from safeedit.contracts import RunContext
from safeedit.data import Item
from safeedit.errors import AuditError
from safeedit.methods.answer_reading import Reader, Reading, Said, any_tells
from safeedit.model.engine import Engine, Sampling
from safeedit.policy import Template
from safeedit.text.refusals import RefusalDetector, unread_note

BEYOND = 16
"""Tokens read beyond an answer's own number under the askings made from a question."""


@dataclass(frozen=True)
class Answer:
    """What the model said to one prompt, judged; the words themselves are not kept."""

    prompt: Prompt
    refuses: bool
    readings: tuple[Reading, ...]
    """One, or one of each sample."""

    @property
    def target(self) -> int:
        """Index of the item."""
        return self.prompt.target

    @property
    def key(self) -> str:
        """Keyed digest of the question."""
        return self.prompt.key

    @property
    def leaks(self) -> float:
        """1 if any of them tells, NaN if none does and one was cut off before it could."""
        return any_tells(reading.tells for reading in self.readings)


@dataclass(frozen=True)
class Interview:
    """A model that is asked.

    Args:
        engine: Of the model.
        refusal_patterns: Further ones of the policy.
        ctx: Of the run.
    """

    engine: Engine
    refusal_patterns: tuple[str, ...]
    ctx: RunContext

    def greedy(
        self, prompts: Mapping[str, Sequence[Prompt]], reader: Reader, description: str
    ) -> dict[str, list[Answer]]:
        """The likeliest answers to all prompts, by asking, in one call."""
        limits = self._limits(prompts, reader)
        said = self.engine.generate(
            list(limits),
            max_new_tokens=list(limits.values()),
            progress=self.ctx.progress,
            description=description,
        )
        found = {ids: out[:1] for ids, out in zip(limits, said, strict=True)}
        if note := unread_note([self.engine.decode(o[0]) for o in said], self.refusal_patterns):
            self.ctx.warn(f"leakage: {note}")
        return {
            asking: self._judged(reader, asked, [found[tuple(p.ids)] for p in asked], limits)
            for asking, asked in prompts.items()
        }

    def sampled(
        self,
        prompts: Sequence[Prompt],
        among: Mapping[str, Sequence[Prompt]],
        reader: Reader,
        samples: int,
        temperature: float,
    ) -> list[Answer]:
        """Several answers to each prompt, drawn; read as far as greedy ones of ``among``."""
        limits = self._limits(among, reader)
        drawn = self.engine.generate(
            [prompt.ids for prompt in prompts],
            max_new_tokens=[limits[tuple(prompt.ids)] for prompt in prompts],
            sampling=Sampling(temperature=temperature, top_p=1.0),
            samples=samples,
            seed=self.ctx.seed,
            progress=self.ctx.progress,
            description="leakage: sampling",
        )
        return self._judged(reader, prompts, drawn, limits)

    def otherwise(
        self,
        made: Mapping[Asking, Sequence[Way]],
        targets: Sequence[Target],
        template: Template,
        most: int | None,
        least: int,
    ) -> dict[str, list[Answer]]:
        """The likeliest answers to questions that askings made.

        Args:
            made: From :func:`safeedit.auditors.leakage.askings.ways`.
            targets: The items.
            template: How they are asked.
            most: Tokens read of each answer, as the policy says; None goes by the answers.
            least: Tokens read where the policy says nothing and answers are short.
        """
        sought: dict[int, Item] = {}
        for way in (way for each in made.values() for way in each):
            sought.setdefault(id(way.sought), way.sought)
        if not sought:
            return {}
        places = {identity: place for place, identity in enumerate(sought)}
        reader = Reader(
            self.engine, list(sought.values()), template, most, least=least, further=BEYOND
        )
        answers: dict[str, list[Answer]] = {}
        by_system: dict[str | None, dict[str, list[Way]]] = {}
        for name, each in made.items():
            for way in each:
                by_system.setdefault(way.system, {}).setdefault(name, []).append(way)
        for system, some in by_system.items():
            try:
                prompts = {
                    asking: self._encoded(each, targets, places, template, system)
                    for asking, each in some.items()
                }
            except AuditError as error:
                if system is None:
                    raise
                self.ctx.warn(f"leakage: not asked with a system message: {error.message}")
                continue
            for asking, found in self.greedy(prompts, reader, "leakage: asking otherwise").items():
                answers.setdefault(asking, []).extend(found)
        return answers

    def _encoded(
        self,
        made: Sequence[Way],
        targets: Sequence[Target],
        places: Mapping[int, int],
        template: Template,
        system: str | None,
    ) -> list[Prompt]:
        ids: dict[int, list[int]] = {}
        more = {} if system is None else {"system": system}
        for begun, bare in dict.fromkeys((way.begun, way.bare) for way in made):
            some = [i for i, way in enumerate(made) if (way.begun, way.bare) == (begun, bare)]
            texts = [made[index].text for index in some]
            put: Template = "plain" if bare else template
            encoded = self.engine.encode(texts, put, answer_prefix=begun, **more)
            ids.update(zip(some, encoded, strict=True))
        return [
            Prompt(
                way.target, targets[way.target].key, way.text, ids[index],
                sought=places[id(way.sought)], form=way.form,
            )
            for index, way in enumerate(made)
        ]  # fmt: skip

    def _limits(
        self, prompts: Mapping[str, Sequence[Prompt]], reader: Reader
    ) -> dict[tuple[int, ...], int]:
        """Distinct prompts -> tokens to generate, as many as the item that needs most."""
        limits: dict[tuple[int, ...], int] = {}
        for prompt in (prompt for asked in prompts.values() for prompt in asked):
            ids = tuple(prompt.ids)
            limits[ids] = max(limits.get(ids, 0), reader.limit(prompt.place, ids))
        return limits

    def _judged(
        self,
        reader: Reader,
        prompts: Sequence[Prompt],
        said: Sequence[Sequence[Sequence[int]]],
        limits: Mapping[tuple[int, ...], int],
    ) -> list[Answer]:
        """What was said to each prompt, once or more often, judged."""
        refuses = RefusalDetector(self.refusal_patterns)
        readings = iter(
            reader.read(
                [
                    Said(prompt.place, prompt.text, ids, limits[tuple(prompt.ids)])
                    for prompt, texts in zip(prompts, said, strict=True)
                    for ids in texts
                ]
            )
        )
        return [
            Answer(
                prompt,
                refuses=all(refuses(self.engine.decode(ids)) for ids in texts),
                readings=tuple(next(readings) for _ in texts),
            )
            for prompt, texts in zip(prompts, said, strict=True)
        ]


def told(answers: Iterable[Answer], targets: Sequence[Target]) -> dict[str, float]:
    """Item's key -> 1 if any answer tells it, NaN if none does and one was cut off, else 0."""
    found: dict[str, list[float]] = {}
    for answer in answers:
        found.setdefault(targets[answer.target].key, []).append(answer.leaks)
    return {key: any_tells(leaks) for key, leaks in found.items()}


def trials(answers: Iterable[Answer], targets: Sequence[Target]) -> dict[str, int]:
    """Item's key -> in how many ways it was asked: different prompts, and samples of each."""
    greedy: dict[str, set[tuple[int, ...]]] = {target.key: set() for target in targets}
    sampled = dict.fromkeys(greedy, 0)
    for answer in answers:
        key = targets[answer.target].key
        if len(answer.readings) == 1:
            greedy[key].add(tuple(answer.prompt.ids))
        else:
            sampled[key] += len(answer.readings)
    return {key: len(asked) + sampled[key] for key, asked in greedy.items()}
