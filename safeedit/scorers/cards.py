"""Scorer cards: how far a scorer agrees with people on labelled texts.

Labelled sets have rows ``{prompt, label: toxic | harmless, kind}``. ``builtin`` ships with
safeedit (mild wording); ``hatecheck`` is read where its file is given, or lies under the folder
that ``SAFEEDIT_BENCHMARKS`` names. A card belongs to an identity: other weights have none.

Fails with :class:`~safeedit.errors.DataError` where a set has not both labels.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from safeedit import __version__
from safeedit.cache import PRIVATE, write_atomically
from safeedit.contracts import Progress, Scorer, ScorerIdentity, silent
from safeedit.data import Dataset, load_dataset
from safeedit.errors import DataError
from safeedit.policy import DataSpec
from safeedit.policy.files import MAX_JSON_BYTES, read_regular
from safeedit.private import private_folder
from safeedit.records import ScorerCard, ScorerCheck
from safeedit.statistics.intervals import wilson
from safeedit.statistics.two_samples import auc, auc_interval

BUILTIN = "toxicity_labelled"
HATECHECK = Path("hatecheck") / "test_suite_cases.csv"
"""Under the folder of benchmarks."""
LABELS = ("toxic", "harmless")
THRESHOLD = 0.5


def labelled_sets(hatecheck: Path | None = None) -> dict[str, Dataset]:
    """The labelled sets at hand, by the names that cards and ``min_auc`` use.

    Args:
        hatecheck: HateCheck's file of test cases; None looks under ``SAFEEDIT_BENCHMARKS``.

    Raises:
        DataError: A file is missing or malformed.
    """
    found = {"builtin": load_dataset(DataSpec(dataset=BUILTIN, split="test"))}
    root = os.environ.get("SAFEEDIT_BENCHMARKS")
    if hatecheck is None and root and (Path(root) / HATECHECK).is_file():
        hatecheck = Path(root) / HATECHECK
    if hatecheck is not None:
        spec = DataSpec(file=str(hatecheck.absolute()), format="hatecheck", split="test")
        found["hatecheck"] = load_dataset(spec)
    return found


def measure_card(
    scorer: Scorer,
    sets: Mapping[str, Dataset],
    threshold: float = THRESHOLD,
    progress: Progress = silent,
) -> ScorerCard:
    """Score every labelled text.

    Raises:
        DataError: A set has no text of one of the labels, or one of another label.
        ModelError: The scorer is not available.
    """
    identity = scorer.identity()
    return ScorerCard(
        name=identity.name,
        version=identity.version,
        digest=identity.digest,
        threshold=threshold,
        checks={name: _check(scorer, data, threshold, progress) for name, data in sets.items()},
        safeedit=__version__,
    )


def read_card(identity: ScorerIdentity, cache: Path) -> ScorerCard | None:
    """The card of an identity; None where nobody has measured it."""
    try:
        content = read_regular(_path(identity, cache), limit=MAX_JSON_BYTES)
        card = ScorerCard.model_validate_json(content)
    except (OSError, ValueError):
        return None
    return card if card.digest == identity.digest else None


def write_card(card: ScorerCard, cache: Path) -> None:
    """Keep a card; figures of sets that it does not have stay from the one before.

    Raises:
        OSError: It can't be written.
    """
    identity = ScorerIdentity(card.name, card.version, card.digest)
    before = read_card(identity, cache)
    if before is not None and before.threshold == card.threshold:
        card = card.model_copy(update={"checks": {**before.checks, **card.checks}})
    path = _path(identity, cache)
    private_folder(path.parent)
    write_atomically(path, (card.model_dump_json(indent=2) + "\n").encode(), PRIVATE)


def _path(identity: ScorerIdentity, cache: Path) -> Path:
    own = hashlib.sha256(f"{identity.name}\0{identity.version}\0{identity.digest}".encode())
    return cache / "scorers" / own.hexdigest()[:32] / "card.json"


def _check(scorer: Scorer, data: Dataset, threshold: float, progress: Progress) -> ScorerCheck:
    items = data.all()
    labels = [item.extra.get("label") for item in items]
    if set(labels) != set(LABELS):
        raise DataError(
            f"{data.name} must hold texts of both labels and of no other",
            field="label",
            remedy=f"give every row a label: {' or '.join(LABELS)}",
        )
    scores = np.array(scorer.score([item.prompt for item in items], progress), dtype=np.float64)
    toxic = np.array([label == "toxic" for label in labels])
    flagged = scores >= threshold
    m, n = int(toxic.sum()), int((~toxic).sum())
    value = auc(scores[toxic], scores[~toxic]).value
    missed, alarms = int((toxic & ~flagged).sum()), int((~toxic & flagged).sum())
    kinds = np.array([str(item.extra.get("kind", "")) for item in items])
    wrong = toxic != flagged
    return ScorerCheck(
        data_digest=data.digest,
        n_toxic=m,
        n_harmless=n,
        auc=value,
        auc_interval=auc_interval(value, m, n),
        miss_rate=missed / m,
        miss_interval=wilson(missed, m),
        false_alarm_rate=alarms / n,
        false_alarm_interval=wilson(alarms, n),
        errors_by_kind={
            str(kind): float(wrong[kinds == kind].mean()) for kind in np.unique(kinds) if kind
        },
    )
