"""Runs a comparison: one run of the policy per editor, each kept as soon as it is there.

Every run is that of ``apply`` but for the export: doses chosen on validation data, audits on test
data, seeds, controls and the cache of the base's audits are the same. A run's report lies in a
folder of the editor's name, with a file that says all that made it: policy, model and data by their
digests, parameters, auditors' versions, the key of digests and the version of safeedit. Where all
of it still holds, the record is read instead of made again. ``none`` is the base's own audits,
``random`` the first editor's random controls. Baselines that are prompts
(:mod:`safeedit.workflows.comparison.prompts`) are the base's audits with the prompt before every
question.

What is wrong with the policy or a name is raised before anything runs; an editor that fails in its
run is a row with its error.
"""

from __future__ import annotations

import gc
import hashlib
import hmac
import json
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from safeedit import __version__
from safeedit.catalog import PROMPT_BASELINES
from safeedit.code import code_digest
from safeedit.contracts import Auditor, Editor, RunContext
from safeedit.errors import ExportError, SafeeditError, UnsupportedModelError, UsageError
from safeedit.export.disk import read_plain
from safeedit.planning.plan import Plan, PlannedEdit
from safeedit.planning.resolution import make_plan
from safeedit.policy import LoadedPolicy
from safeedit.policy.suggest import did_you_mean
from safeedit.records import ControlRecord, Metric, MetricSpec, RunRecord
from safeedit.report import FILES, write_all
from safeedit.report.files import write_files
from safeedit.report.json import render
from safeedit.running.run import execute, measure
from safeedit.statistics.seeds import mean_of
from safeedit.workflows.comparison.candidates import (
    FAILURES,
    LEAKAGE,
    NONE,
    RANDOM,
    Candidate,
    CandidateSettings,
    read_candidates,
    with_own_data,
    without_edits,
)
from safeedit.workflows.comparison.prompts import preface_of
from safeedit.workflows.comparison.standings import Axis, Cost, Standing, Standings, placed

RECORD, MADE_OF = "report.json", "made-of.json"

SUCCESS = (
    (LEAKAGE, "extraction_rate"),
    ("leakage.memorization", "extraction_rate"),
    (FAILURES, "edit_success"),
    ("toxicity", "expected_max"),
    ("attributes", "margin_change"),
)
LOCALITY = (
    ("locality", "near_f1"),
    ("locality", "near_accuracy_kept"),
    ("attributes", "unchanged"),
    ("perplexity", "ratio"),
)
"""What rows are ranked by where nobody says: the first of these that the policy audits."""

KNOWEDIT = {
    "edit success": (FAILURES, "edit_success"),
    "portability": (FAILURES, "portability"),
    "locality": ("locality", "near_f1"),
    "fluency": (FAILURES, "fluency"),
    "meaningless": (FAILURES, "meaningless"),
    "incomplete": (FAILURES, "incomplete"),
    "unrelated": (FAILURES, "unrelated"),
    "partly replaced": (FAILURES, "partly_replaced"),
}
"""KnowEdit's names (arXiv 2401.01286) -> what comes nearest to each here."""


@dataclass(frozen=True)
class Contest:
    """A comparison with every name in it resolved, no weights loaded."""

    loaded: LoadedPolicy
    base: Plan
    runs: tuple[tuple[Candidate, Plan | UnsupportedModelError], ...]
    random: bool
    """Whether the first editor's random controls are rows too."""
    prompts: tuple[str, ...]
    """Baselines that change no weights, in order."""
    own: PlannedEdit | None
    """The policy's own edit, for its data; None where there is no such baseline."""
    success: Axis
    locality: Axis
    knowedit: dict[str, str]
    """KnowEdit's name -> full name of the metric, of those that are audited."""


