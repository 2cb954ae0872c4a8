"""Data: items, the ways of asking them, splits, and the loaders of published formats.

- :mod:`~safeedit.data.items`: Item, Phrasing, Dataset
- :mod:`~safeedit.data.splitting`: how data is divided into fit, validation and test
- :mod:`~safeedit.data.loading`: :func:`load_dataset`, from a policy's source to a Dataset
- :mod:`~safeedit.data.reading`, :mod:`~safeedit.data.hub`: files and hub -> rows
- :mod:`~safeedit.data.formats`, :mod:`~safeedit.data.columns`: rows -> our columns
- :mod:`~safeedit.data.checks`, :mod:`~safeedit.data.names`: our columns -> items, or an error with
  its line
"""

from safeedit.data.checks import CheckedRow
from safeedit.data.formats import FORMATS, Format
from safeedit.data.items import Dataset, Item, Phrasing, Translation
from safeedit.data.loading import build_dataset, load_dataset, read_records
from safeedit.data.splitting import SPLITS, check_disjoint, normalise_prompt
from safeedit.policy.builtin import builtin_datasets

__all__ = [
    "FORMATS",
    "SPLITS",
    "CheckedRow",
    "Dataset",
    "Format",
    "Item",
    "Phrasing",
    "Translation",
    "build_dataset",
    "builtin_datasets",
    "check_disjoint",
    "load_dataset",
    "normalise_prompt",
    "read_records",
]
