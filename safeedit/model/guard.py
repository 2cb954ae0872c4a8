"""Turns whatever a library raises on a bad checkpoint into an error that names the folder.

Everything that builds or opens a model or a tokenizer from files does so inside
:func:`readable`: what a stranger's config can make a library raise is not ours to list.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from safeedit.errors import ModelError, SafeeditError

OPENING = "fetch the checkpoint again; if it is intact, it may need another version of transformers"
BUILDING = "correct config.json, or fetch it again: no model can be built as it describes one"

_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")


@contextmanager
def readable(place: Path | str, *, doing: str = "open", remedy: str = OPENING) -> Iterator[None]:
    """Within it, whatever a library raises becomes a :class:`~safeedit.errors.ModelError`.

    Args:
        place: The folder or file at fault.
        doing: What transformers can't do with it, for the message.
        remedy: What to do about it.
    """
    try:
        yield
    except SafeeditError:  # ours: said in its own words, with its own remedy
        raise
    except BaseException as error:
        # What Rust libraries panic with is no Exception; Ctrl-C and the like are not ours.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        if "trust_remote_code" in str(error):
            refuse_code(place)
        if isinstance(error, MemoryError) or any(t in str(error).lower() for t in _NO_MEMORY):
            raise ModelError(
                "there is not enough memory for this model",
                file=place,
                remedy="use a smaller model, dtype: bfloat16, or a larger device",
            ) from error
        raise ModelError(
            f"transformers can't {doing} it: {type(error).__name__}: {reason[:300]}",
            file=place,
            remedy=remedy,
        ) from error


def refuse_code(place: Path | str) -> NoReturn:
    """Say why code that comes with a model is not run, and what to do instead."""
    raise ModelError(
        "this model can only be opened by running code that comes with it (trust_remote_code), "
        "which safeedit never does",
        file=place,
        remedy="use a model whose architecture and tokenizer are part of transformers",
    ) from None
