"""Keys: what an MLP's output matrix reads at chosen tokens, and in ordinary text.

:func:`keys_at` reads it at a subject's last token; :func:`second_moments` accumulates ``E[k k']``
over ordinary text, which says what a change of the matrix will be felt by. There the first tokens
of a text and every token whose key is outsized (attention sinks) are masked: a few of them would
outweigh all others. Their keys are kept apart, for whoever wants them left alone by name. Each text
weighs the same, however long it is, and is read in windows of one length.

Moments are kept in the run's cache under the digest of the weights, the matrix and the tokens read,
so that they are right after earlier edits and never computed twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from safeedit.cache import PRIVATE, write_atomically
from safeedit.code import code_digest
from safeedit.contracts import Progress, silent
from safeedit.errors import DataError
from safeedit.methods.constrained_least_squares import same_keys
from safeedit.methods.covariance import Moments
from safeedit.model.architectures import Site
from safeedit.model.handle import ModelHandle
from safeedit.model.spans import last_tokens
from safeedit.private import private_folder

WINDOW = 128
"""Tokens of ordinary text read at a time: enough for keys to be in context, few enough to batch."""

_OUTSIZED = 10.0
"""Times the median length of a text's keys from which a key counts as an attention sink's."""

_MOST_SINKS, _SINK_SHARE = 64, 1 / 16
"""Keys of sinks kept, at most: so many, and so large a share of the width."""

_ONE_SINK = 1e-2
"""Relative distance within which two sinks' keys are one."""


@dataclass(frozen=True)
class TokenPosition:
    """A token in its context.

    Attributes:
        ids: Token ids of the prompt.
        position: Which of them.
    """

    ids: Sequence[int]
    position: int

    @property
    def until(self) -> tuple[int, ...]:
        """All that what happens at the token depends on."""
        return tuple(self.ids[: self.position + 1])


@dataclass(frozen=True, eq=False)
class Ordinary:
    """What ordinary text feeds into one matrix.

    Attributes:
        second: ``(m, m)`` fp32, uncentred: mean of ``k k'``.
        sinks: ``(m, s)`` fp32, keys of the tokens left out, none twice.
        tokens: How many it is over.
    """

    second: Tensor
    sinks: Tensor
    tokens: int


def subject_spot(model: ModelHandle, ids: Sequence[int], subject: str) -> TokenPosition | None:
    """The last token of a subject's last mention in a prompt; None where it has none."""
    found = last_tokens(model.engine.codec.tokenizer, ids, subject)
    return TokenPosition(tuple(ids), found[-1]) if found else None


def keys_at(
    model: ModelHandle,
    spots: Sequence[TokenPosition],
    sites: Sequence[Site],
    progress: Progress = silent,
    description: str = "reading keys",
) -> dict[Site, Tensor]:
    """Site -> ``(m, spots)`` fp32, CPU: what the matrix reads at each spot.

    Raises:
        AuditError: A prompt is longer than the model's context.
    """
    places: dict[tuple[int, ...], int] = {}
    order = [places.setdefault(spot.until, len(places)) for spot in spots]
    rows: dict[Site, list[Tensor]] = {site: [torch.empty(0)] * len(places) for site in sites}
    read = model.engine.activations(list(places), sites, progress, description)
    for index, captured in read:
        for site, activation in captured.items():
            rows[site][index] = activation[-1].float().cpu()
    width = model.shape.d_mlp
    return {
        site: torch.stack(found)[order].T if found else torch.empty(width, 0)
        for site, found in rows.items()
    }


def in_windows(
    model: ModelHandle, texts: Sequence[str], window: int
) -> tuple[list[list[int]], list[int]]:
    """Plain texts as token ids, at most ``window`` at a time, BOS before each; and the number of
    the text each is of."""
    lead = list(model.engine.codec.bos)
    size = max(2, min(window, model.engine.context)) - len(lead)
    windows: list[list[int]] = []
    owners: list[int] = []
    for text, ids in enumerate(model.engine.encode(texts, "plain")):
        own = ids[len(lead) :]
        for begin in range(0, len(own), size):
            if len(part := own[begin : begin + size]) > 1:
                windows.append(lead + part)
                owners.append(text)
    return windows, owners


