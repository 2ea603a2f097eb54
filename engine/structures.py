"""The structures of engine/native/decoder.h for ctypes, and a check that a library has the same ones."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

Layout = tuple[str, int, int]
"""Name of a structure or of one of its fields, its offset and its size in bytes."""


class Stage(ctypes.Structure):
    _fields_ = [("parts", ctypes.c_void_p * 3), ("count", ctypes.c_int), ("input_scale", ctypes.c_void_p)]


class Norm(ctypes.Structure):
    _fields_ = [("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p)]


class Block(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_int),
        ("norm", Norm),
        ("inputs", Stage),
        ("out", Stage),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
    ]


class Decoder(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("hidden", "heads", "key_heads", "head_size", "block_count")],
        *[(name, ctypes.c_int64) for name in ("context", "source")],
        *[(name, ctypes.c_int) for name in ("activation", "gated")],
        *[(name, ctypes.c_float) for name in ("epsilon", "attention_scale", "rotation_scale")],
        *[(name, ctypes.c_void_p) for name in ("frequencies", "embedding", "positions", "bias", "blocks")],
        ("final_norm", Norm),
        ("head", Stage),
    ]


STRUCTURES: tuple[type[ctypes.Structure], ...] = (Stage, Norm, Block, Decoder)


def mismatch(library: Any) -> str | None:
    """Returns in one line the first difference between the structures here and those that the library was compiled
    with."""
    for here, there in zip_longest(_described(STRUCTURES), _compiled(library)):
        if here != there:
            return f"engine/structures.py has {_shown(here)} where the compiled code has {_shown(there)}"
    return None


def _described(structures: Sequence[type[ctypes.Structure]]) -> Iterator[Layout]:
    for structure in structures:
        yield structure.__name__, 0, ctypes.sizeof(structure)
        for name, *_ in structure._fields_:
            field = getattr(structure, name)
            yield f"{structure.__name__}.{name}", field.offset, field.size


def _compiled(library: Any) -> Iterator[Layout]:
    library.squarehead_field.restype = ctypes.c_char_p
    offset, size, index = ctypes.c_int64(), ctypes.c_int64(), 0
    while name := library.squarehead_field(index, ctypes.byref(offset), ctypes.byref(size)):
        yield name.decode(), offset.value, size.value
        index += 1


def _shown(layout: Layout | None) -> str:
    if layout is None:
        return "nothing more"
    name, offset, size = layout
    return f"{name} of {size} bytes at {offset}"
