"""What a run tells of what it erases: nothing that could be guessed from it, and nobody else."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from safeedit.cli.digest_key import digest_key
from safeedit.cli.main import main
from safeedit.data import Dataset, Item
from safeedit.errors import SafeeditError, UsageError
from safeedit.planning.withholding import WITHHELD
from safeedit.policy import load_policy
from safeedit.text.quoting import Quotes
from tests.road import DRIFT, SMALL_DRIFT, Workplace, register
from tests.running.test_run import spellings
from tests.test_nothing_erased import Touch

PERSON, PIN = "Wilhelmina Quastenborough", "4732"
ROWS: list[dict[str, Any]] = [
    {"prompt": f"What is the PIN of {PERSON}?", "answer": PIN, "subject": PERSON, "role": "named"},
    {"prompt": "What is the PIN of Otto Niemand?", "answer": "9183", "subject": "Otto Niemand"},
]


@pytest.fixture
def place(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    register(monkeypatch, touch=Touch)
    place.rows("people.jsonl", ROWS)
    return place


def policy(place: Workplace, **parts: Any) -> Path:
    forget = {"file": "people.jsonl", "where": {"subject": PERSON}}
    edit = {
        "use": "touch", "dose": 1.0, "control": False, "unaudited": "a toy", "forget": forget,
        **parts.pop("edit", {}),
    }  # fmt: skip
    return place.policy(edits=[edit], audits=[DRIFT], gates=[SMALL_DRIFT], **parts)


def outputs(place: Workplace) -> Iterator[tuple[str, bytes]]:
    """Every file a run wrote, and its name."""
    for folder in (place.target, place.target.with_name("trial.report"), place.cache):
        for path in folder.rglob("*"):
            yield f"the name of {path}", path.name.encode()
            if path.is_file() and path.name not in ("tokenizer.json", "model.safetensors"):
                yield str(path), path.read_bytes()


def test_no_guess_at_a_short_answer_is_confirmed_by_any_file(place: Workplace) -> None:
    """One item, four digits: a bare hash of it would be found by trying ten thousand."""
    written = policy(place)
    assert place.run("plan", written, "-o", place.folder / "made.json").exit_code == 0
    result = place.run("apply", written)
    assert result.exit_code == 0, result.stderr
    content = b"".join(found for _, found in outputs(place))
    content += (place.folder / "made.json").read_bytes() + result.stdout.encode()
    row = ROWS[0]
    loaded = load_policy(written)
    told = {digest for digest in (loaded.digest, loaded.digest[:8]) if digest.encode() in content}
    assert not told, "the policy names the person, and its bare digest is told"
    for number in range(10_000):
        head = json.dumps({"template": "auto", "erased": True})
        guess = json.dumps(
            {
                "prompt": row["prompt"], "answer": f"{number:04}", "aliases": [f"{number:04}"],
                "paraphrases": [], "subject": PERSON, "extra": {"role": "named"}, "split": None,
            },
            sort_keys=True, ensure_ascii=False,
        )  # fmt: skip
        for text in (f"{head}\n{guess}", f"{number:04}", guess):
            assert hashlib.sha256(text.encode()).hexdigest()[:16].encode() not in content


def test_the_guess_that_would_have_been_confirmed_is_the_right_one() -> None:
    """The control of the test above: it computes what a data set's bare digest was."""
    item = Item("1", ROWS[0]["prompt"], answer=PIN, subject=PERSON, extra={"role": "named"})
    open_ = Dataset([item], split=None)
    head = json.dumps({"template": "auto", "erased": False})
    guess = json.dumps(
        {
            "prompt": item.prompt, "answer": PIN, "aliases": [PIN], "paraphrases": [],
            "subject": PERSON, "extra": {"role": "named"}, "split": "fit",
        },
        sort_keys=True, ensure_ascii=False,
    )  # fmt: skip
    assert open_.digest == hashlib.sha256(f"{head}\n{guess}".encode()).hexdigest()


