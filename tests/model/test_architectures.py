"""Every row of the table of architectures, held against a tiny model of its family."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from safeedit.errors import UnsupportedModelError, UsageError
from safeedit.model.architectures import ARCHITECTURES, ROLES, ModelShape, architecture_of
from safeedit.model.handle import ModelHandle
from tests.tiny_models import (
    D_MLP,
    D_MODEL,
    FAMILIES,
    N_LAYERS,
    VOCAB_SIZE,
    tiny_config,
    tiny_handle,
    tiny_model,
)

every_family = pytest.mark.parametrize("family", FAMILIES)


def token_ids(rows: int = 2, length: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(10, VOCAB_SIZE - 10, (rows, length), generator=generator)


def inputs() -> dict[str, Tensor]:
    ids = token_ids()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def block_output(handle: ModelHandle, layer: int) -> Tensor:
    seen: list[Tensor] = []

    def hook(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    remove = handle.blocks()[layer].register_forward_hook(hook)
    with torch.no_grad():
        handle.forward(inputs())
    remove.remove()
    return seen[0]


def silence(handle: ModelHandle, role: str, layer: int) -> None:
    (site,) = handle.sites(role, [layer])
    with torch.no_grad():
        handle.tensor(site.weight).zero_()
        if site.bias is not None:
            handle.tensor(site.bias).zero_()


def test_every_row_is_tested_on_a_tiny_model() -> None:
    assert {model_type for model_type, _ in FAMILIES.values()} == set(ARCHITECTURES)


def test_rows_use_only_the_roles_there_are() -> None:
    for row in ARCHITECTURES.values():
        assert set(row.roles) <= set(ROLES)
        assert {"mlp_out", "attn_out"} <= set(row.roles)


@every_family
def test_every_matrix_of_a_block_but_norms_has_a_role(family: str) -> None:
    handle = tiny_handle(family)
    prefix = f"{handle.architecture.layers}.0."
    matrices = {
        name
        for name, parameter in handle.model.named_parameters()
        if name.startswith(prefix) and parameter.dim() == 2
    }
    assert {handle.sites(role, [0])[0].weight for role in handle.shape.roles} == matrices


@every_family
def test_weights_are_out_by_in(family: str) -> None:
    handle = tiny_handle(family)
    generator = torch.Generator().manual_seed(0)
    for role in handle.shape.roles:
        for site in handle.sites(role):
            weight, bias = handle.weight(site), handle.bias(site)
            x = torch.randn(3, weight.shape[1], generator=generator)
            by_hand = x @ weight.T + (0 if bias is None else bias)
            by_module = handle.model.get_submodule(site.module)(x)
            torch.testing.assert_close(by_module, by_hand, rtol=1e-5, atol=1e-5)


@every_family
def test_roles_have_the_shapes_of_their_meaning(family: str) -> None:
    shape = tiny_handle(family).shape
    assert (shape.n_layers, shape.d_model, shape.d_mlp) == (N_LAYERS, D_MODEL, D_MLP)
    expected = {
        "mlp_out": (D_MODEL, D_MLP),
        "mlp_up": (D_MLP, D_MODEL),
        "mlp_gate": (D_MLP, D_MODEL),
        "mlp_gate_up": (2 * D_MLP, D_MODEL),
    }
    for role in shape.roles:
        for layer, plan in enumerate(shape.tensors(role)):
            assert (plan.role, plan.layer) == (role, layer)
            if role in expected:
                assert plan.shape == expected[role]
            else:
                assert plan.shape[0 if role == "attn_out" else 1] == D_MODEL


@every_family
def test_shapes_without_weights_are_those_of_the_model(family: str) -> None:
    handle = tiny_handle(family)
    shape = ModelShape.from_config(tiny_config(family))
    assert shape == handle.shape
    for role in shape.roles:
        for site, plan in zip(shape.sites(role), shape.tensors(role), strict=True):
            assert plan.name == site.weight
            assert plan.shape == tuple(handle.weight(site).shape)
        for plan in shape.biases(role):
            assert plan.shape == tuple(handle.oriented(plan.name).shape)
            assert plan.role == f"{role}_bias"


@every_family
def test_biases_are_found_exactly_where_modules_have_them(family: str) -> None:
    handle = tiny_handle(family)
    for role in handle.shape.roles:
        for site in handle.sites(role):
            has_bias = getattr(handle.model.get_submodule(site.module), "bias", None) is not None
            assert (handle.bias(site) is not None) == has_bias


def test_the_tiny_models_cover_biases_tying_and_transposition() -> None:
    shapes = {family: ModelShape.from_config(tiny_config(family)) for family in FAMILIES}
    assert shapes["qwen2"].biases("attn_q")
    assert not shapes["qwen2"].biases("mlp_out")
    assert not shapes["llama"].biases("attn_q")
    assert shapes["gpt2"].biases("mlp_out")
    assert shapes["llama_tied"].tied_embeddings
    assert not shapes["llama"].tied_embeddings
    assert shapes["gpt2"].transposed
    assert not shapes["opt"].transposed


@every_family
def test_tied_parameters_are_counted_once(family: str) -> None:
    model = tiny_model(family)
    shape = ModelShape.from_model(model)
    distinct = {id(parameter): parameter.numel() for parameter in model.parameters()}
    assert shape.n_parameters == sum(distinct.values())
    assert shape.tied_embeddings == model.config.tie_word_embeddings
    assert bool(shape.tied) == shape.tied_embeddings


@every_family
def test_a_row_says_rightly_whether_a_norm_follows_the_mlp(family: str) -> None:
    handle, silenced = tiny_handle(family), tiny_handle(family)
    last = N_LAYERS - 1
    (site,) = handle.sites("mlp_out", [last])
    written = handle.capture(inputs(), [site], "output")[site]
    silence(silenced, "mlp_out", last)
    gained = block_output(handle, last) - block_output(silenced, last)
    is_what_was_written = torch.allclose(gained, written, rtol=1e-4, atol=1e-4)
    assert is_what_was_written == (handle.architecture.post_mlp_norm == "")
    if handle.architecture.post_mlp_norm:
        assert handle.blocks()[0].get_submodule(handle.architecture.post_mlp_norm)


@every_family
def test_unembedding_the_last_block_gives_the_logits(family: str) -> None:
    handle = tiny_handle(family)
    with torch.no_grad():
        logits = handle.model(**inputs()).logits
        unembedded = handle.unembed(block_output(handle, N_LAYERS - 1))
        torch.testing.assert_close(unembedded, logits, rtol=1e-5, atol=1e-5)
        # A control: an earlier block does not give them.
        assert not torch.allclose(handle.unembed(block_output(handle, 0)), logits, atol=1e-2)


def test_sites_come_in_the_order_asked_for() -> None:
    shape = ModelShape.from_config(tiny_config("llama"))
    assert [site.layer for site in shape.sites("mlp_out", [2, 0])] == [2, 0]
    assert shape.sites("mlp_out", []) == ()


@pytest.mark.parametrize("layer", [N_LAYERS, -1])
def test_a_layer_outside_the_model_is_refused(layer: int) -> None:
    with pytest.raises(UsageError, match=rf"layer {layer} does not exist: .* has 3 layers"):
        ModelShape.from_config(tiny_config("llama")).sites("mlp_out", [0, layer])


def test_a_role_the_family_lacks_is_refused_with_those_it_has() -> None:
    with pytest.raises(UsageError, match=r"no 'attn_q'[\s\S]*mlp_out, mlp_up, attn_qkv"):
        ModelShape.from_config(tiny_config("gpt2")).tensors("attn_q")


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("mixtral", {}),
        ("qwen2_moe", {}),
        ("qwen3_moe", {}),
        ("deepseek_v3", {}),
        ("dbrx", {}),
        ("olmoe", {}),
        ("gpt_oss", {}),
        ("granitemoe", {}),
    ],
)
def test_a_mixture_of_experts_is_refused_as_one(
    model_type: str, options: dict[str, object]
) -> None:
    config = AutoConfig.for_model(model_type, **options)
    with pytest.raises(UnsupportedModelError, match=f"{model_type} is a mixture of experts"):
        architecture_of(config)


@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_an_encoder_decoder_is_refused_as_one(model_type: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"{model_type} is an encoder-decoder"):
        architecture_of(AutoConfig.for_model(model_type))


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("method", ["gptq", "bitsandbytes", "fp8"])
def test_quantised_weights_are_refused_as_such(family: str, method: str) -> None:
    config = tiny_config(family)
    config.quantization_config = {"quant_method": method, "bits": 4}
    with pytest.raises(UnsupportedModelError, match="are quantised: an edit would be rounded"):
        architecture_of(config)


@pytest.mark.parametrize(
    "model_type",
    [
        "mamba",
        "mamba2",
        "bamba",
        "zamba2",
        "falcon_h1",
        "recurrent_gemma",
        "lfm2",
        "qwen3_5_text",
        "olmo_hybrid",
    ],
)
def test_a_model_with_layers_that_keep_a_state_is_refused_as_one(model_type: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"{model_type} is no pure transformer"):
        architecture_of(AutoConfig.for_model(model_type))


@pytest.mark.parametrize("model_type", ["bert", "stablelm", "bloom"])
def test_an_unknown_type_is_refused_with_what_is_supported(model_type: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"'{model_type}'") as refusal:
        architecture_of(AutoConfig.for_model(model_type))
    for name in ("Llama", "Qwen3", "Gemma 2", "GPT-2", "GPT-NeoX", "OPT"):
        assert name in refusal.value.remedy


@every_family
def test_supported_families_are_not_refused(family: str) -> None:
    assert architecture_of(tiny_config(family)).model_type == FAMILIES[family][0]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_without_a_head_is_refused(family: str) -> None:
    model = AutoModel.from_config(tiny_config(family))
    with pytest.raises(UnsupportedModelError, match="not laid out as one") as refusal:
        ModelShape.from_model(model)
    assert "AutoModelForCausalLM" in refusal.value.remedy
