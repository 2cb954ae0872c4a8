"""Where does WinoBias's gap come from? What is left of it without gender at single tokens.

The model reads pairs of sentences that differ in their pronoun alone (type 1, one of the two
stereotypical) and is asked whom it stands for; the margin is the logit of the right occupation's
first token less the other's, and the gap the stereotypical sentence's margin less the other's. Then
the same with the residual stream interfered with in all layers from 3 on:

* *occupations*: at the last token of either occupation, the direction in which the stereotypically
  female and male ones differ on average is set to its mean. It is found on the same sentences:
  no edit of what occupations imply can be better informed.
* *pronoun of the question*, *of the sentence*: at that token, the mean of the pair's two states.

Sentences are those of the fit and validation splits; test sentences are not read.

    python benchmarks/winobias_flow.py --data ../shared/data --threads 1
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from table import MODEL, add_data
from torch import Tensor

from safeedit.data.coreference import asked, professions_of, pronoun_of, without_pronoun
from safeedit.data.loading import load_dataset
from safeedit.model.batching import pad_right
from safeedit.model.handle import ModelHandle
from safeedit.model.sources import open_model
from safeedit.policy import DataSpec

BATCH = 40
Change = Callable[[int, Tensor, "list[Row]"], Tensor]


@dataclass(frozen=True)
class Row:
    """A sentence with its question; rows come in pairs, the stereotypical one first."""

    ids: list[int]
    people: tuple[int, int]
    """Last tokens of the right occupation and the other."""
    female: tuple[bool, bool]
    pronouns: tuple[int, int]
    """Tokens of the pronoun in the sentence and in the question."""
    answers: tuple[int, int]
    """First tokens of the right occupation and the other."""


def rows_of(model: ModelHandle, data: Path, most: int, seed: int) -> list[Row]:
    """Pairs whose tokens stand in the same places."""
    spec = DataSpec(file=str(data / "winobias"), format="winobias", template="plain")
    sentences = load_dataset(spec, base=Path.cwd(), seed=seed)
    female = set((data / "winobias" / "female_occupations.txt").read_text().split("\n"))
    pairs: dict[Any, dict[str, Row]] = defaultdict(dict)
    for item in (*sentences.items("fit"), *sentences.items("validation")):
        people, pronoun = professions_of(item), pronoun_of(item)
        if people is None or pronoun is None or int(item.extra["type"]) != 1:
            continue
        text = asked(item, pronoun)
        read = model.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        places = [_last(read["offset_mapping"], text, re.escape(name)) for name in people]
        places += [
            _last(read["offset_mapping"], text, rf"\b{pronoun}\b"),
            _last(read["offset_mapping"], text, f"(?<=')({pronoun})(?=')"),
        ]
        one, two = (ids[0] for ids in model.engine.continuations(list(people), "plain"))
        if None in places or one == two:
            continue
        right, other, said, question = places
        row = Row(
            read["input_ids"], (right, other), (people[0] in female, people[1] in female),
            (said, question), (one, two),
        )  # fmt: skip
        pairs[without_pronoun(item, pronoun), people[0]][str(item.extra["side"])] = row
    whole = [
        (pair["pro"], pair["anti"]) for pair in pairs.values()
        if len(pair) == 2 and len(pair["pro"].ids) == len(pair["anti"].ids)
        and pair["pro"].pronouns == pair["anti"].pronouns
    ]  # fmt: skip
    random.Random(seed).shuffle(whole)
    return [row for pair in whole[:most] for row in pair]


def _last(offsets: Sequence[tuple[int, int]], text: str, pattern: str) -> Any:
    """The last token of the first match; None without one."""
    found = re.search(pattern, text, re.IGNORECASE)
    if found is None:
        return None
    return max(n for n, (begin, end) in enumerate(offsets) if begin < found.end() and end > begin)


@torch.no_grad()
def gaps(
    model: ModelHandle, rows: Sequence[Row], first: int, change: Change | None = None
) -> Tensor:
    """``(pairs,)`` margin of the stereotypical sentence less that of the other, nats."""
    margins = []
    for begin in range(0, len(rows), BATCH):
        batch = list(rows[begin : begin + BATCH])
        inputs = {
            "input_ids": pad_right([row.ids for row in batch]),
            "attention_mask": pad_right([[1] * len(row.ids) for row in batch]),
        }
        with _changed(model, batch, first, change):
            hidden = model.forward(inputs)
        ends = torch.stack([hidden[n, len(row.ids) - 1] for n, row in enumerate(batch)])
        logits = model.logits(ends).float()
        pair = logits.gather(1, torch.tensor([row.answers for row in batch]))
        margins.append(pair[:, 0] - pair[:, 1])
    return torch.cat(margins).view(-1, 2).diff(dim=1)[:, 0].neg()


@contextmanager
def _changed(
    model: ModelHandle, batch: list[Row], first: int, change: Change | None
) -> Iterator[None]:
    def hook(layer: int) -> Callable[..., Any]:
        def run(module: Any, args: Any, output: Any) -> Any:
            state = output[0] if isinstance(output, tuple) else output
            assert change is not None
            new = change(layer, state.clone(), batch)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return run

    blocks = enumerate(model.blocks()) if change is not None else ()
    hooks = [block.register_forward_hook(hook(layer)) for layer, block in blocks if layer >= first]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()


def occupations(model: ModelHandle, rows: Sequence[Row], first: int) -> Change:
    """Take the stereotype's direction out of occupations."""
    seen: dict[int, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))

    def look(layer: int, state: Tensor, batch: list[Row]) -> Tensor:
        for number, row in enumerate(batch):
            for place, female in zip(row.people, row.female, strict=True):
                seen[layer][female].append(state[number, place].float())
        return state

    gaps(model, rows, first, look)
    ways, middles = {}, {}
    for layer, (male, female) in seen.items():
        way = torch.stack(female).mean(0) - torch.stack(male).mean(0)
        ways[layer] = way / way.norm()
        middles[layer] = torch.stack(male + female).mean(0) @ ways[layer]

    def change(layer: int, state: Tensor, batch: list[Row]) -> Tensor:
        for number, row in enumerate(batch):
            for place in row.people:
                here = state[number, place].float()
                off = (here @ ways[layer] - middles[layer]) * ways[layer]
                state[number, place] = (here - off).to(state.dtype)
        return state

    return change


def pronouns(*which: int) -> Change:
    """Make a pair's pronouns one: in the sentence (0), in the question (1)."""

    def change(layer: int, state: Tensor, batch: list[Row]) -> Tensor:
        for number in range(0, len(batch), 2):
            for place in (batch[number].pronouns[one] for one in which):
                state[number : number + 2, place] = state[number : number + 2, place].mean(0)
        return state

    return change


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data(parser)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--first-layer", type=int, default=3, help="interfered with")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    model = open_model(given.model, device="cpu", dtype="bfloat16")
    rows = rows_of(model, given.data.resolve(), given.pairs, given.seed)
    begun = gaps(model, rows, given.first_layer)
    cases: dict[str, Change | None] = {
        "nothing": None,
        "occupations": occupations(model, rows, given.first_layer),
        "pronoun of the question": pronouns(1),
        "pronoun of the sentence": pronouns(0),
        "both pronouns": pronouns(0, 1),
    }
    print(f"{len(begun)} pairs; gap in nats, its standard error, share of the gap that is left")
    for name, change in cases.items():
        left = gaps(model, rows, given.first_layer, change)
        error = float(left.std() / len(left) ** 0.5)
        print(f"{name:>24}  {left.mean():6.3f}  {error:.3f}  {left.mean() / begun.mean():5.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
