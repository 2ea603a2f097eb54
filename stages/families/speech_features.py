"""Converts audio to the log-mel features of a speech model, and cuts long audio into pieces. Windows end in silence, as
the model has learned; windows shorter than its own are exactly a part of the whole one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

SILENCE_SECONDS = 1.0
"""Silence after a clip, from which the model hears that it is over."""
_SEARCHED = 1 / 6
"""Long audio is cut within the last part of a window (5 of 30 s),"""
_QUIET_SECONDS = 0.2
"""in the middle of the quietest stretch of this length."""
_STEP_SECONDS = 0.02


def log_mel(extractor: Any, audio_N: np.ndarray) -> np.ndarray:
    """Returns `mel_MF` float32 of a clip of at most one window and of the silence after it: an even number of frames,
    at most those of a window. `extractor` is a `WhisperFeatureExtractor`."""
    assert len(audio_N) <= extractor.n_samples, (len(audio_N), extractor.n_samples)
    pair = 2 * extractor.hop_length
    wanted = len(audio_N) + round(SILENCE_SECONDS * extractor.sampling_rate)
    samples = min(-(-wanted // pair) * pair, extractor.n_samples)
    found = extractor(audio_N, sampling_rate=extractor.sampling_rate, max_length=samples, return_tensors="np")
    mel_MF: np.ndarray = found["input_features"][0]
    return mel_MF


def stacked(mels: Sequence[Tensor]) -> Tensor:
    """Returns `mel_BMF`, as long as the longest."""
    frames = max(mel_MF.shape[1] for mel_MF in mels)
    return torch.cat([lengthened(mel_MF[None], frames) for mel_MF in mels])


def lengthened(mel_BMF: Tensor, frames: int) -> Tensor:
    """Returns features with more silence, up to `frames`: a clip shorter than a window ends in silent frames, and
    repeating the last one gives what the extractor would compute for more silence."""
    missing = frames - mel_BMF.shape[2]
    return torch.cat([mel_BMF, mel_BMF[:, :, -1:].expand(-1, -1, missing)], dim=2) if missing else mel_BMF


def pieces(audio_N: np.ndarray, window: int, rate: int) -> list[np.ndarray]:
    """Cuts audio into parts of at most `window` samples, where it is quiet."""
    found = []
    while len(audio_N) > window:
        start = window - round(_SEARCHED * window)
        at = start + _quietest(audio_N[start:window], rate)
        found.append(audio_N[:at])
        audio_N = audio_N[at:]
    return [*found, audio_N]


def _quietest(audio_N: np.ndarray, rate: int) -> int:
    """Returns the middle of the stretch with the least energy, in samples."""
    step, length = round(_STEP_SECONDS * rate), round(_QUIET_SECONDS * rate)
    stretches = np.lib.stride_tricks.sliding_window_view(audio_N, length)[::step]
    return int(np.square(stretches, dtype=np.float64).sum(1).argmin()) * step + length // 2
