"""DEPN's theorem, completeness, in every family; and that all the speed changes no figure."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from safeedit.errors import EditError, UsageError
from safeedit.methods.attribution import Attributor, Measure, Positions
from safeedit.methods.tuning import Example
from safeedit.model.architectures import Site
from safeedit.model.engine import Engine
from safeedit.model.handle import ModelHandle
from tests.tiny_models import FAMILIES, N_LAYERS, VOCAB_SIZE, tiny_handle

LAYERS = tuple(range(N_LAYERS))
every_family = pytest.mark.parametrize("family", FAMILIES)
all_measures = pytest.mark.parametrize("measure", ["log_odds", "log_probability", "probability"])


def secrets(lengths: list[tuple[int, int]], seed: int = 0) -> list[Example]:
    """Random tokens, with prompts and answers of these lengths."""
    source = random.Random(seed)
    return [
        Example(
            [source.randrange(10, VOCAB_SIZE - 10) for _ in range(prompt)],
            [source.randrange(10, VOCAB_SIZE - 10) for _ in range(answer)],
        )
        for prompt, answer in lengths
    ]


MIXED = secrets([(5, 3), (1, 2), (5, 4), (12, 1)])


def value(handle: ModelHandle, secret: Example, measure: Measure) -> Tensor:
    """F, by the model itself: the whole text, alone."""
    logits = handle.model(input_ids=torch.tensor([secret.ids])).logits[0].float()
    start = len(secret.prompt) - 1
    scores = logits[start:-1].log_softmax(-1)
    found = scores[range(len(secret.answer)), list(secret.answer)]
    if measure == "log_odds":
        return (found - torch.log1p(-found.exp())).sum()
    return found.sum() if measure == "log_probability" else found.exp().sum()


def plain(
    handle: ModelHandle,
    secret: Example,
    layer: int,
    points: int,
    measure: Measure = "log_probability",
    positions: Positions = "predicting",
) -> Tensor:
    """One secret, one layer, one point at a time, the whole model each time."""
    (site,) = handle.sites("mlp_out", [layer])
    end = len(secret.prompt) - 1
    start = end if positions == "predicting" else min(1, end)
    ids = torch.tensor([secret.ids])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    clean = handle.capture(inputs, [site])[site][:, start:-1]
    total = torch.zeros(clean.shape[-1])
    for j in range(1, points + 1):
        scaled = (clean * j / points).requires_grad_()

        def replace(_: Site, activation: Tensor, scaled: Tensor = scaled) -> Tensor:
            return torch.cat([activation[:, :start], scaled, activation[:, -1:]], 1)

        with handle.intercepted([site], replace):
            (gradient,) = torch.autograd.grad(value(handle, secret, measure), scaled)
        total += (gradient * clean).sum((0, 1)) / points
    return total


def silenced(handle: ModelHandle, secret: Example, layer: int, measure: Measure) -> float:
    """F(0) by zeroing the predicting positions in the model's own forward pass."""
    (site,) = handle.sites("mlp_out", [layer])
    start = len(secret.prompt) - 1

    def silence(_: Site, activation: Tensor) -> Tensor:
        return torch.cat([activation[:, :start], 0 * activation[:, start:]], 1)

    with torch.no_grad(), handle.intercepted([site], silence):
        return float(value(handle, secret, measure))


@all_measures
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt"])
def test_attributions_sum_to_what_silencing_the_layer_changes(
    family: str, measure: Measure
) -> None:
    handle = tiny_handle(family)
    found = Attributor(handle, MIXED, measure=measure).integrated(LAYERS, 60)
    assert found.change is not None
    with torch.no_grad():
        for i, secret in enumerate(MIXED):
            whole = float(value(handle, secret, measure))
            expected = [whole - silenced(handle, secret, n, measure) for n in LAYERS]
            torch.testing.assert_close(
                found.change[i], torch.tensor(expected).double(), rtol=1e-4, atol=1e-5
            )
    # Right Riemann sums are off by half the change of slope over m: here at most .1 nats.
    assert found.gaps().max() < 0.1
    assert found.change.abs().max() > (0.001 if measure == "probability" else 1)


@every_family
def test_the_sum_converges_as_points_are_added(family: str) -> None:
    attributor = Attributor(tiny_handle(family), MIXED)
    gaps = [float(attributor.integrated(LAYERS, m).gaps().mean()) for m in (4, 24)]
    assert gaps[0] > 3 * gaps[1], "an error of the order of 1/m"


def test_attributions_of_other_secrets_do_not_sum_to_the_change() -> None:
    found = Attributor(tiny_handle("llama"), MIXED).integrated(LAYERS, 60)
    assert found.change is not None
    shuffled = found.scores.roll(1, 0)
    assert (shuffled.sum(-1) - found.change).abs().mean() > 10 * found.gaps().mean()


def test_first_order_scores_are_not_complete() -> None:
    attributor = Attributor(tiny_handle("llama"), MIXED)
    exact, first = attributor.integrated(LAYERS, 60), attributor.first_order(LAYERS)
    assert exact.change is not None
    assert (first.scores.sum(-1) - exact.change).abs().mean() > 5 * exact.gaps().mean()
    with pytest.raises(UsageError, match="completeness"):
        first.gaps()


# A norm after the MLP is frozen (see the module), which a loop over the plain model does not.
unnormed = pytest.mark.parametrize(
    "family", [f for f in FAMILIES if not f.startswith(("gemma", "olmo2"))]
)


