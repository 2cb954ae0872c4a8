"""No call holds a row of the vocabulary per item: with 262,144 tokens that is what kills a run."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from safeedit.auditors.leakage.membership import Membership
from safeedit.auditors.leakage.membership import Params as MembershipParams
from safeedit.auditors.locality import Locality
from safeedit.auditors.locality import Params as LocalityParams
from safeedit.data import Dataset, Item
from safeedit.errors import AuditError, EditError, UsageError
from safeedit.methods.remedi.examples import AttributeExample
from safeedit.methods.remedi.training import TrainingConfig, train
from safeedit.methods.tuning import BaseAnswers, Example, answer_states, cross_entropy
from safeedit.model import batching
from safeedit.model.handle import ModelHandle
from safeedit.model.sampling import Sampling
from safeedit.workflows.canaries.learning import still_to_learn
from tests.fixtures import context
from tests.tiny_models import tiny_handle

VOCAB = 50_000
ITEMS = 96
ROWS = 6
"""Rows of the vocabulary that a batch may hold here."""
COPIES = 8
"""How often a batch may have its rows in memory at once: logits, float32, log-probabilities,
probabilities, what is made of them."""


class Sizes(TorchDispatchMode):
    """Counts what operations make, in rows of the vocabulary: the largest tensor, and the most that
    was alive at once. Weights and views of them don't count, nor does the head in bfloat16, which
    is as large as the head whatever is asked; how often it is made is counted."""

    def __init__(self, weights: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.largest = self.most = 0.0
        self.rounded: list[torch.Tensor] = []
        self._alive: list[weakref.ref[torch.Tensor]] = []
        weights = list(weights)
        self._weights = {weight.untyped_storage().data_ptr() for weight in weights}
        self._shapes = {weight.shape for weight in weights}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if not isinstance(tensor, torch.Tensor) or tensor.numel() < VOCAB // 2:
                continue
            if func is torch.ops.aten._to_copy.default and tensor.shape in self._shapes:
                self._weights.add(tensor.untyped_storage().data_ptr())
                self.rounded.append(tensor)  # kept, so that nothing else takes its place
            if tensor.untyped_storage().data_ptr() not in self._weights:
                self.largest = max(self.largest, tensor.numel() / VOCAB)
                self._alive.append(weakref.ref(tensor))
        there = [tensor for each in self._alive if (tensor := each()) is not None]
        self._alive = list(map(weakref.ref, there))
        stored = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in there}
        self.most = max(self.most, sum(stored.values()) / 4 / VOCAB)
        return made


@pytest.fixture(scope="module")
def large() -> ModelHandle:
    return tiny_handle("llama", vocab_size=VOCAB)


@pytest.fixture
def counted(large: ModelHandle, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    monkeypatch.setattr(batching, "MAX_LOGITS", ROWS * VOCAB)

    @contextmanager
    def counting() -> Iterator[Sizes]:
        with Sizes(large.model.parameters()) as sizes:
            yield sizes

    return counting


def rows(n: int = ITEMS, length: int = 5) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(5, VOCAB, (n, length), generator=generator).tolist()


def dataset(n: int = ITEMS) -> Dataset:
    items = [Item(id=str(i), prompt=f"The number {i} is", answer=f"{i} {i}") for i in range(n)]
    return Dataset(items, template="plain", split="test")


def secrets(name: str) -> Dataset:
    items = [
        Item(id=f"{name}{i}", prompt=f"The number of {name} {i} is", answer=f"{i} {name}")
        for i in range(20)
    ]
    return Dataset(items, template="plain", split="test", erased=True)


CALLS: dict[str, Callable[[ModelHandle, Path], Any]] = {
    "generate": lambda m, _: m.engine.generate(rows(), max_new_tokens=2),
    "sample": lambda m, _: m.engine.generate(
        rows(12), max_new_tokens=2, samples=4, sampling=Sampling(temperature=1.0)
    ),
    "score": lambda m, _: m.engine.score(rows(), rows(length=2), ranks=True),
    "score a long one": lambda m, _: m.engine.score(rows(1), rows(1, 60), ranks=True),
    "totals": lambda m, _: m.engine.totals(rows(4), [rows(12, 2)] * 4),
    "text": lambda m, _: m.engine.text_nll([f"The number {i} is" for i in range(9)]),
    "next tokens": lambda m, _: m.engine.next_token_log_probs(rows(), [7, 8, 9]),
    "distributions": lambda m, _: list(
        m.engine.distributions(rows(), rows(length=2), lambda i, at, lp: lp.max(-1).values)
    ),
    "locality": lambda m, folder: Locality(LocalityParams(max_new_tokens=2)).audit(
        m, {"near": dataset()}, "test", context(folder), None
    ),
    "membership": lambda m, folder: Membership(MembershipParams()).audit(
        m, {"members": secrets("Anna"), "nonmembers": secrets("Otto")}, "test", context(folder),
        None,
    ),
}  # fmt: skip


def examples() -> list[Example]:
    return [Example(prompt, answer) for prompt, answer in zip(rows(8), rows(8, 12), strict=True)]


def cross_entropy_of(model: ModelHandle) -> Any:
    states = [state.detach().requires_grad_() for state in answer_states(model, examples())]
    return lambda: torch.autograd.grad(cross_entropy(model, states, examples()), states)


def divergence_of(model: ModelHandle) -> Any:
    batch = examples()
    base = BaseAnswers(model, batch)
    states = [state.detach().requires_grad_() for state in answer_states(model, batch)]
    return lambda: torch.autograd.grad(base.divergence(states, batch), states)


def still_to_learn_of(model: ModelHandle) -> Any:
    states = [state.detach().requires_grad_() for state in answer_states(model, examples())]
    return lambda: torch.autograd.grad(still_to_learn(model, states, examples()), states)


def remedi_loss_of(model: ModelHandle) -> Any:
    lessons = [
        AttributeExample(name, f"{name} is a king", "is a king", f"{name} is", "king", "man")
        for name in ("Anna", "Otto", "Mara", "Zyxo", "Bela", "Kiri", "Lois", "Tom", "Ann", "Bo")
    ]
    how = TrainingConfig(epochs=1, batch=len(lessons), held_out=0)

    def found() -> Any:
        with suppress(EditError):  # whether one step helps is not asked here
            train(model, lessons, 0, "plain", how)
        return [torch.ones(1)]

    return found


LOSSES = {
    "cross entropy": cross_entropy_of,
    "divergence": divergence_of,
    "canaries": still_to_learn_of,
    "REMEDI": remedi_loss_of,
}


@pytest.mark.trains
@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_and_its_gradient_hold_the_rows_of_one_chunk(
    loss: str, large: ModelHandle, counted: Callable[[], Any]
) -> None:
    found = LOSSES[loss](large)
    with counted() as sizes:
        (*gradients,) = found()
    assert all(bool(gradient.abs().sum() > 0) for gradient in gradients)
    assert sizes.largest <= ROWS
    assert sizes.most <= ROWS * COPIES
    assert sizes.largest > 0.9, "what is counted is there"


@pytest.mark.parametrize("call", CALLS)
def test_a_call_holds_the_rows_of_one_batch_and_not_those_of_all_items(
    call: str, large: ModelHandle, counted: Callable[[], Any], tmp_path: Path
) -> None:
    with counted() as sizes:
        CALLS[call](large, tmp_path)
    kept = 0.33 * 8 * ITEMS if call == "locality" else 0  # the likeliest third, at 8 positions
    assert sizes.largest <= max(ROWS, kept)
    assert sizes.most <= ROWS * COPIES + 2 * kept
    assert sizes.largest > 0.9, "what is counted is there"
    assert len(sizes.rounded) <= 1, "the head is rounded once a call, on CPUs where that is quicker"


def test_rows_that_are_kept_are_counted_so_the_count_can_fail(
    large: ModelHandle, counted: Callable[[], Any]
) -> None:
    with counted() as sizes:
        held = list(
            large.engine.distributions(rows(), rows(length=2), lambda i, at, log_probs: log_probs)
        )
    assert len(held) == ITEMS
    assert sizes.most > 2 * ITEMS


def test_a_row_of_the_vocabulary_is_for_the_asking_of_few_prompts(
    large: ModelHandle, counted: Callable[[], Any]
) -> None:
    engine = large.engine
    few = engine.next_token_log_probs(rows(3))
    assert few.shape == (3, VOCAB)
    with pytest.raises(UsageError, match="name the tokens") as refused:
        engine.next_token_log_probs(rows())
    assert "96 prompts x 50000 tokens" in str(refused.value)
    named = engine.next_token_log_probs(rows(), [9, 7])
    torch.testing.assert_close(named[:3], few[:, [9, 7]])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt_projected"])
def test_read_in_parts_a_long_continuation_scores_as_it_does_whole(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gemma 2 caps its logits after the head, OPT-350m projects before it."""
    handle = tiny_handle(family)
    vocab = handle.shape.vocab_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 300, (2, 40), generator=generator).tolist()
    prompts = [ids[0][:6], ids[1][:9]]
    continuations = [ids[0][6:], ids[1][9:11]]
    tails = [[*continuations[0][:20], 7], [*continuations[0][:20], 8], continuations[0], [5]]

    def all_of_it() -> tuple[Any, ...]:
        scores = handle.engine.score(prompts, continuations, ranks=True)
        totals = handle.engine.totals(prompts[:1], [tails])
        read = dict(
            handle.engine.distributions(
                prompts, continuations,
                lambda i, at, log_probs: torch.stack(
                    [log_probs.max(-1).values, torch.tensor([float(p) for p in at])], -1
                ),
            )
        )  # fmt: skip
        return scores, totals, read

    whole, whole_totals, whole_read = all_of_it()
    monkeypatch.setattr(batching, "MAX_LOGITS", 7 * vocab)
    parts, parts_totals, parts_read = all_of_it()
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one.log_probs, other.log_probs, atol=1e-4, rtol=0)
        assert torch.equal(one.greedy, other.greedy)
        assert torch.equal(one.ranks, other.ranks)
    torch.testing.assert_close(whole_totals, parts_totals, atol=1e-4, rtol=0)
    for index in whole_read:
        torch.testing.assert_close(whole_read[index], parts_read[index], atol=1e-4, rtol=0)
        assert parts_read[index][:, 1].tolist() == list(range(len(continuations[index])))


def test_in_parts_too_logits_that_are_no_numbers_are_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handle = tiny_handle("llama")
    monkeypatch.setattr(batching, "MAX_LOGITS", 2 * handle.shape.vocab_size)
    with torch.no_grad():
        handle.head.weight[3] = torch.nan
    with pytest.raises(AuditError, match="not finite"):
        handle.engine.score([[5, 6]], [[7, 8, 9, 10]])
