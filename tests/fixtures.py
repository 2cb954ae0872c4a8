"""What several tests need: fixtures, which pytest finds by name, and small helpers to import."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

from safeedit import code
from safeedit.cli.main import main
from safeedit.contracts import RunContext
from safeedit.methods.covariance import Moments
from safeedit.model.handle import ModelHandle
from tests.road import Workplace, make_workplace, register
from tests.tiny_models import save_tiny, tiny_handle
from tests.training import seeded


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalog knows the toy editors and auditors of ``tests/road.py``."""
    register(monkeypatch)


@pytest.fixture
def place(tmp_path: Path, toys: None) -> Workplace:
    """A folder with a tiny model and data of every kind; toys in the catalog."""
    return make_workplace(tmp_path)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for one test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SAFEEDIT_CACHE", str(folder))
    return folder


@pytest.fixture
def changed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Give a module another source, as far as digests of code see."""
    real = code.source_of

    def change(name: str) -> None:
        def source(asked: str) -> bytes:
            return real(asked) + b"# changed" if asked == name else real(asked)

        monkeypatch.setattr(code, "source_of", source)

    return change


@pytest.fixture
def llama() -> ModelHandle:
    """A tiny model of its own for one test."""
    return tiny_handle("llama")


@pytest.fixture
def llama_folder(tmp_path: Path) -> Path:
    """A sound checkpoint, to be spoilt."""
    return save_tiny("llama", tmp_path / "llama")


def call(*arguments: object) -> Result:
    """The command line, in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def context(
    folder: Path, said: list[str] | None = None, *, seed: int = 3, **more: Any
) -> RunContext:
    """What a stage is given of a run, without a run.

    Args:
        folder: The cache.
        said: Gets the warnings; without it they go nowhere.
        seed: Where the environment asks for other seeds, another stands for it.
        more: Further fields.
    """
    warn: Callable[[str], None] = (lambda message: None) if said is None else said.append
    return RunContext(seed=seeded(seed), cache=folder, secret=b"a key", warn=warn, **more)


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal deviates, the same for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def moments(*parts: Tensor) -> Moments:
    """Second moments of rows, gathered part by part."""
    found = Moments(parts[0].shape[-1])
    for part in parts:
        found.update(part)
    return found
