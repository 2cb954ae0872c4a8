"""The tensors of a checkpoint as they lie on disk: their names, dtypes and bytes.

"The base", "untouched" and "reverted" speak of these. What runs may be another thing: a model
calls a tensor by another name, holds it in another dtype, or never reads it. :func:`stored_weights`
says which tensor of the files is which of the model, and refuses a checkpoint that a model would
open in part: with tensors missing (they would be drawn at random), of another shape, or left over
(what was trained with them would be lost without a word). It reads headers only.

Fails with :class:`~safeedit.errors.ModelError`, and with
:class:`~safeedit.errors.UnsupportedModelError` where the weights are quantised.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from safeedit.errors import ModelError, UnsupportedModelError
from safeedit.model.digest import tensor_digest
from safeedit.model.guard import BUILDING, readable
from safeedit.model.headers import TensorHeader, read_headers
from safeedit.model.quiet import quiet
from safeedit.model.weight_checks import check_shapes
from safeedit.records import CastRecord

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from safeedit.model.adapter import Adapter

FLOATING = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Dtypes of weights that can be edited, as safetensors and as torch call them."""

_CONSTANTS = re.compile(
    r"(^|\.)(rotary_emb\.inv_freq|rotary_pos_emb\.inv_freq|(attn|attention)\.(masked_)?bias|"
    r"embeddings\.position_ids)$"
)
"""Buffers that follow from the config: older versions of transformers stored them, none reads them
back. (An attention *bias* of these models belongs to a projection and has its name.)"""

_OTHER_HEADS = re.compile(
    r"^(v_head|value_head|reward_head|score|classifier|qa_outputs|ilql_heads|regression_head)\."
)
"""Heads of other tasks beside a language model: reward and value heads, classifiers."""

_LISTED = 3


@dataclass(frozen=True)
class StoredWeights:
    """What lies in a checkpoint's files, and which tensor of the model each is.

    Attributes:
        folder: Of the checkpoint.
        headers: The file's name of a tensor -> dtype, shape, file.
        names: The file's name -> the model's, for every tensor that the model reads. Where files
            hold a tied tensor twice, both names are there.
        tied: False where the config ties the head to the embedding, and the files hold a head of
            its own, which counts.
        adapter: What is added to some of them as they are read; whatever is said of a tensor as
            stored is then said of the sum.
    """

    folder: Path
    headers: Mapping[str, TensorHeader]
    names: Mapping[str, str]
    tied: bool = True
    adapter: Adapter | None = None
    _digests: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def merged(self) -> frozenset[str]:
        """The file's names of the tensors that an adapter adds to."""
        return frozenset(self.adapter.factors if self.adapter is not None else ())

    @cached_property
    def unread(self) -> tuple[str, ...]:
        """Tensors that belong to no part of a causal language model."""
        return tuple(sorted(self.headers.keys() - self.names.keys()))

    def dtype_of(self, name: str) -> torch.dtype:
        """Dtype of a tensor by the file's name for it; only of what the model reads."""
        dtype: torch.dtype = getattr(torch, FLOATING[self.headers[name].dtype])
        return dtype

    @cached_property
    def dtypes(self) -> Mapping[str, torch.dtype]:
        """The model's name of a tensor -> its dtype on disk; a tied one has each of its names."""
        read = [name for name in self.names if self.headers[name].dtype in FLOATING]
        return MappingProxyType({self.names[name]: self.dtype_of(name) for name in read})

    def casts(self, run: torch.dtype) -> tuple[CastRecord, ...]:
        """What had to be cast to run in one dtype, by the dtype it is stored in."""
        tensors: Counter[torch.dtype] = Counter()
        entries: Counter[torch.dtype] = Counter()
        for name in self.names:
            if self.headers[name].dtype in FLOATING and (dtype := self.dtype_of(name)) != run:
                tensors[dtype] += 1
                entries[dtype] += self.headers[name].n_entries
        return tuple(
            CastRecord(
                stored=_word(dtype),
                run=_word(run),
                tensors=tensors[dtype],
                entries=entries[dtype],
                exact=torch.promote_types(dtype, run) == run,
            )
            for dtype in sorted(tensors, key=str)
        )

    def notes(self, run: torch.dtype) -> tuple[str, ...]:
        """What a reader of the results must know of the files, in sentences."""
        said = []
        if not self.tied:
            said.append(
                "the config ties the head to the embedding, but the files hold a head of its own, "
                "other than the embedding: it is measured, and exported with "
                "tie_word_embeddings: false"
            )
        if self.unread:
            said.append(
                f"{_count(self.unread)} of the checkpoint, read by no causal language model: "
                f"neither measured nor edited, kept in an export as stored: "
                f"{_listed(self.unread)}"
            )
        said += [
            f"{cast.tensors} tensors ({cast.entries:,} numbers) are stored in {cast.stored} and "
            f"were rounded to {cast.run} to run: the figures are of the rounded ones, and an "
            "export holds them as stored"
            for cast in self.casts(run)
            if not cast.exact
        ]
        return tuple(said)

    def renamed(self, tied: Mapping[str, str]) -> dict[str, str]:
        """Name on disk -> the model's, where they differ.

        Args:
            tied: Other name of a tied tensor -> the one that counts.
        """
        owners = {name: tied.get(inside, inside) for name, inside in self.names.items()}
        return {name: inside for name, inside in sorted(owners.items()) if name != inside}

    def read(self, name: str) -> Tensor:
        """A tensor as stored, by the file's name for it.

        Raises:
            ModelError: The file is gone or damaged.
        """
        tensor = read_tensor(self.headers[name].file, name)
        if self.adapter is None or name not in self.adapter.factors:
            return tensor
        return self.adapter.factors[name].added_to(tensor)

    def digests(self) -> dict[str, str]:
        """The file's name of every tensor -> SHA-256 over dtype, shape and bytes; read once."""
        if not self._digests:
            as_is = {n: head for n, head in self.headers.items() if n not in self.merged}
            self._digests.update(stored_digests(as_is))
            self._digests.update({n: tensor_digest(self.read(n)) for n in self.merged})
        return dict(self._digests)


