"""A YAML file as plain values, with the position of each.

Stricter than YAML at large: no tags (a policy never makes objects), no duplicate keys, keys
are text, and a budget of nodes that aliases can't blow up. Plain scalars follow YAML 1.2's
core schema, so ``no`` and ``off`` are words, ``1e-4`` is a number and dates are text.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from safeedit.errors import PolicyError
from safeedit.policy.encoding import EncodingError, decode
from safeedit.policy.files import NotRegularError, TooLargeError, read_regular

FieldPath = tuple[str | int, ...]

MAX_BYTES = 1 << 20
MAX_NODES = 20_000
MAX_DEPTH = 40
"""Lists and mappings in each other; a policy needs six."""

_INT = re.compile(r"[-+]?[0-9]{1,400}|0o[0-7]{1,400}|0x[0-9a-fA-F]{1,400}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: Mapping[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}


@dataclass(frozen=True)
class Position:
    """Where a field stands: 1-based line and column of its key and of its value."""

    key: tuple[int, int]
    value: tuple[int, int]
    scalar: bool

    @property
    def best(self) -> tuple[int, int]:
        """The value where it is one word, else the key that opens the block."""
        return self.value if self.scalar else self.key


class _Loader(yaml.SafeLoader):
    """Resolves no scalar by itself, so that any tag it reports was written out.

    Stops at the first value too many or too deep, before the rest of the file is looked at.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._nodes += 1
        self._depth += 1
        if self._nodes > MAX_NODES:
            raise self._refusal(f"holds more than {MAX_NODES} values")
        if self._depth > MAX_DEPTH:
            raise self._refusal("is nested too deeply")
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def _refusal(self, message: str) -> _TooMuch:
        return _TooMuch(message, self.get_mark().line + 1)


class _TooMuch(Exception):  # noqa: N818 (becomes a PolicyError that says where)
    """More than a policy may hold; ``line`` is where that shows."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.message, self.line = message, line


_Loader.yaml_implicit_resolvers = {}
_PLAIN_TAGS = {
    yaml.ScalarNode: "tag:yaml.org,2002:str",
    yaml.SequenceNode: "tag:yaml.org,2002:seq",
    yaml.MappingNode: "tag:yaml.org,2002:map",
}


def read_yaml(path: Path) -> tuple[Any, dict[FieldPath, Position]]:
    """The file's one document, and the position of every field in it.

    Raises:
        PolicyError: The file can't be read, or is not YAML as described above.
    """
    text = _text(path)
    try:
        node = _Loader(text).get_single_node()
    except yaml.reader.ReaderError as error:
        line, column = _line_column(text, error.position)
        raise PolicyError(
            "holds a control character", file=path, line=line, column=column,
            remedy="remove it; save the file as plain UTF-8 text",
        ) from error  # fmt: skip
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        context = f"{error.context}: " if error.context else ""
        raise PolicyError(
            f"is not valid YAML: {context}{error.problem}",
            file=path,
            line=mark.line + 1 if mark else None,
            column=mark.column + 1 if mark else None,
            remedy="indent with spaces, and quote texts that hold ': ', '#' or brackets",
        ) from error
    except _TooMuch as error:
        raise PolicyError(error.message, file=path, line=error.line) from None
    except RecursionError:
        raise PolicyError("is nested too deeply", file=path) from None
    if node is None:
        raise PolicyError(
            "is empty", file=path, line=1, remedy="'safeedit init' writes one to start from"
        )
    builder = _Builder(path)
    return builder.build(node, (), _start(node)), builder.positions


def _text(path: Path) -> str:
    try:
        return decode(read_regular(path, limit=MAX_BYTES))
    except TooLargeError:
        raise PolicyError(
            "is too large for a policy (over 1 MiB)",
            file=path,
            remedy="name data files instead of writing data into the policy",
        ) from None
    except FileNotFoundError:
        raise PolicyError(
            "there is no such policy file",
            file=path,
            remedy="check the path, or write one with 'safeedit init'",
        ) from None
    except NotRegularError as error:
        folder = error.errno == errno.EISDIR
        raise PolicyError(
            "is a folder, not a policy file" if folder else f"can't be read: {error.strerror}",
            file=path,
            remedy="name the .yaml file in it" if folder else "save the policy as a plain file",
        ) from None
    except OSError as error:
        raise PolicyError(
            f"can't be read: {(error.strerror or 'unknown reason').lower()}", file=path
        ) from error
    except EncodingError as error:
        raise PolicyError(
            error.message, file=path, line=error.line, remedy="save the file as UTF-8"
        ) from error


def _line_column(text: str, index: int) -> tuple[int, int]:
    before = text[:index]
    return before.count("\n") + 1, index - (before.rfind("\n") + 1) + 1


def _start(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


class _Builder:
    """Turns nodes into values and notes where they were."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.positions: dict[FieldPath, Position] = {}
        self._nodes = 0
        self._open: set[int] = set()

    def build(self, node: yaml.Node, field: FieldPath, key: tuple[int, int]) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise self._error(node, field, f"holds more than {MAX_NODES} values")
        if id(node) in self._open:
            raise self._error(node, field, "an alias refers to itself")
        if node.tag != _PLAIN_TAGS[type(node)]:
            # "!" is the non-specific tag; PyYAML reports it bare.
            raise self._error(
                node, field, "tags (!...) are not allowed", "remove the tag: a policy is plain data"
            )
        self.positions[field] = Position(key, _start(node), isinstance(node, yaml.ScalarNode))
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, field)
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, field)
            assert isinstance(node, yaml.SequenceNode)
            return [
                self.build(child, (*field, index), _start(child))
                for index, child in enumerate(node.value)
            ]
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, field: FieldPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, child in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._error(key, field, "a key must be a word, not a list or mapping")
            name: str = key.value
            if name == "<<" and key.style is None:
                raise self._error(key, field, "merge keys (<<) are not supported")
            if name in values:
                first = self.positions[(*field, name)].key[0]
                raise self._error(
                    key, (*field, name), f"the key is given twice (first in line {first})",
                    "keep one of the two",
                )  # fmt: skip
            values[name] = self.build(child, (*field, name), _start(key))
        return values

    def _scalar(self, node: yaml.ScalarNode, field: FieldPath) -> Any:
        text: str = node.value
        if node.style is not None:  # quoted or a block: text as it is
            return text
        if text in _WORDS:
            return _WORDS[text]
        if _INT.fullmatch(text):
            return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
        return text

    def _error(
        self, node: yaml.Node, field: FieldPath, message: str, remedy: str = ""
    ) -> PolicyError:
        line, column = _start(node)
        return PolicyError(
            message, file=self.path, line=line, column=column, field=dotted(field), remedy=remedy
        )


def dotted(field: FieldPath) -> str:
    """A field's path in words: ``gates[0].metric``."""
    text = ""
    for part in field:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
