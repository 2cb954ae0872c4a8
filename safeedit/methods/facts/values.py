"""Values: the shifts of one MLP's output at a subject that make the model say something else.

Each :class:`FactObjective` (a fact in one template) has a shift of its own, ``(d_model,)``, added
to what ``mlp_out`` writes at the subject's last token in each of its rows. All units learn
together by Adam, each until its own aim is met, and then leaves the batch; none grows longer than
a share of the output it is added to.

A pass starts at the block concerned, from the residual kept there, and at the subject's last token:
what stands before it does not see the shift, so that it is run once and its keys and values are
reused (:mod:`safeedit.methods.facts.prefix_cache`). Logits are computed where an aim looks and
nowhere else.

Source: Meng et al. 2022 (ROME, arXiv 2202.05262, section 3.1 and appendix E.5), for one fact at a
time; the targets that erase after Patil et al. 2024 (arXiv 2309.17410).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from safeedit.contracts import Progress, silent
from safeedit.errors import EditError
from safeedit.methods.facts.keys import TokenPosition
from safeedit.methods.facts.prefix_cache import PrefixCache, distinct
from safeedit.model.activations import StopForward, starting_at
from safeedit.model.architectures import Site
from safeedit.model.batching import Batcher, common_prefix
from safeedit.model.handle import ModelHandle

_TAPE_SHARE = 4
"""A token whose gradients are wanted takes about so many times the memory of one that is read."""

_PAST_SHARE = 8
"""A token before the subject, of which keys and values alone are needed, takes about so many times
less memory in a pass than one after it."""

KEPT_SHARE = 0.5
"""What is kept of all that stands before subjects takes this share of the weights' memory at most;
where it would be more, what all rows begin with is kept alone."""


@dataclass(frozen=True)
class TargetTokens:
    """The tokens that are to follow; their mean negative log-likelihood, nats, is the loss."""

    tokens: tuple[int, ...]


@dataclass(frozen=True)
class SuppressTokens:
    """Tokens none of which is to follow: their log-probability together, as far as it is over
    ``floor`` (nats), is the loss; without a floor, ``-log(1 - p)``."""

    tokens: tuple[int, ...]
    floor: float | None
    rank: int = 0
    """Least values: they are to come after so many others as well."""


@dataclass(frozen=True)
class MaximiseEntropy:
    """The next token is to be anyone's guess: what its entropy lacks of ``share`` of the greatest
    there can be, nats, is the loss. With ``lens``, so is what is read from the residual stream as
    it leaves these blocks, by the final norm and the head; the losses add up."""

    share: float
    lens: tuple[int, ...] = ()


@dataclass(frozen=True)
class KeepDistribution:
    """The next token's distribution is to stay: the divergence KL(before || now), nats."""


@dataclass(frozen=True)
class EqualiseLogits:
    """The first of two tokens is to be ``margin`` nats likelier than the second."""

    tokens: tuple[int, int]
    margin: float


Objective = TargetTokens | SuppressTokens | MaximiseEntropy | KeepDistribution | EqualiseLogits


@dataclass(frozen=True)
class ObjectivePrompt:
    """A prompt that mentions the subject, and what is wanted after it."""

    spot: TokenPosition
    aim: Objective

    @property
    def ids(self) -> list[int]:
        """What is run: the last token wanted is predicted, never read."""
        said = self.aim.tokens[:-1] if isinstance(self.aim, TargetTokens) else ()
        return [*self.spot.ids, *said]

    @property
    def asked(self) -> int:
        """Positions at which logits are needed."""
        return len(self.aim.tokens) if isinstance(self.aim, TargetTokens) else 1

    @property
    def lens(self) -> tuple[int, ...]:
        """Blocks after which logits are needed as well, at the one position."""
        return self.aim.lens if isinstance(self.aim, MaximiseEntropy) else ()


@dataclass(frozen=True)
class FactObjective:
    """What one shift is learnt from; one row at least is no :class:`KeepDistribution`."""

    rows: tuple[ObjectivePrompt, ...]


@dataclass(frozen=True, eq=False)
class Values:
    """What was learnt.

    Attributes:
        shifts: ``(units, d_model)`` fp32, CPU.
        outputs: ``(units,)`` length of the outputs the shifts are added to, mean over rows.
        losses: ``(units,)`` of the aim that is farthest from being met at the end, nats.
        steps: ``(units,)`` taken by each.
    """

    shifts: Tensor
    outputs: Tensor
    losses: Tensor
    steps: Tensor


