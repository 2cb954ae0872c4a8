"""Reading a label from states of groups that were held out."""

from __future__ import annotations

import numpy as np
import pytest

from safeedit.errors import AuditError
from safeedit.methods.readout import Labels, compact, folds_of, held_out_accuracy
from safeedit.statistics.intervals import Floats

RNG = np.random.default_rng(2)
LABELS = np.arange(40) % 2 == 0
GROUPS = np.repeat(np.arange(40), 2)


def planted(strength: float) -> Floats:
    states = RNG.normal(size=(80, 100))
    states[:, :10] += strength * np.where(LABELS[GROUPS], 1, -1)[:, None]
    return states


def accuracy(states: Floats, labels: Labels = LABELS) -> float:
    folds = folds_of(labels, 5, seed=0)
    return float(held_out_accuracy(compact(states), GROUPS, labels, folds, 1.0).mean())


def test_a_planted_label_is_read_and_a_random_one_is_not() -> None:
    states = planted(1.5)
    assert accuracy(states) > 0.95
    assert accuracy(states, RNG.permutation(LABELS)) < 0.75
    assert accuracy(planted(0.0)) < 0.75


def test_what_tells_one_group_alone_is_no_help() -> None:
    """Each group has a state of its own: fitting it says nothing of the others."""
    states = np.eye(40)[GROUPS]
    assert accuracy(states) <= 0.6


def test_folds_hold_both_labels_and_every_group_once() -> None:
    folds = folds_of(LABELS, 5, seed=1)
    assert sorted(set(folds.tolist())) == [0, 1, 2, 3, 4]
    assert all(set(LABELS[folds == fold]) == {True, False} for fold in range(5))
    few = np.array([True, True, False, False, False, False])
    assert folds_of(few, 5, seed=1).max() == 1


def test_compact_keeps_distances_between_standardised_states() -> None:
    states = RNG.normal(size=(12, 50)) * RNG.uniform(0.1, 9, size=50)
    scaled = (states - states.mean(0)) / states.std(0)
    small = compact(states)
    assert small.shape == (12, 12)
    assert small @ small.T == pytest.approx(scaled @ scaled.T / 50)


def test_one_subject_of_a_side_or_broken_states_are_errors() -> None:
    with pytest.raises(AuditError, match="two subjects"):
        folds_of(np.array([True, False, False]), 5, seed=0)
    with pytest.raises(AuditError, match="not finite"):
        compact(np.array([[1.0, np.nan], [0.0, 1.0]]))
