"""Does the model still read prose as well as before?

Perplexity over held-out prose: the exponential of nats per token, tokens of all passages
weighing the same. Passages are read as plain text, in windows of 512 tokens; the
first token of a window is context only (a BOS, where the tokenizer begins texts with one).

``ratio`` is the figure to gate on with a confidence: it pairs every passage with itself on the
base, so its interval is far narrower than that of two perplexities apart.

Perplexity depends on the tokenizer: compare models before and after an edit, not with each
other. Fails with :class:`~safeedit.errors.AuditError` where there is no passage of two tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from safeedit.auditors.base import (
    FINGERPRINT,
    PROSE_WINDOW,
    Sheet,
    check_reference,
    fingerprint,
    stable_order,
)
from safeedit.contracts import AuditOutcome, BaseParams, DataRole, RunContext
from safeedit.data import Dataset, Item
from safeedit.data.independence import together
from safeedit.errors import AuditError
from safeedit.model.handle import ModelHandle
from safeedit.records import AttackClass, MetricSpec, Split


class Params(BaseParams):
    """Nothing to set: passages are read in one way, so that figures of two policies compare."""


class Perplexity:
    """Reads prose and compares with how the base read it."""

    Params: ClassVar[type[BaseParams]] = Params
    summary: ClassVar[str] = "perplexity on held-out prose, and its ratio to the base"
    covers: ClassVar[tuple[AttackClass, ...]] = ()
    roles: ClassVar[tuple[DataRole, ...]] = (DataRole("prose", "passages of ordinary text"),)
    metrics: ClassVar[tuple[MetricSpec, ...]] = (
        MetricSpec(
            name="perplexity",
            unit="perplexity",
            direction="lower",
            description="exp of nats per token over all tokens",
            plain="How surprised the model is by ordinary prose that it reads: among how many "
            "equally likely words it hesitates, on average.",
        ),
        MetricSpec(
            name="nats_per_token",
            unit="nats/token",
            direction="lower",
            description="mean negative log-likelihood of a token",
            plain="How surprised the model is by a piece of a word of ordinary prose, on a "
            "logarithmic scale.",
        ),
        MetricSpec(
            name="ratio",
            unit="ratio",
            direction="lower",
            description="perplexity over the base's, passages paired",
            plain="How surprised the model is by ordinary prose, as a multiple of the untouched "
            "model's surprise; 1 is unchanged.",
        ),
    )

    def __init__(self, params: Any) -> None:
        self.params: Params = params

    def tokens(self, data: Mapping[str, Dataset]) -> int:
        """Tokens through the model on the test split, roughly, for ``plan``."""
        return sum(len(item.prompt) for item in data["prose"].items("test")) // 4

    def audit(
        self,
        model: ModelHandle,
        data: Mapping[str, Dataset],
        split: Split,
        ctx: RunContext,
        reference: Mapping[str, Tensor] | None,
    ) -> AuditOutcome:
        """Read every passage of the split.

        Raises:
            AuditError: There is nothing to read, or the reference belongs to other data.
        """
        check_reference(reference, data, split)
        passages = stable_order(item.prompt for item in data["prose"].items(split))
        read = model.engine.text_nll(passages, max_length=PROSE_WINDOW, progress=ctx.progress)
        nats = torch.tensor([total for total, _ in read], dtype=torch.float64)
        counts = torch.tensor([count for _, count in read], dtype=torch.int64)
        if not counts.any():
            raise AuditError(
                f"perplexity has nothing to read: no passage of two tokens in the {split} split",
                remedy="give it prose of that split",
            )
        if reference is None:
            reference = {FINGERPRINT: fingerprint(data, split), "nats": nats, "counts": counts}
        if not torch.equal(reference["counts"], counts):
            raise AuditError(
                "the base read the same passages as other tokens",
                remedy="audit the base again with this model's tokenizer",
            )
        long_enough = counts > 0
        keys = [
            ctx.digest(passage)
            for passage, kept in zip(passages, long_enough.tolist(), strict=True)
            if kept
        ]
        kept = [p for p, whole in zip(passages, long_enough.tolist(), strict=True) if whole]
        items = [Item(key, passage) for key, passage in zip(keys, kept, strict=True)]
        tokens = counts[long_enough].double()
        now, base = nats[long_enough], reference["nats"][long_enough]
        weights = dict(zip(keys, tokens.tolist(), strict=True))

        def per_token(total: Tensor) -> dict[str, float]:
            return dict(zip(keys, (total / tokens).tolist(), strict=True))

        sheet = Sheet(self.metrics, together(keys, items, erased=False))
        sheet.mean("nats_per_token", per_token(now), weights=weights)
        sheet.exponential("perplexity", per_token(now), weights)
        sheet.exponential("ratio", per_token(now - base), weights)
        return AuditOutcome(sheet.metrics(), dict(reference))
