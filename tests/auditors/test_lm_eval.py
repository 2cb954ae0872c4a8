"""The auditor ``lm_eval``: task files refused without the library, and asked with it.

What needs the library is skipped where the extra is not installed. The tasks are invented here.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from safeedit import catalog
from safeedit.auditors.lm_eval import harness
from safeedit.auditors.lm_eval.lm_eval import LmEval, TaskParams
from safeedit.auditors.lm_eval.tasks import TaskFile, digest_of, read_tasks
from safeedit.contracts import Auditor, AuditOutcome, metrics_of, settled
from safeedit.errors import AuditError, DataError, PolicyError, UsageError
from safeedit.planning.resolution import make_plan
from safeedit.policy import load_policy
from safeedit.statistics.metrics import compare
from tests.fixtures import context
from tests.road import Workplace
from tests.tiny_models import tiny_handle

INSTALLED = importlib.util.find_spec("lm_eval") is not None
needs_harness = pytest.mark.skipif(not INSTALLED, reason="the extra lm-eval is not installed")

COLOURS = ("red", "green", "blue", "black")
THINGS = ("river", "doctor", "city", "prince", "nurse", "teacher", "country", "letter")
DOCUMENTS = [
    {"question": f"What colour has the {thing}?", "choices": list(COLOURS), "label": n % 4}
    for n, thing in enumerate(THINGS)
]
SHOTS = [
    {"question": f"What colour has house {n}?", "choices": list(COLOURS), "label": n % 4}
    for n in range(6)
]
WORDS = [{"question": f"Say the word {thing}:", "answer": thing} for thing in THINGS]

CHOICE: dict[str, Any] = {
    "task": "colours",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "colours.jsonl", "train": "shots.jsonl"}},
    "test_split": "test",
    "fewshot_split": "train",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "choices",
    "doc_to_target": "label",
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "mcc", "aggregation": "matthews_corrcoef", "higher_is_better": True},
    ],
}
SAID: dict[str, Any] = {
    "task": "words",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "words.jsonl"}},
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "answer",
    "generation_kwargs": {"until": ["."], "max_gen_toks": 6},
    "metric_list": [
        {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True},
    ],
}

LIKELY: dict[str, Any] = {
    "task": "likely",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "words.jsonl"}},
    "test_split": "test",
    "output_type": "loglikelihood",
    "doc_to_text": "{{question}}",
    "doc_to_target": " {{answer}}",
}


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "BOOTSTRAPS", 50)


def _write(folder: Path, *tasks: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("colours", DOCUMENTS), ("shots", SHOTS), ("words", WORDS)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    for task in tasks:
        text = yaml.safe_dump(dict(task), sort_keys=False)
        (folder / f"{task['task']}.yaml").write_text(text, encoding="utf-8")
    return folder


def _changed(task: Mapping[str, Any], /, **fields: Any) -> dict[str, Any]:
    return {key: value for key, value in {**task, **fields}.items() if value is not None}


def _made(folder: Path, **params: Any) -> LmEval:
    found = settled(LmEval, TaskParams(folder=str(folder), **params), folder.parent)
    return LmEval(found)


def _handle() -> Any:
    return tiny_handle("llama", max_position_embeddings=256)


def _disturb(handle: Any) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in handle.model.named_parameters():
            if "mlp" in name:
                weight.add_(torch.randn(weight.shape, generator=generator))


def _run(
    auditor: LmEval, handle: Any, folder: Path, reference: Any = None, **more: Any
) -> AuditOutcome:
    return auditor.audit(handle, {}, "test", replace(context(folder), **more), reference)


# Without the library -------------------------------------------------------------------


def test_a_policy_is_refused_where_the_extra_is_not_installed(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'lm_eval'", name="lm_eval")

    monkeypatch.setattr(harness, "import_module", missing)
    _write(place.folder / "evals", CHOICE)
    policy = place.policy(audits=[{"use": "lm_eval", "folder": "evals"}], gates=None, export=None)
    with pytest.raises(UsageError, match=r"needs the package lm_eval") as caught:
        make_plan(load_policy(policy))
    assert caught.value.remedy == "pip install 'safeedit[lm-eval]'"
    assert caught.value.file == str(policy)
    assert caught.value.line is not None


def test_it_is_an_auditor_that_takes_no_data_of_the_policy() -> None:
    kind = catalog.auditor("lm_eval")
    assert kind is LmEval
    assert isinstance(LmEval(TaskParams(folder="evals")), Auditor)
    assert (kind.roles, kind.metrics, kind.covers) == ((), (), ())
    assert all(field.description for field in kind.Params.model_fields.values())


def test_tasks_are_found_with_what_they_include(tmp_path: Path) -> None:
    folder = _write(tmp_path / "evals", CHOICE, SAID)
    (folder / "deeper").mkdir()
    base = {key: value for key, value in CHOICE.items() if key not in ("task", "dataset_kwargs")}
    (folder / "deeper" / "_base.yaml").write_text(yaml.safe_dump(base))
    (folder / "deeper" / "more.yaml").write_text(
        "include: _base.yaml\ntask: more\nfewshot_split: null\n"
        "dataset_kwargs: {data_files: {test: [../colours.jsonl, ../shots.jsonl]}}\n"
    )
    found = read_tasks(folder)
    assert [task.name for task in found] == ["colours", "more", "words"]
    more = found[1]
    assert more.config["output_type"] == "multiple_choice"
    assert more.config["fewshot_split"] is None
    assert [path.resolve().name for path in more.data_files["test"]] == [
        "colours.jsonl",
        "shots.jsonl",
    ]
    assert [task.name for task in read_tasks(folder, ["words"])] == ["words"]


def test_a_digest_is_of_tasks_documents_and_harness(tmp_path: Path) -> None:
    folder = _write(tmp_path / "evals", CHOICE)
    whole = digest_of(read_tasks(folder), "1")
    assert digest_of(read_tasks(folder), "1") == whole
    assert digest_of(read_tasks(folder), "2") != whole
    (folder / "colours.jsonl").write_text(json.dumps(DOCUMENTS[0]) + "\n")
    other = digest_of(read_tasks(folder), "1")
    assert other != whole
    _write(folder, _changed(CHOICE, doc_to_text="Q: {{question}}"))
    assert digest_of(read_tasks(folder), "1") not in (whole, other)


REFUSED: dict[str, tuple[dict[str, Any], str, str, str]] = {
    # what is changed, the field at fault, what is said, the remedy
    "hub": ({"dataset_path": "owner/data"}, "dataset_path", "data set of the hub", "data_files"),
    "no data": ({"dataset_path": None}, "dataset_path", "data set of the hub", "data_files"),
    "option": (
        {"dataset_kwargs": {"data_files": "colours.jsonl", "data_dir": "x"}},
        "dataset_kwargs", "data_files and nothing else", "test: FILE",
    ),
    "address": (
        {"dataset_kwargs": {"data_files": {"test": "https://example.org/x.jsonl"}}},
        "dataset_kwargs.data_files", "lies on this machine", "relative to the task file",
    ),
    "no file": (
        {"dataset_kwargs": {"data_files": {"test": "gone.jsonl"}}},
        "dataset_kwargs.data_files", "gone.jsonl can't be read: No such file", "relative",
    ),
    "no files": (
        {"dataset_kwargs": {"data_files": {"test": []}}},
        "dataset_kwargs.data_files", "no files", "leave the split out",
    ),
    "metric": (
        {"metric_list": [{"metric": "rouge", "hf_evaluate": True}]},
        "metric_list[0].hf_evaluate", "fetched from the hub", "harness's own",
    ),
    "metrics": ({"metric_list": ["acc"]}, "metric_list", "no list of metrics", "metric: acc"),
    "prompt": ({"use_prompt": "promptsource:x"}, "use_prompt", "from a library", "doc_to_text"),
    "unsafe": ({"unsafe_code": True}, "unsafe_code", "runs what the model writes", "leave"),
    "image": ({"doc_to_image": "image"}, "doc_to_image", "shows images", "leave"),
    "class": ({"class": "x.Task"}, "class", "written in Python", "runs no code"),
    "kind": ({"output_type": "chat"}, "output_type", "'chat' is no kind of task", "generate_until"),
    "split": ({"test_split": "final"}, "test_split", "no data files of a split 'final'", "add it"),
    "untested": ({"test_split": None}, "test_split", "no documents to test on", "name a split"),
    "group": ({"group": "all"}, "group", "group of tasks", "remove the file"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_task_that_wants_code_or_a_network_is_refused_at_its_line(
    case: str, tmp_path: Path
) -> None:
    fields, field, said, remedy = REFUSED[case]
    folder = _write(tmp_path / "evals", _changed(CHOICE, **fields))
    with pytest.raises(DataError, match=re.escape(said)) as caught:
        read_tasks(folder)
    error = caught.value
    assert error.file == str(folder / "colours.yaml")
    assert error.field == field
    assert remedy in error.remedy
    lines = (folder / "colours.yaml").read_text().splitlines()
    top = field.partition(".")[0].partition("[")[0]
    if any(line.startswith(f"{top}:") for line in lines):
        assert error.line is not None
        assert lines[error.line - 1].startswith(f"{top}:")
    assert not any(row["question"] in str(error) for row in DOCUMENTS)


@pytest.mark.parametrize(
    ("text", "said", "line"),
    [
        ("task: x\nprocess_docs: !function utils.process\n", "calls a Python function", 2),
        ("task: [x\n", "is not YAML", 2),
        ("- task\n", "holds no fields", None),
        ("include: colours.yaml\ninclude: x.yaml\ntask: y\n", "includes itself", None),
        ("include: {a: b}\ntask: y\n", "is no name of a file", 1),
        ("include: gone.yaml\ntask: y\n", "can't be read: No such file", None),
    ],
)
def test_a_file_that_is_no_task_file_is_refused(
    text: str, said: str, line: int | None, tmp_path: Path
) -> None:
    folder = _write(tmp_path / "evals", CHOICE)
    (folder / "x.yaml").write_text(text)
    with pytest.raises(DataError, match=said) as caught:
        read_tasks(folder)
    assert caught.value.line == line
    assert caught.value.remedy
    # Where only others are wanted it is of no concern.
    assert [task.name for task in read_tasks(folder, ["colours"])] == ["colours"]


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder") as caught:
        read_tasks(tmp_path / "gone")
    assert caught.value.field == "folder"
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no tasks in this folder") as caught:
        read_tasks(tmp_path / "empty")
    assert caught.value.field == "folder"
    folder = _write(tmp_path / "evals", CHOICE)
    with pytest.raises(DataError, match="has a task 'colors'") as caught:
        read_tasks(folder, ["colors"])
    assert caught.value.field == "tasks"
    (folder / "again.yaml").write_text((folder / "colours.yaml").read_text())
    with pytest.raises(DataError, match=r"'colours' is also in again\.yaml"):
        read_tasks(folder)


# With it -------------------------------------------------------------------------------


@needs_harness
def test_metrics_are_named_after_task_metric_and_filter(tmp_path: Path) -> None:
    filters = [
        {"name": name, "filter": [{"function": "take_first"}]} for name in ("strict", "any-case")
    ]
    loss = _changed(
        CHOICE, task="loss+", metric_list=[{"metric": "brier_score", "higher_is_better": False}]
    )
    folder = _write(tmp_path / "evals", CHOICE, _changed(SAID, filter_list=filters), loss)
    found = {spec.name: spec for spec in metrics_of(_made(folder))}
    assert list(found) == [
        "colours_acc", "colours_mcc", "loss__brier_score",
        "words_exact_match_strict", "words_exact_match_any-case",
    ]  # fmt: skip
    assert [spec.unit for spec in found.values()] == ["rate", "score", "score", "rate", "rate"]
    assert found["loss__brier_score"].direction == "lower"
    assert found["colours_acc"].direction == "higher"
    for spec in found.values():
        assert re.fullmatch(r"[A-Z][^_`|]{25,280}\.", spec.plain)
    assert len({spec.plain for spec in found.values()}) == len(found)


@needs_harness
def test_a_choice_and_an_answer_are_measured_before_and_after(tmp_path: Path) -> None:
    auditor = _made(_write(tmp_path / "evals", CHOICE, LIKELY, SAID))
    handle = _handle()
    digest = handle.digest(fresh=True)
    before = _run(auditor, handle, tmp_path)
    assert handle.digest(fresh=True) == digest
    assert not any(parameter.grad is not None for parameter in handle.model.parameters())
    _disturb(handle)
    after = _run(auditor, handle, tmp_path, before.reference)
    for outcome in (before, after):
        assert [m.name for m in outcome.metrics] == [s.name for s in metrics_of(auditor)]
        for metric in outcome.metrics:
            assert metric.value is not None
            assert metric.n == len(DOCUMENTS)
            assert all(re.fullmatch("[0-9a-f]{16}", key) for key in metric.items)
    accuracy, mcc, perplexity, _, exact = before.metrics
    assert accuracy.value == sum(accuracy.items.values()) / 8
    assert mcc.items == {}  # no mean of documents
    assert exact.value == 0  # an untaught model answers nothing
    assert exact.interval is not None
    assert exact.interval.method == "wilson"
    assert exact.interval.high > 0.3
    pair = compare(accuracy, after.metrics[0])
    assert (pair.n_pairs, pair.test) == (8, "mcnemar exact")
    assert perplexity.value != after.metrics[2].value
    said = json.dumps([m.model_dump(mode="json") for m in (*before.metrics, *after.metrics)])
    assert not any(row["question"] in said for row in (*DOCUMENTS, *WORDS))


@needs_harness
def test_figures_are_those_of_the_harness_itself(tmp_path: Path) -> None:
    """Value and standard error as `lm_eval` gives them for the same model, and the interval."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    folder = _write(tmp_path / "evals", CHOICE, LIKELY)
    found = _run(_made(folder, num_fewshot=2, tasks=("colours",)), _handle(), tmp_path).metrics
    found += _run(_made(folder, tasks=("likely",)), _handle(), tmp_path).metrics
    accuracy, _, perplexity, greedy = found
    own, theirs = _handle(), {}
    for task, shots in ((CHOICE, 2), (LIKELY, 0)):
        # The harness reads files by the working directory, and keeps a copy of them.
        files = task["dataset_kwargs"]["data_files"]
        here = {
            "data_files": {split: str(folder / name) for split, name in files.items()},
            "cache_dir": str(tmp_path / "copies"),
        }
        with harness.kept_within(3):
            told = simple_evaluate(
                model=HFLM(pretrained=own.model, tokenizer=own.tokenizer, batch_size=8),
                tasks=[_changed(task, dataset_kwargs=here)],
                num_fewshot=shots,
                fewshot_random_seed=context(tmp_path).seed,
                task_manager=TaskManager(include_defaults=False),
                bootstrap_iters=harness.BOOTSTRAPS,
            )
        assert told is not None
        theirs |= told["results"][task["task"]]
    assert theirs["acc_stderr,none"] == 0  # of the words, none of which is right
    assert accuracy.value == 0.25
    assert greedy.value == theirs["acc,none"] == 0
    assert perplexity.value == theirs["perplexity,none"]
    assert (perplexity.unit, perplexity.direction, perplexity.n) == ("perplexity", "lower", 8)
    half = 1.959964 * theirs["perplexity_stderr,none"]
    assert half > 0
    assert perplexity.interval is not None
    assert perplexity.interval.method == "normal, from a standard error"
    assert perplexity.interval.low == pytest.approx(max(1, perplexity.value - half))
    assert perplexity.interval.high == pytest.approx(perplexity.value + half)


