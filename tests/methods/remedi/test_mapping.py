"""The affine map: what it learns holds for names and attributes it was not taught."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from safeedit.contracts import silent
from safeedit.errors import DataError, EditError, ModelError, UsageError
from safeedit.methods.remedi.examples import (
    AttributeExample,
    attribute_states,
    entity_spots,
    lesson,
    opposite,
)
from safeedit.methods.remedi.mapping import Remedi, Scaling
from safeedit.methods.remedi.steering import Steer, steering
from safeedit.methods.remedi.training import MapTraining, TrainingConfig, not_said, train
from safeedit.model import batching
from safeedit.model.handle import ModelHandle
from safeedit.model.spans import TokenisedText
from tests.editors.gendered import gendered
from tests.model.named import held_out, taught
from tests.tiny_models import FAMILIES, tiny_handle

pytestmark = pytest.mark.trains

QUICK = TrainingConfig(epochs=12, patience=12, learning_rate=1e-2, keep=0.1, held_out=0.25)


@cache
def model() -> ModelHandle:
    return gendered("llama", clear=True, carried=True)


@cache
def learnt(how: TrainingConfig = QUICK) -> Remedi:
    before = model().digest(fresh=True)
    found = train(model(), taught(), 0, "plain", how)
    assert model().digest(fresh=True) == before
    assert not any(p.requires_grad for p in model().model.parameters())
    return found


def odds(
    handle: ModelHandle, lessons: Sequence[AttributeExample], steered_by: Remedi | None = None
) -> list[float]:
    """log p(target) - log p(other) after each lesson's prompt."""
    engine, found = handle.engine, []
    for one in lessons:
        ids = engine.encode([one.prompt], "plain")
        target, other = (engine.continuation(w, "plain")[0] for w in (one.target, str(one.other)))
        steers = steered_by.learnt_of(handle, [one]) if steered_by is not None else []
        with steering(handle, steers):
            (row,) = engine.next_token_log_probs(ids)
        found.append(float(row[target] - row[other]))
    return found


@pytest.mark.parametrize("own", [QUICK.own, (0.0,)])
def test_held_out_names_and_attributes_are_steered_the_right_way(own: tuple[float, ...]) -> None:
    found = learnt(replace(QUICK, own=own))
    before, after = (torch.tensor(odds(model(), held_out(), by)) for by in (None, found))
    assert float((after > before).double().mean()) == 1
    assert float((after - before).mean()) > 2
    assert found.notes["loss_after"] < found.notes["loss_before"] - 1


