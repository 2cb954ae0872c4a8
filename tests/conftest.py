"""What every test shares: no network, and CUDA tests only where there is CUDA."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from safeedit.model.handle import ModelHandle

# Before transformers or datasets are imported: a test that reaches for the hub must fail at
# once, not after a timeout.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for_cuda = [item for item in items if item.get_closest_marker("cuda")]
    if not for_cuda:
        return
    import torch

    if not torch.cuda.is_available():
        for item in for_cuda:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def smollm2() -> ModelHandle:
    """The built-in model, opened once. A test that edits it puts it back (``applied``)."""
    from safeedit.model.sources import open_model

    return open_model("builtin:smollm2-135m-instruct", device="cpu")
