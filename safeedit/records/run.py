"""What a run leaves behind, as records: verdicts, edits, attacks, models, the export, the whole."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from safeedit.records.metrics import (
    AttackClass,
    AuditRecord,
    Comparison,
    Interval,
    Metric,
    PassingSide,
    Record,
    Status,
)

SCHEMA_VERSION = 1
"""Version of ``report.json``; raised whenever a field changes meaning or disappears."""


class Nearness(Record):
    """How little would turn a verdict: an item, another sample, or a good deal more."""

    items: int | None = None
    """Of a rate of items that hold or don't: how many must turn."""
    of: int | None = None
    """Among so many."""
    gap: float | None = None
    """Of anything else: how far the bound is outside of the interval of what was held against it,
    as a share of the interval's width; 0 where it lies within."""

    @property
    def is_near(self) -> bool:
        """Whether one or two items, or a tenth of the interval's width, are all that is between."""
        return (self.items is not None and self.items <= 2) or (
            self.gap is not None and self.gap <= 0.1
        )


class SeedVerdict(Record):
    """What one gate says of the run with one of several seeds."""

    seed: int
    status: Status
    reason: str
    value: float | None
    """As :attr:`Verdict.value`, and so are the next two."""
    bound: float | None
    bound_on_metric: float | None


class Verdict(Record):
    """What one gate decided, and why."""

    metric: str
    under: str = ""
    """Id of the attack under which the metric was measured; empty for the model as it is."""
    against: str = ""
    """The random change that the edited model was held against; empty for the untouched model."""
    condition: str
    """The gate as the policy wrote it, e.g. ``max 0.02 at confidence 0.95``."""
    kind: str
    """The condition that the gate sets, e.g. ``max_increase``; :mod:`safeedit.policy.gate` says
    what each means, the next two fields what this one does."""
    of_change: bool
    """Whether the gate looks at the metric's change rather than its value after the edits."""
    passes: PassingSide
    """The side of the bound on which the gate passes."""
    confidence: float | None
    """Level of the interval that was held against the bound; None where the value was."""
    status: Status
    reason: str
    value: float | None
    """The metric after the edits or, where :attr:`of_change`, its change."""
    bound: float | None
    """What :attr:`value` was held against (signed, percentages resolved)."""
    bound_on_metric: float | None
    """The bound on the metric's own scale: for a change, the value before plus :attr:`bound`."""
    nearness: Nearness | None = None
    """How little would turn it; None where nobody can say."""
    interval: Interval | None = None
    """Of :attr:`value`, at :attr:`confidence`: what was held against the bound. None where the
    value was, or nothing could be."""
    by_seed: tuple[SeedVerdict, ...] = ()
    """Of a run with several seeds, what the gate says of each, that of the checkpoint first."""

    @property
    def of_checkpoint(self) -> Verdict:
        """What the gate says of the run that the checkpoint is of, whatever other seeds gave."""
        if not self.by_seed:
            return self
        return self.model_copy(update=self.by_seed[0].model_dump(exclude={"seed"}))


class TensorChange(Record):
    """What an edit did to one tensor, in the model's own dtype."""

    name: str
    layer: int | None
    role: str
    shape: tuple[int, ...]
    kind: Literal["low_rank", "columns", "dense"]
    delta_norm: float
    """Frobenius norm of the intended change, fp32."""
    relative_norm: float
    """``delta_norm`` over the norm of the original tensor."""
    cast_error: float
    """``‖cast(W+Δ) − W − Δ‖_F / ‖Δ‖_F``."""
    share_changed: float
    """Share of entries whose stored value really changed."""
    entries_changed: int
    effective_rank: float | None = None
    """Of the intended change: ``(sum of s^2)^2 / sum of s^4`` over its singular values (their
    participation ratio); None for a vector, and in records of earlier versions."""


class VocabularyReading(Record):
    """What the strongest directions that an edit writes into the residual stream say, read as the
    head would read them: counts alone, never a word."""

    directions: int
    """How many, over all matrices that write there."""
    answers: int
    """Erased answers looked for."""
    found: int
    """Those whose first token is among the ten likeliest of a direction or of its opposite."""
    expected: float
    """How many would be by chance."""


class DosePoint(Record):
    """One dose tried on validation data."""

    dose: float
    metrics: dict[str, float | None]
    meets_targets: bool
    misses: tuple[str, ...] = ()
    """Targets this dose missed, in words."""
    seconds: float = 0.0


class LayersTried(Record):
    """One place in the depth, tried on a few facts: what ``layers: auto`` chose among."""

    layers: tuple[int, ...]
    dose: float
    """The one that did best there."""
    metrics: dict[str, float | None]
    """Those of the targets, on validation data of these facts, at that dose."""
    meets_targets: bool
    misses: tuple[str, ...] = ()
    facts: int
    """How many it was tried on."""
    taken: bool
    seconds: float