def test_the_first_layers_are_not_run_again_and_that_changes_no_loss() -> None:
    school = MapTraining(model(), taught()[:4], 1, "plain", QUICK, silent)
    shifts = torch.randn(4, model().d_model, generator=torch.Generator().manual_seed(1))
    shifted = school.shifted(school.spots, shifts)
    whole, spot = learnt(), school.spots[0]
    steer = replace(whole.learnt_of(model(), taught()[:1])[0], layer=1, shift=shifts[0])
    with steering(model(), [steer]):
        wanted = model().forward({"input_ids": torch.tensor([list(spot.ids)])})[0]
    assert torch.allclose(shifted[0, : len(spot.ids)], wanted, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_counts_every_position_of_every_lesson(family: str) -> None:
    """Against a plain loop over whole passes."""
    handle = tiny_handle(family)
    given = [
        AttributeExample(
            "Anita", "Anita knows Rome", "knows Rome", "Anita is in the city of", "Rome", "x"
        ),
        AttributeExample("Zyxo", "Zyxo asks a lot", "asks a lot", "Who is Zyxo", "late", None),
    ]
    how = TrainingConfig(keep=0.7, avoid=0.5, held_out=0)
    school = MapTraining(handle, given, 0, "plain", how, silent)
    inputs = torch.randn(2, handle.d_model, generator=torch.Generator().manual_seed(2))
    trained = [torch.eye(handle.d_model) * 0.3, torch.full((handle.d_model,), 0.1)]
    with torch.no_grad():
        found = school.losses(trained, inputs, [0, 1])
    for row, (one, spot) in enumerate(
        zip(given, entity_spots(handle, given, "plain"), strict=True)
    ):
        shift = (inputs[row] * 0.3 + 0.1) * school.unit
        ids = torch.tensor([list(spot.ids)])
        with torch.no_grad():
            was = handle.model(input_ids=ids).logits[0].double().log_softmax(-1)
            with steering(handle, [Steer(one.subject, 0, shift)]):
                now = handle.model(input_ids=ids).logits[0].double().log_softmax(-1)
        target = handle.engine.continuation(one.target, "plain")[0]
        wanted = -float(now[-1, target])
        if one.other is not None:
            other = handle.engine.continuation(one.other, "plain")[0]
            wanted -= 0.5 * math.log1p(-math.exp(float(now[-1, other])))
        for t in range(spot.position, len(spot.ids) - 1):
            wanted += 0.7 * float((was[t].exp() * (was[t] - now[t])).sum())
        assert float(found[row]) == pytest.approx(wanted, abs=2e-3)


def test_in_chunks_the_loss_and_its_gradient_are_those_of_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    school = MapTraining(model(), taught()[:5], 0, "plain", QUICK, silent)
    inputs = torch.randn(5, model().d_model, generator=torch.Generator().manual_seed(2))
    trained = [torch.eye(model().d_model) * 0.3, torch.full((model().d_model,), 0.1)]

    def found() -> list[torch.Tensor]:
        own = [tensor.clone().requires_grad_() for tensor in trained]
        losses = school.losses(own, inputs, range(5))
        return [losses, *torch.autograd.grad(losses.mean(), own)]

    whole = found()
    monkeypatch.setattr(batching, "MAX_LOGITS", 9 * model().shape.vocab_size)
    parts = found()
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_not_saying_a_word_is_finite_where_it_is_certain() -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    found = not_said(logits, torch.tensor([0, -1]))
    assert float(found[0].detach()) == pytest.approx(200 - math.log(2), abs=1e-3)
    assert found[1] == 0
    found.sum().backward()
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())


def test_the_best_state_is_kept_and_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    handle, lessons = tiny_handle("llama"), taught()[::8]
    losses = iter([5.0, 4.0, 6.0, 7.0])
    kept: list[list[torch.Tensor]] = []

    def loss(self: MapTraining, trained: list[torch.Tensor], *rest: object) -> float:
        kept.append([tensor.detach().clone() for tensor in trained])
        return next(losses)

    monkeypatch.setattr(MapTraining, "mean_loss", loss)
    how = TrainingConfig(batch=2, learning_rate=1e-2, own=(0.0,))
    school = MapTraining(handle, lessons, 0, "plain", how, silent)
    factors, _, notes = school.learn()
    assert (notes["epochs"], notes["loss_after"]) == (3, 4.0)
    ratio = factors[0] / school.unit
    assert torch.allclose(ratio, kept[1][0])
    assert not torch.allclose(kept[3][0], kept[1][0])


def test_the_map_begins_with_as_much_of_the_attributes_own_states_as_lessons_want(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MapTraining, "mean_loss", lambda self, *rest: 1 + abs(self.own - 0.6))
    handle, lessons = tiny_handle("llama"), taught()[::4]
    how = replace(QUICK, own=(0.0, 0.5, 2.0), patience=1, epochs=1)
    found = train(handle, lessons, 0, "plain", how)
    assert (found.own, found.notes["own"]) == (0.5, 0.5)
    states = attribute_states(handle, lessons, 0)
    assert torch.allclose(found(states), 0.5 * (states - states.mean(0)), atol=1e-4)


def test_with_few_lessons_the_map_is_of_low_rank_and_otherwise_full() -> None:
    assert learnt().notes["rank"] == 32  # d_model: there are more lessons
    few = train(model(), taught()[::6], 0, "plain", replace(QUICK, held_out=0.0, epochs=2))
    assert [tuple(factor.shape) for factor in few.factors] == [(32, 11), (11, 32)]


