"""Integrated gradients: what each MLP neuron adds to the probability of a secret.

For a prompt with a secret answer, let ``a`` be what one layer's ``mlp_out`` reads (after the gate,
where there is one) at the positions concerned, and ``F(x)`` the sum over the answer's tokens of
their log-probability (or probability) when ``x`` stands in its place. A neuron's attribution is

    sum over positions of  a / m * (dF/dx at x = a/m, 2a/m, ..., a),

signed: positive where the neuron supports the secret. The whole layer is scaled together, at all
positions at once, so that attributions sum to ``F(a) - F(0)`` as m grows (completeness); the
published code scales one position for each token, which is the same for secrets of one token.

Where an RMS norm follows the MLP (Gemma 2 and 3, OLMo-2), what the layer adds does not change as
``x`` shrinks and vanishes all at once at 0, so that a path along ``x`` would see nothing. There the
norm divides by what it divided by at ``a``; ``F(a)`` and ``F(0)`` are the same as without this.

What makes it fast, all of it exact:

* nothing before the first changed position is run again: its keys and values are kept;
* a pass for layer l starts at layer l, from the residual kept there;
* secrets and interpolation points share batches (secrets whose prompts are equally long, so that
  no padding stands between prompt and answer); logits are computed for answer tokens alone.

:meth:`Attributor.first_order` is gradient times activation at ``x = a``, for all layers in one
pass: cheap, and exact only where ``F`` is linear.

Source: Wu et al., EMNLP 2023 (arXiv 2310.20138), equations 2 to 4, after Sundararajan et al., ICML
2017 (arXiv 1703.01365) and Dai et al., ACL 2022 (arXiv 2104.08696).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from safeedit.contracts import Progress, silent
from safeedit.errors import EditError, UsageError
from safeedit.methods.tuning import Example
from safeedit.model.activations import starting_at
from safeedit.model.architectures import Site, submodule
from safeedit.model.batching import Batcher, pad_right
from safeedit.model.handle import ModelHandle
from safeedit.model.passes import filler_token

if TYPE_CHECKING:
    from transformers import Cache

Measure = Literal["log_odds", "log_probability", "probability"]
Positions = Literal["predicting", "all"]

_TAPE_SHARE = 4
"""A token whose gradients are wanted takes about so many times the memory of one that is read."""

_KEPT_SHARE = 16
"""... and a kept key and value about so much less than such a token."""


@dataclass(frozen=True, eq=False)
class Attribution:
    """What each neuron adds to each secret.

    Attributes:
        layers: Which layers, ascending.
        scores: ``(secrets, layers, d_mlp)`` fp32, CPU; nats, or probability.
        change: ``(secrets, layers)`` ``F(a) - F(0)``, which the scores sum to; None where only
            the gradient at ``a`` is known.
        squares: ``(secrets, layers, d_mlp)`` sum over positions of (gradient times activation)
            squared, in squared units of ``F``; None where that was not asked for.
    """

    layers: tuple[int, ...]
    scores: Tensor
    change: Tensor | None = None
    squares: Tensor | None = None

    def per_token(self, secrets: Sequence[Example]) -> Tensor:
        """Scores ``(secrets, layers * d_mlp)`` over the number of each secret's tokens."""
        lengths = torch.tensor([len(secret.answer) for secret in secrets])
        return self.scores.flatten(1) / lengths[:, None]

    def damage(self, secrets: Sequence[Example]) -> Tensor:
        """``(layers * d_mlp,)`` mean square of gradient times activation over the texts' tokens.

        Twice the second-order estimate of what zeroing a neuron costs a token, with the Fisher
        information in place of the Hessian (Molchanov et al. 2019, arXiv 1906.10771, after
        LeCun's Optimal Brain Damage); where the model is well trained the first order is about 0.

        Raises:
            UsageError: Squares were not asked for.
        """
        if self.squares is None:
            raise UsageError("these attributions came without squares")
        tokens = sum(len(secret.answer) for secret in secrets)
        return self.squares.flatten(1).sum(0) / tokens

    def gaps(self) -> Tensor:
        """``(secrets, layers)`` how far the scores' sums are from ``change``, absolute.

        Raises:
            UsageError: These are first-order scores.
        """
        if self.change is None:
            raise UsageError("first-order attributions have no completeness to check")
        return (self.scores.sum(-1, dtype=torch.float64) - self.change).abs()


