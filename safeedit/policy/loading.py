"""From a policy file to a :class:`LoadedPolicy`, or to errors that say where and what.

Every fault found is reported at once, each with line, column, field and, where a name was
mistyped, the name that was probably meant.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from safeedit.errors import PolicyError, UsageError
from safeedit.policy.engine import EngineName, EngineSpec
from safeedit.policy.model import MOST_SEEDS, Policy
from safeedit.policy.reading import FieldPath, Position, dotted, read_yaml
from safeedit.policy.suggest import did_you_mean

Part = TypeVar("Part", bound=BaseModel)

_KINDS = {
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "a mapping",
    type(None): "nothing",
}


@dataclass(frozen=True)
class LoadedPolicy:
    """A valid policy, and where each of its fields stands in its file."""

    policy: Policy
    path: Path
    digest: str
    """sha256 over the policy's meaning: comments, order of keys and layout don't count."""
    positions: Mapping[FieldPath, Position]
    given: frozenset[FieldPath] = frozenset()
    """Fields whose value the command line gave: an error about one is not the policy's."""

    @property
    def base(self) -> Path:
        """The folder that relative paths in the policy start from."""
        return self.path.parent

    def error(self, field: FieldPath, message: str, remedy: str = "") -> PolicyError:
        """A PolicyError at the position of ``field``, e.g. ``("gates", 0, "metric")``."""
        return _error(self.path, self.positions, field, message, remedy)

    def parse(self, kind: type[Part], value: Any, field: FieldPath) -> Part:
        """``value``, found at ``field``, as a ``kind`` (a DataSpec, an editor's Params ...).

        Raises:
            PolicyError: With the position of each fault.
        """
        return _parse(kind, value, field, self.path, self.positions)

    def with_model_source(self, source: str) -> LoadedPolicy:
        """The same policy for another model."""
        model = self.policy.model.model_copy(
            update={"source": source, "revision": None, "adapter": None}
        )
        found = self._with(self.policy.model_copy(update={"model": model}))
        return replace(found, given=self.given | {("model", "source")})

    def without_edits(self, *, attacks: bool = False) -> LoadedPolicy:
        """The same policy, only measuring: no edits, nothing exported, no gates against an edit's
        control, and no attacks nor gates under them unless these are asked for."""
        gates = tuple(g for g in self.policy.gates if g.as_is or (attacks and not g.against))
        kept = {"gates": gates} if attacks else {"gates": gates, "attacks": ()}
        return self._with(self.policy.model_copy(update={"edits": (), "export": None, **kept}))

    def with_seeds(self, count: int) -> LoadedPolicy:
        """The same policy, run with so many seeds.

        Raises:
            UsageError: They are too many.
        """
        if count > MOST_SEEDS:
            raise UsageError(
                f"{count} are more than the {MOST_SEEDS} seeds that one run may have",
                field="--seeds",
                remedy="ask for fewer; other runs may begin at another 'seed'",
            )
        found = self._with(self.policy.model_copy(update={"seeds": count}))
        return replace(found, given=self.given | {("seeds",)})

    def with_engine(self, use: EngineName | None, workers: int | None) -> LoadedPolicy:
        """The same policy, its evaluations made by another engine; None: as the policy says."""
        own = self.policy.engine
        kept = own.model_dump() if use in (None, own.use) else {"use": use}
        spec = EngineSpec(**kept | ({"workers": workers} if workers is not None else {}))
        return self._with(self.policy.model_copy(update={"engine": spec}))

    def with_other_seed(self, seed: int) -> LoadedPolicy:
        """The same policy with another seed alone, and without its export."""
        return self._with(self.policy.model_copy(update={"seed": seed, "seeds": 1, "export": None}))

    def _with(self, policy: Policy) -> LoadedPolicy:
        return replace(self, policy=policy, digest=policy_digest(policy))


def load_policy(path: str | Path) -> LoadedPolicy:
    """Read and check a policy file.

    Names of editors, auditors and metrics are not looked up here, and no data is read: see
    :func:`safeedit.planning.resolution.make_plan`.

    Raises:
        PolicyError: The file can't be read, is not YAML, or says something wrong; the
            message lists every fault, the location is that of the first.
    """
    path = Path(path)
    raw, positions = read_yaml(path)
    if not isinstance(raw, dict):
        raise _error(
            path, positions, (), f"should be a mapping, not {_kind_of(raw)}",
            "start with 'version: 1', 'name: ...' and 'model: ...'",
        )  # fmt: skip
    policy = _parse(Policy, raw, (), path, positions)
    return LoadedPolicy(policy, path, policy_digest(policy), positions)


def policy_digest(policy: Policy) -> str:
    """sha256 (hex) over the canonical JSON of a policy, defaults written out."""
    return canonical_digest(policy.model_dump(mode="json"))


