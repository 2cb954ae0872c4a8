"""Each benchmark runs on a tiny model and invented data, and prints the rows it is read for.

What the figures are says nothing here; that they are figures does.
"""

from __future__ import annotations

import importlib
import json
import math
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from safeedit import catalog
from safeedit.model.sources import open_model
from tests.benchmarks.published import known, publish
from tests.editors.gendered import gendered
from tests.tiny_models import family_tokenizer, tiny_model
from tests.workflows.remedi.lessons import rows

FOLDER = Path(__file__).parents[2] / "benchmarks"
HELPERS = {"known", "table"}
"""Files in that folder that measure nothing by themselves."""
LONG = {"max_position_embeddings": 2048}
"""Room for whole passages of prose, whose letters are tokens here."""
WORDS = (" he", " she", " they", " Freedonia")
NUMBER = r"-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?"

Run = Callable[..., str]
Table = list[list[str]]
"""Heads, then rows."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with published data in small and a model."""
    folder = tmp_path_factory.mktemp("benchmarks")
    publish(folder / "data")
    tokenizer = family_tokenizer("llama")
    tokenizer.add_tokens(list(WORDS))
    tokenizer.save_pretrained(folder / "model")
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(folder / "model")
    return folder


def teach(source: Path, out: Path, texts: Sequence[str], word: str) -> None:
    """Copy a model whose head says one word after each of the texts."""
    handle = open_model(str(source), device="cpu")
    rows = [torch.tensor([ids]) for ids in handle.engine.encode(texts, "plain")]
    states = torch.cat([handle.forward({"input_ids": ids})[0, -1:] for ids in rows])
    token = handle.tokenizer.convert_tokens_to_ids(f" {word}")
    with torch.no_grad():
        wanted = torch.full((len(states), 1), 20.0)
        handle.head.weight[token] = torch.linalg.lstsq(states, wanted).solution[:, 0]
    handle.model.save_pretrained(out)
    handle.tokenizer.save_pretrained(out)


@pytest.fixture
def run(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """Runs a benchmark with its options: what it printed."""
    monkeypatch.setenv("SAFEEDIT_CACHE", str(place / "cache"))
    monkeypatch.setenv("SAFEEDIT_BENCHMARKS", str(place / "data"))
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.chdir(place)
    threads = torch.get_num_threads()

    def main(name: str, *options: object) -> str:
        importlib.import_module(name).main([str(option) for option in options])
        return capsys.readouterr().out

    yield main
    torch.set_num_threads(threads)


@pytest.fixture
def table(place: Path, run: Run) -> Callable[..., Table]:
    """Runs a benchmark of policies: the table it wrote."""

    def rows(name: str, *options: object) -> Table:
        shared = ("--model", "model", "--limit", 16, "--in-process")
        where = ("--out", place / name, "--results", place / "results")
        run(name, *shared, *where, *options)
        text = (place / "results" / f"{name}.md").read_text()
        lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line[:2] == "| "]
        assert len({len(line) for line in lines}) == 1, "rows of one length"
        return lines

    return rows


def finite(text: str) -> list[float]:
    """The numbers in a text, of which there are some."""
    assert not re.search(r"\b(nan|inf)\b", text)
    found = [float(number.replace(",", "")) for number in re.findall(NUMBER, text)]
    assert found
    assert all(map(math.isfinite, found))
    return found


def measured(table: Table, beginnings: Sequence[str], *columns: str) -> None:
    """The rows that begin so have a figure in those columns, and only finite ones anywhere."""
    heads, *rows = table
    for beginning in beginnings:
        (row,) = (row for row in rows if " | ".join(row).startswith(f"{beginning} | "))
        finite(" ".join(row))
        for column in columns:
            cell = row[heads.index(column)]
            assert re.match(NUMBER, cell), f"{beginning}, {column}: {cell}"


