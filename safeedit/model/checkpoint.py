"""Whether a folder is a checkpoint that can be opened, found out before any weight is loaded.

Only headers are read. What would otherwise crash in the middle of a library, or pass in
silence (a tensor that is missing is drawn at random), is an error that names the file.

Fails with :class:`~safeedit.errors.ModelError`, and with
:class:`~safeedit.errors.UnsupportedModelError` where the architecture is one we refuse.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from safeedit.errors import ModelError, UnsupportedModelError
from safeedit.model.architectures import architecture_of
from safeedit.model.config_checks import check_settings
from safeedit.model.guard import BUILDING, readable, refuse_code
from safeedit.model.headers import read_headers, read_settings, weight_files
from safeedit.model.quiet import quiet
from safeedit.model.weight_checks import check_names, refuse_without_index
from safeedit.policy.files import MAX_JSON_BYTES, check_regular

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Suffixes of weights that can run code when they are opened."""

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# Nothing is gained from 64 bits: edits are computed in 32.
_DTYPES["F64"] = "float32"
_TEXT = (".json", ".jinja", ".txt")
_OPENED = (*_TEXT, ".model", ".safetensors")
_WHOLE = "name the folder of a whole Hugging Face checkpoint"
_AGAIN = "fetch the checkpoint again"


@dataclass(frozen=True)
class WeightFiles:
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

    check_files(folder)
    path = folder / "config.json"
    # transformers would open the model it was trained on, wherever that is, and put it on top.
    if (folder / "adapter_config.json").exists():
        _refuse_adapter(folder)
    if not path.exists():
        raise ModelError("the folder has no config.json", file=folder, remedy=_WHOLE)
    settings = read_settings(path)
    kind = settings.get("model_type")
    if not isinstance(kind, str):
        raise ModelError("no model_type is given", file=path, remedy=_WHOLE)
    if kind not in CONFIG_MAPPING_NAMES:
        if "auto_map" in settings:
            refuse_code(path)
        architecture_of(PreTrainedConfig(model_type=kind))  # raises, and says what is supported
    check_settings(settings, path)
    with quiet(), readable(path, doing="read", remedy=BUILDING):
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
        architecture_of(config)
    return config


def check_weights(folder: Path) -> WeightFiles:
    """Read the header of every safetensors file: sizes must add up, nothing may be missing.

    Raises:
        ModelError: There are none, one is missing, cut short or corrupt, or they are pickles.
        UnsupportedModelError: None holds floating-point numbers.
    """
    headers = read_headers(folder)
    if not headers:
        if pickles := sorted(path for path in folder.iterdir() if path.suffix in PICKLES):
            refuse_pickle(pickles[0])
        refuse_without_index(folder)
        raise ModelError("the folder holds no safetensors weights", file=folder, remedy=_WHOLE)
    check_names(headers)
    sizes: dict[str, int] = {}
    for header in headers.values():
        sizes[header.dtype] = sizes.get(header.dtype, 0) + header.n_entries
    floating = [dtype for dtype in sizes if dtype in _DTYPES]
    if not floating:
        raise UnsupportedModelError(
            "the checkpoint holds no floating-point weights: they are quantised",
            file=folder,
            remedy="edit the unquantised checkpoint and quantise the result",
        )
    most = max(floating, key=lambda dtype: sizes[dtype])
    return WeightFiles(_DTYPES[most], sum(sizes.values()), tuple(sorted(weight_files(folder))))


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


def check_loaded(
    folder: Path, report: Mapping[str, Any], unread: Container[str] | None = None
) -> None:
    """Make sure every tensor of the model came from the checkpoint, and every one of its got in.

    The last word on what :mod:`safeedit.model.stored` finds from the headers, and the only one
    where a library reads another format.

    Args:
        folder: The checkpoint.
        report: The loading information of transformers' ``from_pretrained``.
        unread: Tensors that may be left over; None: any, for a model that is read and never
            written again, such as a classifier without its pooler.

    Raises:
        ModelError: One is missing, left over, or of another shape.
    """
    unexpected = report["unexpected_keys"] if unread is not None else ()
    left = sorted(name for name in unexpected if name not in (unread or ()))
    mismatched = report["mismatched_keys"]
    shapes = sorted(str(key[0] if isinstance(key, tuple) else key) for key in mismatched)
    for found, fault, remedy in (
        (sorted(report["missing_keys"]), "the checkpoint lacks", "transformers would draw these "
         "weights at random"),
        (shapes, "the model has another shape for", "they would be drawn at random"),
        (left, "the model has no place for", "they would be dropped"),
    ):  # fmt: skip
        if found:
            more = f" and {len(found) - 1} more tensors" if len(found) > 1 else ""
            raise ModelError(
                f"{fault} '{found[0]}'{more}", file=folder, remedy=f"{_AGAIN}: {remedy}"
            )


def check_files(folder: Path) -> None:
    """Make sure of what libraries open by name: they wait for ever for a pipe.

    Raises:
        ModelError: A file that one would open is no plain file, or absurdly large.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix not in _OPENED:
            continue
        try:
            check_regular(path)
            size = path.stat().st_size
        except OSError as error:
            raise ModelError(
                f"this can't be read: {error.strerror or error}",
                file=path,
                remedy="replace it by the file of the same name of the model's publisher",
            ) from error
        if path.suffix in _TEXT and size > MAX_JSON_BYTES:
            raise ModelError(
                f"{size / 1e6:.0f} MB are more than any file of this kind has",
                file=path,
                remedy="replace it by the file of the same name of the model's publisher",
            )


def _refuse_adapter(folder: Path) -> NoReturn:
    path = folder / "adapter_config.json"
    if (folder / "config.json").exists() and weight_files(folder):
        raise ModelError(
            "an adapter (LoRA or the like) lies beside the weights of a whole model, and "
            "transformers would put it on top of them",
            file=path,
            remedy="if it is merged into them already, move adapter_config.json and "
            "adapter_model.safetensors out of the folder; if not, merge it (PEFT's "
            "merge_and_unload), save that, and name it",
        )
    raise ModelError(
        "this is an adapter (LoRA or the like) rather than a model",
        file=path,
        remedy="name the model that it was trained for as 'source', and this folder as 'adapter' "
        "beside it; one that is no LoRA merge first (PEFT's merge_and_unload)",
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
