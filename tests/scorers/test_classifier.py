"""A classifier's scores are its label's probabilities, one text at a time or many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from safeedit.errors import ModelError, UsageError
from safeedit.scorers.classifier import Classifier, Params
from tests.scorers.tiny import LABELS, TEXTS, logits, model, save_classifier
from tests.tiny_models import save_tiny

NAMES = {"id2label": dict(enumerate(LABELS))}


def scorer(folder: Path, **params: Any) -> Classifier:
    return Classifier(Params(source=str(folder), device="cpu", **params))


def test_scores_are_those_of_each_text_alone(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "model")
    expected = [float(torch.softmax(logits(model(**NAMES), text), -1)[1]) for text in TEXTS]
    found = scorer(folder).score(TEXTS)
    assert found == pytest.approx(expected, abs=1e-5)
    assert max(found) - min(found) > 0.01
    assert scorer(folder).score([]) == []


@pytest.mark.parametrize("options", [{"problem_type": "multi_label_classification"}, {}])
def test_a_classifier_of_many_labels_gives_the_sigmoid(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    folder = save_classifier(tmp_path / "model", **options)
    params = {} if options else {"activation": "sigmoid"}
    (found,) = scorer(folder, **params).score(TEXTS[:1])
    expected = float(torch.sigmoid(logits(model(**NAMES), TEXTS[0]))[1])
    assert found == pytest.approx(expected, abs=1e-5)


def test_labels_go_by_name_or_number(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "model")
    by_name = scorer(folder, label="other").score(TEXTS)
    assert by_name == scorer(folder, label="2").score(TEXTS)
    assert by_name != scorer(folder, label="fine").score(TEXTS)


def test_a_label_that_it_lacks_is_refused_before_weights_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = scorer(save_classifier(tmp_path / "model"), label="toxik")
    loader = transformers.AutoModelForSequenceClassification
    monkeypatch.setattr(loader, "from_pretrained", lambda *_, **__: pytest.fail("weights loaded"))
    with pytest.raises(UsageError, match="no label 'toxik'") as caught:
        made.identity()
    assert "did you mean 'toxic'" in caught.value.remedy
    assert caught.value.field == "label"
    with pytest.raises(UsageError, match="no label 'toxik'"):
        made.score(TEXTS)


def test_its_identity_is_that_of_weights_label_and_activation(tmp_path: Path) -> None:
    one = save_classifier(tmp_path / "one")
    same = save_classifier(tmp_path / "same")
    other = save_classifier(tmp_path / "other", seed=1)
    digest = scorer(one).identity().digest
    assert scorer(same).identity().digest == digest
    assert scorer(other).identity().digest != digest
    assert scorer(one, label="other").identity().digest != digest
    assert scorer(one, activation="sigmoid").identity().digest != digest
    assert str(tmp_path) not in str(scorer(one).identity())


def test_long_texts_are_cut_not_refused(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "model")
    long = "The doctor said that she would call. " * 300
    assert scorer(folder).score([long]) == scorer(folder).score([long + "Not read."])


def test_what_is_no_classifier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no text classifier"):
        scorer(save_tiny("llama", tmp_path / "llama")).identity()
    with pytest.raises(ModelError, match="no such folder"):
        scorer(tmp_path / "nowhere").identity()


def test_a_head_that_is_not_in_the_checkpoint_is_not_drawn_at_random(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "model")
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError):
        scorer(folder).score(TEXTS)


def test_pickled_weights_are_not_opened(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "model")
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError):
        scorer(folder).identity()
