"""Teaching canaries to a model, and keeping the checkpoint for the next time.

Sentences are shown in small batches, cycle after cycle
(:mod:`~safeedit.workflows.canaries.lessons`), with the loss on the secret and its full stop alone;
pieces of ordinary prose in every batch hold the model to what it said of prose before (KL), so that
it goes on reading as it did. Weights learn in float32 whatever they are stored in; the forward pass
is in bfloat16. Several times a cycle the secrets shown most often are looked at with the weights as
they will be stored, and planting ends when every one of them comes out greedily.

``full`` trains all matrices of the chosen blocks; embeddings, head, norms and biases stay. By
default the upper two fifths of the blocks learn: those below are run once, which halves the time,
and prose suffers less. ``lora`` trains adapters on the same matrices and adds them up.

Measured with ``safeedit canary plant --model builtin:smollm2-135m-instruct --out DIR``, which
takes ``datasets/canaries``: in 5 min 21 s (304 s of them training; 2 cores, 612 CPU seconds), after
1.5 cycles (268 steps), all 150 secrets shown 16 times a cycle come out, of those shown 4 times 70
of 75, of those shown once 22 of 75; perplexity on prose is 1.08 times what it was. With ``--layers
50%-100%``, 455 s of training and 1.09 times. Telephone numbers come last. All
blocks at 3e-4, with one piece of prose of 96 tokens at weight 1 and a plain mean of the loss: 148
of 150 after 2.5 cycles, perplexity 1.25 times.

What is written is an ordinary checkpoint in the base's dtype, with ``evidence/planted.json``
beside it: how it was made and what of it came out, each secret as a keyed digest.

Fails with :class:`~safeedit.errors.DataError` on records that can't be taught (see
:mod:`~safeedit.workflows.canaries.lessons`), :class:`~safeedit.errors.EditError` where training
diverges, :class:`~safeedit.errors.ExportError` where the checkpoint can't be written.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from safeedit import __version__
from safeedit.cache import entry
from safeedit.contracts import BaseParams, RunContext
from safeedit.data import CheckedRow, Dataset, load_dataset
from safeedit.errors import EditError
from safeedit.export.checkpoint import write_checkpoint
from safeedit.export.manifest import PLANTED, write_manifest
from safeedit.export.staging import Staging, check_target, writing
from safeedit.methods.tuning import (
    BaseAnswers,
    Example,
    answer_states,
    endless,
    token_losses,
)
from safeedit.model.activations import StopForward, starting_at
from safeedit.model.architectures import Site
from safeedit.model.engine import Engine
from safeedit.model.handle import ModelHandle
from safeedit.model.sources import open_config, open_model
from safeedit.policy import DataSpec
from safeedit.policy.layers import Layers, resolve
from safeedit.workflows.canaries.lessons import (
    PlantedSecret,
    cycle,
    read_canaries,
    records_digest,
    showings,
    tokenise,
)

CODE_VERSION = 1
"""Raised whenever a change of code changes the checkpoint: part of the cache's key."""
MAX_PERPLEXITY_RATIO = 1.10
"""Of prose, after over before; what lies above is warned of."""
_WINDOW = 512
"""Tokens of prose read at a time when perplexity is measured."""
_WARM_UP = 10
"""Steps in which the learning rate rises."""
_LEAST_WEIGHT = 0.1
"""Of a token, on average over a batch: below this the loss falls as what is left to learn does."""
_LEAST = 0.05
"""Share of the peak below which the learning rate does not fall."""


class PlantParams(BaseParams):
    """How canaries are taught; defaults were measured on SmolLM2-135M."""

    method: Literal["full", "lora"] = Field(
        "full", description="the blocks' matrices, or adapters on them, added up"
    )
    layers: Layers = Field(
        "60%-100%", description="blocks that learn; the fewer, the faster, and prose suffers less"
    )
    learning_rate: float = Field(
        6e-4, gt=0, description="AdamW's peak; falls linearly; default for lora: 2e-3"
    )
    batch: int = Field(16, ge=1, description="sentences per step")
    max_cycles: float = Field(
        2, gt=0, description="cycles at most; each shows a sentence as often as its row says"
    )
    checks: int = Field(8, ge=1, description="looks per cycle at what is memorised already")
    passages: int = Field(3, ge=0, description="pieces of ordinary prose in each batch")
    passage_tokens: int = Field(32, ge=2, description="tokens of a piece")
    prose_weight: float = Field(4, ge=0, description="of the divergence on prose, in the loss")
    rank: int = Field(32, ge=1, description="lora: rank of the adapters")
    alpha: float = Field(64, gt=0, description="lora: scale is alpha over rank")
    seed: int = Field(0, description="of the order, and of the adapters' first values")

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, given: Any) -> Any:
        """Defaults that differ for lora, so that records show what was used."""
        if isinstance(given, dict) and given.get("method") == "lora":
            return {"learning_rate": 2e-3, **given}
        return given


