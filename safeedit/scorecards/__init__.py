"""What scorers are worth, and how auditors get them: cards, the cache of scores, the command.

No torch on import.
"""
