"""Names lead to one class each, or to an error that suggests the right name."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import safeedit
from safeedit import auditors, catalog, scorers
from safeedit.contracts import Auditor, BaseParams, DataRole, Editor, Scorer
from safeedit.errors import PolicyError, SafeeditError
from safeedit.records import ATTACK_CLASSES, MetricSpec
from tests.road import Nudge

PACKAGE = Path(safeedit.__file__).parent


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    """The catalog remembers what it found; tests must not see each other's."""
    catalog.forget()
    yield
    catalog.forget()


def plug_in(monkeypatch: pytest.MonkeyPatch, name: str, load: Any) -> None:
    """As if another distribution had registered an editor."""

    def points(*, group: str) -> list[Any]:
        found = SimpleNamespace(name=name, value=f"other.module:{name.title()}", load=load)
        return [found] if group == "safeedit.editors" else []

    monkeypatch.setattr(catalog, "entry_points", points)


def test_every_file_among_the_editors_and_auditors_has_its_name() -> None:
    for kind, support in (("editors", frozenset[str]()), ("auditors", auditors.SUPPORT)):
        files, others = set(), set()
        for path in (PACKAGE / kind).rglob("*.py"):
            *folders, stem = path.relative_to(PACKAGE / kind).with_suffix("").parts
            if (module := ".".join([*folders, stem])) in support:
                others.add(module)
            elif stem != "__init__":
                files.add(".".join(folders if folders[-1:] == [stem] else [*folders, stem]))
        assert files
        assert files <= set(catalog.names(kind))  # type: ignore[arg-type]
        assert others == support
        assert not others & set(catalog.names(kind))  # type: ignore[arg-type]


def test_every_editor_keeps_the_protocol_and_says_what_it_does() -> None:
    for name in catalog.names("editors"):
        kind = catalog.editor(name)
        check_stage(kind)
        assert isinstance(kind(kind.Params()), Editor)


def test_every_auditor_keeps_the_protocol_and_says_what_it_measures() -> None:
    for name in catalog.names("auditors"):
        kind = catalog.auditor(name)
        check_stage(kind)
        assert isinstance(kind(kind.Params()), Auditor)
        assert set(kind.covers) <= set(ATTACK_CLASSES)
        assert kind.metrics or hasattr(kind, "own_metrics")  # known once its parameters are
        assert len({metric.name for metric in kind.metrics}) == len(kind.metrics)
        for metric in kind.metrics:
            assert isinstance(metric, MetricSpec)
            assert metric.description


def test_every_scorer_has_its_name_and_none_is_imported_for_it() -> None:
    files = {path.stem for path in (PACKAGE / "scorers").glob("*.py")} - {"__init__"}
    assert files - scorers.SUPPORT == set(catalog.names("scorers"))
    assert files >= scorers.SUPPORT
    for name in catalog.names("scorers"):
        assert isinstance(catalog.scorer(name)(catalog.scorer(name).Params()), Scorer)
    with pytest.raises(PolicyError, match="no scorer called 'detoxfy'") as caught:
        catalog.scorer("detoxfy")
    assert caught.value.remedy == "did you mean 'detoxify'?"


def check_stage(kind: Any) -> None:
    assert kind.summary
    assert "\n" not in kind.summary
    assert issubclass(kind.Params, BaseParams)
    taken = set(kind.Params.model_fields)
    assert not taken & {"use", "id", "dose", "targets", "control", "required", "options", "data"}
    for role in kind.roles:
        assert isinstance(role, DataRole)
        assert role.description
        assert role.name not in taken, "a key of a policy must mean one thing"
    for name, field in kind.Params.model_fields.items():
        assert field.description, f"{kind.__name__}.{name} has no description"


@pytest.mark.parametrize(
    ("look_up", "name", "near"),
    [
        (catalog.editor, "sanitization", "sanitation"),
        (catalog.editor, "Sanitation", "sanitation"),
        (catalog.auditor, "localty", "locality"),
        (catalog.auditor, "perplexety", "perplexity"),
    ],
)
def test_a_mistyped_name_is_answered_with_the_likely_one(
    look_up: Any, name: str, near: str
) -> None:
    with pytest.raises(PolicyError) as caught:
        look_up(name)
    assert name in caught.value.message
    assert caught.value.remedy == f"did you mean '{near}'?"


def test_a_name_like_no_other_is_answered_with_all_of_them() -> None:
    with pytest.raises(PolicyError) as caught:
        catalog.editor("xyz")
    assert caught.value.remedy == f"known: {', '.join(catalog.names('editors'))}"


@pytest.mark.parametrize(
    "name", ["os", "os.path", "__init__", "base", "..contracts", "leakage", "a/b", ""]
)
def test_nothing_but_an_editor_resolves_as_one(name: str) -> None:
    with pytest.raises(PolicyError, match="there is no editor called"):
        catalog.editor(name)


@pytest.mark.parametrize("name", ["base", "bias.items", "leakage.secrets", "sanitation"])
def test_nothing_but_an_auditor_resolves_as_one(name: str) -> None:
    with pytest.raises(PolicyError, match="there is no auditor called"):
        catalog.auditor(name)


def test_another_distribution_adds_an_editor_by_an_entry_point(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plug_in(monkeypatch, "nudge", lambda: Nudge)
    assert catalog.editor("nudge") is Nudge
    assert "nudge" in catalog.names("editors")
    assert "nudge" not in catalog.names("auditors")


def test_a_plug_in_can_not_take_the_place_of_a_built_in_editor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plug_in(monkeypatch, "sanitation", lambda: Nudge)
    assert catalog.editor("sanitation").__module__ == "safeedit.editors.sanitation"
    assert catalog.names("editors").count("sanitation") == 1


def test_a_plug_in_that_can_not_be_loaded_is_named_with_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken() -> None:
        raise RuntimeError("some secret of the environment")

    plug_in(monkeypatch, "broken", broken)
    with pytest.raises(SafeeditError, match=r"'broken' \(other.module:Broken\)") as caught:
        catalog.editor("broken")
    assert "RuntimeError" in caught.value.message
    assert "secret" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_listing_the_names_imports_none_of_them() -> None:
    code = (
        "import sys; from safeedit import catalog; catalog.names('editors');"
        "catalog.names('auditors'); print(sorted(m for m in sys.modules if m in"
        " ('torch', 'safeedit.editors.sanitation', 'safeedit.auditors.leakage.leakage')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_file_with_two_editors_is_a_mistake_that_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "safeedit.editors.double"
    module = types.ModuleType(name)
    for title in ("One", "Two"):
        setattr(module, title, type(title, (Nudge,), {"__module__": name}))
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(catalog, "modules", lambda kind: {"double": name})
    with pytest.raises(AssertionError, match="must define one class"):
        catalog.editor("double")
    del module.Two  # type: ignore[attr-defined]
    assert catalog.editor("double") is module.One  # type: ignore[attr-defined]
