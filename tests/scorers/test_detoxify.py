"""Checkpoints of Detoxify's format, offline; and that a pickle never runs unasked."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from safeedit.errors import ModelError, UsageError
from safeedit.scorers.detoxify import Detoxify, Params
from tests.scorers.tiny import CLASSES, TEXTS, logits, model, save_detoxify


def scorer(checkpoint: Path, config: Path, **params: Any) -> Detoxify:
    return Detoxify(Params(checkpoint=checkpoint, config=config, device="cpu", **params))


class Escape:
    """Touches a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_scores_are_the_sigmoid_of_the_label_without_a_network(tmp_path: Path) -> None:
    files = save_detoxify(tmp_path)
    trained = model(num_labels=len(CLASSES))
    for label, index in (("toxicity", 0), ("severe_toxicity", 1), ("insult", 2)):
        expected = [float(torch.sigmoid(logits(trained, text))[index]) for text in TEXTS]
        assert scorer(*files, label=label).score(TEXTS) == pytest.approx(expected, abs=1e-5)


def test_a_label_that_it_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no label 'insults'") as caught:
        scorer(*save_detoxify(tmp_path), label="insults").score(TEXTS)
    assert "did you mean 'insult'" in caught.value.remedy


def test_a_pickle_that_could_run_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "escaped"
    files = save_detoxify(tmp_path, trap=Escape(trap))
    with pytest.raises(ModelError, match="could run code") as caught:
        scorer(*files).score(TEXTS)
    assert not trap.exists()
    assert hashlib.sha256(files[0].read_bytes()).hexdigest() in caught.value.remedy


def test_naming_its_digest_trusts_one_file_and_no_other(tmp_path: Path) -> None:
    trap = tmp_path / "escaped"
    files = save_detoxify(tmp_path, trap=Escape(trap))
    digest = hashlib.sha256(files[0].read_bytes()).hexdigest()
    with pytest.raises(ModelError, match="not the one that is trusted"):
        scorer(*files, sha256="0" * 64).identity()
    assert not trap.exists()
    assert len(scorer(*files, sha256=digest).score(TEXTS)) == len(TEXTS)
    assert trap.exists()


def test_its_identity_is_that_of_checkpoint_config_and_label(tmp_path: Path) -> None:
    files = save_detoxify(tmp_path / "one")
    other = save_detoxify(tmp_path / "two", seed=1)
    digest = scorer(*files).identity().digest
    assert scorer(*files).identity().digest == digest
    assert scorer(other[0], files[1]).identity().digest != digest
    assert scorer(*files, label="insult").identity().digest != digest
    (files[1] / "config.json").write_text("{}")
    assert scorer(*files).identity().digest != digest


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    checkpoint, config = save_detoxify(tmp_path)
    text = (config / "config.json").read_text()
    (config / "config.json").write_text(
        text.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3')
    )
    with pytest.raises(ModelError, match="do not belong together: 16 tensors are missing"):
        scorer(checkpoint, config).score(TEXTS)
    (config / "config.json").write_text(text.replace('"hidden_size": 16', '"hidden_size": 32'))
    with pytest.raises(ModelError, match="other shapes"):
        scorer(checkpoint, config).score(TEXTS)


@pytest.mark.parametrize("held", [{}, [1], {"config": {}}, {"config": None, "state_dict": {}}])
def test_other_checkpoints_are_no_detoxify(tmp_path: Path, held: Any) -> None:
    _, config = save_detoxify(tmp_path)
    torch.save(held, tmp_path / "other.ckpt")
    with pytest.raises(ModelError, match="no checkpoint of detoxify"):
        scorer(tmp_path / "other.ckpt", config).score(TEXTS)


def test_only_models_of_transformers_are_built(tmp_path: Path) -> None:
    checkpoint, config = save_detoxify(tmp_path)
    held = torch.load(checkpoint, weights_only=True)
    held["config"]["arch"]["args"]["model_name"] = "pipeline"
    torch.save(held, checkpoint)
    with pytest.raises(ModelError, match="no checkpoint of detoxify"):
        scorer(checkpoint, config).score(TEXTS)


def test_files_that_are_missing_or_broken_are_named(tmp_path: Path) -> None:
    checkpoint, config = save_detoxify(tmp_path)
    with pytest.raises(ModelError, match="no such checkpoint"):
        scorer(tmp_path / "none.ckpt", config).identity()
    with pytest.raises(ModelError, match=r"no config\.json"):
        scorer(checkpoint, tmp_path).identity()
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    with pytest.raises(ModelError):
        scorer(checkpoint, config).score(TEXTS)


def test_published_weights_that_can_not_be_had_name_a_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="not here and could not be fetched") as caught:
        Detoxify(Params(variant="unbiased")).identity()
    assert "toxic_debiased-c7548aa0.ckpt" in caught.value.remedy
    assert caught.value.exit_code == 3


def test_published_weights_are_fetched_once_under_their_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[tuple[str, str]] = []

    def fetch(url: str, path: str, hash_prefix: str, progress: bool) -> None:
        fetched.append((url, hash_prefix))
        Path(path).write_bytes(b"weights")

    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", fetch)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    _, config = save_detoxify(tmp_path / "made")
    made = Detoxify(Params(variant="original", config=config))
    assert made.identity() == made.identity()
    assert [prefix for _, prefix in fetched] == ["c1212f89"]


def test_without_a_config_folder_the_hub_s_cache_is_asked_and_the_way_out_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, _ = save_detoxify(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(ModelError, match="can't be fetched") as caught:
        Detoxify(Params(checkpoint=checkpoint)).identity()
    assert "config: FOLDER" in caught.value.remedy
