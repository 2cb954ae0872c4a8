"""What makes a model usable, beside its weights and settings, comes along in an export."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
import sentencepiece
import torch
from transformers import AutoTokenizer

from safeedit.export.checkpoint import write_checkpoint
from safeedit.model.carried import GENERATION_CONFIG, carry_over, left_behind
from safeedit.model.sources import open_model
from tests.tiny_models import SENTENCES, save_tiny, tiny_model

CARRIED = {
    "processor_config.json": '{"processor_class": "Gemma3Processor"}',
    "preprocessor_config.json": '{"image_processor_type": "Gemma3ImageProcessor"}',
    "video_preprocessor_config.json": "{}",
    "chat_template.json": '{"chat_template": "{{ messages }}"}',
    "additional_chat_templates/tools.jinja": "{{ tools }}",
    "special_tokens_map.json": "{}",
    "tokenizer.model": "not read where tokenizer.json is",
    "LICENSE": "The licence",
    "Notice.txt": "A notice",
    "USE_POLICY.md": "What it may be used for",
    GENERATION_CONFIG: '{"temperature": 0.25, "do_sample": true, "eos_token_id": [2, 4]}',
}
LEFT = {
    "modeling_llama.py": "import os",
    "LICENSE.py": "import os",
    "additional_chat_templates/run.py": "import os",
    "pytorch_model.bin": "a pickle",
    "onnx/model.onnx": "another format",
    "training_args.json": "{}",
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = save_tiny("llama", tmp_path / "source")
    for name, content in {**CARRIED, **LEFT}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    return folder


def exported(source: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    folder.mkdir()
    write_checkpoint(open_model(str(source), device="cpu"), folder)
    return folder


def test_what_makes_a_model_usable_is_in_its_export_as_it_was(source: Path, tmp_path: Path) -> None:
    folder = exported(source, tmp_path)
    for name, content in CARRIED.items():
        assert (folder / name).read_text() == content, name


def test_nothing_that_runs_nor_anything_of_other_formats_comes_along(
    source: Path, tmp_path: Path
) -> None:
    folder = exported(source, tmp_path)
    for name in LEFT:
        assert not (folder / name).exists(), name


def test_what_does_not_come_along_is_named(source: Path, tmp_path: Path) -> None:
    assert left_behind(source) == (
        "LICENSE.py",
        "additional_chat_templates/",
        "modeling_llama.py",
        "onnx/",
        "pytorch_model.bin",
        "training_args.json",
    )
    assert left_behind(exported(source, tmp_path)) == ()


def test_an_export_of_an_export_gets_neither_its_evidence_nor_its_card(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "source")
    (folder / "evidence").mkdir()
    (folder / "evidence" / "run.json").write_text("{}")
    (folder / "README.md").write_text("card")
    again = exported(folder, tmp_path)
    assert not (again / "evidence").exists()
    assert not (again / "README.md").exists()
    assert left_behind(folder) == ()


def test_what_the_export_wrote_itself_is_not_replaced(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "tokenizer_config.json").write_text('{"ours": true}')
    assert "tokenizer_config.json" not in carry_over(source, target)
    assert (target / "tokenizer_config.json").read_text() == '{"ours": true}'


def test_a_pipe_among_the_files_is_passed_over(source: Path, tmp_path: Path) -> None:
    (source / "LICENSE").unlink()
    os.mkfifo(source / "LICENSE")
    assert not (exported(source, tmp_path) / "LICENSE").exists()


@pytest.fixture
def sentencepiece_only(tmp_path: Path) -> Path:
    """A Llama folder as published before tokenizer.json: ``tokenizer.model`` alone."""
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20), model_writer=trained, vocab_size=90,
        model_type="bpe", byte_fallback=False, character_coverage=1.0, minloglevel=2,
    )  # fmt: skip
    folder = tmp_path / "llama"
    tiny_model("llama").save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(trained.getvalue())
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_a_model_with_a_sentencepiece_tokenizer_alone_opens_and_keeps_it(
    sentencepiece_only: Path, tmp_path: Path
) -> None:
    folder = exported(sentencepiece_only, tmp_path)
    kept = (folder / "tokenizer.model").read_bytes()
    assert kept == (sentencepiece_only / "tokenizer.model").read_bytes()
    text = "The capital of Italy is Rome."
    before = AutoTokenizer.from_pretrained(sentencepiece_only)(text)["input_ids"]
    after = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    assert before == after
    assert len(before) > 3
    model = open_model(str(folder), device="cpu")
    with torch.no_grad():
        assert model.model(torch.tensor([after])).logits.isfinite().all()
