"""From the name of a model to a model: hub id, folder, ``.gguf`` file or ``builtin:``.

Only safetensors are read (a GGUF file is converted once, see :mod:`safeedit.model.builtin`), and
no code that comes with a model is ever run. What is wrong with a checkpoint is found before its
weights are loaded, see :mod:`safeedit.model.checkpoint`.

``python -m safeedit.model.sources [NAME]`` fetches a built-in model ahead of time and prints where
it lies.

Fails with :class:`~safeedit.errors.ModelError`, and with
:class:`~safeedit.errors.UnsupportedModelError` where the architecture is one we refuse.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from safeedit.cache import file_sha256
from safeedit.errors import ModelError, UsageError
from safeedit.model.adapter import adapter_digest, read_adapter
from safeedit.model.architectures import ModelShape
from safeedit.model.builtin import (
    BUILTIN,
    DEFAULT,
    fetch_builtin,
    gguf_model,
    said_of,
)
from safeedit.model.carried import LEGAL
from safeedit.model.checkpoint import (
    PICKLES,
    WeightFiles,
    check_loaded,
    check_tokenizer,
    check_weights,
    read_config,
    refuse_pickle,
)
from safeedit.model.guard import BUILDING, readable
from safeedit.model.handle import ModelHandle
from safeedit.model.headers import weight_files
from safeedit.model.quiet import quiet
from safeedit.model.stored import StoredWeights, stored_weights
from safeedit.model.vocabulary import check_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["BUILTIN", "fetch_builtin", "open_config", "open_model", "open_tokenizer"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
# Other formats and layouts; of the folders, additional_chat_templates alone is the model's.
_OTHER_LAYOUTS = ["[!a]*/*", "a[!d]*/*", "ad[!d]*/*", "*/*/*", "consolidated*", "*.py"]
_DTYPES = ("float32", "bfloat16", "float16")
_SHARE_FOR_WEIGHTS = 0.85
"""Share of a GPU's free memory that weights may take; activations and caches need the rest."""


def open_model(
    source: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    adapter: str | None = None,
) -> ModelHandle:
    """Open a model for editing and auditing.

    Args:
        source: A hub id, a folder, a ``.gguf`` file or ``builtin:NAME``.
        revision: Branch, tag or commit of a hub id; no other source has one.
        dtype: ``auto`` (the checkpoint's own), ``float32``, ``bfloat16`` or ``float16``.
        device: ``auto`` (the first of cuda, mps, cpu there is), or one of these, or
            ``cuda:1``. Under ``auto``, a model too large for one GPU is spread over all, and
            over main memory if need be.
        adapter: Folder of a LoRA adapter to merge into it (:mod:`safeedit.model.adapter`).

    Returns:
        The model in evaluation mode, its weights checked to be finite.

    Raises:
        ModelError: It can't be found, fetched, trusted or read; see the module.
        UnsupportedModelError: Its architecture is one safeedit does not edit.
        UsageError: ``dtype``, ``device`` or ``revision`` make no sense.
    """
    if dtype != "auto" and dtype not in _DTYPES:
        remedy = f"use auto, {', '.join(_DTYPES)}"
        raise UsageError(f"'{dtype}' is no dtype of a model", field="dtype", remedy=remedy)
    named_device = None if device == "auto" else _device(device)
    found = _locate(source, revision)
    config = read_config(found.folder)  # before the weights of a model we refuse are fetched
    found = found.with_weights()
    check_tokenizer(found.folder)
    weights = check_weights(found.folder)
    stored = _with_adapter(stored_weights(found.folder, config), config, adapter)
    number = _run_dtype(config, weights, stored) if dtype == "auto" else getattr(torch, dtype)
    where = named_device or best_device(weights.n_entries * number.itemsize)
    model, tokenizer = _load(found.folder, config, number, where, stored.unread)
    # Opened from where it lies on this machine; records name the source instead.
    model.config._name_or_path = source
    handle = ModelHandle(
        model,
        tokenizer,
        source=source,
        revision=found.commit,
        folder=found.folder,
        on_disk=stored,
        dtypes=_narrower(stored, number) if dtype == "auto" else {},
    )
    handle.merge()
    check_vocabulary(tokenizer, handle.shape.vocab_size, found.folder)
    handle.check_finite()
    return handle


def _with_adapter(
    stored: StoredWeights, config: PreTrainedConfig, adapter: str | None
) -> StoredWeights:
    """The tensors with what an adapter adds to them."""
    if adapter is None:
        return stored
    shape = ModelShape.from_config(config)
    return replace(stored, adapter=read_adapter(Path(adapter).expanduser(), stored, shape))


