"""REMEDI on the built-in model: does the probe tell, does steering move, does compiling keep it?

A map is trained on the fit lessons of ``datasets/attributes``. On its test lessons, whose entities
and attributes it has never seen:

* the probe's accuracy and that of its control task, on what the model knows (concepts) and on what
  it has just been told (persons);
* how much likelier the wanted word becomes, steered at run time and compiled into weights at the
  scales given, with the share of neighbours who stay as they were.

"kept" is the compiled rise of the log-odds over the steered one: at least a half is wanted, with
locality at least 0.9.

    python benchmarks/remedi.py --threads 2
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from safeedit import catalog
from safeedit.contracts import EditData, Proposal, RunContext, Template
from safeedit.data import Dataset, Item
from safeedit.data.loading import load_dataset
from safeedit.methods.remedi.mapping import Remedi
from safeedit.methods.remedi.steering import steering
from safeedit.model.handle import ModelHandle
from safeedit.model.sources import open_model
from safeedit.policy import DataSpec
from safeedit.workflows.remedi.measuring import lessons_of, lift, probe


def compiled(
    model: ModelHandle,
    items: Sequence[Item],
    data: dict[str, Dataset],
    ctx: RunContext,
    **params: Any,
) -> Proposal:
    """The editor's change that gives these entities their contexts' attributes.

    Args:
        model: Whose weights are to change.
        items: Lessons; their contexts count, their targets don't.
        data: Further roles of the editor: lessons, neighbours, prose.
        ctx: Of the run.
        params: Of the editor.
    """
    kind = catalog.editor("remedi")
    template: Template = next((each.template for each in data.values()), "plain")
    entities = Dataset(
        [Item(i.id, i.prompt, subject=i.subject, extra=i.extra) for i in items],
        name="entities", erased=True, template=template,
    )  # fmt: skip
    roles = {name: each.without("test") for name, each in data.items()}
    given = EditData({**roles, "entities": entities.without("test")})
    return kind(kind.Params(**params)).propose(model, given, ctx)


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="builtin:smollm2-135m-instruct")
    parser.add_argument("--lessons", type=Path, help="in place of the built-in attributes")
    parser.add_argument("--limit", type=int, help="items of each kind at most, for a trial")
    parser.add_argument("--layers", default="36%-36%")
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="the map's")
    parser.add_argument("--scales", type=float, nargs="+", default=[0.5, 1.0, 1.5])
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)

    def data(**where: object) -> DataSpec:
        return DataSpec(  # type: ignore[arg-type]
            dataset=None if given.lessons else "attributes",
            file=given.lessons and str(given.lessons),
            where=where,
            template="plain",
            limit=given.limit,
        )

    model = open_model(given.model, device="cpu", dtype=given.dtype)
    lessons, near = load_dataset(data(role="lesson")), load_dataset(data(role="near"))
    prose = load_dataset(DataSpec(dataset="prose", limit=given.limit))
    test, neighbours = lessons.items("test"), near.items("test")
    with tempfile.TemporaryDirectory() as folder:
        ctx = RunContext(seed=given.seed, cache=Path(folder), secret=b"benchmark", warn=print)
        begin = time.perf_counter()
        proposal = compiled(
            model, test, {"lessons": lessons, "neighbours": near, "prose": prose}, ctx,
            layers=given.layers, learning_rate=given.learning_rate,
        )  # fmt: skip
        seconds = time.perf_counter() - begin
        (file,) = Path(folder, "remedi").glob("*.safetensors")
        learnt = Remedi.load(file)
        print(f"map: {dict(learnt.notes)}")
        print(f"trained and compiled for {len(test)} entities in {seconds:.0f} s")
        for name, value in proposal.notes.items():
            print(f"  {name}: {value}")
        for kind, told in (("concept", False), ("person", True)):
            some = load_dataset(data(role="lesson", kind=kind))
            found = probe(model, learnt, some, "test", told=told, seed=given.seed)
            print(f"probe, {kind}s: accuracy {found.accuracy:.2f}, control {found.control:.2f} "
                  f"({found.entities} entities)")  # fmt: skip
        print("                  margin  probability  accuracy  raised  locality  kept")
        for scale in given.scales:
            steers = learnt.learnt_of(model, lessons_of(lessons, "test"), scale)
            steered = lift(model, steering(model, steers), test, neighbours, "plain", ctx)
            weights = lift(model, model.applied(proposal.at(scale)), test, neighbours, "plain", ctx)
            for name, one in (("steer", steered), ("compile", weights)):
                kept = one.margin / steered.margin if steered.margin else float("nan")
                print(f"{name:>8} x {scale:<5}  {one.margin:7.3f}  {one.probability:11.4f}  "
                      f"{one.accuracy:8.2f}  {one.raised:6.2f}  {one.locality or 0:8.2f}  "
                      f"{kept:4.2f}")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
