"""Token perplexity: exp of the mean negative log-likelihood per token over non-overlapping windows.

The first token of a window has no context and is not predicted: a window of L tokens counts L - 1. This is not
lm-eval's `wikitext`, which reports perplexity per word.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stages import checkpoints, tokens
from stages.contracts import Corpus, Log, UserError
from stages.families import Family
from stages.options import Bos

LOGITS_BYTES = 256 << 20
"""Upper limit of the logits of one forward pass of more than one window."""
LOSS_TOKENS = 128
"""Tokens whose log-likelihoods are computed together, so that their copy of the logits stays in the cache."""


@dataclass(frozen=True)
class Estimate:
    value: float
    stderr: float | None
    """None for a single window."""


def windows_of(
    data: Corpus, split: str, tokenizer: Any, context: int, length: int, windows: int, option: str,
    bos: Bos = "window", joined_by: str = "\n\n", documents: int = 0,
) -> Tensor:  # fmt: skip
    """Returns `ids_NL`: the first `windows` (0: all) of a split, of `length` tokens each, cut as `tokens.stream` does.

    Raises UserError, with `option` and `.length` or `.windows`, if the model's context or the split is too short.
    """
    checkpoints.check_length(context, length, f"{option}.length")
    ids_NL = tokens.stream(data, split, tokenizer, length, f"{option}.length", bos, joined_by, documents)
    if windows > len(ids_NL):
        raise UserError(
            f"the split {split!r} has {len(ids_NL)} windows of {length} tokens, not {windows}; use {len(ids_NL)} or "
            "fewer, 0 takes all",
            f"{option}.windows",
        )
    return ids_NL[: windows or None]


def window_losses(model: Any, family: Family, ids_NL: Tensor, batch_size: int, log: Log) -> Tensor:
    """Returns `nll_N` fp64: the mean NLL in nats of each window's L - 1 predicted tokens.

    `batch_size` windows go through the model together, fewer if their logits would exceed LOGITS_BYTES.
    """
    window_bytes = ids_NL.shape[1] * model.config.get_text_config().vocab_size * model.dtype.itemsize
    size = max(1, min(batch_size, LOGITS_BYTES // window_bytes))
    losses = []
    with torch.inference_mode(), log.bar("perplexity", total=len(ids_NL), unit="window") as bar:
        for ids_BL in torch.split(ids_NL, size):
            ids_BL = ids_BL.to(model.device)
            batch = {"input_ids": ids_BL, "labels": ids_BL, "use": torch.ones_like(ids_BL)}
            logits_BTV = model(**family.inputs(batch), use_cache=False).logits
            losses.append(_mean_nll(*family.logits_and_labels(logits_BTV, ids_BL)))
            bar.advance(len(ids_BL), perplexity=math.exp(min(float(torch.cat(losses).mean()), 700.0)))
    return torch.cat(losses).cpu()


def estimate(nll_N: Tensor) -> Estimate:
    """Returns perplexity, and its standard error by the delta method with windows as the independent samples."""
    value = math.exp(float(nll_N.mean()))
    if len(nll_N) < 2:
        return Estimate(value, None)
    return Estimate(value, value * float(nll_N.std()) / math.sqrt(len(nll_N)))


def _mean_nll(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """Returns `nll_B` fp64, the mean over each row."""
    rows_TV, labels_T = logits_BTV.flatten(0, 1), labels_BT.flatten()
    parts = [
        nn.functional.cross_entropy(chunk_TV.float(), wanted_T, reduction="none")
        for chunk_TV, wanted_T in zip(
            torch.split(rows_TV, LOSS_TOKENS), torch.split(labels_T, LOSS_TOKENS), strict=True
        )
    ]
    return torch.cat(parts).double().view(labels_BT.shape).mean(1)
