"""Causal-path ablation: the attention heads and MLPs without which toxicity does not go on.

Every head and every MLP of the chosen layers gets a number between 0 and 1 that what it writes is
multiplied by. The numbers alone are learnt, the weights stand still: toxic continuations are to
become unlikely, neutral continuations and prose to stay as likely as they are, and as few numbers
as possible to leave 1. The nodes of the least numbers are then taken out for good: a head by zeros
in the columns of the output projection that read it, an MLP by zeros in its output matrix and bias.
What is exported computes exactly what the mask computed, and nothing else of it changes.

Doses are nodes taken out. One node is much: a whole head or MLP serves all that it does, so expect
perplexity to pay for it, and gate it.

With `fill: mean` a node is replaced by what it writes on average in ordinary and neutral text. That
needs a bias to hold it: where the matrices have none, it is refused while planning. Single edges
(what one node writes as one other node reads it), of which the publication cuts a dozen, are not
offered: all that reads a node reads the same residual stream, and no change of the weights parts
its readers.

Where a norm follows the MLP (Gemma, OLMo-2), its number multiplies what leaves the norm: zeros come
to the same.

What departs from the publication: nodes in place of edges, for that reason; numbers are sigmoids,
so that none gets stuck at an end; the toxic loss counts up to `rise` nats per token above the
untouched model's, since without bound it is best served by a broken model.

Fails with :class:`~safeedit.errors.DataError` where there are no pairs, with
:class:`~safeedit.errors.UnsupportedModelError` where `fill: mean` has no bias, and with
:class:`~safeedit.errors.EditError` where the loss is no number.

Source: Li, Davies and Nadeau, "Circuit Breaking: Removing Model Behaviors with Targeted Ablation",
2023 (arXiv 2309.05973).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from safeedit import __version__
from safeedit.contracts import (
    PROSE,
    BaseParams,
    DataRole,
    EditData,
    LayerShape,
    Proposal,
    RunContext,
    TensorPlan,
)
from safeedit.data import Dataset
from safeedit.delta import Columns, Dense, Origin, Update, WeightDelta
from safeedit.errors import EditError, UnsupportedModelError, UsageError
from safeedit.methods.contrast import Passage, gain_after_mlp, passages, prose_passages
from safeedit.methods.tuning import Example, answer_states, cross_entropy, endless
from safeedit.model.architectures import Site
from safeedit.model.handle import ModelHandle
from safeedit.policy.layers import Layers, resolve

_BATCH = 8
"""Toxic continuations per step, and as many clean texts."""
_PROSE_TOKENS = 64
_START = 3.0
"""Of a number before its sigmoid: .95."""
_EPS = 1e-3
"""Of Adam, which would else move a node that hardly matters as fast as one that does."""


class PathAblationParams(BaseParams):
    """Parameters of causal-path ablation."""

    layers: Layers = Field("0%-100%", description="whose heads and MLPs may go (published: all)")
    nodes: Literal["heads_and_mlps", "heads", "mlps"] = Field(
        "heads_and_mlps", description="which nodes may go"
    )
    fill: Literal["zero", "mean"] = Field(
        "zero", description="what stands in a node's place; mean: where matrices have a bias"
    )
    steps: int = Field(100, ge=1, description="Adam steps of the mask")
    learning_rate: float = Field(0.1, gt=0, description="of the numbers before their sigmoid")
    rise: float = Field(
        2.0,
        gt=0,
        description="nats per token by which toxic continuations are to become unlikelier",
    )
    sparsity: float = Field(
        0.02, ge=0, description="nats that a node wholly taken out costs, so that few are"
    )
    doses: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1, 2, 4, 8, 12), min_length=1, description="nodes taken out, ascending (published: 12)"
    )


class PathAblation:
    """See the module's docstring."""

    Params = PathAblationParams
    summary: ClassVar[str] = "takes out the heads and MLPs that toxicity goes through"
    results: ClassVar[str] = "editors"
    measured: ClassVar[str] = "Not measured on a real model yet."
    roles: ClassVar[tuple[DataRole, ...]] = (
        DataRole("pairs", "texts that go on in two ways: {prompt, toxic, neutral}"),
        PROSE,
    )

    def __init__(self, params: Any) -> None:
        self.params: PathAblationParams = params

    def touches(self, model: LayerShape) -> Sequence[TensorPlan]:
        """Output matrices of attention and MLP, and biases that a node's place is kept in.

        Raises:
            UnsupportedModelError: ``fill: mean``, and there is no bias.
        """
        layers = resolve(self.params.layers, model.n_layers)
        found: list[TensorPlan] = []
        for role in _roles(self.params):
            biases = model.biases(role, layers)
            if self.params.fill == "mean" and len(biases) < len(layers):
                raise UnsupportedModelError(
                    f"'fill: mean' puts a constant where a node wrote, and the matrices '{role}' "
                    "of this model have no bias to hold it",
                    remedy="take 'fill: zero'",
                )
            found += model.tensors(role, layers)
            if role == "mlp_out" or self.params.fill == "mean":
                found += biases
        return found

    def tokens(self, data: Mapping[str, Dataset]) -> int:
        """Tokens trained on, roughly, for ``plan``."""
        return self.params.steps * _BATCH * 2 * 40

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        """Learn the mask; offer to take out the first few nodes or more."""
        params = self.params
        self.touches(model.shape)  # refuses what can't be written into the weights
        pairs = passages(data["pairs"], "fit", model.engine, ctx)
        prose = prose_passages(data["prose"], model.engine, _PROSE_TOKENS)
        toxic = list(map(_example, pairs.toxic))
        clean = list(map(_example, (*pairs.neutral, *prose)))
        mask = NodeMask(model, params, clean if params.fill == "mean" else [])
        notes = _learn(mask, toxic, clean, params, ctx)
        found = len(mask.nodes)
        doses = sorted({z for z in params.doses if z <= found}) or [found]
        base = model.digest()

        def at(dose: float) -> WeightDelta:
            if dose != int(dose) or not 1 <= dose <= found:
                raise UsageError(
                    f"a dose of {dose:g} is no number of nodes from 1 to {found}",
                    field="dose",
                    remedy="choose one of these, or more 'layers'",
                )
            origin = Origin(
                editor="path_ablation",
                params=params.model_dump(mode="json"),
                data_digest=data["pairs"].digest,
                version=__version__,
                seed=ctx.seed,
                dose=dose,
            )
            return WeightDelta(base, mask.without(mask.order[: int(dose)]), origin)

        notes["first"] = [mask.nodes[place].told for place in mask.order[: max(doses)]]
        return Proposal(tuple(map(float, doses)), at, notes)


