"""Random numbers of training: those of a step follow from the seed and the step's number alone.

So a resumed run draws what it would have drawn without the interruption, and a fingerprint identifies one result.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

SEED_STRIDE = 1_000_003
"""Distance of two seeds' random streams: the epochs and steps of one seed are not those of the next."""
OUTSIDE_STEPS = SEED_STRIDE - 1
"""Number of the stream for whatever is drawn before, between and after the steps."""
NUMPY_SEEDS = 2**32


@contextmanager
def seeded(seed: int, stream: int = OUTSIDE_STEPS) -> Iterator[None]:
    """Seeds torch's global generators (of the CPU and the GPU in use), numpy's and Python's; restores them afterwards.

    Libraries draw from any of them: dropout from torch's, SpecAugment from numpy's.
    """
    number = seed * SEED_STRIDE + stream
    python, numpy = random.getstate(), np.random.get_state()
    gpus = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(number)
        np.random.seed(number % NUMPY_SEEDS)
        random.seed(number)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
