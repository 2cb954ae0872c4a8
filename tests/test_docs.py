"""README and documentation hold what they show: policies, commands, links and figures."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

from safeedit import catalog
from safeedit.cli.environment import VARIABLES
from safeedit.cli.main import main
from safeedit.policy import load_policy
from safeedit.records import RECOVERED

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="these tests need a checkout")

_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_DECIMAL = re.compile(r"\d*\.\d+")


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written() -> dict[str, str]:
    """Path from the checkout's root -> text of the pages that people wrote."""
    files = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
    return {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in files}


WRITTEN = written() if DOCS.exists() else {}


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    found: dict[str, str] = generator().pages()
    return {f"docs/{name}": text for name, text in found.items()}


def policies() -> list[Any]:
    found = []
    for page, text in WRITTEN.items():
        blocks = [body for kind, body in _FENCE.findall(text) if kind in ("yaml", "yml")]
        full = [body for body in blocks if re.search(r"^version:", body, re.MULTILINE)]
        found += [pytest.param(body, id=f"{page}-{index}") for index, body in enumerate(full)]
    return found


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of every ``safeedit ...`` that a page shows as a command."""
    lines = [line for _, body in _FENCE.findall(text) for line in body.splitlines()]
    rest = _FENCE.sub("", text)
    lines += [" ".join(code.split()) for code in _INLINE.findall(rest)]
    for line in lines:
        for part in re.split(r"&&|;", line):
            if re.match(r"\s*safeedit [-a-z]", part) and "[OPTIONS]" not in part:
                yield shlex.split(part, comments=True)[1:]


# What is shown can be run ---------------------------------------------------------------


@pytest.mark.parametrize("policy", policies())
def test_every_policy_that_is_shown_is_a_policy(policy: str, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(policy, encoding="utf-8")
    assert load_policy(file).policy.name


@pytest.mark.parametrize("policy", policies())
def test_every_policy_that_is_shown_names_what_there_is(policy: str, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(policy, encoding="utf-8")
    shown = load_policy(file).policy
    metrics = {}
    for stage in (*shown.edits, *shown.audits):
        edit = stage in shown.edits
        kind: Any = catalog.editor(stage.use) if edit else catalog.auditor(stage.use)
        roles = {"data", *(role.name for role in kind.roles)}
        kind.Params.model_validate({k: v for k, v in stage.options.items() if k not in roles})
        missing = {role.name for role in kind.roles if role.required} - stage.options.keys()
        assert not missing, f"{stage.use} needs {missing}"
        if not edit:
            metrics |= {f"{stage.id}.{metric.name}": metric for metric in kind.metrics}
    for stage in shown.attacks:
        attack: Any = catalog.attack(stage.use)
        roles = {"data", *(role.name for role in attack.roles)}
        attack.Params.model_validate({k: v for k, v in stage.options.items() if k not in roles})
    for gate in (*shown.gates, *(target for edit in shown.edits for target in edit.targets)):
        assert gate.metric in metrics or (gate.under and gate.name == RECOVERED)


def test_the_annotated_quickstart_is_the_shipped_one(tmp_path: Path) -> None:
    text = WRITTEN["docs/quickstart.md"]
    file = tmp_path / "policy.yaml"
    file.write_text(next(b for k, b in _FENCE.findall(text) if k == "yaml"), encoding="utf-8")
    shipped = load_policy(ROOT / "policies" / "quickstart.yaml").policy
    assert load_policy(file).policy == shipped.model_copy(update={"description": None})


def test_the_pages_that_show_policies_are_found() -> None:
    assert len(policies()) > 8  # the control of the test above


def test_the_readme_shows_a_policy_of_ten_lines() -> None:
    shown = next(body for kind, body in _FENCE.findall(WRITTEN["README.md"]) if kind == "yaml")
    assert len(shown.splitlines()) == 10


def parse(command: click.Command, arguments: list[str], parent: click.Context | None) -> None:
    try:
        context = command.make_context(command.name, list(arguments), parent)
    except click.exceptions.Exit:  # --version, --help
        return
    except (click.MissingParameter, click.exceptions.NoArgsIsHelpError):
        if arguments:
            raise
        return  # a sentence that names the command
    left = [*context._protected_args, *context.args]
    if isinstance(command, click.Group) and (left or not command.invoke_without_command):
        name, child, rest = command.resolve_command(context, left)
        assert name is not None
        assert child is not None
        parse(child, rest, context)


@pytest.fixture
def files_need_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    def visit(command: click.Command) -> None:
        for param in command.params:
            if isinstance(param.type, click.Path):
                monkeypatch.setattr(param.type, "exists", False)
        if isinstance(command, click.Group):
            for child in command.commands.values():
                visit(child)

    visit(main)


@pytest.mark.usefixtures("files_need_not_exist")
def test_every_command_line_that_is_shown_can_be_parsed(generated: dict[str, str]) -> None:
    seen = 0
    for page, text in (WRITTEN | generated).items():
        for arguments in commands(text):
            seen += 1
            try:
                parse(main, arguments, None)
            except click.ClickException as error:
                pytest.fail(f"{page}: safeedit {shlex.join(arguments)}: {error.format_message()}")
    assert seen > 40


@pytest.mark.usefixtures("files_need_not_exist")
@pytest.mark.parametrize("wrong", ["aply policy.yaml", "apply --no-such policy.yaml", "list cats"])
def test_a_wrong_command_line_would_be_seen(wrong: str) -> None:
    with pytest.raises(click.ClickException):
        parse(main, wrong.split(), None)


# What is linked is there ----------------------------------------------------------------


def test_every_link_leads_to_a_page(generated: dict[str, str]) -> None:
    for page, text in (WRITTEN | generated).items():
        for link in _LINK.findall(_FENCE.sub("", text)):
            if re.match(r"\w+:", link) or link.startswith("#"):
                continue
            target = ((ROOT / page).parent / link.partition("#")[0]).resolve()
            known = str(target.relative_to(ROOT)) in generated
            assert known or target.exists(), f"{page} links to {link}"
            # Files of a checkout: what is only generated is no page of a repository's viewer.
            assert page != "README.md" or target.exists(), f"README.md links to {link}"


def test_every_page_of_the_navigation_is_there(generated: dict[str, str]) -> None:
    named = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert named
    for name in named:
        assert f"docs/{name}" in WRITTEN | generated, name


# What is said is so ---------------------------------------------------------------------


def test_the_readme_is_one_screen() -> None:
    assert len(WRITTEN["README.md"].splitlines()) <= 170


def test_no_page_claims_what_a_measurement_cannot_show() -> None:
    for page, text in WRITTEN.items():
        assert not re.search(r"\b(deleted|compliant|certified)\b", text, re.IGNORECASE), page


def results(page: str) -> str:
    return WRITTEN[f"docs/results/{page}.md"]


@pytest.mark.parametrize("name", catalog.names("editors"))
def test_what_an_editor_says_was_measured_stands_on_its_page_of_results(name: str) -> None:
    editor: Any = catalog.editor(name)
    assert editor.measured.endswith(".")
    for figure in _DECIMAL.findall(editor.measured):
        assert figure in _DECIMAL.findall(results(editor.results)), f"{name}: {figure}"


def test_figures_of_the_readme_stand_on_the_pages_it_links_to() -> None:
    rows = [
        row.split("|")
        for row in WRITTEN["README.md"].splitlines()
        if re.search(r"\| \[\w+\]\(docs/results/\w+\.md\) \|$", row)
    ]
    assert len(rows) >= 7
    for *_, best, link, _ in rows:
        page = Path(_LINK.findall(link)[0]).stem
        for figure in _DECIMAL.findall(best):
            assert figure in _DECIMAL.findall(results(page)), f"{page}: {figure}"


def test_the_report_of_the_readme_is_a_part_of_the_whole_one() -> None:
    report = next(
        body for _, body in _FENCE.findall(WRITTEN["README.md"]) if body.startswith("PASSED")
    )
    whole = results("quickstart").splitlines()
    for line in report.splitlines():
        assert line == "..." or line in whole, line


def test_every_variable_of_the_environment_is_documented() -> None:
    package = ROOT / "safeedit"
    read = {
        name
        for file in package.rglob("*.py")
        for name in re.findall(r"SAFEEDIT_[A-Z_]*[A-Z]", file.read_text(encoding="utf-8"))
    }
    assert read == set(VARIABLES)


def test_every_editor_has_a_page_of_its_own(generated: dict[str, str]) -> None:
    for name in catalog.names("editors"):
        page = generated[f"docs/methods/{name}.md"]
        assert page.startswith(f"# {name}\n")
        assert "../results/" in page