def stored_weights(folder: Path, config: PreTrainedConfig) -> StoredWeights:
    """Match the tensors of a checkpoint with those of the model that its config describes.

    Where the config ties the head to the embedding and the files hold another head, the config
    is set right.

    Args:
        folder: The checkpoint.
        config: Its config; ``tie_word_embeddings`` may be changed.

    Raises:
        ModelError: A tensor is missing, has another shape, or is left over and could change what
            the model does.
        UnsupportedModelError: The weights are quantised.
    """
    headers = read_headers(folder)
    model = _layout(folder, config)
    tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    names = _names(model, headers, expected)
    _check_dtypes(headers, names)
    _check_left_over(headers, names)
    _check_missing(folder, model, tied, expected, names)
    check_shapes(headers, names, expected, model.get_input_embeddings().weight.shape[0])
    places = {name: place for place, name in names.items()}
    separate = any(
        not _equal(headers, places[name], places[source])
        for name, source in tied.items()
        if name in places and source in places
    )
    if separate:
        for part in {id(c): c for c in (config, config.get_text_config())}.values():
            part.tie_word_embeddings = False
    return StoredWeights(folder, MappingProxyType(headers), MappingProxyType(names), not separate)


def stored_digests(headers: Mapping[str, TensorHeader]) -> dict[str, str]:
    """Name -> SHA-256 over dtype, shape and bytes of tensors as they lie on disk.

    Raises:
        ModelError: A file is gone or damaged.
    """

    def digest(name: str) -> str:
        return tensor_digest(read_tensor(headers[name].file, name))

    # hashlib and the disk release the interpreter's lock.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(headers, pool.map(digest, headers), strict=True))


