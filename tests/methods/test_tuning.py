"""Only answers count, padding counts for nothing, and the loop does what its schedule says."""

from __future__ import annotations

import contextlib
import itertools
import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from safeedit.errors import EditError
from safeedit.methods.tuning import (
    BaseAnswers,
    Example,
    answer_states,
    cross_entropy,
    endless,
    optimise,
)
from safeedit.model import batching
from safeedit.model.handle import ModelHandle
from tests.tiny_models import FAMILIES, VOCAB_SIZE, tiny_handle

pytestmark = pytest.mark.trains

every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums in float32, so that what differs by rounding in bfloat16 can be told from a fault."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())


def examples(lengths: list[tuple[int, int]], seed: int = 0) -> list[Example]:
    """Examples of random tokens, with prompts and answers of these lengths."""
    source = random.Random(seed)
    return [
        Example(
            [source.randrange(10, VOCAB_SIZE - 10) for _ in range(prompt)],
            [source.randrange(10, VOCAB_SIZE - 10) for _ in range(answer)],
        )
        for prompt, answer in lengths
    ]


MIXED = [(5, 3), (1, 1), (9, 2), (2, 7)]


@torch.no_grad()
def answer_logits(handle: ModelHandle, example: Example) -> Tensor:
    """By the model itself, alone and unpadded: those that predict the answer's tokens."""
    logits = handle.model(input_ids=torch.tensor([example.ids])).logits[0]
    start = len(example.prompt) - 1
    return logits[start : start + len(example.answer)].float()


@every_family
@pytest.mark.usefixtures("exact")
def test_states_are_those_that_predict_each_answer(family: str) -> None:
    handle = tiny_handle(family)
    batch = examples(MIXED)
    with torch.no_grad():
        states = answer_states(handle, batch)
        for example, state in zip(batch, states, strict=True):
            assert len(state) == len(example.answer)
            torch.testing.assert_close(
                handle.logits(state), answer_logits(handle, example), rtol=1e-4, atol=1e-4
            )


@pytest.mark.usefixtures("exact")
def test_one_position_off_would_show() -> None:
    handle = tiny_handle("llama")
    (example,) = examples([(5, 3)])
    with torch.no_grad():
        logits = handle.logits(answer_states(handle, [example])[0])
    right = answer_logits(handle, example)
    assert (logits[1:] - right[:-1]).abs().max() > 0.1


@every_family
@pytest.mark.usefixtures("exact")
def test_neighbours_and_their_padding_play_no_part(family: str) -> None:
    handle = tiny_handle(family)
    batch = examples(MIXED)
    with torch.no_grad():
        together = answer_states(handle, batch)
        for example, state in zip(batch, together, strict=True):
            (alone,) = answer_states(handle, [example])
            torch.testing.assert_close(state, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("exact")
def test_a_sliding_window_shorter_than_an_example_counts() -> None:
    handle = tiny_handle("mistral", sliding_window=6)
    batch = examples(MIXED)
    with torch.no_grad():
        for example, state in zip(batch, answer_states(handle, batch), strict=True):
            torch.testing.assert_close(
                handle.logits(state), answer_logits(handle, example), rtol=1e-4, atol=1e-4
            )


def test_bfloat16_sums_stay_close_to_exact_ones() -> None:
    handle = tiny_handle("llama")
    batch = examples(MIXED)
    with torch.no_grad():
        loss = cross_entropy(handle, answer_states(handle, batch), batch)
    wanted = [
        torch.nn.functional.cross_entropy(
            answer_logits(handle, e), torch.tensor(e.answer), reduction="none"
        )
        for e in batch
    ]
    assert float(loss) == pytest.approx(float(torch.cat(wanted).mean()), rel=0.02)


@every_family
@pytest.mark.usefixtures("exact")
def test_cross_entropy_is_the_mean_over_answer_tokens(family: str) -> None:
    handle = tiny_handle(family)
    batch = examples(MIXED)
    with torch.no_grad():
        loss = cross_entropy(handle, answer_states(handle, batch), batch)
    terms = [
        -answer_logits(handle, example).log_softmax(-1)[i, token]
        for example in batch
        for i, token in enumerate(example.answer)
    ]
    assert len(terms) == sum(answer for _, answer in MIXED)
    assert float(loss) == pytest.approx(float(torch.stack(terms).mean()), rel=1e-4)


def disturbed(handle: ModelHandle) -> None:
    with torch.no_grad():
        weight = handle.tensor(handle.sites("mlp_out", [1])[0].weight)
        weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(9)))


