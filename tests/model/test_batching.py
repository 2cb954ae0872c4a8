"""Batches: formed by length, shrunk by need."""

from __future__ import annotations

import pytest
import torch

from safeedit.errors import AuditError
from safeedit.model.batching import Batcher, common_prefix, is_out_of_memory, pad_right


def test_batches_keep_to_the_budget_and_every_index_comes_once() -> None:
    lengths = [3, 9, 1, 7, 7, 2, 30]
    batches: list[list[int]] = []

    def run(batch: list[int]) -> list[int]:
        batches.append(batch)
        return [10 * index for index in batch]

    found = list(Batcher(20).each(lengths, run))

    assert sorted(found) == [(index, 10 * index) for index in range(7)]
    for batch in batches:
        width = max(lengths[index] for index in batch)
        assert len(batch) == 1 or width * len(batch) <= 20
    widest = [max(lengths[index] for index in batch) for batch in batches]
    assert widest == sorted(widest, reverse=True)


def test_a_row_over_the_budget_still_runs_alone() -> None:
    assert dict(Batcher(4).each([100], lambda batch: ["done"])) == {0: "done"}


def test_the_budget_halves_until_the_work_fits() -> None:
    batcher = Batcher(1000)
    sizes: list[int] = []

    def run(batch: list[int]) -> list[int]:
        sizes.append(len(batch))
        if len(batch) > 3:
            raise MemoryError
        return batch

    found = dict(batcher.each([10] * 16, run))

    assert found == {index: index for index in range(16)}
    assert sizes[:4] == [16, 8, 4, 2]
    assert batcher.max_tokens == 20


def test_work_that_never_fits_is_an_error() -> None:
    def run(batch: list[int]) -> list[int]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(AuditError, match="prompt 2 alone"):
        list(Batcher(100).each([1, 1, 5], run))


def test_rows_that_may_not_share_a_batch_do_not() -> None:
    lengths = [5, 5, 4, 4, 4]
    batches: list[list[int]] = []

    def run(batch: list[int]) -> list[int]:
        batches.append(batch)
        return batch

    equal = Batcher(100).each(lengths, run, together=lambda a, b: lengths[a] == lengths[b])

    assert len(list(equal)) == 5
    assert batches == [[0, 1], [2, 3, 4]]


def test_padding_fills_on_the_right() -> None:
    assert pad_right([[1, 2, 3], [4]], 9).tolist() == [[1, 2, 3], [4, 9, 9]]
    assert pad_right([]).numel() == 0


@pytest.mark.parametrize(
    ("rows", "shared"),
    [
        ([[1, 2, 3], [1, 2, 4], [1, 2]], 2),
        ([[1], [2]], 0),
        ([[7, 8], [7, 8]], 2),
        ([[5, 1, 9], [5, 2, 0], [5, 1, 1]], 1),
        ([(1, 2), [1, 2, 3]], 2),
        ([], 0),
    ],
)
def test_the_common_prefix_is_what_all_rows_share(rows: list[list[int]], shared: int) -> None:
    assert common_prefix(rows) == shared


def test_lack_of_memory_is_told_from_other_errors() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert not is_out_of_memory(RuntimeError("index out of range"))
    assert not is_out_of_memory(ValueError("out of memory"))
