"""Time and peak memory of what safeedit does to a model, by the model's size and vocabulary.

Models have the shape of Llama, random weights and SmolLM2's tokenizer: they know nothing, and cost
what real ones do. Every stage runs in a process of its own, so that peaks are its own. Stages:

    load         open_model on a safetensors folder, NaN check included
    export       write the checkpoint
    edit NAME    what the editor proposes, at its first dose; fitted as its shipped policy says, or
                 on the shipped facts
    audit NAME   the base, then the same weights held against it

Data is cut to ``--limit`` items a role, so that seconds say little; peaks hardly move with it. An
editor that finds nothing to fit in random weights says so. The last two columns are the peak and
what the stage took beside the loaded model, over the weights.

    python benchmarks/scale.py --sizes 0.1,0.5 --vocabularies 49152,262144 --device auto
    python benchmarks/scale.py --sizes 1 --stages keyed_neurons,locality
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
import yaml
from table import MODEL, ROOT, adapted

MIB = 1 << 20

SHAPES: dict[str, tuple[int, int, int, int, int]] = {
    "0.002": (64, 192, 4, 4, 2),  # for a trial
    "0.1": (768, 2048, 12, 12, 4),
    "0.5": (1280, 3584, 24, 20, 4),
    "1": (2048, 8192, 16, 32, 8),  # Llama 3.2 1B
    "3": (3072, 8192, 28, 24, 8),  # Llama 3.2 3B
    "8": (4096, 14_336, 32, 32, 8),  # Llama 3.1 8B
}
"""Billions of parameters, about -> width, MLP width, layers, heads, key-value heads."""


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


def make(size: str, vocabulary: int, folder: Path, given: argparse.Namespace) -> None:
    """Write a random model, and a tokenizer of fewer words than it has rows if need be."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    from safeedit.model.builtin import fetch_builtin
    from safeedit.model.quiet import quiet

    tokenizer = AutoTokenizer.from_pretrained(given.tokenizer or fetch_builtin())
    width, mlp, layers, heads, kv_heads = SHAPES[size]
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=size != "8",
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    with quiet():
        dtype = getattr(torch, given.dtype)
        AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def policies() -> dict[str, dict[str, Any]]:
    """Editor or auditor -> a policy with that alone."""
    from safeedit import catalog

    shipped = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "policies").glob("*"))]
    found: dict[str, dict[str, Any]] = {}
    for kind, known in (("edits", "editors"), ("audits", "auditors")):
        stages = [each for policy in shipped for each in policy.get(kind) or ()]
        for name in catalog.names(known):
            stage = next((each for each in stages if each["use"] == name), None)
            stage = dict(stage or {"use": name, **_facts(catalog, known, name)})
            if kind == "edits":
                stage.pop("layers", None)  # a policy names those of its own model
                stage |= {"dose": 1.0, "targets": [], "unaudited": "only its memory is looked at"}
            found[name] = {"version": 1, "name": "scale", kind: [stage]}
    return found


def _facts(catalog: Any, known: str, name: str) -> dict[str, Any]:
    """The shipped facts in every role that a stage needs."""
    plugin = catalog.editor(name) if known == "editors" else catalog.auditor(name)
    roles = {True: {"role": "forget"}, False: {"role": "near"}}
    return {role.name: {"dataset": "facts", "where": roles[role.erased]}
            for role in plugin.roles if role.required}  # fmt: skip


