"""Attacks, resolved: the plug-in, its data, and the audits that are repeated under it.

An attack must not be taught what it is asked about. Where it uses a share of the subjects in its
data, the audits under it leave those out; where its data overlaps theirs and nothing says that
this is meant, it is refused.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from safeedit import catalog
from safeedit.contracts import Attack, EditData, looked_at, metrics_of
from safeedit.data import Dataset, Item
from safeedit.data.independence import marks
from safeedit.data.splitting import normalise_prompt
from safeedit.data.subjects import same_subject
from safeedit.planning.located import Located
from safeedit.planning.options import read_options
from safeedit.planning.plan import PlannedAttack, PlannedAudit
from safeedit.policy import AttackSpec, LoadedPolicy
from safeedit.policy.reading import FieldPath
from safeedit.records import RECOVERED

NEVER_KNOWN = "never_known"
"""Role of the control: what nobody knew."""


@dataclass(frozen=True)
class _Parts:
    """An attack's data after a share of it was drawn, and the audits without what was drawn."""

    data: dict[str, Dataset]
    audits: tuple[PlannedAudit, ...]
    left_out: int


def plan_attack(
    loaded: LoadedPolicy,
    index: int,
    audits: Sequence[PlannedAudit],
    key: bytes | None,
    warnings: list[str],
) -> PlannedAttack:
    """Resolve an attack.

    Args:
        loaded: The policy.
        index: Of the attack in it.
        audits: The policy's, resolved.
        key: Of the digests of data.
        warnings: Is told where a share changes nothing.

    Raises:
        PolicyError: The attack, a key or an audit is unknown; its data is what it is judged by.
        DataError: Its data is missing or malformed.
    """
    spec = loaded.policy.attacks[index]
    at: FieldPath = ("attacks", index)
    with Located(loaded, (*at, "use")):
        kind = catalog.attack(spec.use)
    data, params = read_options(loaded, at, spec, kind.roles, kind.Params, key)
    attack = kind(params)
    if spec.seeds > 1 and not kind.seeded:
        raise loaded.error(
            (*at, "seeds"),
            f"{spec.use} draws nothing at random: every seed would give the same",
            "remove seeds",
        )
    if not attack.strengths():
        raise loaded.error(at, "the attack has no strength to try", "give it at least one")
    named = tuple(audit for name in spec.audits for audit in audits if audit.id == name)
    parts = _parted(loaded, at, spec, data, named, warnings)
    return PlannedAttack(
        id=spec.id,
        spec=spec,
        attack=attack,
        params=params,
        data=EditData(parts.data),
        audits=parts.audits,
        wanted=_wanted(loaded, at, spec, attack, parts.audits),
        left_out=parts.left_out,
    )


def headline_of(audit: PlannedAudit) -> str:
    """The metric that stands for an audit in one number: what its auditor calls its headline, or
    its first."""
    declared: str | None = getattr(audit.auditor, "headline", None)
    return declared or metrics_of(audit.auditor)[0].name


def _wanted(
    loaded: LoadedPolicy,
    at: FieldPath,
    spec: AttackSpec,
    attack: Attack,
    audits: Sequence[PlannedAudit],
) -> dict[str, frozenset[str]]:
    """Audit -> bare names of what is looked at under the attack: its headline, what gates hold,
    and what it asks beside them."""
    every = spec.askings == "all"
    more = {audit.id: looked_at(audit.auditor, attack.tries, every) for audit in audits}
    if every and not any(more.values()):
        raise loaded.error(
            (*at, "askings"),
            f"no audit under it asks in more than one way: {', '.join(more)}",
            "remove askings, or name an audit such as leakage",
        )
    found = {}
    for audit in audits:
        headline = headline_of(audit)
        held = (
            headline if gate.name == RECOVERED else gate.name
            for gate in loaded.policy.gates
            if spec.id in gate.under and gate.audit == audit.id
        )  # fmt: skip
        found[audit.id] = frozenset({headline, *held, *(more[audit.id] or ())})
    return found


def _parted(
    loaded: LoadedPolicy,
    at: FieldPath,
    spec: AttackSpec,
    data: Mapping[str, Dataset],
    audits: tuple[PlannedAudit, ...],
    warnings: list[str],
) -> _Parts:
    """The attack's own data and the audits', with nothing in common unless that is meant."""
    taught = {role: found for role, found in data.items() if role != NEVER_KNOWN}
    if not taught:
        if spec.share is not None or spec.overlap is not None:
            key = "share" if spec.share is not None else "overlap"
            raise loaded.error(
                (*at, key),
                f"{spec.use} uses no data of which there could be a part",
                f"remove {key}",
            )
        return _Parts(dict(data), audits, 0)
    if spec.share is not None:
        for role, found in taught.items():
            with Located(loaded, (*at, "share")):
                taught[role] = _share(loaded, at, found, spec.share)
    told = {each for found in taught.values() for item in found for each in _identities(item)}
    kept, left_out = [], 0
    for audit in audits:
        roles = {}
        for role, found in audit.data.items():
            rest = found.only(lambda item: told.isdisjoint(_identities(item)))
            if len(rest) == len(found) or not found.erased or spec.overlap == "meant":
                roles[role] = found
                continue
            if spec.share is None:
                raise _overlapping(loaded, at, spec, audit, len(found) - len(rest))
            if not rest.items("test"):
                raise loaded.error(
                    (*at, "share"),
                    f"nothing is left for audit {audit.id} to ask about that the attack does not "
                    "use itself",
                    "give a smaller share",
                )
            roles[role], left_out = rest, max(left_out, len(found) - len(rest))
        changed = any(roles[role] is not audit.data[role] for role in roles)
        kept.append(replace(audit, data=roles) if changed else audit)
    if spec.share is not None and not left_out:
        warnings.append(
            f"attack {spec.id}: the audits under it ask about nothing in its data, so its share of "
            f"{spec.share:g} only makes that data fewer"
        )
    return _Parts({**data, **taught}, tuple(kept), left_out)


def _overlapping(
    loaded: LoadedPolicy, at: FieldPath, spec: AttackSpec, audit: PlannedAudit, count: int
) -> Exception:
    where = "data" if "data" in spec.options else "use"
    items = "1 item" if count == 1 else f"{count} items"
    return loaded.error(
        (*at, where),
        f"the attack would be taught {items} that audit {audit.id} asks about: to answer what one "
        "was taught shows nothing",
        "use other data; or write 'share: 0.5' to teach it half of the subjects and ask about the "
        "others; or 'overlap: meant' if that is the question",
    )


def _share(loaded: LoadedPolicy, at: FieldPath, data: Dataset, share: float) -> Dataset:
    """Items of a share of the subjects, drawn by the policy's seed: at least one, never all."""
    subjects = sorted({_subject(item) for item in data})
    if len(subjects) < 2:
        raise loaded.error(
            (*at, "share"),
            "the attack's data is about one subject, which can't be parted",
            "remove share, or give data about several subjects",
        )
    count = min(max(1, round(share * len(subjects))), len(subjects) - 1)
    chosen = set(random.Random(loaded.policy.seed).sample(subjects, count))
    return data.only(lambda item: _subject(item) in chosen)


def _subject(item: Item) -> str:
    return same_subject(item.subject) if item.subject else normalise_prompt(item.prompt)


def _identities(item: Item) -> Iterator[Hashable]:
    """By what two items are known to tell the same, in any of their wordings."""
    yield from marks(item, erased=True)
    translated = (translation.prompt for translation in item.translations)
    for text in (*item.paraphrases, *item.reverse_questions, *translated):
        yield "prompt", normalise_prompt(text)