def _load(
    folder: Path,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    device: torch.device | None,
    unread: Sequence[str],
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model's weights and tokenizer, and a token run to see that it works; without a device it
    is spread over all there are."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    local: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    with quiet(), readable(folder):
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            device_map=None if device is not None else "auto",
            use_safetensors=True,
            output_loading_info=True,
            **local,
        )
        check_loaded(folder, report, unread)
        tokenizer = AutoTokenizer.from_pretrained(folder, **local)
        if device is not None:
            model = model.to(device)
    with quiet(), readable(folder, doing="run", remedy=BUILDING), torch.no_grad():
        # What a config says wrongly may show in use only; one token tells.
        model(torch.zeros((1, 1), dtype=torch.long, device=model.device), use_cache=False)
    return model, tokenizer


def open_config(source: str, *, revision: str | None = None) -> tuple[PreTrainedConfig, str]:
    """A model's config and an identity of its weights, without loading them.

    Returns:
        The config, and ``hub:<id>@<commit>`` or, of any other source, ``sha256:<digest>`` over
        its config and its safetensors files. It changes whenever the weights do.

    Raises:
        ModelError: As :func:`open_model`, as far as it can be known.
        UnsupportedModelError: As :func:`open_model`.
        UsageError: ``revision`` of something that has none.
    """
    found = inspect_model(source, revision=revision)
    return found.config, found.identity


@dataclass(frozen=True)
class Inspected:
    """What is known of a model without loading its weights.

    Attributes:
        config: Its config, set right where the files say otherwise.
        tokenizer: Its tokenizer.
        identity: See :func:`open_config`.
        dtype: What it runs in.
        notes: What a reader of the results must know, in sentences; of a hub id whose weights are
            not in the cache, that what they announce is not known yet.
    """

    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    identity: str
    dtype: str
    notes: tuple[str, ...] = ()


def inspect_model(
    source: str, *, revision: str | None = None, dtype: str = "auto", adapter: str | None = None
) -> Inspected:
    """All that can be known of a model from its config and the headers of its files.

    Args:
        source: As for :func:`open_model`, as all of them.
        revision: Of a hub id.
        dtype: What it is to run in.
        adapter: As for :func:`open_model`.

    Raises:
        ModelError: As :func:`open_model`, as far as it can be known.
        UnsupportedModelError: As :func:`open_model`.
        UsageError: ``revision`` of something that has none.
    """
    found = _locate(source, revision)
    config = read_config(found.folder)
    weights = check_weights(found.folder) if found.has_weights() else None
    stored = None
    if weights is not None:
        stored = _with_adapter(stored_weights(found.folder, config), config, adapter)
    tokenizer = _tokenizer(found.folder)
    check_vocabulary(tokenizer, ModelShape.from_config(config).vocab_size, found.folder)
    if weights is None or stored is None:
        own = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
        run = own if dtype == "auto" else dtype
        unseen = _NOT_HERE.format(name=found.hub_id)
        added = f"+lora:{adapter_digest(Path(adapter))}" if adapter is not None else ""
        return Inspected(config, tokenizer, found.hub_identity + added, run, (unseen,))
    number = _run_dtype(config, weights, stored) if dtype == "auto" else getattr(torch, dtype)
    identity, merged = found.hub_identity or _identity(found.folder, weights), stored.adapter
    return Inspected(
        config,
        tokenizer,
        identity if merged is None else f"{identity}+lora:{merged.digest}",
        str(number).removeprefix("torch."),
        (
            *said_of(source),
            *stored.notes(number),
            *(() if merged is None else merged.notes(source)),
        ),
    )


_NOT_HERE = (
    "the weights of {name} are not in the cache of the hub on this machine: what their files "
    "announce (tensors that are missing or unknown, sizes, dtypes) is checked when the run has "
    "fetched them, before anything is measured"
)


