"""REMEDI compiled, on a tiny model whose lessons can be learnt."""

from __future__ import annotations

import json
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

from safeedit.contracts import EditData, Proposal
from safeedit.data import Dataset, Item
from safeedit.editors import remedi
from safeedit.editors.remedi import RemediEditor, RemediParams
from safeedit.errors import DataError, UnsupportedModelError, UsageError
from safeedit.methods.remedi.examples import AttributeExample
from safeedit.methods.remedi.training import TrainingConfig
from safeedit.model.handle import ModelHandle
from tests.editors.gendered import gendered, prose
from tests.fixtures import context
from tests.model.named import LATER, held_out, taught

QUICK: dict[str, Any] = {"layers": [0], "epochs": 6, "learning_rate": 1e-2, "ridge": 1e-4}
NEAR = ("havdor", "ysolde")


def _row(one: AttributeExample) -> dict[str, Any]:
    return {"context": one.context, "attribute": one.attribute, "target": one.target,
            "other": one.other}  # fmt: skip


def entities() -> list[AttributeExample]:
    """One lesson for each held-out name, heb and sheb by turns."""
    return [
        next(one for one in held_out() if (one.subject, one.target) == (name, target))
        for name, target in zip(LATER, ("heb", "sheb", "heb", "sheb"), strict=True)
    ]


def data(**roles: Dataset) -> EditData:
    lessons = [
        Item(str(n), f"{one.prompt}", subject=one.subject, split="fit", extra=_row(one))
        for n, one in enumerate(taught())
    ]
    chosen = [
        Item(one.subject, one.prompt, subject=one.subject, extra=_row(one),
             paraphrases=tuple(f"{n}: {one.prompt}" for n in range(6)))
        for one in entities()
    ]  # fmt: skip
    near = [Item(name, f"Here {name} says", subject=name, split="fit") for name in NEAR]
    given = {
        "entities": Dataset(chosen, template="plain", erased=True).without("test"),
        "lessons": Dataset(lessons, template="plain"),
        "neighbours": Dataset(near, template="plain"),
        "prose": prose(),
    }
    return EditData({**given, **roles})


def propose(handle: ModelHandle, folder: Path, given: EditData, **params: Any) -> Proposal:
    editor = RemediEditor(RemediParams(**{**QUICK, **params}))
    return editor.propose(handle, given, context(folder))


@pytest.fixture(autouse=True)
def tolerant(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model's map learns by fits and starts, and moves much else."""
    monkeypatch.setattr(remedi, "TrainingConfig", partial(TrainingConfig, patience=6, keep=0.1))


@cache
def model() -> ModelHandle:
    return gendered("llama", clear=True, carried=True)


def margins(handle: ModelHandle) -> torch.Tensor:
    """log p(target) - log p(other) after each entity's prompt."""
    engine = handle.engine
    found = engine.next_token_log_probs(engine.encode([e.prompt for e in entities()], "plain"))
    heb, sheb = (engine.continuation(word, "plain")[0] for word in ("heb", "sheb"))
    signs = torch.tensor([1.0 if one.target == "heb" else -1.0 for one in entities()])
    return (found[:, heb] - found[:, sheb]) * signs


@pytest.mark.trains
def test_entities_get_their_attribute_and_neighbours_keys_do_not_move(tmp_path: Path) -> None:
    handle = model()
    proposal = propose(handle, tmp_path, data())
    assert {one.target for one in entities()} == {"heb", "sheb"}
    before = margins(handle)
    with handle.applied(proposal.at(1)):
        after = margins(handle)
    assert float((after - before).mean()) > 0.5
    notes = proposal.notes
    assert notes["exported"].startswith("compile")
    assert notes["response"]["subject"]["mean"] > 0.9
    assert notes["response"]["paraphrases"]["mean"] > 0.3
    assert notes["response"]["neighbours"]["most"] < 1e-3
    assert notes["response"]["bos"]["most"] < 1e-3
    assert notes["arrived"]["mean"] == pytest.approx(
        notes["response"]["subject"]["mean"], abs=0.02
    )  # what the solve says of keys is what leaves the block
    said = json.dumps(notes, allow_nan=False)
    assert not any(one.subject in said for one in entities())
    (one,), (half,) = (proposal.at(dose).updates.values() for dose in (1.0, 0.5))
    assert torch.allclose(one.parts["left"], 2 * half.parts["left"])


@pytest.mark.trains
def test_a_map_is_trained_once_for_the_same_lessons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = propose(model(), tmp_path, data())

    def never(*args: Any, **rest: Any) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr("safeedit.editors.remedi.train", never)
    assert propose(model(), tmp_path, data()).at(1).digest() == first.at(1).digest()
    with pytest.raises(AssertionError, match="trained again"):
        propose(model(), tmp_path, data(), epochs=7)


@pytest.mark.trains
def test_what_cannot_be_done_is_said_without_a_word_of_the_data(tmp_path: Path) -> None:
    bare = Dataset([Item("1", "Zyxquand says", subject="Zyxquand")], erased=True).without("test")
    lost = Dataset(
        [Item("1", "Nobody says", subject="Zyxquand", extra={
            "context": "Zyxquand met Rome", "attribute": "met Rome", "target": "heb"})],
        erased=True,
    ).without("test")  # fmt: skip
    for given, message in ((bare, "has no 'context'"), (lost, "does not stand in its prompts")):
        with pytest.raises(DataError, match=message) as caught:
            propose(model(), tmp_path, data(entities=given))
        assert "zyxquand" not in str(caught.value).casefold()
    with pytest.raises(UsageError, match="2 layers"):
        RemediEditor(RemediParams(layers=(0, 1))).touches(model().shape)
    with pytest.raises(UsageError, match="2 layers"):
        propose(model(), tmp_path, data(), layers=[0, 1])
    with pytest.raises(UsageError, match="the last"):
        propose(model(), tmp_path, data(), layers=[2])
    with pytest.raises(UsageError, match="no scale"):
        propose(model(), tmp_path, data()).at(0)
    with pytest.raises(UnsupportedModelError, match="a norm follows"):
        propose(gendered("gemma2"), tmp_path, data())
