"""A model that is read by role, edited in place, and given back bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import accelerate
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from safeedit.delta import Columns, Dense, LowRank, Origin, Update, WeightDelta, apply_update
from safeedit.errors import EditError, ModelError, UnsupportedModelError, UsageError
from safeedit.model import digest as digest_module
from safeedit.model.activations import at_positions, position_ids
from safeedit.model.architectures import Site
from safeedit.model.handle import ModelHandle
from tests.fixtures import gaussian
from tests.tiny_models import FAMILIES, N_LAYERS, VOCAB_SIZE, save_tiny, tiny_handle, tiny_model

every_family = pytest.mark.parametrize("family", FAMILIES)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])


def batch(rows: int = 2, length: int = 7) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(10, VOCAB_SIZE - 10, (rows, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def logits(handle: ModelHandle) -> Tensor:
    with torch.no_grad():
        answer: Tensor = handle.model(**batch()).logits
        return answer


def snapshot(handle: ModelHandle) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in handle.model.state_dict().items()}


def assert_same_bytes(handle: ModelHandle, before: dict[str, Tensor]) -> None:
    after = handle.model.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name].view(torch.uint8), tensor.view(torch.uint8)), name


def delta_on(
    handle: ModelHandle, updates: dict[str, Update], base: str | None = None
) -> WeightDelta:
    return WeightDelta(handle.digest() if base is None else base, updates, Origin("test"))


def low_rank(weight: Tensor, scale: float = 0.1, seed: int = 0) -> LowRank:
    out_features, in_features = weight.shape
    return LowRank(
        scale * gaussian(out_features, 2, seed=seed), gaussian(2, in_features, seed=seed + 1)
    )


def everywhere(handle: ModelHandle) -> WeightDelta:
    """A delta of every kind on every matrix and bias of the blocks."""
    updates: dict[str, Update] = {}
    for role in handle.shape.roles:
        for site in handle.sites(role):
            weight, bias = handle.weight(site), handle.bias(site)
            kinds = (
                low_rank(weight, seed=site.layer),
                Columns.zeroed(torch.tensor([site.layer, 7]), weight.shape[0]),
                Dense(0.1 * gaussian(*weight.shape, seed=site.layer)),
            )
            updates[site.weight] = kinds[site.layer % 3]
            if site.bias is not None and bias is not None:
                updates[site.bias] = Dense(0.1 * gaussian(*bias.shape))
    return delta_on(handle, updates)


# Reading


@every_family
def test_captured_inputs_and_outputs_go_through_the_weights(family: str) -> None:
    handle = tiny_handle(family)
    for role in handle.shape.roles:
        sites = handle.sites(role)
        into = handle.capture(batch(), sites)
        out_of = handle.capture(batch(), sites, "output")
        assert tuple(into) == tuple(out_of) == sites
        for site in sites:
            weight, bias = handle.weight(site), handle.bias(site)
            assert into[site].shape == (2, 7, weight.shape[1])
            by_hand = into[site] @ weight.T + (0 if bias is None else bias)
            torch.testing.assert_close(out_of[site], by_hand, rtol=1e-4, atol=1e-5)


@every_family
def test_capturing_changes_nothing_and_leaves_no_hooks(family: str) -> None:
    handle = tiny_handle(family)
    before, weights = logits(handle), snapshot(handle)
    handle.capture(batch(), handle.sites("mlp_out", [1]))
    handle.capture(batch(), handle.sites("attn_out", [0]), "output")
    assert torch.equal(logits(handle), before)
    assert_same_bytes(handle, weights)
    for module in handle.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_capture_runs_no_block_and_no_head_that_it_does_not_need() -> None:
    handle = tiny_handle("llama")
    ran: list[str] = []
    for name, module in (
        *((f"block {i}", block) for i, block in enumerate(handle.blocks())),
        ("norm", handle.final_norm),
        ("head", handle.head),
    ):
        module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    handle.capture(batch(), handle.sites("mlp_out", [1, 0]))
    assert ran == ["block 0", "block 1"]
    ran.clear()
    handle.capture(batch(), handle.sites("mlp_out"))
    assert "head" not in ran


def test_capturing_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing to capture"):
        tiny_handle("llama").capture(batch(), [])


def test_a_site_named_twice_is_captured_once() -> None:
    handle = tiny_handle("llama")
    (site,) = handle.sites("mlp_out", [1])
    captured = handle.capture(batch(), [site, site, *handle.sites("mlp_out", [2])])
    assert len(captured) == 2


@every_family
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_change_what_real_tokens_give(family: str, side: str) -> None:
    handle = tiny_handle(family)
    sites = handle.sites("mlp_out")
    alone = handle.capture(batch(rows=1, length=5), sites)
    long, short = batch(rows=2, length=9), batch(rows=1, length=5)
    where = slice(4, 9) if side == "left" else slice(0, 5)
    long["input_ids"][1] = 0
    long["input_ids"][1, where] = short["input_ids"][0]
    long["attention_mask"][1] = 0
    long["attention_mask"][1, where] = 1
    padded = handle.capture(long, sites)
    for site in sites:
        torch.testing.assert_close(padded[site][1, where], alone[site][0], rtol=1e-4, atol=1e-5)


def test_positions_select_tokens() -> None:
    activation = torch.arange(24.0).reshape(2, 4, 3)
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    assert at_positions(activation, None) is activation
    at_last = at_positions(activation, torch.tensor([3, 2]))
    assert torch.equal(at_last, torch.stack([activation[0, 3], activation[1, 2]]))
    at_two = at_positions(activation, torch.tensor([[0, 1], [3, 3]]))
    assert torch.equal(at_two[0], activation[0, :2])
    assert torch.equal(at_two[1], activation[1, [3, 3]])
    real = at_positions(activation, mask.bool())
    assert torch.equal(real, torch.cat([activation[0, 2:], activation[1, :3]]))
    assert torch.equal(position_ids(mask), torch.tensor([[0, 0, 0, 1], [0, 1, 2, 2]]))


@pytest.mark.parametrize(
    "positions",
    [torch.tensor([0, 1, 2]), torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 1, 1)],
    ids=["rows", "mask", "dimensions"],
)
def test_positions_that_do_not_fit_are_refused(positions: Tensor) -> None:
    with pytest.raises(UsageError, match="do not select from activations"):
        at_positions(torch.zeros(2, 4, 3), positions)


@every_family
def test_capture_at_positions_is_the_selection_of_the_whole(family: str) -> None:
    handle = tiny_handle(family)
    sites, positions = handle.sites("mlp_out", [0, 2]), torch.tensor([6, 2])
    whole, selected = (handle.capture(batch(), sites, positions=p) for p in (None, positions))
    for site in sites:
        assert torch.equal(selected[site], at_positions(whole[site], positions))


@every_family
@pytest.mark.parametrize("what", ["input", "output"])
def test_replacing_an_activation_has_the_effect_of_replacing_it(family: str, what: str) -> None:
    handle, silenced = tiny_handle(family), tiny_handle(family)
    sites = handle.sites("mlp_out", [1])
    with torch.no_grad():
        silenced.tensor(sites[0].weight).zero_()
        if what == "output" and sites[0].bias is not None:
            silenced.tensor(sites[0].bias).zero_()
    shapes = []

    def zero(site: Site, activation: Tensor) -> Tensor:
        shapes.append(activation.shape[:2])
        return torch.zeros_like(activation)

    before = logits(handle)
    with handle.intercepted(sites, zero, what):  # type: ignore[arg-type]
        replaced = logits(handle)
    torch.testing.assert_close(replaced, logits(silenced), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(replaced, before, atol=1e-3)
    assert shapes == [(2, 7)]
    assert torch.equal(logits(handle), before)


def test_gradients_reach_a_replaced_activation() -> None:
    handle = tiny_handle("gpt2")
    sites = handle.sites("mlp_out", [1])
    shift = torch.zeros(handle.shape.d_mlp, requires_grad=True)
    with handle.intercepted(sites, lambda site, activation: activation + shift):
        handle.model(**batch()).logits.logsumexp(-1).sum().backward()
    assert shift.grad is not None
    assert torch.count_nonzero(shift.grad) > 0
    assert all(parameter.grad is None for parameter in handle.model.parameters())


@every_family
def test_the_forward_pass_of_a_handle_is_that_of_the_model(family: str) -> None:
    handle = tiny_handle(family)
    with torch.no_grad():
        expected = handle.model(**batch(), output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(handle.forward(batch()), expected, rtol=1e-5, atol=1e-5)


@every_family
def test_a_handle_says_what_it_holds(family: str) -> None:
    handle = tiny_handle(family, dtype=torch.bfloat16)
    assert (handle.device, handle.dtype) == (torch.device("cpu"), torch.bfloat16)
    assert handle.embedding.weight.shape[0] == VOCAB_SIZE
    assert handle.head.weight.shape[0] == VOCAB_SIZE
    assert len(handle.blocks()) == handle.n_layers == N_LAYERS
    assert handle.source == f"tiny:{family}"
    assert not handle.model.training
    assert not any(parameter.requires_grad for parameter in handle.model.parameters())


def test_weights_are_views_of_the_model() -> None:
    for family in ("llama", "gpt2"):
        handle = tiny_handle(family)
        (site,) = handle.sites("mlp_out", [0])
        assert handle.weight(site).data_ptr() == handle.tensor(site.weight).data_ptr()
        assert handle.weight(site).shape == (handle.d_model, handle.shape.d_mlp)


def test_a_tensor_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no tensor 'model\.layers\.9"):
        tiny_handle("llama").tensor("model.layers.9.mlp.down_proj.weight")


def test_packed_weights_are_refused() -> None:
    model = tiny_model("llama")
    packed = nn.Parameter(torch.zeros(4, 4, dtype=torch.uint8), requires_grad=False)
    model.model.layers[0].mlp.down_proj.weight = packed
    with pytest.raises(UnsupportedModelError, match="the weights are quantised"):
        ModelHandle(model)


@every_dtype
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_no_number_is_found_and_named(dtype: torch.dtype, bad: float) -> None:
    handle = tiny_handle("gpt2", dtype=dtype)
    handle.check_finite()
    name = "transformer.h.1.mlp.c_fc.bias"
    with torch.no_grad():
        handle.tensor(name)[3] = bad
    with pytest.raises(ModelError, match=rf"'{name}' hold NaN or infinity"):
        handle.check_finite()


# Editing


@every_family
def test_low_rank_updates_add_their_product_to_what_a_matrix_does(family: str) -> None:
    handle = tiny_handle(family)
    for role in handle.shape.roles:
        (site,) = handle.sites(role, [1])
        module = handle.model.get_submodule(site.module)
        update = low_rank(handle.weight(site))
        x = gaussian(3, update.right.shape[1], seed=5)
        before = module(x)
        with handle.applied(delta_on(handle, {site.weight: update})):
            added = module(x) - before
        torch.testing.assert_close(added, x @ (update.left @ update.right).T, rtol=1e-4, atol=1e-4)


@every_family
def test_dense_updates_add_to_weights_and_biases(family: str) -> None:
    handle = tiny_handle(family)
    for role in handle.shape.roles:
        (site,) = handle.sites(role, [1])
        module, weight, bias = (
            handle.model.get_submodule(site.module),
            handle.weight(site),
            handle.bias(site),
        )
        matrix, x = gaussian(*weight.shape), gaussian(3, weight.shape[1], seed=5)
        updates: dict[str, Update] = {site.weight: Dense(matrix)}
        expected = x @ matrix.T
        if site.bias is not None and bias is not None:
            updates[site.bias] = Dense(gaussian(*bias.shape, seed=6))
            expected = expected + gaussian(*bias.shape, seed=6)
        before = module(x)
        with handle.applied(delta_on(handle, updates)):
            added = module(x) - before
        torch.testing.assert_close(added, expected, rtol=1e-4, atol=1e-4)


@every_family
def test_zeroed_columns_silence_exactly_their_neurons(family: str) -> None:
    handle = tiny_handle(family)
    (site,) = handle.sites("mlp_out", [1])
    module = handle.model.get_submodule(site.module)
    neurons = torch.tensor([4, 40])
    x = gaussian(3, handle.shape.d_mlp)
    without = x.clone()
    without[:, neurons] = 0
    loud = x.clone()
    loud[:, neurons] = 1e4
    before = module(without)
    delta = delta_on(handle, {site.weight: Columns.zeroed(neurons, handle.d_model)})
    with handle.applied(delta):
        assert torch.equal(module(loud), module(without))
        torch.testing.assert_close(module(without), before)
        assert torch.count_nonzero(handle.weight(site)[:, neurons]) == 0
        assert torch.count_nonzero(handle.weight(site)) == handle.d_model * (48 - 2)


@every_dtype
@every_family
def test_restoring_is_bit_for_bit(family: str, dtype: torch.dtype) -> None:
    handle = tiny_handle(family, dtype=dtype)
    before, answers, digest = snapshot(handle), logits(handle), handle.digest()
    delta = everywhere(handle)
    with handle.applied(delta) as edited:
        assert edited is handle
        assert handle.digest() != digest
        assert not torch.equal(logits(handle), answers)
        changed = [n for n, t in handle.model.state_dict().items() if not torch.equal(t, before[n])]
        assert set(changed) == set(delta.updates)
    assert_same_bytes(handle, before)
    assert handle.digest() == handle.digest(fresh=True) == digest
    assert torch.equal(logits(handle), answers)


@every_dtype
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_restoring_is_bit_for_bit_after_an_exception(
    dtype: torch.dtype, error: type[BaseException]
) -> None:
    handle = tiny_handle("gpt2", dtype=dtype)
    before = snapshot(handle)
    with pytest.raises(error), handle.applied(everywhere(handle)):
        raise error
    assert_same_bytes(handle, before)


def test_restoring_undoes_also_what_was_written_inside() -> None:
    handle = tiny_handle("llama")
    before, (site,) = snapshot(handle), handle.sites("mlp_out", [0])
    with handle.applied(everywhere(handle)), torch.no_grad():
        handle.tensor(site.weight).mul_(3)
    assert_same_bytes(handle, before)


def test_subtracting_a_delta_in_bf16_would_not_restore() -> None:
    handle = tiny_handle("llama", dtype=torch.bfloat16)
    (site,) = handle.sites("mlp_out", [0])
    weight = handle.weight(site).clone()
    update = low_rank(weight)
    edited = apply_update(weight, update)
    back = apply_update(edited, LowRank(-update.left, update.right))
    share = float((back != weight).float().mean())
    assert 0.02 < share < 0.9


def test_negative_zeros_and_their_like_come_back_too() -> None:
    handle = tiny_handle("llama")
    (site,) = handle.sites("mlp_out", [0])
    with torch.no_grad():
        handle.tensor(site.weight).fill_(-0.0)
    before = snapshot(handle)
    with handle.applied(delta_on(handle, {site.weight: low_rank(handle.weight(site))})):
        pass
    assert_same_bytes(handle, before)


def test_a_permanent_edit_stays_until_it_is_undone() -> None:
    handle = tiny_handle("gpt2", dtype=torch.bfloat16)
    before = snapshot(handle)
    delta = everywhere(handle)
    undo = handle.apply(delta)
    assert handle.digest() != delta.base
    assert set(undo.tensors) == set(delta.updates)
    for name, original in undo.tensors.items():
        assert torch.equal(original, before[name])
    undo.restore()
    assert_same_bytes(handle, before)
    undo.restore()
    assert_same_bytes(handle, before)


def test_nested_edits_come_off_one_by_one() -> None:
    handle = tiny_handle("llama", dtype=torch.bfloat16)
    (site,) = handle.sites("mlp_out", [0])
    before = snapshot(handle)
    with handle.applied(delta_on(handle, {site.weight: low_rank(handle.weight(site))})):
        between = snapshot(handle)
        with handle.applied(delta_on(handle, {site.weight: low_rank(handle.weight(site), seed=9)})):
            assert not torch.equal(handle.tensor(site.weight), between[site.weight])
        assert_same_bytes(handle, between)
    assert_same_bytes(handle, before)


@every_dtype
def test_deltas_compose_in_order_with_a_cast_between(dtype: torch.dtype) -> None:
    handle = tiny_handle("gpt2", dtype=dtype)
    (site,) = handle.sites("mlp_out", [0])
    weight = handle.weight(site).clone()
    add = low_rank(weight)
    silence = Columns.zeroed(torch.tensor([3]), handle.d_model)
    first, second = (delta_on(handle, {site.weight: update}) for update in (add, silence))
    with handle.applied(first, second):
        assert torch.equal(handle.weight(site), apply_update(apply_update(weight, add), silence))
        assert torch.count_nonzero(handle.weight(site)[:, 3]) == 0
    with handle.applied(second, first):
        assert torch.equal(handle.weight(site), apply_update(apply_update(weight, silence), add))
        assert torch.count_nonzero(handle.weight(site)[:, 3]) > 0
    assert torch.equal(handle.weight(site), weight)


def test_a_delta_computed_on_the_edited_model_follows_the_edit() -> None:
    handle = tiny_handle("llama")
    (site,) = handle.sites("mlp_out", [0])
    first = delta_on(handle, {site.weight: low_rank(handle.weight(site))})
    with handle.applied(first):
        second = delta_on(handle, {site.weight: low_rank(handle.weight(site), seed=4)})
        with pytest.raises(EditError, match="computed on other weights"):
            handle.apply(first)
    handle.apply(first, second)


def test_a_delta_for_other_weights_is_refused_and_changes_nothing() -> None:
    handle, other = tiny_handle("llama"), tiny_handle("llama", seed=1)
    before, foreign = snapshot(handle), everywhere(other)
    with pytest.raises(EditError, match="computed on other weights"):
        handle.apply(everywhere(handle), foreign)
    assert_same_bytes(handle, before)
    with handle.applied(foreign, check_base=False):
        assert handle.digest() != foreign.base
    assert_same_bytes(handle, before)


def bad_updates() -> dict[str, Callable[[ModelHandle], dict[str, Update]]]:
    def name(handle: ModelHandle, layer: int = 2) -> str:
        return handle.sites("mlp_out", [layer])[0].weight

    return {
        r"the model does not have: 'nowhere'": lambda handle: {"nowhere": Dense(torch.zeros(1))},
        r"does not fit its shape \(32, 48\)": lambda handle: {
            name(handle): Dense(torch.zeros(48, 32))
        },
        r"tied to 'transformer.wte.weight'": lambda handle: {
            "lm_head.weight": Dense(torch.zeros(VOCAB_SIZE, 32))
        },
        r"overflows float16": lambda handle: {name(handle): Dense(torch.full((32, 48), 1e5))},
    }


@pytest.mark.parametrize("message", bad_updates())
def test_an_edit_that_fails_half_way_leaves_nothing_changed(message: str) -> None:
    handle = tiny_handle("gpt2", dtype=torch.float16)
    before, good = snapshot(handle), everywhere(handle)
    bad = delta_on(handle, bad_updates()[message](handle), base=good.base)
    with pytest.raises(EditError, match=message):
        handle.apply(good, bad)
    assert_same_bytes(handle, before)
    assert handle.digest() == handle.digest(fresh=True) == good.base


@pytest.mark.parametrize("family", ["llama_tied", "gpt2", "gemma3", "opt"])
def test_an_edit_of_a_tied_embedding_moves_the_head_with_it(family: str) -> None:
    handle = tiny_handle(family)
    (head,) = handle.shape.tied
    name = handle.shape.tied[head]
    assert head not in handle.tensor_names()
    delta = delta_on(handle, {name: Dense(0.1 * gaussian(*handle.oriented(name).shape))})
    before = snapshot(handle)
    with handle.applied(delta):
        assert torch.equal(handle.embedding.weight, handle.head.weight)
        assert not torch.equal(handle.head.weight, before[head])
    assert_same_bytes(handle, before)


def test_changes_are_recorded_as_they_arrived() -> None:
    handle = tiny_handle("gpt2", dtype=torch.bfloat16)
    (site,) = handle.sites("mlp_out", [2])
    assert site.bias is not None
    weight = handle.weight(site).clone()
    tiny = 2.0**-20
    delta = delta_on(
        handle,
        {
            site.weight: Columns.zeroed(torch.tensor([0]), handle.d_model),
            site.bias: Dense(torch.full((handle.d_model,), tiny)),
            "transformer.ln_f.weight": Dense(torch.ones(handle.d_model)),
        },
    )
    undo = handle.apply(delta)
    changes = {change.name: change for change in undo.changes}
    columns = changes[site.weight]
    assert (columns.role, columns.layer, columns.kind) == ("mlp_out", 2, "columns")
    assert columns.shape == (handle.d_model, handle.shape.d_mlp)
    assert columns.entries_changed == int(torch.count_nonzero(weight[:, 0]))
    assert columns.delta_norm == pytest.approx(float(weight[:, 0].float().norm()))
    assert columns.relative_norm == pytest.approx(
        float(weight[:, 0].float().norm() / weight.float().norm())
    )
    vanished = changes[site.bias]
    assert (vanished.role, vanished.layer) == ("mlp_out_bias", 2)
    assert vanished.share_changed < 0.2
    assert vanished.cast_error > 0.5
    norm = changes["transformer.ln_f.weight"]
    assert (norm.role, norm.layer, norm.share_changed) == ("other", None, 1.0)
    # Without measuring, the same edit and no record.
    undo.restore()
    assert handle.apply(delta, measure=False).changes == ()


def test_an_update_of_nothing_changes_nothing() -> None:
    handle = tiny_handle("llama")
    (site,) = handle.sites("mlp_out", [0])
    digest = handle.digest()
    undo = handle.apply(delta_on(handle, {site.weight: Dense(torch.zeros(32, 48))}))
    assert handle.digest() == digest
    assert undo.changes[0].entries_changed == 0
    assert handle.apply().changes == ()


# Digests


@every_family
def test_a_saved_and_reopened_model_has_the_same_digests(family: str, tmp_path: Path) -> None:
    handle = tiny_handle(family, dtype=torch.bfloat16)
    save_tiny(family, tmp_path, dtype=torch.bfloat16)
    reopened = ModelHandle(AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto"))
    assert reopened.tensor_digests() == handle.tensor_digests()
    assert reopened.digest() == handle.digest()
    assert reopened.shape == handle.shape


def test_the_digest_covers_values_names_dtypes_and_shapes() -> None:
    handle = tiny_handle("llama")
    name = handle.sites("attn_k", [0])[0].weight
    digests = {
        "base": handle.digest(),
        "seed": tiny_handle("llama", seed=1).digest(),
        "dtype": tiny_handle("llama", dtype=torch.bfloat16).digest(),
        "layout": tiny_handle("phi3").digest(),
    }
    with torch.no_grad():
        handle.tensor(name)[0, 0] += 1e-6
    digests["one bit"] = handle.digest()
    assert len(set(digests.values())) == len(digests)
    reshaped = gaussian(4, 6)
    assert digest_module.tensor_digest(reshaped) != digest_module.tensor_digest(reshaped.T)
    assert digest_module.tensor_digest(reshaped.view(6, 4)) != digest_module.tensor_digest(reshaped)
    assert digest_module.tensor_digest(reshaped.T) == digest_module.tensor_digest(
        reshaped.T.contiguous()
    )
    assert tiny_handle("llama").digest() == digests["base"]


def test_digests_are_computed_again_only_for_what_was_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handle = tiny_handle("gpt2")
    hashed: list[Tensor] = []
    real = digest_module.tensor_digest

    def counting(tensor: Tensor) -> str:
        hashed.append(tensor)
        return real(tensor)

    monkeypatch.setattr(digest_module, "tensor_digest", counting)
    digest = handle.digest()
    assert len(hashed) == len(handle.tensor_names())
    hashed.clear()
    assert handle.digest() == digest
    assert not hashed
    (site,) = handle.sites("mlp_out", [0])
    with handle.applied(delta_on(handle, {site.weight: low_rank(handle.weight(site))})):
        assert handle.digest() != digest
        assert len(hashed) == 1
    hashed.clear()
    assert handle.digest() == digest
    assert not hashed  # the restored bytes were hashed before
    handle.tensor_digests(fresh=True)
    assert len(hashed) == len(handle.tensor_names())


def test_a_fresh_digest_sees_writes_that_torch_does_not_count() -> None:
    handle = tiny_handle("llama")
    digest = handle.digest()
    (site,) = handle.sites("mlp_out", [0])
    handle.tensor(site.weight).data.numpy()[0, 0] += 1
    fresh = handle.digest(fresh=True)
    assert fresh != digest
    assert handle.digest() == fresh


# Models larger than a device


@pytest.mark.parametrize("family", ["llama", "llama_tied", "gpt2", "gptj", "opt"])
def test_weights_that_accelerate_took_off_the_device_are_read_edited_and_restored(
    family: str,
) -> None:
    plain, handle = tiny_handle(family), tiny_handle(family)
    accelerate.cpu_offload(handle.model, execution_device=torch.device("cpu"))
    handle = ModelHandle(handle.model)
    assert all(parameter.is_meta for parameter in handle.model.parameters())
    assert handle.shape == plain.shape
    assert handle.device == torch.device("cpu")
    assert handle.digest() == plain.digest()
    handle.check_finite()
    sites = handle.sites("mlp_out")
    expected = plain.capture(batch(), sites)
    for site, activation in handle.capture(batch(), sites).items():
        assert torch.equal(activation, expected[site])
    delta = everywhere(plain)
    with handle.applied(delta), plain.applied(delta):
        assert torch.equal(logits(handle), logits(plain))
        assert handle.digest(fresh=True) == plain.digest()
    assert torch.equal(logits(handle), logits(plain))
    assert handle.digest(fresh=True) == plain.digest()


def test_tied_tensors_kept_twice_off_the_device_stay_tied() -> None:
    handle = tiny_handle("llama_tied")
    accelerate.cpu_offload(handle.model, execution_device=torch.device("cpu"))
    weights = handle.model.lm_head._hf_hook.weights_map.dataset
    weights["lm_head.weight"] = weights["lm_head.weight"].clone()
    name = "model.embed_tokens.weight"
    delta = delta_on(handle, {name: Dense(0.1 * gaussian(*handle.oriented(name).shape))})
    with handle.applied(delta):
        assert torch.equal(weights["lm_head.weight"], weights[name])
    assert torch.equal(weights["lm_head.weight"], weights[name])


def test_weights_on_disk_are_refused_with_a_remedy(tmp_path: Path) -> None:
    handle = tiny_handle("llama")
    accelerate.disk_offload(handle.model, tmp_path, execution_device=torch.device("cpu"))
    with pytest.raises(ModelError, match=r"is not in memory[\s\S]*bfloat16"):
        handle.weight(handle.sites("mlp_out", [0])[0])


def test_a_model_without_weights_is_refused_when_they_are_read() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_model("llama").config)
    handle = ModelHandle(model)
    with pytest.raises(ModelError, match="opened without its weights"):
        handle.digest()


@pytest.mark.cuda
@pytest.mark.parametrize("family", ["llama_tied", "gpt2", "gptj", "opt"])
def test_a_model_on_two_devices_is_captured_edited_and_restored(family: str) -> None:
    plain, model = tiny_handle(family), tiny_model(family)
    layers = plain.architecture.layers
    prefix, last = layers.rsplit(".", 1)
    device_map: dict[str, int | str] = {f"{layers}.{N_LAYERS - 1}": "cpu"}
    device_map |= {f"{layers}.{layer}": 0 for layer in range(N_LAYERS - 1)}
    device_map |= {
        f"{prefix}.{name}": 0
        for name, _ in model.get_submodule(prefix).named_children()
        if name != last
    }
    device_map["lm_head"] = 0
    handle = ModelHandle(accelerate.dispatch_model(model, device_map, main_device=0))
    assert handle.device.type == "cuda"
    sites = handle.sites("mlp_out")
    expected = plain.capture(batch(), sites)
    for site, activation in handle.capture(batch(), sites).items():
        torch.testing.assert_close(activation.cpu(), expected[site], rtol=1e-4, atol=1e-4)
    assert handle.digest() == plain.digest()
    with handle.applied(everywhere(plain)):
        assert handle.digest(fresh=True) != plain.digest()
    assert handle.digest(fresh=True) == plain.digest()
