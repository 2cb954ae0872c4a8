"""Published benchmarks of gender bias and stereotype: how their files read in our columns.

:mod:`safeedit.data.formats` registers them; the audits called ``bias.*`` take the columns that
they make. Every item's ``prompt`` tells it from all others; where an item is several sentences
they are among its other columns.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safeedit.data.reading import RawRow, UnreadableRow, read_file, read_json, read_lines
from safeedit.errors import DataError
from safeedit.policy import DataSpec

Columns = Mapping[str, Any]

# -- WinoBias --------------------------------------------------------------------------------------

_WINOBIAS_NAME = re.compile(r"^(pro|anti)_stereotyped_type([12])\b")
_NUMBER = re.compile(r"^\s*\d+\s+")
_MENTION = re.compile(r"\[([^\[\]]*)\]")
_ARTICLE = re.compile(r"^(?:the|a|an)\s+", re.IGNORECASE)
_DOUBLED = re.compile(r"\b(the|a|an)\s+(?=(?:the|a|an)\s)", re.IGNORECASE)
_MISNAMED = {"fault": "is in no file called like pro_stereotyped_type1.txt.dev"}
GENDER = {"he": "male", "him": "male", "his": "male",
          "she": "female", "her": "female", "hers": "female"}  # fmt: skip


def winobias_files(path: Path) -> dict[Path | None, str | None]:
    """The sentence files of a folder: ``.dev`` for validation where there is a ``.test`` too."""
    found = sorted(p for p in path.glob("*") if _WINOBIAS_NAME.match(p.name))
    tests = [p for p in found if p.suffix == ".test"]
    both = 0 < len(tests) < len(found)
    return {p: (("test" if p in tests else "validation") if both else None) for p in found}


def read_winobias(path: Path, spec: DataSpec) -> Iterator[RawRow]:
    """Lines ``1 [The developer] argued with the designer because [he] ...``.

    The second profession is the first other one, of those marked in the file, that the sentence
    names.
    """
    name = _WINOBIAS_NAME.match(path.name)
    rows = [
        replace(row, columns=_marked(str(row.columns["text"])) if name else _MISNAMED)
        for row in read_lines(path, spec)
    ]
    known = {row.columns["answer"] for row in rows if "answer" in row.columns}
    for row in rows:
        found = dict(row.columns)
        if name and "fault" not in found:
            others = [other for other in _named(found["prompt"], known) if other != found["answer"]]
            found |= {"side": name[1], "type": int(name[2]), "others": others}
        yield replace(row, columns=found)


def _marked(line: str) -> dict[str, Any]:
    """A sentence without its marks, and what they say; or its fault."""
    text = _NUMBER.sub("", line).strip()
    outside = _MENTION.sub("", text)
    if "[" in outside or "]" in outside:
        return {"fault": "has a bracket without its counterpart"}
    # A third bracket may hold another form of the pronoun ("[her] strength"): the first counts.
    mentions = [mention.strip() for mention in _MENTION.findall(text)]
    pronouns = [m.casefold() for m in mentions if m.casefold() in GENDER]
    people = [_ARTICLE.sub("", m) for m in mentions if m.casefold() not in GENDER]
    if len(people) != 1 or not pronouns or not people[0]:
        return {"fault": "should mark one profession and a pronoun of it in brackets"}
    prompt = _DOUBLED.sub("", _MENTION.sub(r"\1", text))
    return {"prompt": prompt, "answer": people[0], "pronoun": pronouns[0]}


def _named(sentence: str, professions: set[str]) -> list[str]:
    """The professions that a sentence names, in order; the longest where they overlap."""
    longest_first = sorted(professions, key=len, reverse=True)
    names = "|".join(map(re.escape, longest_first))
    by_spelling = {profession.casefold(): profession for profession in professions}
    found = re.findall(rf"\b(?:the|a|an)\s+({names})\b", sentence, re.IGNORECASE)
    return list(dict.fromkeys(by_spelling[name.casefold()] for name in found))


def winobias(columns: Columns) -> dict[str, Any]:
    remedy = "mend the line, or leave such lines out: on_error: drop"
    if "fault" in columns:
        raise UnreadableRow(columns["fault"], remedy)
    if not columns["others"]:
        raise UnreadableRow("names no second profession that another line marks", remedy)
    return {
        "prompt": columns["prompt"],
        "answer": columns["answer"],
        "subject": columns["answer"],
        "professions": [columns["answer"], columns["others"][0]],
        "pronoun": columns["pronoun"],
        "gender": GENDER[columns["pronoun"]],
        "side": columns["side"],
        "type": columns["type"],
    }


# -- Winogender ------------------------------------------------------------------------------------

_PRONOUNS = {"$NOM_PRONOUN": ("he", "she"), "$POSS_PRONOUN": ("his", "her"),
             "$ACC_PRONOUN": ("him", "her")}  # fmt: skip
_SHARES = ("occupations-stats.tsv", "winogender_occupations-stats.tsv")


def winogender_shares(rows: Iterator[RawRow]) -> Iterator[RawRow]:
    """Templates, each with its occupation's share of women from the file beside, if one is."""
    shares: dict[Path | None, dict[str, float]] = {}
    for row in rows:
        if row.file not in shares:
            shares[row.file] = _shares(row.file)
        share = shares[row.file].get(str(row.columns.get("occupation(0)", "")).casefold())
        yield row if share is None else replace(row, columns={**row.columns, "female_share": share})


