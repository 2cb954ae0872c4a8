"""The policy as typed, frozen records: what a user may ask for, field by field.

Fails with pydantic's ``ValidationError``; :func:`safeedit.policy.load_policy` turns that
into a :class:`~safeedit.errors.PolicyError` with file, line and column. Nothing here looks
at editors, auditors, data or models: names are resolved by :mod:`safeedit.planning.resolution`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from safeedit.policy.engine import Engine, EngineSpec
from safeedit.policy.gate import GateSpec
from safeedit.policy.parts import STAGE_NAME, PolicyPart, Sequenced, exactly_one
from safeedit.records import RECOVERED, Split

Template = Literal["auto", "chat", "plain"]
"""How a prompt is put to the model: in its chat template, bare, or chat where it has one."""

Conflict = tuple[tuple[str | int, ...], str]
"""Where in a policy two fields contradict each other, and what is wrong."""

DType = Literal["auto", "float32", "bfloat16", "float16"]

MOST_SEEDS = 20
"""Seeds that one run may have."""

_SEEDS = 2**63
"""How many different ones there are."""


class ModelSpec(PolicyPart):
    """The model to edit."""

    source: Annotated[str, Field(min_length=1)]
    """Hub id, local folder, .gguf file, builtin:smollm2-135m-instruct or builtin:gemma3-270m."""
    revision: str | None = None
    """Commit, tag or branch of a hub model; pin a commit to make runs repeatable."""
    adapter: Annotated[str, Field(min_length=1)] | None = None
    """Folder of a LoRA adapter of PEFT that is merged into the model before anything is measured;
    relative to the policy file. The export is the merged checkpoint."""
    dtype: DType = "auto"
    """Type of the weights while editing and in the export; auto keeps the model's own."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    """Where to compute: auto, cpu, mps, cuda or cuda:N."""


class DataSpec(PolicyPart):
    """Where items come from and which of them to use."""

    file: Annotated[str, Field(min_length=1)] | None = None
    """JSONL, JSON array, CSV, TSV, Parquet or text file, or a folder of datasets' save_to_disk;
    relative to the policy file. ``${NAME}`` stands for a variable of the environment."""
    dataset: Annotated[str, Field(min_length=1)] | None = None
    """A data set that ships with safeedit, e.g. facts."""
    hub: Annotated[str, Field(pattern=r"^\w[\w.-]*(/\w[\w.-]*)?$")] | None = None
    """A data set on the Hugging Face hub, e.g. mandarjoshi/trivia_qa."""
    format: str = "auto"
    """auto, or the name of a published format: sanitation, known_1000, counterfact, tofu ..."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Our name -> the source's, e.g. {prompt: question, answer: answer.value}."""
    where: dict[str, str | int | float | bool | list[str | int | float | bool]] = Field(
        default_factory=dict
    )
    """Keep rows whose column equals the value, or one of the values, e.g. {role: near}."""
    split: Split | None = None
    """Put every row in this split, whatever the rows say."""
    group: Annotated[str, Field(min_length=1)] | None = None
    """Rows equal in this column stay in one split, e.g. subject."""
    additional_sources: list[DataSpec] = Field(default_factory=list)
    """Further sources whose rows are added. How prompts are put, divided and limited is said
    outside; ``group`` within says what ``exclude`` within compares."""
    exclude: DataSpec | None = None
    """Leave out and count rows that this other source has too: rows with the same prompt, or with
    ``group`` of one of its groups, e.g. so that what is fitted is not what a benchmark tests."""
    on_error: Literal["stop", "drop"] = "stop"
    """What an unreadable row does: stop with its line, or be left out and counted."""
    revision: str | None = None
    """Commit of the hub data set."""
    hub_config: str | None = None
    """Configuration of the hub data set, e.g. rc.nocontext."""
    hub_split: str | None = None
    """Split of the hub data set (default train), or of a saved DatasetDict."""
    stream: bool = False
    """Read the hub data set row by row instead of downloading it whole."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """At most so many items: a seeded choice, or the first ones of a stream."""
    template: Template = "auto"
    """Put prompts in the model's chat template, plain, or (auto) chat where it has one."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    """Refuse the file if its sha256 differs."""

    @model_validator(mode="after")
    def _check(self) -> DataSpec:
        exactly_one(self, ("file", "dataset", "hub"))
        if self.hub is None:
            for name in ("revision", "hub_config"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is for hub data sets only")
            if self.stream:
                raise ValueError("stream is for hub data sets only")
        elif self.sha256 is not None:
            raise ValueError("sha256 is for files; pin a hub data set with revision")
        if self.exclude is not None and self.exclude.exclude is not None:
            raise ValueError("exclude can't hold another exclude")
        for name, others in (
            ("additional_sources", self.additional_sources),
            ("exclude", [self.exclude]),
        ):
            for other in others:
                for key in ("additional_sources", "limit", "stream"):
                    if other is not None and getattr(other, key):
                        raise ValueError(f"{key} has no place within {name}: give it outside")
        return self

    @property
    def label(self) -> str:
        """The sources as a short name for records and screens."""
        own = self.file or self.dataset or self.hub or ""
        return " + ".join([own, *(other.label for other in self.additional_sources)])


class StageSpec(BaseModel):
    """What edits and audits share: a name from the catalog, an id, and options.

    Keys that are not fields are kept as :attr:`options`: roles of data (``forget``,
    ``data`` ...) and parameters. :mod:`safeedit.planning.resolution` resolves them against
    the editor or auditor, which alone knows which exist.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="allow",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    use: Annotated[str, Field(pattern=STAGE_NAME)]
    """Name of the editor or auditor; `safeedit list` shows them."""
    id: Annotated[str, Field(pattern=STAGE_NAME)] = ""
    """Name of this stage in gates and reports; by default that of use."""

    @model_validator(mode="before")
    @classmethod
    def _name(cls, data: Any) -> Any:
        if isinstance(data, dict):
            if "options" in data:
                raise ValueError("has no key 'options': write parameters and data directly")
            if data.get("id") is None and isinstance(data.get("use"), str):
                data = {**data, "id": data["use"]}
        return data

    @property
    def options(self) -> dict[str, Any]:
        """Keys beyond the fields: data roles and parameters, as the policy wrote them."""
        return dict(self.model_extra or {})


def _dose(value: Any) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value == "auto" or (number and value > 0 and value != float("inf")):
        return value
    raise ValueError("should be auto or a number above 0")


class EditSpec(StageSpec):
    """One change to the model. Further keys: the editor's data roles and parameters."""

    dose: Annotated[
        Literal["auto"] | float,
        BeforeValidator(_dose),
        WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "number", "exclusiveMinimum": 0}]}),
    ] = "auto"
    """Strength of the edit; auto takes the least that meets the targets on validation data."""
    targets: Sequenced[GateSpec] = ()
    """What dose: auto must reach; by default the policy's gates."""
    unaudited: Annotated[str, Field(pattern=r"\S")] | None = None
    """Why no gate holds whether the erased data still comes out; reports repeat it. Without it such
    a policy is refused."""
    control: bool | Annotated[int, Field(ge=1, le=100)] = True
    """Also measure a random change of equal norm, or so many of them, and the editor's own
    controls: what the edit's effect must beat."""


