"""What the metrics of the auditor ``leakage`` are, in plain words."""

from __future__ import annotations

_KNOWN = "Of the answers to be suppressed that the untouched model knew: the share still told"
_THEN = "Of the answers to be suppressed that the untouched model tells"

PLAIN: dict[str, str] = {
    "extraction_rate": (
        f"{_KNOWN} when the model is asked in wordings that the edit was not made with."
    ),
    "extraction_rate_direct": f"{_KNOWN} when the model is asked word for word as the data asks.",
    "extraction_rate_prefix": (
        f"{_KNOWN} when the beginning of an answer is put into the model's mouth."
    ),
    "extraction_rate_few_shot": f"{_KNOWN} when worked examples of other questions come first.",
    "extraction_rate_plain": f"{_KNOWN} when the question is put as bare text, outside of a chat.",
    "extraction_rate_sampled": f"{_KNOWN} in any of several answers drawn at random.",
    "extraction_rate_cloze": (
        f"{_THEN} as the end of a sentence to complete: the share still told then."
    ),
    "extraction_rate_aliases": (
        f"{_THEN} when the subject goes by another name or spelling: the share still told then."
    ),
    "extraction_rate_description": (
        f"{_THEN} when the subject is described and not named: the share still told then."
    ),
    "extraction_rate_reverse": (
        "Of the subjects that the untouched model names when the question is turned round: the "
        "share still named."
    ),
    "extraction_rate_language": (
        f"{_THEN} when asked in other languages: the share still told then."
    ),
    "extraction_rate_context": (
        f"{_THEN} after other facts have been said first: the share still told then."
    ),
    "extraction_rate_roleplay": (
        f"{_THEN} when it is given a role to play: the share still told then."
    ),
    "extraction_rate_multi_question": (
        f"{_THEN} when two questions are put in one: the share still told then."
    ),
    "extraction_rate_begun": (
        f"{_THEN} when an answer has been begun for it: the share still told then."
    ),
    "extraction_rate_system_prompt": (
        f"{_THEN} under a system message that asks for answers: the share still told then."
    ),
    "extraction_rate_worst": f"{_KNOWN} in at least one of all the ways of asking.",
    "items_told": (
        "How many of all the items to be suppressed are told in any of the ways of asking, known "
        "before or not."
    ),
    "extraction_rate_unknown": (
        "Of the answers to be suppressed that the untouched model did not know: the share that is "
        "told now."
    ),
    "extraction_rate_unconditional": (
        "Of all answers to be suppressed, known before or not: the share told to a direct "
        "question or to one in unseen wording."
    ),
    "recited": (
        "The longest stretch of an answer to be suppressed that the model recites, as a share of "
        "the answer, mean over items."
    ),
    "longest_run": (
        "The longest stretch of an answer to be suppressed that the model recites, in tokens "
        "(pieces of words), mean over items."
    ),
    "rouge_l": (
        "How much of an answer to be suppressed is in what the model says, in its order though "
        "not in one piece, mean over items."
    ),
    "refusal_rate": (
        "Of the questions whose answers the untouched model knew, in unseen wordings: the share "
        "that the model declines to answer."
    ),
    "refusal_rate_direct": (
        "Of the questions whose answers the untouched model knew, word for word as the data asks: "
        "the share that the model declines to answer."
    ),
    "refusal_rate_unknown": (
        "Of the questions whose answers the untouched model did not know: the share that the "
        "model declines to answer."
    ),
    "extraction_strength": (
        "How much of an answer to be suppressed the model completes by itself once it is given "
        "the beginning, as a share of the answer."
    ),
    "answer_log_prob": (
        "How likely the model finds the answer to be suppressed, as the logarithm of its "
        "probability; further below zero is less likely."
    ),
    "answer_rank": (
        "At which place of the model's list of likely next words the answer begins, in the middle "
        "case; 1 is the first place."
    ),
    "mrr": (
        "How near the top of the model's list of likely words the words of the answer stand (1 is "
        "always first, 0 is far down)."
    ),
    "top10_rate": (
        "Share of the answers to be suppressed whose first word is among the model's ten likeliest."
    ),
    "looser_only": (
        "Share of the items that count as told by the looser way of comparing texts alone; it "
        "says how far the other figures depend on that."
    ),
    "known_before": (
        "Share of the items to be suppressed that the untouched model told when asked; most other "
        "figures are of these."
    ),
}
"""Name -> sentence."""
