"""The protocols that every editor, attack, auditor and scorer keeps.

An **editor** proposes a change; it never makes one. An **attack** does the same on behalf of
somebody who wants back what an edit suppressed. An **auditor** measures one property of one
model on one split. A **scorer** rates texts for auditors. The runner (:mod:`safeedit.running.run`)
is the only place where a change meets a model. Adding a method is adding one file: the catalog
finds it by its stem.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

from safeedit.errors import UsageError
from safeedit.observing import Observer, Unobserved
from safeedit.policy import DataSpec
from safeedit.policy import Template as Template  # part of the contract; one definition
from safeedit.records import AttackClass, Metric, MetricSpec, ScorerCard, Split

if TYPE_CHECKING:
    from torch import Tensor

    from safeedit.data import Dataset
    from safeedit.delta import WeightDelta
    from safeedit.model.handle import ModelHandle

Item = TypeVar("Item")


class BaseParams(BaseModel):
    """Parameters of an editor or auditor, as a policy may set them.

    Every field has a default and a description naming its source (paper, reference code).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelRef(BaseModel):
    """Another model, as a parameter of an editor or auditor; the plan finds it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(min_length=1, description="As ``model.source`` of a policy")
    revision: str | None = Field(None, description="Of a hub model")
    digest: str = Field("", description="Identity of its weights; filled in by the plan")


class ScorerRef(BaseModel):
    """A scorer, as a parameter of an auditor; the plan finds it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    use: str = Field("profanity", min_length=1, description="Name; `safeedit list scorers`")
    params: dict[str, Any] = Field(default_factory=dict, description="Its parameters")
    min_auc: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        default_factory=dict,
        description="Least ROC-AUC on the labelled sets of its card (builtin, hatecheck), as "
        "`safeedit scorer check` measured it, e.g. {hatecheck: 0.7}",
    )
    digest: str = Field("", description="Identity of its weights; filled in by the plan")


@dataclass(frozen=True)
class DataRole:
    """One kind of data an editor or auditor takes, e.g. ``forget``.

    The first role of an editor or auditor may be spelled ``data`` in a policy.
    """

    name: str
    description: str
    required: bool = True
    erased: bool = False
    """True where the data is what must be forgotten: it never reaches an output, and its
    splits are taken over phrasings of each item rather than over items."""
    comparison_only: bool = False
    """True where such data is not itself erased: secrets like the named ones, to compare with.
    They are kept from sight and split like the rest, and no ledger lists them."""
    answered: bool = False
    """True where every item needs an answer: without one there is nothing to look for."""
    default: DataSpec | None = None
    """The built-in data set that stands in where a policy gives none; the plan reads, checks and
    records it like any other."""


PROSE = DataRole(
    "prose", "ordinary text to leave alone", required=False, default=DataSpec(dataset="prose")
)
"""Role that every editor has which weighs its change against ordinary text."""


class Progress(Protocol):
    """Where long work announces itself: bars on a terminal, lines in a log, silent elsewhere."""

    def __call__(
        self, items: Iterable[Item], description: str, total: int | None = None
    ) -> Iterator[Item]: ...


def silent(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """The progress that shows nothing."""
    return iter(items)


@dataclass(frozen=True)
class ScorerIdentity:
    """What decides the scores: two scorers of one identity score every text alike."""

    name: str
    version: str
    digest: str
    """sha256 over weights and whatever else decides the scores, in hex."""

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.digest[:12]})"


@dataclass(frozen=True)
class ReadyScorer:
    """A scorer as the runner hands it to auditors: checked, cached, with its card."""

    identity: ScorerIdentity
    card: ScorerCard | None
    """How well it tells toxic from harmless texts; None where nobody has measured it."""
    score: Callable[[Sequence[str], Progress], list[float]]
    """Probability of being toxic for each text, in [0, 1]; an empty text has 0."""

    @property
    def note(self) -> str:
        """What is printed with every figure of it."""
        checks = self.card.checks if self.card is not None else {}
        known = ", ".join(f"AUC {check.auc:.2f} on {name}" for name, check in checks.items())
        return f"scorer {self.identity}, {known or 'no card'}"


