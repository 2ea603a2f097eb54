"""ONNX Runtime on the CPU, in its own process."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime


class Runtime:
    def load_layer(self, path: str, tokens: int, width: int, threads: int) -> None:
        self._session = _session(path, threads)
        self._x_TI = np.random.default_rng(0).standard_normal((tokens, width), np.float32)

    def run_layer(self) -> None:
        self._session.run(None, {"x": self._x_TI})

    def load_model(self, path: str, threads: int, layers: int, kv_heads: int, head_dim: int, sharing: int) -> None:
        self._session = _session(path, threads)
        self._caches = [f"{i}.{part}" for i in range(layers) for part in ("key", "value")]
        self._sharing = sharing
        self._empty = np.zeros((1, kv_heads, 0, head_dim), np.float32)

    def prefill(self, ids: list[int]) -> int:
        empty = onnxruntime.OrtValue.ortvalue_from_numpy(self._empty)
        self._cached = [empty] * len(self._caches)
        self._length = 0
        return self._run(ids)

    def decode(self, token: int) -> int:
        return self._run([token])

    def _run(self, ids: list[int]) -> int:
        """Runs the graph. The cache stays in the runtime's own memory: the output of one call is the input of the
        next."""
        new, past = len(ids), self._length
        binding = self._session.io_binding()
        binding.bind_cpu_input("input_ids", np.array([ids], np.int64))
        binding.bind_cpu_input("positions", np.arange(past, past + new, dtype=np.int64)[None])
        # each token sees those before it and itself
        mask = np.triu(np.full((new, past + new), np.finfo(np.float32).min, np.float32), past + 1)
        binding.bind_cpu_input("mask", np.tile(mask, (self._sharing, 1))[None, None])
        for name, value in zip(self._caches, self._cached, strict=True):
            binding.bind_ortvalue_input(f"past_key_values.{name}", value)
        for output in self._session.get_outputs():
            binding.bind_output(output.name)
        self._session.run_with_iobinding(binding)
        logits, *self._cached = binding.get_outputs()
        self._length += new
        self._logits_V = logits.numpy()[0]
        return int(self._logits_V.argmax())

    def logits(self) -> list[float]:
        """Returns the logits of the last token run."""
        found: list[float] = self._logits_V.tolist()
        return found


def _session(path: str, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # the others' rounds are not to share the cores with threads that wait here
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