def _identity(folder: Path, weights: WeightFiles) -> str:
    digest = hashlib.sha256()
    for path in (folder / "config.json", *weights.files):
        digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def open_tokenizer(source: str, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """A model's tokenizer alone.

    Raises:
        ModelError: As :func:`open_model`, as far as it can be known.
        UsageError: ``revision`` of something that has none.
    """
    return _tokenizer(_locate(source, revision).folder)


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    check_tokenizer(folder)
    with quiet(), readable(folder):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    return tokenizer


def fetch_folder(source: str, revision: str | None = None) -> Path:
    """The folder of a model of any kind, with its safetensors; fetched where it is a hub id.

    Raises:
        ModelError: It is not here and can't be fetched.
        UsageError: ``revision`` of something that has none.
    """
    return _locate(source, revision).with_weights().folder


@dataclass(frozen=True)
class _Located:
    """A folder on this machine; of a hub repository, perhaps without the weights."""

    folder: Path
    hub_id: str = ""
    commit: str | None = None

    @property
    def hub_identity(self) -> str:
        """``hub:<id>@<commit>``; empty where it is of no hub."""
        return f"hub:{self.hub_id}@{self.commit}" if self.hub_id else ""

    def has_weights(self) -> bool:
        """Whether what can be read of the weights is here: a hub's may not have been fetched."""
        files = weight_files(self.folder) if self.hub_id else ()
        return not self.hub_id or (bool(files) and all(file.exists() for file in files))

    def with_weights(self) -> _Located:
        if not self.hub_id:
            return self
        whole = _fetch(self.hub_id, self.commit, weights=True)
        if not any(whole.folder.glob("*.safetensors")):
            raise ModelError(
                f"no safetensors weights of {self.hub_id} at {self.commit} are here: it has none "
                "(only pickles, say), or they could not be fetched",
                remedy="connect to the network once; of a repository without safetensors, look "
                "for a revision or a conversion that has them",
            )
        return whole


def _locate(source: str, revision: str | None) -> _Located:
    path = Path(source).expanduser()
    gguf = path.suffix.lower() == ".gguf"
    builtin = source.startswith("builtin:")
    if revision is not None and (builtin or gguf or path.exists()):
        raise UsageError(
            "only a hub id has a revision", field="revision", remedy="remove it, or name a hub id"
        )
    if builtin:
        return _Located(fetch_builtin(source.removeprefix("builtin:")))
    if source and path.is_dir():  # no name at all would be the current folder
        return _Located(path)
    if path.is_file():
        if gguf:
            return _Located(gguf_model(path))
        if path.suffix in PICKLES:
            refuse_pickle(path)
        raise ModelError(
            "a model is a folder (config.json, safetensors, tokenizer) or a .gguf file",
            file=path,
            remedy="name the folder that the file lies in",
        )
    if gguf or not _HUB_ID.fullmatch(source):
        raise ModelError(
            "there is no such folder or file",
            file=source,
            remedy=f"name a folder, a .gguf file, a hub id (owner/name) or builtin:NAME, with NAME "
            f"one of {', '.join(BUILTIN)}",
        )
    return _fetch(source, revision, weights=False)


def _fetch(hub_id: str, revision: str | None, *, weights: bool) -> _Located:
    """A snapshot of a hub repository: config and tokenizer, and safetensors if asked for."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    patterns = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", *LEGAL]
    patterns += ["*.safetensors"] * weights
    label = hub_id if revision is None else f"{hub_id} at revision {revision}"
    try:
        with quiet():
            folder = snapshot_download(
                hub_id,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=_OTHER_LAYOUTS,
            )
    except GatedRepoError as error:
        raise ModelError(
            f"{label} is gated: its owner gives access on request",
            remedy="accept its conditions on the hub and log in with 'hf auth login'",
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise ModelError(
            f"there is no folder {hub_id} here, and no {label} on the hub that you can see",
            remedy="check the name and the revision; for a private one, 'hf auth login'",
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"there is no folder {hub_id} here, and {label} could not be fetched from the hub and "
            "is not in its cache",
            remedy="connect to the network once, or copy the model here and name its folder; "
            f"builtin:{DEFAULT} needs the package registry only",
        ) from error
    # Folders of the hub's cache are named by commit.
    return _Located(Path(folder), hub_id, Path(folder).name)


# In which dtype ----------------------------------------------------------------------


def _run_dtype(
    config: PreTrainedConfig, weights: WeightFiles, stored: StoredWeights
) -> torch.dtype:
    """What a checkpoint runs in by itself: the dtype of most of its numbers, or a wider one that
    its config names and its files use. (An edit in ``float32`` of a bfloat16 model is exported
    so: its readers open it in float32 and find what was measured.)"""
    most: torch.dtype = getattr(torch, weights.dtype)
    named = getattr(config, "dtype", None)
    if not isinstance(named, torch.dtype) or named not in stored.dtypes.values():
        return most
    wider = torch.promote_types(most, named) == named
    # Nothing is gained from 64 bits: edits are computed in 32.
    return most if not wider else torch.float32 if named == torch.float64 else named


def _narrower(stored: StoredWeights, run: torch.dtype) -> dict[str, torch.dtype]:
    """Tensor name -> its dtype on disk, where that can't hold all that the model runs in."""
    return {
        name: dtype
        for name, dtype in stored.dtypes.items()
        if torch.promote_types(dtype, run) != dtype
    }


# Where to ----------------------------------------------------------------------------


def _device(name: str) -> torch.device:
    """The device called ``name``, made sure to be there."""
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


def best_device(n_bytes: int) -> torch.device | None:
    """The first of the emptiest GPU, mps and cpu; None if no single GPU holds the weights."""
    if torch.cuda.is_available():
        free = [torch.cuda.mem_get_info(gpu)[0] for gpu in range(torch.cuda.device_count())]
        emptiest = max(range(len(free)), key=lambda gpu: free[gpu])
        fits = n_bytes <= _SHARE_FOR_WEIGHTS * free[emptiest]
        return torch.device("cuda", emptiest) if fits else None
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


if __name__ == "__main__":
    import sys

    from safeedit.text.display import clean, clean_lines

    try:
        sys.stdout.write(f"{clean(fetch_builtin(*sys.argv[1:2]))}\n")
    except ModelError as error:
        sys.exit(f"error: {clean_lines(error)}")
