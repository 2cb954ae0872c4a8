"""What ships with safeedit: data sets and policies, in a checkout or inside the wheel.

The one place that knows where they are. A checkout has ``datasets/`` and ``policies/`` at
its root; a wheel has the same two folders under ``safeedit/_data/``, so that policies find
data under ``../datasets`` in both.
"""

from __future__ import annotations

from pathlib import Path

from safeedit.errors import DataError, SafeeditError, UsageError
from safeedit.policy.suggest import did_you_mean

ITEMS = "items.jsonl"
CARD = "card.yaml"


def root() -> Path:
    """The folder that holds ``datasets/`` and ``policies/``.

    Raises:
        SafeeditError: The installation lacks both.
    """
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "_data", package.parent):
        if (candidate / "datasets").is_dir() and (candidate / "policies").is_dir():
            return candidate
    raise SafeeditError(
        "this installation has no built-in policies and data sets",
        remedy="install safeedit again: pip install --force-reinstall safeedit",
    )


def builtin_datasets() -> dict[str, Path]:
    """Name -> items file of the data sets that ship with safeedit, sorted by name."""
    found = {path.parent.name: path for path in root().glob(f"datasets/*/{ITEMS}")}
    return dict(sorted(found.items()))


def dataset_path(name: str) -> Path:
    """The items file of a built-in data set.

    Raises:
        DataError: There is none of that name.
    """
    known = builtin_datasets()
    if name not in known:
        raise DataError(
            f"no built-in data set is called {name!r}",
            field="dataset",
            remedy=f"{did_you_mean(name, known)} (for your own, use file:)",
        )
    return known[name]


def builtin_policies() -> dict[str, Path]:
    """Name -> file of the policies that ship with safeedit, sorted by name."""
    return dict(sorted((path.stem, path) for path in root().glob("policies/*.yaml")))


def policy_path(name: str) -> Path:
    """The file of a built-in policy.

    Raises:
        UsageError: There is none of that name.
    """
    known = builtin_policies()
    if name not in known:
        raise UsageError(f"no built-in policy is called {name!r}", remedy=did_you_mean(name, known))
    return known[name]