def plan_contest(
    loaded: LoadedPolicy,
    names: Sequence[str],
    settings: CandidateSettings,
    *,
    success: str | None = None,
    locality: str | None = None,
    key: bytes | None = None,
) -> Contest:
    """Resolve a comparison.

    Args:
        loaded: A policy with one edit.
        names: Editors, variants, ``random``, baselines that are prompts; ``none`` is always there.
        settings: Parameters of single candidates.
        success: Full name of the metric that says how well an edit works.
        locality: Full name of the metric that says how much of the rest stays.
        key: Of the digests of data, as :func:`~safeedit.planning.resolution.make_plan` takes it.

    Raises:
        PolicyError: As :func:`~safeedit.workflows.comparison.candidates.read_candidates` and
            :func:`~safeedit.planning.resolution.make_plan`; but an editor that refuses this kind
            of model is a row.
        UsageError: A metric that no audit of the policy measures, or none to rank by.
        DataError: A data source is missing, malformed or overlaps another.
    """
    candidates = read_candidates(loaded, names, settings)
    base = make_plan(without_edits(loaded), exporting=False, key=key)
    runs: list[tuple[Candidate, Plan | UnsupportedModelError]] = []
    for candidate in candidates:
        try:
            runs.append((candidate, make_plan(candidate.loaded, exporting=False, key=key)))
        except UnsupportedModelError as error:
            runs.append((candidate, error))
    audited = _audited(base)
    prompts = tuple(name for name in names if name in PROMPT_BASELINES)
    return Contest(
        loaded,
        base,
        tuple(runs),
        RANDOM in names,
        prompts,
        _own_edit(loaded, key) if prompts else None,
        _axis(base, "success", success, SUCCESS),
        _axis(base, "locality", locality, LOCALITY),
        {name: audited[each] for name, each in KNOWEDIT.items() if each in audited},
    )


def run_contest(
    contest: Contest,
    ctx: RunContext,
    folder: Path,
    *,
    say: Callable[[str], None] = lambda text: None,
    write: Callable[[Standings], None] = lambda standings: None,
) -> Standings:
    """Run what has not been run, in order.

    Args:
        contest: From :func:`plan_contest`.
        ctx: As for ``apply``.
        folder: Where records are kept, each in a folder of its own.
        say: Told what runs, and what is taken as it is.
        write: Called with the standings so far after each run.

    Raises:
        ExportError: A record can't be written.
        ModelError: The untouched model can't be opened or measured.
    """
    untouched = _kept_or_made(NONE, contest.base, ctx, folder, say, measure)
    audited = [_audited_metrics(run) for run in untouched.all_seeds]
    rows = [Standing(name=NONE, use="", kind="none", **_figures(audited))]

    for place, (candidate, plan) in enumerate(contest.runs):
        record = None
        try:
            if isinstance(plan, UnsupportedModelError):
                raise plan
            record = _kept_or_made(candidate.name, plan, ctx, folder, say, execute)
            rows.append(_standing(candidate, record))
        except ExportError:
            raise  # the disk, not the editor
        except Exception as error:
            why = _first_line(error)
            ctx.warn(f"{candidate.name} failed: {why}")
            rows.append(_failed(candidate.name, candidate.use, why))
        if place == 0 and contest.random:
            rows += _controls(candidate, record)
        write(_standings(contest, untouched, rows))
    for name in contest.prompts:
        rows.append(_prompted(contest, name, ctx, folder, say))
        write(_standings(contest, untouched, rows))
    found = _standings(contest, untouched, rows)
    write(found)
    return found


def _own_edit(loaded: LoadedPolicy, key: bytes | None) -> PlannedEdit:
    """The policy's one edit, planned for its data.

    Raises:
        PolicyError: It has not exactly one, or a key there is none of any editor.
    """
    return make_plan(with_own_data(loaded), exporting=False, key=key).edits[0]


def _prompted(
    contest: Contest, name: str, ctx: RunContext, folder: Path, say: Callable[[str], None]
) -> Standing:
    """The row of a prompt that stands before every question."""
    assert contest.own is not None
    try:
        preface = preface_of(name, contest.own, ctx)
        make = partial(measure, preface=preface)
        record = _kept_or_made(name, contest.base, ctx, folder, say, make, preface.key)
    except ExportError:
        raise
    except Exception as error:
        why = _first_line(error)
        ctx.warn(f"{name} failed: {why}")
        return _failed(name, "", why, "prompt")
    every = [run.resources for run in record.all_seeds]
    return Standing(
        name=name,
        use="",
        kind="prompt",
        warning=f"a prompt alone, {PROMPT_BASELINES[name]}: no weights change, never exported",
        **_figures([_audited_metrics(run) for run in record.all_seeds]),
        entries_changed=0,
        cost=Cost(
            fit_seconds=0.0,
            dose_seconds=0.0,
            wall_seconds=sum(each.wall_seconds + each.spared_seconds for each in every),
            peak_memory_bytes=record.resources.peak_memory_bytes,
            peak_device_bytes=record.resources.peak_device_bytes,
        ),
    )


