"""Whether a ``config.json`` describes a model that could be built, before anything is built.

Libraries take a config at its word: a layer count with a zero too many keeps them busy for
hours, a misspelt activation is a ``KeyError`` somewhere in the middle. Only the file's own
values are looked at, in milliseconds.

Fails with :class:`~safeedit.errors.ModelError`, which names the file and the field.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safeedit.errors import ModelError
from safeedit.policy.suggest import did_you_mean

MAX_LAYERS = 1_000
"""Models published have 126 at most."""

_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
_VOCABULARY = ("vocab_size",)
_HEADS = ("num_attention_heads", "n_head")
_KEY_VALUE_HEADS = "num_key_value_heads"
_POSITIONS = ("max_position_embeddings", "n_positions", "original_max_position_embeddings")
_LIMITS: Mapping[str, int] = {
    **dict.fromkeys(_LAYERS, MAX_LAYERS),
    **dict.fromkeys(_VOCABULARY, 1 << 24),
    **dict.fromkeys(("hidden_size", "n_embd", "word_embed_proj_dim"), 1 << 20),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim"), 1 << 24),
    **dict.fromkeys((*_HEADS, _KEY_VALUE_HEADS), 1 << 16),
    **dict.fromkeys(("head_dim", "rotary_dim"), 1 << 16),
    **dict.fromkeys(_POSITIONS, 1 << 28),
    "sliding_window": 1 << 28,
    "num_labels": 1 << 16,
}
"""Counts and the most that is believed; all of them are whole numbers above nought."""

_TABLE_OF_POSITIONS = ("gpt2", "gptj", "opt")
"""Families that lay out something for every position when they are built."""
_MAX_TABLE = 1 << 22

_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")
_DTYPES = ("float32", "float16", "bfloat16", "float64", "auto")
_CAPS = ("final_logit_softcapping", "attn_logit_softcapping")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_ATTENTION = ("attn_implementation", "_attn_implementation")


def check_settings(settings: Mapping[str, Any], path: Path) -> None:
    """Make sure of every value that a library would take at its word.

    Args:
        settings: The content of a ``config.json``.
        path: The file, for the message.

    Raises:
        ModelError: A count is none or absurd, a name is unknown, a token is beyond the
            vocabulary; the message names the field.
    """
    for prefix, part in _parts(settings):
        for field, message, remedy in _problems(part, settings):
            raise ModelError(
                message,
                file=path,
                field=prefix + field,
                remedy=remedy or "correct it, or fetch config.json again",
            )


def _parts(settings: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "", settings
    for name, part in settings.items():
        if name.endswith("_config") and isinstance(part, dict):
            yield f"{name}.", part


def _problems(part: Mapping[str, Any], whole: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Field, what is wrong, remedy (or nothing) of each value that is."""
    yield from _counts(part)
    yield from _names(part)
    yield from _rope(part)
    yield from _numbers(part)
    rows = part.get("vocab_size")
    if rows is None and isinstance(whole.get("text_config"), dict):
        rows = whole["text_config"].get("vocab_size")
    for field in _TOKENS:
        value = part.get(field)
        for token in value if isinstance(value, list) else [value]:
            if token is not None and not _is_token(token, rows):
                among = f" (0 to {rows - 1})" if isinstance(rows, int) else ""
                yield field, f"{_shown(token)} is no token of the vocabulary{among}", ""


def _is_token(value: object, rows: object) -> bool:
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    # -1 stands for "none" in published configs.
    return value >= -1 and (not isinstance(rows, int) or value < rows)


def _counts(part: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    table = part.get("model_type") in _TABLE_OF_POSITIONS
    for field, believed in _LIMITS.items():
        value = part.get(field)
        most = _MAX_TABLE if table and field in _POSITIONS else believed
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool):
            yield field, f"{_shown(value)} is no whole number", ""
        elif value < 1:
            yield field, f"{value} is not above nought", ""
        elif value > most:
            yield field, f"{value} is more than any model has (at most {most} is believed)", ""
    heads = next((part[name] for name in _HEADS if part.get(name)), None)
    groups = part.get(_KEY_VALUE_HEADS)
    if isinstance(heads, int) and isinstance(groups, int) and groups and heads % groups:
        yield (
            _KEY_VALUE_HEADS,
            f"{heads} attention heads can't be shared out among {groups} key-value heads",
            "",
        )


def _names(part: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    from transformers.activations import ACT2FN

    for field in _ACTIVATIONS:
        value = part.get(field)
        if value is not None and value not in list(ACT2FN):
            yield field, f"{_shown(value)} is no activation of transformers", _near(value, ACT2FN)
    for field in ("dtype", "torch_dtype"):
        value = part.get(field)
        if value is None or value in _DTYPES:
            continue
        plain = value.removeprefix("torch.") if isinstance(value, str) else ""
        remedy = f'write "{plain}"' if plain in _DTYPES else f"use one of {', '.join(_DTYPES)}"
        yield field, f"{_shown(value)} is no dtype of a model", f"{remedy} in config.json"
    for field in _ATTENTION:
        value = part.get(field)
        if value is not None and value not in _attentions():
            yield (
                field,
                f"{_shown(value)} is no way to compute attention that this machine has",
                f"remove {field} from config.json: it is about a machine, not about the model",
            )


def _rope(part: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    known = ["default", *ROPE_INIT_FUNCTIONS, "su", "mrope"]
    for field in ("rope_parameters", "rope_scaling"):
        value = part.get(field)
        if value is None:
            continue
        if not isinstance(value, dict):
            yield field, f"{_shown(value)} is no set of parameters", ""
            continue
        nested = [inner for inner in value.values() if isinstance(inner, dict)]
        for rope in nested or [value]:
            kind = rope.get("rope_type", rope.get("type", "default"))
            if kind not in known:
                yield field, f"{_shown(kind)} is no rope_type of transformers", _near(kind, known)
            for name in ("rope_theta", "factor"):
                number = rope.get(name)
                if number is not None and not _is_positive(number):
                    yield field, f"{name}: {_shown(number)} is no number above nought", ""


def _numbers(part: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for field in ("rope_theta", *_CAPS):
        value = part.get(field)
        if value is not None and not _is_positive(value):
            yield field, f"{_shown(value)} is no number above nought", ""


def _is_positive(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < value < float("inf")  # type: ignore[operator]


def _attentions() -> set[str]:
    from transformers.utils import is_flash_attn_2_available

    return {"eager", "sdpa"} | ({"flash_attention_2"} if is_flash_attn_2_available() else set())


def _near(value: object, known: Iterable[str]) -> str:
    return did_you_mean(value, list(known)) if isinstance(value, str) else ""


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
