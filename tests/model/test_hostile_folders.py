"""Model folders that somebody damaged, or made to do damage: a ModelError each, and soon.

Every one is put to planning (``open_config``) and to opening (``open_model``), which must not
raise anything else, and must not go on where a library would crash or hang later.
"""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from safeedit.errors import AuditError, ModelError, SafeeditError
from safeedit.model.engine import Engine
from safeedit.model.sources import open_config, open_model
from safeedit.model.template_limits import check_template, under_a_clock
from tests.tiny_models import CHAT_TEMPLATE, save_tiny

pytestmark = pytest.mark.timeout(120)

SECONDS = 20.0
"""A refusal takes no longer, whatever the numbers in a config say."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("sound") / "llama")


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A copy of a sound checkpoint, to be spoilt."""
    return copy(sound, tmp_path / "llama")


def copy(source: Path, target: Path) -> Path:
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(folder: Path) -> list[ModelError]:
    """What planning and opening say; each must refuse, and soon."""
    errors = []
    for opening in (open_config, lambda source: open_model(source, device="cpu")):
        start = time.monotonic()
        with pytest.raises(ModelError) as caught:
            opening(str(folder))
        assert time.monotonic() - start < SECONDS
        assert caught.value.remedy
        errors.append(caught.value)
    return errors


def test_the_sound_folder_opens(folder: Path) -> None:
    open_config(str(folder))
    open_model(str(folder), device="cpu")


CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": -32}, "hidden_size: -32 is not above nought"),
    ({"vocab_size": 0}, "vocab_size: 0 is not above"),
    ({"num_key_value_heads": 0}, "num_key_value_heads: 0 is not above"),
    ({"num_key_value_heads": 3}, "4 attention heads can't be shared out among 3"),
    ({"num_attention_heads": 0}, "num_attention_heads: 0"),
    ({"num_hidden_layers": 10**7}, "num_hidden_layers: 10000000 is more than any model has"),
    ({"num_hidden_layers": "3"}, "num_hidden_layers: '3' is no whole number"),
    ({"num_hidden_layers": 3.5}, "3.5 is no whole number"),
    ({"num_hidden_layers": True}, "True is no whole number"),
    ({"num_labels": 10**9}, "num_labels: 1000000000 is more"),
    ({"max_position_embeddings": 10**12}, "max_position_embeddings"),
    ({"intermediate_size": 10**12}, "intermediate_size"),
    ({"head_dim": 10**9}, "head_dim"),
    ({"hidden_act": "swiglu"}, "hidden_act: 'swiglu' is no activation"),
    ({"hidden_act": ["silu"]}, "hidden_act"),
    ({"dtype": "float13"}, "dtype: 'float13' is no dtype"),
    ({"dtype": None, "torch_dtype": "torch.float16"}, 'write "float16" in config.json'),
    ({"dtype": ["float32"]}, "dtype"),
    ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, "'spiral' is no rope_type"),
    ({"rope_scaling": {"type": "spiral", "factor": 2.0}}, "'spiral' is no rope_type"),
    ({"rope_scaling": {"rope_type": "linear"}}, "transformers can't"),
    ({"rope_parameters": [1]}, "rope_parameters"),
    ({"rope_theta": -1.0}, "rope_theta"),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": "x"}}, "rope_theta: 'x'"),
    ({"pad_token_id": 400}, r"pad_token_id: 400 is no token of the vocabulary \(0 to 399\)"),
    ({"eos_token_id": 10**6}, "eos_token_id: 1000000 is no token"),
    ({"eos_token_id": [4, 400]}, "eos_token_id: 400 is no token"),
    ({"eos_token_id": "<eos>"}, "eos_token_id: '<eos>' is no token"),
    ({"bos_token_id": {"a": 1}}, "bos_token_id"),
    ({"attn_implementation": "flash_attention_9"}, "remove attn_implementation"),
    ({"_attn_implementation": "../../kernels"}, "remove _attn_implementation"),
    ({"hidden_size": 33}, "transformers can't|describes"),
    ({"vocab_size": 401}, "set vocab_size to 400"),
    ({"intermediate_size": 47}, "is stored as"),
]


