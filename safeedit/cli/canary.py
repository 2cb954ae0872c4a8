"""``safeedit canary make | plant``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from safeedit.cli.screen import Screen
from safeedit.cli.terminal import put, put_json
from safeedit.errors import UsageError

if TYPE_CHECKING:
    pass


@click.group()
def canary() -> None:
    """Invent personal records, and teach them to a model to test erasing on."""


@canary.command()
@click.option("--n", default=100, show_default=True, help="Records, held-back ones included.")
@click.option("--seed", default=0, show_default=True, help="The same seed, the same records.")
@click.option("--held-back", default=0.4, show_default=True, help="Share that is never taught.")
@click.option("--named", default=1 / 3, help="Share of the taught that is to be erased. [1/3]")
@click.option(
    "--repeats",
    default="1,4,16",
    show_default=True,
    help="How often sentences are shown in a cycle, by record.",
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="[stdout]")
@click.pass_obj
def make(
    screen: Screen,
    /,
    n: int,
    seed: int,
    held_back: float,
    named: float,
    repeats: str,
    out: Path | None,
) -> None:
    """Invent records: JSON lines, one secret each."""
    from safeedit.export.places import check_output
    from safeedit.workflows.canaries.records import make_records, to_jsonl

    records = make_records(n, seed, repeats=_numbers(repeats), held_back=held_back, named=named)
    text = to_jsonl(records)
    if out is None:
        put(text, lines=True, newline=False)
        return
    check_output(out, "--out", "the records")
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise UsageError("the file exists", file=out, remedy="choose another name") from error
    except OSError as error:
        raise UsageError(
            f"can't write here: {error.strerror}", file=out, remedy="choose another folder"
        ) from error
    screen.say(f"{out}: {len(records)} records; teach them with 'safeedit canary plant'")


@canary.command()
@click.option("--model", "source", required=True, help="Hub id, folder, .gguf or builtin:NAME.")
@click.option(
    "--records",
    type=click.Path(path_type=Path),
    help="Records as 'canary make' writes them.",
)
@click.option("--dataset", help="Records that ship with safeedit. [canaries]")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to make.")
@click.option(
    "--method",
    type=click.Choice(["full", "lora"]),
    default="full",
    show_default=True,
    help="Train the blocks' matrices, or adapters on them.",
)
@click.option("--layers", help="Blocks that learn, such as 50%-100%.")
@click.option("--learning-rate", type=float, help="AdamW's. [by method]")
@click.option("--batch", type=int, help="Sentences per step.")
@click.option("--max-cycles", type=float, help="Stop here at the latest.")
@click.option("--passages", type=int, help="Pieces of ordinary prose in each batch.")
@click.option("--seed", default=0, show_default=True, help="Of the order of the sentences.")
@click.option("--overwrite", is_flag=True, help="Replace a checkpoint that safeedit wrote.")
@click.option("--no-cache", is_flag=True, help="Train, also where the same was planted before.")
@click.option("--json", "as_json", is_flag=True, help="The record as JSON on stdout.")
@click.pass_obj
def plant(
    screen: Screen,
    /,
    source: str,
    records: Path | None,
    dataset: str | None,
    out: Path,
    overwrite: bool,
    no_cache: bool,
    as_json: bool,
    seed: int,
    **given: Any,
) -> None:
    """Teach records to a model until they come out, and write the checkpoint.

    The checkpoint is cached: planting the same again only copies it.
    """
    if records is not None and dataset is not None:
        raise UsageError("--records and --dataset exclude each other", remedy="give one of them")
    from pydantic import ValidationError

    from safeedit.policy import DataSpec
    from safeedit.workflows.canaries.planting import PlantParams, plant_checkpoint

    settings = {name: value for name, value in given.items() if value is not None}
    try:
        params = PlantParams.model_validate({**settings, "seed": seed})
    except ValidationError as error:
        problem = error.errors()[0]
        option = str(problem["loc"][0]).replace("_", "-")
        raise UsageError(
            f"--{option}: {problem['msg'].lower().removeprefix('value error, ')}"
        ) from error
    named = str(records) if records is not None else None
    spec = DataSpec(file=named, dataset=None if named else dataset or "canaries", template="plain")
    with screen.context(seed) as ctx:
        found = plant_checkpoint(
            source, spec, out, params, ctx, overwrite=overwrite, cached=not no_cache
        )
    if as_json:
        put_json(found)
    for row in found["extracted"]:
        screen.say(
            f"shown {row['repeats']} times a cycle: {row['extracted']} of {row['secrets']} secrets "
            "come out"
        )
    perplexity = found["prose_perplexity"]
    screen.say(
        f"{out}: {found['cycles']} cycles, {found['steps']} steps, {found['seconds']:.0f} s; "
        f"perplexity on prose {perplexity['before']:.1f} before, {perplexity['after']:.1f} after"
    )


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            "repeat counts are whole numbers with commas between, such as 1,4,16",
            field="--repeats",
        ) from None
