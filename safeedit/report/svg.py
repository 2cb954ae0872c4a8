"""SVG elements and words for a page: every text in them is cleaned and escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable

from markupsafe import Markup, escape

from safeedit.report.wording import pieces
from safeedit.text.display import clean


def tag(name: str, content: Iterable[Markup] | str = "", /, **attributes: object) -> Markup:
    """One SVG element; attribute names with ``_`` for ``-``, and ``class_`` for class."""
    inner = escape(clean(content)) if isinstance(content, str) else Markup("").join(content)
    pairs = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), clean(value))
        for key, value in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), pairs, inner)


_EXPONENT = re.compile(r"\b\d+e-\d+\b")
"""Numbers as ``5e-05``."""


def breakable(text: object) -> Markup:
    """Words in which a name may break after ``_``, ``.`` and ``/``, and nowhere else: a browser
    would break ``5e-05`` after its sign."""
    marked = Markup("<wbr>").join(map(escape, pieces(clean(text))))
    return Markup(_EXPONENT.sub(r'<span class="whole">\g<0></span>', str(marked)))


def figure(label: str, height: float, content: Iterable[Markup]) -> Markup:
    """A figure as wide as its place.

    Args:
        label: What it shows, in words, for those who can't see it.
        height: In pixels.
        content: Its elements.
    """
    return tag(
        "svg",
        [tag("title", label), *content],
        class_="figure", width="100%", height=f"{height:g}", role="img",
        xmlns="http://www.w3.org/2000/svg",
    )  # fmt: skip
