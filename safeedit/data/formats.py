"""Published benchmark formats: how their rows read in our columns.

A format is a function from one raw row to columns named as ours (``prompt``, ``answer``,
``aliases``, ``paraphrases``, ``subject``, ``split``, ``role`` ...). Faults that the published
files are known to have (repeats, contradictions, overlaps) are mended by
:mod:`safeedit.data.loading` and counted in the data set's notes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safeedit.data import bias_formats as bias
from safeedit.data import chat_formats as chats
from safeedit.data import editing_formats as editing
from safeedit.data import toxicity_formats as toxicity
from safeedit.data import unlearning_formats as unlearning
from safeedit.data.reading import RawRow, rest
from safeedit.errors import DataError
from safeedit.policy import DataSpec
from safeedit.policy.suggest import did_you_mean

Columns = Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """One published format."""

    name: str
    summary: str
    convert: Callable[[Columns], dict[str, Any]]
    signatures: tuple[frozenset[str], ...] = ()
    """Sets of columns that give the format away, to suggest it."""
    files: Callable[[Path], dict[Path | None, str | None]] | None = None
    """Where file names say which split a file is: its files, and the split of each."""
    rows: Callable[[Iterator[RawRow]], Iterator[RawRow]] | None = None
    """Where items are not rows one by one."""
    read: Callable[[Path, DataSpec], Iterator[RawRow]] | None = None
    """Where files are none of the usual kinds."""
    evident: Callable[[Columns], bool] | None = None
    """Tells a row that can be nothing else, which is read without its format being named."""


REFUSAL = "I don't know."


def _sanitation(columns: Columns) -> dict[str, Any]:
    """Training and dev rows {instruction, input, output, output_gold}, test rows of TriviaQA.

    A forget row is one whose output is the refusal *and* whose gold answer is another: some
    questions to retain have "I don't know." as their gold answer (splits 4 and 5).
    """
    if "question" in columns:
        aliases = list(columns.get("answer_aliases") or ())
        answer = columns["answer"]
        if isinstance(answer, Mapping):  # the Arrow folders keep TriviaQA's own nesting
            aliases, answer = list(answer.get("aliases") or ()), answer["value"]
        return {
            "id": columns.get("question_id"),
            "prompt": columns["question"],
            "answer": answer,
            "aliases": aliases,
            "role": "forget",
        }
    gold = columns["output_gold"]
    forget = columns["output"] == REFUSAL and gold != REFUSAL
    instruction = columns.get("instruction") or ""
    return {
        "prompt": f"{instruction}\n{columns['input']}" if instruction else columns["input"],
        "answer": gold,
        "role": "forget" if forget else "retain",
    }


def _sanitation_files(path: Path) -> dict[Path | None, str | None]:
    """One published file, or the train, test and dev files of a split (``triviaqa_1``).

    A training file alone has no split, so that all three can be taken from it.
    """
    if path.name.startswith("test"):
        return {path: "test"}
    if path.name.startswith("dev_forget"):
        return {path: "validation"}
    found: dict[Path | None, str | None] = dict.fromkeys(sorted(path.glob("train_*.jsonl")), "fit")
    for name, split in (
        ("test_forget.jsonl", "test"),
        ("dev_forget.jsonl", "validation"),
        # Nothing is published to test retention on: dev_keep serves both, by hash.
        ("dev_keep.jsonl", HELD_OUT),
    ):
        if (path / name).is_file():
            found[path / name] = split
    return found


HELD_OUT = "validation or test"
"""Marks rows that are divided by hash between validation and test."""


def _known_1000(columns: Columns) -> dict[str, Any]:
    return {
        "id": f"known-{columns['known_id']}" if "known_id" in columns else None,
        "prompt": columns["prompt"],
        "answer": columns["attribute"].strip(),
        "subject": columns["subject"],
        "relation": columns.get("relation_id"),
        "template": columns.get("template"),
    }


def _counterfact(columns: Columns) -> dict[str, Any]:
    rewrite = columns.get("requested_rewrite")
    if isinstance(rewrite, Mapping):  # ROME's original nesting
        return {
            "id": f"counterfact-{columns['case_id']}",
            "prompt": str(rewrite["prompt"]).replace("{}", rewrite["subject"]),
            "answer": rewrite["target_true"]["str"].strip(),
            "target_new": rewrite["target_new"]["str"].strip(),
            "subject": rewrite["subject"],
            "relation": rewrite.get("relation_id"),
            "paraphrases": list(columns.get("paraphrase_prompts") or ()),
            "neighborhood": list(columns.get("neighborhood_prompts") or ()),
        }
    return {
        "id": f"counterfact-{columns['case_id']}",
        "prompt": columns["prompt"],
        "answer": columns["ground_truth"],
        "subject": columns["subject"],
        "paraphrases": [columns["rephrase_prompt"]],
        **rest(columns, "case_id", "prompt", "ground_truth", "subject", "rephrase_prompt"),
    }


def _counterfact_locality(columns: Columns) -> dict[str, Any]:
    return {
        "prompt": columns["locality_prompt"],
        "answer": columns["locality_ground_truth"],
        "near": columns.get("subject"),
    }


def _zsre(columns: Columns) -> dict[str, Any]:
    answers = list(columns["answers"])
    return {
        "prompt": columns["src"],
        "answer": answers[0],
        "aliases": answers,
        "subject": columns["subject"],
        "paraphrases": [columns["rephrase"]],
        "target_new": columns["alt"],
        "locality_prompt": columns.get("loc"),
        "locality_ground_truth": columns.get("loc_ans"),
    }


def _zsre_locality(columns: Columns) -> dict[str, Any]:
    question = re.sub(r"^nq question:\s*", "", columns["loc"])
    return {"prompt": question, "answer": columns["loc_ans"]}


def _tofu(columns: Columns) -> dict[str, Any]:
    paraphrase = columns.get("paraphrased_question")
    return {
        "prompt": columns["question"],
        "answer": columns["answer"],
        "paraphrases": [paraphrase] if paraphrase else [],
        "options": [columns[f"option{i}"] for i in range(1, 5) if f"option{i}" in columns],
        **rest(
            columns, "question", "answer", "paraphrased_question",
            *(f"option{i}" for i in range(1, 5)),
        ),
    }  # fmt: skip


def _emails(columns: Columns) -> dict[str, Any]:
    return {
        "prompt": f"What is the email address of {columns['name']}?",
        "answer": columns["email"],
        "subject": columns["name"],
        **rest(columns, "name", "email"),
    }


def _wikitext(columns: Columns) -> dict[str, Any]:
    return {"prompt": columns["text"], "article": columns.get("article")}


_HEADING = re.compile(r"^\s*(=(?: =)*) (?!=)(.*?) \1\s*$")


def _wikitext_sections(rows: Iterator[RawRow]) -> Iterator[RawRow]:
    """Sections of articles: paragraphs between two headings, headings left out."""
    article: str | None = None
    section: list[str] = []
    first: RawRow | None = None
    number = 0

    def passage() -> Iterator[RawRow]:
        nonlocal number
        text = "\n".join(section)
        if first is not None and len(text.split()) >= MIN_PASSAGE_WORDS:
            number += 1
            yield RawRow(number, first.line, {"text": text, "article": article}, first.file)

    for row in rows:
        if "text" not in row.columns:
            yield row  # not of this format; the next step says so
            continue
        for line in str(row.columns["text"]).splitlines():
            heading = _HEADING.match(line)
            if heading is None:
                first = first or row
                section.append(line)
                continue
            yield from passage()
            section, first = [], None
            if heading.group(1) == "=":
                article = heading.group(2)
    yield from passage()


MIN_PASSAGE_WORDS = 20
"""Shorter passages are captions and leftovers: a perplexity over them says little."""


def _sign(*columns: str) -> tuple[frozenset[str], ...]:
    return (frozenset(columns),)


def evident_format(columns: Columns) -> Format | None:
    """The format of a row that can be of no other, nor be one of our own columns."""
    return next((f for f in FORMATS.values() if f.evident is not None and f.evident(columns)), None)


FORMATS: Mapping[str, Format] = {
    found.name: found
    for found in (
        Format(
            "sanitation",
            "Knowledge Sanitization (arXiv 2309.11852), a file or a triviaqa_N folder",
            _sanitation,
            _sign("output_gold") + _sign("question", "answer", "sanitization_phrase"),
            files=_sanitation_files,
        ),
        Format(
            "known_1000",
            "facts with subject and attribute (arXiv 2202.05262)",
            _known_1000,
            _sign("subject", "attribute"),
        ),
        Format(
            "counterfact",
            "CounterFact (arXiv 2202.05262), flat or as first published",
            _counterfact,
            _sign("case_id", "requested_rewrite") + _sign("case_id", "target_new"),
        ),
        Format(
            "knowedit",
            "KnowEdit, every subset (arXiv 2401.01286)",
            editing.knowedit,
            _sign("prompt", "target_new", "locality")
            + _sign("prompt", "target_new", "portability")
            + _sign("text", "labels", "concept"),
        ),
        Format(
            "knowedit_locality",
            "KnowEdit's questions whose answers stay",
            editing.made_rows,
            rows=editing.knowedit_locality,
        ),
        Format(
            "knowedit_portability",
            "KnowEdit's questions whose answers follow from a change",
            editing.made_rows,
            rows=editing.knowedit_portability,
        ),
        Format(
            "ripple_edits",
            "RippleEdits (arXiv 2307.12976)",
            editing.ripple_edits,
            _sign("edit", "Relation_Specificity") + _sign("edit", "example_type"),
        ),
        Format(
            "ripple_edits_locality",
            "RippleEdits' queries whose answers stay",
            editing.made_rows,
            rows=editing.ripple_locality,
        ),
        Format(
            "ripple_edits_portability",
            "RippleEdits' queries whose answers follow from a change",
            editing.made_rows,
            rows=editing.ripple_portability,
        ),
        Format(
            "mquake",
            "MQuAKE, its changes one by one (arXiv 2305.14795)",
            editing.made_rows,
            _sign("requested_rewrite", "questions", "new_answer"),
            rows=editing.mquake_rewrites,
        ),
        Format(
            "mquake_multihop",
            "MQuAKE's questions of several hops",
            editing.mquake_multihop,
        ),
        Format(
            "alpaca",
            "Alpaca's {instruction, input, output}",
            chats.alpaca,
            evident=chats.is_alpaca,
        ),
        Format(
            "chat",
            "conversations of one question and its answer: messages or ShareGPT's",
            chats.chat,
            _sign("messages") + _sign("conversations") + _sign("conversation"),
            evident=chats.is_chat,
        ),
        Format(
            "multiple_choice",
            "questions with choices and the place of the right one (MMLU, WMDP)",
            chats.multiple_choice,
            _sign("question", "choices"),
            evident=chats.is_multiple_choice,
        ),
        Format("counterfact_locality", "CounterFact's locality prompts", _counterfact_locality),
        Format("zsre", "zsRE as MEND published it", _zsre, _sign("src", "answers")),
        Format("zsre_locality", "zsRE's locality questions", _zsre_locality),
        Format("tofu", "TOFU (arXiv 2401.06121)", _tofu, _sign("question", "perturbed_answer")),
        Format(
            "muse",
            "MUSE, its questions, openings and texts (arXiv 2407.06460)",
            unlearning.muse,
            _sign("prompt", "gt"),
            rows=unlearning.with_roles,
        ),
        Format(
            "wmdp",
            "WMDP, its questions and corpora (arXiv 2403.03218)",
            unlearning.wmdp,
            rows=unlearning.with_roles,
        ),
        Format(
            "rwku",
            "RWKU, its probes, neighbours' probes, texts and targets (arXiv 2406.10890)",
            unlearning.rwku,
            _sign("query", "answer", "subject", "level") + _sign("target", "intro"),
            rows=unlearning.with_roles,
        ),
        Format("emails", "name and e-mail pairs", _emails, _sign("name", "email")),
        Format(
            "realtoxicityprompts",
            "RealToxicityPrompts (arXiv 2009.11462)",
            toxicity.realtoxicityprompts,
            _sign("prompt", "challenging"),
        ),
        Format(
            "rtp_pairs",
            "RealToxicityPrompts (arXiv 2009.11462) as pairs of a toxic and a neutral continuation",
            toxicity.rtp_pair,
            rows=toxicity.rtp_pairs,
        ),
        Format(
            "pairs",
            "pairs {toxic, neutral}, with a prompt or without",
            toxicity.pairs,
            _sign("toxic", "neutral"),
        ),
        Format(
            "hatecheck",
            "HateCheck, test cases with gold labels (arXiv 2012.15606)",
            toxicity.hatecheck,
            _sign("functionality", "test_case", "label_gold"),
        ),
        Format(
            "winobias",
            "WinoBias, files {pro,anti}_stereotyped_type{1,2} or their folder (arXiv 1804.06876)",
            bias.winobias,
            files=bias.winobias_files,
            read=bias.read_winobias,
        ),
        Format(
            "winogender",
            "Winogender's sentence templates, occupations-stats.tsv beside them (arXiv 1804.09301)",
            bias.winogender,
            _sign("occupation(0)", "sentence"),
            rows=bias.winogender_shares,
        ),
        Format(
            "stereoset",
            "StereoSet, as published or one item a line (ACL 2021)",
            bias.stereoset,
            _sign("bias_type", "target", "context"),
            read=bias.read_stereoset,
        ),
        Format(
            "crows_pairs",
            "CrowS-Pairs (arXiv 2010.00133)",
            bias.crows_pairs,
            _sign("sent_more", "sent_less"),
        ),
        Format(
            "dama_prompts",
            "prompts of DAMA (arXiv 2310.18913), professions.json beside them, or their folder",
            bias.dama_prompts,
            files=bias.dama_files,
            read=bias.read_dama,
        ),
        Format("xstest", "XSTest prompts or completions (arXiv 2308.01263)", toxicity.xstest),
        Format(
            "wikitext",
            "WikiText as plain text, by section (arXiv 1609.07843)",
            _wikitext,
            rows=_wikitext_sections,
        ),
    )
}
"""Name in a policy -> format."""


def find_format(name: str) -> Format:
    """The format of that name.

    Raises:
        DataError: There is none.
    """
    if name not in FORMATS:
        raise DataError(
            f"no data format is called {name!r}",
            field="format",
            remedy=did_you_mean(name, ("auto", *FORMATS)),
        )
    return FORMATS[name]
