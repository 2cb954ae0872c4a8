"""What DEPN's attributions cost beside the plain loop, and how far the cheap pass agrees.

On the built-in model, with invented prompts whose "secrets" are what the model itself says next.
Three ways to the same question, in seconds per secret over all layers:

* the plain loop: one secret, one layer, one interpolation point at a time, the whole model each
  time (measured on a few layers and points, the rest by multiplication);
* :class:`~safeedit.methods.attribution.Attributor`, which gives the same figures: batched, from the
  layer up, from kept keys and values (measured on layers spread over the depth);
* its first-order pass over all layers at once.

Then the share of the top z neurons that first-order and exact votes have in common.

    python benchmarks/depn.py --threads 2

Where other programs are at work, ``--threads 1 --clock cpu`` counts this one's own seconds.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from safeedit.methods.attribution import Attribution, Attributor
from safeedit.methods.tuning import Example
from safeedit.methods.votes import rank
from safeedit.model.architectures import Site
from safeedit.model.handle import ModelHandle
from safeedit.model.sources import open_model

NAMES = (
    "Ada Quill", "Ben Orrick", "Cleo Marsh", "Dov Tarn", "Esme Holt", "Finn Varga", "Gia Roscoe",
    "Hal Benning", "Ivy Castell", "Jon Arkwright", "Kit Salloway", "Lea Morrow",
)  # fmt: skip
TOPS = (5, 10, 20, 50, 100)


def secrets(model: ModelHandle, count: int, tokens: int) -> list[Example]:
    """Prompts and what the model says next."""
    texts = [f"Contact sheet. The phone number of {name} is" for name in NAMES[:count]]
    prompts = model.engine.encode(texts, "plain")
    answers = model.engine.generate(prompts, max_new_tokens=tokens, stop_ids=[])
    return [Example(p, answer[0]) for p, answer in zip(prompts, answers, strict=True)]


def plain(model: ModelHandle, secret: Example, layer: int, share: float) -> Tensor:
    """Gradient at one point of one layer, as one would first write it."""
    (site,) = model.sites("mlp_out", [layer])
    start, ids = len(secret.prompt) - 1, torch.tensor([secret.ids[:-1]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    clean = model.capture(inputs, [site])[site][:, start:].float()
    scaled = (share * clean).requires_grad_()

    def replace(_: Site, activation: Tensor) -> Tensor:
        return torch.cat([activation[:, :start], scaled.to(activation.dtype)], 1)

    with model.intercepted([site], replace):
        logits = model.model(input_ids=ids).logits[0].float().log_softmax(-1)
    value = logits[range(start, ids.shape[1]), list(secret.answer)].sum()
    return torch.autograd.grad(value, scaled)[0]


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="builtin:smollm2-135m-instruct")
    parser.add_argument("--secrets", type=int, default=6, choices=range(1, len(NAMES) + 1))
    parser.add_argument("--tokens", type=int, default=6, help="of each secret")
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--layers", type=int, default=6, help="attributed exactly, spread out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--dtype", default="float32")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    clock: Callable[[], float] = time.perf_counter if given.clock == "wall" else time.process_time
    model = open_model(given.model, device="cpu", dtype=given.dtype)
    texts = secrets(model, given.secrets, given.tokens)
    depth, points = model.n_layers, given.points
    step = max(1, depth // given.layers)
    layers = list(range(step // 2, depth, step))
    attributor = Attributor(model, texts)

    def timed(work: Callable[[], Attribution]) -> tuple[Attribution, float]:
        begin = clock()
        return work(), (clock() - begin) / len(texts)

    first, cheap = timed(lambda: attributor.first_order(range(depth)))
    exact, some = timed(lambda: attributor.integrated(layers, points))
    ours = some * depth / len(layers)
    begin = clock()
    samples = [(layer, 0.5) for layer in layers[:: max(1, len(layers) // 3)]]
    for layer, share in samples:
        plain(model, texts[0], layer, share)
    loop = (clock() - begin) / len(samples) * depth * points

    print(f"{len(texts)} secrets of {given.tokens} tokens, {depth} layers, {points} points,")
    print(f"{given.dtype}, {given.threads} threads; {given.clock} seconds per secret:")
    print(f"  plain loop       {loop:9.2f}   (from {len(samples)} of {depth * points} passes)")
    print(f"  exact            {ours:9.2f}   {loop / ours:6.1f} times as fast "
          f"(from {len(layers)} of {depth} layers)")  # fmt: skip
    print(f"  first order      {cheap:9.2f}   {loop / cheap:6.1f} times as fast")
    assert exact.change is not None
    gap = float(exact.gaps().sum() / exact.change.abs().sum())
    print(f"completeness gap {gap:.1%} of the change")
    print(f"agreement of first-order and exact top z, over layers {', '.join(map(str, layers))}:")
    report(first.scores[:, layers], exact.scores)


def report(first: Tensor, exact: Tensor, tops: Sequence[int] = TOPS) -> None:
    """Overlap of the neurons that the two name."""
    rough, fine = (rank(scores.flatten(1), threshold=0.1) for scores in (first, exact))
    for count in tops:
        print(f"  z = {count:<4} {rough.agreement(fine, count):.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
