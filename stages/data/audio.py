"""Converts sound files of any kind into what speech models read: 16 kHz, one channel, 16 bits."""

from __future__ import annotations

import io
from dataclasses import dataclass
from math import gcd
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

RATE = 16_000
"""Samples a second of all converted speech."""
_FULL_SCALE = 32_768
_SILENCE = 1e-3
"""-60 dB of full scale: a clip whose loudest sample is below has no speech in it."""


class UnreadableError(ValueError):
    """The file is damaged or not a sound file."""


@dataclass(frozen=True)
class Sound:
    samples: NDArray[np.float64]
    """Shape (N,), in [-1, 1]; one channel."""
    rate: int
    channels: int
    """Channels of the file."""

    @property
    def silent(self) -> bool:
        """Returns whether it is silent or empty."""
        return bool(np.abs(self.samples).max(initial=0) < _SILENCE)


def decode(content: bytes) -> Sound:
    """Decodes a sound file (any that libsndfile reads: wav, flac, mp3, ogg) and averages its channels. Raises
    UnreadableError."""
    import soundfile

    try:
        samples_NC, rate = soundfile.read(io.BytesIO(content), dtype="float64", always_2d=True)
    except soundfile.SoundFileError as error:
        raise UnreadableError(str(error)) from None
    if not np.isfinite(samples_NC).all():
        raise UnreadableError("it has samples that are not finite")
    return Sound(samples_NC.mean(axis=1), rate, samples_NC.shape[1])


def pcm(sound: Sound) -> NDArray[np.int16]:
    """Returns `pcm_N`: resampled to RATE, and clipped where that overshoots. A 16-bit file of that rate is
    unchanged."""
    samples_N = sound.samples
    if sound.rate != RATE:
        from scipy.signal import resample_poly

        common = gcd(RATE, sound.rate)
        samples_N = resample_poly(samples_N, RATE // common, sound.rate // common)
    return np.clip(np.rint(samples_N * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)


def write_flac(file: Path, pcm_N: NDArray[np.int16]) -> None:
    import soundfile

    soundfile.write(file, pcm_N, RATE, subtype="PCM_16", format="FLAC")
