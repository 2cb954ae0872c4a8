"""What can be known of a policy before a weight is loaded, refused or warned of here."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safeedit.contracts import further_prompts
from safeedit.data import Dataset, Item, check_disjoint
from safeedit.data.subjects import with_subject
from safeedit.errors import DataError, UsageError
from safeedit.export.places import check_apart, check_folder, within
from safeedit.export.withheld import check_recipient
from safeedit.planning.coverage import futile
from safeedit.planning.located import Located
from safeedit.planning.plan import Plan, PlannedAudit, PlannedEdit
from safeedit.planning.prompts import PromptCheck
from safeedit.policy import GateSpec, LoadedPolicy
from safeedit.policy.reading import FieldPath
from safeedit.policy.suggest import did_you_mean
from safeedit.records import RECOVERED, Split
from safeedit.text.inflection import advice

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


def warn_of_inflection(audits: Sequence[PlannedAudit], warnings: list[str]) -> None:
    """Ask for the forms of answers whose language inflects them; says counts, never an answer."""
    for audit in audits:
        for role in audit.auditor.roles:
            data = audit.data.get(role.name)
            if role.erased and role.answered and data is not None:
                told = advice([item.aliases for item in data if item.aliases])
                if told:
                    warnings.append(f"audit {audit.id}: of its {role.name} data, {told}")


def check_gates(loaded: LoadedPolicy, audits: Sequence[PlannedAudit], warnings: list[str]) -> None:
    """Every gate and target is on a metric that is measured; warn of one that can't fail, can't
    pass, or asks for the worse side."""
    known = {name: spec for audit in audits for name, spec in audit.metrics.items()}
    listed: list[tuple[FieldPath, GateSpec]] = [
        (("gates", i), gate) for i, gate in enumerate(loaded.policy.gates)
    ]
    for e, edit in enumerate(loaded.policy.edits):
        listed += [(("edits", e, "targets", t), gate) for t, gate in enumerate(edit.targets)]
    for at, gate in listed:
        if gate.name == RECOVERED:
            continue
        spec = known.get(gate.metric)
        if spec is None:
            raise loaded.error(
                (*at, "metric"),
                f"no audit of this policy measures {gate.metric!r}",
                did_you_mean(gate.metric, known),
            )
        kinds = {other.kind for _, other in listed if other.metric == gate.metric}
        # Held from both sides, a value is to lie between, whichever way is better.
        between = gate.kind in ("min", "max") and {"min", "max"} <= kinds
        if not between and (gate.meaning.passes == "below") != (spec.direction == "lower"):
            warnings.append(
                f"{gate.metric}: {spec.direction} is better, but the gate is '{gate.condition}'"
            )
        if told := futile(gate, spec):
            warnings.append(told)


def check_enough(
    loaded: LoadedPolicy, edits: Sequence[PlannedEdit], audits: Sequence[PlannedAudit]
) -> None:
    """Every audit has something to measure: test items, and validation items for ``dose: auto`` and
    ``layers: auto``."""
    for audit in audits:
        with Located(loaded, audit.at):
            if role := _without_items(audit, "test"):
                raise DataError(
                    f"audit {audit.id} has no test items: its {role} data has none",
                    remedy="give it data with a test split, or at least three items",
                )
    for index, edit in enumerate(edits):
        chosen = _chosen(edit)
        if not chosen:
            continue
        for audit in audits:
            targets = sorted({gate.metric for gate in edit.targets} & audit.metrics.keys())
            if targets and not audit.auditor.roles:
                raise loaded.error(
                    ("edits", index, "targets" if edit.spec.targets else chosen),
                    f"'{chosen}: auto' can't be held against {targets[0]}: {audit.spec.use} takes "
                    "no data of the policy's, so nothing is left apart from what is gated",
                    "list 'targets' on metrics of other audits",
                )
            role = _without_items(audit, "validation") if targets else ""
            if role:
                raise loaded.error(
                    ("edits", index, "targets" if edit.spec.targets else chosen),
                    f"'{chosen}: auto' can't be held against {targets[0]} on validation data: the "
                    f"{role} data of audit {audit.id} has none",
                    "give that data a validation split, or list 'targets' that have one",
                )


def _chosen(edit: PlannedEdit) -> str:
    """What of an edit is chosen on validation data; nothing where nothing is."""
    return "dose" if edit.spec.dose == "auto" else "layers" if edit.places else ""


def _without_items(audit: PlannedAudit, split: Split) -> str:
    """A role of data the audit can't do without that is empty in a split; or nothing."""
    needed = {role.name for role in audit.auditor.roles if role.required} or audit.data.keys()
    empty = [role for role in needed if not audit.data[role].items(split)]
    return min(empty, default="")


