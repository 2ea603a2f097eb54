"""Weight matrices as the engine stores them: non-zeros row by row under a bitmask, or dense.

The layout is that of compressed-tensors' `sparse-bitmask`: others can read it, and 1 bit a weight beats 16-bit indices
below about 94 % sparsity.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from engine.errors import EngineError

DType = Literal["fp32", "bf16", "int8"]
DTYPES: dict[DType, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
LEVELS = 127
"""Levels of the symmetric int8 grid, on either side of zero."""
OFFSET_BYTES = 8


@dataclass(frozen=True, eq=False)
class Quantized:
    """An int8 weight from a quantized checkpoint: `W ≈ q · scale`."""

    q_OI: Tensor  # noqa: N815
    """int8."""
    scale_O: Tensor  # noqa: N815
    """fp32."""


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight matrix O x I; with `bitmask` None all of it is stored, zeros too.

    A value that rounds to zero in the stored dtype is a zero: it has no bit and is not stored.
    """

    shape: tuple[int, int]
    values: Tensor
    """[nnz] row by row (dense: [O·I]); float32, bfloat16 or int8."""
    bitmask: Tensor | None
    """uint8 [O, ceil(I / 8)]: bit i % 8 of byte i // 8 is column i, lowest bit first; padding bits are 0."""
    row_offsets: Tensor | None
    """int64 [O]: where each row starts in `values`."""
    scale: Tensor | None
    """fp32 [O], only for int8."""

    @classmethod
    def of(cls, W_OI: Tensor, dtype: DType, *, keep_dense: bool = False) -> PackedWeight:
        """Packs an fp32 matrix, rounded to nearest even. int8 is symmetric per row: scale = largest magnitude / 127; a
        row of zeros gets scale 1.

        The bitmask form is chosen where it is smaller than the dense one, and never with `keep_dense`.
        Raises EngineError for values that are not finite, or not in `dtype`.
        """
        W_OI = W_OI.detach().float()
        if dtype not in DTYPES:
            raise EngineError(f"no dtype {dtype!r}; there are: {', '.join(DTYPES)}")
        if dtype == "int8":
            if not torch.isfinite(W_OI).all():
                raise EngineError("a weight has values that are not finite; it cannot be quantized")
            return cls.of_int8(*_quantize(W_OI), keep_dense=keep_dense)
        stored_OI = W_OI.to(DTYPES[dtype])
        if not torch.isfinite(stored_OI).all():
            raise EngineError(f"a weight has values that are not finite in {dtype}")
        return _pack(stored_OI, None, keep_dense)

    @classmethod
    def of_int8(cls, q_OI: Tensor, scale_O: Tensor, *, keep_dense: bool = False) -> PackedWeight:
        """Packs an already quantized matrix, without rounding again."""
        if q_OI.dtype != torch.int8 or q_OI.dim() != 2:
            raise EngineError(f"a quantized weight is {q_OI.dtype} of {q_OI.dim()} dimensions, expected int8 [O, I]")
        packed = _pack(q_OI.detach(), scale_O.detach().float().contiguous(), keep_dense)
        _check_scale(packed, "a quantized weight")
        return packed

    @classmethod
    def stack(cls, parts: Sequence[PackedWeight]) -> PackedWeight:
        """Stacks matrices along the rows; all of one dtype and width, and all dense or none."""
        first = parts[0]
        bitmask = row_offsets = scale = None
        if first.bitmask is not None:
            starts = itertools.accumulate((len(part.values) for part in parts), initial=0)
            bitmask = torch.cat([_present(part.bitmask) for part in parts])
            row_offsets = torch.cat([_present(p.row_offsets) + start for p, start in zip(parts, starts, strict=False)])
        if first.scale is not None:
            scale = torch.cat([_present(part.scale) for part in parts])
        shape = (sum(part.shape[0] for part in parts), first.shape[1])
        return cls(shape, torch.cat([part.values for part in parts]), bitmask, row_offsets, scale)

    @property
    def dtype(self) -> DType:
        return next(name for name, dtype in DTYPES.items() if dtype == self.values.dtype)

    @property
    def nnz(self) -> int:
        """Returns the number of non-zeros."""
        return int(torch.count_nonzero(self.values))

    @property
    def sparsity(self) -> float:
        """Returns the fraction of zeros."""
        return 1 - self.nnz / (self.shape[0] * self.shape[1])

    @property
    def nbytes(self) -> int:
        """Returns the stored bytes: values, bitmask, row offsets and scales."""
        parts = (self.values, self.bitmask, self.row_offsets, self.scale)
        return sum(part.nbytes for part in parts if part is not None)

    def dense(self) -> Tensor:
        """Returns `W_OI` in fp32, dequantized."""
        values = self.values.float()
        if self.bitmask is None:
            W_OI = values.reshape(self.shape).clone()
        else:
            mask_OI = np.unpackbits(self.bitmask.numpy(), axis=1, count=self.shape[1], bitorder="little")
            W_OI = torch.zeros(self.shape).masked_scatter_(torch.from_numpy(mask_OI).bool(), values)
        return W_OI if self.scale is None else W_OI.mul_(self.scale[:, None])

    def check(self, name: str) -> None:
        """Raises EngineError, naming the tensor, if the parts do not form a valid matrix for the kernels."""
        if len(self.shape) != 2 or min(self.shape) < 1:
            raise EngineError(f"{name}: shape is {self.shape}, expected two positive sizes")
        if self.values.dtype not in DTYPES.values():
            raise EngineError(f"{name}: values are {self.values.dtype}, expected one of {', '.join(DTYPES)}")
        if self.bitmask is None:
            _expect(name, "values", self.values, self.values.dtype, (self.shape[0] * self.shape[1],))
            if self.row_offsets is not None:
                raise EngineError(f"{name}: row offsets without a bitmask, expected both or neither")
        else:
            _check_bitmask(self, name)
        if self.values.is_floating_point() and not torch.isfinite(self.values).all():
            raise EngineError(f"{name}: has values that are not finite")
        _check_scale(self, name)


