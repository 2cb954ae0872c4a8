"""``safeedit init``: a policy to start from, one of those that ship with safeedit."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import click

from safeedit.cli.terminal import tell
from safeedit.errors import UsageError


@click.command()
@click.argument("path", type=click.Path(path_type=Path), default=Path("policy.yaml"))
@click.option("--like", default="quickstart", show_default=True, help="A built-in policy to copy.")
def init(path: Path, like: str) -> None:
    """Write a policy to start from; it runs as it stands, and what it needs first is said."""
    from safeedit.export.places import check_output
    from safeedit.policy.builtin import policy_path

    check_output(path, "PATH", "the policy")
    source = policy_path(like)
    text = _copied(source.read_text(encoding="utf-8"), path.parent)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise UsageError("the file exists", file=path, remedy="choose another name") from error
    except OSError as error:
        raise UsageError(
            f"can't write here: {error.strerror}", file=path, remedy="choose another folder"
        ) from error
    for step in _first(path, text):
        tell(f"{path}: first {step}")
    tell(f"{path}: edit it, then 'safeedit plan {path}'")


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
