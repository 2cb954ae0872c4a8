#!/usr/bin/env python3
"""Launcher for a checkout: ``python cli.py apply policies/quickstart.yaml``.

The same as the installed command ``safeedit``; everything is in :mod:`safeedit.commands`.
"""

from safeedit.commands import main

if __name__ == "__main__":
    main()
