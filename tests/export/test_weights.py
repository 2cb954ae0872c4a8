"""The weights files of an export: the source's own tensors but for what was edited."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from safeedit.delta import Columns, Dense, Origin, Update, WeightDelta
from safeedit.errors import ExportError
from safeedit.export.checkpoint import write_checkpoint
from safeedit.export.weights import Written
from safeedit.model.digest import tensor_digest
from safeedit.model.handle import ModelHandle
from safeedit.model.headers import INDEX
from safeedit.model.sources import open_model
from tests.model.test_stored import rewrite, settings, shard
from tests.tiny_models import D_MODEL, FAMILIES, save_tiny

EDITED = "model.layers.1.mlp.down_proj.weight"


def edit(handle: ModelHandle, update: Update | None = None, name: str = EDITED) -> None:
    if update is None:
        update = Dense(torch.randn(handle.oriented(name).shape, generator=_seeded()) * 0.1)
    handle.apply(WeightDelta(handle.digest(), {name: update}, Origin("test")))


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def write(handle: ModelHandle, folder: Path, *edited: str) -> Written:
    folder.mkdir()
    return write_checkpoint(handle, folder, edited or (EDITED,))


def tensors_of(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def differing(one: Path, other: Path) -> set[str]:
    first, second = tensors_of(one), tensors_of(other)
    assert first.keys() == second.keys()
    return {name for name in first if tensor_digest(first[name]) != tensor_digest(second[name])}


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "shards"])
@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16", "float16"])
def test_only_the_edited_tensor_differs_whatever_the_model_runs_in(
    dtype: str, sharded: bool, tmp_path: Path
) -> None:
    source = save_tiny("llama", tmp_path / "source", dtype=torch.bfloat16)
    rewrite(source, lambda t: t.update({n: t[n].float() + 1e-5 for n in t if "norm" in n}))
    if sharded:
        shard(source)
    handle = open_model(str(source), dtype=dtype, device="cpu")
    edit(handle)
    written = write(handle, tmp_path / "out")
    assert differing(source, tmp_path / "out") == written.changed == {EDITED}
    assert (tmp_path / "out" / INDEX).exists() == sharded
    staged = open_model(str(tmp_path / "out"), dtype=str(handle.dtype)[6:], device="cpu")
    assert staged.digest() == handle.digest(), "what was measured is what was written"


@pytest.mark.parametrize("family", FAMILIES)
def test_of_every_family_only_the_edited_tensor_differs(family: str, tmp_path: Path) -> None:
    source = save_tiny(family, tmp_path / "source")
    handle = open_model(str(source), device="cpu")
    name = handle.sites("mlp_out", [1])[0].weight
    edit(handle, name=name)
    written = write(handle, tmp_path / "out", name)
    assert handle.on_disk is not None
    assert {handle.on_disk.names[n] for n in written.changed} == {name}
    assert differing(source, tmp_path / "out") == written.changed == written.originals.keys()
    assert open_model(str(tmp_path / "out"), device="cpu").digest() == handle.digest()


def test_nothing_edited_leaves_the_very_bytes_of_the_files(tmp_path: Path) -> None:
    source = save_tiny("llama", tmp_path / "source", dtype=torch.float16)
    rewrite(source, lambda t: t.update({"v_head.summary.weight": torch.ones(1, D_MODEL)}))
    write(open_model(str(source), dtype="bfloat16", device="cpu"), tmp_path / "out")
    assert _bytes(source) == _bytes(tmp_path / "out")


def _bytes(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_an_edited_tensor_keeps_its_own_wider_dtype_and_the_entries_the_edit_left_alone(
    tmp_path: Path,
) -> None:
    source = save_tiny("llama", tmp_path / "source", dtype=torch.bfloat16)
    rewrite(source, lambda t: t.update({EDITED: t[EDITED].float() + 1e-5}))
    handle = open_model(str(source), device="cpu")
    assert handle.dtype == torch.bfloat16
    edit(handle, Columns.zeroed(torch.tensor([3]), D_MODEL))
    write(handle, tmp_path / "out")
    before, after = (tensors_of(tmp_path / n)[EDITED] for n in ("source", "out"))
    assert after.dtype == torch.float32
    assert not after[:, 3].any()
    kept = [column for column in range(after.shape[1]) if column != 3]
    assert torch.equal(after[:, kept], before[:, kept]), "not rounded to bfloat16"
    assert not torch.equal(before, before.bfloat16().float()), "the control: it would show"


def test_an_edit_of_a_narrower_tensor_is_rounded_when_it_is_made_not_when_it_is_written(
    tmp_path: Path,
) -> None:
    source = save_tiny("llama", tmp_path / "source")
    rewrite(source, lambda t: t.update({EDITED: t[EDITED].bfloat16()}))
    handle = open_model(str(source), device="cpu")
    edit(handle)
    inside = handle.stored(EDITED)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, inside.bfloat16().float())
    write(handle, tmp_path / "out")
    assert tensors_of(tmp_path / "out")[EDITED].dtype == torch.bfloat16
    assert open_model(str(tmp_path / "out"), device="cpu").digest() == handle.digest()


def test_a_policys_wider_dtype_widens_what_was_edited_and_nothing_else(tmp_path: Path) -> None:
    source = save_tiny("llama", tmp_path / "source", dtype=torch.bfloat16)
    handle = open_model(str(source), dtype="float32", device="cpu")
    edit(handle)
    write(handle, tmp_path / "out")
    dtypes = {name: tensor.dtype for name, tensor in tensors_of(tmp_path / "out").items()}
    assert {name for name, dtype in dtypes.items() if dtype == torch.float32} == {EDITED}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "float32"
    reopened = open_model(str(tmp_path / "out"), device="cpu")
    assert reopened.digest() == handle.digest(), "its readers find what was measured"


def test_a_head_that_the_config_called_tied_is_exported_as_one_of_its_own(tmp_path: Path) -> None:
    source = save_tiny("llama_tied", tmp_path / "source")
    head = torch.randn(400, D_MODEL, generator=_seeded())
    rewrite(source, lambda t: t.update({"lm_head.weight": head}))
    handle = open_model(str(source), device="cpu")
    edit(handle)
    write(handle, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert torch.equal(tensors_of(tmp_path / "out")["lm_head.weight"], head)
    control = save_tiny("llama_tied", tmp_path / "control")
    write(open_model(str(control), device="cpu"), tmp_path / "control-out")
    config = json.loads((tmp_path / "control-out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is True


def test_a_tied_tensor_written_twice_is_changed_twice_and_both_originals_are_kept(
    tmp_path: Path,
) -> None:
    source = save_tiny("llama_tied", tmp_path / "source")
    both = {"lm_head.weight", "model.embed_tokens.weight"}
    rewrite(source, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}))
    handle = open_model(str(source), device="cpu")
    (name,) = both & set(handle.shape.stored)
    edit(handle, name=name)
    written = write(handle, tmp_path / "out", name)
    assert written.changed == written.originals.keys() == both
    assert open_model(str(tmp_path / "out"), device="cpu").digest() == handle.digest()


def test_originals_are_the_sources_own_in_its_own_dtype(tmp_path: Path) -> None:
    source = save_tiny("llama", tmp_path / "source", dtype=torch.bfloat16)
    handle = open_model(str(source), dtype="float32", device="cpu")
    edit(handle)
    written = write(handle, tmp_path / "out")
    (original,) = written.originals.values()
    assert original.dtype == torch.bfloat16
    assert torch.equal(original, tensors_of(source)[EDITED])


def test_tensors_that_no_model_reads_and_the_files_metadata_are_kept(tmp_path: Path) -> None:
    source = save_tiny("llama", tmp_path / "source")
    tensors = tensors_of(source) | {
        "v_head.summary.weight": torch.ones(1, D_MODEL, dtype=torch.float64),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "score.steps": torch.tensor([7]),
    }
    save_file(tensors, source / "model.safetensors", {"format": "pt", "made": "by hand"})
    handle = open_model(str(source), device="cpu")
    edit(handle)
    write(handle, tmp_path / "out")
    assert differing(source, tmp_path / "out") == {EDITED}
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "made": "by hand"}


def test_a_tensor_that_no_edit_named_may_not_differ(tmp_path: Path) -> None:
    handle = open_model(str(save_tiny("llama", tmp_path / "source")), device="cpu")
    edit(handle)
    with pytest.raises(ExportError, match=f"'{EDITED}' is not as in the source"):
        write(handle, tmp_path / "out", "model.layers.0.mlp.down_proj.weight")


@pytest.mark.parametrize("name", ["model.norm.weight", EDITED])
def test_a_source_that_changes_during_the_run_is_refused(name: str, tmp_path: Path) -> None:
    source = save_tiny("llama", tmp_path / "source")
    handle = open_model(str(source), device="cpu")
    assert handle.on_disk is not None
    handle.on_disk.digests()  # as a run takes them when it begins
    edit(handle)
    rewrite(source, lambda t: t.update({name: t[name] * 2}))
    with pytest.raises(ExportError, match=r"the source changed while it was edited|no edit named"):
        write(handle, tmp_path / "out")


def test_the_config_is_of_what_was_measured(tmp_path: Path) -> None:
    source = save_tiny("llama", tmp_path / "source")
    settings(source, architectures=["LlamaForSequenceClassification"], dtype="float16")
    handle = open_model(str(source), dtype="bfloat16", device="cpu")
    write(handle, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["architectures"], config["dtype"]) == (["LlamaForCausalLM"], "bfloat16")
