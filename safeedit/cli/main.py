"""The command line: ``safeedit validate | plan | apply | audit | report | ...``.

Exit codes, decided once: 0 passed (and exported); 1 a gate failed, and only that; 2 policy or
usage; 3 environment or runtime, every uncaught error and Ctrl-C; 4 inconclusive.

People read stderr; machines read ``--json`` on stdout. Imports of the working modules live inside
the commands, so that ``--help`` and ``--version`` answer at once.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from safeedit import __version__
from safeedit.cli.canary import canary
from safeedit.cli.compare import compare
from safeedit.cli.digest_key import digest_key
from safeedit.cli.ledger import ledger
from safeedit.cli.listing import list_
from safeedit.cli.remedi import remedi
from safeedit.cli.scorer import scorer
from safeedit.cli.start import init
from safeedit.cli.terminal import console, put, put_json, tell
from safeedit.cli.trace import trace
from safeedit.errors import SafeeditError, UsageError
from safeedit.export.interrupts import noted, until_done

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress

    from safeedit.contracts import RunContext
    from safeedit.planning.plan import Plan
    from safeedit.records import RunRecord

EXIT_RUNTIME = 3
_DEBUG = (
    "SAFEEDIT_DEBUG is set: where something fails, the traceback on this screen may quote the "
    "data, that to be erased included; unset it where output is kept or shown to others"
)


@dataclass(frozen=True)
class Screen:
    """How to talk to whoever called: quietly or not, in JSON or not."""

    quiet: bool
    verbose: bool

    def console(self) -> Console:
        return console(stderr=True, quiet=self.quiet)

    def say(self, text: str) -> None:
        if not self.quiet:
            tell(text)

    def warn(self, message: str) -> None:
        tell(f"warning: {message}")

    def context(self, seed: int) -> AbstractContextManager[RunContext]:
        """What work on a model may know of its surroundings, progress bars included."""
        return _Context(self, seed)

    def beside(self, bars: RichProgress, message: str) -> None:
        """A warning while bars are drawn: above them, never read as markup, never wrapped."""
        if bars.disable:
            self.warn(message)
        else:
            bars.console.print(
                f"warning: {message}", style="yellow", markup=False, highlight=False, soft_wrap=True
            )


def _hush(context: click.Context, _: click.Parameter, given: bool) -> None:
    if given:
        context.obj = replace(context.find_object(Screen) or Screen(False, False), quiet=True)


class _Boundary(click.Group):
    """The one place where an exception becomes an exit code."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Every command takes -q behind its name as well as before it."""
        leaves = cmd.commands.values() if isinstance(cmd, click.Group) else (cmd,)
        for leaf in leaves:
            leaf.params.append(
                click.Option(
                    ["-q", "--quiet"],
                    is_flag=True,
                    expose_value=False,
                    callback=_hush,
                    help="Errors and warnings only.",
                )
            )
        super().add_command(cmd, name)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        whole = not args and not kwargs  # this call is the whole process, not one of a test's
        with until_done():
            self._main(whole, *args, **kwargs)

    def _main(self, whole: bool, *args: Any, **kwargs: Any) -> NoReturn:
        kwargs["standalone_mode"] = False
        try:
            result = super().main(*args, **kwargs)
        except click.exceptions.Exit as request:
            sys.exit(request.exit_code)
        except SystemExit:
            # Only click itself exits, with 1 where the reader of a pipe has gone: no gate failed.
            sys.exit(EXIT_RUNTIME)
        except click.ClickException as error:
            words = io.StringIO()
            error.show(words)
            tell(words.getvalue().removesuffix("\n"), lines=True)
            sys.exit(2)
        except (click.Abort, KeyboardInterrupt):
            tell("interrupted; no half-written export is left")
            sys.exit(EXIT_RUNTIME)
        except SafeeditError as error:
            tell(f"error: {error}", lines=True)
            sys.exit(error.exit_code)
        except Exception as error:
            # An exception of a library may quote data: show its type and place, not its words.
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(frame.filename).name}:{frame.lineno}"
            tell(f"error: unexpected {type(error).__name__} at {place}")
            if os.environ.get("SAFEEDIT_DEBUG"):
                tell(traceback.format_exc(), lines=True)
            else:
                tell("  remedy: SAFEEDIT_DEBUG=1 shows the traceback, data included")
            sys.exit(EXIT_RUNTIME)
        if whole:  # all is done: nothing is left to interrupt but the interpreter's way out
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.exit(result if isinstance(result, int) else 0)


