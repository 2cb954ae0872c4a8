#!/usr/bin/env python3
"""Launcher for a checkout: ``python cli.py apply policies/quickstart.yaml``.

The same as the installed command ``safeedit``; everything is in :mod:`safeedit.cli.main`.
"""

from safeedit.cli.main import main

if __name__ == "__main__":
    main()
