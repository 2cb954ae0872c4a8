"""What every test shares: no network, and CUDA tests only where there is CUDA."""

from __future__ import annotations

import os

import pytest

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
