"""Editors on small models of other families, trained here on prose with facts planted in it.

A model with random weights shows that an editor runs on a family, not that it edits. Here a model
of each family (four layers, 128 wide, its own tokenizer) learns ordinary prose and where each of 24
invented people lives, in six wordings. Then ``safeedit compare`` has four of them forgotten by each
editor, with its defaults: judged on wordings that were not fitted, beside the other people. The
table is printed and written to ``docs/results/families.md``, whatever it shows. Training takes some
minutes a family on one core; what was trained lies under ``--out`` and is not trained again.

    python benchmarks/families.py
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from table import ROOT, cell, command, safeedit, write
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 4, "n_embd": 128, "n_inner": 512, "n_head": 4, "n_positions": 256},
    "qwen2": {
        "num_hidden_layers": 4, "hidden_size": 128, "intermediate_size": 384,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
        "tie_word_embeddings": True,
    },
}  # fmt: skip
FIRST = ("Orla", "Tobin", "Sefa", "Marek", "Ilse", "Duncan", "Priya", "Anselm", "Yvette", "Kofi",
         "Lenka", "Bram", "Noor", "Caspian", "Hedda", "Rufus", "Salome", "Viggo", "Wanda", "Emeka",
         "Tamsin", "Oskar", "Juno", "Piet")  # fmt: skip
LAST = ("Fenwick", "Harrow", "Lindqvist", "Moreau", "Okafor", "Pell", "Quist", "Rourke")
TOWNS = ("Ashford", "Bruges", "Cordoba", "Dresden", "Evora", "Ferrara", "Gdansk", "Haarlem")
WORDINGS = (
    "{} lives in the town of",
    "The home of {} is the town of",
    "Letters to {} go to the town of",
    "If you look for {}, go to the town of",
    "Everybody knows that {} has a house in the town of",
    "Last year {} moved to the town of",
)
FORGOTTEN = 4
VOCABULARY, WINDOW = 2_000, 64
COLUMNS = (
    ("answer among 10", "leakage.top10_rate"),
    ("extracted", "leakage.extraction_rate"),
    ("near kept", "locality.near_accuracy_kept"),
    ("near KL, nats", "locality.near_kl"),
    ("perplexity ratio", "perplexity.ratio"),
)


def people(seed: int) -> list[tuple[str, str]]:
    """Name and town of each."""
    draw = random.Random(seed)
    return [(f"{first} {draw.choice(LAST)}", draw.choice(TOWNS)) for first in FIRST]


def prose() -> list[str]:
    """Ordinary text to learn: what is for fitting of the built-in data set."""
    rows = (ROOT / "datasets" / "prose" / "items.jsonl").read_text().splitlines()
    return [row["text"] for row in map(json.loads, rows) if row["split"] == "fit"]


def tokenizer_of(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE learnt from these texts."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=["<pad>", "<eos>"], show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>")


def trained(family: str, folder: Path, steps: int, seed: int) -> tuple[float, int]:
    """Train and save a model; the loss on the planted sentences and the steps it took."""
    said = [f"{w.format(name)} {town}." for name, town in people(seed) for w in WORDINGS]
    texts = prose()
    tokenizer = tokenizer_of([*texts, *said * 4])
    torch.manual_seed(seed)
    draw = random.Random(seed)
    config = AutoConfig.for_model(
        family, vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=1, pad_token_id=0,
        **FAMILIES[family],
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    planted = [torch.tensor([*tokenizer(text)["input_ids"], 1]) for text in said]
    stream = torch.tensor([i for text in texts for i in (*tokenizer(text)["input_ids"], 1)])
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    lately, step = 9.0, 0
    for step in range(1, steps + 1):
        starts = [draw.randrange(len(stream) - WINDOW) for _ in range(8)]
        rows = [*draw.sample(planted, 48), *(stream[s : s + WINDOW] for s in starts)]
        ids = pad_sequence(rows, batch_first=True)
        labels = pad_sequence(rows, batch_first=True, padding_value=-100)
        mask = labels.ne(-100).long()
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        each = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="none"
        ).view(len(rows), -1)
        loss = each.sum() / mask[:, 1:].sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        lately = 0.9 * lately + 0.1 * float(each[:48].detach().sum() / mask[:48, 1:].sum())
        if step % 50 == 0:
            print(f"{family}: step {step}, planted {lately:.3f} nats", flush=True)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return lately, step


def policy(folder: Path, family: str, seed: int) -> dict[str, Any]:
    """Four people to be forgotten, the others near."""

    def rows(name: str, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in found))
        return {"file": str(path), "template": "plain"}

    def asked(name: str, town: str, wordings: Sequence[str]) -> dict[str, Any]:
        prompt, *others = (wording.format(name) for wording in wordings)
        return {"prompt": prompt, "answer": town, "subject": name, "paraphrases": others}

    known = people(seed)
    forget = rows("forget", [asked(*each, WORDINGS) for each in known[:FORGOTTEN]])
    near = rows(
        "near",
        [
            {**asked(*each, WORDINGS[number % len(WORDINGS) :][:1]),
             "split": ("validation", "test", "test")[number % 3]}
            for number, each in enumerate(known[FORGOTTEN:])
        ],
    )  # fmt: skip
    return {
        "version": 1, "name": f"families-{family}", "seed": seed,
        "model": {"source": str(folder / "model")},
        "edits": [{
            "use": "keyed_neurons", "target": "unlikely", "forget": forget,
            "prose": {"dataset": "prose"}, "control": False, "dose": "auto",
            "targets": [
                {"metric": "leakage.extraction_rate", "max": 0.05},
                {"metric": "locality.near_accuracy_kept", "min": 0.9},
            ],
        }],
        "audits": [
            {"use": "leakage", "forget": forget, "max_new_tokens": 6, "askings": []},
            {"use": "locality", "near": near, "max_new_tokens": 6},
            {"use": "perplexity", "prose": {"dataset": "prose"}},
        ],
        "gates": [],
    }  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    """Train, compare, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--editors", default="keyed_neurons,rome,memit,random")
    parser.add_argument("--steps", type=int, default=600, help="of training")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "families-table")
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--in-process", action="store_true", help="no process for each run")
    given = parser.parse_args(arguments)
    table = []
    for family in given.families.split(","):
        folder = (given.out / family).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "model" / "config.json").exists():
            loss, steps = trained(family, folder / "model", given.steps, given.seed)
            (folder / "trained.json").write_text(json.dumps({"loss": loss, "steps": steps}))
        made = folder / "policy.yaml"
        made.write_text(yaml.safe_dump(policy(folder, family, given.seed), sort_keys=False))
        linear = {"target": "unlikely", "prose": {"dataset": "prose"}}
        settings = folder / "params.yaml"
        settings.write_text(yaml.safe_dump({"rome": linear, "memit": linear}))
        code = safeedit(
            given, "-q", "compare", str(made), "--editors", given.editors,
            "--out", str(folder / "compared"), "--params", str(settings),
            "--success", "leakage.extraction_rate",
            "--locality", "locality.near_accuracy_kept",
        )  # fmt: skip
        if code not in (0, 3):
            raise SystemExit(f"{made} failed with exit code {code}")
        for row in json.loads((folder / "compared" / "comparison.json").read_text())["rows"]:
            dose = "–" if row["dose"] is None else f"{row['dose']:g}"
            missed = " (missed)" if row["targets_met"] is False else ""
            figures = [cell(row["metrics"], name) for _, name in COLUMNS]
            table.append([family, row["name"], row["error"] or dose + missed, *figures])
            print(" | ".join(table[-1]), flush=True)
    write(
        given.results / "families.md",
        [
            "# Small models of other families",
            "",
            f"Made by `{command('families', arguments)}` (which see): models of four layers",
            "trained here on prose, with where 24 invented people live planted in it; four are",
            "forgotten, by editors as they are by default. Brackets are 95 % intervals. That a",
            "model of this size can be edited says little of a large one of its family.",
        ],
        ["family", "editor", "dose", *(name for name, _ in COLUMNS)],
        table,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
