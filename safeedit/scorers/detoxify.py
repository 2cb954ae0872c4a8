"""Detoxify (Unitary): the checkpoints of its package, or a checkpoint file of that format.

By name (``variant``) where the weights can be had: from torch's hub cache, else downloaded once.
Fully offline from a ``checkpoint`` file and a ``config`` folder that holds the config and the
tokenizer of the model it was trained from (bert-base-uncased ...).

The package's own class can't be used for that: it asks the hub for ``config.arch.args.model_type``
even when given a folder, takes that folder's number of labels for the checkpoint's, and opens
every checkpoint as a full pickle, which can run code. Here a checkpoint is opened as plain tensors
(``weights_only``); one that can't be is refused, unless ``sha256`` says which file is trusted.

It flags identity terms and swearing whatever their intent (its own documentation says so), and is
not comparable with Perspective.

Fails with :class:`~safeedit.errors.ModelError` where weights or config are missing, not to be
trusted, or do not fit each other, and with :class:`~safeedit.errors.UsageError` where the
checkpoint has no such label.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from safeedit.cache import file_sha256
from safeedit.contracts import BaseParams, Progress, ScorerIdentity, silent
from safeedit.errors import ModelError, UsageError
from safeedit.model.quiet import quiet
from safeedit.policy.suggest import did_you_mean
from safeedit.scorers.transformer import Device, label_scores, pick_device

Variant = Literal["original", "unbiased", "multilingual", "original-small", "unbiased-small"]

_TRAINED_FROM: Mapping[str, str] = {
    "original": "google-bert/bert-base-uncased",
    "unbiased": "FacebookAI/roberta-base",
    "multilingual": "FacebookAI/xlm-roberta-base",
    "original-small": "albert/albert-base-v2",
    "unbiased-small": "albert/albert-base-v2",
}
_RENAMED = {
    "toxic": "toxicity",
    "identity_hate": "identity_attack",
    "severe_toxic": "severe_toxicity",
}
"""Labels of the first challenge under the names of the second, as the package gives them."""
_CONFIGS = ("*.json", "*.txt", "*.model")


class Params(BaseParams):
    """Which weights, and which of their labels."""

    variant: Variant = Field("original", description="Published weights, see the package")
    checkpoint: Path | None = Field(None, description="Checkpoint file, in place of the published")
    config: Path | None = Field(
        None, description="Folder with config.json and tokenizer; by default from the hub"
    )
    sha256: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{64}$",
        description="Digest of the checkpoint: trusts that file even if it can run code",
    )
    label: str = Field("toxicity", description="Label that is the score")
    device: Device = Field("auto", description="Where to compute: auto, cpu or cuda")


class Detoxify:
    """A multi-label classifier in Detoxify's format."""

    Params: ClassVar[type[BaseParams]] = Params
    summary: ClassVar[str] = "Detoxify by variant, or offline from a checkpoint and a config folder"
    blind_to: ClassVar[str] = "implied hatred; and it takes identity terms and swearing for toxic"

    def __init__(self, params: Any) -> None:
        self.params: Params = params
        self._ready: tuple[Any, Any, int] | None = None

    def identity(self) -> ScorerIdentity:
        path, source = self._checkpoint(), self._config()
        digest = hashlib.sha256(f"detoxify {self.params.label}\n{file_sha256(path)}\n".encode())
        if self.params.config is None:
            digest.update(source.encode())
        else:
            files = {file for pattern in _CONFIGS for file in Path(source).glob(pattern)}
            for file in sorted(files):
                digest.update(f"{file.name} {file_sha256(file)}\n".encode())
        own = self.params.checkpoint
        name = f"detoxify {self.params.variant if own is None else own.name}"
        return ScorerIdentity(name, version("detoxify"), digest.hexdigest())

    def score(self, texts: Sequence[str], progress: Progress = silent) -> list[float]:
        if self._ready is None:
            self._ready = self._load()
        model, tokenizer, index = self._ready
        return label_scores(
            model, tokenizer, texts, index, "sigmoid", progress, "detoxify: scoring"
        )

    def _checkpoint(self) -> Path:
        """The checkpoint file, there and as pinned."""
        path = self.params.checkpoint or _published(self.params.variant)
        if not path.is_file():
            raise ModelError(
                "there is no such checkpoint",
                file=path,
                field="checkpoint",
                remedy="name a .ckpt file of the detoxify package",
            )
        if self.params.sha256 is not None and (found := file_sha256(path)) != self.params.sha256:
            raise ModelError(
                f"sha256 is {found}, not the one that is trusted",
                file=path,
                field="sha256",
                remedy="fetch the checkpoint again, or correct the digest",
            )
        return path

    def _config(self) -> str:
        """Where config and tokenizer are: a folder, or a hub id whose config can be had."""
        folder = self.params.config
        if folder is not None:
            if not (folder / "config.json").is_file():
                raise ModelError(
                    "this folder holds no config.json",
                    file=folder,
                    field="config",
                    remedy="save config and tokenizer of the model it was trained from here",
                )
            return str(folder)
        from transformers import AutoConfig

        source = _TRAINED_FROM[self.params.variant]
        try:
            with quiet():
                AutoConfig.from_pretrained(source, trust_remote_code=False)
        except OSError as error:
            raise ModelError(
                f"config and tokenizer of {source} can't be fetched and are not in the hub's cache",
                field="config",
                remedy=f"connect to the network once, or name a folder that holds those of "
                f"{source}: 'config: FOLDER'; the scorer profanity needs neither",
            ) from error
        return source

    def _load(self) -> tuple[Any, Any, int]:
        """Model, tokenizer and the label's index."""
        import transformers
        from transformers import AutoTokenizer, PreTrainedModel

        path, source = self._checkpoint(), self._config()
        loaded = _read(path, trusted=self.params.sha256 is not None)
        try:
            classes = [str(name) for name in loaded["config"]["dataset"]["args"]["classes"]]
            kind: Any = getattr(transformers, str(loaded["config"]["arch"]["args"]["model_name"]))
            weights = dict(loaded["state_dict"])
        except (AttributeError, KeyError, TypeError, ValueError):
            kind = None
        if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
            raise ModelError(
                "this is no checkpoint of detoxify: it must hold its config "
                "(arch.args.model_name, dataset.args.classes) and a state_dict",
                file=path,
                remedy="name a .ckpt file that the detoxify package can open",
            )
        model_class: Any = kind
        labels = [_RENAMED.get(name, name) for name in classes]
        if self.params.label not in labels:
            raise UsageError(
                f"the checkpoint has no label {self.params.label!r}",
                field="label",
                remedy=did_you_mean(self.params.label, labels),
            )
        local: dict[str, Any] = {
            "trust_remote_code": False,
            "local_files_only": self.params.config is not None,
        }
        try:
            with quiet():
                config = model_class.config_class.from_pretrained(
                    source, num_labels=len(classes), **local
                )
                tokenizer = AutoTokenizer.from_pretrained(source, **local)
                model = model_class(config)
        except (OSError, ValueError) as error:
            raise ModelError(
                "config or tokenizer can't be read",
                file=source,
                remedy="save both of the model it was trained from in one folder",
            ) from error
        _fill(model, weights, path)
        where = pick_device(self.params.device)
        return model.to(where).eval(), tokenizer, labels.index(self.params.label)


