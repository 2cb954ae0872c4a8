"""CPU seconds that learning values takes, with and without what stands before subjects kept.

Facts of ``known_1000`` in two openings each; the same steps are taken both ways. Without, the
only thing kept is what all rows begin with.

    python benchmarks/values.py --data ../shared/data
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from table import add_data

from safeedit.methods.facts import passes
from safeedit.methods.facts.keys import subject_spot
from safeedit.methods.facts.least_values import least_values
from safeedit.methods.facts.objectives import FactObjective, ObjectivePrompt, SuppressTokens
from safeedit.methods.facts.values import learn_values
from safeedit.model.handle import ModelHandle
from safeedit.model.sources import open_model

OPENINGS = ("{}", "My neighbour told me this. {}")


def _units(model: ModelHandle, source: Path, count: int) -> list[FactObjective]:
    units = []
    for fact in json.loads(source.read_text())[:count]:
        rows = []
        for template in (
            ("plain", "chat") if model.engine.codec.tokenizer.chat_template else ("plain",)
        ):
            texts = [opening.format(fact["prompt"].strip()) for opening in OPENINGS]
            first = model.engine.continuation(fact["attribute"], template)[0]
            for ids in model.engine.encode(texts, template):
                if spot := subject_spot(model, ids, fact["subject"]):
                    rows.append(ObjectivePrompt(spot, SuppressTokens((first,), -8.0)))
        if rows:
            units.append(FactObjective(tuple(rows)))
    return units


def _seconds(
    model: ModelHandle, layer: int, units: list[FactObjective], way: str, steps: int
) -> float:
    start = time.process_time()
    if way == "least":
        least_values(model, layer, units, steps=steps, max_norm=1.5, stop=0.0)
    else:
        learn_values(
            model, layer, units, steps=steps, learning_rate=0.1, max_norm=1.5, keep_weight=0.0,
            decay=0.05, stop=0.0,
        )  # fmt: skip
    return time.process_time() - start


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_data(parser)
    parser.add_argument("--facts", type=Path, help="in place of known_1000 in that folder")
    parser.add_argument("--model", default="builtin:smollm2-135m-instruct")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--layer", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args(arguments)
    model = open_model(args.model, dtype=args.dtype)
    units = _units(model, args.facts or args.data / "known_1000" / "known_1000.json", args.count)
    for way in ("adam", "least"):
        kept, share = _seconds(model, args.layer, units, way, args.steps), passes.KEPT_SHARE
        try:
            passes.KEPT_SHARE = 0.0
            whole = _seconds(model, args.layer, units, way, args.steps)
        finally:
            passes.KEPT_SHARE = share
        print(
            f"{way}: {kept / len(units):.2f} CPU seconds per fact, {whole / len(units):.2f} "
            f"without what is kept, {whole / kept:.1f} times as many"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
