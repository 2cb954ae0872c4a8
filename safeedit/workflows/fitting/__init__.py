"""The policy that fits a file of data: what ``safeedit init --data`` writes.

The editor is chosen by what the rows have, the way of counting by how many there are. Every line
of the policy says what it is for, and the first ones what was seen and what to expect. It runs as
it stands; what is *near* to the user's own data only the user knows, so that it asks about
built-in facts and says where to put better ones.

No line repeats anything of a row: a policy may be shown to others.

Fails with :class:`~safeedit.errors.DataError` where the file can't be read or nothing fits it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from safeedit.contracts import DataRole
from safeedit.data import Dataset, load_dataset
from safeedit.data.splitting import normalise_prompt
from safeedit.data.subjects import check_subjects, same_subject
from safeedit.errors import DataError
from safeedit.policy import DataSpec
from safeedit.statistics.intervals import wilson
from safeedit.text.personal_data import personal_data
from safeedit.workflows.fitting.naming import mapped

FEW = 10
"""Items below which a rate decides nothing."""
MANY = 190
"""Items from which a rate of 0 shows, at 95 %, a true one below 0.02."""

FLOAT32 = "builtin:smollm2-135m-instruct"
"""A model whose long answers rounding to bfloat16 alone rewords."""

_FORGET = DataRole("forget", "what is to be erased", erased=True)

Kind = Literal["subjects", "facts", "replacements", "records", "answers"]

WORDS: dict[Kind, str] = {
    "subjects": "questions about a few subjects",
    "facts": "single facts, each about a subject of its own",
    "replacements": "facts with a new answer",
    "records": "records: openings, and the secrets that follow them",
    "answers": "questions with answers and without subjects",
}
"""What data may be, in words."""

_ENDS = ("?", "？", "؟", "!", ".", ":", "。")
"""How a question ends, or an instruction."""

_OTHERS: dict[str, tuple[set[str], str]] = {
    "detox": ({"toxic", "neutral"}, "pairs of toxic and neutral texts"),
    "debias": ({"factual"}, "openings about professions"),
}
"""Built-in policy -> columns of data that it is for, and what that is."""


@dataclass(frozen=True)
class FittingPolicy:
    """A policy for a file, and what it was chosen by."""

    text: str
    words: str
    """What the data is."""
    items: int


def fitting_policy(path: Path, beside: Path, model: str) -> FittingPolicy:
    """The policy for a file of data.

    Args:
        path: Rows to be erased or replaced; any kind of file that policies may name.
        beside: Folder that the policy is to be in: its paths start there.
        model: As ``model.source`` of a policy.

    Raises:
        DataError: The file can't be read (with its line), or no editor fits what it holds.
    """
    data, columns = _read(path)
    kind, items = kind_of(data, path), len(data)
    same_facts, same_subjects = _among_built_in_facts(data)
    text = _template().render(
        kind=kind,
        words=WORDS[kind],
        name="replace-facts" if kind == "replacements" else f"forget-{kind}",
        items=items,
        few=FEW,
        many=MANY,
        counted=items < FEW and kind not in ("records", "replacements"),
        compatible=f"{wilson(0, items).high:.2g}",
        asked="memorization" if kind == "records" else "leakage",
        model=_quoted(model),
        float32=model == FLOAT32,
        file=_quoted(os.path.relpath(path, beside)),
        columns={ours: _quoted(theirs) for ours, theirs in columns.items()},
        openings=_are_openings(data),
        same_facts=same_facts,
        same_subjects=same_subjects and kind == "subjects",
    )
    return FittingPolicy(text, WORDS[kind], items)


def _read(path: Path) -> tuple[Dataset, dict[str, str]]:
    """The rows of a file, and which of its columns were taken for ours.

    A subject is taken for one only where every prompt spells it.
    """
    columns = mapped(path)
    try:
        data = _loaded(path, columns)
    except DataError as error:
        if error.field == "prompt" and error.line is not None:
            error.remedy = (
                "call the column with what is asked 'prompt' in the file, or give its published "
                "format in a policy of your own ('safeedit init')"
            )
        raise
    if "subject" in columns and not _passes(
        lambda: check_subjects(data, every_phrasing=True, inferred=False)
    ):
        del columns["subject"]
        data = _loaded(path, columns)
    return data, columns


def _loaded(path: Path, columns: dict[str, str]) -> Dataset:
    return load_dataset(DataSpec(file=str(path.absolute()), columns=columns), role=_FORGET)


def kind_of(data: Dataset, path: Path) -> Kind:
    """What the rows of a file are.

    Raises:
        DataError: Nothing that can be forgotten or replaced.
    """
    items = tuple(data.all())
    columns = {name for item in items for name in item.extra}
    for policy, (needed, what) in _OTHERS.items():
        if needed <= columns:
            raise _unfit(
                path, f"{what} are not for forgetting",
                f"start from 'safeedit init --like {policy}', and name this file in it",
            )  # fmt: skip
    if without := sum(item.answer is None for item in items):
        raise _unfit(
            path, f"{without} of {len(items)} rows have no answer: what must not be told can't be "
            "looked for", "give each row its 'answer'",
        )  # fmt: skip
    if all(item.extra.get("target_new") for item in items):
        return "replacements"
    if _passes(lambda: check_subjects(data, every_phrasing=True, inferred=False)):
        subjects = {same_subject(item.subject or "") for item in items}
        return "subjects" if 2 * len(subjects) <= len(items) else "facts"
    if all(item.paraphrases for item in items) and _passes(lambda: check_subjects(data)):
        return "facts"  # what the wordings of each share is taken for its subject
    secret = sum(bool(personal_data(item.answer or "")) for item in items)
    return "records" if _are_openings(data) or 2 * secret > len(items) else "answers"


def _are_openings(data: Dataset) -> bool:
    """Whether most prompts are to be gone on with, rather than answered."""
    ended = sum(item.prompt.rstrip().endswith(_ENDS) for item in data.all())
    return 2 * ended < len(data)


def _passes(check: Callable[[], None]) -> bool:
    try:
        check()
    except DataError:
        return False
    return True


def _unfit(path: Path, message: str, remedy: str) -> DataError:
    return DataError(message, file=path, field="--data", remedy=remedy)


def _among_built_in_facts(data: Dataset) -> tuple[bool, bool]:
    """Whether some built-in fact that is to stay asks what is to be erased; whether some near one
    is about a subject of it."""
    own = {
        normalise_prompt(text) for item in data.all() for text in (item.prompt, *item.paraphrases)
    }
    subjects = {same_subject(item.subject) for item in data.all() if item.subject}
    facts = load_dataset(DataSpec(dataset="facts", where={"role": ["near", "far", "unknown"]}))
    return (
        any(normalise_prompt(item.prompt) in own for item in facts.all()),
        any(same_subject(item.subject) in subjects for item in facts.all() if item.subject),
    )


def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("safeedit.workflows.fitting", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # it is YAML, and every value is quoted
    )
    return environment.get_template("policy.yaml.j2")


def _quoted(text: str) -> str:
    """As a string of YAML: as JSON writes it, with what YAML does not take as it is escaped too."""
    written = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in written)
