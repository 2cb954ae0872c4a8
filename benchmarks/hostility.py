"""Fits the scorer ``hostility`` and says what it can tell apart.

A logistic regression on states of the built-in model (:mod:`safeedit.scorers.hostility`): texts of
``datasets/toxicity_hostile`` and, with a fifth of their weight, four fifths of
RealToxicityPrompts' prompts and continuations, toxic where Perspective's toxicity is at least .5,
harmless below .25. Toxic and harmless texts weigh the same, and so do ours of every kind. The
threshold of .5 is set where one in twenty of those harmless texts is called toxic. Printed and
written to ``docs/results/hostility.md``: AUC, misses and false alarms on HateCheck, on our
functional tests and on the last fifth of RealToxicityPrompts, beside the scorer ``profanity`` where
it is installed. ``--write`` replaces the weights that ship.

    export SAFEEDIT_BENCHMARKS=...  # the folder that holds hatecheck/ and realtoxicityprompts/
    python benchmarks/hostility.py
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from table import add_data, command, options, write

from safeedit import catalog
from safeedit.data import Item, load_dataset
from safeedit.errors import ModelError
from safeedit.model.sources import open_model
from safeedit.policy import DataSpec
from safeedit.scorers.hostility import WEIGHTS, features
from safeedit.statistics.two_samples import auc, auc_interval

TOXIC, HARMLESS = 0.5, 0.25
"""Perspective's toxicity from which, and below which, a text is learnt from."""
ORDINARY = 0.2
"""Weight of RealToxicityPrompts against our own texts."""
FALSE_ALARMS = 0.05
STRENGTH = 0.001
"""Inverse of the ridge penalty."""

TOGETHER = 15_000
"""What our own texts weigh together, against that penalty."""

CHOSEN = (
    "Layer, pooling and weights were chosen among 96 settings on states in bfloat16, with the",
    "AUC on HateCheck in sight (.66 to .79): its figure flatters a little. Fitted to ordinary",
    "texts alone, nine settings come to .55 to .59 on HateCheck and up to .89 on",
    "RealToxicityPrompts: it is our own texts that tell hatred, and they are templates of the",
    "same kinds as HateCheck's, though none of its texts. In our functional tests mockery is",
    "missed altogether (14 of 14), other kinds by a third to a half.",
)
"""What a reader of the figures should know of how the settings came about."""

Array = np.ndarray


class Labelled(NamedTuple):
    """Texts, whether each is toxic, and what kind of text it is."""

    texts: list[str]
    toxic: Array
    kinds: list[str]


def ours(name: str) -> Labelled:
    """A labelled set that ships with safeedit."""
    items = [item for split in ("fit", "test")
             for item in load_dataset(DataSpec(dataset=name)).items(split)]  # fmt: skip
    return labelled(items)


def labelled(items: Sequence[Item]) -> Labelled:
    """Rows of a labelled set."""
    return Labelled(
        [item.prompt for item in items],
        np.array([item.extra["label"] == "toxic" for item in items]),
        [str(item.extra.get("kind", "")) for item in items],
    )


def hatecheck(data: Path) -> Labelled:
    """Its functional tests; toxic are those it calls hateful."""
    path = str((data / "hatecheck" / "test_suite_cases.csv").absolute())
    return labelled(
        load_dataset(DataSpec(file=path, format="hatecheck", split="test")).items("test")
    )


def ordinary(data: Path) -> tuple[list[str], Array, Array]:
    """Prompts and continuations of RealToxicityPrompts, Perspective's toxicity of each, and whether
    its row is of the fifth that is kept for testing."""
    (path,) = sorted((data / "realtoxicityprompts").glob("*.jsonl"))
    texts, scores, held = [], [], []
    for number, line in enumerate(path.read_text().splitlines()):
        row = json.loads(line)
        for part in (row["prompt"], row["continuation"]):
            if part["toxicity"] is not None and part["text"].strip():
                texts.append(part["text"])
                scores.append(part["toxicity"])
                held.append(number % 5 == 0)
    return texts, np.array(scores), np.array(held)


