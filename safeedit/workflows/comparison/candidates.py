"""From a policy with one edit to the same policy once for each editor.

An editor takes of the policy's edit the data of those roles that it has itself, by name; what is to
be forgotten goes to its own role of that kind, whatever it is called. The edit's parameters are
its own editor's alone. A *settings* file says more of single candidates::

    rome@more: {use: rome, phrasings: 6, preserve: {dataset: facts, where: {role: near}}}
    ft: {steps: 40, dose: 1.0}

Each key there is a candidate: an editor, ``EDITOR@VARIANT``, or any name beside ``use``. Its own
keys are ``use``, ``dose``, parameters, and data of roles other than the facts, which are the same
for all; relative paths start at the policy's folder. The policy's edit may also hold data that only
other editors take.

Fails with :class:`~safeedit.errors.PolicyError` at a place in the policy or the settings, and with
:class:`~safeedit.errors.UsageError` on names that make no sense.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safeedit import catalog
from safeedit.contracts import DataRole, Editor
from safeedit.errors import PolicyError, UsageError
from safeedit.planning.options import part_options, roles_by_key
from safeedit.policy import (
    AuditSpec,
    DataSpec,
    EditSpec,
    LoadedPolicy,
    Policy,
    policy_digest,
)
from safeedit.policy.reading import FieldPath, read_yaml
from safeedit.policy.suggest import did_you_mean

NONE, RANDOM = "none", "random"
"""Rows beside the editors': the untouched model, and the first editor's random control."""

_NO_EDITORS = (NONE, RANDOM, *catalog.PROMPT_BASELINES)

LEAKAGE, FAILURES = "leakage", "leakage.failures"
"""Where a policy has the first of these audits, a comparison has the second too."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*([.@][A-Za-z0-9][A-Za-z0-9_-]*)*")
_AT: FieldPath = ("edits", 0)


@dataclass(frozen=True)
class Candidate:
    """One editor, and the policy that runs it."""

    name: str
    """As the comparison calls it; a folder's name too."""
    use: str
    loaded: LoadedPolicy
    warning: str = ""
    """What a reader of its figures should know."""


@dataclass(frozen=True)
class CandidateSettings:
    """What a settings file says: candidate -> key -> value; empty without one."""

    source: LoadedPolicy | None
    """The file in the shape in which errors find their places; its policy is not its own."""
    entries: Mapping[str, Mapping[str, Any]]

    def error(self, field: FieldPath, message: str, remedy: str = "") -> PolicyError:
        assert self.source is not None
        return self.source.error(field, message, remedy)


def read_settings(path: Path | None, loaded: LoadedPolicy) -> CandidateSettings:
    """Read a settings file; None stands for an empty one.

    Raises:
        UsageError: There is no such file.
        PolicyError: It is no YAML mapping of mappings.
    """
    if path is None:
        return CandidateSettings(None, {})
    if not path.is_file():
        raise UsageError(
            "there is no such file of parameters",
            file=path,
            remedy="write YAML such as 'rome: {phrasings: 6}', a key for each editor",
        )
    raw, positions = read_yaml(path)
    settings = CandidateSettings(replace(loaded, path=path, positions=positions), {})
    if not isinstance(raw, dict):
        raise settings.error((), "should be a mapping", "write 'rome: {phrasings: 6}'")
    entries: dict[str, Mapping[str, Any]] = {}
    for name, entry in raw.items():
        if entry is not None and not isinstance(entry, dict):
            raise settings.error((name,), "should be a mapping", "write 'rome: {phrasings: 6}'")
        if name in _NO_EDITORS:
            raise settings.error((name,), "takes no parameters", "remove it")
        entries[name] = entry or {}
    return replace(settings, entries=entries)


