"""Deltas as values: their arithmetic, their controls and their files."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from safeedit.delta import (
    Columns,
    Dense,
    LowRank,
    Origin,
    Update,
    WeightDelta,
    apply_update,
    measure_change,
)
from safeedit.errors import EditError, ModelError, UsageError
from tests.fixtures import gaussian

ORIGIN = Origin(
    "sanitation", {"rank": 2, "rate": 3e-4}, data_digest="d", version="0.1", seed=7, dose=0.5
)


def mixed_delta() -> WeightDelta:
    return WeightDelta(
        "base",
        {
            "b.weight": LowRank(gaussian(6, 2), gaussian(2, 8, seed=1)),
            "a.weight": Columns(torch.tensor([5, 1]), gaussian(6, 2, seed=2)),
            "a.bias": Dense(gaussian(6, seed=3)),
            "c.weight": Dense(gaussian(6, 8, seed=4)),
        },
        ORIGIN,
    )


class FixedWeights:
    """Stands in for a model: every matrix is the same."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def oriented(self, name: str) -> Tensor:
        return self.weight


# Arithmetic


def test_low_rank_is_added() -> None:
    weight, left, right = gaussian(6, 8), gaussian(6, 2, seed=1), gaussian(2, 8, seed=2)
    result = apply_update(weight, LowRank(left, right))
    torch.testing.assert_close(result, weight + left @ right)


def test_dense_is_added_to_matrices_and_biases() -> None:
    for shape in ((6, 8), (6,)):
        weight, values = gaussian(*shape), gaussian(*shape, seed=1)
        assert torch.equal(apply_update(weight, Dense(values)), weight + values)


def test_columns_are_replaced_and_nothing_else() -> None:
    weight, values = gaussian(6, 8), gaussian(6, 2, seed=1)
    result = apply_update(weight, Columns(torch.tensor([5, 1]), values))
    assert torch.equal(result[:, [5, 1]], values)
    others = [0, 2, 3, 4, 6, 7]
    assert torch.equal(result[:, others], weight[:, others])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_zeroing_columns_is_exact(dtype: torch.dtype) -> None:
    weight = gaussian(64, 64).to(dtype)
    zeroed = apply_update(weight, Columns.zeroed(torch.tensor([3]), 64))
    assert torch.count_nonzero(zeroed[:, 3]) == 0
    assert torch.equal(zeroed[:, :3], weight[:, :3])


def test_adding_a_columns_negative_as_factors_leaves_dust() -> None:
    weight, selector = gaussian(64, 64), torch.zeros(1, 64)
    selector[0, 3] = 3.0
    added = apply_update(weight, LowRank(-weight[:, 3:4] / 3, selector))
    assert 0 < float(added[:, 3].abs().max()) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_result_keeps_dtype_and_leaves_the_weight_alone(dtype: torch.dtype) -> None:
    weight = gaussian(6, 8).to(dtype)
    before = weight.clone()
    updates: tuple[Update, ...] = (
        LowRank(gaussian(6, 2), gaussian(2, 8)),
        Columns.zeroed(torch.tensor([0]), 6),
        Dense(gaussian(6, 8)),
    )
    for update in updates:
        result = apply_update(weight, update)
        assert result.dtype == dtype
        assert torch.equal(weight, before)
        assert not torch.equal(result, before)


def test_the_cast_happens_once_after_maths_in_fp32() -> None:
    # Each term alone is below half a step of bf16 at 1.0 (2**-8); their sum is above.
    weight = torch.ones(1, 1, dtype=torch.bfloat16)
    left, right = torch.full((1, 4), 2.0**-9), torch.ones(4, 1)
    assert apply_update(weight, LowRank(left, right)).item() == 1 + 2.0**-7
    assert apply_update(weight, LowRank(left[:, :1], right[:1])).item() == 1.0
    # Just above half a step; rounded by itself first, it would be half a step, a tie, and lost.
    assert apply_update(weight, Dense(torch.tensor([[2.0**-8 + 2.0**-17]]))).item() == 1 + 2.0**-7


def test_updates_are_kept_in_fp32_on_the_cpu_without_history() -> None:
    factor = gaussian(6, 2).double().requires_grad_()
    update = LowRank(factor, gaussian(2, 8).bfloat16())
    for part in update.parts.values():
        assert (part.dtype, part.device.type) == (torch.float32, "cpu")
        assert not part.requires_grad