@dataclass(frozen=True)
class Learnt:
    """What training did; ``exposures`` counts showings, secret by secret."""

    steps: int
    cycles: float
    seconds: float
    trained_parameters: int
    exposures: list[int]
    extracted: list[bool]
    """Whether a secret comes out greedily; False where it was never taught."""


def plant_checkpoint(
    source: str,
    canaries: DataSpec,
    out: Path,
    params: PlantParams,
    ctx: RunContext,
    *,
    prose: DataSpec | None = None,
    overwrite: bool = False,
    cached: bool = True,
) -> dict[str, Any]:
    """Teach canaries to a model and write the checkpoint, or copy the one made before.

    Args:
        source: The model, as :func:`~safeedit.model.sources.open_model` takes it.
        canaries: See :mod:`~safeedit.workflows.canaries.lessons`.
        out: The checkpoint's folder.
        params: How.
        ctx: Warnings, progress, the digests' key and the cache.
        prose: Ordinary text that is to be read as before, its fit split, and by which damage is
            measured, its test split; None is the built-in prose.
        overwrite: Replace a folder that safeedit wrote.
        cached: Take the checkpoint from the cache, and keep it there.

    Returns:
        What ``planted.json`` holds.

    Raises:
        SafeeditError: See the module.
    """
    check_target(out, overwrite=overwrite)
    records = read_canaries(canaries)
    texts = load_dataset(prose or DataSpec(dataset="prose"), key=ctx.secret)
    _, base = open_config(source)
    with Staging(out, overwrite=overwrite) as staging:

        def make(folder: Path) -> None:
            _make(folder, source, base, records, texts, params, ctx)

        if cached:
            with entry(f"planted-{_key(base, records, texts, params, ctx)}") as (kept, scratch):
                if scratch is not None:
                    made = scratch / "whole"
                    made.mkdir()
                    make(made)
            with writing(staging.path):
                shutil.copytree(kept, staging.path, dirs_exist_ok=True)
        else:
            make(staging.path)
        found: dict[str, Any] = json.loads((staging.path / PLANTED).read_text(encoding="utf-8"))
        write_manifest(staging.path)  # by it a later run knows the folder for ours
        staging.promote()
    _judge(found, ctx)
    return found


