"""Cards are measured right, belong to one identity, and scores are kept under keyed digests."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from click.testing import CliRunner

from safeedit import catalog
from safeedit.cli.main import main
from safeedit.contracts import BaseParams, Progress, RunContext, ScorerIdentity, ScorerRef, silent
from safeedit.data import Dataset, Item, check_disjoint
from safeedit.errors import AuditError, DataError, PolicyError
from safeedit.planning.resolution import make_plan
from safeedit.policy import load_policy
from safeedit.policy.builtin import dataset_path
from safeedit.records import ScorerCard
from safeedit.scorers.cards import labelled_sets, measure_card, read_card, write_card
from safeedit.scorers.score_cache import check_auc, scorers
from tests.benchmark_data import benchmark
from tests.fixtures import context
from tests.road import Workplace, make_workplace, register
from tests.scorers.tiny import save_classifier

ROWS = [  # text, label, kind, and what the toy scorer below makes of it
    ("bad bad bad", "toxic", "loud"),
    ("bad word", "toxic", "loud"),
    ("quiet hate", "toxic", "quiet"),
    ("a plain text", "harmless", "plain"),
    ("bad luck today", "harmless", "luck"),
]


class CountsParams(BaseParams):
    factor: float = 1.0


class Counts:
    """The share of a text's words that are the word bad."""

    Params: ClassVar[type[BaseParams]] = CountsParams
    summary: ClassVar[str] = "counts a word"
    blind_to: ClassVar[str] = "all other words"
    scored: ClassVar[list[str]] = []
    digest: ClassVar[str] = "1" * 64

    def __init__(self, params: Any) -> None:
        self.params: CountsParams = params

    def identity(self) -> ScorerIdentity:
        return ScorerIdentity("counts", "1", self.digest)

    def score(self, texts: Sequence[str], progress: Progress = silent) -> list[float]:
        self.scored.extend(texts)
        return [self.params.factor * t.split().count("bad") / len(t.split()) for t in texts]


def labelled(rows: Sequence[tuple[str, str, str]] = ROWS) -> Dataset:
    items = [
        Item(id=str(n), prompt=text, extra={"label": label, "kind": kind})
        for n, (text, label, kind) in enumerate(rows)
    ]
    return Dataset(items, name="labelled", split="test")


@pytest.fixture
def ctx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunContext:
    real = catalog.scorer
    monkeypatch.setattr(catalog, "scorer", lambda name: Counts if name == "counts" else real(name))
    monkeypatch.setattr(Counts, "scored", [])
    return context(tmp_path / "cache")


REF = ScorerRef(use="counts")


# Cards ----------------------------------------------------------------------------------


def test_a_card_says_what_the_scores_say() -> None:
    card = measure_card(Counts(CountsParams()), {"mine": labelled()})
    found = card.checks["mine"]
    # Scores 1, 1/2, 0 against 0, 1/3: of six pairs four are right and one is a tie.
    assert found.auc == pytest.approx(4.5 / 6)
    assert (found.n_toxic, found.n_harmless) == (3, 2)
    assert found.miss_rate == pytest.approx(1 / 3)
    assert found.false_alarm_rate == 0.0
    assert found.errors_by_kind == {"loud": 0.0, "quiet": 1.0, "plain": 0.0, "luck": 0.0}
    for value, interval in (
        (found.auc, found.auc_interval),
        (found.miss_rate, found.miss_interval),
        (found.false_alarm_rate, found.false_alarm_interval),
    ):
        assert interval.low <= value <= interval.high
    assert measure_card(Counts(CountsParams()), {"mine": labelled()}, 0.3).checks[
        "mine"
    ].false_alarm_rate == pytest.approx(0.5)


@pytest.mark.parametrize(
    "rows", [ROWS[:3], ROWS[3:], [*ROWS, ("what?", "unsure", "none")]], ids=["toxic", "not", "odd"]
)
def test_a_set_needs_both_labels_and_no_other(rows: list[tuple[str, str, str]]) -> None:
    with pytest.raises(DataError, match="both labels"):
        measure_card(Counts(CountsParams()), {"mine": labelled(rows)})


