"""A change of weights as a value: kept apart from the model it will meet.

A :class:`WeightDelta` names tensors and says, for each, what to add (:class:`LowRank`,
:class:`Dense`) or which columns to put in its place (:class:`Columns`; replacing rather
than adding is what makes zeroing a neuron exact). All values are in (out, in) orientation,
fp32, on the CPU, whatever the model's layout, dtype and device. It is stored as
safetensors with a JSON header; a file that is damaged or of another kind is refused with
:class:`~safeedit.errors.ModelError`. Nothing here knows a model: a delta meets one in
:meth:`safeedit.model.handle.ModelHandle.apply`.
"""

from safeedit.delta.updates import (
    Columns,
    Dense,
    LowRank,
    Update,
    all_finite,
    apply_update,
    measure_change,
    tensor_bytes,
)
from safeedit.delta.weight_delta import FORMAT, Origin, WeightDelta, Weights

__all__ = [
    "FORMAT",
    "Columns",
    "Dense",
    "LowRank",
    "Origin",
    "Update",
    "WeightDelta",
    "Weights",
    "all_finite",
    "apply_update",
    "measure_change",
    "tensor_bytes",
]
