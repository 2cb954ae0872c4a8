"""Whether a folder is a checkpoint that can be opened, found out before any weight is loaded.

Only headers are read. What would otherwise crash in the middle of a library, or pass in
silence (a tensor that is missing is drawn at random), is an error that names the file.

Fails with :class:`~safeedit.errors.ModelError`, and with
:class:`~safeedit.errors.UnsupportedModelError` where the architecture is one we refuse.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from safeedit.errors import ModelError, UnsupportedModelError
from safeedit.model.architectures import architecture_of
from safeedit.model.quiet import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Suffixes of weights that can run code when they are opened."""

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# Nothing is gained from 64 bits: edits are computed in 32.
_DTYPES["F64"] = "float32"
_WHOLE = "name the folder of a whole Hugging Face checkpoint"
_AGAIN = "fetch the checkpoint again"


@dataclass(frozen=True)
class Weights:
    """What the headers of a checkpoint's safetensors files say.

    Attributes:
        dtype: Of most of the entries; ``float32`` for those of 64 bits.
        n_entries: Numbers in all tensors together.
        files: The files, in the order of their names.
    """

    dtype: str
    n_entries: int
    files: tuple[Path, ...]


def read_config(folder: Path) -> PreTrainedConfig:
    """The config of a checkpoint whose architecture can be edited.

    Raises:
        ModelError: There is none, it can't be read, or it needs code that comes with it.
        UnsupportedModelError: The architecture is one safeedit does not edit.
    """
    from transformers import AutoConfig, PreTrainedConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    path = folder / "config.json"
    # transformers would open the model it was trained on, wherever that is, and put it on top.
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            "this is an adapter (LoRA or the like) rather than a model",
            file=folder / "adapter_config.json",
            remedy="merge it into its model (PEFT's merge_and_unload), save that, and name it",
        )
    if not path.is_file():
        raise ModelError("the folder has no config.json", file=folder, remedy=_WHOLE)
    settings = _json_object(path)
    kind = settings.get("model_type")
    if not isinstance(kind, str):
        raise ModelError("no model_type is given", file=path, remedy=_WHOLE)
    if kind not in CONFIG_MAPPING_NAMES:
        if "auto_map" in settings:
            _refuse_code(path)
        architecture_of(PreTrainedConfig(model_type=kind))  # raises, and says what is supported
    with quiet(), readable(folder):
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    architecture_of(config)
    return config


def check_weights(folder: Path) -> Weights:
    """Read the header of every safetensors file: sizes must add up, nothing may be missing.

    Raises:
        ModelError: There are none, one is missing, cut short or corrupt, or they are pickles.
        UnsupportedModelError: None holds floating-point numbers.
    """
    shards = _shards(folder)
    if not shards:
        if pickles := sorted(path for path in folder.iterdir() if path.suffix in PICKLES):
            refuse_pickle(pickles[0])
        raise ModelError("the folder holds no safetensors weights", file=folder, remedy=_WHOLE)
    sizes: dict[str, int] = {}
    for path, promised in shards.items():
        if not path.is_file():
            raise ModelError(
                f"a shard of the checkpoint is missing ({len(shards)} in all)",
                file=path,
                remedy=_AGAIN,
            )
        header = _header(path)
        if absent := promised - header.keys():
            raise ModelError(
                f"the index promises '{min(absent)}', which this shard does not hold",
                file=path,
                remedy=_AGAIN,
            )
        for dtype, entries in header.values():
            sizes[dtype] = sizes.get(dtype, 0) + entries
    floating = [dtype for dtype in sizes if dtype in _DTYPES]
    if not floating:
        raise UnsupportedModelError(
            "the checkpoint holds no floating-point weights: they are quantised",
            file=folder,
            remedy="edit the unquantised checkpoint and quantise the result",
        )
    most = max(floating, key=lambda dtype: sizes[dtype])
    return Weights(_DTYPES[most], sum(sizes.values()), tuple(sorted(shards)))


def check_tokenizer(folder: Path) -> None:
    """Make sure there is a tokenizer.

    Raises:
        ModelError: There is none.
    """
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise ModelError(
            f"the folder has no tokenizer (none of {', '.join(_TOKENIZERS)})",
            file=folder,
            remedy="copy the tokenizer files of the same model into it",
        )


def check_loaded(folder: Path, report: dict[str, Any]) -> None:
    """Make sure every tensor of the model came from the checkpoint.

    Args:
        folder: The checkpoint.
        report: The loading information of transformers' ``from_pretrained``.

    Raises:
        ModelError: One did not.
    """
    if missing := sorted(report["missing_keys"]):
        more = f" and {len(missing) - 1} more tensors" if len(missing) > 1 else ""
        raise ModelError(
            f"the checkpoint lacks '{missing[0]}'{more}",
            file=folder,
            remedy=f"{_AGAIN}: transformers would draw these weights at random",
        )


def refuse_pickle(path: Path) -> NoReturn:
    """Say why pickles are not opened, and what to do with one."""
    raise ModelError(
        "the weights are a pickle, which can run code when it is opened; safeedit reads "
        "safetensors only",
        file=path,
        remedy="in a sandbox, open the model with transformers' AutoModelForCausalLM and write it "
        "with save_pretrained(folder), which makes safetensors; then name that folder",
    )


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Turn what libraries raise on a bad checkpoint into a ModelError that names ``folder``."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        if "trust_remote_code" in str(error):
            _refuse_code(folder)
        if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
            raise ModelError(
                "there is not enough memory for this model",
                file=folder,
                remedy="use a smaller model, dtype: bfloat16, or a larger device",
            ) from error
        raise ModelError(
            f"transformers can't open it: {type(error).__name__}: {reason[:300]}",
            file=folder,
            remedy=f"{_AGAIN}; if it is intact, it may need another version of transformers",
        ) from error


def _refuse_code(path: Path) -> NoReturn:
    raise ModelError(
        "this model can only be opened by running code that comes with it (trust_remote_code), "
        "which safeedit never does",
        file=path,
        remedy="use a model whose architecture and tokenizer are part of transformers",
    ) from None


def _shards(folder: Path) -> dict[Path, set[str]]:
    """Weights file -> tensors the index says it holds; empty where there are no safetensors."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return {single: set()}
    if not index.is_file():
        return {}
    shards: dict[Path, set[str]] = {}
    places = _json_object(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ModelError("the index of the shards names no tensors", file=index, remedy=_AGAIN)
    for tensor, shard in places.items():
        name = Path(str(shard))
        if name.name != str(shard):
            raise ModelError(
                "the index of the shards points out of its folder", file=index, remedy=_AGAIN
            )
        shards.setdefault(folder / name, set()).add(tensor)
    return shards


def _header(path: Path) -> dict[str, tuple[str, int]]:
    """Tensor name -> dtype as safetensors writes it, number of entries."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {n: (s.get_dtype(), math.prod(s.get_shape())) for n, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"the file is corrupt or cut short: {error}",
            file=path,
            remedy="fetch it again; if it lies in safeedit's cache, delete the folder it is in",
        ) from error


def _json_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError("this can't be read as JSON", file=path, remedy=_AGAIN) from error
    if not isinstance(found, dict):
        raise ModelError("this is not a JSON object", file=path, remedy=_AGAIN)
    return found