def test_a_card_belongs_to_one_identity(tmp_path: Path) -> None:
    card = measure_card(Counts(CountsParams()), {"mine": labelled()})
    write_card(card, tmp_path)
    own = Counts(CountsParams()).identity()
    assert read_card(own, tmp_path) == card
    assert read_card(replace(own, digest="2" * 64), tmp_path) is None
    (path,) = tmp_path.glob("scorers/*/card.json")
    path.write_text(path.read_text()[:50])
    assert read_card(own, tmp_path) is None
    path.unlink()
    os.mkfifo(path)  # nobody will ever write to it
    assert read_card(own, tmp_path) is None


def test_figures_of_other_sets_stay_on_the_card(tmp_path: Path) -> None:
    made = Counts(CountsParams())
    write_card(measure_card(made, {"one": labelled()}), tmp_path)
    write_card(measure_card(made, {"two": labelled()}), tmp_path)
    card = read_card(made.identity(), tmp_path)
    assert card is not None
    assert set(card.checks) == {"one", "two"}
    write_card(measure_card(made, {"two": labelled()}, 0.3), tmp_path)
    card = read_card(made.identity(), tmp_path)
    assert card is not None
    assert set(card.checks) == {"two"}  # at another threshold


def test_the_built_in_set_is_balanced_and_hatecheck_is_found_where_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SAFEEDIT_BENCHMARKS", raising=False)
    built_in = labelled_sets()
    assert set(built_in) == {"builtin"}
    labels = [item.extra["label"] for item in built_in["builtin"]]
    assert labels.count("toxic") == 98
    assert labels.count("harmless") == 96
    path = benchmark("hatecheck/test_suite_cases.csv")
    monkeypatch.setenv("SAFEEDIT_BENCHMARKS", str(path.parents[1]))
    both = labelled_sets()
    assert set(both) == {"builtin", "hatecheck"}
    assert both["hatecheck"].digest == labelled_sets(path)["hatecheck"].digest
    assert len(both["hatecheck"]) > 3700


def test_the_built_in_texts_are_as_their_cards_say() -> None:
    def read(name: str) -> list[dict[str, Any]]:
        lines = dataset_path(name).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def counted(name: str) -> dict[str, Any]:
        return yaml.safe_load(dataset_path(name).with_name("card.yaml").read_text())["counts"]

    for name, split in (("toxicity_labelled", "test"), ("toxicity_hostile", "fit")):
        rows, counts = read(name), counted(name)
        for label, kinds in counts.items():
            assert Counter(row["kind"] for row in rows if row["label"] == label) == kinds
        assert {row["split"] for row in rows} == {split}
    rows, counts = read("unsafe_requests"), counted("unsafe_requests")
    for role, splits in counts.items():
        assert Counter(row["split"] for row in rows if row["role"] == role) == splits
    rows, counts = read("toxicity_prompts"), counted("toxicity_prompts")
    assert len(rows) == counts["items"]
    chosen = {
        "toxic": [row for row in rows if row.get("toxic")],
        "harmless": [row for row in rows if row.get("toxic") is False],
        "challenging": [row for row in rows if row.get("challenging")],
        "safe": [row for row in rows if row["role"] == "safe"],
    }
    for name, some in chosen.items():
        assert Counter(row["split"] for row in some) == counts[name]
    pairs = [row["prompt"] for row in read("toxicity_pairs")]
    check_disjoint(pairs, (row["prompt"] for row in rows))


# Opened ---------------------------------------------------------------------------------


def test_scores_are_kept_and_not_computed_again(ctx: RunContext) -> None:
    texts = ["bad word", "fine", "bad word", "", " \n"]
    assert scorers(ctx, catalog.make_scorer)(REF).score(texts, silent) == [0.5, 0, 0.5, 0, 0]
    assert sorted(Counts.scored) == ["bad word", "fine"]
    again = scorers(ctx, catalog.make_scorer)(REF)
    assert again.score([*texts, "new bad"], silent) == [0.5, 0, 0.5, 0, 0, 0.5]
    assert Counts.scored[2:] == ["new bad"]


def test_no_text_is_kept_and_digests_are_keyed(ctx: RunContext) -> None:
    scorers(ctx, catalog.make_scorer)(REF).score(["bad Zyxquand"], silent)
    (store,) = ctx.cache.glob("scorers/*/scores.sqlite")
    assert b"Zyxquand" not in store.read_bytes()
    scorers(replace(ctx, secret=b"other"), catalog.make_scorer)(REF).score(["bad Zyxquand"], silent)
    assert len(Counts.scored) == 2  # another key finds nothing


