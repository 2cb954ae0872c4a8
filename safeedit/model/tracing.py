"""Causal tracing: which MLPs carry what a prompt says of its subject to the word that follows.

The subject's embeddings are drowned in noise, and the margin between two words at the prompt's end
moves from its own value to another. Then, still under the noise, what one layer's MLP writes at one
token is put back to what it writes without noise: the part of the margin that comes back is that
MLP's effect there. Runs of one batch differ in nothing but the layer put back.

Source: Meng et al., NeurIPS 2022 (ROME, arXiv 2202.05262), section 2; with pronouns after
professions, Limisiewicz et al., ICLR 2024 (arXiv 2310.18913), section 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from safeedit.contracts import Progress, silent
from safeedit.model.architectures import Site
from safeedit.model.batching import pad_right
from safeedit.model.handle import ModelHandle
from safeedit.model.keys import Spot


@dataclass(frozen=True, eq=False)
class Traced:
    """Effects of MLPs, means over prompts, in logits.

    Attributes:
        lost: How much nearer to that of the noise the margin is than its own: what there is to
            bring back.
        at_subject: ``(layers,)`` what putting back the MLP at the subject brings back.
        at_end: ``(layers,)`` the same at the prompt's last token.
    """

    lost: float
    at_subject: Tensor
    at_end: Tensor


@torch.no_grad()
def trace_mlps(
    model: ModelHandle,
    spots: Sequence[Spot],
    tokens: Sequence[int],
    *,
    noise: float = 3.0,
    seed: int = 0,
    progress: Progress = silent,
) -> Traced:
    """Effects of all layers' MLPs; 2 passes per layer over all prompts, and two more.

    Args:
        model: As it is.
        spots: A prompt each, and its subject's last token. All tokens up to it, but BOS, are
            drowned.
        tokens: The two words.
        noise: Standard deviation, in that of the embedding's entries (published).
        seed: Of the noise.
        progress: Shown per pass.
    """
    rows = torch.arange(len(spots))
    subject = torch.tensor([spot.position for spot in spots])
    end = torch.tensor([len(spot.ids) - 1 for spot in spots])
    inputs = {
        "input_ids": pad_right([spot.ids for spot in spots]),
        "attention_mask": pad_right([[1] * len(spot.ids) for spot in spots]),
    }
    sites = model.sites("mlp_out")
    clean = model.capture(inputs, sites, "output")

    def margin() -> Tensor:
        logits = model.logits(model.forward(inputs)[rows, end]).double().cpu()
        return logits[:, tokens[0]] - logits[:, tokens[1]]

    own = margin()
    places = torch.arange(inputs["input_ids"].shape[1])
    drowned = (places <= subject[:, None]) & (places >= len(model.engine.codec.bos))
    generator = torch.Generator().manual_seed(seed)
    width = model.embedding.weight.shape[1]
    drawn = torch.randn(*drowned.shape, width, generator=generator)
    drawn *= noise * float(model.embedding.weight.float().std()) * drowned[..., None]

    def drown(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output + drawn.to(output.device, output.dtype)

    hook = model.embedding.register_forward_hook(drown)
    try:
        noisy = margin()
        lost = own - noisy
        sign = lost.sign()
        effects: list[float] = []
        passes = [(site, where) for where in (subject, end) for site in sites]
        for site, where in progress(passes, "putting MLPs back", len(passes)):

            def back(site: Site, activation: Tensor, where: Tensor = where) -> Tensor:
                restored = activation.clone()
                restored[rows, where] = clean[site][rows, where]
                return restored

            with model.intercepted([site], back, "output"):
                effects.append(float((sign * (margin() - noisy)).mean()))
    finally:
        hook.remove()
    at_subject, at_end = torch.tensor(effects).split(len(sites))
    return Traced(float(lost.abs().mean()), at_subject, at_end)
