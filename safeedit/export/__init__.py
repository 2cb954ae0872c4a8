"""From an edited model to a folder that stands on its own, or to nothing.

- :mod:`~safeedit.export.staging`: a folder beside its target, renamed into place when whole
- :mod:`~safeedit.export.checkpoint`: a model as a plain Hugging Face folder
- :mod:`~safeedit.export.evidence`: record, reports, deltas, originals; ``verify`` and ``revert``
- :mod:`~safeedit.export.manifest`: sha256 of every file, in the format of ``sha256sum``
- :mod:`~safeedit.export.signing`: who says so: a signature, and claims that other tools read
- :mod:`~safeedit.export.withheld`: what can undo an edit, kept elsewhere and encrypted
- :mod:`~safeedit.export.compare`: two checkpoints, tensor by tensor, streamed from disk

Safetensors only: a pickle is neither written nor read.
"""
