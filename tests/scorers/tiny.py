"""Tiny random classifiers on disk: a Hugging Face folder, and a checkpoint as Detoxify's are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification

from tests.tiny_models import VOCAB_SIZE, tiny_tokenizer

TEXTS = [
    "The doctor said that she would call.",
    "no",
    "Who wrote the play about the prince of Denmark? It was Shakespeare, I think.",
    "Water boils at one hundred degrees; ice melts at zero. " * 3,
    "the nurse was late",
]
LABELS = ("fine", "toxic", "other")
CLASSES = ("toxic", "severe_toxic", "insult")


def config(**options: Any) -> BertConfig:
    return BertConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=256,
        **options,
    )


def model(seed: int = 0, **options: Any) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    made = BertForSequenceClassification(config(**options)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return made


def save_classifier(folder: Path, seed: int = 0, **options: Any) -> Path:
    """A folder of a classifier with :data:`LABELS`."""
    settings = {"id2label": dict(enumerate(LABELS)), **options}
    settings["label2id"] = {name: index for index, name in settings["id2label"].items()}
    model(seed, **settings).save_pretrained(folder)
    tiny_tokenizer(chat_template=False).save_pretrained(folder)
    return folder


def save_detoxify(folder: Path, seed: int = 0, **more: Any) -> tuple[Path, Path]:
    """``(checkpoint, config folder)``; the folder says nothing of the number of labels.

    ``more`` goes into the checkpoint's config.
    """
    trained = model(seed, num_labels=len(CLASSES))
    names = {"model_type": "bert-base-uncased", "model_name": "BertForSequenceClassification"}
    held = {
        "config": {
            "arch": {"args": {**names, "tokenizer_name": "BertTokenizer", "num_classes": 3}},
            "dataset": {"args": {"classes": list(CLASSES)}},
            **more,
        },
        # As older versions of transformers stored them: with positions among the weights.
        "state_dict": {
            **trained.state_dict(),
            "bert.embeddings.position_ids": torch.arange(256)[None],
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "tiny.ckpt"
    torch.save(held, checkpoint)
    config().save_pretrained(folder / "config")
    tiny_tokenizer(chat_template=False).save_pretrained(folder / "config")
    return checkpoint, folder / "config"


@torch.no_grad()
def logits(classifier: BertForSequenceClassification, text: str) -> torch.Tensor:
    """One text alone: no batch, no padding."""
    ids = tiny_tokenizer(chat_template=False)(text)["input_ids"]
    return classifier(input_ids=torch.tensor([ids])).logits[0]