class AuditSpec(StageSpec):
    """One measurement. Further keys: the auditor's data roles and parameters."""

    required: bool = True
    """False: a run where this audit can't be made is not inconclusive for it."""
    control: bool = True
    """False: this audit is not made on the controls of edits, nor between one edit and the next,
    which saves its time."""


class AttackSpec(StageSpec):
    """One attempt to bring back what the edits suppressed, made on the edited model before it is
    exported, and undone. Further keys: the attack's data roles and parameters."""

    audits: Sequenced[Annotated[str, Field(pattern=STAGE_NAME)]]
    """Ids of the audits to repeat under the attack."""
    share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Attack with only this share of the subjects in its data, drawn by the seed, and ask the
    audits about all others: does relearning some bring back the rest?"""
    overlap: Literal["meant"] | None = None
    """Write 'meant' to let an attack use the very items that the audits ask about."""
    askings: Literal["all"] | None = None
    """Write 'all' to repeat every way of asking that the named audits know, and not only those of
    their headline and of gates: what each tells under the attack is reported."""
    seeds: Annotated[int, Field(ge=1, le=20)] = 1
    """Repeat an attack that draws at random with so many seeds; gates hold under each."""

    @field_validator("audits", mode="after")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("names no audit: an attack is judged by audits repeated under it")
        if len(set(value)) < len(value):
            raise ValueError("names an audit twice")
        return value


class KeySpec(PolicyPart):
    """Where the key of the ledger is; never the key itself."""

    file: Annotated[str, Field(min_length=1)] | None = None
    """File holding the key, relative to the policy file; `safeedit ledger key` makes one."""
    env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """Environment variable holding the key, e.g. SAFEEDIT_LEDGER_KEY."""

    @model_validator(mode="after")
    def _check(self) -> KeySpec:
        exactly_one(self, ("file", "env"))
        return self


LEDGER_AUDIT = "ledger"
"""Id of the audit that asks again for what earlier exports erased."""


class LedgerSpec(PolicyPart):
    """Which erasures an export covers: kept beside it, carried on, and audited again."""

    key: KeySpec
    """Key of the digests that stand for erased items."""
    requests: DataSpec | None = None
    """Everything ever requested: prompt, answer and, optionally, ticket. Needed where the
    model is an export that has a ledger."""
    audit: Annotated[str, Field(pattern=STAGE_NAME)] | AuditSpec = "leakage"
    """Auditor that asks for earlier erasures again, with its parameters: leakage, or
    {use: leakage, askings: all}, which with max_rate 0 gates items_told: no item may come out under
    any asking."""
    max_rate: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the earlier erasures that may come out again."""

    @model_validator(mode="after")
    def _check(self) -> LedgerSpec:
        if isinstance(self.audit, AuditSpec):
            if self.audit.id not in (self.audit.use, LEDGER_AUDIT):
                raise ValueError(f"the audit of the ledger is always called {LEDGER_AUDIT}")
            if not self.audit.required:
                raise ValueError("the audit of the ledger is always required")
        return self

    @property
    def stage(self) -> AuditSpec:
        """The audit under its id. Controls are not measured: they erase nothing."""
        own = AuditSpec(use=self.audit) if isinstance(self.audit, str) else self.audit
        return own.model_copy(update={"id": LEDGER_AUDIT, "control": False})

    @property
    def gate(self) -> GateSpec:
        """What the audit must meet: one item that comes out is one too many to wait for ten.

        Where the audit asks in every way and nothing may come out, that is counted over all ways.
        """
        every = self.stage.options.get("askings") == "all" and self.max_rate == 0
        name = "items_told" if every else "extraction_rate_unconditional"
        return GateSpec(metric=f"{LEDGER_AUDIT}.{name}", max=self.max_rate, min_n=1)


