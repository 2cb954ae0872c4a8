"""Measuring a map's three uses, and ``safeedit remedi`` as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from benchmarks.remedi import compiled
from safeedit.data import Dataset, Item
from safeedit.data.loading import load_dataset
from safeedit.methods.remedi.mapping import Remedi
from safeedit.methods.remedi.steering import steering
from safeedit.methods.remedi.training import TrainingConfig, train
from safeedit.model.sources import open_model
from safeedit.policy import DataSpec
from safeedit.workflows.remedi.measuring import lessons_of, lift, probe
from tests.editors.gendered import gendered, prose
from tests.fixtures import call, context
from tests.model.named import LATER, NAMES
from tests.tiny_models import save_tiny
from tests.workflows.remedi.lessons import rows


def dataset() -> Dataset:
    items = []
    for number, row in enumerate(rows()):
        own = {name: row.pop(name) for name in ("prompt", "subject", "split")}
        items.append(Item(str(number), extra=row, **own))
    return Dataset(items, template="plain")


@pytest.mark.trains
def test_steered_and_compiled_are_measured_alike(tmp_path: Path) -> None:
    handle, data = gendered("llama", clear=True, carried=True), dataset()
    how = TrainingConfig(epochs=10, patience=10, learning_rate=1e-2, keep=0.1, held_out=0.0)
    learnt = train(handle, lessons_of(data, "fit", both_ways=True), 0, "plain", how)
    ctx = context(tmp_path)
    fit = data.items("fit")
    steers = learnt.learnt_of(handle, lessons_of(data, "fit"))
    steered = lift(handle, steering(handle, steers), fit, data.items("test"), "plain", ctx)
    assert steered.margin > 0.5
    assert steered.raised > 0.7
    assert steered.locality == 1, "nobody else is steered"
    none = lift(handle, steering(handle, []), fit, [], "plain", ctx)
    assert (none.margin, none.probability, none.locality) == (0, 0, None)
    found = probe(handle, learnt, data, "fit", draws=3)
    assert 0 <= found.control <= 1
    assert found.entities == len(NAMES)
    assert found.selectivity == found.accuracy - found.control
    later = data.items("test")
    proposal = compiled(
        handle, later, {"lessons": data, "prose": prose()}, ctx,
        layers=[0], epochs=10, learning_rate=1e-2, ridge=1e-4,
    )  # fmt: skip
    steers = learnt.learnt_of(handle, lessons_of(data, "test"))
    steered = lift(handle, steering(handle, steers), later, [], "plain", ctx)
    change = proposal.at(1)
    weights = lift(handle, handle.applied(change), later, [], "plain", ctx)
    control = handle.applied(change.random_like(0, handle))
    unrelated = lift(handle, control, later, [], "plain", ctx)
    assert steered.margin > weights.margin > 2 * abs(unrelated.margin)


def test_the_built_in_lessons_share_no_name_and_no_attribute_between_splits() -> None:
    data = load_dataset(DataSpec(dataset="attributes", where={"role": "lesson"}))
    seen: list[set[str]] = []
    for split in ("fit", "validation", "test"):
        lessons = lessons_of(data, split, both_ways=True)  # type: ignore[arg-type]
        assert len(lessons) == 2 * len(data.items(split))  # type: ignore[arg-type]
        seen.append({x for one in lessons for x in (one.subject, one.attribute, one.target)})
        assert all(one.subject in one.prompt and one.attribute in one.context for one in lessons)
        assert not any(one.attribute in one.prompt for one in lessons)
    assert len(set.union(*seen)) == sum(map(len, seen))
    everyone = load_dataset(DataSpec(dataset="attributes", template="plain", split="test"))
    persons = [item.subject for item in everyone if item.extra.get("kind") != "concept"]
    assert len(set(persons)) == len(persons)


@pytest.mark.trains
def test_where_no_token_reads_another_a_map_learns_nothing(tmp_path: Path) -> None:
    def deafen(model: PreTrainedModel) -> None:
        for name, parameter in model.named_parameters():
            if "o_proj" in name:
                parameter.data.zero_()

    source = save_tiny("llama", tmp_path / "model", prepare=deafen)
    lessons, out = tmp_path / "lessons.jsonl", tmp_path / "map.safetensors"
    lessons.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    trained = call(
        "remedi", "train", "--model", source, "--lessons", lessons, "--layers", "0-0",
        "--learning-rate", 0.1, "--out", out,
    )  # fmt: skip
    assert (trained.exit_code, "learnt nothing" in trained.stderr) == (3, True)
    assert not out.exists()


@pytest.mark.trains
def test_a_map_is_trained_probed_with_and_steered_by(tmp_path: Path) -> None:
    handle = gendered("llama", clear=True, carried=True)
    source = tmp_path / "model"
    handle.model.save_pretrained(source)
    handle.tokenizer.save_pretrained(source)  # type: ignore[union-attr]
    lessons, out = tmp_path / "lessons.jsonl", tmp_path / "map.safetensors"
    lessons.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    given = ("--model", source, "--lessons", lessons)
    model, how = open_model(str(source)), TrainingConfig(epochs=2, held_out=0.0)
    train(model, lessons_of(dataset(), "fit"), 0, "plain", how).save(out)
    assert Remedi.load(out).layer == 0
    again = call("remedi", "train", *given, "--out", out)
    assert (again.exit_code, "the file exists" in again.stderr) == (2, True)
    probed = call("remedi", "probe", *given, "--map", out, "--told", "--json")
    assert json.loads(probed.stdout)["entities"] == len(LATER), probed.stderr
    steered = call("remedi", "steer", *given, "--map", out, "--json")
    assert set(json.loads(steered.stdout)) == {
        "margin", "probability", "accuracy", "raised", "locality",
    }  # fmt: skip
    said = call(
        "remedi", "steer", *given, "--map", out, "--prompt", "Here kragum says", "--tokens", 3
    )
    assert (said.exit_code, bool(said.stdout)) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("probe", "--map", "none.safetensors"), 3, "does not exist"),
        (("train", "--out", "m", "--layers", "x"), 2, "--layers"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(arguments: tuple[str, ...], code: int, said: str) -> None:
    result = call("remedi", *arguments, "--model", "nowhere")
    assert (result.exit_code, said in result.stderr) == (code, True), result.stderr
