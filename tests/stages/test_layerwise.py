"""Layer-wise reconstruction against exact row solves, brute force and closed forms."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from stages.contracts import UserError
from stages.prune import layerwise, mask_swaps
from stages.prune.pruners import PRUNERS, Linears, Pruned
from stages.prune.pruners.ria import relative_importance
from stages.prune.reconstructions import RECONSTRUCTIONS
from stages.prune.selection import without_lowest
from stages.prune.sparsegpt import relative_error
from stages.prune.spec import Reconstruction
from tests.composed import CONF, config
from tests.running import Place
from tests.stage_options import pruning


def drawn(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """`W_OI`, a whole `H_II` of correlated inputs, and a random mask that keeps half of each row; fp64."""
    generator = torch.Generator().manual_seed(seed)
    W_OI = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    X_TI = torch.randn(4 * columns, columns, generator=generator, dtype=torch.float64)
    X_TI = X_TI @ torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    order_OI = torch.rand(rows, columns, generator=generator).argsort(1)
    return W_OI, X_TI.T @ X_TI / len(X_TI), order_OI < columns // 2


def exact(V0_OI: Tensor, keep_OI: Tensor, A_II: Tensor) -> Tensor:
    """Each row's normal equations over the weights that it keeps."""
    V_OI = torch.zeros_like(V0_OI)
    for row, keep in enumerate(keep_OI):
        V_OI[row, keep] = torch.linalg.solve(A_II[keep][:, keep], (A_II @ V0_OI[row])[keep])
    return V_OI


def energy(V_OI: Tensor, A_II: Tensor) -> float:
    return float(((V_OI @ A_II) * V_OI).sum())


def made(method: str, **changes: Any) -> Reconstruction:
    options = yaml.safe_load((CONF / "reconstruction" / f"{method}.yaml").read_text())
    return Reconstruction.model_validate(options | changes)


def refined(
    method: str, W_OI: Tensor, keep_OI: Tensor, H_II: Tensor, goal: Any = 0.5, kept: Tensor | None = None, **more: Any
) -> Pruned:
    given = Linears(["a"], [W_OI.clone()], [kept], [goal], H_II.triu())
    found = Pruned([W_OI.masked_fill(~keep_OI, 0)], [keep_OI])
    return RECONSTRUCTIONS.get(method).refine([W_OI], given, found, made(method, **more))


def test_a_problem_has_inputs_of_unit_norm_and_the_same_errors() -> None:
    W_OI, H_II, keep_OI = drawn(3, 8)
    shared = layerwise.problem(H_II.triu(), damping=1e-12)
    assert torch.equal(shared.A_II.diagonal(), torch.ones(8, dtype=torch.float64))
    assert torch.equal(shared.A_II, shared.A_II.T)
    pruned_OI = W_OI.masked_fill(~keep_OI, 0)
    assert energy((W_OI - pruned_OI) * shared.scale_I, shared.A_II) == pytest.approx(energy(W_OI - pruned_OI, H_II))


def test_conjugate_gradients_are_exact_after_as_many_steps_as_a_row_keeps() -> None:
    W_OI, H_II, keep_OI = drawn(8, 10)
    A_II = layerwise.problem(H_II, 0.01).A_II
    start = W_OI.masked_fill(~keep_OI, 0)
    found_OI = layerwise.conjugate_gradients(start, W_OI, keep_OI, A_II, 5)
    assert torch.allclose(found_OI, exact(W_OI, keep_OI, A_II), atol=1e-8)
    assert torch.equal(found_OI == 0, ~keep_OI)


def test_the_error_falls_with_every_conjugate_gradient() -> None:
    W_OI, H_II, keep_OI = drawn(6, 24)
    A_II = layerwise.problem(H_II, 0.01).A_II
    start = W_OI.masked_fill(~keep_OI, 0)
    steps = [layerwise.conjugate_gradients(start, W_OI, keep_OI, A_II, count) for count in range(9)]
    errors = [energy(W_OI - V_OI, A_II) for V_OI in steps]
    assert all(after < before for before, after in itertools.pairwise(errors))
    assert errors[-1] < 0.5 * errors[0]


def test_rows_that_are_solved_stay_and_disturb_no_other() -> None:
    W_OI, H_II, keep_OI = drawn(2, 8)
    A_II = layerwise.problem(H_II, 0.01).A_II
    keep_OI[0] = False
    found_OI = layerwise.conjugate_gradients(W_OI.masked_fill(~keep_OI, 0), W_OI, keep_OI, A_II, 50)
    assert not found_OI[0].any()
    assert torch.allclose(found_OI[1:], exact(W_OI, keep_OI, A_II)[1:], atol=1e-8)