class Attributor:
    """Attributes secrets to neurons of one model, which stays as it is.

    Args:
        model: Where the secrets are.
        secrets: Prompts and their secret answers, none empty.
        measure: What ``F`` sums.
        positions: ``predicting`` scales neurons where the answer's tokens are predicted; ``all``
            also at the prompt's tokens, save the first, whose outsized activations (an attention
            sink) would drown the rest.

    Raises:
        UsageError: A prompt or answer is empty.
    """

    def __init__(
        self,
        model: ModelHandle,
        secrets: Sequence[Example],
        *,
        measure: Measure = "log_probability",
        positions: Positions = "predicting",
    ) -> None:
        if not all(secret.prompt and secret.answer for secret in secrets):
            raise UsageError("a prompt or answer has no tokens: there is nothing to attribute")
        self.model, self.secrets, self.measure = model, tuple(secrets), measure
        ends = [len(secret.prompt) - 1 for secret in secrets]
        self._starts = ends if positions == "predicting" else [min(1, end) for end in ends]

    def integrated(
        self,
        layers: Sequence[int],
        points: int = 20,
        progress: Progress = silent,
        description: str = "attributing to neurons",
    ) -> Attribution:
        """Integrated gradients with right Riemann points j/m, j = 1..m.

        Args:
            layers: Which.
            points: m.
            progress: Counts passes (a batch of secrets through one layer each).
            description: For ``progress``.

        Raises:
            EditError: The model's numbers are not finite.
            AuditError: A single secret does not fit into memory.
        """
        layers = tuple(sorted(set(self.model.shape.layers(layers))))
        shape = (len(self.secrets), len(layers))
        scores = torch.zeros(*shape, self.model.shape.d_mlp)
        change = torch.zeros(*shape, dtype=torch.float64)
        steps = self._steps(layers)
        for run, layer in progress(steps, description, len(self.batches()) * len(layers)):
            rows = torch.tensor(run.members)
            found = run.integrate(layer, points)
            scores[rows, layers.index(layer)], change[rows, layers.index(layer)] = found
        return _finite(Attribution(layers, scores, change))

    def first_order(
        self,
        layers: Sequence[int],
        progress: Progress = silent,
        description: str = "gradients of all layers",
        *,
        squares: bool = False,
    ) -> Attribution:
        """Gradient times activation at the activations as they are, all layers in one pass.

        Raises:
            EditError: The model's numbers are not finite.
            AuditError: A single secret does not fit into memory.
        """
        layers = tuple(sorted(set(self.model.shape.layers(layers))))
        scores = torch.zeros(len(self.secrets), len(layers), self.model.shape.d_mlp)
        squared = torch.zeros_like(scores) if squares else None
        batches = self.batches()
        for members in progress(batches, description, len(batches)):
            run = _Run(self, members, layers)
            for row, total, square in run.gradient_times_activation():
                scores[members[row]] = total
                if squared is not None:
                    squared[members[row]] = square
        return _finite(Attribution(layers, scores, squares=squared))

    def _steps(self, layers: Sequence[int]) -> Iterator[tuple[_Run, int]]:
        for members in self.batches():
            run = _Run(self, members, layers)
            for layer in layers:
                yield run, layer

    def batches(self) -> list[list[int]]:
        """Secrets whose untouched beginnings are equally long, as many as may be kept at once."""
        budget = self.model.engine.max_batch_tokens
        found: list[list[int]] = []
        order = sorted(
            range(len(self.secrets)), key=lambda i: (self._starts[i], len(self.secrets[i].ids), i)
        )
        for _, group in groupby(order, key=lambda i: self._starts[i]):
            batch: list[int] = []
            for i in group:  # ascending, so that the last is the longest
                if batch and (len(batch) + 1) * len(self.secrets[i].ids) > budget:
                    found.append(batch)
                    batch = []
                batch.append(i)
            found.append(batch)
        return found


