"""Where things are in each family of models: the one place that knows.

A row of :data:`ARCHITECTURES` says where a family keeps its blocks, and where in a block
each *role* (``mlp_out``, ``attn_q`` ...) is found. Everything else asks for roles. A model
that has no row, or whose weights can't be edited one matrix at a time, is refused by
:func:`architecture_of` with the reason. Adding a family is adding a row, and a tiny config
in ``tests/tiny_models.py``, which makes every test of this package run on it.

Paths were checked against transformers 5.23. The input embedding and the head are not in
the table: transformers' own ``get_input_embeddings`` and ``get_output_embeddings`` know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import nn

from safeedit.contracts import TensorPlan
from safeedit.errors import UnsupportedModelError, UsageError
from safeedit.model.config_kinds import counts_experts, keeps_a_state
from safeedit.model.guard import BUILDING, readable
from safeedit.model.quiet import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Role = Literal[
    "mlp_out",
    "mlp_up",
    "mlp_gate",
    "mlp_gate_up",
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_qkv",
    "attn_out",
]
"""What a matrix does in a block.

``mlp_out`` writes the MLP's neurons into the residual stream (a column per neuron);
``mlp_up`` reads for them, ``mlp_gate`` gates them, ``mlp_gate_up`` is both in one matrix
(gate rows first). ``attn_qkv`` is a fused query, key and value projection.
"""

ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True)
class Architecture:
    """One family of models.

    Attributes:
        model_type: ``config.model_type`` in transformers.
        family: Its name for people.
        layers: Path of the list of blocks.
        roles: Role -> path inside a block.
        final_norm: Path of the norm before the head; a model may lack it (OPT-350m).
        transposed: Matrices of the blocks are stored (in, out): GPT-2's ``Conv1D``.
        post_mlp_norm: Path inside a block of a norm *after* the MLP, or empty. Where there
            is one, what ``mlp_out`` writes is not what the residual gains: projecting the
            matrix does not project the residual.
        output_projection: Path of a map between final norm and head, or empty (OPT-350m).
    """

    model_type: str
    family: str
    layers: str
    roles: Mapping[str, str]
    final_norm: str
    transposed: bool = False
    post_mlp_norm: str = ""
    output_projection: str = ""

    def path(self, role: str, layer: int) -> str:
        """Path of the module that plays ``role`` in block ``layer``.

        Raises:
            UsageError: The family has no such role.
        """
        try:
            return f"{self.layers}.{layer}.{self.roles[role]}"
        except KeyError:
            raise UsageError(
                f"{self.family} models have no '{role}'",
                remedy=f"their roles are {', '.join(self.roles)}",
            ) from None


def _roles(prefixes: str, **paths: str) -> Mapping[str, str]:
    """Roles of one row; ``prefixes`` are the paths of attention and MLP inside a block."""
    attention, mlp = prefixes.split(",")
    return MappingProxyType(
        {
            role: ".".join(filter(None, (mlp if role.startswith("mlp") else attention, path)))
            for role, path in paths.items()
        }
    )


_SEPARATE = {"attn_q": "q_proj", "attn_k": "k_proj", "attn_v": "v_proj"}
_LLAMA = Architecture(
    model_type="llama",
    family="Llama",
    layers="model.layers",
    roles=_roles(
        "self_attn,mlp",
        mlp_out="down_proj",
        mlp_up="up_proj",
        mlp_gate="gate_proj",
        **_SEPARATE,
        attn_out="o_proj",
    ),
    final_norm="model.norm",
)

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        row.model_type: row
        for row in (
            _LLAMA,
            replace(_LLAMA, model_type="mistral", family="Mistral"),
            replace(_LLAMA, model_type="qwen2", family="Qwen2"),
            replace(_LLAMA, model_type="qwen3", family="Qwen3"),
            replace(
                _LLAMA,
                model_type="gemma2",
                family="Gemma 2",
                post_mlp_norm="post_feedforward_layernorm",
            ),
            replace(
                _LLAMA,
                model_type="gemma3_text",
                family="Gemma 3",
                post_mlp_norm="post_feedforward_layernorm",
            ),
            replace(
                _LLAMA,
                model_type="gemma3",
                family="Gemma 3 (text part of the multimodal model)",
                layers="model.language_model.layers",
                final_norm="model.language_model.norm",
                post_mlp_norm="post_feedforward_layernorm",
            ),
            replace(
                _LLAMA,
                model_type="olmo2",
                family="OLMo-2",
                post_mlp_norm="post_feedforward_layernorm",
            ),
            replace(
                _LLAMA,
                model_type="phi3",
                family="Phi-3",
                roles=_roles(
                    "self_attn,mlp",
                    mlp_out="down_proj",
                    mlp_gate_up="gate_up_proj",
                    attn_qkv="qkv_proj",
                    attn_out="o_proj",
                ),
            ),
            Architecture(
                model_type="gpt2",
                family="GPT-2",
                layers="transformer.h",
                roles=_roles(
                    "attn,mlp",
                    mlp_out="c_proj",
                    mlp_up="c_fc",
                    attn_qkv="c_attn",
                    attn_out="c_proj",
                ),
                final_norm="transformer.ln_f",
                transposed=True,
            ),
            Architecture(
                model_type="gpt_neox",
                family="GPT-NeoX",
                layers="gpt_neox.layers",
                roles=_roles(
                    "attention,mlp",
                    mlp_out="dense_4h_to_h",
                    mlp_up="dense_h_to_4h",
                    attn_qkv="query_key_value",
                    attn_out="dense",
                ),
                final_norm="gpt_neox.final_layer_norm",
            ),
            Architecture(
                model_type="gptj",
                family="GPT-J",
                layers="transformer.h",
                roles=_roles(
                    "attn,mlp", mlp_out="fc_out", mlp_up="fc_in", **_SEPARATE, attn_out="out_proj"
                ),
                final_norm="transformer.ln_f",
            ),
            Architecture(
                model_type="opt",
                family="OPT",
                layers="model.decoder.layers",
                roles=_roles(
                    "self_attn,", mlp_out="fc2", mlp_up="fc1", **_SEPARATE, attn_out="out_proj"
                ),
                final_norm="model.decoder.final_layer_norm",
                output_projection="model.decoder.project_out",
            ),
        )
    }
)
"""``model_type`` -> row."""


def architecture_of(config: PreTrainedConfig) -> Architecture:
    """The row of a model.

    Raises:
        UnsupportedModelError: Its weights can't be edited here; the message says why.
    """
    kind = str(getattr(config, "model_type", "") or "of unknown type")
    parts = (config, getattr(config, "text_config", None))
    if any(getattr(part, "quantization_config", None) is not None for part in parts):
        raise UnsupportedModelError(
            f"the weights of this {kind} model are quantised: an edit would be rounded to the "
            "grid of a format that cannot be written back exactly",
            remedy="edit the unquantised checkpoint and quantise the result",
        )
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{kind} is an encoder-decoder; safeedit edits decoder-only language models, whose "
            "knowledge of a fact sits in one stack of blocks",
            remedy=_supported(),
        )
    if counts_experts(config.to_dict()):
        raise UnsupportedModelError(
            f"{kind} is a mixture of experts: each token passes through other matrices than its "
            "neighbour, so statistics of one MLP matrix per layer do not exist",
            remedy=_supported(),
        )
    if keeps_a_state(config.to_dict()):
        raise UnsupportedModelError(
            f"{kind} is no pure transformer: layers of it keep a state (state-space layers, linear "
            "attention, short convolutions), and have no attention or no MLP of the kind whose "
            "matrices are edited",
            remedy=_supported(),
        )
    if kind not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"safeedit does not know where a model of type '{kind}' keeps its weights",
            remedy=_supported(),
        )
    row = ARCHITECTURES[kind]
    # OPT leaves to the config whether its blocks norm the sum they write (OPT-350m) or what they
    # read.
    if kind == "opt" and not getattr(config, "do_layer_norm_before", True):
        return replace(row, post_mlp_norm="final_layer_norm")
    return row


def supported() -> dict[str, str]:
    """``model_type`` -> name of the family, for people."""
    return {row.model_type: row.family for row in ARCHITECTURES.values()}


def _supported() -> str:
    names = dict.fromkeys(row.family.split(" (")[0] for row in ARCHITECTURES.values())
    return f"supported are dense models of the families {', '.join(names)}"


@dataclass(frozen=True)
class Site:
    """A matrix of a block and the module that applies it.

    Attributes:
        role: What it does, see :data:`Role`.
        layer: The block, from 0.
        module: Path of the module.
        weight: Name of its weight.
        bias: Name of its bias, or None.
        transposed: Whether the weight is stored (in, out).
    """

    role: str
    layer: int
    module: str
    weight: str
    bias: str | None
    transposed: bool


@dataclass(frozen=True)
class ModelShape:
    """All that is known of a model without its weights.

    Implements :class:`safeedit.contracts.LayerShape`.

    Attributes:
        architecture: Its row.
        n_layers: Number of blocks.
        d_model: Width of the residual stream.
        d_mlp: Neurons per MLP.
        vocab_size: Rows of the input embedding (padding of the vocabulary included).
        n_parameters: Tied tensors counted once.
        tied_embeddings: Whether the head is the input embedding.
        stored: Parameter name -> shape as stored; a tied parameter has one name.
        tied: Other name of a tied parameter -> its name in ``stored``.
    """

    architecture: Architecture
    n_layers: int
    d_model: int
    d_mlp: int
    vocab_size: int
    n_parameters: int
    tied_embeddings: bool
    stored: Mapping[str, tuple[int, ...]]
    tied: Mapping[str, str]

    @classmethod
    def from_config(cls, config: PreTrainedConfig) -> ModelShape:
        """From a config alone: the model is laid out on the meta device, without memory.

        Raises:
            ModelError: No model can be built as the config describes one.
            UnsupportedModelError: See :func:`architecture_of`.
        """
        from transformers import AutoModelForCausalLM

        place = Path(config._name_or_path or "", "config.json")
        with readable(place, doing="build", remedy=BUILDING):
            architecture_of(config)
            with quiet(), torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
            return cls.from_model(model)

    @classmethod
    def from_model(cls, model: Any) -> ModelShape:
        """From a transformers causal language model.

        Raises:
            UnsupportedModelError: See :func:`architecture_of`.
        """
        architecture = architecture_of(model.config)
        tied = _tied_names(model)
        parameters = {n: p for n, p in model.named_parameters() if n not in tied}
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        try:
            if head is None:
                raise AttributeError("it has no head that gives logits")
            n_layers = len(model.get_submodule(architecture.layers))
            module = model.get_submodule(architecture.path("mlp_out", 0))
        except (AttributeError, TypeError) as error:
            raise UnsupportedModelError(
                f"this {architecture.family} model is not laid out as one: {error}",
                remedy="open it as a causal language model (AutoModelForCausalLM)",
            ) from error
        shape = tuple(module.weight.shape)
        d_model, d_mlp = shape[::-1] if architecture.transposed else shape
        return cls(
            architecture=architecture,
            n_layers=n_layers,
            d_model=d_model,
            d_mlp=d_mlp,
            vocab_size=embedding.weight.shape[0],
            n_parameters=sum(parameter.numel() for parameter in parameters.values()),
            tied_embeddings=any(model.get_parameter(n) is head.weight for n in tied),
            stored=MappingProxyType({name: tuple(p.shape) for name, p in parameters.items()}),
            tied=MappingProxyType(tied),
        )

    @cached_property
    def transposed(self) -> frozenset[str]:
        """Names of the tensors stored (in, out)."""
        if not self.architecture.transposed:
            return frozenset()
        return frozenset(site.weight for role in self.roles for site in self.sites(role))

    @property
    def norm_after_mlp(self) -> bool:
        """Whether a norm stands between what an MLP writes and the residual."""
        return bool(self.architecture.post_mlp_norm)

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles the architecture has."""
        return tuple(self.architecture.roles)

    def layers(self, layers: Sequence[int] | None = None) -> tuple[int, ...]:
        """``layers`` checked, or all of them.

        Raises:
            UsageError: A layer is outside the model.
        """
        if layers is None:
            return tuple(range(self.n_layers))
        outside = [layer for layer in layers if not 0 <= layer < self.n_layers]
        if outside:
            raise UsageError(
                f"layer {outside[0]} does not exist: the model has {self.n_layers} layers",
                remedy=f"use layers 0 to {self.n_layers - 1}",
            )
        return tuple(layers)

    def sites(self, role: str, layers: Sequence[int] | None = None) -> tuple[Site, ...]:
        """The matrices that play ``role`` in ``layers`` (default: all), in that order.

        Raises:
            UsageError: The architecture has no such role, or the model no such layer.
        """
        sites = []
        for layer in self.layers(layers):
            module = self.architecture.path(role, layer)
            bias = f"{module}.bias"
            sites.append(
                Site(
                    role=role,
                    layer=layer,
                    module=module,
                    weight=f"{module}.weight",
                    bias=bias if bias in self.stored else None,
                    transposed=self.architecture.transposed,
                )
            )
        return tuple(sites)

    def tensors(self, role: str, layers: Sequence[int] | None = None) -> tuple[TensorPlan, ...]:
        """Weights that play ``role``, shapes in (out, in); raises as :meth:`sites`."""
        return tuple(
            TensorPlan(
                site.weight,
                self.stored[site.weight][::-1] if site.transposed else self.stored[site.weight],
                role,
                site.layer,
            )
            for site in self.sites(role, layers)
        )

    def biases(self, role: str, layers: Sequence[int] | None = None) -> tuple[TensorPlan, ...]:
        """Biases beside :meth:`tensors`, ``(out,)``; empty where the family has none."""
        return tuple(
            TensorPlan(site.bias, self.stored[site.bias], f"{role}_bias", site.layer)
            for site in self.sites(role, layers)
            if site.bias is not None
        )


def _tied_names(model: Any) -> dict[str, str]:
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in parameters.items():
        if first.setdefault(id(parameter), name) != name:
            tied[name] = first[id(parameter)]
    # Where accelerate has taken weights off the device, each name has its own placeholder;
    # transformers still knows which were one.
    for name, source in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        pair = [parameters.get(name), parameters.get(source)]
        if any(parameter is not None and parameter.is_meta for parameter in pair):
            tied.setdefault(name, source)
    return {name: source for name, source in tied.items() if name != source}


def submodule(model: nn.Module, path: str) -> nn.Module | None:
    """The module at ``path``, None where the model has none."""
    if not path:
        return None
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None
