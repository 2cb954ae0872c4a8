"""Standings made by hand: rows of (success, locality), each with an interval around it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from safeedit.records import Interval, Metric, ModelRecord
from safeedit.workflows.comparison.standings import Axis, Kind, Standing, Standings, placed

SUCCESS = Axis(metric="leak.rate", unit="rate", direction="lower", description="what comes out")
LOCALITY = Axis(metric="near.f1", unit="f1", direction="higher", description="what stays")


def metric(axis: Axis, value: float | None, half: float | None) -> Metric:
    interval = None
    if value is not None and half is not None:
        interval = Interval(low=value - half, high=value + half, method="wilson")
    return Metric(
        name=axis.metric, value=value, interval=interval, n=10, unit=axis.unit,
        direction=axis.direction,
    )  # fmt: skip


def row(
    name: str,
    success: float | None,
    locality: float | None,
    half: float | None = 0.05,
    kind: Kind = "editor",
    **more: Any,
) -> Standing:
    metrics = {a.metric: metric(a, v, half) for a, v in ((SUCCESS, success), (LOCALITY, locality))}
    return Standing(name=name, use=name, kind=kind, metrics=metrics, **more)


def standings(*rows: Standing, **more: Any) -> Standings:
    given: dict[str, Any] = {
        "policy_name": "trial",
        "policy_digest": "0" * 64,
        "model": ModelRecord(
            source="tiny", revision=None, architecture="Llama", parameters=1000, dtype="float32",
            device="cpu", digest="1" * 64,
        ),
        "seed": 3,
        "safeedit": "0",
        "success": SUCCESS,
        "locality": LOCALITY,
        "knowedit": {},
        "rows": placed(rows, SUCCESS, LOCALITY),
    }  # fmt: skip
    return Standings(**(given | more))


def places(*rows: Standing, **axes: Axis) -> Mapping[str, str]:
    chosen = {"success": SUCCESS, "locality": LOCALITY} | axes
    return {each.name: each.place for each in placed(rows, **chosen)}
