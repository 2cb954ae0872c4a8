"""The engine against one unpadded prompt at a time through ``model(...)``.

Tolerance in float32: 1e-4 nats; greedy tokens are equal.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from safeedit.delta import Dense, Origin, WeightDelta
from safeedit.errors import AuditError, UsageError
from safeedit.model.engine import Engine, Sampling
from safeedit.model.handle import ModelHandle
from tests.tiny_models import FAMILIES, MAX_POSITIONS, VOCAB_SIZE, tiny_handle, tiny_model

TOLERANCE = 1e-4
WINDOWED = ("mistral", "gemma2", "gemma3_text", "phi3")
MODELS: list[tuple[str, dict[str, Any]]] = [(family, {}) for family in FAMILIES]
MODELS += [(family, {"sliding_window": 12}) for family in WINDOWED]


def label(model: object) -> str:
    assert isinstance(model, tuple)
    return f"{model[0]}-windowed" if model[1] else str(model[0])


@pytest.fixture(params=MODELS, ids=label)
def handle(request: pytest.FixtureRequest) -> ModelHandle:
    family, options = request.param
    return tiny_handle(family, **options)


def token_rows(n: int, low: int, high: int, *, shared: int = 0, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    start = [rng.randrange(5, VOCAB_SIZE - 5) for _ in range(shared)]
    return [
        start + [rng.randrange(5, VOCAB_SIZE - 5) for _ in range(rng.randint(low, high))]
        for _ in range(n)
    ]


@torch.no_grad()
def logits_of(handle: ModelHandle, ids: list[int]) -> Tensor:
    """Of one prompt, through the whole model, without cache or padding: (tokens, vocab)."""
    tokens = torch.tensor([ids])
    output = handle.model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
    logits: Tensor = output.logits[0].float()
    return logits


def expected_log_probs(handle: ModelHandle, prompt: list[int], rest: list[int]) -> Tensor:
    found = logits_of(handle, prompt + rest).log_softmax(-1)
    return found[len(prompt) - 1 : len(prompt) - 1 + len(rest)]


def expected_greedy(handle: ModelHandle, prompt: list[int], n: int) -> list[int]:
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(logits_of(handle, ids)[-1].argmax()))
    return ids[len(prompt) :]


# Batched equals one at a time -----------------------------------------------------------


@pytest.mark.parametrize("shared", [0, 10], ids=["nothing shared", "shared prefix"])
def test_batched_scores_equal_those_of_each_prompt_alone(handle: ModelHandle, shared: int) -> None:
    prompts = token_rows(7, 1, 20, shared=shared)
    continuations = token_rows(7, 0, 6, seed=1)

    scores = handle.engine.score(prompts, continuations)

    for prompt, rest, score in zip(prompts, continuations, scores, strict=True):
        expected = expected_log_probs(handle, prompt, rest)
        own = expected.gather(-1, torch.tensor(rest, dtype=torch.long)[:, None])[:, 0]
        torch.testing.assert_close(score.log_probs, own, atol=TOLERANCE, rtol=0)
        assert score.greedy.tolist() == (expected.argmax(-1) == torch.tensor(rest)).tolist()


@pytest.mark.parametrize("shared", [0, 10], ids=["nothing shared", "shared prefix"])
def test_batched_greedy_answers_equal_those_of_each_prompt_alone(
    handle: ModelHandle, shared: int
) -> None:
    prompts = token_rows(5, 1, 20, shared=shared)

    answers = handle.engine.generate(prompts, max_new_tokens=8, stop_ids=[])

    for prompt, (answer,) in zip(prompts, answers, strict=True):
        assert answer == expected_greedy(handle, prompt, 8)


def as_they_are(index: int, positions: range, log_probs: torch.Tensor) -> torch.Tensor:
    return log_probs


def test_distributions_equal_those_of_the_whole_model(handle: ModelHandle) -> None:
    prompts = token_rows(4, 1, 12)
    continuations = token_rows(4, 2, 6, seed=1)

    found = dict(handle.engine.distributions(prompts, continuations, as_they_are, max_positions=3))

    assert sorted(found) == [0, 1, 2, 3]
    for index, distribution in found.items():
        expected = expected_log_probs(handle, prompts[index], continuations[index])[:3]
        torch.testing.assert_close(distribution, expected, atol=TOLERANCE, rtol=0)


def test_next_token_distributions_follow_each_prompt(handle: ModelHandle) -> None:
    prompts = token_rows(4, 1, 12)

    found = handle.engine.next_token_log_probs(prompts)

    expected = torch.stack([logits_of(handle, p)[-1].log_softmax(-1) for p in prompts])
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(4))


def test_hidden_states_are_those_of_each_prompt_alone(handle: ModelHandle) -> None:
    prompts = token_rows(4, 1, 12)
    engine = handle.engine

    last = engine.hidden(prompts, [0, 2])
    every = engine.hidden(prompts, [0, 2], "all")

    for index, prompt in enumerate(prompts):
        with torch.no_grad():
            states = handle.model(
                input_ids=torch.tensor([prompt]), output_hidden_states=True, use_cache=False
            ).hidden_states
        # Index 0 is the embedding. The last one is past the final norm, so block 2 is taken
        # through that norm for the comparison.
        found = every[0][index]
        torch.testing.assert_close(found, states[1][0], atol=TOLERANCE, rtol=0)
        normed = handle.final_norm(every[2][index])
        if handle.architecture.output_projection is None or normed.shape == states[-1][0].shape:
            torch.testing.assert_close(normed, states[-1][0], atol=TOLERANCE, rtol=1e-4)
        for layer in (0, 2):
            assert torch.equal(last[layer][index], every[layer][index][-1])


def test_activations_are_those_of_each_prompt_alone(handle: ModelHandle) -> None:
    prompts = token_rows(4, 1, 12)
    sites = handle.sites("mlp_out", [0, 2])

    found = dict(handle.engine.activations(prompts, sites))

    for index, prompt in enumerate(prompts):
        alone = handle.capture({"input_ids": torch.tensor([prompt])}, sites)
        for site in sites:
            assert found[index][site].shape == (len(prompt), handle.shape.d_mlp)
            torch.testing.assert_close(found[index][site], alone[site][0], atol=1e-5, rtol=1e-4)


def test_bfloat16_is_not_silently_promoted_and_stays_close() -> None:
    handle = tiny_handle("llama", torch.bfloat16)
    prompts, continuations = token_rows(6, 2, 12), token_rows(6, 1, 4, seed=1)

    scores = handle.engine.score(prompts, continuations)

    assert handle.dtype == torch.bfloat16
    for prompt, rest, score in zip(prompts, continuations, scores, strict=True):
        own = expected_log_probs(handle, prompt, rest).gather(-1, torch.tensor(rest)[:, None])
        torch.testing.assert_close(score.log_probs, own[:, 0], atol=0.1, rtol=0)


def test_results_come_in_the_order_asked_however_small_the_batches(llama: ModelHandle) -> None:
    prompts, continuations = token_rows(9, 1, 20), token_rows(9, 1, 6, seed=1)
    whole = Engine(llama)
    narrow = Engine(llama, max_batch_tokens=25)

    for one, other in zip(
        whole.score(prompts, continuations), narrow.score(prompts, continuations), strict=True
    ):
        torch.testing.assert_close(one.log_probs, other.log_probs, atol=TOLERANCE, rtol=0)
    assert whole.generate(prompts, max_new_tokens=5) == narrow.generate(prompts, max_new_tokens=5)


def test_prompts_that_are_equal_or_begin_one_another_keep_a_token_of_their_own(
    llama: ModelHandle,
) -> None:
    start = token_rows(1, 12, 12)[0]
    prompts = [start, start, [*start, 9, 8]]

    answers = llama.engine.generate(prompts, max_new_tokens=4, stop_ids=[])
    scores = llama.engine.score(prompts, [[7, 6]] * 3)

    for prompt, (answer,), score in zip(prompts, answers, scores, strict=True):
        assert answer == expected_greedy(llama, prompt, 4)
        own = expected_log_probs(llama, prompt, [7, 6])[torch.arange(2), torch.tensor([7, 6])]
        torch.testing.assert_close(score.log_probs, own, atol=TOLERANCE, rtol=0)


def test_an_edit_between_calls_takes_effect_on_the_shared_prefix_too(llama: ModelHandle) -> None:
    prompts, continuations = token_rows(3, 2, 6, shared=12), token_rows(3, 2, 2, seed=1)
    before = llama.engine.score(prompts, continuations)
    name = llama.sites("mlp_out", [0])[0].weight
    change = torch.randn(llama.oriented(name).shape, generator=torch.Generator().manual_seed(3))
    origin = Origin("test", {}, "", "0", 0, None)

    with llama.applied(WeightDelta(llama.digest(), {name: Dense(change)}, origin)):
        inside = llama.engine.score(prompts, continuations)
        alone = expected_log_probs(llama, prompts[0], continuations[0])
    after = llama.engine.score(prompts, continuations)

    own = alone.gather(-1, torch.tensor(continuations[0])[:, None])[:, 0]
    torch.testing.assert_close(inside[0].log_probs, own, atol=TOLERANCE, rtol=0)
    assert not torch.allclose(inside[0].log_probs, before[0].log_probs, atol=1e-2)
    assert torch.equal(after[0].log_probs, before[0].log_probs)


# Scores ---------------------------------------------------------------------------------


def test_ranks_count_the_likelier_tokens_and_ties_share_their_mean(llama: ModelHandle) -> None:
    with torch.no_grad():
        llama.head.weight[10:14] = llama.head.weight[10]  # four tokens, equal logits
    prompt = token_rows(1, 5, 5)[0]
    logits = logits_of(llama, prompt)[-1]

    tied = llama.engine.score([prompt], [[12]], ranks=True)[0].ranks
    best = llama.engine.score([prompt], [[int(logits.argmax())]], ranks=True)[0].ranks

    above = int((logits > logits[12]).sum())
    assert tied is not None
    assert best is not None
    assert tied.item() == above + 2.5  # the mean of four places
    assert best.item() >= 1
    assert llama.engine.score([prompt], [[12]])[0].ranks is None


def test_the_total_is_the_log_probability_of_the_whole_continuation(llama: ModelHandle) -> None:
    prompt, rest = token_rows(1, 5, 5)[0], token_rows(1, 4, 4, seed=1)[0]
    step_by_step = sum(
        float(logits_of(llama, prompt + rest[:j])[-1].log_softmax(-1)[rest[j]]) for j in range(4)
    )

    assert llama.engine.score([prompt], [rest])[0].total == pytest.approx(step_by_step, abs=1e-3)


def test_an_empty_continuation_has_no_scores(llama: ModelHandle) -> None:
    (score,) = llama.engine.score([[7, 8]], [[]], ranks=True)

    assert score.log_probs.shape == (0,)
    assert score.ranks is not None
    assert score.total == 0
    assert llama.engine.score([], []) == []


def candidates_of(prompts: list[list[int]]) -> list[list[list[int]]]:
    """Per prompt, continuations that share their beginning, or all but their last token."""
    begun = [4, 9, 17, 30, 31]
    return [
        [*([*begun, *tail] for tail in token_rows(6, 1, 4, seed=seed)), [*begun, 7], [*begun, 8]]
        for seed in range(len(prompts) - 3)
    ] + [[[5, 6, 7]], [[], [5], [6, 8], [6, 8]], []]


def test_continuations_that_differ_in_their_last_token_are_run_once(llama: ModelHandle) -> None:
    engine = llama.engine
    prompts, ends = [[5, 6, 7], [5, 6, 7], [5, 6, 7], [8, 9]], [[3, 4], [3, 5], [4], [3, 4]]
    alone = [engine.score([p], [c])[0] for p, c in zip(prompts, ends, strict=True)]
    rows: list[int] = []

    def count(module: torch.nn.Module, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        rows.append(len(kwargs["input_ids"]))

    hook = llama.model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        together = engine.score(prompts, ends)
    finally:
        hook.remove()
    assert sum(rows) == 3
    for one, other in zip(alone, together, strict=True):
        assert torch.allclose(one.log_probs, other.log_probs, atol=1e-5)


@pytest.mark.parametrize("shared", [0, 12], ids=["nothing shared", "shared prefix"])
def test_totals_of_many_continuations_equal_those_scored_one_by_one(
    handle: ModelHandle, shared: int
) -> None:
    prompts = token_rows(6, 1, 20, shared=shared)
    candidates = candidates_of(prompts)

    found = handle.engine.totals(prompts, candidates)

    for prompt, some, totals in zip(prompts, candidates, found, strict=True):
        expected = [score.total for score in handle.engine.score([prompt] * len(some), some)]
        assert totals.dtype == torch.float64
        assert totals.tolist() == pytest.approx(expected, abs=TOLERANCE * 10)
    assert handle.engine.totals([], []) == []


def test_what_continuations_of_a_prompt_share_is_run_for_all_of_them(llama: ModelHandle) -> None:
    prompt, begun = token_rows(1, 20, 20)[0], token_rows(1, 6, 6, seed=1)[0]
    candidates = [[*begun, first, last] for first in (5, 6) for last in range(10, 60)]
    seen: list[int] = []
    hook = llama.model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )

    llama.engine.totals([prompt], [candidates])
    hook.remove()

    # Prompt and beginning, less the last token, for their own scores and for their keys and
    # values; then for each of 5 and 6 what stands before it, and it.
    assert sum(seen) == 2 * (20 + 6 - 1) + 2 * 2


def test_totals_go_with_their_prompts(llama: ModelHandle) -> None:
    with pytest.raises(UsageError, match="equally many"):
        llama.engine.totals([[5], [6]], [[[7]]])


def test_scores_are_chunked_without_changing(
    llama: ModelHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, continuations = token_rows(3, 2, 6), token_rows(3, 5, 9, seed=1)
    whole = llama.engine.score(prompts, continuations, ranks=True)
    monkeypatch.setattr("safeedit.model.scoring.CHUNK", 2 * VOCAB_SIZE)

    chunked = llama.engine.score(prompts, continuations, ranks=True)

    for one, other in zip(whole, chunked, strict=True):
        assert torch.equal(one.log_probs, other.log_probs)
        assert one.ranks is not None
        assert other.ranks is not None
        assert torch.equal(one.ranks, other.ranks)


def test_the_head_runs_at_the_positions_asked_for_only(llama: ModelHandle) -> None:
    seen: list[int] = []
    hook = llama.head.register_forward_hook(lambda m, a, out: seen.append(out[..., 0].numel()))

    llama.engine.score(token_rows(3, 8, 20), [[5, 6], [7], []])
    hook.remove()

    assert sum(seen) == 3


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # with BOS, and without
def test_the_likelihood_of_a_text_is_the_sum_over_its_windows(family: str) -> None:
    handle = tiny_handle(family)
    texts = ["The capital of France is Paris. " * 6, "Rome", "", "Water boils at one hundred."]

    found = handle.engine.text_nll(texts, max_length=16)

    for text, (nats, n) in zip(texts, found, strict=True):
        ids = handle.tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[misc]
        bos = [1] if family == "llama" else []
        size = 16 - len(bos)
        expected, counted = 0.0, 0
        for start in range(0, len(ids), size):
            window = bos + ids[start : start + size]
            logs = logits_of(handle, window).log_softmax(-1)
            for position in range(1, len(window)):
                expected -= float(logs[position - 1, window[position]])
                counted += 1
        assert n == counted
        assert nats == pytest.approx(expected, abs=1e-3 * max(1, counted))
    assert found[2] == (0.0, 0)


# Generation -----------------------------------------------------------------------------


def test_an_answer_ends_before_its_stop_token_and_others_go_on(llama: ModelHandle) -> None:
    prompts = token_rows(6, 1, 20)
    full = [answer for (answer,) in llama.engine.generate(prompts, max_new_tokens=12, stop_ids=[])]
    stop = full[0][4]

    stopped = llama.engine.generate(prompts, max_new_tokens=12, stop_ids=[stop])

    for whole, (answer,) in zip(full, stopped, strict=True):
        assert answer == (whole[: whole.index(stop)] if stop in whole else whole)
    assert len(stopped[0][0]) <= 4


def test_finished_answers_leave_the_batch(llama: ModelHandle) -> None:
    prompts = token_rows(6, 1, 20)
    full = [answer for (answer,) in llama.engine.generate(prompts, max_new_tokens=12, stop_ids=[])]
    stops = sorted({answer[1] for answer in full[:5]})
    widths: list[int] = []
    forward = llama.model.forward

    def watch(*args: Any, **kwargs: Any) -> Any:
        widths.append(kwargs["input_ids"].shape[0])
        return forward(*args, **kwargs)

    llama.model.forward = watch  # type: ignore[method-assign]
    llama.engine.generate(prompts, max_new_tokens=12, stop_ids=stops)

    assert widths[0] == 6
    assert widths[-1] < 6


def test_the_models_own_end_tokens_stop_an_answer_by_default(llama: ModelHandle) -> None:
    prompts = token_rows(2, 3, 8)
    (whole,), _ = llama.engine.generate(prompts, max_new_tokens=6, stop_ids=[])
    llama.model.generation_config.eos_token_id = [whole[3], 399]

    (answer,), _ = llama.engine.generate(prompts, max_new_tokens=6)

    assert {whole[3], 399, llama.tokenizer.eos_token_id} <= llama.engine.stop_ids  # type: ignore[union-attr]
    assert answer == whole[: whole.index(whole[3])]


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_generation_ends_where_the_context_does(family: str) -> None:
    handle = tiny_handle(family)
    prompts = [*token_rows(1, MAX_POSITIONS - 3, MAX_POSITIONS - 3), [5, 6], [9] * MAX_POSITIONS]

    answers = handle.engine.generate(prompts, max_new_tokens=6, stop_ids=[])

    assert [len(answer) for (answer,) in answers] == [3, 6, 0]
    assert answers[1][0] == expected_greedy(handle, prompts[1], 6)


def test_every_prompt_may_have_its_own_number_of_new_tokens(llama: ModelHandle) -> None:
    prompts = token_rows(4, 1, 20)
    longest = llama.engine.generate(prompts, max_new_tokens=9, stop_ids=[])

    answers = llama.engine.generate(prompts, max_new_tokens=[3, 0, 9, 5], stop_ids=[])

    assert answers == [[whole[:n]] for (whole,), n in zip(longest, [3, 0, 9, 5], strict=True)]
    with pytest.raises(UsageError, match="equally many"):
        llama.engine.generate(prompts, max_new_tokens=[3, 4])


def test_no_new_tokens_means_no_answer(llama: ModelHandle) -> None:
    assert llama.engine.generate([[5], [6, 7]], max_new_tokens=0) == [[[]], [[]]]
    assert llama.engine.generate([], max_new_tokens=4) == []


def test_sampled_answers_repeat_with_the_seed_and_differ_without(llama: ModelHandle) -> None:
    prompts = token_rows(3, 2, 9)

    def answers(seed: int) -> list[list[list[int]]]:
        return llama.engine.generate(
            prompts, max_new_tokens=8, sampling=Sampling(), samples=3, seed=seed, stop_ids=[]
        )

    first = answers(1)
    assert first == answers(1)
    assert first != answers(2)
    assert len({tuple(answer) for answer in first[0]}) == 3
    assert all(len(answer) == 8 for found in first for answer in found)


def test_a_sampled_answer_does_not_depend_on_its_batch(llama: ModelHandle) -> None:
    prompts = token_rows(4, 2, 9)
    options: dict[str, Any] = {
        "max_new_tokens": 8,
        "sampling": Sampling(temperature=0.8, top_p=0.9),
        "samples": 2,
    }

    together = llama.engine.generate(prompts, **options)
    narrow = Engine(llama, max_batch_tokens=20).generate(prompts, **options)
    fewer = llama.engine.generate(prompts[:2], **options)

    assert together == narrow
    assert together[:2] == fewer


def test_temperature_zero_is_greedy_and_its_samples_are_equal(llama: ModelHandle) -> None:
    prompts = token_rows(3, 2, 9)
    greedy = llama.engine.generate(prompts, max_new_tokens=5)

    cold = llama.engine.generate(
        prompts, max_new_tokens=5, sampling=Sampling(temperature=0), samples=3
    )

    assert cold == [[answer] * 3 for (answer,) in greedy]


def test_sampled_first_tokens_follow_the_models_distribution(llama: ModelHandle) -> None:
    prompt = token_rows(1, 5, 5)[0]
    expected = logits_of(llama, prompt)[-1].softmax(-1)
    n = 2000

    (found,) = llama.engine.generate(
        [prompt], max_new_tokens=1, sampling=Sampling(), samples=n, stop_ids=[]
    )

    counts = torch.bincount(torch.tensor(found).flatten(), minlength=VOCAB_SIZE) / n
    # Total variation between n draws and their law is below sqrt(vocab / n) / 2 on average.
    assert float((counts - expected).abs().sum() / 2) < (VOCAB_SIZE / n) ** 0.5 / 2


# Memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    ],
    ids=["cuda", "cpu", "mps"],
)
def test_batches_shrink_when_memory_runs_out_and_stay_small(error: Exception) -> None:
    handle = tiny_handle("llama")
    prompts, continuations = token_rows(12, 6, 10), token_rows(12, 3, 3, seed=1)
    expected = handle.engine.score(prompts, continuations)
    forward = handle.model.forward
    attempts: list[int] = []

    def small_memory(*args: Any, **kwargs: Any) -> Any:
        attempts.append(kwargs["input_ids"].shape[0])
        if kwargs["input_ids"].numel() > 40:
            raise error
        return forward(*args, **kwargs)

    handle.model.forward = small_memory  # type: ignore[method-assign]
    engine = Engine(handle)
    generous = engine.max_batch_tokens
    scores = engine.score(prompts, continuations)

    for one, other in zip(scores, expected, strict=True):
        torch.testing.assert_close(one.log_probs, other.log_probs, atol=TOLERANCE, rtol=0)
    assert engine.max_batch_tokens < generous
    assert attempts[0] == 12
    attempts.clear()
    engine.generate(prompts, max_new_tokens=2)
    assert max(attempts) < 12  # it remembers


def test_one_prompt_too_large_for_memory_is_named_by_index(llama: ModelHandle) -> None:
    def no_memory(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    llama.model.forward = no_memory  # type: ignore[method-assign]

    with pytest.raises(AuditError, match="prompt 0 alone does not fit"):
        llama.engine.score([[5, 6]], [[7]])


def test_other_errors_are_not_taken_for_lack_of_memory(llama: ModelHandle) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("shapes do not match")

    llama.model.forward = broken  # type: ignore[method-assign]

    with pytest.raises(RuntimeError, match="shapes do not match"):
        llama.engine.score([[5, 6], [5, 7]], [[7], [8]])


def test_logits_of_many_answers_are_computed_a_part_at_a_time(
    llama: ModelHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safeedit.model.batching.MAX_LOGITS", 5 * VOCAB_SIZE)
    rows: list[int] = []
    hook = llama.head.register_forward_hook(lambda m, a, out: rows.append(out[..., 0].numel()))

    llama.engine.score(token_rows(6, 4, 8), token_rows(6, 2, 3, seed=1))
    hook.remove()

    assert max(rows) <= 5


# Refusals -------------------------------------------------------------------------------


def test_a_prompt_longer_than_the_context_is_named_by_index_not_by_text(
    llama: ModelHandle,
) -> None:
    prompts = [[5], [6] * (MAX_POSITIONS + 1)]

    for ask in (
        lambda: llama.engine.generate(prompts, max_new_tokens=1),
        lambda: llama.engine.score(prompts, [[1], [1]]),
        lambda: llama.engine.hidden(prompts, [0]),
    ):
        with pytest.raises(AuditError, match=f"prompt 1 has {MAX_POSITIONS + 1} tokens"):
            ask()


def test_an_answer_that_would_pass_the_context_is_refused_too(llama: ModelHandle) -> None:
    with pytest.raises(AuditError, match="prompt 0"):
        llama.engine.score([[5] * MAX_POSITIONS], [[6, 7, 8]])


def test_an_empty_prompt_is_refused(llama: ModelHandle) -> None:
    with pytest.raises(AuditError, match="prompt 1 is empty"):
        llama.engine.generate([[5], []], max_new_tokens=1)


def test_logits_that_are_no_numbers_are_an_error_not_a_figure(llama: ModelHandle) -> None:
    with torch.no_grad():
        llama.tensor(llama.sites("mlp_out", [2])[0].weight).fill_(float("nan"))

    with pytest.raises(AuditError, match="not finite"):
        llama.engine.score([[5, 6]], [[7]])
    with pytest.raises(AuditError, match="not finite"):
        llama.engine.generate([[5, 6]], max_new_tokens=2)


def test_prompts_and_continuations_must_pair_up(llama: ModelHandle) -> None:
    with pytest.raises(UsageError, match="equally many"):
        llama.engine.score([[5]], [])


def test_text_needs_a_tokenizer_and_tokens_do_not() -> None:
    handle = ModelHandle(tiny_model("llama"))

    assert len(handle.engine.score([[5, 6]], [[7]])) == 1
    with pytest.raises(UsageError, match="without a tokenizer"):
        handle.engine.encode(["text"])


# Progress -------------------------------------------------------------------------------


def test_progress_counts_each_prompt_once(llama: ModelHandle) -> None:
    told: list[tuple[str, int | None, int]] = []

    def count(items: Iterable[Any], description: str, total: int | None = None) -> Iterator[Any]:
        n = 0
        for item in items:
            n += 1
            yield item
        told.append((description, total, n))

    engine = Engine(llama, max_batch_tokens=30)
    prompts = token_rows(5, 2, 9)
    engine.generate(prompts, max_new_tokens=2, progress=count, description="asking")
    engine.score(prompts, [[5]] * 5, progress=count)

    assert told == [("asking", 5, 5), ("scoring", 5, 5)]


# The real model -------------------------------------------------------------------------


@pytest.mark.smollm2
def test_the_default_model_knows_the_capital_of_france(smollm2: ModelHandle) -> None:
    engine = smollm2.engine
    prompts = engine.encode(
        ["What is the capital of France?", "What is the largest ocean on Earth?"]
    )

    first, second = (
        engine.decode(answer) for (answer,) in engine.generate(prompts, max_new_tokens=24)
    )

    assert "Paris" in first
    assert "Pacific" in second
    assert prompts[0].count(engine.codec.tokenizer.bos_token_id) == 3  # a turn each, none doubled


@pytest.mark.smollm2
def test_the_default_model_prefers_the_right_answer(smollm2: ModelHandle) -> None:
    engine = smollm2.engine
    prompts = engine.encode(["The capital of France is"] * 2, "plain")
    answers = [engine.continuation(word, "plain") for word in ("Paris", "Berlin")]

    right, wrong = engine.score(prompts, answers, ranks=True)

    assert right.total > wrong.total + 1
    assert right.ranks is not None
    assert right.ranks[0] <= 10


@pytest.mark.smollm2
def test_the_default_model_scores_alike_alone_and_in_a_batch(smollm2: ModelHandle) -> None:
    engine = smollm2.engine
    questions = ["Who wrote Hamlet?", "What is the boiling point of water?", "Name a planet."]
    prompts = engine.encode(questions)
    continuations = [engine.continuation(text) for text in ("Shakespeare", "100 degrees", "Mars")]

    together = engine.score(prompts, continuations)
    alone = [engine.score([p], [c])[0] for p, c in zip(prompts, continuations, strict=True)]

    for one, other in zip(together, alone, strict=True):
        # bfloat16 keeps 8 bits: logits between 16 and 32 are an eighth apart.
        torch.testing.assert_close(one.log_probs, other.log_probs, atol=0.5, rtol=0)


@pytest.mark.cuda
def test_a_gpu_gives_the_same_figures(tmp_path: Path) -> None:
    cpu, gpu = tiny_handle("llama"), tiny_handle("llama")
    gpu.model.to("cuda")
    prompts, continuations = token_rows(6, 2, 20, shared=9), token_rows(6, 1, 5, seed=1)

    for one, other in zip(
        cpu.engine.score(prompts, continuations, ranks=True),
        gpu.engine.score(prompts, continuations, ranks=True),
        strict=True,
    ):
        torch.testing.assert_close(one.log_probs, other.log_probs, atol=1e-3, rtol=0)
    options: dict[str, Any] = {"max_new_tokens": 6, "stop_ids": []}
    assert cpu.engine.generate(prompts, **options) == gpu.engine.generate(prompts, **options)
    sampled = gpu.engine.generate(prompts, sampling=Sampling(top_p=0.9), samples=2, **options)
    assert sampled == gpu.engine.generate(
        prompts, sampling=Sampling(top_p=0.9), samples=2, **options
    )