def test_updates_that_make_no_sense_are_refused() -> None:
    with pytest.raises(EditError, match="do not multiply"):
        LowRank(gaussian(6, 2), gaussian(3, 8))
    with pytest.raises(EditError, match="do not go with values"):
        Columns(torch.tensor([1]), gaussian(6, 2))
    with pytest.raises(EditError, match="distinct and not negative"):
        Columns(torch.tensor([1, 1]), gaussian(6, 2))
    with pytest.raises(EditError, match="distinct and not negative"):
        Columns(torch.tensor([0, -1]), gaussian(6, 2))
    for bad in (float("nan"), float("inf")):
        with pytest.raises(EditError, match="NaN or infinity"):
            Dense(torch.tensor([bad]))


@pytest.mark.parametrize(
    "update",
    [
        LowRank(gaussian(8, 2), gaussian(2, 6)),
        Columns(torch.tensor([8]), gaussian(6, 1)),
        Columns(torch.tensor([0]), gaussian(8, 1)),
        Dense(gaussian(8, 6)),
        Dense(gaussian(6)),
    ],
    ids=["transposed factors", "column outside", "rows", "transposed", "a bias"],
)
def test_an_update_of_another_shape_is_refused(update: Update) -> None:
    with pytest.raises(EditError, match=r"does not fit a tensor of shape \(6, 8\)"):
        apply_update(gaussian(6, 8), update)


# What a change really did


def test_in_bf16_a_tiny_delta_vanishes_and_the_record_says_so() -> None:
    weight = torch.ones(4, 4, dtype=torch.bfloat16)
    update = Dense(torch.full((4, 4), 2.0**-10))  # a quarter of half a step
    after = apply_update(weight, update)
    change = measure_change("w", "mlp_out", 3, weight, after, update)
    assert (change.entries_changed, change.share_changed) == (0, 0.0)
    assert change.cast_error == pytest.approx(1.0)
    assert change.delta_norm == pytest.approx(4 * 2.0**-10)
    assert (change.name, change.role, change.layer, change.kind) == ("w", "mlp_out", 3, "dense")


def test_in_fp32_the_same_delta_arrives_whole() -> None:
    weight = torch.ones(4, 4)
    update = Dense(torch.full((4, 4), 2.0**-10))
    change = measure_change("w", "mlp_out", 0, weight, apply_update(weight, update), update)
    assert (change.entries_changed, change.share_changed, change.cast_error) == (16, 1.0, 0.0)
    assert change.relative_norm == pytest.approx(2.0**-10)


def test_the_cast_error_is_that_of_its_definition() -> None:
    weight = gaussian(40, 50).bfloat16()
    update = LowRank(0.01 * gaussian(40, 2, seed=1), gaussian(2, 50, seed=2))
    after = apply_update(weight, update)
    change = measure_change("w", "mlp_out", 0, weight, after, update)
    delta = update.left.double() @ update.right.double()
    error = after.double() - weight.double() - delta
    assert change.cast_error == pytest.approx(float(error.norm() / delta.norm()), rel=1e-4)
    assert 0 < change.cast_error < 1
    assert change.entries_changed == int((after != weight).sum())
    assert change.share_changed == change.entries_changed / weight.numel()
    assert 0.1 < change.share_changed < 1


def test_replaced_columns_are_measured_against_what_they_replace() -> None:
    weight = gaussian(6, 8)
    update = Columns.zeroed(torch.tensor([2, 7]), 6)
    change = measure_change("w", "mlp_out", 0, weight, apply_update(weight, update), update)
    assert change.delta_norm == pytest.approx(float(weight[:, [2, 7]].norm()))
    assert (change.entries_changed, change.share_changed) == (12, 0.25)
    assert change.cast_error == 0.0


# A delta


def test_scaling_scales_what_is_added() -> None:
    delta = WeightDelta(
        "base",
        {"w": LowRank(gaussian(6, 2), gaussian(2, 8)), "b": Dense(gaussian(6))},
        ORIGIN,
    )
    half, zero = delta.scaled(0.5), torch.zeros(6, 8)
    torch.testing.assert_close(half.updates["w"].change(zero), delta.updates["w"].change(zero) / 2)
    assert half.norm() == pytest.approx(delta.norm() / 2)
    assert (half.base, half.origin) == (delta.base, delta.origin)


def test_replaced_columns_can_not_be_scaled() -> None:
    with pytest.raises(UsageError, match=r"a\.weight replaces columns and cannot be scaled"):
        mixed_delta().scaled(2.0)


