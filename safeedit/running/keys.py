"""Keys of what the store keeps: everything that made a figure or a change, and nothing else.

Two findings of one key are the same finding: same weights, configuration and tokenizer, same data
and parameters, same seed and digest key, same code of ours and versions of what it stands on, same
device, CPU kernels and number of threads.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version

import torch

from safeedit import __version__
from safeedit.code import code_digest
from safeedit.contracts import RunContext, ScorerRef
from safeedit.data import Dataset
from safeedit.model.handle import ModelHandle
from safeedit.planning.plan import PlannedAttack, PlannedAudit, PlannedEdit
from safeedit.records import Split


def audit_key(
    ctx: RunContext,
    model: ModelHandle,
    audit: PlannedAudit,
    split: Split,
    *,
    wanted: frozenset[str] | None,
    base: str = "",
    attack: Mapping[str, object] | None = None,
) -> str:
    """Of an audit.

    Args:
        ctx: Of the run.
        model: Measured; under an attack, the model as it was before.
        audit: From the plan.
        split: Of its data.
        wanted: Metrics that were looked at; None: all.
        base: Key of the audit of the untouched model it is held against, if any.
        attack: What :func:`strength` says of the attack it is made under.
    """
    modules = [type(audit.auditor).__module__]
    if attack is not None:
        modules.append(str(attack["module"]))
    return _key(
        ctx,
        model,
        modules,
        use=audit.spec.use,
        params=audit.params.model_dump(mode="json"),
        data=_data(audit.data),
        split=split,
        wanted=sorted(wanted or ()),
        scorers=scorer_notes(ctx, audit),
        base=base,
        attack=attack,
        **({"preface": model.engine.preface} if model.engine.preface else {}),
    )


def edit_key(ctx: RunContext, model: ModelHandle, edit: PlannedEdit) -> str:
    """Of what an editor proposes for a model."""
    return _key(
        ctx,
        model,
        [type(edit.editor).__module__],
        use=edit.spec.use,
        params=edit.params.model_dump(mode="json"),
        data=_data(edit.data.roles),
    )


def strength(attack: PlannedAttack, seed: int, dose: float) -> dict[str, object]:
    """All that decides what one strength of an attack makes of a model; ``module`` is where its
    code is."""
    return {
        "attack": attack.spec.use,
        "module": type(attack.attack).__module__,
        "params": attack.params.model_dump(mode="json"),
        "data": _data(attack.data.roles),
        "seed": seed,
        "dose": dose,
    }


def joined(*parts: object) -> str:
    """One key of several JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def scorer_notes(ctx: RunContext, audit: PlannedAudit) -> list[str]:
    """What is known of the scorers that an audit uses, as its figures tell it."""
    refs = [value for _, value in audit.params if isinstance(value, ScorerRef)]
    return [ctx.scorer(ref).note for ref in refs]


def _key(ctx: RunContext, model: ModelHandle, modules: Sequence[str], **parts: object) -> str:
    everywhere = {
        "weights": model.digest(),
        "config": _config(model),
        "tokenizer": _tokenizer_digest(model),
        "device": _device(model.device),
        "kernels": _kernels(),
        "code": code_digest(*modules, "safeedit.model.sources"),
        "seed": ctx.seed,
        "secret": ctx.digest("cache key"),
        "safeedit": __version__,
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }
    return joined(everywhere, parts)


def _device(device: torch.device) -> list[str]:
    """What computes, whichever of several alike it is."""
    kind = device.type
    return [kind, torch.cuda.get_device_name(device)] if kind == "cuda" else [kind]


def _kernels() -> list[object]:
    """What decides in which order sums are added up, and so their last bit."""
    return [
        torch.backends.cpu.get_cpu_capability(),
        os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
        torch.get_num_threads(),
    ]


def _data(roles: Mapping[str, Dataset]) -> dict[str, list[object]]:
    return {role: [data.digest, data.template] for role, data in roles.items()}


def _config(model: ModelHandle) -> object:
    found = json.loads(model.config.to_json_string(use_diff=False))
    # Where it was read from decides nothing, and is another folder for every staged checkpoint.
    return {name: value for name, value in found.items() if name != "_name_or_path"}


def _tokenizer_digest(model: ModelHandle) -> str:
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else repr(model.tokenizer)
    text += str(getattr(model.tokenizer, "chat_template", ""))
    return hashlib.sha256(text.encode()).hexdigest()
