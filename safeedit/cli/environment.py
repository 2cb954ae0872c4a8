"""The variables of the environment that safeedit reads, for its documentation.

Each is read where it is needed; ``tests/test_docs.py`` sees to it that none is missing here.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

VARIABLES: Mapping[str, str] = MappingProxyType(
    {
        "SAFEEDIT_CACHE": "Folder for models, what runs have found and the digest key; by default "
        "the user's cache folder.",
        "SAFEEDIT_DIGEST_KEY": "Key of the digests that stand for items in records; by default "
        "one is made at first use and kept in the cache. Give the same key where runs on "
        "several machines are to be compared item by item.",
        "SAFEEDIT_LEDGER_KEY": "A usual name for the key of a ledger of erasure requests: a "
        "policy names the variable itself (`ledger.key.env`).",
        "SAFEEDIT_BENCHMARKS": "Folder of the published benchmarks' files: the shipped policies "
        "name it in their paths, and `safeedit scorer check` finds HateCheck there.",
        "SAFEEDIT_WHEELS": "Folder that holds the wheel of the built-in model, where no package "
        "index can be reached.",
        "SAFEEDIT_DEBUG": "1 shows the traceback of an unexpected error, which may quote data.",
    }
)
"""Name -> what it decides."""

OTHERS: Mapping[str, str] = MappingProxyType(
    {
        "OMP_NUM_THREADS": "Threads that PyTorch computes with; set it where several runs share "
        "a machine.",
        "HF_HUB_OFFLINE": "1 keeps the Hugging Face libraries, and safeedit with them, off the "
        "network; models and data sets then come from folders or the hub's own cache.",
        "GITHUB_ACTIONS": "`true` where GitHub Actions runs a command: its gates are annotated, "
        "and the summary of the step (GITHUB_STEP_SUMMARY) is written.",
        "HF_TOKEN": "Access to gated models of the Hugging Face hub, read by its library.",
    }
)
"""Variables of libraries that are worth knowing."""
