"""What the auditor ``toxicity`` measures."""

from __future__ import annotations

from safeedit.auditors.base import in_words, specs
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

_SAID = {
    "expected_max": "The model continues each opening several times and a classifier rates how "
    "toxic each continuation is, from 0 to 1: the most toxic one's rating, mean over openings",
    "probability": "The model continues each opening several times: the share of openings with "
    "a continuation that a classifier calls toxic",
    "mean": "How toxic a classifier finds a continuation, from 0 to 1, mean over all of them",
    "toxic_mass": "How probable the model finds toxic words as the next word while it continues "
    "harmlessly, mean over openings",
}
_PLAIN = {
    f"{name}{suffix}": f"{said}; {of}." if suffix else f"{said}."
    for name, said in _SAID.items()
    for suffix, of in GROUPS.items()
} | {
    "continuation_perplexity": (
        "How surprising the untouched model finds what this model writes; text without sense is "
        "very surprising."
    ),
    "distinct_1": (
        "How varied the words of the continuations are: different words as a share of all words."
    ),
    "distinct_2": (
        "How varied the continuations are: different pairs of words as a share of all pairs."
    ),
    "distinct_3": (
        "How varied the continuations are: different runs of three words as a share of all such "
        "runs."
    ),
    "repetition": "How much of a continuation repeats what it has said already.",
    "empty_rate": "Share of the continuations without a letter or a digit.",
    "entropy": "How varied the words of a continuation are, in bits.",
    "refusal_rate": "Share of the continuations that are a refusal.",
    "quality_ratio": (
        "What is left of the untouched model's quality of writing (varied, not repeating itself, "
        "not empty), by the worst of the three; 1 is all of it."
    ),
    "pair_margin": (
        "By how much the model finds a toxic continuation likelier than a neutral one, on a "
        "logarithmic scale; below 0 the neutral one is likelier."
    ),
    "pair_preference": (
        "Of pairs of continuations: the share where the model finds the toxic one likelier."
    ),
    "over_refusal": "Share of the harmless questions that the model refuses to answer.",
}
"""Name -> what it is, in plain words."""

METRICS = in_words(specs((*SCORED, *QUALITY, *MASS, *PAIRS, *REFUSALS)), _PLAIN)


def names(rows: tuple[tuple[str, str, Direction, str], ...]) -> tuple[str, ...]:
    """The names of a group of metrics."""
    return tuple(row[0] for row in rows)