def check_splits(
    loaded: LoadedPolicy, edits: Sequence[PlannedEdit], audits: Sequence[PlannedAudit]
) -> None:
    """What was fitted or tuned on must not be what is tested on."""
    tested = [
        ((*audit.at, role), f"test split of audit {audit.id}: {role}", _asked(data, "test"))
        for audit in audits
        for role, data in audit.data.items()
    ]
    used: list[tuple[str, list[str]]] = []
    for index, edit in enumerate(edits):
        fitted = {role: _asked(data, "fit") for role, data in edit.data.roles.items()}
        for first, second in itertools.combinations(sorted(fitted), 2):
            if edit.data[first].erased != edit.data[second].erased:
                with Located(loaded, ("edits", index, second)):
                    check_disjoint(
                        fitted[first],
                        fitted[second],
                        f"edit {edit.id}: {first}",
                        f"edit {edit.id}: {second}",
                    )
        for role, data in edit.data.roles.items():
            used.append((f"fit split of edit {edit.id}: {role}", fitted[role]))
            used.append((f"validation split of edit {edit.id}: {role}", _asked(data, "validation")))
    wanted = {gate.metric for edit in edits if _chosen(edit) for gate in edit.targets}
    for audit in audits:
        if wanted & audit.metrics.keys():
            for role, data in audit.data.items():
                used.append(
                    (f"validation split of audit {audit.id}: {role}", _asked(data, "validation"))
                )
    for at, held_out, texts in tested:
        with Located(loaded, at):
            for name, seen in used:
                check_disjoint(seen, texts, name, held_out)


def _asked(data: Dataset, split: Split) -> list[str]:
    """What is put to the model from one split: of data to be erased, its phrasings, and for the
    test also what askings make of them with the items' other names and questions."""
    if not data.erased:
        return [item.prompt for item in data.items(split)]
    texts = [phrasing.text for phrasing in data.phrasings(split)]
    if split == "test":
        asked = {p.item.prompt: (p.item, [p.item.prompt]) for p in data.phrasings(split)}
        for phrasing in data.phrasings(split):
            asked[phrasing.item.prompt][1].append(phrasing.text)
        for item, wordings in asked.values():
            texts += _asked_otherwise(item, wordings)
    return texts


def _asked_otherwise(item: Item, wordings: Iterable[str]) -> Iterator[str]:
    """An item's questions under its other names, the other way round, and in other languages."""
    yield from item.reverse_questions
    yield from (translation.prompt for translation in item.translations)
    for text in wordings:
        for name in (*item.subject_aliases, *item.descriptions):
            renamed = with_subject(text, item, name)
            if renamed is not None:
                yield renamed


def check_prompts(
    loaded: LoadedPolicy,
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    edits: Sequence[PlannedEdit],
    audits: Sequence[PlannedAudit],
    warnings: list[str],
) -> None:
    """See that the model's tokenizer and context take what is asked of it."""
    check = PromptCheck(tokenizer, config)
    for index, edit in enumerate(edits):
        for role, data in edit.data.roles.items():
            field = role if role in edit.spec.options else "data"
            with Located(loaded, ("edits", index, field)):
                check(f"edit {edit.id}", role, data, edit.params)
    for audit in audits:
        for role, data in audit.data.items():
            field = role if role in audit.spec.options else "data"
            with Located(loaded, (*audit.at, field)):
                check(f"audit {audit.id}", role, data, audit.params)
        for attack, (role, put) in further_prompts(audit.auditor, audit.data).items():
            with Located(loaded, (*audit.at, role if role in audit.spec.options else "data")):
                check.of_attack(f"audit {audit.id}", role, attack, put, audit.params)
    warnings += check.warnings


def check_private(plan: Plan, target: Path) -> None:
    """What can undo the edits goes to a folder outside of export and model, to a key that is one.

    Raises:
        PolicyError: A recipient without a folder.
        UsageError: The folder is in one of these, can't be written, or the key is none.
    """
    loaded, export, folder = plan.loaded, plan.loaded.policy.export, plan.private_dir
    if export is None:
        return
    if folder is None:
        if export.recipient is not None:
            raise loaded.error(
                ("export", "recipient"),
                "nothing is encrypted to this key: no 'private' folder is named",
                "add 'private: DIR', where the original tensors and deltas go",
            )
        return
    with Located(loaded, ("export", "private")):
        check_folder(folder, what="the private folder")
        check_apart(folder, target, what="the private folder", name="the export")
        if plan.source_path is not None:
            check_apart(folder, plan.source_path, what="the private folder", name="the model")
    if export.recipient is not None:
        with Located(loaded, ("export", "recipient")):
            check_recipient(export.recipient)


def check_place(plan: Plan, target: Path) -> None:
    """The export is neither its own source, nor lies in it, nor holds it."""
    if plan.adapter is not None:
        check_apart(target, Path(plan.adapter), what="the export", name="the adapter")
    source = plan.source_path
    if source is None:
        return
    check_apart(target, source, what="the export", name="the model that it is made from")
    if within(source, target):
        raise UsageError(
            f"the export would take the place of a folder that holds its own model: {source}",
            remedy="choose another folder",
        )
