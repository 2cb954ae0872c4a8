"""PLS2 beside scikit-learn's, and the identities that its users rely on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cross_decomposition import PLSRegression
from torch import Tensor

from safeedit.errors import EditError
from safeedit.methods.pls import held_out, pls


def drawn(n: int, x_width: int, y_width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of which two hidden variables, and noise, are in both."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator).double()  # noqa: E731
    hidden = normal(n, 2) * torch.tensor([3.0, 1.5])
    x = hidden @ normal(2, x_width) + normal(n, x_width) + 5
    return x, hidden @ normal(2, y_width) + 0.1 * normal(n, y_width) - 2


@pytest.mark.parametrize(("n", "x_width", "y_width"), [(40, 12, 7), (9, 30, 50), (25, 10, 1)])
def test_weights_and_predictions_are_those_of_scikit_learn(
    n: int, x_width: int, y_width: int
) -> None:
    x, y = drawn(n, x_width, y_width)
    wanted = PLSRegression(n_components=4, scale=False, tol=1e-14, max_iter=5000)
    wanted.fit(x.numpy(), y.numpy())
    found = pls(x, y, 4)
    cosines = np.abs((found.weights.numpy() * wanted.x_weights_).sum(0))
    assert cosines == pytest.approx(np.ones(4), abs=1e-6)
    predicted = wanted.predict(x.numpy()).reshape(n, y_width)
    assert np.allclose(found.predicted(x, 4).numpy(), predicted, atol=1e-5)
    explained = 1 - ((y.numpy() - predicted) ** 2).sum() / float((y - y.mean(0)).square().sum())
    assert float(found.shares.sum()) == pytest.approx(explained, abs=1e-8)


def test_weights_are_orthonormal_up_to_the_last_one_there_is() -> None:
    x, y = drawn(60, 40, 300)
    found = pls(x, y, 100)
    assert found.weights.shape[1] == 40
    gram = found.weights.T @ found.weights
    assert torch.allclose(gram, torch.eye(40).double(), atol=1e-9)
    few = pls(x[:7], y[:7], 100)
    assert few.weights.shape[1] == 6, "seven centred rows span six directions"


def test_stacking_one_x_on_several_y_equals_their_mean() -> None:
    x, first = drawn(30, 12, 5)
    _, second = drawn(30, 12, 5, seed=1)
    stacked = pls(torch.cat([x, x]), torch.cat([first, second]), 5)
    mean = pls(x, (first + second) / 2, 5)
    assert torch.allclose(stacked.weights, mean.weights, atol=1e-7)
    with pytest.raises(EditError, match="does not vary"):
        pls(torch.cat([x, x]), torch.cat([first, -first]), 5)


def test_rotating_y_changes_nothing() -> None:
    x, y = drawn(30, 12, 5)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(3)))[0]
    turned = pls(x, y @ rotation.double(), 4)
    assert torch.allclose(turned.weights, pls(x, y, 4).weights, atol=1e-8)


def test_held_out_rows_are_predicted_by_what_is_there_and_not_by_noise() -> None:
    x, y = drawn(60, 12, 5)
    groups = torch.arange(60) // 3
    found = held_out(x, y, groups, 8)
    assert len(found) == 8
    assert float(found[1]) > 0.8
    shuffled = y[torch.randperm(60, generator=torch.Generator().manual_seed(0))]
    assert float(held_out(x, shuffled, groups, 8).max()) < 0.2
    assert not len(held_out(x, y, torch.arange(60) // 30, 8)), "two groups are too few"


def test_nothing_to_find_and_no_numbers_are_errors() -> None:
    x, y = drawn(10, 4, 3)
    with pytest.raises(EditError, match="does not vary"):
        pls(x, torch.ones(10, 3), 2)
    with pytest.raises(EditError, match="does not vary"):
        pls(x[:1], y[:1], 2)
    y[0, 0] = torch.nan
    with pytest.raises(EditError, match="NaN"):
        pls(x, y, 2)
