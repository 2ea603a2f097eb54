"""Allocations: closed forms, planted cases, and that every level is met over all weights."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from stages.contracts import UserError
from stages.prune.allocations import ALLOCATIONS, Prunable
from stages.prune.allocations.alpha import hill, tail_exponent
from stages.prune.allocations.owl import outlier_share
from stages.prune.ratios import with_mean
from stages.prune.spec import Allocation
from tests.composed import CONF, config
from tests.running import Place


def linears(blocks: int = 4, rows: int = 16, columns: int = 32) -> dict[str, Prunable]:
    """Two linears of unequal size in each block, with heavier outliers in later blocks."""
    found: dict[str, Prunable] = {}
    generator = torch.Generator().manual_seed(0)
    for number in range(blocks):
        block = f"model.layers.{number}"
        for name, shape in (("q", (rows, columns)), ("down", (columns, 2 * rows + 8 * number))):
            W_OI = torch.randn(shape, generator=generator)
            W_OI.view(-1)[: 4 * number] *= 40
            found[f"{block}.{name}"] = Prunable(shape, block, W_OI, torch.rand(shape[1], generator=generator) + 0.5)
    return found


def shared(method: str, given: Mapping[str, Prunable], sparsity: float, **changes: Any) -> Mapping[str, float]:
    options = yaml.safe_load((CONF / "allocation" / f"{method}.yaml").read_text()) | changes
    return ALLOCATIONS.get(method).share(given, sparsity, Allocation.model_validate(options))


@pytest.mark.parametrize("method", ALLOCATIONS.names())
@pytest.mark.parametrize("sparsity", [0.3, 0.7, 0.95])
def test_the_level_is_met_over_all_weights(method: str, sparsity: float) -> None:
    given = linears()
    found = shared(method, given, sparsity)
    assert list(found) == list(given)
    total = sum(linear.size for linear in given.values())
    assert sum(found[name] * linear.size for name, linear in given.items()) == pytest.approx(sparsity * total, rel=1e-9)
    assert all(0 <= value < 1 for value in found.values())


def test_clipped_ratios_are_made_up_for_by_the_others() -> None:
    found = with_mean({"a": -0.2, "b": 0.5, "c": 0.9}, {"a": 100, "b": 200, "c": 100}, 0.5)
    assert found["a"] == 0.0
    assert 200 * found["b"] + 100 * found["c"] == pytest.approx(200)
    assert found["c"] - found["b"] == pytest.approx(0.4)


# ---- Erdős-Rényi (METHODS: A1) ----


def test_er_meets_the_level_with_one_linear_forced_dense() -> None:
    shapes = {"wide": (64, 64), "middle": (32, 32), "thin": (2, 3)}
    given = {name: Prunable(shape, name) for name, shape in shapes.items()}
    found = shared("er", given, 0.5)
    assert found["thin"] == 0.0, "its density would be over 1"
    # by hand: half of 5126 weights is kept, 6 of it in `thin`; density is ∝ (out + in) / (out · in) in the other two
    scale = (0.5 * 5126 - 6) / (128 + 64)
    assert found["wide"] == pytest.approx(1 - scale * 128 / 4096)
    assert found["middle"] == pytest.approx(1 - scale * 64 / 1024)
    assert shared("er", dict(reversed(given.items())), 0.5) == found


# ---- ATP (METHODS: A5) ----


@pytest.mark.parametrize("blocks", [4, 5])
def test_atp_is_an_arithmetic_progression_with_the_level_as_its_mean(blocks: int) -> None:
    given = {f"h.{number}.q": Prunable((8, 8), f"h.{number}") for number in range(blocks)}
    found = list(shared("atp", given, 0.7, beta=0.02).values())
    steps = [after - before for before, after in itertools.pairwise(found)]
    assert steps == pytest.approx([0.02] * (blocks - 1))
    assert sum(found) / blocks == pytest.approx(0.7)
    assert list(shared("atp", given, 0.7, beta=0).values()) == pytest.approx([0.7] * blocks)


def test_atp_takes_an_encoder_and_a_decoder_apart() -> None:
    names = [f"{stack}.block.{number}" for stack in ("encoder", "decoder") for number in range(3)]
    found = shared("atp", {f"{name}.q": Prunable((8, 8), name) for name in names}, 0.7, beta=0.05)
    assert list(found.values()) == pytest.approx([0.65, 0.7, 0.75] * 2)


def test_atp_by_default_helps_at_high_sparsity_alone_and_refuses_too_large_a_step() -> None:
    given = {f"h.{number}.q": Prunable((8, 8), f"h.{number}") for number in range(3)}
    assert list(shared("atp", given, 0.5).values()) == pytest.approx([0.5] * 3)
    assert list(shared("atp", given, 0.8).values()) == pytest.approx([0.7, 0.8, 0.9])
    with pytest.raises(UserError, match=r"is more than 0\.2") as refused:
        shared("atp", given, 0.8, beta=0.3)
    assert refused.value.option == "prune.allocation.beta"


# ---- OWL (METHODS: A3) ----


def test_outliers_are_counted_over_the_pooled_scores_of_a_block() -> None:
    scores: list[Tensor] = [torch.ones(10, 10), torch.ones(10, 10)]
    scores[0][0, :3] = 50.0
    # the mean is (197 + 150) / 200 = 1.735: 5 times that is below 50
    assert outlier_share(scores, 5.0) == pytest.approx(3 / 200)


def test_owl_keeps_blocks_with_outliers_denser_within_its_spread() -> None:
    given = linears()
    found = [shared("owl", given, 0.7)[f"model.layers.{number}.q"] for number in range(4)]
    assert found == sorted(found, reverse=True)
    assert found[0] - found[-1] == pytest.approx(2 * 0.08)
    flat = {name: Prunable(linear.shape, linear.block, torch.ones(linear.shape), torch.ones(linear.shape[1]))
            for name, linear in given.items()}  # fmt: skip
    assert list(shared("owl", flat, 0.7).values()) == pytest.approx([0.7] * 8)
    assert list(shared("owl", given, 0.7, spread=0).values()) == pytest.approx([0.7] * 8)


# ---- AlphaPruning (METHODS: A4) ----


@pytest.mark.parametrize(("count", "expected"), [(200, 3.017), (2000, 3.002)])
def test_hill_finds_the_exponent_of_pareto_quantiles(count: int, expected: float) -> None:
    quantiles_N = (1 - (torch.arange(count, dtype=torch.float64) + 0.5) / count) ** -0.5
    assert hill(quantiles_N) == pytest.approx(expected, abs=2e-3)


def test_a_tail_exponent_is_of_the_squared_singular_values() -> None:
    W_OI = torch.randn(12, 30, generator=torch.Generator().manual_seed(1))
    squares_N = torch.linalg.svdvals(W_OI.double()).square().flip(0)
    assert tail_exponent(W_OI) == pytest.approx(hill(squares_N))
    assert tail_exponent(W_OI.T) == pytest.approx(hill(squares_N))


def test_alpha_keeps_heavy_tails_denser_and_without_a_spread_is_uniform() -> None:
    given = linears()
    found = shared("alpha", given, 0.7)
    assert found["model.layers.3.q"] < found["model.layers.0.q"]
    assert list(shared("alpha", given, 0.7, spread=0).values()) == pytest.approx([0.7] * 8)


# ---- in the pipeline ----


def test_allocations_are_for_unstructured_pruning() -> None:
    with pytest.raises(UserError, match="allocation=er"):
        config("allocation=er", "prune.pattern=2:4", "sparsity=0.5")


def test_an_allocation_that_reads_norms_needs_calibration() -> None:
    assert config("prune=magnitude", "allocation=owl").prune.needs == "norms"
    assert config("prune=magnitude", "allocation=alpha").prune.needs == "nothing"


@pytest.mark.parametrize("chosen", [["prune=magnitude", "allocation=owl"], ["allocation=alpha"]])
def test_a_model_is_pruned_by_an_allocation(place: Place, chosen: list[str]) -> None:
    found = place.run(*chosen, "sparsity=0.7", "until=prune_70", "dense.skip=true")["prune_70"]
    # the stage itself asserts the count of each linear
    assert found.metrics["sparsity"].value == pytest.approx(0.7, abs=2e-3)
