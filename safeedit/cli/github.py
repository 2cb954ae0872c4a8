"""Where GitHub Actions runs a command: annotations of gates, and the summary of the step.

Nothing is written elsewhere: GitHub says by its variables that it is there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from safeedit.cli.terminal import tell

if TYPE_CHECKING:
    from safeedit.cli.screen import Screen
    from safeedit.records import RunRecord

THERE = "GITHUB_ACTIONS"
SUMMARY = "GITHUB_STEP_SUMMARY"


def announce(record: RunRecord, screen: Screen) -> None:
    """Tell GitHub of a run, if it is there; a summary that can't be written is a warning."""
    if os.environ.get(THERE) != "true":
        return
    from safeedit.report import comment, github

    tell(github.render(record).rstrip(), lines=True)
    if place := os.environ.get(SUMMARY):
        try:
            with Path(place).open("a", encoding="utf-8") as file:
                file.write(comment.render(record) + "\n")
        except OSError as error:
            screen.warn(f"the summary of the step could not be written: {error.strerror}")