@unnormed
@pytest.mark.parametrize("positions", ["predicting", "all"])
def test_batches_that_start_at_their_layer_find_what_a_plain_loop_finds(
    family: str, positions: Positions
) -> None:
    handle = tiny_handle(family)
    found = Attributor(handle, MIXED, positions=positions).integrated(LAYERS, 2)
    for i, secret in enumerate(MIXED):
        for layer in LAYERS:
            expected = plain(handle, secret, layer, 2, positions=positions)
            torch.testing.assert_close(found.scores[i, layer], expected, rtol=1e-3, atol=1e-5)
    assert found.scores.abs().amax((1, 2)).min() > 0.01, "the control: there is something to find"


@every_family
def test_secrets_together_and_alone_are_the_same(family: str) -> None:
    handle = tiny_handle(family)
    together = Attributor(handle, MIXED).integrated(LAYERS, 4)
    for i, secret in enumerate(MIXED):
        alone = Attributor(handle, [secret]).integrated([1], 4)
        torch.testing.assert_close(together.scores[i, 1], alone.scores[0, 0], rtol=1e-3, atol=1e-5)


def test_small_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = tiny_handle("llama")
    large = Attributor(handle, MIXED).integrated(LAYERS, 7)
    first = Attributor(handle, MIXED).first_order(LAYERS)
    monkeypatch.setattr(handle, "engine", Engine(handle, max_batch_tokens=14))
    small = Attributor(handle, MIXED)
    assert len(small.batches()) > len(Attributor(tiny_handle("llama"), MIXED).batches())
    torch.testing.assert_close(small.integrated(LAYERS, 7).scores, large.scores)
    torch.testing.assert_close(small.first_order(LAYERS).scores, first.scores)


@every_family
def test_first_order_is_the_sum_of_one_point(family: str) -> None:
    attributor = Attributor(tiny_handle(family), MIXED)
    one, first = attributor.integrated(LAYERS, 1), attributor.first_order(LAYERS)
    torch.testing.assert_close(first.scores, one.scores, rtol=1e-3, atol=1e-5)


def test_some_layers_are_attributed_as_all_are() -> None:
    attributor = Attributor(tiny_handle("gpt2"), MIXED)
    everything, some = attributor.integrated(LAYERS, 3), attributor.integrated([2, 1], 3)
    assert some.layers == (1, 2)
    torch.testing.assert_close(some.scores, everything.scores[:, 1:])
    first = attributor.first_order([2])
    torch.testing.assert_close(first.scores, attributor.first_order(LAYERS).scores[:, 2:])


def test_all_positions_are_more_than_those_that_predict() -> None:
    handle = tiny_handle("llama")
    some = Attributor(handle, MIXED).integrated([0], 3)
    more = Attributor(handle, MIXED, positions="all").integrated([0], 3)
    assert (some.scores[0] - more.scores[0]).abs().max() > 0.01


@every_family
def test_the_model_is_left_as_it_was(family: str) -> None:
    handle = tiny_handle(family)
    ids = torch.arange(20, 40)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        before = handle.forward(inputs)
    digest = handle.digest(fresh=True)
    attributor = Attributor(handle, MIXED)
    attributor.integrated(LAYERS, 2)
    scores = attributor.first_order(LAYERS).scores
    assert not scores.requires_grad
    assert handle.digest(fresh=True) == digest
    assert not any("forward" in vars(block) for block in handle.blocks())
    with torch.no_grad():
        assert torch.equal(handle.forward(inputs), before)


def test_a_pass_that_fails_leaves_the_blocks_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = tiny_handle("llama")
    mine = handle.blocks()[0].forward
    vars(handle.blocks()[0])["forward"] = mine  # as accelerate does
    monkeypatch.setattr(handle, "logits", lambda hidden: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Attributor(handle, MIXED).integrated([2], 2)
    assert vars(handle.blocks()[0]).get("forward") is mine
    assert "forward" not in vars(handle.blocks()[1])


def test_bfloat16_is_near_float32() -> None:
    exact = Attributor(tiny_handle("llama"), MIXED).integrated(LAYERS, 20).scores
    rough = Attributor(tiny_handle("llama", torch.bfloat16), MIXED).integrated(LAYERS, 20).scores
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() < 0.1 * exact.norm()


def test_an_empty_secret_is_refused() -> None:
    with pytest.raises(UsageError, match="no tokens"):
        Attributor(tiny_handle("llama"), [Example([5], [])])


def test_a_model_whose_numbers_are_not_finite_is_refused() -> None:
    handle = tiny_handle("llama")
    with torch.no_grad():
        handle.head.weight.fill_(float("nan"))
    with pytest.raises(EditError, match="finite"):
        Attributor(handle, MIXED).integrated([1], 2)


def test_no_secrets_make_no_attributions() -> None:
    found = Attributor(tiny_handle("llama"), []).integrated(LAYERS, 2)
    assert found.scores.shape[0] == 0


def test_damage_is_the_mean_square_of_what_each_token_owes_a_neuron() -> None:
    handle = tiny_handle("llama")
    found = Attributor(handle, MIXED).first_order(LAYERS, squares=True)
    assert found.squares is not None
    # Of a text whose answer is one token there is one position: the square of the sum.
    one = [Example(text.prompt, text.answer[:1]) for text in MIXED]
    single = Attributor(handle, one).first_order(LAYERS, squares=True)
    assert single.squares is not None
    torch.testing.assert_close(single.squares, single.scores.square())
    torch.testing.assert_close(single.damage(one), single.scores.square().mean(0).flatten())
    # Of longer ones, no less than the square of the mean.
    length = torch.tensor([len(text.answer) for text in MIXED])[:, None, None]
    assert bool((found.squares * length >= found.scores.square() * (1 - 1e-4) - 1e-12).all())
    with pytest.raises(UsageError, match="without squares"):
        Attributor(handle, one).first_order(LAYERS).damage(one)