@needs_harness
def test_the_same_seed_gives_the_same_and_draws_are_put_back(tmp_path: Path) -> None:
    sampled = _changed(
        SAID, generation_kwargs={"until": ["."], "max_gen_toks": 6, "do_sample": True,
                                 "temperature": 2.0},
        metric_list=[{"metric": "chrf", "aggregation": "chrf", "higher_is_better": True}],
    )  # fmt: skip
    auditor, handle = _made(_write(tmp_path / "evals", CHOICE, sampled)), _handle()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = _run(auditor, handle, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert _run(auditor, handle, tmp_path).metrics == one.metrics
    other = _run(auditor, handle, tmp_path, seed=99)
    assert other.metrics[2].value != one.metrics[2].value


@needs_harness
def test_examples_and_limits_are_kept(tmp_path: Path) -> None:
    folder = _write(tmp_path / "evals", CHOICE)
    limited = _run(_made(folder, limit=3, batch_size=2), _handle(), tmp_path)
    assert [metric.n for metric in limited.metrics] == [3, 3]
    (task,) = read_tasks(folder)
    with harness.kept_within(0):
        made = harness.build(task, 3, 2)
        made.build_all_requests(limit=1)
    put = made.instances[0].args[0]
    assert put.count("What colour has house") == 2
    assert put.rstrip().endswith("the river?")


@needs_harness
def test_examples_are_never_drawn_from_what_is_asked(tmp_path: Path) -> None:
    folder = _write(tmp_path / "evals", SAID)
    with pytest.raises(DataError, match="drawn from the documents that are asked") as caught:
        metrics_of(_made(folder, num_fewshot=2))
    assert caught.value.field == "fewshot_split"
    # The harness leaves out the one that is asked where the file says so itself.
    _write(folder, _changed(SAID, fewshot_split="test"))
    assert metrics_of(_made(folder, num_fewshot=2))


@needs_harness
def test_a_base_of_other_tasks_is_refused(tmp_path: Path) -> None:
    folder = _write(tmp_path / "evals", CHOICE)
    handle, auditor = _handle(), _made(folder)
    reference = _run(auditor, handle, tmp_path).reference
    other = _made(_write(tmp_path / "others", SAID))
    with pytest.raises(AuditError, match="made on other data"):
        _run(other, handle, tmp_path, reference)
    (folder / "colours.jsonl").write_text(json.dumps(DOCUMENTS[0]) + "\n")
    with pytest.raises(AuditError, match="have changed since the plan"):
        _run(auditor, handle, tmp_path)


@needs_harness
def test_documents_are_no_validation_data(tmp_path: Path) -> None:
    auditor = _made(_write(tmp_path / "evals", CHOICE))
    with pytest.raises(AuditError, match="are not split"):
        auditor.audit(_handle(), {}, "validation", context(tmp_path), None)


@needs_harness
def test_a_model_that_computes_nothing_gets_no_figure(tmp_path: Path) -> None:
    auditor = _made(_write(tmp_path / "evals", CHOICE, SAID))
    handle = _handle()
    with torch.no_grad():
        handle.final_norm.weight.fill_(math.nan)
    with pytest.raises(AuditError):
        _run(auditor, handle, tmp_path)


@needs_harness
def test_a_task_that_fails_has_no_value_and_the_others_have(tmp_path: Path) -> None:
    long = _changed(SAID, generation_kwargs={"until": ["."], "max_gen_toks": 4096})
    folder = _write(tmp_path / "evals", CHOICE, long)
    warned: list[str] = []
    outcome = _run(_made(folder), _handle(), tmp_path, warn=warned.append)
    by_name = {metric.name: metric for metric in outcome.metrics}
    assert by_name["colours_acc"].value is not None
    assert (by_name["words_exact_match"].value, by_name["words_exact_match"].n) == (None, 0)
    assert "fails in the harness" in by_name["words_exact_match"].note
    assert len(warned) == 1
    assert "'words' fails in the harness" in warned[0]
    with pytest.raises(AuditError, match="'words' fails in the harness"):
        _run(_made(folder, tasks=("words",)), _handle(), tmp_path)


@needs_harness
def test_an_answer_that_is_no_choice_is_no_wrong_answer(tmp_path: Path) -> None:
    folder = _write(tmp_path / "evals", _changed(CHOICE, doc_to_target="white"))
    with pytest.raises(AuditError, match="has 8 documents whose answer is none of their choices"):
        _run(_made(folder), _handle(), tmp_path)


@needs_harness
def test_only_tasks_that_are_wanted_are_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    ask = harness.ask

    def noted(*args: Any, name: str, **more: Any) -> Any:
        asked.append(name)
        return ask(*args, name=name, **more)

    monkeypatch.setattr(harness, "ask", noted)
    auditor = _made(_write(tmp_path / "evals", CHOICE, SAID))
    found = _run(auditor, _handle(), tmp_path, wanted=frozenset({"colours_acc"}))
    assert asked == ["colours"]
    assert [metric.value is None for metric in found.metrics] == [False, False, True]


@needs_harness
def test_a_text_that_is_cut_is_said_and_no_document_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = _write(tmp_path / "evals", CHOICE)
    rows = [{**row, "question": row["question"] * 60} for row in DOCUMENTS]
    (folder / "colours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    warned: list[str] = []
    with caplog.at_level(logging.DEBUG):
        _run(_made(folder), _handle(), tmp_path, warn=warned.append)
    assert warned == [
        "lm_eval: texts of the task 'colours' are longer than the model's context, and lost their "
        "beginning"
    ]
    written = caplog.text + "".join(capfd.readouterr())
    assert "What colour" not in written
    assert "bootstrapping" not in written


@needs_harness
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"doc_to_text": "{{ missing }}"}, "'missing' is undefined"),
        ({"doc_to_text": "{{ question.__class__.__mro__ }}"}, "unsafe"),
        ({"doc_to_choice": "nothing"}, "can't make the task 'colours'"),
        ({"metric_list": [{"metric": "rouge"}]}, "no metric 'rouge'"),
        ({"metric_list": [{"metric": "acc", "aggregation": "middle"}]}, "no aggregation 'middle'"),
    ],
)
def test_a_task_that_cannot_be_made_is_refused_while_planning(
    fields: dict[str, Any], said: str, tmp_path: Path
) -> None:
    auditor = _made(_write(tmp_path / "evals", _changed(CHOICE, **fields)))
    with pytest.raises(DataError, match=said) as caught:
        metrics_of(auditor)
    assert caught.value.file == str(tmp_path / "evals" / "colours.yaml")
    assert caught.value.remedy
    assert not any(row["question"] in str(caught.value) for row in DOCUMENTS)


