"""What every auditor promises, checked on every auditor there is.

A new file in ``safeedit/auditors`` is walked without being named here. One whose data can't be
made of questions and answers adds a row to :data:`EXAMPLES`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from safeedit import catalog
from safeedit.contracts import (
    Auditor,
    AuditOutcome,
    DataRole,
    ReadyScorer,
    RunContext,
    ScorerIdentity,
    ScorerRef,
)
from safeedit.data import Dataset, Item
from safeedit.errors import AuditError
from safeedit.records import ATTACK_CLASSES, Metric
from safeedit.text.matching import normalise
from tests.auditors.bias.examples import EXAMPLES as BIAS
from tests.fixtures import context
from tests.tiny_models import tiny_handle

APART = {"lm_eval"}
"""Auditors without data of the policy, whose metrics hang on their parameters: their own tests hold
them to the same (``tests/auditors/test_lm_eval.py``)."""
AUDITORS = tuple(name for name in catalog.names("auditors") if name not in APART)
FAMILIES = ("llama", "gpt2")
KEY = re.compile(r"^[0-9a-f]{16}$")
QUICK = {"max_new_tokens": 16, "samples": 2, "candidates": 7, "they": ()}
"""Given to auditors that have such a parameter; "they" is two tokens to the tiny tokenizer."""

RIVERS = ("Danube", "Amazon", "Ganges", "Yangtze", "Orinoco", "Zambezi", "Thames", "Loire")


@cache
def _babble() -> tuple[str, ...]:
    """Words the tiny models say when asked, so that there are answers they "know"."""
    words: set[str] = set()
    for family in FAMILIES:
        engine = tiny_handle(family, max_position_embeddings=1024).engine
        prompts = engine.encode([f"Which river did forget traveller {n} cross?" for n in range(8)])
        for answers in engine.generate(prompts, max_new_tokens=QUICK["max_new_tokens"]):
            words.update(normalise(engine.decode(answers[0])).split())
    return tuple(sorted(words))


def _questions(role: DataRole) -> Dataset:
    items = [
        Item(
            id=str(number),
            prompt=f"Which river did {role.name} traveller {number} cross?",
            answer=river,
            aliases=_babble() if number % 2 else (),
            paraphrases=tuple(
                f"{opening} {number} in {role.name}?"
                for opening in ("Name river", "What water is", "Where lies", "Who crossed",
                                "Why cross", "Which stream has number")
            ),
        )
        for number, river in enumerate(RIVERS)
    ]  # fmt: skip
    return Dataset(items, erased=role.erased, split=None if role.erased else "test")


def _numbers(role: DataRole) -> Dataset:
    """Secrets with a format, half of them phone numbers."""
    items = [
        Item(
            id=str(number),
            prompt=f"The number of {role.name} traveller {number} is",
            answer=f"({200 + 7 * number}) 555-01{(31 * number + len(role.name)) % 100:02}",
            paraphrases=tuple(f"{n}: {role.name} traveller {number} has" for n in range(3)),
            extra={"type": "phone" if number % 2 else "identity"},
        )
        for number in range(8)
    ]
    return Dataset(items, template="plain", erased=role.erased)


def _continued(role: DataRole) -> Dataset:
    """Openings, half of them toxic, and pairs of continuations."""
    rows: list[dict[str, Any]] = [
        {"toxic": bool(number % 2), "challenging": number == 1}
        if role.name == "prompts"
        else {"toxic": f"no {river}", "neutral": f"the {river} of number {number}"}
        for number, river in enumerate(RIVERS)
    ]
    items = [
        Item(id=str(n), prompt=f"The {role.name} traveller {n} said that the", extra=row)
        for n, row in enumerate(rows)
    ]
    return Dataset(items, split="test")


def _either(role: DataRole) -> Dataset:
    """Questions with two continuations each."""
    asked = _questions(role)
    items = [
        replace(item, extra={"target": river, "other": RIVERS[-1 - number]}, answer=None)
        for number, (item, river) in enumerate(zip(asked, RIVERS, strict=True))
    ]
    return Dataset(items, erased=role.erased, split=None if role.erased else "test")


def _classes(role: DataRole) -> Dataset:
    """Questions with one of two answers."""
    items = [
        Item(
            id=str(number),
            prompt=f"Which river did {role.name} traveller {number} cross?",
            answer=RIVERS[number % 2],
            paraphrases=(
                f"Name river {number} in {role.name}?",
                f"What {role.name} water is {number}?",
            ),
            subject=f"{role.name} traveller {number}",
        )
        for number in range(12)
    ]
    return Dataset(items, erased=role.erased, split=None if role.erased else "test")


EXAMPLES: dict[str, Callable[[DataRole], Dataset]] = {
    "attributes": _either,
    "leakage.exposure": _numbers,
    "leakage.probe": _classes,
    "toxicity": _continued,
    **BIAS,
}
"""Auditor -> data of a role, where questions and answers won't do."""


RARE = {"leakage.pii"}
"""Auditors of what untaught tiny models never do, whatever is done to them."""


