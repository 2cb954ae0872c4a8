"""What every test shares: no network, and CUDA tests only where there is CUDA."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest
import torch

from tests.training import on_training, seeded

if TYPE_CHECKING:
    from safeedit.model.handle import ModelHandle

pytest_plugins = ("tests.fixtures",)

# Before transformers or datasets are imported: a test that reaches for the hub must fail at
# once, not after a timeout.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# Kernels of PyTorch below AVX-512 are those of a CPU without AMX, for which oneDNN must not lay
# bfloat16 out either: on a CPU that has it, attention would fail ("pack_vnni2 is only supported
# when avx512 is supported").
if os.environ.get("ATEN_CPU_CAPABILITY") in ("default", "avx2"):
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _uses_a_fixture_that_trains(item):
            item.add_marker("trains")
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def _uses_a_fixture_that_trains(item: pytest.Item) -> bool:
    if not isinstance(item, pytest.Function):
        return False
    found = item._fixtureinfo.name2fixturedefs
    return any(
        getattr(definition.func, "trains", False) for each in found.values() for definition in each
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """While a test runs, its fixtures included, it is the one that training is charged to."""
    _running.append(item)
    try:
        return (yield)
    finally:
        _running.pop()


def _ask_for_the_mark() -> None:
    item = _running[-1] if _running else None
    if item is not None and not item.get_closest_marker("trains"):
        raise AssertionError(
            f"{item.nodeid} trains a model or uses a trained one: mark its module "
            "(pytestmark = pytest.mark.trains), so that `make test-kernels` runs it"
        )


_running: list[pytest.Item] = []
on_training(_ask_for_the_mark)


@pytest.fixture(autouse=True)
def seed_of_torch() -> None:
    """What draws from torch's own generator draws the same in any order of tests."""
    torch.manual_seed(seeded(0))


@pytest.fixture(scope="session")
def smollm2() -> ModelHandle:
    """The built-in model, opened once. A test that edits it puts it back (``applied``)."""
    from safeedit.model.sources import open_model

    return open_model("builtin:smollm2-135m-instruct", device="cpu")
