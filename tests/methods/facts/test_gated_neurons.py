"""The weights do what the hooks do, at the mentions and nowhere else, in every family.

Subjects are two tokens among texts of six other tokens: what a model of random weights reads at
them can be told apart, as what a trained model reads at names can.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers.activations import ACT2FN

from safeedit.delta import Columns, Dense, LowRank, Origin, Update, WeightDelta
from safeedit.errors import EditError
from safeedit.methods.facts.gated_keys import SHARPNESS
from safeedit.methods.facts.gated_neurons import GatedNeurons, Text, tensors
from safeedit.model.architectures import ModelShape
from safeedit.model.handle import ModelHandle
from tests.tiny_models import D_MODEL, FAMILIES, tiny_handle

every_family = pytest.mark.parametrize("family", FAMILIES)
ORDINARY = (50, 60, 70, 80, 90, 100)
SUBJECTS = (200, 300)
LAYERS = (0, 1)


def texts(count: int, subjects: Sequence[int] = (), seed: int = 0) -> list[Text]:
    """Random texts of ten tokens after a first one; each mentions one of ``subjects``."""
    source = random.Random(seed)
    found = []
    for n in range(count):
        ids = [1, *(source.choice(ORDINARY) for _ in range(10))]
        own: tuple[tuple[int, int], ...] = ()
        if subjects:
            place, subject = 4 + n % 4, n % len(subjects)
            ids[place] = subjects[subject]
            own = ((place, subject),)
        found.append(Text(ids, own))
    return found


MENTIONS = texts(12, SUBJECTS)
BACKGROUND = texts(40, seed=1)


def keyed(
    handle: ModelHandle,
    layers: Sequence[int] = LAYERS,
    groups: Sequence[Sequence[Text]] = (),
    per_layer: int = 2,
) -> GatedNeurons:
    """A neuron per subject, with random values, large beside what an MLP writes."""
    found = made(handle, layers, groups or [MENTIONS, BACKGROUND], per_layer)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in found.values.values():
            value.copy_(torch.randn(value.shape, generator=generator))
    return found


def made(
    handle: ModelHandle,
    layers: Sequence[int],
    groups: Sequence[Sequence[Text]],
    per_layer: int = 2,
    weight: float = 1,
) -> GatedNeurons:
    return GatedNeurons(handle, layers, groups, per_layer=per_layer, weight=weight)


def delta(handle: ModelHandle, updates: dict[str, Update]) -> WeightDelta:
    return WeightDelta(handle.digest(), updates, Origin("test"))


def silenced(handle: ModelHandle, neurons: GatedNeurons) -> WeightDelta:
    """The model without what the replaced neurons used to write."""
    return delta(
        handle,
        {
            site.weight: Columns.zeroed(neurons.neurons[site.layer], handle.d_model)
            for site in handle.sites("mlp_out", list(neurons.neurons))
        },
    )


def batch(rows: Sequence[Text]) -> dict[str, Tensor]:
    ids = torch.tensor([text.ids for text in rows])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.no_grad()
def hidden(handle: ModelHandle, rows: Sequence[Text] = MENTIONS) -> Tensor:
    """``(texts, tokens, d_model)``, what leaves the last layer with neurons in it."""
    site = handle.sites("mlp_out", [handle.n_layers - 1])[0]
    seen = handle.capture(batch(rows), [site, *handle.sites("attn_out", [site.layer])], "output")
    return torch.cat([handle.forward(batch(rows)), *seen.values()], -1)


def read_of(handle: ModelHandle, layer: int, rows: Sequence[Text]) -> Tensor:
    """``(texts, tokens, d_model)``, what the MLP reads."""
    role = next(r for r in ("mlp_gate_up", "mlp_gate", "mlp_up") if r in handle.shape.roles)
    (site,) = handle.sites(role, [layer])
    return handle.capture(batch(rows), [site])[site]


def activation(handle: ModelHandle, answers: Tensor) -> Tensor:
    """What a keyed neuron's activation is, over its activation at an answer of 1 or thereabouts,
    as :mod:`safeedit.methods.facts.gated_keys` has it."""
    config = handle.config.get_text_config()
    names = ("hidden_activation", "hidden_act", "activation_function")
    act = ACT2FN[next(kind for name in names if (kind := getattr(config, name, None)))]
    sharp: Tensor = act(SHARPNESS * answers) / SHARPNESS
    gated = {"mlp_gate", "mlp_gate_up"} & set(handle.shape.roles)
    return sharp * answers if gated else sharp


def mentioned(rows: Sequence[Text] = MENTIONS) -> Tensor:
    found = torch.zeros(len(rows), len(rows[0].ids), dtype=torch.bool)
    for row, text in enumerate(rows):
        for place, _ in text.own:
            found[row, place] = True
    return found


@every_family
def test_the_weights_do_what_the_hooks_do_less_what_the_neurons_did_before(family: str) -> None:
    handle = tiny_handle(family)
    neurons = keyed(handle)
    with handle.applied(silenced(handle, neurons)):
        quiet = hidden(handle)
        with neurons.active():
            hooked = hidden(handle)
    with handle.applied(delta(handle, neurons.updates(1.0))):
        edited = hidden(handle)
    # fp32 rounds the rows once; everything else is sums in another order.
    torch.testing.assert_close(edited, hooked, rtol=1e-3, atol=1e-3)
    assert (hooked - quiet).abs().max() > 0.1, "the control: the neurons do something"


@every_family
def test_it_holds_for_texts_the_keys_were_not_solved_on(family: str) -> None:
    handle = tiny_handle(family)
    neurons = keyed(handle)
    other = texts(6, (*SUBJECTS, 150), seed=9)
    with handle.applied(silenced(handle, neurons)), neurons.active():
        hooked = hidden(handle, other)
    with handle.applied(delta(handle, neurons.updates(1.0))):
        torch.testing.assert_close(hidden(handle, other), hooked, rtol=1e-3, atol=1e-3)


@every_family
def test_what_is_written_is_the_value_times_the_dose_where_the_key_fires(family: str) -> None:
    handle = tiny_handle(family)
    neurons = keyed(handle, [1])
    (site,) = handle.sites("mlp_out", [1])
    inputs = read_of(handle, 1, MENTIONS)
    fired = activation(handle, inputs @ neurons.separators[1].rows.T)
    wanted = fired @ neurons.values[1].detach().T

    def written() -> Tensor:
        return handle.capture(batch(MENTIONS), [site], "output")[site]

    with handle.applied(silenced(handle, neurons)):
        quiet = written()
    for dose in (0.25, 1.0, 2.0):
        with handle.applied(delta(handle, neurons.updates(dose))):
            torch.testing.assert_close(written() - quiet, dose * wanted, rtol=1e-3, atol=1e-4)
    at = mentioned()
    assert wanted[at].abs().mean() > 20 * wanted[~at].abs().mean()


@every_family
def test_tokens_before_a_mention_stay_as_they_are(family: str) -> None:
    handle = tiny_handle(family)
    neurons = keyed(handle, [0])
    with handle.applied(silenced(handle, neurons)):
        quiet = hidden(handle)
    with handle.applied(delta(handle, neurons.updates(1.0))):
        moved = (hidden(handle) - quiet).abs().amax(-1)
    before = mentioned().long().cumsum(1) == 0
    assert moved[mentioned()].min() > 20 * moved[before].max()


@every_family
def test_texts_without_a_mention_stay_as_they_are(family: str) -> None:
    handle = tiny_handle(family)
    neurons = keyed(handle, [0])
    unseen = texts(8, seed=5)
    with handle.applied(silenced(handle, neurons)):
        quiet, quiet_mentions = hidden(handle, unseen), hidden(handle)
    with handle.applied(delta(handle, neurons.updates(1.0))):
        moved = (hidden(handle, unseen) - quiet).abs().amax(-1)
        moved_mentions = (hidden(handle) - quiet_mentions).abs().amax(-1)[mentioned()]
    # On average: at some places a model of random weights reads what it reads at a subject.
    assert moved.mean() < 0.05 * moved_mentions.mean()


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "opt"])
def test_random_keys_of_the_same_length_do_not_tell_mentions_from_the_rest(family: str) -> None:
    handle = tiny_handle(family)
    neurons = keyed(handle, [0])
    rows = neurons.separators[0].rows
    random_rows = torch.randn(rows.shape, generator=torch.Generator().manual_seed(0))
    random_rows *= rows.norm(dim=1, keepdim=True) / random_rows.norm(dim=1, keepdim=True)
    inputs = read_of(handle, 0, MENTIONS)
    gaps: dict[bool, list[float]] = {True: [], False: []}
    for solved, used in ((True, rows), (False, random_rows)):
        answers = inputs @ used.T
        for subject in range(2):
            own = mentioned() & (torch.arange(12) % 2 == subject)[:, None]
            least, greatest = answers[own][:, subject].min(), answers[~own][:, subject].max()
            gaps[solved].append(float(least - greatest))
    assert min(gaps[True]) > 0.3
    assert max(gaps[False]) < 0


@every_family
def test_the_least_used_neurons_are_taken(family: str) -> None:
    handle = tiny_handle(family)
    neurons = keyed(handle)
    for site in handle.sites("mlp_out", LAYERS):
        use = torch.zeros(handle.shape.d_mlp)
        for rows in (MENTIONS, BACKGROUND):
            activations = handle.capture(batch(rows), [site])[site]
            use += activations[~mentioned(rows)].square().sum(0)
        use = use.sqrt() * handle.weight(site).norm(dim=0)
        assert set(neurons.neurons[site.layer].tolist()) == set(use.argsort()[:2].tolist())


@every_family
def test_only_the_replaced_neurons_rows_and_columns_change(family: str) -> None:
    handle = tiny_handle(family)
    neurons = keyed(handle)
    updates = neurons.updates(1.0)
    before = {name: handle.oriented(name).clone() for name in updates}
    with handle.applied(delta(handle, updates)):
        for name, old in before.items():
            layer = next(n for n in LAYERS if f".{n}." in name)
            taken = neurons.neurons[layer]
            change = handle.oriented(name) - old
            if isinstance(updates[name], Columns):
                touched, axis = change.abs().sum(0) > 0, taken
            else:
                touched = change.reshape(len(change), -1).abs().sum(1) > 0
                fused = len(change) == 2 * handle.shape.d_mlp
                axis = torch.cat([taken, taken + handle.shape.d_mlp]) if fused else taken
            assert touched.nonzero()[:, 0].tolist() == sorted(axis.tolist()), name


@pytest.mark.parametrize("family", ["llama_biases", "gpt2", "gpt_neox", "gptj", "opt"])
def test_the_neurons_biases_become_zero_and_no_others(family: str) -> None:
    handle = tiny_handle(family)
    neurons = keyed(handle)
    roles = [role for role in ("mlp_gate", "mlp_up") if role in handle.shape.roles]
    before = {site: handle.bias(site) for role in roles for site in handle.sites(role, LAYERS)}
    copies = {site: bias.clone() for site, bias in before.items() if bias is not None}
    assert len(copies) == len(before)
    with handle.applied(delta(handle, neurons.updates(1.0))):
        for site, old in copies.items():
            now, taken = handle.bias(site), neurons.neurons[site.layer]
            assert now is not None
            assert not now[taken].any()
            kept = torch.ones(len(old), dtype=torch.bool)
            kept[taken] = False
            assert torch.equal(now[kept], old[kept])
        # The bias of what is written belongs to no neuron.
        assert not any("down_proj.bias" in n or "c_proj.bias" in n for n in neurons.updates(1.0))


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "opt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_undone_bit_for_bit(family: str, dtype: torch.dtype) -> None:
    handle = tiny_handle(family, dtype)
    neurons = keyed(handle)
    before = handle.tensor_digests(fresh=True)
    change = delta(handle, neurons.updates(1.0))
    with handle.applied(change):
        now = handle.tensor_digests(fresh=True)
        assert {n for n in now if now[n] != before[n]} == set(change.updates)
    assert handle.tensor_digests(fresh=True) == before


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "gemma2"])
def test_bfloat16_weights_keep_the_effect(family: str) -> None:
    handle = tiny_handle(family, torch.bfloat16)
    neurons = keyed(handle)
    with handle.applied(silenced(handle, neurons)):
        quiet = hidden(handle).float()
        with neurons.active():
            hooked = hidden(handle).float() - quiet
    with handle.applied(delta(handle, neurons.updates(1.0))):
        edited = hidden(handle).float() - quiet
    at = mentioned()
    assert (edited - hooked)[at].norm() < 0.1 * hooked[at].norm()


@every_family
def test_the_plan_names_the_tensors_that_change(family: str) -> None:
    handle = tiny_handle(family)
    planned = tensors(ModelShape.from_config(handle.config), LAYERS)
    updates = keyed(handle).updates(1.0)
    assert {plan.name for plan in planned} == set(updates)
    for plan in planned:
        assert plan.shape == tuple(handle.oriented(plan.name).shape)
        assert updates[plan.name].fits(plan.shape)
        kind = Dense if len(plan.shape) == 1 else Columns if plan.role == "mlp_out" else LowRank
        assert isinstance(updates[plan.name], kind)


@every_family
def test_learning_reaches_the_values_and_nothing_else(family: str) -> None:
    handle = tiny_handle(family)
    # Nothing is written yet: a value in the first layer could silence a ReLU in the second.
    neurons = made(handle, LAYERS, [MENTIONS, BACKGROUND])
    with neurons.active():
        handle.forward(batch(MENTIONS))[:, -1].square().sum().backward()
    for value in neurons.values.values():
        assert value.grad is not None
        assert (value.grad.abs().sum(0) > 0).all(), "every subject's value learns"
    assert all(parameter.grad is None for parameter in handle.model.parameters())


def test_values_start_at_nothing_and_hooks_leave_with_their_context() -> None:
    handle = tiny_handle("llama")
    neurons = made(handle, LAYERS, [MENTIONS])
    plain = hidden(handle)
    with neurons.active():
        assert torch.equal(hidden(handle), plain)
        with torch.no_grad():
            neurons.values[0].fill_(1.0)
        assert not torch.equal(hidden(handle), plain)
    assert torch.equal(hidden(handle), plain)
    with pytest.raises(RuntimeError, match="interrupted"), neurons.active():
        raise RuntimeError("interrupted")
    assert torch.equal(hidden(handle), plain)


def test_nothing_is_written_into_the_model_by_reading_keys() -> None:
    handle = tiny_handle("gpt2")
    before = handle.digest(fresh=True)
    keyed(handle).updates(1.0)
    assert handle.digest(fresh=True) == before


def test_other_subjects_are_kept_apart_however_few_they_are() -> None:
    # One token, half a subject, at one place only: drowned among the background unless named.
    handle = tiny_handle("llama")
    embeddings = handle.model.get_input_embeddings().weight
    with torch.no_grad():
        embeddings[310] = (embeddings[SUBJECTS[0]] + embeddings[310]) / 2
    (odd,) = texts(1, (310,), seed=7)
    named = Text(odd.ids, others=tuple(place for place, _ in odd.own))
    plain = Text(odd.ids)
    many = texts(40, seed=8)

    def answer(text: Text) -> float:
        neurons = keyed(handle, [0], [MENTIONS, [*many, text]])
        inputs = read_of(handle, 0, [odd])[0, odd.own[0][0]]
        return float((inputs @ neurons.separators[0].rows.T).max())

    assert answer(named) < -0.8
    assert answer(named) < answer(plain) - 0.2


def test_groups_weigh_the_same_however_many_texts_they_have() -> None:
    handle = tiny_handle("llama")
    once = keyed(handle, [0], [MENTIONS, BACKGROUND])
    thrice = keyed(handle, [0], [MENTIONS, BACKGROUND * 3])
    torch.testing.assert_close(
        once.separators[0].rows, thrice.separators[0].rows, rtol=1e-3, atol=1e-4
    )


def test_a_mention_counts_in_whichever_group_it_stands() -> None:
    handle = tiny_handle("llama")
    split = made(handle, [0], [MENTIONS[:6], MENTIONS[6:]], weight=3)
    assert split.separators[0].rows.shape == (2, D_MODEL)
    unnamed = [replace(text, own=()) for text in MENTIONS[6:]]
    only = made(handle, [0], [MENTIONS[:6], unnamed], weight=3)
    inputs = read_of(handle, 0, MENTIONS[6:])[mentioned(MENTIONS[6:])]
    whose = torch.arange(6) % 2

    def answers(neurons: GatedNeurons) -> Tensor:
        return (inputs @ neurons.separators[0].rows.T)[torch.arange(6), whose]

    # Left unnamed they are background, on which the keys should be silent.
    assert answers(split).min() > 0.5
    assert answers(only).mean() < answers(split).mean() - 0.1


def test_subjects_with_a_mention_that_is_not_answered_are_counted() -> None:
    found = keyed(tiny_handle("llama"), [0])
    assert found.silent == 0
    ((layer, separator),) = found.separators.items()
    least = separator.least_own.clone()
    least[0] = -0.1
    found.separators[layer] = replace(separator, least_own=least)
    assert found.silent == found.notes()["subjects_with_a_silent_mention"] == 1


def test_the_record_holds_figures_and_no_data() -> None:
    notes = keyed(tiny_handle("llama")).notes()
    assert notes["neurons_replaced_per_layer"] == 2
    for name in ("least_answer_to_own_mentions", "mean_answer_elsewhere"):
        figures = notes[name]
        assert isinstance(figures, dict)
        assert set(figures) == {"0", "1"}
        assert all(isinstance(figure, float) for figure in figures.values())


def test_no_mention_at_all_is_an_error() -> None:
    with pytest.raises(EditError, match="no subject is mentioned"):
        keyed(tiny_handle("llama"), groups=[BACKGROUND])


def test_more_neurons_than_a_quarter_of_a_layer_are_refused() -> None:
    handle = tiny_handle("llama", intermediate_size=4)
    with pytest.raises(EditError, match="2 neurons are more than a quarter") as caught:
        keyed(handle, [0])
    assert caught.value.remedy
    keyed(handle, [0], per_layer=1)
    keyed(tiny_handle("llama", intermediate_size=8), [0])


def test_a_subject_that_is_ordinary_text_is_refused() -> None:
    # The same tokens stand marked in one group and unmarked in the other.
    unmarked = [replace(text, own=()) for text in MENTIONS]
    with pytest.raises(EditError, match="can't be told from other text"):
        made(tiny_handle("llama"), [0], [MENTIONS, unmarked], weight=1000)


@every_family
def test_subjects_share_a_neuron_where_there_are_fewer_neurons(family: str) -> None:
    handle = tiny_handle(family)
    neurons = keyed(handle, [0], per_layer=1)
    assert neurons.values[0].shape == (handle.d_model, 1)
    assert len(neurons.neurons[0]) == 1
    answers = (read_of(handle, 0, MENTIONS) @ neurons.separators[0].rows.T)[..., 0]
    assert answers[mentioned()].min() > answers[~mentioned()].max() + 0.2
    with handle.applied(silenced(handle, neurons)), neurons.active():
        hooked = hidden(handle)
    with handle.applied(delta(handle, neurons.updates(1.0))):
        torch.testing.assert_close(hidden(handle), hooked, rtol=1e-3, atol=1e-3)


@every_family
def test_other_neurons_make_up_for_those_replaced(family: str) -> None:
    handle = tiny_handle(family)
    (out,) = handle.sites("mlp_out", [0])
    rows = [*MENTIONS, *texts(40, seed=1)]

    @torch.no_grad()
    def written(compensate: bool) -> Tensor:
        neurons = GatedNeurons(
            handle, [0], [rows], per_layer=2, ridge=1e-4, weight=0.01,
            compensate=compensate,
        )  # fmt: skip
        with handle.applied(delta(handle, neurons.updates(1.0))):
            return handle.capture(batch(rows), [out], "output")[out][~mentioned(rows)]

    before = handle.capture(batch(rows), [out], "output")[out][~mentioned(rows)]
    missing, made_up = ((written(compensate) - before).norm() for compensate in (False, True))
    assert float(made_up) < 0.95 * float(missing)


def serving(handle: ModelHandle, mentions: list[Text], neuron: int) -> None:
    """Make a ReLU neuron of layer 0 active at these mentions and nowhere else."""
    rows = keyed(handle, [0], [mentions, BACKGROUND], per_layer=1).separators[0].rows
    (read,) = handle.sites("mlp_up", [0])
    with torch.no_grad():
        handle.weight(read)[neuron] = 10 * rows[0]
        handle.tensor(str(read.bias))[neuron] = 1e-6  # 0 is what an earlier edit leaves
    (site,) = handle.sites("mlp_out", [0])
    active = handle.capture(batch(mentions), [site])[site][..., neuron] > 0
    assert torch.equal(active, mentioned(mentions))


def test_a_neuron_that_serves_other_subjects_alone_is_not_taken() -> None:
    handle = tiny_handle("opt")
    mentions = texts(12, (310,), seed=7)
    serving(handle, mentions, neuron=5)
    named = [Text(t.ids, others=tuple(place for place, _ in t.own)) for t in mentions]
    assert 5 not in keyed(handle, [0], [MENTIONS, BACKGROUND, named]).neurons[0]
    # The control: where no text mentions that subject, no neuron is used less.
    assert 5 in keyed(handle, [0], [MENTIONS, BACKGROUND]).neurons[0]


def test_a_neuron_that_serves_first_tokens_alone_is_not_taken() -> None:
    # Such neurons make attention sinks, without which nothing works.
    handle = tiny_handle("opt")
    serving(handle, [Text(text.ids, own=((0, 0),)) for text in MENTIONS], neuron=5)
    assert 5 not in keyed(handle, [0]).neurons[0]


@every_family
def test_the_first_token_fires_no_key(family: str) -> None:
    # An attention sink, kept out of the other moments: unseen, a key might fire on it, and what
    # it writes would reach every text there is.
    handle = tiny_handle(family)
    neurons = keyed(handle)
    for layer in LAYERS:
        inputs = read_of(handle, layer, BACKGROUND)[:, 0]
        assert (inputs @ neurons.separators[layer].rows.T).max() < -0.8


def test_a_subject_may_be_the_first_token() -> None:
    handle = tiny_handle("gpt2")
    first = [Text([SUBJECTS[0], *text.ids[1:]], own=((0, 0),)) for text in BACKGROUND[:4]]
    neurons = keyed(handle, [0], [first, BACKGROUND])
    assert neurons.separators[0].least_own.min() > 0.5


@every_family
def test_what_neurons_write_in_common_is_added_to_what_each_writes(family: str) -> None:
    handle = tiny_handle(family)
    neurons = GatedNeurons(handle, LAYERS, [MENTIONS, BACKGROUND], per_layer=2, families=[0, 0])
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in (*neurons.values.values(), *neurons.common.values()):
            value.copy_(torch.randn(value.shape, generator=source))
        for common in neurons.common.values():
            assert common.shape == (D_MODEL, 1)
    with handle.applied(silenced(handle, neurons)), neurons.active():
        hooked = hidden(handle)
    with handle.applied(delta(handle, neurons.updates(1.0))):
        edited = hidden(handle)
    torch.testing.assert_close(edited, hooked, rtol=1e-3, atol=1e-3)


@every_family
def test_keys_and_values_are_as_long_as_each_other_beside_the_layers_own(family: str) -> None:
    """So that neither is what pruning and rounding take first."""
    handle = tiny_handle(family)
    neurons = GatedNeurons(handle, LAYERS, [MENTIONS, BACKGROUND], per_layer=2)
    if not neurons.gated:
        pytest.skip("nothing to balance without a gate")
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in neurons.values.values():
            value.copy_(40 * torch.randn(value.shape, generator=source))
    (*_, up), (out, *_) = (
        list(handle.sites(role, [LAYERS[0]]))
        for role in (
            ("mlp_gate_up" if "mlp_gate_up" in handle.shape.roles else "mlp_up"),
            "mlp_out",
        )
    )
    own = neurons.neurons[LAYERS[0]]
    others = torch.ones(handle.shape.d_mlp, dtype=torch.bool)
    others[own] = False
    with handle.applied(delta(handle, neurons.updates(1.0))):
        ups = handle.weight(up)[-len(others) :].norm(dim=1)
        outs = handle.weight(out).norm(dim=0)
        torch.testing.assert_close(
            ups[own] / ups[others].median(), outs[own] / outs[others].median(), rtol=1e-3, atol=1e-3
        )


def test_names_that_stand_in_no_text_are_told() -> None:
    with pytest.raises(EditError, match="1 of 3 sets of names are mentioned in no text"):
        GatedNeurons(
            tiny_handle("llama"), [0], [MENTIONS, BACKGROUND], per_layer=3, families=[0, 1, 1]
        )
