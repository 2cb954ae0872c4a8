"""``safeedit init``: a policy to start from, one of those that ship or one for a file of data."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import click

from safeedit.cli.terminal import tell
from safeedit.errors import SafeeditError, UsageError

_MODEL = "builtin:smollm2-135m-instruct"


@click.command()
@click.argument("path", type=click.Path(path_type=Path), default=Path("policy.yaml"))
@click.option("--like", metavar="POLICY", help="A built-in policy to copy (default: quickstart).")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="A file of what is to be forgotten: write the policy that fits it.",
)
@click.option(
    "--model",
    "source",
    help=f"With --data: the model to edit, as a policy names it (default: {_MODEL}).",
)
def init(path: Path, like: str | None, data: Path | None, source: str | None) -> None:
    """Write a policy to start from; it runs as it stands, and what it needs first is said."""
    from safeedit.export.places import check_output
    from safeedit.policy.builtin import policy_path

    check_output(path, "PATH", "the policy")
    if data is not None:
        if like is not None:
            raise UsageError(
                "--data writes a policy for a file, --like copies one", remedy="give one of them"
            )
        _init_for(path, data, source or _MODEL)
        return
    if source is not None:
        raise UsageError(
            "--model goes with --data", remedy="give --data, or name the model in the policy"
        )
    text = _copied(policy_path(like or "quickstart").read_text(encoding="utf-8"), path.parent)
    _write(path, text)
    for step in _first(path, text):
        tell(f"{path}: first {step}")
    tell(f"{path}: edit it, then 'safeedit plan {path}'")


def _init_for(path: Path, data: Path, source: str) -> None:
    """Write the policy that fits a file, and say whether it can be planned."""
    from safeedit.cli.policies import plan_of
    from safeedit.workflows.fitting import fitting_policy

    model = Path(source).expanduser()
    if model.exists():  # as seen from the policy's folder
        source = os.path.relpath(model, path.parent)
    made = fitting_policy(data, path.parent, source)
    _write(path, made.text)
    tell(f"{path}: for {made.words}, {made.items} items in {data}")
    try:
        plan = plan_of(path, exporting=False, keyed=False)
    except SafeeditError as error:
        tell(f"warning: as it stands, it would be refused: {error}", lines=True)
    else:
        for warning in plan.warnings:
            tell(f"warning: {warning}")
    tell(f"{path}: read it, then 'safeedit plan {path}' and 'safeedit apply {path}'")


def _write(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise UsageError("the file exists", file=path, remedy="choose another name") from error
    except OSError as error:
        raise UsageError(
            f"can't write here: {error.strerror}", file=path, remedy="choose another folder"
        ) from error


def _copied(text: str, folder: Path) -> str:
    """A built-in policy, as it must read in another folder.

    Its own paths start one folder higher, where ``datasets/`` and ``policies/`` are; those of a
    copy start at the copy. Paths in commands start at the working directory.
    """
    commands = re.sub(
        r"(?m)^(#.*--out )(out/\S+)",
        lambda found: found[1] + shlex.quote(str(folder / found[2])),
        text,
    )
    named = re.sub(r"policies/([\w-]+)\.yaml", r"the built-in policy \1", commands)
    return named.replace("../out/", "out/")


def _first(path: Path, text: str) -> list[str]:
    """What a policy names and is not there yet."""
    from safeedit.policy import load_policy

    names = dict.fromkeys(re.findall(r"\$\{(\w+)\}", text))
    steps = [
        f"set {name} to the folder of published data that its first lines name"
        for name in names if not os.environ.get(name)
    ]  # fmt: skip
    model = load_policy(path).policy.model.source
    if model.startswith("out/") and not (path.parent / model).exists():
        steps.append(f"make the model {model} by the command in its first lines")
    return steps
