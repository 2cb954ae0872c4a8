"""Scorers as auditors get them: found by name, checked, their scores kept on disk.

A score is kept under the scorer's identity, the digest of its code and a keyed digest of the text,
so that a text that comes up again (the base's samples, in a second run) is not scored again; the
texts themselves are not kept. Every row is sealed with the key of the digests: a score decides
gates, and one that was changed is computed again. A cache that can't be written costs time, nothing
else.

Fails with :class:`~safeedit.errors.AuditError` where a scorer's weights have changed since the
plan, where its card does not reach what the policy demands, and where it gives what is no
probability.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from safeedit.cache import PRIVATE, write_atomically
from safeedit.code import code_digest
from safeedit.contracts import (
    Progress,
    ReadyScorer,
    RunContext,
    Scorer,
    ScorerIdentity,
    ScorerRef,
    silent,
)
from safeedit.errors import AuditError
from safeedit.policy.suggest import did_you_mean
from safeedit.private import private_folder
from safeedit.records import ScorerCard
from safeedit.scorers.cards import read_card

_AT_ONCE = 2048
"""Texts scored between two writes: what an interrupted run has done is not done again."""
_QUERY = 500


def scorers(
    ctx: RunContext, make: Callable[[ScorerRef], Scorer]
) -> Callable[[ScorerRef], ReadyScorer]:
    """What :attr:`RunContext.scorer` is to be: opens each scorer once, and warns once.

    Args:
        ctx: Gives the cache, the key of the texts' digests, and ``warn``.
        make: Finds the scorer that a reference names: :func:`safeedit.catalog.make_scorer`.
    """
    opened: dict[str, ReadyScorer] = {}

    def open_(ref: ScorerRef) -> ReadyScorer:
        key = ref.model_dump_json()
        if key not in opened:
            opened[key] = _open(make(ref), ref, ctx)
        return opened[key]

    return open_


def check_auc(ref: ScorerRef, identity: ScorerIdentity, card: ScorerCard | None) -> None:
    """Hold a scorer's card against what a policy demands of it.

    Raises:
        AuditError: It has no card, none of that set, or too low an AUC.
    """
    for name, least in ref.min_auc.items():
        check = card.checks.get(name) if card is not None else None
        if check is None:
            known = f" ({did_you_mean(name, card.checks)})" if card is not None else ""
            raise AuditError(
                f"the scorer {identity} must reach AUC {least:g} on {name}, and its card has no "
                f"figure for {name}{known}",
                remedy=f"measure it: safeedit scorer check {ref.use} (with its parameters)",
            )
        if check.auc < least:
            raise AuditError(
                f"the scorer {identity} has AUC {check.auc:.3f} on {name}; the policy demands "
                f"{least:g}",
                remedy="use a scorer that sees what is to be measured, or demand less",
            )


def _open(scorer: Scorer, ref: ScorerRef, ctx: RunContext) -> ReadyScorer:
    identity = scorer.identity()
    if ref.digest and identity.digest != ref.digest:
        raise AuditError(
            f"the scorer {identity} is not the one that was planned with",
            remedy="make the plan again",
        )
    card = read_card(identity, ctx.cache)
    check_auc(ref, identity, card)
    if card is None or not ref.min_auc:
        ctx.warn(_warning(scorer, identity, card))
    scores = _Scores(scorer, identity, ctx)
    return ReadyScorer(identity, card, scores)


def _warning(scorer: Scorer, identity: ScorerIdentity, card: ScorerCard | None) -> str:
    """What low toxicity by this scorer does not mean."""
    text = f"toxicity is what the scorer {identity} sees; it does not see {scorer.blind_to}"
    if card is None:
        return f"{text}. It has no card: measure it with 'safeedit scorer check'"
    known = []
    for name, check in card.checks.items():
        low, high = check.auc_interval.low, check.auc_interval.high
        said = f"AUC {check.auc:.2f} [{low:.2f}, {high:.2f}] on {name}"
        known.append(f"{said}, no better than chance" if low <= 0.5 else said)
    return f"{text} ({'; '.join(known)}). 'min_auc' can demand more"


class _Scores:
    """A scorer whose scores are checked, and remembered on disk."""

    def __init__(self, scorer: Scorer, identity: ScorerIdentity, ctx: RunContext) -> None:
        self.scorer, self.identity, self.secret = scorer, identity, ctx.secret
        code = code_digest(type(scorer).__module__)
        parts = (identity.name, identity.version, identity.digest, code)
        own = hashlib.sha256("\0".join(parts).encode())
        self.path = ctx.cache / "scorers" / own.hexdigest()[:32] / "scores.sqlite"

    def __call__(self, texts: Sequence[str], progress: Progress = silent) -> list[float]:
        """Scores, those known from before not computed again; an empty text has 0."""
        keys = [self._key(text) for text in texts]
        said = {key: text for key, text in zip(keys, texts, strict=True) if text.strip()}
        known = dict.fromkeys(keys, 0.0)
        with self._open() as store:
            rows = _read(store, list(said))
            found = {
                key: score
                for key, score, seal in rows
                if hmac.compare_digest(self._seal(key, score), seal)
            }
            known |= found
            new = [key for key in said if key not in found]
            for start in range(0, len(new), _AT_ONCE):
                part = new[start : start + _AT_ONCE]
                scores = self.scorer.score([said[key] for key in part], progress)
                self._check(scores, len(part))
                fresh = dict(zip(part, scores, strict=True))
                known |= fresh
                _write(
                    store, [(key, score, self._seal(key, score)) for key, score in fresh.items()]
                )
        return [known[key] for key in keys]

    def _key(self, text: str) -> bytes:
        return hmac.new(self.secret, text.encode(errors="surrogatepass"), hashlib.sha256).digest()

    def _seal(self, key: bytes, score: float) -> bytes:
        """Of one row, for this scorer alone."""
        row = b"\0".join((self.path.parent.name.encode(), key, float(score).hex().encode()))
        return hmac.new(self.secret, b"safeedit score" + row, hashlib.sha256).digest()

    def _check(self, scores: Sequence[float], texts: int) -> None:
        if len(scores) != texts or not all(0 <= score <= 1 for score in scores):
            raise AuditError(
                f"the scorer {self.identity} gave something else than a probability for each text",
                remedy="its weights may be damaged: fetch them again, or use another scorer",
            )

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection | None]:
        store = _connect(self.path)
        try:
            yield store
        finally:
            if store is not None:
                store.close()


def _connect(path: Path) -> sqlite3.Connection | None:
    store = None
    try:
        private_folder(path.parent)
        if not path.exists():
            write_atomically(path, b"", PRIVATE)
        store = sqlite3.connect(path, timeout=10)
        store.execute(
            "CREATE TABLE IF NOT EXISTS sealed (text BLOB PRIMARY KEY, score REAL, seal BLOB)"
        )
    except (OSError, sqlite3.Error):
        if store is not None:
            store.close()
        return None
    return store


def _read(
    store: sqlite3.Connection | None, keys: Sequence[bytes]
) -> Iterator[tuple[bytes, float, bytes]]:
    if store is None:
        return
    with contextlib.suppress(sqlite3.Error, TypeError, ValueError):
        for start in range(0, len(keys), _QUERY):
            part = keys[start : start + _QUERY]
            marks = ",".join("?" * len(part))
            rows = store.execute(
                f"SELECT text, score, seal FROM sealed WHERE text IN ({marks})", part
            )
            yield from ((bytes(key), float(score), bytes(seal)) for key, score, seal in rows)


def _write(store: sqlite3.Connection | None, rows: Sequence[tuple[bytes, float, bytes]]) -> None:
    if store is None:
        return
    with contextlib.suppress(sqlite3.Error), store:
        store.executemany("INSERT OR REPLACE INTO sealed VALUES (?, ?, ?)", rows)
