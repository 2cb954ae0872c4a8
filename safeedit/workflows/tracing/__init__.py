"""``safeedit trace``: which layers carry a policy's facts, and whether editing agrees.

:mod:`~safeedit.workflows.tracing.measuring` traces and checks,
:mod:`~safeedit.workflows.tracing.record` is what is written,
:mod:`~safeedit.workflows.tracing.page` draws it, :mod:`~safeedit.cli.trace` is the command line.
The tracing itself is :mod:`safeedit.methods.causal_tracing`.
"""
