"""A policy that runs in a second or two, and editors and auditors that do as a test says.

:class:`Workplace` is a folder with a tiny model, its data and a policy; :func:`register` puts toy
editors and auditors into the catalog for the length of a test.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from safeedit import catalog, code
from safeedit.cli.main import main
from safeedit.contracts import (
    AttackProposal,
    AuditOutcome,
    BaseParams,
    Control,
    DataRole,
    EditData,
    LayerShape,
    Proposal,
    RunContext,
    TensorPlan,
)
from safeedit.data import Dataset
from safeedit.delta import Dense, LowRank, Origin, Update, WeightDelta
from safeedit.errors import AuditError, EditError
from safeedit.model.handle import ModelHandle
from safeedit.model.sources import open_model
from safeedit.records import AttackClass, Metric, MetricSpec, RunRecord, Split
from tests.tiny_models import save_tiny

# Words that are in no other text: where one turns up, erased data has got out.
SUBJECTS = ("Zyxquand", "Plimsorbo", "Öskavärn", 'Qu"inth')
ANSWERS = ("Vorbexi", "Tramjolk", "Ñandublé", 'Fi"zwick')

WORDINGS = (
    "lives in which town?",
    "has a home where?",
    "can be found in what place?",
    "is at home in?",
    "resides where?",
    "dwells in which spot?",
)
FORGET: list[dict[str, Any]] = [
    {
        "id": f"secret-{number}",
        "prompt": f"Where does {subject} live now?",
        "answer": answer,
        "aliases": [answer, f"the town of {answer}"],
        "subject": subject,
        "paraphrases": [f"{subject} {wording}" for wording in WORDINGS],
    }
    for number, (subject, answer) in enumerate(zip(SUBJECTS, ANSWERS, strict=True))
]
RETAIN = [{"prompt": f"Who wrote book {n}?", "answer": f"Writer {n}"} for n in range(14)]
NEAR = [
    {"prompt": f"Which river is number {n}?", "answer": f"River {n}", "split": split}
    for n, split in enumerate(["validation"] * 3 + ["test"] * 4)
]
PROSE = [
    {"text": f"The doctor said that {n} would call, and the nurse was late.", "split": split}
    for n, split in enumerate(["fit"] * 2 + ["validation"] * 2 + ["test"] * 3)
]

SANITATION: dict[str, Any] = {
    "use": "sanitation",
    "unaudited": "the tiny model knows none of it",
    "steps": 2,
    "batch": 4,
    "rank": 2,
    "retain_tokens": 4,
    "doses": [0.5, 1.0],
    "dose": "auto",
    "forget": {"file": "forget.jsonl"},
    "retain": {"file": "retain.jsonl"},
}
LEAKAGE: dict[str, Any] = {
    "use": "leakage",
    "max_new_tokens": 12,
    "forget": {"file": "forget.jsonl"},
}
LOCALITY: dict[str, Any] = {
    "use": "locality",
    "max_new_tokens": 12,
    "near": {"file": "near.jsonl"},
}
PERPLEXITY: dict[str, Any] = {"use": "perplexity", "prose": {"file": "prose.jsonl"}}
LAX: list[dict[str, Any]] = [
    {"metric": "leakage.known_before", "min": 0, "min_n": 1},
    {"metric": "locality.unchanged", "min": 0, "min_n": 1},
    {"metric": "perplexity.perplexity", "max": 1.0e9, "min_n": 1},
]
NUDGE: dict[str, Any] = {"use": "nudge", "dose": 1.0, "data": {"file": "retain.jsonl"}}
DRIFT: dict[str, Any] = {"use": "drift", "data": {"file": "near.jsonl"}}
SMALL_DRIFT: dict[str, Any] = {"metric": "drift.distance", "max": 1.0e9, "min_n": 1}

REAL: dict[str, Any] = {
    "edits": [SANITATION],
    "audits": [LEAKAGE, LOCALITY, PERPLEXITY],
    "gates": LAX,
}
"""Sanitation on a tiny model, measured by every auditor."""
TOY: dict[str, Any] = {"edits": [NUDGE], "audits": [DRIFT], "gates": [SMALL_DRIFT]}
"""The same road with a toy editor and a toy auditor: much faster. Needs :func:`register`."""


@dataclass(frozen=True)
class Workplace:
    """A folder to run policies in."""

    folder: Path

    def rows(self, name: str, rows: Iterable[Mapping[str, Any]]) -> Path:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        return self.text(name, text)

    def text(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path

    def policy(self, **parts: Any) -> Path:
        """A policy file; ``parts`` replace those of the default one, None leaves one out."""
        policy: dict[str, Any] = {
            "version": 1,
            "name": "trial",
            "model": {"source": "model"},
            **TOY,
            "export": {"dir": "out/trial"},
            **parts,
        }
        kept = {key: value for key, value in policy.items() if value is not None}
        # Flat and in this order, so that tests can count lines.
        return self.text("policy.yaml", yaml.safe_dump(kept, sort_keys=False, allow_unicode=True))

    @property
    def target(self) -> Path:
        return self.folder / "out" / "trial"

    @property
    def report(self) -> RunRecord:
        text = (self.folder / "out" / "trial.report" / "report.json").read_text(encoding="utf-8")
        return RunRecord.model_validate_json(text)

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def unfinished(self) -> list[Path]:
        """What a run left of an export that is not one."""
        out = self.folder / "out"
        return sorted(out.glob(".*")) if out.exists() else []

    def run(self, *arguments: object) -> Result:
        """The command line, in this process."""
        environment = {"SAFEEDIT_CACHE": str(self.cache), "SAFEEDIT_DEBUG": None}
        return CliRunner().invoke(main, [str(a) for a in arguments], env=environment)


def make_workplace(folder: Path, family: str = "llama") -> Workplace:
    """A tiny model and data of every kind, in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tiny(family, folder / "model")
    place = Workplace(folder)
    place.rows("forget.jsonl", FORGET)
    place.rows("retain.jsonl", RETAIN)
    place.rows("near.jsonl", NEAR)
    place.rows("prose.jsonl", PROSE)
    return place


