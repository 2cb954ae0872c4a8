"""Cues: the names by which a text can mean a subject.

A key that was solved on a subject's name answers that spelling alone. So a subject has *cues*: its
name, misspelt forms of it, its other names, what the data says it is known for ("Bavaria" for
Germany), and the answers that identify it: those of which one of its items asks the other way
round ("Berlin is the capital of which country?"). Other subjects have cues as well, which must not
fire.

Cues of one subject are dealt out to neurons, a few to each: one direction can answer a dozen names,
and hardly fifty.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from safeedit.contracts import DataRole
from safeedit.data import Dataset, Item
from safeedit.data.subjects import names_subject, same_subject, with_subject
from safeedit.errors import DataError
from safeedit.methods.facts.gated_neurons import Text
from safeedit.model.spans import last_tokens, mentions
from safeedit.text.matching import contains_alias
from safeedit.text.spellings import typos

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PER_NEURON = 12
"""Cues that share one neuron at most."""

_TYPO_SEED = 11
"""Added to a run's seed, with which the audit makes its own misspelt forms."""

_WORDINGS = 2
"""Wordings that each cue is put into."""

NAMES = DataRole(
    "names",
    "further names ('prompt') and whose they are ('subject'): keys are to answer those of the "
    "subjects, and none of others'; rows to fit on alone",
    required=False,
)
"""Role of editors whose keys are solved on names."""

Keys = Literal["subject", "names"]
"""What keys are solved on: a subject as its items write it, or all its cues."""

KEYS_ARE = (
    "what the keys are solved on: the subject as its items write it, or all its names (misspelt "
    "forms, the items' subject_aliases, descriptions and reverse_questions as far as they are not "
    "for the test, and the role 'names')"
)
"""Description of a parameter of that kind."""

SPELLINGS_ARE = (
    "misspelt forms made of each subject's name, none of them the audit's, beside lower and upper "
    "case; 0: neither"
)
"""Description of the parameter that says how many."""


def check_names(names: Dataset | None, keys: Keys) -> None:
    """See that names are wanted, each says whose it is, and none is put aside unasked.

    Raises:
        DataError: With the places of the rows, never their content.
    """
    if names is None:
        return
    if keys != "names":
        raise DataError(
            "names are given, and the keys are to be solved on the subjects alone",
            field="names",
            remedy="set 'keys: names', or leave the names out",
        )
    rows = names.items("fit")
    aside = sum(row.split is None for row in names.all()) - sum(row.split is None for row in rows)
    if aside > 0:
        raise DataError(
            f"{aside} of {len(names)} names were put aside for validation and test, so that no key "
            "would answer them",
            field="names",
            remedy="add 'split: fit' to the data, or a column 'split' to its rows",
        )
    lacking = [number for number, row in enumerate(rows, 1) if not (row.subject or "").strip()]
    if lacking:
        raise DataError(
            f"{len(lacking)} of {len(rows)} names (number {', '.join(map(str, lacking[:5]))}"
            f"{', ...' if len(lacking) > 5 else ''}) do not say whose they are",
            field="names",
            remedy="add a 'subject' to each row: the subject as the data of 'forget' writes it, or "
            "anybody else",
        )


