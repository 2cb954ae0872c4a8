"""Maths that editors, auditors and gates share; every module says where it comes from.

Importing this package imports no torch: gates, which are pure, read
:mod:`~safeedit.numerics.statistics`.
"""
