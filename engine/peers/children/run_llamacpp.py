"""llama.cpp through llama-cpp-python's C interface, in its own process and environment."""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp
import numpy as np

ROOM = 256
"""Tokens of context kept beyond the prompt at first; doubled when they are used up."""


class Runtime:
    def system_info(self) -> str:
        """Returns the instruction sets and options that llama.cpp was compiled with."""
        _, _, listed = llama_cpp.llama_print_system_info().decode().partition(":")
        return " ".join(item.split("=")[0].strip() for item in listed.split("|") if item.strip().endswith("= 1"))

    def quantize(self, source: str, target: str, file_type: str, threads: int) -> None:
        """Quantizes a file. `file_type` is the end of a LLAMA_FTYPE_MOSTLY_ name: Q8_0, Q4_K_M."""
        parameters = llama_cpp.llama_model_quantize_default_params()
        parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{file_type}")
        parameters.nthread = threads
        status = llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(parameters))
        if status:
            raise RuntimeError(f"llama.cpp did not quantize to {file_type}: status {status}")

    def load_model(self, path: str, threads: int, vocabulary: int, context: int) -> None:
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise RuntimeError("llama.cpp did not load the model")
        self._threads, self._vocabulary, self._longest = threads, vocabulary, context
        self._context: Any = None
        self._room = ROOM

    def prefill(self, ids: list[int]) -> int:
        self._ids: list[int] = []
        if self._context is None or len(ids) + self._room > self._size:
            self._open(len(ids))
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)
        return self._run(ids)

    def decode(self, token: int) -> int:
        if len(self._ids) == self._size:
            self._room *= 2
            self._open(len(self._ids))
            past, self._ids = self._ids, []
            self._run(past)
        return self._run([token])

    def logits(self) -> list[float]:
        """Returns the logits of the last token run."""
        found: list[float] = self._logits().tolist()
        return found

    def _open(self, tokens: int) -> None:
        if self._context is not None:
            llama_cpp.llama_free(self._context)
        parameters = llama_cpp.llama_context_default_params()
        self._size = min(tokens + self._room, self._longest)
        parameters.n_ctx = self._size
        parameters.n_batch = parameters.n_ubatch = min(self._size, 512)
        parameters.n_threads = parameters.n_threads_batch = self._threads
        self._context = llama_cpp.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise RuntimeError(f"llama.cpp opened no context of {self._size} tokens")

    def _run(self, ids: list[int]) -> int:
        for start in range(0, len(ids), 512):
            part = ids[start : start + 512]
            tokens = (llama_cpp.llama_token * len(part))(*part)  # the batch points to it
            status = llama_cpp.llama_decode(self._context, llama_cpp.llama_batch_get_one(tokens, len(part)))
            if status:
                raise RuntimeError(f"llama.cpp did not run {len(part)} tokens: status {status}")
        self._ids += ids
        return int(self._logits().argmax())

    def _logits(self) -> Any:
        found = llama_cpp.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(found, shape=(self._vocabulary,))