@dataclass(frozen=True)
class Cues:
    """Names that mean a subject, and names that mean others.

    Attributes:
        subjects: The subjects, as written first.
        names: Cues as they are written.
        neurons: Of each cue, the neuron that is to answer it.
        families: Of each neuron, the number of its subject.
        identifying: Of each neuron, whether its cues are answers that identify the subject.
        others: Names that mean others.
    """

    subjects: tuple[str, ...]
    names: tuple[str, ...]
    neurons: tuple[int, ...]
    families: tuple[int, ...]
    identifying: tuple[bool, ...]
    others: tuple[str, ...] = ()

    def text(
        self,
        tokenizer: PreTrainedTokenizerBase,
        ids: Sequence[int],
        others: Sequence[str] = (),
    ) -> Text:
        """A text with the places of its cues, and of names that must not fire."""
        said = same_subject(tokenizer.decode(list(ids)))
        # Most texts hold none of hundreds of names, and to look for one properly takes long.
        here = [n for n, name in enumerate(self.names) if same_subject(name) in said]
        found = mentions(tokenizer, ids, [self.names[n] for n in here])
        own = tuple((at, self.neurons[here[n]]) for at, n in found)
        fires = {at for at, _ in own}
        rest = {
            at
            for name in (*others, *self.others)
            if same_subject(name) in said
            for at in last_tokens(tokenizer, ids, name)
        }
        return Text(ids, own, tuple(sorted(rest - fires)))

    def of(self, subject: int) -> Iterator[str]:
        """The cues of a subject."""
        for name, neuron in zip(self.names, self.neurons, strict=True):
            if self.families[neuron] == subject:
                yield name


def subjects_of(forget: Dataset) -> Cues:
    """The subjects of what is to be forgotten, each with its name as its one cue."""
    named = ((item.subject or "").strip() for item in forget.items("fit"))
    subjects: dict[str, str] = {}
    for name in sorted(named):
        subjects.setdefault(same_subject(name), name)
    found, numbers = tuple(subjects.values()), tuple(range(len(subjects)))
    return Cues(found, found, numbers, numbers, (False,) * len(found))


def cues_of(forget: Dataset, names: Dataset | None, *, spellings: int, seed: int) -> Cues:
    """The cues of what is to be forgotten, as far as an editor may see them.

    A name of two subjects is the first's; to be forgotten they are both.

    Args:
        forget: Facts to be forgotten; each fit item has a subject.
        names: Rows whose prompt is a name and whose subject is what it means; of subjects that are
            not forgotten, names that must not fire.
        spellings: Misspelt forms made of each subject's name.
        seed: Of the run.
    """
    subjects: dict[str, str] = {}
    called: dict[str, list[str]] = {}
    told: dict[str, list[str]] = {}
    for item in sorted(forget.items("fit"), key=lambda item: (item.subject or "").strip()):
        name = (item.subject or "").strip()
        key = same_subject(name)
        first = subjects.setdefault(key, name)
        if key not in called:
            called[key] = [first, *_misspelt(first, spellings, seed)]
        called[key] += item.subject_aliases
        told.setdefault(key, []).extend(_identifying(item))
    others = list[str]()
    for row in names.items("fit") if names is not None else ():
        called.get(same_subject(row.subject or ""), others).append(row.prompt.strip())
    owned: dict[str, str] = {}
    dealt: list[tuple[list[str], int, bool]] = []
    for number, key in enumerate(subjects):
        for kind, found in ((False, called[key]), (True, told[key])):
            fresh: dict[str, str] = {}
            for name in found:
                fresh.setdefault(same_subject(name), name)
            own = [name for low, name in fresh.items() if low and low not in owned]
            owned |= dict.fromkeys(map(same_subject, own), key)
            dealt += [
                (own[start : start + PER_NEURON], number, kind)
                for start in range(0, len(own), PER_NEURON)
            ]
    return Cues(
        tuple(subjects.values()),
        tuple(name for part, _, _ in dealt for name in part),
        tuple(neuron for neuron, (part, _, _) in enumerate(dealt) for _ in part),
        tuple(number for _, number, _ in dealt),
        tuple(kind for _, _, kind in dealt),
        tuple(name for name in dict.fromkeys(others) if same_subject(name) not in owned),
    )


def _misspelt(name: str, count: int, seed: int) -> list[str]:
    """Misspelt forms, none of which the audit will ask by."""
    audited = set(typos(name, seed))
    made = typos(name, seed + _TYPO_SEED, count + len(audited)) if count else []
    return [text for text in made if text not in audited][:count]