def test_admm_comes_to_the_exact_solution() -> None:
    W_OI, H_II, keep_OI = drawn(8, 6)
    A_II = layerwise.problem(H_II, 0.1).A_II
    wanted_OI = exact(W_OI, keep_OI, A_II)
    assert torch.allclose(layerwise.admm(W_OI, keep_OI, A_II, 1.0, 400), wanted_OI, atol=1e-6)
    masked = energy(W_OI.masked_fill(keep_OI, 0), A_II)
    assert energy(W_OI - layerwise.admm(W_OI, keep_OI, A_II, 1.0, 20), A_II) < masked


def test_alps_on_independent_inputs_is_wanda_over_the_linear_and_keeps_the_weights() -> None:
    W_OI, H_II, _ = drawn(6, 16)
    H_II = H_II.diagonal().diag()
    chosen = pruning(**_options("alps"))
    found = PRUNERS.get("alps").prune(Linears(["a"], [W_OI.float()], [None], [0.5], H_II.float()), chosen)
    keep_OI = without_lowest((W_OI * (H_II.diagonal() + 0.01 * H_II.diagonal().mean()).sqrt()).abs(), 0.5, None, False)
    assert torch.equal(found.keeps[0], keep_OI)
    assert torch.allclose(found.weights[0], W_OI.float().masked_fill(~keep_OI, 0), atol=1e-5)


@pytest.mark.parametrize("goal", [0.7, (2, 4)])
def test_alps_has_a_smaller_error_than_sparsegpt(goal: Any) -> None:
    W_OI, H_II, _ = (it.float() for it in drawn(32, 64))
    errors = {}
    for method in ("sparsegpt", "alps"):
        chosen = pruning(**_options(method))
        found = PRUNERS.get(method).prune(Linears(["a"], [W_OI.clone()], [None], [goal], H_II.triu()), chosen)
        asked = 32 * 64 * 0.7 if goal == 0.7 else 32 * 32
        assert int((~found.keeps[0]).sum()) == pytest.approx(asked, abs=1)
        errors[method] = relative_error(W_OI, found.weights[0], H_II.triu())
    assert errors["alps"] < 0.9 * errors["sparsegpt"]


def test_alps_keeps_what_an_earlier_mask_prunes_pruned() -> None:
    W_OI, H_II, keep_OI = drawn(8, 16)
    chosen = pruning(**_options("alps"))
    found = PRUNERS.get("alps").prune(Linears(["a"], [W_OI.float()], [keep_OI], [0.75], H_II.float()), chosen)
    assert not (found.keeps[0] & ~keep_OI).any()
    assert int((~found.keeps[0]).sum()) == 96


@pytest.mark.parametrize("method", ["pcg", "admm", "swaps"])
def test_a_reconstruction_lowers_the_error_and_keeps_the_counts(method: str) -> None:
    W_OI, H_II, keep_OI = drawn(8, 32)
    W_OI, H_II = W_OI.float(), H_II.float()
    found = refined(method, W_OI, keep_OI, H_II)
    before = relative_error(W_OI, W_OI.masked_fill(~keep_OI, 0), H_II.triu())
    assert relative_error(W_OI, found.weights[0], H_II.triu()) < 0.7 * before
    assert torch.equal(found.keeps[0].sum(1), keep_OI.sum(1))
    assert not found.weights[0][~found.keeps[0]].any()


def test_a_swap_changes_the_error_by_what_it_says() -> None:
    W_OI, H_II, keep_OI = drawn(5, 12)
    g_RI = W_OI.masked_fill(keep_OI, 0) @ H_II
    change_R, u_R, v_R = mask_swaps.best_pair(W_OI, keep_OI, torch.ones_like(keep_OI), g_RI, H_II, 0.5, 12)
    for row in range(5):
        after = keep_OI[row].clone()
        after[u_R[row]], after[v_R[row]] = False, True
        lost = [energy(W_OI[row : row + 1].masked_fill(keep, 0), H_II) for keep in (keep_OI[row], after)]
        assert float(change_R[row]) == pytest.approx(lost[1] - lost[0], abs=1e-9)


