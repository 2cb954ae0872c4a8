"""Any Hugging Face text classifier, a folder or a hub id, with a label that means toxic.

Weights are read from safetensors only. Texts are cut at 512 tokens. A classifier of one logit, or
one whose config says ``multi_label_classification``, gives the sigmoid of the label's logit;
any other its softmax.

Fails with :class:`~safeedit.errors.ModelError` where the classifier can't be fetched or read, and
with :class:`~safeedit.errors.UsageError` where it has no such label.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from safeedit.cache import file_sha256
from safeedit.contracts import BaseParams, Progress, ScorerIdentity, silent
from safeedit.errors import ModelError, UsageError
from safeedit.model.checkpoint import check_files, check_loaded, check_weights
from safeedit.model.config_checks import check_settings
from safeedit.model.guard import readable
from safeedit.model.headers import read_settings
from safeedit.model.quiet import quiet
from safeedit.model.sources import fetch_folder
from safeedit.policy.suggest import did_you_mean
from safeedit.scorers.transformer import Device, label_scores, pick_device

_VERSION = "1"
"""Raised whenever the same weights would score otherwise."""
_READ = ("*.json", "*.txt", "*.model", "*.safetensors")
"""Files of a classifier's folder that decide its scores."""


class Params(BaseParams):
    """Which classifier, and what it calls toxic."""

    source: str = Field("unitary/toxic-bert", min_length=1, description="Folder or hub id")
    revision: str | None = Field(None, description="Commit of a hub id; pin it")
    label: str = Field("toxic", description="Label that means toxic, by name or number")
    activation: Literal["auto", "sigmoid", "softmax"] = Field(
        "auto", description="What makes probabilities of its logits; auto goes by its config"
    )
    device: Device = Field("auto", description="Where to compute: auto, cpu or cuda")


class Classifier:
    """A sequence classifier of transformers."""

    Params: ClassVar[type[BaseParams]] = Params
    summary: ClassVar[str] = "any Hugging Face text classifier, a folder or hub id, by its label"
    blind_to: ClassVar[str] = "what its training data called harmless; nobody has checked it here"

    def __init__(self, params: Any) -> None:
        self.params: Params = params
        self._ready: tuple[Any, Any] | None = None

    def identity(self) -> ScorerIdentity:
        folder, config = self._find()
        index, activation = self._label(config)
        digest = hashlib.sha256(f"classifier {_VERSION} {index} {activation}\n".encode())
        for path in sorted({path for pattern in _READ for path in folder.glob(pattern)}):
            digest.update(f"{path.name} {file_sha256(path)}\n".encode())
        # The last part of a folder's name; records don't tell the rest.
        name = self.params.source
        name = Path(name).resolve().name if Path(name).expanduser().exists() else name
        return ScorerIdentity(f"classifier {name}", _VERSION, digest.hexdigest())

    def score(self, texts: Sequence[str], progress: Progress = silent) -> list[float]:
        folder, config = self._find()
        index, activation = self._label(config)
        if self._ready is None:
            self._ready = self._load(folder)
        return label_scores(*self._ready, texts, index, activation, progress, "classifier: scoring")

    def _find(self) -> tuple[Path, Any]:
        from transformers import AutoConfig

        folder = fetch_folder(self.params.source, self.params.revision)
        check_files(folder)
        check_settings(read_settings(folder / "config.json"), folder / "config.json")
        check_weights(folder)
        with quiet(), readable(folder):
            config = AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        names = list(config.architectures or ())
        if not any(name.endswith("ForSequenceClassification") for name in names):
            raise ModelError(
                "this model is no text classifier",
                file=folder,
                field="source",
                remedy="name one whose architecture is ...ForSequenceClassification",
            )
        return folder, config

    def _label(self, config: Any) -> tuple[int, Literal["sigmoid", "softmax"]]:
        """The label's index among the logits, and the activation."""
        labels = {str(name): int(index) for index, name in config.id2label.items()}
        wanted = self.params.label
        numbers = {str(index): index for index in labels.values()}
        index = labels.get(wanted, numbers.get(wanted))
        if index is None:
            raise UsageError(
                f"the classifier has no label {wanted!r}",
                field="label",
                remedy=did_you_mean(wanted, labels),
            )
        if self.params.activation != "auto":
            return index, self.params.activation
        several = config.problem_type == "multi_label_classification"
        return index, "sigmoid" if several or config.num_labels == 1 else "softmax"

    def _load(self, folder: Path) -> tuple[Any, Any]:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        with quiet(), readable(folder):
            model, report = AutoModelForSequenceClassification.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **local
            )
            check_loaded(folder, report)
            tokenizer = AutoTokenizer.from_pretrained(folder, **local)
        return model.to(pick_device(self.params.device)).eval(), tokenizer
