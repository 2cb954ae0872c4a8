"""Which tensor of a checkpoint is which of the model, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from safeedit.errors import ModelError, SafeeditError, UnsupportedModelError
from safeedit.model.digest import digest_of, tensor_digest
from safeedit.model.headers import INDEX
from safeedit.model.sources import inspect_model, open_model
from tests.tiny_models import D_MODEL, FAMILIES, save_tiny

Change = Callable[[dict[str, Tensor]], None]


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def rewrite(folder: Path, change: Change) -> None:
    tensors = tensors_of(folder)
    change(tensors)
    whole = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(whole, folder / "model.safetensors", {"format": "pt"})


def settings(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def shard(folder: Path) -> None:
    """Two files and an index in the place of one file."""
    tensors = tensors_of(folder)
    names = sorted(tensors)
    (folder / "model.safetensors").unlink()
    places = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        places |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_of_every_family_finds_its_place(family: str, tmp_path: Path) -> None:
    handle = open_model(str(save_tiny(family, tmp_path / "model")), device="cpu")
    stored = handle.on_disk
    assert stored is not None
    assert stored.unread == ()
    state = handle.model.state_dict()
    assert stored.names.keys() == tensors_of(tmp_path / "model").keys()
    for name, inside in stored.names.items():
        assert torch.equal(stored.read(name), state[inside]), name


def test_the_digest_covers_names_dtypes_shapes_and_bytes_on_disk(llama_folder: Path) -> None:
    def digest() -> str:
        stored = open_model(str(llama_folder), device="cpu").on_disk
        assert stored is not None
        return digest_of(stored.digests())

    tensors = tensors_of(llama_folder)
    first = digest()
    assert first == digest_of({name: tensor_digest(t) for name, t in tensors.items()})
    rewrite(
        llama_folder, lambda t: t.update({"model.norm.weight": t["model.norm.weight"].double()})
    )
    assert digest() != first, "the same numbers in another dtype"
    rewrite(llama_folder, lambda t: t.update({"model.norm.weight": t["model.norm.weight"].float()}))
    assert digest() == first
    rewrite(llama_folder, lambda t: t.update({"v_head.summary.weight": torch.zeros(1, D_MODEL)}))
    assert digest() != first, "a tensor that the model does not read"


def biases(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.1.self_attn.q_proj.bias"] = torch.ones(D_MODEL)


def another_layer(tensors: dict[str, Tensor]) -> None:
    for name in [n for n in tensors if ".layers.2." in n]:
        tensors[name.replace(".layers.2.", ".layers.3.")] = tensors[name]


def head_bias(tensors: dict[str, Tensor]) -> None:
    tensors["lm_head.bias"] = torch.ones(tensors["lm_head.weight"].shape[0])


def norms_of_queries(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.0.self_attn.q_norm.weight"] = torch.ones(8)


def a_trained_bias_of_attention(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.0.attn.bias"] = torch.ones(D_MODEL)


def a_soft_prompt(tensors: dict[str, Tensor]) -> None:
    tensors["prompt_encoder.embedding.weight"] = torch.ones(8, D_MODEL)


def adapters(tensors: dict[str, Tensor]) -> None:
    name = "model.layers.0.self_attn.q_proj"
    tensors[f"{name}.base_layer.weight"] = tensors.pop(f"{name}.weight")
    tensors[f"{name}.lora_A.default.weight"] = torch.ones(4, D_MODEL)
    tensors[f"{name}.lora_B.default.weight"] = torch.ones(D_MODEL, 4)


def compiled(tensors: dict[str, Tensor]) -> None:
    for name in list(tensors):
        tensors[f"_orig_mod.{name}"] = tensors.pop(name)


def wrapped(tensors: dict[str, Tensor]) -> None:
    for name in list(tensors):
        tensors[f"module.{name}"] = tensors.pop(name)


def twice(tensors: dict[str, Tensor]) -> None:
    tensors["norm.weight"] = tensors["model.norm.weight"] + 1


def lacking(tensors: dict[str, Tensor]) -> None:
    del tensors["lm_head.weight"], tensors["model.norm.weight"]


def resized(tensors: dict[str, Tensor]) -> None:
    name = "model.embed_tokens.weight"
    tensors[name] = torch.cat([tensors[name], torch.ones(2, D_MODEL)])


def empty(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(0)


def transposed(tensors: dict[str, Tensor]) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].T


FAULTS: list[tuple[Change, str]] = [
    (biases, r"would be dropped: 'model.layers.1.self_attn.q_proj.bias'"),
    (another_layer, r"9 tensors.*would be dropped: 'model.layers.3.* and 6 more"),
    (head_bias, r"would be dropped: 'lm_head.bias'"),
    (norms_of_queries, r"would be dropped: 'model.layers.0.self_attn.q_norm.weight'"),
    (a_trained_bias_of_attention, r"would be dropped: 'model.layers.0.attn.bias'"),
    (a_soft_prompt, r"would be dropped: 'prompt_encoder.embedding.weight'"),
    (adapters, r"(?s)(lora_A|base_layer).* adapter .*not merged.*remedy:.*merge"),
    (compiled, r"(?s)torch.compile.*remedy:.*'_orig_mod.' out of the names"),
    (wrapped, r"(?s)DataParallel.*remedy:.*'module.' out of the names"),
    (twice, r"'model.norm.weight' and 'norm.weight' are one tensor"),
    (lacking, r"(?s)lacks 'lm_head.weight', 'model.norm.weight'.*at random"),
    (resized, r"(?s)embed_tokens.weight' is stored as 402 x 32.* 400 x 32.*vocab_size to 402"),
    (empty, r"(?s)up_proj.weight' is stored empty.*ZeRO-3"),
    (transposed, r"up_proj.weight' is stored as 32 x 48, and config.json describes 48 x 32"),
]


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "shards"])
@pytest.mark.parametrize(("change", "said"), FAULTS, ids=[change.__name__ for change, _ in FAULTS])
def test_what_would_open_in_part_is_refused_by_name_before_weights_are_loaded(
    change: Change, said: str, sharded: bool, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite(llama_folder, change)
    if sharded:
        shard(llama_folder)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", pytest.fail)
    for look in (inspect_model, open_model):
        with pytest.raises(ModelError, match=said):
            look(str(llama_folder))


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "shards"])
def test_the_control_opens(sharded: bool, llama_folder: Path) -> None:
    if sharded:
        shard(llama_folder)
    assert inspect_model(str(llama_folder)).notes == ()
    assert open_model(str(llama_folder), device="cpu").on_disk is not None


def test_a_config_that_knows_the_biases_takes_them(tmp_path: Path) -> None:
    folder = save_tiny("llama_biases", tmp_path / "model")
    settings(folder, attention_bias=False)
    with pytest.raises(ModelError, match="would be dropped"):
        inspect_model(str(folder))
    settings(folder, attention_bias=True)
    assert inspect_model(str(folder)).notes == ()


@pytest.mark.parametrize(
    ("family", "name", "tensor"),
    [
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(4)),
        ("gpt2", "h.0.attn.bias", torch.ones(1, 1, 8, 8, dtype=torch.uint8)),
        ("gpt2", "transformer.h.0.attn.masked_bias", torch.tensor(-1e4)),
        ("gpt_neox", "gpt_neox.layers.0.attention.bias", torch.ones(1, 1, 8, 8, dtype=torch.bool)),
        ("llama", "v_head.summary.weight", torch.ones(1, D_MODEL)),
        ("llama", "score.weight", torch.ones(2, D_MODEL, dtype=torch.float16)),
        ("gpt2", "value_head.steps", torch.tensor([7], dtype=torch.int64)),
    ],
)
def test_what_no_language_model_reads_is_named_and_does_not_hinder(
    family: str, name: str, tensor: Tensor, tmp_path: Path
) -> None:
    folder = save_tiny(family, tmp_path / "model")
    assert inspect_model(str(folder)).notes == (), "the control"
    rewrite(folder, lambda tensors: tensors.update({name: tensor}))
    (note,) = inspect_model(str(folder)).notes
    assert f"'{name}'" in note
    stored = open_model(str(folder), device="cpu").on_disk
    assert stored is not None
    assert stored.unread == (name,)


def test_names_without_the_models_prefix_are_the_same_tensors(tmp_path: Path) -> None:
    folder = save_tiny("gpt2", tmp_path / "model")
    expected = open_model(str(folder), device="cpu")

    def strip(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)

    rewrite(folder, strip)
    handle = open_model(str(folder), device="cpu")
    assert handle.digest() == expected.digest()
    assert handle.on_disk is not None
    assert handle.on_disk.names["h.0.mlp.c_fc.weight"] == "transformer.h.0.mlp.c_fc.weight"


class TestATiedConfig:
    HEAD = "lm_head.weight"
    EMBEDDING = "model.embed_tokens.weight"

    def folder(self, tmp_path: Path, head: Callable[[Tensor], Tensor]) -> Path:
        folder = save_tiny("llama_tied", tmp_path / "model")
        rewrite(folder, lambda t: t.update({self.HEAD: head(t[self.EMBEDDING])}))
        return folder

    @pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
    def test_over_a_head_of_its_own_is_set_right_and_said(self, dtype: str, tmp_path: Path) -> None:
        folder = self.folder(tmp_path, lambda embedding: embedding + 1e-6)
        found = inspect_model(str(folder))
        assert found.config.tie_word_embeddings is False
        assert "a head of its own" in found.notes[0]
        handle = open_model(str(folder), dtype=dtype, device="cpu")
        assert handle.config.tie_word_embeddings is False
        assert handle.shape.tied == {}, "also where both are rounded to the same numbers"

    def test_over_the_same_head_written_twice_stays_tied(self, tmp_path: Path) -> None:
        folder = self.folder(tmp_path, torch.clone)
        assert inspect_model(str(folder)).notes == ()
        handle = open_model(str(folder), device="cpu")
        assert handle.shape.tied_embeddings
        assert handle.on_disk is not None
        assert handle.on_disk.names.keys() >= {self.HEAD, self.EMBEDDING}

    def test_over_no_head_stays_tied(self, tmp_path: Path) -> None:
        folder = save_tiny("llama_tied", tmp_path / "model")
        assert inspect_model(str(folder)).notes == ()
        assert open_model(str(folder), device="cpu").shape.tied_embeddings

    def test_over_the_head_alone_finds_the_embedding_in_it(self, tmp_path: Path) -> None:
        folder = save_tiny("llama_tied", tmp_path / "model")
        expected = open_model(str(folder), device="cpu").embedding.weight
        rewrite(folder, lambda t: t.update({self.HEAD: t.pop(self.EMBEDDING)}))
        handle = open_model(str(folder), device="cpu")
        assert torch.equal(handle.embedding.weight, expected)


def test_an_untied_config_without_a_head_is_refused(tmp_path: Path) -> None:
    folder = save_tiny("llama_tied", tmp_path / "model")
    settings(folder, tie_word_embeddings=False)
    with pytest.raises(ModelError, match=r"lacks 'lm_head.weight'"):
        inspect_model(str(folder))


class TestDtypes:
    def mixed(self, tmp_path: Path, norms: torch.dtype) -> Path:
        folder = save_tiny("llama", tmp_path / "model", dtype=torch.bfloat16)
        rewrite(
            folder,
            lambda t: t.update({n: (t[n].double() + 1e-5).to(norms) for n in t if "norm" in n}),
        )
        return folder

    @pytest.mark.parametrize("norms", [torch.float32, torch.float16, torch.float64])
    def test_what_is_rounded_to_run_is_counted_and_said(
        self, norms: torch.dtype, tmp_path: Path
    ) -> None:
        folder = self.mixed(tmp_path, norms)
        (note,) = inspect_model(str(folder)).notes
        word = str(norms).removeprefix("torch.")
        assert f"7 tensors (224 numbers) are stored in {word} and were rounded to bfloat16" in note
        stored = open_model(str(folder), device="cpu").on_disk
        assert stored is not None
        (cast,) = stored.casts(torch.bfloat16)
        assert (cast.stored, cast.run, cast.tensors, cast.exact) == (word, "bfloat16", 7, False)

    def test_what_is_widened_to_run_is_counted_and_needs_no_warning(self, tmp_path: Path) -> None:
        folder = save_tiny("llama", tmp_path / "model", dtype=torch.bfloat16)
        assert inspect_model(str(folder), dtype="float32").notes == ()
        stored = open_model(str(folder), device="cpu").on_disk
        assert stored is not None
        (cast,) = stored.casts(torch.float32)
        assert cast.exact
        assert stored.casts(torch.bfloat16) == (), "the control: nothing was cast"

    def test_files_that_use_the_wider_dtype_of_their_config_run_in_it(self, tmp_path: Path) -> None:
        folder = self.mixed(tmp_path, torch.float32)
        settings(folder, dtype="float32")
        assert inspect_model(str(folder)).dtype == "float32"
        assert open_model(str(folder), device="cpu").dtype == torch.float32
        settings(folder, dtype="bfloat16")
        assert inspect_model(str(folder)).dtype == "bfloat16"

    @pytest.mark.parametrize("every", [True, False], ids=["all", "matrices"])
    @pytest.mark.parametrize(
        ("dtype", "word"),
        [
            (torch.float8_e4m3fn, "F8_E4M3"),
            (torch.float8_e5m2, "F8_E5M2"),
            (torch.int8, "I8"),
            (torch.uint8, "U8"),
        ],
    )
    def test_eight_bits_without_a_word_in_the_config_are_refused(
        self, dtype: torch.dtype, word: str, every: bool, llama_folder: Path
    ) -> None:
        rewrite(
            llama_folder,
            lambda t: t.update({n: t[n].to(dtype) for n in t if every or "mlp" in n}),
        )
        for look in (inspect_model, open_model):
            with pytest.raises(UnsupportedModelError) as caught:
                look(str(llama_folder))
            assert "quantised" in caught.value.message
            assert every or word in caught.value.message


def test_a_file_that_is_gone_when_a_tensor_is_read_is_named(llama_folder: Path) -> None:
    stored = open_model(str(llama_folder), device="cpu").on_disk
    assert stored is not None
    (llama_folder / "model.safetensors").unlink()
    with pytest.raises(SafeeditError, match=r"model\.safetensors"):
        stored.read("model.norm.weight")
