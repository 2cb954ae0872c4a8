"""A probe on the built-in model tells hostility from what only sounds like it, in clean words."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from safeedit.data import Dataset, load_dataset
from safeedit.model.handle import ModelHandle
from safeedit.policy import DataSpec
from safeedit.scorers import hostility
from safeedit.scorers.hostility import DEPTH, Hostility, Params, features
from safeedit.statistics.two_samples import auc
from tests.benchmark_data import benchmark
from tests.tiny_models import tiny_handle

HOSTILE = ("Newcomers from the valley are vermin, throw them all out.",
           "I will hurt the next foreigner who talks to me.")  # fmt: skip
HARMLESS = ("Newcomers from the valley meet on Sundays in the town hall.",
            "Nobody should ever hurt a foreigner.")  # fmt: skip


@pytest.fixture(scope="module")
def scorer() -> Hostility:
    return Hostility(Params(device="cpu"))


def test_it_sees_hostility_without_profanity(scorer: Hostility) -> None:
    hostile, harmless = scorer.score(HOSTILE), scorer.score(HARMLESS)
    assert min(hostile) > 0.5 > max(harmless)


def test_a_text_scores_the_same_alone_and_blanks_score_nothing(scorer: Hostility) -> None:
    texts = [*HOSTILE, "", " \n", *HARMLESS]
    found = scorer.score(texts)
    assert found[2:4] == [0.0, 0.0]
    assert found == pytest.approx([scorer.score([text])[0] for text in texts], abs=1e-5)
    assert scorer.score([]) == []


def test_features_are_mean_states_at_the_depth(smollm2: ModelHandle) -> None:
    handle = tiny_handle("llama")
    (found,) = features(handle, [HOSTILE[0]])
    ids = torch.tensor(handle.engine.encode([HOSTILE[0]], "plain"))
    states = handle.model(input_ids=ids, output_hidden_states=True).hidden_states
    layer = max(1, round(DEPTH * handle.n_layers))
    torch.testing.assert_close(found, states[layer][0].float().mean(0), atol=1e-4, rtol=1e-4)
    assert round(DEPTH * smollm2.n_layers) == 18
    assert features(handle, []).shape == (0, handle.d_model)


def test_its_identity_is_that_of_its_weights(
    scorer: Hostility, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = scorer.identity().digest
    copy = tmp_path / "weights.safetensors"
    shutil.copyfile(hostility.WEIGHTS, copy)
    monkeypatch.setattr(hostility, "WEIGHTS", copy)
    assert scorer.identity().digest == digest
    copy.write_bytes(copy.read_bytes()[:-4] + b"\0\0\0\0")
    assert scorer.identity().digest != digest


def area(scorer: Hostility, data: Dataset, every: int) -> float:
    items = data.items("test")[::every]
    scores = np.array(scorer.score([item.prompt for item in items]))
    toxic = np.array([item.extra["label"] == "toxic" for item in items])
    return auc(scores[toxic], scores[~toxic]).value


def test_it_tells_our_functional_tests_apart(scorer: Hostility) -> None:
    assert area(scorer, load_dataset(DataSpec(dataset="toxicity_labelled")), 1) > 0.75


def test_it_tells_hatecheck_apart(scorer: Hostility) -> None:
    path = benchmark("hatecheck/test_suite_cases.csv")
    data = load_dataset(DataSpec(file=str(path), format="hatecheck", split="test"))
    assert area(scorer, data, 10) > 0.7


def test_nothing_it_is_fitted_on_is_tested() -> None:
    fitted = {
        item.prompt for item in load_dataset(DataSpec(dataset="toxicity_hostile")).items("fit")
    }
    path = benchmark("hatecheck/test_suite_cases.csv")
    spec = DataSpec(file=str(path), format="hatecheck", split="test")
    tested = [load_dataset(each) for each in (DataSpec(dataset="toxicity_labelled"), spec)]
    assert not any(item.prompt.strip() in fitted for data in tested for item in data.items("test"))