@click.group(cls=_Boundary, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="safeedit")
@click.option("-q", "--quiet", is_flag=True, help="Errors and warnings only.")
@click.option("-v", "--verbose", is_flag=True, help="Also what libraries say.")
@click.pass_context
def main(context: click.Context, quiet: bool, verbose: bool) -> None:
    """Edit what a language model knows and says, and prove it.

    Exit codes: 0 passed, 1 a gate failed, 2 policy or usage, 3 runtime, 4 inconclusive.
    """
    if not verbose:
        warnings.simplefilter("ignore")  # of libraries: for developers, and they may quote data
    if os.environ.get("SAFEEDIT_DEBUG"):
        Screen(quiet, verbose).warn(_DEBUG)
    context.obj = Screen(quiet, verbose)


policy_argument = click.argument("policy", type=click.Path(path_type=Path))
json_option = click.option("--json", "as_json", is_flag=True, help="Result as JSON on stdout.")
report_option = click.option(
    "--report",
    "report_dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the reports (default: beside the export).",
)


@main.command()
@policy_argument
@json_option
@click.pass_obj
def validate(screen: Screen, policy: Path, as_json: bool) -> None:
    """Check a policy, its names, parameters, data and gates. Loads no weights."""
    plan = _plan(policy, exporting=False, keyed=False)  # nothing of it is kept
    if as_json:
        put_json({"valid": True, "warnings": list(plan.warnings)})
    else:
        for warning in plan.warnings:
            screen.warn(warning)
        screen.say(f"{policy}: valid")


@main.command()
@policy_argument
@json_option
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the plan; 'apply FILE' refuses if anything has moved since.",
)
def plan(policy: Path, as_json: bool, output: Path | None) -> None:
    """Show what a run would touch: layers, tensors, data, gates, memory, time."""
    from safeedit.planning.file import write_plan

    made = _plan(policy, exporting=False)
    if output is not None:
        write_plan(made, output)
    if as_json:
        put_json(made.summary())
    else:
        _show_plan(made)


@main.command()
@click.argument("policy", type=click.Path(path_type=Path))
@json_option
@report_option
@click.pass_obj
def apply(screen: Screen, policy: Path, as_json: bool, report_dir: Path | None) -> int:
    """Run POLICY (or a plan made by 'plan -o'): edit, audit, judge, export what passed."""
    from safeedit.planning.file import check_unmoved, is_plan, read_plan
    from safeedit.running.run import execute

    written = read_plan(policy) if is_plan(policy) else None
    made = _plan(Path(written["policy_file"]) if written else policy)
    if written:
        check_unmoved(made, written)
    reports = _Reports(made, report_dir, made.report_dir, beside=made.export_dir)
    with screen.context(made.loaded.policy.seed) as ctx:
        record = execute(made, ctx, write_reports=reports.write)
    _show_record(screen, record, reports.folder, as_json)
    if noted():
        what = "the export was complete by then and stands" if record.export else "the run ended"
        screen.warn(f"interrupted too late: {what}")
    return record.exit_code


@main.command()
@policy_argument
@click.option("--model", "source", help="Measure this model instead of the policy's.")
@click.option("--base", help="Compare with this untouched model.")
@json_option
@report_option
@click.pass_obj
def audit(
    screen: Screen,
    policy: Path,
    source: str | None,
    base: str | None,
    as_json: bool,
    report_dir: Path | None,
) -> int:
    """Only measure: run the policy's audits and gates on a model as it is."""
    from safeedit.running.run import measure

    made = _plan(policy, source=source, editing=False)
    default = made.report_dir.with_name(made.report_dir.stem + ".audit")
    reports = _Reports(made, report_dir, default)
    with screen.context(made.loaded.policy.seed) as ctx:
        record = measure(made, ctx, base=base, write_reports=reports.write)
    _show_record(screen, record, reports.folder, as_json)
    return record.exit_code


