"""Reports on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from safeedit import report
from safeedit.records import RunRecord
from tests.report.records import run_record


def test_the_record_is_on_disk_even_where_another_format_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(record: RunRecord) -> str:
        raise ZeroDivisionError

    record = run_record()
    monkeypatch.setattr(report.html, "render", fail)
    with pytest.raises(ZeroDivisionError):
        report.write_all(record, tmp_path)
    assert RunRecord.model_validate_json((tmp_path / "report.json").read_text()) == record
    monkeypatch.undo()
    report.write_all(record, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == set(report.render_all(record))