def learn_values(
    model: ModelHandle,
    layer: int,
    units: Sequence[FactObjective],
    *,
    steps: int,
    learning_rate: float,
    max_norm: float,
    keep_weight: float,
    decay: float,
    stop: float,
    progress: Progress = silent,
    description: str = "learning values",
) -> Values:
    """Shifts of what the MLP of ``layer`` writes.

    Args:
        model: Stays as it is.
        layer: Which.
        units: One at least.
        steps: Of Adam, at most.
        learning_rate: Length of a first step, as a share of the output's.
        max_norm: Greatest length of a shift, as a share of the output's.
        keep_weight: Of divergence at rows to keep, in nats per nat.
        decay: Nats for a shift as long as the output; grows with its square.
        stop: A unit is done once the loss of each of its aims is at most this, nats.
        progress: Shown per step.
        description: For ``progress``.

    Raises:
        EditError: The loss is not a finite number.
        AuditError: A row is longer than the context, or does not fit into memory.
    """
    passes = Passes(model, layer, units)
    scale = passes.outputs / math.sqrt(model.d_model)
    free = torch.zeros(len(units), model.d_model, requires_grad=True)
    optimiser = torch.optim.Adam([free], lr=learning_rate)
    losses, taken = torch.zeros(len(units)), torch.zeros(len(units), dtype=torch.long)
    active = list(range(len(units)))
    # One look more than steps, so that the losses told are those of the shifts returned.
    for step in progress(range(steps + 1), description, steps + 1):
        shifts = free * scale[:, None]
        aims, gradient = passes.losses(shifts.detach(), active, keep_weight, grad=step < steps)
        if not bool(torch.isfinite(aims).all()):
            raise EditError(
                "learning values diverged: the loss is no number",
                remedy="lower 'learning_rate', or open the model in float32 (dtype: float32)",
            )
        losses[active], taken[active] = aims, step
        active = [unit for unit, loss in zip(active, aims.tolist(), strict=True) if loss > stop]
        if step == steps or not active:
            break
        # Of a shift x |h| / sqrt(d), the square over |h|^2 is |x|^2 / d.
        free.grad = gradient * scale[:, None] + 2 * decay / model.d_model * free.detach()
        before = free.detach().clone()
        optimiser.step()
        with torch.no_grad():
            before[active] = free[active]
            size = before.norm(dim=1, keepdim=True) / math.sqrt(model.d_model)
            free.copy_(before * (max_norm / size.clamp(min=1e-12)).clamp(max=1.0))
    return Values((free * scale[:, None]).detach(), passes.outputs, losses, taken)


def _apart(aims: Sequence[Objective], logits: Tensor) -> Tensor:
    """``(rows, 2)`` :func:`distances` of each aim; of :class:`EqualiseLogits`, what the
    margin has too much, twice. ``logits`` ``(rows, vocab)``."""
    even = [aim for aim in aims if isinstance(aim, EqualiseLogits)]
    if len(even) == len(aims):
        tokens = torch.tensor([aim.tokens for aim in even], device=logits.device)
        margins = torch.tensor([aim.margin for aim in even], device=logits.device)
        pair = logits.gather(1, tokens)
        return (pair[:, 0] - pair[:, 1] - margins)[:, None].expand(-1, 2)
    found = zip(aims, logits.log_softmax(-1), strict=True)
    return torch.stack(
        [distances(aim, now) for aim, now in found if isinstance(aim, SuppressTokens)]
    )