@main.command()
@click.argument("record", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "kind",
    type=click.Choice(["terminal", "html", "md", "junit"]),
    default="terminal",
    show_default=True,
)
def report(record: Path, kind: str) -> None:
    """Render RECORD (a report.json, or a folder holding one) again."""
    from safeedit.report import render_all
    from safeedit.report.terminal import render

    found = _read_record(record)
    if kind == "terminal":
        render(found, console(stderr=False))
    else:
        name = {"html": "report.html", "md": "report.md", "junit": "junit.xml"}[kind]
        put(render_all(found)[name], lines=True)


@main.command()
@click.argument("before", type=click.Path(path_type=Path, exists=True))
@click.argument("after", type=click.Path(path_type=Path, exists=True))
@json_option
def diff(before: Path, after: Path, as_json: bool) -> None:
    """Compare two checkpoints tensor by tensor, streamed from disk."""
    from safeedit.export.compare import diff_checkpoints

    rows = diff_checkpoints(before, after)
    if as_json:
        put_json([row.model_dump() for row in rows])
        return
    for row in rows:
        put(
            f"{row.name}  {row.status}  changed {row.share_changed:.2%}"
            f"  relative norm {row.relative_norm:.3g}"
        )
    tell(f"{len(rows)} tensors differ")


@main.command()
@click.argument("export", type=click.Path(path_type=Path, exists=True, file_okay=False))
def verify(export: Path) -> int:
    """Check an exported checkpoint against its evidence, and the evidence against itself.

    Exit codes: 0 all matches, 1 something does not, 4 only what another version of safeedit
    concluded or drew could not be drawn again.
    """
    from safeedit.workflows.verification import check

    found = check(export)
    for line in (*found.problems, *found.unsure):
        put(line)
    if found.problems:
        tell("does not match its evidence")
        return 1
    if found.unsure:
        tell("made by another version of safeedit: not all could be checked")
        return 4
    tell("matches its evidence")
    return 0


