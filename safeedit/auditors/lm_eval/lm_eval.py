"""What does the model score on general tasks of your own? By the language model evaluation harness.

For users who have tasks: a local folder of the harness's task files (``*.yaml``) with their
documents beside them. The harness (Gao et al., *The Language Model Evaluation Harness*,
``lm-eval``, an extra: ``pip install 'safeedit[lm-eval]'``) puts them to the model in memory through
its own ``HFLM`` and judges the answers with its own metrics; nothing is reloaded or fetched.
Tasks of the kinds ``multiple_choice``, ``generate_until``, ``loglikelihood`` and
``loglikelihood_rolling`` are measured, each by itself; groups are not.

A metric is called after the task and the harness's metric, ``<task>_<metric>``, with the filter
behind it where a task has filters; signs that a gate can't name become ``_``. Which way is better
is the task's ``higher_is_better``. ``plan`` makes the tasks, so that a gate on a metric which they
do not have is refused before anything runs.

An interval is the value ± 1.96 times the harness's standard error, kept within the bounds of its
unit. Where that error is 0, all documents having come out alike, a share of documents has Wilson's
interval instead, and anything else none. Means over documents pair with the base's by document;
of other figures (F1, BLEU, perplexity) the harness bootstraps the error, with 1,000 resamples, and
the difference to the base is taken as one of two independent figures, which is wider than it need
be. The number of items is that of documents.

A task file that calls Python (``!function``, ``class``), names a data set or a metric of the hub,
or takes its examples from the documents it asks is refused while planning. Every draw (examples,
sampled answers) comes from the run's seed; base and edited model get the same. Texts that are
longer than the model's context lose their beginning, as with the harness, and that is said.

What it does not show: documents are not split, so such a metric can be gated and is no target of
``dose: auto``; and nobody checks that tasks hold nothing of what is to be forgotten. Fails with
:class:`~safeedit.errors.AuditError` where every task fails; of one that fails alone the metrics
have no value, with a warning.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from safeedit.auditors.base import FINGERPRINT, Sheet, check_reference, fingerprint
from safeedit.auditors.lm_eval import harness
from safeedit.auditors.lm_eval.harness import Figure, HarnessMetric
from safeedit.auditors.lm_eval.tasks import TaskFile, digest_of, read_tasks
from safeedit.contracts import AuditOutcome, BaseParams, DataRole, RunContext
from safeedit.data import Dataset
from safeedit.errors import AuditError, DataError
from safeedit.model.handle import ModelHandle
from safeedit.records import AttackClass, Metric, MetricSpec, Split
from safeedit.statistics.intervals import normal_interval
from safeedit.statistics.metrics import rate_interval_of

_UNITS = {
    **dict.fromkeys(("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match"), "rate"),
    **dict.fromkeys(("perplexity", "word_perplexity", "byte_perplexity"), "perplexity"),
    "f1": "f1",
    "bits_per_byte": "bits/byte",
}
"""The harness's metric -> its unit; of the others ``score``."""
_SAID = {
    "acc": "share of its questions of which the right choice is the likeliest",
    "acc_norm": "share of its questions of which the right choice is the likeliest for its length "
    "in characters",
    "acc_bytes": "share of its questions of which the right choice is the likeliest for its length "
    "in bytes",
    "exact_match": "share of its questions that are answered exactly as expected",
    "perplexity": "how surprising the model finds the expected answers",
    "word_perplexity": "how surprising the model finds its texts, for each word",
    "byte_perplexity": "how surprising the model finds its texts, for each byte",
    "bits_per_byte": "how many bits the model needs for a byte of its texts",
    "f1": "F1 of the chosen answers",
}
"""The harness's metric -> what it is, in plain words."""


class TaskParams(BaseParams):
    """Which tasks, and how they are put."""

    folder: str = Field(
        "tasks",
        min_length=1,
        description="With the task files (``*.yaml``), relative to the policy",
    )
    tasks: tuple[str, ...] = Field((), description="Names of tasks; empty: all in the folder")
    limit: int | None = Field(
        None, ge=1, description="Documents of each task, from the first; null: all (lm-eval)"
    )
    num_fewshot: int | None = Field(
        None, ge=0, description="Examples before a question; null: as each task says (lm-eval)"
    )
    batch_size: int = Field(8, ge=1, description="Texts at once (lm-eval)")
    chat_template: bool = Field(
        False, description="Put questions as a turn of a chat; the harness's default is not to"
    )
    digest: str = Field("", description="Of tasks and harness; filled in by the plan")


