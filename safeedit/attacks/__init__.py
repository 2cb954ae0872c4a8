"""Attacks, one per file: edits made by somebody who wants back what was suppressed.

A file's stem is its name in a policy. An attack proposes as an editor does; the runner makes it on
the edited model that is to be exported, repeats audits under it, and restores the weights. Nothing
of it is ever written to disk.
"""
