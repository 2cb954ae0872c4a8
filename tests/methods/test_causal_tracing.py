"""Causal tracing: on a planted stereotype, on facts a model knows, and against naive runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from safeedit.errors import UsageError
from safeedit.methods import causal_tracing as tracing
from safeedit.methods.causal_tracing import (
    PLACES,
    Effects,
    TracedPrompt,
    trace,
    window_of,
)
from safeedit.methods.facts.answers import answer_probability, told_answers
from safeedit.methods.facts.keys import subject_spot
from safeedit.methods.word_tokens import single_tokens
from safeedit.model.architectures import Site
from safeedit.model.engine import Engine
from safeedit.model.handle import ModelHandle
from safeedit.model.spans import TokenisedText
from tests.editors import toy
from tests.editors.gendered import LAYER, PRONOUNS, gendered, prompts
from tests.editors.toy import WORDINGS
from tests.tiny_models import FAMILIES, tiny_handle


def traced(family: str, **options: float) -> Effects:
    """Effects of single MLPs on the margin between he and she, all tokens of a prompt drowned."""
    handle = gendered(family, clear=True)
    items = prompts().items("fit")
    ids = handle.engine.encode([item.prompt for item in items], "plain")
    begin = len(handle.engine.codec.bos)
    spots = [subject_spot(handle, row, str(i.subject)) for row, i in zip(ids, items, strict=True)]
    drowned = [
        TracedPrompt(tuple(s.ids), range(s.position, s.position + 1),
               tuple(range(begin, s.position + 1)))
        for s in spots if s is not None
    ]  # fmt: skip
    he, she = single_tokens(handle.engine, PRONOUNS[:2], "plain")

    def margin(logits: Tensor, _: Sequence[int]) -> Tensor:
        return logits[:, he].double() - logits[:, she].double()

    before = handle.digest(fresh=True)
    found = trace(
        handle, drowned, margin, kinds=("mlp",), places=("last subject", "last"), **options
    )
    assert handle.digest(fresh=True) == before
    assert not handle.embedding._forward_hooks
    return found


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_the_planted_layer_brings_most_back(family: str) -> None:
    # Noise that is loud beside what is planted leaves it too quiet to be heard, restored or not.
    found = traced(family, noise=0.5)
    lost = found.clean - found.noisy
    at_subject, at_end = (
        (lost.sign()[:, None] * effects).mean(0) for effects in found.restored.values()
    )
    assert float(lost.abs().mean()) > 1
    assert at_subject.shape == at_end.shape == (3,)
    planted, others = at_subject[LAYER], at_subject[[n for n in range(3) if n != LAYER]]
    assert float(planted) > 0.15 * float(lost.abs().mean())
    assert float(planted) > 3 * float(others.abs().max())
    # These prompts end with their subject.
    assert torch.allclose(at_subject, at_end, atol=1e-4)


def test_without_noise_nothing_is_lost_and_nothing_comes_back() -> None:
    found = traced("llama", noise=0.0)
    assert torch.allclose(found.clean, found.noisy, atol=1e-4)
    assert max(float(effects.abs().max()) for effects in found.restored.values()) < 1e-4


# Against the whole model run the ordinary way ---------------------------------------------

TEXTS = (
    ("The capital of France is", "France"),
    ("Who wrote the play about the prince of Denmark? I think", "the prince of Denmark"),
    ("I don't know Rome", "Rome"),
)


def _prompts(handle: ModelHandle, template: str) -> list[TracedPrompt]:
    found = []
    encoded = handle.engine.encode([text for text, _ in TEXTS], template)  # type: ignore[arg-type]
    for ids, (_, subject) in zip(encoded, TEXTS, strict=True):
        (span,) = TokenisedText(handle.engine.codec.tokenizer, ids).spans(subject)
        found.append(TracedPrompt(tuple(ids), span, tuple(span)))
    return found


def _first_logit(logits: Tensor, prompts: Sequence[int]) -> Tensor:
    return logits[:, 7]


@contextmanager
def _patched(
    handle: ModelHandle,
    prompt: TracedPrompt,
    noise: Tensor,
    see: Callable[[str, int, Tensor], Tensor],
) -> Iterator[None]:
    """One prompt, drowned; ``see`` what blocks, MLPs and attentions of it give."""

    def drown(module: Any, args: Any, output: Tensor) -> Tensor:
        moved = output.clone()
        moved[0, list(prompt.drowned)] += noise
        return moved

    def block(layer: int) -> Callable[..., Any]:
        def hook(module: Any, args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (see("state", layer, output[0]), *output[1:])
            return see("state", layer, output)

        return hook

    def site(kind: str) -> Callable[[Site, Tensor], Tensor]:
        return lambda site, activation: see(kind, site.layer, activation)

    with ExitStack() as hooks:
        hooks.callback(handle.embedding.register_forward_hook(drown).remove)
        for layer, module in enumerate(handle.blocks()):
            hooks.callback(module.register_forward_hook(block(layer)).remove)
        for kind, role in (("mlp", "mlp_out"), ("attention", "attn_out")):
            hooks.enter_context(handle.intercepted(handle.sites(role), site(kind), "output"))
        yield


@pytest.mark.parametrize("template", ["plain", "chat"])
@pytest.mark.parametrize("family", FAMILIES)
def test_shared_beginnings_and_runs_from_the_middle_change_nothing(
    family: str, template: str
) -> None:
    handle = tiny_handle(family)
    if template == "chat" and not handle.tokenizer.chat_template:  # type: ignore[union-attr]
        pytest.skip("no chat template")
    prompts, draws = _prompts(handle, template), 2
    found = trace(handle, prompts, _first_logit, window=2, draws=draws, seed=5)
    generator = torch.Generator().manual_seed(5)
    spread = tracing.spread_of(handle, prompts)
    width = handle.embedding.weight.shape[1]
    for number, prompt in enumerate(prompts):
        drawn = torch.randn(draws, len(prompt.drowned), width, generator=generator) * 3 * spread
        clean: dict[tuple[str, int], Tensor] = {}
        ids = torch.tensor([prompt.ids])

        def keep(
            kind: str, layer: int, seen: Tensor, clean: dict[tuple[str, int], Tensor] = clean
        ) -> Tensor:
            clean[kind, layer] = seen
            return seen

        def score(handle: ModelHandle = handle, ids: Tensor = ids) -> float:
            return float(handle.model(ids).logits[0, -1, 7])

        with torch.no_grad(), _patched(handle, prompt, torch.zeros_like(drawn[0]), keep):
            assert float(found.clean[number]) == pytest.approx(score(), abs=1e-4)
        for kind, place in (("state", "further"), ("mlp", "last subject"),
                            ("attention", "middle subject"), ("attention", "last")):  # fmt: skip
            effects = found.restored[kind, place][number]  # type: ignore[index]
            places = list(prompt.positions(place))  # type: ignore[arg-type]
            if not places:
                assert effects.isnan().all()
                continue
            for layer in range(handle.n_layers):
                changed = [layer] if kind == "state" else [max(0, layer - 1), layer]

                def back(
                    seen_kind: str, at: int, seen: Tensor, kind: str = kind,
                    changed: list[int] = changed, places: list[int] = places,
                    clean: dict[tuple[str, int], Tensor] = clean,
                ) -> Tensor:  # fmt: skip
                    if seen_kind != kind or at not in changed:
                        return seen
                    restored = seen.clone()
                    restored[0, places] = clean[kind, at][0, places]
                    return restored

                scores = []
                for noise in drawn:
                    with torch.no_grad(), _patched(handle, prompt, noise, back):
                        scores.append(score())
                expected = sum(scores) / draws - float(found.noisy[number])
                assert float(effects[layer]) == pytest.approx(expected, abs=2e-4), (kind, layer)


def test_all_is_back_where_the_last_state_is() -> None:
    handle = tiny_handle("llama")
    found = trace(handle, _prompts(handle, "plain"), _first_logit, kinds=("state",), draws=3)
    lost = found.clean - found.noisy
    assert float(lost.abs().min()) > 1e-3
    torch.testing.assert_close(found.restored["state", "last"][:, -1], lost, atol=1e-5, rtol=1e-4)
    # What the subject's last block gives is read by nobody but the end.
    at_subject = found.restored["state", "last subject"][:2, -1]
    assert float(at_subject.abs().max()) < 1e-5


def test_a_prompt_is_traced_alike_in_any_company(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = tiny_handle("gpt2")
    prompts = _prompts(handle, "plain")
    together = trace(handle, prompts, _first_logit, kinds=("mlp",))
    monkeypatch.setattr(handle, "engine", Engine(handle, max_batch_tokens=1))
    apart = trace(handle, prompts, _first_logit, kinds=("mlp",))
    for key, effects in together.restored.items():
        torch.testing.assert_close(effects, apart.restored[key], equal_nan=True, atol=1e-5, rtol=0)


def test_places_of_a_prompt() -> None:
    prompt = TracedPrompt(tuple(range(10)), range(2, 6), (2, 3, 4, 5))
    assert [prompt.positions(place) for place in PLACES] == [(2,), (3, 4), (5,), (6, 7, 8), (9,)]
    short = TracedPrompt(tuple(range(4)), range(3, 4), (3,))
    assert [short.positions(place) for place in PLACES] == [(), (), (3,), (), (3,)]


@pytest.mark.parametrize("wrong", [{"window": 0}, {"draws": 0}, {"noise": -1.0}])
def test_numbers_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    handle = tiny_handle("llama")
    with pytest.raises(UsageError):
        trace(handle, _prompts(handle, "plain"), _first_logit, **wrong)


def test_answers_are_traced_where_the_model_tells_them() -> None:
    handle = toy.taught()
    asked = [
        (WORDINGS[0].format("Paul"), "Paul", ("Rome",)),
        (WORDINGS[0].format("Mary"), "Mary", ("Rome",)),  # it says Oslo
        (WORDINGS[0].format("Igor"), "Igor", ()),
        (WORDINGS[0].format("Anna"), "Hugo", ("Kyiv",)),
    ]
    first, wrong, unanswered, unnamed = told_answers(handle.engine, asked, "chat")
    assert wrong is None
    assert unnamed is None
    assert first is not None
    assert unanswered is not None
    (rome,) = handle.engine.encode([asked[0][0]], "chat")
    assert list(first.prompt.ids[: len(rome)]) == rome
    told = [first, unanswered]
    read = answer_probability(told)
    # So many draws that noise does not bring a name's neuron to fire in half of them.
    found = trace(handle, [one.prompt for one in told], read, kinds=("mlp",), draws=20)
    assert float(found.clean.min()) > 0.9
    assert float(found.noisy.max()) < 0.5
    effects = found.restored["mlp", "last subject"]
    assert int(effects.mean(0).argmax()) == 0, "in the toy a name goes through the first MLP"


def test_windows_end_with_the_model() -> None:
    assert window_of(0, 4, 10) == range(2)
    assert window_of(5, 4, 10) == range(3, 7)
    assert window_of(9, 4, 10) == range(7, 10)
    assert window_of(4, 1, 10) == range(4, 5)
