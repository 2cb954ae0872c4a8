"""Published benchmarks of knowledge editing: KnowEdit, RippleEdits, MQuAKE.

One row of theirs is a change with everything that is asked about it. Here the change is an item
(``prompt``, ``answer`` as it is before, ``target_new`` as it becomes) and what is asked besides
are formats of their own: ``..._locality`` for what must stay, ``..._portability`` for what follows.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from os.path import commonprefix
from typing import Any

from safeedit.data.reading import RawRow, UnreadableRow

Columns = Mapping[str, Any]


def _texts(value: Any) -> list[str]:
    """The texts of a value that is one, a list of them, or lists in a list; in order, each once."""
    if isinstance(value, str):
        return [value.strip()] if value.strip() else []
    if isinstance(value, list):
        return list(dict.fromkeys(text for each in value for text in _texts(each)))
    return []


def _answers(value: Any) -> dict[str, Any]:
    texts = _texts(value)
    return {"answer": texts[0], "aliases": texts[1:]} if texts else {}


def _expanded(rows: Iterator[RawRow], each: Any) -> Iterator[RawRow]:
    """What ``each`` makes of every row, numbered; rows of other formats pass and are refused."""
    number = 0
    for row in rows:
        try:
            found = list(each(row.columns))
        except (KeyError, TypeError, AttributeError, IndexError):
            yield row
            continue
        for columns in found:
            number += 1
            yield replace(row, number=number, line=None, columns=columns)


def _made(columns: Columns) -> dict[str, Any]:
    """A row that :func:`_expanded` made; any other lacks the prompt and is refused."""
    if not isinstance(columns["prompt"], str) or _MADE not in columns:
        raise TypeError("a row of another format")
    return {name: value for name, value in columns.items() if name != _MADE}


_MADE = "made of"
"""Marks made rows, which no published file holds."""

# -- KnowEdit --------------------------------------------------------------------------------------


def knowedit(columns: Columns) -> dict[str, Any]:
    """Any subset of KnowEdit: WikiData (counterfact, recent), ZsRE, WikiBio, ConvSent, Sanitation.

    WikiBio keeps {concept, text, labels}: a passage and the sentence that goes on from it.
    Sanitation keeps {question, answer}.
    """
    prompt = _prompt(columns)
    if not isinstance(prompt, str):
        raise KeyError("prompt")
    if "labels" in columns and "target_new" not in columns:
        answers = _answers(columns["labels"])
    else:
        answers = _answers(columns.get("ground_truth", columns.get("answer")))
    phrasings = [columns.get(name) for name in ("rephrase_prompt", "rephrase", "paraphrases")]
    used = (
        "prompt", "text", "question", "labels", "concept", "subject", "ground_truth", "answer",
        "aliases", "rephrase_prompt", "rephrase", "paraphrases", "locality", "portability",
    )  # fmt: skip
    return {
        **{name: value for name, value in columns.items() if name not in used},
        "prompt": prompt,
        **answers,
        "subject": columns.get("subject", columns.get("concept")),
        "paraphrases": _texts(phrasings),
    }


def _prompt(columns: Columns) -> Any:
    return columns.get("prompt", columns.get("text", columns.get("question")))


def knowedit_locality(rows: Iterator[RawRow]) -> Iterator[RawRow]:
    """What must stay as it is, of all changes."""
    return _expanded(rows, lambda columns: _asked(columns, "locality"))


def knowedit_portability(rows: Iterator[RawRow]) -> Iterator[RawRow]:
    """What follows from the changes."""
    return _expanded(rows, lambda columns: _asked(columns, "portability"))


def _asked(columns: Columns, side: str) -> Iterator[dict[str, Any]]:
    if not isinstance(_prompt(columns), str):
        raise KeyError("prompt")
    for kind, entries in columns.get(side, {}).items():
        for entry in entries if isinstance(entries, list) else []:
            # Some entries keep several wordings, or answers as lists in a list.
            prompts = _texts(entry["prompt"])
            if prompts and (answers := _answers(entry.get("ground_truth"))):
                yield {
                    _MADE: "KnowEdit",
                    "prompt": prompts[0],
                    "paraphrases": prompts[1:],
                    **answers,
                    "near": columns.get("subject", columns.get("concept")),
                    "kind": kind,
                }


made_rows = _made

# -- RippleEdits -----------------------------------------------------------------------------------

_TESTS = (
    "Relation_Specificity", "Logical_Generalization", "Subject_Aliasing", "Compositionality_I",
    "Compositionality_II", "Forgetfulness",
)  # fmt: skip
_STAYS = ("Relation_Specificity", "Forgetfulness")


def ripple_edits(columns: Columns) -> dict[str, Any]:
    """A change told as a whole sentence, its object parted from it.

    The sentence before the change tells where: both begin alike. Without one, the object is an
    answer of a query that the sentence ends in.
    """
    edit = columns["edit"]
    told, before = _sentence(edit["prompt"]), edit.get("original_fact")
    old = ""
    if isinstance(before, Mapping) and isinstance(before.get("prompt"), str):
        was = _sentence(before["prompt"])
        shared = commonprefix([told, was])  # noqa: RUF071 (no paths)
        shared = shared[: shared.rfind(" ") + 1].rstrip()
        new, old = told[len(shared) :].strip(), was[len(shared) :].strip()
    else:
        new = max((a for a in _answers_of(columns) if told.endswith(f" {a}")), key=len, default="")
        shared = told[: len(told) - len(new)].rstrip()
    if not new or not shared:
        raise UnreadableRow(
            "does not show where the changed object begins in its sentence",
            "leave such rows out: on_error: drop",
        )
    return {
        "prompt": shared,
        "answer": old or None,
        "target_new": new,
        "relation": edit.get("relation"),
        "kind": columns.get("example_type"),
    }


def _sentence(text: str) -> str:
    return text.rstrip(string.whitespace + ".")


def _answers_of(columns: Columns) -> Iterator[str]:
    for kind in _TESTS:
        for test in columns.get(kind) or ():
            for query in (*test.get("test_queries", ()), *test.get("condition_queries", ())):
                yield from _spellings(query)


def _spellings(query: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    for answer in query.get("answers") or ():
        found += [*_texts(answer.get("value")), *_texts(answer.get("aliases"))]
    return list(dict.fromkeys(found))


def ripple_locality(rows: Iterator[RawRow]) -> Iterator[RawRow]:
    """What must stay as it is."""
    return _expanded(rows, lambda columns: _queries(columns, _STAYS))


def ripple_portability(rows: Iterator[RawRow]) -> Iterator[RawRow]:
    """What follows from the changes."""
    kinds = tuple(kind for kind in _TESTS if kind not in _STAYS)
    return _expanded(rows, lambda columns: _queries(columns, kinds))


def _queries(columns: Columns, kinds: Sequence[str]) -> Iterator[dict[str, Any]]:
    _ = columns["edit"]["prompt"]  # else it is no row of this format
    for kind in kinds:
        for test in columns.get(kind) or ():
            for query in test["test_queries"]:
                if isinstance(query.get("prompt"), str) and (answers := _spellings(query)):
                    yield {
                        _MADE: "RippleEdits",
                        "prompt": query["prompt"],
                        "answer": answers[0],
                        "aliases": answers[1:],
                        "kind": kind,
                    }


# -- MQuAKE ----------------------------------------------------------------------------------------


def mquake_rewrites(rows: Iterator[RawRow]) -> Iterator[RawRow]:
    """Every change of every case; cases share them, and each counts once."""
    return _expanded(rows, _rewrites)


def _rewrites(columns: Columns) -> Iterator[dict[str, Any]]:
    for rewrite in columns["requested_rewrite"]:
        subject = rewrite["subject"]
        question = rewrite.get("question")
        yield {
            _MADE: "MQuAKE",
            "prompt": rewrite["prompt"].replace("{}", subject),
            "answer": rewrite["target_true"]["str"].strip(),
            "target_new": rewrite["target_new"]["str"].strip(),
            "subject": subject,
            "relation": rewrite.get("relation_id"),
            "paraphrases": _texts(question),
        }


def mquake_multihop(columns: Columns) -> dict[str, Any]:
    """A case's questions of several hops, with the answer before the changes and after."""
    _ = columns["requested_rewrite"]
    asked = _texts(columns["questions"])
    return {
        "id": f"mquake-{columns['case_id']}" if "case_id" in columns else None,
        "prompt": asked[0],
        "paraphrases": asked[1:],
        "answer": columns["answer"],
        "aliases": _texts(columns.get("answer_alias")),
        "target_new": columns["new_answer"],
        "target_new_aliases": _texts(columns.get("new_answer_alias")),
        "hops": len(columns["single_hops"]) if "single_hops" in columns else None,
    }