class ExportSpec(PolicyPart):
    """Where the checkpoint goes if every gate passes."""

    dir: Annotated[str, Field(min_length=1)]
    """Folder to create, relative to the policy file."""
    overwrite: bool = False
    """Replace a folder that exists."""
    private: Annotated[str, Field(min_length=1)] | None = None
    """Folder, outside of the export, for what can undo the edits (original tensors, deltas), in a
    folder named by the run; relative to the policy file. Without it they lie in the export's
    evidence/, and whoever gets the export can find out with them what was erased."""
    recipient: Annotated[str, Field(min_length=1)] | None = None
    """Public key of age (age1...) to which what goes to 'private' is encrypted; it needs the extra
    'age'."""


def _number_as_text(value: Any) -> Any:
    # `ticket: 1182` is natural YAML for a text that happens to be digits.
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class Policy(PolicyPart):
    """What to change in a model, how to measure it, and what must hold."""

    version: Literal[1] = 1
    """Version of the policy language."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    """Short name, used in file names and reports: letters, digits, '.', '_' and '-'."""
    owner: str | None = None
    """Who answers for this change; goes into the evidence."""
    ticket: Annotated[
        str | None,
        BeforeValidator(_number_as_text),
        WithJsonSchema({"type": ["string", "integer", "null"]}),
    ] = None
    """The request behind it; goes into the evidence."""
    description: str | None = None
    """What this policy is for."""
    seed: Annotated[int, Field(ge=0, lt=_SEEDS)] = 0
    """Seed of everything random in the run."""
    seeds: Annotated[int, Field(ge=1, le=MOST_SEEDS)] = 1
    """Run with so many seeds, from ``seed`` on, each with its own division of the data and its own
    doses; the checkpoint is that of the first, and ``over_seeds`` of each gate says what must
    hold."""
    engine: Engine = EngineSpec()
    """Who makes audits, on one machine or several: local, ray, or {use: ray, address: HOST:PORT,
    workers: 4}. It changes no figure."""
    model: ModelSpec
    """The model to edit."""
    edits: Sequenced[EditSpec] = ()
    """Changes, made in this order."""
    audits: Sequenced[AuditSpec] = ()
    """Measurements, made before and after the edits."""
    attacks: Sequenced[AttackSpec] = ()
    """Attempts to bring back what was suppressed, each made on the edited model and undone."""
    gates: Sequenced[GateSpec] = ()
    """Conditions for the export."""
    export: ExportSpec | None = None
    """Where the checkpoint goes; without it nothing is exported."""
    ledger: LedgerSpec | None = None
    """The ledger of erasure requests; without it none is kept."""

    @field_validator("edits", "audits", "attacks", "gates", mode="before")
    @classmethod
    def _empty(cls, value: Any) -> Any:
        # `gates:` with nothing under it is null in YAML; it means an empty list.
        return () if value is None else value

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> Policy:
        if info.context is not None:  # load_policy reports conflicts itself, with positions
            return self
        problems = [f"{'.'.join(map(str, field))} {text}" for field, text in self.conflicts()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def other_seeds(self) -> tuple[int, ...]:
        """Those that the policy is also run with, besides its own."""
        return further_seeds(self.seed, self.seeds)

    def conflicts(self) -> Iterator[Conflict]:
        """Contradictions between fields, as (path of the field, what is wrong)."""
        seen: dict[str, str] = {}
        groups = (("edits", self.edits), ("audits", self.audits), ("attacks", self.attacks))
        for group, stages in groups:
            for index, stage in enumerate(stages):
                place = f"{group}[{index}]"
                if stage.id in seen:
                    key = "id" if "id" in stage.model_fields_set else "use"
                    yield (
                        (group, index, key),
                        f"is the id of {seen[stage.id]} too; give one of them another id",
                    )
                seen.setdefault(stage.id, place)
        audits = tuple(audit.id for audit in self.audits)
        if self.ledger is not None and LEDGER_AUDIT in audits:
            at = audits.index(LEDGER_AUDIT)
            key = "id" if "id" in self.audits[at].model_fields_set else "use"
            yield (
                ("audits", at, key),
                f"{LEDGER_AUDIT} is the id of the ledger's audit; give this one another id",
            )
        yield from self._attack_conflicts(audits)
        yield from self._gate_conflicts(audits)

    def _attack_conflicts(self, audits: tuple[str, ...]) -> Iterator[Conflict]:
        """Attacks on audits that are not there."""
        for at, attack in enumerate(self.attacks):
            for number, named in enumerate(attack.audits):
                if named not in audits:
                    text = f"names an audit that is not there: {named}"
                    yield ("attacks", at, "audits", number), text

    def _gate_conflicts(self, audits: tuple[str, ...]) -> Iterator[Conflict]:
        """Gates on audits and under attacks that are not there."""
        repeated = {attack.id: attack.audits for attack in self.attacks}
        for i, gate in enumerate(self.gates):
            yield from _gate_conflicts(("gates", i), gate, audits, repeated)
            if gate.against:
                audit = next((each for each in self.audits if each.id == gate.audit), None)
                yield from _control_conflicts(("gates", i), gate, self.edits, audit)
        for i, edit in enumerate(self.edits):
            for j, gate in enumerate(edit.targets):
                where = ("edits", i, "targets", j)
                if gate.under:
                    text = (
                        "has no place in a target: doses are chosen without attacks; "
                        "write a gate under the attack instead"
                    )
                    yield (*where, "under"), text
                elif gate.against:
                    text = (
                        "has no place in a target: controls are made once the dose is chosen; "
                        "write a gate against the control instead"
                    )
                    yield (*where, "against"), text
                elif "over_seeds" in gate.model_fields_set:
                    text = "has no place in a target: with each seed its own dose is chosen"
                    yield (*where, "over_seeds"), text
                else:
                    yield from _gate_conflicts(where, gate, audits, repeated)


def further_seeds(first: int, count: int) -> tuple[int, ...]:
    """All of so many seeds but the first."""
    return tuple((first + further) % _SEEDS for further in range(1, count))


def _gate_conflicts(
    where: tuple[str | int, ...],
    gate: GateSpec,
    audits: tuple[str, ...],
    repeated: Mapping[str, tuple[str, ...]],
) -> Iterator[Conflict]:
    if gate.audit not in audits:
        yield (*where, "metric"), f"names an audit that is not there: {gate.audit}"
        return
    for attack in gate.under:
        if attack not in repeated:
            known = f"those there are: {', '.join(repeated)}" if repeated else "the policy has none"
            yield (*where, "under"), f"names an attack that is not there: {attack} ({known})"
        elif gate.audit not in repeated[attack]:
            yield (
                (*where, "under"),
                f"asks for {gate.audit} under {attack}, which does not repeat that audit; add it "
                "to the attack's audits",
            )
    if gate.name == RECOVERED and not gate.under:
        yield (
            (*where, "metric"),
            "is the share of an effect that an attack undoes; say which with 'under: ID'",
        )


def _control_conflicts(
    where: tuple[str | int, ...], gate: GateSpec, edits: Sequence[EditSpec], audit: AuditSpec | None
) -> Iterator[Conflict]:
    """A gate against a random change that nobody makes or measures."""
    drawn = [edit.id for edit in edits if edit.control]
    at = (*where, "against")
    if audit is not None and not audit.control:
        yield at, f"asks for a control of {audit.id}, which says 'control: false'"
    if gate.in_place_of and gate.in_place_of not in drawn:
        known = f"those with a control: {', '.join(drawn)}" if drawn else "none has a control"
        yield at, f"names an edit that is not there or has no control: {gate.in_place_of} ({known})"
    elif not gate.in_place_of and len(drawn) != 1:
        if drawn:
            text = f"must say which edit's control: 'random in place of {drawn[-1]}', say"
        else:
            text = "needs an edit that has a control, and the policy has none: set 'control: true'"
        yield at, text
