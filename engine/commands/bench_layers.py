"""Measure single linear layers: torch, the engine and, if requested, other runtimes, over shapes and sparsities.

In each round every contender runs once. For up to 8 tokens each of them first reads --flush MB of other memory, so that
its weights come from memory, as they do in a model; with more tokens they may stay in the cache. Ctrl-C shows the
results so far.
"""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

from engine.bench import options, output

DTYPES = ("fp32", "bf16", "int8")
LARGEST_SIZE = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for name, default, what in (
        ("--shapes", "4096x4096,11008x4096,4096x11008", "outputs x inputs of the layers"),
        ("--sparsities", "0,0.5,0.6,0.7,0.75,0.8", "shares of zeros, below 1"),
        ("--dtypes", ",".join(DTYPES), "of the engine's weights"),
        ("--tokens", "1,8,64,512", "rows of the input"),
        ("--peers", "none", "none, all, or names of other runtimes' layers"),
    ):
        parser.add_argument(name, default=default, metavar="A,B", help=f"{what} (default: %(default)s)")
    what = "other memory read before a call; 0: none (default: twice the last-level cache, at least 134)"
    parser.add_argument("--flush", type=int, metavar="MB", help=what)
    options.add_shared(parser, rounds=9)


def run(args: argparse.Namespace) -> None:
    options.check_least(args, 1, "threads", "rounds")
    options.check_least(args, 0, "flush")
    options.check_out(args.json)
    shapes = options.parse_list("shapes", args.shapes, _shape, "sizes such as 4096x4096")
    sparsities = options.parse_list("sparsities", args.sparsities, _sparsity, "numbers from 0 to below 1, such as 0.5")
    tokens = options.parse_list("tokens", args.tokens, _size, "whole numbers above 0")
    dtypes: Any = options.choose("dtypes", args.dtypes, DTYPES)
    with Console(stderr=True).status("importing"):
        from engine.bench import bandwidth, layer_tables, layers, machine
        from engine.kernels import MAX_GEMV_TOKENS
        from engine.peers.layers import LAYER_PEERS
    names = [] if args.peers == "none" else options.choose("peers", args.peers, tuple(LAYER_PEERS))
    cases = [layers.Case(*shape, count, s) for shape in shapes for count in tokens for s in sparsities]
    flush_bytes = machine.default_flush_bytes() if args.flush is None else args.flush * 10**6
    with machine.torch_threads(args.threads):
        with Console(stderr=True).status("measuring how fast memory is read"):
            read = bandwidth.measure(args.threads, machine.default_flush_bytes())
        record: dict[str, Any] = {
            "machine": machine.describe(args.threads, [name.partition("_")[0] for name in names]),
            "protocol": {
                "rounds": args.rounds,
                "warmup": layers.WARMUP,
                "interleaved": True,
                "flush_bytes": flush_bytes,
                "flushed_up_to_tokens": MAX_GEMV_TOKENS,
                "weights": "normal, zeros at random places",
            },
            "read_bandwidth": {"gigabytes_per_second": read.gigabytes_per_second, "method": read.method},
            "complete": False,
            "rows": [],
        }
        try:
            with output.progress_bar() as progress:
                task = progress.add_task("", total=len(cases) * layers.turns(len(dtypes), len(names), args.rounds))
                for case in cases:
                    about = f"{case.rows}x{case.columns}, {case.tokens} tokens, sparsity {case.sparsity:.4g}"
                    progress.update(task, description=about)
                    record["rows"] += layers.measure(
                        case,
                        dtypes,
                        [LAYER_PEERS[name] for name in names],
                        threads=args.threads,
                        rounds=args.rounds,
                        flush_bytes=flush_bytes,
                        bandwidth=read,
                        done=lambda: progress.advance(task),
                    )
                    output.write(record, args.json)
            record["complete"] = True
            output.write(record, args.json)
        finally:
            layer_tables.show(record, output.wide_console())


def _shape(text: str) -> tuple[int, int]:
    rows, columns = (_size(size) for size in text.split("x"))
    return rows, columns


def _size(text: str) -> int:
    number = int(text)
    if not 0 < number <= LARGEST_SIZE:
        raise ValueError
    return number


def _sparsity(text: str) -> float:
    number = float(text)
    if not 0 <= number < 1:
        raise ValueError
    return number
