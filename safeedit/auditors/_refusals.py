"""The parameter by which a policy teaches an auditor more ways to refuse."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error.msg}") from None
    return pattern


RefusalPatterns = Annotated[
    tuple[Annotated[str, AfterValidator(_compiles)], ...],
    Field(
        description="Further regular expressions of a refusal, read case-insensitively in an "
        "answer's first 200 characters (see safeedit.text.matching.REFUSAL_PATTERNS)"
    ),
]
