"""Task files of the harness, as data: what they say, where their documents lie, what is refused.

The harness lets a task file import Python, name a data set of the hub, and fetch a metric. A policy
is data and never runs code, and an audit asks no network: each of these is refused here, with the
file and the line. Templates are rendered in a sandbox (:mod:`safeedit.auditors.lm_eval.harness`).

Fails with :class:`~safeedit.errors.DataError`; no message quotes a document.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from safeedit.cache import file_sha256
from safeedit.errors import DataError
from safeedit.policy.files import check_regular, read_regular

LOADERS = ("json", "csv", "parquet", "text")
"""``dataset_path`` of a task: how its files are read. Everything else asks the hub."""
OUTPUT_TYPES = ("multiple_choice", "generate_until", "loglikelihood", "loglikelihood_rolling")
_LONGEST = 1 << 20
"""Bytes of a task file."""
_IGNORED = frozenset({"__pycache__", ".ipynb_checkpoints"})
_LISTED = "dataset_kwargs.data_files"
_CODE = "a policy is data and runs no code: write it as a template, or as columns of the data"
_REFUSED = {
    "class": ("is a task written in Python", _CODE),
    "custom_dataset": ("loads its documents with Python", _CODE),
    "process_docs": ("changes its documents with Python", _CODE),
    "process_results": ("judges answers with Python", _CODE),
    "use_prompt": ("takes its prompt from a library", "write it as doc_to_text"),
    "unsafe_code": ("runs what the model writes", "leave the task out"),
    "doc_to_image": ("shows images", "leave the task out"),
    "doc_to_audio": ("plays sound", "leave the task out"),
}
"""Field -> what such a task does, and what to do about it."""


@dataclass(frozen=True)
class TaskFile:
    """One task: what its file says, with what that includes."""

    name: str
    path: Path
    config: Mapping[str, Any]
    """As the harness takes it, but for its data files."""
    data_files: Mapping[str, tuple[Path, ...]]
    """Split -> files with its documents."""
    lines: Mapping[str, int]
    """Field -> 1-based line in the file; fields that come from an included file are not here."""

    def error(self, field: str, message: str, remedy: str) -> DataError:
        """An error at a field of it, e.g. ``metric_list[0].metric``."""
        line = self.lines.get(field.partition("[")[0].partition(".")[0])
        return DataError(message, file=self.path, line=line, field=field, remedy=remedy)


def read_tasks(folder: Path, only: Sequence[str] = ()) -> tuple[TaskFile, ...]:
    """The tasks below a folder, by name.

    Args:
        folder: Walked for files that end in ``.yaml``. One without ``task`` is there to be
            included by others.
        only: Names of those wanted; empty: all.

    Raises:
        DataError: There is no such folder, no task in it, none of a name that is wanted, two of
            one name; or a task can't be read, runs code, or needs a network.
    """
    if not folder.is_dir():
        raise DataError(
            f"there is no such folder with tasks: {folder}",
            field="folder",
            remedy="name a local folder, relative to the policy, with task files (*.yaml)",
        )
    found, unread = _found(folder, only)
    missing = [name for name in only if name not in found]
    if unread and (missing or not only):
        raise unread[0]
    if missing:
        raise DataError(
            f"no file in {folder} has a task {missing[0]!r}",
            field="tasks",
            remedy="name tasks as the 'task' of their files does, or leave 'tasks' out for all",
        )
    if not found:
        raise DataError(
            f"there are no tasks in this folder: {folder}",
            field="folder",
            remedy="a task is a file that ends in .yaml and has a 'task'",
        )
    for task in found.values():
        _check(task)
    return tuple(sorted(found.values(), key=lambda task: task.name))


def _found(folder: Path, only: Sequence[str]) -> tuple[dict[str, TaskFile], Sequence[DataError]]:
    """Those that are wanted, by name; and what is wrong with files that can't be read."""
    found: dict[str, TaskFile] = {}
    unread: list[DataError] = []
    for path in _files(folder):
        try:
            merged, lines = _merged(path, ())
        except DataError as error:  # of no concern where it is not wanted
            unread.append(error)
            continue
        if "task" not in merged and "group" not in merged and "class" not in merged:
            continue
        if only and merged.get("task") not in only:
            continue
        task = _task(path, merged, lines)
        if task.name in found:
            raise task.error(
                "task",
                f"the task {task.name!r} is also in {found[task.name].path.name}",
                "give one of the two another name",
            )
        found[task.name] = task
    return found, unread


def digest_of(tasks: Sequence[TaskFile], version: str) -> str:
    """sha256 in hex over all that decides what is asked and how it is judged.

    Args:
        tasks: What is asked.
        version: Of the harness.

    Raises:
        DataError: A data file can't be read.
    """
    digest = hashlib.sha256(version.encode())
    for task in tasks:
        config = json.dumps(task.config, sort_keys=True, default=str)
        digest.update(f"\n{task.name} {config}".encode())
        for split, files in task.data_files.items():
            for file in files:
                try:
                    digest.update(f"\n{split} {file_sha256(file)}".encode())
                except OSError as error:
                    raise _unreadable(task, file, error) from None
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*.yaml")):
        if not _IGNORED.intersection(path.relative_to(folder).parts):
            yield path


