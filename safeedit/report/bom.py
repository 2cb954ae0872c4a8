"""An export as a bill of materials: CycloneDX 1.7 (ML-BOM), with its model card.

The model is the component, by the digest of its tensors and the sha256 of each of its weights
files; the base is its ancestor; data are named by digest. The card holds each metric with its
interval, what the run does not show, and what the edit cost elsewhere. cyclonedx-python-lib writes
everything but the card, for which it has no classes yet.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.bom_ref import BomRef
from cyclonedx.model.component import Component, ComponentType, Pedigree
from cyclonedx.output.json import JsonV1Dot7

from safeedit.records import Comparison, Metric, RunRecord
from safeedit.report import content
from safeedit.report.wording import number
from safeedit.text.display import clean

_SPACE = uuid.UUID("6f0d1d52-6f0b-5d0c-9b5e-5a3e6c1f7a10")
"""Of the serial numbers of our bills: they follow from the run, so that it is drawn again alike."""
WEIGHTS = "safeedit:weights_digest"
"""Property of the component: the digest over its tensors."""


def render(record: RunRecord) -> str:
    """The bill, as JSON.

    Args:
        record: Of a run that exported; of another the bill names no weights.
    """
    export = record.export
    name = clean(record.policy_name)
    model = Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=name,
        version=record.run_id,
        bom_ref=BomRef("model"),
        description=f"a {clean(record.model.architecture)} model of "
        f"{record.model.parameters:,} parameters, edited under a policy by safeedit",
        pedigree=Pedigree(ancestors=[_base(record)]),
        properties=[
            *([Property(name=WEIGHTS, value=export.weights_digest)] if export else []),
            Property(name="safeedit:policy_digest", value=record.policy_digest),
            Property(name="safeedit:status", value=record.status),
        ],
        components=[
            Component(
                type=ComponentType.FILE,
                name=file,
                bom_ref=BomRef(f"file:{file}"),
                hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)],
            )
            for file, digest in sorted(export.files.items() if export else ())
        ],
    )
    bom = Bom(serial_number=uuid.uuid5(_SPACE, record.run_id))
    bom.metadata.timestamp = datetime.fromisoformat(record.started)
    bom.metadata.component = model
    bom.metadata.tools.components.add(_ourselves(record))
    found = json.loads(JsonV1Dot7(bom).output_as_string())
    found["metadata"]["component"]["modelCard"] = _card(record)
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


def weights_named(text: str) -> str:
    """The digest over tensors that a bill names; empty where it names none.

    Raises:
        ValueError: It is no JSON.
    """
    try:
        properties = json.loads(text)["metadata"]["component"]["properties"]
        return next(str(one["value"]) for one in properties if one["name"] == WEIGHTS)
    except (KeyError, TypeError, StopIteration, RecursionError):
        return ""


def _ourselves(record: RunRecord) -> Component:
    version = record.environment.safeedit
    return Component(
        type=ComponentType.APPLICATION,
        name="safeedit",
        version=version,
        bom_ref=BomRef(f"safeedit@{version}"),
    )


def _base(record: RunRecord) -> Component:
    """The untouched model; of one that lies on the machine, what it is and not where."""
    model = record.model
    name = model.architecture if model.local else clean(model.source)
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=name,
        version=model.revision,
        bom_ref=BomRef("base"),
        properties=[Property(name=WEIGHTS, value=model.digest)],
    )


def _card(record: RunRecord) -> dict[str, Any]:
    return {
        "modelParameters": {
            "task": "text-generation",
            "architectureFamily": "transformer network",
            "modelArchitecture": clean(record.model.architecture),
            "datasets": [
                {
                    "type": "dataset",
                    "name": clean(name),
                    "contents": {
                        "properties": [
                            {"name": "safeedit:data_digest", "value": str(data["digest"])}
                        ]
                    },
                }
                for name, data in sorted(record.datasets.items())
            ],
        },
        "quantitativeAnalysis": {
            "performanceMetrics": [
                _metric(metric)
                for audit in record.after
                for metric in audit.metrics
                if metric.value is not None
            ]
        },
        "considerations": {
            "technicalLimitations": [clean(limit) for limit in content.limits(record)],
            "performanceTradeoffs": list(_tradeoffs(record)),
        },
    }


def _metric(metric: Metric) -> dict[str, Any]:
    found: dict[str, Any] = {
        "type": clean(metric.name),
        "value": repr(metric.value),
        "slice": f"test items, n = {metric.n}, in {clean(metric.unit)}",
    }
    if metric.interval is not None:
        found["confidenceInterval"] = {
            "lowerBound": repr(metric.interval.low),
            "upperBound": repr(metric.interval.high),
        }
    return found


def _tradeoffs(record: RunRecord) -> Iterator[str]:
    """What became worse: every metric whose change is for the worse beyond its interval."""
    for comparison in record.comparisons:
        if _is_worse(comparison):
            before = comparison.before.value if comparison.before else None
            yield (
                f"{clean(comparison.name)}: {number(before)} before, "
                f"{number(comparison.after.value)} after ({comparison.after.direction} is better)"
            )


def _is_worse(comparison: Comparison) -> bool:
    interval = comparison.difference_interval
    if interval is None:
        return False
    return interval.low > 0 if comparison.after.direction == "lower" else interval.high < 0