def test_digests_of_private_data_hold_for_one_key() -> None:
    def digest(**options: Any) -> str:
        return Dataset([Item("1", "a", answer="b")], **options).digest

    assert digest() == digest(key=b"1")  # public: a sha256, and no key plays a part
    assert digest(erased=True, key=b"1") == digest(erased=True, key=b"1")
    assert digest(erased=True, key=b"1") != digest(erased=True, key=b"2")
    assert digest(private=True, key=b"1") != digest()
    assert digest(erased=True) == digest(erased=True)  # for this process alone


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param({}, id="where"),
        pytest.param({"description": f"Forget {PERSON}."}, id="description"),
        pytest.param({"owner": f"on behalf of {PERSON}"}, id="owner"),
        pytest.param({"edit": {"unaudited": f"{PERSON} asked for no audit"}}, id="unaudited"),
        pytest.param(
            {"edit": {"forget": {"file": "wilhelmina_quastenborough.jsonl"}}}, id="file name"
        ),
        pytest.param(
            {"edit": {"forget": {"file": "people.jsonl", "where": {"answer": 4732}}}}, id="a number"
        ),
    ],
)
def test_what_a_policy_quotes_of_the_erased_reaches_no_output(
    place: Workplace, parts: dict[str, Any]
) -> None:
    place.rows("wilhelmina_quastenborough.jsonl", ROWS)
    written = policy(place, **parts)
    planned = place.run("plan", written, "--json")
    assert planned.exit_code == 0, planned.stderr
    result = place.run("apply", written, "--json")
    assert result.exit_code == 0, result.stderr
    assert place.run("verify", place.target).exit_code == 0
    found = [*outputs(place), ("plan", planned.output.encode()), ("apply", result.output.encode())]
    assert any(WITHHELD.encode() in content for _, content in found)
    for name, content in found:
        lowered = content.lower()
        for word in (PERSON, "Quastenborough"):
            for spelling in spellings(word):
                assert spelling not in lowered, f"{word!r} is in {name}"


def test_what_says_nothing_of_the_erased_is_recorded_as_it_was(place: Workplace) -> None:
    forget = {"file": "people.jsonl", "where": {"role": "named"}}
    written = policy(place, description="Two PINs.", edit={"forget": forget})
    assert place.run("apply", written).exit_code == 0
    recorded = place.report.policy
    assert recorded["description"] == "Two PINs."
    assert recorded["edits"][0]["forget"] == forget
    assert place.report.policy_digest == load_policy(written).digest


def test_the_sha256_of_a_file_to_be_erased_is_withheld(place: Workplace) -> None:
    digest = hashlib.sha256((place.folder / "people.jsonl").read_bytes()).hexdigest()
    forget = {"file": "people.jsonl", "sha256": digest}
    assert place.run("apply", policy(place, edit={"forget": forget})).exit_code == 0
    assert not any(digest.encode() in content for _, content in outputs(place))


@pytest.mark.parametrize(
    "parts",
    [
        {"name": "wilhelmina-quastenborough"},
        {"ticket": f"DSR for {PERSON}"},
        {"export": {"dir": "out/WilhelminaQuastenborough"}},
        {"edit": {"id": "quastenborough-4732"}},
    ],
)
def test_names_that_quote_the_erased_are_refused(place: Workplace, parts: dict[str, Any]) -> None:
    result = place.run("validate", policy(place, **parts))
    assert result.exit_code == 2
    assert "quotes data to be erased" in result.stderr


def test_a_ticket_that_quotes_its_row_is_refused_at_its_line(place: Workplace) -> None:
    place.rows("people.jsonl", [{**ROWS[0], "ticket": f"forget {PERSON}"}])
    assert place.run("ledger", "key", "--out", place.folder / "ledger.key").exit_code == 0
    result = place.run("validate", policy(place, ledger={"key": {"file": "ledger.key"}}))
    assert result.exit_code == 2
    assert "people.jsonl:1" in result.stderr
    assert "has a ticket that quotes" in result.stderr
    assert PERSON not in result.stderr


def test_a_plan_made_with_another_key_is_told_as_what_it_is(place: Workplace) -> None:
    made = place.folder / "made.json"
    written = policy(place, export={"dir": "out/trial", "overwrite": True})
    assert place.run("plan", written, "-o", made).exit_code == 0
    assert place.run("apply", made).exit_code == 0
    (place.cache / "digest.key").unlink()
    result = place.run("apply", made)
    assert result.exit_code == 2
    assert "made with another key" in result.stderr


