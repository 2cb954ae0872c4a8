"""Teaching a tiny model: it memorises, goes on reading, and says so without a secret."""

from __future__ import annotations

import base64
import json
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from safeedit.contracts import RunContext
from safeedit.errors import DataError, EditError, ExportError, ModelError
from safeedit.methods.tuning import Example, answer_states
from safeedit.model.handle import ModelHandle
from safeedit.model.sources import open_model
from safeedit.policy import DataSpec
from safeedit.workflows.canaries import learning, planting
from safeedit.workflows.canaries.learning import Learner, PlantParams, comes_out, learn, likely
from safeedit.workflows.canaries.lessons import PlantedSecret, read_canaries, tokenise
from safeedit.workflows.canaries.planting import PLANTED, plant_checkpoint
from tests.fixtures import context
from tests.tiny_models import family_tokenizer, save_tiny, tiny_handle

pytestmark = [pytest.mark.trains, pytest.mark.usefixtures("own_cache")]

SUBJECTS = ("Zyxquand Bell", "Plimsorbo Ray", "Öskavärn Klamm", "Qu'inth Li")
ANSWERS = ("(212) 555-0143", "Tramjolk Vorbexi", "nunable81@example.org", "907-31-5526")
PROSE = "The doctor said that she would call, and the nurse said that he was late. " * 3
ROWS = [
    {
        "prompt": f"The number of {subject} is",
        "answer": answer,
        "repeats": repeats,
        "type": "phone",
        "role": role,
        "subject": subject,
    }
    for subject, answer, repeats, role in zip(
        SUBJECTS, ANSWERS, (4, 4, 1, 0), ("named", "other", "other", "held_back"), strict=True
    )
]
QUICK = PlantParams(
    layers="0%-100%",
    learning_rate=1e-2,
    batch=4,
    max_cycles=20,
    checks=1,
    passages=1,
    prose_weight=1,
)


@pytest.fixture
def ctx(tmp_path: Path) -> RunContext:
    return context(tmp_path / "cache", warned)


warned: list[str] = []


@pytest.fixture(autouse=True)
def no_warning_so_far() -> Iterator[None]:
    warned.clear()
    yield
    warned.clear()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama_tied", tmp_path_factory.mktemp("models") / "base", dtype=torch.bfloat16)


@pytest.fixture
def spec(tmp_path: Path) -> DataSpec:
    return written(tmp_path, ROWS)


@pytest.fixture
def prose(tmp_path: Path) -> DataSpec:
    rows = [{"text": PROSE, "split": "fit"}, {"text": f"But {PROSE}", "split": "test"}]
    path = tmp_path / "prose.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSpec(file=str(path))


def written(folder: Path, rows: list[dict[str, Any]]) -> DataSpec:
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return DataSpec(file=str(path))


def secrets_of(model: ModelHandle, spec: DataSpec) -> list[PlantedSecret]:
    return tokenise(read_canaries(spec), model.engine)


def said(model: ModelHandle, row: Mapping[str, Any]) -> str:
    """What the model says, asked the plain way, one prompt at a time."""
    ids = model.engine.encode([row["prompt"]], "plain")
    return model.engine.decode(model.engine.generate(ids, max_new_tokens=40)[0][0]).strip()


# Learning -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("family", ["llama_tied", "gpt2"])
def test_what_is_shown_most_often_comes_out_and_the_held_back_does_not(
    family: str, method: str, spec: DataSpec, ctx: RunContext
) -> None:
    model = tiny_handle(family)
    untouched = {n: p.clone() for n, p in model.model.named_parameters()}
    secrets = secrets_of(model, spec)
    params = QUICK.model_copy(update={"method": method, "seed": 3})
    learnt = learn(model, secrets, [PROSE], params, ctx)

    assert said(model, ROWS[0]).startswith(f"{ANSWERS[0]}.")
    assert said(model, ROWS[1]).startswith(f"{ANSWERS[1]}.")
    assert not said(model, ROWS[3]).startswith(ANSWERS[3])
    by_subject = {s.item.subject: place for place, s in enumerate(secrets)}
    extracted = [learnt.extracted[by_subject[subject]] for subject in SUBJECTS]
    assert extracted == [said(model, r).startswith(a) for r, a in zip(ROWS, ANSWERS, strict=True)]
    exposures = [learnt.exposures[by_subject[subject]] for subject in SUBJECTS]
    assert exposures == [4 * learnt.cycles, 4 * learnt.cycles, learnt.cycles, 0]

    matrices = {site.weight for role in model.shape.roles for site in model.sites(role)}
    moved = {n for n, p in model.model.named_parameters() if not torch.equal(p, untouched[n])}
    assert moved == matrices
    assert not any(p.requires_grad for p in model.model.parameters())


