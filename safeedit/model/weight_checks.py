"""Whether the tensors of a checkpoint are those of the model its config describes.

Told from names and shapes in the headers, before a weight is loaded, each with the remedy for
how it came about: a wrapper's prefix, an adapter that was never merged, tensors that a training
framework left empty, a vocabulary that grew after the config was written.

Fails with :class:`~safeedit.errors.ModelError`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from safeedit.errors import ModelError
from safeedit.model.headers import INDEX, SINGLE, TensorHeader

_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_WRAPPERS = {
    "_orig_mod.": ("torch.compile", "save the model that was compiled (model._orig_mod)"),
    "_fsdp_wrapped_module.": ("FSDP", "gather a full state dict before saving"),
    "_checkpoint_wrapped_module.": (
        "activation checkpointing",
        "save the model without the wrapper",
    ),
}
_ADAPTERS = (".lora_A", ".lora_B", ".lora_embedding_", ".lora_magnitude_vector", ".base_layer.")


def refuse_without_index(folder: Path) -> None:
    """Say what is amiss where a folder has safetensors that transformers would not look at.

    Raises:
        ModelError: There are some; the message names one.
    """
    others = sorted(path.name for path in folder.glob("*.safetensors") if path.name != SINGLE)
    if not others:
        return
    if any(_SHARD.fullmatch(name) for name in others):
        raise ModelError(
            f"the shards of the weights are here ({others[0]} ...), but not {INDEX}, which says "
            "where each tensor is",
            file=folder,
            remedy=f"copy {INDEX} from where the shards came from",
        )
    if any(name.startswith("adapter") for name in others):
        raise ModelError(
            "the folder holds an adapter (LoRA or the like) rather than the weights of a model",
            file=folder / others[0],
            remedy="merge it into its model (PEFT's merge_and_unload), save that, and name it",
        )
    if others[0].startswith("consolidated"):
        raise ModelError(
            "these are the weights in their maker's own layout, which transformers does not read",
            file=folder / others[0],
            remedy=f"fetch {SINGLE} (or its shards and {INDEX}) of the same model",
        )
    raise ModelError(
        f"there are safetensors here, but none that transformers would open as a model's: it "
        f"looks for {SINGLE}",
        file=folder / others[0],
        remedy=f"if that file holds the whole model, rename it to {SINGLE}",
    )


def check_names(headers: Mapping[str, TensorHeader]) -> None:
    """Make sure that no tensor tells of a checkpoint that was saved the wrong way.

    Raises:
        ModelError: One does.
    """
    for name, header in headers.items():
        for mark, (wrapper, remedy) in _WRAPPERS.items():
            if mark in name:
                raise ModelError(
                    f"'{name}' was saved from inside a wrapper ({wrapper}): transformers knows no "
                    f"tensor of that name",
                    file=header.file,
                    remedy=f"{remedy}, or take '{mark}' out of the names of its tensors",
                )
        if name.startswith("module."):
            raise ModelError(
                f"'{name}' was saved from inside a wrapper (DataParallel)",
                file=header.file,
                remedy="save the model itself (model.module), or take 'module.' out of the names "
                "of its tensors",
            )
        if name.startswith("base_model.model.") or any(mark in name for mark in _ADAPTERS):
            raise ModelError(
                f"'{name}' belongs to an adapter (LoRA or the like) that was not merged",
                file=header.file,
                remedy="open it with PEFT, merge it (merge_and_unload), save that, and name it",
            )
        if header.n_entries == 0:
            raise ModelError(
                f"'{name}' is stored empty: DeepSpeed's ZeRO-3 leaves such stubs where a model is "
                "saved before its weights are gathered",
                file=header.file,
                remedy="gather them (zero_to_fp32.py in the training checkpoint, or "
                "stage3_gather_16bit_weights_on_model_save), and name the result",
            )


def check_shapes(
    headers: Mapping[str, TensorHeader],
    names: Mapping[str, str],
    expected: Mapping[str, tuple[int, ...]],
    vocab_size: int,
) -> None:
    """Make sure that tensors have the sizes that the config describes.

    Args:
        headers: Of the checkpoint.
        names: The file's name of a tensor -> the model's.
        expected: The model's name of a tensor -> its shape.
        vocab_size: Rows of the embedding that the config describes.

    Raises:
        ModelError: One has not; the message names it and both sizes.
    """
    for name, inside in names.items():
        header, wanted = headers[name], expected[inside]
        if wanted == header.shape:
            continue
        grown = wanted[:1] == (vocab_size,) and header.shape[1:] == wanted[1:]
        where = header.file.with_name("config.json")
        raise ModelError(
            f"'{name}' is stored as {_size(header.shape)}, and {where.name} describes "
            f"{_size(wanted)}",
            file=header.file,
            remedy=(
                f"the embeddings were resized after the config was written: set vocab_size to "
                f"{header.shape[0]} in {where.name} if the tokenizer is of that size"
                if grown
                else f"use the {where.name} that belongs to these weights"
            ),
        )


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"
