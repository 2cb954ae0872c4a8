"""Time and peak memory of what safeedit does to a model, by the model's size.

Models have the shape of Llama and random weights: they know nothing, and cost what real ones
do. Each size runs in a process of its own, so that peaks are its own. Stages:

    load      open_model on a safetensors folder, NaN check included
    capture   inputs of every MLP output matrix over 2048 tokens
    edit      rank-8 updates of the MLP output matrices in a quarter of the layers, and undo
    audit     log-probabilities of 64 answers (3072 tokens read), 16 answers of 32 tokens
    export    write the checkpoint

    python benchmarks/scale.py --sizes 0.1,0.5,1,3,8 --device auto --dtype bfloat16
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

MIB = 1 << 20
RANK = 8

#: Billions of parameters -> vocabulary, width, MLP width, layers, heads, key-value heads.
SHAPES: dict[str, tuple[int, int, int, int, int, int]] = {
    "0.002": (32_000, 64, 192, 4, 4, 2),  # for a trial
    "0.1": (32_000, 768, 2048, 12, 12, 4),
    "0.5": (32_000, 1280, 3584, 24, 20, 4),
    "1": (128_256, 2048, 8192, 16, 32, 8),  # Llama 3.2 1B
    "3": (128_256, 3072, 8192, 28, 24, 8),  # Llama 3.2 3B
    "8": (128_256, 4096, 14_336, 32, 32, 8),  # Llama 3.1 8B
}


class Peak:
    """Peak resident memory while it is open, by looking a hundred times a second."""

    def __enter__(self) -> Peak:
        self.bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        process = psutil.Process()
        while True:
            self.bytes = max(self.bytes, process.memory_info().rss)
            if self._over.wait(0.01):
                return


def make(size: str, folder: Path, dtype: torch.dtype, device: str) -> None:
    """Write a random model and a tokenizer of single words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    from safeedit.model.quiet import quiet

    vocab, width, mlp, layers, heads, kv_heads = SHAPES[size]
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=size != "8",
        eos_token_id=1,
        bos_token_id=0,
        pad_token_id=1,
    )
    with torch.device(device), quiet():
        AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocab)}, unk_token="w2"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1").save_pretrained(folder)


def measure(size: str, device: str, dtype: str) -> dict[str, Any]:
    """Run the stages; one row for each."""
    from safeedit.delta import LowRank, Origin, WeightDelta
    from safeedit.export.checkpoint import write_checkpoint
    from safeedit.model.handle import ModelHandle
    from safeedit.model.sources import open_model

    cuda = torch.cuda.is_available() and device != "cpu"
    rows: dict[str, Any] = {}

    def stage(name: str, work: Callable[[], Any]) -> Any:
        with Peak() as peak:
            start = time.perf_counter()
            result = work()
            if cuda:
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
        on_device = torch.cuda.max_memory_allocated() if cuda else 0
        rows[name] = {"seconds": seconds, "host": peak.bytes / MIB, "device": on_device / MIB}
        return result

    generator = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "made"
        make(size, made, getattr(torch, dtype), "cuda" if cuda else "cpu")
        if cuda:
            torch.cuda.empty_cache()
        handle: ModelHandle = stage("load", lambda: open_model(str(made), device=device))

        tokens = torch.randint(2, 30_000, (8, 256), generator=generator)
        inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        stage("capture", lambda: handle.capture(inputs, handle.sites("mlp_out")))

        quarter = range(handle.n_layers // 2, handle.n_layers // 2 + handle.n_layers // 4)
        d_model, d_mlp = handle.d_model, handle.shape.d_mlp
        updates = {
            site.weight: LowRank(
                1e-3 * torch.randn(d_model, RANK, generator=generator),
                torch.randn(RANK, d_mlp, generator=generator),
            )
            for site in handle.sites("mlp_out", quarter)
        }
        origin = Origin("benchmark", {}, "", "", 0, None)
        delta = WeightDelta(handle.digest(), updates, origin)
        stage("edit", lambda: handle.apply(delta).restore())

        def audit() -> None:
            prompts = torch.randint(2, 30_000, (64, 40), generator=generator).tolist()
            answers = torch.randint(2, 30_000, (64, 9), generator=generator).tolist()
            handle.engine.score(prompts, answers, ranks=True)
            handle.engine.generate(prompts[:16], max_new_tokens=32, stop_ids=[])

        stage("audit", audit)
        target = Path(scratch) / "export"
        target.mkdir()
        stage("export", lambda: write_checkpoint(handle, target))
        return {
            "parameters": handle.shape.n_parameters,
            "where": f"{handle.device} {str(handle.dtype).removeprefix('torch.')}",
            "stages": rows,
        }


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", default="0.1", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--in-process", action="store_true",
                        help="no process for each size: peaks are then of all so far")  # fmt: skip
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.one:
        print(json.dumps(measure(options.one, options.device, options.dtype)))
        return
    print(f"{'model':28} {'stage':8} {'seconds':>9} {'host MiB':>9} {'device MiB':>11}")
    for size in options.sizes.split(","):
        if size not in SHAPES:
            parser.error(f"no size {size}; there are {', '.join(SHAPES)}")
        if options.in_process:
            found = measure(size, options.device, options.dtype)
        else:
            command = [sys.executable, __file__, "--one", size, "--device", options.device]
            command += ["--dtype", options.dtype, "--threads", str(options.threads)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
        label = f"{found['parameters'] / 1e9:.2f}B {found['where']}"
        for name, row in found["stages"].items():
            print(
                f"{label:28} {name:8} {row['seconds']:9.2f} {row['host']:9.0f} "
                f"{row['device']:11.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
