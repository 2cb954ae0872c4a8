"""Arguments and options that several commands take."""

from __future__ import annotations

from pathlib import Path

import click

policy_argument = click.argument("policy", type=click.Path(path_type=Path))
json_option = click.option("--json", "as_json", is_flag=True, help="Result as JSON on stdout.")
report_option = click.option(
    "--report",
    "report_dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the reports (default: beside the export).",
)
seeds_option = click.option(
    "--seeds",
    type=click.IntRange(min=1),
    help="Run with so many seeds, from the policy's on; as its own 'seeds'.",
)
engine_option = click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    help="Who makes audits, in place of the policy's 'engine'.",
)
workers_option = click.option(
    "--workers", type=click.IntRange(1, 256), help="Of the engine, each with a copy of the model."
)
fresh_option = click.option(
    "--fresh",
    is_flag=True,
    help="Make audits, edits and attacks again that earlier runs have finished.",
)
events_option = click.option(
    "--events",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Add what the run tells of itself to this file, as JSON lines.",
)