def test_the_norm_is_frobenius_over_all_tensors() -> None:
    delta, weights = mixed_delta(), FixedWeights(gaussian(6, 8, seed=9))
    changes = [
        update.change(torch.zeros(6) if name.endswith("bias") else weights.weight)
        for name, update in delta.updates.items()
    ]
    by_hand = torch.cat([change.flatten() for change in changes]).norm()
    assert delta.norm(weights) == pytest.approx(float(by_hand), rel=1e-5)
    with pytest.raises(UsageError, match="pass the model"):
        delta.norm()


def test_a_delta_can_not_be_changed_behind_its_back() -> None:
    updates: dict[str, Update] = {"w": Dense(gaussian(6, 8))}
    delta = WeightDelta("base", updates, ORIGIN)
    updates["v"] = Dense(gaussian(6, 8))
    assert list(delta.updates) == ["w"]
    with pytest.raises(TypeError):
        delta.updates["v"] = Dense(gaussian(6, 8))  # type: ignore[index]


# Controls


def test_a_random_control_has_the_same_norms_ranks_and_places() -> None:
    delta, weights = mixed_delta(), FixedWeights(gaussian(6, 8, seed=9))
    control = delta.random_like(3, weights)
    assert list(control.updates) == list(delta.updates)
    for name, update in delta.updates.items():
        other = control.updates[name]
        assert type(other) is type(update)
        if not isinstance(update, Columns):
            zero = torch.zeros(6) if name.endswith("bias") else torch.zeros(6, 8)
            own, random = update.change(zero), other.change(zero)
            assert float(random.norm()) == pytest.approx(float(own.norm()), rel=1e-5)
            assert not torch.allclose(own, random, atol=1e-3)
    low_rank, random_low_rank = delta.updates["b.weight"], control.updates["b.weight"]
    assert isinstance(low_rank, LowRank)
    assert isinstance(random_low_rank, LowRank)
    torch.testing.assert_close(
        random_low_rank.singular_values(), low_rank.singular_values(), rtol=1e-5, atol=1e-6
    )


def test_a_control_for_zeroed_columns_zeroes_as_many_others() -> None:
    update = Columns.zeroed(torch.tensor([0, 1, 2]), 6)
    delta = WeightDelta("base", {"w": update}, ORIGIN)
    weights = FixedWeights(gaussian(6, 8))
    for seed in range(20):
        control = delta.random_like(seed, weights).updates["w"]
        assert isinstance(control, Columns)
        assert len(control.indices) == 3
        assert not set(control.indices.tolist()) & {0, 1, 2}
        assert torch.count_nonzero(control.values) == 0
    with pytest.raises(UsageError, match="needs its width"):
        delta.random_like(0)


def test_a_control_takes_the_edits_own_columns_only_when_others_run_out() -> None:
    delta = WeightDelta("base", {"w": Columns.zeroed(torch.arange(6), 6)}, ORIGIN)
    control = delta.random_like(0, FixedWeights(gaussian(6, 8))).updates["w"]
    assert isinstance(control, Columns)
    assert {6, 7} <= set(control.indices.tolist())
    assert len(set(control.indices.tolist())) == 6


def test_a_control_of_few_rows_changes_as_few_rows() -> None:
    values = torch.zeros(30, 8)
    values[[3, 4]] = gaussian(2, 8)
    delta = WeightDelta("base", {"w": Dense(values)}, ORIGIN)
    control = delta.random_like(0).updates["w"].parts["values"]
    assert int(control.any(dim=1).sum()) == 2
    torch.testing.assert_close(control.norm(dim=1).sort().values, values.norm(dim=1).sort().values)


def test_controls_are_made_again_by_their_seed_alone() -> None:
    weights = FixedWeights(gaussian(6, 8))
    first, again = (mixed_delta().random_like(5, weights).digest() for _ in range(2))
    assert first == again
    assert mixed_delta().random_like(6, weights).digest() != first


# Files


def test_a_delta_comes_back_from_its_file_unchanged(tmp_path: Path) -> None:
    delta = mixed_delta()
    delta.save(tmp_path / "edit.safetensors")
    loaded = WeightDelta.load(tmp_path / "edit.safetensors")
    assert (loaded.base, loaded.origin) == (delta.base, delta.origin)
    assert loaded.digest() == delta.digest()
    for name, update in delta.updates.items():
        assert type(loaded.updates[name]) is type(update)
        for part, tensor in update.parts.items():
            assert torch.equal(loaded.updates[name].parts[part], tensor)
    assert [path.name for path in tmp_path.iterdir()] == ["edit.safetensors"]