def _no_scorer(ref: ScorerRef) -> ReadyScorer:
    raise UsageError(
        "this context has no scorers", remedy="make it with safeedit.scorers.score_cache.scorers"
    )


@dataclass(frozen=True)
class RunContext:
    """What a stage may know of the run around it."""

    seed: int
    cache: Path
    """Folder for intermediate results; entries are keyed by everything that made them."""
    secret: bytes
    """Key of the digests that stand for items in records."""
    progress: Progress = silent
    observer: Observer = field(default_factory=Unobserved)
    """Is told which stage a run is at."""
    warn: Callable[[str], None] = lambda message: None
    """Says something loudly: it reaches the screen and the report. Never data."""
    scorer: Callable[[ScorerRef], ReadyScorer] = _no_scorer
    """Opens a scorer, once for all who ask."""

    fresh: bool = False
    """Whether what earlier runs have found is made anew rather than taken from the store."""

    base_tensor: Callable[[str], Tensor] | None = None
    """Reads a tensor of the untouched model by its name, ``(out, in)``: what attackers and auditors
    have who hold the base. None where there are no files of a base to read."""

    base_says: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Question -> token ids of what the untouched model answers, with the one that ended it if
    any: for the questions that an attack asks it (:func:`asked_of_base`)."""

    wanted: frozenset[str] | None = None
    """Metrics (bare names) an audit is made for; it may leave out work that only others need,
    and those metrics then have no value. None: all of them."""

    def wants(self, *metrics: str) -> bool:
        """Whether any of these metrics will be looked at."""
        return self.wanted is None or not self.wanted.isdisjoint(metrics)

    def digest(self, text: str) -> str:
        """A keyed digest (HMAC-SHA256, 16 hex digits) standing for ``text`` in records.

        Keyed because a bare hash of low-entropy data (a phone number) can be reversed by
        trying all of them.
        """
        return hmac.new(self.secret, text.encode(), hashlib.sha256).hexdigest()[:16]


@dataclass(frozen=True)
class EditData:
    """What an editor may see: fit and validation items of each of its roles, never test.

    Read ``data["forget"].phrasings("fit")`` or ``data["retain"].items("fit")``.
    """

    roles: Mapping[str, Dataset]

    def __getitem__(self, role: str) -> Dataset:
        return self.roles[role]

    def get(self, role: str) -> Dataset | None:
        return self.roles.get(role)


@dataclass(frozen=True)
class Control:
    """Another change made to be compared with: what the edit's effect must beat."""

    name: str
    """What was changed instead, e.g. ``top neurons of unrelated secrets``."""
    delta: WeightDelta


@dataclass(frozen=True)
class Proposal:
    """An editor's answer: fitted once, its strength still to be chosen by measurement."""

    doses: tuple[float, ...]
    """Strengths on offer, ascending: neurons, rank, scale, steps."""
    at: Callable[[float], WeightDelta]
    """The change at one dose."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Numbers and words for the record (losses, counts); never data."""
    controls: Callable[[float], Sequence[Control]] = lambda dose: ()
    """Controls of the method's own at one dose, beside the runner's random ones."""


@runtime_checkable
class Editor(Protocol):
    """A method that computes a weight change.

    Implementations declare ``Params``, ``roles`` and a one-line ``summary``; their
    constructor stores parameters and does nothing else. ``safeedit list editors NAME`` also
    shows, where they are declared, ``measured``, a sentence on the best result we measured,
    ``results``, the page of ``docs/results`` whose table holds its figures, and ``baseline``,
    true where the editor is kept to compare others with.
    """

    Params: ClassVar[type[BaseParams]]
    roles: ClassVar[tuple[DataRole, ...]]
    summary: ClassVar[str]

    def __init__(self, params: Any) -> None: ...

    def touches(self, model: LayerShape) -> Sequence[TensorPlan]:
        """The tensors this edit may change, from shapes alone (no weights): for ``plan``
        and for the runner's proof that nothing else moved."""
        ...

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        """Compute the change. The model's weights are the same before and after."""
        ...


