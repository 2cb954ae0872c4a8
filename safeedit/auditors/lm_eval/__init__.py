"""The auditor ``lm_eval``: tasks of the language model evaluation harness.

- :mod:`~safeedit.auditors.lm_eval.tasks`: task files, read and refused without the library
- :mod:`~safeedit.auditors.lm_eval.harness`: the only place that calls the library
- :mod:`~safeedit.auditors.lm_eval.lm_eval`: the auditor
"""
