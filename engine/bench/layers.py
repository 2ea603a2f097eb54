"""Times one linear layer in every form in interleaved rounds: torch dense, the engine dense and sparse, peers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from engine import kernels
from engine.bench import roofline
from engine.bench.bandwidth import ReadBandwidth
from engine.bench.rounds import Contender, interleave, median_seconds, speedup
from engine.errors import EngineError
from engine.kernels import Matrix
from engine.peers.children import serve
from engine.peers.contracts import LayerPeer, Unavailable
from engine.weights import DType, PackedWeight

Row = dict[str, Any]
BASELINE = "torch_fp32"
TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WARMUP = 2
"""Rounds that are not counted."""


@dataclass(frozen=True)
class Case:
    """`y_TO = x_TI W_OIᵀ` with W of `rows` x `columns`, of which a share `sparsity` is zero at random places."""

    rows: int
    columns: int
    tokens: int
    sparsity: float

    @property
    def bound_by_memory(self) -> bool:
        return self.tokens <= kernels.MAX_GEMV_TOKENS


@dataclass(kw_only=True)
class LayerContender(Contender[float]):
    """A form of the layer; its rounds are seconds."""

    dtype: str
    dense: bool
    """Whether zeros take as long as other weights."""


def turns(dtypes: int, peers: int, rounds: int) -> int:
    """Returns how often `measure` calls `done`."""
    return (WARMUP + rounds) * (len(TORCH_DTYPES) + 2 * dtypes + peers)


@torch.inference_mode()
def measure(
    case: Case,
    dtypes: Sequence[DType],
    peers: Sequence[LayerPeer],
    *,
    threads: int,
    rounds: int,
    flush_bytes: int,
    bandwidth: ReadBandwidth,
    done: Callable[[], None],
) -> list[Row]:
    """Returns a row for each contender. torch's threads must be `threads`. Before each call `flush_bytes` of other
    memory are read if the product is bound by memory. Calls `done` after each turn of a contender."""
    contenders: list[LayerContender] = []
    flush_bytes = flush_bytes if case.bound_by_memory else 0
    try:
        contenders += _prepare(case, dtypes, peers, threads, flush_bytes)
        for _ in interleave(contenders, WARMUP, rounds):
            done()
        return rows_of(case, contenders, bandwidth)
    finally:
        for contender in contenders:
            contender.close()


def _prepare(
    case: Case, dtypes: Sequence[DType], peers: Sequence[LayerPeer], threads: int, flush_bytes: int
) -> Iterator[LayerContender]:
    W_OI, x_TI = random_layer(case)
    yield from _torch(W_OI, x_TI, flush_bytes)
    for dtype in dtypes:
        for dense in (True, False):
            yield _engine(case, W_OI, x_TI, dtype, threads, dense, flush_bytes)
    for peer in peers:
        yield _peer(peer, case, W_OI, threads, flush_bytes)


def random_layer(case: Case) -> tuple[Tensor, Tensor]:
    """Returns `W_OI` and `x_TI`, the same on every call; a higher sparsity keeps a subset of what a lower one keeps."""
    draw = torch.Generator().manual_seed(0)
    W_OI = torch.randn(case.rows, case.columns, generator=draw)
    W_OI[torch.rand(case.rows, case.columns, generator=draw) < case.sparsity] = 0
    return W_OI, torch.randn(case.tokens, case.columns, generator=draw)


def _torch(W_OI: Tensor, x_TI: Tensor, flush_bytes: int) -> Iterator[LayerContender]:
    """Calls the layer as a model in that dtype does: the input already has the dtype."""
    for name, torch_dtype in TORCH_DTYPES.items():
        product = partial(functional.linear, x_TI.to(torch_dtype), weight := W_OI.to(torch_dtype))
        contender = LayerContender(name=f"torch_{name}", dtype=name, dense=True, weight_bytes=weight.nbytes)
        contender.measure = partial(serve.seconds, product, flush_bytes)
        yield contender


def _engine(
    case: Case, W_OI: Tensor, x_TI: Tensor, dtype: DType, threads: int, dense: bool, flush_bytes: int
) -> LayerContender:
    """Calls the layer with fp32 inputs, which it rounds."""
    contender = LayerContender(name=f"engine_{dtype}{'_dense' if dense else ''}", dtype=dtype, dense=dense)
    if dense and dtype == "fp32" and not case.bound_by_memory:
        contender.reason = f"beyond {kernels.MAX_GEMV_TOKENS} tokens the engine takes torch's product for dense fp32"
        return contender
    try:
        packed = PackedWeight.of(W_OI, dtype, keep_dense=dense)
        if not dense and packed.bitmask is None:
            contender.reason = "so few zeros are stored dense"
            return contender
        matrix = Matrix(packed)
    except EngineError as error:
        contender.reason = str(error)
        return contender
    contender.measure = partial(serve.seconds, partial(matrix.linear, x_TI, threads), flush_bytes)
    contender.weight_bytes = matrix.bytes
    return contender


def _peer(peer: LayerPeer, case: Case, W_OI: Tensor, threads: int, flush_bytes: int) -> LayerContender:
    # ONNX Runtime has no kernel that skips zeros
    dense = case.sparsity == 0 or peer.name.startswith("onnxruntime")
    contender = LayerContender(name=peer.name, dtype=peer.name.rpartition("_")[2], dense=dense)
    try:
        layer = peer.prepare(W_OI.numpy(), case.tokens, threads)
    except EngineError as error:
        contender.reason = str(error)
        return contender
    if isinstance(layer, Unavailable):
        contender.reason = layer.reason
    else:
        contender.measure, contender.end = partial(layer.seconds, flush_bytes), layer.close
    return contender


def rows_of(case: Case, contenders: Sequence[LayerContender], bandwidth: ReadBandwidth) -> list[Row]:
    """Returns the rows. Ratios are quotients of medians of this case: how many times as fast as the baseline. They are
    over torch fp32; over the dense contender of the same dtype (the engine's, or torch's if the engine takes that); and
    over the fastest dense contender. None if a baseline did not run."""
    medians = median_seconds(contenders)
    dense = [c.name for c in contenders if c.dense and c.name in medians]
    fastest = min(dense, key=lambda name: medians[name], default=None)
    rows = []
    for contender in contenders:
        row: Row = {
            "rows": case.rows,
            "columns": case.columns,
            "tokens": case.tokens,
            "sparsity": case.sparsity,
            "contender": contender.name,
            "dtype": contender.dtype,
            "dense": contender.dense,
        }
        if contender.name not in medians:
            rows.append(row | {"status": "n/a", "reason": contender.reason})
            continue
        same = f"engine_{contender.dtype}_dense"
        if same not in medians and contender.dtype == "fp32" and not case.bound_by_memory:
            same = BASELINE
        baselines = {"torch_fp32_dense": BASELINE, "same_dtype_dense": same, "fastest_dense": fastest}
        rows.append(
            row
            | {
                "status": "ok",
                "median_us": 1e6 * medians[contender.name],
                "min_us": 1e6 * min(contender.rounds),
                "max_us": 1e6 * max(contender.rounds),
                "rounds_us": [1e6 * seconds for seconds in contender.rounds],
                **{f"over_{what}": speedup(medians, contender.name, name) for what, name in baselines.items()},
                "fastest_dense": fastest,
                **_limits(case, contender, medians[contender.name], bandwidth),
            }
        )
    return rows


def _limits(case: Case, contender: LayerContender, seconds: float, bandwidth: ReadBandwidth) -> Row:
    """Returns `storage_roofline`, over dense fp32, and `flop_roofline`, over a dense product of the same arithmetic."""
    read = contender.weight_bytes
    rate = None if read is None else roofline.gigabytes_per_second(read, seconds)
    return {
        "stored_bytes": read,
        "gigabytes_per_second": rate,
        "share_of_bandwidth": rate / bandwidth.gigabytes_per_second if rate and case.bound_by_memory else None,
        "gigaflops": roofline.gigaflops(case.tokens, case.rows, case.columns, seconds),
        "storage_roofline": None if read is None else roofline.storage_ratio(case.rows, case.columns, read),
        "flop_roofline": 1.0 if contender.dense else roofline.flop_ratio(case.sparsity),
    }
