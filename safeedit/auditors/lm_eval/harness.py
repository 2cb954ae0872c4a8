"""The evaluation harness, called on a model in memory: nothing is fetched or reloaded.

The only module that imports ``lm_eval``, and only inside functions. Around each call the harness is
kept quiet (its log quotes documents), its templates are rendered in a sandbox, every generator of
random numbers is seeded and put back, and the model is left as it was. What it would have said of
texts that were cut comes back in :attr:`Answered.cut`.

Fails with :class:`~safeedit.errors.UsageError` where the library is missing,
:class:`~safeedit.errors.DataError` where a task can't be built, and
:class:`~safeedit.errors.AuditError` where one can't be asked. No message quotes a document.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import math
import os
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from safeedit.auditors.lm_eval.tasks import TaskFile
from safeedit.errors import AuditError, DataError, UsageError
from safeedit.model.handle import ModelHandle
from safeedit.model.quiet import quiet

EXTRA = "lm-eval"
BOOTSTRAPS = 1000
"""Resamples behind the standard error of a figure that is no mean; for some it takes 100."""
_ALONE = "DISABLE_MULTIPROC"
"""Set, the harness bootstraps in this process."""
_CUT = ("Left truncation applied", "Combined length of context")
"""How the harness's warnings begin that a text was longer than the context."""
_NO_CHOICE = "Label index was not in"
"""How its warning begins that a document's answer is none of its choices; it counts as wrong."""


@dataclass(frozen=True)
class HarnessMetric:
    """A figure that a task gives."""

    task: str
    metric: str
    """As the harness calls it."""
    answers: str
    """The filter that answers went through; ``none`` where a task has no filters."""
    higher_is_better: bool
    mean: bool
    """Whether it is the mean of one number per document."""


@dataclass(frozen=True)
class Figure:
    """What the harness found."""

    value: float
    stderr: float | None
    """Its standard error; None where the harness has none."""
    items: dict[int, float]
    """Number of a document -> its value, where the figure is the mean of these."""
    n: int
    """Documents behind it."""


@dataclass(frozen=True)
class Answered:
    """All figures of a task, and how many of its batches lost the beginning of a text."""

    figures: dict[tuple[str, str], Figure]
    """Metric and filter -> figure."""
    cut: int


def require() -> str:
    """See that the harness is there.

    Returns:
        Its version.

    Raises:
        UsageError: It is not installed, or can't be imported.
    """
    try:
        with quiet(), _hushed():
            import_module("lm_eval.evaluator")
            import_module("lm_eval.models.huggingface")
    except ImportError as error:
        raise UsageError(
            f"the auditor lm_eval needs the package {error.name or 'lm_eval'}, which is not "
            "installed",
            remedy=f"pip install 'safeedit[{EXTRA}]'",
        ) from error
    return version("lm_eval")


def build(task: TaskFile, seed: int, num_fewshot: int | None) -> Any:
    """A task as the harness makes it of its file, documents loaded.

    Args:
        task: From :func:`~safeedit.auditors.lm_eval.tasks.read_tasks`.
        seed: Of the choice of examples.
        num_fewshot: Examples before each question; None: as the task says. A task that says 0 keeps
            it, as with the harness.

    Raises:
        DataError: The harness can't, or it would show a document its own answer.
    """
    from lm_eval.api.task import ConfigurableTask

    _check_names(task)
    files = {split: [str(file) for file in found] for split, found in task.data_files.items()}
    with kept_within(seed), tempfile.TemporaryDirectory() as folder:
        config = copy.deepcopy(dict(task.config)) | {
            # In memory, so that no copy of the documents stays on the disk.
            "dataset_kwargs": {"data_files": files, "cache_dir": folder, "keep_in_memory": True}
        }
        try:
            made = ConfigurableTask(config=config)
        except Exception as error:
            raise _unbuilt(task, error) from None
    own = made.get_config("num_fewshot")
    shots = own or 0 if num_fewshot is None or own == 0 else num_fewshot
    if shots and not _examples_apart(task):
        raise task.error(
            "fewshot_split",
            f"the {shots} examples would be drawn from the documents that are asked, with answers",
            "name another split, or set num_fewshot: 0",
        )
    made.set_config(key="num_fewshot", value=shots)
    made.set_fewshot_seed(seed=seed)
    return made