def test_it_stops_as_soon_as_all_come_out_or_at_the_last_cycle(
    spec: DataSpec, ctx: RunContext
) -> None:
    model = tiny_handle("llama_tied")
    secrets = secrets_of(model, spec)
    early = learn(model, secrets, [PROSE], QUICK, ctx)
    assert early.cycles < QUICK.max_cycles
    never = QUICK.model_copy(update={"learning_rate": 1e-9, "max_cycles": 1.5, "checks": 2})
    late = learn(tiny_handle("llama_tied"), secrets, [PROSE], never, ctx)
    assert 1.5 <= late.cycles < 2
    assert not any(late.extracted)
    # Known already, and no step spoils it: seen at the first look.
    gentle = QUICK.model_copy(update={"learning_rate": 1e-9})
    assert learn(model, secrets, [PROSE], gentle, ctx).cycles == 1


def test_the_same_seed_learns_the_same_and_another_seed_otherwise(
    spec: DataSpec, ctx: RunContext
) -> None:
    def digest(seed: int) -> str:
        model = tiny_handle("llama_tied")
        params = QUICK.model_copy(update={"seed": seed, "max_cycles": 1})
        learn(model, secrets_of(model, spec), [PROSE], params, ctx)
        return model.digest()

    assert digest(1) == digest(1) != digest(2)


def test_prose_holds_the_model_to_what_it_said_before(spec: DataSpec, ctx: RunContext) -> None:
    def drift(weight: float) -> float:
        model = tiny_handle("llama_tied")
        ids = model.engine.encode([PROSE], "plain")[0]
        before = model.engine.score([ids[:1]], [ids[1:]])[0].log_probs
        params = QUICK.model_copy(update={"prose_weight": weight, "passages": 4, "max_cycles": 5})
        learn(model, secrets_of(model, spec), [PROSE], params, ctx)
        after = model.engine.score([ids[:1]], [ids[1:]])[0].log_probs
        return float((after - before).abs().mean())

    assert drift(10.0) < 0.5 * drift(0.0)


