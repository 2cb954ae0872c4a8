"""Published benchmarks of unlearning: MUSE, WMDP, RWKU.

Each keeps several kinds of rows, questions and running texts, in files of their own; one format
reads all of a benchmark's. What a row is for says its ``role`` (forget, retain, neighbor, holdout),
read off the file's name, or off a column where there is one; on the hub ``hub_config`` and
``hub_split`` choose the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from safeedit.data.reading import RawRow, UnreadableRow, rest

Columns = Mapping[str, Any]

_ROLES = ("forget", "retain", "neighbor", "holdout")


def with_roles(rows: Iterator[RawRow]) -> Iterator[RawRow]:
    """The rows, each with the role that its file's name begins with or holds: ``forget_qa.json``,
    ``bio-retain-corpus.jsonl``, ``retain1-00000-of-00001.parquet``."""
    for row in rows:
        parts = re.split(r"[^a-z]+", row.file.stem.casefold()) if row.file is not None else []
        role = next((part for part in parts if part in _ROLES), None)
        if role is None or "role" in row.columns:
            yield row
        else:
            yield replace(row, columns={**row.columns, "role": role})


def _text(columns: Columns, name: str) -> str:
    value = columns[name]
    if not isinstance(value, str) or not value.strip():
        raise UnreadableRow(
            f"has no text in {name!r}", "leave such rows out: on_error: drop", field=name
        )
    return value


def _passage(columns: Columns) -> dict[str, Any]:
    """Running text."""
    return {**rest(columns, "text"), "prompt": _text(columns, "text")}


def _kinds(
    columns: Columns, kinds: Mapping[tuple[str, ...], Callable[[Columns], dict[str, Any]]]
) -> dict[str, Any]:
    """A row read as the first kind whose columns it has.

    Raises:
        UnreadableRow: It has those of none.
    """
    for names, read in kinds.items():
        if all(columns.get(name) is not None for name in names):
            return read(columns)
    nearest = max(kinds, key=lambda names: sum(columns.get(name) is not None for name in names))
    missing = next(name for name in nearest if columns.get(name) is None)
    shown = "; or ".join("{" + ", ".join(names) + "}" for names in kinds)
    raise UnreadableRow(f"has no column {missing!r}", f"rows have {shown}", field=missing)


# -- MUSE ------------------------------------------------------------------------------------------


def muse(columns: Columns) -> dict[str, Any]:
    """Questions {question, answer}, openings and how they go on {prompt, gt}, texts {text}."""
    return _kinds(
        columns,
        {("question", "answer"): _question, ("prompt", "gt"): _verbatim, ("text",): _passage},
    )


def _question(columns: Columns) -> dict[str, Any]:
    return {**rest(columns, "question"), "prompt": _text(columns, "question")}


def _verbatim(columns: Columns) -> dict[str, Any]:
    made = {**rest(columns, "gt"), "prompt": _text(columns, "prompt")}
    return {**made, "answer": _text(columns, "gt")}


# -- WMDP ------------------------------------------------------------------------------------------


def wmdp(columns: Columns) -> dict[str, Any]:
    """Questions {question, choices, answer: place of a choice, from 0}, and corpora {text}, with
    title and abstract or without."""
    return _kinds(columns, {("question", "choices", "answer"): _chosen, ("text",): _passage})


def _chosen(columns: Columns) -> dict[str, Any]:
    choices, place = columns["choices"], columns["answer"]
    if not isinstance(choices, list) or not all(isinstance(each, str) for each in choices):
        raise UnreadableRow(
            "has choices that are no list of texts", "write choices: [..., ...]", field="choices"
        )
    if isinstance(place, bool) or not isinstance(place, int):
        raise UnreadableRow(
            "has an answer that is no place of a choice",
            "write the place of the right choice as a number, counted from 0",
            field="answer",
        )
    if not 0 <= place < len(choices):
        raise UnreadableRow(
            f"has {len(choices)} choices and none at the place of its answer",
            "places are counted from 0",
            field="answer",
        )
    return {
        **rest(columns, "question", "choices", "answer"),
        "prompt": _text(columns, "question"),
        "answer": choices[place],
        "options": list(choices),
    }


# -- RWKU ------------------------------------------------------------------------------------------

_BLANK = re.compile(r"_{2,}")


def rwku(columns: Columns) -> dict[str, Any]:
    """Probes {query, answer, subject, level, type}, texts {text, subject}, targets {target, intro}.

    Probes of the first level are sentences with a blank: one that ends in its blank is put as the
    words before it, any other with the request to fill it in. Neighbours' probes name the
    ``neighbor`` that they are about, which is their subject here; ``near`` is whom they are near.
    """
    return _kinds(
        columns,
        {("query", "answer"): _probe, ("text",): _passage, ("target", "intro"): _target},
    )


def _probe(columns: Columns) -> dict[str, Any]:
    level, neighbor = columns.get("level"), columns.get("neighbor")
    made = rest(columns, "query", "level", "type", "subject", "neighbor")
    made["prompt"] = _filled_in(_text(columns, "query"))
    if level is not None:
        made["level"] = str(level)
    if columns.get("type"):
        made["kind"] = columns["type"]
    if neighbor:
        return {"role": "neighbor", **made, "subject": neighbor, "near": columns.get("subject")}
    return {**made, "subject": columns.get("subject")}


def _filled_in(query: str) -> str:
    blank = _BLANK.search(query)
    if blank is None:
        return query
    before, after = query[: blank.start()].rstrip(), query[blank.end() :]
    if before and not any(map(str.isalnum, after)):
        return before
    return f"Fill in the blank: {query}"


def _target(columns: Columns) -> dict[str, Any]:
    made = rest(columns, "target", "intro")
    return {**made, "prompt": _text(columns, "intro"), "subject": _text(columns, "target")}