def _shares(templates: Path | None) -> dict[str, float]:
    """Occupation -> share of women in the labour force, 0 to 1."""
    beside = [templates.parent / name for name in _SHARES] if templates is not None else []
    path = next((path for path in beside if path.is_file()), None)
    if path is None:
        return {}
    found = {}
    for row in read_file(path, DataSpec(file=str(path))):
        try:
            share = float(row.columns["bls_pct_female"]) / 100
            found[row.columns["occupation"].casefold()] = share
        except (KeyError, ValueError):
            raise DataError(
                "has no occupation with a bls_pct_female", file=path, line=row.line,
                remedy="use the published file of occupations",
            ) from None  # fmt: skip
    return found


def winogender(columns: Columns) -> dict[str, Any]:
    occupation = columns["occupation(0)"]
    text = columns["sentence"].replace("$OCCUPATION", occupation)
    text = text.replace("$PARTICIPANT", columns["other-participant(1)"])
    sentences = [text, text]
    for slot, forms in _PRONOUNS.items():
        sentences = [s.replace(slot, form) for s, form in zip(sentences, forms, strict=True)]
    if sentences[0] == sentences[1]:
        raise UnreadableRow("has no place for a pronoun", "write e.g. $NOM_PRONOUN in it")
    return {
        "prompt": text,
        "subject": occupation,
        "male": sentences[0],
        "female": sentences[1],
        "refers": "occupation" if str(columns["answer"]) == "0" else "participant",
        "female_share": columns.get("female_share"),
    }


# -- StereoSet -------------------------------------------------------------------------------------

_LABELS = {"stereotype": "stereotype", "anti-stereotype": "antistereotype",
           "unrelated": "unrelated"}  # fmt: skip


def read_stereoset(path: Path, spec: DataSpec) -> Iterator[RawRow]:
    """The published ``dev.json``, or a file of one item a row."""
    if path.suffix == ".json":
        whole = read_json(path, spec)
        if isinstance(whole, Mapping) and isinstance(whole.get("data"), Mapping):
            number = 0
            for type_, entries in whole["data"].items():
                for entry in entries:
                    number += 1
                    yield RawRow(number, None, {"type": type_, **entry}, path)
            return
    yield from read_file(path, spec)


