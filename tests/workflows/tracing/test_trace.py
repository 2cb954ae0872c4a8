"""``safeedit trace`` on a tiny model that knows six facts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from safeedit.records import Interval
from safeedit.statistics.ranks import rank_correlation
from safeedit.workflows.tracing.measuring import recommend
from safeedit.workflows.tracing.page import maps, render
from safeedit.workflows.tracing.record import Estimate, Recommendation, Trace
from tests.editors import toy
from tests.editors.toy import FACTS, UNKNOWN, WORDINGS
from tests.fixtures import call
from tests.training import trained

QUICK = {"steps": 10, "phrasings": 2, "doses": [1.0]}


@pytest.fixture(scope="module")
@trained
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "taught"
    handle = toy.taught()
    handle.model.save_pretrained(folder)
    assert handle.tokenizer is not None
    handle.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAFEEDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def policy(place: Path, model: Path, names: dict[str, str] = FACTS, **edit: Any) -> Path:
    rows = [
        {
            "prompt": WORDINGS[0].format(name), "answer": answer, "subject": name,
            "paraphrases": [wording.format(name) for wording in WORDINGS[1:]],
        }
        for name, answer in names.items()
    ]  # fmt: skip
    (place / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = {"use": "rome", "dose": 1.0, "forget": {"file": "facts.jsonl"}, **QUICK, **edit}
    model_of = {"source": str(model)}
    content = {"version": 1, "name": "trace-me", "model": model_of, "edits": [stage]}
    file = place / "policy.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def test_the_layer_that_facts_go_through_is_found_and_recommended(place: Path, model: Path) -> None:
    given = ("--draws", 2, "--window", 1, "--json")
    result = call("trace", policy(place, model), *given)
    assert result.exit_code == 0, result.stderr
    found = Trace.model_validate_json(result.stdout)
    assert (found.facts, found.not_told, found.layers) == (6, 0, 3)
    assert found.probability.value > 0.9
    assert found.under_noise.value < 0.6
    assert found.lost.interval is not None
    assert found.lost.interval.low > 0
    assert found.recommendation is not None
    assert found.recommendation.one == "layers: [0]"
    assert found.effects["mlp"]["middle subject"] == (None, None, None), "names of one token"
    state = found.effects["state"]["last"][-1]
    assert state is not None
    assert state.value == pytest.approx(found.lost.value, abs=1e-4)
    assert result.stderr.rstrip().splitlines()[-1].startswith("layers: [0]")
    folder = place / "out" / "trace-me.trace"
    assert Trace.model_validate_json((folder / "trace.json").read_text()) == found
    assert (folder / "trace.html").read_text().count("<svg") == 15


def test_nothing_of_the_facts_is_written(place: Path, model: Path) -> None:
    result = call("trace", policy(place, model), "--draws", 1, "--out", "traced", "--json")
    written = [result.stdout, result.stderr]
    written += [file.read_text() for file in (place / "traced").iterdir()]
    for name, answer in FACTS.items():
        assert not any(name in text or answer in text for text in written)


def test_editing_is_held_against_the_map(place: Path, model: Path) -> None:
    result = call("trace",
        policy(place, model, steps=30), "--edit", "1", "--facts", 3, "--draws", 1,
        "--check", "0,1,2", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    check = Trace.model_validate_json(result.stdout).check
    assert check is not None
    assert (check.editor, check.dose) == ("rome", 1.0)
    assert [one.layer for one in check.layers] == [0, 1, 2]
    assert check.layers[0].success.n == 3
    assert check.layers[0].success.value > 0.5
    assert check.rank_correlation is not None
    assert "  layer 0: effect" in result.stderr
    page = (place / "out" / "trace-me.trace" / "trace.html").read_text()
    assert "Editing at single layers" in page


def test_what_the_model_does_not_tell_is_left_out(place: Path, model: Path) -> None:
    names = {"Paul": "Rome", "Mary": "Oslo", **dict.fromkeys(UNKNOWN, "Kyiv")}
    result = call("trace", policy(place, model, names), "--draws", 1, "--json")
    found = Trace.model_validate_json(result.stdout)
    assert (found.facts, found.not_told) == (2, 3)
    none = call("trace", policy(place, model, dict.fromkeys(UNKNOWN, "Kyiv")))
    assert (none.exit_code, "tells none of 3 facts" in none.stderr) == (2, True)


@pytest.mark.parametrize(
    ("edit", "arguments", "said"),
    [
        ({}, ("--edit", "other"), "no edit 'other'"),
        ({}, ("--check", "x"), "names no layers"),
        ({}, ("--check", "7"), "layer 7 does not exist"),
        ({}, ("--facts", "1"), "--facts"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(
    edit: dict[str, Any], arguments: tuple[str, ...], said: str, place: Path, model: Path
) -> None:
    result = call("trace", policy(place, model, **edit), *arguments)
    assert (result.exit_code, said in result.stderr) == (2, True), result.stderr


def test_its_help_brings_nothing_heavy() -> None:
    code = (
        "import sys\nfrom safeedit.cli.main import main\n"
        "try:\n    main(['trace', '--help'])\nexcept SystemExit as request:\n"
        "    print(request.code, sorted({'torch', 'pydantic'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


# Recommending, ranking, drawing ---------------------------------------------------------


def _estimate(value: float, low: float = 0.01) -> Estimate:
    return Estimate(value=value, interval=Interval(low=low, high=1, method="bootstrap"), n=5)


def test_layers_around_the_peak_are_recommended() -> None:
    effects = [_estimate(v) for v in (0.1, 0.45, 0.5, 0.42, 0.41, 0.2)]
    assert recommend(effects, 1) == Recommendation(peak=2, one="layers: [2]", several="layers: 1-2")
    found = recommend(effects, 5)
    assert found is not None
    assert found.several == "layers: 1-4"
    assert recommend([_estimate(0.2, -0.1), _estimate(0.1), None], 2) is None
    assert recommend([_estimate(-0.2)], 2) is None


def test_ranks_are_compared() -> None:
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 1000]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    # Two tied of four: 1 - 6 * 0.5 / (4 * 15), corrected for ties.
    assert rank_correlation([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.9487, abs=1e-4)
    assert rank_correlation([1, 2], [1, 2]) is None
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None


def test_the_page_draws_what_was_found() -> None:
    some = (_estimate(0.3), None, _estimate(-0.1))
    sure = _estimate(0.5)
    trace = Trace(
        safeedit="0", policy="<p>", edit="e", model="m", weights_digest="w", data_digest="d",
        layers=3, facts=5, not_told=0, template="plain", noise=3, draws=1, window=1, seed=0,
        probability=sure, under_noise=sure, lost=sure,
        effects={"mlp": {"last subject": some}, "state": {"last": (None, None, None)}},
        recommendation=None, warnings=("trace: a doubt",),
    )  # fmt: skip
    ((title, drawn),) = maps(trace)
    assert (title, drawn.largest, drawn.n_layers) == ("What MLPs write", 0.3, 3)
    ((name, strip),) = drawn.strips
    assert name == "last subject"
    assert strip.count("<rect") == 3
    assert strip.count("empty") == 1
    assert strip.count("--fail") == 1
    assert "[0.010, 1.000] over 5 facts" in strip
    page = render(trace)
    assert "&lt;p&gt;" in page
    assert "<p>:" not in page
    assert "recommends no layers" in page
    assert "a doubt" in page