class EditRecord(Record):
    """One edit: what was fitted, which dose was taken and why, what it changed."""

    id: str
    use: str
    params: dict[str, Any]
    data_digests: dict[str, str]
    dose: float
    dose_mode: Literal["auto", "fixed"]
    dose_curve: tuple[DosePoint, ...]
    targets_met: bool | None
    """None where the dose was fixed by the policy."""
    layers_tried: tuple[LayersTried, ...] = ()
    """Under ``layers: auto``, in the order tried; those taken are in ``params``."""
    changes: tuple[TensorChange, ...]
    vocabulary: VocabularyReading | None = None
    """None where nothing is erased, or nothing that changed writes into the residual stream."""
    delta_digest: str
    tokens_read: int | None = None
    """Tokens that the model read while the edit was fitted, padding and every strength included,
    choice of layers and measurements not; None where they were not counted."""
    untouched_verified: int
    """Tensors outside the plan, proved byte-identical after the edit."""
    notes: dict[str, Any] = Field(default_factory=dict)
    """The editor's own account (losses, controls, warnings); numbers and words, no data."""
    controls: tuple[ControlRecord, ...] = ()
    gates_so_far: tuple[Verdict, ...] = ()
    """What the gates say of the model with this edit and those before it; empty for the last
    edit, after which the record's own verdicts are."""
    seconds: float


class ControlRecord(Record):
    """Another change of the same kind: what the edit's effect must beat."""

    name: str
    """e.g. ``random delta of equal norm``."""
    random: bool = True
    """A random change like the edit's; False for a control of the editor's own choice."""
    seed: int
    metrics: tuple[Metric, ...]


class AttackPoint(Record):
    """One strength of an attack, with one seed: what the audits found under it."""

    dose: float
    """The strength, a number of the attack's own: steps, bits, a share."""
    label: str
    """The strength in words, e.g. ``40 steps at 5e-05``."""
    seed: int
    edited: tuple[Metric, ...]
    """Of the edited model under the attack; ``recovered`` of each audit among them."""
    base: tuple[Metric, ...] = ()
    """Of the untouched model under the same attack."""
    never_known: tuple[Metric, ...] = ()
    """Of the edited model under the attack, asked for what it never knew: what the attack makes
    up by itself."""
    notes: dict[str, Any] = Field(default_factory=dict)
    """The attack's own account of the edited model (losses ...); never data."""
    seconds: float = 0.0
    """Of attack and audits on the edited model."""


class AttackRecord(Record):
    """One attack on the edited model. Its weights were restored afterwards, which a digest proved:
    else there were no record."""

    id: str
    use: str
    params: dict[str, Any]
    data_digests: dict[str, str]
    tries: AttackClass
    audits: tuple[str, ...]
    """Ids of the audits that were repeated under it."""
    headlines: dict[str, str] = Field(default_factory=dict)
    """Audit -> full name of the metric that ``recovered`` is told of."""
    points: tuple[AttackPoint, ...] = ()
    failed: str = ""
    """Why nothing was measured, or not all; gates under this attack are inconclusive then."""
    left_out: int = 0
    """Items that the attack used and the audits under it therefore did not ask."""
    seconds: float = 0.0


RECOVERED = "recovered"
"""Name of the metric that an attack gives each of its audits: the share of an edit's effect that
the attack undoes."""


class AdapterRecord(Record):
    """A LoRA adapter that was merged into the base before anything was measured."""

    source: str
    """As the policy names it."""
    digest: str
    """sha256 over its config and its weights."""
    base_named: str = ""
    """The model that it says it was trained for."""
    tensors: int
    """How many of the base it changes."""
    ranks: tuple[int, ...]
    """All that occur, ascending."""


class CastRecord(Record):
    """Tensors that were cast to run: the files keep them as they are."""

    stored: str
    """Dtype on disk."""
    run: str
    """Dtype in which they were measured."""
    tensors: int
    entries: int
    """Numbers in all of them."""
    exact: bool
    """Whether the cast loses nothing."""


class ModelRecord(Record):
    """The model a run started from."""

    source: str
    """As the policy names it."""
    local: bool = False
    """A folder or file of the machine, which a card must not tell."""
    revision: str | None
    architecture: str
    parameters: int
    layers: int = 0
    """Number of blocks; 0 where not recorded."""
    roles: tuple[str, ...] = ()
    """What the matrices of a block do, in order (``attn_q`` ... ``mlp_out``)."""
    training_tokens: int | None = None
    """On how many tokens it was trained, where its card tells."""
    dtype: str
    device: str
    digest: str
    """Over the tensors as they lie on disk, by their names there: see
    :mod:`safeedit.model.digest` and :mod:`safeedit.model.stored`."""
    adapter: AdapterRecord | None = None
    """What was merged into it; the digest is of the merged tensors."""
    casts: tuple[CastRecord, ...] = ()
    """What had to be cast to run in ``dtype``."""
    names: dict[str, str] = Field(default_factory=dict)
    """Name on disk -> name in the model, where they differ; edits speak of the model's."""
    unread: tuple[str, ...] = ()
    """Tensors on disk that no causal language model reads; an export keeps them."""
    trust_remote_code: bool = False


