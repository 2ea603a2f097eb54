"""Bits per byte of held-out text: a loss that is comparable between models with different tokenizers (arXiv
2101.00027).

It is the negative log-likelihood of the predicted tokens, in bits, over the bytes of UTF-8 that they stand for.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pydantic import Field

from stages.contracts import Log
from stages.evaluate.metrics import Judged, Measurement, MetricOptions

if TYPE_CHECKING:
    from torch import Tensor


class BitsPerByteOptions(MetricOptions):
    split: str = "test"
    """Split that is evaluated."""
    length: int = Field(256, ge=2)
    """Tokens of a window."""
    windows: int = Field(0, ge=0)
    """Evaluate the first so many windows; 0: all."""


def num_bytes(ids_NL: Tensor, tokenizer: Any) -> Tensor:
    """Returns `bytes_N`: the bytes of each window's predicted tokens, which are all but the first."""
    import torch

    texts = (tokenizer.decode(ids_L[1:], skip_special_tokens=True) for ids_L in ids_NL)
    return torch.tensor([len(text.encode()) for text in texts])


class BitsPerByte:
    options = BitsPerByteOptions

    def check(self, options: BitsPerByteOptions, judged: Judged) -> None:
        self._windows(options, judged)

    def measure(self, options: BitsPerByteOptions, judged: Judged, log: Log) -> Measurement:
        from stages.evaluate import perplexity

        ids_NL = self._windows(options, judged)
        bytes_N = num_bytes(ids_NL, judged.tokenizer)
        nll_N = perplexity.window_losses(judged.model, judged.family, ids_NL, judged.batch_size, log)
        bits_N = nll_N * (options.length - 1) / math.log(2)
        value = float(bits_N.sum() / bytes_N.sum())
        # of a ratio of two sums, by the delta method, with windows as the independent samples
        rest_N = bits_N - value * bytes_N
        spread = float(rest_N.std()) * math.sqrt(len(rest_N)) / float(bytes_N.sum()) if len(rest_N) > 1 else None
        return Measurement(
            value,
            spread,
            higher_is_better=False,
            protocol={
                "kind": "bits per byte of UTF-8",
                "split": options.split,
                "length": options.length,
                "windows": len(ids_NL),
                "bytes": int(bytes_N.sum()),
                "data_digest": judged.data.digest,
                "stderr": "delta method, windows independent",
            },
        )

    @staticmethod
    def _windows(options: BitsPerByteOptions, judged: Judged) -> Tensor:
        from stages.evaluate import perplexity

        return perplexity.windows_of(
            judged.data, options.split, judged.tokenizer, judged.family.context(judged.model), options.length,
            options.windows, "evaluate.metrics.bits_per_byte",
        )  # fmt: skip


METRIC = BitsPerByte()
