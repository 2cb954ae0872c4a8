"""Names to editors, attacks, auditors and scorers.

A name is a file's stem: ``safeedit/editors/sanitation.py`` is the editor ``sanitation``; a file
in a sub-package gets a dotted name (``auditors/leakage/exposure.py`` is ``leakage.exposure``), but
for the one that is called like its package, whose name is that of the package. Other
distributions add theirs through the entry-point groups ``safeedit.editors``,
``safeedit.attacks``, ``safeedit.auditors`` and ``safeedit.scorers``. Nothing else resolves: a
policy is data and can never name code.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Literal

from safeedit.contracts import Attack, Auditor, Editor, Scorer, ScorerRef
from safeedit.errors import PolicyError, SafeeditError
from safeedit.policy import StageSchema
from safeedit.policy.suggest import did_you_mean

Kind = Literal["editors", "attacks", "auditors", "scorers"]
_METHOD: dict[Kind, str] = {
    "editors": "propose", "attacks": "propose", "auditors": "audit", "scorers": "score",
}  # fmt: skip

PROMPT_BASELINES = {
    "refusal_prompt": "a system message that names what is not to be told",
    "in_context": "the new or refused answers of the nearest facts before every question (ICE, "
    "IKE)",
}
"""What ``compare`` measures beside editors: no weights change, so that there is nothing to
export."""


def editor(name: str) -> type[Editor]:
    """The editor class called ``name``.

    Raises:
        PolicyError: there is none; the message suggests the nearest names.
    """
    found: type[Editor] = _resolve("editors", name)
    return found


def attack(name: str) -> type[Attack]:
    """The attack class called ``name``.

    Raises:
        PolicyError: there is none; the message suggests the nearest names.
    """
    found: type[Attack] = _resolve("attacks", name)
    return found


def auditor(name: str) -> type[Auditor]:
    """The auditor class called ``name``.

    Raises:
        PolicyError: there is none; the message suggests the nearest names.
    """
    found: type[Auditor] = _resolve("auditors", name)
    return found


def scorer(name: str) -> type[Scorer]:
    """The scorer class called ``name``.

    Raises:
        PolicyError: there is none; the message suggests the nearest names.
    """
    found: type[Scorer] = _resolve("scorers", name)
    return found


def make_scorer(ref: ScorerRef) -> Scorer:
    """The scorer that a reference names, with its parameters.

    Raises:
        PolicyError: there is none of that name.
    """
    kind = scorer(ref.use)
    return kind(kind.Params.model_validate(ref.params))


def names(kind: Kind) -> tuple[str, ...]:
    """All names of a kind, sorted; imports none of them."""
    return tuple(sorted(modules(kind).keys() | _plugins(kind).keys()))


def schemas() -> tuple[list[StageSchema], list[StageSchema], list[StageSchema]]:
    """What the policy's JSON Schema says of every editor, every auditor and every attack."""
    return (
        [_schema(name, editor(name)) for name in names("editors")],
        [_schema(name, auditor(name)) for name in names("auditors")],
        [_schema(name, attack(name)) for name in names("attacks")],
    )


def _schema(name: str, kind: type[Editor] | type[Auditor] | type[Attack]) -> StageSchema:
    roles = [(role.name, role.description, role.required) for role in kind.roles]
    return StageSchema(name, kind.summary, kind.Params.model_json_schema(), roles)


def forget() -> None:
    """Look again for what was found: a plug-in may have been installed meanwhile."""
    for remembered in (modules, _plugins, _resolve):
        remembered.cache_clear()


@cache
def modules(kind: Kind) -> dict[str, str]:
    """Name in a policy -> module."""
    package = importlib.import_module(f"safeedit.{kind}")
    support: frozenset[str] = getattr(package, "SUPPORT", frozenset())
    found: dict[str, str] = {}
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        path = module.name.removeprefix(f"{package.__name__}.")
        *above, stem = path.split(".")
        if not module.ispkg and path not in support:
            found[".".join(above if above[-1:] == [stem] else [*above, stem])] = module.name
    return found


@cache
def _plugins(kind: Kind) -> dict[str, Any]:
    return {point.name: point for point in entry_points(group=f"safeedit.{kind}")}


@cache
def _resolve(kind: Kind, name: str) -> Any:
    if name in modules(kind):
        module = importlib.import_module(modules(kind)[name])
        candidates = [
            value
            for value in vars(module).values()
            if isinstance(value, type)
            and value.__module__ == module.__name__
            and hasattr(value, _METHOD[kind])
        ]
        assert len(candidates) == 1, f"{module.__name__} must define one class with {_METHOD[kind]}"
        return candidates[0]
    if name in _plugins(kind):
        try:
            return _plugins(kind)[name].load()
        except Exception as error:  # a plugin may fail in any way; say whose fault it is
            raise SafeeditError(
                f"the plug-in for {name!r} ({_plugins(kind)[name].value}) can't be loaded: "
                f"{type(error).__name__}",
                remedy="reinstall or remove the distribution that provides it",
            ) from error
    if kind == "editors" and name in PROMPT_BASELINES:
        raise PolicyError(
            f"{name!r} puts a prompt before every question and changes no weights: there is "
            "nothing to export",
            remedy=f"see what it does with 'safeedit compare POLICY --editors {name}'; whoever "
            "gets a checkpoint gets it without the prompt",
        )
    raise PolicyError(
        f"there is no {kind.removesuffix('s')} called {name!r}",
        remedy=did_you_mean(name, names(kind)),
    )
