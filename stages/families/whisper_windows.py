"""Whisper's encoder on less than 30 seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers.models.whisper.modeling_whisper import WhisperEncoder


class WindowEncoder(WhisperEncoder):  # type: ignore[misc]
    """Takes any even number of frames up to the whole window, and uses the positions of those. A whole window is
    computed as ever. Features come in the dtype of the weights."""

    def forward(self, input_features: Tensor, attention_mask: Any = None, **kwargs: Any) -> Any:
        input_features = input_features.to(self.conv1.weight.dtype)
        positions, odd = divmod(input_features.shape[-1], self.conv1.stride[0] * self.conv2.stride[0])
        if odd or not 0 < positions <= self.embed_positions.weight.shape[0]:
            raise ValueError(f"{input_features.shape[-1]} frames do not fit the positions of the encoder")
        with self._only(positions):
            return super().forward(input_features, attention_mask, **kwargs)

    @contextmanager
    def _only(self, positions: int) -> Iterator[None]:
        """transformers' forward takes all positions that it believes to exist."""
        whole = self.config.max_source_positions
        self.config.max_source_positions = self.embed_positions.num_embeddings = positions
        try:
            yield
        finally:
            self.config.max_source_positions = self.embed_positions.num_embeddings = whole


def any_window(model: Any) -> Any:
    """The model, with an encoder that takes windows of any length. What is saved of it does not change."""
    model.model.encoder.__class__ = WindowEncoder
    return model
