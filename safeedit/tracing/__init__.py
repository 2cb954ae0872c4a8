"""``safeedit trace``: which layers carry a policy's facts, and whether editing agrees.

:mod:`~safeedit.tracing.measuring` traces and checks, :mod:`~safeedit.tracing.record` is what is
written, :mod:`~safeedit.tracing.page` draws it, :mod:`~safeedit.tracing.commands` is the command
line. The tracing itself is :mod:`safeedit.model.tracing`.
"""
