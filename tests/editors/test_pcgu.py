"""PCGU: which parts move, by how much, and that a planted stereotype shrinks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from safeedit.contracts import EditData, Proposal
from safeedit.data import Dataset, Item, load_dataset
from safeedit.editors.pcgu import Pcgu, PcguParams, least, read_pairs
from safeedit.errors import DataError
from safeedit.methods.tuning import answer_states, token_losses
from safeedit.model.handle import ModelHandle
from safeedit.policy import DataSpec
from tests.editors.gendered import FEMALE, MALE, OPENINGS, PRONOUNS, gap, gendered
from tests.fixtures import context
from tests.tiny_models import tiny_handle

HE, SHE, _ = PRONOUNS


def sentences(words: tuple[str, ...] = (*MALE[:4], *FEMALE[:4]), after: str = "") -> Dataset:
    """Each profession with either pronoun after it."""
    items = [
        Item(
            id=f"{word}-{number}-{pronoun}",
            prompt=f"{opening} {word} {pronoun}{after}",
            answer=word,
            split="fit",
            extra={
                "professions": [word, "prince"],
                "pronoun": pronoun,
                "side": "pro" if (word in MALE) == (pronoun == HE) else "anti",
            },
        )
        for word in words
        for number, opening in enumerate(OPENINGS)
        for pronoun in (HE, SHE)
    ]
    return Dataset(items, template="plain", name="sentences")


def proposed(
    handle: ModelHandle, folder: Path, data: Dataset | None = None, **params: Any
) -> Proposal:
    roles = {"sentences": data or sentences()}
    return Pcgu(PcguParams(**params)).propose(handle, EditData(roles), context(folder))


@pytest.mark.trains
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_a_planted_stereotype_shrinks_and_only_matrices_move(family: str, tmp_path: Path) -> None:
    handle = gendered(family)
    before = gap(handle, MALE[:4], FEMALE[:4])
    proposal = proposed(
        handle, tmp_path, parts=60, direction="raise_disadvantaged", learning_rate=3e-3, doses=(3,)
    )
    delta = proposal.at(3.0)
    with handle.applied(delta):
        # Steps small enough that only their direction counts, whatever was drawn at random.
        assert gap(handle, MALE[:4], FEMALE[:4]) < before - 0.03
    matrices = {site.weight for site in handle.matrices()}
    assert delta.updates.keys() <= matrices
    moved = sum(int((u.values != 0).any(1).sum()) for u in delta.updates.values())  # type: ignore[union-attr]
    assert 60 <= moved <= 3 * 60
    assert proposal.notes["pairs"] == 32
    assert set(proposal.notes["losses"]) == {"3"}


@pytest.mark.trains
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("part", ["outputs", "inputs"])
def test_a_step_moves_the_parts_of_least_cosine_down_the_advantaged_gradient(
    family: str, part: str, tmp_path: Path
) -> None:
    handle = gendered(family)
    data = sentences(MALE[:1])
    pairs, _ = read_pairs(handle, data, "continuation")
    names = [site.weight for site in handle.matrices()]
    found = []
    for side in ("advantaged", "disadvantaged"):
        batch = [getattr(pair, side) for pair in pairs]
        parameters = [handle.tensor(name).requires_grad_() for name in names]
        total = -token_losses(handle, answer_states(handle, batch), batch).sum() / len(batch)
        gradients = torch.autograd.grad(total, parameters)
        turned = handle.shape.transposed
        found.append([g.T if n in turned else g for n, g in zip(names, gradients, strict=True)])
        for parameter in parameters:
            parameter.requires_grad_(False)
    up, down = found
    dim = 1 if part == "outputs" else 0
    cosines = torch.cat([functional.cosine_similarity(a, b, dim=dim)
                         for a, b in zip(up, down, strict=True)])  # fmt: skip

    def changes(count: int, rate: float) -> dict[str, torch.Tensor]:
        # 16 pairs a step: each of the four, four times.
        given = {"part": part, "parts": count, "learning_rate": rate, "doses": (1,)}
        updates = proposed(handle, tmp_path, data, **given).at(1.0).updates
        return {name: updates[name].values for name in names}  # type: ignore[union-attr]

    every = changes(len(cosines), 1e-2)
    for name, gradient in zip(names, up, strict=True):
        # Activations are bfloat16, and rows of a batch are packed otherwise.
        expected = -1e-2 * gradient
        assert float((every[name] - expected).norm()) < 0.05 * float(expected.norm()) + 1e-6
    few = changes(5, 1e-2)
    moved = torch.cat([(few[name] != 0).any(dim) for name in names])
    assert int(moved.sum()) == 5
    # bfloat16 activations leave the order of near ties open.
    assert float(cosines[moved].max()) <= float(cosines.sort().values[10])


def test_least_takes_the_first_of_equals_and_keeps_tensors_apart() -> None:
    cosines = [torch.tensor([0.5, -1.0]), torch.tensor([0.0, -1.0, 1.0])]
    assert [each.tolist() for each in least(cosines, 3)] == [[False, True], [True, True, False]]
    assert [each.tolist() for each in least(cosines, 1)] == [[False, True], [False] * 3]
    assert all(bool(each.all()) for each in least(cosines, 99))


def test_pairs_part_at_the_pronoun_or_ask_whom_it_means() -> None:
    handle = gendered("llama")
    decode = handle.engine.decode
    pairs, unpaired = read_pairs(handle, sentences(MALE[:1], after=" said so."), "continuation")
    assert (len(pairs), unpaired) == (len(OPENINGS), 0)
    assert pairs[0].advantaged.prompt == pairs[0].disadvantaged.prompt
    assert decode(pairs[0].advantaged.prompt) == f"{OPENINGS[0]} {MALE[0]}"
    assert decode(pairs[0].advantaged.answer) == f" {HE} said so."
    assert decode(pairs[0].disadvantaged.answer) == f" {SHE} said so."
    (first, *_), _ = read_pairs(handle, sentences(FEMALE[:1]), "answer")
    assert first.advantaged.answer == first.disadvantaged.answer
    assert decode(first.advantaged.answer) == f" {FEMALE[0]}"
    assert decode(first.advantaged.prompt).endswith(f"'{SHE.capitalize()}' refers to the")
    assert decode(first.disadvantaged.prompt).endswith(f"'{HE.capitalize()}' refers to the")


def test_the_built_in_sentences_make_pairs() -> None:
    spec = DataSpec(dataset="occupations", where={"kind": "winobias"}, template="plain")
    data = load_dataset(spec).without("test")
    for contrast in ("continuation", "answer"):
        pairs, unpaired = read_pairs(tiny_handle("llama"), data, contrast)  # type: ignore[arg-type]
        assert (len(pairs), unpaired) == (60, 0)


def test_sentences_without_a_counterpart_are_counted_or_refused(tmp_path: Path) -> None:
    handle = gendered("llama")
    some = [item for item in sentences() if item.id != f"{MALE[0]}-0-{SHE}"]
    pairs, unpaired = read_pairs(handle, Dataset(some, template="plain"), "continuation")
    assert (len(pairs), unpaired) == (31, 1)
    alone = [item for item in sentences() if item.extra["side"] == "pro"]
    with pytest.raises(DataError, match="no two sentences differ in a pronoun alone") as caught:
        proposed(handle, tmp_path, Dataset(alone, template="plain"))
    assert "side: pro or anti" in caught.value.remedy
    first = [
        replace(item, prompt=f"{item.extra['pronoun']} met the {item.answer}")
        for item in list(sentences(MALE[:1]))[:2]
    ]
    with pytest.raises(DataError, match="begins with its pronoun"):
        proposed(handle, tmp_path, Dataset(first, template="plain"))