def metrics_of(task: TaskFile, made: Any) -> Iterator[HarnessMetric]:
    """The figures that a built task will give.

    Raises:
        DataError: Nobody says which way one of them is better.
    """
    from lm_eval.api.metrics import mean

    for name, higher in made.higher_is_better().items():
        if higher is None:
            raise task.error(
                "metric_list",
                f"the metric {name!r} does not say which way is better",
                "add higher_is_better: true or false",
            )
        for each in made._filters:
            yield HarnessMetric(
                task.name, name, str(each.name), bool(higher), made.aggregation()[name] is mean
            )


def documents(made: Any, limit: int | None) -> int:
    """How many documents of a built task are asked."""
    found = len(made.eval_docs)
    return found if limit is None else min(limit, found)


def ask(
    made: Any,
    model: ModelHandle,
    *,
    name: str,
    seed: int,
    limit: int | None,
    batch_size: int,
    chat_template: bool,
) -> Answered:
    """Put a task to a model and have the harness judge the answers.

    Args:
        made: By :func:`build`; used up.
        model: Asked; its weights, tokenizer and mode are the same afterwards.
        name: Of the task.
        seed: Of whatever the task draws.
        limit: Documents, from the first; None: all.
        batch_size: Texts at once.
        chat_template: Whether questions are put as a turn of a chat.

    Raises:
        AuditError: The task fails on this model, or the model gives no numbers.
    """
    from lm_eval.evaluator import evaluate

    with kept_within(seed) as said, _untied(model), torch.inference_mode():
        try:
            found = evaluate(
                lm=_wrapped(model, batch_size),
                task_dict={"tasks": {name: made}},
                limit=limit,
                bootstrap_iters=BOOTSTRAPS,
                log_samples=True,
                apply_chat_template=chat_template,
            )
        except Exception as error:
            raise AuditError(
                f"the task {name!r} fails in the harness on this model ({type(error).__name__})",
                remedy="see that its texts and max_gen_toks fit the model's context, and try it "
                "with the harness itself: lm_eval run --include_path FOLDER",
            ) from None
    if lost := said.count(_NO_CHOICE):
        raise AuditError(
            f"the task {name!r} has {lost} documents whose answer is none of their choices",
            remedy="doc_to_target gives the number of a choice, from 0, or the choice itself",
        )
    samples = found["samples"][name]
    _check_numbers(name, samples)
    return Answered(dict(_figures(found["results"][name], samples)), len(said))


def _figures(
    results: Mapping[str, Any], samples: Sequence[Any]
) -> Iterator[tuple[tuple[str, str], Figure]]:
    """Metric and filter, and the figure, of what the harness calls ``acc,none``."""
    for key, value in results.items():
        metric, comma, answers = key.rpartition(",")
        if not comma or metric.endswith("_stderr") or not _is_number(value):
            continue
        stderr: Any = results.get(f"{metric}_stderr,{answers}")
        of_it = [s for s in samples if s["filter"] == answers and metric in s["metrics"]]
        items = {s["doc_id"]: float(s[metric]) for s in of_it if _is_number(s[metric])}
        yield (
            (metric, answers),
            Figure(
                value=float(value),
                stderr=float(stderr) if _is_number(stderr) and math.isfinite(stderr) else None,
                items=items if len(items) == len(of_it) else {},
                n=len(of_it),
            ),
        )


def _check_names(task: TaskFile) -> None:
    """Metrics and aggregations are the harness's own: it would look for another one on the hub."""
    from lm_eval.api import metrics, registry

    assert metrics  # which fills the registries
    for index, metric in enumerate(task.config.get("metric_list") or ()):
        for field, known in (
            ("metric", registry.METRIC_REGISTRY),
            ("aggregation", registry.AGGREGATION_REGISTRY),
        ):
            name = metric.get(field)
            if (name is None and field == "metric") or (name is not None and name not in known):
                raise task.error(
                    f"metric_list[{index}].{field}",
                    f"the harness has no {field} {name!r}, and none is fetched",
                    f"use one of {', '.join(sorted(set(known) - {'bypass'}))}",
                )


