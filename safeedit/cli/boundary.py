"""The one boundary for errors: where an exception becomes an exit code and words."""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import click

from safeedit.cli.screen import Screen
from safeedit.cli.terminal import tell
from safeedit.errors import SafeeditError
from safeedit.export.interrupts import until_done

EXIT_RUNTIME = 3


def _hush(context: click.Context, _: click.Parameter, given: bool) -> None:
    if given:
        context.obj = replace(context.find_object(Screen) or Screen(False, False), quiet=True)


class Boundary(click.Group):
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
