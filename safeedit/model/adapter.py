"""A LoRA adapter folder of PEFT, merged into its base as the base is read.

The base and the adapter together are one checkpoint, whose tensors are those of the base with
``scale * B @ A`` added where the adapter has factors. The sum is computed in float32 and rounded
once, to the dtype that the base stores the tensor in; no merged copy is written. Everything that
speaks of "the base" (digests, ``revert``, the untouched tensors of an export) then means this sum.

Whether an adapter was trained for a base is found out from headers and ``adapter_config.json``,
before a weight is read. Refused, with the reason: adapters of another kind than LoRA, factors
whose shapes are not those of the base, factors of a tensor that the base lacks or has tied, and
what a sum of low rank can't express (DoRA, trained biases, modules saved whole, embeddings).

Fails with :class:`~safeedit.errors.ModelError`, its field ``adapter``.

Source: LoRA (Hu et al., arXiv 2106.09685); rank-stabilised scale (arXiv 2312.03732); the layout is
that of PEFT's ``save_pretrained``.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safeedit.cache import file_sha256
from safeedit.errors import ModelError
from safeedit.model.architectures import ModelShape
from safeedit.model.headers import TensorHeader, read_header, read_settings
from safeedit.model.stored import FLOATING, StoredWeights, read_tensor
from safeedit.records import AdapterRecord

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_FACTOR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_PLAIN = re.compile(r"(\^?)([\w.]+)")
_MERGE = "merge it into its model with PEFT (merge_and_unload), save that, and name it as source"
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to begin that take from the base what the factors begin with."""


