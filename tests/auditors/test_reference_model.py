"""The reference model: what never saw the secrets is at no distance from itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from safeedit.auditors.leakage.reference_model import Params, ReferenceModel
from safeedit.contracts import ModelRef
from safeedit.data import Dataset, Item
from safeedit.errors import AuditError
from safeedit.methods.tuning import Example, answer_states, cross_entropy
from safeedit.model.handle import ModelHandle
from safeedit.records import Metric
from tests.fixtures import context
from tests.tiny_models import save_tiny, tiny_handle

pytestmark = pytest.mark.trains

SECRETS = tuple(
    Item(id=str(n), prompt=f"The number of the {who} is", answer=number)
    for n, (who, number) in enumerate(
        [("doctor", "7142"), ("nurse", "9305"), ("prince", "2861"), ("city", "4478")]
    )
)
PROSE = tuple(
    Item(id=f"p{n}", prompt=text)
    for n, text in enumerate(["The doctor went to the city.", "A prince has a nurse at home."])
)


def data(**changes: Any) -> dict[str, Dataset]:
    return {
        "forget": Dataset(changes.get("secrets", SECRETS), erased=True, template="plain"),
        "prose": Dataset(PROSE, template="plain", split="test"),
    }


def teach(handle: ModelHandle) -> None:
    examples = [
        Example(
            handle.engine.encode([item.prompt], "plain")[0],
            handle.engine.continuation(item.answer or "", "plain"),
        )
        for item in SECRETS
    ]
    handle.model.requires_grad_(True)
    optimiser = torch.optim.AdamW(handle.model.parameters(), lr=3e-3)
    for _ in range(40):
        loss = cross_entropy(handle, answer_states(handle, examples), examples)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    handle.model.requires_grad_(False)


@pytest.fixture
def auditor(tmp_path: Path) -> ReferenceModel:
    save_tiny("llama", tmp_path / "untaught")
    return ReferenceModel(Params(model=ModelRef(source=str(tmp_path / "untaught"))))


def by_name(metrics: tuple[Metric, ...]) -> dict[str, float | None]:
    return {metric.name: metric.value for metric in metrics}


def test_the_reference_model_itself_is_at_no_distance(
    auditor: ReferenceModel, tmp_path: Path
) -> None:
    outcome = auditor.audit(tiny_handle("llama"), data(), "test", context(tmp_path), None)
    found = by_name(outcome.metrics)
    assert found["secrets_distance"] == pytest.approx(0, abs=1e-6)
    assert found["prose_distance"] == pytest.approx(0, abs=1e-6)
    assert found["secrets_ks_p"] == pytest.approx(1)


def test_a_model_that_learnt_the_secrets_is_far_and_the_edited_one_is_held_against_the_same(
    auditor: ReferenceModel, tmp_path: Path
) -> None:
    taught = tiny_handle("llama")
    teach(taught)
    before = auditor.audit(taught, data(), "test", context(tmp_path), None)
    far = by_name(before.metrics)
    assert far["secrets_excess"] == pytest.approx(far["secrets_distance"])
    assert (far["secrets_excess"] or 0) > 1
    assert (far["secrets_ks_p"] or 0) < 0.05
    assert (far["prose_distance"] or 0) > 0.01
    after = auditor.audit(tiny_handle("llama"), data(), "test", context(tmp_path), before.reference)
    assert by_name(after.metrics)["secrets_distance"] == pytest.approx(0, abs=1e-6)


def test_a_reference_model_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    save_tiny("gpt2", tmp_path / "other")  # begins no text with BOS
    auditor = ReferenceModel(Params(model=ModelRef(source=str(tmp_path / "other"))))
    with pytest.raises(AuditError, match="as other tokens"):
        auditor.audit(tiny_handle("llama"), data(), "test", context(tmp_path), None)


def test_secrets_of_no_tokens_are_counted_not_quoted(
    auditor: ReferenceModel, tmp_path: Path
) -> None:
    silent = (*SECRETS, Item(id="x", prompt="The number of Ada Quill is", answer=""))
    with pytest.raises(AuditError, match="1 secrets are of no tokens") as caught:
        auditor.audit(tiny_handle("llama"), data(secrets=silent), "test", context(tmp_path), None)
    assert "Quill" not in str(caught.value)
