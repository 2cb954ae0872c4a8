"""From the name of a model to a model: hub id, folder, ``.gguf`` file or ``builtin:``.

Only safetensors are read, and no code that comes with a model is ever run. Everything that
can be wrong with a checkpoint is looked for before its weights are loaded, and said with the
file's name; what would otherwise pass in silence (a missing tensor that would be drawn at
random, a NaN) is an error.

``python -m safeedit.model.sources`` fetches the built-in model ahead of time.

Fails with :class:`~safeedit.errors.ModelError`, and with
:class:`~safeedit.errors.UnsupportedModelError` where the architecture is one we refuse.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from safeedit.errors import ModelError, UsageError
from safeedit.model.architectures import architecture_of
from safeedit.model.cache import BUILTIN, DEFAULT, cache_dir, fetch_builtin, file_sha256, gguf_model
from safeedit.model.handle import ModelHandle
from safeedit.model.quiet import quiet

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

__all__ = ["BUILTIN", "cache_dir", "open_config", "open_model"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
_SAFE_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


def open_model(
    source: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    verbose: bool = False,
) -> ModelHandle:
    """Open a model for editing and auditing.

    Args:
        source: A hub id, a folder, a ``.gguf`` file or ``builtin:smollm2-135m-instruct``.
        revision: Branch, tag or commit of a hub id; no other source has one.
        dtype: ``auto`` (the checkpoint's own), ``float32``, ``bfloat16`` or ``float16``.
        device: ``auto`` (the first of cuda, mps, cpu there is), or one of these, or
            ``cuda:1``. Under ``auto``, a model too large for one GPU is spread over all, and
            over main memory if need be.
        verbose: Let transformers log and draw its bars.

    Raises:
        ModelError: It can't be found, fetched, trusted or read; see the module.
        UnsupportedModelError: Its architecture is one safeedit does not edit.
        UsageError: ``dtype``, ``device`` or ``revision`` make no sense.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = _locate(source, revision, weights=True)
    config = _config(found.folder)
    architecture_of(config)
    weights = _check_weights(found.folder)
    _check_tokenizer(found.folder)
    chosen = _dtype(weights.dtype if dtype == "auto" else dtype)
    where = _device(device)
    options: dict[str, Any] = {
        "dtype": chosen,
        "trust_remote_code": False,
        "local_files_only": True,
    }
    if device == "auto" and where.type == "cuda" and not _fits(weights.n_entries, chosen, where):
        options["device_map"] = "auto"
    with quiet(verbose), _readable(found.folder):
        model, report = AutoModelForCausalLM.from_pretrained(
            found.folder, use_safetensors=True, output_loading_info=True, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(
            found.folder, trust_remote_code=False, local_files_only=True
        )
    if report["missing_keys"]:
        raise ModelError(
            f"the checkpoint lacks '{min(report['missing_keys'])}'"
            + (f" and {n} more tensors" if (n := len(report["missing_keys"]) - 1) else ""),
            file=found.folder,
            remedy="fetch it again: these weights would be drawn at random",
        )
    if "device_map" not in options:
        model = model.to(where)
    # The model was opened from where it lies here; records name the source instead.
    model.config._name_or_path = source
    handle = ModelHandle(model, tokenizer, source=source, revision=found.revision)
    handle.check_finite()
    with torch.no_grad():
        _check_vocabulary(handle)
    return handle


def open_config(source: str, revision: str | None = None) -> tuple[PreTrainedConfig, str]:
    """A model's config and an identity of its weights, without loading them.

    Returns:
        The config, and ``hub:<id>@<commit>`` or ``sha256:<digest>``, the latter over the
        config and the safetensors files of a folder, or over a ``.gguf`` file. It changes
        whenever the weights do.

    Raises:
        ModelError: As :func:`open_model`, as far as it can be known.
    """
    found = _locate(source, revision, weights=False)
    config = _config(found.folder)
    if found.identity:
        return config, found.identity
    _check_weights(found.folder)
    digest = hashlib.sha256()
    for path in (found.folder / "config.json", *sorted(found.folder.glob("*.safetensors"))):
        digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return config, f"sha256:{digest.hexdigest()}"


# Finding it ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Located:
    folder: Path
    revision: str | None = None
    identity: str = ""


def _locate(source: str, revision: str | None, *, weights: bool) -> _Located:
    path = Path(source).expanduser()
    local = source.startswith("builtin:") or path.exists() or source.endswith(".gguf")
    if local and revision is not None:
        raise UsageError(
            "only a hub id has a revision", field="revision", remedy="remove it, or name a hub id"
        )
    if source.startswith("builtin:"):
        return _Located(fetch_builtin(source.removeprefix("builtin:")))
    if path.is_dir():
        return _Located(path)
    if path.suffix == ".gguf" and path.is_file():
        return _Located(gguf_model(path), identity=f"sha256:{file_sha256(path)}")
    if path.is_file():
        _refuse_file(path)
    if not _HUB_ID.fullmatch(source) or source.endswith(".gguf"):
        raise ModelError(
            "there is no such folder or file",
            file=source,
            remedy=f"name a folder, a .gguf file, a hub id (owner/name) or builtin:{DEFAULT}",
        )
    return _fetch(source, revision, weights=weights)


def _refuse_file(path: Path) -> NoReturn:
    if path.suffix in _PICKLES:
        _refuse_pickle(path)
    raise ModelError(
        "a model is a folder (config.json, safetensors, tokenizer) or a .gguf file",
        file=path,
        remedy="name the folder the file lies in",
    )


def _fetch(source: str, revision: str | None, *, weights: bool) -> _Located:
    """A snapshot of a hub repository: config, tokenizer and safetensors, nothing else."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    patterns = ["*.json", "*.jinja", "*.txt", "*.model"] + ["*.safetensors"] * weights
    label = source if revision is None else f"{source} at revision {revision}"
    try:
        with quiet():
            folder = snapshot_download(
                source,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=["*/*", "consolidated*"],  # other formats, and other layouts
            )
    except GatedRepoError as error:
        raise ModelError(
            f"{label} is gated: its owner gives access on request",
            remedy="accept its conditions on the hub and log in with 'hf auth login'",
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise ModelError(
            f"there is no folder {source} here, and no {label} on the hub that you can see",
            remedy="check the name and the revision; for a private one, 'hf auth login'",
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"{label} could not be fetched, and is not in the hub cache",
            remedy="connect to the network once, or copy the model here and name its folder; "
            f"builtin:{DEFAULT} needs the package registry only",
        ) from error
    # Folders of the hub's cache are named by commit.
    commit = Path(folder).name
    return _Located(Path(folder), revision=commit, identity=f"hub:{source}@{commit}")


# Checking it --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Weights:
    """What the headers of a checkpoint say: main dtype and number of entries."""

    dtype: str
    n_entries: int


def _config(folder: Path) -> PreTrainedConfig:
    from transformers import AutoConfig

    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(
            "the folder has no config.json",
            file=folder,
            remedy="name the folder of a whole Hugging Face checkpoint",
        )
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        kind = settings.get("model_type")
    except (ValueError, AttributeError) as error:
        raise ModelError("this is not a JSON object", file=path, remedy="fetch it again") from error
    if kind not in _known_types() and "auto_map" in settings:
        raise ModelError(
            "this model can only be opened by running code that comes with it "
            "(trust_remote_code), which safeedit never does",
            file=path,
            remedy="use a model whose architecture is part of transformers",
        )
    with quiet(), _readable(folder):
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    return config


def _known_types() -> set[str]:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return set(CONFIG_MAPPING_NAMES)


def _check_weights(folder: Path) -> _Weights:
    """Open the header of every safetensors file; sizes must add up to the files'."""
    from safetensors import SafetensorError, safe_open

    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    expected = {single.name: set()} if single.is_file() else _shards(index)
    if not expected:
        if pickles := sorted(p for p in folder.iterdir() if p.suffix in _PICKLES):
            _refuse_pickle(pickles[0])
        raise ModelError(
            "the folder holds no safetensors weights",
            file=folder,
            remedy="name the folder of a whole Hugging Face checkpoint",
        )
    sizes: dict[str, int] = {}
    for name, wanted in expected.items():
        path = folder / name
        if not path.is_file():
            raise ModelError(
                f"a shard of the checkpoint is missing ({len(expected)} in all)",
                file=path,
                remedy="fetch the checkpoint again",
            )
        try:
            with safe_open(path, framework="pt") as file:
                present = set(file.keys())
                for tensor in present:
                    part = file.get_slice(tensor)
                    entries = 1
                    for side in part.get_shape():
                        entries *= side
                    sizes[part.get_dtype()] = sizes.get(part.get_dtype(), 0) + entries
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"the file is corrupt or cut short: {error}",
                file=path,
                remedy="fetch it again; if it lies in safeedit's cache, delete its folder",
            ) from error
        if wanted - present:
            raise ModelError(
                f"the index promises '{min(wanted - present)}', which the shard does not hold",
                file=path,
                remedy="fetch the checkpoint again",
            )
    floating = {name: n for name, n in sizes.items() if name in _SAFE_DTYPES}
    if not floating:
        raise ModelError(
            "the checkpoint holds no floating-point weights: they are quantised",
            file=folder,
            remedy="edit the unquantised checkpoint and quantise the result",
        )
    most = max(floating, key=lambda name: floating[name])
    return _Weights(_SAFE_DTYPES[most], sum(sizes.values()))


def _shards(index: Path) -> dict[str, set[str]]:
    """Shard -> the tensors the index says it holds; empty where there is no index."""
    if not index.is_file():
        return {}
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            "the index of the shards can't be read", file=index, remedy="fetch it again"
        ) from error
    shards: dict[str, set[str]] = {}
    for tensor, shard in places:
        shards.setdefault(Path(shard).name, set()).add(tensor)
    return shards


