"""What there is, and what one of it does: ``safeedit list [KIND [NAME]]``.

An explanation is Markdown, put together from what the code says of itself: the docstring of the
file, its data roles, its parameters, what was measured. The documentation shows the same text
(``docs/generate.py``), so that neither can fall behind the other.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import click

from safeedit.cli.terminal import put, put_json
from safeedit.errors import UsageError

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

KINDS = ("editors", "attacks", "auditors", "scorers", "metrics", "datasets", "policies", "models")
EXPLAINED = ("editors", "attacks", "auditors", "scorers")
"""Kinds whose members can be explained one by one."""


@click.command(name="list")
@click.argument("kind", type=click.Choice(KINDS), required=False)
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Result as JSON on stdout.")
def list_(kind: str | None, name: str | None, as_json: bool) -> None:
    """List what there is, or explain the editor, attack, auditor or scorer called NAME.

    Without KIND all are listed: editors, attacks, auditors, scorers, metrics, data sets, policies
    and model families.
    """
    if kind is not None and name is not None:
        if kind not in EXPLAINED:
            raise UsageError(
                f"{kind} are not explained one by one",
                remedy=f"'safeedit list {kind}' says what there is to say of each; names are "
                f"for {', '.join(EXPLAINED)}",
            )
        text = explain(kind, name)
        if as_json:
            put_json({"kind": kind, "name": name, "explanation": text})
        else:
            put(text.rstrip("\n"), lines=True)
        return
    found = listing(kind)
    if as_json:
        put_json(found)
        return
    for title, rows in found.items():
        put(title)
        for each, summary in rows.items():
            put(f"  {each:<34} {summary}".rstrip())


def listing(kind: str | None = None) -> dict[str, dict[str, str]]:
    """Kind -> name -> one line about it; of one kind or of all."""
    from safeedit import catalog

    found: dict[str, dict[str, str]] = {}
    if kind in (None, "editors"):
        found["editors"] = {n: _line(catalog.editor(n)) for n in catalog.names("editors")}
    if kind in (None, "attacks"):
        found["attacks"] = {n: catalog.attack(n).summary for n in catalog.names("attacks")}
    if kind in (None, "auditors"):
        found["auditors"] = {n: catalog.auditor(n).summary for n in catalog.names("auditors")}
    if kind in (None, "scorers"):
        found["scorers"] = {n: catalog.scorer(n).summary for n in catalog.names("scorers")}
    if kind in (None, "metrics"):
        found["metrics"] = {
            f"{name}.{metric.name}": f"[{metric.unit}, {metric.direction} is better] "
            f"{metric.description}"
            for name in catalog.names("auditors")
            for metric in catalog.auditor(name).metrics
        }
    if kind in (None, "datasets", "policies"):
        from safeedit.policy.builtin import CARD, builtin_datasets, builtin_policies

        if kind != "policies":
            cards = {name: file.with_name(CARD) for name, file in builtin_datasets().items()}
            found["datasets"] = _described(cards)
        if kind != "datasets":
            found["policies"] = _described(builtin_policies())
    if kind in (None, "models"):
        from safeedit.model.architectures import supported

        found["models"] = supported()
    return found


def _line(editor: Any) -> str:
    return f"{'baseline: ' if is_baseline(editor) else ''}{editor.summary}"


def is_baseline(editor: Any) -> bool:
    """Whether an editor is kept to compare with, rather than to be chosen."""
    return bool(getattr(editor, "baseline", False))


def _described(files: Mapping[str, Path]) -> dict[str, str]:
    """Name -> first sentence of the ``description`` in its YAML file."""
    import yaml

    found = {}
    for name, file in files.items():
        card = yaml.safe_load(file.read_text(encoding="utf-8"))
        found[name] = str(card.get("description") or "").partition(". ")[0].rstrip(".\n")
    return found


# One of them, explained -----------------------------------------------------------------


def explain(kind: str, name: str) -> str:
    """All that the code says of one editor, attack, auditor or scorer, as Markdown.

    Raises:
        PolicyError: There is none of that name; the message suggests the nearest.
    """
    from safeedit import catalog

    what = {
        "editors": catalog.editor,
        "attacks": catalog.attack,
        "auditors": catalog.auditor,
        "scorers": catalog.scorer,
    }
    found: Any = what[kind](name)
    parts = [f"# {name}", f"{kind.removesuffix('s').capitalize()}: {found.summary}."]
    if is_baseline(found):
        parts.append("**Baseline**: kept to compare other editors with.")
    parts.append(markdown(inspect.getdoc(sys.modules[found.__module__]) or ""))
    if roles := getattr(found, "roles", ()):
        parts += ["## Data", "\n".join(_role(role) for role in roles)]
    if fields := found.Params.model_fields:
        parts += ["## Parameters", "\n".join(parameter(n, f) for n, f in fields.items())]
    parts += _of_auditor(found) if kind == "auditors" else _measured(found)
    return "\n\n".join(parts) + "\n"


OWN_METRICS = "They hang on its parameters: `safeedit plan` names those of a policy."
"""Of an auditor whose metrics are known only with its parameters."""


def _of_auditor(found: Any) -> list[str]:
    parts = []
    if covered := getattr(found, "covers", ()):
        from safeedit.records import ATTACK_NAMES

        attacks = ", ".join(ATTACK_NAMES.get(attack, attack) for attack in covered)
        parts += ["## Attacks", f"Counts as a test against {attacks}."]
    metrics = (
        f"- `{metric.name}` ({metric.unit}, {metric.direction} is better): {metric.description}"
        for metric in found.metrics
    )
    return [*parts, "## Metrics", "\n".join(metrics) or OWN_METRICS]


def _measured(found: Any) -> list[str]:
    parts = []
    if blind := getattr(found, "blind_to", ""):
        parts += ["## Blind to", f"{blind[0].upper()}{blind[1:]}."]
    if measured := getattr(found, "measured", ""):
        page = getattr(found, "results", "")
        parts += ["## Measured", f"{measured} Table: page `results/{page}` of the documentation."]
    return parts


def _role(role: Any) -> str:
    marks = ["required" if role.required else "optional"]
    if role.erased:
        marks.append("kept out of sight" if role.comparison_only else "erased: kept out of sight")
    if role.default is not None:
        marks.append(f"default: the built-in `{role.default.dataset}`")
    return f"- `{role.name}` ({', '.join(marks)}): {role.description}"


def parameter(name: str, field: FieldInfo) -> str:
    """One line about a field: name, type, default, what it is for."""
    about = markdown(field.description or "").replace("\n", " ")
    default = "required"
    if not field.is_required():
        default = f"default `{_value(field.get_default(call_default_factory=True))}`"
    return f"- `{name}` ({type_name(field.annotation)}; {default}){': ' if about else ''}{about}"


def _value(value: Any) -> str:
    """A default as YAML has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if hasattr(value, "model_dump"):  # a record, such as a reference to a scorer
        given = value.model_dump(exclude_defaults=True)
        return _value(given) if given else "as it is by default"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, list | tuple | set | frozenset):
        shown = list(value)
        short = ", ".join(_value(each) for each in shown[:12])
        return f"[{short}{', ...' if len(shown) > 12 else ''}]"
    return '""' if value == "" else str(value)


