"""Knowledge neurons: found where all wordings agree, and the answer rests on them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from safeedit.contracts import EditData
from safeedit.delta import Columns
from safeedit.editors.knowledge_neurons import KnowledgeNeurons, KnowledgeNeuronsParams
from safeedit.errors import EditError
from safeedit.model.handle import ModelHandle
from tests.editors import toy
from tests.editors.toy import FACTS, FORGOTTEN, WORDINGS
from tests.fixtures import context


def _recall(model: ModelHandle, names: tuple[str, ...]) -> float:
    engine = model.engine
    prompts = engine.encode([w.format(name) for name in names for w in WORDINGS], "chat")
    firsts = [engine.continuation(FACTS[name], "chat")[0] for name in names for _ in WORDINGS]
    found = []
    for prompt, first in zip(prompts, firsts, strict=True):
        with torch.no_grad():
            logits = model.model(input_ids=torch.tensor([prompt])).logits[0, -1]
        found.append(float(logits.softmax(-1)[first]))
    return sum(found) / len(found)


def test_without_its_neurons_a_fact_is_less_likely(tmp_path: Path) -> None:
    model = toy.taught()
    editor = KnowledgeNeurons(KnowledgeNeuronsParams())
    proposal = editor.propose(model, EditData({"forget": toy.forget()}), context(tmp_path))
    before = _recall(model, FORGOTTEN)
    delta = proposal.at(proposal.doses[-1])
    for update in delta.updates.values():
        assert isinstance(update, Columns)
        assert not update.values.any()
    with model.applied(delta):
        assert _recall(model, FORGOTTEN) < before


def test_the_more_wordings_must_agree_the_fewer_neurons_are_a_facts(tmp_path: Path) -> None:
    model = toy.taught()
    found = []
    for agreement in (0.1, 0.7, 1.0):
        editor = KnowledgeNeurons(KnowledgeNeuronsParams(agreement=agreement))
        proposal = editor.propose(model, EditData({"forget": toy.forget()}), context(tmp_path))
        found.append(proposal.notes["neurons"])
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-1] > 0


def test_a_dose_is_neurons_per_fact_at_most(tmp_path: Path) -> None:
    model = toy.taught()
    editor = KnowledgeNeurons(KnowledgeNeuronsParams(agreement=0.5))
    proposal = editor.propose(model, EditData({"forget": toy.forget()}), context(tmp_path))
    for dose in proposal.doses:
        columns = sum(len(update.parts["indices"]) for update in proposal.at(dose).updates.values())
        assert 1 <= columns <= dose * len(FORGOTTEN)


def test_no_neuron_is_said(tmp_path: Path) -> None:
    model = toy.taught()
    with torch.no_grad():
        for site in model.sites("mlp_out"):
            model.tensor(site.weight).zero_()
    editor = KnowledgeNeurons(KnowledgeNeuronsParams())
    with pytest.raises(EditError, match="no neuron supports"):
        editor.propose(model, EditData({"forget": toy.forget()}), context(tmp_path))
