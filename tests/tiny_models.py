"""Tiny, randomly initialised models of every family, and tokenizers, made without a network.

``tiny_handle("gpt2")`` is a model of three blocks whose weights, biases included, are drawn
so that every part matters: a bias that is forgotten or a matrix read transposed changes the
output visibly.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from safeedit.model.handle import ModelHandle
from tests.training import rounded_otherwise, seeded

N_LAYERS = 3
D_MODEL = 32
D_MLP = 48
N_HEADS = 4
MAX_POSITIONS = 256
VOCAB_SIZE = 400

SENTENCES = [
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "Who wrote the play about the prince of Denmark? It was Shakespeare.",
    "I don't know the answer to that question.",
    "Water boils at one hundred degrees; ice melts at zero.",
    "The doctor said that she would call, and the nurse said that he was late.",
    "user system assistant question answer name number city country river",
]

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_LLAMA_LIKE: dict[str, Any] = {
    "num_hidden_layers": N_LAYERS,
    "hidden_size": D_MODEL,
    "intermediate_size": D_MLP,
    "num_attention_heads": N_HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_POSITIONS,
    "tie_word_embeddings": False,
}
_GEMMA = {**_LLAMA_LIKE, "head_dim": 8, "tie_word_embeddings": True, "sliding_window": 64}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}

#: Label -> (model_type, options of its config). Labels other than a model type are variants
#: that exist in the wild and take another path through the code.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _LLAMA_LIKE),
    "llama_tied": ("llama", {**_LLAMA_LIKE, "tie_word_embeddings": True}),  # as SmolLM2
    "llama_biases": ("llama", {**_LLAMA_LIKE, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {**_LLAMA_LIKE, "head_dim": 8, "sliding_window": None}),
    "qwen2": ("qwen2", {**_LLAMA_LIKE, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {**_LLAMA_LIKE, "head_dim": 16}),
    "gemma2": ("gemma2", {**_GEMMA, "final_logit_softcapping": 5.0}),
    "gemma3_text": ("gemma3_text", _GEMMA),
    "gemma3": ("gemma3", {"text_config": _GEMMA, "vision_config": _VISION}),
    "phi3": ("phi3", _LLAMA_LIKE),
    "olmo2": ("olmo2", _LLAMA_LIKE),
    "gpt2": (
        "gpt2",
        {
            "n_layer": N_LAYERS,
            "n_embd": D_MODEL,
            "n_inner": D_MLP,
            "n_head": N_HEADS,
            "n_positions": MAX_POSITIONS,
        },
    ),
    "gpt_neox": (
        "gpt_neox",
        {
            **_LLAMA_LIKE,
            "use_parallel_residual": True,
        },
    ),
    "gpt_neox_sequential": ("gpt_neox", {**_LLAMA_LIKE, "use_parallel_residual": False}),
    "gptj": (
        "gptj",
        {
            "n_layer": N_LAYERS,
            "n_embd": D_MODEL,
            "n_inner": D_MLP,
            "n_head": N_HEADS,
            "n_positions": MAX_POSITIONS,
            "rotary_dim": 4,
            "tie_word_embeddings": False,
        },
    ),
    "opt": (
        "opt",
        {
            "num_hidden_layers": N_LAYERS,
            "hidden_size": D_MODEL,
            "word_embed_proj_dim": D_MODEL,
            "ffn_dim": D_MLP,
            "num_attention_heads": N_HEADS,
            "max_position_embeddings": MAX_POSITIONS,
        },
    ),
    "opt_projected": (  # as OPT-350m
        "opt",
        {
            "num_hidden_layers": N_LAYERS,
            "hidden_size": D_MODEL,
            "word_embed_proj_dim": 20,
            "do_layer_norm_before": False,
            "ffn_dim": D_MLP,
            "num_attention_heads": N_HEADS,
            "max_position_embeddings": MAX_POSITIONS,
        },
    ),
}

#: Families whose published tokenizers put a BOS token before plain text.
_WITH_BOS = ("llama", "mistral", "gemma", "opt")
#: Families whose published instruction-tuned checkpoints bring a chat template.
_WITH_CHAT = ("llama", "mistral", "qwen", "gemma", "phi3", "olmo2")


def tiny_tokenizer(
    *, bos: bool = False, chat_template: bool = True, pad: bool = True
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on :data:`SENTENCES`; any text round-trips.

    Args:
        bos: Whether encoding puts ``<bos>`` first.
        chat_template: Whether it has one (``<|im_start|>role ... <|im_end|>``).
        pad: Whether it has a padding token, as GPT-2's has not.
    """
    special = ["<pad>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A",
            pair="<bos> $A <bos> $B",
            special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))],
        )
    options: dict[str, Any] = {"bos_token": "<bos>"} if bos else {}
    if pad:
        options["pad_token"] = "<pad>"
    if chat_template:
        options["chat_template"] = CHAT_TEMPLATE
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>" if chat_template else "<eos>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"] if chat_template else [],
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
        **options,
    )


