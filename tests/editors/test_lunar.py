"""LUNAR: the change is of rank one along the refusal's direction, and solves its least squares."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from safeedit.contracts import EditData, Proposal
from safeedit.data import Dataset, Item
from safeedit.delta import LowRank
from safeedit.editors.lunar import Lunar, LunarParams
from safeedit.errors import DataError, UsageError
from safeedit.model.handle import ModelHandle
from tests.editors import toy
from tests.editors.toy import FORGOTTEN, KEPT, UNKNOWN, WORDINGS
from tests.fixtures import context

LAYER = 1


def _questions(names: tuple[str, ...], name: str) -> Dataset:
    items = [
        Item(id=f"{who}-{n}", prompt=wording.format(who), split="fit")
        for who in names
        for n, wording in enumerate(WORDINGS[:4])
    ]
    return Dataset(items, name=name)


def _proposed(model: ModelHandle, folder: Path, refused: Dataset | None = None) -> Proposal:
    prose = Dataset([Item(id="0", prompt="and the city of the prince", split="fit")], name="prose")
    data = EditData(
        {
            "forget": toy.forget(),
            "refused": _questions(UNKNOWN, "refused") if refused is None else refused,
            "retain": _questions(KEPT, "retain"),
            "prose": prose,
        }
    )
    return Lunar(LunarParams(layers=[LAYER], ridge=1e-4)).propose(model, data, context(folder))


def test_forget_questions_move_towards_refused_ones_and_others_stay(tmp_path: Path) -> None:
    model = toy.taught()
    proposal = _proposed(model, tmp_path)
    delta = proposal.at(1.0)
    (site,) = model.sites("mlp_out", [LAYER])
    (update,) = delta.updates.values()
    assert isinstance(update, LowRank)
    assert update.left.shape[1] == 1

    def read(names: tuple[str, ...]) -> float:
        """How much of the direction is added, mean over last tokens."""
        prompts = model.engine.encode([w.format(n) for n in names for w in WORDINGS[:2]], "chat")
        found = dict(model.engine.activations(prompts, [site]))
        return sum(float(update.right[0] @ a[site][-1].float()) for a in found.values()) / len(
            found
        )

    assert read(FORGOTTEN) > 3 * abs(read(KEPT))
    assert proposal.notes["fires_at_forget"] > 3 * proposal.notes["fires_at_prose"]


def test_the_direction_leads_from_forget_to_refused(tmp_path: Path) -> None:
    model = toy.taught()
    engine = model.engine
    means = [
        torch.stack(
            engine.hidden(
                engine.encode([w.format(n) for n in names for w in WORDINGS[:4]], "chat"),
                [LAYER],
            )[LAYER]
        ).mean(0)
        for names in (UNKNOWN, FORGOTTEN)
    ]
    (update,) = _proposed(model, tmp_path).at(1.0).updates.values()
    assert isinstance(update, LowRank)
    cosine = torch.nn.functional.cosine_similarity(update.left[:, 0], means[0] - means[1], dim=0)
    assert float(cosine) > 0.9  # the wordings that are fitted are not quite these


def test_what_it_cannot_do_is_refused(tmp_path: Path) -> None:
    model = toy.taught()
    with pytest.raises(UsageError, match="one layer"):
        Lunar(LunarParams(layers="0-1")).touches(model.shape)
    late = Dataset([Item(id="0", prompt="Where?", split="validation")], name="refused")
    with pytest.raises(DataError, match="no refused question"):
        _proposed(model, tmp_path, late.without("test"))
