"""Measure decoding of a random stack of large layers, Llama-2-7B's by default: torch, the engine and llama.cpp.

Only a few layers are built, enough not to fit the caches; the speed is that of the whole step: layers, norms,
attention, head. In each round every contender decodes the same number of tokens from an empty cache. Ctrl-C shows the
results so far.
"""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

from engine.bench import options, output
from engine.errors import EngineError

SIZES = (
    ("--width", 4096, "of the hidden states"),
    ("--mlp-width", 11008, "of gate and up"),
    ("--heads", 32, "of attention"),
    ("--kv-heads", 32, "of its keys and values"),
    ("--vocabulary", 32000, "of embeddings and head"),
    ("--layers", 4, "built"),
    ("--new-tokens", 8, "decoded in each round"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for name, default, what in SIZES:
        parser.add_argument(name, type=int, default=default, metavar="N", help=f"{what} (default: %(default)s)")
    parser.add_argument("--sparsity", type=float, default=0.7, help="of the layers' linears (default: %(default)s)")
    what = "all, or names of contenders: torch_fp32, engine_int8, engine_int8_dense, llamacpp_q4_k, ... (default: all)"
    parser.add_argument("--backends", default="all", metavar="A,B", help=what)
    options.add_shared(parser, rounds=5)


def run(args: argparse.Namespace) -> None:
    sizes = [name.removeprefix("--").replace("-", "_") for name, _, _ in SIZES]
    options.check_least(args, 1, *sizes, "threads", "rounds")
    options.check_out(args.json)
    if not 0 <= args.sparsity < 1:
        raise EngineError(f"--sparsity is {args.sparsity}, expected from 0 to below 1")
    with Console(stderr=True).status("importing"):
        import psutil

        from engine.bench import bandwidth, machine, stack, stack_tables
        from engine.bench.rounds import interleave
    known = (*stack.TORCH_DTYPES, *stack.ENGINE_FORMS, *stack.LLAMACPP_TYPES)
    names = options.choose("backends", args.backends, known)
    shape = stack.Shape(args.width, args.mlp_width, args.heads, args.kv_heads, args.vocabulary)
    shape.check()
    needed = stack.memory_bytes(shape, args.layers, args.sparsity, names)
    free = psutil.virtual_memory().available
    if needed > free:
        raise EngineError(
            f"this takes about {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} are free; ask for fewer --layers or "
            "--backends"
        )
    contenders: list[stack.StackContender] = []
    with machine.torch_threads(args.threads):
        with Console(stderr=True).status("measuring how fast memory is read"):
            read = bandwidth.measure(args.threads, machine.default_flush_bytes())
        record: dict[str, Any] = {
            "machine": machine.describe(args.threads, [n.partition("_")[0] for n in names if n.startswith("llama")]),
            "stack": {name: getattr(args, name) for name in sizes[:-1]} | {"sparsity": args.sparsity},
            "protocol": {
                "rounds": args.rounds,
                "warmup": stack.WARMUP,
                "interleaved": True,
                "batch": 1,
                "new_tokens": args.new_tokens,
            },
            "read_bandwidth": {"gigabytes_per_second": read.gigabytes_per_second, "method": read.method},
            "complete": False,
            "rows": [],
        }
        context = args.new_tokens + 1
        try:
            with Console(stderr=True).status("making the model") as status:
                model = stack.one_layer(shape, args.sparsity, context)
                for name in names:
                    status.update(f"preparing {name}")
                    contenders.append(stack.prepare(name, model, args.layers, context, args.threads, args.new_tokens))
            with output.progress_bar() as progress:
                task = progress.add_task("decoding", total=(stack.WARMUP + args.rounds) * len(contenders))
                for number, contender in interleave(contenders, stack.WARMUP, args.rounds):
                    progress.advance(task)
                    if number == -1 and contender.decoder:
                        contender.decoder.profile()  # forgets the warm-up
            record["complete"] = True
        finally:
            record["rows"] = stack.rows_of(contenders, read)
            output.write(record, args.json)
            stack_tables.show(record, output.wide_console())
            for contender in contenders:
                contender.close()
