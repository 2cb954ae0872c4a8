"""Keyed debiasing on tiny models with a planted stereotype."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from safeedit.contracts import EditData, Proposal
from safeedit.data import Dataset, Item
from safeedit.editors import keyed_debias
from safeedit.editors.keyed_debias import KeyedDebias, KeyedDebiasParams
from safeedit.errors import DataError, UnsupportedModelError, UsageError
from safeedit.model.handle import ModelHandle
from tests.editors.gendered import (
    FEMALE,
    LAYER,
    MALE,
    PRONOUNS,
    data,
    definition,
    factual,
    gap,
    gendered,
    margins,
    prompts,
    prose,
    stereotype,
)
from tests.fixtures import context

QUICK: dict[str, Any] = {"layers": [LAYER], "pronouns": PRONOUNS[:2]}


def propose(
    handle: ModelHandle, tmp_path: Path, given: EditData | None = None, **params: Any
) -> Proposal:
    editor = KeyedDebias(KeyedDebiasParams(**{**QUICK, **params}))
    given = given or data(factual=factual(), prose=prose())
    return editor.propose(handle, given, context(tmp_path))


@pytest.fixture
def long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps enough to even a tiny model's steep margins out."""
    monkeypatch.setattr(keyed_debias, "STEPS", 12)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_stereotype_goes_also_where_it_was_not_seen_and_queens_stay(
    family: str, tmp_path: Path
) -> None:
    handle = gendered(family)
    seen, unseen, known = gap(handle, MALE[:4], FEMALE[:4]), stereotype(handle), definition(handle)
    delta = propose(handle, tmp_path).at(1)
    with handle.applied(delta):
        assert abs(gap(handle, MALE[:4], FEMALE[:4])) < 0.15 * seen
        assert abs(stereotype(handle)) < 0.5 * unseen
        assert definition(handle) == pytest.approx(known, rel=0.03)


def test_with_hardly_a_ridge_every_profession_is_evened_out(tmp_path: Path, long: None) -> None:
    handle = gendered("llama")
    before = margins(handle, MALE[:4] + FEMALE[:4]).abs()
    proposal = propose(handle, tmp_path, ridge=1e-6, preserve_weight=0)
    with handle.applied(proposal.at(1)):
        after = margins(handle, MALE[:4] + FEMALE[:4]).abs()
    assert float(before.mean()) > 5
    assert float(after.mean()) < 0.05 * float(before.mean())
    assert proposal.notes["margin_after"] < 0.1 * proposal.notes["margin_before"]


def test_towards_the_mean_leaves_the_general_preference(tmp_path: Path, long: None) -> None:
    handle = gendered("llama")
    before = margins(handle, MALE[:4] + FEMALE[:4])
    proposal = propose(handle, tmp_path, towards="mean", ridge=1e-6, preserve_weight=0)
    with handle.applied(proposal.at(1)):
        after = margins(handle, MALE[:4] + FEMALE[:4])
    assert float(after.std()) < 0.05 * float(before.std())
    assert float(after.mean()) == pytest.approx(float(before.mean()), abs=0.2)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_a_shift_may_be_spread_over_layers(family: str, tmp_path: Path) -> None:
    handle = gendered(family)
    bias, known = stereotype(handle), definition(handle)
    proposal = propose(handle, tmp_path, layers="0-2", preserve_weight=1.0)
    delta = proposal.at(1)
    assert len(delta.updates) == 3
    with handle.applied(delta):
        assert abs(stereotype(handle)) < 0.6 * bias
        assert definition(handle) == pytest.approx(known, rel=0.2)


def test_where_a_norm_follows_the_mlp_one_layer_works_and_several_are_refused(
    tmp_path: Path,
) -> None:
    handle = gendered("gemma2")
    before = gap(handle, MALE[:4], FEMALE[:4])
    with handle.applied(propose(handle, tmp_path).at(1)):
        assert abs(gap(handle, MALE[:4], FEMALE[:4])) < 0.5 * before
    with pytest.raises(UnsupportedModelError, match="norm follows the MLP"):
        propose(handle, tmp_path, layers="0-2")


def test_doses_scale_and_factors_are_of_the_keys_rank(tmp_path: Path) -> None:
    proposal = propose(gendered("llama"), tmp_path)
    (one,), (half,) = (proposal.at(dose).updates.values() for dose in (1.0, 0.5))
    assert torch.allclose(one.parts["left"], 2 * half.parts["left"])
    assert torch.equal(one.parts["right"], half.parts["right"])
    for dose in (0, -1):
        with pytest.raises(UsageError, match="no scale"):
            proposal.at(dose)


def test_in_bfloat16_it_works_and_comes_back_bit_for_bit(tmp_path: Path) -> None:
    handle = gendered("llama", torch.bfloat16)
    before = {name: handle.stored(name).clone() for name in handle.tensor_names()}
    bias = gap(handle, MALE[:4], FEMALE[:4])
    undo = handle.apply(propose(handle, tmp_path).at(1))
    assert abs(gap(handle, MALE[:4], FEMALE[:4])) < 0.3 * bias
    undo.restore()
    assert all(torch.equal(before[name], handle.stored(name)) for name in before)


