"""Who makes the evaluations of a run: part of a policy that changes no figure."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from safeedit.policy.parts import PolicyPart

EngineName = Literal["local", "ray"]


class EngineSpec(PolicyPart):
    """Who makes evaluations."""

    use: EngineName = "local"
    """local, processes of this machine; ray, actors of a Ray cluster (an extra)."""
    workers: Annotated[int, Field(ge=1, le=256)] | None = None
    """How many, each with a copy of the model; by default one for each of several GPUs. Without
    GPUs a local run makes everything itself, and ray takes two."""
    address: Annotated[str, Field(min_length=1)] | None = None
    """HOST:PORT of a Ray cluster that runs, or auto; without it one is started for the run."""

    @model_validator(mode="after")
    def _check(self) -> EngineSpec:
        if self.address is not None and self.use != "ray":
            raise ValueError("address is for ray only")
        return self


def _named(value: Any) -> Any:
    return {"use": value} if isinstance(value, str) else value


Engine = Annotated[
    EngineSpec,
    BeforeValidator(_named),
    WithJsonSchema(
        {"anyOf": [{"enum": list(get_args(EngineName))}, EngineSpec.model_json_schema()]}
    ),
]
"""An engine, or its name alone."""