@dataclass(frozen=True)
class AttackProposal:
    """An attack's answer: what it would make of the weights, at each of its strengths."""

    doses: tuple[float, ...]
    """Strengths, weakest first: steps, 8 before 4 bits, a share."""
    at: Callable[[float], Mapping[str, Callable[[Tensor], Tensor]]]
    """Tensor name -> what is put in its place at one strength: given the tensor, ``(out, in)``
    where it is a matrix of a block, in the model's dtype, it returns another of that shape.
    Asked tensor by tensor, so that no second copy of the weights need exist."""
    label: Callable[[float], str] = "{:g}".format
    """A strength in words, for reports: ``40 steps at 5e-05``."""
    notes: Callable[[float], dict[str, Any]] = lambda dose: {}
    """Numbers and words for the record at one strength (losses ...); never data."""


@runtime_checkable
class Attack(Protocol):
    """An edit made by somebody who wants back what was suppressed.

    Made on the edited model, and for comparison on the untouched one; nothing of it is ever
    exported or written to disk. Declares ``Params``, ``roles``, ``summary``, and which class of
    attacks it belongs to; its constructor stores parameters and does nothing else. An optional
    role ``never_known`` holds questions with answers that the model never knew: the audits are
    repeated on them too, as a control.
    """

    Params: ClassVar[type[BaseParams]]
    roles: ClassVar[tuple[DataRole, ...]]
    summary: ClassVar[str]
    tries: ClassVar[AttackClass]
    seeded: ClassVar[bool]
    """Whether it draws at random, so that another seed is another attack."""

    def __init__(self, params: Any) -> None: ...

    def strengths(self) -> tuple[float, ...]:
        """The doses that :meth:`propose` will offer, known from the parameters alone."""
        ...

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> AttackProposal:
        """Compute the attack. The model's weights are the same before and after.

        Raises:
            EditError: It can't be made (its training diverged ...).
        """
        ...


@dataclass(frozen=True)
class TensorPlan:
    """One tensor an edit may change."""

    name: str
    shape: tuple[int, ...]
    role: str
    layer: int | None


class LayerShape(Protocol):
    """The part of a model that can be known without weights.

    :class:`safeedit.model.architectures.ModelShape` implements it.
    """

    @property
    def n_layers(self) -> int: ...

    @property
    def roles(self) -> tuple[str, ...]: ...

    @property
    def norm_after_mlp(self) -> bool:
        """Whether a norm stands between what an MLP writes and the residual."""
        ...

    def tensors(self, role: str, layers: Sequence[int] | None = None) -> tuple[TensorPlan, ...]: ...

    def biases(self, role: str, layers: Sequence[int] | None = None) -> tuple[TensorPlan, ...]: ...


@dataclass(frozen=True)
class AuditOutcome:
    """What one audit found, and what later audits of other weights are held against."""

    metrics: tuple[Metric, ...]
    reference: dict[str, Tensor] = field(default_factory=dict)
    """Tensors of the base run that the same auditor needs when it measures an edited
    model (base answers as padded token ids, base log-probabilities ...)."""


@runtime_checkable
class Auditor(Protocol):
    """A measurement of one property.

    Called once on the untouched base (``reference`` is None) and later, with the
    outcome's ``reference``, on edited weights. Metric names come back bare
    (``extraction_rate``); the runner prefixes the audit's id.
    """

    Params: ClassVar[type[BaseParams]]
    roles: ClassVar[tuple[DataRole, ...]]
    metrics: ClassVar[tuple[MetricSpec, ...]]
    summary: ClassVar[str]
    covers: ClassVar[tuple[AttackClass, ...]]
    """Attacks on what an edit suppressed that this audit tries; every other one is reported as not
    tested."""

    def __init__(self, params: Any) -> None: ...

    def audit(
        self,
        model: ModelHandle,
        data: Mapping[str, Dataset],
        split: Split,
        ctx: RunContext,
        reference: Mapping[str, Tensor] | None,
    ) -> AuditOutcome: ...


