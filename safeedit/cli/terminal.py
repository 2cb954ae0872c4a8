"""The one way out to the terminal: nothing else in the package prints, and a test sees to it.

What is shown may hold names, paths, keys and text from policies, data, models and libraries;
:mod:`safeedit.text.display` says what of it is not let through.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from safeedit.text.display import clean, clean_lines, escape_json

if TYPE_CHECKING:
    from rich.console import Console


def tell(text: str, *, lines: bool = False) -> None:
    """Something for people, on stderr.

    Args:
        text: One line; breaks in it are those of a name, and become spaces.
        lines: Keep them: the text is made of several lines.
    """
    click.echo(_printable(text, lines, error=True), err=True)


def put(text: str, *, lines: bool = False, newline: bool = True) -> None:
    """A result in words, on stdout; as :func:`tell`."""
    click.echo(_printable(text, lines, error=False), nl=newline)


def put_json(value: Any) -> None:
    """A result for machines, on stdout: plain values, or a text that is JSON already."""
    text = value if isinstance(value, str) else json.dumps(value, indent=2)
    click.echo(escape_json(text))


def console(*, stderr: bool, quiet: bool = False) -> Console:
    """A console of ``rich`` whose own sequences pass and no others."""
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class CleanConsole(Console):
        def render(
            self, renderable: RenderableType, options: ConsoleOptions | None = None
        ) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                # Control segments are rich's own: moving the cursor while a bar is drawn.
                yield (
                    segment if segment.control else segment._replace(text=clean_lines(segment.text))
                )

    return CleanConsole(stderr=stderr, quiet=quiet, highlight=False)


def _printable(text: str, lines: bool, *, error: bool) -> str:
    """What the stream's encoding can't write becomes a question mark, not an error."""
    cleaned = clean_lines(text) if lines else clean(text)
    encoding = getattr(sys.stderr if error else sys.stdout, "encoding", None) or "utf-8"
    return cleaned.encode(encoding, "replace").decode(encoding)
