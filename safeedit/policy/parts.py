"""What the parts of a policy have in common: strictness, names, lists given as tuples."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field

NAME = r"[A-Za-z0-9][A-Za-z0-9_-]*"
STAGE_NAME = rf"^{NAME}(\.{NAME})*$"

_Part = TypeVar("_Part")
Sequenced = Annotated[tuple[_Part, ...], Field(strict=False)]
"""A tuple that may be given as a list, as YAML and JSON do."""


class PolicyPart(BaseModel):
    """Base of the parts of a policy: immutable, and strict about unknown fields."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,  # "5" is no number and 1 is no text
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


def exactly_one(part: BaseModel, names: tuple[str, ...]) -> None:
    """Refuse a part that sets none or several of its alternatives.

    Raises:
        ValueError: naming what was found.
    """
    given = [name for name in names if getattr(part, name) is not None]
    if len(given) != 1:
        what = " and ".join(given) if given else "none"
        raise ValueError(f"give exactly one of {', '.join(names)} (found {what})")