def stereoset(columns: Columns) -> dict[str, Any]:
    """As published (a list of labelled sentences), flat, or nested with scores of a model."""
    given = columns
    if "sentences" in columns:
        given = {each["gold_label"]: each["sentence"] for each in columns["sentences"]}
    texts: dict[str, str] = {}
    scores: dict[str, float] = {}
    for label, ours in _LABELS.items():
        value = given[label]
        if isinstance(value, Mapping):
            score = next((score for key, score in value.items() if key.endswith("_score")), None)
            if score is not None:
                scores[ours] = score
            value = value["sentence"]
        texts[ours] = value
    context = columns["context"]
    blank = "BLANK" in context
    return {
        "id": columns.get("id"),
        # Several items share a context, and some a sentence too.
        "prompt": json.dumps([columns["target"], context, *texts.values()], ensure_ascii=False),
        "subject": columns["target"],
        "bias_type": columns["bias_type"],
        "type": columns.get("type") or ("intrasentence" if blank else "intersentence"),
        "context": context,
        **texts,
        **({"scores": scores} if scores else {}),
    }


# -- CrowS-Pairs -----------------------------------------------------------------------------------


def crows_pairs(columns: Columns) -> dict[str, Any]:
    return {
        "prompt": f"{columns['sent_more']} / {columns['sent_less']}",
        "more": columns["sent_more"],
        "less": columns["sent_less"],
        "direction": columns["stereo_antistereo"],
        "bias_type": columns["bias_type"],
    }


# -- DAMA ------------------------------------------------------------------------------------------

_PROFESSIONS = "professions.json"


def dama_files(path: Path) -> dict[Path | None, str | None]:
    """The prompt files of a folder: those to train on are for fitting and validation."""
    return {
        path / name: split
        for name, split in (("train_dama.json", None), ("test_dama.json", "test"))
        if (path / name).is_file()
    }


def read_dama(path: Path, spec: DataSpec) -> Iterator[RawRow]:
    """Prompts, as texts or objects, each with its profession's scores from the list beside.

    Where the folder was named, a quarter of the professions to train on are for validation.
    """
    prompts = read_json(path, spec)
    if not isinstance(prompts, list):
        raise DataError("should be a JSON list of prompts", file=path, line=1)
    scores = _profession_scores(path.with_name(_PROFESSIONS))
    whole_folder = Path(spec.file or "").name != path.name
    for number, entry in enumerate(prompts, start=1):
        text = entry.get("prompt") if isinstance(entry, Mapping) else entry
        if not isinstance(text, str):
            raise DataError(f"row {number} has no prompt", file=path)
        columns: dict[str, Any] = {"prompt": text}
        words = _ARTICLE.sub("", text).split()
        for length in range(len(words), 0, -1):
            profession = " ".join(words[:length])
            if profession in scores:
                factual, stereotypical = scores[profession]
                columns |= {"subject": profession, "factual": factual}
                columns["stereotypical"] = stereotypical
                break
        if whole_folder and path.name.startswith("train") and "subject" in columns:
            drawn = hashlib.sha256(columns["subject"].encode()).digest()[0]
            columns["split"] = "validation" if drawn % 4 == 0 else "fit"
        yield RawRow(number, None, columns, path)


def _profession_scores(path: Path) -> dict[str, tuple[float, float]]:
    """Profession -> factual and stereotypical score, -1 (female) to 1 (male)."""
    remedy = 'entries look like ["nurse", 0.0, -0.9]: name, factual score, stereotypical score'
    if not path.is_file():
        raise DataError(
            "is missing: without it prompts have no scores", file=path,
            remedy=f"put {_PROFESSIONS} beside the prompts",
        )  # fmt: skip
    found = {}
    entries = read_json(path, DataSpec(file=str(path)))
    for number, entry in enumerate(entries if isinstance(entries, list) else [None], start=1):
        match entry:
            case [str(name), (int() | float()) as factual, (int() | float()) as stereotypical]:
                found[name.replace("_", " ")] = (float(factual), float(stereotypical))
            case _:
                raise DataError(
                    f"entry {number} is no profession with two scores", file=path, remedy=remedy
                )
    return found


GENDERED_FROM = 0.25
"""Factual scores beyond which DAMA takes a word for gendered by definition."""


def dama_prompts(columns: Columns) -> dict[str, Any]:
    if "subject" not in columns:
        raise UnreadableRow(
            f"begins with no profession of {_PROFESSIONS}", "add it there, with scores"
        )
    return {**columns, "gendered": abs(columns["factual"]) > GENDERED_FROM}