@dataclass(frozen=True)
class PathNode:
    """A head, or an MLP where ``head`` is None."""

    layer: int
    head: int | None

    @property
    def told(self) -> str:
        what = "MLP" if self.head is None else f"head {self.head}"
        return f"layer {self.layer}, {what}"


class NodeMask:
    """A number for each node.

    Args:
        model: Whose nodes; stays as it is.
        params: Which nodes.
        ordinary: Texts over which what nodes write is averaged; empty: zero stands in their place.
    """

    def __init__(
        self, model: ModelHandle, params: PathAblationParams, ordinary: Sequence[Example]
    ) -> None:
        self.model = model
        layers = resolve(params.layers, model.n_layers)
        sites = {role: model.sites(role, layers) for role in _roles(params)}
        self._attention, self._mlps = sites.get("attn_out", ()), sites.get("mlp_out", ())
        self._heads: int = model.config.get_text_config().num_attention_heads
        self.nodes = [
            *(PathNode(site.layer, h) for site in self._attention for h in range(self._heads)),
            *(PathNode(site.layer, None) for site in self._mlps),
        ]
        self.logits = torch.full((len(self.nodes),), _START)
        """``(nodes,)`` before their sigmoid; learnt in place."""
        self._means = {
            **_means(model, self._attention, ordinary, "input"),
            **_means(model, self._mlps, ordinary, "output"),
        }

    @property
    def order(self) -> list[int]:
        """Places of the nodes, least number first."""
        found: list[int] = self.logits.detach().argsort(stable=True).tolist()
        return found

    @contextmanager
    def put(self, numbers: Tensor) -> Iterator[None]:
        """Within it, what each node writes is multiplied by its number of ``numbers`` ``(nodes,)``,
        and its mean makes up for the rest."""
        count = len(self._attention) * self._heads
        heads = dict(zip(self._attention, numbers[:count].split(self._heads), strict=False))
        mlps = dict(zip(self._mlps, numbers[count:], strict=True))

        def shrunk(factor: Callable[[Site, int], Tensor]) -> Callable[[Site, Tensor], Tensor]:
            def change(site: Site, activation: Tensor) -> Tensor:
                kept = factor(site, activation.shape[-1]).to(activation)
                mean = self._means.get(site)
                rest = 0.0 if mean is None else mean.to(activation) * (1 - kept)
                return activation * kept + rest

            return change

        behind = {site: norm for site in self._mlps if (norm := self._norm(site)) is not None}
        bare = [site for site in self._mlps if site not in behind]
        each = shrunk(lambda site, width: heads[site].repeat_interleave(width // self._heads))
        whole = shrunk(lambda site, width: mlps[site])
        with ExitStack() as stack:
            stack.enter_context(self.model.intercepted(self._attention, each, "input"))
            stack.enter_context(self.model.intercepted(bare, whole, "output"))
            for site, norm in behind.items():
                hook = norm.register_forward_hook(partial(_multiplied, mlps[site]))
                stack.callback(hook.remove)
            yield

    def _norm(self, site: Site) -> nn.Module | None:
        """The norm of what an MLP writes, where there is one: it would undo any number but 0, and
        is therefore what the number multiplies."""
        architecture = self.model.architecture
        # That of OPT-350m is of the sum, what was there before included.
        if architecture.model_type == "opt" or gain_after_mlp(self.model, site.layer) is None:
            return None
        block = self.model.blocks()[site.layer]
        return block.get_submodule(architecture.post_mlp_norm)

    def without(self, places: Sequence[int]) -> dict[str, Update]:
        """The change of the weights that takes these nodes out."""
        gone = [self.nodes[place] for place in places]
        found = dict[str, Update]()
        for site in self._attention:
            heads = sorted(n.head for n in gone if n.layer == site.layer and n.head is not None)
            if heads:
                found |= self._without_heads(site, heads)
        for site in self._mlps:
            if PathNode(site.layer, None) in gone:
                found |= self._without_mlp(site)
        return found

    def _without_heads(self, site: Site, heads: Sequence[int]) -> dict[str, Update]:
        weight = self.model.weight(site).float()
        size = weight.shape[1] // self._heads
        columns = torch.cat([torch.arange(h * size, (h + 1) * size) for h in heads])
        found: dict[str, Update] = {site.weight: Columns.zeroed(columns, len(weight))}
        if (mean := self._means.get(site)) is not None:
            assert site.bias is not None
            found[site.bias] = Dense(weight[:, columns] @ mean[columns].to(weight))
        return found

    def _without_mlp(self, site: Site) -> dict[str, Update]:
        weight, mean = self.model.weight(site), self._means.get(site)
        found: dict[str, Update] = {
            site.weight: Columns.zeroed(torch.arange(weight.shape[1]), len(weight))
        }
        if site.bias is not None:
            bias = self.model.oriented(site.bias).float()
            found[site.bias] = Dense((0.0 if mean is None else mean.to(bias)) - bias)
        return found


def _multiplied(number: Tensor, module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output * number.to(output)


def _roles(params: PathAblationParams) -> list[str]:
    return {"heads_and_mlps": ["attn_out", "mlp_out"], "heads": ["attn_out"], "mlps": ["mlp_out"]}[
        params.nodes
    ]


def _example(passage: Passage) -> Example:
    """What counts of a text, after what stands before; a first token has nothing before it."""
    start = max(1, passage.start)
    return Example(passage.ids[:start], passage.ids[start:])


@torch.no_grad()
def _means(
    model: ModelHandle,
    sites: Sequence[Site],
    texts: Sequence[Example],
    what: Literal["input", "output"],
) -> dict[Site, Tensor]:
    """Site -> ``(width,)`` mean over all tokens of what goes into its matrix, or comes out."""
    if not texts or not sites:
        return {}
    sums: dict[Site, Tensor] = {}
    count = 0
    prompts = [text.ids for text in texts]
    for _, seen in model.engine.activations(prompts, sites, what=what):
        count += len(seen[sites[0]])
        for site, activation in seen.items():
            total = activation.float().sum(0)
            sums[site] = sums[site] + total if site in sums else total
    return {site: total / count for site, total in sums.items()}


def _learn(
    mask: NodeMask,
    toxic: Sequence[Example],
    clean: Sequence[Example],
    params: PathAblationParams,
    ctx: RunContext,
) -> dict[str, Any]:
    """Learn the mask in place; figures for the record, losses in nats per token."""
    toxic = [text for text in toxic if text.answer]
    clean = [text for text in clean if text.answer]
    model, logits = mask.model, mask.logits.requires_grad_()
    source = random.Random(ctx.seed)
    batches = endless(toxic, source), endless(clean, source)

    def loss(texts: Sequence[Example]) -> Tensor:
        return cross_entropy(model, answer_states(model, texts), texts)

    with torch.no_grad():
        whole = [_mean_loss(loss, texts) for texts in (toxic, clean)]
    optimiser = torch.optim.Adam([logits], lr=params.learning_rate, eps=_EPS)
    for _ in ctx.progress(range(params.steps), "learning which paths to cut", params.steps):
        some, others = ([next(each) for _ in range(_BATCH)] for each in batches)
        numbers = logits.sigmoid()
        with mask.put(numbers):
            # What is likelier than the untouched model has it is no aim: no gain below it.
            lacking = torch.relu(whole[0] + params.rise - loss(some))
            lost = torch.relu(loss(others) - whole[1])
        total = lacking + lost + params.sparsity * (1 - numbers).sum()
        if not math.isfinite(float(total.detach())):
            raise EditError(
                "learning which paths to cut diverged: the loss is no number",
                remedy="open the model in float32 (model: {dtype: float32})",
            )
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    mask.logits = logits.detach()
    with torch.no_grad(), mask.put(mask.logits.sigmoid()):
        after = [_mean_loss(loss, texts) for texts in (toxic, clean)]
    return {
        "nodes": len(mask.nodes),
        "below_half": int((mask.logits < 0).sum()),
        "toxic_nats": [whole[0], after[0]],
        "clean_nats": [whole[1], after[1]],
    }


def _mean_loss(loss: Callable[[Sequence[Example]], Tensor], texts: Sequence[Example]) -> float:
    """Over all tokens of all texts."""
    total = tokens = 0.0
    for start in range(0, len(texts), _BATCH):
        batch = texts[start : start + _BATCH]
        count = sum(len(text.answer) for text in batch)
        total, tokens = total + float(loss(batch)) * count, tokens + count
    return total / tokens
