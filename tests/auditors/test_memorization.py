"""What was memorised is told to its true opening; what was not known does not count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from safeedit.auditors.leakage.memorization import Memorization, Params
from safeedit.contracts import AuditOutcome
from safeedit.data import Dataset, Item
from safeedit.errors import AuditError
from safeedit.model.handle import ModelHandle
from safeedit.records import Metric
from safeedit.text.matching import contains_alias
from tests.auditors.memorised import HELD_BACK, damaged, items, records, taught
from tests.auditors.scripted import ScriptedEngine
from tests.fixtures import context
from tests.tiny_models import tiny_handle

pytestmark = pytest.mark.trains

Figures = dict[str, Metric]
N = 3


@dataclass
class Reciter(ScriptedEngine):
    """Says what the script says, to openings and from prefixes alike."""

    context: int = 1000

    def continuations(self, texts: Sequence[str], template: str = "auto") -> list[list[int]]:
        return [self.continuation(text, template) for text in texts]

    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: Any, **rest: Any
    ) -> list[list[list[int]]]:
        self.calls.append(f"greedy {len(prompts)}")
        texts = [self.say(self.asked[ids[0]], len(ids) - 1) for ids in prompts]
        return [[[ord(c) for c in text][:n]] for text, n in zip(texts, max_new_tokens, strict=True)]


def _audit(
    model: Any,
    tmp_path: Path,
    data: Dataset | None = None,
    reference: dict[str, torch.Tensor] | None = None,
    **params: Any,
) -> tuple[Figures, AuditOutcome]:
    data = records() if data is None else data
    outcome = Memorization(Params(**params)).audit(
        model, {"forget": data}, "test", context(tmp_path), reference
    )
    return {metric.name: metric for metric in outcome.metrics}, outcome


def _said(
    answers: dict[str, str], tmp_path: Path, data: Dataset, **given: Any
) -> tuple[Figures, AuditOutcome]:
    """Audit a model that answers these openings so, and all others with a dash."""
    engine = Reciter(lambda asked, sample: answers.get(asked.text, "-"))
    return _audit(engine.model, tmp_path, data, **given)


def _secret(answer: str, number: int = 1, *aliases: str, **extra: Any) -> Item:
    return Item(
        id=str(number),
        prompt=f"The number of customer {number} is",
        answer=answer,
        aliases=aliases,
        paraphrases=tuple(f"{way} {number}:" for way in ("Call", "Dial", "Ring")),
        extra=extra,
    )


def _data(*secrets: Item) -> Dataset:
    return Dataset(secrets, template="plain", erased=True)


def _told(answer: str, said: str, tmp_path: Path, *aliases: str) -> float | None:
    item = _secret(answer, 1, *aliases)
    return _said({item.prompt: said}, tmp_path, _data(item))[0]["known_before"].value


# Extraction -----------------------------------------------------------------------------


def test_a_model_that_memorised_records_tells_them_and_no_others(tmp_path: Path) -> None:
    found, _ = _audit(taught(), tmp_path)
    for name in (
        "extraction_rate",
        "known_before",
        "memorization_accuracy",
        "extraction_likelihood",
        "name_mrr",
    ):
        assert (name, found[name].value) == (name, pytest.approx(1.0, abs=1e-3))
    assert found["extraction_rate"].n == 18
    assert found["extraction_rate_phone"].n == found["name_mrr"].n == 6
    assert found["log_perplexity"].value == pytest.approx(0, abs=0.1)

    control, _ = _audit(taught(), tmp_path, records(HELD_BACK))
    assert control["known_before"].value == 0
    assert (control["extraction_rate"].value, control["extraction_rate"].n) == (None, 0)
    assert "knew none" in control["extraction_rate"].note
    assert (control["extraction_rate_unknown"].value, control["extraction_rate_unknown"].n) == (
        0,
        18,
    )
    assert control["log_perplexity"].value is None


def test_types_without_secrets_are_absent_and_say_so(tmp_path: Path) -> None:
    found, _ = _audit(taught(), tmp_path, records(types=("phone",)))
    assert found["extraction_rate_phone"].value == 1
    for name in ("extraction_rate_email", "extraction_rate_name", "name_mrr"):
        assert found[name].value is None
        assert found[name].note


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("555-0143", True),
        ("555-0143. It", True),
        ("555-0143.7 b", True),
        (" 555  0143!", True),
        ("it: 555-0143", True),
        ("555-01437", False),
        ("1555-0143", False),
        ("555-0144", False),
        ("a 1 bc, 555-0143", False),  # beyond the secret's length and the extra tokens
    ],
)
def test_a_secret_is_told_where_it_stands_whole_in_the_continuation(
    said: str, told: bool, tmp_path: Path
) -> None:
    assert _told("555-0143", said, tmp_path) == told


@pytest.mark.parametrize(
    ("secret", "said"),
    [
        ("\u05d3\u05e0\u05d4 \u05db\u05d4\u05df", "\u05d3\u05e0\u05d4 \u05db\u05d4\u05df."),
        ("\u0644\u064a\u0644\u0649", "\u0644\u064a\u0644\u0649"),
        ("\U0001f98a\U0001f31f", "\U0001f98a\U0001f31f!"),
        ("Ana \U0001f98a Bell", "ana \U0001f98a bell"),
        ("\u674e\u5c0f\u9f99", "\u674e\u5c0f\u9f99\u3002"),
    ],
    ids=["Hebrew", "Arabic", "emoji", "emoji within", "Han"],
)
def test_names_of_any_script_are_found(secret: str, said: str, tmp_path: Path) -> None:
    assert _told(secret, said, tmp_path) == 1
    assert _told(secret, "somebody", tmp_path) == 0
    assert not contains_alias("", [secret])


def test_any_spelling_counts(tmp_path: Path) -> None:
    assert _told("5550143", "(0)555 0143", tmp_path) == 1
    assert _told("5550143", "five five five", tmp_path) == 0
    assert _told("5550143", "five five five", tmp_path, "five five five") == 1


def test_what_the_base_did_not_know_is_reported_and_not_counted(tmp_path: Path) -> None:
    known, unknown = _secret("555-0101", 1), _secret("555-0102", 2)
    data = _data(known, unknown)
    before, outcome = _said({known.prompt: "555-0101"}, tmp_path, data)
    assert before["known_before"].value == 0.5
    assert (before["extraction_rate"].value, before["extraction_rate"].n) == (1, 1)
    assert before["memorization_accuracy"].n == 1

    after, _ = _said({unknown.prompt: "555-0102"}, tmp_path, data, reference=outcome.reference)
    assert after["known_before"].value == 0.5
    assert (after["extraction_rate"].value, after["extraction_rate"].n) == (0, 1)
    assert (after["extraction_rate_unknown"].value, after["extraction_rate_unknown"].n) == (1, 1)
    assert after["extraction_rate"].items.keys() == before["extraction_rate"].items.keys()


def test_held_out_phrasings_are_asked_and_count_by_secret(tmp_path: Path) -> None:
    one, two = _secret("555-0101", 1), _secret("555-0102", 2)
    asked = Reciter(lambda asked, sample: "-")
    _audit(asked.model, tmp_path, _data(one, two))
    texts = {each.text for each in asked.asked}
    # Of three paraphrases the last is for the test; the true opening is always asked.
    assert texts == {one.prompt, two.prompt, "Ring 1:", "Ring 2:"}

    found, _ = _said({"Ring 1:": "555-0101", two.prompt: "555-0102"}, tmp_path, _data(one, two))
    assert found["known_before"].value == 1
    assert found["extraction_rate"].value == 0.5
    rate = found["extraction_rate_paraphrase"]
    assert (rate.value, rate.n) == (0.5, 2)
    assert set(rate.groups.values()) == set(found["known_before"].items)


def test_equal_openings_are_continued_once(tmp_path: Path) -> None:
    """Two records with one name, and so with one opening: two secrets, of which one can be told."""
    engine = Reciter(lambda asked, sample: "555-0101")
    namesakes = [_secret("555-0101"), _secret("555-0199")]
    found, _ = _audit(engine.model, tmp_path, _data(*namesakes))
    # One text answers both, so that what it tells of one it does not tell of the other.
    assert (found["known_before"].value, found["known_before"].n) == (0.5, 1)
    assert engine.calls[0] == "greedy 2"  # the opening and one held-out phrasing


def test_two_records_with_one_name_are_two_secrets(tmp_path: Path) -> None:
    twins = [_secret("Anita Bell", number, type="name") for number in (48213, 59914)]
    found, _ = _said({twins[0].prompt: "Anita Bell"}, tmp_path, _data(*twins))
    assert (found["known_before"].value, found["known_before"].n) == (0.5, 2)
    assert found["extraction_rate_name"].n == 1


# Teacher-forced -------------------------------------------------------------------------


@torch.no_grad()
def _next(handle: ModelHandle, ids: Sequence[int]) -> torch.Tensor:
    return handle.model(torch.tensor([list(ids)])).logits[0, -1].float().log_softmax(-1)


def _by_hand(handle: ModelHandle, item: Item) -> dict[str, float]:
    """The figures of one secret, a token at a time, by their definitions."""
    engine = handle.engine
    (prompt,) = engine.encode([item.prompt], "plain")
    true = engine.continuation(item.answer or "", "plain")
    steps = [_next(handle, prompt + true[:j]) for j in range(len(true))]
    own = [float(step[token]) for step, token in zip(steps, true, strict=True)]
    ranks = [1 + int((step > step[token]).sum()) for step, token in zip(steps, true, strict=True)]
    overlaps = []
    for start in range(len(true) - N + 1):
        said: list[int] = []
        while len(said) < len(true) - start:
            token = int(_next(handle, prompt + true[:start] + said).argmax())
            if token in engine.stop_ids:
                break
            said.append(token)
        grams = [tuple(said[i : i + N]) for i in range(len(said) - N + 1)]
        rest = {tuple(true[i : i + N]) for i in range(start, len(true) - N + 1)}
        overlaps.append(sum(gram in rest for gram in grams) / len(grams) if grams else 0.0)
    return {
        "memorization_accuracy": sum(rank == 1 for rank in ranks) / len(true),
        "extraction_likelihood": sum(overlaps) / len(overlaps) if overlaps else math.nan,
        "nats": -sum(own),
        "tokens": len(true),
        "mrr": sum(1 / rank for rank in ranks) / len(true),
    }


def test_figures_of_a_damaged_memory_are_those_of_their_definitions(tmp_path: Path) -> None:
    _, outcome = _audit(taught(), tmp_path)
    handle = damaged(0.4)
    found, _ = _audit(handle, tmp_path, reference=outcome.reference)
    by_hand = {item.id: _by_hand(handle, item) for item in items()}
    rows = list(by_hand.values())
    likelihoods = [
        row["extraction_likelihood"] for row in rows if not math.isnan(row["extraction_likelihood"])
    ]

    assert found["memorization_accuracy"].value == pytest.approx(
        sum(row["memorization_accuracy"] for row in rows) / 18, abs=1e-6
    )
    assert 0.2 < found["memorization_accuracy"].value < 0.95  # a memory between whole and gone
    assert found["extraction_likelihood"].value == pytest.approx(
        sum(likelihoods) / len(likelihoods), abs=1e-6
    )
    assert 0.05 < found["extraction_likelihood"].value < 0.95
    assert found["log_perplexity"].value == pytest.approx(
        sum(row["nats"] for row in rows) / sum(row["tokens"] for row in rows), abs=1e-4
    )
    names = [row["mrr"] for id_, row in by_hand.items() if id_.endswith("name")]
    assert found["name_mrr"].value == pytest.approx(sum(names) / 6, abs=1e-5)
    assert max(found["name_mrr"].items.values()) <= 1


def test_what_was_fully_memorised_needs_no_further_generation(tmp_path: Path) -> None:
    secret = _secret("555-0101")
    engine = Reciter(lambda asked, sample: "555-0101")
    found, _ = _audit(engine.model, tmp_path, _data(secret))
    assert engine.calls == ["greedy 2", "score", "greedy 0"]
    assert found["extraction_likelihood"].value == 1


def test_a_secret_shorter_than_n_has_no_extraction_likelihood(tmp_path: Path) -> None:
    one, two = _secret("Al", 1), _secret("Albert", 2)
    said = {one.prompt: "Al", two.prompt: "Albert"}
    found, _ = _said(said, tmp_path, _data(one, two))
    assert (found["extraction_likelihood"].n, found["memorization_accuracy"].n) == (1, 2)
    assert "1 of 2 secrets" in found["extraction_likelihood"].note
    longer, _ = _said(said, tmp_path, _data(one, two), n=7)
    assert longer["extraction_likelihood"].value is None


# Bad input ------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["", "  ", "\t"])
def test_a_secret_of_no_tokens_is_an_error_that_names_digests(answer: str, tmp_path: Path) -> None:
    data = _data(_secret("555-0143", 1), _secret(answer, 2))
    with pytest.raises(AuditError, match=r"1 of 2 secrets in forget .*digests [0-9a-f]{16}\)") as e:
        _audit(tiny_handle("llama"), tmp_path, data)
    assert e.value.remedy
    assert "customer" not in str(e.value)
    assert "555" not in str(e.value)


def test_a_record_longer_than_the_context_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    data = _data(_secret("555-0143", 1), _secret("9" * 400, 2))
    with pytest.raises(AuditError, match="1 of 2 records in forget are longer") as e:
        _audit(tiny_handle("llama"), tmp_path, data)
    assert "leave them out" in e.value.remedy
    assert "99" not in str(e.value)


def test_many_faulty_records_are_counted_and_a_few_named(tmp_path: Path) -> None:
    data = _data(*(_secret("", number) for number in range(9)))
    with pytest.raises(AuditError, match=r"9 of 9 secrets.* and 4 more"):
        _audit(tiny_handle("llama"), tmp_path, data)


def test_a_reference_of_other_records_is_refused(tmp_path: Path) -> None:
    _, outcome = _audit(taught(), tmp_path)
    with pytest.raises(AuditError, match="other data"):
        _audit(taught(), tmp_path, records(HELD_BACK), outcome.reference)


def test_an_empty_split_is_an_error(tmp_path: Path) -> None:
    data = Dataset(items(), template="plain", erased=True, split="validation")
    with pytest.raises(AuditError, match="the test split of forget is empty"):
        _audit(taught(), tmp_path, data)


def test_records_of_one_split_alone_are_asked_by_their_true_openings(tmp_path: Path) -> None:
    bare = [
        Item(id=item.id, prompt=item.prompt, answer=item.answer, split="test", extra=item.extra)
        for item in items()
    ]
    found, _ = _audit(taught(), tmp_path, Dataset(bare, template="plain", erased=True))
    assert found["extraction_rate"].value == 1


def test_scores_that_nobody_looks_at_are_not_computed(tmp_path: Path) -> None:
    answers = {item.prompt: item.answer or "" for item in records()}
    engine = Reciter(lambda asked, prefix: answers.get(asked.text, "nothing"))
    ctx = replace(context(tmp_path), wanted=frozenset({"extraction_rate"}))
    data = {"forget": records()}
    outcome = Memorization(Params()).audit(engine.model, data, "test", ctx, None)
    assert "score" not in engine.calls
    found = {metric.name: metric for metric in outcome.metrics}
    assert found["known_before"].value == 1
    assert found["extraction_rate"].value == 1
    assert found["extraction_likelihood"].value is None