def _identifying(item: Item) -> Iterator[str]:
    """The answers by which a question turned round asks for the subject."""
    for question in item.reverse_questions:
        yield from (alias for alias in item.aliases if contains_alias(question, [alias]))


def asked_by_cues(cues: Cues, forget: Dataset, *, cased: bool) -> dict[str, Item]:
    """The fit phrasings, and the same questions by every cue: a few wordings of each, in turn, with
    the cue (or a description that an item brings) in the subject's place, and the questions turned
    round that items bring.

    Args:
        cues: Of ``forget``.
        forget: Facts to be forgotten.
        cased: Ask by each subject's name in lower and in upper case as well.

    Returns:
        Question -> the item whose answer it asks for; of one turned round, with the subject's names
        as aliases.
    """
    found: dict[str, Item] = {}
    of_subject: dict[str, list[tuple[Item, str]]] = {}
    for phrasing in forget.phrasings("fit"):
        found[phrasing.text] = phrasing.item
        subject = phrasing.item.subject or ""
        if names_subject(phrasing.text, subject):
            own = of_subject.setdefault(same_subject(subject), [])
            own.append((phrasing.item, phrasing.text))
    for number, subject in enumerate(cues.subjects):
        wordings = of_subject[same_subject(subject)]
        turn = 0
        forms = (subject.lower(), subject.upper()) if cased else ()
        for name in (*cues.of(number), *forms):
            for _ in range(_WORDINGS):
                item, text = wordings[turn % len(wordings)]
                turn += 1
                if renamed := with_subject(text, item, name):
                    found[renamed] = item
    for item in forget.items("fit"):
        for phrase in item.descriptions:
            if described := with_subject(item.prompt, item, phrase):
                found[described] = item
        turned = replace(item, answer=item.names[0], aliases=item.names)
        found |= dict.fromkeys(item.reverse_questions, turned)
    return found


def asked_of_others(cues: Cues, kept: Sequence[Item], seed: int) -> list[str]:
    """Questions on others by their further names: each in the place of some other subject, since
    which of them is asked for does not matter to a key.

    Args:
        cues: With the names.
        kept: Items with subjects that are not forgotten.
        seed: Of which question each name gets.
    """
    drawn = random.Random(seed)
    found = []
    for name in cues.others if kept else ():
        item = drawn.choice(kept)
        if renamed := with_subject(item.prompt, item, name):
            found.append(renamed)
    return found


def end_in_others(cues: Cues, kept: Sequence[Item]) -> int:
    """How many cues end in the name of somebody else.

    A key fires at its cue's last token, and may fire there without the words before it: given "the
    neighbour of Norway" for Sweden, it answers questions on Norway.

    Args:
        cues: Any.
        kept: Items on subjects that are not forgotten.
    """
    own = set(map(same_subject, cues.names))
    others = {same_subject(name) for name in (*(item.subject or "" for item in kept), *cues.others)}
    ends = tuple(f" {name}" for name in others - own if name)
    return sum(same_subject(name).endswith(ends) for name in cues.names)


def warn_of_ends(
    editor: str, cues: Cues, kept: Sequence[Item], warn: Callable[[str], None]
) -> None:
    """Say how many cues :func:`end_in_others`; nothing where none does."""
    if count := end_in_others(cues, kept):
        warn(
            f"{editor}: {count} of {len(cues.names)} names end in the name of somebody else, and "
            "their keys may fire at that name alone: cut such names short ('northern neighbour' "
            "in place of 'northern neighbour of' whoever it is)"
        )


def turned_round(forget: Dataset, subject: str) -> list[Item]:
    """The questions by which items on a subject ask for it, as items on what identifies it."""
    found = {
        question: replace(
            item, prompt=question, subject=alias, answer=item.names[0], aliases=item.names
        )
        for item in forget.items("fit")
        if same_subject(item.subject or "") == same_subject(subject)
        for question in item.reverse_questions
        for alias in item.aliases
        if contains_alias(question, [alias])
    }
    return list(found.values())
