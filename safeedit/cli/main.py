"""The command line: ``safeedit validate | plan | apply | audit | report | ...``.

Exit codes, decided once: 0 passed (and exported); 1 a gate failed, and only that; 2 policy or
usage; 3 environment or runtime, every uncaught error and Ctrl-C; 4 inconclusive.

People read stderr; machines read ``--json`` on stdout. Imports of the working modules live inside
the commands, so that ``--help`` and ``--version`` answer at once.
"""

from __future__ import annotations

import os
import warnings

import click

from safeedit import __version__
from safeedit.cli.boundary import Boundary
from safeedit.cli.canary import canary
from safeedit.cli.checkpoints import diff, revert, verify
from safeedit.cli.compare import compare
from safeedit.cli.ledger import ledger
from safeedit.cli.listing import list_
from safeedit.cli.policies import plan, validate
from safeedit.cli.remedi import remedi
from safeedit.cli.reports import report, schema
from safeedit.cli.runs import apply, attack, audit
from safeedit.cli.scorer import scorer
from safeedit.cli.screen import Screen
from safeedit.cli.start import init
from safeedit.cli.trace import trace

_DEBUG = (
    "SAFEEDIT_DEBUG is set: where something fails, the traceback on this screen may quote the "
    "data, that to be erased included; unset it where output is kept or shown to others"
)


@click.group(cls=Boundary, context_settings={"help_option_names": ["-h", "--help"]})
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


for command in (
    *(
        apply,
        attack,
        audit,
        canary,
        compare,
        diff,
        init,
        ledger,
        list_,
        plan,
        remedi,
        report,
        revert,
    ),
    *(schema, scorer, trace, validate, verify),
):
    main.add_command(command)


if __name__ == "__main__":
    main()
