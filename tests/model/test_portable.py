"""Settings under the names of transformers 4 beside those of 5; what 5 reads stays the same.

What older versions make of them is in ``tests/export/test_compatibility.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer

from safeedit.model.portable import make_portable, portable_config, portable_tokenizer
from tests.tiny_models import CHAT_TEMPLATE, save_tiny, tiny_config, tiny_tokenizer

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 64,
}
FACTORS = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}

#: family, rope_parameters as transformers 5 has them, what version 4 must find.
ROPES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "llama",
        {"rope_type": "default", "rope_theta": 1e6},
        {"rope_theta": 1e6, "rope_scaling": None},
    ),
    ("llama", {**LLAMA3, "rope_theta": 5e5}, {"rope_theta": 5e5, "rope_scaling": LLAMA3}),
    (
        "llama",
        {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
        {"rope_theta": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    ),
    (
        "llama",
        {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        {"partial_rotary_factor": 0.5, "rope_scaling": None},
    ),
    (
        "gpt_neox",
        {"rope_type": "default", "rope_theta": 3e4, "partial_rotary_factor": 0.5},
        {"rotary_emb_base": 3e4, "rotary_pct": 0.5},
    ),
    (
        "phi3",
        {"rope_type": "longrope", "rope_theta": 1e4, **FACTORS},
        {"rope_scaling": {"type": "longrope", **FACTORS}, "rope_theta": 1e4},
    ),
    (
        "gemma3_text",
        {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 3e4},
        },
        {
            "rope_theta": 2e6,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "rope_local_base_freq": 3e4,
        },
    ),
]


@pytest.mark.parametrize(("family", "rope", "wanted"), ROPES)
def test_rotary_settings_stand_under_their_older_names_too(
    family: str, rope: dict[str, Any], wanted: dict[str, Any]
) -> None:
    config = tiny_config(family, rope_parameters=rope)
    saved = portable_config(json.loads(config.to_json_string(use_diff=False)))
    assert {name: saved[name] for name in wanted} == wanted
    assert "rope_parameters" in saved


@pytest.mark.parametrize(("family", "rope", "wanted"), ROPES)
def test_the_version_at_hand_reads_the_same_with_the_older_names(
    family: str, rope: dict[str, Any], wanted: dict[str, Any], tmp_path: Path
) -> None:
    config = tiny_config(family, rope_parameters=rope)
    config.save_pretrained(tmp_path)
    before = AutoConfig.from_pretrained(tmp_path)
    make_portable(tmp_path)
    after = AutoConfig.from_pretrained(tmp_path)
    parameters = {k: v for k, v in after.rope_parameters.items() if k != "type"}
    assert parameters == before.rope_parameters
    make_portable(tmp_path)  # an export that is edited again
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == after.rope_parameters


def test_the_text_part_of_a_multimodal_model_has_them_too() -> None:
    rope = {"full_attention": {"rope_type": "default", "rope_theta": 5e6}}
    saved = portable_config(
        {"dtype": "bfloat16", "text_config": {"rope_parameters": rope, "dtype": "bfloat16"}}
    )
    assert saved["torch_dtype"] == saved["text_config"]["torch_dtype"] == "bfloat16"
    assert saved["text_config"]["rope_theta"] == 5e6


def test_what_version_4_has_no_words_for_it_refuses_rather_than_misreads() -> None:
    scaled = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}
    both = {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}
    saved = portable_config({"rope_parameters": {**both, "sliding_attention": scaled}})
    assert saved["rope_scaling"]["rope_type"] not in ("default", "linear", "dynamic", "yarn")


def test_special_tokens_and_chat_templates_stand_where_older_versions_look() -> None:
    settings = {"tokenizer_class": "TokenizersBackend", "backend": "tokenizers", "is_local": True}
    tokens = ["<a>", {"content": "<b>", "__type": "AddedToken"}]
    saved = portable_tokenizer({**settings, "extra_special_tokens": tokens}, {"default": "x"})
    assert saved == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": ["<a>", "<b>"],
        "chat_template": "x",
        "model_input_names": ["input_ids", "attention_mask"],
    }
    named = {"extra_special_tokens": {"image_token": "<i>"}}
    several = portable_tokenizer(named, {"default": "x", "tools": "y"})
    assert several["extra_special_tokens"] == {"image_token": "<i>"}
    assert several["chat_template"] == [
        {"name": "default", "template": "x"},
        {"name": "tools", "template": "y"},
    ]


def test_the_version_at_hand_reads_the_same_tokenizer(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "llama")
    make_portable(folder, tiny_tokenizer())
    before, after = tiny_tokenizer(bos=True), AutoTokenizer.from_pretrained(folder)
    text = "The capital <|im_end|> of France"
    assert after(text)["input_ids"] == before(text)["input_ids"]
    assert after.all_special_ids == before.all_special_ids
    assert after.chat_template == CHAT_TEMPLATE


def test_a_class_of_its_own_is_told_whether_it_begins_and_ends_texts() -> None:
    settings = {"tokenizer_class": "LlamaTokenizer"}
    for begins in (True, False):
        saved = portable_tokenizer(settings, {}, tiny_tokenizer(bos=begins))
        assert saved["add_bos_token"] is begins
        assert saved["add_eos_token"] is False
