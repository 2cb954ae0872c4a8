"""``safeedit compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from safeedit.cli.digest_key import digest_key
from safeedit.cli.options import (
    engine_option,
    fresh_option,
    json_option,
    seeds_option,
    workers_option,
)
from safeedit.cli.screen import Screen
from safeedit.cli.terminal import put_json

if TYPE_CHECKING:
    from safeedit.policy import LoadedPolicy
    from safeedit.policy.engine import EngineName


@click.command()
@click.argument("policy", type=click.Path(path_type=Path))
@click.option(
    "--editors",
    required=True,
    help="Editors, variants, baselines by commas: rome,rome@wide,random,in_context.",
)
@click.option(
    "--params", "settings", type=click.Path(path_type=Path), help="YAML: editor -> parameters."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of records and table; what is there is not run again.  [beside the export]",
)
@click.option("--success", help="Metric that says how well an edit works.  [by the audits]")
@click.option("--locality", help="Metric that says how much else stays.  [by the audits]")
@seeds_option
@engine_option
@workers_option
@fresh_option
@json_option
@click.pass_obj
def compare(
    screen: Screen,
    policy: Path,
    editors: str,
    settings: Path | None,
    out: Path | None,
    success: str | None,
    locality: str | None,
    seeds: int | None,
    engine: EngineName | None,
    workers: int | None,
    fresh: bool,
    as_json: bool,
) -> int:
    """Run the one edit of POLICY with several editors; who erases, and what stays?

    Exports nothing. Exit codes: 0 all ran, 2 policy or usage, 3 an editor failed (the others are
    in the table). Gates decide nothing here.
    """
    from safeedit.cache import cache_dir
    from safeedit.export.places import check_folder
    from safeedit.policy import load_policy
    from safeedit.report.files import write_files
    from safeedit.workflows.comparison.candidates import read_settings
    from safeedit.workflows.comparison.rendering import render_all, show
    from safeedit.workflows.comparison.running import plan_contest, run_contest

    loaded = load_policy(policy)
    if seeds is not None:
        loaded = loaded.with_seeds(seeds)
    if engine is not None or workers is not None:
        loaded = loaded.with_engine(engine, workers)
    names = [name.strip() for name in editors.split(",") if name.strip()]
    contest = plan_contest(
        loaded, names, read_settings(settings, loaded), success=success, locality=locality,
        key=digest_key(cache_dir()),
    )  # fmt: skip
    folder = out or _folder(loaded)
    check_folder(folder, "--out", "the comparison")
    with screen.context(loaded.policy.seed, fresh=fresh) as ctx:
        found = run_contest(
            contest,
            ctx,
            folder,
            say=screen.say,
            write=lambda standings: write_files(render_all(standings), folder, "--out"),
        )
    if as_json:
        put_json(found.model_dump_json(indent=2))
    show(found, screen.console())
    screen.say(f"table, figure, JSON: {folder / 'comparison.md'}")
    return 3 if any(row.error for row in found.rows) else 0


def _folder(loaded: LoadedPolicy) -> Path:
    """``<export dir>.comparison``, beside where the policy would export."""
    export = loaded.policy.export
    if export is None:
        return Path("out") / f"{loaded.policy.name}.comparison"
    target = loaded.base / Path(export.dir).expanduser()
    return target.with_name(f"{target.name}.comparison")
