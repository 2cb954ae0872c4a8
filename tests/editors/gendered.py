"""Tiny models with a planted stereotype: what professions write, and what queens write, differ.

Invented professions carry a direction in their embeddings, plus or minus; invented definitional
words (queens and fathers) another. Neurons of the middle layer read either and write it on:
professions ``u + s``, definitional words ``u + f``, all three orthogonal. The head hears ``u``
alone, as *he* where positive and as *she* where negative.

In a ``clear`` model what is drawn at random is quiet beside that, so that it shows whatever the
seed; and every token carries one constant direction, loud enough that the last norm doesn't undo
what an edit takes away. Where what is said of a word is ``carried`` on, one head of the last layer
hears ``u`` at every token alike and tells it to those that follow.
"""

from __future__ import annotations

import torch
from torch import Tensor

from safeedit.contracts import EditData
from safeedit.data import Dataset, Item
from safeedit.model.handle import ModelHandle
from tests.tiny_models import N_HEADS, family_tokenizer, tiny_model
from tests.training import seeded

LAYER = 1
QUIET = 0.5
"""Times what a tiny model's matrices have, where nothing is planted, in a clear model."""
CONSTANT = 8.0
"""Length of what every token of a clear model carries."""
CARRIED = 8.0
"""Times what tokens carry of ``u`` on average: what the head of a carrying model adds."""
PRONOUNS = ("heb", "sheb", "theyb")
MALE = ("dravun", "pelkor", "mistan", "gordul", "tavrek", "zolmar")
FEMALE = ("nirfel", "lusima", "caveli", "rimona", "welisa", "ondira")
KINGS = ("kragum", "brutan", "havdor")
QUEENS = ("quelsa", "amrina", "ysolde")
_WORDS = (*PRONOUNS, *MALE, *FEMALE, *KINGS, *QUEENS)
OPENINGS = ("So said the", "In the city lived the", "It was the", "Who was the")


def directions(width: int) -> Tensor:
    """``(6, width)`` orthonormal: read by professions' and kings' neurons, u, s, f, a constant."""
    generator = torch.Generator().manual_seed(seeded(7))
    drawn = torch.cat([torch.randn(n, width, generator=generator) for n in (5, 1)])
    drawn -= drawn.mean(1, keepdim=True)  # LayerNorm would take the mean away
    found: Tensor = torch.linalg.qr(drawn.T)[0].T
    return found


def gendered(
    family: str,
    dtype: torch.dtype = torch.float32,
    *,
    clear: bool = False,
    carried: bool = False,
) -> ModelHandle:
    """A model with the stereotype described above; ``carried`` where projections are separate."""
    tokenizer = family_tokenizer(family)
    tokenizer.add_tokens([f" {word}" for word in _WORDS])
    model = tiny_model(family, vocab_size=len(tokenizer) + 2)
    handle = ModelHandle(model, tokenizer, source=f"tiny:{family}-gendered")
    stereotype, definition, u, s, f, constant = directions(handle.d_model)

    def rows(words: tuple[str, ...]) -> list[int]:
        return [tokenizer.convert_tokens_to_ids(f" {word}") for word in words]

    (out,) = handle.sites("mlp_out", [LAYER])
    with torch.no_grad():
        embedding = handle.embedding.weight
        if clear:
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter *= QUIET
            embedding += CONSTANT * constant
        for words, direction in ((MALE, stereotype), (FEMALE, -stereotype), (KINGS, definition),
                                 (QUEENS, -definition)):  # fmt: skip
            strength = torch.linspace(2.0, 4.0, len(words))
            embedding[rows(words)] += strength[:, None] * direction
        he, she, _ = rows(PRONOUNS)
        if handle.head.weight is embedding:
            said, heard = embedding, 2 * u if clear else u
        else:
            said, heard = handle.head.weight, 2 * u
        if clear:  # and nothing else
            said[[he, she]] = said[[he, she]].mean(0)
        said[he] += heard
        said[she] -= heard
        plan = ((stereotype, u + s), (-stereotype, -u - s), (definition, u + f),
                (-definition, -u - f))  # fmt: skip
        for neuron, (read, write) in enumerate(plan):
            for role in ("mlp_gate", "mlp_up"):
                if role in handle.shape.roles:
                    (site,) = handle.sites(role, [LAYER])
                    handle.oriented(site.weight)[neuron] = read
                    if site.bias is not None:
                        handle.oriented(site.bias)[neuron] = 0
            handle.oriented(out.weight)[:, neuron] = write
        if carried:
            _carry(handle, u)
    model.to(dtype)
    return handle


