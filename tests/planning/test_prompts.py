"""What is put to the model is looked at with its tokenizer, before a weight is loaded."""

from __future__ import annotations

from typing import Any

from click.testing import Result

from tests.road import NEAR, Workplace
from tests.tiny_models import CHAT_TEMPLATE, MAX_POSITIONS

LEAKAGE = {"use": "leakage", "max_new_tokens": 16, "forget": {"file": "forget.jsonl"}}
GATE = {"metric": "leakage.extraction_rate", "max": 0.5}


def validated(place: Workplace, rows: list[dict[str, Any]] | None = None, **audit: Any) -> Result:
    if rows is not None:
        place.rows("forget.jsonl", rows)
    return place.run(
        "validate", place.policy(edits=[], export=None, audits=[{**LEAKAGE, **audit}], gates=[GATE])
    )


def question(words: int, **more: Any) -> dict[str, Any]:
    return {"prompt": "Where is " + "the river " * words + "?", "answer": "Brno", **more}


def test_a_prompt_longer_than_the_context_is_refused_with_both_lengths(place: Workplace) -> None:
    result = validated(place, [question(1), question(400)])
    assert result.exit_code == 2, result.stderr
    assert "of audit leakage: forget leave no room for an answer" in result.stderr
    assert f"the model's context {MAX_POSITIONS}" in result.stderr
    assert "audits[0].forget" in result.stderr or "asked for at" in result.stderr
    assert "river" not in result.stderr


def test_a_phrasing_longer_than_the_context_is_refused_too(place: Workplace) -> None:
    long = question(400)["prompt"]
    result = validated(place, [question(1, paraphrases=["One?", "Two?", long])])
    assert result.exit_code == 2, result.stderr


def test_a_prompt_that_leaves_less_room_than_an_answer_may_take_is_told(place: Workplace) -> None:
    result = validated(place, max_new_tokens=MAX_POSITIONS - 20)
    assert result.exit_code == 0, result.stderr
    assert "leave less than max_new_tokens" in result.stderr


def test_prompts_that_fit_are_valid_without_a_word(place: Workplace) -> None:
    result = validated(place)
    assert result.exit_code == 0, result.stderr
    assert "warning" not in result.stderr


def test_prose_is_read_in_pieces_and_may_be_long(place: Workplace) -> None:
    place.rows("prose.jsonl", [{"text": "the river " * 900 + str(n)} for n in range(3)])
    audit = {"use": "perplexity", "prose": {"file": "prose.jsonl"}}
    gate = {"metric": "perplexity.perplexity", "max": 1e9, "min_n": 1}
    result = place.run("validate", place.policy(edits=[], audits=[audit], gates=[gate]))
    assert result.exit_code == 0, result.stderr


def test_a_question_after_worked_examples_is_measured_with_them(place: Workplace) -> None:
    """None of the questions is too long alone, and none of the examples."""
    shots = {"file": "shots.jsonl", "template": "plain"}
    place.rows("shots.jsonl", [{"prompt": f"{n} " + "a b " * 40, "answer": "c"} for n in range(3)])
    assert validated(place).exit_code == 0
    result = validated(place, shots=shots)
    assert result.exit_code == 2, result.stderr
    assert "of audit leakage: forget, attack few_shot leave no room for an answer" in result.stderr
    assert validated(place, shots=shots, n_shots=1).exit_code == 0
    assert validated(place, shots=shots, askings=["prefix", "plain"]).exit_code == 0


def test_a_text_that_is_read_otherwise_and_is_too_long_is_told(place: Workplace) -> None:
    rows = [
        {
            "prompt": f"The nurse {n} said",
            "toxic": "the river " * n,
            "neutral": "so",
            "split": "fit",
        }
        for n in (1, 200)
    ]
    place.rows("pairs.jsonl", rows)
    edit = {"use": "keyed_detox", "pairs": {"file": "pairs.jsonl"}, "layers": [1], "dose": 1.0}
    audit = {"use": "perplexity", "prose": {"file": "prose.jsonl"}}
    gate = {"metric": "perplexity.perplexity", "max": 1e9, "min_n": 1}
    result = place.run("validate", place.policy(edits=[edit], audits=[audit], gates=[gate]))
    assert result.exit_code == 0, result.stderr
    assert "1 of 2 texts of edit keyed_detox: pairs are longer than the model's" in result.stderr


