"""What can still be got out of a model: answers to questions, memorised strings, membership.

``leakage`` itself asks questions; ``leakage.<name>`` are the audits of memorised records.
"""
