"""Tiny models as GGUF files, and wheels of a registry that never is."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, dequantize, quantize

from safeedit.model import builtin
from tests.tiny_models import tiny_tokenizer

D_MODEL, D_MLP, N_LAYERS = 32, 64, 2


def more(name: str) -> Callable[[GGUFWriter], None]:
    """Adds a tensor to a GGUF file."""
    return lambda writer: writer.add_tensor(name, torch.full((8,), 2.0).numpy())


def write_gguf(
    path: Path,
    kind: GGMLQuantizationType,
    seed: int = 0,
    *,
    prepare: Callable[[GGUFWriter], None] = lambda writer: None,
    without: str = "-",
) -> dict[str, torch.Tensor]:
    """A tiny Llama as a GGUF file; returns its matrices ``down_proj`` as they are to be read.

    Args:
        path: The file.
        kind: How matrices are stored.
        seed: Of the weights.
        prepare: Adds metadata or tensors.
        without: Pattern of the names of tensors to leave out.
    """
    tokenizer = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    tokens = dict(tokenizer["model"]["vocab"])
    tokens |= {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    special = {token["content"] for token in tokenizer["added_tokens"]}
    ordered = sorted(tokens, key=lambda token: tokens[token])
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(N_LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(D_MODEL)
    writer.add_feed_forward_length(D_MLP)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(D_MODEL // 2)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(ordered))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(ordered)
    writer.add_token_types([3 if token in special else 1 for token in ordered])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    prepare(writer)
    generator = torch.Generator().manual_seed(seed)
    expected = {}

    def add(name: str, *shape: int) -> None:
        values = torch.randn(shape, generator=generator).numpy()
        if re.search(without, name):
            return
        if len(shape) == 1:
            writer.add_tensor(name, values)
            return
        packed = quantize(values, kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
        if match := re.fullmatch(r"blk\.(\d+)\.ffn_down\.weight", name):
            weight = torch.tensor(dequantize(packed, kind))
            expected[f"model.layers.{match[1]}.mlp.down_proj.weight"] = weight

    add("token_embd.weight", len(ordered), D_MODEL)
    add("output_norm.weight", D_MODEL)
    for layer in range(N_LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{name}.weight", D_MODEL, D_MODEL)
        for name in ("ffn_gate", "ffn_up"):
            add(f"blk.{layer}.{name}.weight", D_MLP, D_MODEL)
        add(f"blk.{layer}.ffn_down.weight", D_MODEL, D_MLP)
        add(f"blk.{layer}.attn_norm.weight", D_MODEL)
        add(f"blk.{layer}.ffn_norm.weight", D_MODEL)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


class Registry:
    """Stands in for the package registry: wheels with a tiny model in place of a built-in one.

    Args:
        folder: Where its wheels lie.
        name: Of the built-in model, which is the only one then.
        monkeypatch: Puts it in the registry's place.
    """

    def __init__(self, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        folder.mkdir()
        gguf = folder / "model.gguf"
        write_gguf(gguf, GGMLQuantizationType.Q8_0)
        whole, real = gguf.read_bytes(), builtin.BUILTIN[name]
        holding = [wheel for wheel in real.wheels if wheel.gguf]
        size = -(-len(whole) // len(holding))
        self.paths: dict[str, Path] = {}
        self.asked: list[str] = []
        made = []
        for wheel in real.wheels:
            self.paths[wheel.package] = path = folder / wheel.file
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("a.dist-info/METADATA", wheel.package)
                if wheel.gguf:
                    start = holding.index(wheel) * size
                    archive.writestr(wheel.gguf, whole[start : start + size])
                elif real.terms is not None:
                    for member in real.terms.members:
                        archive.writestr(member, "what is allowed, what is not")
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            made.append(replace(wheel, sha256=sha256, n_bytes=path.stat().st_size))
        tiny = replace(real, wheels=tuple(made), sha256=hashlib.sha256(whole).hexdigest())
        monkeypatch.setattr(builtin, "BUILTIN", {name: tiny})
        monkeypatch.setattr(builtin, "pip_download", self.download)

    @property
    def calls(self) -> int:
        """How often it was asked for a wheel."""
        return len(self.asked)

    @property
    def wheel(self) -> Path:
        """Its first wheel."""
        return next(iter(self.paths.values()))

    def download(self, package: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """In the place of pip."""
        self.asked.append(package)
        if not self.paths[package].exists():
            said = f"WARNING: x\nERROR: No matching distribution found for {package}\n"
            return subprocess.CompletedProcess([], 1, "", said)
        shutil.copy(self.paths[package], folder)
        return subprocess.CompletedProcess([], 0, "", "")
