"""Intervals, paired tests, comparison of two samples, and metrics held against gates.

Importing this package imports no torch.
"""
