"""Several editors on the same facts, splits and audits, and who stands where.

- :mod:`~safeedit.workflows.comparison.candidates`: from a policy with one edit to one policy per
  editor
- :mod:`~safeedit.workflows.comparison.running`: runs them, keeps each record, resumes
- :mod:`~safeedit.workflows.comparison.standings`: what is written to disk, and the Pareto front
- :mod:`~safeedit.workflows.comparison.rendering`, :mod:`~safeedit.workflows.comparison.figure`: how
  it is shown
- :mod:`~safeedit.cli.compare`: ``safeedit compare``
"""
