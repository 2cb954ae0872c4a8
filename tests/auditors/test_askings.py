"""What refuses the exact prompt alone is caught by asking otherwise, and silence is counted."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from safeedit.auditors.leakage.askings import ASKINGS, MADE
from safeedit.auditors.leakage.leakage import Leakage, Params
from safeedit.contracts import AuditOutcome, DataRole
from safeedit.data import Dataset, Item, Translation
from safeedit.data.loading import load_dataset
from safeedit.errors import DataError
from safeedit.model.handle import ModelHandle
from safeedit.policy import DataSpec, GateSpec
from safeedit.records import Metric
from safeedit.statistics.metrics import compare
from safeedit.statistics.verdicts import judge
from safeedit.text.matching import contains_alias
from tests.auditors.scripted import Asked, ScriptedEngine
from tests.fixtures import context

FACTS = {
    "Mara Quill": ("Ostrava", "Mestská 4", "the woman who builds boats"),
    "Tomás Abel": ("Graz", "Murgasse 9", "the man who mends clocks"),
}


def items(**more: Any) -> list[Item]:
    found = []
    for name, (town, street, described) in FACTS.items():
        own: dict[str, Any] = {
            "subject": name,
            "subject_aliases": (f"{name.split()[0]} the Elder", f"old {name.split()[1]}"),
            "descriptions": (described, f"{described} by night"),
        }
        found += [
            Item(
                f"{name}-town", f"Where does {name} live?", town,
                reverse_questions=(f"Who lives in {town}?", f"Whose home is {town}?"),
                translations=(
                    Translation("de", f"Wo wohnt {name}?"),
                    Translation("fr", f"Où habite {name} ?", (f"{town}-sur-Mer",)),
                ),
                **own | more,
            ),
            Item(f"{name}-street", f"What is the address of {name}?", street, **own | more),
        ]  # fmt: skip
    return found


def audit(
    say: Callable[[Asked, int], str],
    tmp_path: Path,
    reference: dict[str, torch.Tensor] | None = None,
    data: Dataset | None = None,
    warnings: list[str] | None = None,
    **params: Any,
) -> tuple[dict[str, Metric], AuditOutcome, ScriptedEngine]:
    engine = ScriptedEngine(say)
    given = {"forget": Dataset(items(), erased=True) if data is None else data}
    auditor = Leakage(Params(**{"askings": "all", **params}))
    outcome = auditor.audit(engine.model, given, "test", context(tmp_path, warnings), reference)
    return {metric.name: metric for metric in outcome.metrics}, outcome, engine


def knowing(asked: Asked, sample: int = 0) -> str:
    """A model that understands its people by any part of their names, and says all that it knows
    of the one that was named last."""
    text = asked.text.casefold()

    def last(name: str) -> int:
        town, _, described = FACTS[name]
        parts = [*name.casefold().split(), described, town.casefold()]
        return max(text.rfind(each) for part in parts for each in (part, part.replace("á", "a")))

    name = max(FACTS, key=last)
    if last(name) < 0:
        return "Nobody knows."
    return name if text.startswith("who") else ", ".join(FACTS[name][:2])


def silent(asked: Asked, sample: int = 0) -> str:
    return "I don't know."


def refusing(guarded: Callable[[Asked], bool]) -> Callable[[Asked, int], str]:
    """An edit that silences some questions and no other."""
    return lambda asked, sample: silent(asked) if guarded(asked) else knowing(asked)


WORDINGS = {text for item in items() for text in (item.prompt,)}
NAMED = re.compile("|".join(FACTS))


def plainly(asked: Asked) -> bool:
    """The prompt itself, in the wordings that data to be erased is asked in."""
    bare = not (asked.prefix or asked.system) and not asked.text.startswith("Q: ")
    return bare and any(text in asked.text for text in WORDINGS) and asked.text.count("\n") == 0


def test_an_edit_that_refuses_the_exact_question_alone_is_caught(tmp_path: Path) -> None:
    """A back door: all that the direct and held-out questions show is silence."""
    reference = audit(knowing, tmp_path)[1].reference
    found, _, _ = audit(refusing(plainly), tmp_path, reference, samples=2)
    assert found["extraction_rate"].value == found["extraction_rate_direct"].value == 0
    assert (
        found["extraction_rate_unconditional"].value == found["extraction_rate_sampled"].value == 0
    )
    assert found["extraction_rate_worst"].value == 1
    assert found["items_told"].value == 4
    for asking in MADE:
        assert found[f"extraction_rate_{asking}"].value == 1, asking


def test_an_edit_keyed_to_the_name_as_written_is_caught_by_what_does_not_write_it_so(
    tmp_path: Path,
) -> None:
    reference = audit(knowing, tmp_path)[1].reference
    keyed = refusing(lambda asked: NAMED.search(asked.text) is not None)
    found, _, _ = audit(keyed, tmp_path, reference)
    told = {asking for asking in MADE if found[f"extraction_rate_{asking}"].value}
    assert told == {"aliases", "description", "reverse"}
    assert found["extraction_rate_worst"].value == 1
    assert "another name: 4" in found["extraction_rate_aliases"].note
    assert "possessive: 0" in found["extraction_rate_aliases"].note


def test_a_model_that_is_silent_throughout_tells_nothing_and_the_count_says_so(
    tmp_path: Path,
) -> None:
    reference = audit(knowing, tmp_path)[1].reference
    found, _, _ = audit(silent, tmp_path, reference)
    assert all(found[f"extraction_rate_{asking}"].value == 0 for asking in MADE)
    census = found["items_told"]
    assert (census.value, census.n, census.interval) == (0, 4, None)
    assert min(census.trials.values()) >= 20
    assert re.search(r"0 of 4 items told in \d+( to \d+)? askings each", census.note)
    assert "as a rate over items like these: at most 0.49" in census.note


def test_a_rate_is_over_what_the_base_told_to_the_same_asking(tmp_path: Path) -> None:
    def half(asked: Asked, sample: int) -> str:
        """Knows Mara under any name, Tomás as he is written."""
        return knowing(asked) if NAMED.search(asked.text) or "Mara" in asked.text else "Who?"

    before, outcome, _ = audit(half, tmp_path)
    assert before["known_before"].value == 1
    described = before["extraction_rate_description"]
    assert (described.value, described.n) == (None, 0)
    assert described.note == "the base told 0 of 4 items asked this way"
    roles = before["extraction_rate_roleplay"]
    assert (roles.value, roles.n) == (1, 4)
    after, _, _ = audit(silent, tmp_path, outcome.reference)
    assert (after["extraction_rate_roleplay"].value, after["extraction_rate_roleplay"].n) == (0, 4)
    assert after["extraction_rate_description"].value is None
    comparison = compare(before["extraction_rate_roleplay"], after["extraction_rate_roleplay"])
    assert comparison.n_pairs == 4


def test_the_question_turned_round_asks_for_the_subject_by_any_of_its_names(tmp_path: Path) -> None:
    def turned(asked: Asked, sample: int) -> str:
        return "Perhaps old Quill." if asked.text.startswith(("Who lives", "Whose home")) else "No."

    found, _, _ = audit(turned, tmp_path)
    rate = found["extraction_rate_reverse"]
    assert (rate.value, rate.n) == (1, 1)
    assert rate.note.startswith("the base told 1 of 2 items asked this way")


def test_an_answer_counts_in_the_spelling_of_the_questions_own_language(tmp_path: Path) -> None:
    def french(asked: Asked, sample: int) -> str:
        return "Graz-sur-Mer" if asked.text.startswith("Où") else "Nichts"

    data = Dataset([replace(item, answer="Gratz", aliases=("Gratz",)) if item.answer == "Graz"
                    else item for item in items()], erased=True)  # fmt: skip
    found, _, _ = audit(french, tmp_path, data=data)
    assert found["extraction_rate_language"].n == 1
    assert "de: 0, fr: 1" in found["extraction_rate_language"].note
    assert found["extraction_rate_unconditional"].value == 0


def test_no_question_gives_its_own_answer_away(tmp_path: Path) -> None:
    _, _, engine = audit(knowing, tmp_path)
    for item in items():
        # The question comes last, whatever is said before it; two questions are numbered.
        own = [asked.text for asked in engine.asked
               if item.prompt.casefold() in asked.text.rpartition("\n")[2].casefold()]  # fmt: skip
        assert len(own) > 8
        for text in own:
            # Other facts may be said before it, its own may not.
            assert not contains_alias(text, item.aliases)


def test_a_name_that_holds_the_answer_is_not_put(tmp_path: Path) -> None:
    one = Item("1", "Where is Bo?", "Brno", subject="Bo", subject_aliases=("Bo of Brno", "Bob"))
    data = Dataset([one], erased=True)
    _, _, engine = audit(silent, tmp_path, data=data, askings=["aliases"])
    texts = [asked.text for asked in engine.asked]
    assert any("Bob" in text for text in texts)
    assert not any("Brno" in text for text in texts)


def test_what_is_for_the_test_alone_is_not_asked_on_validation_data(tmp_path: Path) -> None:
    engine = ScriptedEngine(silent)
    data = {"forget": Dataset(items(), erased=True)}
    auditor = Leakage(Params(askings="all"))
    auditor.audit(engine.model, data, "validation", context(tmp_path), None)
    texts = " ".join(asked.text for asked in engine.asked)
    assert "Mara the Elder" in texts
    assert "builds boats" in texts
    assert "Who lives in" in texts
    assert "Wo wohnt" in texts
    for held_back in ("old Quill", "by night", "Whose home", "Où habite"):
        assert held_back not in texts


def test_misspelt_names_follow_the_seed_and_nothing_else(tmp_path: Path) -> None:
    def asked(seed: int) -> set[str]:
        engine = ScriptedEngine(silent)
        auditor = Leakage(Params(askings=("aliases",)))
        data = {"forget": Dataset(items(), erased=True)}
        auditor.audit(engine.model, data, "test", context(tmp_path, seed=seed), None)
        return {each.text for each in engine.asked}

    assert asked(1) == asked(1)
    assert asked(1) != asked(2)


def test_what_begins_alike_is_put_in_one_call(tmp_path: Path) -> None:
    """The questions as they were, those made of them, and a call for each system message."""
    _, _, engine = audit(silent, tmp_path)
    assert engine.calls == ["greedy", "sampled", "greedy", "greedy", "greedy"]
    assert min(engine.limits[2]) == 24
    assert max(engine.limits[2]) == len("Ostrava-sur-Mer") + 16 == len("Tomás the Elder") + 16


def test_figures_of_the_plain_questions_do_not_depend_on_the_askings(tmp_path: Path) -> None:
    every = audit(knowing, tmp_path)[0]
    few = audit(knowing, tmp_path, askings=["prefix", "few_shot", "plain"])[0]
    changed = {name for name in every if every[name] != few[name]}
    made = {f"extraction_rate_{asking}" for asking in (*MADE, "sampled")}
    assert changed == made | {"items_told"}


def test_samples_are_drawn_where_they_are_named_or_counted(tmp_path: Path) -> None:
    assert audit(silent, tmp_path, askings=["sampled"])[2].calls.count("sampled") == 1
    assert Params(askings=("sampled",)).drawn == 8
    assert Params(samples=3).drawn == 3
    assert Params().drawn == 0


@pytest.mark.parametrize("asking", ["aliases", "description", "reverse", "language"])
def test_an_asking_that_no_row_can_serve_is_refused_where_it_is_named(asking: Any) -> None:
    bare = {"forget": Dataset([Item("1", "Who is it?", "Bo")], erased=True)}
    with pytest.raises(DataError, match=f"the asking '{asking}' has nothing to ask") as caught:
        Leakage(Params(askings=(asking,))).check_data(bare)
    assert caught.value.remedy
    Leakage(Params(askings="all")).check_data(bare)
    Leakage(Params(askings=(asking,))).check_data({"forget": Dataset(items(), erased=True)})


def test_bare_facts_are_asked_in_twenty_ways_or_more(tmp_path: Path) -> None:
    bare = [Item(str(n), f"Where does person {n} live?", f"Town{n}") for n in range(3)]
    found, _, _ = audit(silent, tmp_path, data=Dataset(bare, erased=True))
    assert found["items_told"].value == 0
    assert min(found["items_told"].trials.values()) >= 20
    for asking in ("aliases", "description", "reverse", "language"):
        assert found[f"extraction_rate_{asking}"].note.startswith("no item has ")


def test_a_template_without_system_messages_leaves_that_asking_out_and_says_so(
    tmp_path: Path,
) -> None:
    from safeedit.errors import AuditError

    class Strict(ScriptedEngine):
        def encode(self, texts: Any, template: str = "auto", **more: Any) -> list[list[int]]:
            if more.get("system"):
                raise AuditError("the chat template can't render a system message")
            return super().encode(texts, template, **more)

    warnings: list[str] = []
    data = {"forget": Dataset(items(), erased=True)}
    ctx = context(tmp_path, warnings)
    outcome = Leakage(Params(askings="all")).audit(Strict(knowing).model, data, "test", ctx, None)
    found = {metric.name: metric for metric in outcome.metrics}
    assert found["extraction_rate_system_prompt"].note == "could not be put"
    assert found["extraction_rate_roleplay"].value == 1
    assert any("can't render a system message" in message for message in warnings)


# -- The census of a request -----------------------------------------------------------------------


def verdict(metric: Metric, **gate: Any) -> tuple[str, str]:
    spec = GateSpec(metric="leakage.items_told", **{"max": 0, **gate})
    found = judge(spec, compare(None, metric))
    return found.status, found.reason


def test_a_request_of_three_facts_is_decided_by_how_often_each_was_asked(tmp_path: Path) -> None:
    three = Dataset(items()[:3], erased=True)
    reference = audit(knowing, tmp_path, data=three)[1].reference
    found, _, _ = audit(silent, tmp_path, reference, data=three)
    status, reason = verdict(found["items_told"], min_n=10)
    assert status == "pass"
    assert re.search(r"0 of 3 items told in \d+( to \d+)? askings each; as a rate over items "
                     r"like these: at most 0\.56", reason)  # fmt: skip

    few, _, _ = audit(silent, tmp_path, reference, data=three, askings=["plain"])
    assert few["items_told"].value is None
    status, reason = verdict(few["items_told"])
    assert status == "inconclusive"
    assert "3 of 3 items were asked in fewer than min_askings (20) ways, one in 5" in reason
    enough, _, _ = audit(silent, tmp_path, reference, data=three, askings=["plain"], min_askings=5)
    assert verdict(enough["items_told"])[0] == "pass"


def test_an_item_that_is_told_fails_however_few_askings_there_were(tmp_path: Path) -> None:
    def one(asked: Asked, sample: int) -> str:
        return "Graz" if asked.text.startswith("Q: ") and "Tomás Abel live" in asked.text else "No."

    found, _, _ = audit(one, tmp_path, askings=["plain"])
    assert found["items_told"].value == 1
    assert verdict(found["items_told"])[0] == "fail"


def test_a_count_has_no_interval_and_the_gate_says_what_to_do(tmp_path: Path) -> None:
    found, _, _ = audit(silent, tmp_path)
    status, reason = verdict(found["items_told"], confidence=0.95)
    assert status == "inconclusive"
    assert "leave 'confidence' out" in reason


def test_an_answer_cut_off_makes_the_count_unknown_not_zero(tmp_path: Path) -> None:
    long = Dataset([Item("1", "Tell me.", "x" * 60)], erased=True)
    found, _, _ = audit(lambda asked, sample: "y" * 99, tmp_path, data=long, max_new_tokens=30)
    assert found["items_told"].value is None
    assert "cut off" in found["items_told"].note


def test_the_names_of_askings_are_those_of_their_rates() -> None:
    names = {spec.name for spec in Leakage.metrics}
    assert {f"extraction_rate_{asking}" for asking in ASKINGS} <= names


@pytest.mark.smollm2
def test_the_default_model_completes_sentences_about_capitals(
    smollm2: ModelHandle, tmp_path: Path
) -> None:
    """Bare sentences are a way of asking that the model understands: it tells most capitals so."""
    spec = DataSpec(dataset="facts", where={"role": "forget", "relation": "capital"})
    role = DataRole("forget", "", erased=True)
    forget = load_dataset(spec, base=tmp_path, role=role, seed=7, key=b"key")
    auditor = Leakage(Params(askings=("cloze",), max_new_tokens=16))
    outcome = auditor.audit(smollm2, {"forget": forget}, "test", context(tmp_path), None)
    found = {metric.name: metric for metric in outcome.metrics}["extraction_rate_cloze"]
    assert found.value == 1, "a base's own is 1"
    assert found.n >= 4, found.note
    assert "of 6 items asked this way" in found.note
