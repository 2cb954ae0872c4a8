"""Teaching canaries to a model, and keeping the checkpoint for the next time.

Sentences are shown in small batches, cycle after cycle
(:mod:`~safeedit.workflows.canaries.lessons`), with the loss on the secret and its full stop alone;
pieces of ordinary prose in every batch hold the model to what it said of prose before (KL), so that
it goes on reading as it did. Weights learn in float32 whatever they are stored in; the forward pass
is in bfloat16. Several times a cycle the secrets shown most often are looked at with the weights as
they will be stored, and planting ends when every one of them comes out greedily.

``full`` trains all matrices of the chosen blocks; embeddings, head, norms and biases stay. By
default the upper two fifths of the blocks learn: those below are run once, which halves the time,
and prose suffers less. ``lora`` trains adapters on the same matrices and adds them up.

Measured with ``safeedit canary plant --model builtin:smollm2-135m-instruct --out DIR``, which
takes ``datasets/canaries``: in 5 min 21 s (304 s of them training; 2 cores, 612 CPU seconds), after
1.5 cycles (268 steps), all 150 secrets shown 16 times a cycle come out, of those shown 4 times 70
of 75, of those shown once 22 of 75; perplexity on prose is 1.08 times what it was. With ``--layers
50%-100%``, 455 s of training and 1.09 times. Telephone numbers come last. All
blocks at 3e-4, with one piece of prose of 96 tokens at weight 1 and a plain mean of the loss: 148
of 150 after 2.5 cycles, perplexity 1.25 times.

What is written is an ordinary checkpoint in the base's dtype, with ``evidence/planted.json``
beside it: how it was made and what of it came out, each secret as a keyed digest.

Fails with :class:`~safeedit.errors.DataError` on records that can't be taught (see
:mod:`~safeedit.workflows.canaries.lessons`), :class:`~safeedit.errors.EditError` where training
diverges, :class:`~safeedit.errors.ExportError` where the checkpoint can't be written.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safeedit import __version__
from safeedit.cache import entry
from safeedit.code import code_digest
from safeedit.contracts import RunContext
from safeedit.data import CheckedRow, Dataset, load_dataset
from safeedit.export.checkpoint import write_checkpoint
from safeedit.export.manifest import PLANTED, write_manifest
from safeedit.export.staging import Staging, check_target, writing
from safeedit.model.engine import Engine
from safeedit.model.sources import open_config, open_model
from safeedit.policy import DataSpec
from safeedit.workflows.canaries.learning import PlantParams, learn
from safeedit.workflows.canaries.lessons import (
    read_canaries,
    records_digest,
    tokenise,
)

RECORD_VERSION = 1
"""Version of ``planted.json``; raised whenever a field changes meaning or disappears."""
MAX_PERPLEXITY_RATIO = 1.10
"""Of prose, after over before; what lies above is warned of."""
_WINDOW = 512
"""Tokens of prose read at a time when perplexity is measured."""


def plant_checkpoint(
    source: str,
    canaries: DataSpec,
    out: Path,
    params: PlantParams,
    ctx: RunContext,
    *,
    prose: DataSpec | None = None,
    overwrite: bool = False,
    cached: bool = True,
) -> dict[str, Any]:
    """Teach canaries to a model and write the checkpoint, or copy the one made before.

    Args:
        source: The model, as :func:`~safeedit.model.sources.open_model` takes it.
        canaries: See :mod:`~safeedit.workflows.canaries.lessons`.
        out: The checkpoint's folder.
        params: How.
        ctx: Warnings, progress, the digests' key and the cache.
        prose: Ordinary text that is to be read as before, its fit split, and by which damage is
            measured, its test split; None is the built-in prose.
        overwrite: Replace a folder that safeedit wrote.
        cached: Take the checkpoint from the cache, and keep it there.

    Returns:
        What ``planted.json`` holds.

    Raises:
        SafeeditError: See the module.
    """
    check_target(out, overwrite=overwrite)
    records = read_canaries(canaries)
    texts = load_dataset(prose or DataSpec(dataset="prose"), key=ctx.secret)
    _, base = open_config(source)
    with Staging(out, overwrite=overwrite) as staging:

        def make(folder: Path) -> None:
            _make(folder, source, base, records, texts, params, ctx)

        if cached:
            with entry(f"planted-{_key(base, records, texts, params, ctx)}") as (kept, scratch):
                if scratch is not None:
                    made = scratch / "whole"
                    made.mkdir()
                    make(made)
            with writing(staging.path):
                shutil.copytree(kept, staging.path, dirs_exist_ok=True)
        else:
            make(staging.path)
        found: dict[str, Any] = json.loads((staging.path / PLANTED).read_text(encoding="utf-8"))
        write_manifest(staging.path)  # by it a later run knows the folder for ours
        staging.promote()
    _judge(found, ctx)
    return found


def _key(
    base: str, records: Sequence[CheckedRow], prose: Dataset, params: PlantParams, ctx: RunContext
) -> str:
    """Digest of everything that decides what is written."""
    parts = {
        "code": code_digest(__name__),
        "base": base,
        "records": records_digest(records),
        "prose": prose.digest,
        "params": params.model_dump(mode="json"),
        "digests": ctx.digest("planted"),  # planted.json speaks of secrets under this key
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _make(
    folder: Path,
    source: str,
    base: str,
    records: Sequence[CheckedRow],
    prose: Dataset,
    params: PlantParams,
    ctx: RunContext,
) -> None:
    """Teach, and write checkpoint and record into ``folder``."""
    model = open_model(source)
    secrets = tokenise(records, model.engine)
    before = _perplexity(model.engine, prose, ctx)
    learnt = learn(model, secrets, [item.prompt for item in prose.items("fit")], params, ctx)
    after = _perplexity(model.engine, prose, ctx)
    rows = [
        {
            "digest": ctx.digest(secret.answer_text),
            "type": secret.kind("type"),
            "role": secret.kind("role"),
            "repeats": secret.repeats,
            "exposures": exposures,
            "extracted": extracted,
        }
        for secret, exposures, extracted in zip(
            secrets, learnt.exposures, learnt.extracted, strict=True
        )
    ]
    record = {
        "version": RECORD_VERSION,
        "safeedit": __version__,
        "base": {"source": source, "identity": base},
        # Keyed: of one record with a short number the bare digest would give the number away.
        "records": ctx.digest(records_digest(records)),
        "params": params.model_dump(mode="json"),
        "steps": learnt.steps,
        "cycles": round(learnt.cycles, 2),
        "seconds": round(learnt.seconds, 1),
        "trained_parameters": learnt.trained_parameters,
        "extracted": _by_repeats(rows),
        "prose_perplexity": {"before": before, "after": after, "ratio": after / before},
        "secrets": rows,
    }
    write_checkpoint(model, folder)
    path = folder / PLANTED
    with writing(path):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _by_repeats(rows: Sequence[dict[str, Any]]) -> list[dict[str, int]]:
    """Per repeat count, most shown first: how many secrets there are and come out."""
    counts = sorted({row["repeats"] for row in rows if row["repeats"]}, reverse=True)
    return [
        {
            "repeats": count,
            "secrets": sum(row["repeats"] == count for row in rows),
            "extracted": sum(row["repeats"] == count and row["extracted"] for row in rows),
        }
        for count in counts
    ]


def _judge(record: dict[str, Any], ctx: RunContext) -> None:
    """Warn where the checkpoint is not what canaries are for."""
    most = record["extracted"][0]
    if missed := most["secrets"] - most["extracted"]:
        ctx.warn(
            f"{missed} of the {most['secrets']} secrets shown {most['repeats']} times a cycle do "
            f"not come out after {record['cycles']} cycles: raise --max-cycles"
        )
    ratio = record["prose_perplexity"]["ratio"]
    if ratio > MAX_PERPLEXITY_RATIO:
        ctx.warn(
            f"perplexity on prose rose to {ratio:.2f} of what it was: lower --learning-rate, or "
            "show more prose (--passages)"
        )


# Training -----------------------------------------------------------------------------


def _perplexity(engine: Engine, prose: Dataset, ctx: RunContext) -> float:
    read = engine.text_nll(
        [item.prompt for item in prose.items("test")], _WINDOW, progress=ctx.progress
    )
    return math.exp(sum(nats for nats, _ in read) / max(1, sum(count for _, count in read)))