def test_a_saved_map_is_the_same_and_says_what_it_is_for(tmp_path: Path) -> None:
    file = tmp_path / "map.safetensors"
    learnt().save(file)
    again = Remedi.load(file)
    states = attribute_states(model(), held_out(), 0)
    assert torch.equal(again(states), learnt()(states))
    assert (again.layer, again.probe_layer, again.notes) == (
        learnt().layer, learnt().probe_layer, learnt().notes,
    )  # fmt: skip
    again.check(model())
    with pytest.raises(ModelError, match="trained on other weights"):
        again.check(tiny_handle("llama", seed=4))
    assert [path.name for path in tmp_path.iterdir()] == ["map.safetensors"]
    with pytest.raises(ModelError, match="does not exist"):
        Remedi.load(tmp_path / "none.safetensors")
    save_file(load_file(file), file)  # without its header
    with pytest.raises(ModelError, match="cannot read"):
        Remedi.load(file)
    file.write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="cannot read"):
        Remedi.load(file)


def test_scores_are_inner_products_of_standardised_states() -> None:
    one = learnt()
    states, directions = torch.randn(3, 32), torch.randn(3, 2, 32)
    z = (states - one.entities.mean) / one.entities.spread
    y = (directions - one.directions.mean) / one.directions.spread
    assert torch.allclose(one.scores(states, directions)[2, 1], z[2] @ y[2, 1], rtol=1e-4)
    flat = Scaling.of(torch.tensor([[1.0, 2.0], [3.0, 2.0]]))
    assert bool(torch.isfinite(flat(torch.tensor([[1.0, 2.5]]))).all())


def test_an_attribute_is_the_mean_over_its_tokens() -> None:
    handle = tiny_handle("gpt2")
    given = AttributeExample(
        "Anita", "Anita knows the city of Rome", "knows the city", "Anita", "x"
    )
    (ids,) = handle.engine.encode([given.context], "plain")
    (span,) = TokenisedText(handle.engine.codec.tokenizer, ids).spans("knows the city")
    assert len(span) > 1
    assert handle.engine.decode([ids[i] for i in span]).strip() == "knows the city"
    (hidden,) = handle.engine.hidden([ids], [1], "all")[1]
    assert torch.allclose(attribute_states(handle, [given], 1)[0], hidden[list(span)].mean(0))


def test_rows_become_lessons_both_ways() -> None:
    row = {"context": "Anita bakes bread", "attribute": "bakes bread", "target": "baker",
           "other": "judge", "other_attribute": "decides cases"}  # fmt: skip
    one = lesson("Anita", "Anita works as a", row)
    two = opposite(one, row)
    assert two is not None
    assert (two.context, two.target, two.other) == ("Anita decides cases", "judge", "baker")
    assert opposite(one, {}) is None
    for missing in ("context", "attribute", "target"):
        with pytest.raises(DataError, match=missing):
            lesson("Anita", "Anita works as a", {**row, missing: " "})
    with pytest.raises(DataError, match="does not stand in its context"):
        lesson("Anita", "Anita works as a", {**row, "attribute": "sells bread"})
    with pytest.raises(DataError, match="subject"):
        lesson(None, "Anita works as a", row)


def test_what_cannot_be_learnt_is_said_without_the_data() -> None:
    handle = tiny_handle("llama")
    with pytest.raises(UsageError, match="the last"):
        train(handle, taught(), 2, "plain", QUICK)
    with pytest.raises(DataError, match="too few"):
        train(handle, taught()[:1], 0, "plain", QUICK)
    lost = [replace(one, prompt="Nobody says") for one in taught()]
    with pytest.raises(DataError, match="64 of 64 prompts do not mention") as caught:
        train(handle, lost, 0, "plain", QUICK)
    assert "Anita" not in str(caught.value)
    with pytest.raises(EditError, match="learnt nothing"):
        train(
            handle,
            taught()[::8],
            0,
            "plain",
            replace(QUICK, learning_rate=1e-12, epochs=1, own=(0.0,)),
        )
