"""Whether all of a GGUF file's tensors get into the model that is made of it, as they are.

The library that converts such files draws what a file lacks at random, drops what it has no
place for, and rounds all of them to one dtype. Fails with
:class:`~safeedit.errors.ModelError`, which names file and tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from safeedit.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PART = re.compile(r"-(\d{5})-of-(\d{5})$")
"""How the name of one part of a split file ends."""

_MASKS = re.compile(r"^blk\.\d+\.(attn_rot_embd|attn\.masked_bias|attn\.bias)$")
"""What follows from the file's own settings and is read by nobody."""

_PLAIN = {"F32": torch.float32, "F16": torch.float16}
"""Kinds of tensors that hold the numbers themselves, and that bfloat16 may not hold."""

_FREQUENCIES = "rope_freqs.weight"
_SAFETENSORS = "use the model's safetensors"


def check_whole(path: Path, fields: Mapping[str, Any]) -> None:
    """Refuse one part of a file that was split.

    Args:
        path: The file.
        fields: Its metadata, as the reader of the library ``gguf`` has it.

    Raises:
        ModelError: It is such a part.
    """
    count = fields.get("split.count")
    parts = int(count.contents()) if count is not None else 1
    named = _PART.search(path.stem)
    if named is not None:
        parts = max(parts, int(named[2]))
    if parts > 1:
        first = _PART.sub("", path.stem) + f"-00001-of-{parts:05}.gguf"
        raise ModelError(
            f"this is one of {parts} parts of a GGUF file that was split; it does not hold the "
            "whole model",
            file=path,
            remedy=f"join the parts (llama.cpp: llama-gguf-split --merge {first} whole.gguf) and "
            "name the joined file",
        )


def check_all_placed(path: Path, reader: Any, model: PreTrainedModel) -> None:
    """Refuse a file with tensors for which the model that was made of it has no place.

    Args:
        path: The file.
        reader: A ``GGUFReader`` on it.
        model: What was made of it.

    Raises:
        ModelError: There is one.
    """
    places = set(_places(reader, model).values())
    left = sorted(
        tensor.name
        for tensor in reader.tensors
        if tensor.name not in places
        and not _MASKS.match(tensor.name)
        and not (tensor.name == _FREQUENCIES and bool(np.all(np.asarray(tensor.data) == 1)))
    )
    if left:
        more = f" and {len(left) - 1} more tensors" if len(left) > 1 else ""
        raise ModelError(
            f"the conversion of this GGUF file has no place for '{left[0]}'{more}, which would be "
            "dropped, and the model would be another",
            file=path,
            remedy=_SAFETENSORS,
        )


def most_dtype(reader: Any) -> torch.dtype:
    """Dtype that holds most of a file's numbers without loss, or bfloat16 where quantised.

    Args:
        reader: A ``GGUFReader`` on the file.
    """
    sizes: dict[str, int] = {}
    for tensor in reader.tensors:
        kind = tensor.tensor_type.name
        sizes[kind] = sizes.get(kind, 0) + int(tensor.n_elements)
    return _own_dtype(max(sizes, key=lambda kind: sizes[kind]))


def loses_in(reader: Any, dtype: torch.dtype) -> bool:
    """Whether a tensor of plain numbers, norms say, would be rounded in ``dtype``.

    Args:
        reader: A ``GGUFReader`` on the file.
        dtype: What all would be converted to.
    """
    return any(
        tensor.tensor_type.name in _PLAIN
        and not _fits(torch.from_numpy(np.array(tensor.data)), dtype)
        for tensor in reader.tensors
    )


def narrow(model: PreTrainedModel, reader: Any, dtype: torch.dtype) -> None:
    """Give each tensor of a model that was read in float32 the dtype that it is to be kept in.

    That is ``dtype`` where it holds all that the file does, or where the file is quantised, and the
    tensor's own dtype elsewhere.

    Args:
        model: What was made of the file; changed.
        reader: A ``GGUFReader`` on the file.
        dtype: Of most numbers, see :func:`most_dtype`.
    """
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    places = _places(reader, model)
    for name, parameter in model.named_parameters():
        kind = kinds.get(places.get(name, ""), "")
        plain = kind in _PLAIN and not _fits(parameter.data, dtype)
        parameter.data = parameter.data.to(_own_dtype(kind) if plain else dtype)


def _places(reader: Any, model: PreTrainedModel) -> dict[str, str]:
    """The model's name of a tensor -> the file's, of all that such files can hold."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    architecture = reader.fields["general.architecture"].contents()
    kind = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    known = get_tensor_name_map(kind, model.config.get_text_config().num_hidden_layers)
    places = {}
    for name in model.state_dict():
        stem, _, ending = name.rpartition(".")
        if (place := known.get_name(stem)) is not None:
            places[name] = f"{place}.{ending}"
    return places


def _own_dtype(kind: str) -> torch.dtype:
    return _PLAIN.get(kind, torch.bfloat16)


def _fits(values: Tensor, dtype: torch.dtype) -> bool:
    return torch.equal(values.to(dtype).to(values.dtype), values)