def read_candidates(
    loaded: LoadedPolicy, names: Sequence[str], settings: CandidateSettings
) -> tuple[Candidate, ...]:
    """The policy once for each named editor, in order; ``none``, ``random`` and baselines that
    are prompts have none.

    Raises:
        UsageError: A name is given twice, is no name, or there is no editor but ``random``.
        PolicyError: The policy has not exactly one edit, an editor does not exist, a role that it
            needs is missing, or a key is unknown.
    """
    _check_names(names)
    uses = _uses(loaded, names, settings)
    if not set(names) - set(_NO_EDITORS):
        return ()
    policy = _with_failures(loaded)
    own, roles = _own(loaded)
    found = []
    for place, (name, use) in enumerate(uses.items()):
        options = _options(loaded, name, use, own, roles, settings)
        edit = EditSpec.model_validate(
            {
                **options,
                "use": use,
                "id": name.replace("@", "."),
                "dose": _dose(own, name, settings),
                "targets": own.targets,
                "control": own.control,
                "unaudited": own.unaudited,
            }
        )
        made = policy.model_copy(update={"edits": (edit,)})
        if place == 0 and RANDOM in names:
            made = _controlled(made)
        warning = ""
        if own.dose != "auto" and use != own.use and "dose" not in settings.entries.get(name, {}):
            warning = f"takes dose {own.dose:g}, which the policy fixes for {own.use}"
        found.append(Candidate(name, use, _with(loaded, made), warning))
    return tuple(found)


def without_edits(loaded: LoadedPolicy) -> LoadedPolicy:
    """The policy of the row ``none``: it only measures, with the audits of all others."""
    return _with(loaded, _with_failures(loaded).model_copy(update={"edits": ()}))


def _with(loaded: LoadedPolicy, policy: Policy) -> LoadedPolicy:
    return replace(loaded, policy=policy, digest=policy_digest(policy))


def _check_names(names: Sequence[str]) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(
            f"{twice[0]!r} is named twice",
            field="editors",
            remedy=f"call a variant {twice[0]}@NAME and give its parameters with --params",
        )
    for name in names:
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} is no name of an editor or variant",
                field="editors",
                remedy="separate names by commas: rome,rome@more,ft",
            )
    if not set(names) - {NONE, RANDOM}:
        raise UsageError(
            "there is no editor to compare", field="editors", remedy="name at least one"
        )
    if RANDOM in names and not set(names) - set(_NO_EDITORS):
        raise UsageError(
            "there is no editor whose random control could be compared",
            field="editors",
            remedy=f"name one, or leave {RANDOM} out",
        )


def _uses(
    loaded: LoadedPolicy, names: Sequence[str], settings: CandidateSettings
) -> dict[str, str]:
    """Candidate -> its editor, of those named; the settings' others are looked at too."""
    uses: dict[str, str] = {}
    asked = [name for name in names if name not in _NO_EDITORS]
    for name in dict.fromkeys((*asked, *settings.entries)):
        entry = settings.entries.get(name)
        use = name.partition("@")[0] if entry is None else entry.get("use", name.partition("@")[0])
        known = {*catalog.names("editors"), *asked, *settings.entries} - {name}
        try:
            catalog.editor(str(use))
        except PolicyError as error:
            at: FieldPath = (name, "use") if entry is not None and "use" in entry else (name,)
            remedy = did_you_mean(str(use), known)
            if entry is not None:
                raise settings.error(at, error.message, remedy) from None
            raise UsageError(error.message, field="editors", remedy=remedy) from None
        if name in asked:
            if "@" in name and entry is None:
                raise UsageError(
                    f"nothing says how {name!r} differs from {use!r}",
                    field="editors",
                    remedy=f"give its parameters with --params: '{name}: {{use: {use}, ...}}'",
                )
            uses[name] = str(use)
    return uses


def _own(loaded: LoadedPolicy) -> tuple[EditSpec, Mapping[str, Any]]:
    """The policy's one edit, and its data: role -> source. The facts are under ``""``."""
    edits = loaded.policy.edits
    if len(edits) != 1:
        raise loaded.error(
            ("edits", 1) if edits else ("edits",),
            f"a comparison needs a policy with one edit, and this has {len(edits)}",
            "leave one edit in, with the facts and data that all editors are to take",
        )
    (edit,) = edits
    try:
        kind = catalog.editor(edit.use)
    except PolicyError as error:
        raise loaded.error((*_AT, "use"), error.message, error.remedy) from None
    facts = _facts(kind)
    every = _all_roles()
    options = part_options(edit.options, kind.roles)
    roles = {"" if role == facts else role.name: edit.options[key] for role, key in options.data}
    roles |= {key: value for key, value in options.rest.items() if key in every}
    params = {key: value for key, value in options.rest.items() if key not in every}
    if key := replace(options, rest=params).unknown(kind.Params):
        known = (*EditSpec.model_fields, *kind.Params.model_fields, *every)
        raise loaded.error((*_AT, key), f"unknown key {key!r}", did_you_mean(key, known))
    return edit, roles


