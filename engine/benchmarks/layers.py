"""One linear layer in every form, timed in interleaved rounds: torch dense, the engine dense and sparse, peers."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from engine import kernels
from engine.benchmarks import roofline
from engine.benchmarks.bandwidth import ReadBandwidth
from engine.errors import EngineError
from engine.kernels import Matrix
from engine.peers.children import serve
from engine.peers.contracts import LayerPeer, TimedLayer, Unavailable
from engine.weights import DType, PackedWeight

Row = dict[str, Any]
BASELINE = "torch_fp32"
WARMUP = 2
"""Rounds that are not counted."""


@dataclass(frozen=True)
class Case:
    """`y_TO = x_TI W_OIᵀ` with W of `rows` x `columns`, a share `sparsity` of it zeros at random places."""

    rows: int
    columns: int
    tokens: int
    sparsity: float

    @property
    def bound_by_memory(self) -> bool:
        return self.tokens <= kernels.FEW


@dataclass(frozen=True)
class LocalLayer:
    """A TimedLayer of this process."""

    call: Callable[[], object]

    def seconds(self, flush_bytes: int) -> float:
        return serve.seconds(self.call, flush_bytes)

    def close(self) -> None:
        """There is no process to end."""


@dataclass
class Contender:
    """A form of the layer, and what its rounds took; or why it cannot run."""

    name: str
    dtype: str
    dense: bool
    """Spends as much on zeros as on other weights."""
    layer: TimedLayer | None = None
    stored_bytes: int | None = None
    """Read by one product; None where a runtime does not tell."""
    reason: str | None = None
    seconds: list[float] = field(default_factory=list)

    def run(self, flush_bytes: int) -> None:
        """One round; a runtime that fails is out from then on."""
        if self.layer is None:
            return
        try:
            self.seconds.append(self.layer.seconds(flush_bytes))
        except EngineError as error:
            self.fail(str(error))

    def fail(self, reason: str) -> None:
        self.close()
        self.reason, self.seconds = reason, []

    def close(self) -> None:
        if self.layer is not None:
            self.layer.close()
            self.layer = None


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
    """A row for each contender. torch's threads must be `threads`. Before each call `flush_bytes` of other memory are
    read, where a product is bound by memory. `done` is called after each of `WARMUP + rounds` rounds."""
    with _prepared(case, dtypes, peers, threads) as contenders:
        for number in range(WARMUP + rounds):
            for contender in contenders:
                if number == WARMUP:
                    contender.seconds.clear()
                contender.run(flush_bytes if case.bound_by_memory else 0)
            done()
        return rows_of(case, contenders, bandwidth)


@contextmanager
def _prepared(
    case: Case, dtypes: Sequence[DType], peers: Sequence[LayerPeer], threads: int
) -> Iterator[list[Contender]]:
    found: list[Contender] = []
    try:
        W_OI, x_TI = random_layer(case)
        found += _torch(W_OI, x_TI)
        for dtype in dtypes:
            found += [_engine(case, W_OI, x_TI, dtype, threads, dense) for dense in (True, False)]
        for peer in peers:
            found.append(_peer(peer, case, W_OI, threads))
        del W_OI
        yield found
    finally:
        for contender in found:
            contender.close()


def random_layer(case: Case) -> tuple[Tensor, Tensor]:
    """`W_OI` and `x_TI`, the same on every call; a higher sparsity keeps some of what a lower one keeps."""
    draw = torch.Generator().manual_seed(0)
    W_OI = torch.randn(case.rows, case.columns, generator=draw)
    W_OI[torch.rand(case.rows, case.columns, generator=draw) < case.sparsity] = 0
    return W_OI, torch.randn(case.tokens, case.columns, generator=draw)


def _torch(W_OI: Tensor, x_TI: Tensor) -> Iterator[Contender]:
    """As a model in that dtype calls it: what comes in is in the dtype already."""
    for name, torch_dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        x, weight = x_TI.to(torch_dtype), W_OI.to(torch_dtype)
        layer = LocalLayer(lambda x=x, weight=weight: functional.linear(x, weight))  # type: ignore[misc]
        yield Contender(f"torch_{name}", name, True, layer, weight.nbytes)


def _engine(case: Case, W_OI: Tensor, x_TI: Tensor, dtype: DType, threads: int, dense: bool) -> Contender:
    """With the rounding of its inputs, which come in fp32."""
    contender = Contender(f"engine_{dtype}{'_dense' if dense else ''}", dtype, dense)
    if dense and dtype == "fp32" and not case.bound_by_memory:
        contender.reason = f"beyond {kernels.FEW} tokens the engine takes torch's product for dense fp32"
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
    contender.layer = LocalLayer(lambda: matrix.linear(x_TI, threads))
    contender.stored_bytes = matrix.bytes
    return contender


def _peer(peer: LayerPeer, case: Case, W_OI: Tensor, threads: int) -> Contender:
    # ONNX Runtime has no kernel that skips zeros
    dense = case.sparsity == 0 or peer.name.startswith("onnxruntime")
    contender = Contender(peer.name, peer.name.rpartition("_")[2], dense)
    try:
        layer = peer.prepare(W_OI.numpy(), case.tokens, threads)
    except EngineError as error:
        contender.reason = str(error)
        return contender
    if isinstance(layer, Unavailable):
        contender.reason = layer.reason
    else:
        contender.layer = layer
    return contender


def rows_of(case: Case, contenders: Sequence[Contender], bandwidth: ReadBandwidth) -> list[Row]:
    """Ratios are quotients of medians of this case: how many times as fast as the baseline. They are over torch fp32;
    over the dense contender of the same dtype (the engine's, or torch's where the engine takes that); and over the
    fastest dense contender. None where a baseline did not run."""
    medians = {c.name: statistics.median(c.seconds) for c in contenders if c.seconds}
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
        median = medians[contender.name]
        same = f"engine_{contender.dtype}_dense"
        if same not in medians and contender.dtype == "fp32" and not case.bound_by_memory:
            same = BASELINE
        baselines = {"torch_fp32_dense": BASELINE, "same_dtype_dense": same, "fastest_dense": fastest}
        rows.append(
            row
            | {
                "status": "ok",
                "median_us": 1e6 * median,
                "min_us": 1e6 * min(contender.seconds),
                "max_us": 1e6 * max(contender.seconds),
                "rounds_us": [1e6 * seconds for seconds in contender.seconds],
                **{f"over_{what}": _quotient(medians, name, median) for what, name in baselines.items()},
                "fastest_dense": fastest,
                **_limits(case, contender, median, bandwidth),
            }
        )
    return rows


def _quotient(medians: dict[str, float], baseline: str | None, seconds: float) -> float | None:
    return medians[baseline] / seconds if baseline in medians else None


def _limits(case: Case, contender: Contender, seconds: float, bandwidth: ReadBandwidth) -> Row:
    """`storage_roofline`, over dense fp32; `flop_roofline`, over a dense product of the same arithmetic."""
    read = contender.stored_bytes
    rate = None if read is None else roofline.gigabytes_per_second(read, seconds)
    bound = rate is not None and case.bound_by_memory
    return {
        "stored_bytes": read,
        "gigabytes_per_second": rate,
        "share_of_bandwidth": rate / bandwidth.gigabytes_per_second if rate is not None and bound else None,
        "gigaflops": roofline.gigaflops(case.tokens, case.rows, case.columns, seconds),
        "storage_roofline": None if read is None else roofline.storage_ratio(case.rows, case.columns, read),
        "flop_roofline": 1.0 if contender.dense else roofline.flop_ratio(case.sparsity),
    }
