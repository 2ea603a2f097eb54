"""Measure an engine folder at batch 1: a prompt of random tokens, then greedy decoding with the key-value cache.
The prompt of an encoder-decoder is what its encoder reads.

Printed are medians over rounds and their range. Steps are decoded by transformers alone, and where the architecture
allows by the engine's own decoding step. "MB read" is what one decoded token reads of the weights. Then
follows where the time of the engine's step went (means), and how long reading its weights from memory takes.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

if TYPE_CHECKING:
    from engine.breakdown import Breakdown
    from engine.measure import Spread


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
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's figures here too")


def run(args: argparse.Namespace) -> None:
    from engine import kernels, measure
    from engine.benchmarks import machine, options, output
    from engine.files import load

    options.check_least(args, 1, "prompt_tokens", "new_tokens", "rounds", "threads")
    options.check_out(args.json)
    with Console(stderr=True).status(f"loading {args.folder}"):
        model = load(args.folder, threads=args.threads, compiled_steps=False)
    measured = _measure(model, args)
    read = measure.bytes_per_token(model)
    isa = kernels.available_isas()[-1]
    console = Console(highlight=False)
    threads = f"{args.threads} thread{'s' * (args.threads > 1)}"
    title = f"{args.folder}: {threads}, {isa}, prompt of {args.prompt_tokens} tokens"
    console.print(f"{title}, {args.rounds} interleaved rounds", soft_wrap=True)
    console.print(_rates(measured, read))
    if measured.reason:
        console.print(f"engine: n/a ({measured.reason})", markup=False, soft_wrap=True)
    if measured.step:
        _print_step(console, measured.step)
    if args.json:
        record: dict[str, Any] = {"folder": str(args.folder), "machine": machine.describe(args.threads)}
        record |= {key: getattr(args, key) for key in ("prompt_tokens", "new_tokens", "warmup")}
        record |= {"weight_bytes": read, "engine_unavailable": measured.reason}
        record["prefill_ms"] = {name: spread.values for name, spread in measured.prefill_ms.items()}
        record["step_microseconds"] = {name: spread.values for name, spread in measured.step_us.items()}
        record["engine_step"] = asdict(measured.step) if measured.step else None
        output.write(record, args.json)


@dataclass
class Measured:
    prefill_ms: dict[str, Spread]
    step_us: dict[str, Spread]
    """Of one decoded token, by what decodes it."""
    step: Breakdown | None
    reason: str | None
    """Why the engine cannot decode this model."""


def _measure(model: Any, args: argparse.Namespace) -> Measured:
    import torch

    from engine import decoder, measure
    from engine.architectures import reads_speech
    from engine.benchmarks import bandwidth, machine
    from engine.breakdown import breakdown
    from engine.errors import EngineError

    if reads_speech(model.config):
        raise EngineError(
            f"{args.folder} holds a speech model, which reads audio and no prompt of tokens; measure it with the "
            "benchmark of the pipeline"
        )
    length = args.prompt_tokens + args.new_tokens
    measure.check_length(model, length)
    ids_1T = measure.random_prompt(model, args.prompt_tokens)
    steppers: dict[str, measure.Stepper] = {}
    native: decoder.Decoder | decoder.EncoderDecoder | None = None
    reason = decoder.unsupported(model)
    if model.config.is_encoder_decoder:
        source = measure.text(ids_1T)
        steppers["transformers"] = measure.EncoderDecoderStepper(model, source)
        if not reason:
            steppers["engine"] = native = decoder.EncoderDecoder(model, length)
            native.read(source)
        ids_1T = torch.tensor([[model.generation_config.decoder_start_token_id]])
    else:
        steppers["transformers"] = measure.TransformersStepper(model)
        if not reason:
            steppers["engine"] = native = decoder.Decoder(model, length)
    prefill_ms = {name: measure.Spread() for name in steppers}
    step_us = {name: measure.Spread() for name in steppers}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for number in progress.track(range(args.warmup + args.rounds), description="bench"):
            if native and number == args.warmup:
                native.profile()  # forgets the warm-up
            for name, stepper in steppers.items():
                prefill_s, decode_s = measure.one_round(stepper, ids_1T, args.new_tokens)
                if number >= args.warmup:
                    prefill_ms[name].add(1e3 * prefill_s)
                    step_us[name].add(1e6 * decode_s / args.new_tokens)
    step = None
    if native:
        mean_s = {name: 1e-6 * spread.mean for name, spread in step_us.items()}
        profile = native.profile()
        memory = bandwidth.measure(args.threads, machine.default_flush_bytes())
        step = breakdown(profile, mean_s["engine"], mean_s["transformers"], memory)
    return Measured(prefill_ms, step_us, step, reason)


def _rates(measured: Measured, read: int) -> Table:
    from engine.measure import Spread

    table = _table("steps by", "prefill ms", "decode tokens/s", "MB read", "GB/s")
    for name, spread in measured.step_us.items():
        rate = Spread([1e6 / value for value in spread.values])
        prefill_ms = str(measured.prefill_ms[name])
        table.add_row(name, prefill_ms, str(rate), f"{read / 1e6:.1f}", f"{read * rate.median / 1e9:.1f}")
    return table


def _print_step(console: Console, found: Breakdown) -> None:
    table = _table("of a step", "µs", "%", "MB read", "GB/s")
    for phase in found.phases:
        table.add_row(
            phase.name,
            f"{phase.microseconds:.1f}",
            f"{phase.percent:.1f}",
            "" if phase.weight_bytes is None else f"{phase.weight_bytes / 1e6:.2f}",
            "" if phase.gigabytes_per_second is None else f"{phase.gigabytes_per_second:.1f}",
        )
    rate = found.weight_bytes / found.microseconds / 1e3
    table.add_row("all", f"{found.microseconds:.1f}", "100.0", f"{found.weight_bytes / 1e6:.2f}", f"{rate:.1f}")
    console.print(f"\nthe engine's step, mean of {found.steps}:")
    console.print(table)
    more = found.transformers_microseconds - found.microseconds
    console.print(
        f"a step by transformers takes {found.transformers_microseconds:.0f} µs, {more:+.0f} µs: Python and torch "
        "around the converted products, and what was not converted",
        soft_wrap=True,
    )
    console.print(
        f"reading {found.weight_bytes / 1e6:.1f} MB from memory at {found.memory.gigabytes_per_second:.1f} GB/s "
        f"({found.memory.method}) takes {found.limit_microseconds:.0f} µs: the step takes "
        f"{found.microseconds / found.limit_microseconds:.2f} times that (below 1: caches hold a part)",
        soft_wrap=True,
    )


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for column in others:
        table.add_column(column, justify="right", no_wrap=True)
    return table