def distances(aim: SuppressTokens, log_probs: Tensor) -> Tensor:
    """How far tokens are from being as unlikely as wanted, nats of log-odds, 0 or less once they
    are: ``(2,)``, from the floor and from coming after ``rank`` others; ``log_probs`` ``(vocab,)``.

    Log-odds keep their slope where a probability is close to 1. The slope of the rank is that of
    the mean over the ranks about it: which token has it changes from step to step.
    """
    tokens = list(aim.tokens)
    known = log_probs[tokens].logsumexp(0)
    others = log_probs.index_fill(0, torch.tensor(tokens, device=log_probs.device), -math.inf)
    assert aim.floor is not None
    away = known - others.logsumexp(0) - (aim.floor - math.log1p(-math.exp(aim.floor)))
    if not aim.rank:
        return torch.stack([away, away])
    first = others.topk(min(aim.rank + aim.rank // 2, len(others) - len(tokens))).values
    about = first[aim.rank // 2 :].mean()
    bar = about + (first[min(aim.rank, len(first)) - 1] - about).detach()
    return torch.stack([away, known - bar])


class Passes:
    """The rows of all units, run once as they are, and what further passes need of that.

    Args:
        model: Stays as it is.
        layer: Whose MLP's output is shifted.
        units: Each has one shift.
        exact: Whether to compute in the weights' own type rather than in bfloat16.
    """

    def __init__(
        self, model: ModelHandle, layer: int, units: Sequence[FactObjective], *, exact: bool = False
    ) -> None:
        self.model, self.layer, self.exact = model, layer, exact
        (self.site,) = model.sites("mlp_out", [layer])
        self.rows = [row for unit in units for row in unit.rows]
        self.owners = [number for number, unit in enumerate(units) for _ in unit.rows]
        aims = [
            sum(not isinstance(row.aim, KeepDistribution) for row in unit.rows) for unit in units
        ]
        keeps = [len(unit.rows) - count for unit, count in zip(units, aims, strict=True)]
        self.shares = [
            1 / (keeps if isinstance(row.aim, KeepDistribution) else aims)[owner]
            for row, owner in zip(self.rows, self.owners, strict=True)
        ]
        ids = [row.ids for row in self.rows]
        model.engine._check(ids)
        self.tuples = False
        """Whether blocks return tuples."""
        size = self._probe(ids[0][:1])
        self.starts = [row.spot.position for row in self.rows]
        """Where a row's own tokens begin, up to which it is not run again."""
        weights = sum(p.numel() * p.element_size() for p in model.model.parameters())
        pasts = [each[:start] for each, start in zip(ids, self.starts, strict=True)]
        if distinct(pasts) * size > KEPT_SHARE * weights:
            shared = min(common_prefix(ids), *self.starts)
            self.starts = [shared] * len(ids)
            pasts = [ids[0][:shared]] * len(ids)
        self.own = [each[start:] for each, start in zip(ids, self.starts, strict=True)]
        self.pasts = PrefixCache(model, pasts, self._fast)
        self.entering: list[Tensor] = [torch.empty(0)] * len(self.rows)
        """Row -> ``(own tokens, d_model)``, the residual that enters the block."""
        written = self._read()
        self.pasts.forget_below(layer)
        self.outputs = torch.tensor(
            [
                sum(w for w, owner in zip(written, self.owners, strict=True) if owner == unit)
                / (aims[unit] + keeps[unit])
                for unit in range(len(units))
            ]
        )
        self._batcher = Batcher(max(1, model.engine.max_batch_tokens // _TAPE_SHARE))
        self.before: dict[int, Tensor] = {}
        """Row to keep -> its final hidden state ``(d_model,)`` before any shift."""
        self._remember()

    def losses(
        self, shifts: Tensor, active: Sequence[int], keep_weight: float, *, grad: bool
    ) -> tuple[Tensor, Tensor]:
        """Greatest loss ``(active,)`` of each active unit's aims; gradient ``(units, d_model)`` of
        the mean of those plus ``keep_weight`` times the mean divergence at its rows to keep."""
        chosen = [row for row, owner in enumerate(self.owners) if owner in set(active)]
        if not grad:
            chosen = [row for row in chosen if not isinstance(self.rows[row].aim, KeepDistribution)]
        gradient = torch.zeros_like(shifts)

        def run(batch: list[int]) -> list[float]:
            rows = [chosen[index] for index in batch]
            owners = torch.tensor([self.owners[row] for row in rows])
            # One leaf per row: the sum over a unit's rows is made afterwards.
            leaf = shifts[owners].to(self.model.device).requires_grad_(grad)
            with torch.set_grad_enabled(grad):
                each = self._each(rows, *self._run(rows, leaf))
                if grad:
                    weights = [
                        self.shares[row] * (keep_weight if self._keeps(row) else 1) for row in rows
                    ]
                    total = (each * torch.tensor(weights, device=each.device)).sum()
                    (own,) = torch.autograd.grad(total, leaf)
                    gradient.index_add_(0, owners, own.float().cpu())
            found: list[float] = each.detach().tolist()
            return found

        place = {unit: number for number, unit in enumerate(active)}
        worst = torch.zeros(len(active))
        for index, loss in self._batched(chosen, run):
            row = chosen[index]
            if not self._keeps(row):
                number = place[self.owners[row]]
                # Not max(): it would pass over what is no number.
                worst[number] = torch.maximum(worst[number], torch.tensor(loss))
        return worst, gradient

    def slopes(self, shifts: Tensor, active: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Of the rows of active units, whose aims are all :class:`SuppressTokens` or all
        :class:`EqualiseLogits`: how far each is from its aim ``(rows, 2)``
        (:func:`distances`), the slopes of that ``(rows, 2, d_model)``, and its unit
        ``(rows,)``; fp64, on the CPU."""
        chosen = [row for row, owner in enumerate(self.owners) if owner in set(active)]
        owners = torch.tensor([self.owners[row] for row in chosen])
        values = torch.empty(len(chosen), 2, dtype=torch.float64)
        slopes = torch.empty(len(chosen), 2, self.model.d_model, dtype=torch.float64)
        ranked = any(isinstance(row.aim, SuppressTokens) and row.aim.rank for row in self.rows)

        def run(batch: list[int]) -> list[tuple[Tensor, Tensor]]:
            rows = [chosen[index] for index in batch]
            leaf = shifts[owners[batch]].to(self.model.device).requires_grad_(True)
            states, _ = self._run(rows, leaf)
            logits = self.model.logits(torch.cat(list(states))).float()
            found = _apart([self.rows[row].aim for row in rows], logits)
            # Without a rank the two are one, and so are their slopes.
            parts = found.T if ranked else found.T[:1]
            each = [torch.autograd.grad(p.sum(), leaf, retain_graph=True)[0] for p in parts]
            own = torch.stack([each[0], each[-1]], 1).double().cpu()
            return list(zip(found.detach().double().cpu(), own, strict=True))

        for index, (value, slope) in self._batched(chosen, run):
            values[index], slopes[index] = value, slope
        return values, slopes, owners

    def _keeps(self, row: int) -> bool:
        return isinstance(self.rows[row].aim, KeepDistribution)

    def _batched(self, rows: Sequence[int], run: Any) -> Iterator[tuple[int, Any]]:
        vocab = _TAPE_SHARE * self.model.shape.vocab_size
        return self._batcher.each(
            self._lengths(rows),
            run,
            logits=[(self.rows[row].asked + len(self.rows[row].lens)) * vocab for row in rows],
        )

    def _lengths(self, rows: Sequence[int]) -> list[int]:
        """Tokens of each row by the memory they take in a pass."""
        return [len(self.own[row]) + self.starts[row] // _PAST_SHARE for row in rows]

    @torch.no_grad()
    def _remember(self) -> None:
        keeps = [row for row in range(len(self.rows)) if self._keeps(row)]

        def run(batch: list[int]) -> list[Tensor]:
            rows = [keeps[index] for index in batch]
            leaf = torch.zeros(len(rows), self.model.d_model, device=self.model.device)
            return list(self._run(rows, leaf)[0])

        for index, state in self._batched(keeps, run):
            self.before[keeps[index]] = state[0].clone()

    def _run(
        self, rows: Sequence[int], shifts: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Per row, final hidden states ``(asked, d_model)`` where its aim looks, and logits
        ``(lens, vocab)`` of its lens."""
        entering = nn.utils.rnn.pad_sequence([self.entering[row] for row in rows], batch_first=True)
        where = (
            torch.arange(len(rows), device=shifts.device),
            torch.tensor(
                [self.rows[row].spot.position - self.starts[row] for row in rows],
                device=shifts.device,
            ),
        )

        def shift(site: Site, activation: Tensor) -> Tensor:
            moved = shifts.to(activation.device, activation.dtype)
            return activation.index_put(where, moved, accumulate=True)

        left: dict[int, Tensor] = {}
        with (
            self.model.intercepted([self.site], shift, "output"),
            starting_at(self.model.blocks(), self.layer, entering, tuples=self.tuples),
            _leaving(self.model.blocks(), {b for row in rows for b in self.rows[row].lens}, left),
            self._fast(),
        ):
            inputs = self.pasts.inputs(rows, [self.own[row] for row in rows])
            hidden = self.model.model.base_model(**inputs).last_hidden_state
        first = [len(self.rows[row].spot.ids) - 1 - self.starts[row] for row in rows]
        lenses = [
            left[block][number, begin].to(hidden.device)
            for number, (row, begin) in enumerate(zip(rows, first, strict=True))
            for block in self.rows[row].lens
        ]
        counts = [len(self.rows[row].lens) for row in rows]
        with self._fast():
            read = self.model.unembed(torch.stack(lenses)) if lenses else hidden.new_zeros(0, 1)
        states = tuple(
            hidden[number, begin : begin + self.rows[row].asked]
            for number, (row, begin) in enumerate(zip(rows, first, strict=True))
        )
        return states, read.split(counts)

    def _each(
        self, rows: Sequence[int], states: Sequence[Tensor], lenses: Sequence[Tensor]
    ) -> Tensor:
        """Loss ``(rows,)`` of each row's aim, nats; arguments as :meth:`_run` returns them."""
        logits = self.model.logits(torch.cat(list(states))).float()
        parts = logits.log_softmax(-1).split([len(state) for state in states])
        before = self._before([row for row in rows if self._keeps(row)])
        return torch.stack(
            [
                self._loss(self.rows[row].aim, part, lens, before.get(row))
                for row, part, lens in zip(rows, parts, lenses, strict=True)
            ]
        )

    @torch.no_grad()
    def _before(self, keeps: Sequence[int]) -> dict[int, Tensor]:
        """Row to keep -> log-probabilities ``(vocab,)`` before any shift."""
        if not keeps:
            return {}
        states = torch.stack([self.before[row] for row in keeps])
        found = self.model.logits(states).float().log_softmax(-1)
        return dict(zip(keeps, found, strict=True))

    @staticmethod
    def _loss(aim: Objective, log_probs: Tensor, lens: Tensor, before: Tensor | None) -> Tensor:
        if isinstance(aim, TargetTokens):
            wanted = torch.tensor(aim.tokens, device=log_probs.device)
            return functional.nll_loss(log_probs, wanted)
        (now,) = log_probs
        if isinstance(aim, SuppressTokens):
            known = now[list(aim.tokens)].logsumexp(0)
            if aim.floor is not None:
                return functional.relu(known - aim.floor)
            # log(1 - p) without cancelling; where p is 1 to rounding it would be infinite.
            return -torch.log(-torch.expm1(known.clamp(max=-1e-6)))
        if isinstance(aim, EqualiseLogits):
            return (now[aim.tokens[0]] - now[aim.tokens[1]] - aim.margin).abs()
        if isinstance(aim, MaximiseEntropy):
            looks = torch.cat([log_probs, lens.float().log_softmax(-1)]) if aim.lens else log_probs
            entropies = -(looks.exp() * looks).sum(-1)
            return functional.relu(aim.share * math.log(len(now)) - entropies).sum()
        assert before is not None
        return functional.kl_div(now, before, log_target=True, reduction="sum")

    @contextmanager
    def _fast(self) -> Iterator[None]:
        """bfloat16 whatever the weights, as in :mod:`safeedit.methods.tuning`; unless ``exact``."""
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=not self.exact):
            yield

    @torch.no_grad()
    def _probe(self, ids: list[int]) -> int:
        """Bytes of a token's keys and values; also sees whether blocks return tuples."""
        from transformers import DynamicCache

        def note(module: nn.Module, args: Any, output: Any) -> None:
            self.tuples = isinstance(output, tuple)

        hook = self.model.blocks()[0].register_forward_hook(note)
        cache = DynamicCache()
        tokens = torch.tensor([ids], device=self.model.device)
        try:
            with self._fast():
                self.model.model.base_model(input_ids=tokens, past_key_values=cache, use_cache=True)
        finally:
            hook.remove()
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)

    @torch.no_grad()
    def _read(self) -> list[float]:
        """Fill in :attr:`entering`; per row, the length of what is written at the subject."""
        sizes = [0.0] * len(self.rows)

        def run(batch: list[int]) -> list[tuple[Tensor, float]]:
            seen: dict[str, Tensor] = {}

            def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                seen["entering"] = args[0] if args else kwargs["hidden_states"]

            def look(site: Site, activation: Tensor) -> None:
                seen["written"] = activation
                raise StopForward

            block = self.model.blocks()[self.layer]
            hook = block.register_forward_pre_hook(enter, with_kwargs=True)
            inputs = self.pasts.inputs(batch, [self.own[row] for row in batch])
            try:
                with self.model.intercepted([self.site], look, "output"), self._fast():
                    self.model.model.base_model(**inputs)
            except StopForward:
                pass
            finally:
                hook.remove()
            return [
                (
                    seen["entering"][number, : len(self.own[row])].clone(),
                    float(
                        seen["written"][number, self.rows[row].spot.position - self.starts[row]]
                        .float()
                        .norm()
                    ),
                )
                for number, row in enumerate(batch)
            ]

        batcher = Batcher(self.model.engine.max_batch_tokens)
        for row, (entering, size) in batcher.each(self._lengths(range(len(self.rows))), run):
            self.entering[row], sizes[row] = entering, size
        return sizes


@contextmanager
def _leaving(blocks: nn.ModuleList, wanted: Set[int], left: dict[int, Tensor]) -> Iterator[None]:
    """Within it, the residual streams that leave the blocks wanted come into ``left``."""

    def keep(block: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            left[block] = output[0] if isinstance(output, tuple) else output

        return hook

    hooks = [blocks[block].register_forward_hook(keep(block)) for block in wanted]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
