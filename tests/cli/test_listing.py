"""``safeedit list``: what there is, and what one of it does."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest

from safeedit import catalog
from safeedit.cli.listing import EXPLAINED, explain, markdown, type_name
from safeedit.contracts import ScorerRef
from safeedit.policy.gate import Bound
from safeedit.policy.model import DataSpec
from tests.fixtures import call

EVERY = [(kind, name) for kind in EXPLAINED for name in catalog.names(kind)]  # type: ignore[arg-type]
BASELINES = {"alphaedit", "ft", "knowledge_neurons", "subspace"}


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_an_explanation_names_every_role_parameter_and_metric(kind: str, name: str) -> None:
    found: Any = {
        "editors": catalog.editor, "attacks": catalog.attack, "auditors": catalog.auditor,
        "scorers": catalog.scorer,
    }[kind](name)  # fmt: skip
    text = explain(kind, name)
    assert text.startswith(f"# {name}\n")
    assert found.summary in text
    for role in getattr(found, "roles", ()):
        assert f"- `{role.name}` (" in text
    for parameter in found.Params.model_fields:
        assert f"- `{parameter}` (" in text
    for metric in getattr(found, "metrics", ()):
        assert f"- `{metric.name}` ({metric.unit}, {metric.direction}" in text
    if kind == "editors":
        assert found.measured in text


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_an_explanation_is_markdown_without_marks_of_another_language(kind: str, name: str) -> None:
    text = explain(kind, name)
    assert "``" not in text
    assert ":mod:" not in text
    assert ":class:" not in text


def test_an_explanation_says_what_is_required_kept_from_sight_and_default() -> None:
    text = explain("editors", "keyed_neurons")
    assert "- `forget` (required, erased: kept out of sight): facts to change" in text
    assert "- `preserve` (optional): " in text
    assert "- `prose` (optional, default: the built-in `prose`): " in text
    assert "- `subjects_per_neuron` (whole number; default `1`): " in text
    assert "Source: ours." in text
    assert "## Measured" in text


def test_the_command_prints_the_explanation_whole() -> None:
    shown = call("list", "editors", "keyed_neurons")
    assert shown.exit_code == 0
    assert shown.stdout == explain("editors", "keyed_neurons")
    found = json.loads(call("list", "editors", "keyed_neurons", "--json").stdout)
    assert found["explanation"] == explain("editors", "keyed_neurons")


@pytest.mark.parametrize("name", catalog.names("editors"))
def test_baselines_are_labelled_and_others_are_not(name: str) -> None:
    line = next(
        line for line in call("list", "editors").stdout.splitlines() if f"  {name} " in line
    )
    assert ("baseline: " in line) == (name in BASELINES)
    assert ("**Baseline**" in explain("editors", name)) == (name in BASELINES)


def test_an_unknown_name_gets_a_suggestion() -> None:
    wrong = call("list", "editors", "keyed_nuerons")
    assert wrong.exit_code == 2
    assert "did you mean 'keyed_neurons'" in wrong.stderr


def test_a_kind_that_is_listed_only_says_so() -> None:
    wrong = call("list", "models", "llama")
    assert wrong.exit_code == 2
    assert "models are not explained one by one" in wrong.stderr


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "whole number"),
        (float | None, "number or null"),
        (Literal["mean", "each"], "one of mean, each"),
        (tuple[str, ...], "list of text"),
        (dict[str, float], "map of text to number"),
        (DataSpec | None, "data or null"),
        (ScorerRef, "scorer"),
        (Bound, "number or percentage"),
    ],
)
def test_types_are_named_in_words(annotation: Any, words: str) -> None:
    assert type_name(annotation) == words


def test_a_docstring_becomes_markdown() -> None:
    text = (
        "See :mod:`~safeedit.model` and ``x\n  y``::\n\n    code\n\n* one\n\n``a: b``\n    what\n"
    )
    assert markdown(text) == (
        "See `safeedit.model` and `x y`:\n\n    code\n\n- one\n\n- `a: b`:\n    what"
    )
