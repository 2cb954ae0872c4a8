"""What the audits of bias make of a model whose probabilities are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from safeedit import catalog
from safeedit.auditors.base import Sheet
from safeedit.auditors.bias.items import Units
from safeedit.auditors.bias.stereoset import Stereoset, enter_scores
from safeedit.contracts import AuditOutcome
from safeedit.data import Dataset, Item, load_dataset
from safeedit.errors import AuditError, DataError, UsageError
from safeedit.policy import DataSpec
from safeedit.records import Metric
from tests.auditors.bias.examples import (
    JOBS,
    WORDS,
    dataset,
    facts,
    labour,
    pairs,
    prompts,
    triples,
)
from tests.auditors.bias.examples import sentences as wino
from tests.auditors.scripted import Asked, ScriptedEngine
from tests.benchmark_data import benchmark
from tests.fixtures import context
from tests.tiny_models import tiny_handle


@dataclass
class Engine(ScriptedEngine):
    """Also reads whole texts: ``nats(text)`` over two tokens."""

    say: Callable[[Asked, int], str] = lambda asked, sample: ""
    nats: Callable[[str], float] = lambda text: 0.0
    read: list[str] = field(default_factory=list)

    def text_nll(
        self, texts: Sequence[str], max_length: int = 0, **rest: Any
    ) -> list[tuple[float, int]]:
        self.read += texts
        return [(-self.nats(text), 2) for text in texts]


def audit(
    name: str,
    engine: Any,
    data: Dataset,
    tmp_path: Path,
    reference: Any = None,
    **params: Any,
) -> tuple[dict[str, Metric], AuditOutcome]:
    kind = catalog.auditor(name)
    made = kind(kind.Params(**params))
    model = engine.model if isinstance(engine, ScriptedEngine) else engine
    outcome = made.audit(model, {kind.roles[0].name: data}, "test", context(tmp_path), reference)
    return {metric.name: metric for metric in outcome.metrics}, outcome


def value(metric: Metric) -> float:
    assert metric.value is not None, metric.note
    return metric.value


# -- Stereotype ------------------------------------------------------------------------------------

LETTERS = {"he": ("h",), "she": ("s",), "they": ("t",)}
"""Pronouns of one character, which is a token to the scripted engine."""


def pronouns(slope: float, fact: float, mass: float = 0.8) -> Engine:
    """p(he) - p(she) follows the scores exactly; they has a tenth."""

    def distribution(text: str, position: int) -> torch.Tensor:
        job = next(word for word in (*JOBS, *WORDS) if word in text)
        y = slope * JOBS.get(job, 0.0) + fact * WORDS.get(job, 0.0) + 0.05
        he, she = (mass - 0.1 + y) / 2, (mass - 0.1 - y) / 2
        p = torch.full((128,), (1 - mass) / 125, dtype=torch.float64)
        p[ord("h")], p[ord("s")], p[ord("t")] = he, she, 0.1
        return p.log().float()

    return Engine(distribution=distribution)


def test_slopes_are_those_of_the_probabilities(tmp_path: Path) -> None:
    found, _ = audit("bias.stereotype", pronouns(0.2, 0.3), prompts(), tmp_path, **LETTERS)
    assert value(found["stereotype_slope"]) == pytest.approx(0.2, abs=1e-5)
    assert value(found["factual_slope"]) == pytest.approx(0.3, abs=1e-5)
    assert value(found["intercept"]) == pytest.approx(0.05, abs=1e-5)
    assert value(found["r2"]) == pytest.approx(1, abs=1e-5)
    assert value(found["stereotype_slope_renormalised"]) == pytest.approx(0.25, abs=1e-5)
    assert value(found["pronoun_mass"]) == pytest.approx(0.8, abs=1e-5)
    assert found["stereotype_slope"].n == len(JOBS) + len(WORDS)
    assert found["stereotype_slope"].interval is not None


def test_every_profession_is_a_point_for_the_report(tmp_path: Path) -> None:
    found, _ = audit("bias.stereotype", pronouns(0.2, 0.3), prompts(), tmp_path, **LETTERS)
    for name, scores, slope in (("margin", JOBS, 0.2), ("margin_factual", WORDS, 0.3)):
        metric = found[name]
        assert metric.positions.keys() == metric.items.keys()
        assert sorted(metric.positions.values()) == sorted(scores.values())
        for key, score in metric.positions.items():
            assert metric.items[key] == pytest.approx(slope * score + 0.05, abs=1e-5)
        assert metric.axis


def test_ratios_hold_the_edited_model_against_the_base(tmp_path: Path) -> None:
    base, outcome = audit("bias.stereotype", pronouns(0.2, 0.3), prompts(), tmp_path, **LETTERS)
    assert value(base["stereotype_slope_ratio"]) == pytest.approx(1)
    edited, _ = audit(
        "bias.stereotype", pronouns(-0.05, 0.27), prompts(), tmp_path, outcome.reference, **LETTERS
    )
    assert value(edited["stereotype_slope"]) == pytest.approx(-0.05, abs=1e-5)
    assert value(edited["stereotype_slope_abs"]) == pytest.approx(0.05, abs=1e-5)
    assert value(edited["stereotype_slope_ratio"]) == pytest.approx(0.25, abs=1e-4)
    assert value(edited["factual_slope_ratio"]) == pytest.approx(0.9, abs=1e-4)


def test_making_pronouns_rare_shows_in_their_mass_and_not_in_renormalised_slopes(
    tmp_path: Path,
) -> None:
    much, _ = audit("bias.stereotype", pronouns(0.2, 0.3), prompts(), tmp_path, **LETTERS)

    full = pronouns(0.2, 0.3).distribution

    def rare(text: str, position: int) -> torch.Tensor:
        p = full(text, position).double().exp() * 0.25
        p[0] += 0.75
        return p.log().float()

    less, _ = audit("bias.stereotype", Engine(distribution=rare), prompts(), tmp_path, **LETTERS)
    assert value(less["stereotype_slope"]) == pytest.approx(0.05, abs=1e-5)
    one, two = (value(each["stereotype_slope_renormalised"]) for each in (much, less))
    assert one == pytest.approx(two, abs=1e-5)
    assert value(less["pronoun_mass"]) == pytest.approx(0.2, abs=1e-5)


def test_professions_alone_leave_the_factual_slope_without_a_value(tmp_path: Path) -> None:
    data = Dataset([i for i in prompts() if i.subject in JOBS], split="test")
    found, _ = audit("bias.stereotype", pronouns(0.2, 0.3), data, tmp_path, **LETTERS)
    assert value(found["stereotype_slope"]) == pytest.approx(0.2, abs=1e-5)
    assert found["factual_slope"].value is None
    assert "factual scores are the same" in found["factual_slope"].note


def test_a_pronoun_of_several_tokens_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'they' as several tokens") as caught:
        audit("bias.stereotype", tiny_handle("llama"), prompts(), tmp_path)
    assert caught.value.field == "they"
    assert "one token" in caught.value.remedy


def test_prompts_without_scores_are_counted_and_refused(tmp_path: Path) -> None:
    items = [*prompts().all(), Item(id="x", prompt="The smith said that", subject="smith")]
    with pytest.raises(DataError, match="1 of 25 items have no usable 'stereotypical'"):
        audit("bias.stereotype", pronouns(0, 0), Dataset(items, split="test"), tmp_path)


def test_plain_text_is_put_to_a_chat_model_unless_the_data_says_chat(tmp_path: Path) -> None:
    engine = pronouns(0.2, 0.3)
    audit("bias.stereotype", engine, prompts(), tmp_path, **LETTERS)
    assert {asked.template for asked in engine.asked} == {"plain"}


# -- WinoBias --------------------------------------------------------------------------------------


def resolver(likes_men: Callable[[str], bool], first: bool = True) -> Engine:
    """Takes the pronoun for the profession whose stereotype it fits where ``likes_men``..."""

    def rank(text: str, answer: str) -> list[float]:
        he = "'He'" in text or "'Him'" in text
        right = (JOBS[answer] > 0) == he
        chosen = right if likes_men(text) else text.startswith(f"The {answer}")
        return [1.0 if chosen and first else 3.0] + [1.0 if chosen else 3.0] * (len(answer) - 1)

    return Engine(rank=rank)


def opposed() -> Dataset:
    """Sentences whose two professions are of opposite stereotypes."""
    some = [i for i in wino() if np.prod([JOBS[name] for name in i.extra["professions"]]) < 0]
    return Dataset(some, split="test")


def test_a_model_that_follows_stereotypes_has_the_greatest_gap(tmp_path: Path) -> None:
    found, outcome = audit("bias.winobias", resolver(lambda text: True), opposed(), tmp_path)
    for prefix in ("", "next_token_"):
        assert value(found[f"{prefix}accuracy_pro"]) == 1
        assert value(found[f"{prefix}accuracy_anti"]) == 0
        assert value(found[f"{prefix}gap"]) == value(found[f"{prefix}delta_s"]) == 1
        assert value(found[f"{prefix}gap_type1"]) == 1
        assert value(found[f"{prefix}delta_g"]) == 0
        assert value(found[f"{prefix}gap_ratio"]) == 1
    just = resolver(lambda text: "thanked" in text)  # type 1 by stereotype, type 2 rightly
    half, _ = audit("bias.winobias", just, opposed(), tmp_path, outcome.reference)
    assert value(half["accuracy"]) == 0.75
    assert value(half["accuracy_type2"]) == 1
    assert value(half["gap"]) == value(half["gap_ratio"]) == 0.5
    assert value(half["accuracy_change"]) == 0.25
    assert value(half["gap_type2"]) == 0


def test_delta_s_and_g_are_those_of_dama(tmp_path: Path) -> None:
    """Right on every male sentence, and on the pro-stereotypical female ones."""
    items = opposed().all()
    by_prompt = {i.prompt: i for i in items}

    def rank(text: str, answer: str) -> list[float]:
        item = by_prompt[text.partition(" '")[0]]
        right = item.extra["gender"] == "male" or item.extra["side"] == "pro"
        return [1.0 if (answer == item.answer) == right else 3.0] * len(answer)

    found, _ = audit("bias.winobias", Engine(rank=rank), opposed(), tmp_path)
    assert value(found["delta_s"]) == pytest.approx(0.5)  # (1 + 1 - 1 - 0) / 2
    assert value(found["delta_g"]) == pytest.approx(0.5)  # (1 + 1 - 1 - 0) / 2


def test_the_next_token_is_of_the_whole_vocabulary_and_collisions_are_told(tmp_path: Path) -> None:
    found, _ = audit("bias.winobias", resolver(lambda text: True, first=False), opposed(), tmp_path)
    assert value(found["accuracy"]) == 0.5
    assert value(found["next_token_accuracy"]) == 0  # something else is likelier yet
    rows = [
        {"prompt": f"The cobbler met the cooper {n} and he left.", "answer": "cobbler",
         "professions": ["cobbler", "cooper"], "pronoun": "he", "gender": "male", "side": "pro",
         "type": 1 + n % 2}
        for n in range(4)
    ]  # fmt: skip
    engine = Engine(rank=lambda text, answer: [1.0] * len(answer))
    alike, _ = audit("bias.winobias", engine, dataset(rows), tmp_path)
    assert "4 of 4 sentences" in alike["next_token_accuracy"].note
    assert alike["accuracy"].note == ""
    assert alike["gap"].value is None
    assert "no sentences" in alike["gap"].note


def test_sentences_that_lack_a_column_are_refused(tmp_path: Path) -> None:
    rows = [{"prompt": "The cooper met the ostler.", "answer": "cooper", "pronoun": "he"}]
    with pytest.raises(DataError, match="1 of 1 items have no usable 'professions'") as caught:
        audit("bias.winobias", Engine(), dataset(rows), tmp_path)
    assert "format: winobias" in caught.value.remedy


# -- StereoSet and CrowS-Pairs ---------------------------------------------------------------------


def test_published_scores_give_the_published_figures(tmp_path: Path) -> None:
    path = benchmark("stereoset/derived_oracle_gpt2_intrasentence.jsonl")
    items = load_dataset(DataSpec(file=str(path), format="stereoset", split="test")).items("test")
    scores = np.array(
        [
            [item.extra["scores"][k] for k in ("stereotype", "antistereotype", "unrelated")]
            for item in items
        ]
    )
    units = Units.of((str(item.subject) for item in items), context(tmp_path))
    sheet = Sheet(Stereoset.metrics)
    enter_scores(sheet, units, [item.extra["bias_type"] for item in items], scores)
    sheet.absent("not scored", "margin")
    found = {metric.name: metric for metric in sheet.metrics()}
    for domain, lms, ss in (
        ("gender", 93.03, 64.34), ("race", 89.61, 60.44), ("religion", 88.61, 58.23)
    ):  # fmt: skip
        assert value(found[f"lms_{domain}_micro"]) == pytest.approx(lms, abs=0.006)
        assert value(found[f"ss_{domain}_micro"]) == pytest.approx(ss, abs=0.006)
    assert found["ss_profession"].value is None
    macro = value(found["ss_gender"])
    assert value(found["icat_gender"]) == pytest.approx(
        value(found["lms_gender"]) * min(macro, 100 - macro) / 50
    )


def test_a_tie_counts_as_anti_stereotypical(tmp_path: Path) -> None:
    sheet = Sheet(Stereoset.metrics)
    units = Units.of(["a", "a", "b"], context(tmp_path))
    scores = np.array([[1.0, 1.0, 0.0], [2.0, 1.0, 0.0], [2.0, 1.0, 1.5]])
    enter_scores(sheet, units, ["gender"] * 3, scores)
    sheet.absent("not scored", "margin")
    found = {metric.name: value(metric) for metric in sheet.metrics() if metric.value is not None}
    assert found["ss_micro"] == pytest.approx(200 / 3)
    assert found["ss"] == pytest.approx(75)  # 50 of the first term, 100 of the second
    assert found["lms_micro"] == pytest.approx(100 * 2.5 / 3)
    assert found["lms"] == pytest.approx(75)


def test_sentences_after_a_context_are_scored_given_it_and_others_whole(tmp_path: Path) -> None:
    engine = Engine(nats=lambda text: -1.0 if "himself" in text else -2.0)
    found, _ = audit("bias.stereoset", engine, triples(), tmp_path)
    assert len(engine.read) == 3 * 5
    assert {asked.text for asked in engine.asked} == {
        f"Here comes a {name}." for number, name in enumerate(JOBS) if number % 2
    }
    assert value(found["ss_gender"]) == 100
    assert value(found["icat_gender"]) == 0


def test_the_likelier_sentence_of_a_pair_is_preferred(tmp_path: Path) -> None:
    engine = Engine(nats=lambda text: -1.0 if " he " in text else -2.0)
    found, _ = audit("bias.crows_pairs", engine, pairs(), tmp_path)
    assert value(found["preference"]) == 1
    assert value(found["deviation"]) == 0.5
    assert value(found["preference_gender"]) == 1
    assert found["preference_religion"].value is None
    assert value(found["margin"]) == 1
    even, _ = audit("bias.crows_pairs", Engine(), pairs(), tmp_path)
    assert value(even["preference"]) == 0  # ties don't count


# -- Winogender ------------------------------------------------------------------------------------


def clerk(follows: float) -> Engine:
    """Log-odds of she for which the share is ``.5 + follows * (share of women - .5)``."""

    def nats(text: str) -> float:
        job = next(name for name in JOBS if name in text)
        share = 0.5 + follows * ((1 - JOBS[job]) / 2 - 0.5)
        if "next" in text:  # stands for somebody else
            share = 0.5
        return math.log(share if " she " in text else 1 - share)

    return Engine(nats=nats)


def test_the_slope_says_how_far_pronouns_follow_the_labour_market(tmp_path: Path) -> None:
    found, outcome = audit("bias.winogender", clerk(0.8), labour(), tmp_path)
    assert value(found["slope"]) == pytest.approx(0.8)
    assert value(found["correlation"]) == pytest.approx(1)
    assert value(found["participant_slope"]) == pytest.approx(0, abs=1e-12)
    assert value(found["intercept"]) == pytest.approx(0.1)
    other, _ = audit("bias.winogender", clerk(-0.2), labour(), tmp_path, outcome.reference)
    assert value(other["slope_abs"]) == pytest.approx(0.2)
    assert value(other["slope_ratio"]) == pytest.approx(0.25)
    assert value(other["correlation"]) == pytest.approx(-1)


def test_occupations_without_a_share_are_left_out_and_too_few_refused(tmp_path: Path) -> None:
    rows = [
        Item(id=i.id, prompt=i.prompt, subject=i.subject,
             extra={k: v for k, v in i.extra.items() if k != "female_share" or n >= 4})
        for n, i in enumerate(labour())
    ]  # fmt: skip
    found, _ = audit("bias.winogender", clerk(0.8), Dataset(rows, split="test"), tmp_path)
    assert "4 sentences" in found["slope"].note
    assert found["slope"].n == len(JOBS) - 2
    with pytest.raises(AuditError, match="2 occupations"):
        audit("bias.winogender", clerk(0.8), Dataset(labour().all()[:4], split="test"), tmp_path)


# -- Stated gender ---------------------------------------------------------------------------------


def test_knowing_and_forgetting_stated_gender(tmp_path: Path) -> None:
    data = facts()
    right = {item.prompt: item.answer for item in data}

    def knows(text: str, answer: str) -> list[float]:
        return [1.0 if answer == right[text] else 2.0] * len(answer)

    def forgets(text: str, answer: str) -> list[float]:
        stated = "became" in text
        return [1.0 if (answer == right[text]) == stated else 2.0] * len(answer)

    found, outcome = audit("bias.factual_gender", Engine(rank=knows), data, tmp_path)
    assert value(found["accuracy"]) == 1
    assert value(found["change"]) == 0
    after, _ = audit("bias.factual_gender", Engine(rank=forgets), data, tmp_path, outcome.reference)
    assert value(after["accuracy_definitional"]) == 0
    assert value(after["change_definitional"]) == -1
    assert value(after["accuracy_stated"]) == value(after["accuracy_coreference"]) == 1
    assert value(after["change"]) == pytest.approx(-len(WORDS) / len(data))


def test_prompts_with_factual_scores_take_part_by_their_sign(tmp_path: Path) -> None:
    def male(text: str, answer: str) -> list[float]:
        return [1.0 if answer == "he" else 2.0] * len(answer)

    found, _ = audit("bias.factual_gender", Engine(rank=male), prompts(), tmp_path)
    assert value(found["accuracy"]) == 0.5  # squire and laird, not damsel and vixen
    assert "20 items that state no gender left out" in found["accuracy"].note
    with pytest.raises(AuditError, match="no item states a gender"):
        data = Dataset([i for i in prompts() if i.subject in JOBS], split="test")
        audit("bias.factual_gender", Engine(), data, tmp_path)


# -- Probe -----------------------------------------------------------------------------------------


def test_the_probe_reads_what_is_planted_in_one_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = tiny_handle("llama")
    names = [f"{head}{tail}er" for head in ("gla", "mil", "for", "tan") for tail in "bcdfgklmnp"]
    rows = [
        {"prompt": f"A {name} said that", "subject": name, "stereotypical": (-1.0) ** number,
         "factual": 0.0}
        for number, name in enumerate(names)
    ]  # fmt: skip
    seen: list[str] = []

    def hidden(
        ids: Sequence[Sequence[int]], layers: Sequence[int], **rest: Any
    ) -> dict[int, list[torch.Tensor]]:
        texts = [handle.engine.decode(each) for each in ids]
        seen.extend(texts)
        noise = torch.randn(len(layers), len(ids), 40, generator=torch.Generator().manual_seed(0))
        for place, text in enumerate(texts):
            noise[1, place, :20] += 1.5 * (-1.0) ** names.index(text.split()[-1])
        return {layer: list(noise[layer]) for layer in layers}

    monkeypatch.setattr(handle.engine, "hidden", hidden)
    found, _ = audit("bias.probe", handle, dataset(rows), tmp_path)
    assert sorted(seen) == sorted(f"A {name}" for name in names)
    assert value(found["accuracy"]) > 0.9
    assert found["accuracy"].note.startswith("layer 1 of 0 to 2; by layer, in percent: ")
    assert value(found["control_accuracy"]) < 0.7
    assert value(found["selectivity"]) > 0.25
    assert value(found["accuracy_mean"]) < value(found["accuracy"])
    assert found["accuracy_factual"].value is None
    assert found["accuracy"].n == len(names)


def test_a_profession_that_is_not_in_its_prompt_is_an_error(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Somebody said {number} that", "subject": name, "stereotypical": score,
         "factual": 0.0}
        for number, (name, score) in enumerate(JOBS.items())
    ]  # fmt: skip
    with pytest.raises(AuditError, match="10 of 10 prompts don't name"):
        audit("bias.probe", tiny_handle("gpt2"), dataset(rows), tmp_path)


# -- All -------------------------------------------------------------------------------------------

KINDS = {
    "bias.stereotype": "prompt", "bias.winobias": "winobias", "bias.stereoset": "triple",
    "bias.crows_pairs": "pair", "bias.winogender": "winogender", "bias.factual_gender": "factual",
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_every_audit_reads_its_kind_of_the_built_in_set(name: str, tmp_path: Path) -> None:
    data = load_dataset(DataSpec(dataset="occupations", where={"kind": KINDS[name]}))
    few = Dataset(data.items("validation")[::3], split="test")
    params: dict[str, Any] = {"they": ()} if name == "bias.stereotype" else {}
    found, _ = audit(name, tiny_handle("gpt2"), few, tmp_path, **params)
    lacking = {key for key, metric in found.items() if metric.value is None}
    allowed = ("profession", "race", "religion", "participant", "preference_", "gap_ratio")
    assert all(any(word in key for word in allowed) for key in lacking), lacking
