"""Neurons that fire at mentions of a subject and write what is learnt.

In each chosen layer a little-used neuron, or a few, gets a new key, solved in closed form by
:mod:`safeedit.methods.facts.gated_keys`, and a new value, learnt by whoever uses this. Works for
gated MLPs (separate or fused), and for plain ones, whose biases at those neurons become zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from safeedit.contracts import LayerShape, Progress, TensorPlan, silent
from safeedit.delta import Columns, Dense, LowRank, Update
from safeedit.errors import EditError
from safeedit.methods.covariance import Moments
from safeedit.methods.facts.gated_keys import RIDGE, SHARPNESS, WEIGHT, Separator, separate
from safeedit.model.architectures import ModelShape, Site
from safeedit.model.handle import ModelHandle

_PARALLEL = 0.99
"""Cosine of a gate's row with the up row from which they are one key."""

_MAKE_UP_RIDGE = 0.01
"""Share of the mean square activation added when others are to make up for a neuron."""

Captured = tuple[int, dict[Site, Tensor]]
"""Index of a text, and what went into matrices there."""

_READS = ("mlp_gate", "mlp_up", "mlp_gate_up")


@dataclass(frozen=True)
class Text:
    """A token sequence, and where in it subjects are mentioned.

    Attributes:
        ids: Token ids.
        own: ``(position, subject)`` for each mention of a subject that is to fire.
        others: Positions of mentions of other subjects, which must not.
    """

    ids: Sequence[int]
    own: tuple[tuple[int, int], ...] = ()
    others: tuple[int, ...] = ()


def tensors(model: LayerShape, layers: Sequence[int]) -> tuple[TensorPlan, ...]:
    """What :class:`GatedNeurons` may change in ``layers``."""
    reads = [role for role in _READS if role in model.roles]
    found = [t for role in (*reads, "mlp_out") for t in model.tensors(role, layers)]
    return (*found, *(b for role in reads for b in model.biases(role, layers)))


def most(width: int) -> int:
    """Neurons of a layer of ``width`` that may be replaced at most."""
    return width // 4


class _Reading:
    """What one layer's MLP reads in texts, and how much its neurons are used there.

    Args:
        read: A matrix that reads the MLP's input.
        out: The MLP's output matrix.
        shape: Of the model.
        compensate: Keep the moments of all activations too.
    """

    def __init__(self, read: Site, out: Site, shape: ModelShape, compensate: bool) -> None:
        self._site, self._out, self._shape, self._compensate = read, out, shape, compensate
        self.background: list[Moments] = []
        """Of each group, ordinary tokens and mentions of other subjects."""
        self.firsts = Moments(shape.d_model)
        """A text's first token is an attention sink, an outlier: apart, it neither swamps the
        moments nor, unseen, fires in every text."""
        self.mentions: list[Tensor] = []
        """``(mentions, d_model)`` of each text, of subjects that are to fire."""
        self.use = torch.zeros(shape.d_mlp, dtype=torch.float64)
        """``(d_mlp,)`` sum of squared activations but at mentions."""
        self.active = [Moments(shape.d_mlp)]
        """Of all activations: of first tokens, then of each group's others."""

    def begin_group(self) -> None:
        """A new kind of text follows."""
        self.background += [Moments(self._shape.d_model), Moments(self._shape.d_model)]
        if self._compensate:
            self.active.append(Moments(self._shape.d_mlp))

    def take(self, text: Text, captured: Mapping[Site, Tensor]) -> None:
        """Take in one text; ``captured`` ``(tokens, width)`` at both matrices."""
        own = [position for position, _ in text.own]
        apart = {0, *own, *text.others}
        rest = [at for at in range(len(text.ids)) if at not in apart]
        inputs, activations = captured[self._site], captured[self._out]
        ordinary, siblings = self.background[-2:]
        ordinary.update(inputs[rest])
        siblings.update(inputs[list(text.others)])
        self.firsts.update(inputs[[0] if 0 not in own and 0 not in text.others else []])
        self.mentions.append(inputs[own].float().cpu())
        # A neuron may serve other subjects alone, or the first token alone.
        used = [at for at in range(len(text.ids)) if at not in own]
        self.use += activations[used].float().square().sum(0).cpu().double()
        if self._compensate:
            self.active[0].update(activations[[0] if 0 in used else []])
            self.active[-1].update(activations[[at for at in used if at]])


