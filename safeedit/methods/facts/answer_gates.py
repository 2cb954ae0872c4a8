"""Gates on what the model is about to answer, whatever the question is about.

Where all that is answered by one of a few words is to be forgotten, no subject is there to key to.
But two states of the model tell of such an answer late in the network:

* the *question's* last token, from which the reply begins. That the answer is one of these is
  readable there for questions that were fitted on, in any wording, and less well for unseen ones;
* the token before the answer, when the model in its own words is *about to tell* it ("The capital
  of France is"). There the next word is readable by construction, whatever was asked.

Each answer gets a key for either (:mod:`safeedit.methods.facts.gated_neurons`). What the neurons
write is learnt: at a question it leads into the refusal, and before an answer into an ellipsis and
the refusal. They are trained at many strengths, since at questions that were never seen a key
answers more weakly than at those it was solved on.

The model tells few answers of its own accord. For the others it is asked with the answer as a hint,
so that it says it in its own words all the same.

Fails with :class:`~safeedit.errors.EditError` where an answer's questions can't be told from other
text. A use of the word in running text looks the same to the second gate where the model foresees
it: there it reads on with surprise.

Source: ours.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from safeedit.contracts import Progress, RunContext
from safeedit.data import Dataset
from safeedit.methods.facts.answers import answer_start, own_answers
from safeedit.methods.facts.gated_neurons import GatedNeurons, Text
from safeedit.methods.facts.keys import in_windows
from safeedit.methods.tuning import Example, answer_states, cross_entropy, endless, optimise
from safeedit.model.engine import Engine
from safeedit.model.handle import ModelHandle
from safeedit.text.matching import normalise

_HINT = "{question} (Hint: the answer is {answer}.)"

_WEAKEST = 0.3
"""Share of a neuron's full answer at which what it writes must still lead into the refusal."""

_NORM_PENALTY = 2e-6
"""Nats per squared unit written: a tenth of what keys on subjects have, since at a weak answer much
has to be written."""


_RIDGE = 0.1
"""Of the keys: ten times that of keys on subjects, since questions that were never seen count."""

_GAIN = 3.5
"""What keys answer is multiplied by this, as they have learnt silence from much other text: chosen
with the default of ``silence`` on questions to develop on of one published split."""


@dataclass
class AnswerTexts:
    """What keys are solved and values learnt on.

    Attributes:
        texts: Questions as token ids, each with what the model says up to the answer, if it tells
            it; the mentions are the places to fire at, numbered by key.
        families: Of each key, which answer it is for.
        questions: The questions, as token ids.
        told: Questions and what the model says up to the answer.
    """

    texts: list[Text] = field(default_factory=list)
    families: list[int] = field(default_factory=list)
    questions: list[list[int]] = field(default_factory=list)
    told: list[list[int]] = field(default_factory=list)
    _keys: dict[tuple[int, bool], int] = field(default_factory=dict)

    def add(self, prompt: Sequence[int], said: Sequence[int] | None, answer: int) -> None:
        """Take in one question.

        Args:
            prompt: As token ids.
            said: What the model says up to the answer; None where it does not tell it.
            answer: Which of the answers is asked for.
        """
        whole = [*prompt, *(said or ())]
        own = [(len(prompt) - 1, self._key(answer, about_to_tell=False))]
        self.questions.append(list(prompt))
        if said:
            own.append((len(whole) - 1, self._key(answer, about_to_tell=True)))
            self.told.append(whole)
        self.texts.append(Text(whole, tuple(own)))

    def examples(
        self, refused: list[int], broken_off: list[int]
    ) -> tuple[list[Example], list[Example]]:
        """Questions that are answered with the refusal, and answers that are broken off with it.

        Args:
            refused: The refusal as token ids.
            broken_off: The same after an ellipsis.
        """
        return (
            [Example(ids, refused) for ids in self.questions],
            [Example(ids, broken_off) for ids in self.told],
        )

    def _key(self, answer: int, *, about_to_tell: bool) -> int:
        found = self._keys.setdefault((answer, about_to_tell), len(self._keys))
        if found == len(self.families):
            self.families.append(answer)
        return found


