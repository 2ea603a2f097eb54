"""SparseGPT and its siblings as functions of tensors: against exact solvers, closed forms, and their promises."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stages.contracts import UserError
from stages.prune.pruners.magnitude import magnitude
from stages.prune.pruners.wanda import wanda
from stages.prune.selection import lowest, num_pruned, prune_lowest, share_out, target
from stages.prune.sparsegpt import Factor, accumulate_, factor, prune, relative_error
from tests.stage_options import pruning

DAMPING = 0.01


def inputs(seed: int, tokens: int = 200, width: int = 32) -> Tensor:
    """Correlated activations `X_TI` with very different scales."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator) * torch.rand(width, generator=generator) ** 2
    return torch.randn(tokens, width, generator=generator) @ mixing


def hessian(X_TI: Tensor) -> Tensor:
    H_II = torch.zeros(X_TI.shape[1], X_TI.shape[1])
    accumulate_(H_II, X_TI, 0)
    return symmetric(H_II)


def symmetric(upper_II: Tensor) -> Tensor:
    return upper_II.triu() + upper_II.triu(1).T


def weight(seed: int, rows: int = 24, width: int = 32) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(1000 + seed))


def prune_one(
    W_OI: Tensor, H_II: Tensor, goal: float | tuple[int, int], block_size: int = 8, kept: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    weights, keeps = prune([W_OI], factor(H_II, DAMPING, 1.0), goal, block_size, [kept])
    return weights[0], keeps[0]


def damped(H_II: Tensor) -> Tensor:
    return H_II.double() + DAMPING * H_II.diagonal().double().mean() * torch.eye(len(H_II))


def optimal_brain_surgeon(W_OI: Tensor, keep_OI: Tensor, H_II: Tensor) -> Tensor:
    """Column after column: zero what is pruned, move the later columns by the exact inverse of what is left of H."""
    W = W_OI.double().clone()
    for j in range(W.shape[1]):
        inverse = torch.linalg.inv(damped(H_II)[j:, j:])
        for row in range(len(W)):
            if not keep_OI[row, j]:
                W[row, j:] -= W[row, j] / inverse[0, 0] * inverse[0]
                W[row, j] = 0
    return W


def least_squares(W_OI: Tensor, keep_OI: Tensor, H_II: Tensor) -> Tensor:
    """For each row the best weights of all on its mask."""
    H, W = damped(H_II), W_OI.double()
    best = torch.zeros_like(W)
    for row, keep in enumerate(keep_OI):
        best[row, keep] = torch.linalg.solve(H[keep][:, keep], H[keep] @ W[row])
    return best


def energy(D_OI: Tensor, H_II: Tensor) -> float:
    return float(((D_OI.double() @ damped(H_II)) * D_OI.double()).sum())


@pytest.mark.parametrize("goal", [0.5, 0.7, (2, 4), (4, 8), (16, 32), (3, 4)])
@pytest.mark.parametrize("block_size", [8, 20, 128])
def test_weights_are_those_of_the_exact_column_solver(goal: float | tuple[int, int], block_size: int) -> None:
    W_OI, H_II = weight(0), hessian(inputs(0))
    pruned_OI, keep_OI = prune_one(W_OI, H_II, goal, block_size)
    torch.testing.assert_close(pruned_OI.double(), optimal_brain_surgeon(W_OI, keep_OI, H_II), atol=2e-3, rtol=2e-3)


def test_the_first_block_chooses_by_saliency_over_all_rows() -> None:
    W_OI, H_II = weight(1), hessian(inputs(1))
    _, keep_OI = prune_one(W_OI, H_II, 0.5, block_size=32)
    inverse_II = torch.linalg.inv(damped(H_II))
    # U_jj² is the inverse's diagonal for the columns from j on: what freeing column j costs when those before are fixed
    cost_I = torch.stack([torch.linalg.inv(damped(H_II)[j:, j:])[0, 0] for j in range(32)])
    assert not torch.allclose(cost_I, inverse_II.diagonal())
    scores_OI = W_OI.double() ** 2 / cost_I
    assert scores_OI[keep_OI].min() > scores_OI[~keep_OI].max()


def test_a_mask_whose_pruned_columns_come_first_gets_the_best_weights_of_all() -> None:
    W_OI, H_II = weight(2), hessian(inputs(2))
    first = (torch.arange(32) >= 16).expand(24, 32)
    pruned_OI, keep_OI = prune_one(W_OI, H_II, 0.5, block_size=32, kept=first)
    assert torch.equal(keep_OI, first)
    torch.testing.assert_close(pruned_OI.double(), least_squares(W_OI, first, H_II), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("seed", range(20))
def test_no_mask_does_better_than_its_least_squares(seed: int) -> None:
    W_OI, H_II = weight(seed), hessian(inputs(seed))
    pruned_OI, keep_OI = prune_one(W_OI, H_II, 0.5)
    bound = energy(W_OI - least_squares(W_OI, keep_OI, H_II), H_II)
    assert bound <= energy(W_OI - pruned_OI, H_II) * (1 + 1e-5)


@pytest.mark.parametrize("goal", [0.3, 0.5, 0.8, (2, 4)])
def test_error_is_never_above_magnitudes_and_mostly_below_wandas(goal: float | tuple[int, int]) -> None:
    ratios = []
    for seed in range(60):
        W_OI, H_II = weight(seed), hessian(inputs(seed))
        ours = relative_error(W_OI, prune_one(W_OI, H_II, goal, block_size=32)[0], H_II)
        assert ours < relative_error(W_OI, W_OI * magnitude(W_OI, goal, None), H_II), seed
        by_norm = W_OI * wanda(W_OI, H_II.diagonal().sqrt(), goal, None)
        ratios.append(ours / relative_error(W_OI, by_norm, H_II))
    assert sorted(ratios)[30] < 1


@pytest.mark.parametrize(("keep", "group"), [(2, 4), (4, 8), (1, 4), (16, 32), (16, 64), (5, 24)])
def test_n_of_m_are_kept_in_every_group(keep: int, group: int) -> None:
    W_OI, H_II = weight(3, width=192), hessian(inputs(3, width=192))
    for keep_OI in (
        prune_one(W_OI, H_II, (keep, group), block_size=48)[1],
        wanda(W_OI, H_II.diagonal().sqrt(), (keep, group), None),
        magnitude(W_OI, (keep, group), None),
    ):
        assert (keep_OI.reshape(24, -1, group).sum(-1) == keep).all()


def test_groups_that_do_not_divide_the_inputs_are_refused() -> None:
    W_OI, H_II = weight(0), hessian(inputs(0))
    for refused in (
        lambda: prune_one(W_OI, H_II, (2, 5)),
        lambda: magnitude(W_OI, (2, 5), None),
        lambda: wanda(W_OI, torch.ones(32), (2, 5), None),
    ):
        with pytest.raises(UserError, match="do not divide 32") as raised:
            refused()
        assert raised.value.option == "prune.pattern"


def test_a_pattern_and_another_sparsity_contradict() -> None:
    assert target("2:4", 0.5) == (2, 4)
    with pytest.raises(UserError, match=r"means sparsity=0\.5"):
        target("2:4", 0.6)


@pytest.mark.parametrize("sparsity", [0.0, 0.13, 0.5, 0.77])
def test_counts_are_exact_even_where_all_scores_tie(sparsity: float) -> None:
    equal_OI, H_II = torch.ones(24, 40), 2 * torch.eye(40)
    _, keep_OI = prune_one(equal_OI, H_II, sparsity, block_size=16)
    for block in keep_OI.split(16, dim=1):
        assert int((~block).sum()) == round(block.numel() * sparsity)
    assert int((~keep_OI).sum()) == num_pruned(24, 40, sparsity, pruning(method="sparsegpt", block_size=16))
    by_size = magnitude(equal_OI, sparsity, None)
    many = num_pruned(24, 40, sparsity, pruning(method="magnitude", block_size=16))
    assert int((~by_size).sum()) == many == round(960 * sparsity)
    by_norm = wanda(equal_OI, torch.ones(40), sparsity, None)
    assert ((~by_norm).sum(1) == round(40 * sparsity)).all()
    assert int((~by_norm).sum()) == num_pruned(24, 40, sparsity, pruning(method="wanda", block_size=16))


@given(st.lists(st.lists(st.integers(0, 3), min_size=7, max_size=7), min_size=1, max_size=4), st.integers(0, 7))
def test_the_lowest_are_chosen_exactly_and_first_come_first(rows: list[list[int]], count: int) -> None:
    chosen_RN = lowest(torch.tensor(rows, dtype=torch.float32), count)
    for row, chosen in zip(rows, chosen_RN.tolist(), strict=True):
        expected = set(sorted(range(7), key=lambda i: (row[i], i))[:count])
        assert {i for i, taken in enumerate(chosen) if taken} == expected


def test_stacked_linears_are_pruned_as_each_would_be_alone() -> None:
    H_II = hessian(inputs(4))
    several = [weight(4, rows=24), 5 * weight(5, rows=8), weight(6, rows=12)]
    shared = factor(H_II, DAMPING, 1.0)
    for goal in (0.6, (2, 4)):
        together = prune(several, shared, goal, 8, [None] * 3)
        for i, W_OI in enumerate(several):
            alone_OI, keep_OI = prune_one(W_OI, H_II, goal)
            assert torch.equal(together[1][i], keep_OI)
            torch.testing.assert_close(together[0][i], alone_OI)


def test_masks_nest_over_rungs_and_old_zeros_stay_zero() -> None:
    W_OI, H_II = weight(7), hessian(inputs(7))
    kept: Tensor | None = None
    for sparsity in (0.3, 0.5, 0.7):
        W_OI, keep_OI = prune_one(W_OI, H_II, sparsity, kept=kept)
        assert torch.count_nonzero(W_OI[~keep_OI]) == 0
        assert int((~keep_OI).sum()) == num_pruned(24, 32, sparsity, pruning(method="sparsegpt", block_size=8))
        assert kept is None or not (keep_OI & ~kept).any()
        # what a fine-tuning between the rungs would do
        W_OI, kept = W_OI + 0.1 * keep_OI, keep_OI
    assert kept is not None
    assert not (wanda(W_OI, torch.ones(32), 0.9, kept) & ~kept).any()
    assert not (magnitude(W_OI, 0.9, kept) & ~kept).any()


def test_an_earlier_mask_that_prunes_more_than_asked_for_stays_as_it_is() -> None:
    W_OI, H_II = weight(8), hessian(inputs(8))
    _, keep_OI = prune_one(W_OI, H_II, 0.6)
    for again in (
        prune_one(W_OI, H_II, 0.5, kept=keep_OI)[1],
        magnitude(W_OI, 0.5, keep_OI),
        wanda(W_OI, torch.ones(32), 0.5, keep_OI),
    ):
        assert torch.equal(again, keep_OI)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("goal", [0.6, (2, 4)])
def test_a_level_is_reached_exactly_from_zeros_that_lie_unevenly(goal: float | tuple[int, int], method: str) -> None:
    W_OI, H_II = weight(3), hessian(inputs(3))
    share_I = torch.linspace(0.1, 0.85, 32)
    kept_OI = torch.rand(24, 32, generator=torch.Generator().manual_seed(0)) > share_I
    kept_OI[3], kept_OI[4] = False, True
    match method:
        case "magnitude":
            keep_OI = magnitude(W_OI, goal, kept_OI)
        case "wanda":
            keep_OI = wanda(W_OI, torch.ones(32), goal, kept_OI)
        case _:
            pruned_OI, keep_OI = prune_one(W_OI, H_II, goal, block_size=8, kept=kept_OI)
            assert not pruned_OI[~keep_OI].any()
    assert not (keep_OI & ~kept_OI).any()
    assert int((~keep_OI).sum()) == num_pruned(24, 32, goal, pruning(method=method, block_size=8), kept_OI)
    if isinstance(goal, tuple):
        assert (keep_OI.reshape(-1, 4).sum(-1) <= 2).all()
        assert (keep_OI.reshape(-1, 4).sum(-1) < 2).any(), "a group with 3 zeros keeps them"
    else:
        assert int((~keep_OI).sum()) == num_pruned(24, 32, goal, pruning(method=method, block_size=8))


@pytest.mark.parametrize(
    ("base", "already", "counts"),
    [
        ([5, 5, 5], [0, 5, 3], [5, 5, 5]),
        ([5, 5, 5], [8, 0, 0], [8, 3, 4]),
        ([5, 5, 5], [8, 4, 0], [8, 4, 3]),
        ([5, 5], [9, 4], [9, 4]),
        ([4, 2], [1, 5], [1, 5]),
        ([], [], []),
    ],
)
def test_units_with_more_zeros_than_their_share_are_made_up_for_by_the_others(
    base: list[int], already: list[int], counts: list[int]
) -> None:
    found = share_out(torch.tensor(base), torch.tensor(already)).tolist()
    assert sum(found) == sum(counts) == max(sum(base), sum(already))
    assert found == counts


def test_pruned_weights_go_first_whatever_their_score() -> None:
    keep = prune_lowest(torch.tensor([[9.0, 1, 2, 3]]), torch.tensor([[False, True, True, True]]), 2)
    assert keep.tolist() == [[False, False, True, True]]


def test_magnitude_and_wanda_by_hand() -> None:
    W_OI = torch.tensor([[1.0, -2, 3, -4], [5, 0.5, -0.25, 8]])
    assert magnitude(W_OI, 0.5, None).tolist() == [[False, False, True, True], [True, False, False, True]]
    assert magnitude(W_OI, (1, 2), None).tolist() == [[False, True, False, True], [True, False, False, True]]
    norm_I = torch.tensor([10.0, 1, 1, 0.5])
    # scores 10 2 3 2, and 50 .5 .25 4; of the tie in the first row the first goes
    assert wanda(W_OI, norm_I, 0.5, None).tolist() == [[True, False, True, False], [True, False, False, True]]
    assert wanda(W_OI, norm_I, 0.25, None).tolist() == [[True, False, True, True], [True, True, False, True]]


def test_the_hessian_is_the_running_mean_of_outer_products() -> None:
    X_TI = inputs(9, tokens=5000, width=300)
    H_II, seen = torch.zeros(300, 300), 0
    for part in X_TI.split(777):
        seen = accumulate_(H_II, part, seen)
    exact = 2 / 5000 * X_TI.double().T @ X_TI.double()
    assert seen == 5000
    assert (symmetric(H_II) - exact).norm() < 1e-6 * exact.norm()


def test_bf16_inputs_are_multiplied_exactly_and_summed_in_fp32() -> None:
    X_TI = inputs(10, tokens=5000, width=300).bfloat16()
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    H_II = torch.zeros(300, 300)
    accumulate_(H_II, X_TI, 0)
    exact = 2 / 5000 * X_TI.double().T @ X_TI.double()
    assert (symmetric(H_II) - exact).norm() < 1e-6 * exact.norm()
    assert matmul.fp32_precision == before


def test_the_factor_inverts_to_the_upper_cholesky_of_the_damped_inverse() -> None:
    H_II = hessian(inputs(11))
    found = factor(H_II.triu(), DAMPING, 1.0)
    assert found.damping == DAMPING
    assert torch.equal(found.R_II, found.R_II.triu())
    expected = torch.linalg.cholesky(torch.linalg.inv(damped(H_II)), upper=True)
    torch.testing.assert_close(torch.linalg.inv(found.R_II.double()), expected, atol=1e-4, rtol=1e-3)


def test_dead_inputs_get_zero_weights_and_leave_the_others_alone() -> None:
    X_TI = inputs(12)
    dead = torch.zeros(32, dtype=torch.bool)
    dead[[0, 7, 8, 31]] = True
    X_TI[:, dead] = 0
    W_OI, H_II = weight(12), hessian(X_TI)
    pruned_OI, keep_OI = prune_one(W_OI, H_II, 0.5)
    assert torch.isfinite(pruned_OI).all()
    assert torch.count_nonzero(pruned_OI[:, dead]) == 0
    assert not keep_OI[:, dead].any(), "what does nothing goes first"
    assert int((~keep_OI).sum()) == num_pruned(24, 32, 0.5, pruning(method="sparsegpt", block_size=8))
    pruned_OI, _ = prune_one(W_OI, torch.zeros(32, 32), 0.5)
    assert torch.count_nonzero(pruned_OI) == 0


def test_damping_grows_tenfold_and_says_so() -> None:
    nearly_II = torch.tensor([[1.0, 1.05], [1.05, 1.0]])
    found = factor(nearly_II, 0.001, 1.0)
    assert found.damping == pytest.approx(0.1)
    torch.testing.assert_close(found.R_II @ found.R_II.T, nearly_II + 0.1 * torch.eye(2))


def test_damping_stops_at_its_limit() -> None:
    for H_II, limit in ((torch.tensor([[1.0, 1.05], [1.05, 1.0]]), 0.01), (torch.tensor([[1.0, 3], [3, 1.0]]), 1.0)):
        with pytest.raises(UserError, match="not positive definite") as raised:
            factor(H_II, 0.01, limit)
        assert raised.value.option == "prune.max_damping"


def test_what_is_not_finite_is_refused() -> None:
    W_OI, H_II = weight(0), hessian(inputs(0))
    spoiled_II, spoiled_OI = H_II.clone(), W_OI.clone()
    spoiled_II[3, :] = spoiled_II[:, 3] = torch.nan
    spoiled_OI[1, 1] = torch.nan
    for refused in (
        lambda: factor(spoiled_II, DAMPING, 1.0),
        lambda: prune_one(spoiled_OI, H_II, 0.5),
        lambda: magnitude(spoiled_OI, 0.5, None),
        lambda: wanda(W_OI, spoiled_II[3], 0.5, None),
    ):
        with pytest.raises(UserError, match="not finite"):
            refused()


def test_the_relative_error_is_that_of_the_outputs() -> None:
    X_TI, W_OI = inputs(13), weight(13)
    pruned_OI = W_OI * magnitude(W_OI, 0.5, None)
    expected = ((X_TI @ (W_OI - pruned_OI).T).square().sum() / (X_TI @ W_OI.T).square().sum()).item()
    assert relative_error(W_OI, pruned_OI, hessian(X_TI).triu()) == pytest.approx(expected, rel=1e-4)
    assert relative_error(W_OI, W_OI, hessian(X_TI)) == 0
    assert relative_error(W_OI, pruned_OI, torch.zeros(32, 32)) == 0


def test_the_inputs_are_left_as_they_are() -> None:
    W_OI, H_II = weight(14), hessian(inputs(14))
    kept = torch.ones_like(W_OI, dtype=torch.bool)
    shared = factor(H_II, DAMPING, 1.0)
    copies = [tensor.clone() for tensor in (W_OI, H_II, kept, shared.R_II)]
    prune([W_OI], shared, 0.5, 8, [kept])
    prune([W_OI], Factor(shared.R_II, shared.dead, 0.01), (2, 4), 8, [kept])
    assert all(torch.equal(a, b) for a, b in zip(copies, (W_OI, H_II, kept, shared.R_II), strict=True))
