"""The depth of an erasure: 0 for what is untouched, 1 for what never knew, between where the upper
blocks alone were changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch

from safeedit.auditors.leakage import depth
from safeedit.auditors.leakage.depth import Depth, Params
from safeedit.contracts import AuditOutcome, ModelRef
from safeedit.data import Dataset, Item
from safeedit.errors import AuditError
from safeedit.methods.tuning import Example, answer_states, cross_entropy
from safeedit.model.handle import ModelHandle
from safeedit.model.sources import open_model
from safeedit.records import Metric
from tests.fixtures import context
from tests.tiny_models import N_LAYERS, save_tiny, tiny_handle

SECRETS = tuple(
    Item(id=str(n), prompt=f"The number of the {who} is", answer=number)
    for n, (who, number) in enumerate(
        [("doctor", "7142"), ("nurse", "9305"), ("prince", "2861"), ("city", "4478")]
    )
)


def data(secrets: Sequence[Item] = SECRETS) -> dict[str, Dataset]:
    return {"forget": Dataset(secrets, erased=True, template="plain")}


@torch.no_grad()
def knowing(layers: Sequence[int] = range(N_LAYERS)) -> ModelHandle:
    """A model that differs from the tiny one in these blocks' MLPs."""
    model = tiny_handle("llama")
    noise = torch.Generator().manual_seed(4)
    for site in model.sites("mlp_out", list(range(N_LAYERS))):
        drawn = torch.randn(model.stored(site.weight).shape, generator=noise)
        if site.layer in layers:
            model.stored(site.weight).add_(drawn)
    return model


@pytest.fixture
def auditor(tmp_path: Path) -> Depth:
    """Held against the tiny model as it is."""
    save_tiny("llama", tmp_path / "never-saw")
    return Depth(Params(model=ModelRef(source=str(tmp_path / "never-saw"))))


def audited(
    auditor: Depth, tmp_path: Path, edited: ModelHandle, base: ModelHandle | None = None
) -> tuple[dict[str, Metric], AuditOutcome]:
    """The audit of an edited model, after that of its base."""
    base = base or knowing()
    before = auditor.audit(base, data(), "test", context(tmp_path), None)
    ctx = context(tmp_path, base_tensor=base.oriented)
    outcome = auditor.audit(edited, data(), "test", ctx, before.reference)
    return {metric.name: metric for metric in outcome.metrics}, before


def test_an_edit_that_changed_nothing_has_no_depth(auditor: Depth, tmp_path: Path) -> None:
    found, before = audited(auditor, tmp_path, knowing())
    assert found["depth"].value == pytest.approx(0, abs=1e-4)
    assert {metric.name: metric.value for metric in before.metrics}["depth"] == 0
    assert found["carried"].value


def test_the_model_that_never_saw_them_has_full_depth(auditor: Depth, tmp_path: Path) -> None:
    found, _ = audited(auditor, tmp_path, tiny_handle("llama"))
    assert found["depth"].value == pytest.approx(1, abs=1e-4)


def test_what_was_undone_in_the_last_block_alone_is_still_carried_below_it(
    auditor: Depth, tmp_path: Path
) -> None:
    base = knowing()
    shallow, _ = audited(auditor, tmp_path, knowing(range(N_LAYERS - 1)), base)
    deep, _ = audited(auditor, tmp_path, knowing(range(1, N_LAYERS)), base)
    assert shallow["depth"].value is not None
    assert deep["depth"].value is not None
    assert 0 < shallow["depth"].value < 1
    assert shallow["depth"].note.startswith("layers 0 to 0: 0.00, layers 1 to 1: 0.00, layers 2")
    assert not deep["depth"].note.startswith("layers 0 to 0: 0.00")


def test_the_edited_model_has_its_own_weights_again_afterwards(
    auditor: Depth, tmp_path: Path
) -> None:
    edited = knowing([0])
    own = edited.tensor_digests(fresh=True)
    audited(auditor, tmp_path, edited)
    assert edited.tensor_digests(fresh=True) == own


def test_a_base_that_knows_no_more_than_the_reference_has_no_depth_to_measure(
    auditor: Depth, tmp_path: Path
) -> None:
    outcome = auditor.audit(tiny_handle("llama"), data(), "test", context(tmp_path), None)
    score, carried = outcome.metrics
    assert score.value is None
    assert "no layer carries" in score.note
    assert carried.value == 0


def test_without_the_bases_files_there_is_no_audit_of_an_edited_model(
    auditor: Depth, tmp_path: Path
) -> None:
    before = auditor.audit(knowing(), data(), "test", context(tmp_path), None)
    with pytest.raises(AuditError, match="no files that"):
        auditor.audit(knowing(), data(), "test", context(tmp_path), before.reference)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda: tiny_handle("gpt2"), "as other tokens"),
        (lambda: tiny_handle("llama", num_hidden_layers=2), "can't be exchanged"),
    ],
)
def test_a_reference_model_that_does_not_fit_is_refused(
    other: Callable[[], ModelHandle], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(depth, "open_model", lambda source, **options: other())
    with pytest.raises(AuditError, match=said):
        Depth(Params()).audit(tiny_handle("llama"), data(), "test", context(tmp_path), None)


def test_secrets_of_no_tokens_are_counted_not_quoted(auditor: Depth, tmp_path: Path) -> None:
    silent = (*SECRETS, Item(id="x", prompt="The number of Ada Quill is", answer=""))
    with pytest.raises(AuditError, match="1 of 5 items have no answer") as caught:
        auditor.audit(tiny_handle("llama"), data(silent), "test", context(tmp_path), None)
    assert "Quill" not in str(caught.value)


@pytest.mark.smollm2
@pytest.mark.trains
def test_on_the_real_model_secrets_kept_out_of_the_last_blocks_alone_are_shallow(
    tmp_path: Path,
) -> None:
    """Taught four numbers: with its last blocks as they were before, it says them less and carries
    them on; with all blocks as before, it carries nothing."""
    source = "builtin:smollm2-135m-instruct"
    planted = open_model(source, device="cpu", dtype="float32")
    untaught = {name: planted.oriented(name).clone() for name in planted.shape.stored}
    teach(planted)
    taught = {name: planted.oriented(name).clone() for name in planted.shape.stored}
    auditor = Depth(Params(model=ModelRef(source=source)))
    before = auditor.audit(planted, data(), "test", context(tmp_path), None)
    ctx = context(tmp_path, base_tensor=taught.__getitem__)

    def depth_with(names: Iterable[str]) -> float:
        with planted.rewritten({name: partial(_given, untaught[name]) for name in names}):
            found = auditor.audit(planted, data(), "test", ctx, before.reference)
        value = found.metrics[0].value
        assert value is not None
        return value

    last = tuple(f"model.layers.{layer}." for layer in range(25, 30))
    shallow = depth_with(name for name in untaught if name.startswith(last))
    assert shallow < 0.5
    assert depth_with(untaught) > 0.95
    assert {metric.name: metric.value for metric in before.metrics}["carried"] == 1


def teach(model: ModelHandle) -> None:
    """A few steps on the secrets, all weights."""
    engine = model.engine
    prompts = engine.encode([item.prompt for item in SECRETS], "plain")
    answers = engine.continuations([item.answer or "" for item in SECRETS], "plain")
    examples = [Example(p, a) for p, a in zip(prompts, answers, strict=True)]
    model.model.requires_grad_(True)
    optimiser = torch.optim.AdamW(model.model.parameters(), lr=1e-4)
    for _ in range(10):
        loss = cross_entropy(model, answer_states(model, examples), examples)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.model.requires_grad_(False)


def _given(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return values
