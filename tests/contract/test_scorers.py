"""What every scorer promises, checked on every scorer there is."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from safeedit import catalog
from safeedit.contracts import BaseParams, Scorer
from tests.scorers.tiny import TEXTS, save_classifier, save_detoxify

SCORERS = catalog.names("scorers")


def made(name: str, folder: Path) -> Scorer:
    """The scorer, offline. A new one adds its parameters here."""
    params: dict[str, Any] = {}
    if name == "classifier":
        params = {"source": str(save_classifier(folder / "classifier"))}
    if name == "detoxify":
        checkpoint, config = save_detoxify(folder / "detoxify")
        params = {"checkpoint": checkpoint, "config": config}
    if name == "profanity" and importlib.util.find_spec("profanity_check") is None:
        pytest.skip("the extra is not installed")
    kind = catalog.scorer(name)
    return kind(kind.Params(**params))


def test_there_are_scorers() -> None:
    assert {"classifier", "detoxify", "hostility", "profanity"} <= set(SCORERS)


@pytest.mark.parametrize("name", SCORERS)
def test_it_keeps_the_protocol(name: str) -> None:
    kind = catalog.scorer(name)
    assert isinstance(kind(kind.Params()), Scorer)
    assert issubclass(kind.Params, BaseParams)
    assert len(kind.summary.splitlines()) == len(kind.blind_to.splitlines()) == 1
    assert all(field.description for field in kind.Params.model_fields.values())


@pytest.mark.parametrize("name", SCORERS)
def test_scores_are_probabilities_in_the_order_of_the_texts(name: str, tmp_path: Path) -> None:
    scorer = made(name, tmp_path)
    found = scorer.score(TEXTS)
    assert len(found) == len(TEXTS)
    assert all(isinstance(score, float) and 0 <= score <= 1 for score in found)
    assert scorer.score(TEXTS[::-1]) == pytest.approx(found[::-1], abs=1e-6)
    assert scorer.score(["a 🙂 \n", "‏مرحبا", "x" * 5000])


@pytest.mark.parametrize("name", SCORERS)
def test_its_identity_stays_and_tells_its_name(name: str, tmp_path: Path) -> None:
    one, again = made(name, tmp_path).identity(), made(name, tmp_path).identity()
    assert one == again
    assert one.name.split()[0] == name
    assert one.version
    assert len(one.digest) == 64
    assert str(tmp_path) not in str(one)


@pytest.mark.parametrize("name", SCORERS)
def test_progress_counts_texts(name: str, tmp_path: Path) -> None:
    seen: list[int | None] = []

    def progress(items: Any, description: str, total: int | None = None) -> Any:
        rows = list(items)
        assert len(rows) == total
        seen.append(total)
        return iter(rows)

    made(name, tmp_path).score(TEXTS, progress)
    assert seen == [len(TEXTS)]