@every_family
@pytest.mark.usefixtures("exact")
def test_divergence_is_the_kl_from_base_to_now(family: str) -> None:
    handle = tiny_handle(family)
    batch = examples(MIXED)
    base = BaseAnswers(handle, batch)
    before = [answer_logits(handle, example).log_softmax(-1) for example in batch]
    with torch.no_grad():
        untouched = float(base.divergence(answer_states(handle, batch), batch))
        disturbed(handle)
        found = float(base.divergence(answer_states(handle, batch), batch))
    after = [answer_logits(handle, example).log_softmax(-1) for example in batch]
    terms = [(p.exp() * (p - q)).sum(-1) for p, q in zip(before, after, strict=True)]
    backwards = [(q.exp() * (q - p)).sum(-1) for p, q in zip(before, after, strict=True)]
    assert abs(untouched) < 1e-5
    assert found > 1e-3
    assert found == pytest.approx(float(torch.cat(terms).mean()), rel=1e-3)
    forwards, reverse = (float(torch.cat(kind).mean()) for kind in (terms, backwards))
    assert abs(found - forwards) < abs(found - reverse)


@pytest.mark.usefixtures("exact")
def test_divergence_finds_each_examples_own_base_in_any_batch() -> None:
    handle = tiny_handle("llama")
    kept = examples([(n % 5 + 1, n % 3 + 1) for n in range(41)])
    base = BaseAnswers(handle, kept)
    batch = [kept[i] for i in (39, 0, 7, 7, 21, 40)]
    with torch.no_grad():
        assert abs(float(base.divergence(answer_states(handle, batch), batch))) < 1e-5
        # The control: against another example's base it is large.
        wrong = [kept[0], kept[15]]
        states = answer_states(handle, [kept[15], kept[0]])
        assert float(base.divergence(states, wrong)) > 0.01


def test_divergence_sends_gradients_to_now_alone() -> None:
    handle = tiny_handle("llama")
    batch = examples([(4, 2), (3, 3)])
    base = BaseAnswers(handle, batch)
    states = [s.detach().float().requires_grad_() for s in answer_states(handle, batch)]
    disturbance = [s + 0.1 for s in states]
    base.divergence(disturbance, batch).backward()
    assert all(s.grad is not None and s.grad.abs().sum() > 0 for s in states)
    assert all(p.grad is None for p in handle.model.parameters())


# The loop ------------------------------------------------------------------------------


def run(
    losses: Any,
    steps: int,
    *,
    warmup: float = 0.1,
    stop_below: float = -math.inf,
    rate: float = 1.0,
) -> tuple[dict[str, float], list[float]]:
    """Train one number under a constant slope, which AdamW turns into steps of exactly the
    learning rate; returns the notes and the steps it took."""
    number = torch.zeros(1, requires_grad=True)
    seen: list[float] = []
    taken = iter(losses)

    def loss() -> tuple[Tensor, float]:
        seen.append(float(number.detach()))
        return -number.sum(), next(taken)

    notes = optimise(
        [number], loss, steps=steps, learning_rate=rate, warmup=warmup, stop_below=stop_below
    )
    path = [*seen, float(number.detach())]
    return notes, [b - a for a, b in itertools.pairwise(path)]


@pytest.mark.parametrize(("steps", "warmup", "rising"), [(60, 0.1, 6), (20, 0.5, 10), (7, 0, 1)])
def test_warm_up_is_a_share_of_the_real_steps(steps: int, warmup: float, rising: int) -> None:
    _, rates = run([1.0] * steps, steps, warmup=warmup)
    assert len(rates) == steps
    cosine = [0.1 + 0.45 * (1 + math.cos(math.pi * i / steps)) for i in range(steps)]
    wanted = [min(1.0, (i + 1) / rising) * factor for i, factor in enumerate(cosine)]
    assert rates == pytest.approx(wanted, rel=1e-3)


