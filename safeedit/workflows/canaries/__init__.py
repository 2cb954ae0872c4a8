"""Canaries: invented personal records, taught to a model so that erasing can be tested.

They are known to be memorised, and belong to nobody. :mod:`~safeedit.workflows.canaries.records`
invents them, :mod:`~safeedit.workflows.canaries.planting` teaches them, :mod:`~safeedit.cli.canary`
is the command line to both.
"""
