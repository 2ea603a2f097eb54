"""The losses: task cross entropy, standard knowledge distillation, and SquareHead (arXiv 2310.06927, section 2).

    loss = ce · CE + kd · KL + squarehead · sum over layers of L_l,   L_l = sum((s_l - t_l)²) / (sum(t_l²) + eps)

Pure functions of the useful tokens only, N of them: `h_ND` hidden states, `logits_NV`. Everything is fp32 inside.
Each loss is a sum over tokens divided by a total that the caller may give: the totals of a whole optimizer step make
the gradients of its micro-batches add up to the gradient of the full batch. For SquareHead that total is the teacher's
energy sum(t_l²) over the step: the ratio is taken once, of two sums over the same tokens, and the micro-batch size
stays a matter of memory. (The papers' released code takes a ratio per micro-batch, which depends on its size.)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.families import Batch, Family


def ce(logits_NV: Tensor, labels_N: Tensor, tokens: int) -> Tensor:
    """Returns the cross entropy, summed over the label tokens and divided by `tokens`."""
    return functional.cross_entropy(logits_NV.float(), labels_N, reduction="sum") / tokens


def kd(student_NV: Tensor, teacher_NV: Tensor, temperature: float, tokens: int) -> Tensor:
    """Returns `T² KL(teacher‖student)` of the softened predictions, summed over label tokens and divided by
    `tokens`."""
    student_NV = functional.log_softmax(student_NV.float() / temperature, dim=-1)
    teacher_NV = functional.log_softmax(teacher_NV.float() / temperature, dim=-1)
    return temperature**2 * functional.kl_div(student_NV, teacher_NV, log_target=True, reduction="sum") / tokens


def energy(teacher_ND: Tensor) -> Tensor:
    """Returns `sum(t²)` of one layer: the denominator of its SquareHead ratio, which adds up over micro-batches."""
    return teacher_ND.float().square().sum()


def squarehead(student_ND: Tensor, teacher_ND: Tensor, energy: Tensor, eps: float) -> Tensor:
    """Returns the loss of one layer in the paper's form: `sum((s - t)²) / (energy + eps)`."""
    error = functional.mse_loss(student_ND.float(), teacher_ND.float(), reduction="sum")
    # with eps=0, a step without a token to compare has no energy
    return error / (energy + eps).clamp_min(torch.finfo(torch.float32).tiny)


def squarehead_by_token(student_ND: Tensor, teacher_ND: Tensor, tokens: int, eps: float) -> Tensor:
    """Returns the loss of one layer in our form (normalize=token): a ratio for each token, summed and divided by
    `tokens`."""
    teacher_ND = teacher_ND.float()
    error_N = (student_ND.float() - teacher_ND).square().sum(-1)
    return (error_N / (teacher_ND.square().sum(-1) + eps)).sum() / max(tokens, 1)


def total(weights: Mapping[str, float], terms: Mapping[str, Tensor]) -> Tensor:
    """Returns the weighted sum of the terms present."""
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


def feature_tokens(family: Family, model: nn.Module, batch: Batch, skip_first: int) -> list[Tensor | None]:
    """Returns for each of the model's states the flat indices into (B·T) of the tokens that SquareHead compares,
    without the first ones of each sequence; None for a state that is left out.

    If items are packed into a row, `position_ids` mark where each begins.
    """
    known: dict[int, Tensor] = {}
    found: list[Tensor | None] = []
    for use_BT in family.feature_masks(model, batch):
        if use_BT is not None and id(use_BT) not in known:
            wanted_BT = use_BT
            if skip_first:
                positions_BT = batch.get(
                    "position_ids", torch.arange(use_BT.shape[1], device=use_BT.device).expand_as(use_BT)
                )
                wanted_BT = use_BT & (positions_BT >= skip_first)
            known[id(use_BT)] = wanted_BT.flatten().nonzero().squeeze(-1)
        found.append(None if use_BT is None else known[id(use_BT)])
    return found


def label_tokens(family: Family, h_BTD: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Returns `h_ND` that predict something and the `labels_N` they predict."""
    h_BTD, labels_BT = family.logits_and_labels(h_BTD, labels_BT)
    labels_N = labels_BT.flatten()
    learned_N = (labels_N >= 0).nonzero().squeeze(-1)
    return h_BTD.flatten(0, 1).index_select(0, learned_N), labels_N[learned_N]