@pytest.mark.parametrize(("changes", "said"), CONFIGS, ids=[str(c)[:60] for c, _ in CONFIGS])
def test_a_config_that_no_model_can_have_is_refused_with_its_field(
    folder: Path, changes: dict[str, Any], said: str
) -> None:
    rewrite(folder / "config.json", **changes)
    for error in refused(folder):
        assert re.search(said, str(error)), str(error)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a":' * 100_000, "[]", '"x"', "", "\0", "NaN"]
)
def test_settings_that_are_none_are_refused(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    assert all(error.file for error in refused(folder))


def renamed(folder: Path, rename: Callable[[str], str]) -> None:
    path = folder / "model.safetensors"
    save_file({rename(n): t for n, t in load_file(path).items()}, path, {"format": "pt"})


def emptied(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file({n: torch.zeros(0) for n in load_file(path)}, path, {"format": "pt"})


def resized(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], tensors[name][:2]])
    save_file(tensors, path, {"format": "pt"})


def shards_without_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")


def beside_an_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


WEIGHTS: list[tuple[Callable[[Path], None], str, str]] = [
    (lambda f: renamed(f, lambda n: f"_orig_mod.{n}"), "torch.compile", "_orig_mod"),
    (lambda f: renamed(f, lambda n: f"module.{n}"), "DataParallel", "model.module"),
    (
        lambda f: renamed(f, lambda n: n.replace("q_proj.", "q_proj.base_layer.")),
        "adapter .* that was not merged",
        "merge_and_unload",
    ),
    (
        lambda f: renamed(f, lambda n: f"base_model.model.{n}"),
        "adapter .* that was not merged",
        "merge_and_unload",
    ),
    (emptied, "stored empty: DeepSpeed's ZeRO-3", "zero_to_fp32"),
    (
        resized,
        "'(lm_head|model.embed_tokens).weight' is stored as 402 x 32.*describes 400 x 32",
        "set vocab_size to 402",
    ),
    (shards_without_index, "but not model.safetensors.index.json", "copy model.safetensors.index"),
    (
        lambda f: (f / "model.safetensors").rename(f / "weights.safetensors") and None,
        "none that transformers would open",
        "rename it to model.safetensors",
    ),
    (
        lambda f: (f / "model.safetensors").rename(f / "consolidated.safetensors") and None,
        "their maker's own layout",
        "fetch model.safetensors",
    ),
    (beside_an_adapter, "beside the weights of a whole model", "move adapter_config.json"),
]


@pytest.mark.parametrize(("damage", "said", "remedy"), WEIGHTS)
def test_weights_saved_the_wrong_way_are_told_by_their_headers(
    folder: Path, damage: Callable[[Path], None], said: str, remedy: str
) -> None:
    damage(folder)
    for error in refused(folder):
        assert re.search(said, error.message), error.message
        assert remedy in error.remedy


FILES = ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"]


