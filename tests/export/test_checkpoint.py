"""An exported folder opens without safeedit and holds the very bytes of the weights."""

from __future__ import annotations

import hashlib
import json
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import accelerate
import pytest
import torch

from safeedit.delta import Dense, Origin, WeightDelta
from safeedit.errors import ExportError
from safeedit.export import checkpoint as module
from safeedit.export.checkpoint import write_checkpoint
from safeedit.export.staging import Staging
from safeedit.model.handle import ModelHandle
from tests.tiny_models import FAMILIES, tiny_handle

OPENER = """
import hashlib, json, sys
sys.modules["safeedit"] = None                     # any import of it fails
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
answers = {}
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    total = hashlib.sha256()
    for name, tensor in sorted(model.named_parameters()):
        data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + data)
    answers[folder] = {"weights": total.hexdigest(), "ids": tokenizer("Paris is").input_ids}
print(json.dumps(answers))
"""


def weights_digest(handle: ModelHandle) -> str:
    """As OPENER computes it."""
    total = hashlib.sha256()
    for name, tensor in sorted(handle.model.named_parameters()):
        data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + data)
    return total.hexdigest()


def written(tmp_path: Path, handle: ModelHandle) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    write_checkpoint(handle, folder)
    return folder


def opened(folder: Path) -> ModelHandle:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    return ModelHandle(model, AutoTokenizer.from_pretrained(folder))


def test_every_family_opens_without_safeedit_with_the_same_bytes(tmp_path: Path) -> None:
    expected = {}
    for family in FAMILIES:
        for dtype in (torch.float32, torch.bfloat16):
            handle = tiny_handle(family, dtype)
            folder = tmp_path / f"{family}-{dtype}"
            folder.mkdir()
            write_checkpoint(handle, folder)
            assert handle.tokenizer is not None
            expected[str(folder)] = {
                "weights": weights_digest(handle),
                "ids": handle.tokenizer("Paris is").input_ids,
            }
    done = subprocess.run(
        [sys.executable, "-c", OPENER, *expected], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == expected


def test_only_safetensors_configs_and_the_tokenizer_are_written(tmp_path: Path) -> None:
    folder = written(tmp_path, tiny_handle("llama"))
    assert {path.name for path in folder.iterdir()} == {
        *("model.safetensors", "config.json", "generation_config.json"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }


def test_large_models_are_written_in_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SHARD", "50KB")
    handle = tiny_handle("llama")
    folder = written(tmp_path, handle)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert weights_digest(opened(folder)) == weights_digest(handle)


def test_leftovers_of_quantisation_code_and_paths_are_not_written(tmp_path: Path) -> None:
    handle = tiny_handle("llama")
    handle.config.quantization_config = {"quant_method": "gguf"}
    handle.config.auto_map = {"AutoModelForCausalLM": "evil.Model"}
    config = json.loads((written(tmp_path, handle) / "config.json").read_text())
    assert not {"quantization_config", "auto_map", "_name_or_path"} & config.keys()
    assert config["model_type"] == "llama"


def test_no_file_names_a_path_of_this_machine(tmp_path: Path) -> None:
    handle = opened(written(tmp_path, tiny_handle("llama")))
    folder = tmp_path / "second"
    folder.mkdir()
    write_checkpoint(handle, folder)
    naming = [p.name for p in folder.iterdir() if str(tmp_path).encode() in p.read_bytes()]
    assert naming == []


def test_the_tokenizer_opens_under_earlier_versions_of_transformers(tmp_path: Path) -> None:
    folder = written(tmp_path, tiny_handle("llama"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"backend", "is_local", "local_files_only"} & settings.keys()


def test_a_model_without_tokenizer_is_written_alone(tmp_path: Path) -> None:
    handle = ModelHandle(tiny_handle("gpt2").model)
    assert not (written(tmp_path, handle) / "tokenizer.json").exists()


def test_writing_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    handle = tiny_handle("llama_tied", torch.bfloat16)
    before = handle.digest(fresh=True)
    written(tmp_path, handle)
    assert handle.digest(fresh=True) == before


@pytest.mark.parametrize("family", ["llama", "llama_tied", "gpt_neox", "gemma3"])
def test_an_edited_model_that_lies_off_its_device_is_written_whole(
    tmp_path: Path, family: str
) -> None:
    """As where accelerate spreads a model that is larger than the GPU."""
    handle = tiny_handle(family, torch.bfloat16)
    accelerate.cpu_offload(handle.model, execution_device=torch.device("cpu"))
    handle.model.hf_device_map = {"": "cpu"}
    name = handle.sites("mlp_out")[0].weight
    assert handle.tensor(name).device.type == "meta"
    update = Dense(torch.ones(handle.oriented(name).shape))
    handle.apply(WeightDelta(handle.digest(), {name: update}, Origin(editor="test")))
    assert opened(written(tmp_path, handle)).digest() == handle.digest(fresh=True)


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_too_little_space_is_refused_before_a_byte_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = tiny_handle("llama_tied")
    needed = sum(p.numel() * p.element_size() for p in handle.model.parameters())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(needed, 1, needed - 1))
    with pytest.raises(ExportError, match="GB are free"):
        written(tmp_path, handle)
    assert list((tmp_path / "model").iterdir()) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(needed, 0, needed))
    write_checkpoint(handle, tmp_path / "model")


@contextmanager
def files_no_larger_than(n_bytes: int) -> Iterator[None]:
    """The system refuses to let a file grow further: a real write that fails half-way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    handle = tiny_handle("llama")

    def export() -> None:
        with Staging(tmp_path / "model") as staging, files_no_larger_than(16_384):
            write_checkpoint(handle, staging.path)
            staging.promote()

    with pytest.raises(ExportError, match="File too large"):
        export()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KB, where this user may make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if done.returncode != 0:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_an_export_error_and_leaves_nothing(
    tiny_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "check_space", lambda folder, n_bytes: None)
    handle = tiny_handle("llama")
    target = tiny_disk / "model"
    with pytest.raises(ExportError, match="No space left") as caught, Staging(target) as staging:
        write_checkpoint(handle, staging.path)
    assert "free some space" in caught.value.remedy
    assert list(tiny_disk.iterdir()) == []


EXPORTER = """
import signal, sys, time
# A test run in the background inherits "ignore".
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
import torch
torch.set_num_threads(1)
from safeedit.export.checkpoint import write_checkpoint
from safeedit.export.staging import Staging
from tests.tiny_models import tiny_handle

handle = tiny_handle("llama")

def halt(folder):
    print("weights written", flush=True)
    while True:  # a signal that lands just before one long sleep would wait for its end
        time.sleep(0.05)

handle.tokenizer.save_pretrained = halt
with Staging(Path(sys.argv[1])) as staging:
    write_checkpoint(handle, staging.path)
    staging.promote()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_process_killed_between_weights_and_tokenizer_exports_nothing(
    tmp_path: Path, how: signal.Signals
) -> None:
    target = tmp_path / "model"
    process: subprocess.Popen[Any] = subprocess.Popen(
        [sys.executable, "-c", EXPORTER, str(target)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],  # where ``tests`` can be imported from
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "weights written\n"
        process.send_signal(how)
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert not target.exists()
    assert bool(list(tmp_path.iterdir())) == (how is signal.SIGKILL)
    with Staging(target) as staging:
        write_checkpoint(tiny_handle("llama"), staging.path)
        staging.promote()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
