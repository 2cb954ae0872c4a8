"""Shares of a shift among layers."""

from __future__ import annotations

import math

import pytest
import torch

from safeedit.methods.constrained_least_squares import Weighted
from safeedit.methods.facts.keys import Ordinary
from safeedit.methods.layer_solve import LayerTarget, SolvedLayer, solve_layers
from safeedit.model.architectures import Site
from tests.tiny_models import tiny_handle


def test_a_layer_takes_the_share_that_it_is_told() -> None:
    handle = tiny_handle("llama")
    sites, width = handle.sites("mlp_out", [0, 1]), handle.shape.d_mlp
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(width, 2, generator=generator)
    missing = torch.randn(handle.d_model, 2, generator=generator)
    ordinary = {site: Ordinary(torch.eye(width), torch.empty(width, 0), 1) for site in sites}

    def target(site: Site) -> LayerTarget:
        return LayerTarget(keys, missing.double(), torch.empty(width, 0))

    def solved(**share: object) -> list[SolvedLayer]:
        return solve_layers(
            "memit", handle, sites, ordinary, target, Weighted.of,
            ridge=0.0, whose="the", remedy="", **share,  # type: ignore[arg-type]
        )  # fmt: skip

    def norms(found: list[SolvedLayer]) -> list[float]:
        return [float((each.change.left @ each.change.right).norm()) for each in found]

    even, rooted = norms(solved()), norms(solved(share=math.sqrt))
    assert rooted[0] == pytest.approx(math.sqrt(2) * even[0], rel=1e-4)
    assert rooted[1] == pytest.approx(even[1], rel=1e-4)
