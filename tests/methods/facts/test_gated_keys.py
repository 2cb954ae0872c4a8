"""The keys solve the problem they state, and tell subjects apart where that can be done."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from safeedit.errors import EditError
from safeedit.methods.facts.gated_keys import Separator, separate
from tests.fixtures import gaussian, moments

WIDTH = 12


def clusters(counts: list[int], noise: float = 0.05) -> tuple[Tensor, Tensor]:
    """Mentions around one centre per subject, and whose they are."""
    centres = 3 * torch.eye(WIDTH)[: len(counts)]
    whose = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return centres[whose] + noise * gaussian(len(whose), WIDTH, seed=1), whose


def solved(
    inputs: Tensor,
    whose: Tensor,
    rest: Tensor,
    *,
    keys: int | None = None,
    ridge: float = 0.01,
    weight: float = 1.0,
) -> Separator:
    """A key for each subject, unless told otherwise."""
    keys = int(whose.max()) + 1 if keys is None else keys
    return separate(inputs, whose, moments(rest), keys=keys, ridge=ridge, weight=weight)


def background(n: int = 200, noise: float = 0.3) -> Tensor:
    """Rows that share a mean, as what MLPs read does; without one nothing can be -1 everywhere."""
    return noise * gaussian(n, WIDTH, seed=2) + 2 * torch.eye(WIDTH)[-1]


def objective(
    row: Tensor,
    own: list[Tensor],
    others: list[Tensor],
    rest: Tensor,
    ridge: float,
    weight: float,
) -> Tensor:
    """What :func:`separate` says it minimises, term by term, subject by subject."""
    total = weight * ((rest @ row + 1) ** 2).mean()
    for subjects, wanted in ((own, 1), (others, -1)):
        if subjects:
            losses = [((mentions @ row - wanted) ** 2).mean() for mentions in subjects]
            total = total + torch.stack(losses).mean()
    return total + weight * ridge * (rest**2).mean() * (row**2).sum()


RIDGES = [(0.01, 1.0), (0.3, 0.2), (1e-4, 5.0)]


@pytest.mark.parametrize(("ridge", "weight"), RIDGES)
@pytest.mark.parametrize(
    ("counts", "keys"), [([6], 1), ([3, 9], 2), ([2, 5, 20], 3), ([2, 5, 20], 1), ([2, 5, 20], 2)]
)
def test_the_gradient_of_the_stated_objective_is_zero_at_the_solution(
    counts: list[int], keys: int, ridge: float, weight: float
) -> None:
    inputs, whose = clusters(counts)
    rest = background()
    found = solved(inputs, whose, rest, keys=keys, ridge=ridge, weight=weight)
    by_subject = [inputs[whose == subject].double() for subject in range(len(counts))]

    def slope(row: Tensor, key: int) -> float:
        row = row.double().requires_grad_()
        own, others = by_subject[key::keys], [
            mentions for s, mentions in enumerate(by_subject) if s % keys != key
        ]  # fmt: skip
        value = objective(row, own, others, rest.double(), ridge, weight)
        (gradient,) = torch.autograd.grad(value, row)
        return float(gradient.norm())

    assert len(found.rows) == keys
    for key in range(keys):
        at_nothing = slope(torch.zeros(WIDTH), key)
        assert slope(found.rows[key], key) < 1e-4 * at_nothing
        # The control: the gradient does see a small step away.
        assert slope(found.rows[key] * 1.01, key) > 1e-4 * at_nothing


@pytest.mark.parametrize(("ridge", "weight"), RIDGES)
def test_rows_equal_dense_least_squares_over_every_row(ridge: float, weight: float) -> None:
    counts = [2, 5, 11]
    inputs, whose = clusters(counts)
    rest = background(50)
    found = solved(inputs, whose, rest, ridge=ridge, weight=weight)
    load = (weight * ridge * (rest.double() ** 2).mean()).sqrt()
    for subject in range(3):
        # Half of the other two subjects each, a whole of its own.
        share = [1 / n if s == subject else 0.5 / n for s, n in enumerate(counts)]
        root = torch.tensor(share).double()[whose].sqrt()
        wanted = torch.where(whose == subject, 1.0, -1.0).double()
        each = (weight / len(rest)) ** 0.5
        system = torch.cat(
            [
                root[:, None] * inputs.double(),
                each * rest.double(),
                load * torch.eye(WIDTH, dtype=torch.float64),
            ]
        )
        target = torch.cat([root * wanted, torch.full((50,), -each), torch.zeros(WIDTH)]).double()
        brute = torch.linalg.lstsq(system, target[:, None]).solution[:, 0]
        torch.testing.assert_close(found.rows[subject].double(), brute, rtol=1e-4, atol=1e-5)


def test_separable_subjects_answer_near_one_and_all_else_near_minus_one() -> None:
    inputs, whose = clusters([4, 4, 4])
    rest = background(noise=0.1)
    found = solved(inputs, whose, rest, ridge=1e-3)
    answers = inputs @ found.rows.T
    own = torch.nn.functional.one_hot(whose, 3).bool()
    assert answers[own].min() > 0.8
    assert answers[~own].max() < -0.8
    assert (rest @ found.rows.T).max() < -0.5


def test_a_random_direction_of_the_same_length_does_not_separate() -> None:
    inputs, whose = clusters([4, 4, 4])
    rows = solved(inputs, whose, background(), ridge=1e-3).rows
    random = gaussian(*rows.shape, seed=5)
    random *= rows.norm(dim=1, keepdim=True) / random.norm(dim=1, keepdim=True)
    own = torch.nn.functional.one_hot(whose, 3).bool()
    answers = inputs @ random.T
    assert answers[own].min() < answers[~own].max()


def test_what_it_reports_is_what_the_rows_answer() -> None:
    inputs, whose = clusters([3, 8])
    rest = background()
    found = solved(inputs, whose, rest)
    answers = inputs @ found.rows.T
    for subject in range(2):
        assert found.least_own[subject] == pytest.approx(
            float(answers[whose == subject, subject].min()), abs=1e-5
        )
    elsewhere = rest @ found.rows.T
    torch.testing.assert_close(found.elsewhere, elsewhere.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.spread, elsewhere.std(0, correction=0), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("keys", [1, 2, 3])
def test_how_often_a_subject_is_mentioned_bends_no_key(keys: int) -> None:
    inputs, whose = clusters([3, 4, 5])
    again = torch.cat([inputs, *[inputs[whose == 0]] * 99])
    whose_again = torch.cat([whose, torch.zeros(3 * 99, dtype=torch.long)])
    once = solved(inputs, whose, background(), keys=keys)
    often = solved(again, whose_again, background(), keys=keys)
    torch.testing.assert_close(often.rows, once.rows)


def test_a_shared_key_answers_to_each_of_its_subjects() -> None:
    inputs, whose = clusters([2, 300, 40, 3])
    found = solved(inputs, whose, background(noise=0.1), keys=2, ridge=1e-3)
    assert found.least_own.shape == (4,)
    assert found.least_own.min() > 0.8
    answers = inputs @ found.rows.T
    assert answers[whose % 2 == 0, 1].max() < -0.8
    assert answers[whose % 2 == 1, 0].max() < -0.8


def test_of_two_subjects_the_rarely_mentioned_one_has_as_good_a_key() -> None:
    inputs, whose = clusters([2, 600])
    found = solved(inputs, whose, background(), ridge=1e-3)
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
    a = solved(inputs, whose, background())
    b = solved(inputs[order], whose[order], background())
    torch.testing.assert_close(a.rows, b.rows)


def test_a_subject_that_reads_like_ordinary_text_is_refused() -> None:
    rest = background()
    inputs = rest[:20].clone()
    with pytest.raises(EditError, match="1 of 1 subjects can't be told from other text"):
        solved(inputs, torch.zeros(20, dtype=torch.long), rest)


def test_one_mention_among_ordinary_text_does_not_stop_a_subject() -> None:
    inputs, whose = clusters([12])
    rest = background()
    found = solved(torch.cat([inputs, rest[:1]]), torch.tensor([*whose.tolist(), 0]), rest)
    assert float(found.least_own) <= 0
    assert float(found.mean_own) > 0.25


def test_two_subjects_that_read_the_same_are_refused() -> None:
    inputs, _ = clusters([4])
    both, whose = torch.cat([inputs, inputs]), torch.tensor([0] * 4 + [1] * 4)
    with pytest.raises(EditError, match="2 of 2") as caught:
        solved(both, whose, background())
    assert caught.value.remedy
    # The control: either alone is told from the background.
    solved(inputs, whose[:4], background())


def test_bfloat16_inputs_give_the_same_keys_up_to_their_rounding() -> None:
    inputs, whose = clusters([4, 4])
    rounded = inputs.bfloat16()
    a = solved(rounded, whose, background())
    b = solved(rounded.double(), whose, background())
    assert torch.equal(a.rows, b.rows)
    assert a.rows.dtype == torch.float32


def test_a_family_may_answer_each_others_mentions_and_nobody_elses() -> None:
    inputs, whose = clusters([6, 6, 6])
    # The first two are names of one subject and lie close together.
    inputs[whose == 1] = inputs[whose == 0] + 0.5 * gaussian(6, WIDTH, seed=5)
    rest = moments(background(noise=0.1))
    apart = separate(inputs, whose, rest, keys=3, ridge=1e-3)
    kin = separate(inputs, whose, rest, keys=3, families=[4, 4, 9], ridge=1e-3)
    assert apart.least_own[0] < kin.least_own[0]
    assert kin.least_own.min() > 0.8
    answers = inputs @ kin.rows.T
    assert answers[whose == 1, 0].mean() > 0 > answers[whose == 2, 0].max()
    alone = separate(inputs, whose, rest, keys=3, families=[0, 1, 2], ridge=1e-3)
    torch.testing.assert_close(alone.rows, apart.rows)


def test_rows_of_families_equal_dense_least_squares() -> None:
    counts, families, ridge = [2, 5, 11, 3], [0, 0, 1, 2], 0.01
    inputs, whose = clusters(counts)
    rest = background(50)
    found = separate(inputs, whose, moments(rest), keys=4, families=families, ridge=ridge)
    load = (ridge * (rest.double() ** 2).mean()).sqrt()
    for subject in range(4):
        strangers = sum(family != families[subject] for family in families)
        share = [
            1 / n
            if s == subject
            else 0.0
            if families[s] == families[subject]
            else 1 / strangers / n
            for s, n in enumerate(counts)
        ]
        root = torch.tensor(share).double()[whose].sqrt()
        wanted = torch.where(whose == subject, 1.0, -1.0).double()
        each = (1 / len(rest)) ** 0.5
        system = torch.cat(
            [
                root[:, None] * inputs.double(),
                each * rest.double(),
                load * torch.eye(WIDTH).double(),
            ]
        )
        target = torch.cat([root * wanted, torch.full((50,), -each), torch.zeros(WIDTH)]).double()
        brute = torch.linalg.lstsq(system, target[:, None]).solution[:, 0]
        torch.testing.assert_close(found.rows[subject].double(), brute, rtol=1e-4, atol=1e-5)
