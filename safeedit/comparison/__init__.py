"""Several editors on the same facts, splits and audits, and who stands where.

- :mod:`~safeedit.comparison.entrants`: from a policy with one edit to one policy per editor
- :mod:`~safeedit.comparison.running`: runs them, keeps each record, resumes
- :mod:`~safeedit.comparison.standings`: what is written to disk, and the Pareto front
- :mod:`~safeedit.comparison.rendering`, :mod:`~safeedit.comparison.figure`: how it is shown
- :mod:`~safeedit.comparison.commands`: ``safeedit compare``
"""
