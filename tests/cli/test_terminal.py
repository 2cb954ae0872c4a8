"""One way out to the terminal, and nothing harmful takes it."""

from __future__ import annotations

import ast
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

import safeedit
from safeedit.cli import terminal
from tests.road import Workplace

PACKAGE = Path(safeedit.__file__).parent
ESCAPE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202edne\u2066"
BAD = set("\x1b\x07\x9b\u202e\u2066")

THE_WAY_OUT = "cli/terminal.py"
ALLOWED = {
    # Printed by `python -m safeedit.model.sources` for the Makefile; cleaned there.
    ("model/sources.py", "sys.stdout"),
    # Given a console, which is made in the way out.
    ("report/terminal.py", "console.print"),
    ("workflows/comparison/rendering.py", "console.print"),
    ("cli/screen.py", "console.print"),
    ("cli/live.py", "console.print"),
    ("report/over_time.py", "console.print"),
}
PRINTING = {"print", "click.echo", "click.secho", "echo", "secho", "print_exc"}
STREAMS = {"sys.stdout", "sys.stderr", "sys.__stdout__", "sys.__stderr__"}


def ways_out(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of everything that writes to a stream people see."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            last = name.rpartition(".")[2]
            if name in PRINTING or last in {"print_exc", "print_exception", "print_stack"}:
                yield node.lineno, name
            elif last == "print":
                yield node.lineno, "console.print"
            elif last in {"Console", "showwarning", "basicConfig", "StreamHandler"}:
                yield node.lineno, last
            elif last == "show" and not node.args:
                yield node.lineno, name
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in STREAMS:
            yield node.lineno, ast.unparse(node)


def test_nothing_in_the_package_prints_but_the_one_way_out() -> None:
    found = [
        f"{name}:{line} {what}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if (name := path.relative_to(PACKAGE).as_posix()) != THE_WAY_OUT
        for line, what in ways_out(path.read_text())
        if (name, what) not in ALLOWED
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    ["print(1)", "import click\nclick.echo(1)", "import sys\nsys.stderr.write('')",
     "from rich.console import Console\nConsole()", "error.show()",
     "import traceback\ntraceback.print_exc()", "bars.console.print('x')"],
)  # fmt: skip
def test_the_scan_finds_what_prints(source: str) -> None:
    assert list(ways_out(source))


@pytest.mark.parametrize("lines", [False, True])
def test_words_reach_the_terminal_without_its_commands(
    capsys: pytest.CaptureFixture[str], lines: bool
) -> None:
    terminal.tell(f"a{ESCAPE}\nb", lines=lines)
    terminal.put(f"a{ESCAPE}\nb", lines=lines)
    out, err = capsys.readouterr()
    for shown in (out, err):
        assert not BAD & set(shown)
        assert shown.count("\n") == 1 + lines


@pytest.mark.parametrize("value", [{"name": ESCAPE}, json.dumps({"name": ESCAPE}, indent=2)])
def test_machines_get_the_very_value_and_terminals_no_command(
    capsys: pytest.CaptureFixture[str], value: object
) -> None:
    terminal.put_json(value)
    shown = capsys.readouterr().out
    assert json.loads(shown) == {"name": ESCAPE}
    assert not BAD & set(shown)


def test_a_console_lets_only_its_own_colours_through() -> None:
    console = terminal.console(stderr=False)
    console.file = io.StringIO()
    console._force_terminal = True
    console.no_color = False
    table = Table()
    table.add_column(f"head{ESCAPE}")
    table.add_row(f"cell{ESCAPE}", style="red")
    for thing in (f"text{ESCAPE}", Text(f"styled{ESCAPE}", "bold"), table):
        console.print(thing, markup=False)
    shown = console.file.getvalue()
    assert "\x1b]0" not in shown
    assert "\x1b[2J" not in shown
    assert not set("\x07\x9b\u202e\u2066") & set(shown)
    assert "text" in shown
    assert "cell" in shown


def harmless(text: str) -> None:
    assert not BAD & set(text), ascii(text)


def test_keys_values_and_paths_of_a_policy_reach_no_terminal_raw(place: Workplace) -> None:
    for policy in (
        place.policy(**{f"gaets{ESCAPE}": []}),
        place.policy(model={"source": f"./no{ESCAPE}"}),
        place.policy(name=f"x{ESCAPE}"),
        place.policy(audits=[{"use": "drift", "data": {"file": f"no{ESCAPE}.jsonl"}}]),
        place.folder / f"policy{ESCAPE.replace('/', '')}.yaml",
    ):
        result = place.run("validate", policy)
        assert result.exit_code in (2, 3)
        assert "error: " in result.stderr
        harmless(result.output)


def test_arguments_reach_no_terminal_raw(place: Workplace) -> None:
    for arguments in ((f"appl{ESCAPE}",), ("report", f"no{ESCAPE}"), ("plan", f"--no{ESCAPE}")):
        result = place.run(*arguments)
        assert result.exit_code in (2, 3)
        assert "error: " in result.stderr.lower()
        harmless(result.output)
