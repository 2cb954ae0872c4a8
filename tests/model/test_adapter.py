"""A LoRA adapter merged into its base is what PEFT merges, and one of another base is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from safeedit.errors import ModelError
from safeedit.export.compare import diff_checkpoints
from safeedit.export.reversion import revert
from safeedit.model.adapter import CONFIG, WEIGHTS
from safeedit.model.digest import digest_of
from safeedit.model.headers import read_headers
from safeedit.model.sources import inspect_model, open_model
from safeedit.model.stored import stored_digests, stored_weights
from safeedit.records import RunRecord
from safeedit.workflows.verification import verify
from tests.road import SMALL_DRIFT, Workplace
from tests.tiny_models import FAMILIES, save_tiny, tiny_handle

NAMED = "someone/its-base"


def lora(
    family: str, base: Path, folder: Path, dtype: torch.dtype = torch.float32, **settings: Any
) -> dict[str, torch.Tensor]:
    """Save a random adapter for a tiny model; returns the tensors that PEFT itself merges."""
    handle = open_model(str(base), device="cpu", dtype="float32")
    modules = {
        s.module.rpartition(".")[2] for r in ("mlp_out", "attn_out") for s in handle.sites(r)
    }
    transposed = handle.sites("mlp_out")[0].transposed
    config = peft.LoraConfig(
        **{"r": 4, "lora_alpha": 6, "target_modules": sorted(modules), **settings},
        fan_in_fan_out=transposed,
    )
    torch.manual_seed(1)
    model: Any = peft.get_peft_model(handle.model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    settled = json.loads((folder / CONFIG).read_text()) | {"base_model_name_or_path": NAMED}
    (folder / CONFIG).write_text(json.dumps(settled))
    if dtype != torch.float32:
        path = folder / WEIGHTS
        save_file({n: t.to(dtype) for n, t in load_file(path).items()}, path)
    merged = model.merge_and_unload()
    return {name: tensor.detach().clone() for name, tensor in merged.named_parameters()}


def change(folder: Path, **settings: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_tiny("llama", tmp_path / "base")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    lora("llama", base, tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_merged_as_peft_merges_it(family: str, tmp_path: Path) -> None:
    folder = save_tiny(family, tmp_path / "base")
    expected = lora(family, folder, tmp_path / "adapter")
    before = open_model(str(folder), device="cpu")
    found = open_model(str(folder), device="cpu", adapter=str(tmp_path / "adapter"))
    assert found.digest() != before.digest()
    for name in found.tensor_names():
        if name in expected:
            torch.testing.assert_close(found.tensor(name).data, expected[name], msg=name)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"alpha_pattern": {"layers.1.mlp.down_proj": 3, "o_proj": 40}},
        {"rank_pattern": {"o_proj": 2}},
        {"layers_to_transform": [1]},
    ],
)
def test_its_scale_is_that_of_peft(settings: dict[str, Any], base: Path, tmp_path: Path) -> None:
    expected = lora("llama", base, tmp_path / "adapter", **settings)
    found = open_model(str(base), device="cpu", adapter=str(tmp_path / "adapter"))
    for name in found.tensor_names():
        torch.testing.assert_close(found.tensor(name).data, expected[name], msg=name)


def test_the_sum_is_rounded_once_to_the_dtype_of_the_base(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "base", dtype=torch.bfloat16)
    lora("llama", folder, tmp_path / "adapter", dtype=torch.bfloat16)
    found = open_model(str(folder), device="cpu", adapter=str(tmp_path / "adapter"))
    name = found.sites("mlp_out", [1])[0].weight
    factors = load_file(tmp_path / "adapter" / WEIGHTS)
    left, right = (
        next(t for n, t in factors.items() if f"layers.1.mlp.down_proj.lora_{side}" in n).float()
        for side in "BA"
    )
    original = load_file(folder / "model.safetensors")[name]
    assert original.dtype == found.tensor(name).dtype == torch.bfloat16
    expected = (original.float() + left @ right * 1.5).to(torch.bfloat16)
    assert torch.equal(found.tensor(name).data, expected)


def test_the_plan_tells_of_it_and_its_digest_is_in_the_models_identity(
    base: Path, adapter: Path
) -> None:
    bare = inspect_model(str(base))
    found = inspect_model(str(base), adapter=str(adapter))
    assert found.identity.startswith(bare.identity)
    assert any("LoRA adapter (rank 4, 6 tensors)" in note for note in found.notes)
    assert any(f"trained for {NAMED}" in note for note in found.notes)
    change(adapter, lora_alpha=7)
    assert inspect_model(str(base), adapter=str(adapter)).identity != found.identity


def test_the_stored_tensors_are_the_merged_ones(base: Path, adapter: Path) -> None:
    handle = open_model(str(base), device="cpu", adapter=str(adapter))
    stored = handle.on_disk
    assert stored is not None
    assert len(stored.merged) == 6
    plain = stored_weights(base, handle.config)
    for name in stored.headers:
        assert torch.equal(stored.read(name), handle.tensor(stored.names[name]).data)
        assert (stored.digests()[name] != plain.digests()[name]) == (name in stored.merged)


def other_width(base: Path, adapter: Path) -> None:
    path = adapter / WEIGHTS
    save_file({n: t[:, :-2].clone() if "lora_A" in n else t
               for n, t in load_file(path).items()}, path)  # fmt: skip


def other_depth(base: Path, adapter: Path) -> None:
    path = adapter / WEIGHTS
    save_file({n.replace("layers.2", "layers.7"): t for n, t in load_file(path).items()}, path)


def one_sided(base: Path, adapter: Path) -> None:
    path = adapter / WEIGHTS
    save_file({n: t for n, t in load_file(path).items() if "lora_B" not in n}, path)


def pickled(base: Path, adapter: Path) -> None:
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")


def damaged(base: Path, adapter: Path) -> None:
    (adapter / WEIGHTS).write_bytes((adapter / WEIGHTS).read_bytes()[:-10])


def not_finite(base: Path, adapter: Path) -> None:
    path = adapter / WEIGHTS
    save_file({n: t * float("inf") for n, t in load_file(path).items()}, path)


def a_pattern(base: Path, adapter: Path) -> None:
    change(adapter, alpha_pattern={"(a+)+$": 3})


BAD: list[tuple[Callable[[Path, Path], None], str, str]] = [
    (other_width, "for another base: its factors of", f"trained for {NAMED}"),
    (other_depth, "which the base does not have", f"trained for {NAMED}"),
    (one_sided, "not the other factor", "again"),
    (pickled, "a pickle", "safetensors"),
    (damaged, "corrupt or cut short", "again"),
    (lambda b, a: (a / CONFIG).unlink(), f"has no {CONFIG}", "save_pretrained"),
    (lambda b, a: (a / CONFIG).write_text("{"), "as JSON", "again"),
    (lambda b, a: change(a, peft_type="IA3"), "of the kind 'IA3'", "merge_and_unload"),
    (lambda b, a: change(a, use_dora=True), "DoRA", "merge_and_unload"),
    (lambda b, a: change(a, bias="all"), "biases", "merge_and_unload"),
    (lambda b, a: change(a, modules_to_save=["lm_head"]), "saved whole", "merge_and_unload"),
    (lambda b, a: change(a, init_lora_weights="pissa"), "that it changed", "merge_and_unload"),
    (lambda b, a: change(a, lora_alpha="much"), "no number", "again"),
    (a_pattern, "regular expression", "merge_and_unload"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "message", "remedy"), BAD)
def test_what_can_not_be_merged_is_refused_from_headers(
    spoil: Callable[[Path, Path], None], message: str, remedy: str, base: Path, adapter: Path
) -> None:
    spoil(base, adapter)
    with pytest.raises(ModelError, match=message) as caught:
        inspect_model(str(base), adapter=str(adapter))
    assert remedy in caught.value.remedy


def test_factors_that_are_no_numbers_are_found_when_they_are_read(
    base: Path, adapter: Path
) -> None:
    not_finite(base, adapter)
    with pytest.raises(ModelError, match="no number everywhere"):
        open_model(str(base), device="cpu", adapter=str(adapter))


def test_a_tied_head_is_not_adapted(tmp_path: Path) -> None:
    folder = save_tiny("gemma3_text", tmp_path / "base")
    assert tiny_handle("gemma3_text").shape.tied
    lora("gemma3_text", folder, tmp_path / "adapter")
    path = tmp_path / "adapter" / WEIGHTS
    renamed = {n.replace("model.layers.0.mlp.down_proj", "lm_head"): t
               for n, t in load_file(path).items()}  # fmt: skip
    save_file(renamed, path)
    with pytest.raises(ModelError, match="ties to another tensor"):
        inspect_model(str(folder), adapter=str(tmp_path / "adapter"))


def test_a_policy_with_an_adapter_exports_the_merged_checkpoint_and_reverts_to_it(
    place: Workplace, tmp_path: Path
) -> None:
    model = place.folder / "model"
    lora("llama", model, place.folder / "adapter")
    done = place.run("apply", place.policy(model={"source": "model", "adapter": "adapter"}))
    assert done.exit_code == 0, done.stderr
    merged = open_model(str(model), device="cpu", adapter=str(place.folder / "adapter"))
    assert merged.on_disk is not None
    record = place.report
    said = record.model.adapter
    assert said is not None
    assert (said.source, said.base_named, said.ranks) == ("adapter", NAMED, (4,))
    assert record.model.digest == digest_of(merged.on_disk.digests())
    assert any("trained for" in warning for warning in record.warnings)
    # The export opens by itself, with the adapter in it.
    assert not (place.target / CONFIG).exists()
    touched = {change.name for edit in record.edits for change in edit.changes}
    changed = {row.name for row in diff_checkpoints(model, place.target)}
    assert changed == touched | merged.on_disk.merged
    assert said.digest in (place.target / "README.md").read_text()
    assert verify(place.target) == []
    # What the edit is taken back to is the sum, not the bare base.
    revert(place.target, tmp_path / "back")
    assert stored_digests(read_headers(tmp_path / "back")) == merged.on_disk.digests()


def test_an_adapter_that_is_not_there_or_of_another_base_is_an_error_at_its_field(
    place: Workplace,
) -> None:
    policy = place.policy(model={"source": "model", "adapter": "nowhere"})
    absent = place.run("validate", policy)
    assert absent.exit_code == 3
    assert "policy.yaml:5" in absent.stderr
    assert "model.adapter" in absent.stderr
    lora("llama", place.folder / "model", place.folder / "adapter")
    other_width(place.folder, place.folder / "adapter")
    other = place.run("plan", place.policy(model={"source": "model", "adapter": "adapter"}))
    assert other.exit_code == 3
    assert "for another base" in other.stderr
    assert "policy.yaml:5" in other.stderr


def test_another_model_given_on_the_command_line_comes_without_the_adapter(
    place: Workplace,
) -> None:
    lora("llama", place.folder / "model", place.folder / "adapter")
    policy = place.policy(model={"source": "model", "adapter": "adapter"}, export=None)
    done = place.run("audit", policy, "--model", place.folder / "model", "--json")
    assert done.exit_code in (0, 1, 4), done.stderr
    assert json.loads(done.stdout)["model"]["adapter"] is None


def test_an_attack_holds_a_checkpoint_against_the_merged_base(place: Workplace) -> None:
    lora("llama", place.folder / "model", place.folder / "adapter")
    under = {"metric": "drift.distance", "max": 1.0e9, "min_n": 1, "under": "prod"}
    policy = place.policy(
        model={"source": "model", "adapter": "adapter"},
        attacks=[{"use": "prod", "by": 0.1, "audits": ["drift"]}],
        gates=[SMALL_DRIFT, under],
    )
    reports = place.folder / "reports"
    theirs = place.folder / "model"
    ran = place.run("attack", theirs, "--policy", policy, "--report", reports, "--json")
    assert ran.exit_code == 0, ran.stderr
    record = RunRecord.model_validate(json.loads(ran.stdout))
    merged = open_model(str(theirs), device="cpu", adapter=str(place.folder / "adapter"))
    assert merged.on_disk is not None
    assert record.compared_with is not None
    assert record.compared_with.digest == digest_of(merged.on_disk.digests())
    assert record.compared_with.adapter is not None
    assert record.model.adapter is None
    assert record.model.digest != record.compared_with.digest
