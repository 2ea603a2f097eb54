"""Runs Whisper's encoder on less than 30 seconds."""

from __future__ import annotations

from typing import Any


def any_window(model: Any) -> Any:
    """Returns the model, whose encoder now takes any even number of frames up to the whole window and uses the first
    positions for them; features in any dtype. A whole window is computed as before, and what is saved does not
    change."""
    encoder = model.model.encoder
    encoder.register_forward_pre_hook(_enter, with_kwargs=True)
    encoder.register_forward_hook(_leave, always_call=True)
    return model


def _enter(encoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Raises ValueError for a number of frames that the encoder has no positions for."""
    features_BMF = args[0] if args else kwargs["input_features"]
    frames = features_BMF.shape[-1]
    positions, rest = divmod(frames, encoder.conv1.stride[0] * encoder.conv2.stride[0])
    if rest or not 0 < positions <= len(encoder.embed_positions.weight):
        raise ValueError(f"{frames} frames do not fit the encoder's {len(encoder.embed_positions.weight)} positions")
    _believe(encoder, positions)
    return (), {**kwargs, "input_features": features_BMF.to(encoder.conv1.weight.dtype)}


def _leave(encoder: Any, args: Any, output: Any) -> None:
    _believe(encoder, len(encoder.embed_positions.weight))


def _believe(encoder: Any, positions: int) -> None:
    """Sets the two numbers by which transformers' forward checks and slices positions."""
    encoder.config.max_source_positions = encoder.embed_positions.num_embeddings = positions