def type_name(annotation: Any) -> str:
    """A type in the words of a policy: ``number``, ``one of mean, each``, ``list of text``."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_name(inner[0])
    if origin is Literal:
        return _value(inner[0]) if len(inner) == 1 else f"one of {', '.join(map(_value, inner))}"
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(type_name(each) for each in inner))
    if origin in (tuple, list, set, frozenset):
        return f"list of {type_name(inner[0])}" if inner else "list"
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return f"map of {type_name(inner[0])} to {type_name(inner[1])}"
    plain = {bool: "true or false", int: "whole number", float: "number", str: "text"}
    if annotation is type(None):
        return "null"
    if annotation in plain:
        return plain[annotation]
    name = getattr(annotation, "__name__", str(annotation))
    # Records: a DataSpec is data, a ScorerRef a scorer, a bound a number or a share.
    return {"Bound": "number or percentage"}.get(name, re.sub("(Spec|Ref)$", "", name).lower())


# Docstrings as Markdown -----------------------------------------------------------------

_ROLE = re.compile(r":(?:mod|class|func|data|attr|meth|exc):`~?(?:[\w ]+<)?([^`>]+)>?`")
_CODE = re.compile(r"``(.+?)``", re.DOTALL)


def markdown(docstring: str) -> str:
    """A docstring of ours (the little of reStructuredText that they use) as Markdown."""
    text = _ROLE.sub(lambda match: f"`{match[1]}`", docstring)
    text = _CODE.sub(lambda match: f"`{' '.join(match[1].split())}`", text)
    return "\n".join(_lists(text.splitlines())).strip()


def _lists(lines: list[str]) -> Iterator[str]:
    """Terms with an indented text below become items of a list, ``*`` becomes ``-``, and a table
    is shown as it is."""
    rules = [index for index, line in enumerate(lines) if re.fullmatch(r"=+(  =+)+", line)]
    for index, line in enumerate(lines):
        if rules and rules[0] <= index <= rules[-1]:
            yield f"    {line}"
            continue
        following = lines[index + 1] if index + 1 < len(lines) else ""
        before = lines[index - 1] if index else ""
        if line.startswith("* "):
            yield f"- {line[2:]}"
        elif re.match(r"`.+`:?$", line) and not before and following.startswith("    "):
            yield f"- {line.rstrip(':')}:"
        elif line.endswith("::"):
            yield line[:-3] if line.endswith(" ::") else line[:-1]
        else:
            yield line