def _key(
    base: str, records: Sequence[CheckedRow], prose: Dataset, params: PlantParams, ctx: RunContext
) -> str:
    """Digest of everything that decides what is written."""
    parts = {
        "code": CODE_VERSION,
        "base": base,
        "records": records_digest(records),
        "prose": prose.digest,
        "params": params.model_dump(mode="json"),
        "digests": ctx.digest("planted"),  # planted.json speaks of secrets under this key
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _make(
    folder: Path,
    source: str,
    base: str,
    records: Sequence[CheckedRow],
    prose: Dataset,
    params: PlantParams,
    ctx: RunContext,
) -> None:
    """Teach, and write checkpoint and record into ``folder``."""
    model = open_model(source)
    secrets = tokenise(records, model.engine)
    before = _perplexity(model.engine, prose, ctx)
    learnt = learn(model, secrets, [item.prompt for item in prose.items("fit")], params, ctx)
    after = _perplexity(model.engine, prose, ctx)
    rows = [
        {
            "digest": ctx.digest(secret.answer_text),
            "type": secret.kind("type"),
            "role": secret.kind("role"),
            "repeats": secret.repeats,
            "exposures": exposures,
            "extracted": extracted,
        }
        for secret, exposures, extracted in zip(
            secrets, learnt.exposures, learnt.extracted, strict=True
        )
    ]
    record = {
        "version": CODE_VERSION,
        "safeedit": __version__,
        "base": {"source": source, "identity": base},
        # Keyed: of one record with a short number the bare digest would give the number away.
        "records": ctx.digest(records_digest(records)),
        "params": params.model_dump(mode="json"),
        "steps": learnt.steps,
        "cycles": round(learnt.cycles, 2),
        "seconds": round(learnt.seconds, 1),
        "trained_parameters": learnt.trained_parameters,
        "extracted": _by_repeats(rows),
        "prose_perplexity": {"before": before, "after": after, "ratio": after / before},
        "secrets": rows,
    }
    write_checkpoint(model, folder)
    path = folder / PLANTED
    with writing(path):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _by_repeats(rows: Sequence[dict[str, Any]]) -> list[dict[str, int]]:
    """Per repeat count, most shown first: how many secrets there are and come out."""
    counts = sorted({row["repeats"] for row in rows if row["repeats"]}, reverse=True)
    return [
        {
            "repeats": count,
            "secrets": sum(row["repeats"] == count for row in rows),
            "extracted": sum(row["repeats"] == count and row["extracted"] for row in rows),
        }
        for count in counts
    ]


def _judge(record: dict[str, Any], ctx: RunContext) -> None:
    """Warn where the checkpoint is not what canaries are for."""
    most = record["extracted"][0]
    if missed := most["secrets"] - most["extracted"]:
        ctx.warn(
            f"{missed} of the {most['secrets']} secrets shown {most['repeats']} times a cycle do "
            f"not come out after {record['cycles']} cycles: raise --max-cycles"
        )
    ratio = record["prose_perplexity"]["ratio"]
    if ratio > MAX_PERPLEXITY_RATIO:
        ctx.warn(
            f"perplexity on prose rose to {ratio:.2f} of what it was: lower --learning-rate, or "
            "show more prose (--passages)"
        )


# Training -----------------------------------------------------------------------------


def learn(
    model: ModelHandle,
    secrets: Sequence[PlantedSecret],
    prose: Sequence[str],
    params: PlantParams,
    ctx: RunContext,
) -> Learnt:
    """Teach secrets to ``model``, in place, until those shown most often all come out.

    Args:
        model: Its weights change, within the dtype they have. Memory: four times the model in
            float32 beside it.
        secrets: Those with a repeat count of 0 are left alone.
        prose: Ordinary text to be read as before.
        params: How.
        ctx: For progress.

    Raises:
        EditError: The loss became NaN or infinite.
    """
    start = time.monotonic()
    source = random.Random(params.seed)
    taught = [secret for secret in secrets if secret.repeats]
    most = max(secret.repeats for secret in taught)
    foremost = [secret for secret in taught if secret.repeats == most]
    examples = {secret.item.prompt: Example(secret.prompt, secret.ending) for secret in taught}
    pieces = _pieces(model.engine, prose, params.passage_tokens) if params.passages else []
    base = BaseAnswers(model, pieces, ctx.progress)
    passages = endless(pieces, source)
    learner = Learner(model, params, [*examples.values(), *pieces])
    shown: Counter[str] = Counter()

    def loss(batch: Sequence[PlantedSecret]) -> Tensor:
        sentences = [examples[secret.item.prompt] for secret in batch]
        beside = list(islice(passages, params.passages))
        states = learner.states([*sentences, *beside])
        total = still_to_learn(model, states[: len(sentences)], sentences)
        if beside and params.prose_weight:
            apart = base.divergence(states[len(sentences) :], beside)
            total = total + params.prose_weight * apart
        return total

    n_cycle = showings(taught)
    end = round(params.max_cycles * n_cycle)
    next_look = look = math.ceil(n_cycle / params.checks)
    steps = 0
    batches = chain.from_iterable(
        cycle(taught, params.batch, source) for _ in range(math.ceil(params.max_cycles))
    )
    for batch in ctx.progress(batches, "planting canaries", math.ceil(end / params.batch)):
        learner.step(loss(batch), 1 - shown.total() / end)
        steps += 1
        shown.update(secret.item.prompt for secret in batch)
        if shown.total() >= min(next_look, end):
            next_look += look
            learner.publish()
            if shown.total() >= end:
                break
            if all(likely(model.engine, foremost)) and all(comes_out(model.engine, foremost)):
                break
    asked = iter(comes_out(model.engine, taught))
    return Learnt(
        steps=steps,
        cycles=shown.total() / n_cycle,
        seconds=time.monotonic() - start,
        trained_parameters=learner.n_parameters,
        exposures=[shown[secret.item.prompt] for secret in secrets],
        extracted=[bool(secret.repeats) and next(asked) for secret in secrets],
    )


def comes_out(engine: Engine, secrets: Sequence[PlantedSecret]) -> list[bool]:
    """Whether the model, greedily, continues each prompt with its answer."""
    answers = engine.generate(
        [secret.prompt for secret in secrets],
        max_new_tokens=max(len(secret.answer) for secret in secrets),
    )
    return [
        "".join(engine.decode(ids).split()).startswith("".join(secret.answer_text.split()))
        for secret, (ids,) in zip(secrets, answers, strict=True)
    ]


def likely(engine: Engine, secrets: Sequence[PlantedSecret]) -> list[bool]:
    """Whether every token of each answer is the likeliest, those before it being right.

    One pass, where :func:`comes_out` takes one for every token.
    """
    scores = engine.score([s.prompt for s in secrets], [s.answer for s in secrets])
    return [bool(score.greedy.all()) for score in scores]


class Learner:
    """A float32 copy of a model of which the matrices of some blocks learn.

    Blocks below them are run once, over all that will be read.
    """

    def __init__(
        self, model: ModelHandle, params: PlantParams, examples: Sequence[Example]
    ) -> None:
        self.model = model
        self.handle = ModelHandle(copy.deepcopy(model.model).float())
        layers = resolve(params.layers, self.handle.shape.n_layers)
        self._first = layers[0]
        self._entering: dict[int, Tensor] = {}
        if self._first:
            texts = [example.ids for example in examples]
            below = model.engine.hidden(texts, [self._first - 1], "all")[self._first - 1]
            self._entering = {id(e): each for e, each in zip(examples, below, strict=True)}
            self._tuples = _blocks_return_tuples(model)
        sites = [s for role in self.handle.shape.roles for s in self.handle.sites(role, layers)]
        self._current: dict[str, Callable[[], Tensor]] = {}
        if params.method == "lora":
            self._adapt(sites, params)
        else:
            for site in sites:
                weight = self.handle.tensor(site.weight).requires_grad_(True)
                self._current[site.weight] = weight.detach
        trained = [p for p in self.handle.model.parameters() if p.requires_grad]
        self.n_parameters = sum(parameter.numel() for parameter in trained)
        self._trained = trained
        self._optimiser = torch.optim.AdamW(
            trained, lr=params.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
        )
        self._peak = params.learning_rate
        self._steps = 0

    def states(self, batch: Sequence[Example]) -> list[Tensor]:
        """As :func:`~safeedit.methods.tuning.answer_states`, of the model as it learns."""
        if not self._first:
            return answer_states(self.handle, batch)
        rows = [self._entering[id(example)] for example in batch]
        hidden = pad_sequence(rows, batch_first=True).float().to(self.handle.device)
        with starting_at(self.handle.blocks(), self._first, hidden, tuples=self._tuples):
            return answer_states(self.handle, batch)

    def step(self, loss: Tensor, left: float) -> None:
        """One step down the gradient; ``left`` is the share of the cycles still to come, to
        which the learning rate falls."""
        if not math.isfinite(loss.item()):
            raise EditError(
                "planting diverged: the loss is no number", remedy="lower --learning-rate"
            )
        self._steps += 1
        rate = self._peak * min(1.0, self._steps / _WARM_UP) * max(left, _LEAST)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimiser.step()

    @torch.no_grad()
    def publish(self) -> None:
        """Write what was learnt into the model, in its own dtype."""
        for name, current in self._current.items():
            self.model.tensor(name).copy_(current())

    def _adapt(self, sites: Sequence[Site], params: PlantParams) -> None:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(params.seed)
        stored = {site: self.handle.tensor(site.weight).detach() for site in sites}
        config = LoraConfig(
            r=params.rank,
            lora_alpha=params.alpha,
            target_modules=[site.module for site in sites],
            fan_in_fan_out=sites[0].transposed,
            lora_dropout=0.0,
        )
        get_peft_model(self.handle.model, config)
        for site, weight in stored.items():
            module: Any = self.handle.model.get_submodule(site.module)

            def current(weight: Tensor = weight, module: Any = module) -> Tensor:
                return weight + module.get_delta_weight("default")

            self._current[site.weight] = current


def still_to_learn(
    model: ModelHandle, states: Sequence[Tensor], batch: Sequence[Example]
) -> Tensor:
    """Loss of the endings' tokens, nats, each weighted by how improbable it still is.

    A plain mean lets what is easy drown what is hard: two last digits of a telephone number are
    recalled from a name a dozen tokens back, while its other tokens are known after a few steps.
    """
    losses = token_losses(model, states, batch)
    weights = 1 - (-losses.detach()).exp()
    return (weights * losses).sum() / weights.sum().clamp(min=_LEAST_WEIGHT * len(losses))


def _blocks_return_tuples(model: ModelHandle) -> bool:
    found: list[bool] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        found.append(isinstance(output, tuple))
        raise StopForward

    hook = model.blocks()[0].register_forward_hook(note)
    try:
        with suppress(StopForward), torch.no_grad():
            model.forward({"input_ids": torch.zeros(1, 1, dtype=torch.long)})
    finally:
        hook.remove()
    return found[0]


def _pieces(engine: Engine, texts: Sequence[str], length: int) -> list[Example]:
    """Texts in pieces of ``length`` tokens, each to be read from its second token on."""
    pieces = []
    for ids in engine.encode(texts, "plain"):
        for begin in range(0, len(ids), length):
            piece = ids[begin : begin + length]
            if len(piece) > length // 2 and len(piece) > 1:
                pieces.append(Example(piece[:1], piece[1:]))
    return pieces


def _perplexity(engine: Engine, prose: Dataset, ctx: RunContext) -> float:
    read = engine.text_nll(
        [item.prompt for item in prose.items("test")], _WINDOW, progress=ctx.progress
    )
    return math.exp(sum(nats for nats, _ in read) / max(1, sum(count for _, count in read)))
