"""Membership shows either way: members that score too high, and members that score too low."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from safeedit.auditors.leakage import membership
from safeedit.auditors.leakage.membership import Membership, Params, token_scores
from safeedit.contracts import AuditOutcome
from safeedit.data import Dataset, Item
from safeedit.errors import AuditError
from safeedit.model.handle import ModelHandle
from safeedit.records import Metric
from safeedit.statistics.metrics import compare
from tests.auditors.memorised import HELD_BACK, TAUGHT, damaged, items, records, taught, untaught
from tests.fixtures import context
from tests.tiny_models import tiny_handle

pytestmark = pytest.mark.trains

ATTACKS = ("loss", "min_k", "min_k_plus")


def _audit(
    handle: ModelHandle,
    tmp_path: Path,
    members: Dataset | None = None,
    nonmembers: Dataset | None = None,
    reference: dict[str, torch.Tensor] | None = None,
    **params: Any,
) -> tuple[dict[str, Metric], AuditOutcome]:
    data = {
        "members": records() if members is None else members,
        "nonmembers": records(HELD_BACK) if nonmembers is None else nonmembers,
    }
    outcome = Membership(Params(**params)).audit(handle, data, "test", context(tmp_path), reference)
    return {metric.name: metric for metric in outcome.metrics}, outcome


@torch.no_grad()
def _by_hand(handle: ModelHandle, item: Item, k: float, *, whole: bool) -> dict[str, float]:
    """The scores of one record, alone in its pass, by their definitions."""
    (prompt,) = handle.engine.encode([item.prompt], "plain")
    ids = prompt + handle.engine.continuation(item.answer or "", "plain")
    start = 1 if whole else len(prompt)
    logs = handle.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    own, standardised = [], []
    for place in range(start, len(ids)):
        row = logs[place - 1].numpy()
        mean = (np.exp(row) * row).sum()
        deviation = math.sqrt((np.exp(row) * (row - mean) ** 2).sum())
        own.append(row[ids[place]])
        standardised.append((row[ids[place]] - mean) / deviation)
    lowest = math.ceil(k * len(own))
    return {
        "loss": float(np.mean(own)),
        "min_k": float(np.mean(sorted(own)[:lowest])),
        "min_k_plus": float(np.mean(sorted(standardised)[:lowest])),
    }


def _auc_by_hand(
    scores: dict[str, tuple[float, str]], members: list[str], others: list[str]
) -> float:
    """Mean over members of the share of nonmembers of their type that they beat."""
    shares = []
    for member in members:
        own, type_ = scores[member]
        rivals = [scores[other][0] for other in others if scores[other][1] == type_]
        shares.append(np.mean([(own > rival) + (own == rival) / 2 for rival in rivals]))
    return float(np.mean(shares))


@pytest.mark.parametrize("scored", ["answer", "text"])
@pytest.mark.parametrize("k", [0.2, 0.5])
def test_scores_and_aucs_are_those_of_their_definitions(
    scored: Any, k: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "LEAST_LIKELY", k)
    handle = damaged(1.0)  # a memory that only just shows
    found, _ = _audit(handle, tmp_path, scored=scored)
    all_items = {item.id: item for item in items((*TAUGHT, *HELD_BACK))}
    by_hand = {
        id_: _by_hand(handle, item, k, whole=scored == "text") for id_, item in all_items.items()
    }
    for attack in ATTACKS:
        scores = {id_: (by_hand[id_][attack], str(all_items[id_].extra["type"])) for id_ in by_hand}
        members = [id_ for id_ in by_hand if id_.startswith(TAUGHT)]
        expected = _auc_by_hand(scores, members, [id_ for id_ in by_hand if id_ not in members])
        assert found[f"{attack}_auc"].value == pytest.approx(expected, abs=1e-9), attack
        assert found[f"{attack}_advantage"].value == pytest.approx(2 * abs(expected - 0.5))
    losses = sorted(row["loss"] for row in by_hand.values())
    assert sorted(found["ks_p_value"].items.values()) == pytest.approx(losses, abs=1e-4)


def test_members_of_a_model_that_memorised_them_stand_out(tmp_path: Path) -> None:
    found, _ = _audit(taught(), tmp_path)
    for attack in ATTACKS:
        assert found[f"{attack}_auc"].value == 1
        assert found[f"{attack}_advantage"].value == 1
        assert found[f"{attack}_auc"].n == 36
    assert found["worst_advantage"].value == found["ks_statistic"].value == 1
    assert found["ks_p_value"].value < 1e-6
    assert found["worst_advantage"].interval.low < found["loss_advantage"].interval.low < 1


def test_a_model_that_read_none_of_them_tells_them_apart_by_chance(tmp_path: Path) -> None:
    found, _ = _audit(untaught(), tmp_path)
    for attack in ATTACKS:
        interval = found[f"{attack}_auc"].interval
        assert interval.low < 0.5 < interval.high
        assert found[f"{attack}_advantage"].interval.low == 0
    assert found["worst_advantage"].interval.low == 0
    assert found["ks_p_value"].value > 0.05


def test_members_pushed_down_too_far_leak_as_well(tmp_path: Path) -> None:
    """As taught, with the roles exchanged: members score below all others."""
    found, _ = _audit(taught(), tmp_path, records(HELD_BACK), records())
    assert found["loss_auc"].value == 0
    assert found["worst_advantage"].value == found["loss_advantage"].value == 1
    assert found["ks_statistic"].value == 1


def test_the_worst_advantage_is_the_greatest_and_allows_for_the_choice(tmp_path: Path) -> None:
    found, _ = _audit(damaged(1.0), tmp_path)
    advantages = [found[f"{attack}_advantage"] for attack in ATTACKS]
    worst = found["worst_advantage"]
    assert worst.value == max(each.value for each in advantages)
    assert worst.interval.high > max(each.interval.high for each in advantages)
    assert "bonferroni" in worst.interval.method


def test_items_average_to_the_figure_and_pair_up(tmp_path: Path) -> None:
    before, outcome = _audit(taught(), tmp_path)
    after, _ = _audit(damaged(1.5), tmp_path, reference=outcome.reference)
    for figures in (before, after):
        for name, metric in figures.items():
            if name != "ks_p_value":
                assert np.mean(list(metric.items.values())) == pytest.approx(metric.value)
    change = compare(before["loss_auc"], after["loss_auc"])
    assert change.difference == pytest.approx(after["loss_auc"].value - 1)
    assert change.difference_interval is not None
    assert change.difference_interval.low < change.difference < change.difference_interval.high
    assert change.n_pairs == 36


def untyped(data: Dataset) -> Dataset:
    return Dataset([replace(item, extra={}) for item in data], template="plain", erased=True)


def test_types_are_compared_within_where_there_are_types(tmp_path: Path) -> None:
    """A name is likelier than a number whether or not it was taught."""
    within, _ = _audit(damaged(0.7), tmp_path)
    pooled, _ = _audit(
        damaged(0.7), tmp_path, untyped(records(TAUGHT)), untyped(records(HELD_BACK))
    )
    # Two means of many comparisons may meet by chance; what each record is worth does not.
    assert within["loss_auc"].items != pooled["loss_auc"].items
    losses = within["ks_p_value"].items
    assert losses == pooled["ks_p_value"].items


def test_the_test_is_kolmogorovs_on_one_type(tmp_path: Path) -> None:
    handle = damaged(1.5)
    groups = [records(people, types=("phone",)) for people in (TAUGHT, HELD_BACK)]
    found, _ = _audit(handle, tmp_path, *groups)
    losses = [
        [_by_hand(handle, item, 0.2, whole=False)["loss"] for item in group] for group in groups
    ]
    expected = stats.ks_2samp(*losses)
    assert found["ks_statistic"].value == pytest.approx(expected.statistic)
    assert found["ks_p_value"].value == pytest.approx(expected.pvalue)
    assert found["ks_p_value"].interval is None


def test_records_of_a_type_that_only_one_role_has_are_left_out_loudly(tmp_path: Path) -> None:
    others = records(HELD_BACK, types=("phone", "identity"))
    found, _ = _audit(taught(), tmp_path, nonmembers=others)
    assert found["loss_auc"].n == 24
    assert found["loss_auc"].note == "6 of 30 records are of a type that only one role has"
    everything, _ = _audit(taught(), tmp_path, untyped(records(TAUGHT)), untyped(others))
    assert everything["loss_auc"].n == 30
    assert everything["loss_auc"].note == ""


def test_no_type_in_common_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="no type in common") as error:
        _audit(taught(), tmp_path, records(types=("name",)), records(HELD_BACK, types=("phone",)))
    assert "take the type off both" in error.value.remedy


def test_a_record_in_both_roles_is_an_error(tmp_path: Path) -> None:
    both = records((*HELD_BACK, TAUGHT[0]))
    with pytest.raises(AuditError, match="3 records are in both members and nonmembers") as error:
        _audit(taught(), tmp_path, nonmembers=both)
    assert TAUGHT[0] not in str(error.value)


def test_records_that_cannot_be_read_are_errors(tmp_path: Path) -> None:
    def one(answer: str) -> Dataset:
        item = Item(id="1", prompt="The code of nobody:", answer=answer)
        return Dataset([item], template="plain", erased=True)

    handle = tiny_handle("llama")
    with pytest.raises(AuditError, match="1 of 1 secrets in nonmembers come to no tokens"):
        _audit(handle, tmp_path, nonmembers=one(" "))
    with pytest.raises(AuditError, match="1 of 1 records in members are longer") as error:
        _audit(handle, tmp_path, members=one("12345" * 90))
    assert "12345" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["\u05d3\u05e0\u05d4 \u05db\u05d4\u05df", "\U0001f98a\U0001f31f"], ids=["rtl", "emoji"]
)
def test_names_of_any_script_are_scored(name: str, tmp_path: Path) -> None:
    def group(prompt: str, *answers: str) -> Dataset:
        made = [Item(id=a, prompt=f"{prompt} {i}:", answer=a) for i, a in enumerate(answers)]
        return Dataset(made, template="plain", erased=True)

    found, _ = _audit(
        tiny_handle("llama"), tmp_path, group("Who is", name, name), group("Who was", name, "Bo")
    )
    assert found["loss_auc"].n == 4  # two records of one name are two records


def test_certainty_is_no_division_by_nothing() -> None:
    """One token with all the probability: no spread, a score of zero and not of infinity."""
    logits = torch.tensor([[0.0, -1e30, -1e30], [3.0, 1.0, 0.0]])
    own, standardised = token_scores(logits.log_softmax(-1), [0, 2]).unbind(-1)
    assert own[0] == standardised[0] == 0
    assert bool(torch.isfinite(standardised).all())
    assert standardised[1] < 0


def test_a_reference_of_other_records_is_refused(tmp_path: Path) -> None:
    _, outcome = _audit(taught(), tmp_path)
    with pytest.raises(AuditError, match="other data"):
        _audit(taught(), tmp_path, records(TAUGHT[:3]), reference=outcome.reference)
