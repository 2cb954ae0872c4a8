"""``safeedit apply``, ``audit`` and ``attack``: runs of a policy, and where their reports go."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from safeedit.cli.github import announce
from safeedit.cli.options import (
    engine_option,
    events_option,
    fresh_option,
    json_option,
    policy_argument,
    report_option,
    seeds_option,
    workers_option,
)
from safeedit.cli.policies import plan_of
from safeedit.cli.screen import Screen
from safeedit.cli.terminal import put_json
from safeedit.errors import UsageError
from safeedit.export.interrupts import noted

if TYPE_CHECKING:
    from safeedit.export.signing.parties import Signer
    from safeedit.planning.plan import Plan
    from safeedit.policy.engine import EngineName
    from safeedit.records import RunRecord


@click.command()
@click.argument("policy", type=click.Path(path_type=Path))
@seeds_option
@engine_option
@workers_option
@fresh_option
@events_option
@json_option
@report_option
@click.option(
    "--sign",
    "key",
    type=click.Path(path_type=Path),
    metavar="KEY|sigstore",
    help="Sign the export with this private key (see 'safeedit keygen'), or, given 'sigstore', "
    "as the identity that the pipeline's platform confirms.",
)
@click.pass_obj
def apply(
    screen: Screen,
    policy: Path,
    seeds: int | None,
    engine: EngineName | None,
    workers: int | None,
    fresh: bool,
    events: Path | None,
    as_json: bool,
    report_dir: Path | None,
    key: Path | None,
) -> int:
    """Run POLICY (or a plan made by 'plan -o'): edit, audit, judge, export what passed."""
    from safeedit.planning.file import check_unmoved, is_plan, read_plan
    from safeedit.running.run import execute

    sign = None if key is None else _signer(key)
    written = read_plan(policy) if is_plan(policy) else None
    if written:
        if seeds is not None:
            raise UsageError(
                "a plan says itself how many seeds it is for",
                file=policy,
                field="--seeds",
                remedy="make it again with 'plan --seeds', or apply the policy",
            )
        made = plan_of(Path(written["policy_file"]), seeds=len(written["seeds"]))
        check_unmoved(made, written)
    else:
        made = plan_of(policy, seeds=seeds)
    made = made.with_engine(engine, workers)
    reports = _Reports(made, report_dir, made.report_dir, beside=made.export_dir)
    if sign is not None and made.export_dir is None:
        raise UsageError(
            "the policy exports nothing, so there is nothing to sign",
            field="--sign",
            remedy="give the policy an 'export', or leave --sign out",
        )
    with screen.context(made.loaded.policy.seed, fresh=fresh, events=reports.beside(events)) as ctx:
        record = execute(made, ctx, write_reports=reports.write, sign=sign)
    _show_record(screen, record, reports.folder, as_json)
    if record.export is not None and made.private_dir is not None:
        screen.say(f"what can undo the edits: {made.private_dir / record.run_id}")
    if noted():
        what = "the export was complete by then and stands" if record.export else "the run ended"
        screen.warn(f"interrupted too late: {what}")
    return record.exit_code


def _signer(named: Path) -> Signer:
    """What to sign with: seen to be there before anything runs."""
    from safeedit.export.signing.keyless import SIGSTORE, open_sigstore
    from safeedit.export.signing.keys import read_signing_key

    return open_sigstore() if str(named) == SIGSTORE else read_signing_key(named)


@click.command()
@policy_argument
@click.option("--model", "source", help="Measure this model instead of the policy's.")
@click.option("--base", help="Compare with this untouched model.")
@fresh_option
@events_option
@json_option
@report_option
@click.pass_obj
def audit(
    screen: Screen,
    policy: Path,
    source: str | None,
    base: str | None,
    fresh: bool,
    events: Path | None,
    as_json: bool,
    report_dir: Path | None,
) -> int:
    """Only measure: run the policy's audits and gates on a model as it is."""
    from safeedit.running.run import measure

    made = plan_of(policy, source=source, editing=False)
    default = made.report_dir.with_name(made.report_dir.stem + ".audit")
    reports = _Reports(made, report_dir, default)
    with screen.context(made.loaded.policy.seed, fresh=fresh, events=reports.beside(events)) as ctx:
        record = measure(made, ctx, base=base, write_reports=reports.write)
    _show_record(screen, record, reports.folder, as_json)
    return record.exit_code


