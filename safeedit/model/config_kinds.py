"""What kind of layers a config describes, told by its settings alone: models of kinds that are not
edited are refused by :mod:`safeedit.model.architectures` with the reason."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_STATE = re.compile(
    r"mamba|ssm_|state_size|conv_kernel|conv_L_cache|lru_width|linear_num_|block_types?$|^rwkv"
)
"""Settings that only models with recurrent or convolutional layers have."""


def counts_experts(settings: Mapping[Any, Any]) -> bool:
    """Whether a config is that of a mixture of experts, in whatever words it says so."""
    # num_experts, num_local_experts, n_routed_experts, ffn_config.moe_num_experts ...
    return any(
        counts_experts(value)
        if isinstance(value, Mapping)
        else "experts" in str(name) and isinstance(value, int) and value > 1
        for name, value in settings.items()
    )


def keeps_a_state(settings: Mapping[Any, Any]) -> bool:
    """Whether a config has recurrent or convolutional layers, alone or beside attention."""
    kinds = settings.get("layer_types") or ()
    return "linear_attention" in kinds or any(
        keeps_a_state(value) if isinstance(value, Mapping) and name == "text_config"
        else _STATE.search(str(name)) is not None
        for name, value in settings.items()
    )  # fmt: skip
