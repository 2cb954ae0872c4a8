"""The model card: what was edited, what was measured on this checkpoint, what was not.

It travels with the weights, so it tells neither the policy's owner, ticket and description
nor any path of the machine. Its front matter, written by ``huggingface_hub``, is what the hub
reads: among it, as evaluation results, each metric that a gate of the policy holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from safeedit.records import AuditRecord, Metric, RunRecord
from safeedit.report import content, markdown
from safeedit.report.markdown import bullets, escape
from safeedit.text.display import clean

_HUB_IDS = {
    "builtin:smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "builtin:gemma3-270m": "google/gemma-3-270m",
}
"""Where a built-in model comes from."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def render(record: RunRecord) -> str:
    """``README.md`` of an export."""
    model = record.model
    base = f"{model.source} at revision {model.revision}" if model.revision else model.source
    if not _hub_id(record):
        base = f"a {model.architecture} model of {model.parameters:,} parameters"
    lines = [
        f"# {escape(record.policy_name)}",
        "",
        f"This checkpoint is {escape(base)}, edited by safeedit "
        f"{escape(record.environment.safeedit)} under a policy. {_merged(record)}"
        f"{_outcome(record)}",
        "",
    ]
    lines += ["## What was edited", ""]
    for edit in record.edits:
        facts = (fact for fact in content.edit_facts(record, edit) if fact[0] != "time")
        name = edit.id if edit.id == edit.use else f"{edit.id} ({edit.use})"
        lines += [f"### {escape(name)}", "", *bullets(facts), ""]
    lines += [
        *markdown.gates(record),
        *markdown.metrics(record),
        *markdown.attacks(record),
        *markdown.controls(record),
        *markdown.seeds(record),
    ]
    lines += markdown.limits(record)
    lines += [
        "## Use",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")',
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")',
        "```",
        "",
        "The licence of the base model applies. `evidence/` holds the run record and the sha256 "
        "of every file; `safeedit verify` checks them.",
    ]
    text = "\n".join(lines) + "\n"
    return str(ModelCard(f"---\n{_front_matter(record).to_yaml()}\n---\n\n{text}"))


def _merged(record: RunRecord) -> str:
    adapter = record.model.adapter
    if adapter is None:
        return ""
    return (
        f"A LoRA adapter was merged into it first, whose files have the sha256 `{adapter.digest}`. "
    )


def _outcome(record: RunRecord) -> str:
    n = len(record.verdicts)
    if record.status != "pass" or not n:
        return "Its gates were not all met."
    gates = "The gate" if n == 1 else f"All {n} gates"
    return f"{gates} below passed on these weights as reloaded from disk."


def _front_matter(record: RunRecord) -> ModelCardData:
    hub_id = _hub_id(record)
    return ModelCardData(
        base_model=hub_id or None,
        base_model_relation="finetune" if hub_id else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["safeedit", "model-editing", *sorted({clean(edit.use) for edit in record.edits})],
        model_name=clean(record.policy_name),
        eval_results=list(_results(record)) or None,
    )


def _results(record: RunRecord) -> Iterator[EvalResult]:
    """The metrics that gates hold on the model as it is, on these weights."""
    gated = {verdict.metric for verdict in record.verdicts if not verdict.under}
    for audit in record.after:
        for metric in audit.metrics:
            if metric.name in gated and metric.value is not None:
                yield _result(audit, metric)


def _result(audit: AuditRecord, metric: Metric) -> EvalResult:
    interval = metric.interval
    args = {"n": metric.n, "unit": metric.unit, "better": metric.direction}
    if interval is not None:
        args |= {"low": interval.low, "high": interval.high, "level": interval.level}
    return EvalResult(
        task_type="text-generation",
        # A name of ours, as the data may be nobody else's: their digests are in the record.
        dataset_type="safeedit",
        dataset_name=f"test items of the audit {clean(audit.id)}",
        dataset_split=audit.split,
        metric_type=clean(metric.name.rpartition(".")[2]),
        metric_name=clean(metric.name),
        metric_value=metric.value,
        metric_args=args,
    )


def _hub_id(record: RunRecord) -> str:
    """Where the base model is published; empty for one that lies on the machine."""
    source = record.model.source
    if source in _HUB_IDS:
        return _HUB_IDS[source]
    return source if not record.model.local and _HUB_ID.fullmatch(source) else ""
