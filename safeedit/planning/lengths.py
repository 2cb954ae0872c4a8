"""Whether an audit reads far enough for the answers it looks for, known before anything runs.

Only where a policy sets ``max_new_tokens`` itself; left out, audits read as far as answers are
long. Answers are counted in the model's own tokens, so its tokenizer is needed, and no weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from safeedit.model.tokens import TokenCodec
from safeedit.policy import LoadedPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from safeedit.planning.plan import PlannedAudit


def check_lengths(
    loaded: LoadedPolicy, tokenizer: PreTrainedTokenizerBase, audits: Sequence[PlannedAudit]
) -> tuple[str, ...]:
    """See that answers fit into what audits read.

    Args:
        loaded: The policy.
        tokenizer: The model's.
        audits: The audits, with their data.

    Returns:
        Warnings: of audits, how many of their answers do not fit and will be inconclusive where
        the model does not end its answer earlier.

    Raises:
        PolicyError: None of the answers an audit looks for fits.
    """
    limited = [
        (audit, role.name, limit)
        for audit in audits
        if isinstance(limit := getattr(audit.params, "max_new_tokens", None), int)
        for role in audit.auditor.roles
        if role.answered and role.name in audit.data
    ]
    if not limited:
        return ()
    codec = TokenCodec(tokenizer)
    found = (_check_audit(loaded, codec, *each) for each in limited)
    return tuple(warning for warning in found if warning is not None)


def _check_audit(
    loaded: LoadedPolicy, codec: TokenCodec, audit: PlannedAudit, role: str, limit: int
) -> str | None:
    """The warning of one audit's answers of one role, if there is one."""
    data = audit.data[role]
    answers = [item.answer for item in data if item.answer]
    lengths = list(map(len, codec.continuations(answers, data.template)))
    longer = sum(length > limit for length in lengths)
    if not longer:
        return None
    told = (
        f"audit {audit.id} reads max_new_tokens: {limit} tokens, and {longer} of "
        f"{len(lengths)} answers of its {role} data are longer, {max(lengths)} at most"
    )
    if longer == len(lengths):
        raise loaded.error(
            audit.at,
            f"{told}: none could be found",
            "leave max_new_tokens out, and answers are read to their length, or set it to "
            f"{max(lengths)} or more",
        )
    return (
        f"{told}: where the model does not end before, figures over them have no value; leave "
        "max_new_tokens out, and answers are read to their length"
    )