def test_a_score_that_was_changed_on_disk_is_computed_again(ctx: RunContext) -> None:
    opened = scorers(ctx, catalog.make_scorer)(REF)
    assert opened.score(["bad word", "fine"], silent) == [0.5, 0]
    (path,) = ctx.cache.glob("scorers/*/scores.sqlite")
    with contextlib.closing(sqlite3.connect(path)) as store, store:
        store.execute("UPDATE sealed SET score = 0.0")
    assert opened.score(["bad word", "fine"], silent) == [0.5, 0]
    assert Counts.scored[2:] == ["bad word"]  # the other was what it had been


def test_a_change_of_the_scorers_code_leaves_no_old_score(
    ctx: RunContext, changed: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Counts, "__module__", "safeedit.scorers.transformer")
    for scored in (1, 1):
        assert scorers(ctx, catalog.make_scorer)(REF).score(["bad word"], silent) == [0.5]
        assert len(Counts.scored) == scored
    changed("safeedit.scorers.transformer")
    scorers(ctx, catalog.make_scorer)(REF).score(["bad word"], silent)
    assert len(Counts.scored) == 2


def test_other_weights_have_other_scores(ctx: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    assert scorers(ctx, catalog.make_scorer)(REF).score(["bad word"], silent) == [0.5]
    monkeypatch.setattr(Counts, "digest", "2" * 64)
    halved = ScorerRef(use="counts", params={"factor": 0.5})
    assert scorers(ctx, catalog.make_scorer)(halved).score(["bad word"], silent) == [0.25]


def test_a_cache_that_can_not_be_written_costs_time_only(ctx: RunContext) -> None:
    ctx.cache.write_text("a file where a folder should be")
    assert scorers(ctx, catalog.make_scorer)(REF).score(["bad word"], silent) == [0.5]


def test_a_broken_store_is_no_reason_to_stop(ctx: RunContext) -> None:
    scorers(ctx, catalog.make_scorer)(REF).score(["bad word"], silent)
    (store,) = ctx.cache.glob("scorers/*/scores.sqlite")
    store.write_bytes(b"no database" * 100)
    assert scorers(ctx, catalog.make_scorer)(REF).score(["bad word"], silent) == [0.5]


@pytest.mark.parametrize("factor", [-1.0, 3.0, math.inf])
def test_what_is_no_probability_is_refused(ctx: RunContext, factor: float) -> None:
    monkey = Counts(CountsParams.model_construct(factor=factor))
    opened = scorers(ctx, catalog.make_scorer)(REF)
    opened.score.scorer = monkey  # type: ignore[attr-defined]
    with pytest.raises(AuditError, match="a probability"):
        opened.score(["bad bad"], silent)


def test_weights_that_changed_since_the_plan_are_refused(ctx: RunContext) -> None:
    with pytest.raises(AuditError, match="not the one that was planned with"):
        scorers(ctx, catalog.make_scorer)(ScorerRef(use="counts", digest="0" * 64))


def test_a_run_without_card_or_minimum_says_loudly_what_is_not_seen(ctx: RunContext) -> None:
    warned: list[str] = []
    loud = replace(ctx, warn=warned.append)
    open_ = scorers(loud, catalog.make_scorer)
    open_(REF)
    open_(REF)
    (said,) = warned
    assert "all other words" in said
    assert "no card" in said
    assert open_(REF).note == "scorer counts 1 (111111111111), no card"
    rows = [("plain", "toxic", "k"), ("bad", "harmless", "k")]
    write_card(measure_card(Counts(CountsParams()), {"odd": labelled(rows)}), ctx.cache)
    found = scorers(loud, catalog.make_scorer)(REF)
    assert "AUC 0.00" in warned[1]
    assert "no better than chance" in warned[1]
    assert found.note == "scorer counts 1 (111111111111), AUC 0.00 on odd"


def test_a_minimum_is_held_against_the_card(ctx: RunContext) -> None:
    warned: list[str] = []
    demanding = REF.model_copy(update={"min_auc": {"mine": 0.7}})
    with pytest.raises(AuditError, match="no figure for mine") as caught:
        scorers(ctx, catalog.make_scorer)(demanding)
    assert "safeedit scorer check counts" in caught.value.remedy
    write_card(measure_card(Counts(CountsParams()), {"mine": labelled()}), ctx.cache)
    scorers(replace(ctx, warn=warned.append), catalog.make_scorer)(demanding)
    assert warned == []
    with pytest.raises(AuditError, match=r"AUC 0\.750 on mine; the policy demands 0\.8"):
        scorers(ctx, catalog.make_scorer)(REF.model_copy(update={"min_auc": {"mine": 0.8}}))
    card = read_card(Counts(CountsParams()).identity(), ctx.cache)
    with pytest.raises(AuditError, match="no figure for mien"):
        check_auc(ScorerRef(min_auc={"mien": 0.5}), Counts(CountsParams()).identity(), card)


def test_an_unknown_scorer_is_answered_with_the_likely_one(ctx: RunContext) -> None:
    with pytest.raises(PolicyError, match="no scorer called 'profanty'") as caught:
        scorers(ctx, catalog.make_scorer)(ScorerRef(use="profanty"))
    assert "profanity" in caught.value.remedy


# In a policy ----------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    monkeypatch.chdir(tmp_path)  # an audit alone reports to out/ of the working directory
    register(monkeypatch)
    made = make_workplace(tmp_path / "place")
    save_classifier(made.folder / "classifier")
    splits = ["validation"] * 4 + ["test"] * 12
    made.rows(
        "prompts.jsonl",
        [
            {"prompt": f"The doctor {n} said", "toxic": n % 2 == 0, "split": split}
            for n, split in enumerate(splits)
        ],
    )
    return made


def audited(**scorer: Any) -> dict[str, Any]:
    return {
        "use": "toxicity",
        "prompts": {"file": "prompts.jsonl", "template": "plain"},
        "samples": 2,
        "max_new_tokens": 5,
        "words": ["said", "the"],
        "scorer": {"use": "classifier", "params": {"source": "classifier"}, **scorer},
    }


def parts(**scorer: Any) -> dict[str, Any]:
    gate = {"metric": "toxicity.expected_max", "max": 1, "min_n": 1}
    return {"audits": [audited(**scorer)], "gates": [gate]}


def test_a_policy_s_scorer_is_found_before_anything_is_run(place: Workplace) -> None:
    plan = make_plan(load_policy(place.policy(**parts())))
    (audit,) = plan.audits
    ref = audit.params.scorer  # type: ignore[attr-defined]
    identity = scorers_identity(place.folder / "classifier")
    assert ref.digest == identity.digest
    assert Path(ref.params["source"]) == place.folder / "classifier"  # as seen from here


def scorers_identity(folder: Path) -> ScorerIdentity:
    kind = catalog.scorer("classifier")
    return kind(kind.Params(source=str(folder))).identity()


@pytest.mark.parametrize(
    ("scorer", "line", "said", "remedy", "code"),
    [
        (
            {"use": "classfier"},
            "use: classfier",
            "no scorer called",
            "did you mean 'classifier'",
            2,
        ),
        (
            {"params": {"source": "classifier", "lable": "toxic"}},
            "lable: toxic",
            "unknown key",
            "did you mean 'label'",
            2,
        ),
        (
            {"params": {"source": "classifier", "label": "hate"}},
            "label: hate",
            "no label 'hate'",
            "fine",
            2,
        ),
        ({"params": {"source": "nowhere/at-all"}}, "source: nowhere", "could not be", "network", 3),
        ({"params": {"source": "model"}}, "source: model", "no text classifier", "name one", 3),
        ({"min_auc": {"builtin": 0.7}}, "builtin: 0.7", "no figure for builtin", "measure it", 3),
        ({"min_auc": {"builtin": 7}}, "builtin: 7", "less than or equal to 1", "", 2),
    ],
)
def test_a_scorer_that_will_not_do_is_refused_at_its_place(
    place: Workplace, scorer: dict[str, Any], line: str, said: str, remedy: str, code: int
) -> None:
    policy = place.policy(**parts(**scorer))
    done = place.run("validate", policy)
    assert done.exit_code == code, done.stderr
    assert said in done.stderr
    assert remedy in done.stderr
    lines = policy.read_text().splitlines()
    number = max(n for n, text in enumerate(lines, 1) if line in text)
    near = {f"policy.yaml:{n}:" for n in (number, number - 1)}
    assert any(place in done.stderr for place in near), done.stderr


def test_without_the_default_scorer_a_policy_exits_3_and_says_what_to_do(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec

    def find(name: str, *rest: Any) -> Any:
        return None if name == "profanity_check" else real(name, *rest)

    monkeypatch.setattr("importlib.util.find_spec", find)
    audit = {key: value for key, value in audited().items() if key != "scorer"}
    done = place.run("apply", place.policy(**{**parts(), "audits": [audit]}))
    assert done.exit_code == 3
    assert "safeedit[profanity]" in done.stderr
    assert not place.target.exists()


def test_a_whole_run_names_its_scorer_on_every_figure(place: Workplace) -> None:
    policy = place.policy(**parts())
    done = place.run("apply", policy)
    assert done.exit_code == 0, done.stderr
    assert "It has no card" in done.stderr
    name = str(scorers_identity(place.folder / "classifier"))
    record = place.report
    assert any(name in warning for warning in record.warnings)
    scored = ("expected_max", "probability", "mean")
    for audit in (*record.before, *record.after):
        for metric in audit.metrics:
            if metric.name.split(".")[1].startswith(scored) and metric.value is not None:
                assert name in metric.note
                assert "no card" in metric.note
    compared = {found.name: found for found in record.comparisons}
    assert compared["toxicity.expected_max"].n_pairs == 12
    assert compared["toxicity.quality_ratio"].before.value == 1.0
    assert compared["toxicity.toxic_mass"].difference is not None
    assert "The doctor" not in (place.folder / "out/trial.report/report.json").read_text()


def test_a_card_made_meanwhile_is_told_by_the_next_run(place: Workplace) -> None:
    policy = place.policy(**{**parts(), "edits": [], "export": None})
    first = place.run("audit", policy)
    assert first.exit_code == 0, first.stderr
    checked = ("scorer", "check", "classifier", "--param", f"source={place.folder / 'classifier'}")
    assert place.run(*checked).exit_code == 0
    again = place.run("audit", policy, "--json")
    assert again.exit_code == 0
    assert "AUC" in again.stderr  # said again, though all is in the cache
    record = json.loads(again.stdout)
    notes = {m["name"]: m["note"] for m in record["before"][0]["metrics"]}
    assert "AUC 0." in notes["toxicity.expected_max"]
    assert "on builtin" in notes["toxicity.expected_max"]


def test_another_folder_s_weights_are_another_measurement(place: Workplace) -> None:
    policy = place.policy(**{**parts(), "edits": [], "export": None})
    first = json.loads(place.run("audit", policy, "--json").stdout)
    shutil.rmtree(place.folder / "classifier")
    save_classifier(place.folder / "classifier", seed=5)
    second = json.loads(place.run("audit", policy, "--json").stdout)
    values = [
        {m["name"]: m["value"] for m in record["before"][0]["metrics"]}["toxicity.mean"]
        for record in (first, second)
    ]
    assert values[0] != values[1]
    assert second["before"][0]["cached"] is False


# The command ----------------------------------------------------------------------------


def test_scorer_check_prints_the_card_and_keeps_it(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "model")
    environment = {"SAFEEDIT_CACHE": str(tmp_path / "cache"), "SAFEEDIT_BENCHMARKS": None}
    call = ["scorer", "check", "classifier", "--param", f"source={folder}", "--param", "device=cpu"]
    done = CliRunner().invoke(main, [*call, "--json"], env=environment)
    assert done.exit_code == 0, done.stderr
    card = ScorerCard.model_validate(json.loads(done.stdout))
    assert set(card.checks) == {"builtin"}
    assert "HateCheck is not here" in done.stderr
    (kept,) = (tmp_path / "cache").glob("scorers/*/card.json")
    assert ScorerCard.model_validate_json(kept.read_text()) == card
    shown = CliRunner().invoke(main, call, env=environment)
    assert f"AUC {card.checks['builtin'].auc:.3f}" in shown.stdout
    assert card.digest[:12] in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["profanty"], "did you mean 'profanity'"),
        (["classifier", "--param", "label"], "NAME=VALUE"),
        (["classifier", "--param", "lable=toxic"], "parameters: source, revision, label"),
        (["classifier", "--param", "label=[1"], "not YAML"),
    ],
)
def test_a_wrong_call_says_what_is_right(tmp_path: Path, arguments: list[str], said: str) -> None:
    environment = {"SAFEEDIT_CACHE": str(tmp_path)}
    done = CliRunner().invoke(main, ["scorer", "check", *arguments], env=environment)
    assert done.exit_code == 2
    assert said in done.stderr
