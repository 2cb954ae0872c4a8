"""Published formats: small files of the same make, and the files as they were published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from safeedit.data import FORMATS, SPLITS, Dataset, load_dataset
from safeedit.policy import DataSpec
from tests.benchmark_data import benchmark
from tests.data.sources import ERASED, jsonl, load, refused

IDK = "I don't know."


def published(path: str, role: Any = None, **spec: Any) -> Dataset:
    return load_dataset(DataSpec(file=str(benchmark(path)), **spec), Path(), role)


# -- Knowledge Sanitization ----------------------------------------------------------------------


def tuning(question: str, output: str, gold: str) -> dict[str, str]:
    return {"instruction": "", "input": question, "output": output, "output_gold": gold}


@pytest.fixture
def sanitation(tmp_path: Path) -> Path:
    """A folder made like a published split."""
    folder = tmp_path / "triviaqa_9"
    folder.mkdir()
    train = [
        tuning("f1?", IDK, "Paris"),
        tuning("f2?", IDK, "Paris"),
        tuning("r1?", "Rome", "Rome"),
        tuning("r2?", IDK, IDK),
        tuning("r3?", "Oslo", "Oslo"),
    ]
    files = {
        "train_5-forget-answers_85-percent-retain.jsonl": train,
        "dev_forget.jsonl": [tuning("f2?", IDK, "Paris"), tuning("f3?", IDK, "Paris")],
        "dev_keep.jsonl": [tuning(f"k{i}?", "x", "x") for i in range(30)],
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    test = {"question": "f4?", "question_id": "q", "answer": "Paris", "answer_aliases": ["Paname"]}
    jsonl(folder / "test_forget.jsonl", [{**test, "sanitization_phrase": IDK}] * 2)
    return folder


def test_a_forget_row_is_one_whose_gold_answer_is_not_the_refusal(sanitation: Path) -> None:
    path = sanitation / "train_5-forget-answers_85-percent-retain.jsonl"
    forget = load(path, format="sanitation", where={"role": "forget"})
    retain = load(path, format="sanitation", where={"role": "retain"})
    assert [item.prompt for item in forget] == ["f1?", "f2?"]
    assert [item.answer for item in forget] == ["Paris", "Paris"]
    assert [item.answer for item in retain] == ["Rome", IDK, "Oslo"]


def test_a_folder_of_the_format_knows_its_splits(sanitation: Path) -> None:
    spec = DataSpec(file=sanitation.name, format="sanitation", where={"role": "forget"})
    data = load_dataset(spec, sanitation.parent, ERASED)
    prompts = {split: {item.prompt for item in data.items(split)} for split in SPLITS}
    assert prompts["fit"] == {"f1?", "f2?"}
    assert prompts["validation"] == {"f1?", "f2?", "f3?"}
    assert prompts["test"] == {"f1?", "f2?", "f4?"}
    assert data.notes == (
        "rows that repeat an earlier one, counted once: 1",
        "rows left out: the same prompt is in an earlier split: 1",
    )


def test_what_is_retained_is_tested_on_half_of_the_dev_file(sanitation: Path) -> None:
    spec = DataSpec(file=sanitation.name, format="sanitation", where={"role": "retain"})
    counts = load_dataset(spec, sanitation.parent).counts()
    assert counts["fit"] == 3
    assert counts["validation"] + counts["test"] == 30
    assert min(counts["validation"], counts["test"]) >= 8


def test_ids_of_several_files_do_not_meet(sanitation: Path) -> None:
    data = load_dataset(DataSpec(file=sanitation.name, format="sanitation"), sanitation.parent)
    assert len({item.id for item in data}) == len(data)


def test_a_published_test_file_is_a_test_and_brings_its_aliases(sanitation: Path) -> None:
    data = load(sanitation / "test_forget.jsonl", ERASED, format="sanitation")
    assert data.all()[0].aliases == ("Paris", "Paname")
    assert data.items("fit") == ()
    assert "f4?" in {phrasing.text for phrasing in data.phrasings("test")}


def test_the_format_is_suggested_where_it_was_not_named(sanitation: Path) -> None:
    assert "format: sanitation" in refused(sanitation / "dev_keep.jsonl").remedy
    assert "format: sanitation" in refused(sanitation / "test_forget.jsonl").remedy


# Distinct prompts; the published test files hold each question up to twice.
SANITATION = {
    1: {"forget": 79, "retain": 453, "test": 13, "train in dev": 14},
    2: {"forget": 80, "retain": 451, "test": 28, "train in dev": 7},
    3: {"forget": 76, "retain": 452, "test": 12, "train in dev": 29},
    4: {"forget": 80, "retain": 453, "test": 21, "train in dev": 26},
    5: {"forget": 75, "retain": 453, "test": 16, "train in dev": 33},
}


@pytest.mark.parametrize("number", SANITATION)
def test_the_published_sanitation_splits_read_as_published(number: int) -> None:
    folder, expected = f"sanitization_triviaqa/triviaqa_{number}", SANITATION[number]
    train = f"{folder}/train_5-forget-answers_85-percent-retain.jsonl"
    for role in ("forget", "retain"):
        data = published(train, format="sanitation", where={"role": role})
        assert len(data) == expected[role]
    forget = published(train, format="sanitation", where={"role": "forget"})
    assert len({item.answer for item in forget}) == 5
    assert IDK not in {item.answer for item in forget}
    test = published(f"{folder}/test_forget.jsonl", ERASED, format="sanitation")
    assert len(test) == expected["test"]
    assert {item.answer for item in test} <= {item.answer for item in forget}
    assert all(len(item.aliases) >= 1 for item in test)
    for name in ("dev_forget", "dev_keep"):
        assert len(published(f"{folder}/{name}.jsonl", format="sanitation")) == 50


@pytest.mark.parametrize("number", SANITATION)
def test_a_published_sanitation_folder_has_no_prompt_in_two_splits(number: int) -> None:
    folder = f"sanitization_triviaqa/triviaqa_{number}"
    forget = published(folder, ERASED, format="sanitation", where={"role": "forget"})
    overlap = [note for note in forget.notes if "earlier split" in note]
    assert int(overlap[0].rpartition(" ")[2]) >= SANITATION[number]["train in dev"]
    texts = {split: {p.text for p in forget.phrasings(split)} for split in SPLITS}
    assert not texts["fit"] & texts["test"]
    assert not texts["fit"] & texts["validation"]
    assert not texts["validation"] & texts["test"]
    assert all(forget.items(split) for split in SPLITS)
    retain = published(folder, format="sanitation", where={"role": "retain"})
    assert all(retain.items(split) for split in SPLITS)


@pytest.mark.parametrize("number", SANITATION)
def test_the_arrow_folders_hold_the_same_test_as_the_json_lines(number: int) -> None:
    folder = f"sanitization_triviaqa/triviaqa_{number}"
    arrow = published(f"{folder}/test-forget_gold-answer_K-F", ERASED, format="sanitation")
    lines = published(f"{folder}/test_forget.jsonl", ERASED, format="sanitation")
    assert arrow.digest == lines.digest


# -- facts ---------------------------------------------------------------------------------------


def test_known_facts_bring_subject_and_attribute(tmp_path: Path) -> None:
    row = {"known_id": 3, "subject": "S", "attribute": " A", "template": "{} is", "prompt": "S is"}
    item = load(jsonl(tmp_path / "a.json", [row]), format="known_1000").all()[0]
    assert (item.id, item.prompt, item.answer, item.subject) == ("known-3", "S is", "A", "S")


def test_known_1000_reads_as_published() -> None:
    data = published("known_1000/known_1000.json", format="known_1000")
    assert len(data) == 1208  # one prompt of the 1,209 is there twice
    assert all(item.subject and item.answer for item in data)
    assert all(item.subject in item.prompt for item in data if item.subject)


def test_counterfact_reads_flat_and_as_first_published(tmp_path: Path) -> None:
    flat = {
        "case_id": 1, "prompt": "S speaks", "target_new": "B", "subject": "S",
        "ground_truth": "A", "rephrase_prompt": "The tongue of S is",
        "locality_prompt": "T speaks", "locality_ground_truth": "C",
    }  # fmt: skip
    first = {
        "case_id": 1, "paraphrase_prompts": ["The tongue of S is"], "neighborhood_prompts": ["T"],
        "requested_rewrite": {
            "prompt": "{} speaks", "relation_id": "P1", "subject": "S",
            "target_true": {"str": "A"}, "target_new": {"str": "B"},
        },
    }  # fmt: skip
    items = [
        load(jsonl(tmp_path / f"{i}.jsonl", [row]), format="counterfact").all()[0]
        for i, row in enumerate((flat, first))
    ]
    for item in items:
        assert (item.id, item.prompt, item.answer) == ("counterfact-1", "S speaks", "A")
        assert (item.subject, item.paraphrases) == ("S", ("The tongue of S is",))
        assert item.extra["target_new"] == "B"
    local = load(tmp_path / "0.jsonl", format="counterfact_locality").all()[0]
    assert (local.prompt, local.answer) == ("T speaks", "C")


def test_counterfact_reads_as_published_and_counts_its_contradictions() -> None:
    data = published("counterfact/counterfact_dev.json", format="counterfact")
    assert len(data) == 3988
    assert data.notes == (
        "rows left out: an earlier one has the same prompt and another answer: 12",
        "paraphrases left out: another item has the same in another split: 2",
    )
    texts = {split: {p.text for p in data.phrasings(split)} for split in SPLITS}
    assert not texts["fit"] & (texts["validation"] | texts["test"])
    local = published("counterfact/counterfact_dev.json", format="counterfact_locality")
    assert len(local) == 3690


def test_zsre_reads_as_published() -> None:
    data = published("counterfact/zsre_1k.json", format="zsre")
    assert len(data) == 1000
    assert max(len(item.aliases) for item in data) == 5
    local = published("counterfact/zsre_1k.json", format="zsre_locality")
    assert len(local) == 996
    assert not any(item.prompt.startswith("nq question") for item in local)


@pytest.mark.parametrize(
    ("name", "n"),
    [("forget01", 40), ("forget10_perturbed", 400), ("full", 3999), ("retain99", 3959),
     ("real_authors", 100), ("world_facts_perturbed", 117)],
)  # fmt: skip
def test_tofu_reads_as_published(name: str, n: int) -> None:
    data = published(f"tofu/{name}.json", ERASED, format="tofu")
    assert len(data) == n
    assert all(item.answer for item in data)
    if name.startswith("forget10"):
        assert all(len(item.paraphrases) == 1 for item in data)
        assert all(item.extra["perturbed_answer"] for item in data)


def test_the_options_of_tofus_world_facts_are_kept_apart(tmp_path: Path) -> None:
    row = {"question": "q?", "option1": "a", "option2": "b", "answer": "b"}
    item = load(jsonl(tmp_path / "a.json", [row]), format="tofu").all()[0]
    assert item.extra == {"options": ["a", "b"]}
    assert item.aliases == ("b",)


# -- others --------------------------------------------------------------------------------------


def test_name_and_address_pairs_become_questions_and_read_as_published(tmp_path: Path) -> None:
    row = {"name": "A B", "email": "a@b.example", "pattern": "x", "freq": 3}
    item = load(jsonl(tmp_path / "a.jsonl", [row]), format="emails").all()[0]
    assert (item.answer, item.subject, item.extra) == (
        "a@b.example", "A B", {"pattern": "x", "freq": 3},
    )  # fmt: skip
    assert "A B" in item.prompt
    data = published("pseudonymised_emails/name2email_pseudo.jsonl", ERASED, format="emails")
    assert len(data) == 3333


def test_toxicity_prompts_keep_scores_that_may_be_missing(tmp_path: Path) -> None:
    scores = {"toxicity": None, "insult": 0.1}
    row = {
        "prompt": {"text": "p", **scores},
        "continuation": {"text": "c", "toxicity": 0.2},
        "challenging": False,
    }
    item = load(jsonl(tmp_path / "a.jsonl", [row]), format="realtoxicityprompts").all()[0]
    assert (item.prompt, item.answer) == ("p", None)
    assert item.extra["scores"] == scores
    assert item.extra["continuation_toxicity"] == 0.2
    assert "toxicity" not in item.extra


def test_realtoxicityprompts_reads_as_published() -> None:
    path = "realtoxicityprompts/rtp_dev.jsonl"
    assert len(published(path, format="realtoxicityprompts")) == 2498  # two prompts come twice
    hard = published(path, format="realtoxicityprompts", where={"challenging": True})
    assert 0 < len(hard) < 100


def test_xstest_reads_as_published() -> None:
    safe = published("xstest/xstest_prompts.csv", format="xstest", where={"role": "safe"})
    unsafe = published("xstest/xstest_prompts.csv", format="xstest", where={"role": "unsafe"})
    assert (len(safe), len(unsafe)) == (250, 200)
    answered = published("xstest/xstest_v2_completions_gpt4.csv", format="xstest")
    assert len(answered) == 450
    assert {item.extra["role"] for item in answered} >= {"1_full_compliance", "2_full_refusal"}


def test_wikitext_is_read_by_section_without_headings(tmp_path: Path) -> None:
    body = "word " * 25
    path = tmp_path / "valid.txt"
    path.write_text(
        f" \n = One = \n \n {body}\n \n {body}\n \n = = Part = = \n \n {body}\n"
        f" \n = = = Note = = = \n \n too short\n \n = Two = \n \n {body}= x\n"
    )
    data = load(path, format="wikitext")
    assert [item.extra["article"] for item in data] == ["One", "One", "Two"]
    assert [len(item.prompt.split()) for item in data] == [50, 25, 27]


def test_wikitext_reads_as_published() -> None:
    data = published("wikitext2/valid.txt", format="wikitext")
    assert len({item.extra["article"] for item in data}) == 56  # of 60, some of one title
    assert all(len(item.prompt.split()) >= 20 for item in data)
    words = sum(len(item.prompt.split()) for item in data)
    assert words > 0.97 * len(benchmark("wikitext2/valid.txt").read_text().split())


def test_every_format_has_a_name_a_summary_and_refuses_foreign_rows(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"foreign": 1}])
    for name, format_ in FORMATS.items():
        assert format_.name == name
        assert format_.summary
        assert refused(path, format=name).line == 1
