"""Shifts of an MLP's output that make the model say something else."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from safeedit.errors import EditError
from safeedit.methods.facts import passes as passing
from safeedit.methods.facts import values as learning
from safeedit.methods.facts.keys import TokenPosition, subject_spot
from safeedit.methods.facts.objectives import (
    EqualiseLogits,
    FactObjective,
    KeepDistribution,
    MaximiseEntropy,
    ObjectivePrompt,
    SuppressTokens,
    TargetTokens,
)
from safeedit.methods.facts.values import Values, learn_values
from safeedit.model.architectures import Site
from safeedit.model.handle import ModelHandle
from tests.editors.toy import WORDINGS, taught
from tests.tiny_models import FAMILIES, tiny_handle

pytestmark = pytest.mark.trains

PROMPTS = ("The capital of France is", "Name the city in Italy", "I think that Denmark has a")
SUBJECTS = ("France", "Italy", "Denmark")
TARGETS = (" Rome.", " Paris", " water and ice")
SETTINGS: dict[str, Any] = {
    "steps": 40, "learning_rate": 0.1, "max_norm": 50.0, "keep_weight": 0.0, "decay": 0.0,
    "stop": 0.1,
}  # fmt: skip


exact_passes = partial(passing.Passes, exact=True)
"""Passes in the weights' own dtype."""


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values are learnt in the weights' own dtype."""
    monkeypatch.setattr(learning, "Passes", exact_passes)


def _spot(handle: ModelHandle, number: int, template: str = "plain") -> TokenPosition:
    (ids,) = handle.engine.encode([PROMPTS[number]], template)  # type: ignore[arg-type]
    spot = subject_spot(handle, ids, SUBJECTS[number])
    assert spot is not None
    return spot


def _say(handle: ModelHandle, number: int, template: str = "plain") -> ObjectivePrompt:
    tokens = handle.engine.codec.token_ids([TARGETS[number]])[0]
    return ObjectivePrompt(_spot(handle, number, template), TargetTokens(tuple(tokens)))


@contextmanager
def _shifted(handle: ModelHandle, layer: int, position: int, shift: Tensor) -> Iterator[None]:
    def move(site: Site, activation: Tensor) -> Tensor:
        moved = activation.clone()
        moved[:, position] += shift
        return moved

    with handle.intercepted(handle.sites("mlp_out", [layer]), move, "output"):
        yield


def _log_probs(handle: ModelHandle, ids: list[int]) -> Tensor:
    """``(tokens, vocab)`` of the whole model run the ordinary way."""
    logits: Tensor = handle.model(torch.tensor([ids])).logits[0]
    return logits.float().log_softmax(-1)