class EnvironmentRecord(Record):
    """Where a run took place."""

    safeedit: str
    python: str
    platform: str
    processor: str
    cpu_count: int
    device: str
    packages: dict[str, str]


class ResourceRecord(Record):
    """What a run cost."""

    wall_seconds: float
    spared_seconds: float = 0.0
    """What the work took that this run found done by earlier ones."""
    peak_memory_bytes: int
    """Peak resident memory of the process."""
    peak_device_bytes: int = 0
    stages: dict[str, float]
    """Stage -> seconds, in order, with those that earlier runs took for what was found done."""


class ExportRecord(Record):
    """The promoted checkpoint."""

    directory: str
    weights_digest: str
    """Over the tensors as they lie on disk, as :attr:`ModelRecord.digest`."""
    untouched: int = 0
    """Tensors on disk that are the source's own, byte for byte, names and dtypes included."""
    files: dict[str, str]
    """Relative path -> sha256 of every file of the checkpoint, evidence aside."""
    originals: dict[str, str] = Field(default_factory=dict)
    """Name on disk -> digest of the source's own tensor, for all that the edits named; with
    these in the place of the export's own, the digest is that of :attr:`RunRecord.model`."""
    ledger: str | None = None
    """sha256 of the ledger of erasure requests, where one is kept."""
    withheld: Literal["", "private", "encrypted"] = ""
    """Whether the originals and deltas lie elsewhere than in evidence/, and encrypted."""


class Glossary(Record):
    """What the names in a record are, in plain words; so reports need nothing but the record."""

    edits: dict[str, str] = Field(default_factory=dict)
    """Id -> what its editor does."""
    audits: dict[str, str] = Field(default_factory=dict)
    """Id -> what it looks at."""
    attacks: dict[str, str] = Field(default_factory=dict)
    """Id -> what it tries."""
    metrics: dict[str, str] = Field(default_factory=dict)
    """Full name -> a sentence: what was asked, of what, and which way is better."""
    erasure: tuple[str, ...] = ()
    """Full names of the metrics that tell whether what was to be suppressed still comes out; all
    others tell what else has changed."""


class RunRecord(Record):
    """One run of ``apply``, ``audit`` or ``attack``, complete."""

    schema_version: int = Field(SCHEMA_VERSION, ge=SCHEMA_VERSION, le=SCHEMA_VERSION)
    command: Literal["apply", "audit", "attack"]
    run_id: str
    started: str
    """ISO 8601, UTC."""
    policy_name: str
    policy_digest: str
    policy: dict[str, Any]
    """The policy as validated."""
    policy_file: str = ""
    """Its file, seen from the folder that the run was started in; empty where it lies elsewhere, or
    where its name quotes data to be erased."""
    gate_lines: tuple[int, ...] = ()
    """The line of the file that each gate of the policy stands in, in their order."""
    owner: str | None
    ticket: str | None
    seed: int
    model: ModelRecord
    compared_with: ModelRecord | None = None
    """The untouched model, where ``audit`` or ``attack`` were given one."""
    datasets: dict[str, dict[str, Any]]
    """``<stage id>.<role>`` -> digest, counts per split, source; never items."""
    before: tuple[AuditRecord, ...]
    edits: tuple[EditRecord, ...]
    after: tuple[AuditRecord, ...]
    comparisons: tuple[Comparison, ...]
    attacks: tuple[AttackRecord, ...] = ()
    """Attacks on the edited model, in the order of the policy."""
    verdicts: tuple[Verdict, ...]
    """Of each gate; where there are :attr:`other_seeds`, of all seeds together."""
    glossary: Glossary = Glossary()
    status: Status
    exit_code: int
    warnings: tuple[str, ...]
    environment: EnvironmentRecord
    resources: ResourceRecord
    export: ExportRecord | None
    """None where nothing was exported."""
    other_seeds: tuple[RunRecord, ...] = ()
    """The same policy without its export, run with other seeds: each run's own record, whole."""

    @property
    def all_seeds(self) -> tuple[RunRecord, ...]:
        """This run, then those with other seeds."""
        return (self, *self.other_seeds)


EditRecord.model_rebuild()
RunRecord.model_rebuild()