def test_without_factual_prompts_that_is_said_and_queens_are_not_safe(tmp_path: Path) -> None:
    handle, said = gendered("llama"), list[str]()
    known = definition(handle)
    editor = KeyedDebias(KeyedDebiasParams(**QUICK))
    proposal = editor.propose(handle, data(prose=prose()), context(tmp_path, said))
    assert any("without 'factual'" in text for text in said)
    assert proposal.notes["factual_margin_before"] is None
    with handle.applied(proposal.at(1)):
        alone = abs(definition(handle) - known)
    with handle.applied(propose(handle, tmp_path).at(1)):
        assert abs(definition(handle) - known) < 0.5 * alone


def test_what_cannot_be_done_is_said_without_a_word_of_the_data(tmp_path: Path) -> None:
    handle = gendered("llama")
    bare = [replace(item, extra={}) for item in prompts().items("fit")]
    given = EditData({"prompts": Dataset(bare, template="plain"), "prose": prose()})
    with pytest.raises(DataError, match="no 'factual' score") as caught:
        propose(handle, tmp_path, given)
    assert "dravun" not in str(caught.value)
    with pytest.raises(UsageError, match="as several tokens"):
        propose(handle, tmp_path, pronouns=("Copenhagen", "she"))
    with pytest.raises(UsageError, match="does not exist"):
        propose(handle, tmp_path, layers=[7])


def test_notes_hold_numbers_and_no_text(tmp_path: Path) -> None:
    notes = propose(gendered("llama"), tmp_path).notes
    assert notes["margin_after"] < 0.3 * notes["margin_before"]
    assert notes["factual_margin_after"] == pytest.approx(notes["factual_margin_before"], rel=0.05)
    assert "dravun" not in json.dumps(notes, allow_nan=False)


# -- Two people and a pronoun ----------------------------------------------------------------------


def couples(**changed: Any) -> Dataset:
    """Each sentence with either pronoun, which the model is then asked about."""
    items = [
        Item(
            id=f"{one}-{two}-{pronoun}",
            prompt=f"{one} met {two} and {pronoun} left",
            answer=one,
            split="fit",
            extra={"professions": [one, two], "pronoun": pronoun} | changed,
        )
        for one, two in zip(MALE[:4], FEMALE[:4], strict=True)
        for pronoun in PRONOUNS[:2]
    ]
    return Dataset(items, template="plain", name="couples")


def swing(handle: ModelHandle) -> float:
    """How much the margin between two people depends on the pronoun, mean, nats."""
    engine = handle.engine
    found = []
    for one, two in zip(MALE[:4], FEMALE[:4], strict=True):
        first, second = (engine.continuation(name, "plain")[0] for name in (one, two))
        asked = [f"{one} met {two} and {p} left '{p.capitalize()}' refers to the"
                 for p in PRONOUNS[:2]]  # fmt: skip
        log_probs = engine.next_token_log_probs(engine.encode(asked, "plain"))
        margin = log_probs[:, first] - log_probs[:, second]
        found.append(abs(float(margin[0] - margin[1])))
    return sum(found) / len(found)


def test_whom_a_pronoun_stands_for_depends_less_on_its_gender(tmp_path: Path, long: None) -> None:
    handle = gendered("llama")
    before, bias = swing(handle), stereotype(handle)
    given = data(prose=prose(), sentences=couples())
    proposal = propose(handle, tmp_path, given, ridge=1e-6)
    assert before > 0.01
    assert (proposal.notes["prompts"], proposal.notes["sentences"]) == (32, 8)
    with handle.applied(proposal.at(1)):
        assert swing(handle) < 0.5 * before
        assert abs(stereotype(handle)) < 0.7 * bias
    assert proposal.notes["sentence_margin_before"] > 0


def test_sentences_that_do_not_tell_who_is_meant_are_refused(tmp_path: Path) -> None:
    handle = gendered("llama")
    with pytest.raises(DataError, match="8 of 8 sentences lack a column"):
        propose(handle, tmp_path, data(prose=prose(), sentences=couples(professions=["x"])))
    alone = Dataset(couples().items("fit")[:1], template="plain", name="couples")
    with pytest.raises(DataError, match="pronoun of either gender"):
        propose(handle, tmp_path, data(prose=prose(), sentences=alone))


# -- Factual words in the openings that are moved --------------------------------------------------


def test_factual_words_are_held_in_openings_that_their_own_prompts_lack(tmp_path: Path) -> None:
    handle = gendered("llama")
    lacking = [item for item in factual().items("fit") if item.id.endswith("-0")]
    few = Dataset(lacking, template="plain", name="factual")
    given = data(prose=prose(), factual=few)
    before = definition(handle)
    moved, held = {}, {}
    for shared in (False, True):
        roles = given if shared else data(prose=prose())
        proposal = propose(handle, tmp_path, roles, ridge=1e-3)
        held[shared] = proposal.notes["factual_prompts"]
        with handle.applied(proposal.at(1)):
            moved[shared] = abs(definition(handle) - before)
    assert held == {False: 0, True: 24}, "six words, in all four openings"
    assert moved[True] < 0.5 * moved[False]
    capped = propose(handle, tmp_path, given, most_prompts=10)
    assert capped.notes["factual_prompts"] == 10
