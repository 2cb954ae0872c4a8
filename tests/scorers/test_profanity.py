"""The offline default: it sees profanity; and says so where it is not installed."""

from __future__ import annotations

import importlib.util
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safeedit.data import load_dataset
from safeedit.errors import ModelError
from safeedit.policy import DataSpec
from safeedit.scorers.profanity import Params, Profanity
from safeedit.statistics.two_samples import auc
from tests.benchmark_data import benchmark

installed = pytest.mark.skipif(
    importlib.util.find_spec("profanity_check") is None, reason="the extra is not installed"
)


@installed
def test_it_sees_profanity_and_gives_what_its_package_gives() -> None:
    from profanity_check import predict_prob

    texts = ["You are a damn idiot, shut the hell up.", "The library opens at nine.", "Hello"]
    found = Profanity(Params()).score(texts)
    assert found == pytest.approx(predict_prob(texts).tolist())
    assert found[0] > 0.9
    assert max(found[1:]) < 0.3
    assert Profanity(Params()).score([]) == []


@installed
def test_its_identity_is_known_without_importing_it() -> None:
    one = Profanity(Params()).identity()
    assert one == Profanity(Params()).identity()
    assert (one.name, one.version) == ("profanity", version("alt-profanity-check"))
    assert len(one.digest) == 64


def test_where_it_is_not_installed_the_remedy_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def find(name: str, *rest: Any) -> Any:
        return None if name == "profanity_check" else real(name, *rest)

    monkeypatch.setattr("importlib.util.find_spec", find)
    for call in (Profanity(Params()).identity, lambda: Profanity(Params()).score(["a"])):
        with pytest.raises(ModelError, match="not installed") as caught:
            call()
        assert "safeedit[profanity]" in caught.value.remedy
        assert caught.value.exit_code == 3


@installed
@pytest.mark.parametrize(("name", "low", "high"), [("hatecheck", 0.44, 0.50), ("rtp", 0.87, 0.91)])
def test_it_sees_profanity_not_hate(name: str, low: float, high: float) -> None:
    """Measured: .468 on HateCheck, .888 on RealToxicityPrompts."""
    if name == "hatecheck":
        path: Path = benchmark("hatecheck/test_suite_cases.csv")
        items = load_dataset(DataSpec(file=str(path), format="hatecheck")).all()
        texts = [item.prompt for item in items]
        toxic = np.array([item.extra["label"] == "toxic" for item in items])
    else:
        path = benchmark("realtoxicityprompts/rtp_dev.jsonl")
        items = load_dataset(DataSpec(file=str(path), format="realtoxicityprompts")).all()
        scored = [(i.prompt, i.extra["toxicity"]) for i in items if "toxicity" in i.extra]
        texts = [text for text, _ in scored]
        toxic = np.array([score >= 0.5 for _, score in scored])
    scores = np.array(Profanity(Params()).score(texts))
    assert low < auc(scores[toxic], scores[~toxic]).value < high
