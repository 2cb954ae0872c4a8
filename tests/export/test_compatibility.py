"""Exports in the versions of transformers that users of vLLM, llama.cpp and lm-eval have.

``make test-compat`` installs each version beside the project's packages, into the cache folder,
and runs these; elsewhere they run with the versions that are already there. Every comparison
has its control: the same folder as transformers 5 alone writes it, which older versions misread.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from safeedit.cache import cache_dir
from safeedit.export.checkpoint import write_checkpoint
from tests.tiny_models import tiny_handle

pytestmark = [pytest.mark.compat, pytest.mark.timeout(900)]

VERSIONS = {
    "4.46.3": ("transformers==4.46.3", "tokenizers==0.20.3", "huggingface_hub==0.26.5"),
    "4.57.6": ("transformers==4.57.6", "tokenizers==0.22.1", "huggingface_hub==0.36.0"),
    "current": (),
}
"""The oldest, the last of version 4, and what the project runs on, in a process of its own."""

CHAT = [{"role": "user", "content": "Who wrote it?"}]
TEXT = "The capital of France <|im_end|> is Paris, and"

PLAIN = {"rope_type": "default", "rope_theta": 1e6}
SCALED: dict[str, dict[str, Any]] = {
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 64,
    },
    "linear": {"rope_type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [2.0, 2.1, 2.2, 2.3],
        "original_max_position_embeddings": 64,
    },
}
PHI3 = {name: value for name, value in SCALED["longrope"].items() if name != "factor"}
GEMMA3 = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 3e4},
}
LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]

#: Label -> (family, options of its config).
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"rope_parameters": PLAIN}),
    **{
        f"llama {kind}": ("llama", {"rope_parameters": {**rope, "rope_theta": 5e5}})
        for kind, rope in SCALED.items()
    },
    **{
        family: (family, {"rope_parameters": PLAIN})
        for family in ("mistral", "qwen2", "qwen3", "olmo2", "gemma2", "phi3")
    },
    "phi3 longrope": ("phi3", {"rope_parameters": {**PHI3, "rope_theta": 5e5}}),
    "gpt_neox": ("gpt_neox", {"rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5}}),
    "gemma3": ("gemma3_text", {"rope_parameters": GEMMA3, "layer_types": LAYERS}),
    **{family: (family, {}) for family in ("gpt2", "gptj", "opt")},
}
UNKNOWN = {
    "4.46.3": {
        "qwen3": "came with 4.51",
        "olmo2": "came with 4.47",
        "gemma3": "came with 4.50",
        "llama yarn": "it reads no original_max_position_embeddings, of any checkpoint",
    },
    "4.57.6": {},
    "current": {},
}

PROBE = """
import json, sys
import torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
transformers.logging.set_verbosity_error()
torch.set_num_threads(1)
chat, text, folders = json.loads(sys.stdin.read())
found = {"version": transformers.__version__}
ids = torch.tensor([[(7 * i) % 390 + 5 for i in range(120)]])
for label, folder in folders.items():
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = model(ids).logits[0, -1].tolist()
    rendered = None
    if tokenizer.chat_template:
        rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    found[label] = {
        "logits": logits, "dtype": str(model.dtype), "ids": tokenizer(text)["input_ids"],
        "chat": rendered, "special": sorted(tokenizer.all_special_ids),
        "inputs": sorted(tokenizer(text)),
    }
print(json.dumps(found))
"""


def installed(version: str) -> Path | None:
    """The folder of a version's packages; None for the project's own."""
    if not VERSIONS[version]:
        return None
    folder = cache_dir() / "compat" / version
    if folder.is_dir():
        return folder
    if not os.environ.get("SAFEEDIT_COMPAT"):
        pytest.skip(f"transformers {version} is not installed: 'make test-compat' does that")
    partial = folder.with_name(f".{version}-{os.getpid()}")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(partial)]
    done = subprocess.run([*command, *VERSIONS[version]], capture_output=True, text=True)
    if done.returncode:
        shutil.rmtree(partial, ignore_errors=True)
        pytest.skip(f"no registry gives transformers {version}: {done.stderr.strip()[-200:]}")
    partial.rename(folder)
    return folder


def probed(version: str, folders: dict[str, Path]) -> dict[str, Any]:
    """What a version says of the models in ``folders``, each in one process."""
    packages = installed(version)
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    if packages is not None:
        environment["PYTHONPATH"] = str(packages)
    request = json.dumps([CHAT, TEXT, {label: str(path) for label, path in folders.items()}])
    done = subprocess.run(
        [sys.executable, "-c", PROBE], input=request, capture_output=True, text=True,
        env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert packages is None or found["version"] == version
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_an_export_gives_the_same_logits_and_ids_in_every_version(
    version: str, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    ids = torch.tensor([[(7 * i) % 390 + 5 for i in range(120)]])
    folders, expected = {}, {}
    for label, (family, options) in MODELS.items():
        if label in UNKNOWN[version]:
            continue
        dtype = torch.bfloat16 if label == "qwen2" else torch.float32
        handle = tiny_handle(family, dtype, **options)
        folders[label] = tmp_path / label
        folders[label].mkdir()
        write_checkpoint(handle, folders[label])
        tokenizer = handle.tokenizer
        assert tokenizer is not None
        chat = None
        if tokenizer.chat_template:
            chat = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
        with torch.no_grad():
            logits = handle.model(ids).logits[0, -1].float()
        expected[label] = (handle, logits, chat)
    found = probed(version, folders)
    for label, (handle, logits, chat) in expected.items():
        # Version 4 reads float32 unless asked otherwise, and rounds elsewhere than version 5.
        tolerance = 0.1 if label == "qwen2" else 1e-4
        assert torch.allclose(torch.tensor(found[label]["logits"]), logits, atol=tolerance), label
        assert found[label]["ids"] == handle.tokenizer(TEXT)["input_ids"], label
        # Qwen 2's own class gives every tokenizer an <|endoftext|>, here one beyond the model's.
        special = [token for token in found[label]["special"] if token < len(logits)]
        assert special == sorted(handle.tokenizer.all_special_ids), label
        assert found[label]["inputs"] == ["attention_mask", "input_ids"], label
        assert found[label]["chat"] == chat, label


@pytest.mark.parametrize("version", ["4.46.3", "4.57.6"])
def test_without_the_older_names_that_version_misreads_the_model(
    version: str, tmp_path: Path
) -> None:
    """The control: what the names are written for is there."""
    installed(version)
    handle = tiny_handle("llama", rope_parameters=PLAIN)
    (folder := tmp_path / "model").mkdir()
    write_checkpoint(handle, folder)
    bare = shutil.copytree(folder, tmp_path / "bare")
    config = json.loads((bare / "config.json").read_text())
    for name in ("rope_theta", "rope_scaling"):
        del config[name]
    (bare / "config.json").write_text(json.dumps(config))
    found = probed(version, {"whole": folder, "bare": bare})
    whole, misread = (torch.tensor(found[label]["logits"]) for label in ("whole", "bare"))
    assert (whole - misread).abs().max() > 0.01
