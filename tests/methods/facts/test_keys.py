"""Keys at subjects, and second moments of ordinary text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from safeedit.delta import LowRank, Origin, WeightDelta
from safeedit.errors import DataError
from safeedit.methods.facts.keys import TokenPosition, keys_at, second_moments, subject_spot
from safeedit.model.activations import StopForward
from safeedit.model.architectures import Site
from safeedit.model.handle import ModelHandle
from tests.tiny_models import D_MLP, FAMILIES, tiny_handle

TEXTS = (
    "The doctor said that she would call, and the nurse said that he was late again today.",
    "Water boils at one hundred degrees; ice melts at zero. " * 6,
    "Rome.",
)


def _keys(handle: ModelHandle, ids: Sequence[int], site: Site) -> Tensor:
    """``(tokens, m)`` of one text run on its own."""
    tokens = torch.tensor([list(ids)])
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return handle.capture(inputs, [site])[site][0]


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_are_what_the_matrix_reads_at_the_subject(family: str) -> None:
    handle = tiny_handle(family)
    sites = handle.sites("mlp_out")
    prompts = handle.engine.encode(
        ["The capital of France is", "Is Paris in France?", "France", "Who is in France? I see."],
        "plain",
    )
    spots = [subject_spot(handle, ids, "France") for ids in prompts]
    assert None not in spots
    found = keys_at(handle, [spot for spot in spots if spot], sites)
    for site in sites:
        assert found[site].shape == (D_MLP, 4)
        for column, spot in enumerate(spots):
            assert spot is not None
            text = handle.engine.codec.tokenizer.decode(list(spot.until))
            assert text.endswith("France")
            expected = _keys(handle, spot.ids, site)[spot.position]
            torch.testing.assert_close(found[site][:, column], expected, atol=1e-4, rtol=1e-4)


def test_a_template_changes_the_key(llama: ModelHandle) -> None:
    spots = []
    for template in ("plain", "chat"):
        (ids,) = llama.engine.encode(["The capital of France is"], template)
        spot = subject_spot(llama, ids, "France")
        assert spot is not None
        spots.append(spot)
    site = llama.sites("mlp_out", [1])[0]
    plain, chat = keys_at(llama, spots, [site])[site].T
    assert float((plain - chat).norm()) > 0.1 * float(plain.norm())


def test_the_last_mention_counts_and_none_is_none(llama: ModelHandle) -> None:
    (ids,) = llama.engine.encode(["Rome is Rome, and Italy is"], "plain")
    spot = subject_spot(llama, ids, "Rome")
    assert spot is not None
    assert llama.engine.decode(spot.until) == "Rome is Rome"
    assert subject_spot(llama, ids, "Oslo") is None


def test_no_spots_have_no_keys(llama: ModelHandle) -> None:
    site = llama.sites("mlp_out", [0])[0]
    assert keys_at(llama, [], [site])[site].shape == (D_MLP, 0)


def test_equal_contexts_are_run_once(llama: ModelHandle, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    activations = llama.engine.activations
    monkeypatch.setattr(
        llama.engine,
        "activations",
        lambda prompts, *rest: (ran.append(len(prompts)), activations(prompts, *rest))[1],
    )
    site = llama.sites("mlp_out", [0])[0]
    found = keys_at(
        llama,
        [TokenPosition([5, 6, 7], 1), TokenPosition([5, 6, 9, 8], 1), TokenPosition([4], 0)],
        [site],
    )[site]
    assert ran == [2]
    assert torch.equal(found[:, 0], found[:, 1])
    assert not torch.equal(found[:, 0], found[:, 2])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_texts_weigh_the_same_and_beginnings_are_masked(family: str, tmp_path: Path) -> None:
    handle = tiny_handle(family)
    site = handle.sites("mlp_out", [1])[0]
    found = second_moments(handle, TEXTS[:2], [site], tmp_path, window=16)[site]
    lead = len(handle.engine.codec.bos)
    parts, tokens = [], 0
    for ids in handle.engine.encode(TEXTS[:2], "plain"):
        own, rows = ids[lead:], []
        for begin in range(0, len(own), 16 - lead):
            window = [*ids[:lead], *own[begin : begin + 16 - lead]]
            if len(window) - lead > 1:
                rows.append(_keys(handle, window, site)[lead + 1 :])
        keys = torch.cat(rows)
        parts.append(keys.T @ keys / len(keys))
        tokens += len(keys)
    assert found.tokens == tokens
    torch.testing.assert_close(found.second, sum(parts) / 2, atol=1e-4, rtol=1e-4)


def test_outsized_keys_are_left_out_and_told(
    llama: ModelHandle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = llama.sites("mlp_out", [0])[0]
    plain = second_moments(llama, TEXTS[:1], [site], tmp_path / "plain")[site]
    activations = llama.engine.activations
    spike = torch.zeros(D_MLP)
    spike[3] = 1e4

    def outsized(*arguments: object, **options: object):  # type: ignore[no-untyped-def]
        for index, captured in activations(*arguments, **options):  # type: ignore[arg-type]
            yield index, {s: torch.cat([a, spike[None]]) for s, a in captured.items()}

    monkeypatch.setattr(llama.engine, "activations", outsized)
    found = second_moments(llama, TEXTS[:1], [site], tmp_path / "spiked")[site]
    torch.testing.assert_close(found.second, plain.second)
    assert found.tokens == plain.tokens
    assert (found.sinks == spike[:, None]).all(0).sum() == 1


def test_what_was_read_once_is_kept(
    llama: ModelHandle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = llama.sites("mlp_out", [0, 1])
    first = second_moments(llama, TEXTS, sites, tmp_path)

    def never(*arguments: object, **options: object) -> None:
        raise StopForward

    monkeypatch.setattr(llama.engine, "activations", never)
    again = second_moments(llama, TEXTS, sites, tmp_path)
    for site in sites:
        assert torch.equal(first[site].second, again[site].second)
        assert torch.equal(first[site].sinks, again[site].sinks)
        assert first[site].tokens == again[site].tokens
    for other in (TEXTS[:2], TEXTS[::-1]):
        with pytest.raises(StopForward):
            second_moments(llama, other, sites, tmp_path)
    with pytest.raises(StopForward):
        second_moments(llama, TEXTS, sites, tmp_path, window=32)
    for name in (path.name for path in tmp_path.rglob("*")):
        assert "Rome" not in name


def test_a_damaged_file_is_made_again(llama: ModelHandle, tmp_path: Path) -> None:
    site = llama.sites("mlp_out", [0])[0]
    first = second_moments(llama, TEXTS, [site], tmp_path)[site]
    (file,) = (tmp_path / "moments").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    again = second_moments(llama, TEXTS, [site], tmp_path)[site]
    assert torch.equal(first.second, again.second)


def test_after_an_edit_moments_are_those_of_the_edited_model(
    llama: ModelHandle, tmp_path: Path
) -> None:
    below, above = llama.sites("mlp_out", [0, 1])
    before = second_moments(llama, TEXTS, [above], tmp_path)[above]
    change = LowRank(torch.ones(llama.d_model, 1), torch.ones(1, D_MLP))
    delta = WeightDelta(llama.digest(), {below.weight: change}, Origin("test"))
    with llama.applied(delta):
        edited = second_moments(llama, TEXTS, [above], tmp_path)[above]
        fresh = second_moments(llama, TEXTS, [above], tmp_path / "other")[above]
    assert torch.equal(edited.second, fresh.second)
    assert float((edited.second - before.second).norm()) > 0.01 * float(before.second.norm())
    assert torch.equal(second_moments(llama, TEXTS, [above], tmp_path)[above].second, before.second)


def test_a_folder_that_cannot_be_written_costs_time_alone(
    llama: ModelHandle, tmp_path: Path
) -> None:
    (tmp_path / "moments").write_text("a file where a folder should be")
    site = llama.sites("mlp_out", [0])[0]
    assert second_moments(llama, TEXTS, [site], tmp_path)[site].tokens > 0


def test_texts_of_no_length_are_refused(llama: ModelHandle, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two tokens"):
        second_moments(llama, ["", ""], llama.sites("mlp_out", [0]), tmp_path)
