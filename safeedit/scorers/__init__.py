"""Scorers: one text classifier per file; the file's stem is its name in a policy.

A scorer says how toxic a text is; none of them is right. Each has a card (see
:mod:`safeedit.scorers.cards`) that says how far it agrees with people, and no two are ever mixed
within one comparison.
"""

SUPPORT = frozenset({"cards", "score_cache", "transformer"})
"""Modules here that are no scorers; the catalog passes them over."""