def answer_texts(engine: Engine, forget: Dataset, ctx: RunContext) -> AnswerTexts:
    """Questions to be refused, and where the model in its own words is about to tell an answer.

    Args:
        engine: Of the untouched model.
        forget: Items with answers; those of one answer, spelling aside, share their keys.
        ctx: Of the run.
    """
    phrasings, template = forget.phrasings("fit"), engine.codec.resolve(forget.template)
    names = [normalise(phrasing.item.answer or "") for phrasing in phrasings]
    answers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    prompts = engine.encode([phrasing.text for phrasing in phrasings], template)
    found, silent = AnswerTexts(), dict[str, int]()
    for n, said in enumerate(own_answers(engine, prompts, ctx.progress)):
        item = phrasings[n].item
        begin = answer_start(engine, said, item.aliases)
        found.add(prompts[n], None if begin is None else said[:begin], answers[names[n]])
        if begin is None and phrasings[n].text == item.prompt and item.answer:
            silent[item.prompt] = n
    hints = [_HINT.format(question=q, answer=phrasings[n].item.answer) for q, n in silent.items()]
    hinted = engine.encode(hints, template)
    told = own_answers(engine, hinted, ctx.progress)
    for n, prompt, said in zip(silent.values(), hinted, told, strict=True):
        begin = answer_start(engine, said, phrasings[n].item.aliases)
        if begin:
            found.add(prompt, said[:begin], answers[names[n]])
    if not found.told:
        ctx.warn(
            "sanitation: the model tells none of the answers in its own words, not even with the "
            "answer as a hint: only the questions are refused"
        )
    return found


def gates_on_answers(
    model: ModelHandle,
    layers: Sequence[int],
    found: AnswerTexts,
    kept: Sequence[Example],
    prose: Sequence[str],
    silence: float,
    progress: Progress,
) -> GatedNeurons:
    """Neurons with a key for each answer, solved where it is asked for and where it is next.

    Args:
        model: Stays as it is.
        layers: Late enough for an answer to be readable before it is told.
        found: Where keys are to answer.
        kept: Retained questions with what the model answers, where they are to be silent.
        prose: Ordinary texts, likewise.
        silence: Weight of all these against the places to answer at.
        progress: Shown per text.

    Raises:
        EditError: An answer's questions can't be told from other text.
    """
    # Where a retained question ends looks like where a forgotten one does: few tokens among many,
    # which therefore weigh as much as all others together.
    others = [Text(each.ids, others=(len(each.prompt) - 1,)) for each in kept]
    windows, _ = in_windows(model, prose, model.engine.context)
    ordinary = [[Text(ids) for ids in windows]] if windows else []
    return GatedNeurons(
        model,
        layers,
        [found.texts, others, *ordinary],
        per_layer=len(found.families),
        families=found.families,
        ridge=_RIDGE,
        weight=silence,
        gain=_GAIN,
        in_bfloat16=True,
        progress=progress,
    )


def learn_to_stop(
    model: ModelHandle,
    gates: GatedNeurons,
    examples: tuple[Sequence[Example], Sequence[Example]],
    ctx: RunContext,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
) -> dict[str, float]:
    """Train what the neurons write until questions are refused and answers are broken off.

    Args:
        model: Stays as it is.
        gates: The neurons; their values and what they have in common are learnt in place.
        examples: From :meth:`AnswerTexts.examples`.
        ctx: Of the run.
        steps: At most; fewer once all is learnt.
        batch: Examples per step, half of them questions.
        learning_rate: Of Adam.

    Returns:
        Steps taken, first and last loss, nats.

    Raises:
        EditError: The loss became NaN or infinite.
    """
    source = random.Random(ctx.seed)
    questions, told = (endless(some, source) for some in examples)
    n_told = batch // 2 if examples[1] else 0
    trained = [*gates.values.values(), *gates.common.values()]

    def loss() -> tuple[Tensor, float]:
        some = [next(questions) for _ in range(batch - n_told)]
        some += [next(told) for _ in range(n_told)]
        gates.strength = math.exp(source.uniform(math.log(_WEAKEST), 0.0))
        missed = cross_entropy(model, answer_states(model, some), some)
        size = torch.stack([(value**2).sum() for value in trained]).sum()
        return missed + _NORM_PENALTY * size, float(missed.detach())

    try:
        with gates.active():
            return optimise(
                trained, loss, steps=steps, learning_rate=learning_rate, progress=ctx.progress,
                description="learning to refuse",
            )  # fmt: skip
    finally:
        gates.strength = 1.0