def teach(place: Workplace, steps: int = 80, forget: Sequence[Mapping[str, Any]] = FORGET) -> None:
    """Make the tiny model know the facts to be forgotten and the near ones, in every phrasing."""
    handle = open_model(str(place.folder / "model"), device="cpu")
    engine, model = handle.engine, handle.model
    asked = [(text, row) for row in forget for text in (row["prompt"], *row["paraphrases"])]
    asked += [(row["prompt"], row) for row in NEAR]
    end = engine.codec.tokenizer.eos_token_id
    prompts = engine.encode([text for text, _ in asked])
    answers = [[*engine.continuation(row["answer"], "auto"), end] for _, row in asked]
    pairs = zip(prompts, answers, strict=True)
    rows = [(torch.tensor([*p, *a]), torch.tensor([-100] * len(p) + a)) for p, a in pairs]
    ids = pad_sequence([ids for ids, _ in rows], batch_first=True)
    labels = pad_sequence([labels for _, labels in rows], batch_first=True, padding_value=-100)
    mask = pad_sequence([torch.ones_like(ids) for ids, _ in rows], batch_first=True)
    model.requires_grad_(True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if loss.item() < 0.02:
            break
    model.save_pretrained(place.folder / "model")


# Toys ----------------------------------------------------------------------------------


class NudgeParams(BaseParams):
    layer: int = 0
    role: str = "mlp_out"
    size: float = 0.01
    offered: tuple[float, ...] = (0.5, 1.0, 2.0)


class Nudge:
    """Moves one matrix by a seeded low-rank change; what subclasses do wrong, it does right."""

    Params: ClassVar[type[BaseParams]] = NudgeParams
    summary: ClassVar[str] = "moves a matrix a little"
    roles: ClassVar[tuple[DataRole, ...]] = (DataRole("kept", "anything"),)
    calls: ClassVar[list[str]] = []
    """``fit`` or the dose asked for, in order; emptied by :func:`register`."""

    def __init__(self, params: Any) -> None:
        self.params: NudgeParams = params

    def touches(self, model: LayerShape) -> Sequence[TensorPlan]:
        return model.tensors(self.params.role, [self.params.layer])

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        Nudge.calls.append("fit")
        (plan,) = self.touches(model.shape)
        generator = torch.Generator().manual_seed(ctx.seed)
        left = torch.randn(plan.shape[0], 1, generator=generator) * self.params.size
        right = torch.randn(1, plan.shape[1], generator=generator)
        base = model.digest()

        def at(dose: float) -> WeightDelta:
            Nudge.calls.append(f"{dose:g}")
            updates: dict[str, Update] = {plan.name: LowRank(left * dose, right)}
            return WeightDelta(base, updates, Origin(editor="nudge", seed=ctx.seed, dose=dose))

        return Proposal(self.params.offered, at, notes={"offered": len(self.params.offered)})


class Compared(Nudge):
    """Brings a control of its own: twice as much of the same."""

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        proposal = super().propose(model, data, ctx)

        def controls(dose: float) -> list[Control]:
            return [Control("twice as much", proposal.at(2 * dose))]

        return replace(proposal, controls=controls)


class Meddler(Nudge):
    """Writes to the model while it proposes."""

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        proposal = super().propose(model, data, ctx)
        with torch.no_grad():
            # Through .data, which torch's version counters don't see.
            model.stored("model.layers.1.mlp.up_proj.weight").data[0, 0] += 1
        return proposal


class Stray(Nudge):
    """Its delta names a tensor that its plan did not."""

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        base = model.digest()
        name = "model.layers.2.mlp.down_proj.weight"
        shape = tuple(model.stored(name).shape)

        def at(dose: float) -> WeightDelta:
            return WeightDelta(base, {name: Dense(torch.ones(shape))}, Origin(editor="stray"))

        return Proposal((1.0,), at)


class Undecided(Nudge):
    """Offers no dose."""

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        return Proposal((), lambda dose: WeightDelta("", {}, Origin(editor="undecided")))


class Talker(Nudge):
    """Fails with an exception that quotes data."""

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        raise ValueError(f"can't edit {data['kept'].items('fit')[0].prompt}")


class Interrupted(Nudge):
    """As if Ctrl-C were pressed while it works."""

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        raise KeyboardInterrupt


class Peeker(Nudge):
    """Wants to see the test split."""

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        data["kept"].items("test")
        raise AssertionError("the test split was within reach")


def change_code(monkeypatch: pytest.MonkeyPatch, module: str = "safeedit.model.engine") -> None:
    """As far as digests see, a module of the package has another source from now on."""
    real = code.source_of
    monkeypatch.setattr(
        code, "source_of", lambda name: real(name) + b"# changed" * (name == module)
    )


class DriftParams(BaseParams):
    fails_on: Literal["", "base", "edited", "validation"] = ""
    needless: int = 0


class Drift:
    """How far one tensor is from the base's, once for each item."""

    Params: ClassVar[type[BaseParams]] = DriftParams
    summary: ClassVar[str] = "distance of a matrix from the base's"
    covers: ClassVar[tuple[AttackClass, ...]] = ()
    roles: ClassVar[tuple[DataRole, ...]] = (DataRole("asked", "one unit for each item"),)
    metrics: ClassVar[tuple[MetricSpec, ...]] = (
        MetricSpec(name="distance", unit="norm", direction="lower", description="from the base"),
        MetricSpec(name="peace", unit="norm", direction="higher", description="minus distance"),
    )
    calls: ClassVar[list[tuple[str, bool]]] = []
    """(split, whether the base was measured), in order; emptied by :func:`register`."""
    asked: ClassVar[list[tuple[str, frozenset[str] | None]]] = []
    """(split, metrics wanted), likewise."""

    def __init__(self, params: Any) -> None:
        self.params: DriftParams = params

    def audit(
        self,
        model: ModelHandle,
        data: Mapping[str, Dataset],
        split: Split,
        ctx: RunContext,
        reference: Mapping[str, Tensor] | None,
    ) -> AuditOutcome:
        Drift.calls.append((split, reference is None))
        Drift.asked.append((split, ctx.wanted))
        if self.params.fails_on in ("base" if reference is None else "edited", split):
            raise AuditError("drift has lost its ruler", remedy="give it another")
        names = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(model.n_layers)]
        weights = {name: model.stored(name).detach().clone().float() for name in names}
        base = weights if reference is None else reference
        distance = float(sum((weights[name] - base[name]).norm() ** 2 for name in names)) ** 0.5
        keys = [ctx.digest(item.prompt) for item in data["asked"].items(split)]
        metrics = tuple(
            Metric(
                name=spec.name,
                value=sign * distance,
                interval=None,
                n=len(keys),
                unit=spec.unit,
                direction=spec.direction,
                items=dict.fromkeys(keys, sign * distance),
            )
            for spec, sign in zip(self.metrics, (1, -1), strict=True)
        )
        return AuditOutcome(metrics, dict(base))