def _present(part: Tensor | None) -> Tensor:
    assert part is not None
    return part


def _quantize(W_OI: Tensor) -> tuple[Tensor, Tensor]:
    scale_O = W_OI.abs().amax(dim=1).div_(LEVELS)
    # below the normal range a scale is too coarse to divide by: such a row rounds to zeros
    scale_O.masked_fill_(scale_O < torch.finfo(torch.float32).tiny, 1.0)
    return (W_OI / scale_O[:, None]).round_().to(torch.int8), scale_O


def _pack(stored_OI: Tensor, scale_O: Tensor | None, keep_dense: bool) -> PackedWeight:
    """Packs a matrix, dense if the bitmask form would not be smaller: few zeros, or very short rows."""
    rows, columns = stored_OI.shape
    mask_OI = stored_OI != 0
    count_O = mask_OI.sum(dim=1)
    size = stored_OI.element_size()
    bitmask_bytes = int(count_O.sum()) * size + rows * (-(-columns // 8) + OFFSET_BYTES)
    if keep_dense or bitmask_bytes >= rows * columns * size:
        return PackedWeight((rows, columns), stored_OI.reshape(-1).clone(), None, None, scale_O)
    bitmask = torch.from_numpy(np.packbits(mask_OI.numpy(), axis=1, bitorder="little"))
    return PackedWeight((rows, columns), stored_OI[mask_OI], bitmask, count_O.cumsum(0) - count_O, scale_O)


def _check_bitmask(packed: PackedWeight, name: str) -> None:
    rows, columns = packed.shape
    assert packed.bitmask is not None
    if packed.row_offsets is None:
        raise EngineError(f"{name}: a bitmask without row offsets, expected both or neither")
    _expect(name, "bitmask", packed.bitmask, torch.uint8, (rows, -(-columns // 8)))
    _expect(name, "row offsets", packed.row_offsets, torch.int64, (rows,))
    if packed.values.dim() != 1:
        raise EngineError(f"{name}: values have {packed.values.dim()} dimensions, expected 1")
    bits_OB = packed.bitmask.numpy()
    if columns % 8 and (bits_OB[:, -1] >> (columns % 8)).any():
        raise EngineError(f"{name}: bits are set behind the last column, expected zeros")
    count_O = np.bitwise_count(bits_OB).sum(axis=1, dtype=np.int64)
    if not np.array_equal(packed.row_offsets.numpy(), count_O.cumsum() - count_O):
        raise EngineError(f"{name}: row offsets are not the sums of the bits before them")
    if len(packed.values) != count_O.sum():
        raise EngineError(f"{name}: {len(packed.values)} values, expected {count_O.sum()}, one for each bit")


def _check_scale(packed: PackedWeight, name: str) -> None:
    if (packed.scale is not None) != (packed.values.dtype == torch.int8):
        raise EngineError(f"{name}: a scale belongs to int8 values and to no others")
    if packed.scale is not None:
        _expect(name, "scale", packed.scale, torch.float32, packed.shape[:1])
        if not (torch.isfinite(packed.scale).all() and (packed.scale > 0).all()):
            raise EngineError(f"{name}: a scale is not positive and finite")


def _expect(name: str, what: str, part: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if part.dtype != dtype or tuple(part.shape) != shape:
        raise EngineError(f"{name}: {what} is {part.dtype} {list(part.shape)}, expected {dtype} {list(shape)}")
