"""What can undo an edit, kept elsewhere and encrypted: the export stands without it, and a revert
finds it again."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pyrage
import pytest

from safeedit.export.manifest import CARD, UNDO, read_manifest
from safeedit.export.staging import Staging
from safeedit.model.digest import digest_of
from safeedit.model.headers import read_headers
from safeedit.model.stored import stored_digests
from tests.road import Workplace, make_workplace, register

WARNING = "evidence/ holds the original tensors"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    register(monkeypatch)
    return make_workplace(tmp_path / "place")


def weights(folder: Path) -> str:
    return digest_of(stored_digests(read_headers(folder)))


def identity(place: Workplace) -> str:
    made = pyrage.x25519.Identity.generate()
    path = place.text("identity.txt", f"# created by a test\n{made}\n")
    path.chmod(0o600)
    return str(made.to_public())


def test_without_a_private_folder_the_export_warns_of_what_it_holds(place: Workplace) -> None:
    assert place.run("apply", place.policy()).exit_code == 0
    for path in (CARD, "evidence/report.md", "evidence/report.html"):
        text = (place.target / path).read_text()
        assert WARNING in text.replace("\\_", "_"), path
        assert "2505.24379" in text


def test_a_private_folder_gets_what_can_undo_the_edit_and_the_export_verifies_without(
    place: Workplace,
) -> None:
    policy = place.policy(export={"dir": "out/trial", "private": "vault"})
    result = place.run("apply", policy)
    assert result.exit_code == 0, result.stderr
    (run,) = (place.folder / "vault").iterdir()
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert names == {UNDO, "evidence/delta-nudge.safetensors"}
    assert stat.S_IMODE((place.folder / "vault").stat().st_mode) == 0o700
    assert {stat.S_IMODE((run / name).stat().st_mode) for name in names} == {0o600}
    assert names <= read_manifest(place.target)[0].keys()
    assert not any((place.target / name).exists() for name in names)
    assert place.run("verify", place.target).exit_code == 0
    card = (place.target / CARD).read_text()
    assert WARNING not in card
    assert "kept elsewhere" in card
    assert str(place.folder) not in card

    alone = place.run("revert", place.target, place.folder / "back")
    assert alone.exit_code == 3
    assert "--private" in alone.stderr
    for private in (place.folder / "vault", run):
        back = place.folder / f"back-{private.name}"
        again = place.run("revert", place.target, back, "--private", private)
        assert again.exit_code == 0, again.stderr
        assert weights(back) == weights(place.folder / "model")


def test_what_is_encrypted_is_opened_by_its_key_alone(place: Workplace, tmp_path: Path) -> None:
    recipient = identity(place)
    spec = {"dir": "out/trial", "private": "vault", "recipient": recipient}
    assert place.run("apply", place.policy(export=spec)).exit_code == 0
    (run,) = (place.folder / "vault").iterdir()
    sealed = sorted(path.name for path in run.rglob("*") if path.is_file())
    assert sealed == ["delta-nudge.safetensors.age", "undo.safetensors.age"]
    assert all(b"age-encryption.org/v1" in p.read_bytes()[:32] for p in run.rglob("*.age"))
    assert "kept elsewhere, encrypted" in (place.target / CARD).read_text()

    revert = ("revert", place.target, place.folder / "back", "--private", run)
    without = place.run(*revert)
    assert (without.exit_code, "--identity FILE" in without.stderr) == (2, True)
    other = tmp_path / "other.txt"
    other.write_text(f"{pyrage.x25519.Identity.generate()}\n")
    other.chmod(0o600)
    wrong = place.run(*revert, "--identity", other)
    assert (wrong.exit_code, "does not open" in wrong.stderr) == (2, True)
    other.write_text("hello, I am no key of any kind, 1234567890\n")
    none = place.run(*revert, "--identity", other)
    assert (none.exit_code, "no private key of age in this file" in none.stderr) == (2, True)
    assert not (place.folder / "back").exists()

    result = place.run(*revert, "--identity", place.folder / "identity.txt")
    assert result.exit_code == 0, result.stderr
    assert weights(place.folder / "back") == weights(place.folder / "model")
    assert not list((place.folder / "back").rglob("*opened*"))


@pytest.mark.parametrize(
    ("spec", "told", "field"),
    [
        ({"recipient": "age1x"}, "no 'private' folder is named", "export.recipient"),
        ({"private": "v", "recipient": "age1x"}, "no public key of age", "export.recipient"),
        ({"private": "v", "recipient": "AGE-SECRET-KEY-1A"}, "private key", "export.recipient"),
        ({"private": "out/trial/v"}, "would be written into the export", "export.private"),
        ({"private": "model/v"}, "would be written into", "export.private"),
        ({"private": "near.jsonl"}, "is a file", "export.private"),
    ],
)
def test_a_private_folder_that_can_not_work_is_refused_while_planning(
    place: Workplace, spec: dict[str, str], told: str, field: str
) -> None:
    policy = place.policy(export={"dir": "out/trial", **spec})
    for command in ("plan", "apply"):
        result = place.run(command, policy)
        assert result.exit_code == 2, result.stderr
        assert told in result.stderr
        assert f"policy.yaml:{10 + len(spec)}:" in result.stderr or field in result.stderr
    assert not (place.folder / "v").exists()


def test_an_export_that_fails_at_its_last_step_leaves_no_private_folder(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote = Staging.promote

    def failing(self: Staging) -> None:
        if self.target.name == "trial":
            raise OSError(28, "No space left on device")
        promote(self)

    monkeypatch.setattr(Staging, "promote", failing)
    result = place.run("apply", place.policy(export={"dir": "out/trial", "private": "vault"}))
    assert result.exit_code == 3
    assert list((place.folder / "vault").iterdir()) == []
    assert not place.target.exists()
    shutil.rmtree(place.folder / "vault")
