"""One edit, one audit: the plug-in that its ``use`` names, with its parameters, data, tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from safeedit import catalog
from safeedit.contracts import Auditor, BaseParams, EditData, Editor, metrics_of, settled
from safeedit.data import Dataset
from safeedit.model.architectures import ModelShape
from safeedit.planning.located import Located
from safeedit.planning.options import read_options
from safeedit.planning.plan import PlannedAudit, PlannedEdit
from safeedit.policy import AuditSpec, EditSpec, LoadedPolicy
from safeedit.policy.layers import AUTO, candidates
from safeedit.policy.reading import FieldPath


def plan_edit(
    loaded: LoadedPolicy, index: int, shape: ModelShape, key: bytes | None
) -> PlannedEdit:
    """Resolve an edit.

    Args:
        loaded: The policy.
        index: Of the edit in it.
        shape: Of its model.
        key: Of the digests of data.

    Raises:
        DataError: Its data is missing, malformed or unfit for its editor.
        PolicyError: Its editor, or a key, is unknown; ``dose: auto`` has no targets.
    """
    spec = loaded.policy.edits[index]
    at: FieldPath = ("edits", index)
    with Located(loaded, (*at, "use")):
        kind = catalog.editor(spec.use)
    data, params = read_options(loaded, at, spec, kind.roles, kind.Params, key)
    tried = _tried(params, shape)
    editor = kind(tried[0])
    with Located(loaded, at):
        touched = [tuple(kind(each).touches(shape)) for each in tried]
    _check_data(loaded, at, spec, editor, data)
    targets = spec.targets or tuple(gate for gate in loaded.policy.gates if gate.as_is)
    if spec.dose == "auto" and not targets:
        raise loaded.error(
            (*at, "dose"),
            "'dose: auto' needs targets to meet, and the policy has no gates",
            "add 'targets' to the edit or 'gates' to the policy, or give a number",
        )
    if len(tried) > 1 and not targets:
        raise loaded.error(
            (*at, "layers"),
            "'layers: auto' needs targets to choose by, and the policy has no gates",
            "add 'targets' to the edit or 'gates' to the policy, or name layers",
        )
    planned = PlannedEdit(
        spec.id,
        spec,
        editor,
        params,
        EditData({role: found.without("test") for role, found in data.items()}),
        tuple(dict.fromkeys(tensor for tensors in touched for tensor in tensors)),
        targets,
        tuple(found for found in data.values() if found.erased),
    )
    if len(tried) == 1:
        return planned
    places = tuple(
        replace(planned, editor=kind(each), params=each, tensors=tensors)
        for each, tensors in zip(tried, touched, strict=True)
    )
    return replace(planned, places=places)


def _tried(params: BaseParams, shape: ModelShape) -> list[BaseParams]:
    """The parameters at each of the layers that ``layers: auto`` tries; otherwise as they are."""
    if getattr(params, "layers", None) != AUTO:
        return [params]
    own = type(params).model_fields["layers"].default
    most = 1 if shape.norm_after_mlp else None  # over several layers nothing can be spread then
    return [params.model_copy(update={"layers": layers})
            for layers in candidates(own, shape.n_layers, most)]  # fmt: skip


def _check_data(
    loaded: LoadedPolicy,
    at: FieldPath,
    spec: EditSpec | AuditSpec,
    plugin: Editor | Auditor,
    data: Mapping[str, Dataset],
) -> None:
    """What an editor or auditor says its data lacks; they may offer it."""
    check = getattr(plugin, "check_data", None)
    if not callable(check):
        return
    role = plugin.roles[0].name
    with Located(loaded, (*at, role if role in spec.options else "data")):
        check(data)


def plan_audit(
    loaded: LoadedPolicy,
    spec: AuditSpec,
    at: FieldPath,
    key: bytes | None,
    given: Mapping[str, Dataset] | None = None,
) -> PlannedAudit:
    """Resolve an audit; ``given`` is data that doesn't come from its own keys."""
    with Located(loaded, (*at, "use")):
        kind = catalog.auditor(spec.use)
    data, params = read_options(loaded, at, spec, kind.roles, kind.Params, key, given)
    with Located(loaded, at):
        params = settled(kind, params, loaded.base)
        auditor = kind(params)
        metrics_of(auditor)  # which may hang on files that are read now
    _check_data(loaded, at, spec, auditor, data)
    return PlannedAudit(spec.id, spec, auditor, params, data, at)
