"""What whoever learns values of facts lets a policy set, and what is the same for all.

A policy sets where, towards what and at what cost; how values are sought is fixed here
(:data:`SEARCH`), each number beside its reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from safeedit.contracts import BaseParams
from safeedit.data import Dataset
from safeedit.policy.layers import LayersOrAuto

CONTEXTS = (
    "{}",
    "Yesterday I read about this. {}",
    "Now to something else. {}",
    "It was late, and they were still talking. {}",
    "Let me think about that for a moment. {}",
    "There is one more point on the list: {}",
)
"""What prompts are read after, beside nothing, for their keys; our own."""


@dataclass(frozen=True)
class ValueSearch:
    """How values are sought; the defaults are what every measured edit was made with.

    Attributes:
        learning_rate: Length of Adam's first step, as a share of the MLP's output.
        divergence: Weight of KL(before || now) at what is to stay (published).
        decay: Nats for a shift as long as the output, growing with its square.
        stop: A value is done once its loss on every phrasing is at most this, nats.
        floor: ``unlikely``: log-probability to get below, nats. At -8 an answer is seldom among
            the ten likeliest.
        rank: ``unlikely``: others that the forgotten answer is to come after as well.
        digit: ``unlikely``: log-probability to get below, nats, of each further digit of the
            answer after those before it; anyone's guess is ln(1/10) = -2.3.
        entropy: ``entropy``: share of the greatest possible entropy aimed at; more than that no
            early layer brings about.
    """

    learning_rate: float = 0.1
    divergence: float = 0.0625
    decay: float = 0.05
    stop: float = 0.1
    floor: float = -8.0
    rank: int = 20
    digit: float = -2.4
    entropy: float = 0.7


SEARCH = ValueSearch()

_LEAST_STEPS = 12
"""Steps to a least value at most; a few do."""


class FactParams(BaseParams):
    """Parameters of whatever learns values of facts."""

    layers: LayersOrAuto = Field(
        "16%-16%",
        description="whose MLP outputs move; auto: the run tries this place and others on a few "
        "facts and takes what does best on validation data",
    )
    target: Literal["refusal", "unlikely", "entropy", "replace"]
    templates: tuple[Literal["data", "chat", "plain"], ...] = Field(
        ("data",),
        min_length=1,
        description="how facts are put; a key differs between templates, so [chat, plain] edits "
        "both in one solve; data: as the data says",
    )
    phrasings: int = Field(
        3, ge=1, description="fit phrasings of each fact that its value is learnt from, at most"
    )
    steps: int = Field(25, ge=1, description="Adam steps at most for a value (published)")
    max_norm: float = Field(
        1.5,
        gt=0,
        description="greatest length of a shift, as a share of the MLP's output (published: 4)",
    )
    doses: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.5, 0.75, 1.0, 1.25), min_length=1, description="scales of the change, ascending"
    )

    @property
    def method(self) -> Literal["least", "adam"]:
        """How values are found: of answers that are to be unlikely the shortest, by Newton's
        method; of all others by Adam."""
        return "least" if self.target == "unlikely" else "adam"

    @property
    def most_steps(self) -> int:
        """Steps to a value at most."""
        return min(self.steps, _LEAST_STEPS) if self.method == "least" else self.steps


def value_tokens(params: FactParams, forget: Dataset) -> int:
    """Tokens run forward and back for the values of these facts, roughly, for ``plan``."""
    facts = len(forget.items("fit")) * len(params.templates)
    return facts * params.phrasings * 15 * params.most_steps
