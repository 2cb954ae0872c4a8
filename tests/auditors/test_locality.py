"""Whatever moves away from the base shows, and the base against itself shows nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from safeedit.auditors import locality
from safeedit.auditors.locality import Locality, Params
from safeedit.contracts import AuditOutcome
from safeedit.data import Dataset, Item
from safeedit.errors import AuditError
from safeedit.model.engine import Engine
from safeedit.records import Metric
from tests.auditors.scripted import VOCAB, Asked, ScriptedEngine
from tests.fixtures import context
from tests.tiny_models import tiny_handle

ANSWERS = {"sky": "blue", "grass": "green", "snow": "white", "coal": "black"}


def _near() -> Dataset:
    return Dataset(
        [
            Item(id=thing, prompt=f"What colour is {thing}?", answer=colour)
            for thing, colour in ANSWERS.items()
        ],
        split="test",
    )


def _far() -> Dataset:
    prompts = ("Write a poem.", "Greet me.", "Count to three.")
    return Dataset([Item(id=text, prompt=text) for text in prompts], split="test")


def _unknown() -> Dataset:
    prompts = ("What is in my pocket?", "Who rang me?")
    return Dataset([Item(id=text, prompt=text) for text in prompts], split="test")


def _base(asked: Asked, sample: int) -> str:
    for thing, colour in ANSWERS.items():
        if thing in asked.text:
            return f"it is {colour}" if thing != "coal" else "it is yellow"
    return "I don't know" if "rang" in asked.text else f"well: {asked.text}"


def _audit(
    say: Callable[[Asked, int], str],
    tmp_path: Path,
    reference: dict[str, torch.Tensor] | None = None,
    data: dict[str, Dataset] | None = None,
    distribution: Callable[[str, int], torch.Tensor] | None = None,
    **params: Any,
) -> tuple[dict[str, Metric], AuditOutcome, ScriptedEngine]:
    engine = ScriptedEngine(say)
    if distribution is not None:
        engine.distribution = distribution
    data = data or {"near": _near(), "far": _far(), "unknown": _unknown()}
    outcome = Locality(Params(**params)).audit(
        engine.model, data, "test", context(tmp_path), reference
    )
    return {metric.name: metric for metric in outcome.metrics}, outcome, engine


def test_the_base_against_itself_is_unchanged(tmp_path: Path) -> None:
    for reference in (None, _audit(_base, tmp_path)[1].reference):
        found, _, _ = _audit(_base, tmp_path, reference)
        for name in ("unchanged", "near_unchanged", "far_unchanged", "near_f1", "far_f1"):
            assert found[name].value == 1.0
        for name in ("near_kl", "far_kl"):
            assert found[name].value == pytest.approx(0.0, abs=1e-6)
        for name in ("near_over_refusal", "far_over_refusal", "unknown_over_refusal"):
            assert found[name].value == 0.0
        assert found["near_accuracy"].value == 3 / 4
        assert (found["near_accuracy_kept"].value, found["near_accuracy_kept"].n) == (1.0, 3)
        assert found["unchanged"].n == 7


def test_one_changed_answer_shows_in_its_group_and_in_all(tmp_path: Path) -> None:
    def edited(asked: Asked, sample: int) -> str:
        return "it is pink" if "sky" in asked.text else _base(asked, 0)

    found, _, _ = _audit(edited, tmp_path, _audit(_base, tmp_path)[1].reference)
    assert found["near_unchanged"].value == 3 / 4
    assert found["far_unchanged"].value == 1.0
    assert found["unchanged"].value == pytest.approx(6 / 7)
    assert found["near_f1"].value == pytest.approx((3 + 2 / 3) / 4)
    assert found["near_accuracy"].value == 2 / 4
    assert found["near_accuracy_kept"].value == pytest.approx(2 / 3)


def test_an_answer_that_became_right_is_a_change_but_loses_nothing(tmp_path: Path) -> None:
    def edited(asked: Asked, sample: int) -> str:
        return "it is black" if "coal" in asked.text else _base(asked, 0)

    found, _, _ = _audit(edited, tmp_path, _audit(_base, tmp_path)[1].reference)
    assert found["near_unchanged"].value == 3 / 4
    assert found["near_accuracy"].value == 1.0
    assert found["near_accuracy_kept"].value == 1.0


def test_answers_that_repeat_themselves_lose_their_fluency(tmp_path: Path) -> None:
    base, outcome, _ = _audit(_base, tmp_path)
    # "it is blue": two pairs and one run of three, so H2 is 1 bit and H3 is 0.
    assert base["near_fluency"].value == pytest.approx(1 / 3)
    assert (base["near_fluency"].n, base["far_fluency"].n) == (4, 3)
    assert base["near_fluency"].interval is not None
    found, _, _ = _audit(lambda *_: "no no no no", tmp_path, outcome.reference)
    assert found["near_fluency"].value == found["far_fluency"].value == 0.0


def test_refusals_count_only_where_the_base_answered(tmp_path: Path) -> None:
    found, _, _ = _audit(
        lambda asked, sample: "I don't know.", tmp_path, _audit(_base, tmp_path)[1].reference
    )
    assert found["near_over_refusal"].value == found["far_over_refusal"].value == 1.0
    # The base already refused one of the two unknown questions.
    assert (found["unknown_over_refusal"].value, found["unknown_over_refusal"].n) == (1.0, 1)


def test_groups_without_data_are_absent_with_a_reason(tmp_path: Path) -> None:
    found, _, _ = _audit(_base, tmp_path, data={"near": _near()})
    for name, metric in found.items():
        if name.startswith(("far_", "unknown_")):
            assert (metric.value, metric.n, metric.note) == (None, 0, "no data given")
    assert found["unchanged"].value == 1.0


def test_accuracy_needs_answers(tmp_path: Path) -> None:
    found, _, _ = _audit(_base, tmp_path)
    assert found["far_accuracy"].value is None
    assert "no item has an answer" in found["far_accuracy"].note


def test_divergence_is_the_hand_computed_mean_over_positions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locality, "KL_POSITIONS", 4)

    def base(text: str, position: int) -> torch.Tensor:
        return torch.full((VOCAB,), 1 / VOCAB).log()

    def edited(text: str, position: int) -> torch.Tensor:
        if "sky" not in text or position != 1:
            return base(text, position)
        probabilities = torch.full((VOCAB,), 0.5 / (VOCAB - 1))
        probabilities[0] = 0.5
        return probabilities.log()

    _, outcome, _ = _audit(_base, tmp_path, distribution=base)
    found, _, _ = _audit(_base, tmp_path, outcome.reference, distribution=edited)
    p, q = edited("sky", 0).exp(), edited("sky", 1).exp()
    one = float((p * (p / q).log()).sum())
    assert found["near_kl"].value == pytest.approx(one / 4 / 4, rel=1e-3)
    assert max(found["near_kl"].items.values()) == pytest.approx(one / 4, rel=1e-3)
    assert found["far_kl"].value == pytest.approx(0, abs=1e-6)


def test_divergence_includes_where_a_short_answer_ends(tmp_path: Path) -> None:
    """An edited model that babbles on after the base's answer has diverged."""

    def end(text: str, position: int) -> torch.Tensor:
        probabilities = torch.full((VOCAB,), 0.1 / (VOCAB - 1))
        probabilities[2 if position == 2 else 1] = 0.9
        return probabilities.log()

    def on(text: str, position: int) -> torch.Tensor:
        return end(text, 0)

    def short(asked: Asked, sample: int) -> str:
        return "ok"

    reference = _audit(short, tmp_path, distribution=end)[1].reference
    assert reference["log_probs_near"].shape == (4 * 3, VOCAB)
    assert _audit(short, tmp_path, reference, distribution=on)[0]["near_kl"].value > 0.5


