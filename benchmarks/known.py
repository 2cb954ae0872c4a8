"""Facts of ``known_1000`` that a model knows, divided into those to forget and those near them.

A fact is known where the model ranks the first token of its attribute first. The facts to forget
are drawn by seed, and each gets other wordings: prompts of other facts of its relation with its own
subject in them, then openings before its own prompt, as far as the model has the answer among the
ten likeliest there, so that the untouched model scores 1 on them. Known facts of the same relations
are near; they are divided by hash into those an editor may be given to preserve (40 %), validation
(20 %) and test (40 %).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from safeedit.model.sources import open_model

OPENINGS = (
    "My neighbour told me this. {}",
    "From the notes of last week: {}",
    "As everybody in the room agreed, {}",
    "Here is what it says. {}",
    "The train was late again. {}",
    "A friend of mine wrote: {}",
)
WORDINGS = 6
"""Of each fact: two to fit on, two for validation, two for the test."""


@dataclass(frozen=True)
class Facts:
    """Where the rows lie, and how many there are."""

    forget: Path
    near: Path
    known: int
    near_rows: int


def prepare(source: Path, out: Path, count: int, *, model: str, dtype: str, seed: int = 7) -> Facts:
    """Write ``count`` facts to forget and those near them, unless they are there.

    Args:
        source: ``known_1000.json``.
        out: Folder for the rows.
        count: Facts to forget.
        model: Source of the model that is to know them.
        dtype: Of its weights.
        seed: Of the choice.
    """
    rows = json.loads(source.read_text())
    ranks = out / f"ranks-{dtype}.json"
    if not ranks.exists():
        out.mkdir(parents=True, exist_ok=True)
        ranks.write_text(json.dumps(_ranks(rows, model, dtype)))
    read: Mapping[str, Any] = json.loads(ranks.read_text())
    known = [row for row, rank in zip(rows, read["own"], strict=True) if rank == 0]
    common = Counter(row["relation_id"] for row in known)
    able = [row for row in known if len(read["other"][str(row["known_id"])]) >= WORDINGS
            and common[row["relation_id"]] > 1]  # fmt: skip
    random.Random(seed).shuffle(able)
    if len(able) < count:
        raise SystemExit(f"only {len(able)} facts are known in {WORDINGS} other wordings")
    forget = able[:count]
    relations = {row["relation_id"] for row in forget}
    taken = {(row["subject"], row["relation_id"]) for row in forget}
    asked = {row["prompt"] for row in forget}
    near, seen = list[dict[str, Any]](), set[str]()
    for row in known:
        own = (row["subject"], row["relation_id"])
        if (
            own not in taken
            and row["relation_id"] in relations
            and row["prompt"] not in seen | asked
        ):
            near.append(_row(row) | {"split": _split(row["prompt"])})
            seen.add(row["prompt"])
    forget_at, near_at = out / f"forget-{count}.jsonl", out / f"near-{count}.jsonl"
    facts = Facts(forget_at, near_at, len(known), len(near))
    wordings = read["other"]
    _write(facts.forget, [_row(row) | {"paraphrases": wordings[str(row["known_id"])][:WORDINGS]}
                          for row in forget])  # fmt: skip
    _write(facts.near, near)
    return facts


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": f"known-{row['known_id']}",
        "prompt": row["prompt"],
        "answer": row["attribute"].strip(),
        "subject": row["subject"],
        "relation": row["relation_id"],
    }


def _split(prompt: str) -> str:
    drawn = hashlib.sha256(prompt.encode()).digest()[0] % 10
    return "fit" if drawn < 4 else "validation" if drawn < 6 else "test"


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _ranks(rows: Sequence[Mapping[str, Any]], source: str, dtype: str) -> dict[str, Any]:
    """``own``: rank of each row's answer; ``other``: known facts' wordings with it among ten."""
    engine = open_model(source, device="cpu", dtype=dtype).engine

    def ranks(prompts: Sequence[str], answers: Sequence[str]) -> list[int]:
        first = [ids[0] for ids in engine.continuations(answers, "plain")]

        def likelier(index: int, positions: range, log_probs: torch.Tensor) -> torch.Tensor:
            return (log_probs > log_probs[:, first[index], None]).sum(1)

        asked = engine.encode(prompts, "plain")
        found = dict(engine.distributions(asked, [[token] for token in first], likelier))
        return [int(found[index]) for index in range(len(asked))]

    own = ranks([row["prompt"] for row in rows], [row["attribute"].strip() for row in rows])
    templates: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        templates[row["relation_id"]][row["prompt"].replace(row["subject"], "{}")] += 1
    tried: list[tuple[int, str, str]] = []
    for row, rank in zip(rows, own, strict=True):
        if rank:
            continue
        mine = row["prompt"].replace(row["subject"], "{}")
        others = [text for text, _ in templates[row["relation_id"]].most_common(13)
                  if text != mine and text.count("{}") == 1]  # fmt: skip
        random.Random(row["known_id"]).shuffle(others)
        wordings = [text.format(row["subject"]) for text in others]
        wordings += [opening.format(row["prompt"]) for opening in OPENINGS]
        tried += [(row["known_id"], text, row["attribute"].strip()) for text in wordings]
    found = ranks([text for _, text, _ in tried], [answer for _, _, answer in tried])
    other: dict[str, list[str]] = {str(row["known_id"]): [] for row in rows}
    for (key, text, _), rank in zip(tried, found, strict=True):
        if rank < 10:
            other[str(key)].append(text)
    # Wordings and openings alternate, so that every split has both.
    return {"own": own, "other": {key: _mixed(texts) for key, texts in other.items()}}


def _mixed(texts: Sequence[str]) -> list[str]:
    openings = tuple(opening.split("{}")[0] for opening in OPENINGS)
    opened = [text for text in texts if text.startswith(openings)]
    reworded = [text for text in texts if not text.startswith(openings)]
    mixed = []
    for place in range(max(len(opened), len(reworded))):
        mixed += [*reworded[place : place + 1], *opened[place : place + 1]]
    return mixed
