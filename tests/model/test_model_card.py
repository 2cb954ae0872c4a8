"""What a card tells of a model's training, and how many tokens a model reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from safeedit.model.builtin import BUILTIN
from safeedit.model.model_card import trained_on
from safeedit.model.token_count import TokenCount
from tests.tiny_models import tiny_handle


@pytest.mark.parametrize(
    ("card", "tokens"),
    [
        ("It was pretrained on 11 trillion tokens of text.", 11 * 10**12),
        ("The model was trained on 15T+ tokens", 15 * 10**12),
        ("trained from scratch on 300B tokens", 300 * 10**9),
        ("Pre-trained on a total of 1.4 trillion high-quality tokens.", 14 * 10**11),
        ("Trained with 6 trillion tokens; it was trained on 6T tokens.", 6 * 10**12),
        ("The 27B model was trained with 14 trillion tokens, the 12B one trained with 12 trillion "
         "tokens.", None),
        ("It has 7B parameters and reads 8k tokens. It was trained with care.", None),
        ("", None),
    ],
)  # fmt: skip
def test_a_card_tells_training_tokens_where_it_tells_one_number(
    card: str, tokens: int | None, tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_text(card)
    assert trained_on("somebody/model", tmp_path) == tokens


def test_nothing_is_known_without_a_card(tmp_path: Path) -> None:
    assert trained_on("somebody/model", tmp_path) is None
    assert trained_on("somebody/model", None) is None
    assert trained_on("builtin:nobody", tmp_path) is None


@pytest.mark.parametrize("name", BUILTIN)
def test_built_in_models_tell(name: str) -> None:
    assert (trained_on(f"builtin:{name}", None) or 0) >= 10**12


def test_tokens_are_counted_wherever_they_are_read() -> None:
    model = tiny_handle("llama")
    count = TokenCount()
    prompts = model.engine.encode(["Which river did she cross?", "Name a river."])
    with count.of(model):
        model.engine.generate(prompts, max_new_tokens=4)
    assert count.tokens is not None
    assert count.tokens >= sum(map(len, prompts))
    before = count.tokens
    model.engine.generate(prompts, max_new_tokens=4)
    assert count.tokens == before, "only what is read within it"


def test_a_part_that_nobody_noted_makes_the_count_unknown() -> None:
    count = TokenCount()
    count.add(3)
    count.add(None)
    count.add(4)
    assert count.tokens is None
