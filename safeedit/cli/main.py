"""The command line: ``safeedit validate | plan | apply | audit | report | ...``.

Exit codes, decided once: 0 passed (and exported); 1 a gate failed, and only that; 2 policy or
usage; 3 environment or runtime, every uncaught error and Ctrl-C; 4 inconclusive.

People read stderr; machines read ``--json`` on stdout. Imports of the working modules live inside
the commands, so that ``--help`` and ``--version`` answer at once.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import warnings
from collections.abc import Iterator

import click

from safeedit import __version__, cli
from safeedit.cli.boundary import Boundary
from safeedit.cli.screen import Screen

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


def commands() -> Iterator[click.Command]:
    """Every command that a module of this folder defines, but for those of a group, which the
    group has already."""
    modules = [module.name for module in pkgutil.iter_modules(cli.__path__)]
    names = [
        vars(importlib.import_module(f"{cli.__name__}.{name}"))
        for name in modules
        if name != "main"
    ]
    found = [each for some in names for each in some.values() if isinstance(each, click.Command)]
    groups = [each for each in found if isinstance(each, click.Group)]
    inside = {id(each) for group in groups for each in group.commands.values()}
    yield from (each for each in found if id(each) not in inside)


for command in commands():
    main.add_command(command)


if __name__ == "__main__":
    main()