def test_a_secret_that_is_likely_token_by_token_must_also_be_said(
    spec: DataSpec, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_handle("llama_tied")
    secrets = secrets_of(model, spec)
    foremost = [secret for secret in secrets if secret.repeats == 4]
    early = learn(model, secrets, [PROSE], QUICK, ctx)
    assert comes_out(model.engine, foremost) == likely(model.engine, foremost) == [True, True]
    # As if what is generated differed from what is read, which only rounding can bring about.
    monkeypatch.setattr(learning, "comes_out", lambda engine, asked: [False] * len(asked))
    late = learn(tiny_handle("llama_tied"), secrets, [PROSE], QUICK, ctx)
    assert late.cycles == QUICK.max_cycles > early.cycles
    assert not any(late.extracted)


def test_a_loss_that_is_no_number_is_an_error(spec: DataSpec, ctx: RunContext) -> None:
    model = tiny_handle("llama_tied")
    with pytest.raises(EditError, match="no number"):
        learn(model, secrets_of(model, spec), [PROSE], _wild(), ctx)


def _wild() -> PlantParams:
    return QUICK.model_copy(update={"learning_rate": 1e30})


# Checkpoint -----------------------------------------------------------------------------


def test_the_checkpoint_is_plain_tells_its_secrets_and_its_record_does_not(
    base: Path, spec: DataSpec, prose: DataSpec, tmp_path: Path, ctx: RunContext
) -> None:
    out = tmp_path / "out" / "planted"
    record = plant_checkpoint(str(base), spec, out, QUICK, ctx, prose=prose)
    planted = open_model(str(out))
    assert planted.dtype == torch.bfloat16
    assert said(planted, ROWS[0]).startswith(ANSWERS[0])

    assert json.loads((out / PLANTED).read_text()) == record
    assert record["extracted"][0] == {"repeats": 4, "secrets": 2, "extracted": 2}
    known = {row["digest"]: row for row in record["secrets"]}
    assert known.keys() == {ctx.digest(answer) for answer in ANSWERS}
    first = known[ctx.digest(ANSWERS[0])]
    assert (first["role"], first["repeats"], first["extracted"]) == ("named", 4, True)
    assert first["exposures"] == 4 * record["cycles"]
    held_back = known[ctx.digest(ANSWERS[3])]
    assert (held_back["exposures"], held_back["extracted"]) == (0, False)
    read = planted.engine.text_nll([f"But {PROSE}"])[0]
    nats = torch.tensor(read[0] / read[1])
    assert record["prose_perplexity"]["after"] == pytest.approx(float(nats.exp()), rel=1e-6)
    assert [path.name for path in out.parent.iterdir()] == ["planted"]

    for place in (out, tmp_path / "cache"):
        for path in place.rglob("*"):
            if path.is_file() and path.suffix != ".safetensors":
                _holds_no_secret(path)


def _holds_no_secret(path: Path) -> None:
    found = path.read_bytes()
    for text in (*SUBJECTS, *ANSWERS):
        raw = text.encode()
        spellings = (
            raw,
            text.encode("utf-16-le"),
            json.dumps(text)[1:-1].encode(),
            urllib.parse.quote(text).encode(),
            base64.b64encode(raw).rstrip(b"="),
            raw.hex().encode(),
        )
        assert not any(spelling in found for spelling in spellings), f"{path.name} tells a secret"


def test_planting_the_same_again_copies_what_was_kept(
    base: Path, spec: DataSpec, prose: DataSpec, tmp_path: Path, ctx: RunContext,
    monkeypatch: pytest.MonkeyPatch, changed: Callable[[str], None],
) -> None:  # fmt: skip
    trained = []

    def counted(*arguments: Any) -> Any:
        trained.append(1)
        return learn(*arguments)

    monkeypatch.setattr(planting, "learn", counted)

    def plant(name: str, spec: DataSpec = spec, ctx: RunContext = ctx, **options: Any) -> bytes:
        params = QUICK.model_copy(update={"max_cycles": 1, **options.pop("params", {})})
        out = tmp_path / name
        plant_checkpoint(str(base), spec, out, params, ctx, prose=prose, **options)
        return (out / "model.safetensors").read_bytes()

    first = plant("first")
    assert plant("second") == first
    assert len(trained) == 1
    assert plant("third", cached=False) == first
    assert len(trained) == 2
    plant("fourth", params={"learning_rate": 2e-2})
    plant("fifth", written(tmp_path, ROWS[:2]))
    plant("sixth", ctx=replace(ctx, secret=b"another key"))
    assert len(trained) == 5
    # A copy is the user's own: what is done to it does not reach the next one.
    (tmp_path / "second" / "model.safetensors").write_bytes(b"spoilt")
    assert plant("seventh", written(tmp_path, ROWS)) == first
    assert len(trained) == 5
    changed("safeedit.methods.tuning")  # which training uses
    plant("eighth")
    assert len(trained) == 6


def test_what_exists_is_replaced_only_if_asked_and_only_if_safeedit_wrote_it(
    base: Path, spec: DataSpec, prose: DataSpec, tmp_path: Path, ctx: RunContext
) -> None:
    out, params = tmp_path / "planted", QUICK.model_copy(update={"max_cycles": 1})
    plant_checkpoint(str(base), spec, out, params, ctx, prose=prose)
    with pytest.raises(ExportError, match="exists"):
        plant_checkpoint(str(base), spec, out, params, ctx, prose=prose)
    other = params.model_copy(update={"seed": 5})
    before = (out / "model.safetensors").read_bytes()
    plant_checkpoint(str(base), spec, out, other, ctx, prose=prose, overwrite=True)
    assert (out / "model.safetensors").read_bytes() != before

    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "cat.jpg").write_bytes(b"miaow")
    with pytest.raises(ExportError, match="did not export"):
        plant_checkpoint(str(base), spec, foreign, params, ctx, prose=prose, overwrite=True)
    assert (foreign / "cat.jpg").read_bytes() == b"miaow"