@dataclass(frozen=True)
class Factors:
    """What an adapter adds to one tensor.

    Attributes:
        left: Header of ``B``, ``(out, rank)``.
        right: Header of ``A``, ``(rank, in)``.
        left_name: Its name in the file.
        right_name: Its name in the file.
        scale: Times their product.
        transposed: Whether the tensor is stored ``(in, out)``.
    """

    left: TensorHeader
    right: TensorHeader
    left_name: str
    right_name: str
    scale: float
    transposed: bool

    def added_to(self, tensor: Tensor) -> Tensor:
        """The tensor with them, in its own dtype.

        Raises:
            ModelError: The adapter's file is gone or damaged, or holds what is no number.
        """
        left = read_tensor(self.left.file, self.left_name).float()
        right = read_tensor(self.right.file, self.right_name).float()
        change = left @ right * self.scale
        if not torch.isfinite(change).all():
            raise ModelError(
                f"'{self.left_name}' times '{self.right_name}' is no number everywhere",
                file=self.left.file,
                field="adapter",
                remedy="the adapter is damaged or its training diverged; use another",
            )
        return (tensor.float() + (change.T if self.transposed else change)).to(tensor.dtype)


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter that fits a base.

    Attributes:
        folder: Where it lies.
        factors: The base's name on disk of a tensor -> what is added to it.
        digest: sha256 over both of its files.
        base_named: The base that it says it was trained for; empty where it says none.
    """

    folder: Path
    factors: Mapping[str, Factors]
    digest: str
    base_named: str

    def record(self, source: str) -> AdapterRecord:
        """Of a run; ``source`` as the policy names the folder."""
        return AdapterRecord(
            source=source,
            digest=self.digest,
            base_named=self.base_named,
            tensors=len(self.factors),
            ranks=tuple(sorted({each.right.shape[0] for each in self.factors.values()})),
        )

    def notes(self, base: str) -> tuple[str, ...]:
        """What a reader of results must know, in sentences; ``base`` as the policy names it."""
        ranks = sorted({each.right.shape[0] for each in self.factors.values()})
        said = [
            f"a LoRA adapter (rank {', '.join(map(str, ranks))}, {len(self.factors)} tensors) is "
            "merged into the base: 'untouched' and 'reverted' speak of the merged weights"
        ]
        if self.base_named and Path(self.base_named).name != Path(base).name:
            said.append(
                f"the adapter says that it was trained for {self.base_named}, and the base is "
                f"{base}: their shapes agree, which does not show that they belong together"
            )
        return tuple(said)


def read_adapter(folder: Path, stored: StoredWeights, shape: ModelShape) -> Adapter:
    """Match an adapter with the tensors of a base; reads headers only.

    Args:
        folder: What PEFT's ``save_pretrained`` wrote.
        stored: The base's tensors.
        shape: The base's, for what is tied and what is stored the other way round.

    Raises:
        ModelError: It is no LoRA adapter, or not one of this base; see the module.
    """
    settings = _settings(folder)
    path = folder / WEIGHTS
    if not path.exists():
        pickled = (folder / "adapter_model.bin").exists()
        raise _refused(
            path,
            "the adapter's weights are a pickle, which can run code" if pickled else
            "the folder holds no weights of an adapter",
            "save it again with PEFT's save_pretrained, which writes safetensors" if pickled else
            f"name the folder that holds {CONFIG} and {WEIGHTS}",
        )  # fmt: skip
    headers = read_header(path)
    sides = _sides(headers, path)
    places = {name: name for name in stored.names}
    places |= {inside: name for name, inside in stored.names.items()}
    factors: dict[str, Factors] = {}
    for module, (right_name, left_name) in sides.items():
        weight = f"{module}.weight"
        _check_tied(weight, shape, path)
        if (name := places.get(weight)) is None:
            raise _another(f"it adapts '{weight}', which the base does not have", path, settings)
        inside = stored.names[name]
        left, right = headers[left_name], headers[right_name]
        found = Factors(
            left, right, left_name, right_name,
            scale=_scale(settings, module, right.shape[0], folder / CONFIG),
            transposed=inside in shape.transposed,
        )  # fmt: skip
        _check_shapes(found, stored.headers[name], weight, path, settings)
        factors[name] = found
    named = str(settings.get("base_model_name_or_path") or "")
    return Adapter(folder, factors, adapter_digest(folder), named)


def adapter_digest(folder: Path) -> str:
    """sha256 over an adapter's two files; it changes whenever what is merged does.

    Raises:
        ModelError: One of them is not there.
    """
    for file in (CONFIG, WEIGHTS):
        _check_there(folder, file)
    listed = (f"{file} {file_sha256(folder / file)}\n" for file in (CONFIG, WEIGHTS))
    return hashlib.sha256("".join(listed).encode()).hexdigest()


def _check_there(folder: Path, file: str) -> None:
    if not (folder / file).is_file():
        raise _refused(
            folder,
            f"this is no folder of an adapter: it has no {file}",
            "name a local folder that PEFT's save_pretrained wrote",
        )


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    _check_there(folder, CONFIG)
    settings = read_settings(path)
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise _refused(path, f"this adapter is of the kind {kind!r}, and LORA is merged", _MERGE)
    begun = settings.get("init_lora_weights")
    for trait, there in (
        ("DoRA (use_dora)", settings.get("use_dora")),
        ("biases (bias)", settings.get("bias") not in (None, "none")),
        ("a bias of its own (lora_bias)", settings.get("lora_bias")),
        ("modules saved whole (modules_to_save)", settings.get("modules_to_save")),
        ("replaced layers (layer_replication)", settings.get("layer_replication")),
        ("single parameters (target_parameters)", settings.get("target_parameters")),
        ("tokens (trainable_token_indices)", settings.get("trainable_token_indices")),
        (
            f"a base that it changed (init_lora_weights: {begun})",
            isinstance(begun, str) and begun.lower().startswith(_CHANGE_THE_BASE),
        ),
    ):
        if there:
            raise _refused(path, f"the adapter has {trait}, which is not merged here", _MERGE)
    return settings


def _sides(headers: Mapping[str, TensorHeader], path: Path) -> dict[str, tuple[str, str]]:
    """Module -> names of its ``A`` and its ``B``."""
    found: dict[str, dict[str, str]] = {}
    for name, header in headers.items():
        match = _FACTOR.fullmatch(name)
        if match is None or header.dtype not in FLOATING or len(header.shape) != 2:
            raise _refused(
                path,
                f"'{name}' ({header.dtype}, {list(header.shape)}) is no factor of a matrix",
                _MERGE,
            )
        found.setdefault(match["module"], {})[match["side"]] = name
    for module, sides in found.items():
        if len(sides) < 2:
            raise _refused(
                path,
                f"'{module}' has lora_{min(sides)} and not the other factor",
                "fetch the adapter again",
            )
    if not found:
        raise _refused(path, "the adapter adapts nothing", "fetch it again")
    return {module: (sides["A"], sides["B"]) for module, sides in sorted(found.items())}


def _check_tied(weight: str, shape: ModelShape, path: Path) -> None:
    if weight in shape.tied or weight in shape.tied.values():
        raise _refused(
            path,
            f"it adapts '{weight}', which the base ties to another tensor: merged, both would "
            "change, which the adapter was not trained for",
            "untie the base's head first (tie_word_embeddings: false, with both tensors saved)",
        )


def _check_shapes(
    found: Factors, base: TensorHeader, weight: str, path: Path, settings: Mapping[str, Any]
) -> None:
    out, rank = found.left.shape
    makes = (found.right.shape[1], out) if found.transposed else (out, found.right.shape[1])
    if rank != found.right.shape[0]:
        raise _refused(
            path,
            f"the factors of '{weight}' don't fit each other: {list(found.left.shape)} and "
            f"{list(found.right.shape)}",
            "fetch the adapter again",
        )
    if makes != base.shape:
        raise _another(
            f"its factors of '{weight}' make {list(makes)}, and the base has {list(base.shape)}",
            path,
            settings,
        )


def _scale(settings: Mapping[str, Any], module: str, rank: int, path: Path) -> float:
    """What the product is multiplied by: alpha over the rank, or over its root."""
    alpha: Any = settings.get("lora_alpha", 8)
    patterns = settings.get("alpha_pattern") or {}
    for pattern in patterns if isinstance(patterns, dict) else ():
        plain = _PLAIN.fullmatch(pattern)
        if plain is None:  # of a stranger, and what it costs to match can't be known
            raise _refused(
                path, f"alpha_pattern holds a regular expression: {pattern[:60]!r}", _MERGE
            )
        if module == plain[2] or (not plain[1] and module.endswith(f".{plain[2]}")):
            alpha = patterns[pattern]
            break
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise _refused(path, f"lora_alpha is no number: {str(alpha)[:60]!r}", "fetch it again")
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _another(what: str, path: Path, settings: Mapping[str, Any]) -> ModelError:
    named = settings.get("base_model_name_or_path")
    told = f"it says that it was trained for {named}: " if named else ""
    return _refused(
        path,
        f"this adapter was trained for another base: {what}",
        f"{told}name the base that it belongs to, or another adapter",
    )


def _refused(path: Path, message: str, remedy: str) -> ModelError:
    return ModelError(message, file=path, field="adapter", remedy=remedy)
