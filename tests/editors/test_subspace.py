"""ProFS on tiny models with a planted toxic direction, beside random projections."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from safeedit.contracts import EditData, Proposal
from safeedit.data import Dataset, Item
from safeedit.delta import Dense, LowRank
from safeedit.editors import subspace
from safeedit.editors.subspace import Subspace, SubspaceParams
from safeedit.errors import DataError, EditError, UsageError
from safeedit.methods.contrast import gain_after_mlp, passages, state_means
from safeedit.model.handle import ModelHandle
from tests.editors.planted import LAYER, data, direction, gap, pairs, planted, prose
from tests.fixtures import context
from tests.tiny_models import tiny_handle

FAMILIES = ["llama", "llama_biases", "gpt2", "gpt_neox", "gemma2", "gemma3_text", "olmo2"]


def propose(
    handle: ModelHandle, tmp_path: Path, given: EditData | None = None, **params: Any
) -> Proposal:
    params = {"layers": [LAYER], "projection": "orthogonal", "doses": (1, 2), **params}
    return Subspace(SubspaceParams(**params)).propose(handle, given or data(), context(tmp_path))


def written(handle: ModelHandle, layer: int = LAYER) -> Tensor:
    """``(tokens, d_model)`` what the MLP adds to the residual stream, norm included."""
    texts = [
        text.ids
        for group in (passages(pairs(), "validation", handle.engine, context(Path())),)
        for text in (*group.toxic, *group.neutral)
    ]
    (site,) = handle.sites("mlp_out", [layer])
    norm = handle.blocks()[layer].get_submodule(handle.architecture.post_mlp_norm)
    found = []
    for _, captured in handle.engine.activations(texts, [site], what="output"):
        output = captured[site]
        found.append(norm(output) if handle.architecture.post_mlp_norm else output)
    return torch.cat(found).double()


def first_direction(handle: ModelHandle, tmp_path: Path) -> Tensor:
    """The direction that :func:`propose` removes first, computed here step by step."""
    texts = passages(pairs(), "fit", handle.engine, context(tmp_path))
    both = [*texts.toxic, *texts.neutral]
    states = state_means(handle.engine, both, [LAYER], context(tmp_path))[LAYER]
    toxic, neutral = states[: len(texts)], states[len(texts) :]
    centre = torch.linalg.svd(neutral).Vh[0]
    differences = (toxic - neutral) / 2
    differences = differences - (differences @ centre)[:, None] * centre
    return torch.linalg.svd(differences).Vh[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_after_it_nothing_is_written_along_the_direction_and_half_a_dose_leaves_half(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = planted(family)
    monkeypatch.setattr(subspace, "OUTLIERS", math.inf)
    before, found = written(handle), first_direction(handle, tmp_path)
    proposal = propose(handle, tmp_path)
    assert float((before @ found).abs().max()) > 0.05
    with handle.applied(proposal.at(1)):
        after = written(handle)
    assert float((after @ found).abs().max()) < 1e-5
    assert float(after.norm(dim=1).min()) > 0.1, "the rest is still written"
    if not handle.architecture.post_mlp_norm:
        with handle.applied(proposal.at(0.5)):
            assert torch.allclose(written(handle) @ found, 0.5 * (before @ found), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_finds_the_planted_direction_and_removing_it_makes_toxic_words_less_likely(
    family: str, tmp_path: Path
) -> None:
    handle = planted(family)
    assert abs(float(first_direction(handle, tmp_path) @ direction(handle).double())) > 0.5
    delta = propose(handle, tmp_path).at(1)
    before = gap(handle)
    with handle.applied(delta):
        drop = before - gap(handle)
    random = []
    for seed in range(5):
        with handle.applied(delta.random_like(seed, handle)):
            random.append(abs(before - gap(handle)))
    assert drop > 0.3, "nats"
    assert drop > 1.5 * max(random)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_oblique_projection_works_too_and_disturbs_ordinary_text_less(
    family: str, tmp_path: Path
) -> None:
    handle = planted(family)
    given = data(prose=prose())
    texts = [[*ids] for ids in handle.engine.encode([i.prompt for i in prose().all()], "plain")]
    (site,) = handle.sites("mlp_out", [LAYER])

    def outputs() -> Tensor:
        found = dict(handle.engine.activations(texts, [site], what="output"))
        return torch.cat([found[i][site][2:] for i in range(len(texts))])

    base, before = outputs(), gap(handle)
    moved, drop = {}, {}
    for kind in ("orthogonal", "oblique"):
        delta = propose(handle, tmp_path, given, projection=kind).at(1)
        with handle.applied(delta):
            moved[kind] = float((outputs() - base).square().sum())
            drop[kind] = before - gap(handle)
    assert moved["oblique"] < 0.7 * moved["orthogonal"]
    assert drop["oblique"] > 0.2


def test_without_prose_the_neutral_texts_stand_in_and_that_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    handle = planted("llama")
    editor = Subspace(SubspaceParams(layers=[LAYER], projection="oblique"))
    editor.propose(handle, data(), context(tmp_path, said))
    assert any("without 'prose'" in text for text in said)
    said.clear()
    editor.propose(handle, data(prose=prose()), context(tmp_path, said))
    assert not said


def test_a_bias_is_projected_as_its_own_tensor(tmp_path: Path) -> None:
    handle = planted("gpt2")
    (site,) = handle.sites("mlp_out", [LAYER])
    assert site.bias is not None
    delta = propose(handle, tmp_path).at(1)
    assert isinstance(delta.updates[site.weight], LowRank)
    assert isinstance(delta.updates[site.bias], Dense)
    assert set(delta.updates) == {
        tensor.name for tensor in Subspace(SubspaceParams(layers=[LAYER])).touches(handle.shape)
    }
    found = first_direction(handle, tmp_path).float()
    assert abs(float(found @ handle.oriented(site.bias))) > 1e-3
    with handle.applied(delta):
        assert abs(float(found @ handle.oriented(site.bias))) < 1e-6


@pytest.mark.parametrize("family", ["llama", "gpt2", "olmo2"])
def test_in_bfloat16_it_comes_back_bit_for_bit(family: str, tmp_path: Path) -> None:
    handle = planted(family, dtype=torch.bfloat16)
    before = {name: handle.stored(name).clone() for name in handle.tensor_names()}
    undo = handle.apply(propose(handle, tmp_path).at(2))
    assert any(not torch.equal(before[n], handle.stored(n)) for n in before)
    undo.restore()
    assert all(torch.equal(before[name], handle.stored(name)) for name in before)


def test_doses_nest_and_rank_is_what_the_dose_says(tmp_path: Path) -> None:
    handle = planted("llama")
    proposal = propose(handle, tmp_path, doses=(0.5, 1, 2.5, 4))
    assert proposal.doses == (0.5, 1.0, 2.5, 4.0)
    ranks = []
    for dose in proposal.doses:
        (update,) = proposal.at(dose).updates.values()
        assert isinstance(update, LowRank)
        ranks.append(update.left.shape[1])
    assert ranks == [1, 1, 3, 4]
    assert proposal.at(0.5).norm() == pytest.approx(proposal.at(1).norm() / 2, rel=1e-5)


def test_doses_beyond_what_the_pairs_span_are_not_offered(tmp_path: Path) -> None:
    few = Dataset(pairs().all()[:2], template="plain", name="pairs")
    proposal = propose(planted("llama"), tmp_path, EditData({"pairs": few}), doses=(1, 50))
    assert proposal.doses[-1] <= 2
    for dose in (0, -1, 3):
        with pytest.raises(UsageError, match="number of directions"):
            proposal.at(dose)


def test_what_the_pair_shares_plays_no_part(tmp_path: Path) -> None:
    handle = planted("llama")
    texts = passages(pairs(), "fit", handle.engine, context(tmp_path))
    for toxic, neutral in zip(texts.toxic, texts.neutral, strict=True):
        assert toxic.ids[: toxic.start] == neutral.ids[: neutral.start]
        assert len(toxic) == len(neutral) == 3
    (means,) = state_means(handle.engine, texts.toxic, [LAYER], context(tmp_path)).values()
    alone = handle.engine.hidden([texts.toxic[4].ids], [LAYER], "all")[LAYER][0]
    assert torch.allclose(means[4].float(), alone[texts.toxic[4].start :].mean(0), atol=1e-5)


def test_texts_without_an_opening_lose_bos_and_their_first_token(tmp_path: Path) -> None:
    handle = planted("llama")
    items = [
        Item(id="1", prompt="x", extra={"opening": "", "toxic": "a grumf", "neutral": "a tulim"}),
    ]
    given = Dataset(items, template="plain", split="fit")
    texts = passages(given, "fit", handle.engine, context(tmp_path))
    assert texts.toxic[0].ids[0] == handle.engine.codec.bos[0]
    assert texts.toxic[0].start == 2
    assert handle.engine.decode(texts.toxic[0].ids[2:]).strip() == "grumf"


def test_pairs_that_do_not_fit_are_refused_or_left_out_without_a_word_of_them(
    tmp_path: Path,
) -> None:
    handle = planted("llama")
    same = [Item(id="1", prompt="He is", extra={"toxic": "zqk", "neutral": "zqk"}, split="fit")]
    with pytest.raises(EditError, match="same states"):
        propose(handle, tmp_path, EditData({"pairs": Dataset(same, template="plain")}))
    lacking = [Item(id="1", prompt="zqk", extra={"toxic": "zqk"}, split="fit")]
    with pytest.raises(DataError, match="1 of 1 items") as caught:
        propose(handle, tmp_path, EditData({"pairs": Dataset(lacking, template="plain")}))
    assert "zqk" not in str(caught.value)
    long = Item(id="2", prompt="zqk " * 300, extra={"toxic": "a", "neutral": "b"}, split="fit")
    said: list[str] = []
    mixed = Dataset([*pairs().all(), long], template="plain")
    texts = passages(mixed, "fit", handle.engine, context(tmp_path, said))
    assert len(texts) == 12
    assert said
    assert "zqk" not in said[0]
    with pytest.raises(DataError, match="within the model's context"):
        passages(Dataset([long]), "fit", handle.engine, context(tmp_path))


def test_massive_dimensions_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = planted("llama")
    generator = torch.Generator().manual_seed(5)
    for dimension in (3, 9):
        noise = torch.randn(len(handle.embedding.weight), generator=generator)
        with torch.no_grad():
            handle.embedding.weight[:, dimension] += 300 * noise
    monkeypatch.setattr(subspace, "OUTLIERS", 10.0)
    guarded = propose(handle, tmp_path)
    assert guarded.notes["massive_dimensions_left_alone"]
    (update,) = guarded.at(2).updates.values()
    monkeypatch.setattr(subspace, "OUTLIERS", math.inf)
    (naive,) = propose(handle, tmp_path).at(2).updates.values()
    assert isinstance(update, LowRank)
    assert isinstance(naive, LowRank)
    assert float(update.left[[3, 9]].abs().max()) < 1e-6
    assert float(naive.left[[3, 9]].abs().max()) > 0.1


@pytest.mark.parametrize("family", ["gemma2", "olmo2", "opt_projected"])
def test_a_norm_after_the_mlp_is_known_by_its_linear_part(family: str) -> None:
    handle = tiny_handle(family)
    gain = gain_after_mlp(handle, LAYER)
    assert gain is not None
    norm = handle.blocks()[LAYER].get_submodule(handle.architecture.post_mlp_norm)
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(5, handle.d_model, generator=generator)
    linear = gain.written(outputs.T.double()).T.float()
    bias = getattr(norm, "bias", None)
    through = norm(outputs[None])[0] - (0 if bias is None else bias)
    cosine = torch.nn.functional.cosine_similarity(linear, through, dim=1)
    assert torch.allclose(cosine, torch.ones(5), atol=1e-5)
    vectors = torch.randn(handle.d_model, 2, generator=generator).double()
    read = gain.readers(vectors).T @ outputs.T.double()
    assert torch.allclose(read, vectors.T @ gain.written(outputs.T.double()), atol=1e-5)
    target = gain.written(vectors)
    assert torch.allclose(gain.written(gain.sources(target)), target, atol=1e-5)


def test_notes_hold_no_text(tmp_path: Path) -> None:
    text = json.dumps(propose(planted("llama"), tmp_path).notes)
    assert "grumf" not in text
    assert "tulim" not in text


@pytest.mark.parametrize(("family", "loud"), [("gemma2", True), ("llama", False)])
def test_where_the_default_projection_does_little_that_is_said(
    family: str, loud: bool, tmp_path: Path
) -> None:
    said: list[str] = []
    editor = Subspace(SubspaceParams())
    editor.propose(planted(family), data(prose=prose()), context(tmp_path, said))
    assert any("projection: orthogonal" in text for text in said) == loud
