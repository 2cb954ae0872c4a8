"""REMEDI's three uses: to probe, to steer, to compile.

:mod:`~safeedit.remedi.measuring` says how well each does on lessons that taught nothing;
:mod:`~safeedit.remedi.commands` is the command line. The map itself is
:mod:`safeedit.model.remedi`, the editor that compiles it is called ``remedi`` in a policy.
"""
