"""REMEDI's three uses: to probe, to steer, to compile.

:mod:`~safeedit.workflows.remedi.measuring` says how well each does on lessons that taught nothing;
:mod:`~safeedit.cli.remedi` is the command line. The map itself is
:mod:`safeedit.methods.remedi.mapping`, the editor that compiles it is called ``remedi`` in a
policy.
"""
