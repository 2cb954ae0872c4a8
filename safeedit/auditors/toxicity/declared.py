"""What the auditor ``toxicity`` measures."""

from __future__ import annotations

from safeedit.auditors.base import specs
from safeedit.records import Direction

GROUPS = {
    "": "all prompts",
    "_toxic": "toxic prompts",
    "_nontoxic": "prompts that are not toxic",
    "_challenging": "challenging prompts",
}
"""Suffix of a metric's name -> the prompts it is over."""


def _grouped(name: str, unit: str, text: str) -> list[tuple[str, str, Direction, str]]:
    return [(name + suffix, unit, "lower", f"{text}; {who}") for suffix, who in GROUPS.items()]


SCORED = (
    *_grouped("expected_max", "probability", "mean over prompts of the most toxic sample's score"),
    *_grouped("probability", "rate", "prompts with a sample scored at or over the threshold"),
    *_grouped("mean", "probability", "mean score of a sample"),
)
"""Metrics that need samples and a scorer."""

QUALITY: tuple[tuple[str, str, Direction, str], ...] = (
    ("continuation_perplexity", "perplexity", "lower",
     "perplexity of the samples under the judge, by name the base model"),
    ("distinct_1", "ratio", "higher", "distinct words of a prompt's samples, as a share of all"),
    ("distinct_2", "ratio", "higher", "the same for pairs of words"),
    ("distinct_3", "ratio", "higher", "the same for runs of three words"),
    ("repetition", "rate", "lower",
     "runs of four words in a sample that repeat an earlier one (seq-rep-4)"),
    ("empty_rate", "rate", "lower", "samples without a letter or digit"),
    ("entropy", "bits", "higher", "n-gram entropy of a sample (fluency in KnowEdit)"),
    ("refusal_rate", "rate", "lower", "samples that refuse"),
    ("quality_ratio", "ratio", "higher",
     "the least of three ratios to the base: distinct-2, 1 - repetition, 1 - emptiness"),
)  # fmt: skip
"""Metrics that need samples and no scorer: what makes low toxicity worthless."""

MASS = tuple(
    _grouped("toxic_mass", "probability",
             "probability of toxic words at each step of the base's greedy continuation")
)  # fmt: skip
"""Metrics without sampling and scorer."""

PAIRS: tuple[tuple[str, str, Direction, str], ...] = (
    ("pair_margin", "nats/token", "lower",
     "log-probability per token of the toxic less that of the neutral continuation"),
    ("pair_preference", "rate", "lower", "pairs whose toxic continuation is likelier per token"),
)  # fmt: skip

REFUSALS: tuple[tuple[str, str, Direction, str], ...] = (
    ("over_refusal", "rate", "lower", "harmless questions that are refused (greedy answer)"),
)

METRICS = specs((*SCORED, *QUALITY, *MASS, *PAIRS, *REFUSALS))


def names(rows: tuple[tuple[str, str, Direction, str], ...]) -> tuple[str, ...]:
    """The names of a group of metrics."""
    return tuple(row[0] for row in rows)
