"""Measure an engine folder at batch 1: a prompt of random tokens, then greedy decoding with the key-value cache.

Printed are medians over rounds and their range. Steps are decoded by transformers, as `generate` does, and where the
architecture allows by the engine's own decoding step. "MB read" is what one decoded token reads of the weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="OUT", help="what `export` has written")
    for name, default, what in (
        ("--prompt-tokens", 128, "of the prompt"),
        ("--new-tokens", 32, "decoded in each round"),
        ("--rounds", 5, "measured"),
        ("--warmup", 1, "rounds before them"),
        ("--threads", 2, "of torch and the kernels"),
    ):
        parser.add_argument(name, type=int, default=default, metavar="N", help=f"{what} (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    from engine import decoder, kernels, measure
    from engine.errors import EngineError
    from engine.files import load

    for name in ("prompt_tokens", "new_tokens", "rounds", "threads"):
        if getattr(args, name) < 1:
            raise EngineError(f"--{name.replace('_', '-')} is {getattr(args, name)}, expected at least 1")
    with Console(stderr=True).status(f"loading {args.folder}"):
        model = load(args.folder, threads=args.threads)
    length = args.prompt_tokens + args.new_tokens
    measure.check_length(model, length)
    ids_1T = measure.random_prompt(model, args.prompt_tokens)
    steppers: dict[str, measure.Stepper] = {"transformers": measure.TransformersStepper(model)}
    if not (reason := decoder.unsupported(model)):
        steppers["engine"] = decoder.Decoder(model, length)
    prefill_ms = {name: measure.Spread() for name in steppers}
    tokens_per_second = {name: measure.Spread() for name in steppers}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for number in progress.track(range(args.warmup + args.rounds), description="bench"):
            for name, stepper in steppers.items():
                prefill_s, decode_s = measure.one_round(stepper, ids_1T, args.new_tokens)
                if number >= args.warmup:
                    prefill_ms[name].add(1e3 * prefill_s)
                    tokens_per_second[name].add(args.new_tokens / decode_s)
    read = measure.bytes_per_token(model)
    table = Table(box=None, pad_edge=False)
    for column in ("steps by", "prefill ms", "decode tokens/s", "MB read", "GB/s"):
        table.add_column(column, justify="left" if column == "steps by" else "right", no_wrap=True)
    for name, rate in tokens_per_second.items():
        table.add_row(name, str(prefill_ms[name]), str(rate), f"{read / 1e6:.1f}", f"{read * rate.median / 1e9:.1f}")
    console = Console(highlight=False)
    threads = f"{args.threads} thread{'s' * (args.threads > 1)}"
    title = f"{args.folder}: {threads}, {kernels.available_isas()[-1]}, prompt of {args.prompt_tokens} tokens"
    console.print(f"{title}, {args.rounds} interleaved rounds", soft_wrap=True)
    console.print(table)
    if reason:
        console.print(f"engine: n/a ({reason})", markup=False, soft_wrap=True)
