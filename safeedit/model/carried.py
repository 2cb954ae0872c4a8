"""The files of a model that are neither weights nor settings, yet make it usable.

A processor, the file a tokenizer was trained into, a generation config, chat templates, the
licence: whoever serves an edited checkpoint needs them as much as whoever serves the original.
They are copied as they are. Nothing that could run is among them, and nothing that this package
writes itself is replaced, but for the generation config, which is the source's.

Fails with :class:`OSError` where the disk does.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from safeedit.model.portable import CHAT_TEMPLATE, MORE_TEMPLATES
from safeedit.policy.files import NotRegularError, TooLargeError, read_regular

GENERATION_CONFIG = "generation_config.json"

LEGAL = ("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", "COPYRIGHT*", "USE_POLICY*", "PATENTS*")
"""Files that a licence asks to be passed on; matched in capitals."""

CARRIED = (
    *(GENERATION_CONFIG, "processor_config.json", "*preprocessor_config.json"),
    *("audio_tokenizer_config.json", "chat_template.json", CHAT_TEMPLATE),
    f"{MORE_TEMPLATES}/*.jinja",
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "tekken.json"),
    *("tokenizer.model*", "spiece.model", "sentencepiece.bpe.model", "*.tiktoken"),
)
"""Patterns of what is carried over, beside :data:`LEGAL`."""

_WRITTEN = (
    *("config.json", "model*.safetensors", "model.safetensors.index.json", "README.md"),
    *("model.sig", "claims.jsonl"),
)
"""What an export has of its own; a signature of other weights is none of these."""


_MAX_BYTES = 256 << 20


def carry_over(source: Path, folder: Path) -> tuple[str, ...]:
    """Copy what makes the model in ``source`` usable into ``folder``.

    Args:
        source: A checkpoint.
        folder: Another, already written; what it has is kept.

    Returns:
        The names of the files copied, sorted.

    Raises:
        OSError: The disk is full or can't be written.
    """
    copied = []
    for name in _names(source):
        target = folder / name
        if not _is_carried(name) or (target.exists() and name != GENERATION_CONFIG):
            continue
        try:
            content = read_regular(source / name, limit=_MAX_BYTES)
        except (NotRegularError, TooLargeError):
            continue  # told of by left_behind
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(content)
        copied.append(name)
    return tuple(copied)


def left_behind(source: Path) -> tuple[str, ...]:
    """Names of the files and folders in ``source`` that an edited checkpoint does not get."""
    left = {
        name
        for name in _names(source)
        if not _is_carried(name)
        and not any(fnmatchcase(name, pattern) for pattern in _WRITTEN)
        and not name.startswith((".", "evidence/"))
    }
    return tuple(sorted({name.partition("/")[0] + "/" * ("/" in name) for name in left}))


def _is_carried(name: str) -> bool:
    legal = "/" not in name and any(fnmatchcase(name.upper(), pattern) for pattern in LEGAL)
    runs = name.endswith((".py", ".so", ".sh"))
    return not runs and (legal or any(fnmatchcase(name, pattern) for pattern in CARRIED))


def _names(source: Path) -> Iterator[str]:
    """Files by their path in ``source``, those of folders below it too; links lead where they do.

    A folder is looked into to one level: nothing that is carried lies deeper.
    """
    for path in sorted(source.iterdir()):
        if not path.is_dir():
            yield path.name
        else:
            yield from (f"{path.name}/{inner.name}" for inner in sorted(path.iterdir()))