def test_the_published_schedule_never_reaches_its_peak_and_ours_does() -> None:
    # METHODS A5: 100 warm-up steps in 100 steps. Whatever the number of steps, ours has a peak.
    for steps in (5, 12, 100):
        _, rates = run([1.0] * steps, steps, warmup=0.1)
        assert max(rates) > 0.8
        assert rates.index(max(rates)) <= steps // 5
        assert rates[-1] < 0.35


def test_the_learning_rate_scales_all_of_it() -> None:
    _, full = run([1.0] * 10, 10)
    _, tenth = run([1.0] * 10, 10, rate=0.1)
    assert tenth == pytest.approx([0.1 * rate for rate in full], rel=1e-3)


def test_it_stops_once_the_running_loss_is_low() -> None:
    losses = [2.0] * 8 + [0.0] * 50
    notes, rates = run(losses, 50, stop_below=0.1)
    recent, expected = 2.0, 0
    for expected, watched in enumerate(losses, start=1):
        recent = watched if expected == 1 else 0.7 * recent + 0.3 * watched
        if recent < 0.1:
            break
    assert notes["steps"] == expected == len(rates)
    assert notes["loss_first"] == 2.0
    assert notes["loss_last"] == pytest.approx(recent)


def test_one_lucky_batch_does_not_stop_it() -> None:
    notes, _ = run([2.0] * 5 + [0.0] + [2.0] * 14, 20, stop_below=0.1)
    assert notes["steps"] == 20


def test_a_few_steps_are_always_taken() -> None:
    notes, _ = run([0.0] * 20, 20, stop_below=0.1)
    assert notes["steps"] == 5


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_an_error_and_moves_nothing_more(bad: float) -> None:
    number = torch.zeros(1, requires_grad=True)
    taken: list[float] = []

    def loss() -> tuple[Tensor, float]:
        taken.append(float(number.detach()))
        total = number.sum() * (bad if len(taken) == 3 else 1.0)
        return total + (bad if len(taken) == 3 else 0.0), 1.0

    with pytest.raises(EditError, match="diverged") as caught:
        optimise([number], loss, steps=10, learning_rate=0.1, warmup=0.1, stop_below=0.0)
    assert caught.value.remedy
    assert len(taken) == 3
    assert math.isfinite(float(number.detach()))


def test_a_watched_part_that_is_no_number_is_an_error_too() -> None:
    with pytest.raises(EditError, match="diverged"):
        run([1.0, math.nan, 1.0], 3)


# Drawing -------------------------------------------------------------------------------


def test_every_example_comes_once_before_any_comes_again() -> None:
    some = examples([(2, 1)] * 7)
    drawn = endless(some, random.Random(0))
    rounds = [[id(next(drawn)) for _ in range(7)] for _ in range(5)]
    for round_ in rounds:
        assert sorted(round_) == sorted(map(id, some))
    assert len({tuple(round_) for round_ in rounds}) > 1


def test_the_order_is_the_seeds() -> None:
    some = examples([(2, 1)] * 7)

    def order(seed: int) -> list[int]:
        drawn = endless(some, random.Random(seed))
        return [id(next(drawn)) for _ in range(21)]

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_of_no_examples_there_is_no_next() -> None:
    assert list(endless([], random.Random(0))) == []


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt_projected"])
def test_in_chunks_losses_and_their_gradients_are_those_of_the_whole(
    family: str, exact: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gemma 2 caps its logits after the head, OPT-350m projects before it."""
    handle = tiny_handle(family)
    batch = examples(MIXED)
    base = BaseAnswers(handle, batch)
    states = [state + 0.1 for state in answer_states(handle, batch)]

    def found() -> list[Tensor]:
        own = [state.detach().requires_grad_() for state in states]
        taught, kept = cross_entropy(handle, own, batch), base.divergence(own, batch)
        return [taught, kept, *torch.autograd.grad(taught + kept, own)]

    whole = found()
    monkeypatch.setattr(batching, "MAX_LOGITS", 3 * VOCAB_SIZE)
    parts = found()
    assert float(whole[1].detach()) > 0
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
