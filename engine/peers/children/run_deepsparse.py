"""DeepSparse 1.8, in its own process and environment. Its licence allows evaluation only."""

from __future__ import annotations

import os
from typing import Any

# before the import, which starts its usage analytics otherwise
os.environ["NM_DISABLE_ANALYTICS"] = "1"
# as DeepSparse's own text generation sets it
os.environ["WAND_OPT_FLAGS"] = "default,~pyramids"

import deepsparse
import numpy as np
from deepsparse.engine import LIB


class Runtime:
    def load_layer(self, path: str, tokens: int, width: int, threads: int) -> None:
        self._engine: Any = deepsparse.compile_model(path, batch_size=tokens, num_cores=threads)
        self._x_TI = np.random.default_rng(0).standard_normal((tokens, width)).astype(np.float32)

    def run_layer(self) -> None:
        self._engine.run([self._x_TI], val_inp=False)

    def load_model(
        self, part: str, token: str, length: int, layers: int, kv_heads: int, head_dim: int, sharing: int, threads: int
    ) -> None:
        """Loads the graphs `part`, for a part of a prompt, and `token`, for one token, both over `length` positions."""
        cached = [False] + [True] * (2 * layers)  # of the outputs, all but the logits
        self._part, self._token = (
            deepsparse.compile_model(path, batch_size=1, num_cores=threads, cached_outputs=cached)
            for path in (part, token)
        )
        self._length, self._kv_heads, self._head_dim, self._sharing = length, kv_heads, head_dim, sharing
        self._part_tokens = self._part.input_shapes[self._part.input_names.index("input_ids")][1]

    def prefill(self, ids: list[int]) -> int:
        self._cache = LIB.kv_cache(0, 0)
        self._past = 0
        whole = len(ids) - len(ids) % self._part_tokens
        for start in range(0, whole, self._part_tokens):
            chosen = self._run(self._part, ids[start : start + self._part_tokens])
        for token in ids[whole:]:
            chosen = self._run(self._token, [token])
        return chosen

    def decode(self, token: int) -> int:
        return self._run(self._token, [token])

    def logits(self) -> list[float]:
        """Returns the logits of the last token run."""
        found: list[float] = self._logits_V.tolist()
        return found

    def _run(self, engine: Any, ids: list[int]) -> int:
        """Runs a graph. The engine keeps the cache, its newest entry last, and gets arrays of no rows in its place."""
        new, past = len(ids), self._past
        # each token sees those before it and itself; what lies to the left of the first one is not filled yet
        mask = np.full((new, self._length), np.finfo(np.float32).min, np.float32)
        for row in range(new):
            mask[row, self._length - new - past : self._length - new + row + 1] = 0
        given = {
            "input_ids": np.array([ids], np.int64),
            "positions": np.arange(past, past + new, dtype=np.int64)[None],
            "mask": np.tile(mask, (self._sharing, 1))[None, None],
        }
        none = np.zeros((0, self._kv_heads, self._length - new, self._head_dim), np.float32)
        inputs = [given.get(name, none) for name in engine.input_names]
        self._logits_V = np.asarray(engine._eng_net.execute_list_out(inputs, [self._cache])[0]).reshape(-1)
        self._past += new
        return int(self._logits_V.argmax())
