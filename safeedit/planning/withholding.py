"""What of a policy may be repeated: in records, reports, plan files, ledgers and on the screen.

A policy may quote what it erases: ``where: {subject: Jane Roe}``, a file called after a person, a
description, an opening of the PII audit. Such values are withheld wherever a policy is shown or
recorded, and digests are of what is left, or keyed: the values could be found from them by
trying. Names that become names of files, and tickets, can't be withheld and are refused.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from safeedit.contracts import DataRole
from safeedit.data import Dataset, Item
from safeedit.errors import PolicyError
from safeedit.policy import LoadedPolicy, Policy, StageSpec
from safeedit.text.quoting import Quotes

WITHHELD = "[withheld: quotes data to be erased]"
KINDS = frozenset(
    ("split", "role", "kind", "type", "relation", "label", "lang", "language", "category")
)
"""Columns whose values say what sort of row this is: shown, unless they quote the data."""

_TELLING = 100
"""Numbers below it are counts and sizes, in any policy."""
_OWN_KEY = secrets.token_bytes(32)

Roles = Mapping[str, DataRole]


class Withholding:
    """Tells what quotes data to be erased.

    Args:
        erased: Data of every role whose items are to be erased.
    """

    def __init__(self, erased: Iterable[Dataset]) -> None:
        items = [item for data in erased for item in data]
        self._named = Quotes(text for item in items for text in _names(item))
        self._any = Quotes(text for item in items for text in _texts(item))

    def value(self, value: Any) -> Any:
        """A value with every text in it that quotes the data withheld; keys stay as they are."""
        if isinstance(value, str):
            return WITHHELD if self._any(value) else value
        if isinstance(value, Mapping):
            return {key: self.value(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(each) for each in value]
        # A number that a policy gives as a number is as telling as one given as text, but for the
        # few digits that parameters have.
        if isinstance(value, int) and abs(value) >= _TELLING and self._named(str(value)):
            return WITHHELD
        return value

    def source(self, spec: Any) -> Any:
        """A data source as a policy gives it, of data to be erased.

        Which rows are chosen tells who is to be forgotten, and the file's own sha256 is a bare
        digest of what is to be erased.
        """
        if not isinstance(spec, Mapping):
            return self.value(spec)
        shown = {key: self.value(each) for key, each in spec.items()}
        if isinstance(spec.get("where"), Mapping):
            shown["where"] = {
                column: self.value(each) if column.casefold() in KINDS else WITHHELD
                for column, each in spec["where"].items()
            }
        if spec.get("sha256") is not None:
            shown["sha256"] = WITHHELD
        if isinstance(spec.get("additional_sources"), list):
            shown["additional_sources"] = [self.source(each) for each in spec["additional_sources"]]
        if spec.get("exclude") is not None:
            shown["exclude"] = self.source(spec["exclude"])
        return shown

    def policy(self, loaded: LoadedPolicy, roles: Mapping[str, Roles]) -> dict[str, Any]:
        """A policy as records may repeat it.

        Args:
            loaded: The policy.
            roles: Stage id -> its roles of data by the key that a policy gives them under.
        """
        shown: dict[str, Any] = loaded.policy.model_dump(mode="json")
        for name in ("owner", "description"):
            shown[name] = self.value(shown[name])
        for group, stages in _stages(loaded.policy):
            for stage, record in zip(stages, shown[group], strict=True):
                own = roles.get(stage.id, {})
                for key in stage.options:
                    erased = key in own and own[key].erased
                    record[key] = self.source(record[key]) if erased else self.value(record[key])
                if record.get("unaudited"):
                    record["unaudited"] = self.value(record["unaudited"])
        if shown.get("ledger") and shown["ledger"].get("requests"):
            shown["ledger"]["requests"] = self.source(shown["ledger"]["requests"])
        return shown

    def refuse_names(self, loaded: LoadedPolicy) -> None:
        """Refuse names that would carry the data into file names, tables and the ledger.

        Raises:
            PolicyError: Name, ticket, export folder or id of a stage quotes an answer or subject.
        """
        policy = loaded.policy
        named: list[tuple[tuple[str | int, ...], str | None]] = [
            (("name",), policy.name),
            (("ticket",), policy.ticket),
        ]
        if policy.export is not None:
            named.append((("export", "dir"), policy.export.dir))
            named.append((("export", "private"), policy.export.private))
        for group, stages in _stages(policy):
            named += [
                ((group, index, "id"), stage.id)
                for index, stage in enumerate(stages)
                if stage.id != stage.use
            ]
        for at, text in named:
            if text is not None and self._named(text):
                raise self._refused(loaded, at)

    def _refused(self, loaded: LoadedPolicy, at: tuple[str | int, ...]) -> PolicyError:
        return loaded.error(
            at,
            "this name quotes data to be erased, and reports, file names or the ledger would "
            "repeat it",
            "name the request by a number or a word that is in none of its items",
        )


def keyed_digest(digest: str, key: bytes | None) -> str:
    """A digest of a policy that quotes what it erases, so that nobody can find it by trying.

    Args:
        digest: sha256 of the policy.
        key: Of the digests in records; without one it holds for this process alone.
    """
    return hmac.new(
        key or _OWN_KEY, b"safeedit policy 1\0" + digest.encode(), hashlib.sha256
    ).hexdigest()


def _stages(policy: Policy) -> Iterator[tuple[str, Sequence[StageSpec]]]:
    """Where in a policy stages are listed, and those there."""
    yield "edits", policy.edits
    yield "audits", policy.audits
    yield "attacks", policy.attacks


def _names(item: Item) -> Iterator[str]:
    yield from item.aliases
    yield from item.names
    for translation in item.translations:
        yield from translation.aliases


def _texts(item: Item) -> Iterator[str]:
    yield from _names(item)
    yield item.prompt
    yield from item.paraphrases
    yield from item.descriptions
    yield from item.reverse_questions
    yield from (translation.prompt for translation in item.translations)
    for column, value in item.extra.items():
        # Tickets are the names of requests, and are refused where they quote.
        if isinstance(value, str) and column.casefold() not in KINDS | {"ticket"}:
            yield value