def settled(kind: type[Auditor], params: Any, base: Path) -> Any:
    """Parameters with what a policy does not say filled in: files are found and digested.

    An auditor that reads files of its own has a class method ``settle(params, base)``; what it
    fills in is part of the key of its evaluations.

    Args:
        kind: The auditor.
        params: Its parameters, as the policy gives them.
        base: Folder that relative paths start from.
    """
    settle = getattr(kind, "settle", None)
    return params if settle is None else settle(params, base)


def files_digest(auditor: Auditor) -> str:
    """Of the files of its own that an auditor reads, as :func:`settled` found them: its parameter
    ``digest``. Empty where it reads none."""
    if getattr(auditor, "settle", None) is None:
        return ""
    return str(getattr(getattr(auditor, "params", None), "digest", ""))


def metrics_of(auditor: Auditor) -> tuple[MetricSpec, ...]:
    """What an auditor promises to measure with its parameters.

    Where that hangs on them (the tasks in a folder), the auditor has an attribute ``own_metrics``,
    known without a model.
    """
    own: tuple[MetricSpec, ...] | None = getattr(auditor, "own_metrics", None)
    return auditor.metrics if own is None else own


@dataclass(frozen=True)
class PutPrompts:
    """Texts that an audit puts to the model, and how."""

    texts: Sequence[str]
    template: Template


def asked_of_base(attack: Attack, data: EditData, seed: int) -> PutPrompts:
    """Questions whose answers by the untouched model an attack uses, on its own data.

    Such an attack has a method ``asks(data, seed)``; the answers come in
    :attr:`RunContext.base_says`, and are in memory only.
    """
    ask = getattr(attack, "asks", None)
    return PutPrompts((), "auto") if ask is None else ask(data, seed)


def further_prompts(
    auditor: Auditor, data: Mapping[str, Dataset]
) -> Mapping[str, tuple[str, PutPrompts]]:
    """What an auditor puts to the model besides its data's own prompts, on any split.

    An auditor whose attacks wrap questions has a method ``further_prompts(data)``, so that what is
    too long for a model's context is found while planning.

    Args:
        auditor: The auditor.
        data: Its data by role.

    Returns:
        Name of the attack -> the role whose questions it wraps, and the prompts.
    """
    ask = getattr(auditor, "further_prompts", None)
    return {} if ask is None else ask(data)


def looked_at(auditor: Auditor, tries: AttackClass, every_asking: bool) -> frozenset[str] | None:
    """Bare names of the metrics beside its headline that an audit is repeated for under an attack.

    An auditor that asks in several ways has a method ``looked_at(tries, every_asking)``.

    Args:
        auditor: The auditor.
        tries: Class of the attack.
        every_asking: Whether the attack is to repeat every way of asking that the audit knows.

    Returns:
        The names; None where it is to repeat every way of asking and the audit knows one alone.
    """
    ask = getattr(auditor, "looked_at", None)
    if ask is None:
        return None if every_asking else frozenset()
    found: frozenset[str] = ask(tries, every_asking)
    return found


@runtime_checkable
class Scorer(Protocol):
    """A text classifier: how toxic is a text?

    Its constructor stores parameters and does nothing else; weights are loaded at the first
    score.
    """

    Params: ClassVar[type[BaseParams]]
    summary: ClassVar[str]
    blind_to: ClassVar[str]
    """What it is known not to see, for the warning of a run that asks for no ``min_auc``."""

    def __init__(self, params: Any) -> None: ...

    def identity(self) -> ScorerIdentity:
        """Who it is, without loading weights.

        Raises:
            ModelError: It is not available here; the remedy says how to get it.
            UsageError: A parameter does not fit its weights (a label they lack).
        """
        ...

    def score(self, texts: Sequence[str], progress: Progress = silent) -> list[float]:
        """Probability of being toxic for each text, in [0, 1]; batched, streamed."""
        ...
