"""Names that policies once used, and what they are called now.

No old spelling is read; the error for one names the new
(:func:`~safeedit.policy.suggest.did_you_mean`).
"""

from __future__ import annotations

from collections.abc import Container
from types import MappingProxyType

RENAMED: MappingProxyType[str, str] = MappingProxyType(
    {
        "also": "additional_sources",
        "apart_from": "exclude",
        "attacks": "askings",
        "drop": "target_drop_nats",
        "ft_m": "ft",
        "hold": "preserve_weight",
        "leakage.yardstick": "leakage.reference_model",
    }
)
"""Keys of a policy, and names of editors and auditors."""

_FACTS = "floor entropy lens contexts values rank learning_rate divergence decay stop locate"
_KEYED = f"{_FACTS} key ridge preserve_weight prose_window background"
REMOVED: MappingProxyType[str, str] = MappingProxyType(
    {
        "alphaedit": f"{_KEYED} energy",
        "bias.factual_gender": "min_score",
        "bias.probe": "controls min_score folds regularisation",
        "dama": "values preserve kept ridge factual_below learning_rate decay divergence ball "
        "prose_tokens locate doses_are rank",
        "depn": "exact_layers points measure positions threshold paraphrases known_above "
        "generic_weight spare sinks order until generic_texts generic_tokens generic_points "
        "others_texts",
        "ft": "warmup stop_loss bound",
        "keyed_debias": "key factual_below steps background share_openings prose_window",
        "keyed_detox": "lift max_norm background prose_window",
        "keyed_neurons": f"{_FACTS} compensate make_up sharpness ridge background_weight",
        "leakage": "top_p",
        "leakage.exposure": "exact_limit",
        "leakage.membership": "k within",
        "leakage.memorization": "extra_tokens",
        "leakage.pii": "temperature top_p",
        "leakage.reference_model": "max_length",
        "locality": "kl_positions",
        "memit": _KEYED,
        "perplexity": "max_length",
        "remedi": "rank batch own patience avoid keep contexts background preserve_weight hold "
        "prose_window",
        "rome": _KEYED,
        "sanitation": "warmup stop_loss retention alpha modules sharpness ridge "
        "background_weight norm_penalty",
        "subspace": "attention states centre ridge strength outliers prose_tokens",
        "toxicity": "answer_tokens",
        "value_vectors": "vocabulary_weight words regularisation scale prose_tokens top_tokens "
        "noted",
    }
)
"""Editor or auditor -> parameters that it had once: their values are constants now."""

_INSTEAD: MappingProxyType[tuple[str, str], str] = MappingProxyType(
    {
        ("dama", "preserve"): "'method: oblique' spares 'factual' prompts where it is given any",
        ("dama", "values"): "'method' says what is taken out",
        ("depn", "order"): "'preset: published' is the published way",
        ("leakage.exposure", "exact_limit"): "'candidates' says how far larger formats are scored",
        ("leakage.membership", "within"): "a record is compared with those of its type; without "
        "types, with all",
    }
)
"""What does some of what a parameter did."""


def removed(stage: str, name: str) -> str | None:
    """What to do about a parameter that an editor or auditor had once; None where it never had it.

    Args:
        stage: Name of the editor or auditor.
        name: The key in the policy.
    """
    if name not in REMOVED.get(stage, "").split():
        return None
    if name == "locate":
        instead = "; the command 'safeedit trace' finds what each layer carries"
    else:
        instead = f"; {found}" if (found := _INSTEAD.get((stage, name))) else ""
    return f"its value is fixed now: take '{name}' out{instead}"


RENAMED_METRICS: MappingProxyType[str, str] = MappingProxyType(
    {
        "el_n": "extraction_likelihood",
        "extraction_rate_all": "extraction_rate_unconditional",
        "ma": "memorization_accuracy",
        "value": "perplexity",
    }
)
"""Metrics, by their names within an audit."""


def new_name(name: str, known: Container[str]) -> str | None:
    """What an old name is called now, where that is among the ``known`` ones.

    Args:
        name: A key, the name of a stage, or the full name of a metric.
        known: The names that would be understood.
    """
    audit, dot, metric = name.rpartition(".")
    candidates = [RENAMED.get(name)]
    if metric in RENAMED_METRICS:
        candidates.append(f"{audit}{dot}{RENAMED_METRICS[metric]}")
    return next((new for new in candidates if new is not None and new in known), None)
