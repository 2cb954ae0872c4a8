"""Canaries: invented personal records, taught to a model so that erasing can be tested.

They are known to be memorised, and belong to nobody. :mod:`~safeedit.canaries.records` invents
them, :mod:`~safeedit.canaries.planting` teaches them, :mod:`~safeedit.canaries.commands` is the
command line to both.
"""
