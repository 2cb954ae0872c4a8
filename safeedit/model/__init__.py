"""Models: where things are in them, how they are read, edited, restored and run.

- :mod:`~safeedit.model.architectures`: one row per family, and a model's shape from its config.
- :mod:`~safeedit.model.handle`: :class:`ModelHandle`, the model as editors and auditors see it.
- :mod:`~safeedit.model.activations`: hooks and the selection of tokens.
- :mod:`~safeedit.model.digest`: digests of tensors; :mod:`~safeedit.model.tensors`: a model's own,
  as they lie in memory, and the way back from a change.
- :mod:`~safeedit.model.engine`: batched generation, scoring, hidden states; on batching,
  shared_prefix, passes, generation, sampling, teacher_forcing, scoring, tokens.
- :mod:`~safeedit.model.sources`: hub id, folder, .gguf file or builtin -> handle; on cache,
  checkpoint, quiet.
"""

from safeedit.model.architectures import Architecture, ModelShape, Site, architecture_of
from safeedit.model.handle import ModelHandle
from safeedit.model.tensors import Undo

__all__ = ["Architecture", "ModelHandle", "ModelShape", "Site", "Undo", "architecture_of"]