def _merged(path: Path, above: tuple[Path, ...]) -> tuple[dict[str, Any], dict[str, int]]:
    """What a file says with all that it includes, and the lines of its own fields."""
    if path in above:
        raise DataError(
            "includes itself", file=path, field="include", remedy="take the include out"
        )
    own, lines = _parsed(path)
    merged: dict[str, Any] = {}
    named = own.pop("include", [])
    for each in named if isinstance(named, list) else [named]:
        if not isinstance(each, str):
            raise DataError(
                "is no name of a file", file=path, line=lines.get("include"), field="include",
                remedy="name a file beside this one",
            )  # fmt: skip
        merged |= _merged(path.parent / each, (*above, path))[0]
    return merged | own, lines


def _parsed(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    try:
        text = read_regular(path, limit=_LONGEST).decode()
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        found = yaml.safe_load(text)
    except OSError as error:
        raise DataError(
            f"the task file can't be read: {error.strerror}",
            file=path,
            remedy="see that it is a readable file",
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        runs_code = "!function" in (error.problem or "")
        raise DataError(
            "calls a Python function (!function)" if runs_code else "is not YAML",
            file=path,
            line=None if mark is None else mark.line + 1,
            remedy=_CODE if runs_code else "correct this line",
        ) from None
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError):
        raise DataError("is not YAML", file=path, remedy="save it as UTF-8 text") from None
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise DataError(
            "holds no fields", file=path, remedy="a task file is a YAML mapping with a 'task'"
        )
    assert isinstance(node, yaml.MappingNode)
    lines = {str(key.value): key.start_mark.line + 1 for key, _ in node.value}
    return found, lines


def _task(path: Path, merged: dict[str, Any], lines: Mapping[str, int]) -> TaskFile:
    task = TaskFile(str(merged.get("task", path.stem)), path, merged, {}, lines)
    if "group" in merged or isinstance(merged.get("task"), list):
        raise task.error(
            "group" if "group" in merged else "task",
            "is a group of tasks, and each task is measured by itself",
            "remove the file; its tasks are found without it",
        )
    for field, (does, remedy) in _REFUSED.items():
        if merged.get(field):
            raise task.error(field, f"the task {task.name!r} {does}", remedy)
    return TaskFile(task.name, path, _bare(merged), _data_files(task), lines)


def _bare(merged: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in merged.items() if key != "dataset_kwargs"}


def _data_files(task: TaskFile) -> dict[str, tuple[Path, ...]]:
    """Where the documents lie, by split; names are relative to the task file."""
    loader = task.config.get("dataset_path")
    if loader not in LOADERS:
        raise task.error(
            "dataset_path",
            f"the task {task.name!r} names a data set of the hub, and nothing is fetched",
            f"save its documents as files, and write dataset_path: {' or '.join(LOADERS)} and "
            f"{_LISTED}",
        )
    options = task.config.get("dataset_kwargs") or {}
    if not isinstance(options, dict) or set(options) != {"data_files"}:
        raise task.error(
            "dataset_kwargs",
            "takes data_files and nothing else",
            "write data_files: {test: FILE}, relative to the task file",
        )
    given = options["data_files"]
    by_split = given if isinstance(given, dict) else {"train": given}
    return {str(split): tuple(_named(task, names)) for split, names in by_split.items()}


def _named(task: TaskFile, names: Any) -> Iterator[Path]:
    listed = names if isinstance(names, list) else [names]
    if not listed:
        raise task.error(_LISTED, "a split has no files", "name one, or leave the split out")
    for name in listed:
        if not isinstance(name, str) or "://" in name or any(sign in name for sign in "*?["):
            raise task.error(
                _LISTED,
                "every file is named by itself, and lies on this machine",
                "write FILE or [FILE, FILE], relative to the task file",
            )
        path = task.path.parent / name
        try:
            check_regular(path)
        except OSError as error:
            raise _unreadable(task, path, error) from None
        yield path


def _unreadable(task: TaskFile, path: Path, error: OSError) -> DataError:
    return task.error(
        _LISTED,
        f"the data file {path.name} can't be read: {error.strerror}",
        "names are relative to the task file",
    )


def _check(task: TaskFile) -> None:
    """Fields that the harness would stumble over later, or answer with the network."""
    kind = task.config.get("output_type", "generate_until")
    if kind not in OUTPUT_TYPES:
        raise task.error(
            "output_type", f"{kind!r} is no kind of task", f"use one of {', '.join(OUTPUT_TYPES)}"
        )
    if not (task.config.get("test_split") or task.config.get("validation_split")):
        raise task.error(
            "test_split", f"the task {task.name!r} has no documents to test on", "name a split"
        )
    for field in ("training_split", "validation_split", "test_split", "fewshot_split"):
        split = task.config.get(field)
        if split is not None and split not in task.data_files:
            raise task.error(
                field, f"there are no data files of a split {split!r}", f"add it to {_LISTED}"
            )
    metrics = task.config.get("metric_list")
    if metrics is None:
        return
    if not isinstance(metrics, list) or not all(isinstance(each, dict) for each in metrics):
        raise task.error("metric_list", "is no list of metrics", "write - metric: acc")
    for index, metric in enumerate(metrics):
        if metric.get("hf_evaluate"):
            raise task.error(
                f"metric_list[{index}].hf_evaluate",
                "is fetched from the hub, and nothing is",
                "use a metric of the harness's own",
            )
