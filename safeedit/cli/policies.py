"""``safeedit validate`` and ``plan``: what a policy would do, without a weight loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from safeedit.cli.digest_key import digest_key
from safeedit.cli.options import json_option, policy_argument, seeds_option
from safeedit.cli.screen import Screen
from safeedit.cli.terminal import put, put_json, tell

if TYPE_CHECKING:
    from safeedit.planning.plan import Plan


_BASIS = {
    "runs here": "by what the same work took on this machine",
    "like runs here": "by what work like it took on this machine; may be off by several times",
    "arithmetic": "by arithmetic, for nothing like it has run here; may be off by several times",
}
"""What an estimate of time stands on -> in words."""


@click.command()
@policy_argument
@json_option
@click.pass_obj
def validate(screen: Screen, policy: Path, as_json: bool) -> None:
    """Check a policy, its names, parameters, data and gates. Loads no weights."""
    plan = plan_of(policy, exporting=False, keyed=False)  # nothing of it is kept
    if as_json:
        put_json({"valid": True, "warnings": list(plan.warnings)})
    else:
        for warning in plan.warnings:
            screen.warn(warning)
        screen.say(f"{policy}: valid")


@click.command()
@policy_argument
@seeds_option
@json_option
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the plan; 'apply FILE' refuses if anything has moved since.",
)
def plan(policy: Path, seeds: int | None, as_json: bool, output: Path | None) -> None:
    """Show what a run would touch: layers, tensors, data, gates, memory, time."""
    from safeedit.planning.file import write_plan

    made = plan_of(policy, exporting=False, seeds=seeds)
    if output is not None:
        write_plan(made, output)
    if as_json:
        put_json(made.summary())
    else:
        _show_plan(made)


def plan_of(
    path: Path,
    source: str | None = None,
    *,
    editing: bool = True,
    attacking: bool = False,
    exporting: bool = True,
    keyed: bool = True,
    seeds: int | None = None,
) -> Plan:
    from safeedit.cache import cache_dir
    from safeedit.planning.resolution import make_plan
    from safeedit.policy import load_policy

    loaded = load_policy(path)
    if source is not None:
        # Given on the command line, a path starts at the working directory.
        here = Path(source).expanduser()
        loaded = loaded.with_model_source(str(here.absolute()) if here.exists() else source)
    if seeds is not None:
        loaded = loaded.with_seeds(seeds)
    if not editing:
        loaded = loaded.without_edits(attacks=attacking)
    return make_plan(loaded, exporting=exporting, key=digest_key(cache_dir()) if keyed else None)


def _show_plan(plan: Plan) -> None:
    from safeedit.report.wording import duration

    summary = plan.summary()
    model = summary["model"]
    put(
        f"{summary['name']}: {model['source']} ({model['architecture']}, "
        f"{model['layers']} layers, {model['parameters']:,} parameters, {model['dtype']})"
    )
    if len(summary["seeds"]) > 1:
        put(f"seeds {', '.join(map(str, summary['seeds']))}: a run with each, the first exports")
    for edit in summary["edits"]:
        _show_edit(edit)
    for audit in summary["audits"]:
        put(f"audit {audit['id']} ({audit['use']})")
    _show_attacks(summary["attacks"])
    for name, data in summary["data"].items():
        counts = ", ".join(f"{split} {count}" for split, count in data["items"].items())
        put(f"data {name}: {counts}; digest {data['digest'][:16]}")
        for note in data["notes"]:
            put(f"    {note}")
    for gate in summary["gates"]:
        put(f"gate {gate['metric']}: {gate['condition']}")
        if gate["power"]:
            put(f"    {gate['power']}")
    if counts := summary["ledger"]:
        put(
            f"ledger: {counts['earlier']} rows carried on, {counts['entering']} to enter, "
            f"{counts['missing']} without a request"
        )
    estimates = summary["estimates"]
    put(
        f"estimates: {estimates['peak_memory_bytes'] / 1e9:.1f} GB peak, "
        f"{duration(estimates['seconds'])} if nothing of it has been done before "
        f"({_BASIS[estimates['basis']]})"
    )
    for stage, seconds in estimates["stages"].items():
        put(f"    {stage}: {duration(seconds)}")
    put(f"export: {summary['export'] or 'none'}")
    for warning in summary["warnings"]:
        tell(f"warning: {warning}")


def _show_attacks(attacks: Sequence[Mapping[str, Any]]) -> None:
    from safeedit.report.wording import plural

    for attack in attacks:
        seeds = f", {attack['seeds']} seeds" if attack["seeds"] > 1 else ""
        put(
            f"attack {attack['id']} ({attack['use']}): {plural(attack['strengths'], 'strength')}"
            f"{seeds}, "
            f"repeats {', '.join(attack['audits'])}"
        )
        for key, value in attack["params"].items():
            put(f"    {key}: {value}")
        if attack["items_left_out"]:
            put(f"    {attack['items_left_out']} items are its own; the audits ask about the rest")


def _show_edit(edit: Mapping[str, Any]) -> None:
    layers = edit["layers"]
    span = f"layers {layers[0]}-{layers[-1]}" if layers else "no layers"
    put(
        f"edit {edit['id']} ({edit['use']}): {span}, {len(edit['tensors'])} tensors, "
        f"{edit['parameters_touched']:,} parameters, dose {edit['dose']}"
    )
    if tried := edit["layers_tried"]:
        places = "; ".join(",".join(map(str, layers)) for layers in tried)
        put(
            f"    layers: auto tries {places} on a few facts, and takes what does best on "
            "validation data"
        )
    for target in edit["targets"]:
        put(f"    target {target['metric']}: {target['condition']}, on validation data")
    for key, value in edit["params"].items():
        put(f"    {key}: {value}")
    for tensor in edit["tensors"]:
        put(f"    {tensor}")