def _standings(contest: Contest, untouched: RunRecord, rows: Sequence[Standing]) -> Standings:
    policy = contest.loaded.policy
    return Standings(
        policy_name=policy.name,
        policy_digest=contest.base.policy_digest,
        model=untouched.model,
        seed=policy.seed,
        seeds=(policy.seed, *policy.other_seeds),
        safeedit=__version__,
        success=contest.success,
        locality=contest.locality,
        knowedit=contest.knowedit,
        rows=placed(rows, contest.success, contest.locality),
    )


def _audited(plan: Plan) -> dict[tuple[str, str], str]:
    """(Auditor, bare name) -> full name of the metric; the first audit of a kind counts."""
    found: dict[tuple[str, str], str] = {}
    for audit in plan.audits:
        for full, spec in audit.metrics.items():
            found.setdefault((audit.spec.use, spec.name), full)
    return found


def _axis(plan: Plan, option: str, asked: str | None, usual: Sequence[tuple[str, str]]) -> Axis:
    known: dict[str, MetricSpec] = {}
    for audit in plan.audits:
        known |= audit.metrics
    audited = _audited(plan)
    name = asked or next((audited[each] for each in usual if each in audited), None)
    if name is None:
        raise UsageError(
            f"nothing that the policy audits is known to tell {option}",
            field=option,
            remedy=f"name one of its metrics with --{option}: {', '.join(sorted(known))}",
        )
    if name not in known:
        raise UsageError(
            f"no audit of this policy measures {name!r}",
            field=option,
            remedy=did_you_mean(name, known),
        )
    spec = known[name]
    return Axis(metric=name, unit=spec.unit, direction=spec.direction, description=spec.description)


def _kept_or_made(
    name: str,
    plan: Plan,
    ctx: RunContext,
    folder: Path,
    say: Callable[[str], None],
    make: Callable[[Plan, RunContext], RunRecord],
    preface: str = "",
) -> RunRecord:
    """The record in the candidate's folder if it was made of the same, else a new one; ``preface``
    is the key of what stands before every question."""
    own, made_of = folder / name, _made_of(plan, ctx, preface)
    record = None if ctx.fresh else _kept(own, made_of, ctx)
    if record is not None:
        say(f"{name}: kept from an earlier run")
        return record
    say(f"{name}: running")
    _clear(own)
    _forget_peaks()
    record = make(plan, replace(ctx, warn=lambda message: ctx.warn(f"{name}: {message}")))
    # What it was made of comes last: without it a record does not count.
    write_all(record, own, "--out")
    text = render(record)
    write_files({MADE_OF: _sealed(made_of, text.encode(), ctx)}, own, "--out")
    return record


def _clear(folder: Path) -> None:
    """Remove a report that no longer counts, so that a failure doesn't leave it standing."""
    try:
        for stale in (MADE_OF, *FILES):
            (folder / stale).unlink(missing_ok=True)
    except OSError as error:
        raise ExportError(
            f"no report can be kept here: {error.strerror}",
            file=folder,
            remedy="choose another folder with --out",
        ) from error


def _kept(folder: Path, made_of: str, ctx: RunContext) -> RunRecord | None:
    """The record that is there, if it was made of the same and is as it was written."""
    try:
        content = read_plain(folder / RECORD)
        sealed = _sealed(made_of, content, ctx).encode()
        if not hmac.compare_digest(read_plain(folder / MADE_OF), sealed):
            return None
        return RunRecord.model_validate_json(content)
    except (OSError, ValueError):
        return None


def _sealed(made_of: str, record: bytes, ctx: RunContext) -> str:
    """What a record was made of, with a seal by the digest key over both: a kept record stands in
    the table as if it had been measured just now."""
    parts = b"".join(hashlib.sha256(part).digest() for part in (made_of.encode(), record))
    seal = hmac.new(ctx.secret, b"safeedit comparison" + parts, hashlib.sha256).hexdigest()
    return json.dumps({**json.loads(made_of), "seal": seal}, indent=2, sort_keys=True) + "\n"


