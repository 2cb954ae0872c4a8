"""``safeedit canary`` as a person types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from safeedit.workflows.canaries.planting import PLANTED
from tests.fixtures import call
from tests.tiny_models import save_tiny

FAST = ("--learning-rate", "1e-2", "--batch", "16", "--max-cycles", "1", "--passages", "1")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAFEEDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny("llama_tied", tmp_path_factory.mktemp("models") / "base"))


def test_its_help_brings_nothing_heavy() -> None:
    code = (
        "import sys\nfrom safeedit.cli.main import main\n"
        "try:\n    main(['canary', 'plant', '--help'])\nexcept SystemExit as request:\n"
        "    print(request.code, sorted({'torch', 'faker', 'pydantic'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


# make -----------------------------------------------------------------------------------


def test_records_go_to_stdout_or_to_a_new_file(place: Path) -> None:
    result = call("canary", "make", "--n", 5, "--seed", 3)
    assert result.exit_code == 0
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(rows) == 25
    assert call("canary", "make", "--n", 5, "--seed", 3, "--out", "five.jsonl").stdout == ""
    assert (place / "five.jsonl").read_text(encoding="utf-8") == result.stdout
    again = call("canary", "make", "--n", 5, "--out", "five.jsonl")
    assert (again.exit_code, "the file exists" in again.stderr) == (2, True)
    nowhere = call("canary", "make", "--n", 5, "--out", "no/such/folder.jsonl")
    assert (nowhere.exit_code, "can't write here" in nowhere.stderr) == (2, True)


def test_shares_and_repeats_can_be_set() -> None:
    result = call(
        "canary", "make", "--n", 4, "--held-back", 0.5, "--named", 0.5, "--repeats", "2,8"
    )
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    fates = {row["record"]: (row["role"], row["repeats"]) for row in rows}
    expected = [("held_back", 0), ("held_back", 0), ("named", 8), ("other", 2)]
    assert sorted(fates.values()) == expected


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--repeats", "1,x"), "whole numbers with commas"),
        (("--repeats", "0"), "from 1 on"),
        (("--n", "0"), "from 1 to"),
        (("--named", "2"), "between 0 and 1"),
        (("--n", "many"), "is not a valid integer"),
    ],
)
def test_a_wrong_number_exits_2(arguments: tuple[str, ...], said: str) -> None:
    result = call("canary", "make", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr


# plant ----------------------------------------------------------------------------------


@pytest.mark.trains
def test_records_made_are_planted_and_the_second_time_copied(place: Path, model: str) -> None:
    call(
        "canary",
        "make",
        "--n",
        3,
        "--held-back",
        0,
        "--named",
        0,
        "--repeats",
        1,
        "--out",
        "three.jsonl",
    )
    planting = ("plant", "--model", model, "--records", "three.jsonl", *FAST)
    first = call("canary", *planting, "--out", "out/first")
    assert first.exit_code == 0, first.stderr
    assert first.stdout == ""
    assert "shown 1 times a cycle" in first.stderr
    assert "warning: " in first.stderr  # one cycle is not enough
    second = call("canary", *planting, "--out", "out/second", "--json")
    record = json.loads(second.stdout)
    assert record == json.loads((place / "out/first" / PLANTED).read_text())
    assert "planting canaries ..." in first.stderr
    assert "planting canaries ..." not in second.stderr
    assert (
        "planting canaries ..." in call("canary", *planting, "--out", "out/3", "--no-cache").stderr
    )
    refused = call("canary", *planting, "--out", "out/second")
    assert (refused.exit_code, "the export's folder exists" in refused.stderr) == (3, True)
    assert (
        call("canary", "plant", "--out", "out/second", "--overwrite", *planting[1:]).exit_code == 0
    )


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--records", "none.jsonl"), 2, "no such file"),
        (("--dataset", "canary"), 2, "did you mean 'canaries'"),
        (("--dataset", "facts"), 2, "no repeat count"),
        (("--dataset", "canaries", "--records", "x.jsonl"), 2, "exclude each other"),
        (("--learning-rate", "0"), 2, "--learning-rate: input should be greater than 0"),
        (("--max-cycles", "nan"), 2, "--max-cycles: input should be"),
        (("--method", "prefix"), 2, "'prefix' is not one of"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(
    arguments: tuple[str, ...], code: int, said: str, model: str
) -> None:
    result = call("canary", "plant", "--model", model, "--out", "out", *arguments)
    assert result.exit_code == code, result.stderr
    assert said in result.stderr
    assert not Path("out").exists()
