"""Suggestions for names that were not understood."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from safeedit.policy.renamed import new_name


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A remedy that names the nearest known names, or all of them."""
    names = sorted(set(known))
    if (new := new_name(name, names)) is not None:
        return f"it is now called {new!r}"
    folded = {candidate.casefold(): candidate for candidate in names}
    close = difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.6)
    if name.casefold() in folded:  # written large: no other can be meant
        close = [name.casefold()]
    if close:
        return f"did you mean {' or '.join(repr(folded[match]) for match in close)}?"
    return f"known: {', '.join(names) or 'none'}"