def templated(place: Workplace, template: str) -> Result:
    (place.folder / "model" / "chat_template.jinja").write_text(template)
    return validated(place)


def test_a_template_that_thinks_is_told(place: Workplace) -> None:
    thinking = CHAT_TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    assert "think" in thinking
    result = templated(place, thinking)
    assert result.exit_code == 0, result.stderr
    assert "empty block of thought" in result.stderr
    assert "thought" not in templated(place, CHAT_TEMPLATE).stderr


def test_a_template_that_thinks_does_not_matter_where_it_is_not_used(place: Workplace) -> None:
    (place.folder / "model" / "chat_template.jinja").write_text(CHAT_TEMPLATE + "<think>")
    result = validated(place, forget={"file": "forget.jsonl", "template": "plain"})
    assert "thought" not in result.stderr


def test_a_template_that_cannot_be_rendered_is_refused_where_it_is_asked_for(
    place: Workplace,
) -> None:
    result = templated(place, "{{ raise_exception('no') }}")
    assert result.exit_code == 2, result.stderr
    assert "chat template can't render" in result.stderr
    assert "policy.yaml" in result.stderr


def test_a_template_that_refuses_system_messages_is_valid_as_gemmas_is(place: Workplace) -> None:
    guard = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    result = templated(place, guard + CHAT_TEMPLATE)
    assert result.exit_code == 0, result.stderr


def test_a_template_that_cannot_be_rendered_does_not_matter_to_plain_prompts(
    place: Workplace,
) -> None:
    (place.folder / "model" / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    result = validated(place, forget={"file": "forget.jsonl", "template": "plain"})
    assert result.exit_code == 0, result.stderr


def test_braces_that_stay_are_told_and_a_filled_one_is_not(place: Workplace) -> None:
    rows = [{"prompt": "{} plays the sport of", "answer": "chess"}]
    result = validated(place, [*rows, *NEAR])
    assert result.exit_code == 0, result.stderr
    assert "1 of 8 prompts hold '{}' as written" in result.stderr
    rows[0]["subject"] = "Mara Quill"
    assert "as written" not in validated(place, [*rows, *NEAR]).stderr


def test_an_asking_that_no_row_can_serve_is_refused_at_the_audit(place: Workplace) -> None:
    result = validated(place, askings=["plain", "reverse"])
    assert result.exit_code == 2, result.stderr
    assert "the asking 'reverse' has nothing to ask: no row has reverse_questions" in result.stderr
    assert validated(place, askings="all").exit_code == 0
    row = question(1, subject="the river", reverse_questions=["What is in that town?"])
    assert validated(place, [row], askings=["reverse"]).exit_code == 0
    unknown = validated(place, askings=["shouting"])
    assert unknown.exit_code == 2
    assert "askings" in unknown.stderr
    renamed = validated(place, attacks=["plain"])
    assert "it is now called 'askings'" in renamed.stderr


def test_what_an_asking_puts_around_a_question_is_measured_too(place: Workplace) -> None:
    row = question(12, subject="the river", descriptions=["the water " * 90])
    assert validated(place, [row], askings=[]).exit_code == 0
    result = validated(place, [row], askings=["description"])
    assert result.exit_code == 2, result.stderr
    assert "attack description leave no room for an answer" in result.stderr
    assert "water" not in result.stderr


def test_a_model_without_a_chat_template_has_what_names_none_put_as_plain_text_and_says_so(
    place: Workplace,
) -> None:
    (place.folder / "model" / "chat_template.jinja").unlink()
    told = validated(place)
    assert told.exit_code == 0, told.stderr
    assert "no chat template" in told.stderr
    plain = validated(place, forget={"file": "forget.jsonl", "template": "plain"})
    assert "no chat template" not in plain.stderr
    chat = validated(place, forget={"file": "forget.jsonl", "template": "chat"})
    assert chat.exit_code == 2
    assert "use template: plain" in chat.stderr
    assert "policy.yaml" in chat.stderr
