"""The policy: what to change in a model, how to measure it, and what must hold.

- :mod:`~safeedit.policy.model`: its parts as frozen pydantic records
- :mod:`~safeedit.policy.gate`: gates, and what each kind of gate means
- :mod:`~safeedit.policy.reading`: YAML with positions, and nothing that could run
- :mod:`~safeedit.policy.loading`: :func:`load_policy`, and errors that say where
- :mod:`~safeedit.policy.schema`: the JSON Schema for editors

A policy is data: it can never run code.
"""

from safeedit.policy.gate import Bound, GateSpec
from safeedit.policy.loading import LoadedPolicy, load_policy, policy_digest
from safeedit.policy.model import (
    AttackSpec,
    AuditSpec,
    DataSpec,
    EditSpec,
    ExportSpec,
    KeySpec,
    LedgerSpec,
    ModelSpec,
    Policy,
    StageSpec,
    Template,
)
from safeedit.policy.reading import FieldPath, Position
from safeedit.policy.schema import StageSchema, json_schema

__all__ = [
    "AttackSpec",
    "AuditSpec",
    "Bound",
    "DataSpec",
    "EditSpec",
    "ExportSpec",
    "FieldPath",
    "GateSpec",
    "KeySpec",
    "LedgerSpec",
    "LoadedPolicy",
    "ModelSpec",
    "Policy",
    "Position",
    "StageSchema",
    "StageSpec",
    "Template",
    "json_schema",
    "load_policy",
    "policy_digest",
]