def second_moments(
    model: ModelHandle,
    texts: Sequence[str],
    sites: Sequence[Site],
    cache: Path,
    *,
    window: int = WINDOW,
    progress: Progress = silent,
) -> dict[Site, Ordinary]:
    """Site -> moments of what it reads in ordinary text.

    Args:
        model: As it is now, earlier edits included.
        texts: Plain text.
        sites: Which matrices.
        cache: Folder of the run's cache.
        window: Tokens read at a time, BOS included; the start of each is masked.
        progress: Shown per window.

    Raises:
        DataError: The texts are too short to have a token that counts.
    """
    lead = len(model.engine.codec.bos)
    windows, owners = in_windows(model, texts, window)
    if not windows:
        raise DataError(
            "the ordinary text has no text of two tokens", remedy="give longer texts as 'prose'"
        )
    files = {site: cache / "moments" / f"{_key(model, site, windows)}.safetensors"
             for site in sites}  # fmt: skip
    found = {site: kept for site, file in files.items() if (kept := _load(file)) is not None}
    missing = [site for site in sites if site not in found]
    if missing:
        for site, ordinary in _read(model, windows, owners, missing, lead, progress).items():
            _save(files[site], ordinary)
            found[site] = ordinary
    return {site: found[site] for site in sites}


def _read(
    model: ModelHandle,
    windows: Sequence[Sequence[int]],
    owners: Sequence[int],
    sites: Sequence[Site],
    lead: int,
    progress: Progress,
) -> dict[Site, Ordinary]:
    width = model.shape.d_mlp
    moments = {site: Moments(width) for site in sites}
    outside: dict[Site, list[tuple[int, int, Tensor]]] = {site: [] for site in sites}
    lengths = torch.zeros(max(owners) + 1)
    for window, owner in zip(windows, owners, strict=True):
        lengths[owner] += len(window) - lead - 1
    mean = float(lengths[lengths > 0].mean())
    described = "reading ordinary text"
    for index, captured in model.engine.activations(windows, sites, progress, described):
        scale = (mean / float(lengths[owners[index]])) ** 0.5
        for site, activation in captured.items():
            keys = activation.float().cpu()
            sizes = keys.norm(dim=1)
            counted = sizes <= _OUTSIZED * sizes.median()
            counted[: lead + 1] = False
            moments[site].update(keys[counted] * scale)
            outside[site] += [
                (place, index, keys[place].clone()) for place in (~counted).nonzero()[:, 0].tolist()
            ]
    return {
        site: Ordinary(
            moments[site].second.float(), _sinks(outside[site]), round(moments[site].count)
        )
        for site in sites
    }


def _sinks(outside: list[tuple[int, int, Tensor]]) -> Tensor:
    """``(m, s)`` of the first ones by place, each once."""
    chosen = sorted(outside, key=lambda each: each[:2])[: 4 * _MOST_SINKS]
    keys = torch.stack([key for _, _, key in chosen], 1)
    first = same_keys(keys, _ONE_SINK)
    most = min(_MOST_SINKS, int(len(keys) * _SINK_SHARE))
    return keys[:, first.unique()[:most]].contiguous()


def _key(model: ModelHandle, site: Site, windows: Sequence[Sequence[int]]) -> str:
    read = hashlib.sha256(json.dumps([list(window) for window in windows]).encode()).hexdigest()
    made_of = json.dumps([code_digest(__name__), model.digest(), site.weight, read])
    return hashlib.sha256(made_of.encode()).hexdigest()[:32]


def _load(file: Path) -> Ordinary | None:
    try:
        parts = load_file(file)
        return Ordinary(parts["second"], parts["sinks"], int(parts["tokens"]))
    except (OSError, SafetensorError, KeyError):
        return None  # not there yet, or cut short: it is made again


def _save(file: Path, ordinary: Ordinary) -> None:
    parts = {
        "second": ordinary.second.contiguous(),
        "sinks": ordinary.sinks.contiguous(),
        "tokens": torch.tensor(ordinary.tokens),
    }
    # A cache that can't be written costs time, nothing else.
    with contextlib.suppress(OSError):
        private_folder(file.parent)
        write_atomically(file, save(parts), PRIVATE)