class LmEval:
    """Asks tasks of the harness."""

    Params: ClassVar[type[BaseParams]] = TaskParams
    summary: ClassVar[str] = "general tasks of your own, by lm-eval, an extra"
    covers: ClassVar[tuple[AttackClass, ...]] = ()
    roles: ClassVar[tuple[DataRole, ...]] = ()
    metrics: ClassVar[tuple[MetricSpec, ...]] = ()

    def __init__(self, params: Any) -> None:
        self.params: TaskParams = params

    @classmethod
    def settle(cls, params: TaskParams, base: Path) -> TaskParams:
        """The folder as seen from here, and a digest of all that decides the figures.

        Raises:
            UsageError: The harness is not installed.
            DataError: A task is not to be had, or is refused.
        """
        version = harness.require()
        folder = base / Path(params.folder).expanduser()
        found = read_tasks(folder, params.tasks)
        return params.model_copy(
            update={"folder": str(folder), "digest": digest_of(found, version)}
        )

    @cached_property
    def own_metrics(self) -> tuple[MetricSpec, ...]:
        """What these tasks give, known without a model.

        Raises:
            DataError: The harness can't make a task; two of their metrics have one name.
        """
        harness.require()
        found: dict[str, MetricSpec] = {}
        for task in self._tasks():
            made = harness.build(task, 0, self.params.num_fewshot)
            for each in harness.metrics_of(task, made):
                spec = _spec(each)
                if spec.name in found:
                    raise DataError(
                        f"two metrics would be called {spec.name!r}",
                        file=task.path,
                        field="task",
                        remedy="give a task or a filter another name",
                    )
                found[spec.name] = spec
        return tuple(found.values())

    def audit(
        self,
        model: ModelHandle,
        data: Mapping[str, Dataset],
        split: Split,
        ctx: RunContext,
        reference: Mapping[str, Tensor] | None,
    ) -> AuditOutcome:
        """Ask every task that is wanted.

        Raises:
            AuditError: Every task fails, the files are not those of the plan, or the split is not
                the test's.
        """
        version = harness.require()
        if split != "test":
            raise AuditError(
                "the documents of tasks are not split: there are none for the choice of doses",
                remedy="list 'targets' of other audits",
            )
        tasks = self._tasks()
        digest = digest_of(tasks, version)
        if self.params.digest not in ("", digest):
            raise AuditError(
                f"tasks in {self.params.folder} have changed since the plan was made",
                remedy="start the run again, and leave the files alone while it runs",
            )
        check_reference(reference, data, split, digest)
        # A model that computes nothing is an error, and not one that chose the first answer.
        model.engine.text_nll(["A text to see that there are numbers."], max_length=32)
        sheet = Sheet(self.own_metrics)
        failed = [
            error
            for task in ctx.progress(tasks, "lm_eval: asking", len(tasks))
            if (error := self._ask(task, model, ctx, sheet)) is not None
        ]
        if len(failed) == len(tasks):
            raise failed[0]
        for error in failed:
            ctx.warn(f"lm_eval: {error.message} ({error.remedy})")
        return AuditOutcome(sheet.metrics(), {FINGERPRINT: fingerprint(data, split, digest)})

    def _tasks(self) -> tuple[TaskFile, ...]:
        return read_tasks(Path(self.params.folder), self.params.tasks)

    def _ask(
        self, task: TaskFile, model: ModelHandle, ctx: RunContext, sheet: Sheet
    ) -> AuditError | None:
        """Enter a task's figures; the error where there are none."""
        made = harness.build(task, ctx.seed, self.params.num_fewshot)
        given = list(harness.metrics_of(task, made))
        names = [_name(each) for each in given]
        if not ctx.wants(*names):
            sheet.absent("not asked for", *names)
            return None
        try:
            found = harness.ask(
                made, model, name=task.name, seed=ctx.seed, limit=self.params.limit,
                batch_size=self.params.batch_size, chat_template=self.params.chat_template,
            )  # fmt: skip
        except AuditError as error:
            sheet.absent(error.message, *names)
            return error
        if found.cut:
            ctx.warn(
                f"lm_eval: texts of the task {task.name!r} are longer than the model's context, "
                "and lost their beginning"
            )
        for each in given:
            figure = found.figures.get((each.metric, each.answers))
            if figure is None or not math.isfinite(figure.value) or not figure.n:
                sheet.absent("the harness gives no figure", _name(each))
            else:
                sheet.put(_metric(each, figure, ctx))
        return None


def _name(metric: HarnessMetric) -> str:
    parts = [metric.task, metric.metric, *([] if metric.answers == "none" else [metric.answers])]
    return re.sub(r"[^A-Za-z0-9_-]", "_", "_".join(parts)).lstrip("_-")


def _spec(metric: HarnessMetric) -> MetricSpec:
    said = _SAID.get(metric.metric, f"its figure {_words(metric.metric)}")
    through = "" if metric.answers == "none" else f" Answers are read by {_words(metric.answers)}."
    return MetricSpec(
        name=_name(metric),
        unit=_UNITS.get(metric.metric, "score"),
        direction="higher" if metric.higher_is_better else "lower",
        description=f"{metric.metric} of the task {metric.task}, by the harness",
        plain=f"General task {_words(metric.task)} of the evaluation harness: {said}.{through}",
    )


def _words(name: str) -> str:
    """A name as words of a sentence."""
    return " ".join(re.split(r"[^A-Za-z0-9+-]+", name)).strip()


def _metric(metric: HarnessMetric, figure: Figure, ctx: RunContext) -> Metric:
    """A figure as safeedit keeps it."""
    spec = _spec(metric)
    items = {
        ctx.digest(f"lm_eval {metric.task} {metric.metric} {metric.answers} {number}"): value
        for number, value in (figure.items if metric.mean else {}).items()
    }
    made = Metric(
        name=spec.name, value=figure.value, interval=None, n=figure.n, unit=spec.unit,
        direction=spec.direction, items=items,
    )  # fmt: skip
    interval = None
    if figure.stderr:
        interval = normal_interval(figure.value, figure.stderr, bounds=spec.bounds)
    elif figure.n > 1 and spec.unit == "rate":
        interval = rate_interval_of(made, 0.95)
    return made.model_copy(update={"interval": interval})
