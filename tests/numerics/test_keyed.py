"""The keys solve the problem they state, and tell subjects apart where that can be done."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from safeedit.errors import EditError
from safeedit.numerics.covariance import Moments
from safeedit.numerics.keyed import separate

WIDTH = 12


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moments(rows: Tensor) -> Moments:
    found = Moments(rows.shape[1])
    found.update(rows)
    return found


def clusters(counts: list[int], noise: float = 0.05) -> tuple[Tensor, Tensor]:
    """Mentions around one centre per subject, and whose they are."""
    centres = 3 * torch.eye(WIDTH)[: len(counts)]
    whose = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return centres[whose] + noise * gaussian(len(whose), WIDTH, seed=1), whose


def background(n: int = 200, noise: float = 0.3) -> Tensor:
    """Rows that share a mean, as what MLPs read does; without one nothing can be -1 everywhere."""
    return noise * gaussian(n, WIDTH, seed=2) + 2 * torch.eye(WIDTH)[-1]


def objective(
    row: Tensor, own: Tensor, others: Tensor, rest: Tensor, ridge: float, weight: float
) -> Tensor:
    """What :func:`separate` says it minimises, term by term."""
    total = ((own @ row - 1) ** 2).mean() + weight * ((rest @ row + 1) ** 2).mean()
    if len(others):
        total = total + ((others @ row + 1) ** 2).mean()
    return total + weight * ridge * (rest**2).mean() * (row**2).sum()


RIDGES = [(0.01, 1.0), (0.3, 0.2), (1e-4, 5.0)]


@pytest.mark.parametrize(("ridge", "weight"), RIDGES)
@pytest.mark.parametrize("counts", [[6], [3, 9], [2, 5, 20]])
def test_the_gradient_of_the_stated_objective_is_zero_at_the_solution(
    counts: list[int], ridge: float, weight: float
) -> None:
    inputs, whose = clusters(counts)
    rest = background()
    found = separate(inputs, whose, moments(rest), ridge=ridge, weight=weight)

    def slope(row: Tensor, subject: int) -> float:
        row = row.double().requires_grad_()
        own, others = inputs[whose == subject].double(), inputs[whose != subject].double()
        (gradient,) = torch.autograd.grad(
            objective(row, own, others, rest.double(), ridge, weight), row
        )
        return float(gradient.norm())

    for subject in range(len(counts)):
        assert slope(found.rows[subject], subject) < 1e-4 * slope(torch.zeros(WIDTH), subject)
        # The control: the gradient does see a small step away.
        assert slope(found.rows[subject] * 1.01, subject) > 1e-4 * slope(
            torch.zeros(WIDTH), subject
        )


@pytest.mark.parametrize(("ridge", "weight"), RIDGES)
def test_rows_equal_dense_least_squares_over_every_row(ridge: float, weight: float) -> None:
    inputs, whose = clusters([2, 5, 11])
    rest = background(50)
    found = separate(inputs, whose, moments(rest), ridge=ridge, weight=weight)
    load = (weight * ridge * (rest.double() ** 2).mean()).sqrt()
    for subject in range(3):
        share = torch.where(
            whose == subject, 1 / (whose == subject).sum(), 1 / (whose != subject).sum()
        )
        root = share.double().sqrt()
        wanted = torch.where(whose == subject, 1.0, -1.0).double()
        each = (weight / len(rest)) ** 0.5
        system = torch.cat(
            [
                root[:, None] * inputs.double(),
                each * rest.double(),
                load * torch.eye(WIDTH, dtype=torch.float64),
            ]
        )
        target = torch.cat(
            [root * wanted, torch.full((50,), -each), torch.zeros(WIDTH)],
        ).double()
        brute = torch.linalg.lstsq(system, target[:, None]).solution[:, 0]
        torch.testing.assert_close(found.rows[subject].double(), brute, rtol=1e-4, atol=1e-5)


def test_separable_subjects_answer_near_one_and_all_else_near_minus_one() -> None:
    inputs, whose = clusters([4, 4, 4])
    rest = background(noise=0.1)
    found = separate(inputs, whose, moments(rest), ridge=1e-3, weight=1.0)
    answers = inputs @ found.rows.T
    own = torch.nn.functional.one_hot(whose, 3).bool()
    assert answers[own].min() > 0.8
    assert answers[~own].max() < -0.8
    assert (rest @ found.rows.T).max() < -0.5


def test_a_random_direction_of_the_same_length_does_not_separate() -> None:
    inputs, whose = clusters([4, 4, 4])
    rows = separate(inputs, whose, moments(background()), ridge=1e-3, weight=1.0).rows
    random = gaussian(*rows.shape, seed=5)
    random *= rows.norm(dim=1, keepdim=True) / random.norm(dim=1, keepdim=True)
    own = torch.nn.functional.one_hot(whose, 3).bool()
    answers = inputs @ random.T
    assert answers[own].min() < answers[~own].max()


def test_what_it_reports_is_what_the_rows_answer() -> None:
    inputs, whose = clusters([3, 8])
    rest = background()
    found = separate(inputs, whose, moments(rest), ridge=0.01, weight=1.0)
    answers = inputs @ found.rows.T
    for subject in range(2):
        assert found.least_own[subject] == pytest.approx(
            float(answers[whose == subject, subject].min()), abs=1e-5
        )
    elsewhere = rest @ found.rows.T
    torch.testing.assert_close(found.elsewhere, elsewhere.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.spread, elsewhere.std(0, correction=0), rtol=1e-3, atol=1e-4)


def test_how_often_a_subject_is_mentioned_does_not_bend_its_own_key() -> None:
    inputs, whose = clusters([3, 4, 5])
    again = torch.cat([inputs, *[inputs[whose == 0]] * 99])
    whose_again = torch.cat([whose, torch.zeros(3 * 99, dtype=torch.long)])
    once = separate(inputs, whose, moments(background()), ridge=0.01, weight=1.0)
    often = separate(again, whose_again, moments(background()), ridge=0.01, weight=1.0)
    torch.testing.assert_close(often.rows[0], once.rows[0])


def test_of_two_subjects_the_rarely_mentioned_one_has_as_good_a_key() -> None:
    inputs, whose = clusters([2, 600])
    found = separate(inputs, whose, moments(background()), ridge=1e-3, weight=1.0)
    assert found.least_own.min() > 0.8
    # The control: least squares over mentions alike, none weighing more, forgets the rare one.
    everything = torch.cat([inputs, background()]).double()
    wanted = torch.full((len(everything),), -1.0, dtype=torch.float64)
    wanted[:2] = 1.0
    load = 50 * torch.eye(WIDTH, dtype=torch.float64)
    plain = torch.linalg.solve(everything.T @ everything + load, everything.T @ wanted)
    assert float((inputs[:2].double() @ plain).max()) < 0.5


def test_the_order_of_the_mentions_plays_no_part() -> None:
    inputs, whose = clusters([3, 8, 2])
    order = torch.randperm(len(whose), generator=torch.Generator().manual_seed(0))
    a = separate(inputs, whose, moments(background()), ridge=0.01, weight=1.0)
    b = separate(inputs[order], whose[order], moments(background()), ridge=0.01, weight=1.0)
    torch.testing.assert_close(a.rows, b.rows)


def test_a_subject_that_reads_like_ordinary_text_is_refused() -> None:
    rest = background()
    inputs = rest[:20].clone()
    with pytest.raises(EditError, match="1 of 1 subjects can't be told from other text"):
        separate(inputs, torch.zeros(20, dtype=torch.long), moments(rest), ridge=0.01, weight=1.0)


def test_two_subjects_that_read_the_same_are_refused() -> None:
    inputs, _ = clusters([4])
    both, whose = torch.cat([inputs, inputs]), torch.tensor([0] * 4 + [1] * 4)
    with pytest.raises(EditError, match="2 of 2") as caught:
        separate(both, whose, moments(background()), ridge=0.01, weight=1.0)
    assert caught.value.remedy
    # The control: either alone is told from the background.
    separate(inputs, whose[:4], moments(background()), ridge=0.01, weight=1.0)


def test_bfloat16_inputs_give_the_same_keys_up_to_their_rounding() -> None:
    inputs, whose = clusters([4, 4])
    rounded = inputs.bfloat16()
    a = separate(rounded, whose, moments(background()), ridge=0.01, weight=1.0)
    b = separate(rounded.double(), whose, moments(background()), ridge=0.01, weight=1.0)
    assert torch.equal(a.rows, b.rows)
    assert a.rows.dtype == torch.float32
