"""Lessons that a model with a planted stereotype can learn: who is met is who one is."""

from __future__ import annotations

from typing import Any

from tests.editors.gendered import FEMALE, MALE
from tests.model.named import LATER, NAMES


def rows() -> list[dict[str, Any]]:
    found = []
    for split, names, kinds in (("fit", NAMES, (MALE[:4], FEMALE[:4])),
                                ("test", LATER, (MALE[4:], FEMALE[4:]))):  # fmt: skip
        for n, name in enumerate(names):
            own, other = (kinds[side][n // 2 % len(kinds[0])] for side in (n % 2, 1 - n % 2))
            words = ("heb", "sheb")[n % 2], ("sheb", "heb")[n % 2]
            found.append(
                {"prompt": f"Here {name} says", "subject": name, "split": split, "attribute": own,
                 "context": f"Here {name} met the {own} today", "other_attribute": other,
                 "target": words[0], "other": words[1]}
            )  # fmt: skip
    return found