def _made_of(plan: Plan, ctx: RunContext, preface: str = "") -> str:
    """All that decides a run's figures, as JSON."""
    found = {
        **plan.fingerprint(),
        "params": {edit.id: edit.params.model_dump(mode="json") for edit in plan.edits},
        "audits": {audit.id: audit.params.model_dump(mode="json") for audit in plan.audits},
        "code": code_digest(
            "safeedit.running.run",
            *(type(stage).__module__ for stage in _stages(plan)),
        ),
        "key": ctx.digest("comparison"),
        "safeedit": __version__,
        **({"preface": preface} if preface else {}),
    }
    return json.dumps(found, indent=2, sort_keys=True) + "\n"


def _stages(plan: Plan) -> list[Editor | Auditor]:
    return [*(edit.editor for edit in plan.edits), *(audit.auditor for audit in plan.audits)]


def _forget_peaks() -> None:
    """Let peak memory be this run's own, as far as the system allows."""
    gc.collect()
    with suppress(OSError):  # Linux alone can
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _standing(candidate: Candidate, record: RunRecord) -> Standing:
    (edit,) = record.edits
    every = [run.resources for run in record.all_seeds]
    return Standing(
        name=candidate.name,
        use=candidate.use,
        kind="editor",
        warning=candidate.warning,
        **_figures([_audited_metrics(run) for run in record.all_seeds]),
        params=edit.params,
        dose=edit.dose,
        targets_met=edit.targets_met,
        entries_changed=sum(change.entries_changed for change in edit.changes),
        status=record.status if record.verdicts else None,
        cost=Cost(
            fit_seconds=sum(each.stages[f"edit {edit.id}: fit"] for each in every),
            dose_seconds=sum(each.stages[f"edit {edit.id}: dose"] for each in every),
            wall_seconds=sum(each.wall_seconds + each.spared_seconds for each in every),
            peak_memory_bytes=record.resources.peak_memory_bytes,
            peak_device_bytes=record.resources.peak_device_bytes,
        ),
    )


def _controls(candidate: Candidate, record: RunRecord | None) -> list[Standing]:
    """The rows of the first editor's random controls."""
    if record is None:
        why = f"{candidate.name}, whose random control it is, failed"
        return [_failed(RANDOM, candidate.use, why, "random")]
    drawn = zip(*map(_drawn, record.all_seeds), strict=True)
    return [
        Standing(
            name=RANDOM if draw == 1 else f"{RANDOM} {draw}",
            use=candidate.use,
            kind="random",
            warning=f"{control.name} as {candidate.name}, seed {control.seed}",
            **_figures([each.metrics for each in (control, *with_others)]),
        )
        for draw, (control, *with_others) in enumerate(drawn, 1)
    ]


def _drawn(record: RunRecord) -> list[ControlRecord]:
    return [control for control in record.edits[0].controls if control.random]


def _failed(name: str, use: str, why: str, kind: Any = "editor") -> Standing:
    return Standing(name=name, use=use, kind=kind, error=why)


def _first_line(error: Exception) -> str:
    """Why something failed; of an exception that is not ours, type and place: its words may
    quote data."""
    if isinstance(error, SafeeditError):
        return error.message.splitlines()[0]
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"unexpected {type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"


def _audited_metrics(record: RunRecord) -> list[Metric]:
    return [metric for audit in record.after for metric in audit.metrics]


def _figures(by_seed: Sequence[Sequence[Metric]]) -> dict[str, Any]:
    """Metrics by name, without what they hold of single items, and each seed's own values.

    Args:
        by_seed: Metrics of the run with each seed.
    """
    found: dict[str, list[Metric]] = {}
    for metrics in by_seed:
        for metric in metrics:
            found.setdefault(metric.name, []).append(metric)
    empty: dict[str, Any] = {"items": {}, "weights": {}, "groups": {}, "positions": {}, "axis": ""}
    return {
        "metrics": {name: mean_of(each).model_copy(update=empty) for name, each in found.items()},
        "by_seed": {name: tuple(metric.value for metric in each) for name, each in found.items()}
        if len(by_seed) > 1
        else {},
    }