def canonical_digest(policy: Mapping[str, Any]) -> str:
    """sha256 (hex) over the canonical JSON of a policy as records hold it."""
    text = json.dumps(policy, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _parse(
    kind: type[Part],
    value: Any,
    field: FieldPath,
    path: Path,
    positions: Mapping[FieldPath, Position],
) -> Part:
    try:
        parsed = kind.model_validate(value, context=_DEFER)
    except ValidationError as error:
        faults = [
            _fault(kind, details, field, path, positions)
            for details in _one_per_field(error.errors(include_url=False), field, positions)
        ]
        raise _together(faults) from None
    if isinstance(parsed, Policy):
        faults = [_conflict(parsed, at, text, path, positions) for at, text in parsed.conflicts()]
        if faults:
            raise _together(faults)
    return parsed


_DEFER: dict[str, Any] = {"conflicts": "reported with positions by load_policy"}


def _conflict(
    policy: Policy,
    field: FieldPath,
    text: str,
    path: Path,
    positions: Mapping[FieldPath, Position],
) -> PolicyError:
    remedy = ""
    if text.startswith("names an audit"):
        gate = text.rpartition(" ")[2]
        remedy = did_you_mean(gate, (audit.id for audit in policy.audits))
    return _error(path, positions, field, text, remedy)


def _one_per_field(
    errors: list[ErrorDetails], field: FieldPath, positions: Mapping[FieldPath, Position]
) -> list[ErrorDetails]:
    """One error for each field: a union reports each of its branches, and that one counts which
    came furthest into what is written."""
    found: dict[tuple[FieldPath, str], ErrorDetails] = {}
    for details in errors:
        details["loc"] = tuple(part for part in details["loc"] if not _is_branch(part))
        at = _known_prefix((*field, *details["loc"]), positions)
        missing = details["type"] == "missing"
        found.setdefault((at, str(details["loc"]) if missing else ""), details)
    places = [at for at, _ in found]
    return [
        details
        for (at, missing), details in found.items()
        if missing or not any(len(o) > len(at) and o[: len(at)] == at for o in places)
    ]


def _is_branch(part: int | str) -> bool:
    """Whether it is pydantic's name for a branch of a union, which nobody wrote."""
    return isinstance(part, str) and re.match(r"(literal|tuple|list|dict)\[", part) is not None


def _fault(
    kind: type[BaseModel],
    details: ErrorDetails,
    field: FieldPath,
    path: Path,
    positions: Mapping[FieldPath, Position],
) -> PolicyError:
    where: FieldPath = (*field, *details["loc"])
    message, remedy = _words(kind, details)
    if details["type"].endswith("_type") and where not in positions:
        # A branch of a union: naming the one that was tried first would mislead.
        where = _known_prefix(where, positions)
        message = f"has the wrong type (found {_kind_of(details['input'])})"
    error = _error(path, positions, where, message, remedy)
    if details["type"] == "extra_forbidden" and where in positions:
        error.line, error.column = positions[where].key
    return error


def _words(kind: type[BaseModel], details: ErrorDetails) -> tuple[str, str]:
    """One of pydantic's errors in our words: what is wrong, and what to do."""
    loc, type_, context = details["loc"], details["type"], details.get("ctx", {})
    owner = _model_at(kind, loc[:-1]) if loc else None
    fields = owner.model_fields if owner is not None else {}
    description = fields[str(loc[-1])].description if loc and loc[-1] in fields else None
    plain = " ".join((description or "").replace("``", "'").split())
    about = f"what belongs here: {plain}" if plain else ""
    given = details["input"]
    match type_:
        case "extra_forbidden":
            return f"unknown key {loc[-1]!r}", did_you_mean(str(loc[-1]), fields)
        case "missing":
            return "is required", about
        case "value_error":
            return str(context.get("error", details["msg"])), about
        case "literal_error":
            expected = str(context.get("expected", ""))
            options = re.findall(r"'([^']*)'", expected)
            near = did_you_mean(given, options) if isinstance(given, str) and options else about
            return f"should be {expected}", near
        case "string_pattern_mismatch":
            return "is not written as it should be", about
    message = details["msg"].replace("Input should be", "should be").replace("String", "text")
    message = re.sub(r" or instance of \w+", "", message)
    for theirs, ours in _WORDING.items():
        message = message.replace(theirs, ours)
    return (f"{message} (found {_kind_of(given)})" if type_.endswith("_type") else message), about


_WORDING = {
    ", unable to parse string as an integer": "",
    ", unable to parse string as a number": "",
    "a valid integer": "a whole number",
    "a valid string": "text",
    "a valid ": "a ",
    "an object": "a mapping",
    "a tuple": "a list",
    "a dictionary": "a mapping",
}
"""pydantic's names of types -> YAML's."""


def _kind_of(value: Any) -> str:
    return _KINDS.get(type(value), "something else")


def _model_at(kind: type[BaseModel], loc: FieldPath) -> type[BaseModel] | None:
    """The model class that holds the fields at ``loc``, followed through annotations."""
    current: type[BaseModel] | None = kind
    for part in loc:
        if isinstance(part, int):
            continue  # an index into the list whose model we already stand on
        if current is None or part not in current.model_fields:
            return None
        current = next(_models_in(current.model_fields[part].annotation), None)
    return current


def _models_in(annotation: Any) -> typing.Iterator[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from _models_in(inner)


def _known_prefix(field: FieldPath, positions: Mapping[FieldPath, Position]) -> FieldPath:
    while field and field not in positions:
        field = field[:-1]
    return field


def _error(
    path: Path,
    positions: Mapping[FieldPath, Position],
    field: FieldPath,
    message: str,
    remedy: str = "",
) -> PolicyError:
    position = positions.get(_known_prefix(field, positions))
    line, column = position.best if position is not None else (None, None)
    return PolicyError(
        message, file=path, line=line, column=column, field=dotted(field), remedy=remedy
    )


def _together(faults: Iterable[PolicyError]) -> PolicyError:
    """Several errors as one: located at the first in the file, its message listing all."""
    ordered = sorted(faults, key=lambda fault: (fault.line or 0, fault.column or 0))
    first = ordered[0]
    if len(ordered) == 1:
        return first
    lines = [f"{len(ordered)} faults"]
    for fault in ordered:
        text = f"  {fault.location}: {fault.field}: {fault.message}"
        lines.append(f"{text} ({fault.remedy})" if fault.remedy else text)
    return PolicyError("\n".join(lines), file=first.file, line=first.line, column=first.column)