@pytest.mark.parametrize("name", [*FILES, "generation_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "/proc/self/environ", "folder", "sparse"])
def test_what_is_no_plain_file_is_refused_without_waiting(
    folder: Path, name: str, kind: str
) -> None:
    path = folder / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(1 << 34)
    else:
        path.symlink_to(kind)
    assert all(error.file == str(path) for error in refused(folder))


def test_a_link_to_a_plain_file_is_none_of_these(folder: Path, tmp_path: Path) -> None:
    moved = (folder / "tokenizer.json").rename(tmp_path / "blob")
    (folder / "tokenizer.json").symlink_to(moved)
    open_model(str(folder), device="cpu")


LOOPS = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "writes": "{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
    "multiplies": "{{ 'x' * 10 ** 11 }}",
    "grows": "{% set n = namespace(x='xx') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}"
    "{% endfor %}{{ n.x }}",
    "pads": "{{ 'x' | center(10 ** 10) }}",
    "calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "is long": "x" * 300_000,
}


@pytest.mark.parametrize("template", LOOPS.values(), ids=LOOPS)
def test_a_chat_template_that_does_not_end_is_refused_while_planning(
    folder: Path, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safeedit.model.template_limits.SECONDS", 1.0)
    (folder / "chat_template.jinja").write_text(template + CHAT_TEMPLATE)
    for error in refused(folder):
        assert "chat template" in error.message
        assert error.file == str(folder)


def test_honest_templates_pass_even_where_they_refuse_a_conversation() -> None:
    check_template(CHAT_TEMPLATE)
    check_template("{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}x")
    check_template("{% generation %}{{ messages | tojson(indent=2) }}{% endgeneration %}")
    check_template("{% for m in messages %}{{ m.content }}{% continue %}{% endfor %}")


def test_a_template_that_goes_astray_on_some_texts_only_is_stopped_by_the_clock() -> None:
    with pytest.raises(ModelError, match="within 0 seconds"), under_a_clock(0.3):
        while True:
            pass
    with under_a_clock(0.05):
        pass
    time.sleep(0.1)  # nothing comes late


ADDED = ["<|tool|>", "<|turn|>"]


def add_tokens(folder: Path, *, template: bool) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(ADDED, special_tokens=True)
    if template:
        tokenizer.chat_template = "<|turn|>" + CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)


def test_tokens_that_the_template_uses_and_the_model_does_not_embed_are_found_while_planning(
    folder: Path,
) -> None:
    add_tokens(folder, template=True)
    for error in refused(folder):
        assert "'<|turn|>'" in error.message
        assert "400 rows" in error.message
        assert "resize" in error.remedy


def test_an_end_token_that_the_model_does_not_embed_is_found_while_planning(folder: Path) -> None:
    add_tokens(folder, template=False)
    rewrite(folder / "tokenizer_config.json", eos_token="<|tool|>")
    for error in refused(folder):
        assert "eos_token ('<|tool|>') is token 400" in error.message


def test_added_tokens_that_no_prompt_holds_do_no_harm_and_are_told_where_one_does(
    folder: Path,
) -> None:
    add_tokens(folder, template=False)
    open_config(str(folder))
    engine: Engine = open_model(str(folder), device="cpu").engine
    assert engine.codec.encode(["Who is it?"])
    with pytest.raises(AuditError, match="token 400, which was added") as caught:
        engine.codec.encode(["Who <|tool|> is it?"])
    assert "<|tool|>" not in str(caught.value)


VALUES: list[Any] = [
    *(-1, 0, 1, 3, 10**6, 10**18, -(10**18), 2.5, 1e308, True, False, None),
    *("", "x", "silu", "../..", "\0", [], [1], {}, {"a": {"b": 1}}, "float32", [[]]),
]


def test_a_hundred_spoilt_configs_open_or_are_refused_soon(folder: Path) -> None:
    """Any field, any value; whatever is let through also runs."""
    chance = random.Random(13)
    path = folder / "config.json"
    whole = json.loads(path.read_text())
    fields = [*whole, "rope_scaling", "rope_theta", "layer_types", "sliding_window", "id2label"]
    fields += ["num_labels", "quantization_config", "text_config", "auto_map", "torch_dtype"]
    n_refused, remedies = 0, []
    for _ in range(100):
        spoilt = dict(whole)
        for field in chance.sample(fields, chance.choice((1, 1, 2))):
            if chance.random() < 0.15:
                spoilt.pop(field, None)
            else:
                spoilt[field] = chance.choice(VALUES)
        path.write_text(json.dumps(spoilt))
        start = time.monotonic()
        try:
            open_config(str(folder))
            model = open_model(str(folder), device="cpu")
            prompts = model.engine.codec.encode(["Who is it?"])
            model.engine.generate(prompts, max_new_tokens=2)
        except SafeeditError as error:
            n_refused += 1
            remedies.append(error.remedy)
        assert time.monotonic() - start < SECONDS, spoilt
    assert 30 < n_refused < 100
    assert all(remedies)


def test_sixty_files_with_spoilt_bytes_open_or_are_refused_soon(
    sound: Path, tmp_path: Path
) -> None:
    chance = random.Random(14)
    names = ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"]
    n_refused = 0
    for turn in range(60):
        folder = copy(sound, tmp_path / str(turn))
        path = folder / chance.choice([*names, "model.safetensors"])
        content = bytearray(path.read_bytes())
        reach = min(len(content), 4000)  # the header of the weights, rather than their values
        for _ in range(chance.choice((1, 3))):
            place = chance.randrange(min(reach, len(content)))
            match chance.randrange(3):
                case 0:
                    content[place] = chance.randrange(256)
                case 1:
                    del content[place : place + chance.randrange(40)]
                case 2:
                    content[place:place] = chance.choice((b"{", b"[", b'"', b"-1", b"9" * 400))
        path.write_bytes(content)
        start = time.monotonic()
        try:
            open_config(str(folder))
            model = open_model(str(folder), device="cpu")
            model.engine.generate(model.engine.codec.encode(["Who is it?"]), max_new_tokens=2)
        except SafeeditError:
            n_refused += 1
        assert time.monotonic() - start < SECONDS
    assert 15 < n_refused < 60