def fitted(own: Array, ours: Labelled, usual: Array, toxicity: Array) -> tuple[Array, float]:
    """Weights ``(d_model,)`` and bias on the states themselves.

    Args:
        own: ``(texts, d_model)``, states of our own texts.
        ours: The texts. Toxic ones weigh as much as harmless ones, and so do all kinds of either.
        usual: States of ordinary texts.
        toxicity: Perspective's toxicity of each.
    """
    clear = (toxicity >= TOXIC) | (toxicity < HARMLESS)
    toxic = toxicity[clear] >= TOXIC
    share = np.where(toxic, 0.5 / toxic.mean(), 0.5 / (1 - toxic.mean())) / clear.sum()
    groups = [f"{label} {kind}" for label, kind in zip(ours.toxic, ours.kinds, strict=True)]
    size = Counter(groups)
    kinds = Counter(group.partition(" ")[0] for group in size)
    each = [0.5 / size[group] / kinds[group.partition(" ")[0]] for group in groups]
    weights = np.concatenate([each, ORDINARY * share])
    scaler = StandardScaler().fit(own)
    states = scaler.transform(np.concatenate([own, usual[clear]]))
    model = LogisticRegression(C=STRENGTH, max_iter=1000)
    model.fit(states, np.concatenate([ours.toxic, toxic]), sample_weight=TOGETHER * weights)
    weight = model.coef_[0] / scaler.scale_
    harmless = usual[toxicity < HARMLESS] @ weight
    return weight, -float(np.quantile(harmless, 1 - FALSE_ALARMS))


def row(name: str, about: str, those: Labelled, score: Callable[[list[str]], Array]) -> list[str]:
    """One line of the table."""
    scores = score(those.texts)
    high, low = scores[those.toxic], scores[~those.toxic]
    area = auc(high, low).value
    interval = auc_interval(area, len(high), len(low))
    return [
        name,
        f"{about} ({len(high)} toxic, {len(low)} not)",
        f"{area:.3f} [{interval.low:.3f}, {interval.high:.3f}]",
        f"{np.mean(high < 0.5):.0%}",
        f"{np.mean(low >= 0.5):.1%}",
    ]


def main(arguments: Sequence[str]) -> None:
    """Fit, test, write the table and, where asked to, the weights."""
    parser = options(__doc__, "hostility")
    add_data(parser)
    parser.add_argument("--write", action="store_true", help="replace the weights that ship")
    given = parser.parse_args(arguments)
    handle = open_model(given.model, dtype="float32")

    def read(texts: Sequence[str]) -> Array:
        return features(handle, texts).double().numpy()

    own = ours("toxicity_hostile")
    texts, toxicity, held = ordinary(given.data)
    usual = read(texts)
    weight, bias = fitted(read(own.texts), own, usual[~held], toxicity[~held])
    made = {"weight": torch.tensor(weight).float(), "bias": torch.tensor([bias]).float()}
    if given.write:
        save_file(made, WEIGHTS, metadata={"fitted_by": "benchmarks/hostility.py"})
    elif WEIGHTS.exists() and load_file(WEIGHTS)["weight"].shape == made["weight"].shape:
        shipped = load_file(WEIGHTS)["weight"]
        likeness = torch.cosine_similarity(shipped, made["weight"], 0)
        print(f"weights as shipped: cosine {likeness:.4f}")

    def probability(texts: list[str]) -> Array:
        return 1 / (1 + np.exp(-(read(texts) @ weight + bias)))

    rest = Labelled([text for text, test in zip(texts, held, strict=True) if test],
                    toxicity[held] >= TOXIC, [])  # fmt: skip
    sets = {
        "HateCheck": hatecheck(given.data),
        "our functional tests": ours("toxicity_labelled"),
        "RealToxicityPrompts, a fifth": rest,
    }
    rows = [row("hostility", about, those, probability) for about, those in sets.items()]
    profanity = catalog.scorer("profanity")
    try:
        other = profanity(profanity.Params())
        other.score([])
        rows += [row("profanity", about, those, lambda texts: np.array(other.score(texts)))
                 for about, those in sets.items()]  # fmt: skip
    except ModelError as error:
        print(error.message)
    for line in rows:
        print(" | ".join(line))
    write(
        given.results / "hostility.md",
        [
            "# What the scorer hostility can tell apart",
            "",
            f"Made by `{command('hostility', arguments)}` (which see). Fitted to texts of our own",
            "and to four fifths of RealToxicityPrompts; HateCheck had no part in the fit. AUC with",
            "95 % intervals; misses and false alarms at the threshold of .5. Of",
            "RealToxicityPrompts, toxic is what Perspective rates at .5 or more.",
        ],
        ["scorer", "texts", "AUC", "misses", "false alarms"],
        rows,
        CHOSEN,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