def measure(folder: Path, name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Run one stage on the model in a folder."""
    from safeedit.contracts import RunContext
    from safeedit.errors import SafeeditError
    from safeedit.model.sources import open_model

    cuda = torch.cuda.is_available() and given.device != "cpu"
    if name == "load":
        return _timed(lambda: open_model(str(folder), device=given.device), cuda)
    handle = open_model(str(folder), device=given.device)
    loaded = psutil.Process().memory_info().rss / MIB
    with tempfile.TemporaryDirectory() as scratch:
        ctx = RunContext(seed=0, cache=Path(scratch), secret=b"x" * 32)
        try:
            row = _timed(_work(handle, name, ctx, folder, given), cuda)
        except SafeeditError as error:
            return {"failed": error.message.splitlines()[0]}
    return {**row, "loaded": loaded}


def _work(
    handle: Any, name: str, ctx: Any, folder: Path, given: argparse.Namespace
) -> Callable[[], Any]:
    """What a stage does, once everything that is no part of it is done."""
    from dataclasses import replace

    from safeedit import catalog
    from safeedit.export.checkpoint import write_checkpoint
    from safeedit.planning.resolution import make_plan
    from safeedit.policy import load_policy
    from safeedit.scorers.score_cache import scorers

    if name == "export":
        target = ctx.cache / "export"
        target.mkdir()
        return lambda: write_checkpoint(handle, target)
    path = ctx.cache / "policy.yaml"
    made = {**policies()[name], "model": {"source": str(folder)}}
    path.write_text(yaml.safe_dump(adapted(made, given)))
    plan = make_plan(load_policy(path), exporting=False)
    ctx = replace(ctx, scorer=scorers(ctx, catalog.make_scorer))
    if plan.edits:
        (edit,) = plan.edits

        def fit() -> None:
            proposal = edit.editor.propose(handle, edit.data, ctx)
            proposal.at(proposal.doses[0])

        return fit
    (audit,) = plan.audits

    def measured() -> None:
        found = audit.auditor.audit(handle, audit.data, "test", ctx, None)
        audit.auditor.audit(handle, audit.data, "test", ctx, found.reference)

    return measured


def _timed(work: Callable[[], Any], cuda: bool) -> dict[str, Any]:
    with Peak() as peak:
        start = time.perf_counter()
        kept = work()  # a model that was opened is alive while memory is read
        if cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    del kept
    on_device = torch.cuda.max_memory_allocated() if cuda else 0
    return {"seconds": seconds, "host": peak.bytes / MIB, "device": on_device / MIB}


def options() -> argparse.ArgumentParser:
    """What can be asked of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", default="0.1", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--vocabularies", default="49152", help="rows of the embedding")
    parser.add_argument("--stages", default="", help="some of them [all]")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--limit", type=int, default=12, help="items of each role of data")
    parser.add_argument("--tokenizer", help="folder of another tokenizer than SmolLM2's")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--in-process", action="store_true",
                        help="no process for each stage: peaks are then of all so far")  # fmt: skip
    return parser


def main(arguments: Sequence[str]) -> None:
    """Measure every stage of every size."""
    parser = options()
    given = parser.parse_args(arguments)
    given.model = MODEL  # what table.adapted is not to replace
    if given.threads:
        torch.set_num_threads(given.threads)
    if given.one:
        print(json.dumps(measure(Path(given.one[0]), given.one[1], given)))
        return
    stages = given.stages.split(",") if given.stages else ["load", "export", *policies()]
    if unknown := [each for each in given.sizes.split(",") if each not in SHAPES]:
        parser.error(f"no size {unknown[0]}; there are {', '.join(SHAPES)}")
    print(f"{'model':24} {'stage':22} {'seconds':>8} {'peak MiB':>9} {'device MiB':>10} "
          f"{'/weights':>8} {'beside':>7}")  # fmt: skip
    for size in given.sizes.split(","):
        for vocabulary in map(int, given.vocabularies.split(",")):
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch) / "model"
                make(size, vocabulary, folder, given)
                weights = sum(each.stat().st_size for each in folder.glob("*.safetensors")) / MIB
                label = f"{size}B, {vocabulary:,}, {weights:.0f} MiB"
                for name in stages:
                    print(f"{label:24} {name:22} {_row(folder, name, weights, given)}", flush=True)


def _row(folder: Path, name: str, weights: float, given: argparse.Namespace) -> str:
    """A stage's figures, in a process of its own."""
    if given.in_process:
        found = measure(folder, name, given)
    else:
        command = [sys.executable, __file__, "--one", str(folder), name, "--device", given.device]
        command += ["--threads", str(given.threads), "--limit", str(given.limit)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            return f"ended with {done.returncode}"
        found = json.loads(done.stdout.splitlines()[-1])
    if "failed" in found:
        return str(found["failed"])
    peak = max(found["host"], found["device"])
    beside = (found["host"] - found.get("loaded", 0.0)) / weights
    return (f"{found['seconds']:8.2f} {found['host']:9.0f} {found['device']:10.0f} "
            f"{peak / weights:8.2f} {beside:7.2f}")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
