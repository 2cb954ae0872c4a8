"""How figures and names are written, in every report alike."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime

from safeedit.records import Interval, Metric, Verdict

STATUS_WORDS = {"pass": "passed", "fail": "failed", "inconclusive": "inconclusive"}
NOTHING = "–"
MINUS = "−"


def number(value: float | None, *, signed: bool = False) -> str:
    """Three decimals up to 10, then fewer; powers of ten where that would read 0.000."""
    if value is None or not math.isfinite(value):
        return NOTHING if value is None else str(value)
    size = abs(value)
    if size and (size < 0.0005 or size >= 1e6):
        text = f"{size:.1e}"
    elif size >= 1000:
        text = f"{size:,.0f}"
    else:
        text = f"{size:.{3 if size < 10 else 2 if size < 100 else 1}f}"
    sign = MINUS if value < 0 else "+" if signed and value > 0 else ""
    return sign + text


def bracket(interval: Interval | None) -> str:
    """``[0.01, 0.20]``; nothing where there is no interval."""
    return f"[{number(interval.low)}, {number(interval.high)}]" if interval else ""


def estimate(value: float | None, interval: Interval | None) -> str:
    """``0.10 [0.01, 0.20]``."""
    return f"{number(value)} {bracket(interval)}".rstrip()


def p_value(p: float | None) -> str:
    """``p = 0.03``, or ``p < 0.001`` where more digits would pretend precision."""
    if p is None:
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def count(metric: Metric) -> str:
    """``20``, or ``20 (120 phrasings)`` where several items make one independent unit."""
    items = len(metric.items)
    return f"{metric.n:,} ({items:,} in all)" if items > metric.n else f"{metric.n:,}"


def plural(n: int, noun: str, many: str = "") -> str:
    """``1 gate``, ``2 gates``; ``many`` where it takes more than an s."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {many or noun + 's'}"


def listing(words: list[str]) -> str:
    """``a``, ``a and b``, ``a, b, and c``."""
    if len(words) < 3:
        return " and ".join(words)
    return f"{', '.join(words[:-1])}, and {words[-1]}"


def day(moment: str) -> str:
    """``27 November 2026, 17:56 UTC`` of an ISO 8601 time; as it stands where it is none."""
    try:
        when = datetime.fromisoformat(moment)
    except ValueError:
        return moment
    if when.tzinfo is not None:
        when = when.astimezone(UTC)
    return f"{when.day} {_MONTHS[when.month - 1]} {when.year}, {when:%H:%M}" + (
        " UTC" if when.tzinfo is not None else ""
    )


_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip


def pieces(name: str) -> list[str]:
    """A name, parted where a line may break: after ``_`` and ``/``, and after a dot between words;
    never within a word or a number."""
    return re.split(r"(?<=[_/])(?=\w)|(?<=[^\W\d]\.)(?=[^\W\d])", name)


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 5 s``, ``2 h 10 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def took(wall: float, spared: float) -> str:
    """``42 s``, or ``42 s (3 min 5 s of work were taken from earlier runs)``."""
    if spared < 1:
        return duration(wall)
    return f"{duration(wall)} ({duration(spared)} of work were taken from earlier runs)"


def size(n_bytes: int) -> str:
    """``1.9 GB``, in powers of ten."""
    amount = float(n_bytes)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}"
        amount /= 1000
    return f"{amount:.2f} GB"


def share(part: float, whole: float) -> str:
    """``3.1 %``."""
    if not whole:
        return NOTHING
    percent = 100 * part / whole
    return f"{percent:.1f} %" if percent >= 0.1 or not percent else f"{percent:.1g} %"


def how_near(verdict: Verdict) -> str:
    """What would turn a verdict: ``1 item of 82 would turn it``; empty where nobody can say."""
    near = verdict.nearness
    if near is None:
        return ""
    if near.items is not None:
        return f"{plural(near.items, 'item')} of {near.of:,} would turn it"
    assert near.gap is not None
    if near.gap == 0:
        return "another sample could turn it: the bound lies within the interval"
    return f"the bound is {near.gap:.2g} of the interval's width outside of the interval"