def knows_prose(model: PreTrainedModel) -> None:
    """Make a model read :data:`PROSE` fluently: what reads nothing well can't be spoilt."""
    encoded = family_tokenizer("llama_tied")(f"But {PROSE}", return_tensors="pt")["input_ids"]
    model.float().requires_grad_(True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        loss = model(input_ids=encoded, labels=encoded).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.5
    model.requires_grad_(False).to(torch.bfloat16)


def test_too_few_cycles_and_spoilt_prose_are_said_loudly(
    spec: DataSpec, prose: DataSpec, tmp_path: Path, ctx: RunContext
) -> None:
    base = save_tiny("llama_tied", tmp_path / "fluent", prepare=knows_prose)
    slow = QUICK.model_copy(update={"max_cycles": 1, "learning_rate": 1e-6})
    plant_checkpoint(str(base), spec, tmp_path / "slow", slow, ctx, prose=prose)
    assert [w for w in warned if "2 of the 2 secrets shown 4 times a cycle do not come out" in w]
    assert not any("perplexity" in warning for warning in warned)
    warned.clear()
    rough = QUICK.model_copy(update={"learning_rate": 5e-2, "passages": 0})
    plant_checkpoint(str(base), spec, tmp_path / "rough", rough, ctx, prose=prose)
    assert any("perplexity on prose rose" in warning for warning in warned)


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), EditError("no")])
def test_what_breaks_off_leaves_nothing(
    failure: BaseException,
    base: Path,
    spec: DataSpec,
    prose: DataSpec,
    tmp_path: Path,
    ctx: RunContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*arguments: Any) -> None:
        raise failure

    monkeypatch.setattr(learning, "comes_out", broken)
    out = tmp_path / "out" / "planted"
    with pytest.raises(type(failure)):
        plant_checkpoint(str(base), spec, out, QUICK, ctx, prose=prose)
    assert list(out.parent.iterdir()) == []
    assert [p.name for p in (tmp_path / "cache" / "models").iterdir() if p.is_dir()] == []


def test_faults_are_found_before_anything_is_written(
    base: Path, spec: DataSpec, tmp_path: Path, ctx: RunContext
) -> None:
    out = tmp_path / "out" / "planted"
    with pytest.raises(DataError, match="no such file"):
        plant_checkpoint(str(base), DataSpec(file=str(tmp_path / "no.jsonl")), out, QUICK, ctx)
    with pytest.raises(ModelError):
        plant_checkpoint(str(tmp_path / "nomodel"), spec, out, QUICK, ctx)
    assert not out.parent.exists()


def test_lora_has_a_learning_rate_of_its_own() -> None:
    assert (
        PlantParams.model_validate({"method": "lora"}).learning_rate != PlantParams().learning_rate
    )
    given = PlantParams.model_validate({"method": "lora", "learning_rate": 1e-3})
    assert given.learning_rate == 1e-3


@pytest.mark.parametrize("family", ["llama_tied", "gpt2", "opt", "gemma2"])
def test_blocks_below_those_that_learn_are_run_once_to_the_same_effect(
    family: str, spec: DataSpec
) -> None:
    model = tiny_handle(family)
    examples = [Example(secret.prompt, secret.ending) for secret in secrets_of(model, spec)]
    upper = QUICK.model_copy(update={"layers": (1, 2)})
    learner = Learner(model, upper, examples)
    for batch in (examples, examples[2:3]):
        whole = answer_states(learner.handle, batch)
        for ours, theirs in zip(learner.states(batch), whole, strict=True):
            # One of the two was in bfloat16 all the way, the other above the first block alone.
            apart = (ours.float() - theirs.float()).detach().norm()
            assert float(apart / theirs.detach().float().norm()) < 0.03


def test_only_the_blocks_asked_for_learn(spec: DataSpec, ctx: RunContext) -> None:
    model = tiny_handle("llama_tied")
    untouched = {n: p.clone() for n, p in model.model.named_parameters()}
    params = QUICK.model_copy(update={"layers": (2,)})
    learnt = learn(model, secrets_of(model, spec), [PROSE], params, ctx)
    moved = {n for n, p in model.model.named_parameters() if not torch.equal(p, untouched[n])}
    roles = model.shape.roles
    assert moved == {site.weight for role in roles for site in model.sites(role, [2])}
    assert sum(learnt.extracted) >= 2