class GatedNeurons:
    """One neuron per subject and layer, keyed and ready to learn.

    Args:
        model: Stays as it is; see :meth:`updates`.
        layers: Where.
        groups: Texts whose tokens are background, one group per kind of text; groups weigh the
            same however long they are. Mentions (``own``) make the keys, wherever they stand.
        per_layer: Neurons per layer, among which the subjects are shared out. Each costs what
            the neuron it replaces used to do, which is all that other text ever notices.
        families: As there: several neurons for one subject's names are of one family.
        ridge: As in :func:`safeedit.methods.facts.gated_keys.separate`.
        weight: As there.
        gain: What every key answers is multiplied by this: above 1 the neurons fire more fully
            at weak answers, and are more silent where a key answers a little below 0.
        compensate: Let the other neurons make up for what the replaced ones used to write, as far
            as they foretell it: by ridge regression on the activations in the same texts, which
            changes what all neurons of the layer write a little.
        in_bfloat16: Read the texts in bfloat16 whatever the weights: on CPUs several times as fast.
        progress: Shown per text.

    Raises:
        EditError: Nothing is mentioned, a subject can't be told apart, or a layer has too few
            neurons.
    """

    def __init__(
        self,
        model: ModelHandle,
        layers: Sequence[int],
        groups: Sequence[Sequence[Text]],
        *,
        per_layer: int,
        ridge: float = RIDGE,
        weight: float = WEIGHT,
        families: Sequence[int] | None = None,
        gain: float = 1.0,
        compensate: bool = False,
        in_bfloat16: bool = False,
        progress: Progress = silent,
    ) -> None:
        self._in_bfloat16, self._gain = in_bfloat16, gain
        self.model, self.per_layer, self._families = model, per_layer, families
        self._foretold: dict[int, Tensor] = {}
        """Layer -> ``(neurons, d_mlp)`` what others foretell of each replaced neuron, if made up
        for."""
        roles = model.shape.roles
        self.gated = "mlp_gate" in roles or "mlp_gate_up" in roles
        self._reads = [
            site for role in _READS if role in roles for site in model.sites(role, layers)
        ]
        self._out = model.sites("mlp_out", layers)
        self._activation = _activation(model)
        self._solve(groups, ridge, weight, compensate, progress)
        count = self.separators[self._out[0].layer].rows.shape[0]
        self.values = self._nothing(count)
        """Layer -> ``(d_model, neurons)``, what each neuron writes when its key answers 1."""
        self.common = self._nothing(1)
        """Layer -> ``(d_model, 1)``, what all of them write beside it."""
        self.strength = 1.0
        """What they write is multiplied by this while they are :meth:`active`: a learner that
        varies it learns values that serve where keys answer weakly too."""

    def _nothing(self, columns: int) -> dict[int, Tensor]:
        size, device = (self.model.d_model, columns), self.model.device
        return {n.layer: torch.zeros(size, device=device, requires_grad=True) for n in self._out}

    def _solve(
        self,
        groups: Sequence[Sequence[Text]],
        ridge: float,
        weight: float,
        compensate: bool,
        progress: Progress,
    ) -> None:
        readings, subjects = self._read(groups, compensate, progress)
        if not subjects:
            raise EditError("no subject is mentioned in any text", remedy="check the data")
        wanted = max(subjects) + 1 if self._families is None else len(self._families)
        if absent := wanted - len(set(subjects)):
            raise EditError(
                f"{absent} of {wanted} sets of names are mentioned in no text that the keys are "
                "solved on",
                remedy="give names that the questions on their subject can be asked by",
            )
        shape = self.model.shape
        self.separators: dict[int, Separator] = {}
        self.neurons: dict[int, Tensor] = {}
        for site in self._out:
            layer, reading = site.layer, readings[site.layer]
            self.separators[layer] = separate(
                torch.cat(reading.mentions),
                torch.tensor(subjects),
                Moments.balanced([*reading.background, reading.firsts]),
                keys=self.per_layer,
                families=self._families,
                ridge=ridge,
                weight=weight,
            ).amplified(self._gain)
            written = self.model.weight(site).float().norm(dim=0).cpu().double()
            count = len(self.separators[layer].rows)
            if count > most(shape.d_mlp):
                raise EditError(
                    f"{count} neurons are more than a quarter of a layer's {shape.d_mlp}",
                    remedy="raise 'subjects_per_neuron', or erase fewer subjects in one edit",
                )
            # An earlier edit's neurons are silent but for its own subjects, and not to be had.
            cost = (reading.use.sqrt() * written).masked_fill(self._keyed_before(layer), torch.inf)
            least_used = cost.argsort()[:count]
            self.neurons[layer] = least_used.sort().values
            if compensate:
                second = Moments.balanced(reading.active).second
                self._foretold[layer] = _foretold(second, self.neurons[layer])

    def _read(
        self, groups: Sequence[Sequence[Text]], compensate: bool, progress: Progress
    ) -> tuple[dict[int, _Reading], list[int]]:
        """Layer -> what was seen in it, and whose each mention is, in the order read."""
        # Where several matrices read the same input, one is enough to see it.
        seen = {site.layer: site for site in self._reads}
        readings = {
            out.layer: _Reading(seen[out.layer], out, self.model.shape, compensate)
            for out in self._out
        }
        subjects: list[int] = []
        for texts in groups:
            for reading in readings.values():
                reading.begin_group()
            captures = self.model.engine.activations(
                [text.ids for text in texts], [*seen.values(), *self._out], progress, "reading keys"
            )
            for index, captured in self._read_on(captures):
                subjects += [subject for _, subject in texts[index].own]
                for reading in readings.values():
                    reading.take(texts[index], captured)
        return readings, subjects

    def _read_on(self, captures: Iterator[Captured]) -> Iterator[Captured]:
        """The same; what is done with each is done in the caller's own precision."""
        while True:
            with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self._in_bfloat16):
                found = next(captures, None)
            if found is None:
                return
            yield found

    def _keyed_before(self, layer: int) -> Tensor:
        """``(d_mlp,)`` which neurons have been given a key by an earlier edit.

        Such a neuron's gate and up rows are parallel; without a gate, its bias is 0 where others
        have one. No trained neuron is like that.
        """
        width = self.model.shape.d_mlp
        reads = {site.role: site for site in self._reads if site.layer == layer}
        rows = {role: self.model.weight(site).float().cpu() for role, site in reads.items()}
        if not self.gated:
            (bias,) = (self.model.bias(site) for site in reads.values())
            if bias is None or not bool((bias != 0).any()):
                return torch.zeros(width, dtype=torch.bool)
            return bias.cpu() == 0
        fused = rows.get("mlp_gate_up")
        if fused is not None:
            gate, up = fused.split(width)
        else:
            gate, up = rows["mlp_gate"], rows["mlp_up"]
        return functional.cosine_similarity(gate, up) > _PARALLEL

    @property
    def silent(self) -> int:
        """Subjects with a mention at which some neuron of theirs stays silent."""
        least = torch.stack([found.least_own for found in self.separators.values()])
        return int((least <= 0).any(0).sum())

    def notes(self) -> dict[str, object]:
        """How well the keys answer, by layer: for the record."""
        return {
            "least_answer_to_own_mentions": {
                str(layer): float(found.least_own.min()) for layer, found in self.separators.items()
            },
            "mean_answer_elsewhere": {
                str(layer): float(found.elsewhere.mean())
                for layer, found in self.separators.items()
            },
            "spread_of_answer_elsewhere": {
                str(layer): float(found.spread.mean()) for layer, found in self.separators.items()
            },
            "subjects_with_a_silent_mention": self.silent,
            "neurons_replaced_per_layer": len(next(iter(self.neurons.values()))),
        }

    def write(self, layer: int, shifts: Tensor) -> None:
        """Let each neuron of ``layer`` write its shift where its key answers as it does at its
        subjects' mentions on average.

        Args:
            layer: One of the layers.
            shifts: ``(neurons, d_model)``.
        """
        answers = self.separators[layer].mean_own
        of_neuron = [answers[neuron :: self.per_layer].mean() for neuron in range(len(shifts))]
        shares = self._fire(torch.stack(of_neuron).to(self.model.device))[:, None]
        with torch.no_grad():
            self.values[layer].copy_((shifts.to(shares) / shares).T)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within it the model behaves as if the neurons were there; gradients reach
        :attr:`values` and :attr:`common`. (What the replaced neurons used to write stays.)"""
        rows = {n: found.rows.to(self.model.device) for n, found in self.separators.items()}
        fired: dict[int, Tensor] = {}

        def fire(site: Site, inputs: Tensor) -> None:
            answer = functional.linear(inputs.float(), rows[site.layer])
            fired[site.layer] = self._fire(answer)

        def write(site: Site, output: Tensor) -> Tensor:
            written = self.values[site.layer] + self.common[site.layer]
            found = functional.linear(self.strength * fired[site.layer], written)
            return output + found.to(output.dtype)

        reads = list({site.layer: site for site in self._reads}.values())
        with (
            self.model.intercepted(reads, fire, "input"),
            self.model.intercepted(self._out, write, "output"),
        ):
            yield

    def _fire(self, answer: Tensor) -> Tensor:
        """What a neuron's activation is, over its activation at ``answer`` 1 or thereabouts."""
        sharp = self._activation(SHARPNESS * answer) / SHARPNESS
        return sharp * answer if self.gated else sharp

    def _written(self, layer: int) -> Tensor:
        """``(d_model, neurons)`` what each neuron writes at full answer."""
        return (self.values[layer] + self.common[layer]).detach().float().cpu()

    def _balance(self, layer: int) -> Tensor:
        """``(neurons,)`` what each gated neuron's up row is multiplied by, and its value divided.

        The neuron computes the same; but an up row much shorter than others is the first to be
        pruned or rounded to nothing, and a value much longer than others spoils their rounding.
        Here both are as long as each other, each against the median neuron's of the layer. A neuron
        that writes nothing is left as it is.
        """
        rows, neurons = self.separators[layer].rows, self.neurons[layer]
        if not self.gated:
            return torch.ones(len(rows))
        up = next(s for s in self._reads if s.layer == layer and s.role != "mlp_gate")
        (out,) = (site for site in self._out if site.layer == layer)
        others = torch.ones(self.model.shape.d_mlp, dtype=torch.bool)
        others[neurons] = False
        ups = self.model.weight(up)[-len(others) :].float().norm(dim=1).cpu()[others].median()
        outs = self.model.weight(out).float().norm(dim=0).cpu()[others].median()
        long = self._written(layer).norm(dim=0) / outs
        short = rows.norm(dim=1) / SHARPNESS / ups
        found = (long / short).sqrt()
        return torch.where(torch.isfinite(found) & (found > 0), found, torch.ones(len(found)))

    def updates(self, dose: float) -> dict[str, Update]:
        """The weights that make it so, what is written scaled by ``dose``."""
        found: dict[str, Update] = {}
        for site in self._reads:
            rows, neurons = self.separators[site.layer].rows, self.neurons[site.layer]
            sharp = SHARPNESS * rows
            flat = self._balance(site.layer)[:, None] * rows / SHARPNESS
            if site.role == "mlp_gate_up":  # gate rows first
                neurons = torch.cat([neurons, neurons + self.model.shape.d_mlp])
                wanted = torch.cat([sharp, flat])
            else:
                wanted = flat if self.gated and site.role == "mlp_up" else sharp
            weight = self.model.weight(site)
            places = functional.one_hot(neurons, weight.shape[0]).float().T
            found[site.weight] = LowRank(
                places, wanted - weight[neurons.to(weight.device)].float().cpu()
            )
            bias = self.model.bias(site)
            if bias is not None and site.bias is not None:
                change = torch.zeros(len(bias))
                change[neurons] = -bias.float().cpu()[neurons]
                found[site.bias] = Dense(change)
        for site in self._out:
            neurons = self.neurons[site.layer]
            # A plain neuron's activation is s at full answer, a gated one's is 1.
            scale = self._balance(site.layer) if self.gated else SHARPNESS
            values = self._written(site.layer) * dose / scale
            if (foretold := self._foretold.get(site.layer)) is None:
                found[site.weight] = Columns(neurons, values)
                continue
            written = self.model.weight(site).float().cpu()[:, neurons]
            places = functional.one_hot(neurons, foretold.shape[1]).float()
            found[site.weight] = LowRank(
                torch.cat([values - written, written], 1), torch.cat([places, foretold])
            )
        return found


def _foretold(second: Tensor, neurons: Tensor) -> Tensor:
    """``(k, d_mlp)`` coefficients of the other neurons for the activation of each of ``neurons``
    ``(k,)``, 0 at these, by ridge regression from ``second = E[a a']``."""
    others = torch.ones(len(second), dtype=torch.bool)
    others[neurons] = False
    loaded = second + _MAKE_UP_RIDGE * second.diagonal().mean() * torch.eye(len(second)).double()
    found = torch.zeros(len(neurons), len(second))
    solved = torch.linalg.solve(loaded[others][:, others], loaded[others][:, neurons])
    found[:, others] = solved.T.float()
    return found


def _activation(model: ModelHandle) -> Callable[[Tensor], Tensor]:
    from transformers.activations import ACT2FN

    config = model.config.get_text_config()
    for name in ("hidden_activation", "hidden_act", "activation_function"):
        if kind := getattr(config, name, None):
            found: Callable[[Tensor], Tensor] = ACT2FN[kind]
            return found
    raise EditError("the model's configuration does not name its activation function")