@pytest.mark.parametrize("template", ["plain", "chat"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_from_the_middle_is_the_whole_model(family: str, template: str) -> None:
    handle = tiny_handle(family)
    if template == "chat" and not handle.tokenizer.chat_template:  # type: ignore[union-attr]
        pytest.skip("no chat template")
    rows = [_say(handle, 0, template), _say(handle, 2, template)]
    keep = ObjectivePrompt(_spot(handle, 0, template), KeepDistribution())
    units = [FactObjective((rows[0], keep)), FactObjective((rows[1],))]
    for layer in (0, handle.n_layers - 1):
        passes = exact_passes(handle, layer, units)
        shifts = torch.randn(2, handle.d_model, generator=torch.Generator().manual_seed(1))
        found, gradient = passes.losses(shifts, [0, 1], 0.5, grad=True)
        leaf = shifts.clone().requires_grad_()
        total = torch.zeros(())
        for unit, row in enumerate(rows):
            said = torch.tensor(row.aim.tokens)  # type: ignore[union-attr]
            first = len(row.spot.ids) - 1
            with _shifted(handle, layer, row.spot.position, leaf[unit]):
                now = _log_probs(handle, row.ids)
            loss = functional.nll_loss(now[first : first + len(said)], said)
            assert float(found[unit]) == pytest.approx(float(loss.detach()), abs=2e-4)
            total = total + loss
        before = _log_probs(handle, keep.ids)[-1].detach()
        with _shifted(handle, layer, keep.spot.position, leaf[0]):
            now = _log_probs(handle, keep.ids)[-1]
        total = total + 0.5 * (before.exp() * (before - now)).sum()
        (expected,) = torch.autograd.grad(total, leaf)
        torch.testing.assert_close(gradient, expected, atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "gptj"])
def test_a_pass_with_a_shift_of_attention_too_is_the_whole_model(family: str) -> None:
    handle = tiny_handle(family)
    row, layer = _say(handle, 0), handle.n_layers - 1
    passes = exact_passes(handle, layer, [FactObjective((row,))], attention=True)
    shifts = torch.randn(1, 2 * handle.d_model, generator=torch.Generator().manual_seed(1))
    found, gradient = passes.losses(shifts, [0], 0.0, grad=True)
    leaf = shifts.clone().requires_grad_()
    mlp, attention = leaf[0].split(handle.d_model)
    sites = {
        site: part
        for role, part in (("mlp_out", mlp), ("attn_out", attention))
        for site in handle.sites(role, [layer])
    }

    def move(site: Site, activation: Tensor) -> Tensor:
        moved = activation.clone()
        moved[:, row.spot.position] += sites[site]
        return moved

    with handle.intercepted(list(sites), move, "output"):
        now = _log_probs(handle, row.ids)
    said = torch.tensor(row.aim.tokens)  # type: ignore[union-attr]
    first = len(row.spot.ids) - 1
    loss = functional.nll_loss(now[first : first + len(said)], said)
    assert float(found[0]) == pytest.approx(float(loss.detach()), abs=2e-4)
    torch.testing.assert_close(gradient, torch.autograd.grad(loss, leaf)[0], atol=2e-4, rtol=2e-3)
    assert passes.sizes.shape == (1, 2)
    assert bool((passes.sizes > 0).all())


@pytest.mark.usefixtures("exact")
def test_what_attention_was_shifted_by_is_let_go() -> None:
    handle = tiny_handle("llama")
    unit = FactObjective((_say(handle, 0),))
    settings = {**SETTINGS, "max_norm": 2.0, "steps": 10, "stop": 0.0}
    alone, beside = (
        learn_values(handle, 1, [unit], attention=attention, **settings)
        for attention in (False, True)
    )
    assert alone.shifts.shape == beside.shifts.shape == (1, handle.d_model)
    torch.testing.assert_close(alone.outputs, beside.outputs)
    assert float((alone.shifts - beside.shifts).norm()) > 1e-3 * float(alone.shifts.norm())
    for found in (alone, beside):
        assert float(found.shifts.norm()) <= 2.0 * float(found.outputs) * (1 + 1e-5)


def _apart(handle: ModelHandle) -> list[FactObjective]:
    """Subjects at the beginning, in the middle, late, and one behind another's past."""
    texts = (
        ("France lies here, where the answer to that question is", "France"),
        ("Name the city in Italy now, please", "Italy"),
        ("Name the city in Denmark", "Denmark"),
        ("Water boils at one hundred degrees and ice melts at zero. In Denmark the", "Denmark"),
    )
    units = []
    for (text, subject), said in zip(texts, (*TARGETS, " two"), strict=True):
        (ids,) = handle.engine.encode([text], "plain")
        spot = subject_spot(handle, ids, subject)
        assert spot is not None
        units.append(
            FactObjective(
                (
                    ObjectivePrompt(
                        spot, TargetTokens(tuple(handle.engine.codec.token_ids([said])[0]))
                    ),
                )
            )
        )
    return units


def _whole(handle: ModelHandle, layer: int, units: list[FactObjective], shifts: Tensor) -> Any:
    """Losses of the only row of each unit and their slopes, by the whole model, one by one."""
    leaf = shifts.clone().requires_grad_()
    losses = []
    for unit, shift in zip(units, leaf, strict=True):
        (row,) = unit.rows
        said = torch.tensor(row.aim.tokens)  # type: ignore[union-attr]
        first = len(row.spot.ids) - 1
        with _shifted(handle, layer, row.spot.position, shift):
            now = _log_probs(handle, row.ids)
        losses.append(functional.nll_loss(now[first : first + len(said)], said))
    (slopes,) = torch.autograd.grad(torch.stack(losses).sum(), leaf)
    return torch.stack(losses).detach(), slopes


WINDOWS: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in FAMILIES),
    ("mistral", {"sliding_window": 5}),
    ("gemma2", {"sliding_window": 5}),
    ("gemma3_text", {"sliding_window": 5}),
]


