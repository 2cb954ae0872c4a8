"""Quantisation: the weights rounded as somebody would who runs the model on a small machine.

Rounding can undo an edit: where the change of every weight is smaller than half a step of the
grid, the rounded edited model is the rounded original. Zhang et al. (2410.16454) find that 83 % of
what was unlearnt comes back in four bits. An edit that passes in its own dtype alone has therefore
not been shown to hold for those who will run it.

``bits``
    Round to nearest on an even grid, symmetric about 0: with 8 bits one scale for each output
    channel, with fewer one scale for each ``group`` of neighbouring inputs (LLM.int8() and GPTQ
    choose finer; plain rounding is what needs no data).
``formats``
    ``nf4``, the grid of QLoRA (2305.14314), blocks of 64: by bitsandbytes itself where that is
    installed and the weights are on a CUDA device, else by the same rule computed here (scales
    kept in float32). ``q8_0`` to ``q4_0``, types of GGUF files as users of llama.cpp make them, by
    the gguf package. The K-quants are not here: that package can read them but not make them.

The matrices of the blocks are rounded; embedding, head and norms stay, as these tools leave them by
default. The arithmetic stays in the model's dtype: this simulates the weights, not the kernels of a
quantised runtime. Fails with :class:`~safeedit.errors.EditError` where the model has no matrix that
a format fits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from safeedit.contracts import AttackProposal, BaseParams, DataRole, EditData, RunContext
from safeedit.errors import EditError
from safeedit.model.handle import ModelHandle
from safeedit.records import AttackClass

NumberFormat = Literal["nf4", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]

_NF4_BLOCK = 64
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
"""The sixteen levels of NormalFloat4 (QLoRA, appendix E)."""


class Params(BaseParams):
    """How the weights are rounded."""

    bits: tuple[Annotated[int, Field(ge=2, le=8)], ...] = Field(
        (8, 4),
        description="Widths of plain rounding to nearest, 2 to 8; each is one strength",
    )
    group: int = Field(
        32,
        ge=0,
        description="Neighbouring inputs that share a scale below 8 bits; 0: a whole output "
        "channel. Fewer is closer to the original, 32 and 128 are usual",
    )
    formats: tuple[NumberFormat, ...] = Field(
        (),
        description="Also formats that users meet: nf4 (bitsandbytes, QLoRA), q8_0, q5_1, q5_0, "
        "q4_1, q4_0 (llama.cpp)",
    )


class Quantize:
    """Rounds the matrices of the blocks."""

    Params: ClassVar[type[BaseParams]] = Params
    summary: ClassVar[str] = "weights rounded to few bits, as for a small machine"
    roles: ClassVar[tuple[DataRole, ...]] = ()
    tries: ClassVar[AttackClass] = "compression"
    seeded: ClassVar[bool] = False

    def __init__(self, params: Any) -> None:
        self.params: Params = params

    def _ways(self) -> list[tuple[str, Callable[[Tensor], Tensor]]]:
        """Name and rounding of each strength, widest first, as far as widths compare."""
        ways: list[tuple[str, Callable[[Tensor], Tensor]]] = []
        for bits in sorted(set(self.params.bits), reverse=True):
            group = 0 if bits == 8 else self.params.group
            name = f"int{bits} per {f'group of {group}' if group else 'channel'}"
            ways.append((name, _nearest(bits, group)))
        for name in dict.fromkeys(self.params.formats):
            ways.append((name, _nf4 if name == "nf4" else _gguf(name)))
        return ways

    def strengths(self) -> tuple[float, ...]:
        """1 for the first format, 2 for the next ..., in the order of the report."""
        return tuple(float(number) for number in range(1, len(self._ways()) + 1))

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> AttackProposal:
        """Rounding of every matrix of the blocks; nothing is fitted."""
        ways = self._ways()
        names = [site.weight for site in model.matrices()]
        if not names:
            raise EditError("the model has no matrices in its blocks that could be rounded")
        return AttackProposal(
            self.strengths(),
            lambda dose: dict.fromkeys(names, ways[int(dose) - 1][1]),
            lambda dose: ways[int(dose) - 1][0],
            lambda dose: {"matrices": len(names)},
        )


def _nearest(bits: int, group: int) -> Callable[[Tensor], Tensor]:
    """Round-to-nearest with ``2^bits - 1`` levels and one scale for each ``group`` inputs."""
    most = 2 ** (bits - 1) - 1

    def rounded(weight: Tensor) -> Tensor:
        rows, width = weight.shape
        size = group if group and width % group == 0 else width
        blocks = weight.float().reshape(rows, width // size, size)
        scale = blocks.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        scale = scale / most
        return ((blocks / scale).round().clamp(-most, most) * scale).reshape(weight.shape)

    return rounded


def _nf4(weight: Tensor) -> Tensor:
    own = _bitsandbytes() if weight.device.type == "cuda" else None
    if own is not None:
        found: Tensor = own.dequantize_4bit(*own.quantize_4bit(weight, quant_type="nf4"))
        return found
    flat = weight.float().reshape(-1)
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % _NF4_BLOCK)).reshape(-1, _NF4_BLOCK)
    scale = padded.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    levels = torch.tensor(_NF4, device=weight.device)
    between = (levels[1:] + levels[:-1]) / 2
    chosen = levels[torch.bucketize(padded / scale, between)] * scale
    return chosen.reshape(-1)[: len(flat)].reshape(weight.shape)


def _bitsandbytes() -> Any:
    try:
        from bitsandbytes import functional
    except ImportError:
        return None
    return functional


def _gguf(name: str) -> Callable[[Tensor], Tensor]:
    """A type of GGUF files; a matrix whose width its blocks don't fit stays, as there."""

    def rounded(weight: Tensor) -> Tensor:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize, quantize

        if weight.shape[-1] % 32:
            return weight
        kind = GGMLQuantizationType[name.upper()]
        values = weight.float().cpu().contiguous().numpy()
        return torch.from_numpy(dequantize(quantize(values, kind), kind)).to(weight.device)

    return rounded