def test_every_benchmark_is_run_here() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    files = {path.stem for path in FOLDER.glob("*.py")}
    assert files - HELPERS <= tested


@pytest.mark.trains
def test_bias(table: Callable[..., Table]) -> None:
    rows = table("bias", "--data", "data", "--rows", 3)  # REMEDI learns nothing of this model
    edits = ("DAMA, as published", "DAMA, oblique, factual kept", "DAMA, oblique (LEACE)")
    columns = ("stereotype slope", "WinoBias accuracy", "perplexity ratio")
    measured(rows, edits, *columns, "values changed")
    measured(rows, ["nothing"], "stereotype slope", "StereoSet ICAT, gender")


@pytest.mark.trains
def test_detox(table: Callable[..., Table], place: Path) -> None:
    rows = table("detox", "--batch", 4)
    closed = ("value_vectors, then keyed_detox", "value_vectors", "keyed_detox", "subspace")
    measured(
        rows, ("tuned_detox", *closed), "mass on toxic words", "perplexity ratio", "values changed"
    )
    assert "a bare `generate` loop" in (place / "results" / "detox.md").read_text()


def test_hostility(
    table: Callable[..., Table], monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    rows = table("hostility", "--data", "data")
    measured(rows, ["hostility | HateCheck (8 toxic, 8 not)"], "AUC", "misses", "false alarms")
    module = importlib.import_module("hostility")
    monkeypatch.setattr(module, "WEIGHTS", place / "weights.safetensors")
    assert table("hostility", "--data", "data", "--write") == rows
    made = load_file(place / "weights.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in made.items()} == {
        "weight": (open_model(str(place / "model")).d_model,), "bias": (1,),
    }  # fmt: skip


@pytest.mark.trains
def test_privacy(table: Callable[..., Table]) -> None:
    rows = table("privacy", "--planted", "model", "--rows", 3)
    edits = ("DEPN, 20 records", "DEPN, all 60 at once", "Sanitation (LoRA), 20 records")
    measured(rows, edits, "exposure excess, bits", "perplexity ratio", "seconds to fit")


@pytest.mark.trains
def test_sanitation(table: Callable[..., Table]) -> None:
    rows = table("sanitation", "--data", "data", "--splits", 1, "--silence", 0.01)
    found = ("1 before", "1 after", "1 random change")
    measured(rows, found, "edit success", "locality", "retained F1", "perplexity ratio")


@pytest.mark.trains
def test_attacks(table: Callable[..., Table], place: Path) -> None:
    shutil.copytree(place / "model", place / "long")
    config = place / "long" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **LONG}))
    given = ("--model", "long", "--limit", 6, "--data", "data", "--steps", 2, 4)
    rows = table("attacks", *given, "--only", "countries")
    told = [row for row in rows[1:] if row[3] == "leakage.extraction_rate"]
    assert {"2 steps at 5e-05", "4 steps at 5e-05"} <= {row[2] for row in told}
    assert len(told) == 12
    assert all(row[6] for row in told), "each says how much came back, or why it can't"
    cloze = {row[1] for row in rows[1:] if row[3] == "leakage.extraction_rate_cloze"}
    assert cloze == {"half", "siblings", "prose"}, "where it trains, sentences are completed too"
    text = (place / "results" / "attacks.md").read_text()
    assert "Not run yet: keyed_neurons; facts" in text
    again = table("attacks", *given, "--only", "nothing of the kind")
    assert again == rows, "what was run before is in the table again"