@click.command()
@click.argument("model")
@click.option(
    "--policy",
    type=click.Path(path_type=Path),
    required=True,
    help="Policy with the attacks, audits and gates; its model is the untouched one.",
)
@click.option("--base", help="The untouched model, if it is another than the policy's.")
@fresh_option
@events_option
@json_option
@report_option
@click.pass_obj
def attack(
    screen: Screen,
    model: str,
    policy: Path,
    base: str | None,
    fresh: bool,
    events: Path | None,
    as_json: bool,
    report_dir: Path | None,
) -> int:
    """Attack MODEL, an edited checkpoint from anybody, and judge what comes back.

    Makes the attacks of a policy on MODEL and on the untouched model it was made from, repeats
    the audits and judges the gates. Edits and exports nothing.
    """
    from safeedit.planning.options import adapter_folder, model_source
    from safeedit.policy import load_policy
    from safeedit.running.run import attack as run_attack

    loaded = load_policy(policy)
    if not loaded.policy.attacks:
        raise loaded.error(
            (), "the policy has no attacks", "add 'attacks', or measure with 'safeedit audit'"
        )
    untouched = base or model_source(loaded, loaded.policy.model.source)
    made = plan_of(policy, source=model, editing=False, attacking=True)
    default = made.report_dir.with_name(made.report_dir.stem + ".attack")
    reports = _Reports(made, report_dir, default)
    with screen.context(made.loaded.policy.seed, fresh=fresh, events=reports.beside(events)) as ctx:
        record = run_attack(
            made, ctx, base=untouched, base_adapter=None if base else adapter_folder(loaded),
            write_reports=reports.write,
        )  # fmt: skip
    _show_record(screen, record, reports.folder, as_json)
    return record.exit_code


def _check_free(folder: Path) -> None:
    """Files of a report's names are only overwritten where a report of ours is."""
    from safeedit.report import FILES

    theirs = [name for name in FILES if os.path.lexists(folder / name)]
    if theirs and not _is_report(folder / "report.json"):
        raise UsageError(
            f"there is a {theirs[0]} here that is no report of safeedit, so it is not overwritten",
            file=folder,
            field="--report",
            remedy="choose another folder",
        )


def _is_report(path: Path) -> bool:
    """Whether a file is a run record of this version of safeedit or of another."""
    from safeedit.policy.files import read_json

    try:
        found = read_json(path)
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"schema_version", "run_id", "policy_digest"} <= found.keys()


class _Reports:
    """Where a run's reports go, checked before it starts; ``folder`` is where they went.

    Args:
        plan: The run's.
        given: What --report says.
        default: Without it.
        beside: The export that ``default`` lies beside.
    """

    def __init__(
        self, plan: Plan, given: Path | None, default: Path, beside: Path | None = None
    ) -> None:
        from safeedit.export.places import check_folder

        self.plan = plan
        self.folder = given or default
        self.target = beside if given is None else None
        check_folder(self.folder, "--report", "the report")
        _check_free(self.folder)
        self._check_apart(self.folder, "--report", "the report")

    def _check_apart(self, path: Path, option: str, what: str) -> None:
        from safeedit.export.places import check_apart

        plan = self.plan
        for place, name in ((plan.source_path, "the model"), (plan.export_dir, "the export")):
            if place is not None:
                check_apart(path, place, option, what, name)

    def beside(self, events: Path | None) -> Path | None:
        """Where events go, made sure to be apart from what the run makes or reads."""
        if events is not None:
            self._check_apart(events, "--events", "the file of events")
        return events

    def write(self, record: RunRecord) -> None:
        from safeedit.running.reports import write_reports

        self.folder = write_reports(record, self.folder, self.target)


def _show_record(screen: Screen, record: RunRecord, folder: Path, as_json: bool) -> None:
    from safeedit.report.terminal import render

    if as_json:
        put_json(record.model_dump_json(indent=2))
    render(record, screen.console())
    announce(record, screen)
    screen.say(f"report: {folder / 'report.html'}")
