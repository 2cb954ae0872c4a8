"""Settings of a saved model that other versions of the ecosystem read as this one does.

transformers 5 writes names that version 4 (and vLLM, llama.cpp's converter and lm-eval built on
it) does not know, and what is not known is replaced by a default without a word: a model whose
rotary base is 1,000,000 runs there with 10,000. So what version 4 calls by another name is
written under both.

Where version 4 has no way to say something, it gets settings that it refuses, never settings
that it would misread.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safeedit.model.headers import read_settings
from safeedit.policy.files import MAX_JSON_BYTES, read_regular

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
MORE_TEMPLATES = "additional_chat_templates"

_ROPE_ELSEWHERE = ("rope_theta", "partial_rotary_factor")
"""Members of ``rope_parameters`` that stand beside ``rope_scaling`` in version 4."""

_PHI3_ROPE = {
    "rope_type",
    "type",
    "short_factor",
    "long_factor",
    "original_max_position_embeddings",
}
"""What version 4's Phi-3 can say about scaling; it refuses anything beside."""

_OF_THIS_MACHINE = ("backend", "is_local", "local_files_only")


def make_portable(folder: Path, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Rewrite the settings in a folder that transformers 5 saved, for any version, anywhere.

    Args:
        folder: Holds ``config.json`` and perhaps a tokenizer; other files are left alone.
        tokenizer: What was saved there, to write down whether it begins and ends texts.
    """
    _rewrite(folder / CONFIG, portable_config)
    path = folder / TOKENIZER_CONFIG
    if path.is_file():
        _rewrite(path, lambda settings: portable_tokenizer(settings, _templates(folder), tokenizer))


def portable_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A model's settings with the names of transformers 4 beside those of 5."""
    config = dict(settings)
    for name, part in settings.items():
        if isinstance(part, dict) and (name.endswith("_config") or name == "text_config"):
            config[name] = portable_config(part)
    if "dtype" in config:
        config["torch_dtype"] = config["dtype"]
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and rope:
        config |= _rope(rope, str(config.get("model_type", "")))
    return config


def _rope(parameters: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """``rope_theta``, ``rope_scaling`` and their kin for one ``rope_parameters``."""
    layered = {name: part for name, part in parameters.items() if isinstance(part, dict)}
    main = layered.get("full_attention", {}) if layered else parameters
    scaling = {name: value for name, value in main.items() if name not in _ROPE_ELSEWHERE}
    unscaled = scaling.get("rope_type", scaling.get("type", "default")) == "default"
    said: dict[str, Any] = {"rope_scaling": None if unscaled else scaling}
    theta, share = main.get("rope_theta"), main.get("partial_rotary_factor")
    if model_type == "gpt_neox":
        names = ("rotary_emb_base", "rotary_pct")
    else:
        names = ("rope_theta", "partial_rotary_factor")
    said |= {name: value for name, value in zip(names, (theta, share), strict=True) if value}
    if model_type == "phi3" and not unscaled and scaling.keys() <= _PHI3_ROPE:
        # Three members, by the old name of the type, or version 4 refuses to open it.
        factors = {name: scaling[name] for name in ("short_factor", "long_factor")}
        said["rope_scaling"] = {"type": scaling.get("rope_type", "longrope"), **factors}
    before = scaling.get("original_max_position_embeddings")
    if before is not None and scaling.get("rope_type") == "longrope":
        said["original_max_position_embeddings"] = before  # looked for there only
    local = layered.get("sliding_attention")
    if local:
        said["rope_local_base_freq"] = local.get("rope_theta")
        if local.get("rope_type", "default") != "default":  # version 4 can't scale these
            said["rope_scaling"] = {"rope_type": "per_layer_type"}
    return said


def portable_tokenizer(
    settings: Mapping[str, Any],
    templates: Mapping[str, str],
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> dict[str, Any]:
    """A tokenizer's settings as every version reads them.

    Args:
        settings: What transformers 5 wrote.
        templates: Chat templates by name; the usual one is ``default``.
        tokenizer: The tokenizer itself, if at hand.
    """
    config = {name: value for name, value in settings.items() if name not in _OF_THIS_MACHINE}
    if config.get("tokenizer_class") in ("TokenizersBackend", "PreTrainedTokenizerFast"):
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        # Its default would have texts come with token types, which these models refuse.
        config.setdefault("model_input_names", ["input_ids", "attention_mask"])
    elif tokenizer is not None:
        # The classes of version 4 begin and end texts as these say, whatever tokenizer.json does.
        config["add_bos_token"], config["add_eos_token"] = _begins_and_ends(tokenizer)
    extra = config.get("extra_special_tokens")
    if isinstance(extra, list):  # version 4 takes a mapping under that name
        del config["extra_special_tokens"]
        contents = [token["content"] if isinstance(token, dict) else token for token in extra]
        config["additional_special_tokens"] = contents
    # Versions before 4.50 look for templates here only.
    if list(templates) == ["default"]:
        config["chat_template"] = templates["default"]
    elif templates:
        config["chat_template"] = [{"name": n, "template": t} for n, t in templates.items()]
    return config


def _begins_and_ends(tokenizer: PreTrainedTokenizerBase) -> tuple[bool, bool]:
    ids = list(tokenizer("a")["input_ids"])
    begins = tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
    ends = tokenizer.eos_token_id is not None and ids[-1:] == [tokenizer.eos_token_id]
    return begins, ends


def _templates(folder: Path) -> dict[str, str]:
    files = {"default": folder / CHAT_TEMPLATE}
    files |= {path.stem: path for path in sorted((folder / MORE_TEMPLATES).glob("*.jinja"))}
    return {
        name: read_regular(path, limit=MAX_JSON_BYTES).decode("utf-8")
        for name, path in files.items()
        if path.is_file()
    }


def _rewrite(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    text = json.dumps(change(read_settings(path)), indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