def test_equal_deltas_make_equal_files(tmp_path: Path) -> None:
    mixed_delta().save(tmp_path / "one")
    mixed_delta().save(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_empty_updates_and_shared_factors_can_be_saved(tmp_path: Path) -> None:
    square = gaussian(6, 6)
    delta = WeightDelta(
        "base",
        {
            "none": Columns.zeroed(torch.empty(0), 6),
            "shared": LowRank(square, square),
            "rank 0": LowRank(torch.empty(6, 0), torch.empty(0, 8)),
        },
        ORIGIN,
    )
    delta.save(tmp_path / "edit")
    assert WeightDelta.load(tmp_path / "edit").digest() == delta.digest()
    assert WeightDelta("base", {"none": delta.updates["none"]}, ORIGIN).norm(
        FixedWeights(gaussian(6, 8))
    ) == pytest.approx(0.0)
    assert apply_update(gaussian(6, 8), delta.updates["rank 0"]).equal(gaussian(6, 8))
    assert WeightDelta("", {"rank 0": delta.updates["rank 0"]}, ORIGIN).random_like(1).norm() == 0


@pytest.mark.parametrize(
    "changed",
    [
        WeightDelta("other", mixed_delta().updates, ORIGIN),
        WeightDelta("base", mixed_delta().updates, Origin("sanitation")),
        WeightDelta(
            "base", {**mixed_delta().updates, "a.bias": Dense(gaussian(6, seed=8))}, ORIGIN
        ),
        WeightDelta("base", dict(list(mixed_delta().updates.items())[1:]), ORIGIN),
    ],
    ids=["base", "origin", "value", "tensors"],
)
def test_the_digest_covers_everything(changed: WeightDelta) -> None:
    assert changed.digest() != mixed_delta().digest()


@settings(max_examples=25, deadline=None)
@given(cut=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(cut: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("delta") / "edit"
    mixed_delta().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * cut)])
    with pytest.raises(ModelError, match="cannot read this delta") as refusal:
        WeightDelta.load(path)
    assert refusal.value.file == str(path)


def test_a_pickle_is_refused_unopened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (str(tmp_path / "went off"),))

    (tmp_path / "edit").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ModelError, match="cannot read this delta"):
        WeightDelta.load(tmp_path / "edit")
    assert not (tmp_path / "went off").exists()


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        WeightDelta.load(tmp_path / "edit")


def test_a_folder_is_no_delta(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        WeightDelta.load(tmp_path)


def test_weights_that_are_no_delta_are_refused(tmp_path: Path) -> None:
    save_file({"w": gaussian(6, 8)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="cannot read this delta"):
        WeightDelta.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "header",
    [
        "not json",
        "[]",
        '{"format": "safeedit delta 99", "base": "", "updates": {}, "origin": {"editor": ""}}',
        '{"format": "safeedit delta 1", "base": "", "updates": {"w": "pickle"}, "origin": {}}',
        '{"format": "safeedit delta 1", "base": "", "updates": {}, "origin": {"editor": ""}}',
        '{"format": "safeedit delta 1", "base": "", "updates": {"w": "dense"}, "origin": {}}',
        '{"format": "safeedit delta 1", "base": "", "updates": {"w": "low_rank"}, "origin": {}}',
    ],
    ids=["no JSON", "no object", "version", "kind", "extra tensor", "origin", "missing tensor"],
)
def test_a_header_that_does_not_add_up_is_refused(tmp_path: Path, header: str) -> None:
    save_file({"w::values": gaussian(6, 8)}, tmp_path / "edit", metadata={"safeedit": header})
    with pytest.raises(ModelError, match="cannot read this delta"):
        WeightDelta.load(tmp_path / "edit")


def test_nan_in_a_file_is_refused(tmp_path: Path) -> None:
    update = Dense(torch.zeros(6))
    update.values[2] = float("nan")
    WeightDelta("base", {"b": update}, ORIGIN).save(tmp_path / "edit")
    with pytest.raises(ModelError, match="NaN or infinity"):
        WeightDelta.load(tmp_path / "edit")


def test_a_file_that_can_not_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="edit"):
        mixed_delta().save(tmp_path / "missing" / "edit")
    assert list(tmp_path.iterdir()) == []
