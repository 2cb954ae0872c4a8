"""``safeedit trace``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from safeedit.cli.digest_key import digest_key
from safeedit.cli.screen import Screen
from safeedit.cli.terminal import put_json
from safeedit.errors import UsageError

if TYPE_CHECKING:
    from safeedit.workflows.tracing.record import Trace


@click.command()
@click.argument("policy", type=click.Path(path_type=Path))
@click.option("--edit", "name", help="Id or number of the edit. [the first with facts]")
@click.option("--facts", default=20, show_default=True, type=click.IntRange(2), help="At most.")
@click.option(
    "--noise", default=3.0, show_default=True, type=click.FloatRange(0, min_open=True),
    help="Standard deviations of the subjects' embeddings.",
)  # fmt: skip
@click.option(
    "--draws", default=3, show_default=True, type=click.IntRange(1), help="Of the noise per fact."
)
@click.option(
    "--window", type=click.IntRange(1),
    help="Layers of MLPs or attentions put back at a time. [a fifth of the model]",
)  # fmt: skip
@click.option("--check", help="Also run the edit at each of these layers: 2,5,8 or 3-8 or 10%-30%.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder to write to.")
@click.option("--json", "as_json", is_flag=True, help="The trace as JSON on stdout.")
@click.pass_obj
def trace(
    screen: Screen,
    /,
    policy: Path,
    name: str | None,
    facts: int,
    noise: float,
    draws: int,
    window: int | None,
    check: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Trace which layers carry the facts of a POLICY's edit; changes and exports nothing.

    Writes trace.json and trace.html, and ends with a 'layers:' line for rome, memit and alphaedit.
    """
    from safeedit.cache import cache_dir
    from safeedit.export.places import check_folder
    from safeedit.planning.resolution import make_plan
    from safeedit.policy import load_policy
    from safeedit.policy.layers import may_be_chosen
    from safeedit.workflows.tracing.measuring import TracingSettings, choose_edit, trace_edit

    plan = make_plan(load_policy(policy), exporting=False, key=digest_key(cache_dir()))
    edit = choose_edit(plan, name)
    checked = _layers(check, plan.shape.n_layers) if check is not None else ()
    folder = out or plan.report_dir.with_name(plan.report_dir.stem + ".trace")
    check_folder(folder, "--out", "the trace")
    spec = plan.loaded.policy.model
    seed = plan.loaded.policy.seed
    with screen.context(seed) as ctx:
        from safeedit.model.sources import open_model

        model = open_model(
            plan.model_source, revision=spec.revision, dtype=spec.dtype, device=spec.device,
            adapter=plan.adapter,
        )  # fmt: skip
        how = TracingSettings(facts=facts, noise=noise, draws=draws, window=window, seed=seed)
        found = trace_edit(model, plan, edit, how, ctx, checked)
    _write(found, folder)
    if as_json:
        put_json(found.model_dump_json(indent=2))
    _tell(screen, found, folder, chooses=may_be_chosen(type(edit.params)))


def _layers(text: str, n_layers: int) -> tuple[int, ...]:
    from pydantic import TypeAdapter, ValidationError

    from safeedit.policy.layers import Layers, resolve

    parts = [part.strip() for part in text.split(",")]
    given = [int(part) for part in parts] if all(part.isdigit() for part in parts) else text
    try:
        return resolve(TypeAdapter(Layers).validate_python(given), n_layers)
    except ValidationError as error:
        raise UsageError(
            f"{text!r} names no layers", field="--check", remedy="write 2,5,8 or 3-8 or 10%-30%"
        ) from error


def _write(found: Trace, folder: Path) -> None:
    from safeedit.report.files import write_files
    from safeedit.workflows.tracing.page import render

    files = {"trace.json": found.model_dump_json(indent=2) + "\n", "trace.html": render(found)}
    write_files(files, folder, "--out")


def _tell(screen: Screen, found: Trace, folder: Path, *, chooses: bool) -> None:
    from safeedit.report.wording import estimate

    screen.say(
        f"{found.facts} facts traced, {found.not_told} left out; the answer's probability is "
        f"{found.probability.value:.2f}, under noise {found.under_noise.value:.2f}"
    )
    if found.check is not None:
        screen.say(f"{found.check.editor} at dose {found.check.dose:g}:")
        for one in found.check.layers:
            success = estimate(one.success.value, one.success.interval)
            screen.say(f"  layer {one.layer}: effect {one.effect:.3f}, success {success}")
    screen.say(f"map: {folder / 'trace.html'}")
    if chooses:
        screen.say("layers: auto   # has the run try several depths, and takes what edits best")
    if (advice := found.recommendation) is not None:
        screen.say(f"{advice.one}   # one layer; for several '{advice.several}'")
