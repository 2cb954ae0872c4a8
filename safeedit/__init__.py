"""Edit a language model by policy: what goes in is measured, what comes out has passed.

In one sentence: **a policy goes in, a checkpoint that passed it comes out, or nothing does;
either way a report says what was measured.** ::

    policy.yaml ─ load_policy ─ make_plan ─ before-audit ─ edit ─ edit … ─ stage to disk
                                                                             │ reload
      exit 0  ◄─ promote checkpoint + evidence ◄─ pass ─ gates ◄─ after-audit ◄──────┘
      exit 1/4 ◄─ nothing exported, full report ◄─ fail or inconclusive ─┘

The audit that decides runs on the checkpoint as reloaded from the staging folder, in its
final dtype; the very bytes that passed are renamed into place.

From a program::

    from safeedit import load_policy, make_plan
    plan = make_plan(load_policy("policy.yaml"))       # everything resolved, no weights
    print(plan.summary())

Where things are, lowest layer first; a module imports only from layers above it in this
list, which ``tests/test_layers.py`` enforces:

===================================  ========================================================
:mod:`safeedit.errors`               every error on purpose, in one tree
:mod:`safeedit.code`                 the code as a digest, for the keys of what is kept
:mod:`safeedit.observing`            how a run tells where it is
:mod:`safeedit.private`              what only its owner may read: keys, private folders
:mod:`safeedit.records`              what is written to disk: metrics, verdicts, the run
                                     record
:mod:`safeedit.policy`               the policy as frozen records, and errors that say where
:mod:`safeedit.cache`                the user's cache folder, and the one atomic write
:mod:`safeedit.statistics`           intervals, tests, metrics held against gates
:mod:`safeedit.text`                 answers, refusals and personal data in text
:mod:`safeedit.contracts`            what editors, auditors and scorers promise
:mod:`safeedit.data`                 items, splits, phrasings, and the loaders
:mod:`safeedit.delta`                a change of weights as a value
:mod:`safeedit.model`                families, handles, sources, the engine
:mod:`safeedit.methods`              mathematics that several editors or auditors need
:mod:`safeedit.editors`              one method per file; the file's stem is its name
:mod:`safeedit.attacks`              one attempt to bring it back per file
:mod:`safeedit.auditors`             one property per file
:mod:`safeedit.scorers`              one text classifier per file, and how far each agrees
                                     with people
:mod:`safeedit.catalog`              names to editors, auditors and scorers
:mod:`safeedit.export`               staging, checkpoint, evidence, manifest, ledger,
                                     comparison
:mod:`safeedit.report`               renderings of a run record and the model card, pure
:mod:`safeedit.planning`             everything resolved and checked, no weights loaded
:mod:`safeedit.running`              the one place where a delta meets a model
:mod:`safeedit.workflows`            canaries, comparison of editors, tracing, REMEDI's own
                                     uses
:mod:`safeedit.cli`                  the command line
===================================  ========================================================

To add an editor, add a file to ``safeedit/editors`` that keeps
:class:`~safeedit.contracts.Editor`, or register one under the entry-point group
``safeedit.editors``. Nothing else knows the list.

Importing safeedit imports no torch: the names below are fetched when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safeedit.contracts import (
        Auditor,
        AuditOutcome,
        BaseParams,
        DataRole,
        EditData,
        Editor,
        Proposal,
        RunContext,
        TensorPlan,
    )
    from safeedit.data import Dataset, Item, load_dataset
    from safeedit.delta import Columns, Dense, LowRank, Origin, WeightDelta
    from safeedit.errors import (
        AuditError,
        DataError,
        EditError,
        ExportError,
        ModelError,
        PolicyError,
        SafeeditError,
        UnsupportedModelError,
        UsageError,
    )
    from safeedit.export.compare import diff_checkpoints
    from safeedit.export.reversion import revert
    from safeedit.model.handle import ModelHandle
    from safeedit.model.sources import open_model
    from safeedit.planning.plan import Plan
    from safeedit.planning.resolution import make_plan
    from safeedit.policy import Policy, load_policy
    from safeedit.records import Metric, MetricSpec, RunRecord
    from safeedit.running.run import execute, measure
    from safeedit.workflows.verification import verify

__version__ = "0.1.0"

_HOMES = {
    "safeedit.contracts": (
        *("AuditOutcome", "Auditor", "BaseParams", "DataRole", "EditData", "Editor"),
        *("Proposal", "RunContext", "TensorPlan"),
    ),
    "safeedit.data": ("Dataset", "Item", "load_dataset"),
    "safeedit.delta": ("Columns", "Dense", "LowRank", "Origin", "WeightDelta"),
    "safeedit.errors": (
        *("AuditError", "DataError", "EditError", "ExportError", "ModelError", "PolicyError"),
        *("SafeeditError", "UnsupportedModelError", "UsageError"),
    ),
    "safeedit.export.compare": ("diff_checkpoints",),
    "safeedit.export.reversion": ("revert",),
    "safeedit.model.handle": ("ModelHandle",),
    "safeedit.model.sources": ("open_model",),
    "safeedit.planning.plan": ("Plan",),
    "safeedit.planning.resolution": ("make_plan",),
    "safeedit.policy": ("Policy", "load_policy"),
    "safeedit.records": ("Metric", "MetricSpec", "RunRecord"),
    "safeedit.running.run": ("execute", "measure"),
    "safeedit.workflows.verification": ("verify",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AuditError",
    "AuditOutcome",
    "Auditor",
    "BaseParams",
    "Columns",
    "DataError",
    "DataRole",
    "Dataset",
    "Dense",
    "EditData",
    "EditError",
    "Editor",
    "ExportError",
    "Item",
    "LowRank",
    "Metric",
    "MetricSpec",
    "ModelError",
    "ModelHandle",
    "Origin",
    "Plan",
    "Policy",
    "PolicyError",
    "Proposal",
    "RunContext",
    "RunRecord",
    "SafeeditError",
    "TensorPlan",
    "UnsupportedModelError",
    "UsageError",
    "WeightDelta",
    "__version__",
    "diff_checkpoints",
    "execute",
    "load_dataset",
    "load_policy",
    "make_plan",
    "measure",
    "open_model",
    "revert",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'safeedit' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__