def _published(variant: str) -> Path:
    """The published checkpoint, downloaded where it is not here."""
    import torch
    from detoxify.detoxify import MODEL_URLS

    url = MODEL_URLS[variant]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / url.rpartition("/")[2]
    if path.is_file():
        return path
    reason = "the hub client is set to offline"
    if not os.environ.get("HF_HUB_OFFLINE"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Its name ends in the first digits of its sha256.
            prefix = path.stem.rpartition("-")[2]
            torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix, progress=False)
            return path
        except (OSError, RuntimeError) as error:
            reason = type(error).__name__
    raise ModelError(
        f"the weights of detoxify '{variant}' are not here and could not be fetched ({reason})",
        remedy=f"on a machine with a network fetch {url} and name the file: 'checkpoint: FILE'; "
        "or use the scorer profanity, which needs none",
    )


def _read(path: Path, *, trusted: bool) -> Any:
    """What a checkpoint holds: plain tensors and numbers, or anything where it is trusted."""
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if not trusted:
            raise ModelError(
                f"this checkpoint is no file of plain tensors ({type(error).__name__}): opening "
                "it could run code",
                file=path,
                field="sha256",
                remedy=f"if you trust it, say so: 'sha256: {file_sha256(path)}'",
            ) from None
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:
        raise ModelError(
            f"this checkpoint can't be read ({type(error).__name__})",
            file=path,
            remedy="fetch it again",
        ) from error


def _fill(model: Any, weights: dict[str, Any], path: Path) -> None:
    """Load weights, every one of them and nothing else."""
    try:
        missing, unknown = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # shapes
        raise _misfit(path, "tensors have other shapes") from error
    # Older transformers stored positions, which are no weights.
    unknown = [name for name in unknown if not name.endswith("position_ids")]
    if missing or unknown:
        raise _misfit(path, f"{len(missing)} tensors are missing, {len(unknown)} are unknown")


def _misfit(path: Path, what: str) -> ModelError:
    return ModelError(
        f"checkpoint and config do not belong together: {what}",
        file=path,
        field="config",
        remedy="name the config folder of the model the checkpoint was trained from",
    )
