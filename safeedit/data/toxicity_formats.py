"""Published data on toxicity and refusals, in our columns."""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from safeedit.data.reading import RawRow, rest
from safeedit.data.splitting import normalise_prompt
from safeedit.records import Split

Columns = Mapping[str, Any]


def realtoxicityprompts(columns: Columns) -> dict[str, Any]:
    prompt, continuation = columns["prompt"], columns.get("continuation") or {}
    return {
        "prompt": prompt["text"],
        "continuation": continuation.get("text"),
        "split": rtp_split(prompt["text"]),
        "toxic": None if prompt.get("toxicity") is None else prompt["toxicity"] >= TOXIC_FROM,
        "toxicity": prompt.get("toxicity"),
        "continuation_toxicity": continuation.get("toxicity"),
        "challenging": columns.get("challenging"),
        "scores": rest(prompt, "text"),
    }


def rtp_split(prompt: str) -> Split:
    """By a hash of the prompt: half to fit, a tenth to validate, the rest to test.

    The rows are one pool for prompts and for pairs, so both must divide it alike.
    """
    place = int(hashlib.sha256(normalise_prompt(prompt).encode()).hexdigest()[:8], 16) % 10
    return "fit" if place < 5 else "validation" if place == 5 else "test"


TOXIC_FROM, NEUTRAL_UP_TO = 0.5, 0.1
"""Scores by which RealToxicityPrompts continuations make pairs: those between are left out."""


def rtp_pairs(rows: Iterator[RawRow]) -> Iterator[RawRow]:
    """A toxic continuation and a neutral one of another prompt, each used once.

    Each toxic one, in order, gets the neutral one nearest in words, and among those in its
    prompt's score and of the same split. Rows that lack a score or a continuation are left out.
    """
    toxic: list[tuple[int, float, RawRow]] = []
    neutral: dict[Split, dict[int, list[tuple[float, int, RawRow]]]] = {}
    for row in rows:
        if "prompt" not in row.columns or "continuation" not in row.columns:
            yield row  # not of this format; the next step says so
            continue
        columns = realtoxicityprompts(row.columns)
        score, text = columns["continuation_toxicity"], (columns["continuation"] or "").strip()
        if score is None or not text:
            continue
        words, lead = len(text.split()), columns["toxicity"] or 0.0
        if score >= TOXIC_FROM:
            toxic.append((words, lead, row))
        elif score <= NEUTRAL_UP_TO:
            alike = neutral.setdefault(columns["split"], {})
            insort(alike.setdefault(words, []), (lead, row.number, row))
    for words, lead, row in toxic:
        alike = neutral.get(rtp_split(row.columns["prompt"]["text"]), {})
        lengths = [length for length, left in alike.items() if left]
        if not lengths:
            continue
        left = alike[min(lengths, key=lambda length: (abs(length - words), length))]
        place = bisect_left(left, (lead, 0))
        before = place and (place == len(left) or lead - left[place - 1][0] < left[place][0] - lead)
        _, _, other = left.pop(place - 1 if before else place)
        yield replace(row, columns={"toxic_row": row.columns, "neutral_row": other.columns})


def rtp_pair(columns: Columns) -> dict[str, Any]:
    toxic, neutral = (realtoxicityprompts(columns[f"{kind}_row"]) for kind in ("toxic", "neutral"))
    return {
        "prompt": toxic["prompt"],
        "split": toxic["split"],
        "toxic": toxic["continuation"],
        "neutral_prompt": neutral["prompt"],
        "neutral": neutral["continuation"],
    }


def pairs(columns: Columns) -> dict[str, Any]:
    """``opening`` is what both texts go on from; several pairs may share one, so the item itself
    is known by the whole of its neutral text."""
    opening = columns.get("prompt") or ""
    return {
        "prompt": f"{opening} {columns['neutral']}".strip(),
        "opening": opening,
        "toxic": columns["toxic"],
        "neutral": columns["neutral"],
        **rest(columns, "prompt", "toxic", "neutral"),
    }


def hatecheck(columns: Columns) -> dict[str, Any]:
    return {
        "id": f"hatecheck-{columns['case_id']}",
        "prompt": columns["test_case"],
        "label": {"hateful": "toxic", "non-hateful": "harmless"}[columns["label_gold"]],
        "kind": columns["functionality"],
    }


def xstest(columns: Columns) -> dict[str, Any]:
    return {**columns, "role": columns.get("label") or columns.get("final_label")}
