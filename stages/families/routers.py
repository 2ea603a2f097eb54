"""Routers and scalar gates of mixture-of-experts models: tiny matrices that decide over whole experts."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from engine.unfused import RoutedLinear
from stages.families import text_config

EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def routers(model: nn.Module, linears: Mapping[str, nn.Linear]) -> dict[str, str]:
    """Returns those among `linears` that route tokens, with the reason why they are left alone: they have one output
    for each expert, beside the experts and outside of them, or a single output."""
    config = text_config(model)
    counts = {count for key in EXPERT_COUNTS if isinstance(count := getattr(config, key, None), int)}
    found = {}
    for name, linear in linears.items():
        if isinstance(linear, RoutedLinear):
            continue
        if linear.out_features == 1:
            found[name] = "a scalar gate"
        elif linear.out_features in counts and "attn" not in name:
            found[name] = "a router"
    return found