@main.command()
@click.argument("export", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("out", type=click.Path(path_type=Path))
def revert(export: Path, out: Path) -> None:
    """Write the checkpoint that EXPORT was made from to OUT, bit for bit."""
    from safeedit.export.reversion import revert as undo

    undo(export, out)
    tell(f"{out}: the original weights, digest verified")


@main.command()
@click.argument("kind", type=click.Choice(["policy", "report"]), default="policy")
def schema(kind: str) -> None:
    """Print the JSON Schema of policies, or of report.json, for editors and pipelines."""
    from safeedit import catalog
    from safeedit.policy import json_schema
    from safeedit.report.json import schema as report_schema

    found = report_schema() if kind == "report" else json_schema(*catalog.schemas())
    put_json(found)


main.add_command(init)


main.add_command(ledger)


main.add_command(list_)


main.add_command(compare)


main.add_command(canary)


main.add_command(remedi)


main.add_command(scorer)


main.add_command(trace)

# ----------------------------------------------------------------------------------------------


def _plan(
    path: Path,
    source: str | None = None,
    *,
    editing: bool = True,
    exporting: bool = True,
    keyed: bool = True,
) -> Plan:
    from safeedit.cache import cache_dir
    from safeedit.planning.resolution import make_plan
    from safeedit.policy import load_policy

    loaded = load_policy(path)
    if source is not None:
        # Given on the command line, a path starts at the working directory.
        here = Path(source).expanduser()
        loaded = loaded.with_model_source(str(here.absolute()) if here.exists() else source)
    if not editing:
        loaded = loaded.without_edits()
    return make_plan(loaded, exporting=exporting, key=digest_key(cache_dir()) if keyed else None)


class _Context:
    """A run context whose progress bars live as long as the ``with`` block."""

    def __init__(self, screen: Screen, seed: int) -> None:
        self.screen, self.seed = screen, seed

    def __enter__(self) -> RunContext:
        from safeedit.cache import cache_dir
        from safeedit.cli.progress import Announcer
        from safeedit.contracts import RunContext

        cache = cache_dir()
        secret = digest_key(cache)
        shown = Announcer(self.screen.console(), self.screen.say, quiet=self.screen.quiet)
        self.bars = shown.bars
        self.bars.start()
        return RunContext(
            seed=self.seed,
            cache=cache,
            secret=secret,
            progress=shown.progress,
            stages=shown.stage,
            warn=lambda message: self.screen.beside(self.bars, message),
        )

    def __exit__(self, *exception: object) -> None:
        self.bars.stop()


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
        from safeedit.export.places import check_apart, check_folder

        self.folder = given or default
        self.target = beside if given is None else None
        check_folder(self.folder, "--report", "the report")
        _check_free(self.folder)
        for place, name in ((plan.source_path, "the model"), (plan.export_dir, "the export")):
            if place is not None:
                check_apart(self.folder, place, "--report", "the report", name)

    def write(self, record: RunRecord) -> None:
        from safeedit.running.reports import write_reports

        self.folder = write_reports(record, self.folder, self.target)


def _read_record(path: Path) -> RunRecord:
    from safeedit.policy.files import MAX_JSON_BYTES, read_regular
    from safeedit.records import RunRecord

    if path.is_dir():
        candidates = (path / "report.json", path / "evidence" / "report.json")
        path = next((file for file in candidates if file.exists()), candidates[0])
    try:
        return RunRecord.model_validate_json(read_regular(path, limit=MAX_JSON_BYTES))
    except (OSError, ValueError) as error:
        raise UsageError(
            "not a readable run record", file=path, remedy="give a report.json of this version"
        ) from error


def _show_record(screen: Screen, record: RunRecord, folder: Path, as_json: bool) -> None:
    from safeedit.report.terminal import render

    if as_json:
        put_json(record.model_dump_json(indent=2))
    render(record, screen.console())
    screen.say(f"report: {folder / 'report.html'}")


def _show_plan(plan: Plan) -> None:
    from safeedit.report.wording import duration

    summary = plan.summary()
    model = summary["model"]
    put(
        f"{summary['name']}: {model['source']} ({model['architecture']}, "
        f"{model['layers']} layers, {model['parameters']:,} parameters, {model['dtype']})"
    )
    for edit in summary["edits"]:
        layers = edit["layers"]
        span = f"layers {layers[0]}-{layers[-1]}" if layers else "no layers"
        put(
            f"edit {edit['id']} ({edit['use']}): {span}, {len(edit['tensors'])} tensors, "
            f"{edit['parameters_touched']:,} parameters, dose {edit['dose']}"
        )
        for target in edit["targets"]:
            put(f"    target {target['metric']}: {target['condition']}, on validation data")
        for key, value in edit["params"].items():
            put(f"    {key}: {value}")
        for tensor in edit["tensors"]:
            put(f"    {tensor}")
    for audit in summary["audits"]:
        put(f"audit {audit['id']} ({audit['use']})")
    for name, data in summary["data"].items():
        counts = ", ".join(f"{split} {count}" for split, count in data["items"].items())
        put(f"data {name}: {counts}; digest {data['digest'][:16]}")
        for note in data["notes"]:
            put(f"    {note}")
    for gate in summary["gates"]:
        put(f"gate {gate['metric']}: {gate['condition']}")
    if counts := summary["ledger"]:
        put(
            f"ledger: {counts['earlier']} rows carried on, {counts['entering']} to enter, "
            f"{counts['missing']} without a request"
        )
    estimates = summary["estimates"]
    put(
        f"estimates: {estimates['peak_memory_bytes'] / 1e9:.1f} GB peak, "
        f"{duration(estimates['seconds'])} (within a factor of two)"
    )
    put(f"export: {summary['export'] or 'none'}")
    for warning in summary["warnings"]:
        tell(f"warning: {warning}")


if __name__ == "__main__":
    main()
