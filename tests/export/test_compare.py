"""Comparing checkpoints finds exactly the entries that differ, without opening a model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from safeedit.errors import ModelError
from safeedit.export import compare
from safeedit.export.compare import TensorDifference, diff_checkpoints


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "layers.0.weight": torch.randn(6, 4, generator=generator),
        "layers.0.bias": torch.randn(6, generator=generator),
        "layers.1.weight": torch.randn(6, 4, generator=generator).bfloat16(),
        "scale": torch.tensor(2.0),
    }


def checkpoint(folder: Path, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    return folder


def differences(tmp_path: Path, after: dict[str, Tensor]) -> list[TensorDifference]:
    return diff_checkpoints(
        checkpoint(tmp_path / "a", weights()), checkpoint(tmp_path / "b", after)
    )


def test_equal_checkpoints_have_no_differences(tmp_path: Path) -> None:
    assert differences(tmp_path, weights()) == []


def test_changed_entries_are_counted_and_their_norm_is_that_of_the_change(tmp_path: Path) -> None:
    after = weights()
    after["layers.0.weight"][2, 1] += 3.0
    after["layers.0.weight"][5, 0] -= 4.0
    (row,) = differences(tmp_path, after)
    assert (row.name, row.status, row.entries_changed) == ("layers.0.weight", "changed", 2)
    assert row.share_changed == pytest.approx(2 / 24)
    assert row.delta_norm == pytest.approx(5.0, rel=1e-6)
    original = float(weights()["layers.0.weight"].norm())
    assert row.relative_norm == pytest.approx(5.0 / original, rel=1e-6)


def test_chunks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    after = {name: tensor * 1.5 for name, tensor in weights().items()}
    whole = differences(tmp_path, after)
    monkeypatch.setattr(compare, "CHUNK", 5)
    chunked = diff_checkpoints(tmp_path / "a", tmp_path / "b")
    assert [row.entries_changed for row in chunked] == [6, 24, 24, 1]
    assert [row.delta_norm for row in chunked] == pytest.approx([r.delta_norm for r in whole])


def test_bits_are_compared_so_nan_equals_itself_and_zeros_have_signs(tmp_path: Path) -> None:
    before, after = weights(), weights()
    for tensors in (before, after):
        tensors["layers.0.bias"][0] = float("nan")
        tensors["layers.0.bias"][1] = 0.0
    after["layers.0.bias"][1] = -0.0
    a, b = checkpoint(tmp_path / "a", before), checkpoint(tmp_path / "b", after)
    (row,) = diff_checkpoints(a, b)
    assert (row.name, row.entries_changed) == ("layers.0.bias", 1)


def test_another_dtype_is_a_difference_and_values_are_still_compared(tmp_path: Path) -> None:
    after = weights()
    after["layers.1.weight"] = after["layers.1.weight"].float()
    after["layers.0.bias"] = after["layers.0.bias"].bfloat16()
    bias, weight = differences(tmp_path, after)
    assert (weight.status, weight.dtype, weight.entries_changed) == ("dtype", "float32", 0)
    assert bias.status == "dtype"
    assert bias.entries_changed > 0
    assert 0 < bias.relative_norm < 2**-8


def test_added_removed_and_reshaped_tensors_are_named(tmp_path: Path) -> None:
    after = weights()
    after["new"] = torch.zeros(3)
    del after["scale"]
    after["layers.0.bias"] = torch.zeros(7)
    rows = {row.name: row for row in differences(tmp_path, after)}
    assert {name: row.status for name, row in rows.items()} == {
        "layers.0.bias": "shape",
        "new": "added",
        "scale": "removed",
    }
    assert all(row.delta_norm is None and row.relative_norm == math.inf for row in rows.values())


def test_sharding_is_no_difference(tmp_path: Path) -> None:
    tensors, folder = weights(), tmp_path / "sharded"
    folder.mkdir()
    names = sorted(tensors)
    shards = {"one.safetensors": names[:2], "two.safetensors": names[2:]}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / shard)
    index = {name: shard for shard, held in shards.items() for name in held}
    (folder / compare.INDEX).write_text(json.dumps({"weight_map": index}))
    assert diff_checkpoints(checkpoint(tmp_path / "whole", tensors), folder) == []
    (folder / "two.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot read"):
        diff_checkpoints(tmp_path / "whole", folder)


def test_a_single_file_may_be_given(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a", weights())
    assert diff_checkpoints(folder, folder / "model.safetensors") == []


def test_a_corrupt_file_is_named(tmp_path: Path) -> None:
    good = checkpoint(tmp_path / "good", weights())
    bad = checkpoint(tmp_path / "bad", weights())
    content = (bad / "model.safetensors").read_bytes()
    (bad / "model.safetensors").write_bytes(content[:-10])
    with pytest.raises(ModelError, match="cannot read these weights") as caught:
        diff_checkpoints(good, bad)
    assert caught.value.file == str(bad / "model.safetensors")


def test_a_pickle_checkpoint_is_not_opened(tmp_path: Path) -> None:
    good = checkpoint(tmp_path / "good", weights())
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(ModelError, match="no safetensors weights") as caught:
        diff_checkpoints(good, tmp_path / "pickled")
    assert "pickles are not opened" in caught.value.remedy


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    good = checkpoint(tmp_path / "good", weights())
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / compare.INDEX).write_text("[]")
    with pytest.raises(ModelError, match="index"):
        diff_checkpoints(good, tmp_path / "bad")
