"""What is kept goes stale with the code that made it, and with no other."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from safeedit import catalog, code
from safeedit.code import code_digest

PERPLEXITY = "safeedit.auditors.perplexity"


@pytest.mark.parametrize(
    "module", [PERPLEXITY, "safeedit.statistics.metrics", "safeedit.model.engine"]
)
def test_a_change_of_shared_code_changes_the_digest(
    module: str, changed: Callable[[str], None]
) -> None:
    before = code_digest(PERPLEXITY, "safeedit.model.sources")
    assert code_digest(PERPLEXITY, "safeedit.model.sources") == before
    changed(module)
    assert code_digest(PERPLEXITY, "safeedit.model.sources") != before


def test_a_change_of_code_that_is_not_used_changes_nothing(changed: Callable[[str], None]) -> None:
    before = code_digest(PERPLEXITY)
    changed("safeedit.report.markdown")
    assert code_digest(PERPLEXITY) == before


@pytest.mark.parametrize("name", catalog.names("auditors"))
def test_every_auditor_reaches_the_code_that_makes_its_metrics(name: str) -> None:
    reached = code.reached(catalog.auditor(name).__module__)
    assert "safeedit.statistics.intervals" in reached
    assert "safeedit.records" in reached


def test_a_plug_in_counts_by_its_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "my_auditor.py"
    monkeypatch.syspath_prepend(str(tmp_path))
    digests = []
    for text in ("A = 1\n", "A = 2\n", "A = 1\n"):
        file.write_text(text)
        sys.modules.pop("my_auditor", None)
        importlib.invalidate_caches()
        importlib.import_module("my_auditor")
        digests.append(code_digest("my_auditor"))
    sys.modules.pop("my_auditor", None)
    assert digests[0] == digests[2] != digests[1]