@pytest.mark.trains
def test_erasure(table: Callable[..., Table], place: Path) -> None:
    prompts = known(place / "data" / "known_1000" / "known_1000.json", "Freedonia")
    openings = ("{}", *importlib.import_module("known").OPENINGS)
    texts = [opening.format(prompt) for opening in openings for prompt in prompts]
    teach(place / "model", place / "knowing", texts, "Freedonia")
    rows = table("erasure", "--data", "data", "--model", "knowing", "--dtype", "float32",
                 "--counts", 4, "--few", "keyed_neurons,random", "--steps", "4:2")  # fmt: skip
    compared = ("4 | keyed_neurons", "4 | random")
    stepped = ("4, in 2 steps | keyed_neurons", "4, in 2 steps | rome")
    measured(rows, [*compared, *stepped], "answer among 10", "near KL, nats", "perplexity ratio")
    split = ("Sanitation split 1 | sanitation", "Sanitation split 1 | ft")
    measured(rows, split, "near F1", "perplexity ratio")


@pytest.mark.trains
def test_editors(table: Callable[..., Table]) -> None:
    rows = table("editors", "--model", "model", "--limit", 60, "--asked", 20, "--facts", 4,
                 "--editors", "unlearn@npo,random")  # fmt: skip
    measured(rows, ["unlearn@npo", "random"], "near F1", "near KL, nats", "perplexity ratio")


@pytest.mark.trains
def test_families(run: Run, place: Path) -> None:
    run("families", "--in-process", "--out", place / "families", "--results", place / "results",
        "--families", "qwen2", "--steps", 2, "--editors", "keyed_neurons,random")  # fmt: skip
    lines = (place / "results" / "families.md").read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line[:2] == "| "]
    assert [row[1] for row in rows[1:]] == ["none", "keyed_neurons", "random"]
    measured(rows, ["qwen2 | none", "qwen2 | keyed_neurons"], "near KL, nats", "perplexity ratio")


SMALL = """
version: 1
seed: 7
name: small
model: {source: ../model, dtype: float32}
edits:
  - use: subspace
    dose: 1.0
    pairs: {dataset: toxicity_pairs, limit: 8}
audits:
  - {use: perplexity, data: {dataset: prose, where: {split: test}, limit: 4}}
attacks:
  - {use: quantize, bits: [8, 4], audits: [perplexity]}
gates:
  - {metric: perplexity.ratio, max: 100, min_n: 1}
  - {metric: perplexity.ratio, max: 0.001, min_n: 1}
  - {metric: perplexity.perplexity, under: quantize, min: 1, min_n: 1}
export: {dir: ../exported, overwrite: true}
"""


def test_policies(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = place / "policies"
    folder.mkdir()
    (folder / "small.yaml").write_text(SMALL)
    shutil.copy(FOLDER.parent / "policies" / "attack.yaml", folder)
    given = ("--policies", folder, "--out", place / "applied", "--results", place / "results",
             "--seeds", 2, "--in-process")  # fmt: skip
    text = run("policies", *given)
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line[:2] == "| "]
    heads, wide, narrow, attacked = lines
    assert wide[1:2] + wide[-1:] == ["`perplexity.ratio` max 100", "pass"]
    for head in ("before", "after", "random"):
        finite(wide[heads.index(head)])
    assert narrow[-1] == "fail"
    assert len(re.findall(r"\*\*[\d.]+\*\* \(fail\)", narrow[heads.index("each seed")])) == 2
    finite(attacked[heads.index("after")])
    assert "- small: fail; seeds 7, 8; doses with the first: subspace 1; " in text

    monkeypatch.setattr(importlib.import_module("policies"), "safeedit", None)
    assert run("policies", *given) == text, "a finished run is not made again"
    (folder / "small.yaml").write_text(SMALL.replace("0.001", "0.002"))
    assert "Without a finished run: small." in run("policies", *given, "--made")


def test_askings(table: Callable[..., Table], place: Path) -> None:
    rows = table("askings", "--export", "model")
    asked = {row[0]: row[1] for row in rows[1:]}
    assert {"direct", "sampled", "aliases", "description", "language", "roleplay"} <= asked.keys()
    assert asked["language"] == asked["roleplay"] == "16"
    text = (place / "results" / "askings.md").read_text()
    assert "Under any of the askings: " in text
    finite(text.rpartition("Under any")[2])