def with_own_data(loaded: LoadedPolicy) -> LoadedPolicy:
    """The policy without an export and, in its one edit, without the data of other editors.

    Raises:
        PolicyError: It has not exactly one edit, or a key there is none of any editor.
    """
    edit, _ = _own(loaded)
    kind = catalog.editor(edit.use)
    foreign = part_options(edit.options, kind.roles).rest.keys() & _all_roles()
    shown = edit.model_dump(exclude_unset=True, exclude=foreign)
    policy = {"edits": (EditSpec.model_validate(shown),), "export": None}
    return replace(loaded, policy=loaded.policy.model_copy(update=policy))


def _all_roles() -> set[str]:
    return {role.name for name in catalog.names("editors") for role in catalog.editor(name).roles}


def _facts(kind: type[Editor]) -> DataRole | None:
    """The role that takes what is to be forgotten; None where an editor erases nothing."""
    return next((role for role in kind.roles if role.erased and not role.comparison_only), None)


def _options(
    loaded: LoadedPolicy,
    name: str,
    use: str,
    own: EditSpec,
    roles: Mapping[str, Any],
    settings: CandidateSettings,
) -> dict[str, Any]:
    """Data and parameters of one candidate, as its edit in a policy would have them."""
    kind = catalog.editor(use)
    facts = _facts(kind)
    entry = settings.entries.get(name, {})
    options: dict[str, Any] = {}
    for role in kind.roles:
        key = "" if role == facts else role.name
        if key in roles:
            options[role.name] = roles[key]
    if use == own.use:
        options |= {key: v for key, v in own.options.items() if key in kind.Params.model_fields}
    said = part_options({k: v for k, v in entry.items() if k not in ("use", "dose")}, kind.roles)
    for role, key in said.data:
        if role == facts:
            raise settings.error(
                (name, key),
                f"{key!r} is what is to be forgotten, which is the same for all",
                "give it in the policy's edit alone",
            )
        assert settings.source is not None
        settings.source.parse(DataSpec, entry[key], (name, key))
        options[role.name] = entry[key]
    if (unknown := said.unknown(kind.Params)) is not None:
        known = ("use", "dose", *kind.Params.model_fields, *roles_by_key(kind.roles))
        remedy = did_you_mean(unknown, known)
        raise settings.error((name, unknown), f"{use} has no {unknown!r}", remedy)
    options |= said.rest
    if entry:
        assert settings.source is not None
        settings.source.parse(kind.Params, part_options(options, kind.roles).rest, (name,))
    for role in kind.roles:
        if role.required and role.name not in options:
            where = "the policy's edit" if role == facts else "the policy's edit or --params"
            raise loaded.error(
                _AT,
                f"{name} needs data that is not there: {role.name} ({role.description})",
                f"add '{role.name}: {{file: ...}}' to {where}, or leave {name} out",
            )
    return options


def _dose(own: EditSpec, name: str, settings: CandidateSettings) -> Any:
    """As the settings say, else as the policy's edit does."""
    entry = settings.entries.get(name, {})
    if "dose" not in entry:
        return own.dose
    assert settings.source is not None
    given = {"use": own.use, "dose": entry["dose"]}
    return settings.source.parse(EditSpec, given, (name,)).dose


def _with_failures(loaded: LoadedPolicy) -> Policy:
    """The policy without its export; where it asks for erased facts, with KnowEdit's audit of
    the same answers."""
    policy = loaded.policy.model_copy(update={"export": None})
    if any(FAILURES in (audit.use, audit.id) for audit in policy.audits):
        return policy
    asking = next((audit for audit in policy.audits if audit.use == LEAKAGE), None)
    if asking is None:
        return policy
    kept = ("forget", "data", "max_new_tokens", "refusal_patterns")
    options = {key: value for key, value in asking.options.items() if key in kept}
    if any(edit.options.get("target") == "replace" for edit in policy.edits):
        options["wanted"] = "replace"
    stage = {"use": FAILURES, "required": False, "control": asking.control}
    added = AuditSpec.model_validate({**options, **stage})
    return policy.model_copy(update={"audits": (*policy.audits, added)})


def _controlled(policy: Policy) -> Policy:
    """The same with a random control that every audit measures."""
    (edit,) = policy.edits
    return policy.model_copy(
        update={
            "edits": (edit.model_copy(update={"control": edit.control or True}),),
            "audits": tuple(audit.model_copy(update={"control": True}) for audit in policy.audits),
        }
    )