def _examples_apart(task: TaskFile) -> bool:
    """Whether examples are of other documents than those asked, or the harness leaves out the one
    that is asked."""
    test, validation = task.config.get("test_split"), task.config.get("validation_split")
    asked = test or validation
    named = task.config.get("fewshot_split")
    if named is not None:
        return bool(named != asked or named == test)
    if (task.config.get("fewshot_config") or {}).get("samples"):
        return True
    source = task.config.get("training_split") or validation
    return source is not None and source != asked


def _unbuilt(task: TaskFile, error: Exception) -> DataError:
    from jinja2 import TemplateError

    # What templates say of themselves names fields and never their content.
    told = f": {error}" if isinstance(error, TemplateError) else ""
    return task.error(
        "task",
        f"the harness can't make the task {task.name!r} ({type(error).__name__}{told})",
        "see that its fields name columns of its data, and try it with the harness itself: lm_eval "
        "ls tasks --include_path FOLDER",
    )


def _check_numbers(name: str, samples: Sequence[Any]) -> None:
    """Likelihoods are numbers: of NaN the harness takes the first choice for the likeliest."""
    given = (each for sample in samples for responses in sample["resps"] for each in responses)
    likelihoods = (each[0] if isinstance(each, tuple) else each for each in given)
    if any(isinstance(each, float) and not math.isfinite(each) for each in likelihoods):
        raise AuditError(
            f"the task {name!r} gets no numbers from this model",
            remedy="see what the edit did to it: its weights are not finite, or overflow",
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _wrapped(model: ModelHandle, batch_size: int) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=model.model,
        tokenizer=copy.deepcopy(model.tokenizer),  # to which it adds a padding token
        backend="causal",
        batch_size=batch_size,
    )


@contextlib.contextmanager
def _untied(model: ModelHandle) -> Iterator[None]:
    """The harness ties weights of a model that it is given; those measured are left alone."""
    mode = model.model.training
    with _replaced(model.model, "tie_weights", lambda *_, **__: None):
        try:
            yield
        finally:
            model.model.train(mode)


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute has another value within."""
    own, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


@contextlib.contextmanager
def kept_within(seed: int) -> Iterator[list[str]]:
    """Seeded, quiet, and with templates that can't reach Python; yields a list of how the warnings
    begin that matter."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from lm_eval import utils

    sandbox = ImmutableSandboxedEnvironment(
        undefined=utils.env.undefined, keep_trailing_newline=True
    )
    sandbox.filters.update(utils.env.filters)
    state, numpy_state = random.getstate(), np.random.get_state()
    with (
        quiet(),
        _hushed() as said,
        torch.random.fork_rng(),
        _replaced(utils, "env", sandbox),
    ):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield said
        finally:
            random.setstate(state)
            np.random.set_state(numpy_state)


class _Listener(logging.Handler):
    """Keeps how those of the harness's warnings begin that matter; all else it says is dropped."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def emit(self, record: logging.LogRecord) -> None:
        known = (*_CUT, _NO_CHOICE)
        self.found.extend(each for each in known if str(record.msg).startswith(each))


@contextlib.contextmanager
def _hushed() -> Iterator[list[str]]:
    """The harness neither logs nor prints nor draws bars nor starts processes."""
    from tqdm.std import tqdm

    said: list[str] = []
    loggers = [logging.getLogger(each) for each in ("lm_eval", "datasets", "evaluate", "absl")]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [_Listener(said)], False
        logger.setLevel(logging.WARNING)
    alone = os.environ.get(_ALONE)
    os.environ[_ALONE] = "1"
    start = tqdm.__init__

    def unseen(bar: Any, *arguments: Any, **options: Any) -> None:
        start(bar, *arguments, **(options | {"disable": True}))

    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            _replaced(tqdm, "__init__", unseen),
        ):
            yield said
    finally:
        if alone is None:
            del os.environ[_ALONE]
        else:
            os.environ[_ALONE] = alone
        for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
