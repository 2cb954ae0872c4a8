"""Auditors: one measured property per file; the file's stem is its name in a policy.

An auditor measures one model on one split and never changes either. It is called once on
the untouched base, where it leaves a *reference* (base answers, what the base knew), and
then on edited weights, which are held against that reference.
"""

SHARED = frozenset({"base"})
"""Modules that every auditor may import."""

SUPPORT = SHARED | {
    "bias.items",
    "leakage.answers",
    "leakage.askings",
    "leakage.plain",
    "leakage.questions",
    "leakage.rates",
    "leakage.secrets",
    "lm_eval.harness",
    "lm_eval.tasks",
    "toxicity.declared",
    "toxicity.prompts",
    "toxicity.words",
}
"""Modules here that are no auditors; the catalog passes them over."""