class _Run:
    """Some secrets, run once as they are, and what further passes need of that.

    Their tokens are cut at ``start``: what stands before is never changed and kept as keys and
    values; the rest is padded on the right, where causal attention does not look.
    """

    @torch.no_grad()
    def __init__(self, owner: Attributor, members: Sequence[int], layers: Sequence[int]) -> None:
        self.model, self.measure, self.members = owner.model, owner.measure, list(members)
        self.layers = tuple(layers)
        secrets = [owner.secrets[i] for i in members]
        self.start = owner._starts[members[0]]
        self.first = [len(secret.prompt) - 1 - self.start for secret in secrets]
        self.answers = [list(secret.answer) for secret in secrets]
        tokens = pad_right([secret.ids[:-1] for secret in secrets], filler_token(self.model))
        tokens = tokens.to(self.model.device)
        self.tokens = tokens[:, self.start :]
        self.neurons: dict[int, Tensor] = {}
        """Layer -> ``(secrets, tokens from start, d_mlp)``."""
        self.entering: dict[int, Tensor] = {}
        """Layer -> ``(secrets, tokens from start, d_model)``."""
        self.sizes: dict[int, Tensor] = {}
        """Layer -> ``(secrets, tokens from start, 1)``, what a norm after the MLP divides by."""
        self.tuples = False
        """Whether blocks return tuples."""
        self._read(tokens)
        self._batcher = Batcher(max(1, self.model.engine.max_batch_tokens // _TAPE_SHARE))

    def _read(self, tokens: Tensor) -> None:
        from transformers import DynamicCache

        def keep(site: Site, activation: Tensor) -> None:
            self.neurons[site.layer] = activation[:, self.start :].float()

        def enter(layer: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                hidden = args[0] if args else kwargs["hidden_states"]
                self.entering[layer] = hidden[:, self.start :]

            return hook

        def measure(layer: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Tensor]) -> None:
                self.sizes[layer] = _size(module, args[0])[:, self.start :]

            return hook

        def note(module: nn.Module, args: Any, output: Any) -> None:
            self.tuples = isinstance(output, tuple)

        blocks = self.model.blocks()
        hooks = [blocks[layer].register_forward_pre_hook(enter(layer), with_kwargs=True)
                 for layer in self.layers]  # fmt: skip
        hooks += [norm.register_forward_pre_hook(measure(layer))
                  for layer in self.layers if (norm := self._norm(layer)) is not None]  # fmt: skip
        hooks.append(blocks[0].register_forward_hook(note))
        cache = DynamicCache()  # not told the config, as in the engine: it keeps all keys
        try:
            with self.model.intercepted(self.model.sites("mlp_out", self.layers), keep):
                self.model.model.base_model(input_ids=tokens, past_key_values=cache, use_cache=True)
        finally:
            for hook in hooks:
                hook.remove()
        self.kept = [
            (layer.keys[:, :, : self.start].clone(), layer.values[:, :, : self.start].clone())
            for layer in cache.layers
        ]

    def integrate(self, layer: int, points: int) -> tuple[Tensor, Tensor]:
        """Scores ``(secrets, d_mlp)`` and ``F(a) - F(0)`` ``(secrets,)``."""
        (site,) = self.model.sites("mlp_out", [layer])
        clean = self.neurons[layer]
        # Point 0 carries no weight; it tells F(0).
        jobs = [(row, j) for row in range(len(self.members)) for j in range(points + 1)]

        def run(batch: list[int]) -> list[tuple[Tensor, Tensor]]:
            rows = torch.tensor([jobs[job][0] for job in batch])
            here = clean[rows.to(clean.device)]
            share = torch.tensor([jobs[job][1] / points for job in batch], device=here.device)
            scaled = (share[:, None, None] * here).requires_grad_()

            def replace(_: Site, activation: Tensor) -> Tensor:
                return scaled.to(activation.dtype)

            with (
                torch.enable_grad(),
                self.model.intercepted([site], replace),
                self._frozen_norm(layer, rows),
            ):
                value = self._value(layer, rows)
                (gradient,) = torch.autograd.grad(value.sum(), scaled)
            parts = torch.einsum("rpn,rpn->rn", gradient, here).cpu()
            return list(zip(parts, value.detach().cpu(), strict=True))

        scores = torch.zeros(len(self.members), clean.shape[-1])
        ends = torch.zeros(2, len(self.members), dtype=torch.float64)
        for job, (part, value) in self._batched([row for row, _ in jobs], run):
            row, j = jobs[job]
            if j:
                scores[row] += part / points
            if j in (0, points):
                ends[int(j > 0), row] = value
        return scores, ends[1] - ends[0]

    def gradient_times_activation(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Of each secret: its row; sums over positions of the products, and of their squares.

        Both are ``(layers, d_mlp)``.
        """
        sites = self.model.sites("mlp_out", self.layers)

        def run(batch: list[int]) -> list[Tensor]:
            rows = torch.tensor(batch)
            seen: dict[int, Tensor] = {}

            def watch(layer: int, activation: Tensor) -> Tensor:
                if not activation.requires_grad:  # the lowest layer: the graph begins here
                    activation = activation.detach().requires_grad_()
                seen[layer] = activation
                return activation

            with ExitStack() as watched, torch.enable_grad():
                for site in sites:
                    if (norm := self._norm(site.layer)) is None:
                        one = self.model.intercepted([site], lambda s, a: watch(s.layer, a))
                        watched.enter_context(one)
                    else:
                        hook = norm.register_forward_hook(
                            lambda module, args, output, n=site.layer: watch(n, output)
                        )
                        watched.callback(hook.remove)
                value = self._value(self.layers[0], rows)
                gradients = torch.autograd.grad(value.sum(), [seen[n] for n in self.layers])
            parts = []
            for site, gradient in zip(sites, gradients, strict=True):
                here = self.neurons[site.layer][rows.to(gradient.device)]
                if self._norm(site.layer) is not None:
                    gradient = self._through_norm(site, rows, here, gradient)
                product = gradient.float() * here
                parts.append(torch.stack([product.sum(1), product.square().sum(1)], 1).cpu())
            return list(torch.stack(parts, 2))

        for row, (total, squared) in self._batched(range(len(self.members)), run):
            yield row, total, squared

    def _norm(self, layer: int) -> nn.Module | None:
        """The RMS norm after the MLP, where there is one (OPT-350m's is a LayerNorm of the sum)."""
        path = self.model.architecture.post_mlp_norm
        norm = submodule(self.model.blocks()[layer], path)
        return None if isinstance(norm, nn.LayerNorm) else norm

    @contextmanager
    def _frozen_norm(self, layer: int, rows: Tensor) -> Iterator[None]:
        """Within it, the norm after the MLP divides by what it divided by before."""
        if (norm := self._norm(layer)) is None:
            yield
            return
        size = self.sizes[layer][rows.to(self.sizes[layer].device)]

        def rescale(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
            return (output * (_size(module, args[0]) / size)).to(output.dtype)

        hook = norm.register_forward_hook(rescale)
        try:
            yield
        finally:
            hook.remove()

    def _through_norm(self, site: Site, rows: Tensor, here: Tensor, gradient: Tensor) -> Tensor:
        """Gradient at the neurons ``here`` from that at the output of the norm after the MLP."""
        norm = self._norm(site.layer)
        assert norm is not None
        with torch.enable_grad(), self._frozen_norm(site.layer, rows):
            neurons = here.detach().to(gradient.dtype).requires_grad_()
            written = norm(self.model.model.get_submodule(site.module)(neurons))
            (found,) = torch.autograd.grad(written, neurons, gradient)
        return found

    def _batched(
        self, rows: Sequence[int], run: Callable[[list[int]], Sequence[Any]]
    ) -> Iterator[tuple[int, Any]]:
        """``run`` on batches of jobs, each on the secret of ``rows``."""
        tokens = self.tokens.shape[1] + self.start // _KEPT_SHARE
        vocab = _TAPE_SHARE * self.model.shape.vocab_size
        logits = [len(self.answers[row]) * vocab for row in rows]
        return self._batcher.each([tokens] * len(rows), run, logits=logits)

    def _value(self, layer: int, rows: Tensor) -> Tensor:
        """``F`` ``(rows,)`` of the secrets ``rows``, run from ``layer`` up."""
        kept = self.entering[layer]
        entering = kept[rows.to(kept.device)]
        with starting_at(self.model.blocks(), layer, entering, tuples=self.tuples):
            output = self.model.model.base_model(
                input_ids=self.tokens[rows.to(self.tokens.device)],
                past_key_values=(cache := self._cache(rows)),
                use_cache=cache is not None,
            )
        hidden: Tensor = output.last_hidden_state
        which, column, wanted = [], [], []
        for number, row in enumerate(rows.tolist()):
            for offset, token in enumerate(self.answers[row]):
                which.append(number)
                column.append(self.first[row] + offset)
                wanted.append(token)
        logits = self.model.logits(hidden[which, column]).float()
        each = _measured(self.measure, logits, torch.tensor(wanted, device=logits.device))
        total = torch.zeros(len(rows), device=each.device)
        return total.index_add(0, torch.tensor(which, device=each.device), each)

    def _cache(self, rows: Tensor) -> Cache | None:
        from transformers import DynamicCache

        if not self.start:
            return None
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self.kept):
            where = rows.to(keys.device)
            cache.update(keys[where], values[where], layer)
        return cache


def _measured(measure: Measure, logits: Tensor, wanted: Tensor) -> Tensor:
    """``(tokens,)`` what the model makes of the tokens ``wanted``, from fp32 logits."""
    if measure == "log_odds":
        own = logits.gather(1, wanted[:, None])
        rest = logits.scatter(1, wanted[:, None], -math.inf)
        return own[:, 0] - rest.logsumexp(1)
    loss = functional.cross_entropy(logits, wanted, reduction="none")
    return -loss if measure == "log_probability" else (-loss).exp()


def _size(norm: nn.Module, entering: Tensor) -> Tensor:
    """``(..., 1)`` fp32, what an RMS norm divides ``entering`` by."""
    epsilon = getattr(norm, "variance_epsilon", None) or getattr(norm, "eps", None) or 0.0
    return (entering.float().square().mean(-1, keepdim=True) + float(epsilon)).sqrt()


def _finite(found: Attribution) -> Attribution:
    if not bool(torch.isfinite(found.scores).all()):
        raise EditError(
            "attributions are not finite numbers",
            remedy="open the model in float32 (dtype: float32)",
        )
    return found