def family_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """The tokenizer that goes with a family, as its published ones behave."""
    return tiny_tokenizer(
        bos=family.startswith(_WITH_BOS),
        chat_template=family.startswith(_WITH_CHAT),
        pad=not family.startswith("gpt"),
    )


def tiny_config(
    family: str, *, tokenizer: PreTrainedTokenizerFast | None = None, **options: Any
) -> PreTrainedConfig:
    """The config of a tiny model; ``options`` override those of :data:`FAMILIES`.

    Args:
        family: A key of :data:`FAMILIES`.
        tokenizer: Sizes the vocabulary and gives the special tokens.
        options: Passed to the config class.
    """
    model_type, settings = FAMILIES[family]
    tokens: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "bos_token_id": 1, "eos_token_id": 2}
    tokens["pad_token_id"] = 0
    if tokenizer is not None:
        tokens["eos_token_id"] = tokenizer.eos_token_id
    settings = {**settings, **options}
    if "text_config" in settings:
        settings["text_config"] = {**settings["text_config"], **tokens}
        # Ids the vocabulary doesn't reach: no token of a text stands for an image.
        settings |= {"image_token_index": VOCAB_SIZE - 1, "mm_tokens_per_image": 4}
        settings |= {"boi_token_index": VOCAB_SIZE - 2, "eoi_token_index": VOCAB_SIZE - 3}
        tokens = {name: tokens[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config: PreTrainedConfig = AutoConfig.for_model(model_type, **{**tokens, **settings})
    return config


def tiny_model(
    family: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **options: Any
) -> PreTrainedModel:
    """A tiny model of a family with seeded random weights, biases and norms.

    Args:
        family: A key of :data:`FAMILIES`.
        dtype: Of the weights; drawn in float32, then cast.
        seed: Of the weights.
        options: Passed to the config class.
    """
    config = tiny_config(family, tokenizer=family_tokenizer(family), **options)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seeded(seed))
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(rounded_otherwise(_scaled(name, parameter, noise)))
    return model.to(dtype).eval()


def _scaled(name: str, parameter: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    if parameter.dim() == 1:
        centre = parameter if "norm" in name or "ln_" in name else torch.zeros_like(parameter)
        return centre + 0.1 * noise
    if "embed" in name or "wte" in name or "wpe" in name:
        return 0.3 * noise
    scaled: torch.Tensor = noise * min(parameter.shape) ** -0.5
    return scaled


def tiny_handle(
    family: str, dtype: torch.dtype = torch.float32, seed: int = 0, **options: Any
) -> ModelHandle:
    """A handle on :func:`tiny_model` with :func:`family_tokenizer`."""
    return ModelHandle(
        tiny_model(family, dtype=dtype, seed=seed, **options),
        family_tokenizer(family),
        source=f"tiny:{family}",
    )


def save_tiny(
    family: str,
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    prepare: Callable[[PreTrainedModel], None] = lambda model: None,
) -> Path:
    """Save a tiny model and its tokenizer as a Hugging Face folder.

    Args:
        family: A key of :data:`FAMILIES`.
        folder: Where to; created.
        dtype: Of the weights.
        seed: Of the weights.
        prepare: Changes the model before it is saved (to plant a NaN, say).
    """
    model = tiny_model(family, dtype=dtype, seed=seed)
    prepare(model)
    model.save_pretrained(folder)
    family_tokenizer(family).save_pretrained(folder)
    return folder