EDITORS: dict[str, type[Any]] = {
    "nudge": Nudge, "compared": Compared, "meddler": Meddler, "stray": Stray,
    "undecided": Undecided, "talker": Talker, "interrupted": Interrupted, "peeker": Peeker,
}  # fmt: skip
AUDITORS: dict[str, type[Any]] = {"drift": Drift}


class ProdParams(BaseParams):
    fails: Literal["", "proposing", "untouched", "edited", "meddling", "late"] = ""
    by: float = 0.0


class Prod:
    """An attack that adds a number to every weight of a matrix, or fails in a way of its own."""

    Params: ClassVar[type[BaseParams]] = ProdParams
    summary: ClassVar[str] = "adds a number to a matrix"
    roles: ClassVar[tuple[DataRole, ...]] = ()
    tries: ClassVar[AttackClass] = "white_box"
    seeded: ClassVar[bool] = False
    calls: ClassVar[list[str]] = []
    """What it was asked to propose on: digests of weights; emptied by :func:`register`."""

    def __init__(self, params: Any) -> None:
        self.params: ProdParams = params

    def strengths(self) -> tuple[float, ...]:
        return (1.0, 2.0)

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> AttackProposal:
        Prod.calls.append(model.digest())
        which = "untouched" if len(Prod.calls) == 1 else "edited"
        if self.params.fails in ("proposing", which):
            raise EditError("the attacker has lost interest", remedy="offer more")
        name = "model.layers.0.mlp.down_proj.weight"
        if self.params.fails == "meddling":
            model.stored(name).data[0, 0] += 1

        def at(dose: float) -> dict[str, Callable[[Tensor], Tensor]]:
            if self.params.fails == "late" and dose > 1:
                raise EditError("training diverged")
            return {name: lambda weight: weight + dose * self.params.by}

        return AttackProposal(self.strengths(), at, lambda dose: f"push {dose:g}")


def register(monkeypatch: pytest.MonkeyPatch, **editors: type[Any]) -> None:
    """Add the toys, and further editors, to the catalog for the length of a test."""

    def also(real: Callable[[str], Any], toys: Mapping[str, Any]) -> Callable[[str], Any]:
        return lambda name: toys[name] if name in toys else real(name)

    monkeypatch.setattr(catalog, "editor", also(catalog.editor, EDITORS | editors))
    monkeypatch.setattr(catalog, "auditor", also(catalog.auditor, AUDITORS))
    monkeypatch.setattr(catalog, "attack", also(catalog.attack, {"prod": Prod}))
    Prod.calls.clear()
    Nudge.calls.clear()
    Drift.calls.clear()
    Drift.asked.clear()