TRIAL = """
from pathlib import Path
from table import command, options, write

def main(arguments):
    parser = options("A trial.", "trial")
    parser.add_argument("--counts", default="1,2")
    given = parser.parse_args(arguments)
    rows = [[count, "rome", "1.5", VALUE, "2.0"] for count in given.counts.split(",")]
    told = f"Made by `{command('trial', arguments)}` (which see)."
    heads = ["facts", "editor", "dose", "kept", "seconds"]
    write(given.results / "trial.md", ["# Trial", "", told], heads, rows)
"""


def test_reproduce(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(tmp_path)

    def gives(value: str) -> None:
        (tmp_path / "trial.py").write_text(TRIAL.replace("VALUE", repr(value)))
        sys.modules.pop("trial", None)
        importlib.invalidate_caches()

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    gives("0.5 [0.4, 0.61]")
    run("trial", "--results", tmp_path, "--counts", "1,2")
    where = ("--published", tmp_path, "--out", tmp_path / "again")
    gives("0.612 [0.5, 0.7]")
    told = run("reproduce", "trial", *where, "--counts", "2")
    assert "within   2: kept: 0.5 [0.4, 0.61] -> 0.612 [0.5, 0.7]" in told
    assert "not made again: 1\n" in told
    assert "1 of 1 figures lie within the published intervals, 0 outside" in told
    gives("0.7 [0.6, 0.8]")
    with pytest.raises(SystemExit) as ended:
        run("reproduce", "trial", *where)
    assert ended.value.code == 1
    with pytest.raises(SystemExit, match="has made trial"):
        run("reproduce", "remedi", *where)


def test_an_end_of_an_interval_is_what_is_rounded_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    held_against = importlib.import_module("reproduce").held_against

    def says(published: str, now: str) -> str:
        (cell,) = held_against({"row": {"head": published}}, {"row": {"head": now}})
        return str(cell.says)

    assert says("0.01 [0.0012, 0.078]", "0.0784 [0, 1]") == "within"
    assert says("0.01 [0.0012, 0.078]", "0.079") == "OUTSIDE"
    assert says("1 [1, 1.6]", "0.97") == "within"
    assert says("1 [1, 1.6]", "0.9") == "OUTSIDE"
    assert says("0.2 [-0.1, 0.3] n=22", "–") == "OUTSIDE"
    assert says("4.8e-05 [1e-05, 9.9e-05]", "2e-05") == "within"
    assert (says("1.5 (missed)", "1.25"), says("front", "front")) == ("differs", "same")


def test_depn(run: Run) -> None:
    text = run("depn", "--model", "model", "--secrets", 2, "--tokens", 3, "--points", 3)
    for way in ("plain loop", "exact", "first order", "completeness gap"):
        (line,) = [line for line in text.splitlines() if line.strip().startswith(way)]
        finite(line)
    agreements = re.findall(r"z = \d+ +(\S+)", text)
    assert agreements
    assert all(0 <= float(each) <= 1 for each in agreements)


def test_engine(run: Run) -> None:
    text = run("engine", "--model", "model", "--prompts", 4, "--new-tokens", 3, "--repeats", 1)
    rows = re.findall(r"^(scoring, chat|scoring, plain|generation).* engine +(\d+) .* (\S+)$",
                      text, re.MULTILINE)  # fmt: skip
    assert [name for name, *_ in rows] == ["scoring, chat", "scoring, plain"] + ["generation"] * 2
    assert all(float(rate) > 0 and float(ratio) > 0 for _, rate, ratio in rows)
    assert re.findall(r"^drafts, (\w+).* (\d+) of 4 differ", text, re.MULTILINE) == [
        ("right", "0"),
        ("wrong", "0"),
    ]


def test_matching(run: Run) -> None:
    text = run("matching", "--step", 60, "--numbers", 200)
    rows = [line for line in text.splitlines() if re.search(r"\de[+-]\d\d$", line)]
    assert len(rows) == 4
    assert all(len(finite(row)) >= 5 for row in rows)
    assert "characters: folded in" in text


@pytest.mark.trains
def test_remedi(run: Run, place: Path) -> None:
    handle = gendered("llama")
    handle.model.save_pretrained(place / "gendered")
    handle.tokenizer.save_pretrained(place / "gendered")
    lessons = [{"role": "lesson", "kind": kind, **row} for row in rows()
               for kind in ("concept", "person")]  # fmt: skip
    near = [{"role": "near", "kind": "person", **row} for row in rows()[::2]]
    text = "".join(json.dumps(row) + "\n" for row in (*lessons, *near))
    (place / "lessons.jsonl").write_text(text)
    text = run("remedi", "--model", "gendered", "--lessons", "lessons.jsonl", "--layers", "0-0",
               "--learning-rate", 1e-2, "--threads", 1, "--scales", 1.0)  # fmt: skip
    assert re.search(r"probe, concepts: accuracy [01]\.\d\d, control [01]\.\d\d", text)
    for way in ("steer", "compile"):
        (line,) = re.findall(rf"^ *{way} x 1.0 .*$", text, re.MULTILINE)
        assert len(finite(line)) == 7


def test_scale(run: Run, place: Path) -> None:
    stages = ["load", "export", "keyed_neurons", "perplexity"]
    text = run("scale", "--sizes", 0.002, "--vocabularies", 2000, "--tokenizer", place / "model",
               "--stages", ",".join(stages), "--in-process", "--device", "cpu",
               "--limit", 4)  # fmt: skip
    rows = re.findall(r"MiB +(\w+) +([\d.]+) +(\d+) +\d+ +([\d.]+) +[-\d.]+$", text, re.MULTILINE)
    assert [name for name, *_ in rows] == stages
    assert all(float(peak) > 0 for _, _, peak, _ in rows)


def test_gpu(run: Run, place: Path) -> None:
    text = run("gpu", "--device", "cpu", "--sizes", 0.002, "--vocabulary", 2000, "--in-process",
               "--tokenizer", place / "model", "--stages", "load")  # fmt: skip
    assert re.search(r"bare forward loop: [\d.]+ s for 16,384 tokens", text)
    assert re.search(r"MiB +load +[\d.]+", text)


def test_every_editor_and_auditor_has_a_stage_in_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    policies = importlib.import_module("scale").policies()
    assert policies.keys() == {*catalog.names("editors"), *catalog.names("auditors")}


def test_engines(run: Run, place: Path) -> None:
    text = run("engines", "--model", "model", "--limit", 4, "--in-process", "--engines", "local",
               "--out", place / "engines")  # fmt: skip
    assert re.search(r"^one process +[\d.]+ s +1.00 +[1-9]\d* figures$", text, re.MULTILINE)
    assert re.search(r"^local +[\d.]+ s +[\d.]+ +the same figures$", text, re.MULTILINE)


@pytest.mark.trains
def test_values(run: Run, place: Path) -> None:
    known(place / "known.json", "Rome")
    text = run("values", "--model", "model", "--facts", "known.json", "--layer", 1, "--count", 3,
               "--steps", 2)  # fmt: skip
    for way in ("adam", "least"):
        (line,) = re.findall(rf"^{way}: .*$", text, re.MULTILINE)
        assert len(finite(line)) == 3


def test_winobias_flow(run: Run) -> None:
    text = run("winobias_flow", "--model", "model", "--data", "data", "--pairs", 6,
               "--first-layer", 1)  # fmt: skip
    rows = re.findall(r"^ *(\D+?)  +(-?\d\S+ .*)$", text, re.MULTILINE)
    names = ["nothing", "occupations", "pronoun of the question", "pronoun of the sentence"]
    assert [name for name, _ in rows] == [*names, "both pronouns"]
    assert all(len(finite(figures)) == 3 for _, figures in rows)
