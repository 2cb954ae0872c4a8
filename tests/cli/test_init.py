"""``safeedit init``: copies of the built-in policies, which run where they are written."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from safeedit.cli.main import main
from safeedit.policy import load_policy
from safeedit.policy.builtin import builtin_policies
from tests.benchmarks.published import publish
from tests.fixtures import call
from tests.tiny_models import save_tiny

BUILT_IN = "builtin:smollm2-135m-instruct"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and published data in small."""
    folder = tmp_path_factory.mktemp("shared")
    save_tiny("llama", folder / "model")
    publish(folder / "data")
    return folder


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a user works in, far from the checkout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAFEEDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SAFEEDIT_BENCHMARKS", raising=False)
    return tmp_path


@pytest.mark.parametrize("name", builtin_policies())
@pytest.mark.parametrize("folder", [".", "my own"])
def test_every_built_in_policy_is_copied_validates_and_plans(
    name: str, folder: str, user: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = user / folder / "mine.yaml"
    path.parent.mkdir(exist_ok=True)
    path = path.relative_to(user)
    assert call("init", path, "--like", name).exit_code == 0
    text = path.read_text()
    assert "../" not in text, "a path that leaves the user's folder"
    assert "policies/" not in text, "a file that a user hasn't got"
    # As a user would: another model in place of the built-in one, the data that is asked for.
    path.write_text(text.replace(BUILT_IN, str(shared / "model")))
    for line in text.splitlines():
        if line.startswith("#   safeedit canary plant"):
            planted = shlex.split(line.split("--out")[1])[0]
            assert planted == str(path.parent / load_policy(path).policy.model.source)
            Path(planted).parent.mkdir(parents=True)
            Path(planted).symlink_to(shared / "model")
    monkeypatch.setenv("SAFEEDIT_BENCHMARKS", str(shared / "data"))
    valid = call("-q", "validate", path)
    assert valid.exit_code == 0, valid.stderr
    planned = call("plan", path, "--json")
    assert planned.exit_code == 0, planned.stderr
    assert json.loads(planned.stdout)["name"] == name
    mine, theirs = load_policy(path).policy, load_policy(builtin_policies()[name]).policy
    assert mine.edits == theirs.edits
    assert mine.gates == theirs.gates
    assert mine.attacks == theirs.attacks
    if mine.edits:
        assert mine.export is not None
        assert mine.export.dir == f"out/{name}", "beside the copy"


def test_init_says_what_a_policy_needs_first(user: Path, shared: Path) -> None:
    needed = call("init", "full.yaml", "--like", "full").stderr
    assert "full.yaml: first set SAFEEDIT_BENCHMARKS" in needed
    assert "full.yaml: first make the model out/canaries" in needed
    (user / "out").mkdir()
    (user / "out" / "canaries").symlink_to(shared / "model")
    again = CliRunner(env={"SAFEEDIT_BENCHMARKS": str(shared / "data")}).invoke(
        main, ["init", "ready.yaml", "--like", "full"]
    )
    assert again.exit_code == 0
    assert "first" not in again.stderr


def test_init_alone_writes_the_quickstart_which_needs_no_file(user: Path) -> None:
    result = call("init")
    assert result.exit_code == 0
    assert "safeedit plan policy.yaml" in result.stderr
    policy = load_policy(user / "policy.yaml").policy
    assert policy.name == "quickstart"
    files = [value.get("file") for stage in (*policy.edits, *policy.audits)
             for value in stage.options.values() if isinstance(value, dict)]  # fmt: skip
    assert not any(files), "a copy finds no file beside it"


def test_init_overwrites_nothing_and_suggests_what_to_copy(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("mine")
    taken = CliRunner().invoke(main, ["init", str(path)])
    assert taken.exit_code == 2
    assert "the file exists" in taken.stderr
    assert path.read_text() == "mine"
    unknown = CliRunner().invoke(main, ["init", str(tmp_path / "new"), "--like", "quikstart"])
    assert unknown.exit_code == 2
    assert "did you mean 'quickstart'?" in unknown.stderr
    unwritable = CliRunner().invoke(main, ["init", str(path / "below.yaml")])
    assert unwritable.exit_code == 2
    assert "can't write here" in unwritable.stderr