def test_empty_answers_can_be_compared(tmp_path: Path) -> None:
    def mute(asked: Asked, sample: int) -> str:
        return ""

    found, outcome, _ = _audit(mute, tmp_path)
    found, _, _ = _audit(mute, tmp_path, outcome.reference)
    assert found["unchanged"].value == found["near_f1"].value == 1.0
    assert found["near_kl"].value == pytest.approx(0, abs=1e-6)


def test_the_number_of_distributions_kept_is_capped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locality, "KL_POSITIONS", 3)
    found, outcome, _ = _audit(_base, tmp_path, kl_prompts=2)
    assert outcome.reference["log_probs_near"].shape == (6, VOCAB)
    assert found["near_kl"].n == 2
    assert outcome.reference["log_probs_near"].dtype == torch.float16
    found, outcome, _ = _audit(_base, tmp_path, kl_prompts=0)
    assert not any(name.startswith("log_probs") for name in outcome.reference)
    assert found["near_kl"].value is None
    again, _, _ = _audit(_base, tmp_path, outcome.reference, kl_prompts=0)
    assert again["near_kl"].note == "kl_prompts is 0"


def test_a_reference_made_with_other_parameters_is_refused(tmp_path: Path) -> None:
    reference = _audit(_base, tmp_path)[1].reference
    with pytest.raises(AuditError, match="other parameters"):
        _audit(_base, tmp_path, reference, kl_prompts=2)


