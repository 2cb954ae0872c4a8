"""Evidence says what an export is, finds what was changed in it, and takes the edit back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from safeedit import __version__
from safeedit.delta import Columns, Dense, LowRank, Origin, Update, WeightDelta
from safeedit.errors import ExportError
from safeedit.export.checkpoint import write_checkpoint
from safeedit.export.compare import diff_checkpoints
from safeedit.export.evidence import claimed, write_evidence
from safeedit.export.manifest import MANIFEST, UNDO, hash_files, write_manifest
from safeedit.export.reversion import revert
from safeedit.export.staging import Staging
from safeedit.model.digest import digest_of
from safeedit.model.handle import ModelHandle
from safeedit.model.sources import open_model
from safeedit.policy import GateSpec
from safeedit.records import (
    AuditRecord,
    EditRecord,
    EnvironmentRecord,
    ExportRecord,
    Metric,
    ModelRecord,
    ResourceRecord,
    RunRecord,
)
from safeedit.report import card, render_evidence
from safeedit.statistics.metrics import compare
from safeedit.statistics.verdicts import judge
from safeedit.workflows.verification import verify
from tests.tiny_models import tiny_handle


def updates(handle: ModelHandle, seed: int) -> dict[str, Update]:
    """One update of each kind, and one of a bias where there is one."""
    generator = torch.Generator().manual_seed(seed)
    sites = handle.sites("mlp_out")

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    out, width = handle.weight(sites[0]).shape
    found: dict[str, Update] = {
        sites[0].weight: LowRank(draw(out, 2), draw(2, width)),
        sites[1].weight: Columns.zeroed(torch.tensor([1, 5]), out),
        sites[2].weight: Dense(draw(out, width)),
    }
    if sites[0].bias is not None:
        found[sites[0].bias] = Dense(draw(out))
    return found


@dataclass(frozen=True)
class Exported:
    folder: Path
    base: Path
    """The untouched model, written in the same way."""
    base_digest: str
    edited_digest: str


def make_export(tmp_path: Path, family: str, dtype: torch.dtype) -> Exported:
    """An export of a model edited twice in the same tensors, as the runner makes it."""
    base = tmp_path / "base"
    base.mkdir()
    write_checkpoint(tiny_handle(family, dtype), base)
    handle = open_model(str(base), device="cpu")
    base_digest = handle.digest()
    model = model_record(handle)
    deltas: dict[str, WeightDelta] = {}
    edits: list[EditRecord] = []
    for seed, edit_id in enumerate(("first", "second")):
        origin = Origin(editor="test", seed=seed)
        delta = WeightDelta(handle.digest(), updates(handle, seed), origin)
        undo = handle.apply(delta)
        deltas[edit_id] = delta
        edits.append(edit_record(edit_id, delta, undo.changes))
    target = tmp_path / "export"
    with Staging(target) as staging:
        edited = {name for delta in deltas.values() for name in delta.updates}
        written = write_checkpoint(handle, staging.path, edited)
        export = ExportRecord(
            directory=str(target),
            weights_digest=written.digest,
            untouched=len(written.digests) - len(written.changed),
            files=hash_files(staging.path),
        )
        record = run_record(model, tuple(edits), claimed(export, written.originals, None))
        write_evidence(
            staging.path,
            record,
            deltas=deltas,
            undo_tensors=written.originals,
            reports=render_evidence(record),
        )
        staging.promote()
    return Exported(target, base, base_digest, handle.digest())


def edit_record(edit_id: str, delta: WeightDelta, changes: tuple[Any, ...]) -> EditRecord:
    return EditRecord(
        id=edit_id,
        use="test",
        params={},
        data_digests={},
        dose=1.0,
        dose_mode="fixed",
        dose_curve=(),
        targets_met=None,
        changes=changes,
        delta_digest=delta.digest(),
        untouched_verified=0,
        seconds=0.0,
    )


def model_record(handle: ModelHandle) -> ModelRecord:
    assert handle.on_disk is not None
    return ModelRecord(
        source="tiny",
        revision=None,
        architecture="tiny",
        parameters=1,
        dtype=str(handle.dtype),
        device="cpu",
        digest=digest_of(handle.on_disk.digests()),
        names=handle.on_disk.renamed(handle.shape.tied),
    )


def run_record(
    model: ModelRecord, edits: tuple[EditRecord, ...], export: ExportRecord | None
) -> RunRecord:
    """A record whose conclusions follow from its one metric and one gate."""
    gate = GateSpec(metric="drift.distance", max=1.0)
    policy = {
        "name": "test",
        "owner": None,
        "ticket": None,
        "seed": 0,
        "edits": [{"id": edit.id, "use": edit.use} for edit in edits],
        "audits": [{"id": "drift", "use": "drift", "required": True}],
        "gates": [gate.model_dump(mode="json")],
        "export": {"dir": "export"},
    }
    metric = Metric(
        name="drift.distance", value=0.5, interval=None, n=20, unit="norm", direction="lower"
    )
    audit = AuditRecord(
        id="drift", use="drift", split="test", data_digests={}, metrics=(metric,), seconds=0.0
    )
    comparison = compare(metric, metric)
    return RunRecord(
        command="apply",
        run_id="test",
        started="2026-01-01T00:00:00+00:00",
        policy_name="test",
        policy_digest=hashlib.sha256(json.dumps(policy, sort_keys=True).encode()).hexdigest(),
        policy=policy,
        owner=None,
        ticket=None,
        seed=0,
        model=model,
        datasets={},
        before=(audit,),
        edits=edits,
        after=(audit,),
        comparisons=(comparison,),
        verdicts=(judge(gate, comparison),),
        status="pass",
        exit_code=0,
        warnings=(),
        environment=EnvironmentRecord(
            safeedit=__version__,
            python="3",
            platform="test",
            processor="test",
            cpu_count=1,
            device="cpu",
            packages={},
        ),
        resources=ResourceRecord(wall_seconds=0.0, peak_memory_bytes=0, stages={}),
        export=export,
    )


@pytest.fixture
def exported(tmp_path: Path) -> Exported:
    return make_export(tmp_path, "llama", torch.bfloat16)


def test_the_evidence_holds_record_reports_deltas_originals_and_manifest(
    exported: Exported,
) -> None:
    evidence = {path.name for path in (exported.folder / "evidence").iterdir()}
    assert evidence == {
        *("report.json", "report.html", "report.md", "junit.xml", "report.sarif", "bom.cdx.json"),
        *("manifest.sha256", "undo.safetensors"),
        *("delta-first.safetensors", "delta-second.safetensors"),
    }
    record = RunRecord.model_validate_json(
        (exported.folder / "evidence" / "report.json").read_text()
    )
    assert (exported.folder / "README.md").read_text() == card.render(record)
    assert record.export is not None
    assert record.export.weights_digest == exported.edited_digest


def test_the_checkpoint_with_evidence_opens_to_the_edited_weights(exported: Exported) -> None:
    assert open_model(str(exported.folder), device="cpu").digest() == exported.edited_digest
    assert exported.edited_digest != exported.base_digest


def test_an_untouched_export_verifies(exported: Exported) -> None:
    assert verify(exported.folder) == []


def swap_delta(folder: Path) -> None:
    """Another delta under the name of the first, with a manifest that agrees."""
    handle = tiny_handle("llama", torch.bfloat16)
    origin = Origin(editor="test", seed=9)
    WeightDelta(handle.digest(), updates(handle, 9), origin).save(
        folder / "evidence" / "delta-first.safetensors"
    )
    write_manifest(folder)


def edit_weights(folder: Path) -> None:
    """Other weights, with a manifest that agrees: the run record doesn't."""
    write_checkpoint(tiny_handle("llama", torch.bfloat16, seed=1), folder)
    write_manifest(folder)


