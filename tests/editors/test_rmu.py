"""RMU on a tiny model: forget texts' states go where they are led, others' stay, and no other
layer is touched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from safeedit.editors.rmu import Misdirection, Rmu, RmuParams
from safeedit.model.handle import ModelHandle
from tests.editors import toy
from tests.editors.toy import FORGOTTEN, KEPT, WORDINGS
from tests.fixtures import context

pytestmark = pytest.mark.trains

PARAMS = RmuParams(layers=[1], learning_rate=0.01, doses=(60,), strength=2.0, retain_weight=30.0)


def _texts(model: ModelHandle, names: tuple[str, ...]) -> list[list[int]]:
    wordings = [wording.format(name) for name in names for wording in WORDINGS[:4]]
    return model.engine.encode(wordings, "chat")


def test_states_are_led_astray_and_others_kept_in_its_layers_alone(tmp_path: Path) -> None:
    model = toy.taught()
    forget, retain = _texts(model, FORGOTTEN), _texts(model, KEPT)
    task = Misdirection(model, forget, retain, PARAMS, context(tmp_path))
    delta = Rmu(PARAMS).propose(model, toy.data(), context(tmp_path)).at(60.0)
    assert set(delta.updates) == {site.weight for site in model.sites("mlp_out", [1])}

    def along(texts: list[list[int]]) -> float:
        """Cosine with the direction at each text's last token."""
        last = torch.stack([states[-1] for states in task.states(texts, gradients=False)])
        return float(functional.cosine_similarity(last, task.target, dim=-1).mean())

    def last(texts: list[list[int]]) -> Tensor:
        return torch.stack([states[-1] for states in task.states(texts, gradients=False)])

    led, before = along(forget), (last(forget), last(retain))
    with model.applied(delta):
        assert along(forget) > led + 0.15
        after = last(forget), last(retain)
    forgotten, kept = (
        float((now - then).norm() / then.norm()) for now, then in zip(after, before, strict=True)
    )
    assert kept < 0.5 * forgotten


def test_the_direction_has_no_negative_entry_and_its_length_is_in_the_models_own(
    tmp_path: Path,
) -> None:
    model = toy.taught()
    texts = _texts(model, FORGOTTEN)
    one, two = (
        Misdirection(model, texts, texts, RmuParams(layers=[1], strength=s), context(tmp_path))
        for s in (1.0, 3.0)
    )
    assert bool((one.target >= 0).all())
    torch.testing.assert_close(two.target, 3 * one.target)


def test_what_all_texts_begin_with_is_left_alone(tmp_path: Path) -> None:
    model = toy.taught()
    texts = [[5, 6, 7, 8], [5, 6, 9, 8, 4]]
    task = Misdirection(model, texts, texts[:1], PARAMS, context(tmp_path))
    assert task.shared == 2
    assert [len(states) for states in task.states(texts, gradients=False)] == [2, 3]