def _refuse_pickle(path: Path) -> NoReturn:
    raise ModelError(
        "the weights are a pickle, which can run code when it is opened; safeedit reads "
        "safetensors only",
        file=path,
        remedy="in a sandbox, open the model with transformers' AutoModelForCausalLM and write it "
        "with save_pretrained(folder), which makes safetensors; then name that folder",
    )


def _check_tokenizer(folder: Path) -> None:
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise ModelError(
            "the folder has no tokenizer (none of " + ", ".join(_TOKENIZERS) + ")",
            file=folder,
            remedy="copy the tokenizer's files of the same model into it",
        )


def _check_vocabulary(handle: ModelHandle) -> None:
    """A token without an embedding would crash in the middle of a run, or on a GPU later."""
    rows, tokens = handle.shape.vocab_size, len(handle.tokenizer)  # type: ignore[arg-type]
    if tokens > rows:
        raise ModelError(
            f"the tokenizer has {tokens} tokens and the model embeds {rows}",
            file=handle.source,
            remedy="use the tokenizer that belongs to the model",
        )


class _readable:  # noqa: N801 (reads as a phrase: with _readable(folder))
    """Turns what transformers raises on a bad checkpoint into a ModelError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, ModelError) or not isinstance(error, Exception):
            return
        if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
            raise ModelError(
                "there is not enough memory for this model",
                file=self.folder,
                remedy="use a smaller model, dtype: bfloat16, or a larger device",
            ) from error
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        raise ModelError(
            f"transformers can't open it: {type(error).__name__}: {reason[:300]}",
            file=self.folder,
            remedy="fetch the checkpoint again; if it is intact, it may need another version of "
            "transformers",
        ) from error


# Where and how -----------------------------------------------------------------------


def _dtype(name: str) -> torch.dtype:
    import torch

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    # Nothing is gained from 64 bits: edits are computed in 32.
    known["float64"] = torch.float32
    if name not in known:
        raise UsageError(
            f"'{name}' is no dtype of a model",
            field="dtype",
            remedy="use auto, float32, bfloat16 or float16",
        )
    return known[name]


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(
            f"'{name}' is no device", field="device", remedy="use auto, cpu, cuda, cuda:N or mps"
        )
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there[device.type]:
        raise ModelError(
            f"this machine has no device '{name}' that torch can use",
            field="device",
            remedy="use auto or cpu, or install a build of torch for the device",
        )
    return device


def _fits(n_entries: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the weights leave a tenth of a GPU's free memory for work."""
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return n_entries * dtype.itemsize < 0.9 * free


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    fetch_builtin()