@pytest.mark.parametrize("goal", [0.5, (2, 4)])
def test_no_swap_that_lowers_the_error_is_left(goal: Any) -> None:
    W_OI, H_II, _ = drawn(6, 8)
    keep_OI = without_lowest(W_OI.abs(), goal, None, per_row=True)
    found_OI = mask_swaps.refine(W_OI, keep_OI, H_II, goal, None, swaps=100, candidates=0)
    for row, keep in enumerate(found_OI):
        lost = energy(W_OI[row : row + 1].masked_fill(keep, 0), H_II)
        for u, v in itertools.product(keep.nonzero().flatten(), (~keep).nonzero().flatten()):
            if isinstance(goal, tuple) and u // 4 != v // 4:
                continue
            other = keep.clone()
            other[u], other[v] = False, True
            assert energy(W_OI[row : row + 1].masked_fill(other, 0), H_II) >= lost * (1 - 1e-5)
    if isinstance(goal, tuple):
        assert (found_OI.view(-1, 4).sum(1) == 2).all()


def test_wanda_on_independent_inputs_leaves_nothing_to_swap() -> None:
    W_OI, H_II, _ = drawn(6, 12)
    H_II = H_II.diagonal().diag()
    keep_OI = without_lowest(W_OI.abs() * H_II.diagonal().sqrt(), 0.5, None, per_row=True)
    assert torch.equal(mask_swaps.refine(W_OI, keep_OI, H_II, 0.5, None, swaps=100, candidates=0), keep_OI)


def test_swaps_grow_nothing_that_an_earlier_mask_prunes() -> None:
    W_OI, H_II, kept_OI = drawn(8, 16)
    keep_OI = without_lowest(W_OI.abs(), 0.75, kept_OI, per_row=True)
    found_OI = mask_swaps.refine(W_OI, keep_OI, H_II, 0.75, kept_OI, swaps=60, candidates=4)
    assert not (found_OI & ~kept_OI).any()
    assert not torch.equal(found_OI, keep_OI)
    assert torch.equal(found_OI.sum(1), keep_OI.sum(1))


# ---- RIA (METHODS: A2) ----


def test_relative_importance_of_an_outer_product() -> None:
    u_O, v_I = torch.tensor([1.0, 2, 5]), torch.tensor([3.0, 1])
    found_OI = relative_importance(u_O[:, None] * v_I, torch.ones(2), power=0.0)
    assert torch.allclose(found_OI, (u_O / u_O.sum())[:, None] + v_I / v_I.sum())


def test_relative_importance_orders_equal_weights_by_their_inputs_and_ignores_scale() -> None:
    norm_I = torch.tensor([4.0, 1, 9])
    found_OI = relative_importance(torch.ones(2, 3), norm_I, power=0.5)
    assert torch.equal(found_OI.argsort(1), norm_I.argsort().expand(2, -1))
    W_OI = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(relative_importance(7 * W_OI, norm_I, 0.5), relative_importance(W_OI, norm_I, 0.5))


# ---- options ----


def test_a_reconstruction_is_chosen_by_its_group() -> None:
    chosen = config("prune=magnitude", "reconstruction=pcg", "prune.reconstruction.iterations=3").prune
    assert (chosen.reconstruction.method, chosen.needs) == ("pcg", "gram")
    assert config("prune=magnitude").prune.needs == "nothing"
    with pytest.raises(UserError, match="there are: admm, none, pcg, swaps") as refused:
        config("prune.reconstruction.method=magic")
    assert refused.value.option == "prune.reconstruction.method"


def _options(method: str) -> dict[str, Any]:
    options = yaml.safe_load((CONF / "prune" / f"{method}.yaml").read_text()) | {"precision": "fp32"}
    return dict.fromkeys(("block_size", "damping", "max_damping")) | options


@pytest.mark.parametrize("chosen", [["prune=magnitude", "reconstruction=swaps"], ["prune=alps"]])
def test_a_ladder_of_rungs_is_nested(place: Place, chosen: list[str]) -> None:
    ladder = ["schedule=ladder", "schedule.levels=[0.5]", "sparsity=0.7", "until=prune_70", "finetune.steps=1"]
    found = place.run(*chosen, *ladder, "dense.skip=true")
    # the stage itself asserts exact counts and that earlier masks hold
    assert found["prune_70"].metrics["mean_layer_error"].value > found["prune_50"].metrics["mean_layer_error"].value
    assert found["prune_70"].metrics["sparsity"].value == pytest.approx(0.7, abs=1e-3)
