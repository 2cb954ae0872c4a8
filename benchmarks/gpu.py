"""What editors and one audit cost on a GPU: seconds and peak memory, beside a bare forward loop.

Random models of 1 and 8 billion parameters in bfloat16, meant for one GPU of 80 GB and under ten
minutes. It has never been run on one by us: what it prints on a CPU, with ``--device cpu`` and a
small size, shows only that it works.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --device cpu --sizes 0.002
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import scale
import torch

STAGES = "load,dama,subspace,depn,keyed_neurons,rome,perplexity"
"""``subspace`` is ProFS."""
BATCHES, BATCH, TOKENS = 8, 8, 256


def forward_loop(folder: Path, device: str) -> str:
    """Nothing but the model of transformers, reading batches one after the other."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to(device).eval()
    rows = torch.randint(2, 1000, (BATCH, TOKENS), device=device)
    with torch.no_grad():
        model(rows)  # kernels are chosen, memory is claimed
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(BATCHES):
            model(rows)
        if device == "cuda":
            torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    rate = BATCHES * BATCH * TOKENS / seconds
    return f"bare forward loop: {seconds:.2f} s for {BATCHES * BATCH * TOKENS:,} tokens, " + (
        f"{rate:,.0f} tokens a second"
    )


def main(arguments: Sequence[str]) -> None:
    """The loop, then the stages, of every size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", default="1,8")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--vocabulary", default="128256")
    parser.add_argument("--stages", default=STAGES)
    parser.add_argument("--tokenizer", help="folder of another tokenizer than SmolLM2's")
    parser.add_argument("--in-process", action="store_true", help="no process for each stage")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        print("there is no GPU here; --device cpu --sizes 0.002 tries the script")
        return
    own = ["--tokenizer", given.tokenizer] if given.tokenizer else []
    shared = [*own, "--device", given.device, "--vocabularies", given.vocabulary]
    for size in given.sizes.split(","):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            scale.make(size, int(given.vocabulary), folder, scale.options().parse_args(shared))
            print(f"{size}B: {forward_loop(folder, given.device)}", flush=True)
        more = ["--in-process"] if given.in_process else []
        scale.main([*shared, *more, "--sizes", size, "--stages", given.stages])


if __name__ == "__main__":
    main(sys.argv[1:])
