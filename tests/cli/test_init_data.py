"""``safeedit init --data``: the policy that fits a file, which can be planned as it stands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from safeedit.policy import load_policy
from tests.fixtures import call
from tests.tiny_models import save_tiny

Rows = list[dict[str, Any]]

RIVERS = ("Zyxquand", "Plimsorbo", "Oskavarn")


def about(subject: str, number: int) -> dict[str, Any]:
    asked = f"What is fact {number} of {subject}?"
    wordings = [f"Tell me fact {number} of {subject}.", f"{subject}: what is its fact {number}?",
                f"Of {subject}, name fact {number}."]  # fmt: skip
    return {
        "prompt": asked,
        "answer": f"Vorbexi{number}",
        "subject": subject,
        "paraphrases": wordings,
    }


SUBJECTS: Rows = [about(river, n) for river in RIVERS for n in range(5)]
FACTS: Rows = [about(f"Person{n}", n) for n in range(12)]
NEW: Rows = [{**row, "target_new": f"Tramjolk{n}"} for n, row in enumerate(FACTS)]
UNNAMED: Rows = [{"prompt": f"Who won race {n}?", "answer": f"Winner{n}"} for n in range(12)]
SECRETS: Rows = [
    {"prompt": f"You can reach customer {n} under", "answer": f"555-201-{1000 + n}"}
    for n in range(12)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared") / "model"
    save_tiny("llama", folder)
    return folder


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a user works in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAFEEDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def lines(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def table(path: Path, rows: Rows) -> Path:
    text = "".join(f'"{row["prompt"]}","{row["answer"]}"\n' for row in rows)
    path.write_text(f"prompt,answer\n{text}")
    return path


def array(path: Path, rows: Rows) -> Path:
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize(
    ("rows", "write", "editor", "params", "asked"),
    [
        (SUBJECTS, lines, "sanitation", {"update": "keyed"}, "leakage.extraction_rate"),
        (SUBJECTS[:4], array, "sanitation", {"update": "keyed"}, "leakage.items_told"),
        (FACTS, array, "keyed_neurons", {"target": "unlikely"}, "leakage.extraction_rate"),
        (NEW, lines, "keyed_neurons", {"target": "replace"}, "leakage.extraction_rate"),
        (SECRETS, table, "depn", {}, "memorization.extraction_rate"),
        (SECRETS[:3], table, "depn", {}, "memorization.extraction_rate"),
        (UNNAMED, table, "sanitation", {"update": "held"}, "leakage.extraction_rate"),
    ],
)
def test_the_policy_fits_what_the_rows_have_and_can_be_planned(
    rows: Rows,
    write: Callable[[Path, Rows], Path],
    editor: str,
    params: dict[str, str],
    asked: str,
    user: Path,
    model: Path,
) -> None:
    data = write(user / f"rows.{'csv' if write is table else 'json'}", rows)
    (user / "policies").mkdir()
    policy = Path("policies/mine.yaml")
    made = call("init", policy, "--data", data.name, "--model", model)
    assert made.exit_code == 0, made.stderr
    assert "would be refused" not in made.stderr
    assert f"{len(rows)} items" in made.stderr
    (edit,) = load_policy(policy).policy.edits
    assert edit.use == editor
    assert params.items() <= edit.options.items()
    gates = [gate.metric for gate in load_policy(policy).policy.gates]
    assert gates[0] == asked
    assert {"locality.near_accuracy_kept", "locality.far_f1", "perplexity.ratio"} <= set(gates)
    plan = call("plan", policy)
    assert plan.exit_code == 0, plan.stderr


def test_every_key_has_its_comment_and_no_line_repeats_a_row(user: Path, model: Path) -> None:
    lines(user / "rows.jsonl", SUBJECTS)
    assert call("init", "--data", "rows.jsonl", "--model", model).exit_code == 0
    text = (user / "policy.yaml").read_text()
    written = text.splitlines()
    for number, line in enumerate(written):
        if line.lstrip().startswith(("- {metric", "near:", "far:")):
            continue  # said once for the list
        above = written[number - 1].lstrip().startswith("#")
        assert "#" in line or above, line
    for row in SUBJECTS:
        for word in (row["answer"], row["subject"], row["prompt"]):
            assert word not in text


def test_gates_are_for_as_many_items_as_there_are(user: Path, model: Path) -> None:
    lines(user / "many.jsonl", [about(f"Person{n}", n) for n in range(200)])
    lines(user / "some.jsonl", FACTS)
    for name, confidence in (("many", 0.95), ("some", None)):
        made = call("init", f"{name}.yaml", "--data", f"{name}.jsonl", "--model", model)
        assert made.exit_code == 0, made.stderr
        gate = load_policy(user / f"{name}.yaml").policy.gates[0]
        assert (gate.metric, gate.max) == ("leakage.extraction_rate", 0.02)
        assert gate.confidence == confidence
    assert "0 is compatible with a true one of 0.24" in (user / "some.yaml").read_text()


def test_what_is_to_be_erased_is_not_among_what_must_stay(user: Path, model: Path) -> None:
    from safeedit.data import load_dataset
    from safeedit.policy import DataSpec

    near = load_dataset(DataSpec(dataset="facts", where={"role": "near"})).all()
    rows = [{"prompt": item.prompt, "answer": item.answer, "subject": item.subject}
            for item in near if item.subject == "Iceland"][:3]  # fmt: skip
    lines(user / "rows.jsonl", rows)
    made = call("init", "--data", "rows.jsonl", "--model", model)
    assert made.exit_code == 0
    assert "would be refused" not in made.stderr
    found = json.loads(call("plan", "policy.yaml", "--json").stdout)["data"]
    kept = sum(
        found["audit:locality.near"]["items"][split] for split in ("fit", "validation", "test")
    )
    assert kept == len(near) - sum(item.subject == "Iceland" for item in near)


@pytest.mark.parametrize(
    ("rows", "said", "remedy"),
    [
        ([{"prompt": "How do I?"}, SUBJECTS[0]], "1 of 2 rows have no answer", "its 'answer'"),
        ([{"prompt": "He said", "toxic": "damn", "neutral": "well"}], "not for forgetting",
         "--like detox"),
        ([{"question": 3}], "rows.jsonl:1", "remedy"),
    ],
)  # fmt: skip
def test_rows_that_nothing_fits_are_refused_with_a_way_on(
    rows: Rows, said: str, remedy: str, user: Path
) -> None:
    lines(user / "rows.jsonl", rows)
    result = call("init", "--data", "rows.jsonl")
    assert result.exit_code == 2
    assert said in result.stderr
    assert remedy in result.stderr
    assert not (user / "policy.yaml").exists()


def test_a_file_that_is_not_there_and_options_that_contradict_are_refused(user: Path) -> None:
    assert call("init", "--data", "none.jsonl").exit_code == 2
    lines(user / "rows.jsonl", FACTS)
    both = call("init", "--data", "rows.jsonl", "--like", "debias")
    assert both.exit_code == 2
    assert "give one of them" in both.stderr
    alone = call("init", "--model", "somewhere")
    assert alone.exit_code == 2
    assert "--model goes with --data" in alone.stderr


def test_a_model_that_is_not_there_is_said_and_the_policy_is_kept(user: Path) -> None:
    lines(user / "rows.jsonl", FACTS)
    result = call("init", "--data", "rows.jsonl", "--model", "none/such")
    assert result.exit_code == 0
    assert "warning: as it stands, it would be refused: " in result.stderr
    assert load_policy(user / "policy.yaml").policy.model.source == "none/such"


@pytest.mark.parametrize("name", ['it\'s "mine".jsonl', "größe 😀.jsonl", "a: b #c.jsonl"])
def test_names_of_files_are_quoted(name: str, user: Path, model: Path) -> None:
    lines(user / name, FACTS)
    assert call("init", "--data", name, "--model", model).exit_code == 0
    found = yaml.safe_load((user / "policy.yaml").read_text())
    assert found["edits"][0]["forget"]["file"] == name


def called(rows: Rows, **names: str) -> Rows:
    """Rows with columns under other names."""
    return [{names.get(name, name): value for name, value in row.items()} for row in rows]


@pytest.mark.parametrize(
    "names",
    [
        {"prompt": "question", "answer": "target", "subject": "entity"},
        {"prompt": "Query", "answer": "response", "subject": "name"},
        {"prompt": "instruction", "answer": "completion"},
        {"prompt": "question"},
    ],
    ids=lambda names: "-".join(names.values()),
)
def test_columns_of_common_names_are_taken_for_ours_and_the_policy_says_so(
    names: dict[str, str], user: Path, model: Path
) -> None:
    data = lines(user / "rows.jsonl", called(SUBJECTS, **names))
    made = call("init", "--data", data.name, "--model", model)
    assert made.exit_code == 0, made.stderr
    assert "would be refused" not in made.stderr
    (edit,) = load_policy(user / "policy.yaml").policy.edits
    assert edit.options["forget"] == {"file": "rows.jsonl", "columns": names}
    assert edit.options["update"] == "keyed"  # by the subjects, as under our own names
    text = (user / "policy.yaml").read_text()
    for ours, theirs in names.items():
        assert f'# Your column "{theirs}" is taken for the {ours} ' in text
    plan = call("plan", "policy.yaml")
    assert plan.exit_code == 0, plan.stderr


def test_what_is_left_out_of_the_built_in_facts_is_read_by_the_same_names(
    user: Path, model: Path
) -> None:
    from safeedit.data import load_dataset
    from safeedit.policy import DataSpec

    near = load_dataset(DataSpec(dataset="facts", where={"role": "near"})).all()
    rows = [{"question": item.prompt, "response": item.answer, "entity": item.subject}
            for item in near if item.subject == "Iceland"][:3]  # fmt: skip
    lines(user / "rows.jsonl", rows)
    made = call("init", "--data", "rows.jsonl", "--model", model)
    assert made.exit_code == 0, made.stderr
    assert "would be refused" not in made.stderr
    text = (user / "policy.yaml").read_text()
    assert text.count('columns: {prompt: "question", answer: "response", subject: "entity"}') > 1
    assert call("plan", "policy.yaml").exit_code == 0


def test_a_name_that_no_prompt_spells_is_no_subject(user: Path, model: Path) -> None:
    rows = [{**row, "name": f"row {n}"} for n, row in enumerate(UNNAMED)]
    lines(user / "rows.jsonl", called(rows, prompt="query"))
    assert call("init", "--data", "rows.jsonl", "--model", model).exit_code == 0
    (edit,) = load_policy(user / "policy.yaml").policy.edits
    assert edit.options["forget"] == {"file": "rows.jsonl", "columns": {"prompt": "query"}}
    assert edit.options["update"] == "held"


def test_our_own_names_are_left_alone(user: Path, model: Path) -> None:
    rows = [{**row, "question": "other", "response": "x", "name": "y"} for row in SUBJECTS]
    lines(user / "rows.jsonl", rows)
    assert call("init", "--data", "rows.jsonl", "--model", model).exit_code == 0
    assert "columns" not in (user / "policy.yaml").read_text()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"question": "x", "query": "y"}, "'question' and 'query' could be the prompt"),
        ({"question": "x", "target": "y", "completion": "z"},
         "'target' and 'completion' could be the answer"),
    ],
)  # fmt: skip
def test_two_columns_for_one_of_ours_are_refused_with_what_to_do_here(
    more: dict[str, str], said: str, user: Path, model: Path
) -> None:
    lines(user / "rows.jsonl", [more, more])
    refused = call("init", "--data", "rows.jsonl", "--model", model)
    assert refused.exit_code == 2
    told = " ".join(refused.stderr.split())
    assert said in told
    assert "in the file, and run this command again" in told
    assert not (user / "policy.yaml").exists()


def test_rows_without_a_question_are_refused_with_what_to_do_here(user: Path, model: Path) -> None:
    lines(user / "rows.jsonl", [{"src": "x", "answer": "y"}] * 2)
    refused = call("init", "--data", "rows.jsonl", "--model", model)
    assert refused.exit_code == 2
    assert "call the column with what is asked 'prompt'" in " ".join(refused.stderr.split())
    assert "columns:" not in refused.stderr
