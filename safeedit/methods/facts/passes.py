"""Passes of prompts through a model whose MLP writes something else at one token of each.

A pass starts at the block concerned, from the residual kept there, and at the subject's last token:
what stands before it does not see the shift, so that it is run once and its keys and values are
reused (:mod:`safeedit.methods.facts.prefix_cache`). Logits are computed where an aim looks and
nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from safeedit.methods.facts.objectives import (
    FactObjective,
    KeepDistribution,
    SuppressTokens,
    away,
    loss,
)
from safeedit.methods.facts.prefix_cache import PrefixCache, distinct
from safeedit.model.activations import StopForward, starting_at
from safeedit.model.architectures import Site
from safeedit.model.batching import Batcher, common_prefix
from safeedit.model.handle import ModelHandle
from safeedit.model.passes import check_prompts

_TAPE_SHARE = 4
"""A token whose gradients are wanted takes about so many times the memory of one that is read."""

_PAST_SHARE = 8
"""A token before the subject, of which keys and values alone are needed, takes about so many times
less memory in a pass than one after it."""

KEPT_SHARE = 0.5
"""What is kept of all that stands before subjects takes this share of the weights' memory at most;
where it would be more, what all rows begin with is kept alone."""


class Passes:
    """The rows of all units, run once as they are, and what further passes need of that.

    Args:
        model: Stays as it is.
        layer: Whose MLP's output is shifted.
        units: Each has one shift.
        exact: Whether to compute in the weights' own type rather than in bfloat16.
        attention: Whether what the block's attention writes is shifted as well. A shift is then
            ``(2 d_model,)``, the MLP's part first.
    """

    def __init__(
        self,
        model: ModelHandle,
        layer: int,
        units: Sequence[FactObjective],
        *,
        exact: bool = False,
        attention: bool = False,
    ) -> None:
        self.model, self.layer, self.exact = model, layer, exact
        roles = ("mlp_out", "attn_out") if attention else ("mlp_out",)
        self.sites = [site for role in roles for site in model.sites(role, [layer])]
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
        check_prompts(model, ids)
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
        self.sizes = torch.stack(
            [
                torch.stack([w for w, o in zip(written, self.owners, strict=True) if o == u]).mean(
                    0
                )
                for u in range(len(units))
            ]
        )
        """``(units, sites)`` length of what is written at the subjects, mean over rows."""
        self._batcher = Batcher(max(1, model.engine.max_batch_tokens // _TAPE_SHARE))
        self.before: dict[int, Tensor] = {}
        """Row to keep -> its final hidden state ``(d_model,)`` before any shift."""
        self._remember()

    @property
    def outputs(self) -> Tensor:
        """``(units,)`` length of what the MLP writes at the subjects, mean over rows."""
        return self.sizes[:, 0]

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
                each = self._each(rows, self._run(rows, leaf))
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
        for index, lacking in self._batched(chosen, run):
            row = chosen[index]
            if not self._keeps(row):
                number = place[self.owners[row]]
                # Not max(): it would pass over what is no number.
                worst[number] = torch.maximum(worst[number], torch.tensor(lacking))
        return worst, gradient

    def slopes(self, shifts: Tensor, active: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Of the rows of active units, whose aims are all of a kind that has slopes
        (:func:`~safeedit.methods.facts.objectives.away`): how far each is from its aim
        ``(rows, 2)``, the slopes of that ``(rows, 2, d_model)``, and its unit ``(rows,)``; fp64, on
        the CPU."""
        chosen = [row for row, owner in enumerate(self.owners) if owner in set(active)]
        owners = torch.tensor([self.owners[row] for row in chosen])
        values = torch.empty(len(chosen), 2, dtype=torch.float64)
        slopes = torch.empty(len(chosen), 2, self.model.d_model, dtype=torch.float64)

        def run(ranked: bool, group: list[int], batch: list[int]) -> list[tuple[Tensor, Tensor]]:
            places = [group[index] for index in batch]
            rows = [chosen[place] for place in places]
            leaf = shifts[owners[places]].to(self.model.device).requires_grad_(True)
            logits = self.model.logits(torch.cat(self._run(rows, leaf))).float()
            found = away([self.rows[row].aim for row in rows], logits)
            # Without a rank the two are one, and so are their slopes.
            parts = found.T if ranked else found.T[:1]
            each = [torch.autograd.grad(p.sum(), leaf, retain_graph=True)[0] for p in parts]
            own = torch.stack([each[0], each[-1]], 1).double().cpu()
            return list(zip(found.detach().double().cpu(), own, strict=True))

        for ranked in (True, False):
            group = [place for place, row in enumerate(chosen) if self._ranked(row) == ranked]
            found = self._batched([chosen[place] for place in group], partial(run, ranked, group))
            for index, (value, slope) in found:
                values[group[index]], slopes[group[index]] = value, slope
        return values, slopes, owners

    def _ranked(self, row: int) -> bool:
        aim = self.rows[row].aim
        return isinstance(aim, SuppressTokens) and bool(aim.rank)

    def _keeps(self, row: int) -> bool:
        return isinstance(self.rows[row].aim, KeepDistribution)

    def _batched(self, rows: Sequence[int], run: Any) -> Iterator[tuple[int, Any]]:
        vocab = _TAPE_SHARE * self.model.shape.vocab_size
        return self._batcher.each(
            self._lengths(rows), run, logits=[self.rows[row].asked * vocab for row in rows]
        )

    def _lengths(self, rows: Sequence[int]) -> list[int]:
        """Tokens of each row by the memory they take in a pass."""
        return [len(self.own[row]) + self.starts[row] // _PAST_SHARE for row in rows]

    @torch.no_grad()
    def _remember(self) -> None:
        keeps = [row for row in range(len(self.rows)) if self._keeps(row)]

        def run(batch: list[int]) -> list[Tensor]:
            rows = [keeps[index] for index in batch]
            width = len(self.sites) * self.model.d_model
            leaf = torch.zeros(len(rows), width, device=self.model.device)
            return self._run(rows, leaf)

        for index, state in self._batched(keeps, run):
            self.before[keeps[index]] = state[0].clone()

    def _run(self, rows: Sequence[int], shifts: Tensor) -> list[Tensor]:
        """Per row, final hidden states ``(asked, d_model)`` where its aim looks."""
        entering = nn.utils.rnn.pad_sequence([self.entering[row] for row in rows], batch_first=True)
        where = (
            torch.arange(len(rows), device=shifts.device),
            torch.tensor(
                [self.rows[row].spot.position - self.starts[row] for row in rows],
                device=shifts.device,
            ),
        )

        parts = dict(zip(self.sites, shifts.split(self.model.d_model, 1), strict=True))

        def shift(site: Site, activation: Tensor) -> Tensor:
            moved = parts[site].to(activation.device, activation.dtype)
            return activation.index_put(where, moved, accumulate=True)

        with (
            self.model.intercepted(self.sites, shift, "output"),
            starting_at(self.model.blocks(), self.layer, entering, tuples=self.tuples),
            self._fast(),
        ):
            inputs = self.pasts.inputs(rows, [self.own[row] for row in rows])
            hidden = self.model.model.base_model(**inputs).last_hidden_state
        first = [len(self.rows[row].spot.ids) - 1 - self.starts[row] for row in rows]
        return [
            hidden[number, begin : begin + self.rows[row].asked]
            for number, (row, begin) in enumerate(zip(rows, first, strict=True))
        ]

    def _each(self, rows: Sequence[int], states: Sequence[Tensor]) -> Tensor:
        """Loss ``(rows,)`` of each row's aim, nats; ``states`` as :meth:`_run` returns them."""
        logits = self.model.logits(torch.cat(list(states))).float()
        parts = logits.log_softmax(-1).split([len(state) for state in states])
        before = self._before([row for row in rows if self._keeps(row)])
        return torch.stack(
            [
                loss(self.rows[row].aim, part, before.get(row))
                for row, part in zip(rows, parts, strict=True)
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
    def _read(self) -> list[Tensor]:
        """Fill in :attr:`entering`; per row ``(sites,)``, the length of what is written at the
        subject."""
        sizes = [torch.empty(0)] * len(self.rows)

        def run(batch: list[int]) -> list[tuple[Tensor, Tensor]]:
            seen: dict[str, Tensor] = {}
            written: dict[Site, Tensor] = {}

            def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                seen["entering"] = args[0] if args else kwargs["hidden_states"]

            def look(site: Site, activation: Tensor) -> None:
                written[site] = activation
                if len(written) == len(self.sites):
                    raise StopForward

            block = self.model.blocks()[self.layer]
            hook = block.register_forward_pre_hook(enter, with_kwargs=True)
            inputs = self.pasts.inputs(batch, [self.own[row] for row in batch])
            try:
                with self.model.intercepted(self.sites, look, "output"), self._fast():
                    self.model.model.base_model(**inputs)
            except StopForward:
                pass
            finally:
                hook.remove()
            return [
                (
                    seen["entering"][number, : len(self.own[row])].clone(),
                    torch.stack(
                        [
                            written[site][number, self.rows[row].spot.position - self.starts[row]]
                            for site in self.sites
                        ]
                    )
                    .float()
                    .norm(dim=1)
                    .cpu(),
                )
                for number, row in enumerate(batch)
            ]

        batcher = Batcher(self.model.engine.max_batch_tokens)
        for row, (entering, size) in batcher.each(self._lengths(range(len(self.rows))), run):
            self.entering[row], sizes[row] = entering, size
        return sizes