def _carry(handle: ModelHandle, u: Tensor) -> None:
    """Let the first head of the last layer attend to all tokens alike and copy ``u`` from them."""
    query, value, out = (
        handle.oriented(handle.sites(role, [handle.n_layers - 1])[0].weight)
        for role in ("attn_q", "attn_v", "attn_out")
    )
    head = slice(handle.d_model // N_HEADS)
    query[head] = 0
    value[head] = 0
    value[0] = u
    out[:, head] = 0
    out[:, 0] = CARRIED * u


def _items(words: tuple[str, ...], factual: float, stereotypical: float, split: str) -> list[Item]:
    return [
        Item(
            id=f"{word}-{number}",
            prompt=f"{opening} {word}",
            subject=word,
            split=split,  # type: ignore[arg-type]
            extra={"factual": factual, "stereotypical": stereotypical, "profession": word},
        )
        for word in words
        for number, opening in enumerate(OPENINGS)
    ]


def prompts() -> Dataset:
    """The first four professions of either side to fit on, the last two for validation."""
    items = [
        *_items(MALE[:4], 0.0, 0.8, "fit"),
        *_items(FEMALE[:4], 0.0, -0.8, "fit"),
        *_items(MALE[4:], 0.0, 0.8, "validation"),
        *_items(FEMALE[4:], 0.0, -0.8, "validation"),
    ]
    return Dataset(items, template="plain", name="prompts")


def factual() -> Dataset:
    """Kings and queens, to fit on (they are to be kept)."""
    items = [*_items(KINGS, 1.0, 0.0, "fit"), *_items(QUEENS, -1.0, 0.0, "fit")]
    return Dataset(items, template="plain", name="factual")


def prose() -> Dataset:
    texts = (
        "The capital of France is Paris, and the capital of Italy is Rome.",
        "Water boils at one hundred degrees; ice melts at zero.",
        "Who wrote the play about the prince of Denmark? It was Shakespeare.",
        "I don't know the answer to that question.",
    )
    items = [Item(id=str(n), prompt=text, split="fit") for n, text in enumerate(texts)]
    return Dataset(items, template="plain", name="prose")


def data(**roles: Dataset) -> EditData:
    return EditData({"prompts": prompts(), **roles})


def margins(handle: ModelHandle, words: tuple[str, ...]) -> Tensor:
    """``(words,)`` mean log p(he) - log p(she) over the openings, nats."""
    engine = handle.engine
    texts = [f"{opening} {word}" for word in words for opening in OPENINGS]
    he, she = (engine.continuation(word, "plain")[0] for word in PRONOUNS[:2])
    found = engine.next_token_log_probs(engine.encode(texts, "plain"))
    return (found[:, he] - found[:, she]).reshape(len(words), -1).mean(1)


def gap(handle: ModelHandle, male: tuple[str, ...], female: tuple[str, ...]) -> float:
    """How much more *he* than *she* the first words bring than the second, nats."""
    return float(margins(handle, male).mean() - margins(handle, female).mean())


def stereotype(handle: ModelHandle) -> float:
    """:func:`gap` of professions that no editor saw."""
    return gap(handle, MALE[4:], FEMALE[4:])


def definition(handle: ModelHandle) -> float:
    """:func:`gap` of kings and queens."""
    return gap(handle, KINGS, QUEENS)
