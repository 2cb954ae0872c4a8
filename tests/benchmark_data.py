"""Where published benchmark files are, for tests that read them as they were published.

They are not part of the project: set ``SAFEEDIT_BENCHMARKS`` to a folder that has them.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(
    os.environ.get("SAFEEDIT_BENCHMARKS")
    or Path(__file__).resolve().parents[1].parent / "shared" / "data"
)


def benchmark(path: str) -> Path:
    """The published file or folder; skips the test where it is absent."""
    found = ROOT / path
    if not found.exists():
        pytest.skip(f"benchmark data {path} is absent (set SAFEEDIT_BENCHMARKS)")
    return found
