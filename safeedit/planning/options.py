"""The free keys of an edit or audit: data, by role, and parameters."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safeedit import catalog
from safeedit.cache import cache_dir
from safeedit.contracts import BaseParams, DataRole, ModelRef, ScorerRef
from safeedit.data import Dataset, load_dataset
from safeedit.data.columns import answer_hint
from safeedit.data.loading import with_defaults
from safeedit.errors import DataError, ModelError, UsageError
from safeedit.model.sources import open_config
from safeedit.planning.located import Located
from safeedit.policy import AttackSpec, AuditSpec, DataSpec, EditSpec, LoadedPolicy
from safeedit.policy.reading import FieldPath
from safeedit.policy.renamed import removed
from safeedit.policy.suggest import did_you_mean
from safeedit.scorers.cards import read_card
from safeedit.scorers.score_cache import check_auc


def roles_by_key(roles: Sequence[DataRole]) -> dict[str, DataRole]:
    """Roles of data by the key that a policy gives them under; the first may be called data."""
    by_key = {role.name: role for role in roles}
    if roles and "data" not in by_key:
        by_key["data"] = roles[0]
    return by_key


@dataclass(frozen=True)
class Options:
    """Free keys, parted: what is data and what is not."""

    data: tuple[tuple[DataRole, str], ...]
    """Each role that a key gives data for, with that key; a role may be given twice."""
    rest: Mapping[str, Any]
    """Key -> value of all that names no data: parameters, if they exist."""

    def unknown(self, params_type: type[BaseParams]) -> str | None:
        """The first key that is no parameter either; None where all are known."""
        return next((key for key in self.rest if key not in params_type.model_fields), None)


def part_options(options: Mapping[str, Any], roles: Sequence[DataRole]) -> Options:
    """Part the free keys of a stage into data, by role, and all else.

    Args:
        options: Key -> value, as a policy or a file of settings has them.
        roles: Of the editor or auditor.
    """
    by_key = roles_by_key(roles)
    return Options(
        tuple((by_key[key], key) for key in options if key in by_key),
        {key: value for key, value in options.items() if key not in by_key},
    )


def read_options(
    loaded: LoadedPolicy,
    at: FieldPath,
    stage: EditSpec | AuditSpec | AttackSpec,
    roles: Sequence[DataRole],
    params_type: type[BaseParams],
    digest_key: bytes | None,
    given: Mapping[str, Dataset] | None = None,
) -> tuple[dict[str, Dataset], BaseParams]:
    """Load the data and check the parameters of an edit, audit or attack.

    Args:
        loaded: The policy.
        at: Where the stage stands in it.
        stage: The edit, audit or attack.
        roles: Of its editor or auditor.
        params_type: Its parameters.
        digest_key: Of the digests of data.
        given: Data that does not come from the stage's own keys, by role.

    Returns:
        Data by the name of its role, built-in data included, and the parameters.

    Raises:
        PolicyError: A key is unknown, a role is given twice or is missing, a value is wrong.
        DataError: Data is missing or malformed.
    """
    options = part_options(stage.options, roles)
    datasets: dict[str, Dataset] = dict(given or {})
    for role, key in options.data:
        if role.name in datasets:
            raise loaded.error(
                (*at, key), f"the data of {role.name!r} is given twice", "keep one of the two"
            )
        datasets[role.name] = _read_data(loaded, (*at, key), stage.options[key], role, digest_key)
    datasets = with_defaults(roles, datasets, loaded.policy.seed)
    _check_complete(loaded, at, roles, datasets)
    if (unknown := options.unknown(params_type)) is not None:
        known = (*type(stage).model_fields, *params_type.model_fields, *roles_by_key(roles))
        error = loaded.error(
            (*at, unknown),
            f"unknown key {unknown!r}",
            removed(stage.use, unknown) or did_you_mean(unknown, known),
        )
        error.line, error.column = loaded.positions[(*at, unknown)].key
        raise error
    return datasets, _with_models(loaded, loaded.parse(params_type, options.rest, at), at)


def _check_complete(
    loaded: LoadedPolicy, at: FieldPath, roles: Sequence[DataRole], data: Mapping[str, Dataset]
) -> None:
    for role in roles:
        if role.required and role.name not in data:
            raise loaded.error(
                at,
                f"data is missing: {role.name} ({role.description})",
                f"add '{role.name}: {{file: ...}}' or '{role.name}: {{dataset: ...}}'",
            )


def _read_data(
    loaded: LoadedPolicy, at: FieldPath, value: Any, role: DataRole, digest_key: bytes | None
) -> Dataset:
    spec = loaded.parse(DataSpec, value, at)
    with Located(loaded, at):
        found = load_dataset(
            spec, base=loaded.base, role=role, seed=loaded.policy.seed, key=digest_key
        )
        if role.answered and (mute := sum(not item.aliases for item in found)):
            raise DataError(
                f"{mute} of {len(found)} items have no answer",
                remedy=answer_hint(found),
            )
    return found


def _with_models(loaded: LoadedPolicy, params: BaseParams, at: FieldPath) -> BaseParams:
    """Parameters that name other models and scorers, with these found and told by their
    weights."""
    found: dict[str, ModelRef | ScorerRef] = {}
    for name, value in params:
        if isinstance(value, ModelRef):
            with Located(loaded, (*at, name, "source")):
                source = model_source(loaded, value.source)
                _, digest = open_config(source, revision=value.revision)
            found[name] = value.model_copy(update={"source": source, "digest": digest})
        if isinstance(value, ScorerRef):
            found[name] = _with_scorer(loaded, value, (*at, name))
    return params.model_copy(update=found)


def _with_scorer(loaded: LoadedPolicy, ref: ScorerRef, at: FieldPath) -> ScorerRef:
    """A scorer that is there, fits its parameters and is as good as demanded."""
    with Located(loaded, (*at, "use")):
        kind = catalog.scorer(ref.use)
    params = loaded.parse(kind.Params, ref.params, (*at, "params"))
    found: dict[str, Any] = {}
    for name, value in params:
        with Located(loaded, (*at, "params", name)):
            if isinstance(value, Path):
                found[name] = loaded.base / value.expanduser()
            elif name == "source":
                found[name] = model_source(loaded, value)
    params = params.model_copy(update=found)
    with Located(loaded, (*at, "params")):
        identity = kind(params).identity()
    with Located(loaded, (*at, "min_auc")):
        check_auc(ref, identity, read_card(identity, cache_dir()))
    return ref.model_copy(
        update={"params": params.model_dump(mode="json"), "digest": identity.digest}
    )


def model_source(loaded: LoadedPolicy, source: str) -> str:
    """A model's source, with a relative path read from the policy's folder like all others."""
    path = Path(source).expanduser()
    if path.is_absolute() or source.startswith("builtin:"):
        return source
    if (loaded.base / path).exists():
        return str(loaded.base / path)
    if path.exists():
        raise UsageError(
            "there is no such model in the policy's folder, only in the working directory",
            field="source",
            remedy="relative paths start at the policy's folder: write "
            f"{os.path.relpath(path, loaded.base)}",
        )
    return source


def adapter_folder(loaded: LoadedPolicy) -> str | None:
    """Where the policy's adapter lies, read from the policy's folder like all paths.

    Raises:
        ModelError: There is no such folder.
    """
    given = loaded.policy.model.adapter
    if given is None:
        return None
    folder = loaded.base / Path(given).expanduser()
    if not folder.is_dir():
        raise ModelError(
            "there is no such folder with an adapter",
            field="adapter",
            remedy="name a local folder, relative to the policy; fetch an adapter of the hub first "
            "('hf download OWNER/NAME --local-dir DIR')",
        )
    return str(folder)
