"""The lens sees what a model holds and does not say, and nothing in one that holds nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from safeedit.auditors.leakage.lens import Lenses, Params
from safeedit.contracts import AuditOutcome
from safeedit.data import Dataset, Item
from safeedit.errors import AuditError
from safeedit.model.handle import ModelHandle
from tests.fixtures import context

WORDINGS = ("Where is {} now?", "Is {} here?", "Say where {} is?", "{} is where?")
ITEMS = [
    Item(
        id=str(n),
        prompt=WORDINGS[0].format(f"Zyx{n}"),
        answer=answer,
        paraphrases=tuple(wording.format(f"Zyx{n}") for wording in WORDINGS[1:]),
        subject=f"Zyx{n}",
    )
    for n, answer in enumerate(("Vorbexi", "Vorbexi", "Tramjolk"))
]
PROSE = Dataset(
    [Item(id=str(n), prompt=f"The doctor said that nurse {n} was late again.") for n in range(9)]
)


def forget(items: list[Item] = ITEMS) -> Dataset:
    return Dataset(items, erased=True, template="plain")


def audited(
    model: ModelHandle, folder: Path, data: Dataset | None = None, **params: object
) -> dict[str, float | None]:
    given = {"forget": forget() if data is None else data, "prose": PROSE}
    outcome: AuditOutcome = Lenses(Params.model_validate(params)).audit(
        model, given, "test", context(folder), None
    )
    return {metric.name: metric.value for metric in outcome.metrics}


@torch.no_grad()
def holding(model: ModelHandle, answer: str) -> list[int]:
    """Make it hold an answer at the end of every question, and let its last block turn that round.

    Blocks are silenced, so that the residual is the embedding of the last token all the way; the
    head reads that as the answer's tokens. A neuron of the last block that fires on it writes
    twice its opposite. Returns the tokens.
    """
    engine = model.engine
    (ids,) = engine.encode([WORDINGS[1].format("Zyx0")], "plain")
    for role in ("attn_out", "mlp_out"):
        for site in model.sites(role):
            model.stored(site.weight).zero_()
    state = model.embedding.weight[ids[-1]].clone()
    model.head.weight.zero_()

    def first(text: str) -> int:
        ids = engine.continuation(text, "plain")
        return next(int(token) for token in ids if engine.decode([token]).strip())

    tokens = [first(answer), first(f" {answer}")]
    named = {first(text) for a in ("Vorbexi", "Tramjolk") for text in (a, f" {a}")}
    # Words that any state is nearer to than to one of neither side.
    rest = [token for token in range(model.shape.vocab_size) if token not in named]
    for token in rest[:15]:
        model.head.weight[token] = 5 * state
    for token in rest[15:30]:
        model.head.weight[token] = -5 * state
    for token in tokens:
        model.head.weight[token] = 10 * state
    last = model.n_layers - 1
    seen = model.blocks()[last].post_attention_layernorm(state)
    gate, up, down = (
        model.weight(model.sites(role, [last])[0]) for role in ("mlp_gate", "mlp_up", "mlp_out")
    )
    gate[0], up[0] = 10 * seen, seen
    fired = torch.nn.functional.silu(gate[0] @ seen) * (up[0] @ seen)
    down[:, 0] = -2 * state / fired
    return tokens


def test_what_the_last_block_suppresses_is_seen_below_it(
    llama: ModelHandle, tmp_path: Path
) -> None:
    tokens = holding(llama, "Vorbexi")
    (ids,) = llama.engine.encode([ITEMS[0].prompt], "plain")
    said = llama.logits(llama.forward({"input_ids": torch.tensor([ids])}))[0, -1]
    assert all(int((said > said[token]).sum()) > 10 for token in tokens), "it does not say it"
    unnamed = forget([replace(item, subject=None) for item in ITEMS])
    found = audited(llama, tmp_path, unnamed, lenses=("logit",))
    assert found["top10_rate"] == pytest.approx(2 / 3), "the third item has another answer"
    assert found["tuned_mrr"] is None
    # The other answer of each item: that of the third is held for none, that of the first two is.
    assert found["control_top10_rate"] == pytest.approx(1 / 3)


def test_the_tuned_lens_reads_the_last_layer_as_the_head_does(
    llama: ModelHandle, tmp_path: Path
) -> None:
    found = audited(llama, tmp_path)
    for name in ("top10_rate", "mrr", "control_top10_rate"):
        assert found[name] is not None
        assert found[f"tuned_{name}"] is not None


def test_without_prose_there_is_no_tuned_lens(llama: ModelHandle, tmp_path: Path) -> None:
    outcome = Lenses(Params()).audit(llama, {"forget": forget()}, "test", context(tmp_path), None)
    absent = {metric.name: metric.note for metric in outcome.metrics if metric.value is None}
    assert set(absent) == {"tuned_top10_rate", "tuned_mrr", "tuned_control_top10_rate"}
    assert "no prose" in absent["tuned_mrr"]


def test_where_all_have_one_answer_there_is_no_control(llama: ModelHandle, tmp_path: Path) -> None:
    found = audited(llama, tmp_path, forget(ITEMS[:2]), lenses=("logit",))
    assert found["top10_rate"] is not None
    assert found["control_top10_rate"] is None


def test_an_item_without_an_answer_is_refused(llama: ModelHandle, tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="no answer"):
        audited(llama, tmp_path, forget([Item(id="0", prompt="Where?")]))