@needs_harness
def test_no_copy_of_the_documents_stays_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _write(tmp_path / "evals", CHOICE)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    _run(_made(folder), _handle(), tmp_path)
    assert list(scratch.iterdir()) == []


@needs_harness
def test_a_gate_on_a_metric_that_no_task_has_is_refused_while_planning(place: Workplace) -> None:
    _write(place.folder / "evals", CHOICE)
    audits = [{"use": "lm_eval", "folder": "evals"}]
    gate = {"metric": "lm_eval.colours_acc_norm", "min": 0.2}
    policy = place.policy(audits=audits, gates=[gate], edits=None, export=None)
    with pytest.raises(PolicyError, match=r"no audit of this policy measures") as caught:
        make_plan(load_policy(policy))
    assert "lm_eval.colours_acc" in caught.value.remedy
    assert caught.value.line is not None
    right = {"metric": "lm_eval.colours_acc", "max_decrease": 0.1}
    plan = make_plan(
        load_policy(place.policy(audits=audits, gates=[right], edits=None, export=None))
    )
    assert set(plan.audits[0].metrics) == {"lm_eval.colours_acc", "lm_eval.colours_mcc"}
    assert plan.audits[0].params.digest  # type: ignore[attr-defined]


@needs_harness
def test_a_written_plan_is_of_these_tasks(place: Workplace) -> None:
    _write(place.folder / "evals", CHOICE)
    gate = {"metric": "lm_eval.colours_acc", "min": 0, "min_n": 1}
    policy = place.policy(audits=[{"use": "lm_eval", "folder": "evals"}], gates=[gate])
    written = place.folder / "plan.json"
    assert place.run("plan", policy, "-o", written).exit_code == 0
    (place.folder / "evals" / "colours.jsonl").write_text(json.dumps(DOCUMENTS[0]) + "\n")
    refused = place.run("apply", written)
    assert refused.exit_code == 2
    assert "data of audit:lm_eval files" in " ".join(refused.stderr.split())