def read_tensor(file: Path, name: str) -> Tensor:
    """One tensor of a safetensors file.

    Raises:
        ModelError: The file is gone or damaged, or lacks it.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
            return tensor
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"'{name}' can't be read: {getattr(error, 'strerror', None) or error}",
            file=file,
            remedy="see whether the checkpoint was moved or changed meanwhile, and run again",
        ) from error


def _layout(folder: Path, config: PreTrainedConfig) -> Any:
    """The model without its weights."""
    from transformers import AutoModelForCausalLM

    with (
        quiet(),
        readable(folder / "config.json", doing="build", remedy=BUILDING),
        torch.device("meta"),
    ):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def _names(
    model: Any, headers: Mapping[str, TensorHeader], expected: Mapping[str, tuple[int, ...]]
) -> dict[str, str]:
    """The file's name -> the model's, as transformers finds it while it loads."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    renamings = [
        each for each in get_model_conversion_mapping(model) if isinstance(each, WeightRenaming)
    ]
    state, prefix = model.state_dict(), model.base_model_prefix
    found: dict[str, str] = {}
    for name in sorted(headers):
        renamed, _ = rename_source_key(name, renamings, [], prefix, state)
        if renamed not in expected and name in expected:
            renamed, _ = rename_source_key(name, [], [], prefix, state)
        if renamed not in expected:
            continue
        if renamed in found.values():
            other = next(place for place, taken in found.items() if taken == renamed)
            raise ModelError(
                f"'{other}' and '{name}' are one tensor of the model under two names",
                file=headers[name].file,
                remedy="remove the one that does not count",
            )
        found[name] = renamed
    return found


def _check_left_over(headers: Mapping[str, TensorHeader], names: Mapping[str, str]) -> None:
    left = sorted(
        name
        for name, header in headers.items()
        if name not in names
        and not _OTHER_HEADS.match(name)
        and not (_CONSTANTS.search(name) and _is_constant(name, header))
    )
    if not left:
        return
    raise ModelError(
        f"the checkpoint holds {_count(left)} that its config knows nothing of, and that would "
        f"be dropped: {_listed(left)}",
        file=headers[left[0]].file,
        remedy="use the config and the architecture that the model was trained with "
        "(attention_bias, num_hidden_layers ...), or remove these tensors if they belong to "
        "something else",
    )


def _is_constant(name: str, header: TensorHeader) -> bool:
    """Whether it has the shape of a causal mask or of frequencies, which no trained bias has."""
    if name.endswith(".masked_bias"):
        return header.n_entries == 1
    if name.endswith(".bias"):
        return len(header.shape) == 4 and header.shape[:2] == (1, 1)
    return True


def _check_missing(
    folder: Path,
    model: Any,
    tied: Mapping[str, str],
    expected: Iterable[str],
    names: Mapping[str, str],
) -> None:
    there = set(names.values())
    there |= {name for name, source in tied.items() if source in there}
    there |= {source for name, source in tied.items() if name in there}
    patterns = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    ignored = [re.compile(pattern) for pattern in patterns]
    missing = sorted(
        name for name in expected if name not in there and not any(p.search(name) for p in ignored)
    )
    if missing:
        raise ModelError(
            f"the checkpoint lacks {_listed(missing)}",
            file=folder,
            remedy="fetch the checkpoint again, or use the config that belongs to it; transformers "
            "would draw these weights at random",
        )


def _check_dtypes(headers: Mapping[str, TensorHeader], names: Mapping[str, str]) -> None:
    packed = sorted(n for n in names if headers[n].dtype not in FLOATING and headers[n].shape)
    if packed:
        kinds = ", ".join(sorted({headers[name].dtype for name in packed}))
        raise UnsupportedModelError(
            f"{_count(packed)} are stored in {kinds}, which is quantised (or lacks the scales it "
            f"was quantised with): {_listed(packed)}",
            file=headers[packed[0]].file,
            remedy="edit the unquantised checkpoint and quantise the result",
        )


def _equal(headers: Mapping[str, TensorHeader], one: str, other: str) -> bool:
    if headers[one].shape != headers[other].shape:
        return False
    first, second = (read_tensor(headers[name].file, name) for name in (one, other))
    dtype = torch.promote_types(first.dtype, second.dtype)
    return torch.equal(first.to(dtype), second.to(dtype))


def _count(names: Iterable[str]) -> str:
    number = len(tuple(names))
    return f"{number} tensor{'s' if number > 1 else ''}"


def _listed(names: Iterable[str]) -> str:
    names = tuple(names)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(f"'{name}'" for name in names[:_LISTED]) + more


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
