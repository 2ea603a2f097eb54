"""DeepSparse 1.8, in its own process and environment. Its licence allows evaluation only."""

from __future__ import annotations

import os
from typing import Any

# before the import, which starts its usage analytics otherwise
os.environ["NM_DISABLE_ANALYTICS"] = "1"

import deepsparse
import numpy as np


class Runtime:
    def load_layer(self, path: str, tokens: int, width: int, threads: int) -> None:
        self._engine: Any = deepsparse.compile_model(path, batch_size=tokens, num_cores=threads)
        self._x_TI = np.random.default_rng(0).standard_normal((tokens, width)).astype(np.float32)

    def run_layer(self) -> None:
        self._engine.run([self._x_TI], val_inp=False)