def fail_the_run(folder: Path) -> None:
    path = folder / "evidence" / "report.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"status": "fail", "exit_code": 1}))
    write_manifest(folder)


def export_nothing(folder: Path) -> None:
    path = folder / "evidence" / "report.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"export": None}))
    write_manifest(folder)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda f: (f / "config.json").write_text("{}"), "config.json: changed"),
        (lambda f: (f / MANIFEST).unlink(), "manifest.sha256: missing"),
        (lambda f: (f / "evidence" / "report.json").write_text("{}"), "not a run record"),
        (swap_delta, "delta-first.safetensors: not the delta of the run record"),
        (edit_weights, "model.safetensors: the manifest and the run record disagree"),
        (fail_the_run, "status: fail, where the verdicts make it pass"),
        (export_nothing, "of a run that exported nothing"),
    ],
)
def test_each_kind_of_tampering_is_named(
    exported: Exported, damage: Callable[[Path], object], problem: str
) -> None:
    damage(exported.folder)
    assert problem in "\n".join(verify(exported.folder))


@pytest.mark.parametrize("family", ["llama_tied", "gpt2", "gpt_neox", "gemma3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_revert_gives_the_base_weights_bit_for_bit(
    tmp_path: Path, family: str, dtype: torch.dtype
) -> None:
    exported = make_export(tmp_path, family, dtype)
    assert diff_checkpoints(exported.base, exported.folder)  # the control: it was edited
    out = tmp_path / "reverted"
    revert(exported.folder, out)
    assert open_model(str(out), device="cpu").digest() == exported.base_digest
    assert diff_checkpoints(exported.base, out) == []
    before, after = (folder / "model.safetensors" for folder in (exported.base, out))
    assert before.read_bytes() == after.read_bytes()


def test_reverting_needs_an_export_that_matches_its_evidence(
    exported: Exported, tmp_path: Path
) -> None:
    (exported.folder / "config.json").write_text("{}")
    (exported.folder / "tokenizer.json").unlink()
    with pytest.raises(ExportError, match=r"config.json: changed \(and 1 more\)"):
        revert(exported.folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_edited_model_card_shows_in_verify_and_does_not_hinder_a_revert(
    exported: Exported, tmp_path: Path
) -> None:
    (exported.folder / "README.md").write_text("# our model")
    assert verify(exported.folder) == ["README.md: changed"]
    revert(exported.folder, tmp_path / "out")


def test_reverting_a_published_copy_says_what_it_lacks(exported: Exported, tmp_path: Path) -> None:
    (exported.folder / UNDO).unlink()
    assert verify(exported.folder) == []
    with pytest.raises(ExportError, match="without the original tensors") as caught:
        revert(exported.folder, tmp_path / "out")
    assert "original model" in caught.value.remedy


def test_reverting_to_an_existing_folder_is_refused(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match="exists"):
        revert(exported.folder, tmp_path / "out")


def rewrite_undo(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    path = folder / UNDO
    with safe_open(path, framework="pt") as file:
        header, names = file.metadata(), list(file.keys())
        tensors = {name: file.get_tensor(name) for name in names}
    tensors[names[0]] = change(tensors[names[0]])
    save_file(tensors, path, metadata=header)
    write_manifest(folder)


def test_originals_that_are_not_the_base_are_found_by_the_digest(
    exported: Exported, tmp_path: Path
) -> None:
    rewrite_undo(exported.folder, lambda tensor: tensor + 1)
    with pytest.raises(ExportError, match="is not the original of the run record"):
        revert(exported.folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_originals_of_another_shape_are_refused(exported: Exported, tmp_path: Path) -> None:
    rewrite_undo(exported.folder, lambda tensor: tensor[:-1].contiguous())
    with pytest.raises(ExportError, match="is not the original of the run record"):
        revert(exported.folder, tmp_path / "out")


def test_corrupt_originals_are_refused(exported: Exported, tmp_path: Path) -> None:
    (exported.folder / UNDO).write_bytes(b"no safetensors")
    write_manifest(exported.folder)
    with pytest.raises(ExportError, match="cannot read the original tensors"):
        revert(exported.folder, tmp_path / "out")


def test_a_full_disk_while_writing_evidence_is_an_export_error(
    exported: Exported, tmp_path: Path
) -> None:
    folder = tmp_path / "again"
    (folder / "evidence").mkdir(parents=True)
    (folder / "evidence" / "report.json").symlink_to("/dev/full")
    with pytest.raises(ExportError, match="No space left"):
        write_evidence(
            folder,
            run_record(model_record(open_model(str(exported.base), device="cpu")), (), None),
            deltas={},
            undo_tensors={},
            reports={},
        )
