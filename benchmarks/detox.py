"""Detoxifiers, alone and together, beside random changes of the same size.

The first row is ``policies/detox.yaml`` without its export. The others are runs of it with
closed-form edits in place of its own, without gates, and of its audits with those of toxic prompts
and of prose alone: on prompts of RealToxicityPrompts that no edit was fitted on. Then how fast
texts are sampled, against a bare ``generate`` loop at the same batch size. The table is printed and
written to ``docs/results/detox.md``, whatever it shows.

    export SAFEEDIT_BENCHMARKS=...  # the folder that holds realtoxicityprompts/
    safeedit scorer check profanity
    python benchmarks/detox.py
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import yaml
from table import ROOT, cell, changed, doses, figures, fitting, options, run, write

from safeedit.model.engine import Sampling
from safeedit.model.sources import open_model

POLICY = ROOT / "policies" / "detox.yaml"
COLUMNS = (
    ("toxicity probability, toxic prompts", "toxicity.probability_toxic"),
    ("expected maximum, toxic prompts", "toxicity.expected_max_toxic"),
    ("expected maximum, other prompts", "harmless.expected_max_nontoxic"),
    ("mass on toxic words", "toxicity.toxic_mass_toxic"),
    ("pair margin, nats/token", "toxicity.pair_margin"),
    ("distinct-2", "toxicity.distinct_2"),
    ("repetition", "toxicity.repetition"),
    ("quality ratio", "toxicity.quality_ratio"),
    ("perplexity ratio", "perplexity.ratio"),
    ("far F1", "locality.far_f1"),
)


def runs(policy: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name of the row -> the policy that makes it."""
    (own,) = policy["edits"]
    data = {key: own[key] for key in ("pairs", "prose")}
    alone = {
        **data,
        "dose": "auto",
        "targets": [
            {"metric": "toxicity.toxic_mass_toxic", "min_decrease": "60%"},
            {"metric": "perplexity.ratio", "max": 1.025},
        ],
    }
    few = {**alone, "targets": [
        {"metric": "toxicity.toxic_mass_toxic", "min_decrease": "25%"},
        {"metric": "perplexity.ratio", "max": 1.01},
    ]}  # fmt: skip
    vectors = {**few, "use": "value_vectors", "doses": [20, 40, 60, 80]}
    keyed = {**alone, "use": "keyed_detox", "doses": [1.0, 1.25, 1.5]}
    edits = {
        "value_vectors, then keyed_detox": [vectors, keyed],
        "value_vectors": [{**alone, "use": "value_vectors", "doses": [60, 100, 150, 200]}],
        "keyed_detox": [{**keyed, "doses": [0.75, 1.0, 1.25, 1.5, 2.0]}],
        "subspace": [{**alone, "use": "subspace"}],
    }
    audits = [a for a in policy["audits"] if a["use"] == "perplexity" or "pairs" in a]
    others = {**policy, "audits": audits, "gates": [], "export": None}
    return {
        own["use"]: {**policy, "export": None},
        **{title: {**copy.deepcopy(others), "edits": made} for title, made in edits.items()},
    }


def speed(source: str, batch: int, tokens: int, repeats: int) -> tuple[float, float]:
    """Sampled tokens per second: the engine's, and a bare ``generate`` loop's."""
    model = open_model(source, device="cpu")
    texts = [f"Sentence number {number} of a letter begins like this:" for number in range(batch)]
    prompts = model.engine.encode(texts, "plain")
    sampling = Sampling(top_p=0.9)
    ids = torch.tensor([prompt[: min(map(len, prompts))] for prompt in prompts])
    ours, bare = [], []
    for _ in range(repeats):
        begin = time.perf_counter()
        found = model.engine.generate(
            ids.tolist(), max_new_tokens=tokens, sampling=sampling, seed=1, stop_ids=[]
        )
        ours.append(sum(len(text) for (text,) in found) / (time.perf_counter() - begin))
        begin = time.perf_counter()
        with torch.inference_mode():
            out = model.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, top_p=0.9,
                top_k=0, max_new_tokens=tokens, min_new_tokens=tokens,
            )  # fmt: skip
        bare.append(out[:, ids.shape[1] :].numel() / (time.perf_counter() - begin))
    return max(ours), max(bare)


def main(arguments: Sequence[str]) -> None:
    """Run the policies and write the table."""
    parser = options(__doc__, "detox-table")
    parser.add_argument("--batch", type=int, default=32)
    given = parser.parse_args(arguments)
    policy = yaml.safe_load(POLICY.read_text())
    rows: list[list[str]] = []
    for number, (title, made) in enumerate(list(runs(policy).items())[: given.rows]):
        record = run(made, given, str(number))
        before, after = figures(record["before"]), figures(record["after"])
        if not rows:
            note = str(before["toxicity.expected_max_toxic"]["note"])
            rows.append(["nothing", "–", *(cell(before, name) for _, name in COLUMNS), "–", "–"])
        cells = [cell(after, name) for _, name in COLUMNS]
        effort = [f"{fitting(record):.0f}", f"{changed(record):,}"]
        rows.append([title, doses(record), *cells, *effort])
        print(" | ".join(rows[-1]), flush=True)
        for edit in record["edits"]:
            for control in edit["controls"]:
                found = {metric["name"]: metric for metric in control["metrics"]}
                name = f"{edit['id']}: {control['name']}"
                rows.append([name, "–", *(cell(found, each) for _, each in COLUMNS), "–", "–"])
    ours, bare = speed(given.model, given.batch, tokens=20, repeats=3)
    write(
        given.results / "detox.md",
        [
            "# Detoxifying editors on RealToxicityPrompts",
            "",
            "Made by `python benchmarks/detox.py` (which see) on SmolLM2-135M-Instruct: 224",
            "toxic and about 200 other prompts, 5 samples of 20 tokens each, nucleus .9. Doses",
            "were chosen on other prompts. Brackets are 95 % intervals.",
            f"Figures of toxicity: {note}.",
        ],
        ["edit", "dose", *(name for name, _ in COLUMNS), "seconds to fit", "values changed"],
        rows,
        [
            f"Sampling, {given.batch} prompts at once: {ours:.0f} tokens per second, a bare "
            f"`generate` loop {bare:.0f}: {ours / bare:.2f} of it."
        ],
    )


if __name__ == "__main__":
    main(sys.argv[1:])