def test_a_reference_of_other_data_is_refused(tmp_path: Path) -> None:
    reference = _audit(_base, tmp_path)[1].reference
    with pytest.raises(AuditError, match="other data"):
        _audit(_base, tmp_path, reference, data={"near": _near()})


def test_a_split_without_near_questions_is_refused(tmp_path: Path) -> None:
    near = Dataset(_near().all(), split="fit")
    with pytest.raises(AuditError, match="nothing to ask"):
        _audit(_base, tmp_path, data={"near": near, "far": _far()})


def test_everything_is_asked_in_one_call(tmp_path: Path) -> None:
    _, _, engine = _audit(_base, tmp_path)
    assert engine.calls == ["greedy"]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_divergence_of_a_real_edit_equals_the_models_own(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locality, "KL_POSITIONS", 2)
    handle = tiny_handle(family)
    auditor = Locality(Params(max_new_tokens=3))
    data = {"near": _near()}
    reference = auditor.audit(handle, data, "test", context(tmp_path), None).reference
    prompts = handle.engine.encode([item.prompt for item in _near()])
    answers = [out[0] for out in handle.engine.generate(prompts, max_new_tokens=3)]

    def distributions() -> list[torch.Tensor]:
        rows = []
        for prompt, answer in zip(prompts, answers, strict=True):
            wanted = [*answer, 0][:2]
            with torch.no_grad():
                logits = handle.model(torch.tensor([[*prompt, *wanted]])).logits[0].float()
            rows.append(logits[len(prompt) - 1 : -1].log_softmax(-1))
        return rows

    before = distributions()
    unchanged = auditor.audit(handle, data, "test", context(tmp_path), reference)
    assert {m.name: m for m in unchanged.metrics}["near_kl"].value < 1e-5
    with torch.no_grad():
        weight = next(p for name, p in handle.model.named_parameters() if "mlp" in name)
        weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    after = distributions()
    expected = [
        float((p.exp() * (p - q)).sum(-1).mean()) for p, q in zip(before, after, strict=True)
    ]
    edited = auditor.audit(handle, data, "test", context(tmp_path), reference)
    found = {metric.name: metric for metric in edited.metrics}["near_kl"]
    assert found.value == pytest.approx(sum(expected) / len(expected), rel=0.01)
    assert found.value > 1e-3


def test_divergence_read_along_drafts_is_that_read_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = tiny_handle("llama")
    data = {"near": _near(), "far": _far()}
    auditor = Locality(Params(kl_prompts=3, max_new_tokens=10))

    def audited(reference: dict[str, torch.Tensor] | None) -> AuditOutcome:
        return auditor.audit(handle, data, "test", context(tmp_path), reference)

    reference = dict(audited(None).reference)
    weight = handle.weight(handle.sites("mlp_out", [1])[0])
    with torch.no_grad():
        weight += 0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    apart: list[int] = []
    distributions = Engine.distributions

    def watched(self: Engine, prompts: Any, *more: Any, **others: Any) -> Any:
        apart.append(len(prompts))
        return distributions(self, prompts, *more, **others)

    monkeypatch.setattr(Engine, "distributions", watched)
    along = {metric.name: metric.value for metric in audited(reference).metrics}
    assert apart == [0, 0]
    monkeypatch.setattr(locality, "Along", lambda continuations, read: None)
    plain = {metric.name: metric.value for metric in audited(reference).metrics}
    assert apart == [0, 0, 3, 3]

    assert (plain["near_kl"] or 0) > 1e-3
    assert [name for name, value in plain.items() if value is None] == [
        name for name, value in along.items() if value is None
    ]
    for name, value in plain.items():
        assert value is None or along[name] == pytest.approx(value, rel=1e-3)