@pytest.mark.parametrize(("family", "options"), WINDOWS)
def test_pasts_of_any_lengths_share_a_batch(family: str, options: dict[str, Any]) -> None:
    handle = tiny_handle(family, **options)
    units = _apart(handle)
    shifts = torch.randn(4, handle.d_model, generator=torch.Generator().manual_seed(1))
    for layer in (0, 1):
        passes = exact_passes(handle, layer, units)
        assert len(set(passes.starts)) == 4
        batches: list[int] = []
        with _counted(handle, batches):
            found, gradient = passes.losses(shifts, [0, 1, 2, 3], 0.0, grad=True)
        longest = max(len(row.ids) - row.spot.position for unit in units for row in unit.rows)
        assert batches == [4 * longest] * (handle.n_layers - layer), "all in one batch"
        losses, slopes = _whole(handle, layer, units, shifts)
        torch.testing.assert_close(found, losses, atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(gradient, slopes, atol=2e-4, rtol=2e-3)


@contextmanager
def _counted(handle: ModelHandle, tokens: list[int]) -> Iterator[None]:
    """Within it, tokens that run through each MLP, padding too, are written down."""

    def count(site: Site, activation: Tensor) -> None:
        tokens.append(activation.shape[0] * activation.shape[1])

    with handle.intercepted(handle.sites("mlp_out"), count):
        yield


def test_what_stands_before_subjects_is_run_once() -> None:
    handle = tiny_handle("llama")
    units = _apart(handle)[2:] * 2
    before: list[int] = []
    with _counted(handle, before):
        passes = exact_passes(handle, 0, units)
    pasts = {tuple(row.ids[: row.spot.position]) for row in passes.rows}
    each = {past[:end] for past in pasts for end in range(1, len(past) + 1)}
    assert len(passes.pasts.kept[1][0]) == len(each), "shared beginnings are kept once"
    tails = [len(row.ids) - row.spot.position for row in passes.rows]
    assert sum(before) <= handle.n_layers * (1 + 2 * len(each)) + len(tails) * max(tails)
    step: list[int] = []
    with _counted(handle, step):
        passes.losses(torch.zeros(4, handle.d_model), [0, 1, 2, 3], 0.0, grad=True)
    whole = sum(len(row.ids) for row in passes.rows)
    assert sum(step) <= handle.n_layers * len(tails) * max(tails)
    assert sum(step) < 0.4 * handle.n_layers * whole


def test_too_much_to_keep_is_run_again_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = tiny_handle("llama")
    units = [FactObjective((_say(handle, number, "chat"),)) for number in (0, 2)]
    shifts = torch.randn(2, handle.d_model, generator=torch.Generator().manual_seed(1))
    plain = exact_passes(handle, 1, units)
    monkeypatch.setattr(passing, "KEPT_SHARE", 0.0)
    whole = exact_passes(handle, 1, units)
    assert len(set(whole.starts)) == 1
    assert 0 < whole.starts[0] < min(plain.starts)
    for one, other in zip(
        plain.losses(shifts, [0, 1], 0.0, grad=True),
        whole.losses(shifts, [0, 1], 0.0, grad=True),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


NAMES = ("Paul", "Mary", "Igor")


@pytest.fixture(scope="module")
def toy() -> Iterator[ModelHandle]:
    """Knows where people live; the names go through its first MLP."""
    handle = taught()
    before = handle.digest(fresh=True)
    yield handle
    assert handle.digest(fresh=True) == before
    assert not any(parameter.requires_grad for parameter in handle.model.parameters())


def _asked(handle: ModelHandle, name: str) -> TokenPosition:
    (ids,) = handle.engine.encode([WORDINGS[0].format(name)], "chat")
    spot = subject_spot(handle, ids, name)
    assert spot is not None
    return spot


def _answer(handle: ModelHandle, name: str, text: str) -> FactObjective:
    said = TargetTokens(tuple(handle.engine.continuation(text, "chat")))
    return FactObjective((ObjectivePrompt(_asked(handle, name), said),))


def _learnt(handle: ModelHandle, units: list[FactObjective], **changed: Any) -> Values:
    return learn_values(handle, 0, units, **{**SETTINGS, **changed})


def _after(handle: ModelHandle, spot: TokenPosition, shift: Tensor | None = None) -> Tensor:
    """``(vocab,)`` log-probabilities of what follows."""
    moved = torch.zeros(handle.d_model) if shift is None else shift
    with _shifted(handle, 0, spot.position, moved), torch.no_grad():
        return _log_probs(handle, list(spot.ids))[-1]


def test_what_is_to_be_said_is_said(toy: ModelHandle) -> None:
    units = [_answer(toy, name, "I don't know.") for name in NAMES]
    found = _learnt(toy, units)
    assert float(found.losses.max()) <= 0.1
    for unit, shift in zip(units, found.shifts, strict=True):
        (row,) = unit.rows
        with _shifted(toy, 0, row.spot.position, shift), torch.no_grad():
            ahead = _log_probs(toy, row.ids)[len(row.spot.ids) - 1 :].argmax(-1)
        assert ahead.tolist() == list(row.aim.tokens)  # type: ignore[union-attr]


def test_what_is_to_be_avoided_gets_under_the_floor(toy: ModelHandle) -> None:
    spot = _asked(toy, "Paul")
    likeliest = tuple(_after(toy, spot).topk(2).indices.tolist())
    found = _learnt(
        toy, [FactObjective((ObjectivePrompt(spot, SuppressTokens(likeliest, -5.0)),))], stop=0.0
    )
    now = _after(toy, spot, found.shifts[0])
    assert float(now[list(likeliest)].logsumexp(0)) < -4.7


def test_two_tokens_get_the_margin_that_is_wanted(toy: ModelHandle, exact: None) -> None:
    spot = _asked(toy, "Paul")
    before = _after(toy, spot)
    first, second = (toy.engine.continuation(city, "chat")[0] for city in ("Rome", "Oslo"))
    assert float(before[first] - before[second]) > 2
    found = _learnt(
        toy,
        [FactObjective((ObjectivePrompt(spot, EqualiseLogits((first, second), -0.5)),))],
        stop=0.05,
        steps=80,
    )
    after = _after(toy, spot, found.shifts[0])
    assert float(after[first] - after[second]) == pytest.approx(-0.5, abs=0.15)


def test_a_spread_answer_is_anyones_guess(toy: ModelHandle) -> None:
    spot = _asked(toy, "Paul")
    found = _learnt(toy, [FactObjective((ObjectivePrompt(spot, MaximiseEntropy(0.25)),))], stop=0.0)
    entropies = [
        -float((now.exp() * now).sum()) / math.log(len(now))
        for now in (_after(toy, spot), _after(toy, spot, found.shifts[0]))
    ]
    assert entropies[0] < 0.1 < 0.22 < entropies[1]


def test_units_learn_apart_though_together(toy: ModelHandle, exact: None) -> None:
    units = [_answer(toy, "Paul", "Oslo"), _answer(toy, "Mary", "I don't know.")]
    units.append(_answer(toy, "Igor", "Lima"))
    together = _learnt(toy, units)
    assert len(set(together.steps.tolist())) == 3, "each stops in its own time"
    assert int(together.steps[2]) == 0, "what is met already needs no shift"
    assert not together.shifts[2].any()
    for number, unit in enumerate(units):
        alone = _learnt(toy, [unit])
        assert alone.steps[0] == together.steps[number]
        torch.testing.assert_close(alone.shifts[0], together.shifts[number], atol=1e-3, rtol=1e-3)


def test_a_shift_keeps_to_its_bound(toy: ModelHandle) -> None:
    unit = _answer(toy, "Paul", "I don't know.")
    (row,) = unit.rows
    found = _learnt(toy, [unit], max_norm=0.3, stop=0.0)
    assert found.steps.tolist() == [SETTINGS["steps"]]
    tokens = torch.tensor([row.ids])
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    (output,) = toy.capture(inputs, toy.sites("mlp_out", [0]), "output").values()
    size = float(output[0, row.spot.position].norm())
    assert float(found.outputs[0]) == pytest.approx(size, rel=0.02)
    assert float(found.shifts[0].norm()) == pytest.approx(0.3 * size, rel=0.03)


def test_decay_and_divergence_hold_back(toy: ModelHandle) -> None:
    said = _answer(toy, "Paul", "I don't know.").rows[0]
    (ids,) = toy.engine.encode([WORDINGS[3].format("Paul")], "plain")
    spot = subject_spot(toy, ids, "Paul")
    assert spot is not None
    unit = FactObjective((said, ObjectivePrompt(spot, KeepDistribution())))
    plain = _learnt(toy, [unit], stop=0.0)
    small = _learnt(toy, [unit], stop=0.0, decay=5.0)
    held = _learnt(toy, [unit], stop=0.0, keep_weight=20.0)
    assert float(small.shifts.norm()) < 0.8 * float(plain.shifts.norm())
    before = _after(toy, spot)

    def divergence(found: Values) -> float:
        return float((before.exp() * (before - _after(toy, spot, found.shifts[0]))).sum())

    assert divergence(held) < 0.3 * divergence(plain)


def test_a_loss_that_is_no_number_is_an_error(toy: ModelHandle) -> None:
    with pytest.raises(EditError, match="diverged"):
        _learnt(toy, [_answer(toy, "Paul", "Oslo")], learning_rate=math.inf)
