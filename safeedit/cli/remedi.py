"""``safeedit remedi train | probe | steer``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from safeedit.cli.screen import Screen
from safeedit.cli.terminal import put, put_json
from safeedit.errors import UsageError

if TYPE_CHECKING:
    from safeedit.data import Dataset


@click.group()
def remedi() -> None:
    """Teach a map from what a text says of an entity; probe a model with it, or steer it."""


_model = click.option(
    "--model", "source", required=True, help="Hub id, folder, .gguf or builtin:NAME."
)
_lessons = click.option(
    "--lessons", type=click.Path(path_type=Path), help="Lessons as JSON lines. [built in]"
)
_map = click.option(
    "--map", "file", required=True, type=click.Path(path_type=Path), help="As 'train' writes it."
)
_split = click.option(
    "--split",
    type=click.Choice(["fit", "validation", "test"]),
    default="test",
    show_default=True,
    help="Of the lessons.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Figures as JSON on stdout.")


@remedi.command()
@_model
@_lessons
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A file to make.")
@click.option("--layers", default="36%-36%", show_default=True, help="One layer.")
@click.option("--epochs", default=20, show_default=True, type=click.IntRange(1))
@click.option("--learning-rate", default=3e-4, show_default=True, type=click.FloatRange(0))
@click.option("--rank", type=click.IntRange(1), help="[full, or 64 with few lessons]")
@click.option("--seed", default=0, show_default=True)
@click.pass_obj
def train(
    screen: Screen,
    /,
    source: str,
    lessons: Path | None,
    out: Path,
    layers: str,
    epochs: int,
    learning_rate: float,
    rank: int | None,
    seed: int,
) -> None:
    """Train a map on the lessons' fit split, and write it as one safetensors file."""
    from pydantic import TypeAdapter, ValidationError

    from safeedit.export.places import check_output
    from safeedit.methods.remedi.training import TrainingConfig
    from safeedit.methods.remedi.training import train as learn
    from safeedit.model.sources import open_model
    from safeedit.policy.layers import Layers, resolve
    from safeedit.workflows.remedi.measuring import lessons_of

    check_output(out, "--out", "the map")
    if out.exists():
        raise UsageError("the file exists", file=out, remedy="choose another name")
    try:
        asked = TypeAdapter(Layers).validate_python(layers)
    except ValidationError as error:
        problem = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        raise UsageError(f"--layers: {problem}", remedy="name one, such as 36%-36%") from error
    data = _data(lessons)
    how = TrainingConfig(rank=rank, epochs=epochs, learning_rate=learning_rate, seed=seed)
    with screen.context(seed) as ctx:
        model = open_model(source)
        chosen = resolve(asked, model.n_layers)
        if len(chosen) != 1:
            raise UsageError(f"--layers names {len(chosen)} layers", remedy="name one")
        learnt = learn(
            model, lessons_of(data, "fit", both_ways=True), chosen[0],
            model.engine.codec.resolve(data.template), how, progress=ctx.progress,
        )  # fmt: skip
        try:
            learnt.save(out)
        except OSError as error:
            raise UsageError(f"can't write here: {error}", file=out) from error
    notes = learnt.notes
    screen.say(
        f"{out}: {notes['lessons']:.0f} lessons, {notes['epochs']:.0f} epochs, held-out loss "
        f"{notes['loss_before']:.2f} before, {notes['loss_after']:.2f} after"
    )


@remedi.command()
@_model
@_map
@_lessons
@_split
@click.option("--told", is_flag=True, help="Put each context before its prompt.")
@_json
@click.pass_obj
def probe(
    screen: Screen,
    /,
    source: str,
    file: Path,
    lessons: Path | None,
    split: Any,
    told: bool,
    as_json: bool,
) -> None:
    """Which of two attributes does the model hold of each entity? With a control task."""
    from safeedit.methods.remedi.mapping import Remedi
    from safeedit.model.sources import open_model
    from safeedit.workflows.remedi.measuring import probe as measure

    learnt, data = Remedi.load(file), _data(lessons)
    model = open_model(source)
    learnt.check(model)
    found = measure(model, learnt, data, split, told=told)
    if as_json:
        put_json(found.record())
    screen.say(
        f"{found.entities} entities: accuracy {found.accuracy:.2f}, control task "
        f"{found.control:.2f}, selectivity {found.selectivity:+.2f}"
    )


@remedi.command()
@_model
@_map
@_lessons
@_split
@click.option("--scale", default=1.0, show_default=True, help="Of the shifts.")
@click.option("--prompt", help="Continue this text, steered, instead of measuring.")
@click.option("--tokens", default=24, show_default=True, type=click.IntRange(1), help="Of text.")
@_json
@click.pass_obj
def steer(
    screen: Screen,
    /,
    source: str,
    file: Path,
    lessons: Path | None,
    split: Any,
    scale: float,
    prompt: str | None,
    tokens: int,
    as_json: bool,
) -> None:
    """Steer at run time: how much likelier do the wanted words become? Changes no weights."""
    from safeedit.methods.remedi.mapping import Remedi
    from safeedit.methods.remedi.steering import steering
    from safeedit.model.sources import open_model
    from safeedit.workflows.remedi.measuring import lessons_of, lift

    learnt, data = Remedi.load(file), _data(lessons)
    model = open_model(source)
    learnt.check(model)
    steers = learnt.learnt_of(model, lessons_of(data, split), scale)
    template = model.engine.codec.resolve(data.template)
    if prompt is not None:
        with steering(model, steers):
            ((answer,),) = model.engine.generate(
                model.engine.encode([prompt], template), max_new_tokens=tokens
            )
        put(model.engine.decode(answer), lines=True)
        return
    items = [item for item in data.items(split) if item.extra.get("other") is not None]
    if not items:
        raise UsageError(f"no lesson of the {split} split names another word")
    with screen.context(0) as ctx:
        found = lift(model, steering(model, steers), items, [], template, ctx)
    if as_json:
        put_json(asdict(found))
    screen.say(
        f"{len(items)} prompts: the target's log-odds rise by {found.margin:.2f} nats per token, "
        f"its probability by {found.probability:.3f}; likelier than before in {found.raised:.0%}"
    )


def _data(file: Path | None) -> Dataset:
    from safeedit.data.loading import load_dataset
    from safeedit.policy import DataSpec

    if file is not None:
        return load_dataset(DataSpec(file=str(file), template="plain"))
    return load_dataset(DataSpec(dataset="attributes", where={"role": "lesson"}, template="plain"))
