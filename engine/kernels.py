"""Python interface of the compiled kernels (engine/native): packed matrices and their products."""

from __future__ import annotations

import ctypes
import weakref
from functools import cache
from typing import Any

import torch
from torch import Tensor

from engine import sources, structures
from engine.errors import EngineError
from engine.weights import DType, PackedWeight

ISAS = ("portable", "avx2", "avx512", "amx")
"""Instruction sets, slowest first. avx512: with VBMI2, VNNI and BF16; amx: that, and tiles for more than 8 tokens."""
TYPES: dict[DType, int] = {"fp32": 0, "bf16": 1, "int8": 2}
MAX_GEMV_TOKENS = 8
"""Largest number of tokens for which a product is bound by memory and uses other kernels."""
BUILD = "`make env` or `pip install -e .`"

_pointer, _size = ctypes.c_void_p, ctypes.c_int64


def unavailable() -> str | None:
    """Returns in one line why there are no kernels here and how to get them; None if there are."""
    try:
        _library()
    except EngineError as error:
        return str(error)
    return None


@cache
def available_isas() -> tuple[str, ...]:
    """Returns the instruction sets that this CPU has, slowest first. Raises EngineError without kernels."""
    return tuple(name for level, name in enumerate(ISAS) if _library().squarehead_isa(level))


class Matrix:
    """A weight in the form that its kernels read: rows for fp32, panels of 16 rows for bf16 and int8."""

    def __init__(self, packed: PackedWeight, bias_O: Tensor | None = None) -> None:
        """Raises EngineError without kernels, or when memory is short. `packed` must have passed its `check`."""
        library = _library()
        self.shape = packed.shape
        self.dtype = packed.dtype
        # kept: a dense fp32 matrix is read where it is
        self._values = packed.values.contiguous()
        parts = [_contiguous(part) for part in (packed.bitmask, packed.row_offsets, packed.scale, bias_O)]
        bitmask, row_offsets, scale, bias = (_address(part) for part in parts)
        handle = library.squarehead_pack(
            TYPES[self.dtype],
            *self.shape,
            bitmask,
            row_offsets,
            self._values.data_ptr(),
            self._values.numel(),
            scale,
            bias,
        )
        if not handle:
            raise EngineError(f"no memory for the kernels' form of a weight of {packed.nbytes:,} bytes")
        if packed.bitmask is not None or self.dtype != "fp32":
            del self._values
        self.handle = handle
        self.bytes = int(library.squarehead_bytes(handle))
        """Read by one product: values, masks, offsets, scales, bias."""
        weakref.finalize(self, library.squarehead_release, handle)

    def linear(self, x_TI: Tensor, threads: int = 1, isa: str | None = None) -> Tensor:
        """Returns `y_TO = x_TI Wᵀ + bias`, fp32; inputs are rounded to the weight's dtype first (int8: by token,
        symmetric).

        `isa` is one of `available_isas()`, by default the best.
        """
        tokens, inputs = x_TI.shape
        if inputs != self.shape[1] or x_TI.dtype != torch.float32 or x_TI.device.type != "cpu":
            found = f"{x_TI.dtype} {list(x_TI.shape)} on {x_TI.device}"
            raise EngineError(f"the input is {found}, expected float32 [T, {self.shape[1]}] on cpu")
        y_TO = torch.empty(tokens, self.shape[0])
        if tokens:
            x_TI = x_TI.contiguous()
            level = ISAS.index(isa) if isa else ISAS.index(available_isas()[-1])
            failed = _library().squarehead_linear(
                self.handle, x_TI.data_ptr(), tokens, inputs, y_TO.data_ptr(), self.shape[0], threads, level
            )
            if failed:
                raise EngineError(f"this CPU has no {isa}; it has: {', '.join(available_isas())}")
        return y_TO


def decode(decoder: int, token: int, position: int, logits_V: Tensor | None, threads: int, seconds: Any) -> None:
    """Runs one step of engine/step.py's structure at address `decoder`, with the best instruction set."""
    level = ISAS.index(available_isas()[-1])
    failed = _library().squarehead_decode(decoder, token, position, _address(logits_V), threads, level, seconds)
    assert not failed


@cache
def _library() -> ctypes.CDLL:
    path = sources.library()
    if path is None:
        raise EngineError(f"the engine has no kernels: install a C++ compiler (g++ or clang++), then {BUILD}")
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise EngineError(f"the engine's kernels cannot be loaded: {error}") from None
    library.squarehead_sources.restype = ctypes.c_char_p
    built, here = library.squarehead_sources().decode(), sources.digest()
    if here and built != here:
        raise EngineError(f"the engine's kernels were built from other sources: build them anew with {BUILD}")
    if different := structures.mismatch(library):
        raise EngineError(
            f"the engine's kernels are of another version than the rest: {different}; {BUILD} brings both"
        )
    library.squarehead_isa.restype = ctypes.c_char_p
    library.squarehead_isa.argtypes = [ctypes.c_int]
    library.squarehead_pack.restype = _pointer
    library.squarehead_pack.argtypes = [
        ctypes.c_int,
        _size,
        _size,
        _pointer,
        _pointer,
        _pointer,
        _size,
        *[_pointer] * 2,
    ]
    library.squarehead_release.restype = None
    library.squarehead_release.argtypes = [_pointer]
    library.squarehead_bytes.restype = _size
    library.squarehead_bytes.argtypes = [_pointer]
    library.squarehead_linear.argtypes = [_pointer, _pointer, _size, _size, _pointer, _size, ctypes.c_int, ctypes.c_int]
    library.squarehead_decode.argtypes = [_pointer, *[_size] * 2, _pointer, *[ctypes.c_int] * 2, _pointer]
    return library


def _contiguous(part: Tensor | None) -> Tensor | None:
    return None if part is None else part.contiguous()


def _address(part: Tensor | None) -> int | None:
    return None if part is None else part.data_ptr()