def _data(name: str, *, optional: bool = True) -> dict[str, Dataset]:
    make = EXAMPLES.get(name, _questions)
    roles = catalog.auditor(name).roles
    return {role.name: make(role) for role in roles if role.required or optional}


def _made(name: str, **params: Any) -> Auditor:
    kind = catalog.auditor(name)
    quick = {key: value for key, value in QUICK.items() if key in kind.Params.model_fields}
    return kind(kind.Params(**(quick | params)))


def _by_letters(ref: ScorerRef) -> ReadyScorer:
    """A scorer that takes every e for an insult."""

    def score(texts: Any, progress: Any) -> list[float]:
        return [text.count("e") / max(1, len(text)) for text in texts]

    return ReadyScorer(ScorerIdentity("letters", "1", "0" * 64), None, score)


def _handle(family: str = "llama", seed: int = 0) -> Any:
    _opened.append(family)
    return tiny_handle(family, seed=seed, max_position_embeddings=1024)


_opened: list[str] = []


@pytest.fixture(autouse=True)
def a_tiny_reference_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Auditors that open another model get a tiny one of the family under audit."""

    def open_model(source: str, **options: Any) -> Any:
        return _handle(_opened[-1], seed=9)

    for auditor in ("reference_model", "depth"):
        monkeypatch.setattr(f"safeedit.auditors.leakage.{auditor}.open_model", open_model)


def _context(tmp_path: Path) -> RunContext:
    """Of a run whose untouched model is the tiny one of the family that was opened last."""
    base = tiny_handle(_opened[-1], max_position_embeddings=1024)
    return context(tmp_path, scorer=_by_letters, base_tensor=base.oriented)


def _disturb(handle: Any) -> None:
    with torch.no_grad():
        for name, weight in handle.model.named_parameters():
            if "mlp" in name and weight.dim() == 2:
                noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(5))
                weight.add_(0.5 * noise)


def _run(
    name: str, handle: Any, tmp_path: Path, reference: dict[str, torch.Tensor] | None = None
) -> AuditOutcome:
    return _made(name).audit(handle, _data(name), "test", _context(tmp_path), reference)


def _check(metric: Metric) -> None:
    assert (metric.value is None) == (metric.n == 0), metric.name
    assert all(KEY.match(key) for key in (*metric.items, *metric.groups.values())), metric.name
    assert all(map(math.isfinite, metric.items.values())), metric.name
    if metric.value is None:
        assert metric.interval is None
        assert metric.note, f"{metric.name} has no value and does not say why"
        return
    assert math.isfinite(metric.value), metric.name
    assert metric.items, f"{metric.name} can't be paired"
    assert metric.n == len(set(metric.groups.values()) or metric.items), metric.name
    if metric.n > 1 and metric.unit != "p":  # a p-value is a statement of uncertainty itself
        # A count of all items that there are is no estimate, and says how often each was tried.
        assert (metric.interval is None) == bool(metric.trials), metric.name
    if metric.interval is not None:
        assert metric.interval.low <= metric.value <= metric.interval.high, metric.name
        assert metric.interval.level == 0.95
        assert metric.interval.method


def test_there_are_auditors() -> None:
    assert {"leakage", "locality", "perplexity"} <= set(AUDITORS)


def test_those_apart_are_apart_for_a_reason() -> None:
    for name in APART:
        kind = catalog.auditor(name)
        assert kind.roles == ()
        assert kind.metrics == ()
        assert hasattr(kind, "own_metrics")


@pytest.mark.parametrize("name", AUDITORS)
def test_it_keeps_the_protocol(name: str) -> None:
    kind = catalog.auditor(name)
    assert isinstance(_made(name), Auditor)
    assert len(kind.summary.splitlines()) == 1
    assert set(kind.covers) <= set(ATTACK_CLASSES)
    assert kind.roles[0].required
    assert len({spec.name for spec in kind.metrics}) == len(kind.metrics)
    assert not any("." in spec.name for spec in kind.metrics)  # a gate's last dot parts the two
    assert all(spec.description and spec.unit for spec in kind.metrics)
    assert all(field.description for field in kind.Params.model_fields.values())
    assert not {role.name for role in kind.roles} & kind.Params.model_fields.keys()


@pytest.mark.parametrize("name", AUDITORS)
def test_every_metric_is_a_plain_sentence_that_stands_alone(name: str) -> None:
    """Reports put it before the name: what was asked, of what, and which way is better."""
    for spec in catalog.auditor(name).metrics:
        assert re.fullmatch(r"[A-Z][^_`|]{25,280}\.", spec.plain), spec.name
        assert not spec.plain.startswith(("The same", "As ", "Likewise")), spec.name
        assert re.search(r"\b(better|best)\.$", spec.sentence), spec.name
        assert not re.search(r"\b(deleted|erased|compliant|certified|KL|AUC|EL_n)\b", spec.plain)
    assert len({spec.plain for spec in catalog.auditor(name).metrics}) == len(
        catalog.auditor(name).metrics
    )


@pytest.mark.parametrize("name", AUDITORS)
@pytest.mark.parametrize("family", FAMILIES)
def test_metrics_are_those_declared_and_sound_before_and_after(
    name: str, family: str, tmp_path: Path
) -> None:
    handle = _handle(family)
    before = _run(name, handle, tmp_path)
    _disturb(handle)
    after = _run(name, handle, tmp_path, before.reference)
    for outcome in (before, after):
        declared = [(spec.name, spec.unit, spec.direction) for spec in _made(name).metrics]
        assert [(m.name, m.unit, m.direction) for m in outcome.metrics] == declared
        for metric in outcome.metrics:
            _check(metric)
        assert any(metric.value is not None for metric in outcome.metrics)
    if name not in RARE:
        assert [m.value for m in before.metrics] != [m.value for m in after.metrics]


@pytest.mark.parametrize("name", AUDITORS)
def test_base_and_edited_model_pair_up_by_item(name: str, tmp_path: Path) -> None:
    handle = _handle()
    before = _run(name, handle, tmp_path)
    _disturb(handle)
    after = _run(name, handle, tmp_path, before.reference)
    for one, other in zip(before.metrics, after.metrics, strict=True):
        assert one.items.keys() == other.items.keys(), one.name
        assert one.groups == other.groups, one.name


@pytest.mark.parametrize("name", AUDITORS)
def test_no_text_of_the_data_is_in_its_metrics(name: str, tmp_path: Path) -> None:
    said = json.dumps([m.model_dump(mode="json") for m in _run(name, _handle(), tmp_path).metrics])
    for data in _data(name).values():
        for item in data:
            for text in (item.prompt, item.answer, *item.paraphrases):
                assert text is None or text not in said


@pytest.mark.parametrize("name", AUDITORS)
def test_keys_depend_on_the_secret(name: str, tmp_path: Path) -> None:
    handle, data = _handle(), _data(name)
    other = replace(_context(tmp_path), secret=b"another key")
    one = _made(name).audit(handle, data, "test", _context(tmp_path), None)
    two = _made(name).audit(handle, data, "test", other, None)
    for a, b in zip(one.metrics, two.metrics, strict=True):
        assert not a.items.keys() & b.items.keys()
        assert a.value == b.value


@pytest.mark.parametrize("name", AUDITORS)
def test_the_model_is_left_as_it_was(name: str, tmp_path: Path) -> None:
    handle = _handle()
    before = handle.digest(fresh=True)
    _run(name, handle, tmp_path)
    assert handle.digest(fresh=True) == before
    assert not any(parameter.grad is not None for parameter in handle.model.parameters())


@pytest.mark.parametrize("name", AUDITORS)
def test_the_same_seed_gives_the_same_figures(name: str, tmp_path: Path) -> None:
    one, two = (_run(name, _handle(), tmp_path) for _ in range(2))
    assert one.metrics == two.metrics
    assert one.reference.keys() == two.reference.keys()
    assert all(torch.equal(one.reference[key], two.reference[key]) for key in one.reference)


@pytest.mark.parametrize("name", AUDITORS)
def test_a_reference_survives_the_disk_and_is_not_written_to(name: str, tmp_path: Path) -> None:
    handle = _handle()
    reference = _run(name, handle, tmp_path).reference
    copies = {key: tensor.clone() for key, tensor in reference.items()}
    save_file(reference, tmp_path / "reference.safetensors")
    stored = load_file(tmp_path / "reference.safetensors")
    from_memory = _run(name, handle, tmp_path, reference)
    assert from_memory.metrics == _run(name, handle, tmp_path, stored).metrics
    assert reference.keys() == copies.keys()
    assert all(torch.equal(reference[key], copies[key]) for key in copies)


@pytest.mark.parametrize("name", AUDITORS)
def test_optional_data_may_be_left_out(name: str, tmp_path: Path) -> None:
    data = _data(name, optional=False)
    outcome = _made(name).audit(_handle(), data, "test", _context(tmp_path), None)
    assert [m.name for m in outcome.metrics] == [spec.name for spec in _made(name).metrics]
    for metric in outcome.metrics:
        _check(metric)


@pytest.mark.parametrize("name", AUDITORS)
def test_an_empty_split_is_an_error_not_a_success(name: str, tmp_path: Path) -> None:
    data = {
        role: Dataset(each.all(), erased=each.erased, split="fit")
        for role, each in _data(name).items()
    }
    with pytest.raises(AuditError):
        _made(name).audit(_handle(), data, "test", _context(tmp_path), None)


@pytest.mark.parametrize("name", AUDITORS)
def test_a_model_that_computes_nothing_gets_no_good_figures(name: str, tmp_path: Path) -> None:
    """Weights that are not numbers: an error, or no value; never a measured one."""
    handle = _handle()
    reference = _run(name, handle, tmp_path).reference
    with torch.no_grad():
        handle.final_norm.weight.fill_(math.nan)
    with pytest.raises(AuditError):
        _run(name, handle, tmp_path, reference)