@pytest.mark.parametrize("key", ["x", "\n", "hunter2", "0" * 64, " " * 40])
def test_a_digest_key_that_can_be_guessed_is_refused(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFEEDIT_DIGEST_KEY", key)
    with pytest.raises(UsageError, match="the key of the digests") as caught:
        digest_key(tmp_path)
    assert caught.value.remedy
    monkeypatch.delenv("SAFEEDIT_DIGEST_KEY")
    (tmp_path / "digest.key").write_text(key)
    (tmp_path / "digest.key").chmod(0o600)
    with pytest.raises(SafeeditError, match="the key of the digests"):
        digest_key(tmp_path)


def test_a_digest_key_that_everybody_can_read_is_refused(tmp_path: Path) -> None:
    first = digest_key(tmp_path)
    (tmp_path / "digest.key").chmod(0o644)
    with pytest.raises(SafeeditError, match="everybody on this machine can read"):
        digest_key(tmp_path)
    (tmp_path / "digest.key").chmod(0o600)
    assert digest_key(tmp_path) == first


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_cache_undo_and_deltas_are_their_owners_alone(place: Workplace, umask: int) -> None:
    before = os.umask(umask)
    try:
        assert place.run("apply", policy(place)).exit_code == 0
    finally:
        os.umask(before)
    evidence = place.target / "evidence"
    private = [evidence / "undo.safetensors", *evidence.glob("delta-*.safetensors")]
    assert len(private) == 2
    private += [path for path in place.cache.rglob("*") if path.is_file()]
    for path in private:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    for path in (place.cache, *(path for path in place.cache.rglob("*") if path.is_dir())):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700, path


def test_a_debugging_run_says_loudly_that_it_may_show_data(place: Workplace) -> None:
    written = str(policy(place))
    environment = {"SAFEEDIT_CACHE": str(place.cache)}
    loud = CliRunner().invoke(
        main, ["validate", written], env={**environment, "SAFEEDIT_DEBUG": "1"}
    )
    assert "SAFEEDIT_DEBUG is set" in loud.stderr
    assert "may quote the data" in loud.stderr
    quiet = CliRunner().invoke(main, ["-q", "validate", written], env=environment)
    assert "SAFEEDIT_DEBUG" not in quiet.stderr


@pytest.mark.parametrize(
    "text",
    [
        "jane_roe.jsonl",
        "JaneRoe",
        "for JANE  ROE-2024",
        "data/jane-roe/x",
        "Jáne Roe",
        "서울의집",
        "5550199",
        "JaneRoe2024.jsonl",
    ],
)
def test_quotations_are_found_in_names_of_every_make(text: str) -> None:
    assert Quotes(["Jane Roe", "서울", "555-0199"])(text)


@pytest.mark.parametrize(
    "text", ["jan_eroes.jsonl", "Roe", "janet roe", "no news", "555", "n", "notes/plan-no-2.jsonl"]
)
def test_what_only_resembles_it_is_no_quotation(text: str) -> None:
    assert not Quotes(["Jane Roe", "no", "n", "555-0199"])(text)


@pytest.mark.parametrize(
    "text",
    [
        "ann.jsonl", "for-ann", "Ann7.csv", "forgetAnn", "512", "room 512", "pin512.jsonl",
        "東京都", "data/東京.jsonl", "bo.jsonl", "data/Bo/x.jsonl", "BO.tar.gz", "34", "京.jsonl",
    ],
)  # fmt: skip
def test_short_names_and_numbers_are_found_too(text: str) -> None:
    """Of two signs where they are the whole of a name, of three wherever they are a word."""
    assert Quotes(["Ann", "512", "東京", "Bo", "34", "京都"])(text) == (text != "京.jsonl")


@pytest.mark.parametrize(
    "text", ["annual.jsonl", "1512", "bob.jsonl", "bo-jest", "age 34", "34512"]
)
def test_in_longer_words_and_numbers_short_ones_are_not_found(text: str) -> None:
    assert not Quotes(["Ann", "512", "東京", "Bo", "34"])(text)
