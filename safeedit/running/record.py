"""What a run leaves behind: verdicts, the model, the data, the machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from safeedit import __version__
from safeedit.model.digest import digest_of
from safeedit.model.handle import ModelHandle
from safeedit.model.model_card import trained_on
from safeedit.planning.plan import Plan
from safeedit.policy import GateSpec
from safeedit.records import (
    AttackRecord,
    Comparison,
    EditRecord,
    EnvironmentRecord,
    Glossary,
    ModelRecord,
    Verdict,
)
from safeedit.running.audits import Audits
from safeedit.statistics.known import unless_unknown
from safeedit.statistics.verdicts import verdicts_on


def verdicts_of(
    audits: Audits,
    comparisons: Mapping[str, Comparison],
    edits: Sequence[EditRecord],
    attacks: Sequence[AttackRecord] = (),
) -> tuple[Verdict, ...]:
    """What every gate of the plan says, the ledger's included; of one under several attacks, one
    verdict for each."""
    plan = audits.plan
    found = tuple(
        verdict if verdict.under else _unless_unknown(audits, gate, verdict)
        for gate in plan.gates
        for verdict in verdicts_on(gate, comparisons, edits, attacks)
    )
    return found if plan.ledger is None else tuple(map(plan.ledger.judged, found))


def _unless_unknown(audits: Audits, gate: GateSpec, verdict: Verdict) -> Verdict:
    """What a gate says; nothing, of items of which the base knew none."""
    plan = audits.plan
    if not (plan.edits or plan.attacks) or (plan.ledger is not None and gate == plan.ledger.gate):
        return verdict  # a ledger asks of its base that it knows nothing any more
    specs = {name: spec for audit in plan.audits for name, spec in audit.metrics.items()}
    spec, base = specs.get(gate.metric), audits.baseline_metrics("test")
    known = base.get(f"{gate.audit}.{spec.known_by}") if spec is not None else None
    return unless_unknown(verdict, spec, known)


def policy_record(plan: Plan) -> dict[str, Any]:
    """The policy of a run as its record repeats it, and where its gates stand in its file."""
    policy, loaded = plan.loaded.policy, plan.loaded
    shown, path = plan.recorded_policy, loaded.path.resolve()
    here = path.is_relative_to(Path.cwd())
    file = path.relative_to(Path.cwd()).as_posix() if here else ""
    positions = (loaded.positions.get(("gates", index)) for index in range(len(policy.gates)))
    return {
        "policy_name": policy.name,
        "policy_digest": plan.policy_digest,
        "policy": shown,
        "policy_file": file if plan.hidden.value(file) == file else "",
        "gate_lines": tuple(at.key[0] if at is not None else 0 for at in positions),
        "owner": shown["owner"],
        "ticket": policy.ticket,
    }


def of_plan(plan: Plan) -> dict[str, Any]:
    """What a record has from its plan: data without anything of what it says, and the words for
    the plan's edits, audits, attacks and metrics."""
    specs = {name: spec for audit in plan.audits for name, spec in audit.metrics.items()}
    return {
        "datasets": {
            name: {
                "digest": data.digest,
                "source": plan.shown_source(data),
                "items": data.counts(),
            }
            for name, data in plan.datasets()
        },
        "glossary": Glossary(
            edits={edit.id: edit.editor.summary for edit in plan.edits},
            audits={audit.id: audit.auditor.summary for audit in plan.audits},
            attacks={attack.id: attack.attack.summary for attack in plan.attacks},
            metrics={name: spec.sentence for name, spec in specs.items() if spec.plain},
            erasure=tuple(name for name, spec in specs.items() if spec.erasure),
        ),
    }


def model_record(
    source: str, revision: str | None, model: ModelHandle, place: str = "", adapter: str = ""
) -> ModelRecord:
    """A model of a run: source, shape, digest, and what of its files was cast or not read.

    Args:
        source: As the policy or the command line names it.
        revision: Of a hub model.
        model: Opened.
        place: The source as seen from here, where that is written otherwise.
        adapter: The folder of what was merged into it, as the policy names it.
    """
    stored = model.on_disk
    assert stored is not None, "a run opens its model from files"
    return ModelRecord(
        source=source,
        local=Path(place or source).expanduser().exists(),
        revision=revision,
        architecture=model.architecture.family,
        parameters=model.shape.n_parameters,
        layers=model.n_layers,
        roles=model.shape.roles,
        training_tokens=trained_on(source, model.folder),
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        digest=digest_of(stored.digests()),
        adapter=None if stored.adapter is None else stored.adapter.record(adapter),
        casts=stored.casts(model.dtype),
        names=stored.renamed(model.shape.tied),
        unread=stored.unread,
    )


def environment_record(device: str) -> EnvironmentRecord:
    """The machine and the packages that a run's figures were made with."""
    packages: dict[str, Any] = {}
    for name in ("torch", "transformers", "peft", "safetensors", "datasets", "scikit-learn"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return EnvironmentRecord(
        safeedit=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        processor=platform.processor() or platform.machine(),
        cpu_count=os.cpu_count() or 1,
        device=device,
        packages=packages,
    )