@needs_harness
def test_it_is_no_target_of_a_dose(place: Workplace) -> None:
    _write(place.folder / "evals", CHOICE)
    policy = place.policy(
        edits=[{"use": "nudge", "dose": "auto", "data": {"file": "retain.jsonl"}}],
        audits=[{"use": "lm_eval", "folder": "evals"}],
        gates=[{"metric": "lm_eval.colours_acc", "min": 0}],
    )
    with pytest.raises(PolicyError, match=r"can't be held against lm_eval\.colours_acc") as caught:
        make_plan(load_policy(policy))
    assert "targets" in caught.value.remedy


@needs_harness
def test_it_runs_from_the_policy_to_the_export(place: Workplace) -> None:
    _write(place.folder / "evals", CHOICE, SAID)
    policy = place.policy(
        audits=[{"use": "lm_eval", "folder": "evals", "limit": 6}],
        gates=[
            {"metric": "lm_eval.colours_acc", "max_decrease": 1, "min_n": 5},
            {"metric": "lm_eval.words_exact_match", "min": 0, "min_n": 5},
        ],
    )
    result = place.run("apply", policy)
    assert result.exit_code == 0, result.output
    record = place.report
    (before,), (after,) = record.before, record.after
    assert {metric.name for metric in after.metrics} == {
        "lm_eval.colours_acc", "lm_eval.colours_mcc", "lm_eval.words_exact_match",
    }  # fmt: skip
    assert all(metric.n == 6 for audit in (before, after) for metric in audit.metrics)
    page = (place.folder / "out" / "trial.report" / "report.html").read_text()
    assert "General task colours of the evaluation harness" in page
    assert not any(row["question"] in page for row in (*DOCUMENTS, *WORDS))
    # Made before: found again, whatever happens to the time; other documents are other figures.
    again = place.run("audit", policy)
    assert again.exit_code in (0, 4), again.output


def test_a_task_file_knows_its_lines(tmp_path: Path) -> None:
    (task,) = read_tasks(_write(tmp_path / "evals", CHOICE))
    assert isinstance(task, TaskFile)
    error = task.error("metric_list[1].metric", "is wrong", "mend it")
    assert error.line == 1 + list(CHOICE).index("metric_list") + _extra_lines()
    assert error.field == "metric_list[1].metric"


def _extra_lines() -> int:
    """Lines of the nested values that stand before the list of metrics."""
    before = {k: v for k, v in CHOICE.items() if k != "metric_list"}
    return len(yaml.safe_dump(before, sort_keys=False).splitlines()) - len(before)
