"""What ships with safeedit, in a checkout and inside a wheel."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from safeedit.data import SPLITS, load_dataset
from safeedit.errors import DataError, SafeeditError, UsageError
from safeedit.policy import DataSpec, builtin, load_policy
from tests.data.sources import ERASED


def test_the_data_sets_of_the_checkout_are_found() -> None:
    assert {"facts", "prose"} <= builtin.builtin_datasets().keys()
    assert builtin.dataset_path("facts").is_file()


def test_every_built_in_policy_is_valid() -> None:
    for name, path in builtin.builtin_policies().items():
        loaded = load_policy(path)
        assert builtin.policy_path(name) == path
        assert loaded.policy.description, f"{name} says not when to use it"


def test_unknown_names_are_refused_with_the_likely_one() -> None:
    with pytest.raises(DataError, match="'facts'"):
        builtin.dataset_path("fact")
    with pytest.raises(UsageError, match="no built-in policy"):
        builtin.policy_path("no-such-policy")


def test_a_wheel_keeps_both_inside_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site-packages" / "safeedit"
    for kind in ("datasets/mine", "policies"):
        (package / "_data" / kind).mkdir(parents=True)
    (package / "_data/datasets/mine/items.jsonl").write_text('{"prompt": "a"}\n')
    (package / "_data/policies/mine.yaml").write_text("")
    (package / "policy").mkdir()
    shutil.copy(builtin.__file__, package / "policy")
    monkeypatch.setattr(builtin, "__file__", str(package / "policy" / "builtin.py"))
    assert list(builtin.builtin_datasets()) == ["mine"]
    assert list(builtin.builtin_policies()) == ["mine"]
    assert len(load_dataset(DataSpec(dataset="mine"))) == 1


def test_an_installation_without_them_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtin, "__file__", str(tmp_path / "safeedit" / "policy" / "builtin.py"))
    with pytest.raises(SafeeditError, match="install safeedit again"):
        builtin.root()


@pytest.mark.parametrize("name", ["facts", "prose"])
def test_built_in_data_loads_without_notes_and_fills_every_split(name: str) -> None:
    data = load_dataset(DataSpec(dataset=name))
    assert data.notes == ()
    assert data.name == name
    assert all(data.items(split) for split in SPLITS)


def test_facts_to_forget_are_asked_in_new_words_in_every_split() -> None:
    data = load_dataset(DataSpec(dataset="facts", where={"role": "forget"}), role=ERASED)
    n = len(data)
    assert n >= 20
    assert [len(data.items(split)) for split in SPLITS] == [n, n, n]
    assert [len(data.phrasings(split)) for split in SPLITS] == [3 * n, 2 * n, 2 * n]
